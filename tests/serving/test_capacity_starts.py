"""How long starts take, learned from counts of replicas."""

from __future__ import annotations

import math

import pytest

from autoscaler.types import Observation, Replicas
from load_tests.draws import key, normals
from serving.capacity_starts import Starts, observed, quantiles, student
from serving.startup import QUANTILES, LogNormal

PRIOR = LogNormal(median_seconds=300.0, sigma=0.35)
TOLD = tuple((q, PRIOR.quantile(q)) for q in QUANTILES)
T0 = 1_700_000_000


def seen(replicas: list[Replicas], step: int = 10, starts: Starts | None = None, at: int = T0) -> Starts:
    starts = starts or Starts()
    for i, r in enumerate(replicas):
        now = Observation(pool="chat", at_seconds=at + i * step, window_seconds=step, replicas=r)
        starts = observed(starts, PRIOR, now)
    return starts


def one(seconds: float, starts: Starts | None = None, at: int = T0) -> Starts:
    """A start that takes so long, seen every 10 s, and the way back down."""
    wait = max(1, round(seconds / 10))
    rows = [Replicas(desired=1, ready=1)]
    rows += [Replicas(desired=2, ready=1, starting=1)] * wait
    rows += [Replicas(desired=2, ready=2), Replicas(desired=1, ready=1)]
    return seen(rows, starts=starts, at=at)


def at_quantile(starts: Starts, q: float) -> float:
    return dict(quantiles(starts, TOLD))[q]


def test_a_start_is_timed_from_order_to_join():
    starts = one(200.0)
    assert starts.seen == 1
    assert math.exp(starts.total) == pytest.approx(200.0, abs=10.0)


def test_starts_are_matched_in_turn():
    rows = [Replicas(desired=1, ready=1)]
    rows += [Replicas(desired=2, ready=1, starting=1)] * 5 + [Replicas(desired=3, ready=1, starting=2)] * 5
    rows += [Replicas(desired=3, ready=2, starting=1)] * 5 + [Replicas(desired=3, ready=3)]
    starts = seen(rows)
    assert starts.seen == 2
    assert starts.orders == ()
    assert math.exp(starts.total / 2) == pytest.approx(100.0, rel=0.1)


def test_what_was_given_up_is_no_start():
    rows = [Replicas(desired=1, ready=1)] + [Replicas(desired=3, ready=1, starting=2)] * 5
    rows += [Replicas(desired=2, ready=1, starting=1)] * 5 + [Replicas(desired=2, ready=2)]
    starts = seen(rows)
    assert starts.seen == 1
    assert math.exp(starts.total) == pytest.approx(100.0, rel=0.1)


def test_starts_that_nobody_saw_begin_are_not_timed():
    rows = [Replicas(desired=3, ready=1, starting=2)] * 4 + [Replicas(desired=3, ready=3)]
    assert seen(rows).seen == 0


def test_a_platform_that_tells_no_starts_is_read_from_what_was_asked_for():
    rows = [Replicas(desired=1, ready=1)] + [Replicas(desired=2, ready=1)] * 12 + [Replicas(desired=2, ready=2)]
    starts = seen(rows)
    assert starts.seen == 1
    assert math.exp(starts.total) == pytest.approx(120.0, rel=0.1)


@pytest.mark.parametrize(("count", "allowed"), [(10, 0.25), (30, 0.12)])
def test_the_ninetieth_of_a_hundred_is_found(count, allowed):
    """Starts of 120 s (sigma 0.35) where 300 s were believed: median error over 15 pools."""
    errors = []
    for seed in range(15):
        starts = Starts()
        for i, z in enumerate(normals(key(seed, "starts"), count)):
            starts = one(120.0 * math.exp(0.35 * z), starts, at=T0 + i * 5000)
        true = LogNormal(median_seconds=120.0, sigma=0.35).quantile(0.9)
        errors.append(abs(math.log(at_quantile(starts, 0.9) / true)))
    prior_off = math.log(PRIOR.quantile(0.9) / true)
    assert prior_off > 0.8
    assert sorted(errors)[7] <= allowed


@pytest.mark.parametrize(("count", "allowed"), [(10, 0.12), (30, 0.08)])
def test_with_a_prior_of_the_right_place_it_is_near(count, allowed):
    errors = []
    for seed in range(15):
        starts = Starts()
        for i, z in enumerate(normals(key(seed, "near"), count)):
            starts = one(300.0 * math.exp(0.35 * z), starts, at=T0 + i * 5000)
        errors.append(abs(math.log(at_quantile(starts, 0.9) / PRIOR.quantile(0.9))))
    assert sorted(errors)[7] <= allowed + 0.05  # told again only when a tenth off


def test_starts_three_times_slower_are_followed_after_the_third():
    starts = Starts()
    for i in range(10):
        starts = one(300.0 * (0.8, 1.0, 1.25)[i % 3], starts, at=T0 + i * 5000)
    old = at_quantile(starts, 0.9)
    for i in range(3):
        starts = one(900.0, starts, at=T0 + 60_000 + i * 5000)
    assert at_quantile(starts, 0.9) >= 2.5 * old


def test_a_start_that_hangs_counts_before_it_ends():
    starts = Starts()
    for i in range(10):
        starts = one(100.0, starts, at=T0 + i * 5000)
    told = at_quantile(starts, 0.9)
    rows = [Replicas(desired=1, ready=1)] + [Replicas(desired=2, ready=1, starting=1)] * 90
    starts = seen(rows, starts=starts, at=T0 + 60_000)
    assert at_quantile(starts, 0.9) > 1.2 * told


def test_an_hour_without_quota_is_not_how_long_starts_take():
    starts = Starts()
    for i in range(10):
        starts = one(100.0, starts, at=T0 + i * 5000)
    told = at_quantile(starts, 0.9)
    rows = [Replicas(desired=1, ready=1)]
    rows += [
        Replicas(desired=2 + i // 60, ready=1, starting=1 + i // 60) for i in range(360)
    ]  # one more each ten minutes
    rows += [Replicas(desired=7, ready=4, starting=3)] + [Replicas(desired=7, ready=5, starting=2)] * 3
    rows += [Replicas(desired=7, ready=7)]
    starts = seen(rows, starts=starts, at=T0 + 60_000)
    assert starts.seen == 10
    assert starts.orders == ()
    assert at_quantile(starts, 0.9) == pytest.approx(told, rel=0.15)


def test_without_starts_the_prior_speaks():
    assert quantiles(seen([Replicas(desired=1, ready=1)] * 5), TOLD) == TOLD


def test_students_quantiles_are_those_of_tables():
    assert student(0.95, 5.0) == pytest.approx(2.015, abs=0.001)
    assert student(0.9, 3.0) == pytest.approx(1.638, abs=0.002)
    assert student(0.5, 4.0) == 0.0
