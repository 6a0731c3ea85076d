"""Deferrable work as ballast: GPU-hours over the work itself, with and without a class that may wait ten minutes.

Twice: request by request in the plant (`ballast_plant`), where both kinds share engines; and in a fluid twin in work
(replica-seconds), bins of ten seconds: interactive work is served first, the class in the order of its arrival with what is
left.  There an interactive replica-second is late once the queue before it is more than the slack of every replica.  Every
decision is the real pool's, on Observations with the class in them.  All days are training days.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoscaler.embed import Pool
from autoscaler.testing import FixedCapacity
from autoscaler.types import Demand, Latency, Load, Observation, Replicas, RequestClass
from load_tests import draws
from load_tests.ballast_plant import play
from load_tests.bench import BenchRow
from load_tests.campaign import Prepared, prepare
from load_tests.kernel_state import Floats
from load_tests.policy_bench_cases import cut, span_seconds
from load_tests.policy_bench_grid import grid, ours, sized
from load_tests.scenario import Startup
from load_tests.traces import RateTrace, RequestTrace, load_trace

BIN_SECONDS, MEAN_WORK, SLACK_SECONDS, DEADLINE_SECONDS = 10, 40.0, 2.0, 600.0
# A series of counts per ten minutes says nothing of what happens inside them: this much, over about a minute, is assumed.
RIPPLE, RIPPLE_SECONDS = 0.15, 60.0
PLANT_REPLICAS = 12.0  # mean need on the training days, where the trace has as much


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run cost over the work that arrived, and the shares of both kinds that were in time."""

    cost_over_work: float
    interactive_fraction: float
    deferrable_fraction: float


def rows(quick: bool) -> Iterable[BenchRow]:
    """GPU-hours over total work at start-ups of 10 s (and 180 s), beside the same without a class that may wait."""
    names = ("rate_servegen_msmall_total", "rate_servegen_mmid_c22", "llm_azure2023_conv")
    for trace, startup in [(n, d) for d in ((10.0,) if quick else (10.0, 180.0)) for n in names]:
        past, work, origin = work_of_trace(trace, 1 if quick else 3)
        for strategy in ("auto", "reactive"):
            plain = simulate(past, work, origin, startup, 0.0, strategy)
            mixed = simulate(past, work, origin, startup, 0.2, strategy)
            name = f"{trace}, starts of {startup:g} s, {strategy}, 20 % may wait 10 min"
            yield BenchRow(
                name=f"{name}: GPU-hours over work", value=mixed.cost_over_work, unit="", op="<=",
                goal=1.10 if startup == 10.0 else None, baseline="no work may wait", baseline_value=plain.cost_over_work,
            )  # fmt: skip
            yield BenchRow(
                name=f"{name}: interactive in time", value=100 * mixed.interactive_fraction, unit="%", op=">=",
                goal=99.0, baseline="no work may wait", baseline_value=100 * plain.interactive_fraction,
            )  # fmt: skip
            yield BenchRow(
                name=f"{name}: deferrable in time", value=100 * mixed.deferrable_fraction, unit="%", op=">=", goal=99.0
            )
    for line in ("start 10 s",) if quick else ("start 10 s", "start 2 min"):
        for trace in names[2:] if quick else names:
            yield from _in_plant(trace, line)


def _in_plant(trace: str, line: str) -> Iterable[BenchRow]:
    """The same of the last training day (or the hour) of a trace, told by requests; work as the plant carries it."""
    prepared, config = _prepared(trace, line)
    plain, mixed = (play(prepared, config, share, DEADLINE_SECONDS) for share in (0.0, 0.2))
    name = f"plant, {trace}, {plain.mean_need:.3g} replicas, {line}, 20 % may wait 10 min"
    yield BenchRow(
        name=f"{name}: GPU-hours over work", value=mixed.cost_over_work, unit="", op="<=",
        goal=1.10 if line == "start 10 s" else None, baseline="no work may wait", baseline_value=plain.cost_over_work,
    )  # fmt: skip
    yield BenchRow(
        name=f"{name}: interactive in time", value=100 * mixed.interactive_fraction, unit="%", op=">=", goal=99.0,
        baseline="no work may wait", baseline_value=100 * plain.interactive_fraction,
    )  # fmt: skip
    yield BenchRow(
        name=f"{name}: deferrable in time", value=100 * mixed.deferrable_fraction, unit="%", op=">=", goal=99.0
    )


