"""The replay portfolio: the fluid fleet it plays on, what it chooses, and that the choice decides and is remembered."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler import Demand, Load, Observation, Pool, Replicas
from autoscaler.portfolio import Recorded, best, replayed, shipped, variants
from autoscaler.schema import build
from autoscaler.settings import PoolSettings
from autoscaler.types import Capacity, Choice, Replayed, Variant

SETTINGS = build(PoolSettings, {"name": "chat", "slo": {"ttft_seconds": 2.0, "itl_seconds": 0.08}})
CAPACITY = Capacity(
    seconds_per_request=0.0, seconds_per_prompt_token=1e-4, seconds_per_output_token=1e-3,
    feasible_load=((1, 0.7), (16, 0.85)), startup_seconds=((0.5, 60.0), (0.9, 90.0)), mean_output_tokens=200.0,
)  # fmt: skip


def record(values: list[float | None], start: int = 0) -> Recorded:
    return Recorded(start_seconds=start, cell_seconds=10, values=values)


def daily(hours: float, start: int = 0, noise: float = 0.0) -> list[float | None]:
    """A day that swings between 2 and 10 Erlangs, with a square wave of five minutes on it."""
    cells = range(start // 10, start // 10 + round(hours * 360))
    return [6.0 - 4.0 * math.cos(math.tau * i / 8640) + noise * (1 if i // 30 % 2 else -1) for i in cells]


def played(values: list[float | None], choice: Choice | None = None, start: int = 0) -> Choice:
    return replayed(choice, SETTINGS, CAPACITY, record(values, start))


def test_the_shipped_variant_is_the_first_and_all_are_different() -> None:
    every = variants(SETTINGS, CAPACITY)
    assert every[0] == shipped(SETTINGS, CAPACITY)
    assert len(set(every)) == len(every) == 45
    assert {v.keep_seconds for v in variants(replace(SETTINGS, keep_seconds=120), CAPACITY)} == {120}


def test_steady_work_is_carried_by_the_least_replicas_and_nothing_is_late() -> None:
    choice = played([5.0] * 3600)
    for found in choice.replayed:
        if found.variant.utilization_fraction > 1.0:
            assert found.late > 0.0
            continue
        needed = CAPACITY.replicas(5.0 / found.variant.utilization_fraction)
        assert (found.ready, found.queued_seconds, found.late) == (needed, 0.0, 0.0)
        assert found.replica_seconds == needed * 36_000
    assert choice.arrived == 5.0 * 36_000
    assert choice.chosen.utilization_fraction == 0.95


def test_a_jump_is_late_until_the_ordered_replicas_are_ready() -> None:
    """Capacity 0.7 x 3 ... : by hand, for one variant.  Work doubles; the queue passes the limit in the second cell."""
    choice = played([2.0] * 400 + [8.0] * 400)
    late = {r.variant: r.late for r in choice.replayed}
    fast = Variant(utilization_fraction=0.95, window_seconds=20, keep_seconds=300)
    slow = replace(fast, window_seconds=180)
    assert 8.0 * 60 * 0.8 < late[fast] < late[slow]
    assert late[replace(fast, utilization_fraction=0.6)] < late[fast]


def test_what_was_not_measured_costs_and_breaks_nothing() -> None:
    with_gap = played([5.0] * 100 + [None] * 500 + [5.0] * 100)
    without = played([5.0] * 200)
    assert with_gap.arrived == without.arrived
    assert [r.replica_seconds for r in with_gap.replayed] == [r.replica_seconds for r in without.replayed]


@settings(max_examples=8)
@given(st.integers(1, 599))
def test_replaying_in_two_parts_is_replaying_at_once(cut: int) -> None:
    values = daily(600 / 360, noise=1.0)
    whole, first = played(values), played(values[:cut])
    back = max(0, cut - 18)  # cells of the longest window
    both = played(values[back:], first, 10 * back)
    assert both.at_seconds == whole.at_seconds
    for one, two in zip(whole.replayed, both.replayed, strict=True):
        assert (one.ready, one.wanted, one.starting_ready_at_seconds) == (
            two.ready, two.wanted, two.starting_ready_at_seconds,
        )  # fmt: skip
        # The first part is a little forgotten when the second comes.
        assert two.replica_seconds == pytest.approx(one.replica_seconds, rel=0.07)


def test_a_short_past_changes_nothing() -> None:
    assert played(daily(5.9, noise=2.0)).chosen == shipped(SETTINGS, CAPACITY)


def choice_of(present: tuple[float, float], *others: tuple[float, float]) -> Choice:
    """Each (replica-seconds, late) of 1000 replica-seconds of work."""
    each = [
        Replayed(
            variant=Variant(utilization_fraction=0.5, window_seconds=i, keep_seconds=0), replica_seconds=cost, late=late
        )
        for i, (cost, late) in enumerate((present, *others))
    ]
    return Choice(at_seconds=0, chosen=each[0].variant, arrived=1000.0, seconds=1e6, replayed=tuple(each))


@pytest.mark.parametrize(
    ("choice", "index"),
    [
        (choice_of((100.0, 0.0), (99.0, 0.0)), 0),  # not worth it
        (choice_of((100.0, 0.0), (97.0, 10.0)), 1),
        (choice_of((100.0, 0.0), (97.0, 10.1)), 0),  # it would have broken the promise
        (choice_of((100.0, 11.0), (150.0, 1.0), (140.0, 2.0)), 2),  # the promise comes first
        (choice_of((100.0, 50.0), (150.0, 21.9), (200.0, 20.0)), 1),  # nobody keeps it
        (choice_of((100.0, 21.0), (99.0, 21.0), (200.0, 20.0)), 0),
    ],
)
def test_the_cheapest_that_attains_lazily(choice: Choice, index: int) -> None:
    assert best(choice, 0.99).window_seconds == index


def test_ways_are_compared_where_they_have_lost_the_same() -> None:
    """Between two utilizations each: 20 s comes to 95 at 10 late, 60 s to 100, though 60 s has a dearer and a cheaper one."""

    def played(window: int, *points: tuple[float, float, float]) -> list[Replayed]:
        return [
            Replayed(
                variant=Variant(utilization_fraction=u, window_seconds=window, keep_seconds=0),
                replica_seconds=c,
                late=late,
            )
            for u, c, late in points
        ]

    each = [*played(60, (0.8, 110.0, 0.0), (0.95, 90.0, 20.0)), *played(20, (0.8, 120.0, 0.0), (0.95, 91.0, 11.6))]
    choice = Choice(at_seconds=0, chosen=each[0].variant, arrived=1000.0, seconds=1e6, replayed=tuple(each))
    assert best(choice, 0.99) == Variant(utilization_fraction=0.8, window_seconds=20, keep_seconds=0)


def test_it_changes_a_few_times_on_steady_days_at_most() -> None:
    choice, seen = None, []
    for hour in range(30):
        choice = played(daily(1.0, hour * 3600, noise=0.5), choice, hour * 3600)
        seen.append(choice.chosen)
    changes = sum(a != b for a, b in pairwise(seen))
    assert 1 <= changes <= 4
    cost = {r.variant: r.replica_seconds for r in choice.replayed} if choice else {}
    assert cost[seen[-1]] < cost[shipped(SETTINGS, CAPACITY)]


CONFIG = {"name": "chat", "slo": {"ttft_seconds": 2.0, "itl_seconds": 0.08}}


def observed(at: int, rate: float) -> Observation:
    return Observation(
        pool="chat", at_seconds=at, window_seconds=10, replicas=Replicas(desired=4, ready=4),
        demand=Demand(requests=10 * rate, prompt_tokens=1e4 * rate, output_tokens=2e3 * rate),
        load=Load(running_requests=8.0, waiting_requests=0.0, kv_cache_fraction=0.2, replicas_reporting=4),
    )  # fmt: skip


def test_a_refit_chooses_and_the_choice_decides_and_is_remembered() -> None:
    pool = Pool.from_config({**CONFIG, "adapt": True})
    for hour in range(8):
        pool.backfill([observed(hour * 3600 + 10 * i, 2.0 + (i // 18 % 2)) for i in range(1, 361)])
        pool.refit()
    choice = pool.memory.beliefs.choice
    assert choice is not None
    assert choice.seconds > 7.5 * 3600
    assert choice.chosen != shipped(pool.settings, CAPACITY)
    again = Pool.from_config({**CONFIG, "adapt": True})
    again.restore(pool.snapshot())
    assert again.memory.beliefs.choice == choice
    pool.step(observed(8 * 3600 + 10, 2.0))
    inputs = dict(next(r for r in pool.last_step.proposals if r.rule == "reactive").inputs)  # type: ignore[union-attr]
    assert inputs["window_seconds"] == choice.chosen.window_seconds
    assert inputs["utilization_fraction"] == 0.95  # how full they may be is the headroom's


@pytest.mark.parametrize("section", [{"policies": [{"kind": "work"}]}, {"strategy": "observer"}, {"adapt": False}])
def test_others_choose_nothing_and_act_on_no_choice_of_before(section: dict[str, object]) -> None:
    adaptive, pool = (Pool.from_config({**CONFIG, "adapt": True, **more}) for more in ({}, section))
    for one in (adaptive, pool):
        one.backfill([observed(10 * i, 2.0) for i in range(1, 720)])
        one.refit()
    choice = adaptive.memory.beliefs.choice
    assert choice is not None
    assert pool.memory.beliefs.choice is None
    other = replace(choice, chosen=replace(choice.chosen, window_seconds=180, keep_seconds=77))
    changed = replace(pool.memory, beliefs=replace(pool.memory.beliefs, choice=other))
    one, two = (pool.autoscaler.step(m, observed(7200, 2.0))[0] for m in (pool.memory, changed))
    assert one == two
    assert pool.autoscaler.refit(changed).choice == other
