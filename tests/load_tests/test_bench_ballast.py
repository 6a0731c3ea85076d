"""The fluid twin of two classes: strict priority, deadlines, and what of it costs."""

from __future__ import annotations

import numpy as np
import pytest

from load_tests.bench_ballast import BIN_SECONDS, DEADLINE_SECONDS, _World, simulate, work_of_trace


def test_interactive_work_is_served_first_and_the_class_in_its_order() -> None:
    world = _World(replicas=4, startup_bins=1)
    world.turn(1, 30.0, 25.0)  # 40 replica-seconds: all 30, and 10 of the 25
    assert (world.queue, world.waiting) == (0.0, 15.0)
    world.turn(2, 50.0, 5.0)
    assert (world.queue, world.waiting) == (10.0, 20.0)
    assert world.late == pytest.approx(2.0)  # 10 queued, 8 within the slack of four replicas
    world.turn(3, 0.0, 0.0)
    assert (world.queue, world.waiting) == (0.0, 0.0)
    assert world.outcome(110.0).deferrable_fraction == 1.0


def test_what_waits_longer_than_its_deadline_is_late() -> None:
    world = _World(replicas=1, startup_bins=1)
    bins = int(DEADLINE_SECONDS / BIN_SECONDS)
    world.turn(0, 10.0, 4.0)
    for i in range(1, bins + 1):
        world.turn(i, 10.0, 0.0)
    world.turn(bins + 1, 4.0, 0.0)
    assert world.late_deferrable == pytest.approx(4.0)


def test_starts_take_their_time_and_the_youngest_are_given_up() -> None:
    world = _World(replicas=2, startup_bins=3)
    world.scale(0, 4)
    world.turn(2, 0.0, 0.0)
    assert (world.ready, len(world.births)) == (2, 2)
    world.scale(2, 3)
    world.turn(3, 0.0, 0.0)
    assert (world.ready, len(world.births)) == (3, 0)
    world.scale(3, 1)
    assert world.ready == 1


@pytest.mark.parametrize("strategy", ["auto", "reactive"])
def test_a_fifth_that_may_wait_makes_a_recorded_hour_cheaper(strategy: str) -> None:
    past, work, origin = work_of_trace("llm_azure2023_conv", 1)
    plain = simulate(past, work, origin, 10.0, 0.0, strategy)
    mixed = simulate(past, work, origin, 10.0, 0.2, strategy)
    assert mixed.cost_over_work <= 1.10 < plain.cost_over_work
    # Work that may wait fills what is idle, and what is idle is what saved the last few in a burst: a tenth of a point.
    assert mixed.interactive_fraction >= plain.interactive_fraction - 0.001
    assert mixed.interactive_fraction >= 0.99
    assert mixed.deferrable_fraction >= 0.99


def test_level_work_costs_what_it_is() -> None:
    level = np.full(200, 40.0)
    assert simulate(level[:0], level, 0, 10.0, 0.2, "reactive").cost_over_work == pytest.approx(1.0, abs=0.03)
