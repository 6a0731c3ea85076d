"""Periods, events, kinds of moments and regime shifts: what the forecaster knows beside levels and other days."""

from __future__ import annotations

import json
import math
import random

import pytest

from autoscaler.embed import Pool
from autoscaler.errors import ConfigError
from autoscaler.log import StepLog, restore, verify
from autoscaler.record import decode, encode
from autoscaler.settings import EventSettings
from autoscaler.testing import observation
from forecast.events import Events
from forecast.history import DAY, History
from forecast.learned import SeasonalBeliefs
from forecast.moments import CALM, IDLE, RISING, Steps
from forecast.periods import periods_of
from forecast.seasonal import Seasonal
from forecast.shifts import HOLD_SECONDS, Shift

T0 = 1_700_000_000 // 86_400 * 86_400
FIVE = 300


def measured(wave, days, seed=1, noise=0.2):
    """A history of 5-min samples of `wave(seconds)`, None = gap, with lognormal noise."""
    rng, history = random.Random(seed), History.empty(60)
    for i in range(int(days * DAY / FIVE)):
        value = wave(i * FIVE)
        noisy = None if value is None else value * math.exp(rng.gauss(0, noise))
        history = history.observed(T0 + (i + 1) * FIVE, FIVE, noisy)
    return history


def daily(seconds):
    return 10.0 * math.exp(math.sin(2 * math.pi * seconds / DAY))


def periods(history):
    return [f.period_seconds for f in periods_of(history)]


def test_a_day_is_found_after_two_of_them_and_not_before():
    assert periods(measured(daily, 1.9)) == []
    assert periods(measured(daily, 3)) == [DAY]


