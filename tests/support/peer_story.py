"""A view of a pool whose facts a test writes down, and facts of a simple plant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autoscaler.settings import Slo
from autoscaler.types import Histogram
from load_tests.fleet import ReplicaModel
from load_tests.histories import History
from load_tests.peers import PeerFacts

# Steps of 20 ms and 0.1 ms per token; one replica carries 4 requests/s of 1000 + 100 tokens.
MODEL = ReplicaModel(
    a=0.02, b=1e-4, c=0.0, d=0.0, e=0.0, step_overhead_seconds=0.0, sequence_overhead_seconds=0.0,
    kv_capacity_tokens=100_000,
)  # fmt: skip


def facts(history: History | None = None, **changes: Any) -> PeerFacts:
    """The facts of that plant."""
    known: dict[str, Any] = {
        "slo": Slo(), "replica": MODEL, "startup_seconds": 120.0, "requests_per_second": 4.0,
        "mean_prompt_tokens": 1000.0, "mean_output_tokens": 100.0, "seconds_per_prompt_token": 1e-4,
        "seconds_per_output_token": 1e-3, "history": history,
    }  # fmt: skip
    return PeerFacts(**{**known, **changes})


def history(requests: Sequence[float], interval_seconds: float = 60.0) -> History:
    """So many requests of 1000 + 100 tokens per interval, up to the start."""
    counts = np.array(requests, dtype=float)
    t = interval_seconds * np.arange(-len(counts), 0)
    return History(
        t_seconds=t, interval_seconds=interval_seconds, requests=counts, prompt_tokens=1000 * counts,
        output_tokens=100 * counts,
    )  # fmt: skip


def samples(value: float, count: int = 100) -> Histogram:
    """So many samples of one value, a bucket edge: every quantile is just below it, the mean is it."""
    return Histogram(upper_bounds=(value * 0.999, value), counts=(0, count, 0), sum=value * count)


@dataclass
class Story:
    """A view whose facts a test writes down; `scraped` False: nothing but the replicas is known."""

    at_seconds: float = 0.0
    desired: int = 4
    ready: int = 4
    starting: int = 0
    held: int = 0
    held_tokens: int = 0
    gauges: dict[str, Sequence[float]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    scraped: bool = True

    @property
    def held_requests(self) -> int | None:
        return self.held if self.scraped else None

    @property
    def held_prompt_tokens(self) -> int | None:
        return self.held_tokens if self.scraped else None

    def per_replica(self, gauge: str) -> Sequence[float] | None:
        return self.gauges.get(gauge, [0.0] * self.ready) if self.scraped else None

    def rate(self, counter: str, window_seconds: float) -> float | None:
        return self.rates.get(counter) if self.scraped else None

    def histogram(self, series: str, window_seconds: float) -> Histogram | None:
        return self.histograms.get(series) if self.scraped else None


def arriving(requests_per_second: float, prompt_tokens: float = 1000.0, output_tokens: float = 100.0) -> dict[str, Any]:
    """Rates and lengths of such traffic, as keyword arguments of a Story."""
    return {
        "rates": {
            "arrivals": requests_per_second,
            "arrived_prompt_tokens": requests_per_second * prompt_tokens,
            "cached_prompt_tokens": 0.0,
            "prefilled_prompt_tokens": requests_per_second * prompt_tokens,
            "engine_steps": 40.0,
        },
        "histograms": {"output_lengths": samples(output_tokens), "prompt_lengths": samples(prompt_tokens)},
    }
