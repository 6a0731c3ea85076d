"""Who decides in a simulation: a pool of this library, or an emulated peer, each behind the same two methods."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from autoscaler.embed import Pool
from autoscaler.log import StepLog
from autoscaler.settings import Slo
from autoscaler.types import Observation, Reason, Step
from load_tests.fleet import Fleet
from load_tests.life import Life
from load_tests.peers import Peer
from load_tests.plant_view import PlantView
from load_tests.scrape import Scraper

REFIT_SECONDS = 3600  # the server does so twice as often


class Answer(NamedTuple):
    """A number of replicas and its reasons; `band`, if there is a forecast: (start, end, low, high) ahead, in requests/s."""

    replicas: int
    reasons: tuple[Reason, ...]
    band: tuple[int, int, float, float] | None = None


# A sample is believed so long after its time: by this library's sources, and by Prometheus, which peers ask.
STALE_AFTER_SECONDS, LOOK_BACK_SECONDS = 45.0, 300.0


class Moment(NamedTuple):
    """What befalls the signals at one tick: are they scraped, is the answer empty, how old is what it repeats."""

    measured: bool = True
    empty: bool = False
    stale_seconds: float = 0.0


class Contestant(Protocol):
    """One decision maker for one pool of one simulation."""

    name: str
    interval_seconds: int

    def begin(self, fleet: Fleet, pool: int, life: Life, origin_at_seconds: int) -> None:
        """The simulation is about to start."""

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """Choose a number."""

    def end(self) -> None:
        """The simulation is over."""


class PeerContestant:
    """An emulated peer on its native signals."""

    def __init__(self, peer: Peer) -> None:
        self.peer, self.name, self.interval_seconds = peer, peer.name, peer.interval_seconds

    def begin(self, fleet: Fleet, pool: int, life: Life, origin_at_seconds: int) -> None:
        """Look at the fleet through the peer's eyes."""
        self._life = life
        self._view = PlantView(fleet, pool, rates=self.peer.uses_rates)

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """One tick of the peer."""
        view = self._view.tick(
            desired=self._life.desired,
            starting=self._life.starting,
            ready=len(self._life.serving),
            scraped=moment.measured and moment.stale_seconds < LOOK_BACK_SECONDS,
            empty=moment.empty,
            fresh=moment.stale_seconds == 0.0,
        )
        return Answer(*self.peer.decide(view))

    def end(self) -> None:
        """Nothing is open."""


class PoolContestant:
    """A pool of this library, fed what a scraper would see; `log` writes its steps below that directory."""

    def __init__(
        self, name: str, pool: Pool, slo: Slo, kv_capacity_tokens: int, *,
        history: Sequence[Observation] = (), log: Path | None = None,
    ) -> None:  # fmt: skip
        self.name, self.pool, self.interval_seconds = name, pool, pool.settings.interval_seconds
        self._scraper = Scraper(pool.settings.name, slo, kv_capacity_tokens)
        self._history, self._directory = history, log
        self._log: StepLog | None = None

    def begin(self, fleet: Fleet, pool: int, life: Life, origin_at_seconds: int) -> None:
        """Take the past in as history, and open the log."""
        self._fleet, self._index, self._life, self._origin = fleet, pool, life, origin_at_seconds
        if self._directory is not None:
            self._log = StepLog(self._directory, self.pool.autoscaler, self.pool.memory)
        self._refit_at_seconds = -math.inf
        for part in parts_of(self._history):
            self.pool.backfill(part)
            if self._log is not None:
                self._log.backfill(part, self.pool.memory)
            self._refit(part[-1].at_seconds)

    def look(self, at_seconds: float, moment: Moment) -> Observation:
        """What a scraper sees of this pool now."""
        fleet, index = self._fleet, self._index
        return self._scraper.observe(
            self._origin + math.floor(at_seconds),
            self.interval_seconds,
            self._life.counts(self._origin),
            lambda: (fleet.gauges(index), fleet.counters(index)),
            measured=moment.measured and moment.stale_seconds < STALE_AFTER_SECONDS,
            empty=moment.empty,
        )

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """Observe and step."""
        self.pool.step(self.look(at_seconds, moment))
        step = self.stepped()
        return Answer(step.decision.replicas, step.decision.reasons, _band(step))

    def stepped(self) -> Step:
        """The Step that the pool just made, once it is written down and learned from."""
        step = self.pool.last_step
        assert step is not None
        if self._log is not None:
            self._log.append(step, self.pool.memory)
        self._refit(step.observation.at_seconds)
        return step

    def _refit(self, at_seconds: int) -> None:
        """Learn anew once an hour, as `autoscaler serve` does, though here no turn is made meanwhile."""
        if at_seconds - self._refit_at_seconds < REFIT_SECONDS:
            return
        self._refit_at_seconds = at_seconds
        self.pool.refit()
        if self._log is not None:
            self._log.refit(self.pool.memory.beliefs, self.pool.memory)

    def take_over(self, other: PoolContestant) -> None:
        """Scrape on from the counters that `other` saw last, and learn anew when it would have."""
        self._scraper, self._refit_at_seconds = other._scraper, other._refit_at_seconds

    def end(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()


def parts_of(history: Sequence[Observation]) -> Iterator[Sequence[Observation]]:
    """The history in the parts after which a pool that had lived through it would have learned anew."""
    start = 0
    for i in range(1, len(history) + 1):
        if i == len(history) or history[i].at_seconds - history[start].at_seconds >= REFIT_SECONDS:
            yield history[start:i]
            start = i


def _band(step: Step) -> tuple[int, int, float, float] | None:
    """Median and 95 % of the work at the time when a replica ordered now is ready, as requests of today's lengths."""
    forecast, capacity, state = step.forecast, step.capacity, step.state
    if forecast is None or capacity is None or state.mean_prompt_tokens is None:
        return None
    per_request = (
        capacity.seconds_per_request
        + capacity.seconds_per_prompt_token * state.mean_prompt_tokens
        + capacity.seconds_per_output_token * capacity.mean_output_tokens
    )
    if per_request <= 0:
        return None
    start, end = forecast.windows[0]
    return start, end, forecast.value(0, 0.5) / per_request, forecast.value(0, 0.95) / per_request
