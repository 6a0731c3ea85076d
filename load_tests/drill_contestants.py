"""Contestants to whom something happens that no plant can do to them: a restart, a forecaster that has gone wrong.

And contestants that are watched: what a pool believes at each tick, and what its shell reports.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from autoscaler.embed import Pool, autoscaler_for, windows_for
from autoscaler.errors import ForecastError
from autoscaler.health import sick
from autoscaler.loop import Loop
from autoscaler.testing import FakeClock
from autoscaler.types import Forecast, Observation, Replicas, Step
from forecast.seasonal import Seasonal
from load_tests.campaign import Prepared, contestants_of
from load_tests.contestants import (
    REFIT_SECONDS,
    STALE_AFTER_SECONDS,
    Answer,
    Contestant,
    Moment,
    PeerContestant,
    PoolContestant,
    parts_of,
)
from load_tests.drill_rules import Belief
from load_tests.fleet import Fleet
from load_tests.life import Life
from load_tests.peers_dynamo import Dynamo
from load_tests.peers_work import Ahpa
from load_tests.scenario import Policy, PoolPolicy, policy_settings
from load_tests.scrape import Scraper
from serving.capacity import PriorCapacity

Fault = Literal["raises", "NaN", "x0.1", "x10"]


class Restarted:
    """A contestant that is killed and started again at `at_seconds`.

    A pool of this library gets its snapshot back, and the scraper's last counters, which its shell keeps.  A peer begins with
    what its original keeps: nothing.
    """

    def __init__(self, make: Callable[[], Contestant], at_seconds: float) -> None:
        self._make, self._at, self._done = make, at_seconds, False
        self._inner = make()
        self.name, self.interval_seconds = self._inner.name, self._inner.interval_seconds

    @property
    def last_step(self) -> Step | None:
        """The last Step of a pool of this library; None of a peer."""
        return self._inner.pool.last_step if isinstance(self._inner, PoolContestant) else None

    def begin(self, fleet: Fleet, pool: int, life: Life, origin_at_seconds: int) -> None:
        """Begin."""
        self._world = (fleet, pool, life, origin_at_seconds)
        self._inner.begin(*self._world)

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """One tick, of the new one from the restart on."""
        if not self._done and at_seconds >= self._at:
            self._done, old, new = True, self._inner, self._make()
            new.begin(*self._world)
            if isinstance(old, PoolContestant) and isinstance(new, PoolContestant):
                new.pool.restore(old.pool.snapshot())
                new.take_over(old)
            self._inner = new
        return self._inner.decide(at_seconds, moment)

    def end(self) -> None:
        """The simulation is over."""
        self._inner.end()


class Watched:
    """A contestant whose beliefs are written down at every tick; with `lines` its log lines too."""

    def __init__(self, inner: Contestant, *, lines: bool = False) -> None:
        self._inner, self._keeps_lines = inner, lines
        self.name, self.interval_seconds = inner.name, inner.interval_seconds
        self.beliefs: list[Belief] = []
        self.lines: list[str] = []

    @property
    def conflicts(self) -> int | None:
        """How often a shell reported that somebody else had written; None where there is no shell."""
        return self._inner.conflicts if isinstance(self._inner, InLoop) else None

    def begin(self, fleet: Fleet, pool: int, life: Life, origin_at_seconds: int) -> None:
        """Begin."""
        self._inner.begin(fleet, pool, life, origin_at_seconds)

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """One tick, looked at."""
        answer = self._inner.decide(at_seconds, moment)
        inner = self._inner
        step = inner.pool.last_step if isinstance(inner, PoolContestant) else getattr(inner, "last_step", None)
        if step is not None:
            self.beliefs.append(_belief(at_seconds, step))
            if self._keeps_lines:
                self.lines.append(step.to_json())
        return answer

    def end(self) -> None:
        """The simulation is over."""
        self._inner.end()


def _belief(at_seconds: float, step: Step) -> Belief:
    capacity, state, demand = step.capacity, step.state, step.observation.demand
    carried = None
    if capacity is not None and state.mean_prompt_tokens is not None:
        carried = capacity.feasible_load[-1][1] / (
            capacity.seconds_per_request
            + capacity.seconds_per_prompt_token * state.mean_prompt_tokens
            + capacity.seconds_per_output_token * capacity.mean_output_tokens
        )
    failed = 0.0
    if demand is not None and demand.requests:
        failed = ((demand.failed_requests or 0.0) + (demand.rejected_requests or 0.0)) / demand.requests
    return Belief(
        at_seconds=at_seconds,
        startup_seconds=None if capacity is None else capacity.startup(0.9),
        requests_per_second=carried,
        work=step.work,
        failed_fraction=failed,
        closed_loop=failed > 0.0 and '"closed_loop":true' in step.to_json(),
        overdue=sick(state, step.observation)[1] > 0,
    )


class InLoop:
    """A pool of this library in its own shell: the loop reads the target, observes, decides, writes down and acts.

    From `set_back_at_seconds` on the clock of the shell shows `set_back_seconds` less.
    """

    def __init__(
        self,
        prepared: Prepared,
        policy: PoolPolicy,
        *,
        set_back_at_seconds: float = math.inf,
        set_back_seconds: float = 0.0,
    ) -> None:
        self._set_back_at, self._set_back = set_back_at_seconds, round(set_back_seconds)
        made = contestants_of(prepared, policy)[0]
        assert isinstance(made, PoolContestant)
        self._pool, self.name, self.interval_seconds = made.pool, made.name, made.interval_seconds
        self._scraper = Scraper(
            made.pool.settings.name, prepared.setup.slo, prepared.setup.pools[0].replica.kv_capacity_tokens
        )
        self._pool.backfill(prepared.history())
        self._clock = FakeClock()
        self._loop = Loop(self._pool.autoscaler, self._pool.memory, self, self, self._clock)
        self.last_step: Step | None = None
        self._refit_at_seconds = -math.inf

    @property
    def conflicts(self) -> int:
        """How often the loop reported that somebody else had written."""
        return self._loop.counts.conflicts

    def begin(self, fleet: Fleet, pool: int, life: Life, origin_at_seconds: int) -> None:
        """Take the simulated pool for source and target."""
        self._fleet, self._index, self._life, self._origin = fleet, pool, life, origin_at_seconds

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """One turn of the loop."""
        self._moment, self._asked = moment, self._life.desired
        now = self._origin + math.floor(at_seconds)
        self._behind = self._set_back if at_seconds >= self._set_back_at else 0
        self._clock.at_seconds = now - self._behind
        self.last_step = asyncio.run(self._loop.tick())
        if now - self._refit_at_seconds >= REFIT_SECONDS:
            self._refit_at_seconds = now
            self._loop.adopt(self._loop.autoscaler.refit(self._loop.memory))
        reasons = () if self.last_step is None else self.last_step.decision.reasons
        return Answer(self._asked, reasons)

    async def replicas(self) -> Replicas:
        """Counts of the target."""
        return self._life.counts(self._origin - self._behind)

    async def scale(self, replicas: int) -> None:
        """Write to the target."""
        self._asked = replicas

    async def observe(self, at_seconds: int, replicas: Replicas) -> Observation:
        """Scrape the replicas."""
        fleet, index, moment = self._fleet, self._index, self._moment
        return self._scraper.observe(
            at_seconds,
            self.interval_seconds,
            replicas,
            lambda: (fleet.gauges(index), fleet.counters(index)),
            measured=moment.measured and moment.stale_seconds < STALE_AFTER_SECONDS,
            empty=moment.empty,
        )

    async def backfill(self, since_seconds: int, until_seconds: int) -> Sequence[Observation]:
        """The past was given to the pool."""
        return ()

    def end(self) -> None:
        """Nothing is open."""


class Broken:
    """A forecaster whose forecasts are wrong from the start; everything else is the real one's."""

    def __init__(self, real: Seasonal, fault: Fault) -> None:
        self._real, self._fault = real, fault
        self.history_type, self.beliefs_type = real.history_type, real.beliefs_type

    def start(self) -> tuple[Any, Any]:
        """Empty (history, beliefs)."""
        return self._real.start()

    def observe(self, history: Any, at_seconds: int, window_seconds: int, work: float | None) -> Any:
        """One more sample."""
        return self._real.observe(history, at_seconds, window_seconds, work)

    def refit(self, history: Any, beliefs: Any) -> Any:
        """Better beliefs."""
        return self._real.refit(history, beliefs)

    def forecast(
        self, history: Any, beliefs: Any, at_seconds: int, windows: Sequence[tuple[int, int]]
    ) -> Forecast | None:
        """The real forecast, spoilt."""
        if self._fault == "raises":
            raise ForecastError("the forecaster is dead")
        told = self._real.forecast(history, beliefs, at_seconds, windows)
        if told is None:
            return None
        factor = {"NaN": math.nan, "x0.1": 0.1, "x10": 10.0}[self._fault]
        return replace(told, values=tuple(tuple(value * factor for value in row) for row in told.values))


