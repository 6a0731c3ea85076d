"""Our scaler under KEDA's own operator and the real HPA: waking, N, zero, and holding while nothing is known."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_api import Namespace, condition
from cluster_components import Keda
from cluster_faces import Faces
from cluster_objects import PASS_THROUGH, Object, pool
from cluster_plane import ControlPlane
from cluster_programs import free_ports, wait_for
from cluster_serve import HOME, ROOT, Door, give_rights, pool_section

from serving.kubernetes_objects import hpa_of

pytestmark = pytest.mark.cluster

SCALED_OBJECT = ("keda.sh/v1alpha1", "ScaledObject")


def scaled_object(name: str, port: int, *, kind: str = "external", polling_seconds: int = 1, **spec: Any) -> Object:
    """A ScaledObject on the Deployment of its name; `kind`: external or external-push."""
    trigger = {"type": kind, "metadata": {"scalerAddress": f"127.0.0.1:{port}", "pool": name}}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"name": name},
            "pollingInterval": polling_seconds,
            "cooldownPeriod": 1,
            "minReplicaCount": 0,
            "maxReplicaCount": 20,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": PASS_THROUGH}},
            "triggers": [trigger],
            **spec,
        },
    }


@pytest.fixture
def faces(namespace: Namespace) -> Iterator[Faces]:
    """Our scaler for a pool ``chat``, in a process of its own."""
    with Faces({"chat": (namespace.name, "chat")}) as made:
        yield made


def ready(namespace: Namespace) -> bool:
    """Whether KEDA has taken it up."""
    found = namespace.api.get(namespace.path(*SCALED_OBJECT, "chat"))
    return bool(condition(found, "Ready").get("status") == "True")


def scaled_objects(namespace: Namespace) -> list[Any]:
    """Those there are."""
    return list(namespace.api.get(namespace.path(*SCALED_OBJECT))["items"])


def said(namespace: Namespace) -> str:
    """What the ScaledObject's condition Ready says, and the events on it."""
    found = namespace.api.get(namespace.path(*SCALED_OBJECT, "chat"))
    return f"{condition(found, 'Ready')} {namespace.describe('scaledobject', 'chat')}"


def test_the_polling_trigger_wakes_goes_to_n_and_to_zero(keda: Keda, namespace: Namespace, faces: Faces) -> None:
    faces.wants("chat", 3)
    namespace.apply(pool("chat", replicas=0), scaled_object("chat", faces.port))
    namespace.wait_ready("chat", 3, seconds=60)
    assert hpa_of(namespace.hpa("keda-hpa-chat")).scaled_object == "chat"  # by which the WVA series name their variant
    for replicas in (9, 2, 7, 0, 5):
        faces.wants("chat", replicas)
        namespace.wait_wanted("chat", replicas, seconds=60)


def test_a_push_wakes_within_two_seconds_and_goes_on_to_n(keda: Keda, namespace: Namespace, faces: Faces) -> None:
    """The polling interval is ten minutes: nothing but the push can have woken it.  Back to zero KEDA goes only by polling."""
    namespace.apply(pool("chat", replicas=0))
    times = []
    for replicas in (4, 6):
        faces.wants("chat", 0)
        namespace.apply(scaled_object("chat", faces.port, kind="external-push", polling_seconds=600))
        wait_for("KEDA is ready", lambda: ready(namespace), seconds=60)
        namespace.hold("chat", 0, seconds=3)  # streams are up, and nothing happens
        begin = time.monotonic()
        faces.wants("chat", replicas)
        wait_for("it wakes", lambda: namespace.wanted("chat") > 0, seconds=30)
        times.append(time.monotonic() - begin)
        namespace.wait_wanted("chat", replicas, seconds=30)
        namespace.api.delete(namespace.path(*SCALED_OBJECT, "chat"))
        wait_for("it is gone", lambda: not scaled_objects(namespace), seconds=30)
        namespace.scale("chat", 0)
    print(f"\npushed awake after {', '.join(f'{t:.2f} s' for t in times)}")
    assert max(times) < 2.0


