"""A forecast for those who want only that: of a list of samples, or of a pandas Series.

    from forecast.frame import forecast_series
    forecast_series(series, steps=12, step_seconds=300)      # quantiles of the peak of each of the next twelve 5 minutes

Any quantity that is not negative will do; it is scaled to its own mean, so that units do not matter.  Missing is not zero:
leave samples out, or give NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autoscaler.errors import ForecastError
from autoscaler.ports import Forecaster
from autoscaler.types import Forecast
from autoscaler.units import significant
from forecast.history import History
from forecast.periods import periods_of
from forecast.seasonal import Seasonal

if TYPE_CHECKING:
    import pandas as pd

MINUTE, DAY = 60, 86_400
SCALE = 20.0  # what the mean becomes: forecasters take 0.02 for zero
RECENT_SECONDS = 2 * DAY  # taken in as it is; what is older in coarser steps, since it serves as a season only
COARSE_SECONDS = 600
KEPT_SECONDS = 35 * DAY
LONGEST_SCORED = 7_200  # a window that ends later is not scored against outcomes: it takes what its nearest one learned
MOST_SCORED = 6
MOST_WINDOWS = 20_000
_LARGEST = 1e300

Sample = tuple[int, float | None]


def forecast_samples(
    samples: Sequence[Sample],
    windows: Sequence[tuple[int, int]],
    *,
    at_seconds: int | None = None,
    interval_seconds: int | None = None,
    forecaster: Forecaster | None = None,
) -> Forecast | None:
    """Quantiles of the largest 60-s mean in each (start, end) window, in seconds after `at_seconds`.

    `samples`: (Unix second at which it ends, mean since the one before) pairs, ascending; None = not measured.
    `interval_seconds`: what a sample stands for; found as the median distance if it is not given.  Samples farther apart
    leave a gap.  `at_seconds`: the last sample's instant, if not given.  None: too little history (below ten minutes), or
    its last sample is over an hour old.  Raises ForecastError for what is no series.
    """
    _check_windows(windows)
    _check_samples(samples)
    known = [v for _, v in samples if v is not None]
    if not known:
        return None
    interval = interval_seconds or _interval([at for at, _ in samples])
    now = samples[-1][0] if at_seconds is None else at_seconds
    if now < samples[-1][0]:
        raise ForecastError(f"at_seconds {now} must not be before {samples[-1][0]}, the last sample")
    scale = _scale(known)
    model = forecaster or Seasonal(_scored(windows), max(10, min(interval, MINUTE)))
    history, beliefs = model.start()
    adopt = getattr(model, "adopt", None)
    for at, seconds, value in _steps(samples, interval):
        if adopt is not None and at > samples[-1][0] - RECENT_SECONDS:
            beliefs = model.refit(history, beliefs)  # what it finds has the recent days to prove itself
            history, adopt = adopt(history, beliefs), None
        history = model.observe(history, at, seconds, None if value is None else value * scale)
    beliefs = model.refit(history, beliefs)
    found = model.forecast(history, beliefs, now, windows)
    if found is None:
        return None
    return replace(found, values=tuple(tuple(significant(v / scale) for v in row) for row in found.values))


def forecast_series(
    series: pd.Series,
    *,
    steps: int = 12,
    step_seconds: int = 300,
    windows: Sequence[tuple[int, int]] | None = None,
    label: str = "left",
    forecaster: Forecaster | None = None,
) -> pd.DataFrame:
    """Quantiles of the largest 60-s mean of `series` inside windows after its end: a row per window, a column per quantile.

    `series`: numbers that are not negative on an ascending DatetimeIndex; NaN = missing, and so is a stamp left out.  A
    stamp is where its interval starts (pandas' habit), or with `label` "right" where it ends.  An index with a time zone is
    answered in it; one without is taken for UTC.  Days are 24 hours: a clock change shifts the daily pattern by an hour.
    `windows`: (start, end) pairs in seconds after the end, instead of `steps` windows of `step_seconds`, one after another.

    The rows are a MultiIndex (start, end) of instants.  Empty where history is too short.  Raises ForecastError.
    """
    import pandas as pd

    if label not in ("left", "right"):
        raise ForecastError(f"label {label!r} must be left or right")
    if not isinstance(series, pd.Series) or not isinstance(series.index, pd.DatetimeIndex):
        raise ForecastError("series must be a pandas Series with a DatetimeIndex")
    if windows is None:
        if steps < 1 or step_seconds < 1:
            raise ForecastError(f"steps {steps} and step_seconds {step_seconds} must be >= 1")
        windows = tuple((i * step_seconds, (i + 1) * step_seconds) for i in range(steps))
    index, zone = series.index, series.index.tz
    if index.hasnans:
        raise ForecastError("series must have no NaT in its index")
    utc = index.tz_convert("UTC") if zone is not None else index.tz_localize("UTC")
    stamps = [int(s) for s in utc.as_unit("s").asi8]
    interval = _interval(stamps) if len(stamps) > 1 else MINUTE
    shift = interval if label == "left" else 0
    values = [None if v is None or v != v else float(v) for v in series.astype(float).tolist()]
    samples = [(at + shift, v) for at, v in zip(stamps, values, strict=True)]
    found = None
    if samples:
        found = forecast_samples(samples, windows, interval_seconds=interval, forecaster=forecaster)
    base = 0 if found is None else found.at_seconds

    def instants(offsets: list[int]) -> Any:
        made = pd.to_datetime([base + s for s in offsets], unit="s", utc=True)
        return made.tz_convert(zone) if zone is not None else made.tz_localize(None)

    shown = () if found is None else found.windows
    rows = pd.MultiIndex.from_arrays(
        [instants([a for a, _ in shown]), instants([b for _, b in shown])], names=["start", "end"]
    )
    levels = list(found.levels) if found is not None else []
    return pd.DataFrame(
        [] if found is None else list(found.values), index=rows, columns=pd.Index(levels, name="quantile")
    )


def periods_of_samples(samples: Sequence[Sample], *, interval_seconds: int | None = None) -> tuple[int, ...]:
    """The periods of the samples in seconds, the plainest first; none of which less than two full cycles were seen.

    See `forecast_samples` for what is taken, and `forecast.periods` for what makes a period.
    """
    _check_samples(samples)
    known = [v for _, v in samples if v is not None]
    interval = interval_seconds or _interval([at for at, _ in samples])
    history, scale = History.empty(MINUTE), _scale(known)
    for at, seconds, value in _steps(samples, interval):
        history = history.observed(at, seconds, None if value is None else value * scale)
    return tuple(found.period_seconds for found in periods_of(history))


def _scale(known: Sequence[float]) -> float:
    """What brings the mean to `SCALE`."""
    mean = math.fsum(v / len(known) for v in known)
    return SCALE / mean if mean > 0.0 else 1.0


def _check_windows(windows: Sequence[tuple[int, int]]) -> None:
    if not 0 < len(windows) <= MOST_WINDOWS:
        raise ForecastError(f"windows: {len(windows)} must be in [1, {MOST_WINDOWS}]")
    for start, end in windows:
        if not 0 <= start < end <= KEPT_SECONDS:
            raise ForecastError(f"window ({start}, {end}) must have 0 <= start < end <= {KEPT_SECONDS}")


def _check_samples(samples: Sequence[Sample]) -> None:
    if not samples:
        raise ForecastError("samples must hold at least one")
    last = None
    for at, value in samples:
        if last is not None and at <= last:
            raise ForecastError(f"samples must ascend in time: {at} comes after {last}")
        if value is not None and not 0.0 <= value <= _LARGEST:
            raise ForecastError(f"value {value} at {at} must be in [0, {_LARGEST:g}], or missing")
        last = at


def _interval(stamps: Sequence[int]) -> int:
    """The median distance between stamps: a minute where there is only one."""
    apart = sorted(b - a for a, b in zip(stamps, stamps[1:], strict=False))
    return max(1, apart[len(apart) // 2]) if apart else MINUTE


def _scored(windows: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Some of the windows, spread over them, that end soon enough to be scored; one like the first if none does."""
    usable = sorted({(int(a), int(b)) for a, b in windows if b <= LONGEST_SCORED - 600})
    if not usable:
        return ((0, min(LONGEST_SCORED - 600, max(MINUTE, windows[0][1] - windows[0][0]))),)
    if len(usable) <= MOST_SCORED:
        return tuple(usable)
    picked = [usable[round(i * (len(usable) - 1) / (MOST_SCORED - 1))] for i in range(MOST_SCORED)]
    return tuple(dict.fromkeys(picked))


def _steps(samples: Sequence[Sample], interval: int) -> list[tuple[int, int, float | None]]:
    """(instant, seconds, mean): old samples joined to coarse ones, the newest as they are, none older than is kept."""
    end = samples[-1][0]
    fine = [s for s in samples if s[0] > end - RECENT_SECONDS]
    old = [s for s in samples if end - KEPT_SECONDS < s[0] <= end - RECENT_SECONDS]
    if interval >= COARSE_SECONDS:
        return [(at, interval, value) for at, value in (*old, *fine)]
    slots: dict[int, list[tuple[int, float]]] = {}
    for at, value in old:
        if value is not None:
            slots.setdefault((at - 1) // COARSE_SECONDS, []).append((at, value))
    coarse = [(some[-1][0], interval * len(some), math.fsum(v / len(some) for _, v in some)) for some in slots.values()]
    return [*coarse, *((at, interval, value) for at, value in fine)]
