"""One turn of the loop, told in simulated seconds: ten requests per second a replica, 60 s to start."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plain_pools import plain_pool

from autoscaler.errors import ConfigError
from autoscaler.testing import FixedCapacity, Story, observation, without
from autoscaler.types import Load, Replicas


def test_work_is_carried_at_nineteen_twentieths() -> None:
    story = Story(plain_pool())
    story.expect(1, seconds=60, requests_per_second=9.5)  # 10 x 0.95
    story.expect(2, seconds=60, requests_per_second=19)
    story.expect(3, seconds=60, requests_per_second=20)
    assert story.decision is not None
    assert story.decision.reasons[0].rule == "reactive"


def test_a_backlog_orders_what_drains_it_in_half_a_minute() -> None:
    # 300 waiting requests are 30 replica-seconds: one replica more than the 1.7 that carry 16/s at 0.95.
    Story(plain_pool(), replicas=2).expect(3, requests_per_second=16, waiting_requests=300)


def test_what_was_wanted_is_kept_for_five_minutes() -> None:
    story = Story(plain_pool()).expect(4, seconds=60, requests_per_second=32)
    story.expect(4, seconds=290, requests_per_second=8)
    assert [r.rule for r in story.decision.reasons] == ["reactive", "keep"]  # type: ignore[union-attr]
    story.expect(1, seconds=80, requests_per_second=8)


def test_a_crowd_is_ordered_for_within_a_turn() -> None:
    story = Story(plain_pool()).expect(2, seconds=60, requests_per_second=16)
    story.expect(9, seconds=20, requests_per_second=85)  # 39 of the minute alone would be 5; 85 - 4.1 at 0.95


def test_keep_can_be_turned_off() -> None:
    story = Story(plain_pool(keep_seconds=0)).expect(4, seconds=60, requests_per_second=32)
    story.expect(1, seconds=60, requests_per_second=8)


def test_nothing_is_lowered_on_what_is_not_known() -> None:
    pool = plain_pool(keep_seconds=0)
    Story(pool).expect(4, seconds=60, requests_per_second=32)
    seen = observation("p", 1_000_200, replicas=4, requests_per_second=0)
    blind = pool.step(without(seen, "load"))
    assert blind.replicas == 4
    assert blind.reasons[-1].rule == "unknown_hold"
    assert dict(blind.reasons[-1].inputs) == {"missing": "load", "age_seconds": 0.0}
    later = pool.step(without(replace(seen, at_seconds=1_000_300), "load"))
    assert dict(later.reasons[-1].inputs) == {"missing": "load", "age_seconds": 100.0}
    seen_again = pool.step(replace(seen, at_seconds=1_000_400))
    assert seen_again.replicas == 1


def test_an_outage_of_everything_holds_and_says_so() -> None:
    pool = plain_pool(keep_seconds=0)
    Story(pool).expect(4, seconds=60, requests_per_second=32)
    decision = pool.step(without(observation("p", 1_000_200, replicas=4), "load", "demand"))
    assert decision.replicas == 4
    assert decision.reasons[0].rule == "hold"


def test_a_host_that_never_reported_load_may_scale_down() -> None:
    story = Story(plain_pool(keep_seconds=0)).expect(4, seconds=60, requests_per_second=32, waiting_requests=None)
    story.expect(1, seconds=60, requests_per_second=5, waiting_requests=None)


def test_a_declared_signal_is_missed_from_the_first_tick() -> None:
    pool = plain_pool(keep_seconds=0, expects=["demand", "load"])
    decision = pool.step(observation("p", 10, replicas=4, requests_per_second=1, waiting_requests=None))
    assert decision.replicas == 4
    assert decision.reasons[-1].rule == "unknown_hold"


def test_a_maximum_holds_even_in_an_outage() -> None:
    pool = plain_pool(limits={"max_replicas": 3})
    decision = pool.step(without(observation("p", 10, replicas=5), "load", "demand"))
    assert decision.replicas == 3
    assert decision.reasons[-1].rule == "bounds"


def test_less_than_half_of_the_replicas_reporting_is_unknown() -> None:
    pool = plain_pool(keep_seconds=0)
    pool.step(observation("p", 10, replicas=4, requests_per_second=8))
    load = Load(running_requests=0, waiting_requests=0, replicas_reporting=1)
    decision = pool.step(replace(observation("p", 20, replicas=4, requests_per_second=8), load=load))
    assert decision.replicas == 4
    assert decision.reasons[-1].rule == "unknown_hold"


def test_silent_replicas_count_as_loaded() -> None:
    pool = plain_pool(keep_seconds=0)
    load = Load(running_requests=0, waiting_requests=0, replicas_reporting=3)
    decision = pool.step(replace(observation("p", 10, replicas=4, requests_per_second=8), load=load))
    assert decision.replicas == 2
    assert decision.reasons[-1].rule == "silent"


def test_a_queue_of_silent_replicas_is_taken_to_be_like_the_others() -> None:
    pool = plain_pool()
    load = Load(running_requests=0, waiting_requests=300, replicas_reporting=2)
    decision = pool.step(replace(observation("p", 10, replicas=4, requests_per_second=0), load=load))
    assert dict(decision.reasons[0].inputs)["queued_seconds"] == 60.0


def test_the_wake_goes_to_n_in_one_decision() -> None:
    pool = plain_pool(limits={"min_replicas": 0, "max_replicas": 50})
    asleep = observation("p", 10, replicas=0, requests_per_second=0, waiting_requests=None)
    assert pool.step(asleep).replicas == 0
    door = replace(
        observation("p", 20, replicas=0, requests_per_second=30, waiting_requests=None),
        load=Load(waiting_requests=300),
    )
    decision = pool.step(door)
    assert decision.replicas == 5  # 30/s at 0.95 are 3.2 replicas, 300 waiting one more
    assert decision.reasons[0].rule == "wake"


def test_a_backlog_worth_eight_replicas_wakes_eight_in_one_decision() -> None:
    pool = plain_pool(limits={"min_replicas": 0, "max_replicas": 50})
    pool.step(observation("p", 10, replicas=0, requests_per_second=0, waiting_requests=None))
    quiet = observation("p", 20, replicas=0, requests_per_second=0, waiting_requests=None)
    decision = pool.step(replace(quiet, load=Load(waiting_requests=2400)))  # 240 replica-seconds, gone in 30 s
    assert decision.replicas == 8


def test_a_pool_goes_to_zero_only_after_the_keep_window() -> None:
    story = Story(plain_pool(limits={"min_replicas": 0, "max_replicas": 5}))
    story.expect(1, seconds=60, requests_per_second=5)
    story.expect(1, seconds=290, requests_per_second=0)
    story.expect(0, seconds=80, requests_per_second=0)


def test_what_is_starting_is_not_ordered_again() -> None:
    story = Story(plain_pool()).expect(6, seconds=60, requests_per_second=48)
    for at in range(story.at_seconds + 10, story.at_seconds + 60, 10):
        seen = observation("p", at, replicas=6, ready=1, requests_per_second=48)
        assert story.pool.step(seen).replicas == 6


def test_backlog_counts_what_is_starting_at_its_ready_time() -> None:
    # 600 waiting = 60 replica-seconds.  Two ready carry 10/s with 1 E to spare: 60 s on, nothing is left.
    hand = {"policies": [{"kind": "backlog", "drain_seconds": 30}]}
    alone = observation("p", 10, replicas=2, requests_per_second=10, waiting_requests=600)
    assert plain_pool(**hand).step(alone).replicas == 1
    # One ready carries just the 10/s: the queue stays, unless the starting one arrives in time.
    stuck = observation("p", 10, replicas=1, requests_per_second=10, waiting_requests=600)
    assert plain_pool(**hand).step(stuck).replicas == 3
    coming = observation(
        "p", 10, replicas=2, ready=1, requests_per_second=10, waiting_requests=600, starting_ready_at_seconds=(40,)
    )
    decision = plain_pool(**hand).step(coming)
    assert decision.replicas == 2
    assert dict(decision.reasons[0].inputs)["queued_when_ready_seconds"] == pytest.approx(30.0)


def test_the_same_instant_again_is_the_same_decision() -> None:
    pool = plain_pool()
    seen = observation("p", 10, requests_per_second=50)
    first, memory = pool.step(seen), pool.memory
    again = pool.step(replace(seen, demand=None))
    assert again is first
    assert pool.memory is memory


def test_an_earlier_instant_is_an_error() -> None:
    pool = plain_pool()
    pool.step(observation("p", 20))
    with pytest.raises(ConfigError, match="observation.at_seconds: 10 must be later than 20"):
        pool.step(observation("p", 10))


def test_another_pool_is_an_error() -> None:
    with pytest.raises(ConfigError, match="observation.pool: 'q' must be 'p'"):
        plain_pool().step(observation("q", 20))


def test_an_observer_acts_on_nothing_and_says_what_would_be() -> None:
    pool = plain_pool(strategy="observer")
    decision = pool.step(observation("p", 10, replicas=1, requests_per_second=80))
    assert decision.replicas == 1
    assert dict(decision.reasons[-1].inputs) == {"would_be": 9.0}


def test_no_more_than_the_platform_can_give() -> None:
    pool = plain_pool()
    decision = pool.step(replace(observation("p", 10, requests_per_second=80), spare_replicas=3))
    assert decision.replicas == 4
    assert decision.reasons[-1].rule == "spare"


def test_output_is_counted_at_arrival_not_as_delivered() -> None:
    capacity = FixedCapacity(requests_per_second=10)
    pool = plain_pool(capacity)
    saturated = replace(
        observation("p", 10, replicas=1, requests_per_second=80),
        replicas=Replicas(desired=1, ready=1),
    )
    assert pool.step(saturated).replicas == 9


def test_a_custom_policy_is_one_method() -> None:
    class Seven:
        def recommend(self, facts: object) -> int:
            return 7

    from autoscaler.embed import Pool

    pool = Pool.from_config({"name": "p"}, policies=[Seven()])
    decision = pool.step(observation("p", 10))
    assert decision.replicas == 7
    assert decision.reasons[0].rule == "policy:Seven"


def test_a_dead_or_mad_forecaster_leaves_the_reactive_decision() -> None:
    import math

    from autoscaler.embed import Pool
    from autoscaler.errors import ForecastError
    from autoscaler.testing import NoForecast
    from autoscaler.types import Forecast

    class Dead(NoForecast):
        def forecast(self, *asked: object) -> Forecast | None:
            raise ForecastError("the forecaster is dead")

    class Mad(NoForecast):
        def forecast(self, *asked: object) -> Forecast | None:
            row = (math.nan,) * 7
            return Forecast(
                at_seconds=10, levels=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99), windows=((60, 120),), values=(row,)
            )

    for forecaster in (Dead(), Mad()):
        pool = Pool.from_config(
            {"name": "p", "strategy": "predictive"}, forecaster=forecaster, capacity_model=FixedCapacity()
        )
        assert pool.step(observation("p", 10, requests_per_second=32)).replicas == 4
        assert pool.last_step is not None
        assert pool.last_step.forecast is None


def test_demand_of_which_much_fails_is_marked() -> None:
    pool = plain_pool()
    fine = observation("p", 1_000_000, requests_per_second=10)
    assert fine.demand is not None
    few = replace(fine, demand=replace(fine.demand, failed_requests=3.0, rejected_requests=2.0))
    many = replace(few, at_seconds=1_000_010, demand=replace(fine.demand, failed_requests=3.0, rejected_requests=2.1))
    marks = []
    for seen in (few, many):
        pool.step(seen)
        assert pool.last_step is not None
        marks.append(pool.last_step.closed_loop)
        assert ('"closed_loop":true' in pool.last_step.to_json()) == marks[-1]
    assert marks == [False, True]
