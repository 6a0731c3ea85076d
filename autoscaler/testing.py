"""Fakes for users' own tests: a clock that only moves when told, a source and a target in memory, and a story teller.

story = Story(Pool.from_config({"name": "p", "limits": {"max_replicas": 8}}))
story.expect(requests_per_second=10, replicas=2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from autoscaler.errors import SourceUnavailable
from autoscaler.settings import PoolSettings
from autoscaler.types import Capacity, Decision, Demand, Forecast, Lengths, Load, Observation, Replicas


@dataclass(slots=True)
class FakeClock:
    """A clock that moves only by `sleep_until` and `advance`."""

    at_seconds: int = 0

    def now_seconds(self) -> int:
        """The instant it stands at."""
        return self.at_seconds

    async def sleep_until(self, at_seconds: int) -> None:
        """Jump there."""
        self.at_seconds = max(self.at_seconds, at_seconds)

    def advance(self, seconds: int) -> None:
        """Jump ahead."""
        self.at_seconds += seconds


@dataclass(slots=True)
class FakeTarget:
    """Replicas that are ready `startup_seconds` after they were asked for, by the clock given."""

    clock: FakeClock
    startup_seconds: int = 0
    desired: int = 1
    ready: int = 1
    scaled: list[tuple[int, int]] = field(default_factory=list)
    failure: Exception | None = None
    on_scale: Callable[[int], None] | None = None
    _births: list[int] = field(default_factory=list)

    async def replicas(self) -> Replicas:
        """Counts now; raises `failure` if one is set."""
        if self.failure is not None:
            raise self.failure
        now = self.clock.now_seconds()
        self.ready += sum(1 for at in self._births if at <= now)
        self._births = [at for at in self._births if at > now]
        return Replicas(
            desired=self.desired,
            ready=self.ready,
            starting=len(self._births),
            starting_ready_at_seconds=tuple(self._births),
        )

    async def scale(self, replicas: int) -> None:
        """Order or remove replicas; raises `failure` if one is set, or what `on_scale` raises when it is told."""
        if self.failure is not None:
            raise self.failure
        if self.on_scale is not None:
            self.on_scale(replicas)
        now = self.clock.now_seconds()
        self.scaled.append((now, replicas))
        extra = replicas - self.ready - len(self._births)
        if extra > 0:
            self._births += [now + self.startup_seconds] * extra
        else:
            cancelled = min(-extra, len(self._births))
            self._births = self._births[: len(self._births) - cancelled]
            self.ready -= -extra - cancelled
        self.desired = replicas


@dataclass(slots=True)
class FakeSource:
    """Observations out of a function of time and counts; `broken` makes it unavailable."""

    make: Callable[[int, Replicas], Observation]
    past: Sequence[Observation] = ()
    broken: bool = False

    async def observe(self, at_seconds: int, replicas: Replicas) -> Observation:
        """What `make` says, or SourceUnavailable."""
        if self.broken:
            raise SourceUnavailable("the fake source is broken")
        return self.make(at_seconds, replicas)

    async def backfill(self, since_seconds: int, until_seconds: int) -> Sequence[Observation]:
        """Those of `past` that lie in the interval."""
        return [o for o in self.past if since_seconds <= o.at_seconds < until_seconds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """The history or belief of a model that keeps none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoForecast:
    """A forecaster that never has an opinion."""

    history_type: type = Nothing
    beliefs_type: type = Nothing

    def start(self) -> tuple[Nothing, Nothing]:
        """Nothing, twice."""
        return Nothing(), Nothing()

    def observe(self, history: Nothing, at_seconds: int, window_seconds: int, work: float | None) -> Nothing:
        """The same nothing."""
        return history

    def forecast(
        self, history: Nothing, beliefs: Nothing, at_seconds: int, windows: Sequence[tuple[int, int]]
    ) -> Forecast | None:
        """None."""
        return None

    def refit(self, history: Nothing, beliefs: Nothing) -> Nothing:
        """The same nothing."""
        return beliefs


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedCapacity:
    """A replica that carries `requests_per_second` of any requests and starts in `startup_seconds`."""

    requests_per_second: float = 10.0
    startup_seconds: float = 60.0
    beliefs_type: type = Nothing

    def start(self) -> Nothing:
        """Nothing is learned."""
        return Nothing()

    def capacity(self, beliefs: Nothing, lengths: Lengths, replicas: int) -> Capacity:
        """The same capacity always: one request is 1/requests_per_second replica-seconds."""
        return Capacity(
            seconds_per_request=1.0 / self.requests_per_second,
            seconds_per_prompt_token=0.0,
            seconds_per_output_token=0.0,
            feasible_load=((1, 1.0),),
            startup_seconds=((0.5, self.startup_seconds), (0.9, self.startup_seconds)),
            mean_output_tokens=lengths.mean_output_tokens or 0.0,
            source="fixed",
        )

    def observe(self, beliefs: Nothing, observation: Observation, lengths: Lengths, work: float | None) -> Nothing:
        """Nothing is learned."""
        return beliefs

    def refit(self, beliefs: Nothing, observations: Sequence[Observation]) -> Nothing:
        """The same nothing."""
        return beliefs

    def adopt(self, beliefs: Nothing, refitted: Nothing) -> Nothing:
        """The same nothing."""
        return beliefs