def _prepared(trace: str, line: str) -> tuple[Prepared, dict[str, Any]]:
    """A day of the grid's scenario at `PLANT_REPLICAS`, or what the trace has; and the config of a load-tested pool."""
    known = replace(grid(), replicas=PLANT_REPLICAS)
    scenario, _, capacity = sized(known, trace)
    born = next(one for one in known.startups if one.name == line)
    scenario = replace(scenario, startup=Startup(profile=born.profile, factor=born.factor))
    days = load_trace(f"builtin:{trace}").facts.train_days
    end = days * 86_400.0 if days else span_seconds(scenario)
    return prepare(cut(scenario, max(0.0, end - 86_400.0), end), 0), ours(known, capacity)[0].config


def work_of_trace(name: str, days: int) -> tuple[Floats, Floats, int]:
    """(past, present, instant of the present's begin): Erlangs per bin, at a mean of `MEAN_WORK`; what is unknown is level."""
    trace = load_trace(f"builtin:{name}")
    if isinstance(trace, RequestTrace):
        weights = trace.rows.prompt_tokens + 7.0 * trace.rows.output_tokens  # a token of an answer costs about so much
        index = (trace.rows.arrival_seconds / BIN_SECONDS).astype(np.int64)
        series = np.bincount(index, weights=weights).astype(float)
        past = series[:0]
    else:
        series, past = _rippled(trace, days)
    scale = MEAN_WORK / series.mean()
    return past * scale, series * scale, (trace.facts.origin_at_seconds or 0) + len(past) * BIN_SECONDS


