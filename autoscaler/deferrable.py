"""Work that may wait: filled into capacity that stands idle, and given its own only as far as its deadline asks for it.

replicas = (mean of all work + queued deferrable work / half its deadline) / feasible load.  The mean follows with the shortest
deadline as its time constant: what a rush leaves queued, the lull after it has room for.  So N is the larger of what
interactive requests need and of this (the ballast of Chiron, arXiv 2501.08090).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoscaler.copies import replace
from autoscaler.facts import Facts, work_of
from autoscaler.types import Capacity, Observation, Reason, RequestClass, State

# Of the deadline: what waits already has waited, and the oldest of it about as long as it will take.
DUE_FRACTION = 0.5
LEAST_PART = 0.25  # so much less than a whole replica's work still is one's


def class_work(one: RequestClass, capacity: Capacity, state: State) -> float | None:
    """Replica-seconds of the class that arrived; None where that is not known."""
    return work_of(one.demand, capacity, state)


def queued_work(one: RequestClass, capacity: Capacity, state: State) -> float | None:
    """Replica-seconds of the class that wait; None where that is not known."""
    if one.waiting_requests is None:
        return None
    tokens = one.waiting_prompt_tokens
    if tokens is None:
        tokens = one.waiting_requests * (state.mean_prompt_tokens or 0.0)
    each = capacity.seconds_per_request + capacity.seconds_per_output_token * capacity.mean_output_tokens
    return capacity.seconds_per_prompt_token * tokens + one.waiting_requests * each


def with_classes(state: State, observation: Observation, capacity: Capacity, work: float | None) -> State:
    """`state` with the mean of all work (Erlangs); `work` is that of the interactive requests.  A gap changes nothing."""
    if not observation.classes:
        return state if state.mean_total_work is None else replace(state, mean_total_work=None)
    parts = [class_work(one, capacity, state) for one in observation.classes]
    known = [p for p in parts if p is not None]
    if work is None or len(known) < len(parts):
        return state
    total, before = work + math.fsum(known) / observation.window_seconds, state.mean_total_work
    shortest = min(one.deadline_seconds for one in observation.classes)
    kept = math.exp(-observation.window_seconds / max(shortest, 1.0))
    return replace(state, mean_total_work=total if before is None else kept * before + (1.0 - kept) * total)


def rounded(capacity: Capacity, load: float) -> int:
    """Replicas for `load` Erlangs of work of which some may wait; one for any work at all.

    A part of a replica is not rounded up: what it would have done is queued, and the queue asks for it before it is late.
    """
    whole = capacity.replicas(load)
    return min(whole, max(1, math.floor(load / capacity.feasible(whole) + LEAST_PART)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballast:
    """As many replicas as carry all work on average and empty the queues of deferrable classes in time."""

    def recommend(self, facts: Facts) -> Reason | None:
        classes, capacity, state = facts.observation.classes, facts.capacity, facts.state
        if not classes or capacity is None:
            return None
        queues = [queued_work(one, capacity, state) for one in classes]
        mean = state.mean_total_work
        if mean is None or any(q is None for q in queues):  # nothing is given up on a queue that is not known
            inputs: tuple[tuple[str, float | str], ...] = (("missing", "classes"),)
            return Reason(rule="deferrable", before=facts.current, after=facts.current, inputs=inputs)
        queued = math.fsum(q for q in queues if q is not None)
        due = math.fsum(
            q / (DUE_FRACTION * one.deadline_seconds) for q, one in zip(queues, classes, strict=True) if q is not None
        )
        wanted = rounded(capacity, mean + due)
        inputs = (
            ("work", mean),
            ("queued_seconds", queued),
            ("due", due),
            ("deadline_seconds", min(one.deadline_seconds for one in classes)),
            ("feasible_load", capacity.feasible(wanted)),
        )
        return Reason(rule="deferrable", before=facts.current, after=wanted, inputs=inputs)
