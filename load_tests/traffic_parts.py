"""What streams of every kind are made with: arrivals in intervals, lengths, and the bound on their number."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from autoscaler.errors import ConfigError
from load_tests import arrivals as spread
from load_tests import draws
from load_tests.arrivals import Arrivals, Floats, Ints, Rows
from load_tests.histories import History
from load_tests.trace_formats import RequestRows
from load_tests.traces import RequestTrace, Trace, load_trace
from load_tests.traffic_settings import Lengths, LognormalLengths, PairLengths

MAX_REQUESTS = 50_000_000
DEFAULT_SIGMA = 0.6


class Part(NamedTuple):
    """One stream of the window, its history and its gaps, in seconds of the window."""

    rows: Rows
    history: History | None
    gaps: list[tuple[float, float]]


class Streams(NamedTuple):
    """Every stream of a scenario, and what they have in common."""

    parts: list[Part]
    origin_at_seconds: int
    time_zone: str
    duration_seconds: float
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    blocks: RequestRows | None = None  # of the one trace whose prompts name their blocks; `Rows.row` points into it


def refuse_too_many(expected: float) -> None:
    if expected > MAX_REQUESTS:
        raise ConfigError(
            "window.duration_seconds",
            f"{expected:.3g} requests in the window must be <= {MAX_REQUESTS:g}: cut the window or set traffic.thin_fraction",
        )


def spread_arrivals(
    settings: Arrivals, exact: bool, key: int, means: Floats, cv: Floats, lean: Floats, first: int
) -> Floats:
    """Interval number plus share of each arrival."""
    if settings.exact_counts if settings.exact_counts is not None else exact:
        total = np.floor(np.cumsum(means) + 1e-9).astype(np.int64)
        return spread.spread_counts(key, np.diff(total, prepend=0), cv, lean, law=settings.law, first=first)
    return spread.spread_rates(draws.key(key, first), means, cv, lean, law=settings.law)


def draw_lengths(
    lengths: Lengths, key: int, prompt_means: Floats, output_means: Floats, first: int, trace: Trace | None
) -> tuple[Ints, Ints]:
    """Lengths of requests number `first` and on; means are NaN where the traffic has none."""
    n = prompt_means.size
    if isinstance(lengths, LognormalLengths):
        return spread.lognormal_pairs(
            key, np.full(n, lengths.prompt_tokens), np.full(n, lengths.output_tokens), prompt_sigma=lengths.prompt_sigma,
            output_sigma=lengths.output_sigma, correlation=lengths.correlation, start=first,
        )  # fmt: skip
    if isinstance(lengths, PairLengths):
        pairs = load_trace(lengths.file)
        if not isinstance(pairs, RequestTrace):
            raise ConfigError("traffic.lengths.file", f"{lengths.file!r} must be a request-level trace")
        means = (_filled(prompt_means), _filled(output_means)) if lengths.scaled else (None, None)
        return spread.resampled_pairs(
            key, pairs.rows.prompt_tokens, pairs.rows.output_tokens, n,
            prompt_means=means[0], output_means=means[1], start=first,
        )  # fmt: skip
    prompt, output = _filled(prompt_means), _filled(output_means)
    if n and (prompt is None or output is None):
        name = trace.name if trace is not None else "the traffic"
        raise ConfigError(
            "traffic.lengths.kind", f"'trace' must be lognormal or pairs, because {name} has no token counts"
        )
    facts = trace.facts if trace is not None else None
    return spread.lognormal_pairs(
        key,
        np.zeros(0) if prompt is None else prompt,
        np.zeros(0) if output is None else output,
        prompt_sigma=_first(lengths.prompt_sigma, facts.prompt_sigma if facts else None),
        output_sigma=_first(lengths.output_sigma, facts.output_sigma if facts else None),
        correlation=lengths.correlation,
        start=first,
    )


def _first(*values: float | None) -> float:
    return next((v for v in values if v is not None), DEFAULT_SIGMA)


def _filled(means: Floats) -> Floats | None:
    """Means with unknown ones replaced by the mean of the known; None where none is known."""
    known = np.isfinite(means)
    if not known.any():
        return None
    out: Floats = np.where(known, means, means[known].mean())
    return out