def _rippled(trace: RateTrace, days: int) -> tuple[Floats, Floats]:
    """(present, past) of a series of counts: the last of the training days, and what came before them."""
    known = np.flatnonzero(~trace.missing)
    length = int(trace.end_seconds // BIN_SECONDS)
    middles = trace.t_seconds[known] + trace.interval_seconds / 2
    series = np.interp((np.arange(length) + 0.5) * BIN_SECONDS, middles, trace.requests[known])
    noise = draws.normals(draws.key(1, "ballast", trace.name), length)
    kept = math.exp(-BIN_SECONDS / RIPPLE_SECONDS)
    level, ripple = 0.0, np.empty(length)
    for i, z in enumerate(noise.tolist()):
        level = kept * level + math.sqrt(1.0 - kept * kept) * z
        ripple[i] = math.exp(RIPPLE * level - RIPPLE * RIPPLE / 2)
    end = trace.facts.train_days * 86_400 // BIN_SECONDS
    start = end - days * 8640
    return (series * ripple)[start:end], (series * ripple)[:start]


def simulate(
    past: Floats, work: Floats, origin: int, startup_seconds: float, share: float, strategy: str = "auto"
) -> Outcome:
    """One run of `work` Erlangs per bin, of which `share` may wait `DEADLINE_SECONDS`."""
    capacity: Any = FixedCapacity(requests_per_second=1.0, startup_seconds=startup_seconds)
    section = {"name": "p", "limits": {"max_replicas": 1000}, "slo": {"ttft_seconds": SLACK_SECONDS},
               "strategy": strategy}  # fmt: skip
    pool = Pool.from_config(section, capacity_model=capacity)
    begun = origin - len(past) * BIN_SECONDS
    minutes = past[: len(past) // 6 * 6].reshape(-1, 6).mean(axis=1)
    pool.backfill([_seen(begun + 60 * i, w * (1.0 - share), 60) for i, w in enumerate(minutes.tolist(), start=1)])
    world = _World(replicas=math.ceil(work[0] * 1.2), startup_bins=max(1, round(startup_seconds / BIN_SECONDS)))
    for i, amount in enumerate(work.tolist(), start=1):
        at = origin + BIN_SECONDS * i
        world.turn(i, amount * (1.0 - share) * BIN_SECONDS, amount * share * BIN_SECONDS)
        seen = world.seen(at, amount * (1.0 - share), amount * share, share > 0.0)
        world.scale(i, pool.step(seen).replicas)
    return world.outcome(float(work.sum()) * BIN_SECONDS)


def _seen(at: int, erlangs: float, window: int = BIN_SECONDS) -> Observation:
    count = erlangs * window  # a request is one replica-second
    return Observation(
        pool="p", at_seconds=at, window_seconds=window, replicas=Replicas(desired=1, ready=1),
        demand=Demand(requests=count, prompt_tokens=count, output_tokens=count, finished_requests=count),
    )  # fmt: skip


class _World:
    """Replicas, an interactive queue that is served first, and a deferrable one in the order of arrival."""

    def __init__(self, replicas: int, startup_bins: int) -> None:
        self.ready, self.startup_bins = replicas, startup_bins
        self.births: deque[int] = deque()
        self.queue, self.waiting = 0.0, 0.0
        self.cohorts: deque[tuple[int, float]] = deque()
        self.paid = self.late = self.arrived = self.late_deferrable = self.deferrable = 0.0
        self.newest = (0.0, 0.0)  # interactive work that arrived in the last bin, and of it late

    def turn(self, now: int, interactive: float, deferrable: float) -> None:
        """One bin: what arrived in it is served as far as its replicas go."""
        while self.births and self.births[0] <= now:
            self.births.popleft()
            self.ready += 1
        self.paid += (self.ready + len(self.births)) * BIN_SECONDS
        room = float(self.ready * BIN_SECONDS)
        held = self.queue + interactive
        served = min(held, room)
        self.queue = held - served
        self.arrived += interactive
        late = min(interactive, max(0.0, self.queue - SLACK_SECONDS * self.ready))
        self.late, self.newest = self.late + late, (interactive, late)
        self.deferrable += deferrable
        self.cohorts.append((now, deferrable))
        self._fill(now, room - served)

    def _fill(self, now: int, room: float) -> None:
        while self.cohorts and room > 1e-12:
            arrived, amount = self.cohorts.popleft()
            part = min(amount, room)
            room -= part
            if (now - arrived) * BIN_SECONDS > DEADLINE_SECONDS:
                self.late_deferrable += part
            if amount > part:
                self.cohorts.appendleft((arrived, amount - part))
        self.waiting = math.fsum(amount for _, amount in self.cohorts)

    def scale(self, now: int, replicas: int) -> None:
        """Order what is missing; give up starts, youngest first, then replicas."""
        while self.ready + len(self.births) < replicas:
            self.births.append(now + self.startup_bins)
        while self.ready + len(self.births) > replicas and self.births:
            self.births.pop()
        self.ready = min(self.ready, max(replicas, 0)) if not self.births else self.ready

    def seen(self, at: int, interactive: float, deferrable: float, classes: bool) -> Observation:
        """What the pool sees."""
        counts = Replicas(desired=self.ready + len(self.births), ready=self.ready, starting=len(self.births))
        plain = _seen(at, interactive)
        one = RequestClass(
            name="batch", deadline_seconds=DEADLINE_SECONDS, demand=_seen(at, deferrable).demand,
            waiting_requests=self.waiting,
        )  # fmt: skip
        return Observation(
            pool="p", at_seconds=at, window_seconds=BIN_SECONDS, replicas=counts, demand=plain.demand,
            load=Load(running_requests=0.0, waiting_requests=self.queue, replicas_reporting=self.ready),
            latency=Latency(served_requests=self.newest[0], violated_requests=(self.newest[1], self.newest[1])),
            classes=(one,) if classes else (),
        )  # fmt: skip

    def outcome(self, work: float) -> Outcome:
        """The run in three numbers; what still waits when it ends counts as late."""
        late = self.late_deferrable + self.waiting
        return Outcome(
            cost_over_work=self.paid / work,
            interactive_fraction=1.0 - self.late / self.arrived,
            deferrable_fraction=1.0 - late / self.deferrable if self.deferrable else 1.0,
        )
