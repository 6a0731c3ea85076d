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


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyAnswer:
    """The metrics source answers, and knows no series."""

    kind: Literal["empty_answer"] = "empty_answer"
    at_seconds: float = setting(doc="When it begins.", low=0)
    for_seconds: float = setting(600.0, "How long.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleSamples:
    """The metrics source answers with the samples of the instant at which it began, and their old timestamps."""

    kind: Literal["stale_samples"] = "stale_samples"
    at_seconds: float = setting(doc="When it begins.", low=0)
    for_seconds: float = setting(600.0, "How long.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentReplicas:
    """A share of the replicas works but is not scraped; what they count meanwhile is never seen."""

    kind: Literal["silent_replicas"] = "silent_replicas"
    fraction: float = setting(0.5, "Share of the replicas, of those that come meanwhile as well.", above=0, high=1)
    door: bool = setting(
        True, "True: a door counts arrivals, whoever serves them; False: they are counted by replicas."
    )
    at_seconds: float = setting(doc="When it begins.", low=0)
    for_seconds: float = setting(600.0, "How long.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStuck:
    """Engines stop in the middle of a step with all they hold, are sent requests still, and repeat their last gauges."""

    kind: Literal["engine_stuck"] = "engine_stuck"
    count: int = setting(1, "How many, the oldest first.", low=1)
    at_seconds: float = setting(doc="When.", low=0)
    for_seconds: float = setting(600.0, "After so long they are killed, and replaced.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartHangs:
    """The next starts to be ordered never become ready, and do not fail either."""

    kind: Literal["start_hangs"] = "start_hangs"
    count: int = setting(1, "How many.", low=1)
    at_seconds: float = setting(0.0, "From when.", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneLost:
    """A zone goes with its share of what serves and of what starts; others have no node to spare for a while."""

    kind: Literal["zone_lost"] = "zone_lost"
    fraction: float = setting(1 / 3, "Share of the replicas, rounded up.", above=0, high=1)
    at_seconds: float = setting(doc="When.", low=0)
    for_seconds: float = setting(300.0, "How long no new start begins.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """Every engine is of another version from one step to the next: its step law has other terms.

    For good, and known to nobody who decides.  A rollout replica by replica is not simulated.
    """

    kind: Literal["new_version"] = "new_version"
    step_factor: float = setting(1.0, "The fixed time of a step, over that before.", above=0, high=10)
    token_factor: float = setting(1.5, "The time per token in a step.", above=0, high=10)
    context_factor: float = setting(1.0, "The time per token of context.", above=0, high=10)
    at_seconds: float = setting(0.0, "From when.", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """Clients that give up a request without a first token, and send it again.

    The engine goes on with what nobody waits for any more, as behind a gateway that does not pass the hang-up on.
    """

    kind: Literal["retries"] = "retries"
    timeout_seconds: float = setting(10.0, "Patience for the first token.", above=0)
    most: int = setting(3, "How often one request is sent again.", low=1, high=20)
    delay_seconds: float = setting(1.0, "From giving up to sending again.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondWriter:
    """Somebody else writes his own number of replicas to the same target, again and again."""

    kind: Literal["second_writer"] = "second_writer"
    replicas: int = setting(2, "His number.", low=0, high=100_000)
    every_seconds: float = setting(60.0, "From one time to the next.", above=0)
    at_seconds: float = setting(doc="When he begins.", low=0)
    for_seconds: float = setting(600.0, "How long.", above=0)


Fault = (
    ScrapeGap
    | NanScrape
    | EmptyAnswer
    | StaleSamples
    | SilentReplicas
    | CounterReset
    | EngineStuck
    | ReplicaFailure
    | ZoneLost
    | StartupSlower
    | StartsFail
    | StartHangs
    | NodeShortage
    | CapacityChange
    | NewVersion
    | Retries
    | SecondWriter
)