@pytest.mark.parametrize("kind", ["external", "external-push"])
def test_a_scaler_that_is_killed_or_knows_nothing_holds(
    keda: Keda, namespace: Namespace, faces: Faces, kind: str
) -> None:
    faces.wants("chat", 4)
    namespace.apply(pool("chat", replicas=1), scaled_object("chat", faces.port, kind=kind))
    namespace.wait_ready("chat", 4, seconds=60)
    faces.freeze()
    wait_for("our sentence is read", lambda: "last step is" in said(namespace), seconds=30)
    namespace.hold("chat", 4, seconds=6)
    faces.kill()
    namespace.hold("chat", 4, seconds=6)
    faces.start()  # it knows nothing yet
    namespace.hold("chat", 4, seconds=6)
    faces.wants("chat", 6)
    namespace.wait_wanted("chat", 6, seconds=90)


def test_after_a_restart_the_next_push_is_heard_at_once(keda: Keda, namespace: Namespace, faces: Faces) -> None:
    """Streams that end well are dialled again at once; after errors KEDA waits longer each time, up to a minute."""
    faces.wants("chat", 0)
    namespace.apply(
        pool("chat", replicas=0), scaled_object("chat", faces.port, kind="external-push", polling_seconds=600)
    )
    time.sleep(5.0)
    for _ in range(3):
        faces.end()
        faces.start()
        faces.wants("chat", 0)
        time.sleep(5.0)
    begin = time.monotonic()
    faces.wants("chat", 2)
    wait_for("it wakes", lambda: namespace.wanted("chat") > 0, seconds=90)
    took = time.monotonic() - begin
    print(f"\nafter three restarts pushed awake after {took:.2f} s")
    assert took < 10.0


def test_the_first_request_at_the_door_wakes_through_the_whole_chain(
    plane: ControlPlane, keda: Keda, namespace: Namespace, tmp_path: Path
) -> None:
    """`autoscaler serve` decides every thirty seconds and KEDA polls every ten minutes: neither is waited for."""
    give_rights(plane.api, namespace.name)
    account = plane.service_account(HOME, "autoscaler")
    port, plain = free_ports(2)
    with Door() as door:
        section = pool_section(namespace.name, door, signal="requests_per_second", interval_seconds=30)
        (tmp_path / "config.json").write_text(json.dumps({"version": 1, "pools": [section]}))
        command = [
            sys.executable, "-m", "autoscaler.main", "serve", "-c", tmp_path / "config.json", "--log", tmp_path / "steps",
            "--host", "127.0.0.1", "--port", str(plain), "--keda-port", str(port), "--kubeconfig", account.kubeconfig,
            "--namespace", HOME, "--lease", "off",
        ]  # fmt: skip
        program = plane.run("serve-keda", command, cwd=ROOT)
        namespace.apply(pool("chat", replicas=0))
        wait_for("it has decided", lambda: list((tmp_path / "steps").rglob("*.jsonl")) != [] and decided(tmp_path) == 0,
                 seconds=90)  # fmt: skip
        namespace.apply(scaled_object("chat", port, kind="external-push", polling_seconds=600))
        wait_for("KEDA is ready", lambda: ready(namespace), seconds=60)
        time.sleep(30.0 - (time.time() - 5.0) % 30.0)  # in the first half of an interval, with the streams up
        namespace.hold("chat", 0, seconds=1)
        begin = time.monotonic()
        door.arrive(5)
        wait_for("it wakes", lambda: namespace.wanted("chat") > 0, seconds=60)
        took = time.monotonic() - begin
        namespace.wait_wanted("chat", 5, seconds=90)
        plane.end(program)
    print(f"\nawake {took:.2f} s after the first request was told to come, which it does at the next second")
    assert took < 5.0


def decided(folder: Path) -> int | None:
    """The last number in the log."""
    lines = [line for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text().splitlines()]
    steps = [json.loads(line) for line in lines if line.startswith('{"type":"step"')]
    return int(steps[-1]["decision"]["replicas"]) if steps else None
