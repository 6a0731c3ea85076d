"""Has the regime shifted?  Page-Hinkley's test on by how much outcomes exceed, or fall short of, the median forecast."""

from __future__ import annotations

from dataclasses import dataclass

from autoscaler.copies import replace

ALLOWANCE, ALARM = 1.0, 12.0  # in standard deviations of the error: what is still no shift, and how much must add up
HOLD_SECONDS = 3_600  # that an alarm lasts
MOST = 4.0  # standard deviations that one outcome may add: a single wild minute is no shift


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Sums of errors beyond the allowance, upward and downward, and until when the last alarm lasts.

    E. S. Page, "Continuous inspection schemes", Biometrika 41, 1954.
    """

    above: float = 0.0
    below: float = 0.0
    until_seconds: int = 0
    alarms: int = 0

    def active(self, at_seconds: int) -> bool:
        """Whether an alarm lasts at this instant."""
        return at_seconds < self.until_seconds

    def told(self, error: float, spread: float, at_seconds: int) -> Shift:
        """After one more error (a logarithm) at `at_seconds`, where errors usually spread by `spread`.

        While an alarm lasts nothing adds up: forecasts issued before it still come in.
        """
        if self.active(at_seconds):
            return self
        size = max(-MOST, min(MOST, error / max(spread, 0.02)))
        above = max(0.0, self.above + size - ALLOWANCE)
        below = max(0.0, self.below - size - ALLOWANCE)
        if max(above, below) <= ALARM:
            return replace(self, above=above, below=below)
        return Shift(until_seconds=at_seconds + HOLD_SECONDS, alarms=self.alarms + 1)
