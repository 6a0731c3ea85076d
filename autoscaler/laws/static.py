"""The first yardstick: a fixed fleet, of a given size or of the peak of days past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoscaler.schema import setting
from autoscaler.units import replicas_for


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSpec:
    """So many replicas, always."""

    replicas: int = setting(doc="Number of replicas, at all times.", low=0, high=100_000)


def decide(spec: StaticSpec) -> int:
    """The number."""
    return spec.replicas


def peak(work: Sequence[float | None], *, use: float) -> int | None:
    """Replicas for the largest of the past work (in replicas, None unknown) at so much use each; None if none is known."""
    known = [w for w in work if w is not None]
    return replicas_for(max(known) / use) if known else None
