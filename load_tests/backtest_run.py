"""One forecaster over one series: rolling origins in the test part, nothing seen ahead of its time.

Origins come every eleven minutes.  Most published traces are counts per ten minutes: on their own grid every origin would be
the minute in which the level changes, which tells nothing of the nine others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import process_time

import numpy as np
from numpy.typing import NDArray

from autoscaler.errors import ConfigError, ForecastError
from autoscaler.ports import Forecaster
from forecast.adapters import ADAPTERS, BIN, LEVELS, adapter
from forecast.seasonal import Seasonal
from load_tests.backtest_series import DAY, MINUTE, WorkSeries

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

OURS = "replicast"
ORIGIN_SECONDS = 660
REFIT_SECONDS = 600  # between refits of the others where a pool runs on them
STARTUPS = (10, 60, 180, 600)
# Start windows of four start-up times, and two keep windows: (start, end) in seconds ahead.
WINDOWS = (*((d, d + 60) for d in STARTUPS), (0, 300), (0, 600))
_OUR_REFIT_SECONDS = 3600
WARM_UP_SECONDS = (
    3 * DAY
)  # before the test, in which the others' quantiles are corrected; ours are from the first day on


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a forecaster said: `quantiles` (origins, windows, levels), NaN where it could not tell; seconds of CPU.

    `seconds_per_update`: one sample taken in and one forecast made; `seconds_per_refit`: of a refit.
    """

    forecaster: str
    quantiles: Floats
    seconds_per_update: float
    seconds_per_refit: float


def names_of(text: str | None) -> tuple[str, ...]:
    """Forecasters by name, ours first; None: all whose packages are there.  Raises ConfigError."""
    known = (OURS, *ADAPTERS)
    if text is None:
        from importlib.util import find_spec

        return tuple(n for n in known if n == OURS or all(find_spec(p) is not None for p in ADAPTERS[n][1]))
    names = tuple(dict.fromkeys([OURS, *(part.strip() for part in text.split(",") if part.strip())]))
    for name in names:
        if name not in known:
            raise ConfigError("--forecasters", f"{name!r} must be one of {', '.join(known)}")
    return names


def forecaster_of(name: str, windows: Sequence[tuple[int, int]], interval_seconds: int = MINUTE) -> Forecaster:
    """A new forecaster by name."""
    return Seasonal(windows, interval_seconds) if name == OURS else adapter(name, windows, interval_seconds)


def origins(series: WorkSeries) -> NDArray[np.int64]:
    """Minutes of the series at whose beginning a forecast is made: what came before them is known."""
    each = ORIGIN_SECONDS // MINUTE
    first = series.test_from
    last = series.work.size - max(end for _, end in WINDOWS) // MINUTE
    return np.arange(first, max(first, last) + 1, each, dtype=np.int64)


def told_by(
    names: Sequence[str],
    series: WorkSeries,
    windows: Sequence[tuple[int, int]] = WINDOWS,
    progress: Callable[[str, float], None] | None = None,
) -> list[Told]:
    """Run forecasters, in the order of `names`.  Ours is refitted every hour, the others at every origin.

    The others share one history, since they keep the same one.
    """
    others = [name for name in names if name != OURS]
    told = {}
    for group in ([OURS] if OURS in names else [], others):
        if group:
            told.update({one.forecaster: one for one in _run(group, series, windows, progress)})
    return [told[name] for name in names]


@dataclass(slots=True)
class _Spent:
    """Seconds of CPU and how often, inside the test part."""

    seconds: float = 0.0
    times: int = 0

    def add(self, seconds: float) -> None:
        self.seconds, self.times = self.seconds + seconds, self.times + 1

    @property
    def mean(self) -> float:
        return self.seconds / max(1, self.times)


