"""A pool at zero is woken by the first request at its door, and not by the next turn."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from metrics_pages import serving

from autoscaler import Pool
from autoscaler.embed import autoscaler_for
from autoscaler.testing import FakeClock, FakeTarget
from metrics_adapter import serve_pools
from metrics_adapter.board import Board
from metrics_adapter.door import DoorCounts
from metrics_adapter.door_pages import exposition
from metrics_adapter.serve_pools import KNOCK_SECONDS, Knocks, Runner, Served

HOUR = 3600


class House:
    """A door page, and a pool with nobody in it that is looked at every hour; with the policies of the default strategy."""

    def __init__(self, folder: Path, host: str, **section: Any) -> None:
        self.arrived = 7.0
        door = {"url": f"http://{host}/door", "kind": "autoscaler", "pool": "chat"}
        settings = Pool.from_config({
            "name": "chat", "interval_seconds": HOUR, "keep_seconds": 0, "limits": {"min_replicas": 0, "max_replicas": 9},
            "source": {"kind": "scrape", "targets": ["127.0.0.1:9"], "spread_seconds": 0, "door": door}, **section,
        }).settings  # fmt: skip
        self.board = Board([settings])
        made = autoscaler_for(settings)
        self.target = FakeTarget(clock=FakeClock(), desired=0, ready=0)
        self.pool = Served.open(made, made.start(), target=self.target, log=folder, board=self.board)
        self.runner = Runner(pools=[self.pool])

    async def page(self, _: web.Request) -> web.Response:
        counts = DoorCounts(
            requests=self.arrived, prompt_tokens=40.0 * self.arrived, rejected=0, failed=0, finished=self.arrived,
            hung_up=0, in_flight=0,
        )  # fmt: skip
        return web.Response(text=exposition({"chat": counts}), content_type="text/plain")

    @property
    def wanted(self) -> int | None:
        step = self.board.last("chat")
        return None if step is None else step.decision.replicas


def run(folder: Path, monkeypatch: Any, **section: Any) -> House:
    monkeypatch.setattr(serve_pools, "KNOCK_SECONDS", 0.05)

    async def tell() -> House:
        house: House | None = None

        async def page(request: web.Request) -> web.Response:
            assert house is not None
            return await house.page(request)

        async with serving(door=page) as host:
            house = House(folder, host, **section)
            try:
                await house.runner.turn(early=True)  # the first look: what came before it is no news
                assert house.wanted == 0
                task = asyncio.create_task(house.runner.knocked(time.monotonic() + 2.0))
                await asyncio.sleep(0.2)
                assert not task.done()
                house.arrived += 1
                assert await asyncio.wait_for(task, 10)
                while int(time.time()) == house.pool.loop.memory.state.at_seconds:
                    await asyncio.sleep(0.05)  # a Step a second is enough
                await house.runner.turn(early=True)
            finally:
                await house.pool.close()
            return house

    return asyncio.run(asyncio.wait_for(tell(), 30))


def test_one_request_at_a_closed_door_wakes_a_pool_an_hour_before_its_turn(tmp_path: Path, monkeypatch: Any) -> None:
    house = run(tmp_path, monkeypatch)
    assert house.wanted is not None
    assert house.wanted >= 1


def test_a_pool_that_may_have_none_stays_asleep(tmp_path: Path, monkeypatch: Any) -> None:
    house = run(tmp_path, monkeypatch, limits={"min_replicas": 0, "max_replicas": 0})
    assert house.wanted == 0


def test_who_has_replicas_is_not_watched(tmp_path: Path) -> None:
    house = House(tmp_path, "127.0.0.1:9")

    async def tell() -> bool:
        try:
            return await house.runner.knocked(time.monotonic() + HOUR)  # comes back at once
        finally:
            await house.pool.close()

    assert asyncio.run(asyncio.wait_for(tell(), 10)) is False


def test_many_sleeping_pools_are_looked_at_more_seldom() -> None:
    """However many there are, and however large their doors' pages, looking takes a quarter of the time at most."""
    assert Knocks(watching=1).pause_seconds(0.01) == KNOCK_SECONDS
    for watching in (1, 10, 100):
        pause = Knocks(watching=watching).pause_seconds(0.03)
        assert watching * 0.03 <= 0.25 * pause + 1e-9
