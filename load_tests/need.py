"""How many replicas the arriving work needs, by the plant itself: the yardstick of over- and under-provision.

Nothing here reaches a policy.  The rate that replicas carry within the SLO is found by bisection on the simulated fleet
with the trace's own lengths; a request weighs what it adds to engine steps.
"""

from __future__ import annotations

import numpy as np

from autoscaler.settings import Slo
from load_tests import draws
from load_tests.fleet import Fleet, PoolModel, Requests
from load_tests.kernel_state import Floats, Ints

_BISECTIONS = 9
_SAMPLE = 4000


def weights(pool: PoolModel, prompt_tokens: Ints, output_tokens: Ints) -> Floats:
    """Replica-seconds that each request adds to engine steps: b*p + o*(c + d*(p + o/2)) + e*p^2/2, host terms in c.

    The marginal work of a request: what its tokens add to steps that run anyway.
    """
    law = pool.replica
    p, o = prompt_tokens.astype(float), output_tokens.astype(float)
    per_output = law.c + law.b + law.sequence_overhead_seconds + law.d * (p + o / 2)
    each: Floats = law.b * p + o * per_output + law.e * p * p / 2
    return each


def feasible_requests_per_second(
    pool: PoolModel, prompt_tokens: Ints, output_tokens: Ints, slo: Slo, *, replicas: int = 8, seed: int = 0
) -> float:
    """Requests/s that one of `replicas` carries so that `attainment_fraction` of Poisson arrivals meet the SLO.

    Lengths are drawn from the given pairs with common random numbers; bisected to about 1 %.
    """
    count = min(_SAMPLE, max(600, 300 * replicas))
    chosen = (draws.uniforms(draws.key(seed, "need", "lengths"), count) * len(prompt_tokens)).astype(np.int64)
    prompts, outputs = prompt_tokens[chosen], output_tokens[chosen]
    gaps = draws.exponentials(draws.key(seed, "need", "gaps"), count)
    ideal = replicas / max(1e-9, float(weights(pool, prompts, outputs).mean()))
    low, high = 0.0, ideal
    for _ in range(_BISECTIONS):
        rate = (low + high) / 2
        if _attained(pool, prompts, outputs, gaps / rate, slo, replicas) >= slo.attainment_fraction:
            low = rate
        else:
            high = rate
    return low / replicas


def _attained(pool: PoolModel, prompts: Ints, outputs: Ints, gaps: Floats, slo: Slo, replicas: int) -> float:
    arrivals = np.cumsum(gaps)
    fleet = Fleet([pool], Requests(arrival_seconds=arrivals, prompt_tokens=prompts, output_tokens=outputs))
    for _ in range(replicas):
        fleet.add(0)
    fleet.advance(float("inf"))
    out = fleet.outcome()
    settled = slice(len(arrivals) // 5, None)  # the first fifth finds an empty fleet
    late = out.first_token_seconds - arrivals > slo.ttft_seconds
    slow = (out.finish_seconds - out.first_token_seconds) > slo.itl_seconds * np.maximum(1, outputs - 1)
    return float(1.0 - (late | slow)[settled].mean())


class Need:
    """Replicas that the requests arriving in an interval need, smoothed over a minute."""

    def __init__(self, pool: PoolModel, requests: Requests, slo: Slo) -> None:
        lengths = requests.prompt_tokens, requests.output_tokens
        each = weights(pool, *lengths) if len(requests) else np.zeros(0)
        self.requests_per_second = feasible_requests_per_second(pool, *lengths, slo) if len(requests) else 0.0
        per_replica = self.requests_per_second * float(each.mean()) if len(requests) else 0.0
        self._arrival = requests.arrival_seconds
        self._cumulated = np.concatenate([[0.0], np.cumsum(each)])
        self._per_replica = per_replica

    def between(self, start: Floats, end: Floats) -> Floats:
        """Replicas for the mean work that arrives in each [start, end), widened to a minute around its middle."""
        if self._per_replica <= 0:
            return np.full(len(start), np.nan)
        middle = (start + end) / 2
        half = np.maximum(30.0, (end - start) / 2)
        low, high = np.maximum(0.0, middle - half), middle + half
        work = (
            self._cumulated[np.searchsorted(self._arrival, high)] - self._cumulated[np.searchsorted(self._arrival, low)]
        )
        result: Floats = work / (high - low) / self._per_replica
        return result
