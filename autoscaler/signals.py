"""Every signal a policy may track: its name, unit, and how to read it from Observations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from autoscaler.types import Histogram, Observation

# A window of which more than this share was not measured is itself not measured.
MAX_MASKED_FRACTION = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One signal.  `spread`: "pool" adds up over replicas, "replica" is a mean per replica.

    `kind` "count" divides counts by time, "gauge" averages readings over time, "latest" takes the newest reading.
    """

    unit: str
    group: Literal["demand", "load", "latency"]
    spread: Literal["pool", "replica"]
    kind: Literal["count", "gauge", "latest"]
    read: Callable[[Observation], float | None]


def _demand(*names: str) -> Callable[[Observation], float | None]:
    return lambda observation: _sum(observation.demand, names)


def _load(*names: str) -> Callable[[Observation], float | None]:
    return lambda observation: _sum(observation.load, names)


def _sum(owner: object | None, names: tuple[str, ...]) -> float | None:
    if owner is None:
        return None
    total = 0.0
    for name in names:
        value = getattr(owner, name)
        if value is None:
            return None
        total += value
    return total


def _quantile(which: str, q: float, fallback: str | None) -> Callable[[Observation], float | None]:
    def read(observation: Observation) -> float | None:
        latency = observation.latency
        if latency is None:
            return None
        histogram: Histogram | None = getattr(latency, which)
        if histogram is not None:
            return histogram.quantile(q)
        return getattr(latency, fallback) if fallback else None

    return read


def _signal(unit: str, group: str, spread: str, kind: str, read: Callable[[Observation], float | None]) -> Signal:
    return Signal(unit=unit, group=group, spread=spread, kind=kind, read=read)  # type: ignore[arg-type]


SIGNALS: dict[str, Signal] = {
    "requests_per_second": _signal("requests/s", "demand", "pool", "count", _demand("requests")),
    "prompt_tokens_per_second": _signal("tokens/s", "demand", "pool", "count", _demand("prompt_tokens")),
    "output_tokens_per_second": _signal("tokens/s", "demand", "pool", "count", _demand("output_tokens")),
    "tokens_per_second": _signal("tokens/s", "demand", "pool", "count", _demand("prompt_tokens", "output_tokens")),
    "running_requests": _signal("requests", "load", "pool", "gauge", _load("running_requests")),
    "waiting_requests": _signal("requests", "load", "pool", "gauge", _load("waiting_requests")),
    "running_and_waiting_requests": _signal(
        "requests", "load", "pool", "gauge", _load("running_requests", "waiting_requests")
    ),
    "waiting_prompt_tokens": _signal("tokens", "load", "pool", "gauge", _load("waiting_prompt_tokens")),
    "kv_cache_fraction": _signal("fraction", "load", "replica", "gauge", _load("kv_cache_fraction")),
    "gpu_utilization_fraction": _signal("fraction", "load", "replica", "gauge", _load("gpu_utilization_fraction")),
    "ttft_p95_seconds": _signal("s", "latency", "replica", "latest", _quantile("ttft", 0.95, "ttft_p95_seconds")),
    "ttft_p99_seconds": _signal("s", "latency", "replica", "latest", _quantile("ttft", 0.99, "ttft_p99_seconds")),
    "itl_p95_seconds": _signal("s", "latency", "replica", "latest", _quantile("itl", 0.95, "itl_p95_seconds")),
    "e2e_p95_seconds": _signal("s", "latency", "replica", "latest", _quantile("e2e", 0.95, "e2e_p95_seconds")),
}


def window_mean(
    recent: Sequence[Observation],
    read: Callable[[Observation], float | None],
    kind: str,
    window_seconds: int,
    masked_fraction: float = MAX_MASKED_FRACTION,
) -> float | None:
    """The signal over the last `window_seconds` of `recent` (oldest first, the newest ends now); None if unknown.

    A "count" is divided by the time it covers, a "gauge" is weighted by the time of each Observation, "latest" takes the
    newest reading.  Readings that are missing are left out; if they make more than `masked_fraction` of the window, so is
    the rest.
    """
    if not recent:
        return None
    now = recent[-1].at_seconds
    total = covered = span = 0.0
    for observation in reversed(recent):
        # An Observation counts when at least half of what it covers lies inside the window.
        if now - observation.at_seconds + 0.5 * observation.window_seconds > window_seconds and span > 0:
            break
        value = read(observation)
        span += observation.window_seconds
        if value is None:
            continue
        if kind == "latest":
            return value
        covered += observation.window_seconds
        total += value if kind == "count" else value * observation.window_seconds
    if covered <= 0 or covered < (1 - masked_fraction) * span:
        return None
    return total / covered
