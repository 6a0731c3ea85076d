"""Lazy capacity provisioning (LCP): stay where you are unless hindsight, in either of two readings, says otherwise.

Source: Lin, Wierman, Andrew and Thereska, Dynamic right-sizing for power-proportional data centers (INFOCOM 2011).  Two
programmes over the work seen so far differ in which turn they charge the start-up to; their last values bound the number.
The cost of the path is at most three times that of the best one in hindsight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Costs = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LcpState:
    """`lower` and `upper`: least cost so far of ending with so many replicas, start-ups charged going up or going down."""

    replicas: int = 0
    lower: Costs = (0.0,)
    upper: Costs = (0.0,)


def start(*, replicas: int, start_cost: float) -> LcpState:
    """The state of a pool that has so many replicas."""
    return LcpState(
        replicas=replicas,
        lower=(0.0,) * (replicas + 1),
        upper=tuple(start_cost * (replicas - n) for n in range(replicas + 1)),
    )


def step(
    state: LcpState, *, need: float, bin_cost: float, start_cost: float, violation_cost: float, most: int
) -> tuple[int, LcpState]:
    """One bin later: the number of replicas, between 0 and `most`.

    A replica costs `bin_cost` per bin and `start_cost` to start.  With n replicas below `need` the share 1 - n/need of the
    bin's requests is violated; all of them together cost `violation_cost`.
    """
    size = min(most, max(len(state.lower) - 1, math.ceil(need) + 1)) + 1
    here = [n * bin_cost + (violation_cost * max(0.0, 1.0 - n / need) if need > 0 else 0.0) for n in range(size)]
    lower = _following(_extended(state.lower, size, start_cost + bin_cost), here, up=start_cost, down=0.0)
    upper = _following(_extended(state.upper, size, bin_cost), here, up=0.0, down=start_cost)
    low, high = _first_least(lower), size - 1 - _first_least(upper[::-1])
    replicas = min(max(state.replicas, low), max(low, high))
    return replicas, LcpState(replicas=replicas, lower=tuple(lower), upper=tuple(upper))


def _extended(costs: Costs, size: int, each: float) -> list[float]:
    """The costs of more replicas than were ever worth having: each adds the same."""
    return [*costs[:size], *(costs[-1] + each * (n + 1 - len(costs)) for n in range(len(costs), size))]


def _following(before: Sequence[float], here: Sequence[float], *, up: float, down: float) -> list[float]:
    """Least cost after one more bin, 0 for the best: prefix minima for coming from below, suffix minima from above."""
    out, best = [], math.inf
    for cost in before:
        best = min(best + up, cost)
        out.append(best)
    best = math.inf
    for n in range(len(out) - 1, -1, -1):
        best = min(best + down, before[n])
        out[n] = min(out[n], best) + here[n]
    least = min(out)
    return [cost - least for cost in out]


def _first_least(costs: Sequence[float]) -> int:
    """Index of the first that is least, rounding aside."""
    return next(n for n, cost in enumerate(costs) if cost <= 1e-9)
