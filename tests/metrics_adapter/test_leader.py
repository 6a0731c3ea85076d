"""Who leads, against an API server on HTTP: one at a time, whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from fake_kubernetes import FakeKubernetes
from plain_pools import plain_autoscaler

from autoscaler.errors import ConfigError, TargetError
from autoscaler.testing import FakeClock, FakeTarget, observation
from autoscaler.types import Memory
from metrics_adapter.leader import Election, Fenced, Leader, take_turns
from serving.kubernetes import LEASE, Kubernetes
from serving.kubernetes_access import Plain

QUICK = {"duration_seconds": 1, "renew_seconds": 0.1, "give_up_seconds": 0.5}
PATH = LEASE.path("ns", "adapter")


class World:
    """An API server and candidates, each with a connection of its own."""

    def __init__(self, server: FakeKubernetes, stack: AsyncExitStack) -> None:
        self.server, self._stack = server, stack
        self.candidates: list[Election] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def candidate(self, name: str, **options: Any) -> Election:
        cluster = await self._stack.enter_async_context(Kubernetes(Plain(self.server.url)))
        election = Election(
            cluster, namespace="ns", name="adapter", address=f"http://{name}", identity=name, **{**QUICK, **options}
        )
        self.candidates.append(election)
        return election

    def start(self, election: Election) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(election.run()))
        return self.tasks[-1]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait, and see at every moment that no two lead."""
        while not condition():
            assert sum(c.leads for c in self.candidates) <= 1
            await asyncio.sleep(0.005)


