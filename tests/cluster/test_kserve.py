"""A KServe InferenceService of class `external` and our HPA on its Deployment, as the overlay `kserve-hpa` writes them.

KServe's real controller is beside us all the time: it must make no HPA of its own and take no change back.  Its `Ready` is
the Deployment's `Available`, which is false while more than a quarter of the pods start, whoever asked for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_api import Namespace, Object, condition
from cluster_plane import ControlPlane
from cluster_programs import Program, wait_for
from cluster_serve import Door, Serve, manifests

pytestmark = pytest.mark.cluster

NAME, DEPLOYMENT = "llama-8b", "llama-8b-predictor"


def shipped(plane: ControlPlane, kind: str, namespace: Namespace) -> Object:
    """The overlay's object of that kind, in the test's namespace."""
    [found] = [o for o in manifests(plane.api.kubectl_program, "kserve-hpa") if o["kind"] == kind]
    return {**found, "metadata": {**found["metadata"], "namespace": namespace.name}}


def service(namespace: Namespace) -> Object:
    found = namespace.api.get(namespace.path("serving.kserve.io/v1beta1", "InferenceService", NAME))
    return dict(found)


def ready(namespace: Namespace) -> bool:
    return condition(service(namespace), "Ready").get("status") == "True"


@pytest.fixture
def served(
    plane: ControlPlane, kserve: Program, namespace: Namespace, tmp_path: Path
) -> Iterator[tuple[Door, Namespace]]:
    """KServe's objects and our HPA applied, and the adapter that reads a door: one replica for each request a second."""
    target = {"kind": "deployment", "namespace": namespace.name, "name": DEPLOYMENT}
    pool = {"name": NAME, "target": target, "limits": {"min_replicas": 1, "max_replicas": 24}}
    namespace.apply(shipped(plane, "InferenceService", namespace))
    kserve.wait_until("its Deployment is there", lambda: namespace.deployment(DEPLOYMENT))
    with Door() as door, Serve(plane, namespace, tmp_path, door, pool=pool):
        door.arrive(1)
        namespace.apply(shipped(plane, "HorizontalPodAutoscaler", namespace))
        wait_for("the service is ready", lambda: ready(namespace), seconds=60)
        yield door, namespace


@contextmanager
def watched(namespace: Namespace) -> Iterator[list[tuple[int, int, str]]]:
    """Replicas wanted and ready, and whether the InferenceService is, each time one of them changed."""
    seen: list[tuple[int, int, str]] = []
    end = threading.Event()

    def look() -> None:
        while not end.is_set():
            state = condition(service(namespace), "Ready").get("status", "")
            now = (namespace.wanted(DEPLOYMENT), namespace.ready(DEPLOYMENT), state)
            if seen[-1:] != [now]:
                seen.append(now)
            time.sleep(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


def test_it_is_scaled_up_and_down_and_nobody_fights(
    served: tuple[Door, Namespace], plane: ControlPlane, kserve: Program
):
    door, namespace = served
    path = namespace.path("apps/v1", "Deployment", DEPLOYMENT)
    with watched(namespace) as moving:
        for replicas in (6, 3, 1):
            door.arrive(replicas)
            namespace.wait_ready(DEPLOYMENT, replicas)
            wait_for("the service is ready again", lambda: ready(namespace))
            # Whatever changes on what KServe owns makes it reconcile: the number must survive that.
            with watched(namespace) as holding:
                plane.api.patch(path, {"metadata": {"annotations": {"touched": str(replicas)}}})
                namespace.hold(DEPLOYMENT, replicas, seconds=3)
            assert holding == [(replicas, replicas, "True")]
    assert [n for i, (n, *_) in enumerate(moving) if i == 0 or moving[i - 1][0] != n] == [1, 6, 3, 1]
    assert all(count >= 1 for _, count, _ in moving), "somebody could answer all the time"
    down = moving[next(i for i, (n, *_) in enumerate(moving) if n == 3) :]
    assert {state for *_, state in down} == {"True"}
    hpas = namespace.api.get(namespace.path("autoscaling/v2", "HorizontalPodAutoscaler"))["items"]
    assert [h["metadata"]["name"] for h in hpas] == [NAME], "KServe makes none of its own"
    assert kserve.running()


def test_kserve_calls_a_service_unready_while_pods_start_whoever_asked(
    plane: ControlPlane, kserve: Program, namespace: Namespace
):
    """By hand, without any autoscaler: what is seen on the way up is none of our doing."""
    found = shipped(plane, "InferenceService", namespace)
    notes = {**found["metadata"]["annotations"], "startup/seconds": "3s", "startup/longest-seconds": "3s"}
    namespace.apply({**found, "metadata": {**found["metadata"], "annotations": notes}})
    kserve.wait_until("the service is ready", lambda: ready(namespace))
    with watched(namespace) as seen:
        namespace.scale(DEPLOYMENT, 6)
        namespace.wait_ready(DEPLOYMENT, 6)
        wait_for("the service is ready again", lambda: ready(namespace))
    assert (6, 1, "False") in seen


def test_with_the_default_class_two_would_fight(plane: ControlPlane, kserve: Program, namespace: Namespace):
    """What the page warns of: without the annotation KServe writes an HPA on the same Deployment."""
    found = shipped(plane, "InferenceService", namespace)
    notes = {k: v for k, v in found["metadata"]["annotations"].items() if not k.endswith("autoscalerClass")}
    namespace.apply({**found, "metadata": {**found["metadata"], "annotations": notes}})
    path = namespace.path("autoscaling/v2", "HorizontalPodAutoscaler")
    [made] = kserve.wait_until("KServe's own HPA", lambda: namespace.api.get(path)["items"])
    assert made["spec"]["scaleTargetRef"]["name"] == DEPLOYMENT
