"""What kind of moment it is: calm, rising (the last 10 min rose as only one step in twenty does), or idle.

Quantiles that hold on average fail where it matters: in the minutes after a burst began.  So the kind is known at the
origin, and corrections are kept per kind (a "Mondrian" conformal predictor: V. Vovk et al., 2005, section 4.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forecast.cells import Cells, mean_known

CALM, RISING, IDLE = 0, 1, 2
RISING_QUANTILE = 0.95  # of steps
IDLE_SHARE = 0.02  # of the day's mean, below which the last 15 min count as idle
STEP_MINUTES = 10
_GAIN = 0.015  # of the tracked quantile, in mean sizes of a step: one hour of climbing must not make it usual
_SIZE_FADE = 0.001  # per minute, of the mean size of a step


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The steps from one 10 min to the next: the last one, their mean size, and their tracked 0.95 quantile, in Erlangs."""

    last: float | None = None
    size: float = 0.0
    quantile: float | None = None

    def after(self, minutes: Cells, count: int) -> Steps:
        """After the newest `count` of `minutes` have closed."""
        last, size, quantile = self.last, self.size, self.quantile
        values: Sequence[float | None] = minutes.between(minutes.stop - count - 2 * STEP_MINUTES + 1, minutes.stop)
        for end in range(max(2 * STEP_MINUTES, len(values) - count + 1), len(values) + 1):
            newer = mean_known(values[end - STEP_MINUTES : end], 0.5)
            older = mean_known(values[end - 2 * STEP_MINUTES : end - STEP_MINUTES], 0.5)
            if newer is None or older is None:
                last = None
                continue
            last = newer - older
            if quantile is None:
                quantile = size = abs(last)
                continue
            size += (abs(last) - size) * _SIZE_FADE
            quantile += _GAIN * size * (RISING_QUANTILE if last > quantile else RISING_QUANTILE - 1.0)
        return Steps(last=last, size=size, quantile=quantile)

    def kind(self, level: float | None, mean: float) -> int:
        """CALM, RISING or IDLE, with the work of the last 15 min and of the day, in Erlangs."""
        if level is not None and level < IDLE_SHARE * mean:
            return IDLE
        if self.last is not None and self.quantile is not None and self.last > self.quantile:
            return RISING
        return CALM
