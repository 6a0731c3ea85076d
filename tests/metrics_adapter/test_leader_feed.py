"""What a leader tells and a follower knows: over HTTP, with real logs, decisions and Memories."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from plain_pools import plain_autoscaler

from autoscaler.errors import LogError
from autoscaler.log import StepLog
from autoscaler.step import Autoscaler
from autoscaler.testing import observation
from autoscaler.types import Memory
from metrics_adapter import leader_feed
from metrics_adapter.board import Board, Stale
from metrics_adapter.leader import Leader
from metrics_adapter.leader_feed import PATH, Feed
from metrics_adapter.leader_follow import Follower

AT = 1_000_000


class Deciding:
    """A leader: pools with Memories and logs, and a feed on a port."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.autoscalers = {name: plain_autoscaler(name=name) for name in names}
        self.memories = {name: one.start() for name, one in self.autoscalers.items()}
        self.feed = Feed("secret")
        self.logs = {
            name: StepLog(folder / name, one, self.memories[name], on_line=partial(self.feed.publish, name))
            for name, one in self.autoscalers.items()
        }
        self.at = AT
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Deciding:
        for name in self.autoscalers:
            self.feed.attach(name, partial(self.memories.__getitem__, name))
        app = web.Application()
        app.add_routes(self.feed.routes())
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.feed.detach()
        assert self._runner is not None
        await self._runner.cleanup()
        for log in self.logs.values():
            log.close()

    def turn(self, rate: float = 30.0) -> None:
        self.at += 10
        for name, one in self.autoscalers.items():
            seen = observation(name, self.at, replicas=3, requests_per_second=rate)
            step, self.memories[name] = one.step(self.memories[name], seen)
            self.logs[name].append(step, self.memories[name])

    @property
    def leader(self) -> Leader:
        return Leader(holder="leader", address=self.url, key="secret")


class Following:
    """A follower with a board, its task, and whom it takes for the leader."""

    def __init__(self, autoscalers: dict[str, Autoscaler]) -> None:
        self.now = float(AT)
        self.board = Board([a.settings for a in autoscalers.values()], now=lambda: self.now)
        self.follower = Follower(self.board, autoscalers)
        self.leader: Leader | None = None

    @property
    def memories(self) -> dict[str, Memory]:
        return self.follower.memories


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def story(folder: Path, tell: Callable[[Deciding, Following], Awaitable[None]]) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            leader = await stack.enter_async_context(Deciding(folder, "chat", "code"))
            following = Following({name: plain_autoscaler(name=name) for name in leader.autoscalers})
            following.leader = leader.leader
            task = asyncio.create_task(following.follower.run(lambda: following.leader))
            try:
                await asyncio.wait_for(tell(leader, following), 30)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_follower_has_the_leader_s_memory_and_its_steps_byte_for_byte(tmp_path: Path) -> None:
    async def tell(leader: Deciding, f: Following) -> None:
        for _ in range(3):
            leader.turn()  # before anybody follows
        await until(lambda: f.memories == leader.memories)
        for rate in (40, 200, 10, 0):
            leader.turn(rate)
        f.now = leader.at
        await until(lambda: f.memories == leader.memories)
        for name in leader.memories:
            last = leader.memories[name].last_step
            assert last is not None
            assert f.board.fresh(name).to_json() == last.to_json()
        f.now += 46
        with pytest.raises(Stale):
            f.board.fresh("chat")

    story(tmp_path, tell)


def test_backfills_and_refits_are_followed(tmp_path: Path) -> None:
    async def tell(leader: Deciding, f: Following) -> None:
        await until(lambda: len(f.memories) == 2)
        past = [observation("chat", AT - 1000 + 10 * i, replicas=3, requests_per_second=9.0) for i in range(50)]
        one = leader.autoscalers["chat"]
        leader.memories["chat"] = one.backfill(leader.memories["chat"], past)
        leader.logs["chat"].backfill(past, leader.memories["chat"])
        leader.turn()
        beliefs = one.refit(leader.memories["chat"])
        leader.memories["chat"] = one.adopt(leader.memories["chat"], beliefs)
        leader.logs["chat"].refit(leader.memories["chat"].beliefs, leader.memories["chat"])
        leader.turn()
        await until(lambda: f.memories == leader.memories)
        assert f.memories["chat"].beliefs.refits == leader.memories["chat"].beliefs.refits

    story(tmp_path, tell)


