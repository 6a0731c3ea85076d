"""What holds of every decision, whatever is observed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import observations, pasts

from autoscaler.embed import Pool
from autoscaler.log import memory_of
from autoscaler.record import encode_memory, parse_line, step_of
from autoscaler.step import unknown_groups
from autoscaler.testing import FixedCapacity, NoForecast
from autoscaler.types import Demand, Load, Memory, Observation, Replicas

SECTIONS: dict[str, dict[str, Any]] = {
    "auto": {},
    "reactive": {"strategy": "reactive"},
    "predictive": {"strategy": "predictive"},
    "by hand": {
        "policies": [
            {"kind": "target_tracking", "signal": "requests_per_second", "target": 10},
            {"kind": "target_tracking", "signal": "running_and_waiting_requests", "target": 20},
            {"kind": "target_tracking", "signal": "ttft_p95_seconds", "target": 1},
            {"kind": "target_tracking", "signal": "gpu_utilization_fraction", "target": 0.7},
            {"kind": "backlog"},
            {"kind": "saturation"},
        ]
    },
    "narrow": {
        "limits": {
            "min_replicas": 2, "max_replicas": 9, "tolerance_fraction": 0.1,
            "scale_up": {"max_replicas_per_period": 2, "period_seconds": 30, "stabilization_seconds": 20},
            "scale_down": {"max_fraction_per_period": 0.5, "stabilization_seconds": 60},
        }
    },
    "observer": {"strategy": "observer"},
}  # fmt: skip


def pool_of(name: str, fixed: bool) -> Pool:
    section = {"name": "p", "limits": {"min_replicas": 0, "max_replicas": 40}, **SECTIONS[name]}
    if not fixed:
        return Pool.from_config(section)
    return Pool.from_config(section, forecaster=NoForecast(), capacity_model=FixedCapacity(requests_per_second=5))


def walk(pool: Pool, past: list[Observation]) -> Memory:
    for seen in past:
        pool.step(seen)
    return pool.memory


every = pytest.mark.parametrize("name", SECTIONS)


@every
@settings(max_examples=40)
@given(past=pasts(), now=observations(at_seconds=2000), fixed=st.booleans())
def test_whatever_is_observed(name: str, past: list[Observation], now: Observation, fixed: bool) -> None:
    pool = pool_of(name, fixed)
    memory = walk(pool, past)
    step, after = pool.autoscaler.step(memory, now)
    decision, limits, current = step.decision, pool.settings.limits, now.replicas.desired
    # Bounds always hold, and the number is whole.
    assert type(decision.replicas) is int
    if name != "observer":
        assert limits.min_replicas <= decision.replicas <= limits.max_replicas
    # Unknown never scales down, unless a person wrote a lower maximum.
    if unknown_groups(pool.settings, memory.state, now):
        assert decision.replicas >= min(current, limits.max_replicas)
    # Reasons chain from the number there was to the number there shall be, and hold numbers or words.
    chain = decision.reasons
    assert (chain[0].before, chain[-1].after) == (current, decision.replicas)
    assert all(earlier.after == later.before != later.after for earlier, later in pairwise(chain))
    assert all(isinstance(value, float | str) for reason in chain for _, value in reason.inputs)
    # Deciding twice is deciding once.
    again = pool.autoscaler.step(memory, now)
    assert again == (step, after)
    same, unchanged = pool.autoscaler.step(after, now)
    assert same is step
    assert unchanged is after
    # What is written is what was, and decides the same.
    line = step.to_json()
    assert again[0].to_json() == line
    read = step_of(parse_line(line))
    assert read == step
    assert read.to_json() == line
    text = encode_memory(memory)
    reread = memory_of(pool.autoscaler, parse_line(text))
    assert encode_memory(reread) == text
    assert pool.autoscaler.step(reread, now)[0].to_json() == line


@every
@settings(max_examples=40)
@given(
    past=pasts(),
    requests=st.floats(0, 1e4),
    waiting=st.floats(0, 1e3),
    more=st.floats(1, 10),
    longer_queue=st.floats(0, 1e3),
    fixed=st.booleans(),
    desired=st.integers(0, 40),
)
def test_more_demand_never_fewer_replicas(
    name: str,
    past: list[Observation],
    requests: float,
    waiting: float,
    more: float,
    longer_queue: float,
    fixed: bool,
    desired: int,
) -> None:
    pool = pool_of(name, fixed)
    memory = walk(pool, past)

    def decided(count: float, queue: float) -> int:
        now = Observation(
            pool="p", at_seconds=2000, window_seconds=10, replicas=Replicas(desired=desired, ready=desired),
            demand=Demand(requests=count, prompt_tokens=count * 500.0, output_tokens=count * 100.0,
                          finished_requests=count),
            load=Load(running_requests=5.0, waiting_requests=queue, kv_cache_fraction=0.3),
        )  # fmt: skip
        return pool.autoscaler.step(memory, now)[0].decision.replicas

    assert decided(requests * more, waiting + longer_queue) >= decided(requests, waiting)
