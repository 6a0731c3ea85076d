"""Steering on the measured attainment: what it promises, and what it does not learn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler import Demand, Latency, Load, Observation, Pool, Replicas
from autoscaler.risk import held, share_beyond, steered, violations
from autoscaler.settings import RiskSettings, Slo
from autoscaler.types import Histogram, Risk, Tail

SLO = Slo(ttft_seconds=2.0, itl_seconds=0.08, attainment_fraction=0.99)
SETTINGS = RiskSettings()


def seen(at: int = 0, served: float = 100.0, late: float = 0.0, **changes: object) -> Observation:
    """A turn of 10 s with so many late requests, exactly known: the limits are bounds of buckets."""
    latency = Latency(
        ttft=Histogram(upper_bounds=(1.0, 2.0), counts=(served - late, 0.0, late)),
        itl=Histogram(upper_bounds=(0.08,), counts=(served, 0.0)),
        served_requests=served,
        violated_requests=(late, late),
    )
    known = Observation(
        pool="chat", at_seconds=at, window_seconds=10, replicas=Replicas(desired=4, ready=4),
        demand=Demand(requests=served), load=Load(running_requests=1.0), latency=latency,
    )  # fmt: skip
    return replace(known, **changes)


def turn(risk: Risk, now: Observation, *, load: float | None = 1.0, unknown: bool = False) -> Risk:
    return steered(risk, SETTINGS, SLO, now, load=load, unknown=unknown)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=200))
def test_its_move_is_what_was_late_beyond_what_is_allowed(late: list[int]) -> None:
    """ALGORITHM of the module: log headroom = gain * sum(violated - allowed) / served, while it is not clipped.

    Half of the day's budget is spent, or more: as long as less is, it goes faster.
    """
    risk, wide = Risk(served=8.64e5, seconds=86_400.0, late=8640.0), RiskSettings(min_headroom=1e-9, max_headroom=10.0)
    total = 0.0
    for i, count in enumerate(late):
        risk = steered(risk, wide, SLO, seen(10 * i, late=float(count)), load=1.0, unknown=False)
        total += (count - 1.0) / 100.0
    expected = wide.gain / 3.0 * total
    if expected < math.log(10.0):
        assert risk.log_headroom == pytest.approx(expected, abs=1e-9)


def test_it_is_clipped_both_ways() -> None:
    risk, quick = Risk(), RiskSettings(gain=0.1)
    for i in range(100):
        risk = steered(risk, quick, SLO, seen(10 * i, late=100.0), load=1.0, unknown=False)
    assert risk.log_headroom == math.log(3.0)
    for i in range(6000):
        risk = steered(risk, quick, SLO, seen(10 * i), load=1.0, unknown=False)
    assert risk.log_headroom == math.log(0.6)


@pytest.mark.parametrize(("spent", "times"), [(0.0, 3.0), (0.25, 2.0), (0.5, 1.0), (3.0, 1.0)])
def test_while_the_days_error_budget_is_unspent_it_goes_faster(spent: float, times: float) -> None:
    risk = Risk(served=8.64e5, seconds=86_400.0, late=spent * 8640.0)
    moved = turn(risk, seen(late=0.0)).log_headroom
    assert moved == pytest.approx(-times * SETTINGS.gain / 3.0 * 0.01, rel=1e-3)


def test_what_was_late_is_spent_whether_or_not_it_is_learned_from() -> None:
    spent = turn(Risk(bound="most"), seen(late=7.0))
    assert spent.log_headroom == 0.0
    assert spent.late == 7.0
    assert turn(spent, seen(10, late=0.0)).late == pytest.approx(7.0, rel=1e-3)


def test_a_turn_without_answers_or_without_latency_moves_nothing() -> None:
    before = Risk(log_headroom=0.1, served=10.0, seconds=10.0)
    for now in (seen(served=0.0), seen(served=5e-324), seen(latency=None), seen(latency=Latency(served_requests=5.0))):
        assert turn(before, now).log_headroom == 0.1


@pytest.mark.parametrize(
    ("risk", "now", "excess", "unknown", "why"),
    [
        (Risk(busy=1.0), seen(), 1.0, False, None),
        (Risk(busy=1.0), seen(), 1.0, True, "unknown"),
        (Risk(busy=1.0), seen(demand=Demand(requests=10.0, failed_requests=5.0)), 1.0, False, "closed_loop"),
        (Risk(busy=1.0, bound="most"), seen(), 1.0, False, "most"),
        (Risk(busy=1.0, bound="most"), seen(), -1.0, False, None),
        (Risk(busy=1.0, bound="least"), seen(), -1.0, False, "least"),
        (Risk(busy=1.0, bound="least"), seen(), 1.0, False, None),
        (Risk(busy=0.5), seen(), 1.0, False, "idle"),
        (Risk(busy=0.5), seen(), -1.0, False, None),
    ],
)
def test_it_holds_where_replicas_would_not_have_helped(
    risk: Risk, now: Observation, excess: float, unknown: bool, why: str | None
) -> None:
    assert held(risk, now, excess, unknown=unknown, lead_seconds=120.0) == why


def test_long_answers_of_a_busy_time_count_after_it() -> None:
    risk = turn(Risk(), seen(late=0.0), load=1.2)
    late = turn(risk, seen(10, late=50.0), load=0.1)
    assert late.log_headroom > risk.log_headroom
    long_after = risk
    for i in range(1, 200):
        long_after = turn(long_after, seen(10 * i, served=0.0), load=0.1)
    assert turn(long_after, seen(3000, late=50.0), load=0.1).log_headroom == long_after.log_headroom


def test_the_open_bucket_is_shared_as_a_pareto_tail_through_its_bounds() -> None:
    tail = Tail(lower_seconds=1.0, upper_seconds=4.0, above_lower=100.0, above_upper=1.0)
    assert share_beyond(tail, 2.0) == pytest.approx((10.0 - 1.0) / 99.0)  # halfway in logarithms: the geometric mean
    nothing = replace(tail, above_lower=0.0, above_upper=0.0)
    assert share_beyond(nothing, 2.0) == pytest.approx(2.0 / 3.0)
    assert share_beyond(replace(tail, lower_seconds=0.0), 2.0) == pytest.approx(0.5)


def test_violations_stay_within_what_is_known() -> None:
    ttft = Histogram(upper_bounds=(1.0, 2.5, 5.0), counts=(80.0, 16.0, 3.0, 1.0))
    latency = Latency(ttft=ttft, served_requests=100.0, violated_requests=(4.0, 20.0))
    risk = turn(Risk(), seen(latency=latency))
    assert risk.first == Tail(lower_seconds=1.0, upper_seconds=2.5, above_lower=20.0, above_upper=4.0)
    found = violations(risk, latency, SLO)
    assert found is not None
    along = math.log(2.0) / math.log(2.5)
    assert found == pytest.approx(20.0 * (4.0 / 20.0) ** along)
    assert 4.0 < found < 20.0
    only_pair = Latency(served_requests=100.0, violated_requests=(4.0, 20.0))
    assert violations(Risk(), only_pair, SLO) == 12.0  # without histograms: the middle


def test_other_buckets_begin_the_tail_anew() -> None:
    def at(bounds: tuple[float, ...]) -> Observation:
        ttft = Histogram(upper_bounds=bounds, counts=(50.0,) * (len(bounds) + 1))
        return seen(latency=Latency(ttft=ttft, served_requests=100.0, violated_requests=(0.0, 100.0)))

    risk = turn(turn(Risk(), at((1.0, 4.0))), at((1.5, 3.0)))
    assert risk.first == Tail(lower_seconds=1.5, upper_seconds=3.0, above_lower=100.0, above_upper=50.0)
    assert turn(risk, at((1.0, 1.5))).first is None  # the limit is beyond the last bound


def test_a_surge_that_no_order_could_have_met_moves_nothing_up() -> None:
    """Work that doubles within a start-up time of 120 s: until replicas ordered for it are there, and its queue has gone."""
    risk = Risk()

    def at(second: int, work: float, late: float) -> Risk:
        return steered(
            risk, SETTINGS, SLO, seen(second, late=late), load=1.2, unknown=False, work=work, lead_seconds=120.0
        )

    for second in range(0, 600, 10):
        risk = at(second, 5.0, 1.0)
    calm = risk.log_headroom
    assert calm == pytest.approx(0.0, abs=1e-9)
    for second in range(600, 1000, 10):
        risk = at(second, 10.0, 60.0)
        assert held(risk, seen(second), 1.0, unknown=False, lead_seconds=120.0) == "surge"
    assert risk.log_headroom == calm
    assert risk.surge_at_seconds is not None
    assert 700 <= risk.surge_at_seconds <= 760
    for second in range(1000, 1200, 10):
        risk = at(second, 10.0, 60.0)
    assert risk.log_headroom > calm  # by now they could have been there
    assert len(risk.past) <= 8


def test_what_was_ordered_in_a_surge_comes_and_its_queue_goes_in_a_few_start_up_times() -> None:
    risk = Risk(busy=1.0, surge_at_seconds=1000)
    assert held(risk, seen(1025), 1.0, unknown=False, lead_seconds=10.0) == "surge"
    assert held(risk, seen(1026), 1.0, unknown=False, lead_seconds=10.0) is None
    assert held(risk, seen(2500), 1.0, unknown=False, lead_seconds=600.0) == "surge"
    assert held(risk, seen(2501), 1.0, unknown=False, lead_seconds=600.0) is None


@pytest.mark.parametrize(
    "work", [lambda second: 5.0 + second / 300.0, lambda second: 0.2 + 0.3 * (second // 60 % 3 == 0)]
)
def test_a_slow_rise_and_a_few_requests_are_no_surge(work: Callable[[int], float]) -> None:
    risk = Risk()
    for second in range(0, 3600, 10):
        risk = steered(
            risk, SETTINGS, SLO, seen(second, late=5.0), load=1.2, unknown=False, work=work(second), lead_seconds=120.0
        )
    assert risk.surge_at_seconds is None
    assert risk.log_headroom > 0.0


CONFIG = {"name": "chat", "slo": {"ttft_seconds": 2.0, "itl_seconds": 0.08}}


def played(pool: Pool, late: float, turns: int = 300) -> Pool:
    for i in range(1, turns):
        now = seen(
            10 * i, served=150.0, late=late, demand=Demand(requests=150.0, prompt_tokens=1.5e5, output_tokens=3e4),
            load=Load(running_requests=60.0, waiting_requests=0.0, kv_cache_fraction=0.2, replicas_reporting=2),
            replicas=Replicas(desired=2, ready=2),
        )  # fmt: skip
        pool.step(now)
    return pool


def test_a_pool_that_is_late_asks_for_more_and_says_so() -> None:
    fixed = played(Pool.from_config({**CONFIG, "risk": {"gain": 0.0}}), 30.0)
    steering = played(Pool.from_config(CONFIG), 30.0)
    assert fixed.memory.state.risk.log_headroom == 0.0
    headroom = math.exp(steering.memory.state.risk.log_headroom)
    assert headroom > 1.05
    wanted = dict(next(r for r in steering.last_step.proposals if r.rule == "reactive").inputs)  # type: ignore[union-attr]
    assert wanted["headroom"] == pytest.approx(headroom)


def test_policies_by_hand_observers_and_back_fill_are_not_steered() -> None:
    by_hand = played(Pool.from_config({**CONFIG, "policies": [{"kind": "work"}]}), 30.0)
    observer = played(Pool.from_config({**CONFIG, "strategy": "observer"}), 30.0)
    filled = Pool.from_config(CONFIG)
    filled.backfill([seen(10 * i, late=50.0) for i in range(1, 100)])
    for pool in (by_hand, observer, filled):
        assert pool.memory.state.risk == Risk()


def test_what_is_late_because_ordered_replicas_do_not_come_is_not_learned_from() -> None:
    def late(risk: Risk, at: int, *, short: bool) -> Risk:
        return steered(
            risk, SETTINGS, SLO, seen(at, late=50.0), load=1.0, unknown=False, work=1.0, lead_seconds=60.0, short=short
        )

    short = late(Risk(), 0, short=True)
    assert short.log_headroom == 0.0
    assert late(short, 100, short=False).log_headroom == 0.0  # the queue of that time
    assert late(short, 160, short=False).log_headroom > 0.0  # 2.5 start-up times later
    assert late(Risk(), 0, short=False).log_headroom > 0.0
