"""What is compared: cases (a traffic on a plant under a promise), their train and test days, and the cells they need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autoscaler.errors import ConfigError
from load_tests.policy_bench_cells import BoundSettings, Cell, Engine, OracleSettings, Own
from load_tests.policy_bench_contenders import Contender, contenders
from load_tests.scenario import Scenario
from load_tests.shapes import DAY
from load_tests.traces import BUILTIN, load_trace
from load_tests.traffic_settings import TraceTraffic, Window

TARGETS = (0.95, 0.99, 0.999)
# A part that starts inside a trace is run from an hour before, and its first hour is not scored; so is the first hour of a
# trace.  Shorter parts give up a tenth.
LEAD_SECONDS = 3600.0
_LEAD_SHARE = 0.1
# Files shorter than this are not split: nothing is tuned on them.
_LEAST_DAYS_TO_SPLIT = 2
ORACLE, BOUND = "clairvoyant", "lower bound"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison.  `family`: cases of one family differ in the trace only, and are corrected together (Holm).

    `test`: scenarios of the test part, one per stretch of days; `train`: those on which knobs are tuned.  All policies of
    other projects are run under the promise of `scenario`; ours once per target.  `search`: run all knobs, or only those
    that decide what is read off the frontiers.
    """

    name: str
    family: str
    scenario: Scenario
    train: tuple[Scenario, ...]
    test: tuple[Scenario, ...]
    train_seeds: tuple[int, ...]
    test_seeds: tuple[int, ...]
    contenders: tuple[Contender, ...]
    targets: tuple[float, ...]
    engine: Engine = "plant"
    oracle: bool = False
    search: Literal["all", "bracket"] = "all"
    notes: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[Contender, ...]:
        """The policies that all others are compared with: those that tune themselves."""
        return tuple(c for c in self.contenders if c.tunes_itself)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A cell and what it is for.  `knob` None: as shipped; `target` is set for policies that are run once per target."""

    cell: Cell
    contender: str
    part: str
    knob: float | None
    target: float | None
    seed: int


def asked(case: Case, chosen: Mapping[tuple[str, str], tuple[float, ...]] | None = None) -> Iterator[Asked]:
    """The cells of a case: what has no knob, and the knobs `chosen` by (contender, part); None: all of them."""
    yield from fixed(case)
    yield from knobbed(case, chosen)


def fixed(case: Case) -> Iterator[Asked]:
    """Cells without a knob: peers as shipped, ours once per target, the clairvoyant."""
    for entered in case.contenders:
        for scenario in case.test:
            for seed in case.test_seeds:
                if entered.tunes_itself:
                    for target in case.targets:
                        slo = replace(scenario.slo, attainment_fraction=target)
                        one = replace(scenario, slo=slo)
                        yield _asked(case, entered, one, seed, "test", None, target)
                else:
                    yield _asked(case, entered, scenario, seed, "test", None, None)
    if case.oracle:
        for scenario in case.test:
            for target in case.targets:
                # The clairvoyant is searched for by many replays: under one seed, and so is its bound.
                seed = case.test_seeds[0]
                for settings in (
                    OracleSettings(attainment_fraction=target),
                    BoundSettings(attainment_fraction=target),
                ):
                    cell = Cell(scenario=scenario, policy=settings, seed=seed, engine=case.engine)
                    name = ORACLE if settings.kind == "oracle" else BOUND
                    yield Asked(cell=cell, contender=name, part="test", knob=None, target=target, seed=seed)


def knobbed(case: Case, chosen: Mapping[tuple[str, str], tuple[float, ...]] | None) -> Iterator[Asked]:
    """Cells of peers at knobs, on the test part and on the train part."""
    parts = (("test", case.test, case.test_seeds), ("train", case.train, case.train_seeds))
    for contender in case.contenders:
        for part, scenarios, seeds in parts:
            knobs = contender.knobs if chosen is None else chosen.get((contender.name, part), ())
            for scenario in scenarios:
                for seed in seeds:
                    for knob in knobs:
                        yield _asked(case, contender, scenario, seed, part, knob, None)


def _asked(
    case: Case, contender: Contender, scenario: Scenario, seed: int, part: str, knob: float | None, target: float | None
) -> Asked:
    cell = Cell(scenario=scenario, policy=contender.at(knob), seed=seed, engine=case.engine)
    return Asked(cell=cell, contender=contender.name, part=part, knob=knob, target=target, seed=seed)


def case_of(
    scenario: Scenario, *, targets: tuple[float, ...] | None = None, engine: Engine = "plant", oracle: bool = False,
    knobs: int = 16, also: Sequence[Own] = (),
) -> Case:  # fmt: skip
    """The case of a scenario file: its policies, and those given, compete on the days of its window.

    Days on which something may be tuned are those of the trace's facts, for other files of at least two days the first half.
    A window that lies wholly in one part is a test.  Raises ConfigError where no policy could be compared.
    """
    notes: list[str] = []
    span = span_seconds(scenario)
    start = scenario.window.start_seconds
    end = span if scenario.window.duration_seconds is None else start + scenario.window.duration_seconds
    split = _split_day(scenario, start, end)
    train, test = [], [(start, end)]
    if split is not None and start < split * DAY < end:
        train, test = [(start, split * DAY)], [(split * DAY, end)]
    else:
        notes.append("No part to tune on: the window lies within one part, or is shorter than two days.")
    if isinstance(scenario.traffic, TraceTraffic) and split is not None and end <= split * DAY and split < span / DAY:
        notes.append("The window lies in the days on which things may be tuned: no claim about other days.")
    made = contenders((*scenario.policies, *also), knobs=knobs)
    if len(made) < 2 and not oracle:
        raise ConfigError("policies", f"{[c.name for c in made]!r} must be at least two, to be compared")
    return Case(
        name=scenario.name,
        family=_family(scenario),
        scenario=scenario,
        train=tuple(cut(scenario, a, b) for a, b in train),
        test=tuple(cut(scenario, a, b) for a, b in test),
        train_seeds=scenario.seeds[:1],
        test_seeds=scenario.seeds,
        contenders=made,
        targets=targets or (scenario.slo.attainment_fraction,),
        engine=engine,
        oracle=oracle,
        notes=tuple(notes),
    )


def cut(scenario: Scenario, start: float, end: float) -> Scenario:
    """The scenario on [start, end) of its trace, begun early enough that all of it but a trace's first hour is scored."""
    lead = min(LEAD_SECONDS, _LEAD_SHARE * (end - start))
    first = max(0.0, start - lead) if isinstance(scenario.traffic, TraceTraffic) else start
    scored = max(start - first, scenario.score_from_seconds if first == start else 0.0)
    return replace(
        scenario,
        window=Window(start_seconds=first, duration_seconds=end - first),
        score_from_seconds=scored or lead,
    )


