"""The autoscalers under test: each sees the plant's native signals through a `View` and names a number of replicas.

Laws are in `autoscaler.laws`; what each original scrapes, and how often, is in the `peers_*` modules.  Traps of the
originals are kept: a Pods metric does not see requests that are held at the door, token counters count when the engine has
done the work, and starting replicas count as each original counts them.
"""

from __future__ import annotations

from dataclasses import replace

from autoscaler.errors import ConfigError
from load_tests.peers_kubernetes import Hpa, HpaSettings, HpaSignal, Kpa, KpaSettings, Static, StaticSettings
from load_tests.peers_view import Gauge, Peer, PeerFacts, Recommendation, Series, Traps, View

__all__ = [
    "Gauge",
    "Hpa",
    "HpaSettings",
    "HpaSignal",
    "Kpa",
    "KpaSettings",
    "Peer",
    "PeerFacts",
    "PeerSettings",
    "Recommendation",
    "Series",
    "Static",
    "StaticSettings",
    "Traps",
    "View",
    "peer_of",
]

PeerSettings = StaticSettings | HpaSettings | KpaSettings


def peer_of(settings: PeerSettings, *, min_replicas: int = 0, max_replicas: int = 100_000) -> Peer:
    """The peer that a settings object asks for, its bounds narrowed to the scenario's.

    Raises ConfigError where no number satisfies both.
    """
    if isinstance(settings, StaticSettings):
        return Static(settings)
    spec = settings.spec
    low, high = max(spec.min_replicas, min_replicas), min(spec.max_replicas, max_replicas)
    if high < low:
        raise ConfigError("spec.max_replicas", f"{high} is below min_replicas {low} once the scenario's limits hold")
    if isinstance(settings, HpaSettings):
        return Hpa(replace(settings, spec=replace(settings.spec, min_replicas=low, max_replicas=high)))
    return Kpa(replace(settings, spec=replace(settings.spec, min_replicas=low, max_replicas=high)))
