"""What pools share: a ratio between two of them (prefill and decode), and the GPUs of a quota.  Pure, over one tick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoscaler.settings import PoolSettings
from autoscaler.types import Observation, Reason
from autoscaler.units import replicas_for, replicas_within


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A pool in the middle of its step: what it sees, and the number that it has come to."""

    settings: PoolSettings
    observation: Observation
    wanted: int


def ratio(members: Sequence[Member]) -> list[Reason | None]:
    """Why each member's number is raised so that the ratios between pools hold: the larger side of each pair wins.

    Chains settle in as many rounds as there are pools; ratios that contradict each other in a circle go no further.
    """
    place = {m.settings.name: i for i, m in enumerate(members)}
    numbers = [m.wanted for m in members]
    causes: dict[int, tuple[str, float, float]] = {}
    for _ in members:
        before = list(numbers)
        for i, member in enumerate(members):
            rule = member.settings.limits.ratio
            if rule is None or rule.to not in place:
                continue
            j, share = place[rule.to], rule.replicas_per_replica
            least = replicas_for(numbers[j] * share)
            if least > numbers[i]:
                causes[i], numbers[i] = (rule.to, share, float(numbers[j])), least
            # The fewest of the other that need as many of this one.
            fewest = replicas_within((numbers[i] - 1) / share) + 1 if numbers[i] else 0
            if fewest > numbers[j]:
                causes[j], numbers[j] = (member.settings.name, 1.0 / share, float(numbers[i])), fewest
        if numbers == before:
            break
    reasons: list[Reason | None] = [None] * len(members)
    for i, (pool, share, other) in causes.items():
        inputs = (("pool", pool), ("replicas_per_replica", share), ("replicas", other))
        reasons[i] = Reason(rule="ratio", before=members[i].wanted, after=numbers[i], inputs=inputs)
    return reasons


def spares(members: Sequence[Member]) -> list[int | None]:
    """How many more replicas each member may order: its own spare, or its part of a quota's, split by need.

    Parts are proportional to the GPUs wanted, in whole replicas, largest remainders first; a pool without a replica that
    wants one comes before all.
    """
    result = [m.observation.spare_replicas for m in members]
    if all(m.settings.limits.quota is None for m in members):
        return result
    for name in {q.name for m in members if (q := m.settings.limits.quota) is not None}:
        sharing = [i for i, m in enumerate(members) if (q := m.settings.limits.quota) is not None and q.name == name]
        free = _free_gpus([members[i] for i in sharing])
        if free is not None:
            for i, granted in zip(sharing, _split([members[i] for i in sharing], free), strict=True):
                result[i] = granted
    return result


def gpus_per_replica(settings: PoolSettings) -> float:
    """GPUs that one replica holds; fractions are allowed."""
    return settings.target.gpus_per_replica if settings.target is not None else 1.0


def _free_gpus(members: Sequence[Member]) -> float | None:
    """GPUs of a quota that are free: the least that a number in the settings or the platform says; None if none does."""
    told = [
        m.observation.spare_replicas * gpus_per_replica(m.settings)
        for m in members
        if m.observation.spare_replicas is not None
    ]
    totals = [q.gpus for m in members if (q := m.settings.limits.quota) is not None and q.gpus is not None]
    if totals:
        held = sum(_held(m.observation) * gpus_per_replica(m.settings) for m in members)
        told.append(max(0.0, min(totals) - held))
    return min(told) if told else None


def _held(seen: Observation) -> int:
    return max(seen.replicas.desired, seen.replicas.ready + seen.replicas.starting) + seen.replicas.draining


def _split(members: Sequence[Member], free: float) -> list[int]:
    growth = [max(0, m.wanted - m.observation.replicas.desired) for m in members]
    sizes = [gpus_per_replica(m.settings) for m in members]
    total = math.fsum(g * s for g, s in zip(growth, sizes, strict=True))
    if total <= free + 1e-9:
        # Whoever orders less than it may leaves the rest to nobody in this tick: shares are of what is wanted.
        return [g if g else replicas_within(max(0.0, free - total) / s) for g, s in zip(growth, sizes, strict=True)]
    part = [g * free / total for g in growth]
    granted = [replicas_within(p) for p in part]
    left = free - math.fsum(g * s for g, s in zip(granted, sizes, strict=True))

    def first(i: int) -> tuple[bool, float, int]:
        asleep = members[i].observation.replicas.desired == 0 and not granted[i]
        return not asleep, granted[i] - part[i], i

    order = sorted(range(len(members)), key=first)
    while (i := next((i for i in order if granted[i] < growth[i] and sizes[i] <= left + 1e-9), None)) is not None:
        granted[i] += 1
        left -= sizes[i]
        order.remove(i)
        order.append(i)
    return granted