def story(tell: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            world = World(await stack.enter_async_context(FakeKubernetes()), stack)
            try:
                await asyncio.wait_for(tell(world), 30)
            finally:
                for task in world.tasks:
                    task.cancel()
                await asyncio.gather(*world.tasks, return_exceptions=True)

    asyncio.run(run())


def test_one_of_many_leads_and_the_others_know_who_and_where() -> None:
    async def tell(w: World) -> None:
        many = [await w.candidate(f"c{i}") for i in range(5)]
        for one in many:
            w.start(one)
        await w.until(lambda: all(c.leader for c in many))
        (leading,) = [c for c in many if c.leads]
        assert {c.leader for c in many} == {leading.me}
        assert leading.me.address == f"http://{leading.identity.split('_')[0]}"
        assert leading.me.key not in leading.identity

    story(tell)


def test_who_is_killed_is_followed_by_another_only_after_he_cannot_lead_any_more() -> None:
    async def tell(w: World) -> None:
        a, b = await w.candidate("a"), await w.candidate("b")
        first = w.start(a)
        await w.until(lambda: a.leads)
        w.start(b)
        await w.until(lambda: b.leader == a.me)
        first.cancel()
        await w.until(lambda: b.leads)
        assert not a.leads
        assert w.server.objects[PATH]["spec"]["leaseTransitions"] == 1
        w.start(a)  # he comes back, and waits
        await w.until(lambda: a.leader == b.me)

    story(tell)


def test_who_resigns_is_followed_at_once() -> None:
    async def tell(w: World) -> None:
        a, b = await w.candidate("a", duration_seconds=600), await w.candidate("b", duration_seconds=600)
        first = w.start(a)
        await w.until(lambda: a.leads)
        w.start(b)
        await w.until(lambda: b.leader == a.me)
        first.cancel()
        await a.resign()
        await w.until(lambda: b.leads)
        await a.resign()  # takes nothing from him
        assert w.server.objects[PATH]["spec"]["holderIdentity"] == b.identity

    story(tell)


@pytest.mark.parametrize("failure", ["refused", "silent"])
def test_who_cannot_renew_leads_no_more_and_again_when_he_can(failure: str) -> None:
    async def tell(w: World) -> None:
        a = await w.candidate("a")
        w.start(a)
        await w.until(lambda: a.leads)
        if failure == "refused":
            w.server.refuse["leases"] = (500, "etcd has no leader")
        else:
            w.server.hang.clear()
        await w.until(lambda: not a.leads)
        w.server.refuse.clear()
        w.server.hang.set()
        await w.until(lambda: a.leads)

    story(tell)


def test_a_lease_that_is_deleted_or_written_by_a_stranger_is_made_good() -> None:
    async def tell(w: World) -> None:
        a, b = await w.candidate("a"), await w.candidate("b")
        w.start(a)
        await w.until(lambda: a.leads)
        w.start(b)
        await w.until(lambda: b.leader == a.me)
        w.server.put(PATH, {"spec": {"holderIdentity": "stranger", "leaseDurationSeconds": 1}})
        await w.until(lambda: a.leader is not None and a.leader.holder == "stranger")
        await w.until(lambda: a.leads or b.leads)
        w.server.delete(PATH)
        await w.until(
            lambda: w.server.objects.get(PATH, {}).get("spec", {}).get("holderIdentity") in (a.identity, b.identity)
        )

    story(tell)


def test_a_conflict_alone_deposes_nobody() -> None:
    async def tell(w: World) -> None:
        a = await w.candidate("a")
        await a.stand()
        write, times = a._cluster.write_lease, 0

        async def raced(lease: Any) -> Any:
            nonlocal times
            times += 1
            if times == 1:
                item = w.server.objects[PATH]
                w.server.put(PATH, {**item, "metadata": {**item["metadata"], "labels": {"touched": "yes"}}})
            return await write(lease)

        a._cluster.write_lease = raced  # type: ignore[method-assign]
        await a.stand()
        assert a.leads
        await a.stand()
        assert a.leads
        assert times == 2

    story(tell)


def test_expiry_is_reckoned_from_what_one_saw_by_one_s_own_clock() -> None:
    async def tell(w: World) -> None:
        now = [0.0]
        stamp = {"holderIdentity": "other", "leaseDurationSeconds": 10, "renewTime": "1999-01-01T00:00:00.000000Z"}
        w.server.put(PATH, {"spec": stamp})  # its clock is decades late
        a = await w.candidate("a", duration_seconds=10, renew_seconds=2, give_up_seconds=7, clock=lambda: now[0])
        for at, leads in ((0.0, False), (9.9, False), (10.0, True), (16.9, True), (17.1, False)):
            now[0] = at
            if at < 11:
                await a.stand()
            assert a.leads is leads, at

    story(tell)


def test_times_that_could_let_two_lead_are_refused() -> None:
    with pytest.raises(ConfigError, match="must hold: renew, give up, duration"):
        Election(None, namespace="n", name="l", address="", give_up_seconds=10.0)  # type: ignore[arg-type]


class Nobody:
    """Follows, and has heard one thing."""

    def __init__(self) -> None:
        self.memories: dict[str, Memory] = {}
        self.following = 0

    async def run(self, leader: Callable[[], Leader | None]) -> None:
        self.following += 1
        await asyncio.Event().wait()


def test_turns_are_taken_and_the_lease_is_given_back() -> None:
    async def tell(w: World) -> None:
        leading: list[str] = []
        followers = {name: Nobody() for name in "ab"}

        def play(election: Election, name: str) -> asyncio.Task[None]:
            async def lead(memories: MutableMapping[str, Memory]) -> None:
                assert memories is followers[name].memories
                leading.append(name)
                try:
                    await asyncio.Event().wait()
                finally:
                    leading.remove(name)

            return asyncio.create_task(take_turns(election, followers[name], lead))

        a, b = await w.candidate("a", duration_seconds=600), await w.candidate("b", duration_seconds=600)
        tasks = {"a": play(a, "a")}
        await w.until(lambda: leading == ["a"])
        tasks["b"] = play(b, "b")
        await w.until(lambda: b.leader == a.me)
        for name, other in (("a", "b"), ("b", "a")):
            tasks[name].cancel()
            with suppress(asyncio.CancelledError):
                await tasks[name]
            await w.until(lambda other=other: leading == [other])  # type: ignore[misc]
            tasks[name] = play(a if name == "a" else b, name)
        w.server.refuse["leases"] = (500, "no")
        await w.until(lambda: leading == [])
        w.server.refuse.clear()
        await w.until(lambda: len(leading) == 1)
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert leading == []
        assert w.server.objects[PATH]["spec"]["holderIdentity"] == ""

    story(tell)


def test_who_loses_the_lease_and_gets_it_back_goes_on_from_what_it_knew() -> None:
    async def tell(w: World) -> None:
        autoscaler = plain_autoscaler()
        begun: list[Memory | None] = []

        async def lead(memories: MutableMapping[str, Memory]) -> None:
            begun.append(memories.get("p"))
            memory = memories.get("p") or autoscaler.start()
            seen = observation("p", 1000 + 10 * len(begun), replicas=1, requests_per_second=5.0)
            memory = autoscaler.step(memory, seen)[1]
            try:
                await asyncio.Event().wait()
            finally:
                memories["p"] = memory

        election, follower = await w.candidate("a"), Nobody()
        w.tasks.append(asyncio.create_task(take_turns(election, follower, lead)))
        await w.until(lambda: len(begun) == 1)
        w.server.refuse["leases"] = (500, "no")
        await w.until(lambda: not election.leads and "p" in follower.memories)
        w.server.refuse.clear()
        await w.until(lambda: len(begun) == 2)
        assert begun[0] is None
        assert begun[1] is not None
        assert begun[1].state.at_seconds == 1010

    story(tell)


def test_a_loop_that_fails_ends_the_turn_with_its_error() -> None:
    async def tell(w: World) -> None:
        async def lead(memories: MutableMapping[str, Memory]) -> None:
            raise RuntimeError("the disk is full")

        with pytest.raises(RuntimeError, match="disk is full"):
            await take_turns(await w.candidate("a"), Nobody(), lead)
        assert w.server.objects[PATH]["spec"]["holderIdentity"] == ""

    story(tell)


def test_a_fenced_target_is_left_alone_by_who_does_not_lead() -> None:
    async def run() -> None:
        inner, leads = FakeTarget(clock=FakeClock()), [True]
        fenced = Fenced(inner, lambda: leads[0])
        assert (await fenced.replicas()).desired == 1
        await fenced.scale(3)
        leads[0] = False
        for late in (fenced.replicas(), fenced.scale(5)):
            with pytest.raises(TargetError, match="another adapter leads"):
                await late
        assert inner.desired == 3

    asyncio.run(run())
