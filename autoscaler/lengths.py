"""How long requests are: decayed moments of prompts and answers out of Observations, and out of coarse histograms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeGuard

from autoscaler.types import Histogram, Lengths, Moments, Observation, State

# Half-life, in seconds, of the mean lengths of prompts and answers, and of their spread.
LENGTHS_HALF_LIFE_SECONDS = 1800.0
# A spread is believed once histograms of so many seconds are behind it.  Seconds, not requests: what is believed of
# replicas must not depend on how much demand there is.
LEAST_SECONDS = 300.0


def with_lengths(state: State, observation: Observation) -> State:
    """`state` with the lengths of requests in `observation`: means per request, and moments where histograms are known."""
    demand = observation.demand
    if demand is None:
        return state
    window = observation.window_seconds
    decay = 0.5 ** (window / LENGTHS_HALF_LIFE_SECONDS)
    state = replace(
        state,
        prompt_moments=_with_histogram(state.prompt_moments, demand.prompt_lengths, window, decay),
        output_moments=_with_histogram(state.output_moments, demand.output_lengths, window, decay),
    )
    if _some(demand.requests) and demand.prompt_tokens is not None:
        mean, weight = _decayed(
            state.mean_prompt_tokens, state.prompt_weight * decay, demand.prompt_tokens, demand.requests
        )
        state = replace(state, mean_prompt_tokens=mean, prompt_weight=weight)
    lengths = demand.output_lengths
    if lengths is not None and lengths.sum is not None and _some(lengths.total):
        total, count = lengths.sum, lengths.total
    elif _some(demand.finished_requests) and demand.output_tokens is not None:
        total, count = demand.output_tokens, demand.finished_requests
    elif _some(demand.requests) and demand.output_tokens is not None and demand.finished_requests is None:
        total, count = demand.output_tokens, demand.requests
    else:
        return state
    mean, weight = _decayed(state.mean_output_tokens, state.output_weight * decay, total, count)
    return replace(state, mean_output_tokens=mean, output_weight=weight)


def lengths_of(state: State) -> Lengths:
    """What `state` knows of lengths; a spread is None until histograms of `LEAST_SECONDS` are behind it."""
    return Lengths(
        mean_prompt_tokens=state.mean_prompt_tokens,
        mean_output_tokens=state.mean_output_tokens,
        prompt_cv=_variation(state.prompt_moments),
        output_cv=_variation(state.output_moments),
    )


def histogram_moments(histogram: Histogram) -> tuple[float, float] | None:
    """(mean, mean square) of the lengths in a histogram; None without samples.

    Lengths start at one token, and the last, open bucket is taken as twice as wide as its bound.  Log-uniform lengths inside
    buckets of width h (in logarithms) are spread wider than smooth lengths were before they were sorted into buckets:
    their k-th moment is too large by about exp(k^2 h^2 / 12), which is taken off (Sheppard's correction, twice).  The mean is
    the true one where the sum is known.  vLLM's buckets are coarse (1, 2, 5, 10, ...): lengths that share one bucket read
    as all alike, so that a coefficient of variation below about 0.2 cannot be told from 0.
    """
    total = histogram.total
    if not _some(total):
        return None
    low = 1.0
    first = square = 0.0
    for upper, count in zip((*histogram.upper_bounds, math.inf), histogram.counts, strict=True):
        high = max(low, 2.0 * low if upper == math.inf else upper)
        width = math.log(high / low)
        share, off = count / total, math.exp(-width * width / 12.0)
        if width > 0.0:
            first += share * off * (high - low) / width
            square += share * off**4 * (high - low) * (high + low) / (2.0 * width)
        else:
            first += share * low
            square += share * low * low
        low = high
    mean = first if histogram.sum is None else histogram.sum / total
    square = max(1.0, square / (first * first)) * mean * mean
    return (mean, square) if math.isfinite(square) else None


def _with_histogram(known: Moments | None, histogram: Histogram | None, window: float, decay: float) -> Moments | None:
    found = None if histogram is None else histogram_moments(histogram)
    if found is None or histogram is None:
        return known
    count = histogram.total
    if known is None:
        return Moments(mean=found[0], square=found[1], weight=count, seconds=float(window))
    mean, weight = _decayed(known.mean, known.weight * decay, found[0] * count, count)
    square, _ = _decayed(known.square, known.weight * decay, found[1] * count, count)
    return Moments(mean=mean, square=square, weight=weight, seconds=known.seconds * decay + window)


def _variation(moments: Moments | None) -> float | None:
    if moments is None or moments.seconds < LEAST_SECONDS or moments.mean <= 0.0:
        return None
    return math.sqrt(max(0.0, moments.square / (moments.mean * moments.mean) - 1.0))


def _some(count: float | None) -> TypeGuard[float]:
    """True for a count that a mean can be taken of; a thousandth of a request is rounding, not evidence."""
    return count is not None and count > 1e-3


def _decayed(mean: float | None, weight: float, total: float, count: float) -> tuple[float, float]:
    if mean is None:
        return total / count, count
    return (mean * weight + total) / (weight + count), weight + count
