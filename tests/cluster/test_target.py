"""What is counted of a Deployment and how it is scaled, on the real API server, as an account with no more rights than needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from cluster_api import Api, Namespace
from cluster_objects import hpa, pool
from cluster_plane import ControlPlane
from cluster_programs import wait_for
from cluster_serve import HOME, give_rights

from autoscaler.errors import TargetConflict, TargetError, TargetNotFound
from autoscaler.settings import TargetSettings
from autoscaler.types import Replicas
from serving.kubernetes import Kubernetes
from serving.targets import KubernetesTarget

pytestmark = pytest.mark.cluster

T = TypeVar("T")


def settings_of(namespace: Namespace, name: str = "chat") -> TargetSettings:
    return TargetSettings(kind="deployment", namespace=namespace.name, name=name)


def ask(api: Api, settings: TargetSettings, what: Callable[[KubernetesTarget], Awaitable[T]]) -> T:
    """One question of a target, with starts believed to take a minute."""

    async def story() -> T:
        async with Kubernetes.connect(str(api.kubeconfig)) as cluster:
            target = KubernetesTarget(cluster, settings, now=time.time, startup=lambda quantile: 60.0)
            return await what(target)

    return asyncio.run(story())


@pytest.fixture
def account(plane: ControlPlane, namespace: Namespace) -> Api:
    """The manifests' service account, which may read this namespace's pools."""
    give_rights(plane.api, namespace.name)
    return plane.service_account(HOME, "autoscaler")


def counts(api: Api, namespace: Namespace) -> Replicas:
    return ask(api, settings_of(namespace), lambda target: target.replicas())


def test_ready_and_starting_replicas_and_when_they_should_be_ready(account: Api, namespace: Namespace):
    namespace.apply(pool("chat", replicas=2))
    namespace.wait_ready("chat", 2)
    assert counts(account, namespace) == Replicas(desired=2, ready=2)
    begin = int(time.time())
    change = {"template": {"metadata": {"annotations": {"startup/seconds": "600s", "startup/longest-seconds": "600s"}}}}
    # A rollout: two pods of the new template load, and the old ones stay until they are ready.
    rolling = {"strategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}}}
    namespace.api.patch(namespace.path("apps/v1", "Deployment", "chat"), {"spec": {**change, **rolling}})
    wait_for("two pods load", lambda: counts(account, namespace).starting == 2)
    seen = counts(account, namespace)
    assert (seen.desired, seen.ready, seen.starting, seen.unhealthy) == (2, 2, 2, 0)
    assert len(seen.starting_ready_at_seconds) == 2
    assert all(begin + 60 <= at <= time.time() + 61 for at in seen.starting_ready_at_seconds)


def test_a_pod_that_no_node_takes_is_coming_and_nobody_knows_when(account: Api, namespace: Namespace):
    namespace.apply(pool("chat", replicas=1, gpus=1000))
    pods = namespace.path("v1", "Pod")

    def unschedulable() -> bool:
        conditions = [c for pod in namespace.api.get(pods)["items"] for c in pod["status"].get("conditions") or ()]
        return any(c.get("reason") == "Unschedulable" for c in conditions)

    wait_for("the scheduler says so", unschedulable)
    seen = counts(account, namespace)
    assert replace(seen, oldest_start_at_seconds=None) == Replicas(desired=1, ready=0, starting=1)
    assert seen.oldest_start_at_seconds is not None
    assert time.time() - 60 <= seen.oldest_start_at_seconds <= time.time() + 1


def test_a_crash_loop_is_unhealthy(plane: ControlPlane, account: Api, namespace: Namespace):
    namespace.apply(pool("chat", replicas=2))
    namespace.wait_ready("chat", 2)
    [first, _] = namespace.api.get(namespace.path("v1", "Pod"))["items"]
    broken = {
        "name": "engine",
        "image": "x",
        "imageID": "",
        "ready": False,
        "restartCount": 7,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    }
    conditions = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "False"}]
    namespace.api.request(
        "PATCH",
        namespace.path("v1", "Pod", first["metadata"]["name"]) + "/status",
        {"status": {"conditions": conditions, "containerStatuses": [broken]}},
        content_type="application/strategic-merge-patch+json",
    )
    assert counts(account, namespace) == Replicas(desired=2, ready=1, unhealthy=1)


def test_scaling_while_pods_come_up_and_a_second_writer(plane: ControlPlane, namespace: Namespace):
    namespace.apply(pool("chat", replicas=1))

    async def grown(target: KubernetesTarget) -> None:
        # Each pod that comes up changes the Deployment's status, and so its version; its size is still what we wrote.
        for replicas in range(2, 12):
            await target.replicas()
            await asyncio.sleep(0.1)
            await target.scale(replicas)

    ask(plane.api, settings_of(namespace), grown)
    assert namespace.wanted("chat") == 11

    async def fought(target: KubernetesTarget) -> None:
        await target.replicas()
        await asyncio.to_thread(namespace.scale, "chat", 7)
        await target.scale(5)

    with pytest.raises(TargetConflict):
        ask(plane.api, settings_of(namespace), fought)
    assert namespace.wanted("chat") == 7
    ask(plane.api, settings_of(namespace), lambda target: target.scale(2))
    assert namespace.wanted("chat") == 2


def test_what_is_not_there_and_what_may_not_be_seen(plane: ControlPlane, account: Api, namespace: Namespace):
    with pytest.raises(TargetNotFound, match="nothing"):
        ask(account, settings_of(namespace, "nothing"), lambda target: target.replicas())
    stranger = plane.service_account(namespace.name, "stranger")
    namespace.apply(pool("chat"))
    with pytest.raises(TargetError, match="cannot get resource"):
        counts(stranger, namespace)
    # Reading is all that an HPA's adapter may do.
    with pytest.raises(TargetError, match="cannot patch resource"):
        ask(account, settings_of(namespace), lambda target: target.scale(3))


def test_who_else_scales_it_is_named(account: Api, namespace: Namespace):
    namespace.apply(pool("chat"), pool("other"), hpa("theirs", target="chat", low=1))
    assert ask(account, settings_of(namespace), lambda target: target.other_scalers()) == [
        "HorizontalPodAutoscaler/theirs"
    ]
    assert ask(account, settings_of(namespace, "other"), lambda target: target.other_scalers()) == []