def test_the_leader_s_number_stands_where_we_would_decide_otherwise(tmp_path: Path) -> None:
    async def run() -> None:
        async with Deciding(tmp_path, "chat") as leader:
            other = Following(
                {"chat": plain_autoscaler(name="chat", limits={"max_replicas": 2})}
            )  # another version, say
            leader.turn(200)
            task = asyncio.create_task(other.follower.run(lambda: leader.leader))
            await until(lambda: "chat" in other.memories)
            leader.turn(200)
            await until(
                lambda: other.board.last("chat") is not None and other.memories["chat"].state.at_seconds == leader.at
            )
            task.cancel()
            assert other.memories["chat"].last_step == leader.memories["chat"].last_step
            assert other.memories["chat"].state == leader.memories["chat"].state
            assert other.memories["chat"].state.desired != 2

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_follower_turns_to_another_leader_and_survives_one_that_is_gone(tmp_path: Path) -> None:
    async def tell(first: Deciding, f: Following) -> None:
        first.turn()
        await until(lambda: f.memories == first.memories)
        async with Deciding(tmp_path / "second", "chat", "code") as second:
            second.at = first.at
            f.leader = Leader(holder="dead", address="http://127.0.0.1:9", key="secret")
            await asyncio.sleep(0.1)
            f.leader = second.leader
            second.turn(100)
            await until(lambda: f.memories == second.memories)
            first.turn(0)  # is heard no more
            second.turn(100)
            await until(lambda: f.memories == second.memories)
        await asyncio.sleep(0.05)
        f.leader = first.leader
        first.turn()
        first.turn()
        await until(lambda: f.memories == first.memories)

    story(tmp_path / "first", tell)


def test_only_who_knows_the_key_is_told_and_only_by_who_leads(tmp_path: Path) -> None:
    async def run() -> None:
        async with Deciding(tmp_path, "chat") as leader, ClientSession() as session:
            for headers in ({}, {"Authorization": "Bearer guess"}, {"Authorization": "Bearer \u00e9"}):
                async with session.get(leader.url + PATH, headers=headers) as answer:
                    assert answer.status == 401
            leader.feed.detach()
            async with session.get(leader.url + PATH, headers={"Authorization": "Bearer secret"}) as answer:
                assert (answer.status, await answer.text()) == (503, "this one does not lead\n")

    asyncio.run(run())


def test_who_is_too_far_behind_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_feed, "MOST_LINES", 5)

    async def tell(leader: Deciding, f: Following) -> None:
        await until(lambda: len(f.memories) == 2)
        for _ in range(20):  # within one turn of the event loop: nobody can read meanwhile
            leader.turn()
        await until(lambda: f.memories == leader.memories)

    story(tmp_path, tell)


def test_a_leader_that_says_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its machine is gone, and no packet says so."""
    monkeypatch.setattr("metrics_adapter.leader_follow.SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(leader_feed, "HEARTBEAT_SECONDS", 60.0)

    async def tell(leader: Deciding, f: Following) -> None:
        with caplog.at_level(logging.WARNING, "autoscaler.leader"):
            await until(lambda: "following leader" in caplog.text)
        monkeypatch.setattr(leader_feed, "HEARTBEAT_SECONDS", 0.05)
        leader.turn()
        await until(lambda: f.memories == leader.memories)

    story(tmp_path, tell)


@pytest.mark.parametrize(
    "line", [b"no json", b"{}", b'{"pool":"chat","line":{"type":"step"}}', b'{"pool":"chat","line":{"type":"what"}}']
)
def test_a_line_that_is_none_is_refused(line: bytes) -> None:
    f = Following({"chat": plain_autoscaler(name="chat")})
    with pytest.raises(LogError):
        f.follower.take(line)
    f.follower.take(b'{"pool":"stranger","line":{"type":"step"}}')  # the leader's config has more
    assert f.memories == {}