def _run(
    names: list[str],
    series: WorkSeries,
    windows: Sequence[tuple[int, int]],
    progress: Callable[[str, float], None] | None,
) -> list[Told]:
    forecasters = [forecaster_of(name, windows) for name in names]
    ours = names == [OURS]
    history = forecasters[0].start()[0]
    beliefs = [f.start()[1] for f in forecasters]
    at = {int(i): n for n, i in enumerate(origins(series))}
    said = np.full((len(names), len(at), len(windows), len(LEVELS)), np.nan)
    early = 0 if ours else max(0, series.test_from - WARM_UP_SECONDS // MINUTE)
    refit_every = (_OUR_REFIT_SECONDS if ours else ORIGIN_SECONDS) // MINUTE
    taken, asking, refitting = _Spent(), [_Spent() for _ in names], [_Spent() for _ in names]
    for minute, seconds, value in _samples(series, early):
        now = series.start_at_seconds + minute * MINUTE
        begun = process_time()
        history = forecasters[0].observe(history, now, seconds, value)
        number = at.get(minute)
        if number is not None:
            taken.add(process_time() - begun)
        if minute >= early and (minute - series.test_from) % refit_every == 0:
            for i, forecaster in enumerate(forecasters):
                begun = process_time()
                beliefs[i] = forecaster.refit(history, beliefs[i])
                if isinstance(forecaster, Seasonal):
                    history = forecaster.adopt(history, beliefs[i])
                if number is not None:
                    refitting[i].add(process_time() - begun)
        if number is not None:
            for i, forecaster in enumerate(forecasters):
                begun = process_time()
                said[i, number] = _asked(forecaster, history, beliefs[i], now, windows)
                asking[i].add(process_time() - begun)
        if progress is not None and minute % 240 == 0:
            progress(names[0] if ours else "others", minute / series.work.size)
    return [
        Told(
            forecaster=name,
            quantiles=said[i],
            seconds_per_update=taken.mean + asking[i].mean,
            seconds_per_refit=refitting[i].mean,
        )
        for i, name in enumerate(names)
    ]


def _samples(series: WorkSeries, early: int) -> Iterator[tuple[int, int, float | None]]:
    """(minute, seconds, mean): minutes, but tens of minutes before minute `early`: the others see no finer ones."""
    each = BIN // MINUTE
    first = -(series.start_at_seconds // MINUTE) % each
    coarse = max(first, first + (early - first) // each * each) if early > 0 else 0
    for minute in range(first, coarse, each):
        values = series.work[minute : minute + each]
        known = values[np.isfinite(values)]
        yield minute + each, BIN, float(known.mean()) if known.size * 2 >= each else None
    for minute in range(coarse if coarse > first else 0, series.work.size):
        value = float(series.work[minute])
        yield minute + 1, MINUTE, None if math.isnan(value) else value


def _asked(
    forecaster: Forecaster, history: object, beliefs: object, now: int, windows: Sequence[tuple[int, int]]
) -> Floats:
    try:
        forecast = forecaster.forecast(history, beliefs, now, windows)
    except ForecastError:
        forecast = None
    if forecast is None:
        return np.full((len(windows), len(LEVELS)), np.nan)
    columns = [forecast.levels.index(q) for q in LEVELS]
    return np.array(forecast.values)[:, columns]


def outcomes(series: WorkSeries, windows: Sequence[tuple[int, int]] = WINDOWS, shift_seconds: int = 0) -> Floats:
    """Largest minute of each window ahead of each origin, `shift_seconds` earlier; NaN if over a fifth was not measured."""
    rows = origins(series) - shift_seconds // MINUTE
    out = np.full((rows.size, len(windows)), np.nan)
    for n, (start, end) in enumerate(windows):
        first = start // MINUTE
        span = np.arange(first, max(first + 1, end // MINUTE))
        index = rows[:, None] + span
        inside = np.where((index >= 0) & (index < series.work.size), index, 0)
        values = np.where((index >= 0) & (index < series.work.size), series.work[inside], np.nan)
        known = np.isfinite(values).mean(axis=1)
        out[:, n] = np.where(known >= 0.8, np.where(np.isfinite(values), values, -np.inf).max(axis=1), np.nan)
    return out


def last_minute(series: WorkSeries) -> Floats:
    """The newest known minute before each origin, at most an hour old."""
    index = origins(series)[:, None] - 1 - np.arange(60)
    values = np.where(index >= 0, series.work[np.maximum(index, 0)], np.nan)
    known = np.isfinite(values)
    first = known.argmax(axis=1)
    return np.where(known.any(axis=1), values[np.arange(values.shape[0]), first], np.nan)


def a_day_ago(series: WorkSeries) -> Floats:
    """What each window's outcome was a day earlier."""
    return outcomes(series, shift_seconds=DAY)
