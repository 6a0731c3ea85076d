"""How long requests are: decayed moments of prompts and answers out of Observations, and out of coarse histograms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TypeGuard

from autoscaler.copies import replace
from autoscaler.types import Histogram, Lengths, Moments, Observation, State

# Half-life, in seconds, of the mean lengths of prompts and answers, and of their spread.
LENGTHS_HALF_LIFE_SECONDS = 1800.0
# A spread is believed once histograms of so many seconds are behind it.  Seconds, not requests: what is believed of
# replicas must not depend on how much demand there is.
LEAST_SECONDS = 300.0
# Another mix: the newest requests are longer or shorter by such a fraction, and by so many standard errors of their mean.
# Clients come in clumps, so that the errors are larger than chance alone would have them.
NEW_LENGTHS_FRACTION, NEW_LENGTHS_SIGMA = 0.2, 6.0
USUAL_CV, LEAST_REQUESTS = 1.0, 20.0
UNSTEADY_FRACTION = 0.25


def with_lengths(state: State, observation: Observation, recent: Sequence[Observation] = ()) -> State:
    """`state` with the lengths of requests in `observation`: means per request, and moments where histograms are known.

    Means follow slowly, unless the newest requests of `recent` (oldest first) and of `observation` are clearly others: then
    the past is forgotten, but for how widely lengths are spread around their mean.  Answers that end just after a rush are
    the short ones of it, those that end after a queue the long ones: while more come than end, or fewer, no answers are
    news, and shorter ones are always believed slowly.
    """
    state = _averaged(state, observation)
    prompt = _newest(
        _sums(_prompts, observation, recent, state.prompt_weight), state.mean_prompt_tokens, state.prompt_moments
    )
    if prompt is not None and state.mean_prompt_tokens is not None:
        mean, count = prompt
        moments = _scaled(state.prompt_moments, mean / state.mean_prompt_tokens, count)
        state = replace(state, mean_prompt_tokens=mean, prompt_weight=count, prompt_moments=moments)
    output = _newest(
        _sums(_outputs, observation, recent, state.output_weight), state.mean_output_tokens, state.output_moments
    )
    known = state.mean_output_tokens
    if output is not None and known is not None and output[0] > known and _steady(observation, recent):
        mean, count = output
        moments = _scaled(state.output_moments, mean / known, count)
        state = replace(state, mean_output_tokens=mean, output_weight=count, output_moments=moments)
    return state


def _averaged(state: State, observation: Observation) -> State:
    demand = observation.demand
    if demand is None:
        return state
    window = observation.window_seconds
    decay = 0.5 ** (window / LENGTHS_HALF_LIFE_SECONDS)
    prompts, outputs = _prompts(observation), _outputs(observation)
    prompt = state.mean_prompt_tokens, state.prompt_weight
    output = state.mean_output_tokens, state.output_weight
    if prompts is not None:
        prompt = _decayed(prompt[0], prompt[1] * decay, *prompts)
    if outputs is not None:
        output = _decayed(output[0], output[1] * decay, *outputs)
    return replace(
        state,
        mean_prompt_tokens=prompt[0], prompt_weight=prompt[1],
        mean_output_tokens=output[0], output_weight=output[1],
        prompt_moments=_with_histogram(state.prompt_moments, demand.prompt_lengths, window, decay),
        output_moments=_with_histogram(state.output_moments, demand.output_lengths, window, decay),
    )  # fmt: skip


def _prompts(observation: Observation) -> tuple[float, float] | None:
    """(tokens, requests) of the prompts that arrived; None where nothing tells."""
    demand = observation.demand
    if demand is None or not _some(demand.requests) or demand.prompt_tokens is None:
        return None
    return demand.prompt_tokens, demand.requests


def _outputs(observation: Observation) -> tuple[float, float] | None:
    """(tokens, requests) of the answers that ended; None where nothing tells."""
    demand = observation.demand
    if demand is None:
        return None
    lengths = demand.output_lengths
    if lengths is not None and lengths.sum is not None and _some(total := lengths.total):
        return lengths.sum, total
    if _some(demand.finished_requests) and demand.output_tokens is not None:
        return demand.output_tokens, demand.finished_requests
    if _some(demand.requests) and demand.output_tokens is not None and demand.finished_requests is None:
        return demand.output_tokens, demand.requests
    return None


Count = Callable[[Observation], tuple[float, float] | None]


def _newest(
    sums: Iterator[tuple[float, float]], mean: float | None, moments: Moments | None
) -> tuple[float, float] | None:
    """(mean length, requests) of the newest requests, where they are clearly other than `mean`; else None.

    Of all the times since when it may be so, the one at which chance explains the difference least.
    """
    if mean is None or mean <= 0.0:
        return None
    cv = max(_variation(moments) or USUAL_CV, 0.2)
    best, found = NEW_LENGTHS_SIGMA, None
    for i, (tokens, requests) in enumerate(sums):
        if requests < LEAST_REQUESTS:
            continue
        apart = tokens / requests / mean - 1.0
        if i == 0 and abs(apart) < NEW_LENGTHS_FRACTION / 2.0:
            return None  # the very last ones are as ever: nothing to look back for, which would take its time
        if abs(apart) > NEW_LENGTHS_FRACTION:
            # Spread goes with the mean: the longer of the two tells how far chance reaches.
            sigma = abs(apart) * math.sqrt(requests) / (cv * max(1.0, 1.0 + apart))
            if sigma > best:
                best, found = sigma, (tokens / requests, requests)
    return found


def _sums(count: Count, now: Observation, recent: Sequence[Observation], most: float) -> Iterator[tuple[float, float]]:
    """(tokens, requests) of the last Observation, of the last two, of the last three, ...; of `most` requests at most.

    Those before the mean was last told anew are no news.
    """
    tokens = requests = 0.0
    for observation in (now, *reversed(recent)):
        one = count(observation)
        if one is None:
            continue
        tokens, requests = tokens + one[0], requests + one[1]
        if requests > most:
            return
        yield tokens, requests


def _steady(now: Observation, recent: Sequence[Observation]) -> bool:
    """Whether about as many requests ended as came."""
    came = ended = 0.0
    for observation in (*recent, now):
        demand, answers = observation.demand, _outputs(observation)
        if demand is not None and answers is not None and demand.requests is not None:
            came, ended = came + demand.requests, ended + answers[1]
    return abs(ended - came) <= UNSTEADY_FRACTION * came


def _scaled(moments: Moments | None, factor: float, weight: float) -> Moments | None:
    """The spread around another mean, believed as little as the mean is."""
    if moments is None:
        return None
    return replace(
        moments, mean=moments.mean * factor, square=moments.square * factor * factor,
        weight=min(moments.weight, weight),
    )  # fmt: skip


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
    first = square = 0.0
    for count, bucket in zip(histogram.counts, _buckets(histogram.upper_bounds), strict=True):
        if count > 0.0:
            share, (once, twice, across, middle, width) = count / total, bucket
            first += share * once * across / width
            square += share * twice * across * middle / (2.0 * width)
    mean = first if histogram.sum is None else histogram.sum / total
    square = max(1.0, square / (first * first)) * mean * mean
    return (mean, square) if math.isfinite(square) else None


@lru_cache(maxsize=64)
def _buckets(upper_bounds: tuple[float, ...]) -> tuple[tuple[float, float, float, float, float], ...]:
    """Of every bucket: what is taken off both moments, high - low, high + low, log(high / low); a point is of width 1."""
    low, rows = 1.0, []
    for upper in (*upper_bounds, math.inf):
        high = max(low, 2.0 * low if upper == math.inf else upper)
        width = math.log(high / low)
        off = math.exp(-width * width / 12.0)
        rows.append((off, off**4, high - low, high + low, width) if width > 0.0 else (1.0, 1.0, low, 2.0 * low, 1.0))
        low = high
    return tuple(rows)


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
