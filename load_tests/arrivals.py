"""Arrival instants and lengths of single requests from rates: open loop, fixed before the run.

Renewal processes run in integrated-rate time, so that burstiness is kept where the rate varies; inside an interval the rate
is linear, so that long intervals are not steps.  Every value is drawn from a counter that belongs to its interval: cutting
another window out of a trace gives the same requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from autoscaler.schema import setting
from load_tests import draws

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GAMMA, WEIBULL = 0, 1
DEFAULT_CV = 1.1
_LAST_SHARE = 1.0 - 1e-9  # added to the number of its interval it must not round up to the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """How requests fall inside the intervals of a rate curve."""

    law: Literal["gamma", "weibull", "poisson"] = setting(
        "gamma", "Distribution of the gaps between arrivals; poisson is too smooth for real clients."
    )
    cv: float | None = setting(
        None,
        "Coefficient of variation of the gaps (1 is Poisson, 13 dense bursts); None takes the trace's, else 1.1.",
        above=0,
        high=100,
    )
    exact_counts: bool | None = setting(
        None,
        "True keeps each interval's count as it is, false draws counts around it; None is true for counts of a trace, whose"
        " variation is in the data, and false for the rate of a shape.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Single requests by arrival: what every kind of traffic comes down to.  `row`: number of the row in their trace."""

    arrival_seconds: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    tenant: NDArray[np.int32]
    cached_prompt_tokens: Ints | None = None
    row: Ints | None = None

    def where(self, keep: NDArray[Any]) -> Rows:
        """The rows that a mask or an index array picks."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        picked: dict[str, Any] = {name: None if values is None else values[keep] for name, values in columns.items()}
        return Rows(**picked)


def gamma_shape(cv: ArrayLike) -> Floats:
    """Shape of a gamma distribution of the given coefficient of variation: 1/cv^2."""
    return 1.0 / np.square(np.asarray(cv, dtype=np.float64))


def weibull_shape(cv: ArrayLike) -> Floats:
    """Shape k of a Weibull distribution with cv^2 = Gamma(1 + 2/k) / Gamma(1 + 1/k)^2 - 1, by bisection."""
    wanted, index = np.unique(np.asarray(cv, dtype=np.float64), return_inverse=True)
    out = np.empty_like(wanted)
    for i, v in enumerate(wanted):
        low, high = math.log(0.05), math.log(200.0)
        for _ in range(60):
            k = math.exp(0.5 * (low + high))
            log_ratio = math.lgamma(1.0 + 2.0 / k) - 2.0 * math.lgamma(1.0 + 1.0 / k)
            low, high = (0.5 * (low + high), high) if log_ratio > math.log1p(v * v) else (low, 0.5 * (low + high))
        out[i] = math.exp(0.5 * (low + high))
    shapes: Floats = out[index].reshape(np.shape(cv))
    return shapes


def thinned_cv(cv: Floats, fraction: float) -> Floats:
    """Coefficient of variation of a renewal process after keeping each arrival with `fraction`: it nears Poisson."""
    out: Floats = np.sqrt(fraction * np.square(cv) + 1.0 - fraction)
    return out


def slopes(rates: Floats) -> Floats:
    """Change of the rate across each interval, relative to its mean, in [-2, 2]: linear, mean kept, never below zero.

    Monotonised central differences (van Leer 1977): no new extremes; 0 beside unknown intervals and at the ends.
    """
    out = np.zeros_like(rates)
    if rates.size < 3:
        return out
    back, ahead = rates[1:-1] - rates[:-2], rates[2:] - rates[1:-1]
    same = (back * ahead > 0) & (rates[1:-1] > 0)
    size = np.minimum(0.5 * np.abs(back + ahead), 2.0 * np.minimum(np.abs(back), np.abs(ahead)))
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.sign(back) * np.minimum(size / rates[1:-1], 2.0)
    out[1:-1] = np.where(same, relative, 0.0)
    return out


def _inverse_share(f: float, g: float) -> float:
    """Where in [0, 1] a linear rate with relative slope g has given the share f of its arrivals."""
    if f <= 0.0:
        return 0.0
    h = 1.0 - 0.5 * g
    return min(_LAST_SHARE, 2.0 * f / (h + math.sqrt(max(0.0, h * h + 2.0 * g * f))))


def _gap(key: Any, i: Any, shape: float, law: int) -> float:
    if law == WEIBULL:
        return float((-math.log(draws.uniform_at(key, i))) ** (1.0 / shape) / math.gamma(1.0 + 1.0 / shape))
    if shape == 1.0:
        return -math.log(draws.uniform_at(key, i))
    return draws.gamma_at(key, i, shape)


_inverse_share = njit(cache=True)(_inverse_share)
_gap = njit(cache=True)(_gap)


def _fill_exact(key: Any, first: int, counts: Ints, shapes: Floats, g: Floats, law: int, out: Floats) -> None:
    """Shares of each interval, ascending: normalised gaps on a circle with a random phase, so no edge is special."""
    at = 0
    for i in range(counts.size):
        n = counts[i]
        if n == 0:
            continue
        own = draws.child_key(key, first + i)
        total = 0.0
        for j in range(n):
            total += _gap(own, j + 1, shapes[i], law)
            out[at + j] = total
        phase = draws.uniform_at(own, 0)
        shift = 0
        for j in range(n):
            share = phase + (out[at + j] / total if total > 0.0 else 0.0)
            if share >= 1.0:
                share -= 1.0
                shift += 1
            out[at + j] = _inverse_share(share, g[i])
        if 0 < shift < n:
            part = out[at : at + n].copy()
            for j in range(n):
                out[at + j] = part[(j + n - shift) % n]
        for j in range(at + 1, at + n):  # phase + 1 - 1 is not quite phase
            out[j] = max(out[j], out[j - 1])
        at += n


def _fill_renewal(key: Any, counts: Floats, shapes: Floats, g: Floats, law: int, start: float, out: Floats) -> int:
    """Interval number plus share of each arrival of a renewal process in integrated-rate time; -1: `out` is too short."""
    i, below, u, n, drawn = 0, 0.0, start, 0, 0
    while i < counts.size:
        u += _gap(key, drawn, shapes[i], law)
        drawn += 1
        while i < counts.size and u >= below + counts[i]:
            below += counts[i]
            i += 1
        if i < counts.size and u >= 0.0:
            if n == out.size:
                return -1
            at = i + _inverse_share((u - below) / counts[i], g[i])
            out[n] = max(at, out[n - 1]) if n else at  # rounding must not turn two arrivals around
            n += 1
    return n


_fill_exact = njit(cache=True)(_fill_exact)
_fill_renewal = njit(cache=True)(_fill_renewal)


def _shapes(law: str, cv: Floats) -> tuple[int, Floats]:
    if law == "poisson":
        return GAMMA, np.ones_like(cv)
    return (WEIBULL, weibull_shape(cv)) if law == "weibull" else (GAMMA, gamma_shape(cv))


def spread_counts(
    key: int, counts: Ints, cv: Floats, relative_slopes: Floats, *, law: str = "gamma", first: int = 0
) -> Floats:
    """Arrivals of whole intervals: value ``i + share`` for each of `counts[i]` requests of interval i, ascending.

    `first` is the number of the first interval in its trace; draws are keyed by it.
    """
    code, shapes = _shapes(law, cv)
    out = np.empty(int(counts.sum()))
    _fill_exact(np.uint64(key), first, counts.astype(np.int64), shapes, relative_slopes, code, out)
    return out + np.repeat(np.arange(counts.size), counts)


def spread_rates(key: int, means: Floats, cv: Floats, relative_slopes: Floats, *, law: str = "gamma") -> Floats:
    """Arrivals of a renewal process whose expected count in interval i is `means[i]`; same values as `spread_counts`.

    The process starts well before the first interval, so that it is in its steady state there.
    """
    code, shapes = _shapes(law, cv)
    warm = -50.0 * max(1.0, float(cv[0]) ** 2)
    size = int(means.sum() + 10.0 * math.sqrt(means.sum() + 1.0) * max(1.0, float(cv.max())) + 100)
    while True:
        out = np.empty(size)
        n = _fill_renewal(np.uint64(key), means, shapes, relative_slopes, code, warm, out)
        if n >= 0:
            return out[:n]
        size *= 2


def lognormals(key: int, means: Floats, sigma: float, *, start: int = 0, high: int = 131_072) -> Ints:
    """Lengths with the given means: lognormal of spread `sigma`, rounded, in [1, high]; value i is keyed by start + i."""
    return _lengths(means, sigma, draws.normals(key, means.size, start), high)


def _lengths(means: Floats, sigma: float, z: Floats, high: int) -> Ints:
    values = means * np.exp(sigma * z - 0.5 * sigma * sigma) if sigma > 0.0 else means
    out: Ints = np.clip(np.rint(values), 1, high).astype(np.int64)
    return out


def lognormal_pairs(
    key: int,
    prompt_means: Floats,
    output_means: Floats,
    *,
    prompt_sigma: float,
    output_sigma: float,
    correlation: float = 0.0,
    start: int = 0,
) -> tuple[Ints, Ints]:
    """Prompt and output lengths drawn jointly: `correlation` is that of their logarithms."""
    n = prompt_means.size
    z = draws.normals(draws.key(key, "prompt"), n, start)
    own = draws.normals(draws.key(key, "output"), n, start)
    other = correlation * z + math.sqrt(1.0 - correlation * correlation) * own if correlation else own
    return _lengths(prompt_means, prompt_sigma, z, 131_072), _lengths(output_means, output_sigma, other, 131_072)


def resampled_pairs(
    key: int,
    prompt_tokens: Ints,
    output_tokens: Ints,
    n: int,
    *,
    prompt_means: Floats | None = None,
    output_means: Floats | None = None,
    start: int = 0,
) -> tuple[Ints, Ints]:
    """Pairs drawn from recorded ones, kept together; each side is scaled to the wanted means, which keeps its ranks."""
    pick = np.minimum((draws.uniforms(key, n, start) * prompt_tokens.size).astype(np.int64), prompt_tokens.size - 1)
    sides = []
    for tokens, means in ((prompt_tokens, prompt_means), (output_tokens, output_means)):
        if means is None:
            sides.append(tokens[pick])
        else:
            sides.append(_lengths(tokens[pick] * (means / tokens.mean()), 0.0, np.empty(0), 131_072))
    return sides[0], sides[1]


def thinned(key: int, rows: Rows, fraction: float) -> Rows:
    """Each request kept with probability `fraction`, by its number."""
    if fraction >= 1.0:
        return rows
    return rows.where(draws.uniforms(key, rows.arrival_seconds.size) < fraction)


def rotated(rows: Rows, shift_seconds: float, span_seconds: float) -> Rows:
    """The same requests `shift_seconds` later, those beyond the span at its start."""
    moved = np.mod(rows.arrival_seconds + shift_seconds, span_seconds)
    order = np.argsort(moved, kind="stable")
    return replace(rows.where(order), arrival_seconds=moved[order])


def merged(parts: Sequence[Rows]) -> Rows:
    """Several streams added up, by arrival and then by stream."""
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate([p.arrival_seconds for p in parts]), kind="stable")
    columns: dict[str, Any] = {}
    for f in fields(Rows):
        values = [getattr(p, f.name) for p in parts]
        if all(v is None for v in values):
            columns[f.name] = None
            continue
        filled = [
            np.zeros(p.arrival_seconds.size, np.int64) if v is None else v for p, v in zip(parts, values, strict=True)
        ]
        columns[f.name] = np.concatenate(filled)[order]
    return Rows(**columns)
