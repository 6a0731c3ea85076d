"""Experts: small pure functions that guess the largest 60-s mean work inside a window ahead.

An expert sees a `View` and answers in Erlangs, or None while what it needs is not there (it sleeps).  A guess may be biased:
the trackers learn by how much outcomes exceed it.  A new expert is one more row of `EXPERTS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from forecast.cells import largest_known
from forecast.history import DAY, FIVE, History

LEAST_WORK = 0.02  # Erlangs: what logarithms take for zero
CYCLES = (1, 2, 3, 7)  # days back
LEAST_RATIO, MOST_RATIO = 0.2, 5.0  # of today's level to that of another day
DAMPING = 0.9  # of a trend, per 5 min ahead
_FAST, _SLOW = 60.0, 300.0  # time constants of the two levels whose difference is the trend


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Exponentially weighted means of the work with time constants 1, 5 and 15 min; None before the first sample."""

    minute: float | None = None
    five: float | None = None
    fifteen: float | None = None


@dataclass(slots=True, kw_only=True)
class View:
    """What experts may look at.  `past`: per cycle of `CYCLES`, (peak, level) of the same window so many days ago."""

    levels: Levels
    peak_five: float | None
    peak_fifteen: float | None
    peak_hour: float | None
    level: float | None
    past: tuple[tuple[float | None, float | None], ...]
    end_seconds: int


@dataclass(slots=True, kw_only=True)
class Present:
    """The part of a View that all windows share."""

    peak_five: float | None
    peak_fifteen: float | None
    peak_hour: float | None
    level: float | None
    past_levels: tuple[float | None, ...]


def present(history: History, at_seconds: int) -> Present:
    """What is known at `at_seconds` whatever the window."""
    stop, per_five = history.rolling.stop, FIVE // history.cell_seconds
    five = largest_known(history.rolling.between(stop - per_five, stop))
    last = history.five_peak.stop
    hour = history.five_peak.between(last - 12, last)
    return Present(
        peak_five=five,
        peak_fifteen=largest_known((five, *hour[-2:])),
        peak_hour=largest_known((five, *hour)),
        level=history.level_before(at_seconds),
        past_levels=tuple(history.level_before(at_seconds - days * DAY) for days in CYCLES),
    )


def view(history: History, levels: Levels, now: Present, at_seconds: int, start_seconds: int, end_seconds: int) -> View:
    """What experts see of the window (at + start, at + end]."""
    past = tuple(
        (None, None)
        if level is None
        else (history.past_peak(at_seconds + start_seconds - back, at_seconds + end_seconds - back), level)
        for level, back in zip(now.past_levels, (days * DAY for days in CYCLES), strict=True)
    )
    return View(
        levels=levels,
        peak_five=now.peak_five,
        peak_fifteen=now.peak_fifteen,
        peak_hour=now.peak_hour,
        level=now.level,
        past=past,
        end_seconds=end_seconds,
    )


def _trend(v: View) -> float | None:
    """The one-minute level and its damped drift: drift = (fast - slow) / (difference of their lags)."""
    fast, slow = v.levels.minute, v.levels.five
    if fast is None or slow is None:
        return None
    ahead = (1.0 - math.exp(math.log(DAMPING) * v.end_seconds / 300.0)) / (1.0 - DAMPING) * 300.0
    return max(0.0, fast + (fast - slow) / (_SLOW - _FAST) * ahead)


def _ratio(index: int) -> Callable[[View], float | None]:
    """The peak of the same window some days ago, times today's level over the level then."""

    def guess(v: View) -> float | None:
        peak, level = v.past[index]
        if peak is None or level is None or v.level is None:
            return None
        ratio = max(v.level, LEAST_WORK) / max(level, LEAST_WORK)
        return peak * min(max(ratio, LEAST_RATIO), MOST_RATIO)

    return guess


def _profile(v: View) -> float | None:
    """Median over the cycles of the peak of the same window, whatever today's level is; wants two cycles."""
    peaks = sorted(peak for peak, _ in v.past if peak is not None)
    if len(peaks) < 2:
        return None
    return (peaks[(len(peaks) - 1) // 2] + peaks[len(peaks) // 2]) / 2.0


# Every expert by name, in the order in which their trackers are kept.  The first `BASIC` need no other day.
EXPERTS: tuple[tuple[str, Callable[[View], float | None]], ...] = (
    ("level_1m", lambda v: v.levels.minute),
    ("level_5m", lambda v: v.levels.five),
    ("level_15m", lambda v: v.levels.fifteen),
    ("trend", _trend),
    ("peak_5m", lambda v: v.peak_five),
    ("peak_15m", lambda v: v.peak_fifteen),
    ("peak_60m", lambda v: v.peak_hour),
    *((f"day_{days}", _ratio(i)) for i, days in enumerate(CYCLES)),
    ("profile", _profile),
)
