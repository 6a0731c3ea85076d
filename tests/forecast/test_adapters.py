"""What the other libraries' models see: means over ten minutes that end when they are asked, whatever the minute."""

from __future__ import annotations

import math

import pytest

from forecast.adapters import BIN, SHARP, _past, adapter
from forecast.history import History

T0 = 1_760_400_000


def ramp(minutes, gap=()):
    history = History.empty(60)
    for i in range(minutes):
        history = history.observed(T0 + 60 * (i + 1), 60, None if i in gap else 100.0 + i)
    return history


@pytest.mark.parametrize("minutes", range(400, 411))
def test_bins_end_at_the_instant_asked(minutes):
    past = _past(ramp(minutes), T0 + 60 * minutes)
    found = [math.exp(v) for v in past.bins]
    true = [100.0 + minutes - 1 - 4.5 - 10 * k for k in range(len(found))][::-1]
    assert len(found) >= minutes // 10 - 1
    assert found[-SHARP:] == pytest.approx(true[-SHARP:], rel=1e-5)
    assert found == pytest.approx(true, abs=1.3)  # a cut five minutes is taken for even
    assert past.measured
    assert past.filled == 0


def test_a_bin_that_was_not_measured_is_filled_and_told():
    past = _past(ramp(300, gap=range(290, 300)), T0 + 60 * 300)
    assert not past.measured
    assert past.filled == 1
    assert past.bins[-1] == past.bins[-2]


def test_a_refit_within_ten_minutes_changes_nothing_and_a_late_one_catches_up():
    peer = adapter("naive", ((60, 120),))
    history, beliefs = ramp(180), peer.start()[1]
    early = peer.refit(history, beliefs)
    assert early.at_seconds == T0 + 60 * 180
    assert early.offsets[0].matured > 5
    later = history.observed(T0 + 60 * 185, 60, 300.0)
    assert peer.refit(later, early) == early
    much = ramp(300)
    assert peer.refit(much, early).at_seconds == T0 + 60 * 300
    assert peer.refit(much, early).offsets[0].matured > early.offsets[0].matured + 5
    assert peer.refit(much, early).issued[-1].at_seconds - early.at_seconds >= BIN
