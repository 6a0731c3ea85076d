"""Requests grouped by the second in which they arrive: what all runs of the fluid twin on one traffic share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from load_tests import kernel_state as state
from load_tests.fleet import PoolModel, Requests
from load_tests.kernel_state import Floats
from load_tests.simulator import Setup

BIN_SECONDS = 1.0
_CLASSES = 16  # of output lengths
_TAIL = 512  # points of the tail of prefill times


@dataclass(frozen=True, slots=True, eq=False)
class Cohorts:
    """Requests by the second in which they arrive: what every twin of one traffic shares, and never changes."""

    arrivals: Floats
    prompt_tokens: Floats
    fresh_tokens: Floats
    prefill_seconds: Floats
    prefill_squares: Floats
    shares: Floats
    outputs: Floats
    longer: Floats
    residual: Floats
    prompt_lengths: Floats  # share of requests per bucket
    mean_prompt: float

    @classmethod
    def of(cls, pool: PoolModel, requests: Requests, end_seconds: float, ttft_seconds: float) -> Cohorts:
        """The cohorts of a traffic on a replica."""
        law, n = pool.replica, len(requests)
        count = math.ceil((end_seconds + 1) / BIN_SECONDS)
        index = np.minimum((requests.arrival_seconds / BIN_SECONDS).astype(np.int64), count - 1)
        prompt, output = requests.prompt_tokens.astype(float), requests.output_tokens.astype(float)
        cached = np.zeros(n) if requests.cached_prompt_tokens is None else requests.cached_prompt_tokens.astype(float)
        fresh = np.maximum(1.0, prompt - cached)
        seconds = law.b * fresh + law.sequence_overhead_seconds + law.e * fresh * (prompt - fresh / 2)
        quantiles = np.linspace(0, 1, _CLASSES + 1)[1:-1]
        edges = np.unique(np.quantile(output, quantiles, method="lower")) if n else np.zeros(0)
        kind = np.searchsorted(edges, output, side="left")
        classes = len(edges) + 1
        members = np.bincount(kind, minlength=classes)
        total = np.bincount(kind, weights=output, minlength=classes)

        def per_bin(weights: Floats | None) -> Floats:
            return np.bincount(index, weights=weights, minlength=count).astype(float)

        bounds = state.LENGTH_BOUNDS
        lengths = np.bincount(np.searchsorted(bounds, prompt, side="left"), minlength=len(bounds) + 1)
        longer, residual = _tails(seconds, ttft_seconds)
        return cls(
            longer=longer,
            residual=residual,
            arrivals=per_bin(None),
            prompt_tokens=per_bin(prompt),
            fresh_tokens=per_bin(fresh),
            prefill_seconds=per_bin(seconds),
            prefill_squares=per_bin(seconds**2),
            shares=np.bincount(index * classes + kind, minlength=count * classes).reshape(count, classes).astype(float),
            outputs=np.maximum(1.0, total / np.maximum(1, members)),
            prompt_lengths=lengths / max(1, n),
            mean_prompt=float(prompt.mean()) if n else 0.0,
        )


def _tails(seconds: Floats, limit: float) -> tuple[Floats, Floats]:
    """Share of prefills longer than each of the points up to `limit`, and of residuals of a running one."""
    points = np.linspace(0.0, limit, _TAIL)
    ordered = np.sort(seconds)
    above = np.searchsorted(ordered, points, side="right")
    total = np.concatenate([[0.0], np.cumsum(ordered)])
    count, whole = len(ordered), max(1e-12, float(total[-1]))
    left = (total[-1] - total[above] - points * (count - above)) / whole
    return (count - above) / max(1, count), np.maximum(0.0, left)


_KEPT: dict[str, tuple[Requests, tuple[object, ...], Cohorts]] = {}


def cohorts_of(setup: Setup) -> Cohorts:
    """The cohorts of the last traffic are kept: its next policy meets it again."""
    kept, asked = _KEPT.get("last"), (setup.pools[0], setup.end_seconds, setup.slo.ttft_seconds)
    if kept is None or kept[0] is not setup.requests or kept[1] != asked:
        kept = _KEPT["last"] = (setup.requests, asked, Cohorts.of(asked[0], setup.requests, asked[1], asked[2]))
    return kept[2]
