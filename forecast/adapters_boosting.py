"""Quantile boosting on lagged values: one model per level says the largest work of any window over the last level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.adapters import BIN, DAY_BINS, LEVELS, Fitted, Model, Past

Floats = NDArray[np.float64]
LAGS = (1, 2, 3, 6, 12, 36)
_FIT_LEVELS = (0.5, 0.9, 0.99)  # the others lie between them, linearly in normal quantiles
_ROWS = 1008  # latest origins that are learned from
_WINDOWS = ((0, 1), (1, 2), (0, 2))  # in bins ahead
_Z = np.array([NormalDist().inv_cdf(q) for q in LEVELS])


@dataclass(frozen=True, slots=True)
class Boosting:
    """scikit-learn's HistGradientBoostingRegressor with a quantile loss."""

    spread: bool = True

    def fit(self, past: Past) -> Fitted:
        """Rows are origins x windows; the target is the largest bin of the window less the last bin."""
        from sklearn.ensemble import HistGradientBoostingRegressor

        bins = np.asarray(past.bins)
        first = min(max(LAGS), bins.size // 3)
        origins = np.arange(max(first, bins.size - 2 - _ROWS), bins.size - 2)
        if origins.size < 12:
            raise ValueError("too few origins to learn from")
        rows, targets = [], []
        for start, end in _WINDOWS:
            rows.append(_features(bins, origins, past.at_seconds, bins.size, (start, end)))
            targets.append(np.max([bins[origins + 1 + k] for k in range(start, end)], axis=0) - bins[origins])
        x, y = np.concatenate(rows), np.concatenate(targets)
        models = [
            HistGradientBoostingRegressor(
                loss="quantile", quantile=q, max_iter=40, max_leaf_nodes=15, min_samples_leaf=20, early_stopping=False,
                random_state=0,
            ).fit(x, y)
            for q in _FIT_LEVELS
        ]  # fmt: skip
        return _Boosted(tuple(models))


@dataclass(frozen=True, slots=True)
class _Boosted:
    models: tuple[Any, ...]

    def quantiles(self, past: Past, windows: Sequence[tuple[int, int]]) -> list[list[float]]:
        """Per window the nearest one that was learned."""
        bins = np.asarray(past.bins)
        last = np.array([bins.size - 1])
        spans = [_span(window) for window in windows]
        x = np.concatenate([_features(bins, last, past.at_seconds, bins.size, span) for span in spans])
        knots = np.array([NormalDist().inv_cdf(q) for q in _FIT_LEVELS])
        said = np.sort(np.stack([model.predict(x) for model in self.models], axis=1), axis=1)
        return [[float(bins[-1] + v) for v in np.interp(_Z, knots, row)] for row in said]


def _span(window: tuple[int, int]) -> tuple[int, int]:
    """The learned window, in bins ahead, most like this one."""
    start, end = window[0] // BIN, max(window[0] // BIN + 1, -(-window[1] // BIN))
    return min(_WINDOWS, key=lambda w: (abs(w[0] - start) + abs(w[1] - end), w))


def _features(bins: Floats, at: Any, at_seconds: int, size: int, window: tuple[int, int]) -> Floats:
    """Lags relative to the last bin, the same bins a day ago, the hour as an angle, and the window."""
    base = bins[at]

    def lagged(steps: int) -> Floats:
        out: Floats = np.where(at - steps >= 0, bins[np.maximum(at - steps, 0)] - base, 0.0)
        return out

    angle = 2.0 * np.pi * ((at_seconds / BIN - size + 1 + at) % DAY_BINS) / DAY_BINS
    columns = [base, *(lagged(k) for k in LAGS), *(lagged(DAY_BINS - k) for k in (0, 1, 2)), lagged(7 * DAY_BINS - 1)]
    columns += [np.sin(angle), np.cos(angle), np.full(base.size, window[0]), np.full(base.size, window[1])]
    return np.column_stack(columns)


MODELS: dict[str, Callable[[], Model]] = {"boosting": Boosting}
