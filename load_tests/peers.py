"""The autoscalers under test: each sees the plant's native signals through a `View` and names a number of replicas.

Laws are in `autoscaler.laws`; what each original scrapes, and how often, is in the `peers_*` modules.  Every settings class
carries the shipped defaults, one knob `headroom` (1 is shipped, more is more replicas) and, where the original has known
traps, `traps`: "shipped" keeps them and "removed" mends them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from autoscaler.errors import ConfigError
from load_tests.peers_aibrix import Aibrix, AibrixSettings
from load_tests.peers_dynamo import Dynamo, DynamoSettings
from load_tests.peers_kubernetes import Hpa, HpaSettings, HpaSignal, Kpa, KpaSettings, Static, StaticSettings
from load_tests.peers_llmd import (
    KedaSlo,
    KedaSloSettings,
    KedaTokens,
    KedaTokenSettings,
    WvaV1,
    WvaV1Settings,
    WvaV2,
    WvaV2Settings,
)
from load_tests.peers_ray import RayServe, RayServeSettings
from load_tests.peers_view import Common, Gauge, Peer, PeerFacts, Recommendation, Series, Traps, View
from load_tests.peers_work import (
    Ahpa,
    AhpaSettings,
    HpaWork,
    HpaWorkSettings,
    Lcp,
    LcpSettings,
    StaticPeak,
    StaticPeakSettings,
)

__all__ = [
    "AhpaSettings",
    "AibrixSettings",
    "DynamoSettings",
    "Gauge",
    "Hpa",
    "HpaSettings",
    "HpaSignal",
    "HpaWorkSettings",
    "KedaSloSettings",
    "KedaTokenSettings",
    "Kpa",
    "KpaSettings",
    "LcpSettings",
    "Peer",
    "PeerFacts",
    "PeerSettings",
    "RayServeSettings",
    "Recommendation",
    "SHIPPED",
    "Series",
    "Static",
    "StaticPeakSettings",
    "StaticSettings",
    "Traps",
    "View",
    "WvaV1Settings",
    "WvaV2Settings",
    "peer_of",
    "with_headroom",
    "without_traps",
]

PeerSettings = (
    StaticSettings
    | StaticPeakSettings
    | HpaSettings
    | HpaWorkSettings
    | KpaSettings
    | KedaSloSettings
    | KedaTokenSettings
    | WvaV1Settings
    | WvaV2Settings
    | DynamoSettings
    | AibrixSettings
    | AhpaSettings
    | RayServeSettings
    | LcpSettings
)

_PEERS: dict[type, Callable[[Any, PeerFacts | None], Peer]] = {
    StaticPeakSettings: StaticPeak,
    HpaWorkSettings: HpaWork,
    KedaSloSettings: KedaSlo,
    KedaTokenSettings: KedaTokens,
    WvaV1Settings: WvaV1,
    WvaV2Settings: WvaV2,
    DynamoSettings: Dynamo,
    AibrixSettings: Aibrix,
    AhpaSettings: Ahpa,
    RayServeSettings: RayServe,
    LcpSettings: Lcp,
}


# As shipped, where an original ships a configuration: what differs is the algorithm, never a tuned number.  HPA on tokens is
# missing, for its target depends on the model.
SHIPPED: tuple[PeerSettings, ...] = (
    StaticPeakSettings(),
    HpaSettings(),
    HpaWorkSettings(),
    KpaSettings(),
    KedaSloSettings(),
    KedaTokenSettings(),
    WvaV1Settings(),
    WvaV2Settings(),
    DynamoSettings(predictor="constant"),
    DynamoSettings(predictor="arima"),
    DynamoSettings(predictor="kalman"),
    DynamoSettings(mode="load"),
    DynamoSettings(mode="load", load_target="throughput"),
    DynamoSettings(mode="load", load_target="latency"),
    DynamoSettings(mode="both", predictor="arima"),
    AibrixSettings(),
    AibrixSettings(algorithm="kpa"),
    AhpaSettings(),
    RayServeSettings(),
    LcpSettings(),
)


def peer_of(
    settings: PeerSettings, *, min_replicas: int = 0, max_replicas: int = 100_000, facts: PeerFacts | None = None
) -> Peer:
    """The peer that a settings object asks for, its bounds narrowed to the scenario's.

    `facts` are for those that are told of the plant beforehand; without them these can be made and named, but not decide.
    Raises ConfigError where no number satisfies both bounds.
    """
    if isinstance(settings, StaticSettings):
        return Static(settings)
    bounds: Any = settings if isinstance(settings, Common) else settings.spec
    low, high = max(bounds.min_replicas, min_replicas), min(bounds.max_replicas, max_replicas)
    field = "max_replicas" if isinstance(settings, Common) else "spec.max_replicas"
    if high < low:
        raise ConfigError(field, f"{high} is below min_replicas {low} once the scenario's limits hold")
    narrow = replace(bounds, min_replicas=low, max_replicas=high)
    if isinstance(settings, HpaSettings):
        return Hpa(replace(settings, spec=narrow))
    if isinstance(settings, KpaSettings):
        return Kpa(replace(settings, spec=narrow))
    return _PEERS[type(settings)](narrow, facts)


def with_headroom(settings: PeerSettings, headroom: float) -> PeerSettings:
    """The same peer with its knob turned; a fixed fleet is multiplied and rounded up."""
    if isinstance(settings, StaticSettings):
        return replace(settings, replicas=math.ceil(settings.replicas * headroom - 1e-9))
    return replace(settings, headroom=headroom)


def without_traps(settings: PeerSettings) -> PeerSettings:
    """The same peer with its known traps mended; unchanged where none is known."""
    changed: Any = settings
    return replace(changed, traps="removed") if hasattr(settings, "traps") else settings
