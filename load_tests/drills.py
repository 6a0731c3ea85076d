"""Drills: one thing goes wrong at a rising load, and each policy is held to a rule about what it does then.

Every figure compares a run with the drill against the same run without it, so that it says what the fault caused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import numpy as np

from load_tests.bench import BenchRow
from load_tests.campaign import Prepared, contestants_of, policy_name, prepare
from load_tests.contestants import Contestant
from load_tests.drill_contestants import (
    Fault,
    InLoop,
    Restarted,
    Watched,
    with_forecaster,
    with_scaled_forecast,
)
from load_tests.drill_list import Drill, Group, drills
from load_tests.drill_rules import Found, Trial
from load_tests.drill_worlds import AT_SECONDS, LENGTH_SECONDS, SET_BACK_SECONDS, morning_world
from load_tests.peers import SHIPPED, AhpaSettings, DynamoSettings, HpaSettings, KpaSettings
from load_tests.run import Run
from load_tests.scenario import Policy, PoolPolicy, Scenario
from load_tests.simulator import Simulation


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One rule of one drill for one policy."""

    group: Group
    drill: str
    policy: str
    what: str
    value: float
    unit: str
    op: Literal["<=", ">="]
    goal: float

    @property
    def passed(self) -> bool:
        """Whether the rule holds."""
        return self.value <= self.goal if self.op == "<=" else self.value >= self.goal


class Hall:
    """Runs drills; the runs without a drill, and the prepared worlds, are kept."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._prepared: dict[str, Prepared] = {}
        self._trials: dict[tuple[str, str], Trial] = {}

    def prepared(self, scenario: Scenario) -> Prepared:
        """The world of a scenario.  Worlds that differ in faults and limits alone share their traffic."""
        if scenario.name not in self._prepared:
            key = repr((scenario.traffic, scenario.window, scenario.history_days))
            if key not in self._prepared:
                self._prepared[key] = prepare(scenario, self._seed)
            base = self._prepared[key]
            setup = replace(base.setup, scenario=scenario.name, faults=scenario.faults)
            self._prepared[scenario.name] = replace(base, scenario=scenario, setup=setup)
        return self._prepared[scenario.name]

    def trial(self, scenario: Scenario, policy: Policy, make: Callable[[], Contestant] | None = None) -> Trial:
        """One policy in one world; `make` puts another contestant in its place."""
        prepared = self.prepared(scenario)
        if make is not None:
            return _trial(prepared, make())
        key = scenario.name, repr(policy)
        if key not in self._trials:
            self._trials[key] = _trial(prepared, contestants_of(prepared, policy)[0])
        return self._trials[key]

    def run(self, scenario: Scenario, policy: Policy, make: Callable[[], Contestant] | None = None) -> Run:
        """The Run of that."""
        return self.trial(scenario, policy, make).run

    def forget(self) -> None:
        """Keep the worlds, not the runs."""
        self._trials.clear()

    def figures(self, drill: Drill, policy: Policy) -> Iterator[Figure]:
        """What a policy does in a drill; nothing of a peer's whose shell has no clock here."""
        if drill.staged == "clock" and not isinstance(policy, PoolPolicy):
            return
        faulty = self.trial(drill.faulty, policy, self._staged(drill, policy))
        normal = faulty if drill.normal is None else self.trial(drill.normal, policy)
        for rule in drill.rules:
            found = rule(faulty, normal)
            if found is not None:
                yield _figure(drill.group, drill.name, policy_name(policy), found)

    def _staged(self, drill: Drill, policy: Policy) -> Callable[[], Contestant] | None:
        prepared = self.prepared(drill.faulty)
        if drill.staged == "restart":
            return lambda: Restarted(lambda: contestants_of(prepared, policy)[0], AT_SECONDS)
        if drill.staged == "shell" and isinstance(policy, PoolPolicy):
            return lambda: InLoop(prepared, policy)
        if drill.staged == "clock" and isinstance(policy, PoolPolicy):
            return lambda: InLoop(prepared, policy, set_back_at_seconds=AT_SECONDS, set_back_seconds=SET_BACK_SECONDS)
        return None

    def forecasts(self, hours: float) -> Iterator[Figure]:
        """Forecasters that have gone wrong: never below the reactive rules, and a tenfold one costs a tenth at most."""
        # Without steering on the attainment: two runs would differ by what each has made of its own.
        unsteered = {"risk": {"gain": 0.0}}
        world, policy = morning_world("forecaster", hours), PoolPolicy(config=unsteered)
        normal = self.run(world, policy)
        faults: tuple[Fault, ...] = ("raises", "NaN", "x0.1", "x10")
        for fault in faults:
            try:
                broken, below = self._broken(world, policy, fault)
            except (RuntimeError, ValueError):
                ticks = float(len(normal.timeline.at_seconds))
                found = Found("ticks without a decision, for it went through", ticks, "", "<=", 0.0)
                yield _figure("forecasters", f"forecaster {fault}", policy.name, found)
                continue
            yield from _forecaster_figures(fault, policy.name, broken, below, normal)

    def _broken(self, world: Scenario, policy: PoolPolicy, fault: Fault) -> tuple[Run, float]:
        contestant = with_forecaster(self.prepared(world), policy, fault)
        return self.run(world, policy, lambda: contestant), contestant.below

    def scaled_forecasts(self, policy: Policy, reactive: Policy | None, hours: float) -> Iterator[Figure]:
        """A peer's forecast, ten times too low and too high; `reactive` None: the peer without one is its own floor."""
        world = morning_world("forecaster", hours)
        prepared = self.prepared(world)

        def spoilt(factor: float) -> Run:
            return self.run(world, policy, partial(with_scaled_forecast, prepared, policy, factor))

        floor = spoilt(0.0) if reactive is None else self.run(world, reactive)
        for fault, factor in (("x0.1", 0.1), ("x10", 10.0)):
            normal, broken = self.run(world, policy), spoilt(factor)
            below = float((broken.timeline.desired - floor.timeline.desired).min())
            yield from _forecaster_figures(fault, policy_name(policy), broken, below, normal)


