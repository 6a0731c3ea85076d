"""An Observation out of pages means what the simulator's means: the same counters give the same fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from autoscaler.settings import Slo
from autoscaler.types import Observation, Replicas
from load_tests.kernel_views import Counters, Gauges, HistogramCounts
from load_tests.scrape import Scraper
from metrics_adapter.assembly import assemble
from metrics_adapter.door import DoorCounts
from metrics_adapter.reading import Buckets, Reading

SLO = Slo(ttft_seconds=0.7, itl_seconds=0.05)
BOUNDS = {
    "ttft": (0.1, 0.5, 1.0),
    "tpot": (0.025, 0.05, 0.1),
    "e2e": (1.0, 5.0),
    "lengths": (10.0, 100.0, 1000.0),
    "steps": (8.0, 64.0),
}


def counts(kind: str, values: tuple[int, ...], total: float) -> HistogramCounts:
    return HistogramCounts(bounds=np.array(BOUNDS[kind]), counts=np.array(values), sum=total)


def counters(**changed: Any) -> Counters:
    nothing = counts("tpot", (0, 0, 0, 0), 0.0)
    start = Counters(
        arrivals=100, arrived_prompt_tokens=50_000, prefilled_prompt_tokens=48_000, cached_prompt_tokens=9_000,
        computed_tokens=0, output_tokens=7_000, finished=80, failed=1, handed_over=0, engine_steps=500, preemptions=2,
        busy_seconds=10.0, decode_seconds=8.0, ttft=counts("ttft", (50, 30, 10, 10), 40.0), itl=nothing,
        tpot=counts("tpot", (60, 15, 4, 1), 2.0), e2e=counts("e2e", (40, 30, 10), 200.0),
        prompt_lengths=counts("lengths", (1, 9, 70, 0), 40_000.0), output_lengths=counts("lengths", (0, 60, 20, 0), 6_000.0),
        step_tokens=counts("steps", (300, 150, 50), 9_000.0), arrivals_by_tenant=np.array([100]),
    )  # fmt: skip
    return replace(start, **changed)


LATER = counters(
    arrivals=112, arrived_prompt_tokens=56_400, prefilled_prompt_tokens=55_000, cached_prompt_tokens=9_600,
    output_tokens=9_100, finished=90, failed=2, engine_steps=700, preemptions=3, busy_seconds=14.0,
    ttft=counts("ttft", (54, 33, 13, 12), 46.0), tpot=counts("tpot", (64, 18, 6, 2), 2.5),
    e2e=counts("e2e", (44, 34, 12), 230.0), prompt_lengths=counts("lengths", (1, 10, 79, 0), 45_000.0),
    output_lengths=counts("lengths", (0, 66, 24, 0), 7_700.0), step_tokens=counts("steps", (420, 210, 70), 12_600.0),
)  # fmt: skip


def gauges(running: list[int], waiting: list[int], kv_tokens: list[int], *, held: int = 0) -> Gauges:
    def ints(values: list[int]) -> Any:
        return np.array(values, dtype=np.int64)

    return Gauges(
        ids=ints(list(range(len(running)))), running=ints(running), waiting=ints(waiting), kv_tokens=ints(kv_tokens),
        waiting_prompt_tokens=ints([0] * len(running)), outstanding=ints(running), held_requests=held, held_prompt_tokens=0,
        draining_ids=ints([9]), draining_running=ints([6]), draining_outstanding=ints([6]),
    )  # fmt: skip


def buckets(histogram: HistogramCounts, share: float) -> Buckets:
    upper = tuple(map(float, histogram.bounds))
    return Buckets(upper, tuple(float(c) * share for c in np.cumsum(histogram.counts)), histogram.sum * share)


def reading(at: float, own: Counters, share: float, running: float, waiting: float, kv: float) -> Reading:
    """What one replica prints that did `share` of the pool's work."""
    values = {
        "prompt_tokens": own.prefilled_prompt_tokens, "cached_prompt_tokens": own.cached_prompt_tokens,
        "output_tokens": own.output_tokens, "finished": own.finished, "failed": own.failed, "preemptions": own.preemptions,
    }  # fmt: skip
    named = {
        "ttft": own.ttft, "tpot": own.tpot, "e2e": own.e2e, "step_tokens": own.step_tokens,
        "prompt_length": own.prompt_lengths, "output_length": own.output_lengths,
    }  # fmt: skip
    return Reading(
        at_seconds=at,
        values={
            **{k: float(v) * share for k, v in values.items()},
            "running": running,
            "waiting": waiting,
            "kv_usage": kv,
        },
        histograms={k: buckets(h, share) for k, h in named.items()},
    )


def test_the_same_counters_give_the_same_observation() -> None:
    before, after = gauges([3, 5], [0, 2], [1000, 3000]), gauges([4, 6], [1, 1], [2000, 4000], held=7)
    replicas = Replicas(desired=2, ready=2, draining=1)
    scraper = Scraper("chat", SLO, kv_capacity_tokens=8000)
    scraper.observe(1000, 10, replicas, lambda: (before, counters()))
    simulated = scraper.observe(1010, 10, replicas, lambda: (after, LATER))

    def fleet(at: float, own: Counters, seen: Gauges) -> dict[str, Reading]:
        pair = {
            name: reading(at, own, 0.5, float(seen.running[i]), float(seen.waiting[i]), seen.kv_tokens[i] / 8000)
            for i, name in enumerate("ab")
        }
        return {**pair, "draining": reading(at, own, 0.0, 6.0, 0.0, 0.9)}

    def door(own: Counters, waiting: int) -> DoorCounts:
        return DoorCounts(
            requests=own.arrivals, prompt_tokens=own.arrived_prompt_tokens, failed=own.failed, waiting=waiting
        )

    scraped = assemble(
        "chat", fleet(1000, counters(), before), fleet(1010, LATER, after), at_seconds=1010, window_seconds=10,
        replicas=replicas, slo=SLO, door=door(LATER, 7).since(door(counters(), 0)), unready={"draining"},
    )  # fmt: skip
    assert without_gpu(scraped) == without_gpu(simulated)


def without_gpu(observation: Observation) -> Observation:
    """The simulator's GPUs are its own; a scraper reads those of an exporter."""
    assert observation.load is not None
    return replace(observation, load=replace(observation.load, gpu_utilization_fraction=None))
