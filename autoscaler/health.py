"""Replicas that exist and carry nothing: sick ones, and a start that should have ended long ago.  They are replaced.

Sick are those that the platform or the GPUs call so (crash loops, faults): each is replaced at once.  A start past the
0.99 quantile of start-up times is only suspected.  What holds it up (a quota, a registry) may hold up the next one too, so
one is replaced at a time, and no more before a start has ended.

The quantile is counted from when a start last ended, for counts alone do not say which one did.  Where the platform tells
how old the oldest start is, it is counted for that one, whoever overtakes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoscaler.types import Observation, Reason, Replicas, State

STRAGGLER = 1.5  # times the 0.99 quantile: of many starts one is beyond that as a matter of course
SHORT_FRACTION = 0.9  # of the replicas asked for: fewer are missed by the requests


def underway(replicas: Replicas) -> int:
    """Starts in flight, also where the platform only tells how many replicas were asked for."""
    return max(replicas.starting, replicas.desired - replicas.ready - replicas.unhealthy, 0)


def overdue_at(state: State, before: Replicas | None, now: Observation, startup_seconds: float) -> int | None:
    """When the starts in flight are overdue: `startup_seconds` after the first order, or after one last ended.

    Where the oldest is told: after it changed, but no later than `STRAGGLER` times as long after its order.  The instant is
    kept meanwhile, for start-up times that are learned grow with one that hangs.
    """
    if not underway(now.replicas):
        return None
    oldest = now.replicas.oldest_start_at_seconds
    if state.overdue_at_seconds is not None and before is not None:
        ended = now.replicas.ready > before.ready if oldest is None else oldest != before.oldest_start_at_seconds
        if not ended:
            return state.overdue_at_seconds
    at = now.at_seconds + round(startup_seconds)
    return at if oldest is None else min(at, oldest + round(STRAGGLER * startup_seconds))


def sick(state: State, now: Observation) -> tuple[int, int]:
    """(sick replicas, overdue starts) that are to be replaced now."""
    late = state.overdue_at_seconds is not None and now.at_seconds > state.overdue_at_seconds
    return now.replicas.unhealthy, 1 if late and underway(now.replicas) else 0


def healthy(state: State, now: Observation) -> int:
    """The number asked for less the replacements in it that are still needed, and any margin: what carries, or will."""
    margin = state.margin if now.groups else 0  # without news of the groups nobody can put it back on
    return max(0, now.replicas.desired - min(state.replaced, sum(sick(state, now))) - margin)


def missed(state: State, before: Replicas | None, now: Replicas) -> int:
    """Replicas that were ready, went without being asked to, and have not come again."""
    if before is None:
        return 0
    went = before.ready - now.ready - asked_to_go(before, now)
    return min(max(0, state.dead + went), max(0, now.desired - now.ready))


def asked_to_go(before: Replicas, now: Replicas) -> int:
    """Replicas that were given up between two looks: fewer were wanted, or more drain."""
    return max(0, before.desired - now.desired, now.draining - before.draining)


def short(state: State, now: Observation, asked: int) -> bool:
    """Whether so many of the `asked` replicas are overdue, or have died, that requests are late for it."""
    return (sick(state, now)[1] > 0 or state.dead > 0) and now.replicas.ready < SHORT_FRACTION * asked


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
