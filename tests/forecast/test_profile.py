"""The profile of a day: learned as slots pass, apart from the level, asleep for two days, deaf to gaps and known events."""

from __future__ import annotations

import json
import math

import pytest

from autoscaler.record import decode, encode
from autoscaler.settings import EventSettings
from forecast.history import DAY, FIVE, History
from forecast.learned import SeasonalHistory
from forecast.profile import LEAST_DAYS, SLOTS, Profile
from forecast.seasonal import Seasonal

T0 = 1_700_000_000 // DAY * DAY
SHIFT = 5.0


def daily(seconds):
    return 10.0 * math.exp(math.sin(2 * math.pi * seconds / DAY))


def learned(wave, days, factor=lambda at: 1.0, step=FIVE):
    history, profile = History.empty(60), Profile()
    for i in range(int(days * DAY / step)):
        before = history
        history = history.observed(T0 + (i + 1) * step, step, wave(i * step))
        begun = before.at_seconds is not None
        closed = history.five_mean.stop - (before.five_mean.stop if begun else history.five_mean.first)
        profile = profile.after(history, closed, SHIFT, factor)
    return history, profile


def rise(history, profile, start, end):
    """The peak of a window over the level of the last five minutes."""
    at = history.at_seconds
    return profile.peak(history, at + start, at + end) / profile.now(history, at)[0]


def test_it_sleeps_for_two_days():
    history, profile = learned(daily, LEAST_DAYS - 0.1)
    assert profile.now(history, history.at_seconds) == (None, None)
    history, profile = learned(daily, LEAST_DAYS + 0.1)
    assert all(level > 0 for level in profile.now(history, history.at_seconds))


@pytest.mark.parametrize("hour", [0, 5, 11, 17])
def test_the_rise_is_that_of_the_days_before(hour):
    history, profile = learned(daily, 4 + hour / 24)
    now = hour * 3600
    level = sum(daily(now - s) * math.exp(-s / 300.0) for s in range(0, 3000, 10)) / sum(
        math.exp(-s / 300.0) for s in range(0, 3000, 10)
    )
    for start, end in ((600, 660), (3600, 3660), (0, 600)):
        true = max(daily(now + s) + SHIFT for s in range(start, end + 1, 10)) / (level + SHIFT)
        assert rise(history, profile, start, end) == pytest.approx(true, rel=0.03)


def test_a_level_that_changes_from_day_to_day_is_no_shape():
    """A day at twice the level teaches nothing but the shift's share of it."""
    for wave in (lambda s: 10.0, lambda s: 10.0 * 2.0 ** (s // DAY)):
        history, profile = learned(wave, 4.5)
        assert rise(history, profile, 600, 660) == pytest.approx(1.0, abs=0.12)


def test_gaps_leave_a_slot_as_it_was_and_days_without_any_sample_pass():
    _, whole = learned(daily, 3)
    history, gappy = learned(lambda s: daily(s) if s < 3 * DAY else None, 4.2)
    assert gappy.slots == whole.slots
    assert gappy.cells == int(4.2 * SLOTS)
    assert rise(history, gappy, 600, 660) > 1.0


def test_bulk_and_one_by_one_learn_the_same():
    history, one = learned(daily, 3)
    assert Profile().after(history, 3 * SLOTS, SHIFT, lambda at: 1.0).slots == pytest.approx(one.slots, rel=1e-6)


def test_an_event_is_no_habit():
    def launch(at):
        return 3.0 if 2 * DAY + 6 * 3600 <= at - T0 < 2 * DAY + 8 * 3600 else 1.0

    _, plain = learned(daily, 3)
    _, told = learned(lambda s: daily(s) * launch(T0 + s), 3, launch)
    assert told.slots == pytest.approx(plain.slots, abs=1e-5)


def test_the_forecaster_sees_a_climb_that_its_levels_cannot_know():
    """After three days with a step at noon, five minutes before noon the forecast for just after it has the step."""
    forecaster = Seasonal([(600, 660)], 60, [EventSettings(name="x", start="0 3 1 1 *", end="0 4 1 1 *", factor=2.0)])
    history, beliefs = forecaster.start()
    for i in range(4 * 1440 + 715):
        history = forecaster.observe(history, T0 + 60 * (i + 1), 60, 40.0 if i % 1440 >= 720 else 10.0 + i % 3)
    found = forecaster.forecast(history, beliefs, T0 + 60 * (4 * 1440 + 715), [(600, 660)])
    assert 25.0 < found.value(0, 0.5) < 55.0
    assert decode(SeasonalHistory, json.loads(encode(history))) == history
