"""What a scraper of vLLM replicas and their door could see of a simulated pool, as Observations.

Only counters, gauges and bucketed histograms that a real scrape has: exact violations are for the report alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from autoscaler.settings import Slo
from autoscaler.types import Demand, Histogram, Latency, Load, Observation, Replicas
from load_tests.fleet import Counters, Gauges, HistogramCounts


@lru_cache(maxsize=64)
def _bounds(raw: bytes) -> tuple[float, ...]:
    return tuple(np.frombuffer(raw).tolist())


def histogram(now: HistogramCounts, before: HistogramCounts | None) -> Histogram:
    """The samples between two cumulative histograms."""
    counts = now.counts if before is None else now.counts - before.counts
    total = now.sum if before is None else now.sum - before.sum
    return Histogram(
        upper_bounds=_bounds(now.bounds.tobytes()),
        counts=tuple(counts.astype(float).tolist()),
        sum=max(0.0, float(total)),
    )


class Scraper:
    """Turns a pool's cumulative counters into Observations: counts since the last one that could be measured."""

    def __init__(self, pool: str, slo: Slo, kv_capacity_tokens: int) -> None:
        self.pool, self.slo, self.kv_capacity_tokens = pool, slo, kv_capacity_tokens
        self._last: Counters | None = None
        self._last_at: int | None = None

    def observe(
        self,
        at_seconds: int,
        interval_seconds: int,
        replicas: Replicas,
        read: Callable[[], tuple[Gauges, Counters]],
        *,
        measured: bool = True,
        empty: bool = False,
    ) -> Observation:
        """The Observation at `at_seconds`.

        Not `measured`: an outage, nothing but the replicas is known, and what arrives meanwhile is never counted.
        `empty`: an answer without any series, which is no zero either.
        """
        last, self._last_at = self._last_at, at_seconds
        window = (
            interval_seconds if last is None or at_seconds < last else max(1, at_seconds - last)
        )  # a clock set back
        gauges, counters = read()
        before, self._last = self._last, counters
        blank = Observation(pool=self.pool, at_seconds=at_seconds, window_seconds=window, replicas=replicas)
        if not measured:
            return blank
        if empty:
            return replace(blank, demand=Demand(), load=Load(replicas_reporting=0), latency=Latency())
        return Observation(
            pool=self.pool,
            at_seconds=at_seconds,
            window_seconds=window,
            replicas=replicas,
            demand=_demand(counters, before),
            load=self._load(gauges, counters, before, replicas, window),
            latency=self._latency(counters, before),
        )

    def _load(
        self,
        gauges: Gauges,
        counters: Counters,
        before: Counters | None,
        replicas: Replicas,
        window: int,
    ) -> Load:
        ready = len(gauges.ids)
        steps = counters.engine_steps - (before.engine_steps if before else 0)
        busy = counters.busy_seconds - (before.busy_seconds if before else 0.0)
        return Load(
            running_requests=float(gauges.running.sum()),
            waiting_requests=float(gauges.waiting.sum() + gauges.held_requests),
            kv_cache_fraction=(min(1.0, float(gauges.kv_tokens.mean()) / self.kv_capacity_tokens) if ready else None),
            gpu_utilization_fraction=min(1.0, max(0.0, busy / (ready * window))) if ready else None,
            engine_steps=float(steps),
            preemptions=float(counters.preemptions - (before.preemptions if before else 0)),
            replicas_reporting=min(ready, replicas.ready),
            step_tokens=histogram(counters.step_tokens, before.step_tokens if before else None),
        )

    def _latency(self, counters: Counters, before: Counters | None) -> Latency:
        ttft = histogram(counters.ttft, before.ttft if before else None)
        tpot = histogram(counters.tpot, before.tpot if before else None)
        served = float(counters.finished - (before.finished if before else 0))
        late, slow = ttft.above(self.slo.ttft_seconds), tpot.above(self.slo.itl_seconds)
        # Marginal histograms do not say whether the late requests are the slow ones.
        return Latency(
            ttft=ttft,
            itl=tpot,
            e2e=histogram(counters.e2e, before.e2e if before else None),
            served_requests=served,
            violated_requests=(max(late[0], slow[0]), late[1] + slow[1]),
        )


def _demand(counters: Counters, before: Counters | None) -> Demand:
    def since(name: str) -> float:
        return float(getattr(counters, name) - (getattr(before, name) if before else 0))

    return Demand(
        requests=since("arrivals"),
        prompt_tokens=since("arrived_prompt_tokens"),
        cached_prompt_tokens=since("cached_prompt_tokens"),
        output_tokens=since("output_tokens"),
        finished_requests=since("finished"),
        failed_requests=since("failed"),
        prompt_lengths=histogram(counters.prompt_lengths, before.prompt_lengths if before else None),
        output_lengths=histogram(counters.output_lengths, before.output_lengths if before else None),
    )
