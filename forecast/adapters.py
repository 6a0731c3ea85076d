"""Well-known forecasting models behind the Forecaster protocol: the backtest's peers, and slow models for a pool.

Each model sees means over 10 minutes that end when it is asked, is fitted anew once a day, and is told at every `refit` what
came; its quantiles of the largest work inside a window are then corrected by how often outcomes have exceeded them, as ours
are.  All of that happens in `refit`, off the path of decisions: `forecast` reads what the last `refit` wrote.

    peer = adapter("auto_ets", windows=((180, 240), (0, 300)))

Models need the extra `forecast`, Prophet the extra `prophet`; `naive` and `seasonal_naive` need nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Protocol

from autoscaler.errors import ForecastError
from autoscaler.types import Forecast
from autoscaler.units import significant
from forecast.cells import mean_known
from forecast.history import MINUTE, History

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
BIN, FIVE, DAY = 600, 300, 86_400  # seconds
DAY_BINS = DAY // BIN
LEAST_WORK = 0.02  # Erlangs: what logarithms take for zero
FIT_BINS = 14 * DAY_BINS  # a model is fitted on so much at most
LEAST_BINS = 6  # known, before a model is fitted at all
ISSUE = 660  # seconds between forecasts that a late refit makes up for; no multiple of BIN, so that every minute has its turn
CATCH_UP = 2 * DAY  # seconds that a late refit walks through: outcomes are kept in minutes for two days
SHARP = 6  # newest bins that are exact to the minute; those before are read off 5-min means
STALE_SECONDS = 3_600  # older news are none
GAIN, PRIOR_SPREAD = 0.03, 0.5  # of a quantile tracker: its step, and the spread of log residuals before any
PRIOR_WEIGHT = 3.0  # outcomes that the prior spread is worth
WARM = 72  # outcomes until a model without quantiles of its own stops leaning on the normal ones
_Z = tuple(NormalDist().inv_cdf(q) for q in LEVELS)
_MEMO = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What a model sees.  `bins`: logs of 10-min means without holes, the last one ends at `at_seconds`.

    `filled`: how many of `bins` were not measured (they repeat the day before, else the last value).  `measured`: whether
    the last one was.
    """

    at_seconds: int
    bins: tuple[float, ...]
    filled: int
    measured: bool
    history: History


class Fitted(Protocol):
    """A model with its parameters."""

    def quantiles(self, past: Past, windows: Sequence[tuple[int, int]]) -> list[list[float]]:
        """Logs of quantiles at `LEVELS` of the largest work in each window; NaN where it cannot tell."""


class Model(Protocol):
    """A model before it is fitted."""

    @property
    def spread(self) -> bool:
        """Whether its own quantiles differ."""

    def fit(self, past: Past) -> Fitted:
        """Estimate the parameters; pure.  Raises anything where it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offsets:
    """Per level, what the log outcome exceeds the model's own quantile by; `matured` outcomes, their mean and variance."""

    matured: int = 0
    mean: float = 0.0
    variance: float = PRIOR_SPREAD * PRIOR_SPREAD
    values: tuple[float, ...]
    covered: float = 0.0

    def scored(self, row: tuple[float, ...], outcome: float) -> Offsets:
        """After one outcome: a step up by gain x q where it was exceeded, else down by gain x (1 - q)."""
        n = self.matured + 1
        off = outcome - row[0]
        fade = max(1.0 / (n + PRIOR_WEIGHT), 1.0 / DAY_BINS)
        mean = self.mean + fade * (off - self.mean)
        variance = (1.0 - fade) * (self.variance + fade * (off - self.mean) ** 2)
        size = max(GAIN, 0.5 / math.sqrt(n)) * math.sqrt(variance)
        values = tuple(
            u + size * (q if outcome > r + u else q - 1.0) for u, r, q in zip(self.values, row, LEVELS, strict=True)
        )
        if n <= WARM and row[0] == row[-1]:
            values = tuple(mean + math.sqrt(variance) * z for z in _Z)
        hit = 1.0 if outcome <= row[4] + self.values[4] else 0.0
        covered = self.covered + max(1.0 / n, 1.0 / DAY_BINS) * (hit - self.covered)
        return Offsets(matured=n, mean=mean, variance=variance, values=values, covered=covered)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """What the model said at an instant: log quantiles per window, before their correction."""

    at_seconds: int
    rows: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterBeliefs:
    """What `refit` learned by `at_seconds`; `fitted_at_seconds`: the end of what the parameters saw."""

    at_seconds: int | None = None
    fitted_at_seconds: int | None = None
    offsets: tuple[Offsets, ...] = ()
    issued: tuple[Issued, ...] = ()


