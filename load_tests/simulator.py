"""The simulator: traffic, a fleet and somebody who decides, advanced together to the end of the trace.

Same setup and seed, same bytes: nothing here knows the time of day or draws by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import cast

import numpy as np

from autoscaler.errors import ConfigError
from autoscaler.settings import Slo
from load_tests.births import Births, StartupModel
from load_tests.contestants import Contestant, Moment
from load_tests.fault_plan import FaultPlan
from load_tests.faults import Fault
from load_tests.fleet import Fleet, PoolModel, Requests
from load_tests.kernel_state import Floats, Ints
from load_tests.life import Life
from load_tests.need import Need
from load_tests.retries import Clients
from load_tests.run import Event, ReplicaSeconds, Run, Timeline, by_arrival, judge
from load_tests.signals import Seen

# Requests that arrive at the very end get so long to finish; nothing is decided or paid for in that time.
TAIL_SECONDS = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything that a simulation is determined by, besides who decides.

    `pools`: pool 0 is where requests arrive; the pools behind it are joined by their `next_pool`.  `initial`: replicas
    ready at second 0, per pool.  `wake`, `sleepers`: how a sleeping replica starts, and how many may sleep.  `gaps`: where
    nothing is known of the traffic, so that nothing is measured.  Requests that arrive in [score_from_seconds,
    end_seconds) are judged.
    """

    scenario: str
    seed: int
    pools: tuple[PoolModel, ...]
    requests: Requests
    startup: StartupModel
    startup_factor: float = 1.0
    failure_fraction: float = 0.0
    wake: StartupModel | None = None
    sleepers: int = 0
    slo: Slo
    initial: tuple[int, ...]
    end_seconds: float
    score_from_seconds: float = 0.0
    interval_seconds: int = 10
    gpus_per_replica: int = 1
    origin_at_seconds: int = 0
    faults: tuple[Fault, ...] = ()
    gaps: tuple[tuple[float, float], ...] = ()
    about: tuple[tuple[str, str], ...] = ()
    drain: bool = True
    every_step: bool = False


@dataclass(slots=True)
class Row:
    """Readings of one timeline row, summed over the pools."""

    at: float
    desired: int
    ready: int
    starting: int
    draining: int
    running: float
    waiting: float


