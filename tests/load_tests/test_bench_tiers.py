"""Standing by over recorded idle times: worked costs, and what the tiers buy."""

from __future__ import annotations

import pytest

from load_tests.bench_tiers import (
    LOCAL,
    NIGHTS,
    SLEEP,
    STARTUP_SECONDS,
    gaps_of,
    keep_alive,
    ours_of,
    stand_by,
)


def test_a_gap_is_paid_state_by_state() -> None:
    assert keep_alive(300.0)(100.0) == (100.0, 0.0)
    assert keep_alive(300.0)(1000.0) == (300.0 + STARTUP_SECONDS, STARTUP_SECONDS)
    # Asleep after (4 + 50 * 2) / 0.95 = 109 s, seen at 110; woken in 4 s.
    cost, wait = ours_of({"tiers": [SLEEP]})(1000.0)
    assert wait == 4.0
    assert cost == pytest.approx(110.0 + 0.05 * 890.0 + 4.0)
    cost, wait = ours_of({"tiers": []})(1000.0)
    assert (cost, wait) == (1000.0, 0.0)  # (120 + 50 * 118) s without a tier


def test_nights_are_slept_through() -> None:
    for name in NIGHTS:
        gaps = gaps_of(name)
        ours = stand_by(gaps, ours_of({"tiers": [SLEEP]}))
        assert ours.wait(0.95) <= 5.0
        assert ours.cost_fraction <= 0.1
        dear = stand_by(gaps, ours_of({"tiers": [{**SLEEP, "cost_fraction": 1.0}]}))
        assert dear.cost_fraction > ours.cost_fraction


def test_gpus_alone_go_off_sooner() -> None:
    gaps = gaps_of("rate_servegen_msmall_c13")
    both = stand_by(gaps, ours_of({"tiers": [SLEEP, LOCAL]}))
    alone = stand_by(gaps, ours_of({"tiers": [SLEEP, LOCAL], "late_cost": 0.0}))
    assert alone.cost_fraction < both.cost_fraction
    assert alone.wait(0.95) > both.wait(0.95)