class Adapter:
    """A Forecaster out of a Model.  It holds settings, and fitted models that can be had again from the history."""

    history_type: type = History
    beliefs_type: type = AdapterBeliefs

    def __init__(self, name: str, model: Model, windows: Sequence[tuple[int, int]], interval_seconds: int = 60) -> None:
        if not windows or any(not 0 <= start < end for start, end in windows):
            raise ForecastError(f"windows {windows!r} must be (start, end) pairs with 0 <= start < end")
        self.name, self.model, self.interval_seconds = name, model, interval_seconds
        self.windows = tuple((int(start), int(end)) for start, end in windows)
        self._memo: dict[tuple[int, int], Fitted | None] = {}

    def start(self) -> tuple[History, AdapterBeliefs]:
        """Empty (history, beliefs)."""
        values = tuple(0.0 if self.model.spread else PRIOR_SPREAD * z for z in _Z)
        return History.empty(self.interval_seconds), AdapterBeliefs(
            offsets=tuple(Offsets(values=values) for _ in self.windows)
        )

    def observe(self, history: History, at_seconds: int, window_seconds: int, work: float | None) -> History:
        """One sample more; see History.observed."""
        return history.observed(at_seconds, window_seconds, work)

    def forecast(
        self, history: History, beliefs: AdapterBeliefs, at_seconds: int, windows: Sequence[tuple[int, int]]
    ) -> Forecast | None:
        """What the last `refit` said of these windows, or of those most like them; None if that was over an hour ago."""
        last = beliefs.issued[-1] if beliefs.issued else None
        if last is None or at_seconds - last.at_seconds > STALE_SECONDS:
            return None
        rows = []
        for window in windows:
            n = min(range(len(self.windows)), key=lambda i: _distance(self.windows[i], window))
            logs = sorted(r + u for r, u in zip(last.rows[n], beliefs.offsets[n].values, strict=True))
            rows.append(tuple(significant(math.exp(max(-700.0, min(x, 700.0)))) for x in logs))
        first = beliefs.offsets[min(range(len(self.windows)), key=lambda i: _distance(self.windows[i], windows[0]))]
        return Forecast(
            at_seconds=at_seconds,
            levels=LEVELS,
            windows=tuple((start, end) for start, end in windows),
            values=tuple(rows),
            expert=self.name,
            matured=first.matured,
            coverage=significant(first.covered) if first.matured else None,
        )

    def refit(self, history: History, beliefs: AdapterBeliefs) -> AdapterBeliefs:
        """Score what is over, and forecast from the end of the history; nothing within ten minutes of the last call.

        After a long pause it walks through up to two days of it, as if it had been called every `ISSUE` seconds.
        """
        now, last = history.at_seconds, beliefs.at_seconds
        if now is None or history.minute.stop <= history.minute.first:
            return beliefs
        now = history.minute.stop * MINUTE + history.phase_seconds  # the end of the last whole minute
        since = max(history.minute.first * MINUTE + history.phase_seconds, now - CATCH_UP)
        since = since if last is None else max(since, last)
        steps = (now - since - BIN) // ISSUE if now - since >= BIN else -1
        for k in range(steps, -1, -1):
            at = now - k * ISSUE
            beliefs = self._walked(history, _scored(history, beliefs, self.windows, at), at)
        return beliefs

    def _walked(self, history: History, beliefs: AdapterBeliefs, at_seconds: int) -> AdapterBeliefs:
        """At that instant: a model fitted if it is time, and one forecast more, unless the last bin was not measured."""
        beliefs = replace(beliefs, at_seconds=at_seconds)
        past = _past(history, at_seconds)
        if past is None or not past.measured:
            return beliefs
        known = len(past.bins) - past.filled
        if known < LEAST_BINS:
            return beliefs
        fitted_at = beliefs.fitted_at_seconds
        if fitted_at is None or at_seconds - fitted_at >= BIN * min(DAY_BINS, max(LEAST_BINS, known // 2)):
            fitted_at = at_seconds
        beliefs = replace(beliefs, fitted_at_seconds=fitted_at)
        fitted = self._fitted(history, fitted_at)
        if fitted is None:
            return beliefs
        rows = tuple(tuple(significant(v) for v in row) for row in fitted.quantiles(past, self.windows))
        if not all(math.isfinite(v) for row in rows for v in row):
            return beliefs
        return replace(beliefs, issued=(*beliefs.issued, Issued(at_seconds=at_seconds, rows=rows)))

    def _fitted(self, history: History, at_seconds: int) -> Fitted | None:
        """The model fitted on what was known at that instant; None where it cannot be."""
        past = _past(history, at_seconds)
        if past is None:
            return None
        key = (at_seconds, hash(past.bins))
        if key not in self._memo:
            while len(self._memo) >= _MEMO:
                del self._memo[next(iter(self._memo))]
            try:
                self._memo[key] = self.model.fit(past)
            except ImportError:
                raise
            except Exception:  # noqa: BLE001 - a library's estimation may fail in any way; there is then no forecast
                self._memo[key] = None
        return self._memo[key]


def _distance(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """How unlike two windows are: first by length, then by start."""
    return abs((a[1] - a[0]) - (b[1] - b[0])), abs(a[0] - b[0])


def _scored(
    history: History, beliefs: AdapterBeliefs, windows: tuple[tuple[int, int], ...], now: int
) -> AdapterBeliefs:
    """The offsets after every window that is over by `now`; what is over for all windows is dropped."""
    before = beliefs.at_seconds
    offsets = list(beliefs.offsets)
    for one in beliefs.issued:
        at = one.at_seconds
        for i, (start, end) in enumerate(windows):
            if at + end > now or (before is not None and at + end <= before):
                continue
            outcome = history.past_peak(at + start, at + end)
            if outcome is not None:
                offsets[i] = offsets[i].scored(one.rows[i], math.log(max(outcome, LEAST_WORK)))
    longest = max(end for _, end in windows)
    kept = tuple(one for one in beliefs.issued if one.at_seconds + longest > now)
    return replace(beliefs, offsets=tuple(offsets), issued=kept)


def _past(history: History, at_seconds: int) -> Past | None:
    """What was known at an instant on a whole minute of the history; None if nothing was."""
    stop, per_bin = history.cell(at_seconds, MINUTE), BIN // MINUTE
    minutes = history.minute.between(stop - SHARP * per_bin, stop)
    if not minutes:
        return None
    minutes = (None,) * (SHARP * per_bin - len(minutes)) + minutes
    newest = [mean_known(minutes[i : i + per_bin], 0.5) for i in range(0, len(minutes), per_bin)]
    means = [*_long_ago(history, stop - SHARP * per_bin), *newest]
    start = next((i for i, v in enumerate(means) if v is not None), None)
    if start is None:
        return None
    logs: list[float] = []
    holes = 0
    for v in means[start:]:
        if v is not None:
            logs.append(math.log(max(v, LEAST_WORK)))
            continue
        holes += 1
        logs.append(logs[-DAY_BINS] if len(logs) >= DAY_BINS else logs[-1])
    return Past(at_seconds=at_seconds, bins=tuple(logs), filled=holes, measured=newest[-1] is not None, history=history)


def _long_ago(history: History, stop: int) -> list[float | None]:
    """10-min means up to minute number `stop`, off 5-min means: of those that a bin cuts, the share inside counts."""
    cells, (last, minutes) = history.five_mean, divmod(stop, FIVE // MINUTE)
    share = minutes * MINUTE / FIVE
    count = min(FIT_BINS - SHARP, (last - cells.first) // 2)
    if count <= 0:
        return []
    values = cells.between(last - 2 * count, last + 1)
    weights = (1.0 - share, 1.0, share)
    return [
        _weighted((a, b, c), weights) if a is None or b is None or c is None else (weights[0] * a + b + share * c) / 2.0
        for a, b, c in zip(values[:-1:2], values[1::2], values[2::2], strict=True)
    ]


def _weighted(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Weighted mean of the known values; None if they have less than half of the weight."""
    known = [(w, v) for w, v in zip(weights, values, strict=True) if v is not None and w > 0.0]
    total = sum([w for w, _ in known])
    return sum([w * v for w, v in known]) / total if 2.0 * total >= sum(weights) else None


@dataclass(frozen=True, slots=True)
class Naive:
    """The largest work will be the last minute's."""

    spread: bool = False

    def fit(self, past: Past) -> Fitted:
        """Nothing is estimated."""
        return self

    def quantiles(self, past: Past, windows: Sequence[tuple[int, int]]) -> list[list[float]]:
        """The last known minute, whatever the window."""
        value = past.history.past_peak(past.at_seconds - 60, past.at_seconds)
        guess = past.bins[-1] if value is None else math.log(max(value, LEAST_WORK))
        return [[guess] * len(LEVELS) for _ in windows]


@dataclass(frozen=True, slots=True)
class SeasonalNaive:
    """The largest work will be that of the same window a day ago; the last minute's while that is not known."""

    spread: bool = False

    def fit(self, past: Past) -> Fitted:
        """Nothing is estimated."""
        return self

    def quantiles(self, past: Past, windows: Sequence[tuple[int, int]]) -> list[list[float]]:
        """The peak of each window a day before."""
        rows = []
        for (start, end), fallback in zip(windows, Naive().quantiles(past, windows), strict=True):
            at = past.at_seconds - DAY
            value = past.history.past_peak(at + start, at + end)
            rows.append(fallback if value is None else [math.log(max(value, LEAST_WORK))] * len(LEVELS))
        return rows


def _library(name: str) -> Callable[[], Model]:
    def make() -> Model:
        from forecast import adapters_boosting, adapters_models

        known = {**adapters_models.MODELS, **adapters_boosting.MODELS}
        return known[name]()

    return make


# name: (how to make it, the packages it needs, in plain words)
ADAPTERS: dict[str, tuple[Callable[[], Model], tuple[str, ...], str]] = {
    "naive": (Naive, (), "the last minute"),
    "seasonal_naive": (SeasonalNaive, (), "the same window a day ago"),
    "ets": (_library("ets"), ("numpy", "statsmodels"), "statsmodels' ETS: damped trend and a daily season"),
    "sarimax": (_library("sarimax"), ("numpy", "statsmodels"), "statsmodels' SARIMAX: ARMA around daily harmonics"),
    "auto_ets": (_library("auto_ets"), ("numpy", "statsforecast"), "statsforecast's AutoETS without a season"),
    "theta": (
        _library("theta"),
        ("numpy", "statsforecast"),
        "statsforecast's DynamicOptimizedTheta with a daily season",
    ),
    "mstl": (_library("mstl"), ("numpy", "statsforecast"), "statsforecast's MSTL, AutoETS on what has no season"),
    "prophet": (_library("prophet"), ("numpy", "pandas", "prophet"), "Prophet with days and, from two weeks on, weeks"),
    "boosting": (_library("boosting"), ("numpy", "sklearn"), "scikit-learn's quantile boosting on lagged values"),
}


def adapter(name: str, windows: Sequence[tuple[int, int]], interval_seconds: int = 60) -> Adapter:
    """The Forecaster of that name.  Raises ForecastError for another name, ModuleNotFoundError where its package is missing."""
    if name not in ADAPTERS:
        raise ForecastError(f"forecaster {name!r} must be one of {', '.join(ADAPTERS)}")
    return Adapter(name, ADAPTERS[name][0](), windows, interval_seconds)
