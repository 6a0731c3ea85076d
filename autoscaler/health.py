"""Replicas that exist and carry nothing: sick ones, and a start that should have ended long ago.  They are replaced.

Sick are those that the platform or the GPUs call so (crash loops, faults): each is replaced at once.  A start past the
0.99 quantile of start-up times is only suspected.  What holds it up (a quota, a registry) may hold up the next one too, so
one is replaced at a time, and no more before a start has ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoscaler.types import Observation, Reason, Replicas, State

SHORT_FRACTION = 0.9  # of the replicas asked for: fewer are missed by the requests


def underway(replicas: Replicas) -> int:
    """Starts in flight, also where the platform only tells how many replicas were asked for."""
    return max(replicas.starting, replicas.desired - replicas.ready - replicas.unhealthy, 0)


def overdue_at(state: State, before: Replicas | None, now: Observation, startup_seconds: float) -> int | None:
    """When the starts in flight are overdue if none ends: `startup_seconds` after the last end or the first order."""
    if not underway(now.replicas):
        return None
    fresh = state.overdue_at_seconds is None or before is None or now.replicas.ready > before.ready
    return now.at_seconds + round(startup_seconds) if fresh else state.overdue_at_seconds


def sick(state: State, now: Observation) -> tuple[int, int]:
    """(sick replicas, overdue starts) that are to be replaced now."""
    late = state.overdue_at_seconds is not None and now.at_seconds > state.overdue_at_seconds
    return now.replicas.unhealthy, 1 if late and underway(now.replicas) else 0


def healthy(state: State, now: Observation) -> int:
    """The number asked for less the replacements in it that are still needed, and any margin: what carries, or will."""
    margin = state.margin if now.groups else 0  # without news of the groups nobody can put it back on
    return max(0, now.replicas.desired - min(state.replaced, sum(sick(state, now))) - margin)


def short(state: State, now: Observation, asked: int) -> bool:
    """Whether starts are overdue and so many of the `asked` replicas are not there that requests are late for it."""
    return sick(state, now)[1] > 0 and now.replicas.ready < SHORT_FRACTION * asked


def replace_sick(state: State, now: Observation, wanted: int, floor: int, least: int = 0) -> tuple[int, Reason | None]:
    """`wanted`, at least `floor`, and one more for each replica that carries nothing; in all at least `least`.

    Never more replacements than replicas that are needed: where every one falls sick the cause is not theirs.
    """
    broken, late = sick(state, now)
    need = max(wanted, floor)
    asked = max(need + min(broken + late, need), least)
    if asked in (need, wanted):
        return wanted, None
    inputs = (("unhealthy", float(broken)), ("overdue_starts", float(late)), ("replaced", float(asked - need)))
    return asked, Reason(rule="sick", before=wanted, after=asked, inputs=inputs)


def replaced(reasons: Sequence[Reason]) -> int:
    """Replacements in the number that `reasons` led to."""
    return next((int(value) for r in reasons if r.rule == "sick" for n, value in r.inputs if n == "replaced"), 0)