def _forecaster_figures(fault: str, policy: str, broken: Run, below: float, normal: Run) -> Iterator[Figure]:
    name = f"forecaster {fault}"
    found = Found("lowest number, less that of the reactive rules", below, "replicas", ">=", 0.0)
    yield _figure("forecasters", name, policy, found)
    if fault == "x10":
        dearer = 100.0 * (broken.replica_seconds.paid / normal.replica_seconds.paid - 1.0)
        found = Found("cost beyond that of the real one", dearer, "%", "<=", 10.0)
        yield _figure("forecasters", name, policy, found)


def _figure(group: Group, drill: str, policy: str, found: Found) -> Figure:
    return Figure(group=group, drill=drill, policy=policy, **found._asdict())


def _trial(prepared: Prepared, contestant: Contestant) -> Trial:
    lines = prepared.setup.end_seconds == LENGTH_SECONDS
    watched = Watched(contestant, lines=lines)
    simulation = Simulation(prepared.setup, [watched])
    simulation.run()
    life = simulation.lives[0]
    ordered = [span for span in life.spans if np.isfinite(span.ordered)]
    return Trial(
        prepared=prepared,
        run=simulation.outcome(contestant.name, None, 0.0),
        orders=np.array([span.ordered for span in ordered]),
        lost=np.array(life.lost),
        born=tuple((span.ordered, span.ready) for span in ordered if np.isfinite(span.ready)),
        beliefs=tuple(watched.beliefs),
        lines=tuple(watched.lines),
        conflicts=watched.conflicts,
    )


# Peers that forecast, each with the policy that it is when it does not; None: the same without past days.
_FORECASTING: tuple[tuple[Policy, Policy | None], ...] = (
    (DynamoSettings(predictor="arima"), DynamoSettings(predictor="constant")),
    (DynamoSettings(predictor="kalman"), DynamoSettings(predictor="constant")),
    (AhpaSettings(), None),
)


def policies(quick: bool) -> Sequence[Policy]:
    """Who is drilled: this project's policy and the peers as shipped; for a look, two of them."""
    return (PoolPolicy(), HpaSettings(), KpaSettings()) if quick else (PoolPolicy(), *SHIPPED)


# Of each process: prepared worlds are worth keeping from one policy to the next.
_hall = cache(Hall)


def figures_of(policy: Policy, quick: bool) -> list[Figure]:
    """Every drill of one policy."""
    hall, hours = _hall(), 3.0 if quick else 24.0
    found = [figure for drill in drills(quick) for figure in hall.figures(drill, policy)]
    if isinstance(policy, PoolPolicy):
        found += hall.forecasts(hours)
    for forecasting, reactive in _FORECASTING:
        if policy == forecasting:
            found += hall.scaled_forecasts(policy, reactive, hours)
    hall.forget()
    return found


def run_drills(quick: bool) -> list[Figure]:
    """Every drill with every policy, in the order of the drills; for the full ones policies run beside each other."""
    who = policies(quick)
    if quick:
        drilled = [figures_of(policy, quick) for policy in who]
    else:
        import joblib

        drilled = joblib.Parallel(n_jobs=-1)(joblib.delayed(figures_of)(policy, quick) for policy in who)
    figures = [figure for found in drilled for figure in found]
    order = {name: i for i, name in enumerate(dict.fromkeys((f.drill, f.what) for f in figures))}
    return sorted(figures, key=lambda f: order[f.drill, f.what])


def rows(quick: bool) -> Iterable[BenchRow]:
    """One row per drill, policy and rule."""
    failed: dict[str, int] = {}
    for one in run_drills(quick):
        failed[one.policy] = failed.get(one.policy, 0) + (not one.passed)
        yield BenchRow(
            name=f"{one.drill}, {one.policy}: {one.what}", value=one.value, unit=one.unit, op=one.op, goal=one.goal
        )
    for policy_, count in failed.items():
        yield BenchRow(name=f"rules missed by {policy_}", value=float(count), unit="", goal=0.0)
