"""What forecasts were worth: losses, coverage (overall and where it is hard), scaled errors; who loses where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from forecast.adapters import LEVELS
from load_tests.backtest_run import (
    ORIGIN_SECONDS,
    OURS,
    STARTUPS,
    WINDOWS,
    Told,
    a_day_ago,
    last_minute,
    origins,
    outcomes,
)
from load_tests.backtest_series import MINUTE, WorkSeries

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SHOWN = (0.5, 0.9, 0.95, 0.99)  # levels of pinball losses in reports
COVERED = (0.9, 0.95, 0.99)
TOLERANCE = {0.9: 0.01, 0.95: 0.01, 0.99: 0.005}
BURST_TOLERANCE = 0.05
LOSS_SLACK = 1.03  # a loss above the best of the others by more is said
LEAST_ORIGINS = 100  # fewer say nothing of a quantile; they are shown, and no cell is called lost for its coverage
LEAST_BURSTS = 30  # the same for bursts
_BURST_SHARE = 0.05
_SHIFT = 1.5
_LEAST_ANSWERED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One forecaster, one window, on the origins that all forecasters of the trace could answer.

    Losses are over the mean outcome.  `wql`: twice the mean pinball loss over `LEVELS`.  `pinball`, `coverage`: per level of
    `SHOWN`, `COVERED`.  Coverage in bursts (the last 10 minutes rose by as much as the top 5 % of steps), in the hour after a
    shift, and the lowest at 0.95 of any hour of the day; NaN where there is no such origin.  `mase_*`: mean absolute error of
    the median over that of the naive and the seasonal naive point forecast.
    """

    trace: str
    forecaster: str
    window: tuple[int, int]
    origins: int
    answered: float
    wql: float
    pinball: tuple[float, ...]
    coverage: tuple[float, ...]
    burst_coverage: tuple[float, ...]
    burst_origins: int
    shift_coverage: tuple[float, ...]
    least_hour_coverage: float
    mase_naive: float
    mase_seasonal: float
    milliseconds_per_update: float
    milliseconds_per_refit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Origins by what was known at them."""

    burst: Bools
    shift: Bools
    hour: NDArray[np.int64]


def groups_of(series: WorkSeries) -> Groups:
    """Bursts, the hours after shifts, and the local hour."""
    rows = origins(series)
    ten = 600 // MINUTE

    def mean(first: int, last: int) -> Floats:
        index = rows[:, None] + np.arange(first, last)
        values = np.where(index >= 0, series.work[np.maximum(index, 0)], np.nan)
        known = np.isfinite(values)
        total = np.where(known, values, 0.0).sum(axis=1)
        count = known.sum(axis=1)
        return np.where(count >= 0.5 * (last - first), total / np.maximum(count, 1), np.nan)

    step = mean(-ten, 0) - mean(-2 * ten, -ten)
    known = step[np.isfinite(step)]
    high = np.quantile(known, 1.0 - _BURST_SHARE) if known.size else np.inf
    burst = np.isfinite(step) & (step >= high) & (step > 0)
    now, before = mean(-30, 0), mean(-60, -30)
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = np.abs(np.log(np.maximum(now, 0.5) / np.maximum(before, 0.5))) > np.log(_SHIFT)
    shift = np.zeros(rows.size, dtype=bool)
    for k in range(3600 // ORIGIN_SECONDS + 1):  # the origins of the hour after one
        shift[k:] |= moved[: rows.size - k]
    zone = ZoneInfo(series.time_zone)
    hour = [datetime.fromtimestamp(series.start_at_seconds + int(m) * MINUTE, zone).hour for m in rows]
    return Groups(burst=burst, shift=shift, hour=np.array(hour, dtype=np.int64))


def scores(series: WorkSeries, told: Sequence[Told], windows: Sequence[tuple[int, int]] = WINDOWS) -> list[Score]:
    """Every forecaster and window, on equal terms: origins that one of them could not answer count for none.

    One that answers less than half of the origins is left out of that rule, and scored on what it answered.
    """
    actual = outcomes(series, windows)
    naive, seasonal = last_minute(series), a_day_ago(series)
    groups = groups_of(series)
    found = []
    for n, window in enumerate(windows):
        known = np.isfinite(actual[:, n])
        answered = {t.forecaster: known & np.isfinite(t.quantiles[:, n, :]).all(axis=1) for t in told}
        total = max(1, int(known.sum()))
        common = known.copy()
        for mask in answered.values():
            if mask.sum() >= _LEAST_ANSWERED * total:
                common &= mask
        for one in told:
            mine = answered[one.forecaster]
            share = float(mine.sum()) / total
            used = common if share >= _LEAST_ANSWERED else mine
            past = np.where(np.isfinite(seasonal[:, n]), seasonal[:, n], naive)
            found.append(_score(series, one, n, window, actual[:, n], used, share, groups, naive, past))
    return found


def _score(
    series: WorkSeries, one: Told, n: int, window: tuple[int, int], actual: Floats, used: Bools, share: float,
    groups: Groups, naive: Floats, seasonal: Floats,
) -> Score:  # fmt: skip
    y, q = actual[used], one.quantiles[used][:, n, :]
    levels = np.array(LEVELS)
    off = y[:, None] - q
    loss = np.maximum(levels * off, (levels - 1.0) * off)
    mean = float(y.mean()) if y.size else np.nan
    hit = off <= 0.0
    column = {level: LEVELS.index(level) for level in (*SHOWN, *COVERED)}

    def covered(inside: Bools) -> tuple[float, ...]:
        return tuple(float(hit[inside][:, column[c]].mean()) if inside.any() else np.nan for c in COVERED)

    def scaled(point: Floats) -> float:
        both = np.isfinite(point[used])
        base = float(np.abs(y - point[used])[both].mean()) if both.any() else 0.0
        return float(np.abs(off[both, 0]).mean()) / base if base > 0 else np.nan

    hours = [float(hit[groups.hour[used] == h][:, column[0.95]].mean()) for h in np.unique(groups.hour[used])]
    return Score(
        trace=series.name, forecaster=one.forecaster, window=window, origins=int(used.sum()), answered=share,
        wql=float(2.0 * loss.mean() / mean) if y.size and mean > 0 else np.nan,
        pinball=tuple(float(loss[:, column[c]].mean() / mean) if y.size and mean > 0 else np.nan for c in SHOWN),
        coverage=covered(np.ones(y.size, dtype=bool)),
        burst_coverage=covered(groups.burst[used]),
        burst_origins=int(groups.burst[used].sum()),
        shift_coverage=covered(groups.shift[used]),
        least_hour_coverage=min(hours) if hours else np.nan,
        mase_naive=scaled(naive), mase_seasonal=scaled(seasonal),
        milliseconds_per_update=1000.0 * one.seconds_per_update, milliseconds_per_refit=1000.0 * one.seconds_per_refit,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A cell that misses what it should show, in words that a person can check."""

    trace: str
    window: tuple[int, int] | None
    what: str
    value: float
    allowed: float


