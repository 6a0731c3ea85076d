"""Experts: small pure functions that guess the largest 60-s mean work inside a window ahead.

An expert sees a `View` and answers in Erlangs, or None while what it needs is not there (it sleeps).  A guess may be biased:
the trackers learn by how much outcomes exceed it.  A new expert is one more row of `EXPERTS`.

Known events (`forecast.events`) are taken out of what a View shows, and put back in what the experts answer: an expert
guesses as if the window held no event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forecast.cells import largest_known
from forecast.events import Events
from forecast.history import DAY, FIVE, History
from forecast.profile import Profile

LEAST_WORK = 0.02  # Erlangs: what logarithms take for zero
CYCLES = (1, 2, 3, 7)  # days back
LEAST_CYCLES = 2  # that must be there before a seasonal expert wakes
LEAST_RATIO, MOST_RATIO = 0.2, 5.0  # of a window to the level before it, on usual days
DAMPING = 0.9  # of a trend, per 5 min ahead
_FAST, _SLOW = 60.0, 300.0  # time constants of the two levels whose difference is the trend

Past = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Exponentially weighted means of the work with time constants 1, 5, 15 and 60 min; None before the first sample."""

    minute: float | None = None
    five: float | None = None
    fifteen: float | None = None
    hour: float | None = None


@dataclass(slots=True, kw_only=True)
class View:
    """What experts may look at.  `last`, `level`: means of the last 60 s and 15 min; `peak`: of the last 5 min.

    `days`: (peak, level) of the same window 1, 2, 3 and 7 days ago, those that are known; `cycles`: the same 1, 2 and 3
    detected periods ago.  `rises`: the day's profile at the window over its level of the last 5 and 60 min, None = not
    known; they hold for work + `shift`.  `tenants`: the sum of their own forecasts of the window.
    """

    levels: Levels
    last: float | None
    peak: float | None
    level: float | None
    days: Past
    cycles: Past
    rises: tuple[float | None, ...]
    shift: float
    tenants: float | None
    end_seconds: int


@dataclass(slots=True, kw_only=True)
class Present:
    """The part of a View that all windows share.  `days`, `cycles`: (seconds back, level then).

    `profile`: of a day; `usual`: its own levels of the last 5 and 60 min.
    """

    levels: Levels
    last: float | None
    peak: float | None
    level: float | None
    days: Past
    cycles: Past
    profile: Profile
    usual: tuple[float | None, ...]
    shift: float


def present(
    history: History, levels: Levels, events: Events, periods: Sequence[int], profile: Profile, shift: float,
    at_seconds: int,
) -> Present:  # fmt: skip
    """What is known at `at_seconds` whatever the window."""
    stop, per_five = history.rolling.stop, FIVE // history.cell_seconds
    peak, level = largest_known(history.rolling.between(stop - per_five, stop)), history.level_before(at_seconds)
    last, factor = history.rolling.last(), events.factor(at_seconds)
    if factor != 1.0:
        last, peak, level = _over(last, factor), _over(peak, factor), _over(level, factor)
        levels = Levels(
            minute=_over(levels.minute, factor), five=_over(levels.five, factor),
            fifteen=_over(levels.fifteen, factor), hour=_over(levels.hour, factor),
        )  # fmt: skip
    backs = [n * periods[0] for n in (1, 2, 3)] if periods else ()
    return Present(
        levels=levels,
        last=last,
        peak=peak,
        level=level,
        days=_levels_back(history, events, at_seconds, [days * DAY for days in CYCLES]),
        cycles=_levels_back(history, events, at_seconds, backs),
        profile=profile,
        usual=profile.now(history, at_seconds),
        shift=shift,
    )


def _levels_back(history: History, events: Events, at_seconds: int, backs: Sequence[int]) -> Past:
    found = []
    for back in backs:
        level = history.level_before(at_seconds - back)
        if level is not None:
            found.append((float(back), level / events.factor(at_seconds - back)))
    return tuple(found)


def _over(value: float | None, factor: float) -> float | None:
    return None if value is None else value / factor


def view(
    history: History, events: Events, now: Present, at_seconds: int, start_seconds: int, end_seconds: int,
    tenants: float | None = None,
) -> View:  # fmt: skip
    """What experts see of the window (at + start, at + end]."""

    def peaks(backs: Past) -> Past:
        found = []
        for back, level in backs:
            start, end = at_seconds + start_seconds - int(back), at_seconds + end_seconds - int(back)
            peak = history.past_peak(start, end)
            if peak is not None:
                found.append((peak / events.largest(start, end), level))
        return tuple(found)

    peak = None
    if now.usual[0] is not None:
        peak = now.profile.peak(history, at_seconds + start_seconds, at_seconds + end_seconds)
    return View(
        levels=now.levels,
        last=now.last,
        peak=now.peak,
        level=now.level,
        days=peaks(now.days),
        cycles=peaks(now.cycles),
        rises=tuple([None if peak is None or level is None else peak / level for level in now.usual]),
        shift=now.shift,
        tenants=tenants,
        end_seconds=end_seconds,
    )


def _trend(v: View) -> float | None:
    """The one-minute level and its damped drift: drift = (fast - slow) / (difference of their lags)."""
    fast, slow = v.levels.minute, v.levels.five
    if fast is None or slow is None:
        return None
    ahead = (1.0 - math.exp(math.log(DAMPING) * v.end_seconds / 300.0)) / (1.0 - DAMPING) * 300.0
    return max(0.0, fast + (fast - slow) / (_SLOW - _FAST) * ahead)


def _median(values: list[float]) -> float | None:
    if len(values) < LEAST_CYCLES:
        return None
    values.sort()
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2.0


def _risen(level: float | None, rise: float | None, shift: float) -> float | None:
    """Today's level times the usual rise from these minutes to the window."""
    if level is None or rise is None:
        return None
    return max(0.0, (level + shift) * min(max(rise, LEAST_RATIO), MOST_RATIO) - shift)


def _shift(now: float | None, past: Past) -> float | None:
    """Today's level and the median over the cycles of the climb from the level then to the peak of the same window."""
    if now is None:
        return None
    climb = _median([peak - then for peak, then in past])
    return None if climb is None else max(0.0, now + climb)


# Every expert by name, in the order in which their trackers are kept.
EXPERTS: tuple[tuple[str, Callable[[View], float | None]], ...] = (
    ("last", lambda v: v.last),
    ("level_1m", lambda v: v.levels.minute),
    ("level_5m", lambda v: v.levels.five),
    ("level_15m", lambda v: v.levels.fifteen),
    ("level_60m", lambda v: v.levels.hour),
    ("trend", _trend),
    ("peak_5m", lambda v: v.peak),
    ("season_5m", lambda v: _risen(v.levels.five, v.rises[0], v.shift)),
    ("season_60m", lambda v: _risen(v.levels.hour, v.rises[1], v.shift)),
    ("day_shift", lambda v: _shift(v.level, v.days)),
    ("day_profile", lambda v: _median([peak for peak, _ in v.days])),
    ("tenants", lambda v: v.tenants),
    ("period_shift", lambda v: _shift(v.level, v.cycles)),
)