class Simulation:
    """One setup under one set of contestants, one per pool; `fleet` is the plant unless something else stands for it."""

    def __init__(self, setup: Setup, contestants: Sequence[Contestant], *, fleet: Fleet | None = None) -> None:
        self.setup = setup
        self.contestants = tuple(contestants)
        self.faults = FaultPlan(setup.faults, setup.gaps)
        self.clients = None if self.faults.retries is None else Clients(self.faults.retries, setup.requests)
        if self.clients is not None and fleet is not None:
            raise ConfigError("faults", "retries must be simulated request by request")
        requests = setup.requests if self.clients is None else self.clients.requests
        self.fleet = (
            Fleet(setup.pools, requests, seed=setup.seed, every_step=setup.every_step) if fleet is None else fleet
        )
        if self.clients is not None:
            self.fleet.hold()

        def births(pool: str) -> Births:
            return Births(setup.startup, pool, setup.seed, setup.startup_factor, setup.failure_fraction)

        def wakes(pool: str) -> Births | None:
            return None if setup.wake is None else Births(setup.wake, f"{pool} wakes", setup.seed)

        self.lives = tuple(
            Life(
                self.fleet,
                i,
                births(pool.name),
                initial=setup.initial[i],
                drain=setup.drain,
                wakes=wakes(pool.name),
                sleepers=setup.sleepers,
            )
            for i, pool in enumerate(setup.pools)
        )
        self.events: list[Event] = []
        self._rows: list[Row] = []
        self._bands: list[tuple[float, float, float, float]] = []
        for i, (contestant, life) in enumerate(zip(self.contestants, self.lives, strict=True)):
            contestant.begin(self._shown(life), i, life, setup.origin_at_seconds)

    def _shown(self, life: Life) -> Fleet:
        """The fleet as a contestant sees it."""
        if not self.faults.alters_signals:
            return self.fleet
        clients = self.clients
        given_up = (lambda: 0) if clients is None else (lambda: clients.given_up)
        return cast(Fleet, Seen(self.fleet, self.faults, life, given_up))

    def run(self, progress: Callable[[float], None] | None = None) -> None:
        """To the end of the trace; `progress` is told the simulated seconds now and then."""
        try:
            self._run(progress)
        finally:
            for contestant in self.contestants:
                contestant.end()
        end = self.setup.end_seconds + TAIL_SECONDS
        self.fleet.advance(end)
        for life in self.lives:
            life.happen(end)

    def _run(self, progress: Callable[[float], None] | None) -> None:
        setup = self.setup
        due = [float(c.interval_seconds) for c in self.contestants]
        row_at, told = 0.0, 0.0
        while True:
            look = math.inf if self.clients is None else self.clients.next_seconds()
            at = min(*due, row_at, look, self.faults.next_seconds(), setup.end_seconds)
            self._advance(at)
            if self.clients is not None and look <= at:
                self.clients.look(self.fleet)
            if at >= setup.end_seconds:
                return
            for fault in self.faults.begin_and_end(at, self.lives):
                self.events.append(Event(at_seconds=at, before=0, after=0, kind="fault", note=fault))
            for i, contestant in enumerate(self.contestants):
                if due[i] <= at:
                    self._decide(i, contestant, at)
                    due[i] = at + contestant.interval_seconds
            if row_at <= at:
                self._rows.append(self._row(at))
                row_at = at + setup.interval_seconds
            if progress is not None and at - told > setup.end_seconds / 200:
                told = at
                progress(at)

    def _advance(self, until: float) -> None:
        """Everything up to `until`: starts end at their own instants."""
        while True:
            born = min(life.next_event_seconds() for life in self.lives)
            at = min(born, until)
            self.fleet.advance(at)
            for life in self.lives:
                life.happen(at)
            if born > until:
                return

    def _decide(self, pool: int, contestant: Contestant, at: float) -> None:
        life = self.lives[pool]
        moment = Moment(
            measured=self.faults.measured(at),
            empty=self.faults.empty(at),
            stale_seconds=self.faults.stale_seconds(at),
        )
        answer = contestant.decide(at, moment)
        if answer.band is not None and pool == 0:
            start, end, low, high = answer.band
            self._bands.append((at + start, at + end, low, high))
        if answer.replicas != life.desired:
            note = self.setup.pools[pool].name if len(self.lives) > 1 else ""
            self.events.append(
                Event(at_seconds=at, before=life.desired, after=answer.replicas, reasons=answer.reasons, note=note)
            )
            life.scale(at, answer.replicas)

    def _row(self, at: float) -> Row:
        gauges = [self.fleet.gauges(i) for i in range(len(self.lives))]
        return Row(
            at=at,
            desired=sum(life.desired for life in self.lives),
            ready=sum(len(life.serving) for life in self.lives),
            starting=sum(life.starting for life in self.lives),
            draining=sum(life.draining for life in self.lives),
            running=float(sum(int(g.running.sum()) for g in gauges)),
            waiting=float(sum(int(g.waiting.sum()) + g.held_requests for g in gauges)),
        )

    def outcome(self, policy: str, need: Need | None, wall_seconds: float) -> Run:
        """The Run that this simulation was."""
        setup, out = self.setup, self.fleet.outcome()
        requests, arrivals = setup.requests, setup.requests.arrival_seconds
        rows: Ints | slice = slice(None)
        lengths = rows
        if self.clients is not None:
            rows, lengths, arrivals = self.clients.arrived(out)
        at = np.array([row.at for row in self._rows])
        interval = float(setup.interval_seconds)
        low, high = self._forecast_columns(at)
        paid = [life.paid(setup.score_from_seconds, setup.end_seconds) for life in self.lives]

        def column(name: str) -> Floats:
            return np.array([getattr(row, name) for row in self._rows], dtype=float)

        timeline = Timeline(
            at_seconds=at,
            desired=column("desired").astype(np.int64),
            ready=column("ready").astype(np.int64),
            starting=column("starting").astype(np.int64),
            draining=column("draining").astype(np.int64),
            need=need.between(at, at + interval) if need is not None else np.full(len(at), np.nan),
            arrivals_per_second=np.zeros(len(at)),
            running=column("running"),
            waiting=column("waiting"),
            ttft_p95_seconds=np.full(len(at), np.nan),
            violated=np.zeros(len(at), dtype=np.int64),
            forecast_low=low,
            forecast_high=high,
        )
        run = Run(
            policy=policy,
            pool=setup.pools[0].name,
            scenario=setup.scenario,
            seed=setup.seed,
            slo=setup.slo,
            gpus_per_replica=setup.gpus_per_replica,
            interval_seconds=interval,
            score_from_seconds=setup.score_from_seconds,
            end_seconds=setup.end_seconds,
            arrival_seconds=arrivals,
            prompt_tokens=requests.prompt_tokens[lengths],
            output_tokens=requests.output_tokens[lengths],
            first_token_seconds=out.first_token_seconds[rows],
            finish_seconds=out.finish_seconds[rows],
            status=out.status.astype(np.int64)[rows],
            timeline=timeline,
            events=tuple(self.events),
            replica_seconds=ReplicaSeconds(*(math.fsum(stage) for stage in zip(*paid, strict=True))),
            starts=sum(life.starts(setup.score_from_seconds, setup.end_seconds) for life in self.lives),
            wall_seconds=wall_seconds,
            about=setup.about,
            origin_at_seconds=setup.origin_at_seconds or None,
        )
        return _with_arrivals(run)

    def _forecast_columns(self, at: Floats) -> tuple[Floats, Floats]:
        """The newest forecast made for each row."""
        low, high = np.full(len(at), np.nan), np.full(len(at), np.nan)
        for start, end, bottom, top in self._bands:
            rows = slice(*np.searchsorted(at, [start, end]))
            low[rows], high[rows] = bottom, top
        return low, high


def _with_arrivals(run: Run) -> Run:
    """`run` with the timeline columns that follow from its requests."""
    judged = judge(run)
    rates, p95, violated = by_arrival(
        run.timeline.at_seconds, run.interval_seconds, run.arrival_seconds, judged.ttft_seconds, judged.violated
    )
    timeline = replace(run.timeline, arrivals_per_second=rates, ttft_p95_seconds=p95, violated=violated)
    return replace(run, timeline=timeline)


def simulate(
    setup: Setup,
    contestants: Sequence[Contestant],
    *,
    need: Need | None = None,
    progress: Callable[[float], None] | None = None,
) -> Run:
    """Run one setup under its contestants (one per pool) and tell what came of it."""
    begun = perf_counter()
    simulation = Simulation(setup, contestants)
    simulation.run(progress)
    return simulation.outcome(contestants[0].name, need, perf_counter() - begun)
