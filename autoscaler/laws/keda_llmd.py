"""llm-d's two laws for KEDA: one on latency against the SLO, one on tokens that wait and tokens that are held.

Each yields a demand, a number of replicas, which KEDA hands to an HPA.  Source: the formulas that llm-d's guides give for
KEDA's triggers.  An empty query is 0 for KEDA, and so an outage reads as no load; `nan_is_zero` False keeps it unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoscaler.errors import ConfigError
from autoscaler.schema import setting

Samples = tuple[tuple[float, float | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SloSpec:
    """Knobs of the latency law."""

    up_threshold: float = setting(0.55, "Scale up above this share of the SLO.", above=0, high=2)
    down_threshold: float = setting(0.40, "Scale down below this share of the SLO.", above=0, high=2)
    ceiling: float = setting(2.0, "Largest share of the SLO that counts.", above=0)
    window_seconds: int = setting(45, "Seconds over which the share is averaged.", low=0, high=3600)

    def __post_init__(self) -> None:
        if self.down_threshold > self.up_threshold:
            raise ConfigError(
                "down_threshold", f"{self.down_threshold:g} must be <= up_threshold {self.up_threshold:g}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpec:
    """Knobs of the token law."""

    prefill_tokens_per_second: float = setting(doc="Prompt tokens that one replica prefills per second.", above=0)
    drain_seconds: float = setting(1.5, "Seconds in which what waits is to be prefilled.", above=0)
    kv_target_fraction: float = setting(0.8, "Share of the KV cache to aim at.", above=0, high=1)


def share_of_slo(
    ttft_p90_seconds: float | None, tpot_p90_seconds: float | None, *, ttft_slo_seconds: float, tpot_slo_seconds: float
) -> float | None:
    """The larger of both quantiles over its limit; None if there is neither."""
    shares = [
        value / limit
        for value, limit in ((ttft_p90_seconds, ttft_slo_seconds), (tpot_p90_seconds, tpot_slo_seconds))
        if value is not None
    ]
    return max(shares, default=None)


def remember(spec: SloSpec, samples: Samples, *, at_seconds: float, share: float | None) -> Samples:
    """The samples of the window with one more, capped at the ceiling; None is a sample without a value."""
    kept = tuple(s for s in samples if at_seconds - s[0] < spec.window_seconds)
    return (*kept, (at_seconds, None if share is None else min(share, spec.ceiling)))


def signal(samples: Samples, *, nan_is_zero: bool = True) -> float | None:
    """Mean of the window; None if nothing is known.

    One NaN makes a mean NaN, and KEDA makes that 0; with `nan_is_zero` False samples without a value are left out.
    """
    known = [value for _, value in samples if value is not None]
    if nan_is_zero and len(known) < len(samples):
        return 0.0
    return math.fsum(known) / len(known) if known else None


def slo_demand(spec: SloSpec, *, signal: float | None, replicas: int, ready: int) -> int | None:
    """Replicas that the latency law asks for; None (no opinion) if the signal is unknown.

    `replicas` exist, `ready` of them serve: on the way up only the share that serves is held to account.
    """
    if signal is None:
        return None
    if replicas <= 0:
        return 0
    if signal > spec.up_threshold:
        return replicas + math.ceil(replicas * (signal * (ready / replicas) / spec.up_threshold - 1.0))
    if signal < spec.down_threshold:
        return replicas - math.floor(replicas * (1.0 - signal / spec.down_threshold))
    return replicas


def token_demand(spec: TokenSpec, *, queued_tokens: float, kv_fractions: Sequence[float]) -> int:
    """Replicas to prefill in time what waits, or to hold what is in the KV caches (shares of one cache each)."""
    waiting = math.ceil(queued_tokens / spec.prefill_tokens_per_second / spec.drain_seconds)
    return max(waiting, math.ceil(math.fsum(kv_fractions) / spec.kv_target_fraction))


def guarded(demand: int, *, replicas: int, pending: int) -> int:
    """The overshoot guard: replicas on their way are taken off a demand that would add to them."""
    return demand if demand <= replicas else max(demand - pending, replicas)