def test_outliers_trend_and_missing_blocks_do_not_hide_it():
    rng = random.Random(2)
    spikes = {rng.randrange(7 * 288) for _ in range(40)}

    def hard(seconds):
        if seconds // 20_000 % 5 == 3:  # a block of 5.5 h in every 28 h
            return None
        return daily(seconds) * (1 + seconds / (7 * DAY)) * (50.0 if seconds // FIVE in spikes else 1.0)

    assert periods(measured(hard, 7))[:1] == [DAY]


def test_hours_and_weeks_are_found_and_noise_is_not():
    assert 3_600 * 6 in periods(measured(lambda s: 10 * math.exp(math.sin(2 * math.pi * s / (6 * 3600))), 4))
    weekend = measured(lambda s: daily(s) * (0.2 if s // DAY % 7 >= 5 else 1.0), 28)
    assert set(periods(weekend)) == {DAY, 7 * DAY}
    for seed in range(5):
        assert periods(measured(lambda s: 10.0, 14, seed, 0.5)) == []
    assert periods(measured(lambda s: 0.0, 5)) == []


def walk(seed):
    rng, level, out = random.Random(seed), 0.0, []
    for _ in range(14 * 288):
        level = 0.998 * level + rng.gauss(0, 0.05)
        out.append(10 * math.exp(level))
    return out


@pytest.mark.parametrize("seed", range(6))
def test_a_random_walk_has_no_day(seed):
    values = walk(seed)
    assert DAY not in periods(measured(lambda s: values[s // FIVE], 14, seed, 0.1))


def test_refit_is_pure_and_its_periods_reach_the_expert_that_uses_them():
    """A rush of 10 min in every six hours: half a day of cycles is enough, where a day would not be."""
    f, (history, beliefs) = Seasonal(((600, 660),), 60), Seasonal(((600, 660),), 60).start()
    rng = random.Random(3)
    for i in range(int(2.4 * 1440)):
        work = (30.0 if i % 360 in range(200, 240) else 5.0) * math.exp(rng.gauss(0, 0.1))
        history = f.observe(history, T0 + (i + 1) * 60, 60, work)
        if i % 720 == 719:
            beliefs = f.refit(history, beliefs)
            assert f.refit(history, beliefs) == beliefs
            history = f.adopt(history, beliefs)
    assert 6 * 3600 in beliefs.periods
    assert history.periods[0] == 6 * 3600
    assert decode(SeasonalBeliefs, json.loads(encode(beliefs))) == beliefs


def test_a_refit_of_a_pool_is_logged_and_replays_byte_for_byte(tmp_path):
    pool = Pool.from_config({"name": "p", "interval_seconds": 60})
    seen = [
        observation("p", T0 + 300 * i, requests_per_second=6 * 3600 / (1 + i % 72), window_seconds=300)
        for i in range(1, 1200)
    ]
    log = StepLog(tmp_path / "p", pool.autoscaler, pool.memory)
    pool.backfill(seen)
    log.backfill(seen, pool.memory)
    at = seen[-1].at_seconds
    for i in range(1, 7):
        if i == 3:
            beliefs = pool.autoscaler.refit(pool.memory)
            pool.memory = pool.autoscaler.adopt(pool.memory, beliefs)
            log.refit(beliefs, pool.memory)
        pool.step(observation("p", at + 60 * i, requests_per_second=300.0, window_seconds=60))
        log.append(pool.last_step, pool.memory)
    log.close()
    assert 6 * 3600 in pool.memory.beliefs.forecast.periods
    assert 6 * 3600 in pool.memory.history.periods
    assert verify(pool.autoscaler, tmp_path / "p") == 6
    assert restore(pool.autoscaler, tmp_path / "p") == pool.memory


def launch(factor=3.0, **other):
    fields = {"name": "launch", "start": "0 12 * * *", "end": "0 14 * * *", "factor": factor, **other}
    return EventSettings(**fields)


def test_events_are_on_between_their_start_and_end():
    events = Events([launch(), launch(2.0, start="2023-11-14T13:00:00+00:00", end="2023-11-14T15:00:00+00:00")])
    assert [events.factor(T0 + h * 3600) for h in (11, 12, 13, 14, 15)] == [1.0, 3.0, 6.0, 2.0, 1.0]
    assert events.largest(T0 + 11 * 3600, T0 + 11 * 3600 + 1800) == 1.0
    assert events.largest(T0 + 11 * 3600 + 1800, T0 + 12 * 3600) == 3.0
    assert events.factor(T0 + DAY + 13 * 3600) == 3.0
    assert Events().factor(T0) == 1.0


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"start": "noon"}, "start"),
        ({"time_zone": "Mars"}, "time_zone"),
        ({"start": "2027-01-01T00:00:00", "end": "2027-01-02T00:00:00"}, "start"),
        ({"start": "2027-01-02T00:00:00+00:00", "end": "2027-01-01T00:00:00+00:00"}, "end"),
    ],
)
def test_a_wrong_event_is_refused_with_its_field(wrong, field):
    with pytest.raises(ConfigError, match=field):
        launch(**wrong)


def test_a_launch_is_forecast_before_it_begins_and_forgotten_after_it():
    events = [launch(start="2023-11-16T12:00:00+00:00", end="2023-11-16T14:00:00+00:00")]
    plain, told = Seasonal(((600, 660),), 60), Seasonal(((600, 660),), 60, events)
    day = 2 * DAY
    at = T0 + day + 12 * 3600 - 300  # the window ends 6 min after noon
    rng = random.Random(4)
    histories = [plain.start()[0], told.start()[0]]
    for i in range((at - T0) // 60):
        work = 10.0 * math.exp(rng.gauss(0, 0.1))
        histories = [f.observe(h, T0 + (i + 1) * 60, 60, work) for f, h in zip((plain, told), histories, strict=True)]
    before = [
        f.forecast(h, None, at, ((600, 660),)).value(0, 0.95) for f, h in zip((plain, told), histories, strict=True)
    ]
    assert before[0] < 15 < 25 < before[1] < 60
    history = histories[1]
    for i in range(2 * 60 + 15):
        during = 10.0 * (3 if 5 <= i < 125 else 1) * math.exp(rng.gauss(0, 0.1))
        history = told.observe(history, at + (i + 1) * 60, 60, during)
        if i == 60:
            assert 25 < told.forecast(history, None, at + 3660, ((600, 660),)).value(0, 0.95) < 60
    assert told.forecast(history, None, history.past.at_seconds, ((600, 660),)).value(0, 0.5) < 15


def test_a_pool_takes_events_from_its_config():
    section = {"name": "launch", "start": "0 9 1 3 *", "end": "0 18 1 3 *", "factor": 3.0}
    pool = Pool.from_config({"name": "p", "events": [section]})
    assert pool.autoscaler.forecaster.events.settings[0].factor == 3.0
    with pytest.raises(ConfigError, match="factor"):
        Pool.from_config({"name": "p", "events": [{**section, "factor": -1}]})


def test_a_moment_is_rising_when_the_last_ten_minutes_rose_as_seldom():
    rng, history, steps = random.Random(5), History.empty(60), Steps()
    kinds = []
    for i in range(1440):
        work = 10 + rng.gauss(0, 0.5) + (8 if i >= 1400 else 0)
        history = history.observed(T0 + (i + 1) * 60, 60, work)
        steps = steps.after(history.minute, 1)
        kinds.append(steps.kind(work, 10.0))
    assert RISING in kinds[1403:1410]
    assert 0.02 < sum(k == RISING for k in kinds[300:1400]) / 1100 < 0.12
    assert kinds[-1] == CALM
    assert steps.kind(0.1, 10.0) == IDLE
    assert Steps().kind(None, 0.0) == CALM


def test_a_shift_sounds_for_an_hour_and_a_wild_minute_is_none():
    rng, shift = random.Random(6), Shift()
    for i in range(500):
        shift = shift.told(9.0 if i == 250 else rng.gauss(0, 0.1), 0.1, 60 * i)
        assert not shift.active(60 * i)
    for i in range(500, 510):
        shift = shift.told(0.7, 0.1, 60 * i)
    assert shift.alarms == 1
    assert shift.active(60 * 510)
    assert not shift.active(60 * 510 + HOLD_SECONDS)


def drawn(rng, i):
    return (20 + 10 * math.sin(2 * math.pi * i / 1440)) * math.exp(rng.gauss(0, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("hardship", ["gap of an hour", "doubled", "flat", "restarted at zero"])
def test_two_hours_after_a_hardship_quantiles_hold_again(hardship):
    f, rng = Seasonal(((180, 240),), 60), random.Random(7)
    history, begin, held = f.start()[0], 2 * 1440 + 300, {0.5: [], 0.9: [], 0.95: []}
    samples = []
    for i in range(begin + 780):
        work = drawn(rng, i)
        since = i - begin
        if hardship == "gap of an hour" and 0 <= since < 60:
            work = None
        if hardship == "doubled" and since >= 0:
            work *= 2
        if hardship == "flat" and 0 <= since < 60:
            work = 20.0
        if hardship == "restarted at zero" and 0 <= since < 5:
            work = 0.0
        samples.append(work)
    for i, work in enumerate(samples):
        history = f.observe(history, T0 + (i + 1) * 60, 60, work)
        if begin + 120 <= i < len(samples) - 4:
            row = f.forecast(history, None, T0 + (i + 1) * 60, ((180, 240),))
            for q, hits in held.items():
                hits.append(samples[i + 4] <= row.value(0, q))
    for q, hits in held.items():
        assert sum(hits) / len(hits) == pytest.approx(q, abs=0.04)
