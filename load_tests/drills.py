"""Drills: one thing goes wrong at a rising load, and each policy is held to a rule about what it does then.

Every figure compares a run with the drill against the same run without it, so that it says what the fault caused.
Not simulated, because the plant's signals are of the whole pool: half of the replicas silent, stale timestamps, one frozen
engine; nor are a retry storm and a second writer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from load_tests.bench import BenchRow
from load_tests.campaign import Prepared, contestants_of, policy_name, prepare
from load_tests.contestants import Contestant
from load_tests.drill_contestants import Fault, Restarted, with_forecaster
from load_tests.drill_worlds import AT_SECONDS, FOR_SECONDS, mix_world, morning_world, ramp_world
from load_tests.peers import SHIPPED, HpaSettings, KpaSettings
from load_tests.run import Run, judge
from load_tests.scenario import Policy, PoolPolicy, Scenario
from load_tests.simulator import simulate

_END = AT_SECONDS + FOR_SECONDS
# After a fault the SLO may be missed by so many points more than the target allows.
_SLACK_POINTS = 0.3
_RECOVERY_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One rule of one drill for one policy."""

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


Rule = Callable[[Run, Run], tuple[str, float, str, Literal["<=", ">="], float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """What goes wrong, and the rules; `normal` is the world without it."""

    name: str
    normal: Scenario
    faulty: Scenario
    rules: tuple[Rule, ...]
    restart: bool = False


def _asked(run: Run, start: float, end: float) -> Any:
    """Numbers asked for at the ticks in [start, end)."""
    rows = (run.timeline.at_seconds >= start) & (run.timeline.at_seconds < end)
    return run.timeline.desired[rows]


def never_below(run: Run, normal: Run) -> tuple[str, float, str, Literal["<=", ">="], float]:
    """Blind, nothing is given back."""
    last = int(_asked(run, 0.0, AT_SECONDS)[-1])
    return (
        "lowest number while blind, less the last known",
        float(_asked(run, AT_SECONDS, _END).min() - last),
        "",
        ">=",
        0.0,
    )


def back_to_normal(run: Run, normal: Run) -> tuple[str, float, str, Literal["<=", ">="], float]:
    """Two ticks after, the number is within one replica of that without the drill."""
    tick = run.interval_seconds
    window = (_END + 2 * tick, _END + 3 * tick)
    short = _asked(normal, *window) - _asked(run, *window)
    return "replicas short two ticks after", float(short.max()), "", "<=", 1.0


def not_moved(run: Run, normal: Run) -> tuple[str, float, str, Literal["<=", ">="], float]:
    """What is no news changes nothing by more than a replica."""
    window = (AT_SECONDS, AT_SECONDS + 300.0)
    moved = np.abs(_asked(run, *window) - _asked(normal, *window))
    return "largest change within 5 min", float(moved.max()), "replicas", "<=", 1.0


def no_storm(run: Run, normal: Run) -> tuple[str, float, str, Literal["<=", ">="], float]:
    """What starts late or is replaced is not ordered twice."""
    end = run.end_seconds
    extra = int(_asked(run, AT_SECONDS, end).max()) - int(_asked(normal, AT_SECONDS, end).max())
    return "largest number asked for, beyond that without it", float(extra), "replicas", "<=", 1.0


def holds_again(run: Run, normal: Run) -> tuple[str, float, str, Literal["<=", ">="], float]:
    """Ten minutes and two start-ups after the fault the promise holds."""
    settled = AT_SECONDS + _RECOVERY_SECONDS
    inside = (run.arrival_seconds >= settled) & (run.arrival_seconds < run.end_seconds)
    missed = 100.0 * float(judge(run).violated[inside].mean()) - 100.0 * (1.0 - run.slo.attainment_fraction)
    return "missed from 10 min on, beyond the target", missed, "points", "<=", _SLACK_POINTS


def same_decisions(run: Run, normal: Run) -> tuple[str, float, str, Literal["<=", ">="], float]:
    """A restart is not seen."""
    differ = int((run.timeline.desired != normal.timeline.desired).sum())
    return "ticks with another number than without", float(differ), "", "<=", 0.0


def drills() -> tuple[Drill, ...]:
    """All drills that any policy can be put through."""
    normal, outage = ramp_world(), (never_below, back_to_normal)
    window = {"at_seconds": AT_SECONDS, "for_seconds": FOR_SECONDS}

    def one(name: str, fault: dict[str, Any], *rules: Rule) -> Drill:
        return Drill(name=name, normal=normal, faulty=ramp_world(name, (fault,)), rules=rules)

    at = {"at_seconds": AT_SECONDS}
    return (
        one("scrape outage of 10 min", {"kind": "scrape_gap", **window}, *outage),
        one("NaN for 10 min", {"kind": "nan_scrape", **window}, *outage),
        one("counters of one replica restart", {"kind": "counter_reset", "replicas": "one", **at}, not_moved),
        one("counters of all restart", {"kind": "counter_reset", "replicas": "all", **at}, not_moved),
        one("start-up three times as long", {"kind": "startup_slower", "factor": 3.0, **at}, no_storm),
        one("a tenth of starts fail", {"kind": "starts_fail", "fraction": 0.1, **at}, no_storm),
        one("starts of 2 min hang", {"kind": "startup_slower", "factor": 20.0, **at, "for_seconds": 120.0}, no_storm),
        one("capacity -30 %", {"kind": "capacity", "factor": 0.7, **at}, holds_again),
        Drill(
            name="prompts twice as long at the same rate", normal=mix_world("same mix", 1.0),
            faulty=mix_world("mix x2", 2.0), rules=(holds_again,),
        ),
        one("a fifth of replicas die", {"kind": "replica_failure", "fraction": 0.2, **at}, no_storm, holds_again),
        one("no nodes for 20 min", {"kind": "node_shortage", **at, "for_seconds": 1200.0}, no_storm),
        Drill(
            name="controller restarted", normal=normal, faulty=replace(normal, name="restart"),
            rules=(same_decisions,), restart=True,
        ),
    )  # fmt: skip


class Hall:
    """Runs drills; the runs without a drill, and the prepared worlds, are kept."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._prepared: dict[str, Prepared] = {}
        self._runs: dict[tuple[str, str], Run] = {}

    def prepared(self, scenario: Scenario) -> Prepared:
        """The world of a scenario.  Worlds that differ in faults alone share their traffic."""
        if scenario.name not in self._prepared:
            key = repr((scenario.traffic, scenario.window, scenario.history_days))
            if key not in self._prepared:
                self._prepared[key] = prepare(scenario, self._seed)
            base = self._prepared[key]
            setup = replace(base.setup, scenario=scenario.name, faults=scenario.faults)
            self._prepared[scenario.name] = replace(base, scenario=scenario, setup=setup)
        return self._prepared[scenario.name]

    def run(self, scenario: Scenario, policy: Policy, make: Callable[[], Contestant] | None = None) -> Run:
        """One policy in one world; `make` puts another contestant in its place."""
        prepared = self.prepared(scenario)
        if make is not None:
            return simulate(prepared.setup, [make()])
        key = scenario.name, repr(policy)
        if key not in self._runs:
            self._runs[key] = simulate(prepared.setup, contestants_of(prepared, policy))
        return self._runs[key]

    def figures(self, drill: Drill, policy: Policy) -> Iterator[Figure]:
        """What a policy does in a drill."""
        normal = self.run(drill.normal, policy)
        make = None
        if drill.restart:
            prepared = self.prepared(drill.faulty)

            def make() -> Contestant:
                return Restarted(lambda: contestants_of(prepared, policy)[0], AT_SECONDS)

        faulty = self.run(drill.faulty, policy, make)
        for rule in drill.rules:
            what, value, unit, op, goal = rule(faulty, normal)
            yield Figure(
                drill=drill.name, policy=policy_name(policy), what=what, value=value, unit=unit, op=op, goal=goal
            )

    def forecasts(self, hours: float) -> Iterator[Figure]:
        """Forecasters that have gone wrong: never below the reactive rules, and a tenfold one costs a tenth at most."""
        world, policy = morning_world("forecaster", hours), PoolPolicy()
        reactive = self.run(world, PoolPolicy(name="reactive", config={"strategy": "reactive"}))
        normal = self.run(world, policy)
        faults: tuple[Fault, ...] = ("raises", "NaN", "x0.1", "x10")
        for fault in faults:
            make = partial(with_forecaster, self.prepared(world), policy, fault)
            try:
                broken = self.run(world, policy, make)
            except (RuntimeError, ValueError):
                yield Figure(
                    drill=f"forecaster {fault}", policy=policy.name, what="ticks without a decision, for it went through",
                    value=float(len(normal.timeline.at_seconds)), unit="", op="<=", goal=0.0,
                )  # fmt: skip
                continue
            below = float((broken.timeline.desired - reactive.timeline.desired).min())
            yield Figure(
                drill=f"forecaster {fault}", policy=policy.name, what="lowest number, less that of the reactive rules",
                value=below, unit="replicas", op=">=", goal=0.0,
            )  # fmt: skip
            if fault == "x10":
                dearer = 100.0 * (broken.replica_seconds.paid / normal.replica_seconds.paid - 1.0)
                yield Figure(
                    drill=f"forecaster {fault}", policy=policy.name, what="cost beyond that of the real one",
                    value=dearer, unit="%", op="<=", goal=10.0,
                )  # fmt: skip


def policies(quick: bool) -> Sequence[Policy]:
    """Who is drilled: this project's policy and the peers as shipped; for a look, two of them."""
    return (PoolPolicy(), HpaSettings(), KpaSettings()) if quick else (PoolPolicy(), *SHIPPED)


def run_drills(quick: bool) -> Iterator[Figure]:
    """Every drill with every policy."""
    hall = Hall()
    for drill in drills():
        for policy in policies(quick):
            yield from hall.figures(drill, policy)
    yield from hall.forecasts(3.0 if quick else 8.0)


def rows(quick: bool) -> Iterable[BenchRow]:
    """One row per drill, policy and rule."""
    failed: dict[str, int] = {}
    for one in run_drills(quick):
        failed[one.policy] = failed.get(one.policy, 0) + (not one.passed)
        yield BenchRow(
            name=f"{one.drill}, {one.policy}: {one.what}", value=one.value, unit=one.unit, op=one.op, goal=one.goal
        )
    for policy, count in failed.items():
        yield BenchRow(name=f"rules missed by {policy}", value=float(count), unit="", goal=0.0)
