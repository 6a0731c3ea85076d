"""What NVIDIA Dynamo's planner thinks comes next: constant, Kalman and ARIMA predictors, one interval ahead.

Source: Dynamo's planner, ``core/load/predictors.py``.  Each is fed one value per interval; zeros before the first other
value are skipped.  (The fourth, Prophet, needs its package and so is no law.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autoscaler.laws import dynamo_arima
from autoscaler.schema import setting

_ARIMA_POINTS = 5
_CHOICE_POINTS = 160  # an order is chosen from the last so many values
_FIT_POINTS = 480  # a refit looks at the last so many values: a day of 180 s; a mean is over all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class KalmanSpec:
    """Knobs of the local linear trend, with the shipped defaults."""

    level_variance: float = setting(1.0, "Variance of the level's own steps.", above=0)
    trend_variance: float = setting(0.1, "Variance of the trend's own steps.", above=0)
    noise_variance: float = setting(10.0, "Variance of a value around the level.", above=0)
    least_points: int = setting(5, "The last value stands until there are so many.", low=1, high=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class KalmanState:
    """Level and trend after the last value, their covariance (variances and what they share), and the values so far."""

    level: float = 0.0
    trend: float = 0.0
    covariance: tuple[float, float, float] = (1000.0, 1000.0, 0.0)
    points: int = 0
    last: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArimaState:
    """Values so far; the fit when the order was last chosen, whether in logarithms, and how many values there were."""

    values: tuple[float, ...] = ()
    fit: dynamo_arima.Fit | None = None
    logarithmic: bool = False
    chosen_at: int = 0


def kalman_add(spec: KalmanSpec, state: KalmanState, value: float) -> KalmanState:
    """The state after one more value."""
    if state.points == 0:
        return state if value == 0.0 else KalmanState(level=value, points=1, last=value)
    level_variance, trend_variance, shared = state.covariance
    # Predict ...
    level = state.level + state.trend
    level_variance += 2 * shared + trend_variance + spec.level_variance
    shared += trend_variance
    trend_variance += spec.trend_variance
    # ... and correct.
    total = level_variance + spec.noise_variance
    level_gain, trend_gain = level_variance / total, shared / total
    error = value - level
    return KalmanState(
        level=level + level_gain * error,
        trend=state.trend + trend_gain * error,
        covariance=(
            (1 - level_gain) * level_variance,
            trend_variance - trend_gain * shared,
            (1 - level_gain) * shared,
        ),
        points=state.points + 1,
        last=value,
    )


def kalman_next(spec: KalmanSpec, state: KalmanState) -> float:
    """The next value; it may be negative."""
    return state.last if state.points < spec.least_points else state.level + state.trend


def arima_add(state: ArimaState, value: float) -> ArimaState:
    """The state after one more value."""
    if not state.values and value == 0.0:
        return state
    return replace(state, values=(*state.values, max(0.0, value)))


def arima_next(state: ArimaState, *, choose_every: int | None = None) -> tuple[float, ArimaState]:
    """The next value, and the state with the order that was chosen for it.

    As shipped (`choose_every` None) the order is chosen once, from the first five values; if it has neither AR nor MA terms,
    once more in logarithms; parameters are fitted anew each time.  Otherwise both are found anew after a quarter more
    values, and at the latest after `choose_every`.
    """
    values = state.values
    if len(values) < _ARIMA_POINTS:
        return (values[-1] if values else 0.0), state
    if min(values) == max(values):
        return values[0], state
    fit = state.fit
    if fit is None or (choose_every is not None and len(values) - state.chosen_at >= _patience(state, choose_every)):
        state = _chosen(state)
        fit = state.fit
    assert fit is not None
    order = fit.order
    recent = values if order.p + order.q + order.d == 0 and choose_every is None else values[-_FIT_POINTS:]
    series = [math.log1p(v) for v in recent] if state.logarithmic else list(recent)
    if choose_every is None:
        fit = dynamo_arima.fit(series, order)
    following = dynamo_arima.forecast(series, fit)
    return max(0.0, math.expm1(min(following, 700.0)) if state.logarithmic else following), state


def _patience(state: ArimaState, choose_every: int) -> int:
    return max(1, min(choose_every, state.chosen_at // 4))


def _chosen(state: ArimaState) -> ArimaState:
    recent, logarithmic = list(state.values[-_CHOICE_POINTS:]), False
    order = dynamo_arima.choose(recent)
    if order.p == order.q == 0:
        recent, logarithmic = [math.log1p(v) for v in recent], True
        order = dynamo_arima.choose(recent)
    fit = dynamo_arima.fit(recent, order)
    return replace(state, fit=fit, logarithmic=logarithmic, chosen_at=len(state.values))
