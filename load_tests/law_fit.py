"""Fit a step law, or the host's share of it, to measured closed-loop runs.

The mean times of a closed loop are nearly linear in the coefficients, because the order of the steps hardly depends on
how long they take.  So a few Gauss-Newton turns with finite differences suffice; each turn is a least-squares problem with
coefficients >= 0 on relative errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from load_tests.fleet import ReplicaModel
from load_tests.measured import MeasuredRun, replica_model, simulate_run
from serving.profiles import profile

Floats = NDArray[np.float64]

TTFT_WEIGHT = 0.3  # the time to first token depends on the driver of the run, so it weighs less than the TPOT
HUBER_FRACTION = 0.05  # relative errors beyond this one pull linearly, so that a wrong measurement cannot bend a law
FLOORS = (0.0, 16.0, 32.0, 64.0)
_REWEIGHTINGS = 8
_START = np.array([3e-3, 2e-5, 5e-5])  # a, b, c


def nonnegative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """The x >= 0 that minimises ``|matrix @ x - target|``, by trying every set of zero coefficients (few columns only)."""
    columns = matrix.shape[1]
    best, least = np.zeros(columns), float(target @ target)
    scale = np.maximum(np.sqrt((matrix**2).sum(axis=0)), 1e-300)
    for size in range(1, columns + 1):
        for chosen in map(list, combinations(range(columns), size)):
            solution = np.linalg.lstsq(matrix[:, chosen] / scale[chosen], target, rcond=None)[0] / scale[chosen]
            if (solution < 0.0).any():
                continue
            left = matrix[:, chosen] @ solution - target
            if float(left @ left) < least:
                best, least = np.zeros(columns), float(left @ left)
                best[chosen] = solution
    return best


def fit_host(runs: Sequence[MeasuredRun], turns: int = 2, seed: int = 0) -> tuple[float, float]:
    """(seconds per step, seconds per sequence) of the host that best explain the TPOT of `runs` on shipped profiles."""
    rows = [profile(run.profile_id) for run in runs]

    def tpots(x: Floats) -> Floats:
        hosts = [replace(row.host, per_step_seconds=float(x[0]), per_sequence_seconds=float(x[1])) for row in rows]
        replicas = [replica_model(row, host=host) for row, host in zip(rows, hosts, strict=True)]
        return np.array([simulate_run(run, replica, seed)[0] for run, replica in zip(runs, replicas, strict=True)])

    measured = np.array([run.tpot_seconds for run in runs])
    fitted = _gauss_newton(tpots, measured, np.ones(len(runs)), np.array([1e-4, 5e-5]), turns, robust=False)
    return float(fitted[0]), float(fitted[1])


def fit_roofline(
    runs: Sequence[MeasuredRun], base: ReplicaModel, floors: Sequence[float] = FLOORS, turns: int = 4
) -> tuple[ReplicaModel, float]:
    """`base` with the a, b, c and floor that best explain TPOT and TTFT of `runs`, and the mean Huber loss left.

    `floors` are the candidates for floor_tokens, in which the law is not linear.  d, e, host terms and limits stay as
    `base` has them: runs up to 9k tokens of context hardly tell attention from the rest, and a fit that is free to choose
    e is off by a factor of three at prompts longer than those it saw.
    """
    fits = [_fit_at_floor(runs, replace(base, floor_tokens=floor), turns) for floor in floors]
    return min(fits, key=lambda fit: fit[1])


def _fit_at_floor(runs: Sequence[MeasuredRun], base: ReplicaModel, turns: int) -> tuple[ReplicaModel, float]:
    def model(x: Floats) -> ReplicaModel:
        return replace(base, a=float(x[0]), b=float(x[1]), c=float(x[2]))

    def times(x: Floats) -> Floats:
        replica = model(x)
        return np.array([simulate_run(run, replica) for run in runs]).ravel()

    measured = np.array([(run.tpot_seconds, run.ttft_seconds) for run in runs]).ravel()
    weights = np.tile([1.0, TTFT_WEIGHT], len(runs))
    x = _gauss_newton(times, measured, weights, _START, turns, robust=True)
    return model(x), float(_huber(weights * (times(x) / measured - 1.0)).mean())


def _huber(error: Floats) -> Floats:
    size = np.abs(error)
    return np.where(size <= HUBER_FRACTION, 0.5 * size**2, HUBER_FRACTION * (size - 0.5 * HUBER_FRACTION))


def _gauss_newton(
    times: Callable[[Floats], Floats], measured: Floats, weights: Floats, start: Floats, turns: int, robust: bool
) -> Floats:
    """Coefficients >= 0 whose `times` come closest to `measured` in weighted relative error."""
    x, step = start, 0.05 * start
    for _ in range(turns):
        here = times(x)
        shifted = [times(x + step * unit) for unit in np.eye(len(x))]
        slopes = np.stack([(there - here) / size for there, size in zip(shifted, step, strict=True)], axis=1)
        target = measured - (here - slopes @ x)
        pull = weights
        for _ in range(_REWEIGHTINGS if robust else 1):
            scaled = pull / measured
            x = nonnegative_least_squares(slopes * scaled[:, None], target * scaled)
            error = np.abs(weights * (slopes @ x - target) / measured)
            pull = weights * np.sqrt(HUBER_FRACTION / np.maximum(error, HUBER_FRACTION))
    return x
