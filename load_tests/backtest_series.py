"""Work per minute out of a trace or a recording: what a backtest replays, with its test part marked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoscaler.errors import AutoscalerError, ConfigError
from autoscaler.facts import work_of
from autoscaler.log import observations_of
from autoscaler.settings import PoolSettings
from autoscaler.types import Lengths, Observation, State
from load_tests import arrivals as spread
from load_tests import draws
from load_tests.arrivals import DEFAULT_CV
from load_tests.traces import BUILTIN, RateTrace, RequestTrace, instant_of, load_trace
from load_tests.traffic_traces import UNKNOWN_ORIGIN
from serving.capacity_learned import LearnedCapacity

Floats = NDArray[np.float64]
MINUTE, DAY = 60, 86_400
MEAN_WORK = 20.0  # Erlangs on the days before the test: forecasts care for shape alone
_RECORDINGS = (".jsonl", ".ndjson", ".log")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkSeries:
    """Mean work of each minute, in Erlangs; NaN = not measured.  Minutes from `test_from` on are scored.

    `start_at_seconds`: Unix second at which minute 0 begins.  `tuned`: whether anything may have been tuned on the first part.
    """

    name: str
    start_at_seconds: int
    time_zone: str
    work: Floats
    test_from: int
    tuned: bool

    def cut(self, *, warm_days: float, test_days: float, skip_days: float = 0.0) -> WorkSeries:
        """At most so many days before the test part, and so many of it, after `skip_days` of it."""
        per_day = DAY // MINUTE
        first_test = self.test_from + round(skip_days * per_day)
        first = max(0, first_test - round(warm_days * per_day))
        last = min(self.work.size, first_test + round(test_days * per_day))
        return WorkSeries(
            name=self.name, start_at_seconds=self.start_at_seconds + first * MINUTE, time_zone=self.time_zone,
            work=self.work[first:last], test_from=first_test - first, tuned=self.tuned,
        )  # fmt: skip


def work_series(source: str, seed: int = 0) -> WorkSeries:
    """The series of ``builtin:NAME``, a trace file, or recorded Observations (a step log or JSON lines)."""
    path = Path(source)
    if not source.startswith(BUILTIN) and (path.is_dir() or path.suffix in _RECORDINGS):
        return _recorded(path)
    trace = load_trace(source)
    counts = _per_minute(trace, seed) if isinstance(trace, RateTrace) else _counted(trace)
    test_from = trace.facts.train_days * DAY // MINUTE
    tuned = 0 < test_from < counts.size
    if not tuned:
        test_from = counts.size // 2
    origin = trace.facts.origin_at_seconds
    return WorkSeries(
        name=trace.name,
        start_at_seconds=instant_of(UNKNOWN_ORIGIN, "origin") if origin is None else origin,
        time_zone=trace.facts.time_zone,
        work=_scaled(counts, test_from, trace.name),
        test_from=test_from,
        tuned=tuned,
    )


def _scaled(counts: Floats, test_from: int, name: str) -> Floats:
    """With a mean of `MEAN_WORK` over what lies before the test."""
    before = counts[:test_from]
    mean = float(np.nanmean(before)) if np.isfinite(before).any() else 0.0
    if mean <= 0.0:
        raise ConfigError("trace", f"{name!r} must hold requests before its test part (the second half)")
    out: Floats = counts * (MEAN_WORK / mean)
    return out


def _counted(trace: RequestTrace) -> Floats:
    """Requests of each whole minute."""
    minutes = int(trace.end_seconds // MINUTE)
    if minutes < 2:
        raise ConfigError("trace", f"{trace.name!r} must be at least two minutes long")
    index = (trace.rows.arrival_seconds // MINUTE).astype(np.int64)
    return np.bincount(index[index < minutes], minlength=minutes).astype(np.float64)


def _per_minute(trace: RateTrace, seed: int) -> Floats:
    """Requests of each minute.  Longer intervals are spread by a gamma law of their burstiness; their counts are kept."""
    step = trace.interval_seconds
    minutes = round(trace.end_seconds // MINUTE)
    if step <= MINUTE:
        index = (trace.t_seconds // MINUTE).astype(np.int64)
        known, total = np.zeros(minutes), np.zeros(minutes)
        keep = (index < minutes) & ~trace.missing
        np.add.at(total, index[keep], trace.requests[keep])
        np.add.at(known, index[keep], step)
        return np.where(known >= 0.8 * MINUTE, total * MINUTE / np.maximum(known, 1e-9), np.nan)
    each = round(step / MINUTE)
    if abs(each * MINUTE - step) > 1e-6:
        raise ConfigError("trace", f"the interval of {trace.name!r}, {step:g} s, must be a multiple or a part of 60 s")
    counts = np.where(trace.missing, 0.0, trace.requests)
    cv = np.where(np.isfinite(trace.iat_cv) & (trace.iat_cv > 0), trace.iat_cv, trace.facts.iat_cv or DEFAULT_CV)
    lean = spread.slopes(np.where(trace.missing, np.nan, counts))
    place = (np.arange(each) + 0.5) / each - 0.5
    mean = np.maximum(counts[:, None] / each * (1.0 + lean[:, None] * place), 1e-9)
    shape = np.clip(mean / np.square(np.clip(cv, 0.1, 30.0))[:, None], 1e-3, 1e9)
    drawn = draws.gammas(draws.key(seed, "backtest", trace.name), mean.size, shape.ravel()).reshape(mean.shape)
    drawn = np.maximum(drawn, 1e-12) * mean / shape
    rows = np.where(trace.missing[:, None], np.nan, counts[:, None] * drawn / drawn.sum(axis=1, keepdims=True))
    out = np.full(minutes, np.nan)
    first = np.round(trace.t_seconds / MINUTE).astype(np.int64)
    index = first[:, None] + np.arange(each)
    keep = index < minutes
    out[index[keep]] = rows[keep]
    return out


def _recorded(path: Path) -> WorkSeries:
    """Work of recorded Observations, by the weights of the default replica; gaps where nothing was measured."""
    try:
        seen = sorted(observations_of(path), key=lambda o: o.at_seconds)
    except AutoscalerError:
        raise
    except OSError as error:
        raise ConfigError(str(path), f"must be a file that can be read: {error.strerror}") from None
    if len({o.pool for o in seen}) > 1:
        raise ConfigError(str(path), f"pools {sorted({o.pool for o in seen})} must be one: backtest each apart")
    if not seen or seen[-1].at_seconds - seen[0].at_seconds < 20 * MINUTE:
        raise ConfigError(str(path), "must hold at least 20 minutes of Observations")
    work = _minutes_of(seen)
    test_from = work.size // 2
    return WorkSeries(
        name=path.stem,
        start_at_seconds=seen[0].at_seconds // MINUTE * MINUTE,
        time_zone="UTC",
        work=_scaled(work, test_from, path.stem),
        test_from=test_from,
        tuned=False,
    )


def _minutes_of(seen: list[Observation]) -> Floats:
    settings = PoolSettings(name=seen[0].pool)
    model = LearnedCapacity(settings.replica, settings.startup, settings.slo)
    capacity = model.capacity(model.start(), Lengths(), 1)
    start = seen[0].at_seconds // MINUTE * MINUTE
    minutes = math.ceil((seen[-1].at_seconds - start) / MINUTE)
    total, known = np.zeros(minutes), np.zeros(minutes)
    for one in seen:
        amount = work_of(one.demand, capacity, State())
        if amount is None and one.demand is not None and one.demand.requests is not None:
            amount = one.demand.requests * (capacity.seconds_per_request or 1.0)
        if amount is None:
            continue
        at, left = max(start, one.at_seconds - one.window_seconds), amount / one.window_seconds
        while at < one.at_seconds:
            number = (at - start) // MINUTE
            until = min(one.at_seconds, start + (number + 1) * MINUTE)
            total[number] += left * (until - at)
            known[number] += until - at
            at = until
    return np.where(known >= 0.8 * MINUTE, total / np.maximum(known, 1e-9), np.nan)
