"""Powering down: thresholds against brute force and against who knows the gap, and an idle pool told in seconds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_pools import plain_autoscaler, plain_pool

from autoscaler.embed import Pool
from autoscaler.errors import ConfigError
from autoscaler.schema import build
from autoscaler.settings import PoolSettings, PreloadSettings, TierSettings
from autoscaler.testing import FixedCapacity, observation, without
from autoscaler.tiers import (
    LEAST_RETURNS,
    PowerState,
    envelope,
    least_cost,
    returns_within,
    state_at,
    states_of,
)
from autoscaler.types import Decision, Lengths, Load, Observation

LIVE = PowerState(name="live", rate=1.0, wake=0.0, wake_seconds=0.0)
SLEEP = PowerState(name="sleep_l1", rate=0.05, wake=1.42, wake_seconds=1.42)
LOCAL = PowerState(name="weights_local", rate=0.01, wake=20.0, wake_seconds=20.0)
OFF = PowerState(name="off", rate=0.0, wake=38.0, wake_seconds=38.0)
ALL = (LIVE, SLEEP, LOCAL, OFF)


def cost(states: Sequence[PowerState], enter: Sequence[float], gap: float) -> float:
    """Replica-seconds of one gap when each state is entered at its instant."""
    total, state = 0.0, 0
    for i in range(1, len(states)):
        if enter[i] < gap:
            total += states[state].rate * (enter[i] - (enter[state] if state else 0.0))
            state = i
    begun = enter[state] if state else 0.0
    return total + states[state].rate * (gap - begun) + states[state].wake


def known(states: Sequence[PowerState], gap: float) -> float:
    """The least cost of who knows the gap: one state for all of it."""
    return min(s.rate * gap + s.wake for s in states)


def test_the_example_of_the_arithmetic() -> None:
    enter = envelope((LIVE, SLEEP, OFF))
    assert enter[1] == pytest.approx(1.42 / 0.95)
    assert enter[2] == pytest.approx((38.0 - 1.42) / 0.05)  # 732 s
    assert [state_at(enter, t) for t in (0, 2, 700, 740)] == [0, 1, 1, 2]


@given(
    states=st.lists(st.tuples(st.floats(0.0, 0.9), st.floats(0.1, 500.0)), min_size=1, max_size=4),
    gaps=st.lists(st.floats(0.1, 1e5), min_size=20, max_size=20),
)
def test_without_knowledge_at_most_twice_the_cost_of_who_knows(
    states: list[tuple[float, float]], gaps: list[float]
) -> None:
    tiers = tuple(TierSettings(name=f"t{i}", cost_fraction=r, wake_seconds=w) for i, (r, w) in enumerate(states))
    capacity = FixedCapacity(startup_seconds=600.0).capacity(FixedCapacity().start(), Lengths(), 1)
    powers = states_of(PreloadSettings(tiers=tiers, late_cost=0.0), capacity, 1.0)
    enter = envelope(powers)
    assert list(enter) == sorted(enter)
    for gap in gaps:
        assert cost(powers, enter, gap) <= 2.0 * known(powers, gap) + 1e-6


def test_the_bound_holds_on_ten_thousand_random_gaps() -> None:
    rng = random.Random(1)
    enter = envelope(ALL)
    worst = max(cost(ALL, enter, g) / known(ALL, g) for g in (10 ** rng.uniform(-1, 5) for _ in range(10_000)))
    assert worst <= 2.0


def sample(kind: str, rng: random.Random) -> float:
    if kind == "exponential":
        return rng.expovariate(1 / 300.0)
    if kind == "pareto":
        return 20.0 * rng.paretovariate(1.2)
    return 5.0 if rng.random() < 0.7 else 3000.0


@pytest.mark.parametrize("kind", ["exponential", "pareto", "two points"])
def test_the_cost_over_seen_gaps_is_within_a_hundredth_of_brute_force(kind: str) -> None:
    rng = random.Random(7)
    gaps = [sample(kind, rng) for _ in range(64)]
    mine = fmean(cost(ALL, least_cost(ALL, gaps), g) for g in gaps)
    grid = [0.0, *(10 ** (x / 12) for x in range(49)), 1e9]
    brute = min(
        fmean(cost(ALL, (0.0, *choice), g) for g in gaps)
        for choice in itertools.combinations_with_replacement(grid[::2], 3)
    )
    assert mine <= 1.01 * brute
    assert mine <= fmean(cost(ALL, envelope(ALL), g) for g in gaps) + 1e-9


@pytest.mark.parametrize("kind", ["exponential", "pareto", "two points"])
def test_what_was_learned_is_good_for_gaps_to_come(kind: str) -> None:
    rng = random.Random(3)
    enter = least_cost(ALL, [sample(kind, rng) for _ in range(64)])
    later = [sample(kind, rng) for _ in range(4000)]
    learned, blind = (fmean(cost(ALL, e, g) for g in later) for e in (enter, envelope(ALL)))
    assert learned <= 1.1 * blind


def test_beyond_the_longest_gap_the_rule_without_knowledge_holds() -> None:
    enter = least_cost((LIVE, SLEEP, OFF), [30.0] * 40)
    assert enter[1] == 0.0  # every gap lasts half a minute: sleep at once
    assert enter[2] == pytest.approx((38.0 - 1.42) / 0.05)
    assert least_cost((LIVE, OFF), [30.0] * 40)[1] == pytest.approx(38.0)


def test_states_that_are_never_best_are_left_out() -> None:
    def names(tiers: list[tuple[str, float, float]], startup: float = 38.0) -> list[str]:
        settings = PreloadSettings(
            tiers=tuple(TierSettings(name=n, cost_fraction=r, wake_seconds=w) for n, r, w in tiers),
            late_cost=0.0,
        )
        capacity = FixedCapacity(startup_seconds=startup).capacity(FixedCapacity().start(), Lengths(), 1)
        return [s.name for s in states_of(settings, capacity, 1.0)]

    assert names([("a", 0.05, 2.0)]) == ["live", "a", "off"]
    assert names([("dear", 0.5, 50.0), ("a", 0.05, 2.0)]) == ["live", "a", "off"]
    assert names([("slower than a start", 0.05, 60.0)]) == ["live", "off"]
    assert names([("as dear as live", 1.0, 1.0)]) == ["live", "off"]


def test_what_a_wake_takes_beyond_the_limit_has_a_price() -> None:
    settings = PreloadSettings(tiers=(TierSettings(name="a", cost_fraction=0.05, wake_seconds=1.4),), late_cost=20.0)
    capacity = FixedCapacity().capacity(FixedCapacity().start(), Lengths(), 1)
    assert states_of(settings, capacity, 1.0)[1].wake == pytest.approx(1.4)  # five seconds are not late
    strict = replace(settings, return_seconds=0.0)
    assert states_of(strict, capacity, 1.0)[1].wake == pytest.approx(1.4 + 20.0 * 0.4)
    assert states_of(strict, capacity, 2.0)[1].wake == pytest.approx(1.4)


def test_an_early_return_is_expected_from_what_was_seen() -> None:
    gaps = [3600] * 30 + [60] * 10
    assert returns_within(gaps, 0.0, 70.0)
    assert not returns_within(gaps, 100.0, 40.0)
    assert returns_within(gaps, 3570.0, 40.0)
    assert not returns_within(gaps, 4000.0, 40.0)
    assert not returns_within(gaps[: LEAST_RETURNS - 1], 3570.0, 40.0)


TIERS = [
    {"name": "sleep_l1", "cost_fraction": 0.05, "wake_seconds": 4.0},
    {"name": "weights_local", "cost_fraction": 0.01, "wake_seconds": 30.0},
]
SECTION: dict[str, Any] = {
    "limits": {"min_replicas": 0, "max_replicas": 8},
    "preload": {"tiers": TIERS, "late_cost": 5.0, "return_seconds": 0.0},
}


def night(pool: Pool, at: int, seconds: int, replicas: int, rate: float = 0.0) -> tuple[int, dict[int, Decision]]:
    """Steps every ten seconds with `rate`; (instant of the last, decisions by seconds since the first)."""
    made: dict[int, Decision] = {}
    for elapsed in range(0, seconds, 10):
        here = observation("p", at + elapsed, replicas=replicas, requests_per_second=rate)
        if replicas == 0:
            here = without(here, "load")
        made[elapsed] = pool.step(here)
        replicas = made[elapsed].replicas
    return at + seconds - 10, made


def test_an_idle_pool_goes_down_the_tiers() -> None:
    pool = plain_pool(FixedCapacity(startup_seconds=120.0), **SECTION)
    at, _ = night(pool, 10, 60, 2, rate=15.0)
    _, made = night(pool, at + 10, 6000, 2)
    # The work of the last minute fades to one replica's first; live until 19 / 0.95 s, asleep until (175 - 19) / 0.04 s.
    assert made[0].replicas == 2
    first_zero = next(t for t, d in made.items() if d.replicas == 0)
    assert first_zero == 20
    assert made[20].reasons[-1].rule == "power_down"
    assert made[20].tiers[0].replicas == 2
    assert [d.tiers[0].name for t, d in made.items() if t >= 20] == ["sleep_l1"] * 387 + ["weights_local"] * 211
    assert all(d.replicas == 0 and d.preload == 0 for t, d in made.items() if t >= 20)


def tiered(most: int) -> Pool:
    return plain_pool(
        FixedCapacity(startup_seconds=120.0),
        limits={"min_replicas": 0, "max_replicas": most}, preload={"tiers": TIERS},
    )  # fmt: skip


def test_one_quiet_look_is_enough_to_sleep_where_waking_is_quick() -> None:
    pool = tiered(8)
    at, made = night(pool, 10, 60, 1, rate=5.0)
    assert {d.replicas for d in made.values()} == {1}
    _, made = night(pool, at + 10, 200, 1)
    assert {(d.replicas, d.tiers[0].name) for d in made.values()} == {(0, "sleep_l1")}  # 4 / 0.95 s are over


def test_a_fleet_is_not_put_to_sleep_by_one_quiet_look() -> None:
    pool = tiered(20)
    at, _ = night(pool, 10, 60, 10, rate=90.0)
    _, made = night(pool, at + 10, 100, 10)
    assert [d.replicas for d in made.values()][:5] == [10] * 5


def test_brief_gaps_weigh_as_many_as_they_were() -> None:
    pool = plain_pool(FixedCapacity(startup_seconds=120.0), **SECTION)
    at = 10
    for _ in range(30):
        at, _ = night(pool, at, 10, 1, rate=5.0)
        at, _ = night(pool, at + 10, 20, 1)
        at += 10
    at, _ = night(pool, at, 10, 1, rate=5.0)
    at, _ = night(pool, at + 10, 7200, 1)
    night(pool, at + 10, 10, 1, rate=5.0)
    idle = pool.memory.state.idle
    assert idle is not None
    assert (idle.brief, idle.gaps) == ((30,) * 30, (7210,))
    assert idle.brief_share == pytest.approx(30 / 31)
    slow = (LIVE, replace(SLEEP, wake=40.0))  # to sleep costs 11.5 more over 30 s, and not to 28.5 more over two hours
    assert least_cost(slow, idle.gaps, idle.brief, idle.brief_share)[1] == 30.0
    assert least_cost(slow, idle.gaps, idle.brief, 0.5)[1] == 0.0
    assert least_cost(ALL, [7210.0], [30.0] * 5, 30 / 31) == least_cost(ALL, [30.0] * 30 + [7210.0])


def test_nothing_powers_down_on_ignorance() -> None:
    pool = plain_pool(FixedCapacity(startup_seconds=120.0), **SECTION)
    at, _ = night(pool, 10, 60, 2, rate=15.0)
    blind = [pool.step(without(observation("p", at + 10 * i, replicas=2), "demand", "load")) for i in range(1, 60)]
    assert {d.replicas for d in blind} == {2}
    assert pool.memory.state.idle is not None
    assert pool.memory.state.idle.since_seconds is None


def test_who_waits_wakes_the_pool_and_the_gap_is_remembered() -> None:
    pool = plain_pool(FixedCapacity(startup_seconds=120.0), **SECTION)
    at, _ = night(pool, 10, 60, 2, rate=15.0)
    at, _ = night(pool, at + 10, 1000, 2)
    door = replace(
        without(observation("p", at + 10, replicas=0, requests_per_second=1.0), "load"), load=Load(waiting_requests=10)
    )
    decision = pool.step(door)
    assert (decision.replicas, decision.tiers) == (1, ())
    assert pool.memory.state.idle is not None
    assert pool.memory.state.idle.gaps == (1010,)  # from the begin of the first quiet window


def test_gaps_that_return_on_time_are_woken_for_ahead() -> None:
    autoscaler = plain_autoscaler(FixedCapacity(startup_seconds=120.0), **SECTION)
    pool, at = Pool(autoscaler), 10
    for _ in range(LEAST_RETURNS):
        at, _ = night(pool, at, 100, 1, rate=5.0)
        at, made = night(pool, at + 10, 7200, 1)
        at += 10
    at, _ = night(pool, at, 100, 1, rate=5.0)
    assert pool.memory.state.idle is not None
    assert pool.memory.state.idle.gaps == (7210,) * LEAST_RETURNS
    _, made = night(pool, at + 10, 7400, 1)
    raised = [t for t, d in made.items() if d.preload]
    assert {made[t].tiers[0].name for t in raised} == {"sleep_l1"}
    assert min(raised) == 7170  # 30 s ahead of the usual return, out of weights_local
    assert max(raised) < 7200
    assert {d.tiers[0].name for t, d in made.items() if 1000 < t < 7170} == {"weights_local"}


def test_a_pool_without_tiers_remembers_no_gaps() -> None:
    pool = plain_pool(limits={"min_replicas": 0, "max_replicas": 5})
    night(pool, 10, 600, 1)
    assert pool.memory.state.idle is None


def test_mistakes_are_named() -> None:
    def built(*tiers: dict[str, Any]) -> Observation:
        return build(PoolSettings, {"name": "p", "preload": {"tiers": list(tiers)}})  # type: ignore[return-value]

    with pytest.raises(ConfigError, match=r"preload.tiers\[0\].cost_fraction: 2.0 must be in \[0, 1\]"):
        built({"name": "a", "cost_fraction": 2, "wake_seconds": 1})
    with pytest.raises(ConfigError, match=r"preload.tiers\[0\].name: 'off' must be a name other than"):
        built({"name": "off", "cost_fraction": 0.1, "wake_seconds": 1})
    with pytest.raises(ConfigError, match=r"preload.tiers: a, a must be different names"):
        built(*({"name": "a", "cost_fraction": 0.1, "wake_seconds": 1},) * 2)