def span_seconds(scenario: Scenario) -> float:
    """Length of the scenario's trace or shape."""
    traffic = scenario.traffic
    if isinstance(traffic, TraceTraffic):
        return min(load_trace(name).end_seconds for name in (traffic.trace, *traffic.superpose))
    return scenario.window.start_seconds + (scenario.window.duration_seconds or DAY)


def _split_day(scenario: Scenario, start: float, end: float) -> int | None:
    """The first test day; None where nothing is tuned."""
    traffic = scenario.traffic
    if not isinstance(traffic, TraceTraffic) or (end - start) < _LEAST_DAYS_TO_SPLIT * DAY:
        known = traffic.trace if isinstance(traffic, TraceTraffic) else ""
        return load_trace(known).facts.train_days or None if known.startswith(BUILTIN) else None
    if traffic.trace.startswith(BUILTIN):
        return load_trace(traffic.trace).facts.train_days or None
    first, last = math.ceil(start / DAY), math.floor(end / DAY)
    return first + (last - first) // 2 if last - first >= _LEAST_DAYS_TO_SPLIT else None


def _family(scenario: Scenario) -> str:
    startup, slo = scenario.startup, scenario.slo
    factor = "" if startup.factor == 1 else f" x{startup.factor:g}"
    promise = f"TTFT {slo.ttft_seconds:g} s, ITL {1000 * slo.itl_seconds:g} ms"
    return f"{startup.profile}{factor}, {promise}, {scenario.replica.profile}"
