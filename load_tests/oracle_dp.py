"""The cheapest sequence of replica counts for a known need: a dynamic programme over bins and counts.

    V_t(n) = n bin + mu C_t v_t(n) + min over m of [V_(t-1)(m) + D (n - m)^+ + G (m - n)^+]
    v_t(n) = (1 - carried(n) / need_t)^+

in replica-seconds: C_t requests arrive in bin t, v_t(n) is the share of them that n replicas cannot carry, a start is
priced D and a removal G.  A running minimum from below and one from above make it O(bins x counts).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from load_tests.kernel_state import Floats, Ints


@njit(cache=True)
def _best_path(
    need: Floats,
    arrivals: Floats,
    carried: Floats,
    low: int,
    bin_seconds: float,
    start_seconds: float,
    drain_seconds: float,
    penalty: float,
) -> Ints:
    """The path of least cost; an infinite `penalty` forbids every share that the largest count would carry."""
    bins, states = len(need), len(carried)
    value = np.zeros(states)
    up = np.zeros(states)
    origin = np.zeros((bins, states), dtype=np.int16)
    source = np.zeros(states, dtype=np.int16)
    for t in range(bins):
        if t > 0:
            best, came = math.inf, 0
            for n in range(states):
                best += start_seconds
                if value[n] <= best:
                    best, came = value[n], n
                up[n], source[n] = best, came
            best, came = math.inf, states - 1
            for n in range(states - 1, -1, -1):
                best += drain_seconds
                if value[n] <= best:
                    best, came = value[n], n
                if best < up[n]:
                    up[n], source[n] = best, came
        w, c = need[t], arrivals[t]
        least = max(0.0, w - carried[states - 1]) / w if w > 0.0 else 0.0
        for n in range(states):
            missed = max(0.0, w - carried[n]) / w if w > 0.0 else 0.0
            extra = 0.0
            if penalty < math.inf:
                extra = penalty * c * missed
            elif missed > least + 1e-12 and c > 0.0:
                extra = math.inf
            value[n] = (low + n) * bin_seconds + extra + up[n]
            origin[t, n] = source[n]
    path = np.zeros(bins, dtype=np.int64)
    n = int(np.argmin(value))
    for t in range(bins - 1, -1, -1):
        path[t] = low + n
        n = int(origin[t, n])
    return path


def best_path(
    need: Floats,
    arrivals: Floats,
    carried: Floats,
    *,
    low: int = 0,
    bin_seconds: float = 10.0,
    start_seconds: float,
    drain_seconds: float = 0.0,
    penalty: float,
) -> Ints:
    """Replicas per bin of the path with the least replica-seconds + `penalty` x violated requests.

    `need`: replicas that each bin's work needs; `arrivals`: requests per bin; ``carried[i]``: replicas' worth of need that
    ``low + i`` replicas carry (ascending).  The first state is free.  `penalty` is replica-seconds per request; infinite
    means none is violated that the largest count could carry.
    """
    if not len(need) or len(need) != len(arrivals) or not 1 <= len(carried) <= 32_767:
        raise ValueError("need and arrivals must be equally long and not empty, and carried have 1 to 32767 entries")
    wanted, counts, served = (np.ascontiguousarray(x, dtype=np.float64) for x in (need, arrivals, carried))
    path: Ints = _best_path(
        wanted, counts, served, low, float(bin_seconds), float(start_seconds), float(drain_seconds), float(penalty)
    )
    return path


def path_cost(path: Ints, *, bin_seconds: float = 10.0, start_seconds: float, drain_seconds: float = 0.0) -> float:
    """Replica-seconds of a path: all that is ready, starting and draining; the first state is free."""
    steps = np.diff(path)
    starts, stops = np.maximum(steps, 0).sum(), np.maximum(-steps, 0).sum()
    return float(path.sum() * bin_seconds + starts * start_seconds + stops * drain_seconds)


def path_violated(path: Ints, need: Floats, arrivals: Floats, carried: Floats, *, low: int = 0) -> float:
    """Requests that the path cannot carry: sum of C_t v_t(n_t)."""
    served = carried[path - low]
    missed = np.maximum(0.0, need - served) / np.where(need > 0, need, 1.0)
    return float((arrivals * missed).sum())
