"""What the forecaster remembers: the past, what was learned from it, and the same of each tenant that is followed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forecast.cells import Cells
from forecast.experts import Levels
from forecast.history import DAY, History
from forecast.moments import Steps
from forecast.periods import Found
from forecast.profile import Profile
from forecast.shifts import Shift
from forecast.tenants import Shares
from forecast.tracks import Track

_TIME_CONSTANTS = (60.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The past and what was learned from it.  `mean`: of about a day, in Erlangs.  `periods`: found by the last refit."""

    past: History
    levels: Levels = Levels()
    mean: float = 0.0
    largest: float = 0.0
    steps: Steps = Steps()
    shift: Shift = Shift()
    periods: tuple[int, ...] = ()
    profile: Profile = Profile()
    tracks: tuple[Track, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tenant that is followed, or the rest of them, with a history of its own."""

    name: str
    history: Learned


@dataclass(frozen=True, slots=True, kw_only=True)
class SeasonalHistory(Learned):
    """What a pool's work was; `shares`, `parts`: of its tenants, where the work was told by tenant."""

    shares: Shares = ()
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeasonalBeliefs:
    """What `refit` found: periods of the work, the plainest one first; and until when it looked."""

    found: tuple[Found, ...] = ()
    at_seconds: int | None = None

    @property
    def periods(self) -> tuple[int, ...]:
        """Their lengths in seconds."""
        return tuple(f.period_seconds for f in self.found)


def distance(track: Track, start: int, end: int) -> tuple[int, int]:
    """How unlike a track's window is: first by length, then by start."""
    return abs((track.end_seconds - track.start_seconds) - (end - start)), abs(track.start_seconds - start)


def closed(before: Cells, after: Cells, begun: bool) -> int:
    """Cells that closed between two histories, of which the first had `begun`."""
    return after.stop - (before.stop if begun and before.stop > after.first else after.first)


def day_mean(mean: float, known: Sequence[float], past: History) -> float:
    """Mean of all that was measured in the first day, and of about the last day later."""
    cells = past.known_seconds / past.cell_seconds - len(known)
    for x in known:
        cells = max(cells, 0.0) + 1.0
        mean += max(1.0 / cells, past.cell_seconds / DAY) * (x - mean)
    return mean


def levelled(levels: Levels, values: Sequence[float | None], cell_seconds: int) -> Levels:
    """Levels after these cells; masked ones leave them alone, the first known one sets them."""
    one, five, fifteen, hour = levels.minute, levels.five, levels.fifteen, levels.hour
    a, b, c, d = (1.0 - math.exp(-cell_seconds / tau) for tau in _TIME_CONSTANTS)
    for x in values:
        if x is None:
            continue
        if one is None or five is None or fifteen is None or hour is None:
            one = five = fifteen = hour = x
            continue
        one, five, fifteen, hour = (
            one + a * (x - one),
            five + b * (x - five),
            fifteen + c * (x - fifteen),
            hour + d * (x - hour),
        )
    return Levels(minute=one, five=five, fifteen=fifteen, hour=hour)
