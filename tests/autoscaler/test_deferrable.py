"""Work that may wait, in a pool of ten requests per second a replica (a request is 0.1 replica-seconds)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plain_pools import plain_pool

from autoscaler.embed import Pool
from autoscaler.errors import ConfigError
from autoscaler.testing import observation
from autoscaler.types import Decision, Demand, Observation, RequestClass
from autoscaler.views import reason_text


def seen(
    at: int, replicas: int, rate: float, batch: float | None, waiting: float | None, deadline: float = 600.0
) -> Observation:
    demand = None if batch is None else Demand(requests=10 * batch, prompt_tokens=0.0, finished_requests=0.0)
    one = RequestClass(name="batch", deadline_seconds=deadline, demand=demand, waiting_requests=waiting)
    return replace(observation("p", at, replicas=replicas, requests_per_second=rate), classes=(one,))


def walked(pool: Pool, seconds: int, rate: float, batch: float | None, waiting: float | None, **more: Any) -> Decision:
    start, replicas = 10, 1
    if pool.last_step is not None:
        start, replicas = pool.last_step.observation.at_seconds + 10, pool.last_step.decision.replicas
    for at in range(start, start + seconds, 10):
        replicas = pool.step(seen(at, replicas, rate, batch, waiting, **more)).replicas
    assert pool.last_step is not None
    return pool.last_step.decision


def by(decision: Decision) -> str:
    return decision.reasons[0].rule


def test_all_work_is_carried_on_average() -> None:
    decision = walked(plain_pool(), 600, 19.0, 21.0, 0.0)
    assert (decision.replicas, by(decision)) == (4, "deferrable")  # 1.9 + 2.1, at full use
    assert walked(plain_pool(), 600, 19.0, 0.0, 0.0).replicas == 2


def test_idle_headroom_takes_it_and_nothing_is_ordered() -> None:
    pool = plain_pool()
    assert walked(pool, 60, 57.0, 2.0, 0.0).replicas == 6
    decision = walked(pool, 1200, 57.0, 2.0, 0.0)
    assert (decision.replicas, by(decision)) == (6, "reactive")


def test_a_queue_is_emptied_within_half_its_deadline() -> None:
    # 6,000 requests are 600 replica-seconds, due in 300 s: 2 replicas beside the one.
    assert walked(plain_pool(), 10, 10.0, 0.0, 6000.0).replicas == 3
    assert walked(plain_pool(), 10, 10.0, 0.0, 6000.0, deadline=3600.0).replicas == 2


def test_a_part_of_a_replica_is_queued_before_it_is_ordered() -> None:
    pool = plain_pool()
    assert walked(pool, 6000, 10.0, 24.0, 0.0).replicas == 3  # for 3.4
    assert walked(pool, 10, 10.0, 24.0, 900.0).replicas == 3  # and 0.3 that are due
    assert walked(pool, 10, 10.0, 24.0, 1500.0).replicas == 4  # and 0.5


def test_a_rush_of_what_can_wait_orders_little_and_keeps_nothing() -> None:
    pool = plain_pool()
    walked(pool, 600, 10.0, 0.0, 0.0)
    rush = walked(pool, 10, 10.0, 500.0, 0.0)
    assert rush.replicas == 2  # 50 replica-seconds per second for ten seconds, of ten minutes
    assert walked(pool, 600, 10.0, 0.0, 0.0).replicas == 2  # of the mean that falls over ten minutes
    assert walked(pool, 1200, 10.0, 0.0, 0.0).replicas == 2
    assert [r.rule for r in pool.memory.last_step.decision.reasons] != ["keep"]  # type: ignore[union-attr]


def test_nothing_is_given_up_on_a_queue_that_is_not_known() -> None:
    pool = plain_pool(keep_seconds=0)
    assert walked(pool, 600, 19.0, 21.0, 0.0).replicas == 4
    decision = walked(pool, 100, 5.0, 0.0, None)
    assert (decision.replicas, by(decision)) == (4, "deferrable")
    assert reason_text(decision.reasons[0]).startswith("of work that may wait it is not known")


def test_classes_that_end_are_forgotten() -> None:
    pool = plain_pool(keep_seconds=0)
    walked(pool, 600, 19.0, 21.0, 0.0)
    assert pool.memory.state.mean_total_work == pytest.approx(4.0)
    assert pool.step(observation("p", 10_000, replicas=4, requests_per_second=19.0)).replicas == 2
    assert pool.memory.state.mean_total_work is None


def test_policies_by_hand_do_not_starve_it() -> None:
    hand = [{"kind": "target_tracking", "signal": "requests_per_second", "target": 10}]
    assert walked(plain_pool(policies=hand), 600, 19.0, 21.0, 0.0).replicas == 4


def test_the_reason_says_all_of_it() -> None:
    decision = walked(plain_pool(), 600, 19.0, 21.0, 300.0)
    assert reason_text(decision.reasons[0]) == (
        "all work together is 4 replica-seconds per second on average, and 30 replica-seconds that may wait 10m are queued,"
        " 0.1 per second of them due; one replica carries 1"
    )


def test_a_deadline_must_be_one() -> None:
    with pytest.raises(ConfigError, match="classes.deadline_seconds: 0.0 must be a finite number > 0"):
        RequestClass(name="batch", deadline_seconds=0.0)
