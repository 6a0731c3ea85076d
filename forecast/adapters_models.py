"""Models of other libraries, in logs of 10-min means: parameters by the library once a day, its recursion run on what came.

Paths ahead are the model's mean path plus shocks of its residual spread, spread out by its own impulse response; the shocks
are a fixed low-discrepancy sample, so that the same past gives the same bytes.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.adapters import BIN, DAY_BINS, LEVELS, Fitted, Model, Past

Floats = NDArray[np.float64]
PATHS = 96
RECENT = 3 * DAY_BINS  # bins that recursions run over: states forget what was before
LEAST_SPREAD = 0.01
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)
_SEASON_FROM = 2 * DAY_BINS  # two full cycles


@cache
def shocks(horizon: int) -> Floats:
    """`PATHS` x `horizon` standard normal values: a Kronecker sequence on square roots of primes."""
    normal = NormalDist()
    columns = [[normal.inv_cdf(((i + 0.5) * math.sqrt(p)) % 1.0) for i in range(PATHS)] for p in _PRIMES[:horizon]]
    return np.array(columns).T


def bins_ahead(windows: Sequence[tuple[int, int]]) -> int:
    """Bins that the windows reach into, at most as many as there are shocks for."""
    return min(len(_PRIMES), max(1, *(-(-end // BIN) for _, end in windows)))


@dataclass(frozen=True, slots=True)
class PathModel:
    """A fitted model that says a mean path.  `response`: what a shock of 1 does 0, 1, 2 ... bins later."""

    mean: Callable[[Past, int], Floats]
    spread: float
    response: Callable[[int], Floats]

    def quantiles(self, past: Past, windows: Sequence[tuple[int, int]]) -> list[list[float]]:
        """Of the largest value of each path inside each window."""
        horizon = bins_ahead(windows)
        weight = np.asarray(self.response(horizon))
        noise = shocks(horizon)
        moved = np.stack([noise[:, : j + 1] @ weight[: j + 1][::-1] for j in range(horizon)], axis=1)
        paths = np.asarray(self.mean(past, horizon)) + max(self.spread, LEAST_SPREAD) * moved
        rows = []
        for start, end in windows:
            first = min(start // BIN, horizon - 1)
            inside = paths[:, first : max(first + 1, -(-end // BIN))]
            rows.append([float(v) for v in np.quantile(inside.max(axis=1), LEVELS)])
        return rows


def constant(weight: float) -> Callable[[int], Floats]:
    """The response of a level that takes over `weight` of a shock."""
    return lambda horizon: np.concatenate([[1.0], np.full(horizon - 1, weight)])


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries warn of what they do about convergence; the outcome is judged by its forecasts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def recent(past: Past) -> Floats:
    """The last bins, and at least two seasons."""
    return np.asarray(past.bins[-RECENT:])


@dataclass(frozen=True, slots=True)
class AutoEts:
    """statsforecast's AutoETS without a season: a day has 144 bins, more than exponential smoothing can learn in weeks."""

    spread: bool = True

    def fit(self, past: Past) -> Fitted:
        """By information criterion over error and trend types."""
        from statsforecast.models import AutoETS

        with quiet():
            model = AutoETS(season_length=1, model="ZZN").fit(np.asarray(past.bins))

        def mean(seen: Past, horizon: int) -> Floats:
            with quiet():
                return np.asarray(model.forward(recent(seen), h=horizon)["mean"])

        alpha = float(model.model_["par"][0])
        return PathModel(mean, float(np.nanstd(model.model_["residuals"])), constant(alpha))


@dataclass(frozen=True, slots=True)
class Theta:
    """statsforecast's DynamicOptimizedTheta, with a daily season from two days on."""

    spread: bool = True

    def fit(self, past: Past) -> Fitted:
        """Smoothing weight and theta by least squares."""
        from statsforecast.models import DynamicOptimizedTheta

        season = DAY_BINS if len(past.bins) >= _SEASON_FROM else 1
        with quiet():
            model = DynamicOptimizedTheta(season_length=season, decomposition_type="additive")
            model.fit(np.asarray(past.bins))

        def ahead(values: Floats, horizon: int) -> Floats:
            with quiet():
                return np.asarray(model.forward(values, h=horizon)["mean"])

        # Its residuals hold the season: the spread is that of one-step errors at some origins of the last day.
        bins = np.asarray(past.bins)
        at = range(max(8, bins.size - DAY_BINS), bins.size, 6)
        errors = [bins[k] - float(ahead(bins[max(0, k - RECENT) : k], 1)[0]) for k in at]
        spread = float(np.std(errors)) if errors else 0.5
        alpha = float(model.model_["par"]["alpha"])
        return PathModel(lambda seen, horizon: ahead(recent(seen), horizon), spread, constant(alpha))


