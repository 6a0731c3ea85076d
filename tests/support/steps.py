"""Steps with a wanted count, as a board takes them."""

from __future__ import annotations

from autoscaler.testing import observation
from autoscaler.types import Decision, State, Step


def step(pool: str, at_seconds: int, wanted: int, *, current: int = 1, ready: int | None = None) -> Step:
    """A Step of `pool` that wants so many replicas."""
    seen = observation(pool, at_seconds, replicas=current, ready=ready, requests_per_second=1.0)
    return Step(
        observation=seen,
        state=State(at_seconds=at_seconds, desired=wanted),
        decision=Decision(pool=pool, at_seconds=at_seconds, replicas=wanted),
    )
