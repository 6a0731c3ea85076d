"""A Deployment's counts as its pods live through what pods live through, and writing its scale against other writers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from fake_kubernetes import FakeKubernetes

from autoscaler.errors import ConfigError, TargetConflict, TargetError, TargetNotFound
from autoscaler.settings import TargetSettings
from autoscaler.types import Replicas
from serving.kubernetes import DEPLOYMENT, HPA, POD, STATEFUL_SET, Kubernetes
from serving.kubernetes_access import Plain
from serving.targets import KubernetesTarget, ReadOnly, expected_ready, scaled_object_of

CHAT = DEPLOYMENT.path("llm", "chat")
AT = 1_800_000_000
STARTUP = {0.5: 60.0, 0.9: 90.0, 0.95: 100.0, 0.99: 120.0}


class World:
    """A Deployment with pods, and what is believed of them."""

    def __init__(self, server: FakeKubernetes, cluster: Kubernetes) -> None:
        self.server, self.now = server, float(AT)
        settings = TargetSettings(namespace="llm", name="chat")
        self.target = KubernetesTarget(cluster, settings, now=lambda: self.now, startup=STARTUP.get)
        self.deployment(2)

    def deployment(self, replicas: int) -> None:
        spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "chat"}}}
        self.server.put(CHAT, {"spec": spec})

    def pod(self, name: str, *, made: int = AT, ready: bool = False, gone: bool = False, **status: Any) -> None:
        meta: dict[str, Any] = {"labels": {"app": "chat"}, "creationTimestamp": stamp(made)}
        if gone:
            meta["deletionTimestamp"] = stamp(made + 1)
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        path = POD.path("llm", name)
        self.server.put(path, {"metadata": meta, "status": {"phase": "Running", "conditions": conditions, **status}})

    async def counts(self, *, after: float = 0.0) -> Replicas:
        self.now += after
        return await self.target.replicas()


def stamp(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def story(tell: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        async with FakeKubernetes() as server, Kubernetes(Plain(server.url)) as cluster:
            await tell(World(server, cluster))

    asyncio.run(run())


def waiting(reason: str) -> dict[str, Any]:
    return {"containerStatuses": [{"state": {"waiting": {"reason": reason}}}]}


def test_every_stage_of_life_is_counted_once() -> None:
    async def tell(w: World) -> None:
        w.deployment(6)
        w.server.put(POD.path("llm", "stranger"), {"metadata": {"labels": {"app": "other"}}})
        assert await w.counts() == Replicas(desired=6, ready=0)
        w.pod("a", ready=True)
        w.pod("b", made=AT - 10)
        w.pod("c", ready=True, gone=True)
        w.pod("d", **waiting("CrashLoopBackOff"))
        w.pod("e", phase="Failed")
        w.pod("f", phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}])
        assert await w.counts() == Replicas(
            desired=6, ready=1, starting=2, draining=1, unhealthy=1, starting_ready_at_seconds=(AT - 10 + 60,),
            oldest_start_at_seconds=AT - 10,
        )  # fmt: skip

    story(tell)


def test_a_start_is_expected_later_the_longer_it_takes_and_then_no_more() -> None:
    async def tell(w: World) -> None:
        w.pod("a")
        ends = [(await w.counts(after=after)).starting_ready_at_seconds for after in (0, 59, 2, 30, 10, 18, 2)]
        assert ends == [(AT + 60,), (AT + 60,), (AT + 90,), (AT + 100,), (AT + 120,), (AT + 120,), ()]
        now = await w.counts()
        assert (now.starting, now.oldest_start_at_seconds) == (1, AT)  # it is still paid for, and told as old as it is

    story(tell)
    assert expected_ready(AT, AT, None) is None


def test_a_replica_that_was_ready_and_is_not_is_sick_after_a_while_unless_it_began_anew() -> None:
    async def tell(w: World) -> None:
        w.pod("a", ready=True)
        await w.counts()
        w.pod("a", ready=False)
        assert await w.counts(after=10) == Replicas(desired=2, ready=0, starting=1)  # a missed probe
        assert await w.counts(after=21) == Replicas(desired=2, ready=0, unhealthy=1)
        restarted = [{"restartCount": 1, "state": {"running": {"startedAt": stamp(AT + 31)}}}]
        w.pod("a", ready=False, containerStatuses=restarted)
        again = await w.counts(after=9)
        assert (again.unhealthy, again.oldest_start_at_seconds) == (0, AT + 31)
        w.pod("a", ready=True, containerStatuses=restarted)
        assert (await w.counts(after=9)).ready == 1

    story(tell)


def test_a_scale_is_asked_for_and_a_second_writer_is_a_conflict() -> None:
    async def tell(w: World) -> None:
        await w.counts()
        await w.target.scale(5)
        assert (await w.counts()).desired == 5
        w.deployment(5)  # a pod came up: another version with the same number
        await w.target.scale(6)
        assert (await w.counts()).desired == 6
        w.deployment(3)  # somebody else
        with pytest.raises(TargetConflict, match="deployments/llm/chat: .*modified"):
            await w.target.scale(7)
        assert (await w.counts()).desired == 3
        await w.target.scale(7)
        assert w.server.objects[CHAT]["spec"]["replicas"] == 7
        await w.target.scale(8)  # over what we ourselves wrote
        await ReadOnly(w.target).scale(1)
        assert (await ReadOnly(w.target).replicas()).desired == 8

    story(tell)


def test_what_cannot_be_read_or_written_is_a_target_error() -> None:
    async def tell(w: World) -> None:
        w.server.delete(CHAT)
        with pytest.raises(TargetNotFound):
            await w.counts()
        with pytest.raises(TargetNotFound):
            await w.target.scale(3)
        w.server.put(CHAT, {"spec": {"replicas": 1}})
        with pytest.raises(TargetError, match="no selector"):
            await w.counts()
        w.server.refuse["/pods"] = (403, "pods is forbidden")
        w.deployment(1)
        with pytest.raises(TargetError, match="pods is forbidden"):
            await w.counts()

    story(tell)


def test_other_scalers_of_the_same_object_are_named() -> None:
    async def tell(w: World) -> None:
        assert await w.target.other_scalers() == []
        ref = {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}}
        w.server.put(HPA.path("llm", "h"), {"spec": ref})
        w.server.put(HPA.path("other", "h"), {"spec": ref})
        assert await w.target.other_scalers() == ["HorizontalPodAutoscaler/h"]

    story(tell)


def test_which_object_a_target_is() -> None:
    assert scaled_object_of(TargetSettings(kind="statefulset", name="x")) == (STATEFUL_SET, "x")
    assert scaled_object_of(TargetSettings(kind="inference_service", name="x")) == (DEPLOYMENT, "x-predictor")
    assert scaled_object_of(TargetSettings(kind="leader_worker_set", name="x"))[0].plural == "leaderworkersets"
    with pytest.raises(ConfigError, match="'processes' must be one of"):
        scaled_object_of(TargetSettings(kind="processes", name="x"))