@dataclass(frozen=True, slots=True)
class Mstl:
    """statsforecast's MSTL with a daily season, and AutoETS on the rest.  Asleep before two days."""

    spread: bool = True

    def fit(self, past: Past) -> Fitted:
        """The season is taken as it was on the last day that the fit saw."""
        from statsforecast.models import AutoETS
        from statsforecast.mstl import mstl

        bins = np.asarray(past.bins)
        season = np.zeros(DAY_BINS)
        fitted_at = past.at_seconds
        if bins.size >= _SEASON_FROM:
            with quiet():
                parts = mstl(bins, [DAY_BINS])
            column = next(c for c in parts.columns if str(c).startswith("seasonal"))
            season = np.asarray(parts[column])[-DAY_BINS:]
        with quiet():
            level = AutoETS(season_length=1, model="ZZN").fit(bins - in_season(season, np.arange(-bins.size, 0)))

        def mean(seen: Past, horizon: int) -> Floats:
            values, since = recent(seen), (seen.at_seconds - fitted_at) / BIN
            with quiet():
                rest = values - in_season(season, since + np.arange(-values.size, 0))
                ahead = level.forward(rest, h=horizon)["mean"]
            out: Floats = np.asarray(ahead) + in_season(season, since + np.arange(horizon))
            return out

        return PathModel(mean, float(np.nanstd(level.model_["residuals"])), constant(float(level.model_["par"][0])))


def in_season(season: Floats, places: Any) -> Floats:
    """The season at bins counted from the fit, whose day `season` is: `-1` is its last bin, in between it is a line."""
    whole = np.floor(places).astype(np.int64)
    part: Floats = places - whole
    out: Floats = (1.0 - part) * season[whole % DAY_BINS] + part * season[(whole + 1) % DAY_BINS]
    return out


