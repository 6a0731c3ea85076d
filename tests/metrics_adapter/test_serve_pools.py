"""The loops of `autoscaler serve`: they resume, fetch the past, stay apart from each other's trouble, and learn anew."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from autoscaler.embed import autoscaler_for
from autoscaler.errors import ConfigError, SourceUnavailable
from autoscaler.log import observations_of, verify
from autoscaler.schema import build
from autoscaler.settings import PoolSettings
from autoscaler.testing import FakeClock, FakeSource, FakeTarget, observation
from autoscaler.types import Observation, Replicas
from metrics_adapter.board import Board, Stale
from metrics_adapter.prometheus import PrometheusSource
from metrics_adapter.serve_pools import Kept, Runner, Served, groups_of, resumed, runners_of, show_last
from metrics_adapter.serve_refit import RefitFailed, refit, refits, refitted

START = 1_767_225_600
SOURCE = {"kind": "prometheus", "url": "http://127.0.0.1:9", "engine": "vllm"}


def settings_of(name: str = "chat", **section: Any) -> PoolSettings:
    return build(PoolSettings, {"name": name, "source": SOURCE, "limits": {"max_replicas": 9}, **section})


class World:
    """One pool over a fake source, with a clock that tests move, and the board that it posts to."""

    def __init__(self, folder: Path, name: str = "chat", **section: Any) -> None:
        self.clock = FakeClock(at_seconds=START)
        self.settings = settings_of(name, **section)
        self.board = Board([self.settings], now=self.clock.now_seconds)
        self.rate = 4.0
        made = autoscaler_for(self.settings)
        self.pool = Served.open(
            made, resumed(made, folder / name), target=FakeTarget(clock=self.clock), log=folder, board=self.board,
            clock=self.clock,
        )  # fmt: skip
        self.source = FakeSource(make=self.make)
        self.pool.loop.source = self.source
        self.runner = Runner(pools=[self.pool])

    def make(self, at_seconds: int, replicas: Replicas) -> Observation:
        return observation(self.settings.name, at_seconds, replicas=replicas.desired, requests_per_second=self.rate)

    async def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(self.settings.interval_seconds)
            await self.runner.turn()


def test_each_turn_is_posted_and_a_restart_shows_the_last_step_at_once(tmp_path: Path):
    async def story() -> None:
        world = World(tmp_path)
        await world.turn(3)
        step = world.board.fresh("chat")
        assert step.decision.at_seconds == START + 30
        await world.pool.close()
        again = World(tmp_path)
        again.clock.at_seconds = START + 50
        show_last(again.board, again.pool.loop.memory)
        assert again.board.fresh("chat") == step
        assert again.pool.loop.memory == world.pool.loop.memory
        await again.turn()
        assert again.board.fresh("chat").decision.at_seconds == START + 60
        await again.pool.close()
        assert verify(again.pool.loop.autoscaler, tmp_path / "chat") == 4
        late = World(tmp_path)
        late.clock.at_seconds = START + 600
        show_last(late.board, late.pool.loop.memory)
        with pytest.raises(Stale, match="not observed yet"):
            late.board.fresh("chat")
        await late.pool.close()

    asyncio.run(story())


def test_a_log_that_cannot_be_read_is_begun_anew_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def story() -> None:
        world = World(tmp_path)
        await world.turn(2)
        await world.pool.close()
        (segment,) = (tmp_path / "chat").glob("*.jsonl")
        segment.write_text("{not json}\n" + segment.read_text())
        again = World(tmp_path)
        assert again.pool.loop.memory.state.at_seconds is None
        assert "begins anew, its log cannot be resumed" in caplog.text
        await again.turn()
        await again.pool.close()

    asyncio.run(story())


def test_a_turn_that_fails_leaves_its_pool_stale_and_the_others_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def story() -> None:
        chat, code = World(tmp_path, "chat"), World(tmp_path, "code")

        def broken(at_seconds: int, replicas: Replicas) -> Observation:
            raise ZeroDivisionError("a defect")

        chat.source.make = broken
        for _ in range(2):
            await chat.turn()
            await code.turn()
        with pytest.raises(Stale, match="not observed yet.*: the turn failed: a defect"):
            chat.board.fresh("chat")
        assert code.board.fresh("code").decision.at_seconds == START + 20
        assert "a defect" in caplog.text
        assert 'autoscaler_ticks_total{pool="chat"} 2' in chat.board.exposition.text(START)
        await chat.pool.close()
        await code.pool.close()

    asyncio.run(story())


class Past(PrometheusSource):
    """A Prometheus that has a past, or is away."""

    def __init__(self, settings: PoolSettings, past: list[Observation], *, away: bool = False) -> None:
        from autoscaler.source_settings import PrometheusSettings

        assert isinstance(settings.source, PrometheusSettings)
        super().__init__(settings.name, settings.source, slo=settings.slo)
        self.past, self.away = past, away
        self.asked: list[tuple[int, int]] = []

    async def backfill(self, since_seconds: int, until_seconds: int, *, progress: Any = None) -> list[Observation]:
        self.asked.append((since_seconds, until_seconds))
        if self.away:
            raise SourceUnavailable("nobody answers")
        return [o for o in self.past if since_seconds <= o.at_seconds < until_seconds]


def test_the_past_is_taken_in_once_and_after_a_restart_only_what_is_missing(tmp_path: Path):
    past = [observation("chat", START - 7200 + 60 * i, requests_per_second=3.0) for i in range(180)]

    async def story() -> None:
        world = World(tmp_path)
        world.pool.source = source = Past(world.settings, past)
        assert await world.pool.backfill(1.0) == 60
        assert world.pool.past_is_new
        assert source.asked == [(START - 3600, START)]
        assert await world.pool.backfill(0.0) == 0
        await world.turn()
        await world.pool.close()
        again = World(tmp_path)
        again.clock.at_seconds = START + 1800
        again.pool.source = source
        assert await again.pool.backfill(1.0) == 29
        assert source.asked[-1] == (START + 11, START + 1800)
        await again.pool.close()
        recorded = [o.at_seconds for o in observations_of(tmp_path / "chat")]
        assert recorded == sorted(set(recorded))
        assert len(recorded) == 60 + 1 + 29

    asyncio.run(story())


def test_without_its_past_a_pool_still_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def story() -> None:
        world = World(tmp_path)
        world.pool.source = Past(world.settings, [], away=True)
        assert await world.pool.backfill(1.0) == 0
        await world.turn()
        await world.pool.close()

    asyncio.run(story())
    assert "starts without its past, which cannot be fetched: nobody answers" in caplog.text


def test_what_is_kept_without_a_target_is_what_was_decided():
    seen: list[int | None] = [None]
    settings = settings_of(limits={"min_replicas": 2, "max_replicas": 9})
    kept = Kept(settings, None, lambda: seen[0])

    async def story() -> None:
        assert await kept.replicas() == Replicas(desired=2, ready=2)
        await kept.scale(5)
        seen[0] = 3
        assert await kept.replicas() == Replicas(desired=5, ready=3)
        assert await Kept(settings, None, lambda: 4).replicas() == Replicas(desired=4, ready=4)
        assert await Kept(settings, 0, lambda: None).replicas() == Replicas(desired=0, ready=0)

    asyncio.run(story())


def test_pools_that_share_something_turn_together_and_turns_are_spread(tmp_path: Path):
    quota = {"name": "a100", "gpus": 8}
    pools = [
        settings_of("prefill", limits={"ratio": {"to": "decode", "replicas_per_replica": 0.5}}),
        settings_of("alone"),
        settings_of("decode", limits={"quota": quota}),
        settings_of("other", limits={"quota": quota}),
    ]
    assert groups_of(pools) == [["prefill", "decode", "other"], ["alone"]]
    with pytest.raises(ConfigError, match=r"pools\[0\].limits.ratio.to: 'decode' must be one of prefill, alone"):
        groups_of(pools[:2])

    async def story() -> None:
        worlds = [World(tmp_path, name) for name in "abcd"]
        runners = runners_of([w.pool for w in worlds])
        assert [r.offset_seconds for r in runners] == [0.0, 1.25, 2.5, 3.75]
        assert runners[1].wait_seconds(1000.0) == 1.25
        assert runners[1].wait_seconds(1001.25) == 10.0
        for world in worlds:
            await world.pool.close()

    asyncio.run(story())


def test_a_refit_in_its_own_process_is_the_refit_of_this_one(tmp_path: Path):
    async def story() -> None:
        world = World(tmp_path)
        await world.turn(40)
        begun = world.pool.loop.memory
        assert await refitted(world.settings, begun) == world.pool.loop.autoscaler.refit(begun)
        learning = asyncio.create_task(refit(world.pool))
        await asyncio.sleep(0)
        await world.turn(3)  # turns go on meanwhile
        assert await learning
        assert world.pool.loop.memory.beliefs.refits == 1
        await world.turn()
        await world.pool.close()
        assert verify(world.pool.loop.autoscaler, tmp_path / "chat") == 44

    asyncio.run(story())


def test_a_refit_that_fails_or_hangs_leaves_beliefs_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async def story() -> None:
        world = World(tmp_path)
        await world.turn(2)
        before = world.pool.loop.memory
        monkeypatch.setattr("metrics_adapter.serve_refit.CHILD", "raise SystemExit('out of luck')")
        assert not await refit(world.pool)
        monkeypatch.setattr("metrics_adapter.serve_refit.CHILD", "import time; time.sleep(60)")
        with pytest.raises(RefitFailed, match="more than 0.2 s"):
            await refitted(world.settings, before, timeout_seconds=0.2)
        assert world.pool.loop.memory is before
        await world.pool.close()

    asyncio.run(story())
    assert "its beliefs stay: its process ended with 1: out of luck" in caplog.text


def test_pools_are_learned_anew_in_turn_and_a_new_past_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    learned: list[str] = []

    async def learn(pool: Served) -> bool:
        learned.append(pool.name)
        if len(learned) == 7:
            raise EOFError
        return True

    monkeypatch.setattr("metrics_adapter.serve_refit.refit", learn)

    async def story() -> None:
        worlds = [World(tmp_path, name) for name in ("a", "b", "c", "silent")]
        for world in worlds[:3]:
            await world.turn()
        worlds[1].pool.past_is_new = True
        with pytest.raises(EOFError):
            await refits([w.pool for w in worlds], 0.04)
        assert not worlds[1].pool.past_is_new
        for world in worlds:
            await world.pool.close()

    asyncio.run(story())
    assert learned[0] == "b"
    assert set(learned) == {"a", "b", "c"}, "of one that never saw anything nothing can be learned"
    assert sorted(learned[1:4]) == ["a", "b", "c"]
