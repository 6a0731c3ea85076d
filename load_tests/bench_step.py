"""What one decision costs: a pool with two weeks of history decides and writes its line, again and again."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from time import perf_counter
from typing import Any

from autoscaler.embed import Pool
from autoscaler.types import Demand, Histogram, Latency, Load, Observation, Replicas
from load_tests import kernel_state as state
from load_tests.bench import BenchRow

HISTORY_SAMPLES = 10_080
TWO_WEEKS_AT_TEN_SECONDS = 120_960
SECTION = {"name": "bench", "replica": {"profile": "llama-3.1-8b_bf16_h100_tp1"}, "limits": {"max_replicas": 100}}
ORIGIN = 1_700_000_000


def rows(quick: bool) -> Iterable[BenchRow]:
    """Milliseconds per step with its canonical line, bytes per line, and memory of a pool."""
    pool = with_history(HISTORY_SAMPLES, 60)
    full, bare = steps(pool, 400 if quick else 3000)
    yield BenchRow(
        name=f"step + line, {HISTORY_SAMPLES:,} samples of history, median", value=1e3 * _quantile(full, 0.5), unit="ms",
        op="<=", goal=0.5, baseline="step without its line", baseline_value=1e3 * _quantile(bare, 0.5),
    )  # fmt: skip
    yield BenchRow(
        name="step + line, 99th percentile", value=1e3 * _quantile(full, 0.99), unit="ms", op="<=", goal=2.0,
        baseline="step without its line", baseline_value=1e3 * _quantile(bare, 0.99),
    )  # fmt: skip
    assert pool.last_step is not None
    yield BenchRow(name="one line of the log", value=len(pool.last_step.to_json()) / 1e3, unit="kB")
    long = with_history(TWO_WEEKS_AT_TEN_SECONDS // (10 if quick else 1), 10)
    long_mb = deep_bytes(long.memory) / 1e6
    yield BenchRow(
        name=f"memory of a pool, {'1.4 days' if quick else 'two weeks'} at 10 s", value=long_mb, unit="MB", goal=2.0,
        baseline="the same samples as plain floats",
        baseline_value=(TWO_WEEKS_AT_TEN_SECONDS // (10 if quick else 1)) * 32 / 1e6,
    )  # fmt: skip
    begun = perf_counter()
    pool.refit()
    yield BenchRow(name="refit", value=perf_counter() - begun, unit="s")


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def demand_at(at_seconds: int) -> float:
    """Requests/s: a daily curve with some ripple."""
    day = 2 * math.pi * at_seconds / 86400
    return 60 + 40 * math.sin(day) + 7 * math.sin(37 * day + 0.1 * (at_seconds % 977))


def seen(at_seconds: int, window_seconds: int, desired: int) -> Observation:
    """An Observation as full as vLLM's metrics make it."""
    count = float(round(max(0.0, demand_at(at_seconds)) * window_seconds))  # counters count in ones

    def histogram(bounds: Any, peak: int) -> Histogram:
        upper = tuple(bounds.tolist())
        counts = [float(round(count * math.exp(-abs(i - peak)) / 2.2)) for i in range(len(upper) + 1)]
        return Histogram(upper_bounds=upper, counts=tuple(counts), sum=count * upper[peak])

    return Observation(
        pool="bench",
        at_seconds=at_seconds,
        window_seconds=window_seconds,
        replicas=Replicas(desired=desired, ready=desired),
        demand=Demand(
            requests=count, prompt_tokens=900 * count, cached_prompt_tokens=0.0, output_tokens=180 * count,
            finished_requests=count, failed_requests=0.0,
            prompt_lengths=histogram(state.LENGTH_BOUNDS, 8), output_lengths=histogram(state.LENGTH_BOUNDS, 6),
        ),
        load=Load(
            running_requests=30.0 * desired, waiting_requests=0.0, kv_cache_fraction=0.2, engine_steps=3.0 * count,
            gpu_utilization_fraction=0.9, preemptions=0.0, replicas_reporting=desired,
            step_tokens=histogram(state.STEP_BOUNDS, 3),
        ),
        latency=Latency(
            ttft=histogram(state.TTFT_BOUNDS, 8), itl=histogram(state.ITL_BOUNDS, 1), e2e=histogram(state.E2E_BOUNDS, 5),
            served_requests=count, violated_requests=(0.0, 2.0),
        ),
    )  # fmt: skip


def with_history(samples: int, interval_seconds: int) -> Pool:
    """A pool that was told `samples` Observations, `interval_seconds` apart."""
    pool = Pool.from_config({**SECTION, "interval_seconds": min(60, interval_seconds)})
    past = (
        Observation(
            pool="bench", at_seconds=ORIGIN + i * interval_seconds, window_seconds=interval_seconds,
            replicas=Replicas(desired=4, ready=4),
            demand=Demand(
                requests=demand_at(ORIGIN + i * interval_seconds) * interval_seconds,
                prompt_tokens=900 * demand_at(ORIGIN + i * interval_seconds) * interval_seconds,
                output_tokens=180 * demand_at(ORIGIN + i * interval_seconds) * interval_seconds,
                finished_requests=demand_at(ORIGIN + i * interval_seconds) * interval_seconds,
            ),
        )
        for i in range(samples)
    )  # fmt: skip
    for one in past:
        pool.backfill([one])
    return pool


def steps(pool: Pool, count: int) -> tuple[list[float], list[float]]:
    """Seconds of each step with its line, and without."""
    state_now = pool.memory.state
    at, desired = state_now.at_seconds or ORIGIN, 4
    full, bare = [], []
    for _ in range(count):
        at += 10
        observation = seen(at, 10, desired)
        begun = perf_counter()
        decision = pool.step(observation)
        stepped = perf_counter()
        assert pool.last_step is not None
        pool.last_step.to_json()
        done = perf_counter()
        full.append(done - begun)
        bare.append(stepped - begun)
        desired = decision.replicas
    return full, bare


def deep_bytes(value: object) -> int:
    """Bytes of everything reachable from a frozen value, each object once."""
    from sys import getsizeof

    known: set[int] = set()
    waiting: list[object] = [value]
    total = 0
    while waiting:
        one = waiting.pop()
        if id(one) in known or one is None or isinstance(one, bool | type):
            continue
        known.add(id(one))
        total += getsizeof(one)
        if isinstance(one, tuple | list):
            waiting += one
        elif is_dataclass(one):
            waiting += [getattr(one, f.name) for f in fields(one)]
    return total
