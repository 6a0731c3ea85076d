"""What a day looks like, apart from its level: 288 slots of five minutes, learned as they pass, no refit needed.

A slot holds the usual log of (work + shift) there, less the mean log of the day before it.  Today's level of the last five or
sixty minutes over the profile's own level of the same minutes tells how today compares; times the profile at a window ahead,
that is today's window, climb and all, without a single other day's noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from autoscaler.units import significant
from forecast.history import DAY, FIVE, History

SLOTS = DAY // FIVE
LEAST_DAYS = 2  # seen, before a profile says anything
FADE = 0.1  # of a new day against the days before
CONSTANTS = (300.0, 3600.0)  # time constants of the profile's own levels, as those of `Levels.five` and `Levels.hour`
_FADES = tuple(1.0 - math.exp(-FIVE / tau) for tau in CONSTANTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """`slots`: logs, None = never seen.  `cells`: how many five minutes it was told of.

    `levels`: exponentially weighted means of the profile (not of its logs) with `CONSTANTS`, up to the last cell.
    """

    slots: tuple[float | None, ...] = (None,) * SLOTS
    cells: int = 0
    levels: tuple[float | None, ...] = (None,) * len(CONSTANTS)

    def after(self, past: History, count: int, shift: float, factor: Callable[[int], float]) -> Profile:
        """After the newest `count` five minutes of `past` have closed; `factor` of an instant: what events multiplied."""
        if count <= 0:
            return self
        stop = past.five_mean.stop
        values = past.five_mean.between(stop - count - SLOTS + 1, stop)
        lead = len(values) - count  # cells of the day before
        logs = []
        for i, value in enumerate(values):
            middle = (stop - len(values) + i) * FIVE + FIVE // 2 + past.phase_seconds
            logs.append(None if value is None else math.log(value / factor(middle) + shift))
        slots, levels, cells = list(self.slots), self.levels, self.cells
        for i in range(max(0, lead), len(values)):
            slot = (stop - len(values) + i) % SLOTS
            usual, now = slots[slot], logs[i]
            if usual is not None:
                levels = _told(levels, math.exp(usual))
            if now is not None:
                known = [v for v in logs[max(0, i - SLOTS + 1) : i + 1] if v is not None]
                now -= sum(known) / len(known)
                fade = max(1.0 / (cells // SLOTS + 1), FADE)
                slots[slot] = significant(now if usual is None else usual + fade * (now - usual))
            cells += 1
        return Profile(slots=tuple(slots), cells=cells, levels=levels)

    def now(self, past: History, at_seconds: int) -> tuple[float | None, ...]:
        """The profile's own levels at an instant; all None before `LEAST_DAYS`."""
        slot = past.five_mean.stop
        usual = self.slots[slot % SLOTS]
        if self.cells < LEAST_DAYS * SLOTS or usual is None:
            return (None,) * len(CONSTANTS)
        seconds = at_seconds - past.phase_seconds - slot * FIVE
        here = math.exp(usual)
        return tuple(
            None if level is None else here + math.exp(-seconds / tau) * (level - here)
            for level, tau in zip(self.levels, CONSTANTS, strict=True)
        )

    def peak(self, past: History, from_seconds: int, until_seconds: int) -> float | None:
        """The largest minute of the profile inside (from, until]; None where a slot was never seen."""
        first = from_seconds - past.phase_seconds + 30
        last = max(first, until_seconds - past.phase_seconds - 30)
        found = None
        for place in (first, *range((first // FIVE) * FIVE + FIVE // 2, last, FIVE), last):
            if first <= place <= last:
                whole, part = divmod(place - FIVE // 2, FIVE)
                a, b = self.slots[whole % SLOTS], self.slots[(whole + 1) % SLOTS]
                if a is None or b is None:
                    return None
                value = a + part / FIVE * (b - a)
                found = value if found is None or value > found else found
        return None if found is None else math.exp(found)


def _told(levels: tuple[float | None, ...], value: float) -> tuple[float | None, ...]:
    return tuple(
        value if level is None else significant(level + fade * (value - level))
        for level, fade in zip(levels, _FADES, strict=True)
    )
