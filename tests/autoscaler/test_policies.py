"""Policies on hand-made facts: worked numbers, and what unknown, silent and starting replicas do to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.facts import Facts
from autoscaler.policy import (
    Ahead,
    Backlog,
    Cron,
    InFlight,
    Saturation,
    TargetTracking,
    Work,
    drain_seconds,
    policy_of,
)
from autoscaler.ports import Policy
from autoscaler.settings import (
    BacklogSettings,
    CronSettings,
    PredictiveSettings,
    SaturationSettings,
    ScheduleEntry,
    TargetTrackingSettings,
    WorkSettings,
)
from autoscaler.signals import SIGNALS
from autoscaler.types import Capacity, Demand, Forecast, Histogram, Latency, Load, Observation, Replicas, State

NOW = 1_767_225_600  # 2026-01-01 00:00 UTC
# A request is 0.5 replica-seconds: 0.1 + 0.0002 * 1000 prompt tokens + 0.001 * 200 output tokens; 60 s to start.
CAPACITY = Capacity(
    seconds_per_request=0.1,
    seconds_per_prompt_token=0.0002,
    seconds_per_output_token=0.001,
    feasible_load=((1, 0.5), (64, 0.8)),
    startup_seconds=((0.5, 50.0), (0.9, 60.0)),
    mean_output_tokens=200.0,
)


def seen(
    at: int = NOW,
    *,
    desired: int = 4,
    ready: int = 4,
    starting: int = 0,
    rate: float | None = 2.0,
    waiting: float = 0.0,
    **load: Any,
) -> Observation:
    """Ten seconds of `rate` requests per second of 1000 + 200 tokens."""
    count = None if rate is None else 10 * rate
    demand = None
    if count is not None:
        demand = Demand(requests=count, prompt_tokens=1000 * count, output_tokens=200 * count)
    return Observation(
        pool="p",
        at_seconds=at,
        window_seconds=10,
        replicas=Replicas(desired=desired, ready=ready, starting=starting),
        demand=demand,
        load=Load(**{"running_requests": 8.0, "waiting_requests": waiting, "replicas_reporting": ready, **load}),
    )


def facts(*observations: Observation, **beliefs: Any) -> Facts:
    """Facts at the last Observation; one alone stands for a calm minute."""
    recent = observations or (seen(),)
    if len(recent) == 1:
        recent = tuple(replace(recent[0], at_seconds=recent[0].at_seconds - 10 * i) for i in range(5, -1, -1))
    known = {"capacity": CAPACITY, "state": State(mean_prompt_tokens=1000.0), **beliefs}
    return Facts(observation=recent[-1], recent=recent, current=recent[-1].replicas.desired, **known)


def tracking(signal: str, target: float, **settings: Any) -> TargetTracking:
    return TargetTracking(settings=TargetTrackingSettings(signal=signal, target=target, **settings))


def number(policy: Policy, here: Facts) -> int | None:
    reason = policy.recommend(here)
    return reason if reason is None or isinstance(reason, int) else reason.after


@pytest.mark.parametrize(
    ("signal", "target", "expected"),
    [
        ("requests_per_second", 0.3, 7),  # 2 / 0.3
        ("prompt_tokens_per_second", 250.0, 8),
        ("output_tokens_per_second", 50.0, 8),
        ("tokens_per_second", 200.0, 12),  # 2400 / 200
        ("running_requests", 1.0, 8),
        ("running_and_waiting_requests", 4.0, 3),  # 12 / 4
        ("waiting_requests", 2.0, 2),
        ("waiting_prompt_tokens", 500.0, 8),
        ("kv_cache_fraction", 0.3, 8),  # 4 * 0.6 / 0.3
        ("gpu_utilization_fraction", 0.9, 2),  # 4 * 0.45 / 0.9
        ("ttft_p95_seconds", 0.5, 8),
        ("ttft_p99_seconds", 1.5, 4),
        ("itl_p95_seconds", 0.05, 2),
        ("e2e_p95_seconds", 10.0, 6),
    ],
)
def test_target_tracking_on_every_signal(signal: str, target: float, expected: int) -> None:
    here = seen(waiting=4.0, waiting_prompt_tokens=4000.0, kv_cache_fraction=0.6, gpu_utilization_fraction=0.45)
    latency = Latency(ttft_p95_seconds=1.0, ttft_p99_seconds=1.5, itl_p95_seconds=0.02, e2e_p95_seconds=15.0)
    reason = tracking(signal, target).recommend(facts(replace(here, latency=latency)))
    assert reason is not None
    assert (reason.rule, reason.before, reason.after) == (f"target:{signal}", 4, expected)


def test_every_signal_is_covered_above() -> None:
    marks: Any = test_target_tracking_on_every_signal
    assert {case[0] for case in marks.pytestmark[0].args[1]} == set(SIGNALS)


def test_a_quantile_comes_out_of_the_histogram() -> None:
    # 100 samples: 90 up to 1 s, 10 up to 2 s; the 95 % quantile lies in the middle of the second bucket.
    ttft = Histogram(upper_bounds=(1.0, 2.0), counts=(90.0, 10.0, 0.0))
    here = replace(seen(), latency=Latency(ttft=ttft))
    assert number(tracking("ttft_p95_seconds", 0.5), facts(here)) == 12  # 4 * 1.5 / 0.5
    assert number(tracking("itl_p95_seconds", 0.5), facts(here)) is None


@pytest.mark.parametrize(("rate", "expected"), [(1.8, 10), (2.0, 10), (2.2, 10), (2.3, 12), (1.7, 9)])
def test_tolerance_is_that_of_hpa(rate: float, expected: int) -> None:
    here = seen(desired=10, ready=10, rate=rate)
    assert number(tracking("requests_per_second", 0.2), facts(here)) == expected


def test_tolerance_can_be_off() -> None:
    here = seen(desired=20, ready=20, rate=2.1)
    assert number(tracking("requests_per_second", 0.1, tolerance_fraction=0.0), facts(here)) == 21


@pytest.mark.parametrize(
    ("kv", "reporting", "starting", "desired", "expected"),
    [
        (0.2, 3, 0, 4, 3),  # down: (3*0.2 + 0.5) / 0.5 -> ceil(2.2), the silent one counts as at the target
        (0.8, 3, 0, 4, 5),  # up: ceil(3*0.8/0.5), the silent one counts as idle
        (0.8, 2, 0, 4, 4),  # 2*0.8/0.5 = 3.2 of 4: the correction turns the direction, nothing changes
        (0.8, 4, 4, 8, 8),  # 4 starting: 6.4 of 8, turned: nothing, rather than 7
        (0.9, 4, 2, 6, 8),  # 7.2 of 6: up
        (0.5, 3, 0, 4, 4),  # on target with a silent one: nothing
        (0.2, 4, 3, 7, 2),  # on the way down starting ones do not matter
        (0.9, 0, 0, 4, None),  # nobody answered
    ],
)
def test_missing_data_as_in_hpa(kv: float, reporting: int, starting: int, desired: int, expected: int | None) -> None:
    here = seen(desired=desired, starting=starting, kv_cache_fraction=kv, replicas_reporting=reporting)
    assert number(tracking("kv_cache_fraction", 0.5), facts(here)) == expected


@given(
    kv=st.floats(0.0, 1.0),
    ready=st.integers(1, 30),
    silent=st.integers(0, 30),
    starting=st.integers(0, 30),
)
def test_a_corrected_ratio_never_turns_the_direction(kv: float, ready: int, silent: int, starting: int) -> None:
    here = seen(
        desired=ready + starting,
        ready=ready,
        starting=starting,
        kv_cache_fraction=kv,
        replicas_reporting=max(0, ready - silent),
    )
    wanted = number(tracking("kv_cache_fraction", 0.5), facts(here))
    if wanted is None:
        assert silent >= ready
    elif kv > 0.5:
        assert wanted >= ready + starting
    else:
        assert wanted <= ready + starting


@given(rate=st.floats(0, 1000), more=st.floats(0, 1000), desired=st.integers(0, 50))
def test_more_of_a_signal_never_asks_for_less(rate: float, more: float, desired: int) -> None:
    policy = tracking("requests_per_second", 1.5)
    low = number(policy, facts(seen(desired=desired, ready=desired, rate=rate)))
    high = number(policy, facts(seen(desired=desired, ready=desired, rate=rate + more)))
    assert low is not None
    assert high is not None
    assert high >= low


def test_a_signal_that_is_not_measured_is_no_opinion() -> None:
    dark = replace(seen(rate=None), load=None)
    for signal in SIGNALS:
        assert number(tracking(signal, 1.0), facts(dark)) is None


def test_a_window_with_a_fifth_missing_still_counts_and_more_does_not() -> None:
    minute = [seen(NOW - 10 * i, rate=2.0 if i > 2 else 8.0) for i in range(9, -1, -1)]
    policy = tracking("requests_per_second", 1.0, window_seconds=100, tolerance_fraction=0.0)
    assert number(policy, facts(*minute)) == 4  # (7 * 2 + 3 * 8) / 10 = 3.8
    holes = [replace(o, demand=None) if i in (4, 5) else o for i, o in enumerate(minute)]
    assert number(policy, facts(*holes)) == 5  # (5 * 2 + 3 * 8) / 8 = 4.25
    holes[3] = replace(holes[3], demand=None)
    assert number(policy, facts(*holes)) is None


def test_backlog_counts_what_will_be_queued_when_help_comes() -> None:
    # 2 requests/s are 1 Erlang; 4 replicas at 0.5143 carry 2.06; 60 requests of 0.5 s wait: 30 replica-seconds.
    calm = facts(seen(waiting=60.0))
    reason = Backlog(settings=BacklogSettings(drain_seconds=30.0)).recommend(calm)
    assert reason is not None
    inputs = dict(reason.inputs)
    assert inputs["queued_seconds"] == pytest.approx(30.0)
    assert inputs["work"] == pytest.approx(1.0)
    assert inputs["queued_when_ready_seconds"] == 0.0
    assert reason.after == 2  # 1 Erlang over 0.5143
    # At 6 requests/s 3 Erlangs arrive: in 60 s 30 + 60 * (3 - 2.057) = 86.6 will wait, 2.89 more while they drain.
    busy = Backlog(settings=BacklogSettings(drain_seconds=30.0)).recommend(facts(seen(rate=6.0, waiting=60.0)))
    assert busy is not None
    feasible = CAPACITY.feasible(4)
    ahead = 30 + 60 * (3 - 4 * feasible)
    assert dict(busy.inputs)["queued_when_ready_seconds"] == pytest.approx(ahead)
    assert busy.after == CAPACITY.replicas(3 + ahead / 30)
    assert Backlog(settings=BacklogSettings()).recommend(facts(replace(seen(), load=None))) is None


def test_starting_replicas_shorten_the_projected_backlog() -> None:
    here = facts(seen(rate=8.0, waiting=60.0))
    coming = Replicas(desired=6, ready=4, starting=2, starting_ready_at_seconds=(NOW + 20, NOW + 20))
    helped = replace(here, observation=replace(here.observation, replicas=coming))
    feasible = CAPACITY.feasible(4)
    expected = 30 + 20 * (4 - 4 * feasible) + 40 * (4 - 6 * feasible)
    assert helped.projected_backlog(30.0, 4.0, 60.0) == pytest.approx(expected)
    assert here.projected_backlog(30.0, 4.0, 60.0) == pytest.approx(30 + 60 * (4 - 4 * feasible))
    assert here.projected_backlog(1.0, 0.0, 60.0) == 0.0


def test_silent_replicas_are_taken_to_queue_like_the_others() -> None:
    assert facts(seen(waiting=30.0, replicas_reporting=2)).backlog() == pytest.approx(30.0)
    assert facts(seen(waiting=30.0)).backlog() == pytest.approx(15.0)
    exact = facts(seen(waiting=30.0, waiting_prompt_tokens=0.0)).backlog()
    assert exact == pytest.approx(30 * 0.3)


def test_work_adds_headroom_and_the_queue() -> None:
    policy = Work(settings=WorkSettings(utilization_fraction=0.8, drain_seconds=30.0))
    reason = policy.recommend(facts(seen(rate=6.0, waiting=60.0)))
    assert reason is not None
    assert reason.rule == "reactive"
    assert reason.after == CAPACITY.replicas(3 / 0.8 + 30 / 30) == 7  # seven carry 0.713 Erlangs each
    assert number(policy, facts(seen(rate=0.0))) == 0
    assert number(policy, facts(seen(rate=None))) is None


def test_half_a_window_after_a_gap_raises_and_gives_nothing_up() -> None:
    gap = [replace(seen(NOW - 10 * i), demand=None) for i in range(5, 2, -1)]
    busy = [seen(NOW - 10 * i, rate=12.0) for i in (2, 1, 0)]
    policy = Work()
    assert number(policy, facts(*gap, *busy)) == number(policy, facts(*busy)) > 4
    quiet = [seen(NOW - 10 * i, rate=0.5) for i in (2, 1, 0)]
    assert number(policy, facts(*gap, *quiet)) == 4
    assert number(policy, facts(*quiet)) < 4
    assert number(policy, facts(*gap, *gap, *busy[1:])) is None


def test_a_long_queue_asks_for_as_many_again_and_no_storm() -> None:
    assert drain_seconds(30.0, 2.0, 30.0) == 30.0
    assert drain_seconds(60.0, 2.0, 30.0) == 30.0
    assert drain_seconds(400.0, 2.0, 30.0) == 200.0  # two Erlangs more
    assert drain_seconds(6000.0, 2.0, 30.0) == 300.0
    assert drain_seconds(6000.0, 0.0, 30.0) == 300.0
    assert drain_seconds(6000.0, 0.0, 900.0) == 900.0
    reason = Work().recommend(facts(seen(rate=6.0, waiting=1200.0)))
    assert reason is not None
    inputs = dict(reason.inputs)
    assert inputs["drain_seconds"] == pytest.approx(600.0 / 3.0)
    assert reason.after == CAPACITY.replicas(3.0 / 0.95 + 3.0)


def test_a_crowd_is_seen_in_the_newest_seconds_as_far_as_chance_did_not_make_it() -> None:
    # Twenty seconds of 40 requests/s after 40 s of 8: the minute says 18.7, and 600 requests, less twice their root, 36.7.
    minute = [seen(NOW - 10 * i, rate=40.0 if i < 2 else 8.0) for i in range(5, -1, -1)]
    reason = Work().recommend(facts(*minute))
    assert reason is not None
    inputs = dict(reason.inputs)
    assert inputs["work"] == pytest.approx(20.0 * (1 - 2 / 600**0.5))
    assert (inputs["window_seconds"], inputs["deviations"]) == (15.0, 2.0)
    assert reason.after == CAPACITY.replicas(inputs["work"] / 0.95)  # type: ignore[operator]
    # Of a calm minute, and of few requests, the mean says more.
    for rates in ([8.0] * 6, [0.1] * 4 + [0.3] * 2):
        calm = Work().recommend(
            facts(*[seen(NOW - 10 * i, rate=r) for i, r in zip(range(5, -1, -1), rates, strict=True)])
        )
        assert calm is not None
        assert dict(calm.inputs)["window_seconds"] == 60.0
        assert "deviations" not in dict(calm.inputs)


@given(st.lists(st.floats(0, 50), min_size=6, max_size=6))
def test_news_never_lowers_what_the_mean_asks(rates: list[float]) -> None:
    here = facts(*[seen(NOW - 10 * i, rate=r) for i, r in zip(range(5, -1, -1), rates, strict=True)])
    reason = Work().recommend(here)
    assert reason is not None
    assert dict(reason.inputs)["work"] >= here.work(60)  # type: ignore[operator]
    assert dict(reason.inputs)["work"] <= max(here.work(60), here.work(15))  # type: ignore[type-var, operator]


@given(st.floats(0, 1e4), st.floats(0, 1e3), st.floats(0, 1e4), st.floats(0, 1e3))
def test_more_work_or_queue_is_never_less_to_carry(queued: float, work: float, more: float, harder: float) -> None:
    def carried(q: float, w: float) -> float:
        return w + q / drain_seconds(q, w, 30.0)

    assert carried(queued + more, work + harder) >= carried(queued, work) - 1e-9


def test_a_wake_goes_by_the_newest_observation() -> None:
    night = [seen(NOW - 10 * i, desired=0, ready=0, rate=0.0, replicas_reporting=0) for i in range(6, 0, -1)]
    first = seen(NOW, desired=0, ready=0, rate=6.0, replicas_reporting=0)
    reason = Work().recommend(facts(*night, first))
    assert reason is not None
    assert reason.rule == "wake"
    assert dict(reason.inputs)["work"] == pytest.approx(3.0)
    assert reason.after == 5  # 3 / 0.95 Erlangs; five carry 0.690 each
    awake = Work().recommend(facts(*night, replace(first, replicas=Replicas(desired=1, ready=1))))
    assert awake is not None
    assert awake.after < reason.after


def test_saturation() -> None:
    policy = Saturation(settings=SaturationSettings(kv_cache_fraction=0.8, waiting_requests_per_replica=5.0))
    assert number(policy, facts(seen(kv_cache_fraction=0.9))) == 5
    assert number(policy, facts(seen(kv_cache_fraction=0.1, waiting=31.0))) == 7
    assert number(policy, facts(seen(kv_cache_fraction=0.1))) == 1
    assert number(policy, facts(seen(ready=0, kv_cache_fraction=0.9))) is None
    assert number(policy, facts(replace(seen(), load=None))) is None


def test_cron_policy_is_a_floor_while_active() -> None:
    office = ScheduleEntry(start="0 8 * * *", end="0 18 * * *", min_replicas=6)
    lunch = ScheduleEntry(start="0 12 * * *", end="0 13 * * *", min_replicas=9)
    policy = Cron(settings=CronSettings(schedule=(office, lunch)))
    floors = {hour: number(policy, facts(seen(NOW + 3600 * hour))) for hour in (7, 8, 12, 13, 18)}
    assert floors == {7: None, 8: 6, 12: 9, 13: 6, 18: None}


def test_ahead_takes_its_quantile_of_the_first_window() -> None:
    forecast = Forecast(
        at_seconds=NOW,
        levels=(0.5, 0.95),
        windows=((60, 120), (0, 300)),
        values=((2.0, 4.0), (3.0, 9.0)),
        expert="last",
    )
    policy = Ahead(settings=PredictiveSettings(quantile=0.95))
    reason = policy.recommend(facts(forecast=forecast))
    assert reason is not None
    assert reason.after == CAPACITY.replicas(4.0)
    assert dict(reason.inputs)["expert"] == "last"
    assert number(Ahead(settings=PredictiveSettings(quantile=0.99)), facts(forecast=forecast)) is None
    # The chance of a single request keeps no replica; a tenth of a replica's work does.
    one = CAPACITY.feasible(1)
    for value, wanted in ((0.0, 0), (0.09 * one, 0), (0.11 * one, 1)):
        assert number(policy, facts(forecast=replace(forecast, values=((0.0, value), (0.0, value))))) == wanted
    assert number(policy, facts()) is None
    assert number(replace(policy, trusted_only=True), facts(forecast=forecast)) is None


def test_in_flight_never_drops_what_runs() -> None:
    assert number(InFlight(), facts(seen(kv_cache_fraction=0.5))) == 3  # 4 * 0.5 / 0.9
    assert number(InFlight(), facts(seen(kv_cache_fraction=0.0))) == 1
    assert number(InFlight(), facts(seen(running_requests=0.0, kv_cache_fraction=0.0))) is None
    assert number(InFlight(), facts(replace(seen(), load=None))) is None


@pytest.mark.parametrize(
    ("running", "reporting", "wanted"),
    [(200.0, 4, 1), (600.0, 4, 3), (600.0, 2, 4), (4000.0, 4, 4), (None, 4, 1)],
)
def test_those_who_survive_keep_the_pace_of_what_runs(running: float | None, reporting: int, wanted: int) -> None:
    # An answer at 50 ms a token takes 20 tokens/s of 0.25 ms each, 5 mErl: 200 of them fill one replica.
    one = Capacity(
        seconds_per_request=0.0, seconds_per_prompt_token=0.0, seconds_per_output_token=0.00025,
        feasible_load=((1, 1.0),), startup_seconds=((0.9, 60.0),), mean_output_tokens=200.0,
    )  # fmt: skip
    here = seen(running_requests=running, waiting_requests=1.0, kv_cache_fraction=0.1, replicas_reporting=reporting)
    policy = InFlight(itl_seconds=0.05)
    assert number(policy, replace(facts(here), capacity=one)) == wanted
    assert number(InFlight(), replace(facts(here), capacity=one)) == 1


def test_in_flight_gives_nothing_up_until_enough_of_the_demand_is_known_again() -> None:
    """After a gap it is the only one with an opinion; where there never was demand, it may speak alone."""
    gap = tuple(replace(seen(NOW - 10 * i), demand=None) for i in range(5, 0, -1))
    state = State(mean_prompt_tokens=1000.0, seen=("demand", "load"))
    few = seen(kv_cache_fraction=0.1)
    assert number(InFlight(), facts(*gap, few, state=state)) == 4
    assert number(InFlight(), facts(*gap, few, state=replace(state, seen=("load",)))) == 1
    assert number(InFlight(), facts(few, state=state)) == 1


def test_settings_choose_their_policy() -> None:
    assert isinstance(policy_of(TargetTrackingSettings(signal="waiting_requests", target=5.0)), TargetTracking)
    assert isinstance(policy_of(WorkSettings()), Work)
    assert isinstance(policy_of(PredictiveSettings()), Ahead)


@pytest.mark.parametrize("load", [0.0, 0.3, 0.5, 0.51, 1.3, 2.0, 7.7, 51.0, 51.3, 400.0])
def test_replicas_are_as_few_as_carry_the_load(load: float) -> None:
    n = CAPACITY.replicas(load)
    assert n * CAPACITY.feasible(n) >= load * (1 - 1e-9)
    assert n == 0 or (n - 1) * CAPACITY.feasible(n - 1) < load
    assert (n == 0) == (load == 0.0)
