"""The first forecaster: what it says, when it is silent, and how often it is right."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.errors import ForecastError
from autoscaler.record import decode, encode
from forecast.experts import EXPERTS
from forecast.learned import SeasonalHistory
from forecast.seasonal import Seasonal
from forecast.trackers import LEVELS, PRIOR_WEIGHT, Tracker, weights
from forecast.tracks import SHIFT

T0 = 1_700_000_000 // 86_400 * 86_400
WINDOWS = ((180, 240), (0, 300))


def told(forecaster, samples, interval, history=None, begin=T0):
    history = forecaster.start()[0] if history is None else history
    for i, work in enumerate(samples):
        history = forecaster.observe(history, begin + (i + 1) * interval, interval, work)
    return history


def asked(forecaster, history, at=None, windows=WINDOWS):
    at = history.past.at_seconds if at is None else at
    return forecaster.forecast(history, forecaster.start()[1], at, windows)


def test_it_is_silent_until_ten_minutes_were_measured():
    f = Seasonal(WINDOWS, 10)
    assert asked(f, f.start()[0], T0) is None
    assert asked(f, told(f, [5.0] * 59, 10)) is None
    assert asked(f, told(f, [None] * 600, 10)) is None
    assert asked(f, told(f, [5.0] * 60, 10)) is not None


def test_cold_history_is_wide_and_a_steady_one_becomes_narrow():
    f = Seasonal(WINDOWS, 10)
    cold, steady = asked(f, told(f, [5.0] * 60, 10)), asked(f, told(f, [5.0] * 4320, 10))
    assert cold.value(0, 0.95) > 8.0
    assert cold.value(0, 0.5) == pytest.approx(5.0, rel=0.05)
    assert 5.0 <= steady.value(0, 0.95) < 5.5


def test_it_tells_how_many_matured_and_how_often_the_first_window_held():
    f = Seasonal(WINDOWS, 10)
    fresh = asked(f, told(f, [5.0] * 70, 10))
    assert (fresh.matured, fresh.coverage) == (0, None)
    later = asked(f, told(f, [5.0] * 200, 10))
    assert later.matured == (2000 - 600 - 240) // 20 + 1
    assert later.coverage == 1.0
    jumped = asked(f, told(f, [5.0] * 200 + [50.0] * 30, 10))
    assert jumped.coverage < 1.0


def test_a_window_is_scored_by_its_outcome_and_no_earlier():
    f = Seasonal(((60, 120),), 10)
    history = told(f, [5.0] * 60, 10)
    assert history.tracks[0].pending[0].until_seconds == T0 + 600 + 120
    assert told(f, [5.0] * 71, 10).tracks[0].matured == 0
    assert told(f, [5.0] * 72, 10).tracks[0].matured == 1
    surprised = told(f, [5.0] * 66 + [20.0] * 6, 10).tracks[0].experts[0]
    shift = SHIFT * 5.0
    assert surprised.mean == pytest.approx(math.log((20 + shift) / (5 + shift)) / (1 + PRIOR_WEIGHT), rel=1e-6)


def test_masked_windows_are_not_scored():
    f = Seasonal(WINDOWS, 10)
    with_gap = told(f, [5.0] * 60 + [None] * 40, 10)
    assert with_gap.tracks[0].matured == 0
    assert not with_gap.tracks[0].pending


def test_old_news_widens_and_after_an_hour_it_is_silent():
    f = Seasonal(WINDOWS, 10)
    rng = random.Random(5)
    history = told(f, [5.0 * math.exp(rng.gauss(0, 0.2)) for _ in range(720)], 10)
    at = history.past.at_seconds
    fresh, old = asked(f, history, at), asked(f, history, at + 1800)
    assert old.value(0, 0.99) > fresh.value(0, 0.99)
    assert old.value(0, 0.5) == pytest.approx(fresh.value(0, 0.5), rel=0.05)
    assert asked(f, history, at + 3601) is None


def test_another_day_announces_what_the_present_cannot_know():
    """Every day at noon the load goes from 4 to 20; at 11:50 the fourth day's forecast for noon must say so."""
    f = Seasonal(((600, 660), (0, 600)), 60)
    day = [4.0] * 720 + [20.0] * 240 + [4.0] * 480
    history = told(f, day * 3 + day[:715], 60)
    forecast = asked(f, history, windows=((600, 660),))
    assert forecast.value(0, 0.9) > 15.0
    assert forecast.value(0, 0.99) < 40.0


