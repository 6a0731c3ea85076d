"""llm-d's workload variant autoscaler (WVA) for one variant: V1 on shares of KV and queue lengths, V2 on tokens.

Both yield the number that WVA publishes; an HPA acts on it.  Source: WVA's ``internal/saturation/analyzer.go`` (V1) and
``internal/engines/analyzers/saturation_v2`` (V2).  Integers are cut where Go cuts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from autoscaler.schema import setting

_HISTORY = 10  # observations of the compute bound that are averaged, per class of output length
_SHORT_OUTPUT, _MEDIUM_OUTPUT = 100, 500


@dataclass(frozen=True, slots=True, kw_only=True)
class V1Spec:
    """Thresholds of V1, as its ConfigMap sets them."""

    kv_threshold_fraction: float = setting(
        0.80, "A replica with so much of its KV in use is saturated.", above=0, high=1
    )
    queue_threshold: float = setting(5.0, "A replica with so many waiting requests is saturated.", above=0)
    kv_spare_fraction: float = setting(0.1, "Scale up below this mean spare share of KV.", low=0, high=1)
    queue_spare: float = setting(3.0, "Scale up below this mean spare number of waiting requests.", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class V2Spec:
    """Thresholds of V2."""

    kv_threshold_fraction: float = setting(0.80, "Share of the KV cache that counts as capacity.", above=0, high=1)
    queue_threshold: float = setting(5.0, "From so many waiting requests on, tokens in use show the capacity.", above=0)
    up_threshold: float = setting(0.85, "Scale up above this use.", above=0)
    down_boundary: float = setting(0.70, "Scale down below this use.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What WVA reads from an engine's metrics and arguments."""

    kv_capacity_tokens: int
    max_num_batched_tokens: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class V2State:
    """`observed`: compute bounds seen per class of output length; `capacity_tokens`: of one replica, when last known."""

    observed: tuple[tuple[str, tuple[float, ...]], ...] = ()
    capacity_tokens: float = 0.0


class Reading(NamedTuple):
    """One replica: tokens in its KV cache, and its waiting requests."""

    tokens_in_use: float
    waiting: float


def v1(
    spec: V1Spec,
    *,
    kv_fractions: Sequence[float],
    waiting: Sequence[float],
    current: int,
    published: int,
    blocked_by_transition: bool = True,
) -> int:
    """The number that V1 publishes.

    `kv_fractions` and `waiting`: one reading per replica that has metrics.  `current` replicas exist; `published` is what
    V1 asked for last.  While these three differ nothing is decided; with `blocked_by_transition` False replicas without
    metrics count as idle instead.
    """
    if not kv_fractions:
        return current
    pairs = list(zip(kv_fractions, waiting, strict=True))
    base = len(pairs)
    if blocked_by_transition:
        if published not in (0, current):
            return published
        if base != current:
            return current
    else:
        pairs += [(0.0, 0.0)] * (current - base)
        base = max(base, current)
    spares = [
        (spec.kv_threshold_fraction - kv, spec.queue_threshold - queue)
        for kv, queue in pairs
        if kv < spec.kv_threshold_fraction and queue < spec.queue_threshold
    ]
    free = len(spares)
    spare_kv = sum(s[0] for s in spares) / free if free else 0.0
    spare_queue = sum(s[1] for s in spares) / free if free else 0.0
    if spare_kv < spec.kv_spare_fraction or spare_queue < spec.queue_spare:
        return base + 1
    return base - 1 if base > 1 and _safe_without_one(spec, free, spare_kv, spare_queue) else base


def _safe_without_one(spec: V1Spec, free: int, spare_kv: float, spare_queue: float) -> bool:
    """True if the spares still hold once the load of the unsaturated replicas is on one less."""
    if free < 2:
        return False
    factor = free / (free - 1)
    kv_left = spec.kv_threshold_fraction - (spec.kv_threshold_fraction - spare_kv) * factor
    queue_left = spec.queue_threshold - (spec.queue_threshold - spare_queue) * factor
    return kv_left >= spec.kv_spare_fraction and queue_left >= spec.queue_spare


def v2(
    spec: V2Spec,
    state: V2State,
    *,
    engine: EngineLimits,
    readings: Sequence[Reading],
    ready: int,
    pending: int,
    mean_prompt_tokens: float,
    mean_output_tokens: float,
    queued_upstream: float = 0.0,
) -> tuple[int, V2State]:
    """The number that V2 publishes, and what it remembers.

    `mean_*`: of finished requests, 0 if there are none.  `queued_upstream`: requests held by the scheduler.
    """
    bucket = _length_class(mean_output_tokens)
    observed = dict(state.observed)
    capacities, demand = [], 0.0
    for reading in readings:
        memory_bound = int(engine.kv_capacity_tokens * spec.kv_threshold_fraction)
        compute_bound = memory_bound
        if reading.waiting >= int(spec.queue_threshold) and reading.tokens_in_use > 0:
            compute_bound = int(reading.tokens_in_use)
            observed[bucket] = (*observed.get(bucket, ()), float(compute_bound))[-_HISTORY:]
        elif bucket in observed:
            compute_bound = int(sum(observed[bucket]) / len(observed[bucket]))
        else:
            compute_bound = derived_capacity(engine, mean_prompt_tokens, mean_output_tokens) or memory_bound
        capacities.append(min(memory_bound, compute_bound))
        demand += int(reading.tokens_in_use) + int(reading.waiting) * int(mean_prompt_tokens)
    capacity = _median(capacities) if capacities else state.capacity_tokens
    demand += queued_upstream * (mean_prompt_tokens + mean_output_tokens)
    state = V2State(observed=tuple(sorted(observed.items())), capacity_tokens=capacity)
    return wanted(spec, demand=demand, capacity=capacity, ready=ready, pending=pending), state


def wanted(spec: V2Spec, *, demand: float, capacity: float, ready: int, pending: int) -> int:
    """Replicas for a demand in tokens, at so many tokens a replica: what is missing is added, what is spare goes."""
    current = ready + pending
    if capacity <= 0:
        return current
    required = demand / spec.up_threshold - current * capacity
    if required > 0:
        return current + math.ceil(required / capacity)
    spare = ready * capacity - demand / spec.down_boundary
    return current - math.floor(spare / capacity) if spare > 0 else current


def derived_capacity(engine: EngineLimits, mean_prompt_tokens: float, mean_output_tokens: float) -> int:
    """Tokens that a replica holds in steady state: min(B O/(I + O), seats) requests of I + O/2 tokens; 0 if unknown."""
    if mean_output_tokens <= 0:
        return 0
    both = mean_prompt_tokens + mean_output_tokens
    steady = min(engine.max_num_batched_tokens * mean_output_tokens / both, engine.max_num_seqs)
    return int(steady * (mean_prompt_tokens + mean_output_tokens / 2))


def _length_class(mean_output_tokens: float) -> str:
    if mean_output_tokens < _SHORT_OUTPUT:
        return "short"
    return "medium" if mean_output_tokens < _MEDIUM_OUTPUT else "long"


def _median(values: Sequence[int]) -> int:
    ordered, n = sorted(values), len(values)
    return ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) // 2
