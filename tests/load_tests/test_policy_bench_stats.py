"""Cost at equal attainment: by hand on small frontiers, against a plain loop on random ones, and the bootstrap's coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests import draws
from load_tests.policy_bench_stats import Points, cost_at, day_weights, holm, on_frontier, ratio


def points(share: list[float], cost: list[float], days: int = 1, arrived: float = 1e6) -> Points:
    """One seed; every day alike."""
    k = len(share)
    return Points(
        cost=np.repeat(np.array(cost), days).reshape(k, 1, days),
        violated=np.repeat(np.array(share) * arrived, days).reshape(k, 1, days),
        arrived=np.full((1, days), arrived),
    )


def one(share: list[float], cost: list[float], wanted: float) -> float:
    return float(cost_at(np.array([share]), np.array([cost]), np.array([wanted]))[0])


def test_between_two_points_it_is_linear_over_the_logarithm() -> None:
    assert one([0.1, 0.001], [10.0, 30.0], 0.01) == pytest.approx(20.0)
    assert one([0.1, 0.001], [10.0, 30.0], 0.001) == pytest.approx(30.0)


def test_it_is_never_extrapolated() -> None:
    assert one([0.1, 0.01], [10.0, 20.0], 0.001) == math.inf
    assert one([0.1, 0.01], [10.0, 20.0], 0.5) == -math.inf


def test_beaten_points_are_left_out_and_no_hull_is_taken() -> None:
    share, cost = [0.1, 0.03, 0.02, 0.001], [10.0, 50.0, 26.0, 30.0]
    assert on_frontier(np.array(share), np.array(cost)).tolist() == [True, False, True, True]
    # A hull would join 0.1 and 0.001 and say less than 26 at 0.02.
    assert one(share, cost, 0.02) == pytest.approx(26.0)


def test_a_point_that_attains_more_for_less_moves_the_frontier() -> None:
    assert one([0.1, 0.01, 0.005], [10.0, 20.0, 15.0], 0.01) == pytest.approx(
        15.0 + (10.0 - 15.0) * math.log10(0.01 / 0.005) / math.log10(0.1 / 0.005)
    )


def slow(share: list[float], cost: list[float], wanted: float) -> float:
    kept = sorted(
        (s, c)
        for i, (s, c) in enumerate(zip(share, cost, strict=True))
        if not any(
            (s2 <= s and c2 < c) or (s2 < s and c2 <= c) or (s2 == s and c2 == c and j < i)
            for j, (s2, c2) in enumerate(zip(share, cost, strict=True))
        )
    )
    if wanted < kept[0][0]:
        return math.inf
    if wanted > kept[-1][0]:
        return -math.inf
    for (s1, c1), (s2, c2) in zip(kept, kept[1:], strict=False):
        if s1 <= wanted <= s2:
            return c1 + (c2 - c1) * (math.log10(wanted) - math.log10(s1)) / (math.log10(s2) - math.log10(s1))
    return kept[0][1]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=12), st.integers(1, 40))
def test_frontier_against_a_plain_loop(pairs: list[tuple[int, int]], wanted: int) -> None:
    share, cost = [s / 100 for s, _ in pairs], [float(c) for _, c in pairs]
    assert one(share, cost, wanted / 100) == pytest.approx(slow(share, cost, wanted / 100), rel=1e-9)


def test_no_violation_counts_as_half_a_request() -> None:
    share, _ = points([0.0], [1.0], arrived=1000.0).totals()
    assert share[0, 0] == 0.0005


def test_ratio_is_read_at_the_target_when_it_is_met_and_at_what_was_realised_else() -> None:
    theirs = points([0.1, 0.001], [10.0, 30.0])
    near = ratio(points([0.0105], [20.0]), theirs, target_share=0.01, key=1)
    assert near.value == pytest.approx(1.0)
    far = ratio(points([0.1**1.5], [20.0]), theirs, target_share=0.01, key=1)
    assert far.value == pytest.approx(20.0 / 15.0)


def test_not_reached_says_on_which_side() -> None:
    theirs = points([0.1, 0.05], [10.0, 30.0])
    assert ratio(points([0.01], [20.0]), theirs, target_share=0.01, key=1).missed == "above"
    assert ratio(points([0.2], [20.0]), theirs, target_share=0.2, key=1).missed == "below"


def test_too_few_days_give_a_range_and_no_p() -> None:
    theirs = points([0.1, 0.001], [10.0, 30.0], days=3)
    theirs.cost[:, 0, 2] *= 2.0
    found = ratio(points([0.01], [20.0], days=3), theirs, target_share=0.01, key=1)
    assert found.interval == "range"
    assert found.p is None
    assert found.low is not None
    assert found.high is not None
    assert found.low < (found.value or 0) < found.high
    assert found.high == pytest.approx(1.0)


def noisy(seed: int, days: int, factor: float) -> tuple[Points, Points]:
    """Ours costs `factor` of the peer's at equal attainment, with independent noise of 10 % a day."""
    noise = 1 + 0.1 * draws.normals(draws.key(seed, "noise"), 2 * days).reshape(2, 1, days)
    theirs = points([0.1, 0.01, 0.001], [100.0, 200.0, 300.0], days=days)
    theirs = Points(cost=theirs.cost * noise[0], violated=theirs.violated, arrived=theirs.arrived)
    ours = points([0.01], [200.0 * factor], days=days)
    return Points(cost=ours.cost * noise[1], violated=ours.violated, arrived=ours.arrived), theirs


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(120):
        found = ratio(*noisy(seed, 14, 0.9), target_share=0.01, key=draws.key(seed, "boot"), count=400)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.9 <= found.high
    assert 0.85 <= covered / 120 <= 0.99


def test_days_are_paired() -> None:
    """A noise that both share cancels: the interval is a point."""
    ours, theirs = points([0.01], [150.0], days=10), points([0.1, 0.001], [100.0, 300.0], days=10)
    scale = np.linspace(0.5, 2.0, 10)
    ours = Points(cost=ours.cost * scale, violated=ours.violated, arrived=ours.arrived)
    theirs = Points(cost=theirs.cost * scale, violated=theirs.violated, arrived=theirs.arrived)
    found = ratio(ours, theirs, target_share=0.01, key=3)
    assert found.low == pytest.approx(0.75)
    assert found.high == pytest.approx(0.75)
    assert found.p is not None
    assert found.p < 0.01


def test_resamples_that_are_not_reached_leave_no_interval() -> None:
    theirs = points([0.1, 0.01], [10.0, 30.0], days=8)
    theirs.violated[:, 0, 0] *= 3.0
    ours = points([0.014], [20.0], days=8)
    found = ratio(ours, theirs, target_share=0.014, key=3)
    assert found.value is not None
    assert found.reached_fraction < 0.975
    assert found.low is None
    assert found.p is None


def test_day_weights_draw_as_many_days_as_there_are() -> None:
    weights = day_weights(9, 5, 500)
    assert weights.shape == (500, 9)
    assert (weights.sum(axis=1) == 9).all()
    assert weights.mean() == pytest.approx(1.0)
    assert weights.var() == pytest.approx(8 / 9, rel=0.1)


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