class Floored(PoolContestant):
    """A pool beside which the reactive rules look at the same Observations: `below` is its number less theirs, at worst.

    Two runs would differ by what each has learned from its own replicas.
    """

    def __init__(self, *args: Any, reactive: Pool, **more: Any) -> None:
        super().__init__(*args, **more)
        self._reactive, self.below = reactive, math.inf
        self._learned_at_seconds = -math.inf

    def begin(self, fleet: Fleet, pool: int, life: Life, origin_at_seconds: int) -> None:
        """Take the past in, both of them."""
        super().begin(fleet, pool, life, origin_at_seconds)
        for part in parts_of(self._history):
            self._reactive.backfill(part)
            self._reactive.refit()
            self._learned_at_seconds = part[-1].at_seconds

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """Observe and step, both of them."""
        answer = super().decide(at_seconds, moment)
        step = self.pool.last_step
        assert step is not None
        self.below = min(self.below, answer.replicas - self._reactive.step(step.observation).replicas)
        if step.observation.at_seconds - self._learned_at_seconds >= REFIT_SECONDS:
            self._learned_at_seconds = step.observation.at_seconds
            self._reactive.refit()
        return answer


def with_forecaster(prepared: Prepared, policy: PoolPolicy, fault: Fault) -> Floored:
    """This project's policy with a broken forecaster."""
    scenario, pool = prepared.scenario, prepared.setup.pools[0]
    settings = replace(policy_settings(scenario, policy, pool.name), limits=scenario.limits)
    capacity = PriorCapacity(settings.replica, settings.startup, settings.slo)
    broken = Broken(Seasonal(windows_for(settings, capacity), settings.interval_seconds), fault)
    return Floored(
        f"{policy.name}, forecaster {fault}",
        Pool(autoscaler_for(settings, forecaster=broken)),
        scenario.slo,
        pool.replica.kv_capacity_tokens,
        history=prepared.history(),
        reactive=Pool(autoscaler_for(replace(settings, strategy="reactive"))),
    )