@dataclass(frozen=True, slots=True)
class Ets:
    """statsmodels' ETS(A, Ad, A) with a daily season; without one before two days."""

    spread: bool = True

    def fit(self, past: Past) -> Fitted:
        """Smoothing weights by maximum likelihood from heuristic first states."""
        from statsmodels.tsa.exponential_smoothing.ets import ETSModel

        bins = np.asarray(past.bins)
        seasonal = bins.size >= _SEASON_FROM + DAY_BINS // 2
        options: dict[str, Any] = {"seasonal": "add", "seasonal_periods": DAY_BINS} if seasonal else {}
        start = {"initialization_method": "heuristic"} if bins.size >= 10 else {}
        with quiet():
            found = ETSModel(bins, error="add", trend="add", damped_trend=True, **options, **start).fit(
                disp=False, maxiter=80
            )
        named = dict(zip(found.param_names, np.asarray(found.params), strict=True))
        alpha, beta = float(named["smoothing_level"]), float(named["smoothing_trend"])
        gamma, phi = float(named.get("smoothing_seasonal", 0.0)), float(named["damping_trend"])
        season0 = np.zeros(DAY_BINS)
        if seasonal:
            season0 = np.asarray(found.season)[-DAY_BINS:]
        last = (float(np.asarray(found.level)[-1]), float(np.asarray(found.slope)[-1]))
        fitted_at = past.at_seconds

        def mean(seen: Past, horizon: int) -> Floats:
            level, slope = last
            season = season0.copy()
            fresh = min(max(0, (seen.at_seconds - fitted_at) // BIN), len(seen.bins))
            since = (seen.at_seconds - fitted_at) / BIN
            places = since + np.arange(-fresh, 0)
            for value, place, known in zip(
                seen.bins[len(seen.bins) - fresh :], places, in_season(season0, places), strict=True
            ):
                error = value - (level + phi * slope + known)
                level, slope = level + phi * slope + alpha * error, phi * slope + beta * error
                season[round(place) % DAY_BINS] += gamma * error
            damped = np.cumsum(phi ** np.arange(1, horizon + 1))
            out: Floats = level + damped * slope + in_season(season, since + np.arange(horizon))
            return out

        def response(horizon: int) -> Floats:
            k = np.arange(1, horizon)
            return np.concatenate([[1.0], alpha + beta * np.cumsum(phi**k)])

        return PathModel(mean, float(np.std(np.asarray(found.resid))), response)


@dataclass(frozen=True, slots=True)
class Sarimax:
    """statsmodels' SARIMAX(2, 0, 1) around a level and, from two days on, three daily harmonics.

    The harmonics are fitted first: with them inside the likelihood a fit takes ten times as long.
    """

    spread: bool = True

    def fit(self, past: Past) -> Fitted:
        """Harmonics by least squares, then ARMA by maximum likelihood."""
        from statsmodels.tsa.statespace.sarimax import SARIMAX

        bins = np.asarray(past.bins)
        waves = 3 if bins.size >= _SEASON_FROM else 0
        matrix = _harmonics(past.at_seconds / BIN - bins.size + np.arange(bins.size), waves)
        beta = np.linalg.lstsq(matrix, bins, rcond=None)[0]
        rest = bins - matrix @ beta
        with quiet():
            found = SARIMAX(rest, order=(2, 0, 1), concentrate_scale=True).fit(disp=False, maxiter=40)
        one, two, moving = (float(v) for v in np.asarray(found.params)[:3])

        def mean(seen: Past, horizon: int) -> Floats:
            values = recent(seen)
            number = seen.at_seconds / BIN
            left = (values - _harmonics(number - values.size + np.arange(values.size), waves) @ beta).tolist()
            error = 0.0
            for before, last, now in zip(left, left[1:], left[2:], strict=False):
                error = now - one * last - two * before - moving * error
            tail = left[-2:] if len(left) > 1 else [left[-1], left[-1]]
            for j in range(horizon):
                tail.append(one * tail[-1] + two * tail[-2] + (moving * error if j == 0 else 0.0))
            out: Floats = np.array(tail[2:]) + _harmonics(number + np.arange(horizon), waves) @ beta
            return out

        def response(horizon: int) -> Floats:
            psi = [1.0, one + moving]
            while len(psi) < horizon:
                psi.append(one * psi[-1] + two * psi[-2])
            return np.array(psi[:horizon])

        return PathModel(mean, math.sqrt(float(found.scale)), response)


def _harmonics(numbers: Any, waves: int) -> Floats:
    angle = 2.0 * np.pi * np.asarray(numbers) / DAY_BINS
    columns = [np.ones(angle.size)]
    for k in range(1, waves + 1):
        columns += [np.sin(k * angle), np.cos(k * angle)]
    return np.column_stack(columns)


@dataclass(frozen=True, slots=True)
class ProphetModel:
    """Prophet: piecewise trend, days and (from two weeks on) weeks.  It is not told what came since its fit."""

    spread: bool = True

    def fit(self, past: Past) -> Fitted:
        """The mode of the posterior; the first day ahead and a little more is kept."""
        import pandas as pd

        for name in ("prophet", "prophet.plot", "cmdstanpy"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        from prophet import Prophet

        bins = np.asarray(past.bins)
        with quiet():
            seasonal = bins.size >= _SEASON_FROM
            model = Prophet(
                growth="linear" if seasonal else "flat",
                daily_seasonality=seasonal,
                weekly_seasonality=bins.size >= 14 * DAY_BINS - 1,
                yearly_seasonality=False,
                uncertainty_samples=0,
                n_changepoints=min(15, bins.size // 4),
            )
            stamps = pd.to_datetime(past.at_seconds + BIN * np.arange(-bins.size, 0), unit="s")
            model.fit(pd.DataFrame({"ds": stamps, "y": bins}), seed=1)
            ahead = pd.to_datetime(past.at_seconds + BIN * np.arange(DAY_BINS + len(_PRIMES)), unit="s")
            path = np.asarray(model.predict(pd.DataFrame({"ds": ahead}))["yhat"])
            spread = float(np.mean(model.params["sigma_obs"])) * float(model.y_scale or 1.0)
        fitted_at = past.at_seconds

        def mean(seen: Past, horizon: int) -> Floats:
            places = max(0.0, (seen.at_seconds - fitted_at) / BIN) + np.arange(horizon)
            out: Floats = np.interp(places, np.arange(path.size), path)
            return out

        return PathModel(mean, spread, constant(0.0))


MODELS: dict[str, Callable[[], Model]] = {
    "auto_ets": AutoEts, "theta": Theta, "mstl": Mstl, "ets": Ets, "sarimax": Sarimax, "prophet": ProphetModel,
}  # fmt: skip
