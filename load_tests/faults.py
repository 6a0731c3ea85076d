"""What can go wrong in a scenario: the settings of each fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoscaler.errors import ConfigError
from autoscaler.schema import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeGap:
    """The metrics source does not answer."""

    kind: Literal["scrape_gap"] = "scrape_gap"
    at_seconds: float = setting(doc="When it begins.", low=0)
    for_seconds: float = setting(600.0, "How long.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NanScrape:
    """The metrics source answers with NaN."""

    kind: Literal["nan_scrape"] = "nan_scrape"
    at_seconds: float = setting(doc="When it begins.", low=0)
    for_seconds: float = setting(600.0, "How long.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterReset:
    """Counters of engines start again at zero."""

    kind: Literal["counter_reset"] = "counter_reset"
    at_seconds: float = setting(doc="When.", low=0)
    replicas: Literal["one", "all"] = setting("one", "Whose counters.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFailure:
    """Replicas die with what they hold."""

    kind: Literal["replica_failure"] = "replica_failure"
    at_seconds: float = setting(doc="When.", low=0)
    count: int | None = setting(None, "How many; None: `fraction` says.", low=1)
    fraction: float | None = setting(
        None, "Share of the ready replicas, rounded up; None: `count` says.", above=0, high=1
    )

    def __post_init__(self) -> None:
        if (self.count is None) == (self.fraction is None):
            raise ConfigError("count", "exactly one of count and fraction must be given")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupSlower:
    """Starts ordered in a while take longer."""

    kind: Literal["startup_slower"] = "startup_slower"
    factor: float = setting(3.0, "So many times as long.", above=0, high=100)
    at_seconds: float = setting(0.0, "From when.", low=0)
    for_seconds: float | None = setting(None, "How long; None is to the end.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartsFail:
    """A share of the starts ordered in a while never become ready."""

    kind: Literal["starts_fail"] = "starts_fail"
    fraction: float = setting(0.1, "Share of starts.", above=0, high=1)
    at_seconds: float = setting(0.0, "From when.", low=0)
    for_seconds: float | None = setting(None, "How long; None is to the end.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShortage:
    """No start becomes ready while nodes are short."""

    kind: Literal["node_shortage"] = "node_shortage"
    at_seconds: float = setting(doc="From when.", low=0)
    for_seconds: float = setting(3600.0, "How long.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityChange:
    """Every replica is slower (or faster) for a while."""

    kind: Literal["capacity"] = "capacity"
    factor: float = setting(0.7, "Capacity over normal capacity; 0.7 makes steps take 1/0.7 as long.", above=0, high=10)
    at_seconds: float = setting(0.0, "From when.", low=0)
    for_seconds: float | None = setting(None, "How long; None is to the end.", above=0)


Fault = (
    ScrapeGap | NanScrape | CounterReset | ReplicaFailure | StartupSlower | StartsFail | NodeShortage | CapacityChange
)
