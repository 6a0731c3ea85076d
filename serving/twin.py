"""The twin: what a replica carries within the SLO, by simulating continuous batching under the believed law.

It is asked in `refit` only, and only where the compiled extra is installed; closed forms speak where it is not.  Its code is
its own: the simulated fleet that judges it shares none of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from autoscaler.settings import Slo
from serving.closed_forms import Engine, Law, Mix
from serving.pooling import Routing
from serving.search import allowed_share, narrowed

REQUESTS = 120_000
MOST_STEPS = 6  # of the search
PRECISION = 0.01  # of the rate
WIDE = 0.12  # logarithm of the rate: how far from the guess the search begins
_ROUTINGS: dict[Routing, int] = {"round_robin": 0, "least_loaded": 1, "two_choices": 2}


def available() -> bool:
    """Whether the compiled extra is there."""
    return _kernel() is not None


@lru_cache(maxsize=1)
def _kernel() -> Any:
    try:
        from serving import twin_kernel
    except ImportError:
        return None
    return twin_kernel


def twin_rate(
    law: Law, mix: Mix, engine: Engine, slo: Slo, replicas: int, routing: Routing, guess: float, seed: int = 0
) -> float | None:
    """Requests/s and replica at which no more requests break the SLO than it allows; None without the compiled extra.

    The same requests come at every rate, only faster.  The logarithm of late requests is near linear in that of the rate:
    its root is found by false position (Illinois) around `guess`.  As in the closed forms, where prompts are hopeless on an
    idle replica, load may add a quarter of what the SLO allows.
    """
    if guess <= 0.0 or not available():
        return None
    return _rate(law, mix, engine, slo, replicas, routing, guess, seed)


@lru_cache(maxsize=256)
def _rate(
    law: Law, mix: Mix, engine: Engine, slo: Slo, replicas: int, routing: Routing, guess: float, seed: int
) -> float:
    kernel = _kernel()
    gaps, prompts, outputs = _requests(mix, REQUESTS, seed)
    terms = (law.a, law.b, law.c, law.d, law.e, law.floor)
    limits = (float(engine.kv_tokens), float(engine.seats), float(engine.budget_tokens), engine.ingress_seconds)

    def share(rate: float) -> float:
        arrivals = gaps / (rate * replicas)
        out = kernel.play(terms, limits, replicas, _ROUTINGS[routing], arrivals, prompts, outputs)
        return float(kernel.late_share(out, arrivals, outputs, slo.ttft_seconds, slo.itl_seconds))

    allowed = allowed_share(slo, share(guess / 100.0))
    return math.exp(_root(lambda log: math.log(max(share(math.exp(log)), 0.02 * allowed) / allowed), math.log(guess)))


def _root(excess: Callable[[float], float], guess: float) -> float:
    """Where an increasing function is zero, looked for around `guess`."""
    low = high = guess
    below = above = excess(guess)
    width = WIDE
    while below > 0.0 and width < 4.0:
        high, above = low, below
        low -= width
        below, width = excess(low), 2.0 * width
    while above <= 0.0 and width < 4.0:
        low, below = high, above
        high += width
        above, width = excess(high), 2.0 * width
    if below > 0.0 or above <= 0.0:
        return low if below > 0.0 else high
    low, below, high, above = narrowed(excess, (low, below, high, above), MOST_STEPS, lambda a, b: b - a <= PRECISION)
    return low + (high - low) * below / (below - above)


@lru_cache(maxsize=8)
def _requests(mix: Mix, n: int, seed: int) -> tuple[Any, Any, Any]:
    """(instants of a Poisson process of rate 1, prompt and output tokens): lengths log-normal, evenly over their quantiles."""
    import numpy as np

    kernel = _kernel()
    gaps = -np.log(kernel.uniforms(3 * seed + 1, n))
    arrivals = np.cumsum(gaps * (n / gaps.sum()))
    return (
        arrivals,
        _lengths(mix.prompt, mix.prompt_cv, 3 * seed + 2, n),
        _lengths(mix.output, mix.output_cv, 3 * seed + 3, n),
    )


def _lengths(mean: float, cv: float, seed: int, n: int) -> Any:
    """Whole lengths with this mean and variation."""
    import numpy as np

    square = math.log1p(cv * cv)
    drawn = mean * np.exp(math.sqrt(square) * _normals(seed, n) - square / 2.0)
    return np.maximum(1, np.round(drawn)).astype(np.int64)


@lru_cache(maxsize=4)
def _normals(seed: int, n: int) -> Any:
    """Normal numbers evenly over their quantiles, in an order by chance: the same whatever the lengths are."""
    import numpy as np

    ranks = np.empty(n)
    ranks[np.argsort(_kernel().uniforms(seed, n), kind="stable")] = (np.arange(n) + 0.5) / n
    return _normal(ranks)


def _normal(shares: Any) -> Any:
    """Normal quantiles, by a table of the standard library's and straight lines between."""
    import numpy as np

    inverse = NormalDist().inv_cdf
    grid = np.concatenate([np.geomspace(1e-5, 0.02, 200), np.linspace(0.02, 0.98, 400)[1:-1]])
    grid = np.concatenate([grid, 1.0 - np.geomspace(1e-5, 0.02, 200)[::-1]])
    return np.interp(shares, grid, [inverse(float(p)) for p in grid])
