"""What a forecast costs: one sample more and two windows asked, at two weeks of one-minute history, and a refit."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from time import perf_counter, process_time

from forecast.learned import SeasonalBeliefs, SeasonalHistory
from forecast.seasonal import Seasonal
from load_tests.bench import BenchRow

MINUTES = 14 * 1440
WINDOWS = ((180, 240), (0, 300))
ORIGIN = 1_699_920_000


def rows(quick: bool) -> Iterable[BenchRow]:
    """Milliseconds of an update with its forecast, series per second and core, and seconds of a refit."""
    forecaster = Seasonal(WINDOWS, 60)
    minutes = MINUTES // 7 if quick else MINUTES
    history, beliefs = _told(forecaster, minutes)
    used = process_time()
    each = _updates(forecaster, history, beliefs, minutes, 300 if quick else 3000)
    mean = (process_time() - used) / len(each)  # of the processor: what else runs here is not counted
    yield BenchRow(
        name=f"update and forecast, {minutes:,} minutes of history, median", value=1e3 * sorted(each)[len(each) // 2],
        unit="ms", goal=1.0, baseline="mean, processor time", baseline_value=1e3 * mean,
    )  # fmt: skip
    yield BenchRow(name="series a second on one core", value=1.0 / mean, unit="1/s", op=">=", goal=1000.0)
    begun = perf_counter()
    forecaster.refit(history, beliefs)
    yield BenchRow(name="refit: periods of five weeks at most", value=perf_counter() - begun, unit="s")


def work_at(minute: int, rng: random.Random) -> float:
    """Erlangs: a daily curve with noise."""
    return (20 + 10 * math.sin(2 * math.pi * minute / 1440)) * math.exp(rng.gauss(0, 0.1))


def _told(forecaster: Seasonal, minutes: int) -> tuple[SeasonalHistory, SeasonalBeliefs]:
    rng, (history, beliefs) = random.Random(1), forecaster.start()
    for i in range(minutes):
        history = forecaster.observe(history, ORIGIN + 60 * (i + 1), 60, work_at(i, rng))
    return history, beliefs


def _updates(
    forecaster: Seasonal, history: SeasonalHistory, beliefs: SeasonalBeliefs, first: int, count: int
) -> list[float]:
    rng, seconds = random.Random(2), []
    for i in range(first, first + count):
        at, work = ORIGIN + 60 * (i + 1), work_at(i, rng)
        begun = perf_counter()
        history = forecaster.observe(history, at, 60, work)
        forecaster.forecast(history, beliefs, at, WINDOWS)
        seconds.append(perf_counter() - begun)
    return seconds