class _Scaled:
    """A predictor whose forecasts are `factor` times the real ones."""

    def __init__(self, real: Any, factor: float) -> None:
        self._real, self._factor = real, factor

    def add(self, value: float) -> None:
        """One more sample."""
        self._real.add(value)

    def following(self) -> float:
        """What comes next, spoilt."""
        following: float = self._real.following()
        return self._factor * following


def with_scaled_forecast(prepared: Prepared, policy: Policy, factor: float) -> Contestant:
    """A peer that forecasts, with its forecast of the load times `factor`; 0 takes the forecast away.

    That is the number of requests for Dynamo, the past days for the AHPA-like policy, whose reactive part is left alone.
    """
    contestant = contestants_of(prepared, policy)[0]
    assert isinstance(contestant, PeerContestant)
    peer = contestant.peer
    if isinstance(peer, Dynamo):
        peer._requests = _Scaled(peer._requests, factor)
        return contestant
    assert isinstance(peer, Ahpa)
    real = peer._day

    def day(minutes: list[float | None], minute: int, days_ago: int, ahead: int) -> list[float | None]:
        if factor == 0.0:
            return []
        return [None if value is None else factor * value for value in real(minutes, minute, days_ago, ahead)]

    setattr(peer, "_day", day)  # noqa: B010  (a method of one peer, which a type checker does not let be assigned)
    return contestant
