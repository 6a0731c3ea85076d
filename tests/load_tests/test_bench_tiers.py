"""Standing by over recorded idle times: worked costs, and what the tiers buy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from load_tests.bench_tiers import (
    NIGHTS,
    SETTINGS,
    SLEEP,
    STARTUP_SECONDS,
    Floats,
    arrivals_of,
    asleep,
    foreseen,
    gaps_of,
    keep_alive,
    lived,
    pool_of,
)


def lonely(gap: float) -> Floats:
    """Requests every second for a minute and a half, an idle time, and as many again."""
    first = np.arange(0.5, 91.0)
    return np.concatenate([first, first[-1] + gap + np.arange(90.0)])


def test_keeping_alive_is_paid_until_it_ends_and_then_waited_for() -> None:
    assert lived(lonely(100.0), keep_alive(300.0)).cost_fraction == pytest.approx(1.0)
    late = lived(lonely(1000.0), keep_alive(300.0))
    # The last request, at 90.5 s, is seen at 100 s; off at 400 s; the next one, at 1090.5 s, is seen at 1091 s.
    assert late.waits.tolist() == [pytest.approx(0.5 + STARTUP_SECONDS)]
    assert late.cost_fraction == pytest.approx((309.5 + STARTUP_SECONDS) / 1000.0)
    always = lived(lonely(1000.0), keep_alive(math.inf))
    assert (always.cost_fraction, always.wait(1.0)) == (pytest.approx(1.0), 0.0)


def test_a_gap_is_paid_state_by_state() -> None:
    # Nothing came between 100 s and 110 s: asleep then, woken within a second in four.
    ours = lived(lonely(1000.0), pool_of(SETTINGS["sleep_l1"]))
    assert ours.waits.tolist() == [pytest.approx(4.5)]
    assert ours.cost_fraction == pytest.approx((19.5 + 0.05 * (1000.0 - 19.5 + 0.5) + 4.0) / 1000.0)
    # Where every second beyond 2 s has its price, after (4 + 50 * 2) / 0.95 = 109 s without requests: at 210 s.
    strict = lived(lonely(1000.0), pool_of({"tiers": [SLEEP], "return_seconds": 0.0}))
    assert strict.cost_fraction == pytest.approx((119.5 + 0.05 * (1000.0 - 119.5 + 0.5) + 4.0) / 1000.0)


def test_wakes_that_reach_into_the_next_idle_time_are_paid_once() -> None:
    arrivals = np.arange(1.0, 30.0) * 100.0
    one = lived(arrivals, keep_alive(0.0))
    assert one.cost_fraction <= 1.0 + STARTUP_SECONDS / 2800.0


def test_the_bounds_are_bounds() -> None:
    gaps = [30.0, 200.0, 5000.0]
    assert asleep(gaps, 10.0) == pytest.approx((30 + 0.05 * (5230 - 30)) / 5230)
    assert asleep(gaps, 0.0) < asleep(gaps, 2.0 * 10.0)
    assert foreseen(gaps) == pytest.approx((4 + 0.05 * 26 + 4 + 0.05 * 196 + 120) / 5230)


@pytest.mark.slow
def test_nights_are_slept_through() -> None:
    for name in NIGHTS:
        arrivals = arrivals_of(name)
        ours = lived(arrivals, pool_of(SETTINGS["sleep_l1"]))
        assert ours.wait(0.95) <= 5.0
        assert asleep(gaps_of(arrivals), 10.0) <= ours.cost_fraction <= 0.1
