"""The first yardstick: a fixed fleet."""

from __future__ import annotations

from dataclasses import dataclass

from autoscaler.schema import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSpec:
    """So many replicas, always."""

    replicas: int = setting(doc="Number of replicas, at all times.", low=0, high=100_000)


def decide(spec: StaticSpec) -> int:
    """The number."""
    return spec.replicas
