"""A law like AHPA's: the larger of what the same time of past days needed and what is needed now.

AHPA's product is closed.  What is known of it: a week of history, one number a minute, moved earlier by the time that pods
take, the larger of a proactive and a reactive number.  Work here is in replicas, per minute; None where it is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoscaler.schema import setting
from autoscaler.units import replicas_for

Minutes = Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AhpaSpec:
    """Knobs of the emulation."""

    reactive_use: float = setting(0.8, "Use of a replica that the reactive number aims at.", above=0)
    proactive_use: float = setting(0.8, "Use of a replica that the proactive number aims at.", above=0)
    days: int = setting(3, "Past days that are averaged.", low=1, high=28)
    smooth_minutes: int = setting(5, "Minutes over which past work is averaged.", low=1, high=60)
    reactive_minutes: int = setting(5, "Minutes whose largest work counts as present.", low=1, high=60)


def peak(minutes: Minutes, width: int) -> float | None:
    """The largest mean of `width` minutes in a row (of all, if there are fewer); unknown ones are left out of a mean."""
    best = None
    for i in range(max(1, len(minutes) - width + 1)):
        known = [m for m in minutes[i : i + width] if m is not None]
        if known:
            mean = math.fsum(known) / len(known)
            best = mean if best is None else max(best, mean)
    return best


def proactive(spec: AhpaSpec, days: Sequence[Minutes]) -> float | None:
    """Mean over the days of the largest smoothed work in the same window of each; None if no day is known."""
    peaks = [p for p in (peak(day, spec.smooth_minutes) for day in days) if p is not None]
    return math.fsum(peaks) / len(peaks) if peaks else None


def reactive(spec: AhpaSpec, minutes: Minutes) -> float | None:
    """The largest work of the last minutes."""
    return peak(minutes[-spec.reactive_minutes :], 1)


def wanted(spec: AhpaSpec, *, proactive: float | None, reactive: float | None) -> int | None:
    """Replicas for the larger of both; None if neither is known."""
    numbers = [
        replicas_for(work / use)
        for work, use in ((proactive, spec.proactive_use), (reactive, spec.reactive_use))
        if work is not None
    ]
    return max(numbers, default=None)