def decision_loss(found: Sequence[Score], trace: str, forecaster: str) -> float:
    """Mean weighted quantile loss over the start windows; NaN where it is not known."""
    mine = [s.wql for s in found if s.trace == trace and s.forecaster == forecaster and s.window in starts()]
    return float(np.mean(mine)) if mine else np.nan


def starts() -> tuple[tuple[int, int], ...]:
    """The windows in which a replica ordered now begins to carry load."""
    return tuple((d, d + 60) for d in STARTUPS)


def lost_cells(found: Sequence[Score]) -> list[Lost]:
    """Where ours is not what it should be: coverage off by more than allowed, or another forecaster better by over 3 %."""
    lost = []
    for s in found:
        if s.forecaster != OURS or s.origins < LEAST_ORIGINS:
            continue
        for level, value in zip(COVERED, s.coverage, strict=True):
            if not abs(value - level) <= TOLERANCE[level] + 1e-12:
                lost.append(_lost(s.trace, s.window, f"coverage at {level:g}", value, level))
        for level, value in zip(COVERED, s.burst_coverage, strict=True):
            if s.burst_origins >= LEAST_BURSTS and abs(value - level) > BURST_TOLERANCE:
                lost.append(_lost(s.trace, s.window, f"coverage at {level:g} in bursts", value, level))
    names = dict.fromkeys(s.forecaster for s in found)
    for trace in dict.fromkeys(s.trace for s in found):
        ours = decision_loss(found, trace, OURS)
        others = {n: decision_loss(found, trace, n) for n in names if n != OURS}
        others = {n: v for n, v in others.items() if np.isfinite(v)}
        if others and np.isfinite(ours):
            best = min(others, key=lambda n: others[n])
            if ours > LOSS_SLACK * others[best]:
                lost.append(_lost(trace, None, f"loss over that of {best}", ours / others[best], LOSS_SLACK))
    return lost


def _lost(trace: str, window: tuple[int, int] | None, what: str, value: float, allowed: float) -> Lost:
    return Lost(trace=trace, window=window, what=what, value=value, allowed=allowed)