def observation(
    pool: str,
    at_seconds: int,
    *,
    replicas: int = 1,
    ready: int | None = None,
    requests_per_second: float | None = 1.0,
    prompt_tokens: float = 1000.0,
    output_tokens: float = 200.0,
    waiting_requests: float | None = 0.0,
    running_requests: float = 0.0,
    window_seconds: int = 10,
    starting_ready_at_seconds: tuple[int, ...] = (),
) -> Observation:
    """A plain Observation: a rate of requests of one length, and a queue.  None for what is not to be measured."""
    demand = None
    if requests_per_second is not None:
        count = requests_per_second * window_seconds
        demand = Demand(
            requests=count,
            prompt_tokens=count * prompt_tokens,
            output_tokens=count * output_tokens,
            finished_requests=count,
        )
    here = replicas if ready is None else ready
    load = None
    if waiting_requests is not None:
        load = Load(running_requests=running_requests, waiting_requests=waiting_requests, replicas_reporting=here)
    return Observation(
        pool=pool,
        at_seconds=at_seconds,
        window_seconds=window_seconds,
        replicas=Replicas(
            desired=replicas,
            ready=here,
            starting=max(0, replicas - here),
            starting_ready_at_seconds=starting_ready_at_seconds,
        ),
        demand=demand,
        load=load,
    )


class Decider(Protocol):
    """What a Story walks: a `Pool`, or anything like it."""

    @property
    def settings(self) -> PoolSettings: ...

    def step(self, observation: Observation, /) -> Decision: ...


@dataclass(slots=True)
class Story:
    """Walks a pool through simulated time and checks its number: tests that read as a story in minutes."""

    pool: Decider
    at_seconds: int = 1_000_000
    replicas: int = 1
    decision: Decision | None = None

    def wait(self, seconds: int, **seen: Any) -> Story:
        """Let time pass in steps of the interval, each seeing `seen` (the arguments of `observation`)."""
        settings = self.pool.settings
        interval = settings.interval_seconds
        for _ in range(max(1, seconds // interval)):
            self.at_seconds += interval
            here = observation(settings.name, self.at_seconds, replicas=self.replicas, window_seconds=interval)
            if seen:
                arguments: dict[str, Any] = {"replicas": self.replicas, "window_seconds": interval, **seen}
                here = observation(settings.name, self.at_seconds, **arguments)
            self.decision = self.pool.step(here)
            self.replicas = self.decision.replicas
        return self

    def expect(self, replicas: int, seconds: int = 0, **seen: Any) -> Story:
        """Let time pass, then the number must be `replicas`."""
        self.wait(seconds, **seen)
        rules = [r.rule for r in self.decision.reasons] if self.decision else []
        if self.replicas != replicas:
            raise AssertionError(f"at {self.at_seconds}: {self.replicas} replicas, expected {replicas}; by {rules}")
        return self


def without(observation_: Observation, *groups: str) -> Observation:
    """The same Observation with signal groups (demand, load, latency) not measured."""
    return replace(observation_, **dict.fromkeys(groups))  # type: ignore[arg-type]
