"""Limits only narrow: worked examples, and properties over random pasts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler import limits as bound
from autoscaler.facts import Facts
from autoscaler.settings import Limits, Rate, ScheduleEntry
from autoscaler.testing import observation
from autoscaler.types import Reason, State

NOW = 1_767_225_600  # 2026-01-01 00:00 UTC


def facts(
    current: int, *, ready: int | None = None, reporting: int | None = None, unknown: tuple[str, ...] = ()
) -> Facts:
    """A pool of `current` replicas of which `reporting` answered."""
    here = observation("p", NOW, replicas=current, ready=ready)
    if reporting is not None and here.load is not None:
        here = replace(here, load=replace(here.load, replicas_reporting=reporting))
    return Facts(observation=here, recent=(here,), state=State(), current=current, unknown=unknown)


def walked(pairs: list[tuple[int, int]], window: int, *, largest: bool) -> bound.Pairs:
    """The pairs that `push` leaves after a past of (at, value)."""
    kept: bound.Pairs = ()
    for at, value in pairs:
        kept = bound.push(kept, at, value, window, largest=largest)
    return kept


def test_keep_gives_up_what_was_wanted_long_ago() -> None:
    state = State(recommended=walked([(0, 9), (100, 6), (200, 4), (300, 3)], 300, largest=True))
    assert bound.keep(state, 300, 10, 3, 300) == (
        9,
        Reason(rule="keep", before=3, after=9, inputs=(("window_seconds", 300.0),)),
    )
    assert bound.keep(state, 301, 10, 3, 300)[0] == 6
    assert bound.keep(state, 301, 5, 3, 300)[0] == 5  # never up
    assert bound.keep(state, 300, 10, 3, 99)[0] == 3
    assert bound.keep(state, 300, 2, 3, 300) == (3, None)


def test_tolerance_leaves_small_changes_alone_and_wakes_always() -> None:
    limits = Limits(tolerance_fraction=0.1)
    assert [bound.tolerance(limits, 20, n)[0] for n in (17, 18, 22, 23)] == [17, 20, 20, 23]
    assert bound.tolerance(limits, 0, 1)[0] == 1
    assert bound.tolerance(Limits(), 20, 21) == (21, None)


def test_stabilization_up_takes_the_least_of_its_window() -> None:
    limits = Limits(scale_up=Rate(stabilization_seconds=60))
    state = State(recommended_low=walked([(0, 3), (30, 8), (60, 7), (61, 9)], 60, largest=False))
    assert bound.stabilization(limits, state, 61, 2, 9)[0] == 7
    early = State(recommended_low=walked([(0, 3), (30, 8)], 60, largest=False))
    moved, reason = bound.stabilization(limits, early, 30, 2, 8)
    assert moved == 3
    assert reason is not None
    assert reason.rule == "stabilization"
    assert bound.stabilization(limits, early, 30, 5, 8)[0] == 5  # never down
    assert bound.stabilization(limits, early, 30, 0, 8)[0] == 8  # a wake is free


def test_stabilization_down_takes_the_largest_of_its_window() -> None:
    limits = Limits(scale_down=Rate(stabilization_seconds=120))
    state = State(recommended=walked([(0, 6), (100, 2)], 120, largest=True))
    moved, reason = bound.stabilization(limits, state, 100, 8, 2)
    assert moved == 6
    assert reason is not None
    assert reason.rule == "stabilization"
    assert bound.stabilization(limits, state, 121, 8, 2)[0] == 2


def test_rate_up_is_the_larger_of_two_allowances_per_period() -> None:
    limits = Limits(scale_up=Rate(max_replicas_per_period=4, max_fraction_per_period=1.0, period_seconds=15))
    assert bound.rate(limits, State(), 0, 1, 80)[0] == 5
    assert bound.rate(limits, State(), 0, 10, 80)[0] == 20
    spent = State(scaled=((0, 2, 5),))  # began the period with 2, so 4 more at most
    assert bound.rate(limits, spent, 10, 5, 80)[0] == 6
    assert bound.rate(limits, spent, 15, 5, 80)[0] == 10
    assert bound.rate(limits, State(), 0, 0, 80) == (80, None)


def test_rate_down() -> None:
    limits = Limits(scale_down=Rate(max_fraction_per_period=0.1, period_seconds=60))
    assert bound.rate(limits, State(), 0, 25, 1)[0] == 22
    spent = State(scaled=((0, 25, 22),))
    assert bound.rate(limits, spent, 30, 22, 1)[0] == 22
    assert bound.rate(limits, spent, 60, 22, 1)[0] == 19
    moved, reason = bound.rate(limits, State(), 0, 25, 1)
    assert reason is not None
    assert dict(reason.inputs) == {"period_seconds": 60.0, "max_fraction_per_period": 0.1}
    assert (reason.before, reason.after) == (1, moved)


def test_spare() -> None:
    assert bound.spare(2, 5, 9)[0] == 7
    assert bound.spare(0, 5, 9)[0] == 5
    assert bound.spare(0, 5, 3) == (3, None)
    assert bound.spare(None, 5, 9) == (9, None)


def test_unknown_lowers_nothing_and_silent_replicas_count_as_busy() -> None:
    assert bound.unknown(facts(8, unknown=("load",)), 3)[0] == 8
    assert bound.unknown(facts(8, unknown=("load",)), 9) == (9, None)
    moved, reason = bound.unknown(facts(8, reporting=6), 3)
    assert moved == 5
    assert reason is not None
    assert reason.rule == "silent"
    assert bound.unknown(facts(8, reporting=6), 7)[0] == 8
    assert bound.unknown(facts(8), 3) == (3, None)


def test_observer_holds_and_tells() -> None:
    moved, reason = bound.observer("observer", 5, 9)
    assert moved == 5
    assert reason is not None
    assert dict(reason.inputs) == {"would_be": 9.0}
    assert bound.observer("auto", 5, 9) == (9, None)


def test_bounds_by_time_of_day() -> None:
    nights = ScheduleEntry(start="0 22 * * *", end="0 6 * * *", max_replicas=3)
    office = ScheduleEntry(start="0 8 * * *", end="0 18 * * *", min_replicas=6, max_replicas=8)
    limits = Limits(min_replicas=1, max_replicas=20, schedule=(nights, office))
    at = {hour: NOW + 3600 * hour for hour in (2, 7, 12)}
    assert [bound.bounds(limits, at[h], 10)[0] for h in (2, 7, 12)] == [3, 10, 8]
    assert [bound.bounds(limits, at[h], 0)[0] for h in (2, 7, 12)] == [1, 1, 6]
    moved, reason = bound.bounds(limits, at[12], 10)
    assert reason == Reason(rule="bounds", before=10, after=8, inputs=(("min_replicas", 6.0), ("max_replicas", 8.0)))
    assert moved == 8


def test_where_bounds_cross_the_maximum_wins() -> None:
    always = ScheduleEntry(start="0 0 1 1 *", end="0 0 2 1 *", min_replicas=30)
    limits = Limits(max_replicas=20, schedule=(always,))
    assert bound.bounds(limits, NOW + 60, 5)[0] == 20


PAST = st.lists(st.tuples(st.integers(1, 120), st.integers(0, 60)), min_size=1, max_size=25)
RATES = st.builds(
    Rate,
    stabilization_seconds=st.sampled_from([0, 0, 30, 300]),
    max_replicas_per_period=st.one_of(st.none(), st.integers(1, 8)),
    max_fraction_per_period=st.one_of(st.none(), st.floats(0.05, 2.0)),
    period_seconds=st.sampled_from([15, 60, 300]),
)
LIMITS = st.builds(
    Limits,
    min_replicas=st.integers(0, 5),
    max_replicas=st.integers(5, 50),
    tolerance_fraction=st.sampled_from([0.0, 0.1, 0.5]),
    scale_up=RATES,
    scale_down=RATES,
)


@given(past=PAST, window=st.integers(0, 400), shorter=st.integers(0, 400), largest=st.booleans())
def test_the_first_pair_is_the_extreme_of_any_shorter_window(
    past: list[tuple[int, int]], window: int, shorter: int, largest: bool
) -> None:
    at, timed = 0, []
    for wait, value in past:
        at += wait
        timed.append((at, value))
    pairs = walked(timed, window, largest=largest)
    inside = [value for then, value in timed if at - then <= min(shorter, window)]
    pick = max if largest else min
    assert bound.extreme(pairs, at, min(shorter, window)) == pick(inside)
    assert len(pairs) <= len(past)


@given(
    past=PAST, limits=LIMITS, keep_seconds=st.sampled_from([0, 60, 600]), spare=st.one_of(st.none(), st.integers(0, 9))
)
def test_every_limit_stays_between_here_and_there(
    past: list[tuple[int, int]], limits: Limits, keep_seconds: int, spare: int | None
) -> None:
    state, current, at = State(), 3, NOW
    for wait, wanted in past:
        at += wait
        recommended, low = bound.remember(limits, state, at, wanted, keep_seconds)
        state = replace(state, recommended=recommended, recommended_low=low)
        seen = facts(current, reporting=current // 2, unknown=("demand",) if wanted % 7 == 0 else ())
        outcomes = {
            "keep": bound.keep(state, at, current, wanted, keep_seconds),
            "unknown": bound.unknown(seen, wanted),
            "tolerance": bound.tolerance(limits, current, wanted),
            "stabilization": bound.stabilization(limits, state, at, current, wanted),
            "rate": bound.rate(limits, state, at, current, wanted),
            "spare": bound.spare(spare, current, wanted),
        }
        for name, (number, reason) in outcomes.items():
            assert min(current, wanted) <= number <= max(current, wanted), name
            assert (reason is None) == (number == wanted), name
            if reason is not None:
                assert (reason.before, reason.after) == (wanted, number)
        decided = bound.bounds(limits, at, outcomes["rate"][0])[0]
        assert limits.min_replicas <= decided <= limits.max_replicas
        state = replace(state, scaled=bound.remember_change(limits, state, at, current, decided))
        current = decided


def test_a_way_up_that_was_undone_can_be_gone_again() -> None:
    limits = Limits(scale_up=Rate(max_fraction_per_period=1.0), scale_down=Rate(max_replicas_per_period=2))
    state = State(scaled=((0, 6, 12), (10, 12, 6)))
    assert bound.rate(limits, state, 20, 6, 50)[0] == 12
    assert bound.rate(limits, State(scaled=((0, 6, 12),)), 10, 12, 1)[0] == 4  # the period began with 6


@given(past=PAST, rate=RATES)
def test_no_period_ends_above_its_allowance(past: list[tuple[int, int]], rate: Rate) -> None:
    limits = Limits(min_replicas=0, max_replicas=1000, scale_up=rate, scale_down=rate)
    by_count, by_fraction = rate.max_replicas_per_period, rate.max_fraction_per_period
    state, current, at = State(), 3, 0
    numbers = [(0, 3)]
    for wait, wanted in past:
        at += wait
        decided = bound.rate(limits, state, at, current, wanted)[0]
        state = replace(state, scaled=bound.remember_change(limits, state, at, current, decided))
        start = [n for then, n in numbers if at - then >= rate.period_seconds or then == 0][-1]
        if decided > current > 0 and (by_count is not None or by_fraction is not None):
            assert decided <= start + max(by_count or 0, (by_fraction or 0.0) * start + 1)
        numbers.append((at, decided))
        current = decided


@pytest.mark.parametrize("wanted", [0, 3, 8, 500])
def test_a_bound_is_reached_in_one_go(wanted: int) -> None:
    limits = Limits(min_replicas=2, max_replicas=9)
    assert bound.bounds(limits, NOW, wanted)[0] == min(max(wanted, 2), 9)
