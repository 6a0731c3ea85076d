"""Lower bounds on what any autoscaler pays: a linear programme, and one that needs no solver.

    min  sum n_t bin + D u_t
    u_t >= n_t - n_(t-1),   q_t = q_(t-1) + w_t - x_t - s_t,   s_t <= n_t bin,   q_t <= what n serves within the slack,
    sum x_t C_t / w_t <= (1 - attainment) sum C_t,   x_t <= w_t,   no backlog at the end

in replica-seconds: w_t is the work that arrives in bin t, x_t what is given up of it, q_t the backlog at the bin's end.
Counts may be fractions, removals are free and the first state too, so no whole path is cheaper.  HiGHS solves it, through
scipy, which is part of the extra ``bench``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from autoscaler.errors import ConfigError
from load_tests.kernel_state import Floats

# Replica-seconds of a bin that are taken for none: dividing by less would spoil the programme's scale.
_NOTHING = 1e-6


def trivial_bound(work_seconds: Floats, arrivals: Floats, attainment_fraction: float) -> float:
    """Replica-seconds of the work itself, less the dearest requests that may be given up."""
    _check(work_seconds, arrivals, attainment_fraction)
    total = math.fsum(work_seconds)
    budget = (1.0 - attainment_fraction) * float(arrivals.sum())
    each = np.divide(work_seconds, arrivals, out=np.zeros_like(work_seconds), where=arrivals > 0)
    order = np.argsort(-each, kind="stable")
    given_up = np.minimum(arrivals[order], np.maximum(0.0, budget - np.cumsum(arrivals[order]) + arrivals[order]))
    return max(0.0, total - float((given_up * each[order]).sum()))


def lower_bound(
    work_seconds: Floats,
    arrivals: Floats,
    attainment_fraction: float,
    *,
    bin_seconds: float = 10.0,
    start_seconds: float,
    slack_seconds: float = 0.0,
    low: float = 0.0,
    high: float = math.inf,
    paid: Floats | None = None,
) -> float:
    """Least replica-seconds (ready and starting) that serve all but 1 - `attainment_fraction` of the arrivals in time.

    `work_seconds`: replica-seconds that the requests of each bin need; `slack_seconds`: how long work may wait, 0 demands
    it in its own bin; `paid`: the share of each bin that costs anything, None: all of it.

    Raises ConfigError where scipy is missing, ValueError where `high` replicas cannot do it.
    """
    _check(work_seconds, arrivals, attainment_fraction)
    try:
        from scipy import sparse
        from scipy.optimize import linprog
    except ImportError:
        raise ConfigError("bench", "the lower bound must have scipy: install the extra 'bench'") from None
    bins = len(work_seconds)
    eye, zero = sparse.identity(bins, format="csr"), sparse.csr_matrix((bins, bins))
    before = sparse.eye(bins, k=-1, format="csr")
    # Unknowns n, u, q, x (bins each); work of a bin is in units of a replica-bin.
    work, waits = np.where(work_seconds > _NOTHING, work_seconds, 0.0) / bin_seconds, slack_seconds > 0
    starts = (eye - before)[1:]
    rows = [
        sparse.hstack([starts, -eye[1:], zero[1:], zero[1:]]),  # n_t - n_(t-1) <= u_t
        sparse.hstack([-eye, zero, before - eye, -eye]),  # q_(t-1) + w_t - x_t - n_t <= q_t
    ]
    limits = [np.zeros(bins - 1), -work]
    if waits:
        rows.append(sparse.hstack([-_next(bins, slack_seconds / bin_seconds), zero, eye, zero]))
        limits.append(np.zeros(bins))
    share = np.divide(arrivals, work, out=np.zeros(bins), where=work > 0) / max(1.0, float(arrivals.sum()))
    rows.append(sparse.hstack([sparse.csr_matrix((1, 3 * bins)), sparse.csr_matrix(share)]))
    limits.append(np.array([1.0 - attainment_fraction]))
    held = np.ones(bins) if paid is None else paid
    starts_cost = np.where(held > 0, start_seconds / bin_seconds, 0.0)
    cost = np.concatenate([held, starts_cost, np.zeros(2 * bins)])
    top = np.concatenate([np.full(bins, high), np.full(bins, np.inf), np.full(bins, np.inf if waits else 0.0), work])
    bottom = np.concatenate([np.full(bins, low), np.zeros(3 * bins)])
    top[3 * bins - 1] = 0.0  # no backlog at the end
    solved = linprog(
        cost,
        A_ub=sparse.vstack(rows).tocsc(),
        b_ub=np.concatenate(limits),
        bounds=np.column_stack([bottom, top]),
        method="highs-ipm" if bins > 2000 else "highs",
    )
    if solved.status != 0:
        raise ValueError(f"no lower bound: {solved.message}")
    # An interior point is feasible within a tolerance only: give that up, so that the bound stays one.
    return float(solved.fun) * bin_seconds * (1.0 - 1e-6)


def _next(bins: int, ahead: float) -> Any:
    """Sum of the next `ahead` bins, the last one in part."""
    from scipy import sparse

    whole = math.floor(ahead)
    shifts = [sparse.eye(bins, k=k, format="csr") for k in range(1, min(whole, bins - 1) + 1)]
    part = ahead - whole
    if part > 0 and whole + 1 < bins:
        shifts.append(part * sparse.eye(bins, k=whole + 1, format="csr"))
    total = sparse.csr_matrix((bins, bins))
    for shift in shifts:
        total = total + shift
    return total


def _check(work_seconds: Floats, arrivals: Floats, attainment_fraction: float) -> None:
    if not len(work_seconds) or len(work_seconds) != len(arrivals):
        raise ValueError("work_seconds and arrivals must be equally long and not empty")
    if not 0.0 <= attainment_fraction <= 1.0:
        raise ValueError(f"attainment_fraction {attainment_fraction!r} must be in [0, 1]")
