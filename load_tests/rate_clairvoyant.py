"""A policy that knows the true rate to come, but no burst: it tells forecast error from noise.  Not a clairvoyant.

    target = max over [t + D, t + D + 60 s] of (true centred 5-min mean need / utilisation + deviations x sigma)

with sigma the standard deviation of need around that mean in the past hour, kept for 60 s.  Both knobs are swept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from autoscaler.types import Reason
from autoscaler.units import replicas_for
from load_tests.contestants import Answer, Moment
from load_tests.kernel_state import Floats
from load_tests.need import Need
from load_tests.simulator import Setup

_TICK = 10
_MEAN_SECONDS, _AHEAD_SECONDS, _PAST_SECONDS = 300.0, 60.0, 3600.0


class RateClairvoyant:
    """A contestant; `utilisation` is the share of a replica that may be used, `deviations` the headroom for noise."""

    def __init__(
        self, setup: Setup, need: Need, *, utilisation: float, deviations: float, low: int = 1, high: int = 100_000,
        name: str | None = None,
    ) -> None:  # fmt: skip
        self.name = name or f"rate clairvoyant {utilisation:g} + {deviations:g} sigma"
        self.interval_seconds = _TICK
        at = np.arange(0.0, setup.end_seconds + _TICK, _TICK)
        mean = need.between(at - _MEAN_SECONDS / 2 + _TICK / 2, at + _MEAN_SECONDS / 2 + _TICK / 2)
        now = need.between(at, at + _TICK)
        mean, now = np.nan_to_num(mean), np.nan_to_num(now)
        target = _next_largest(mean / utilisation, setup.startup.median_seconds * setup.startup_factor)
        wanted = _kept(target + deviations * _deviation(now - mean))
        self._wanted = [min(max(replicas_for(x), low), high) for x in wanted.tolist()]

    def begin(self, fleet: Any, pool: int, life: Any, origin_at_seconds: int) -> None:
        """Everything is known already."""

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """The count for now."""
        wanted = self._wanted[min(int(at_seconds // _TICK), len(self._wanted) - 1)]
        return Answer(wanted, (Reason(rule="rate_clairvoyant", before=wanted, after=wanted),))

    def end(self) -> None:
        """Nothing is open."""


def _next_largest(values: Floats, lead_seconds: float) -> Floats:
    """Largest value over [t + lead, t + lead + 60 s], for each t; the last one stays."""
    first, width = round(lead_seconds / _TICK), int(_AHEAD_SECONDS // _TICK) + 1
    padded = np.concatenate([values, np.full(first + width, values[-1])])
    largest: Floats = sliding_window_view(padded, width).max(axis=1)[first : first + len(values)]
    return largest


def _kept(values: Floats) -> Floats:
    """Largest value of the last 60 s, for each t."""
    width = int(_AHEAD_SECONDS // _TICK) + 1
    padded = np.concatenate([np.full(width - 1, values[0]), values])
    largest: Floats = sliding_window_view(padded, width).max(axis=1)
    return largest


def _deviation(residuals: Floats) -> Floats:
    """Standard deviation of the residuals of the hour before each t."""
    window = int(_PAST_SECONDS // _TICK)
    squares = np.concatenate([[0.0], np.cumsum(residuals**2)])
    end = np.arange(len(residuals))
    start = np.maximum(0, end - window)
    mean = (squares[end] - squares[start]) / np.maximum(1, end - start)
    deviation: Floats = np.sqrt(np.maximum(0.0, mean))
    return deviation
