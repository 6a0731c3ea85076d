"""Replicas that carry nothing are no capacity, and are replaced; told with ten requests per second a replica, 60 s to start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_pools import plain_pool

from autoscaler.embed import Pool
from autoscaler.facts import work_in
from autoscaler.health import missed, short
from autoscaler.testing import FixedCapacity, NoForecast, observation
from autoscaler.types import Decision, Lengths, Observation, Replicas, State
from autoscaler.views import reason_text

FOUR = 38.0  # requests/s that four replicas carry at 0.95


def seen(at: int, desired: int, ready: int, sick: int = 0, rate: float = FOUR, **more: Any) -> Observation:
    counts = Replicas(desired=desired, ready=ready, starting=max(0, desired - ready - sick), unhealthy=sick)
    return replace(
        observation("p", at, replicas=desired, ready=ready, requests_per_second=rate), replicas=counts, **more
    )


def rules(decision: Decision) -> list[str]:
    return [r.rule for r in decision.reasons]


def test_a_sick_replica_is_replaced_once_and_the_replacement_goes_when_it_is_well() -> None:
    pool = plain_pool()
    assert pool.step(seen(10, 4, 4)).replicas == 4
    decision = pool.step(seen(20, 4, 3, sick=1))
    assert decision.replicas == 5
    assert rules(decision) == ["reactive", "sick"]
    assert reason_text(decision.reasons[-1]) == "1 replica unhealthy: 1 asked for in place of what carries nothing"
    for at in range(30, 600, 10):  # the same need is never ordered twice
        assert pool.step(seen(at, 5, 3 if at < 90 else 4, sick=1)).replicas == 5
    well = pool.step(seen(600, 5, 5))
    assert well.replicas == 4  # and the replacement is not kept for five minutes
    assert well.reasons[0].before == 5


def test_a_fall_of_load_gives_up_what_carries_and_not_the_replacement() -> None:
    pool = plain_pool(keep_seconds=0)
    pool.step(seen(10, 5, 4, sick=1))
    assert [pool.step(seen(20 + 10 * i, 5, 4, sick=1, rate=19.0)).replicas for i in range(7)][-1] == 3  # two and one


def test_what_falls_sick_while_nothing_is_known_is_replaced_and_nothing_is_lowered() -> None:
    pool = plain_pool(keep_seconds=0)
    pool.step(seen(10, 4, 4))
    blind = seen(20, 4, 3, sick=1, demand=None, load=None)
    decision = pool.step(blind)
    assert decision.replicas == 5
    again = pool.step(replace(seen(30, 5, 3, sick=1), demand=None, load=None))
    assert again.replicas == 5


def test_the_minimum_is_one_of_healthy_replicas() -> None:
    pool = plain_pool()
    assert pool.step(seen(10, 1, 0, sick=1, rate=0.0)).replicas == 2


def test_never_more_replacements_than_are_needed() -> None:
    pool, desired = plain_pool(), 4
    for at in range(10, 400, 10):  # a broken image: whatever starts falls sick
        desired = pool.step(seen(at, desired, 0, sick=desired)).replicas
    assert desired == 8


def test_a_maximum_holds_for_replacements_too() -> None:
    pool = plain_pool(limits={"max_replicas": 4})
    assert pool.step(seen(10, 4, 3, sick=1)).replicas == 4


def test_no_spare_no_replacement() -> None:
    decision = plain_pool().step(seen(10, 4, 3, sick=1, spare_replicas=0))
    assert decision.replicas == 4
    assert rules(decision)[-1] == "spare"


def test_a_start_that_hangs_is_replaced_after_the_longest_usual_time() -> None:
    pool = plain_pool()
    assert pool.step(seen(0, 3, 3)).replicas == 4
    asked = [pool.step(seen(at, 4, 3)).replicas for at in range(10, 101, 10)]
    # Ordered at 0, first seen at 10, and 60 s is the longest that the model knows: overdue beyond 70.
    assert asked == [4] * 7 + [5] * 3
    decision = pool.memory.last_step
    assert decision is not None
    assert reason_text(decision.decision.reasons[-1]).startswith("a start is overdue")
    for at in range(110, 1000, 10):  # one at a time: what holds it up may hold up the next
        assert pool.step(seen(at, 5, 3)).replicas == 5
    assert pool.step(seen(1000, 5, 4)).replicas == 4  # the other has come


def told(at: int, desired: int, ready: int, oldest: int | None) -> Observation:
    now = seen(at, desired, ready)
    return replace(now, replicas=replace(now.replicas, oldest_start_at_seconds=oldest))


def test_a_start_that_others_overtake_is_replaced_where_its_age_is_told() -> None:
    """Ends of other starts, every 40 s, hide one that hangs from who sees counts alone."""
    for oldest, asked in ((0, [4] * 7 + [5] * 12), (None, [4] * 19)):
        pool = plain_pool()
        pool.step(told(0, 3, 3, None))
        found = []
        for at in range(10, 200, 10):
            ready = 3 - (at // 20) % 2  # one dies and comes again, while the fourth never does
            found.append(pool.step(told(at, found[-1] if found else 4, ready, oldest)).replicas)
        assert found == asked


def test_what_is_younger_than_a_start_may_be_is_not_overdue() -> None:
    pool = plain_pool()
    pool.step(told(0, 3, 3, None))
    asked = [pool.step(told(at, 4, 3, at - at % 50)).replicas for at in range(10, 300, 10)]  # ordered again and again
    assert set(asked) == {4}


def test_starts_that_come_in_time_are_nothing_to_mend() -> None:
    pool, ready = plain_pool(), 1
    pool.step(seen(0, 1, 1))
    for at in range(10, 400, 10):
        ready = min(4, 1 + at // 60)
        assert pool.step(seen(at, 4, ready)).replicas == 4


@given(
    sick=st.integers(0, 6),
    ready=st.integers(0, 6),
    rate=st.floats(0, 60),
    walk=st.lists(st.integers(0, 3), min_size=1, max_size=8),
)
def test_orders_never_exceed_the_need_and_what_is_replaced(sick: int, ready: int, rate: float, walk: list[int]) -> None:
    pool = plain_pool(limits={"min_replicas": 0, "max_replicas": 1000})
    desired = ready + sick
    for i, more in enumerate(walk):
        ill = min(desired, sick + more)
        well = min(desired - ill, ready)
        decision = pool.step(seen(10 + 10 * i, desired, well, sick=ill, rate=rate))
        step = pool.last_step
        assert step is not None
        need = max([r.after for r in step.proposals], default=0)
        kept = max([count for _, count in step.state.recommended], default=0)
        assert decision.replicas <= max(need, kept, 0) + ill + 1
        desired = decision.replicas


@pytest.mark.parametrize(("reporting", "work"), [(None, 3.0), (4, 3.0), (2, 6.0), (0, 3.0)])
def test_work_counted_by_replicas_is_scaled_to_the_silent_ones(reporting: int | None, work: float) -> None:
    here = observation("p", 10, replicas=4, requests_per_second=3.0)
    assert here.demand is not None
    here = replace(here, demand=replace(here.demand, replicas_reporting=reporting))
    capacity = FixedCapacity(requests_per_second=10.0).capacity(FixedCapacity().start(), Lengths(), 1)
    assert work_in(here, capacity, State()) == pytest.approx(work)


def test_sick_replicas_survive_a_restart() -> None:
    section = {"name": "p", "limits": {"max_replicas": 50}}

    def fresh() -> Pool:
        return Pool.from_config(section, forecaster=NoForecast(), capacity_model=FixedCapacity())

    pool, twin = fresh(), fresh()
    pool.step(seen(10, 4, 3, sick=1))
    twin.restore(pool.snapshot())
    blind = seen(20, 5, 3, sick=1, demand=None, load=None)
    assert twin.step(blind) == pool.step(blind)


@pytest.mark.parametrize(("at", "ready", "missed"), [(100, 3, False), (101, 3, True), (101, 9, False)])
def test_overdue_starts_are_missed_where_many_are_not_there(at: int, ready: int, missed: bool) -> None:
    assert short(State(overdue_at_seconds=100), seen(at, desired=10, ready=ready), 10) is missed
    assert not short(State(), seen(at, desired=10, ready=ready), 10)


def test_the_dead_are_missed_until_as_many_have_come() -> None:
    def counts(ready: int, starting: int = 0, **more: int) -> Replicas:
        return Replicas(desired=more.pop("desired", ready + starting), ready=ready, starting=starting, **more)

    story = [
        (counts(4), 0),
        (counts(2, 2), 2),  # two died, and are ordered anew
        (counts(2, 3), 2),  # one more is wanted
        (counts(3, 2), 1),
        (counts(5), 0),
        (counts(3, draining=2), 0),  # asked for fewer
        (counts(2, 0, draining=2, desired=3), 1),
        (counts(2, draining=1, desired=2), 0),  # it will not come back
        (counts(1, 0, desired=2, unhealthy=1), 1),
    ]
    state, before = State(), None
    for now, dead in story:
        state = State(dead=missed(state, before, now))
        assert state.dead == dead, now
        before = now
    few = seen(10, desired=10, ready=7)
    assert short(State(dead=3), few, 10)
    assert not short(State(dead=3), seen(10, desired=10, ready=9), 10)
