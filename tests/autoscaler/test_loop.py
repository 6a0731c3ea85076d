"""The thin shell: one turn after another on a grid, written down before it acts, and the world's errors stay in it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from plain_pools import plain_autoscaler

from autoscaler.errors import TargetConflict, TargetError
from autoscaler.log import StepLog, restore, verify
from autoscaler.loop import Loop, SystemClock, Writers, tick_together
from autoscaler.testing import FakeClock, FakeSource, FakeTarget, observation
from autoscaler.types import Observation, Replicas
from serving.targets import ReadOnly


class World:
    """A rate of requests that tests may change, a target whose replicas take a minute, and a loop over both."""

    def __init__(self, log: StepLog | None = None, **section: object) -> None:
        self.rate: float = 8.0
        self.clock = FakeClock(at_seconds=1_000_000)
        self.target = FakeTarget(clock=self.clock, startup_seconds=60)
        self.source = FakeSource(make=self.make)
        autoscaler = plain_autoscaler(**section)
        self.loop = Loop(
            autoscaler=autoscaler,
            memory=autoscaler.start(),
            source=self.source,
            target=self.target,
            clock=self.clock,
            log=log,
        )

    def make(self, at_seconds: int, replicas: Replicas) -> Observation:
        return observation(
            "p", at_seconds, replicas=replicas.desired, ready=replicas.ready, requests_per_second=self.rate
        )

    def turn(self, times: int) -> None:
        asyncio.run(self.loop.run(ticks=times))


def test_it_turns_on_the_grid_and_scales_what_changed() -> None:
    world = World()
    world.turn(6)
    assert world.clock.at_seconds == 1_000_060
    assert world.target.scaled == []
    world.rate = 32.0
    world.turn(6)
    assert world.target.desired == 4
    assert [n for _, n in world.target.scaled] == sorted({n for _, n in world.target.scaled})
    world.turn(12)
    assert world.target.ready == 4
    assert world.loop.counts.skipped_ticks == 0


def test_it_is_written_before_it_acts(tmp_path: Path) -> None:
    autoscaler = plain_autoscaler()
    log = StepLog(tmp_path / "p", autoscaler, autoscaler.start())
    world = World(log)
    world.rate = 32.0

    def written(replicas: int) -> None:
        assert f'"replicas":{replicas},"reasons"' in (tmp_path / "p" / "000001.jsonl").read_text().splitlines()[-1]

    world.target.on_scale = written
    world.turn(8)
    log.close()
    assert world.target.desired == 4
    assert verify(autoscaler, tmp_path / "p") == 8


def test_a_broken_source_is_an_observation_that_holds(caplog: pytest.LogCaptureFixture) -> None:
    world = World(keep_seconds=0)
    world.rate = 32.0
    world.turn(8)
    world.rate = 1.0
    world.source.broken = True
    with caplog.at_level(logging.WARNING, logger="autoscaler"):
        world.turn(10)
    assert world.target.desired == 4
    assert world.loop.counts.source_errors == 10
    assert "nothing could be measured" in caplog.text
    last = world.loop.memory.last_step
    assert last is not None
    assert last.observation.demand is None
    world.source.broken = False
    world.turn(8)
    assert world.target.desired == 1


def test_a_target_that_cannot_be_read_skips_the_turn() -> None:
    world = World()
    world.turn(2)
    world.target.failure = TargetError("no such deployment")
    world.turn(3)
    assert world.loop.counts.skipped_ticks == 3
    assert world.loop.memory.state.at_seconds == 1_000_020


def test_a_second_writer_is_reported_and_not_fought(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.rate = 32.0
    world.turn(12)
    assert world.target.desired == 4
    before = len(world.target.scaled)
    with caplog.at_level(logging.WARNING, logger="autoscaler"):
        for _ in range(10):
            world.target.desired = 2
            world.turn(6)
    assert [n for _, n in world.target.scaled[before:]] == [4]  # put right once
    assert world.target.desired == 2
    assert world.loop.counts.conflicts == 2
    assert "somebody else asked for 2 replicas: put right if need be" in caplog.text
    assert "left alone for 600 s" in caplog.text
    world.turn(66)
    assert world.target.desired == 4


def test_a_target_that_shows_our_number_late_is_no_second_writer() -> None:
    writers = Writers()
    assert not writers.stranger(0, 1)
    writers.wrote(4, before=1)
    assert not writers.stranger(10, 1)  # not to be seen yet
    assert not writers.stranger(20, 4)
    writers.wrote(5, before=4)
    assert not writers.stranger(30, 4)
    assert writers.stranger(40, 4)  # put back
    assert writers.yields_until_seconds == 0


def test_where_others_scale_by_our_decisions_their_numbers_are_no_news() -> None:
    world = World()
    world.loop.owns_target = False
    world.rate = 32.0
    for desired in (1, 2, 3, 4, 1):
        world.target.desired = desired
        world.turn(2)
    assert world.loop.counts.conflicts == 0


def test_a_conflict_is_tried_again_next_turn(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    refusals = [True, True]

    def contested(replicas: int) -> None:
        if refusals:
            refusals.pop()
            raise TargetConflict("somebody else wrote")

    world.target.on_scale = contested
    world.rate = 32.0
    world.turn(8)
    assert world.loop.counts.conflicts == 2
    assert world.target.desired == 4
    assert "tried again next turn" in caplog.text


def test_one_line_for_each_changed_decision(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    with caplog.at_level(logging.INFO, logger="autoscaler"):
        world.turn(5)
        assert caplog.records == []
        world.rate = 60.0
        world.turn(6)
    assert len(caplog.records) == len(world.target.scaled)
    assert "pool p: 1 -> " in caplog.records[0].getMessage()


def test_a_change_that_others_take_their_time_to_make_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.loop.target, world.loop.owns_target = ReadOnly(world.target), False
    world.rate = 32.0
    with caplog.at_level(logging.INFO, logger="autoscaler"):
        world.turn(12)
    told = [record.getMessage().split(":")[1] for record in caplog.records]
    assert told
    assert len(set(told)) == len(told)
    assert world.target.desired == 1


def test_a_clock_that_goes_back_a_little_is_waited_for() -> None:
    world = World()
    world.turn(3)
    world.clock.at_seconds -= 60
    assert [asyncio.run(world.loop.tick()) for _ in range(1)] == [None]
    assert world.loop.counts.skipped_ticks == 1


def test_time_goes_on_where_the_clock_was_set_back_by_much_and_is_given_back(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.turn(3)
    last = world.loop.memory.state.at_seconds
    assert last is not None
    world.clock.at_seconds -= 3600
    instants = []
    for _ in range(4):
        world.clock.advance(10)
        step = asyncio.run(world.loop.tick())
        assert step is not None
        instants.append(step.observation.at_seconds - last)
        assert step.observation.window_seconds == 10
        ready_at = step.observation.replicas.starting_ready_at_seconds
        assert all(-1000 < at - step.observation.at_seconds < 1000 for at in ready_at)
    assert instants == [9, 18, 27, 36]
    assert asyncio.run(world.loop.tick()) is world.loop.memory.last_step  # the same instant again
    assert world.loop.counts.skipped_ticks == 0
    assert [r.getMessage() for r in caplog.records if "clock" in r.getMessage()] == [
        "pool p: the clock is 3590 s behind the last turn: time goes on"
    ]
    world.clock.advance(3700)  # set right again: nothing is left of it
    step = asyncio.run(world.loop.tick())
    assert step is not None
    assert step.observation.at_seconds == world.clock.at_seconds // 10 * 10


def test_pools_of_a_ratio_are_decided_in_one_turn_and_a_silent_one_is_left_out() -> None:
    ratio = {"to": "decode", "replicas_per_replica": 0.5}
    prefill, decode = World(name="prefill", limits={"ratio": ratio, "max_replicas": 50}), World(name="decode")
    for world, pool in ((prefill, "prefill"), (decode, "decode")):

        def make(at: int, replicas: Replicas, pool: str = pool, world: World = world) -> Observation:
            counts = {"replicas": replicas.desired, "ready": replicas.ready}
            return observation(pool, at, **counts, requests_per_second=world.rate)  # type: ignore[arg-type]

        world.source.make = make
    prefill.rate, decode.rate = 5.0, 95.0
    steps = asyncio.run(tick_together([prefill.loop, decode.loop]))
    assert [s.decision.replicas for s in steps if s is not None] == [5, 10]
    assert (prefill.target.desired, decode.target.desired) == (5, 10)
    decode.target.failure = TargetError("nobody answers")
    prefill.clock.advance(10)
    decode.clock.advance(10)
    first, second = asyncio.run(tick_together([prefill.loop, decode.loop]))
    assert first is not None
    assert second is None
    assert decode.loop.counts.skipped_ticks == 1


def test_a_refit_is_taken_and_written_among_the_steps(tmp_path: Path) -> None:
    autoscaler = plain_autoscaler()
    log = StepLog(tmp_path / "p", autoscaler, autoscaler.start())
    world = World(log)
    world.turn(2)
    begun = world.loop.memory
    world.turn(2)
    world.loop.adopt(autoscaler.refit(begun))
    world.turn(2)
    log.close()
    assert world.loop.memory.beliefs.refits == 1
    assert verify(autoscaler, tmp_path / "p") == 6
    assert restore(autoscaler, tmp_path / "p") == world.loop.memory


def test_trouble_is_said_once_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.target.failure = TargetError("nobody answers")
    with caplog.at_level(logging.INFO, logger="autoscaler"):
        world.turn(3)
        assert world.loop.problem == "turn skipped, the target cannot be read: nobody answers"
        world.target.failure = None
        world.source.broken = True
        world.turn(3)
        assert world.loop.problem.startswith("nothing could be measured")
        world.source.broken = False
        world.turn(3)
    assert world.loop.problem == ""
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING", "INFO"]
    assert world.loop.counts.skipped_ticks == world.loop.counts.source_errors == 3


def test_a_turn_after_an_early_one_is_no_step_back() -> None:
    world = World()
    world.clock.at_seconds = 1_000_012
    early = asyncio.run(world.loop.look(early=True))
    assert early is not None
    asyncio.run(world.loop.take(*world.loop.autoscaler.step(world.loop.memory, early)))
    world.clock.at_seconds = 1_000_015  # its place in the interval, half a one after the instant 1 000 010
    step = asyncio.run(world.loop.tick())
    assert step is not None
    assert step.decision.at_seconds == 1_000_015
    world.clock.at_seconds = 1_000_025
    step = asyncio.run(world.loop.tick())
    assert step is not None
    assert step.decision.at_seconds == 1_000_020
    assert world.loop.counts.skipped_ticks == 0


def test_the_system_clock_tells_whole_seconds_and_waits() -> None:
    clock = SystemClock()
    now = clock.now_seconds()
    assert isinstance(now, int)
    asyncio.run(clock.sleep_until(now - 5))
    assert clock.now_seconds() >= now


def test_backfill_of_the_fake_source_is_the_past_asked_for() -> None:
    past = [observation("p", at) for at in range(100, 200, 10)]
    source = FakeSource(make=lambda at, replicas: past[0], past=past)
    got = asyncio.run(source.backfill(120, 150))
    assert [o.at_seconds for o in got] == [120, 130, 140]