@pytest.mark.parametrize("windows", [((180, 240), (0, 300)), ((60, 120), (0, 600))])
def test_its_quantiles_hold_as_often_as_they_say(windows):
    """A noisy level that drifts and bursts: after the first half day, one miss in twenty at 0.95."""
    rng = random.Random(7)
    f, level, burst, samples = Seasonal(windows, 30), 0.0, 0, []
    for i in range(2 * 2880):
        level = 0.995 * level + rng.gauss(0, 0.03)
        burst = max(0, burst - 1) or (20 if rng.random() < 0.002 else 0)
        day = 0.5 * math.sin(2 * math.pi * i / 2880)
        samples.append(10 * math.exp(level + day + rng.gauss(0, 0.1) + (0.7 if burst else 0.0)))
    history, said = f.start()[0], []
    for i, work in enumerate(samples):
        history = f.observe(history, T0 + (i + 1) * 30, 30, work)
        if i > 1440:
            said.append((i, asked(f, history, windows=windows)))
    for number, (start, end) in enumerate(windows):
        for level_asked, slack in ((0.9, 0.02), (0.95, 0.015), (0.99, 0.007)):
            held = []
            for i, forecast in said:
                ahead = range(i + start // 30 + 1, i + end // 30 + 1)
                if ahead[-1] < len(samples):
                    outcome = max((samples[j] + samples[j - 1]) / 2 for j in ahead)
                    held.append(outcome <= forecast.value(number, level_asked))
            assert sum(held) / len(held) == pytest.approx(level_asked, abs=slack)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from([10, 10, 10, 30, 170]), st.none() | st.floats(0, 1e6)), min_size=70, max_size=250
    )
)
def test_rows_ascend_and_are_finite_whatever_comes(samples):
    f, at = Seasonal(WINDOWS, 10), T0
    history = f.start()[0]
    for gap, work in samples:
        at += gap
        history = f.observe(history, at, 10, work)
        forecast = asked(f, history, at)
        for row in forecast.values if forecast else ():
            assert all(0 <= a <= b < math.inf for a, b in pairwise(row))


def test_a_forecast_is_a_view_that_leaves_no_trace():
    f = Seasonal(WINDOWS, 10)
    rng = random.Random(3)
    samples = [rng.uniform(1, 9) for _ in range(200)]
    plain, watched = told(f, samples, 10), f.start()[0]
    for i, work in enumerate(samples):
        watched = f.observe(watched, T0 + (i + 1) * 10, 10, work)
        asked(f, watched)
        asked(f, watched, windows=((77, 140), (0, 900)))
    assert watched == plain
    assert asked(f, watched) == asked(f, plain)
    assert f.observe(plain, plain.past.at_seconds, 10, 1.0) is plain


def test_a_new_window_begins_with_what_its_nearest_knew():
    old, new = Seasonal(((180, 240), (0, 300)), 10), Seasonal(((200, 260), (0, 320)), 10)
    history = told(old, [5.0] * 300, 10)
    moved = told(new, [5.0], 10, history, history.past.at_seconds)
    assert [(t.start_seconds, t.end_seconds) for t in moved.tracks] == [(200, 260), (0, 320)]
    assert moved.tracks[0].matured >= history.tracks[0].matured > 50


def test_no_cap_below_a_day_and_then_half_above_the_largest():
    f = Seasonal(WINDOWS, 60)
    assert asked(f, told(f, [5.0] * 20, 60)).value(0, 0.99) > 7.5
    rng = random.Random(1)
    jumpy = asked(f, told(f, [rng.choice([0.02, 10.0]) for _ in range(1500)], 60))
    assert jumpy.value(0, 0.99) <= 15.0


def test_an_expert_that_was_right_gets_the_vote_and_a_sleeper_none():
    good, bad = Tracker(100, loss=0.01), Tracker(100, loss=0.05)
    new = Tracker(3, loss=0.0)
    shares = weights((good, bad, new, good), (True, True, True, False))
    assert shares[0] > 0.95
    assert shares[2] == shares[3] == 0.0
    assert sum(shares) == pytest.approx(1.0)
    assert weights((new, new), (True, True)) == (0.5, 0.5)


def test_the_expert_named_is_one_of_the_table():
    f = Seasonal(WINDOWS, 10)
    forecast = asked(f, told(f, [5.0] * 200, 10))
    assert forecast.expert in dict(EXPERTS)
    assert forecast.levels == LEVELS


@pytest.mark.parametrize("windows", [(), ((60, 60),), ((-1, 5),)])
def test_windows_must_lie_ahead(windows):
    with pytest.raises(ForecastError, match="windows must"):
        Seasonal(windows, 10)


def test_its_history_survives_the_log():
    f = Seasonal(WINDOWS, 10)
    rng = random.Random(2)
    history = told(f, [rng.choice([None, rng.uniform(0, 9)]) for _ in range(50)] + [rng.uniform(1, 9)] * 150, 10)
    text = encode(history)
    again = decode(SeasonalHistory, json.loads(text))
    assert again == history
    assert encode(again) == text
    at = history.past.at_seconds + 10
    assert asked(f, f.observe(again, at, 10, 3.0)) == asked(f, f.observe(history, at, 10, 3.0))


def test_two_weeks_of_history_print_within_half_a_megabyte():
    f, rng = Seasonal(WINDOWS, 60), random.Random(4)
    history = told(f, [rng.uniform(1, 9) for _ in range(14 * 1440)], 60)
    assert len(encode(history)) < 500_000
