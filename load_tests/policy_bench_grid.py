"""The grid that is run when no scenario is named: development traces x start-ups x seeds, every known peer.

``load_tests/data/policy_bench.toml`` says which; sizes are reached by thinning only.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

import numpy as np

from autoscaler.schema import build, setting
from autoscaler.settings import Limits, Slo
from load_tests.campaign import policy_name, pool_models
from load_tests.need import Need
from load_tests.peers import AibrixSettings, DynamoSettings, HpaSettings, StaticPeakSettings, StaticSettings
from load_tests.policy_bench_cases import Case, case_of, cut, span_seconds
from load_tests.policy_bench_cells import Engine
from load_tests.scenario import Policy, PoolPolicy, Replica, Scenario, Startup
from load_tests.shapes import DAY
from load_tests.traces import BUILTIN, RateTrace, load_trace
from load_tests.traffic import materialise
from load_tests.traffic_settings import LognormalLengths, TraceLengths, TraceTraffic, Window

# Requests that a replica's capacity is measured on, for sizing.
_SAMPLE = 30_000
# Shortened comparisons see so much of each part.
_QUICK_SECONDS = 4 * 3600.0
_QUICK_KNOBS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Start-ups by a short name."""

    name: str = setting(doc="Name in the tables.")
    profile: str = setting(doc="Start-up profile.")
    factor: float = setting(1.0, "Every stage takes so many times as long.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of the grid is run."""

    traces: tuple[str, ...] = setting(doc="Shipped traces, without their file ending.")
    startups: tuple[str, ...] = setting(doc="Names of start-ups.")
    targets: tuple[float, ...] = setting(doc="Attainments to compare at.")
    seeds: tuple[int, ...] = setting(doc="Seeds of the test days; knobs are tuned under the first.")
    train_days: int = setting(doc="Last train days, on which knobs are tuned.", low=1)
    test_days: int = setting(doc="First test days.", low=1)
    engine: Engine = setting("plant", "What runs: the plant, or its fluid twin.")
    search: Literal["all", "bracket"] = setting("all", "Which knobs are run: all, or those around what is read.")
    turned: tuple[str, ...] | None = setting(
        None, "Start-ups at which knobs are turned, elsewhere peers run as shipped; None: at all of them."
    )
    oracle: bool = setting(True, "Whether the clairvoyant is searched for (in the plant).")
    left_out: tuple[str, ...] = setting((), "Peers that are not run, by name.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Each of some traces at each of some start-ups."""

    traces: tuple[str, ...] = setting(doc="Shipped traces, without their file ending.")
    startups: tuple[str, ...] = setting(doc="Names of start-ups.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Test days in a row under one seed."""

    seed: int = setting(doc="Seed of arrivals, lengths and start-ups.", low=0)
    first_day: int = setting(doc="Days after the first test day.", low=0)
    days: int = setting(doc="How many.", low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What is run to see which promises hold, row by row."""

    rows: tuple[Rows, ...] = setting(doc="In the order in which they are run.")
    stretches: tuple[Stretch, ...] = setting(doc="What is run of each; the first covers all days.")
    screen: int = setting(doc="The stretch, by place, that all peers are searched on first.", low=0)
    far: float = setting(doc="A peer beyond this factor of the best one there is searched no further.", low=1)
    hopeless: float = setting(1.2, "A peer beyond this one is not searched at the trace's other start-ups.", low=1)
    near: float = setting(
        doc="The best two are run on all stretches, and a third within this factor of the best.", low=1
    )
    peers: tuple[str, ...] = setting(doc="Whose knobs are turned, by name.")
    planned: tuple[str, ...] = setting((), "Those of them that do not only react.")
    target: float = setting(0.99, "Attainment asked for.", above=0, below=1)
    small: tuple[str, ...] = setting((), "Traces that need less than five replicas.")
    crowds: tuple[str, ...] = setting((), "Traces with crowds that nobody foresees.")
    ratio_goals: dict[str, float] = setting(
        factory=dict, doc="Cost over the best peer's that is promised, by start-up."
    )
    attained_goal: float = setting(0.002, "How far the attainment may be from the target.", above=0)
    crowd_goal: float = setting(1.15, "Cost over the best reactive peer's at crowds.", above=0)
    shipped_goal: float = setting(0.8, "Cost over that of a peer as shipped.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The table of what is run."""

    replicas: float = setting(doc="Mean need on the train days, in replicas; less where the trace has less.", above=0)
    replica: str = setting(doc="Replica profile.")
    startups: tuple[Line, ...] = setting(doc="How replicas start.")
    slo: Slo = setting(doc="The promise; each target replaces its attainment.")
    interval_seconds: int = setting(15, "Seconds between decisions of this project's policies.", low=1)
    max_replicas: int = setting(200, "Upper bound for every policy.", low=1)
    copies: dict[str, int] = setting(
        factory=dict, doc="Traces too small for a fleet: copies, each half a minute later."
    )
    left_out: dict[str, str] = setting(factory=dict, doc="Traces that are not in the grid, and why.")
    quick: Size = setting(doc="A look.")
    default: Size = setting(doc="An hour on two cores.")
    full: Size = setting(doc="Everything.")
    claims: Claims = setting(doc="What is promised.")


@cache
def grid() -> Grid:
    """The shipped grid."""
    text = (files("load_tests") / "data" / "policy_bench.toml").read_text(encoding="utf-8")
    return build(Grid, tomllib.loads(text), "policy_bench")


def default_cases(*, full: bool = False) -> list[Case]:
    """The shipped grid, at the size that takes an hour or at its whole."""
    known = grid()
    return _cases(known, known.full if full else known.default)


def quick_cases() -> list[Case]:
    """A few traces, one start-up, hours instead of days: a look, and a check that all of it runs."""
    known = grid()
    return [shortened(case) for case in _cases(known, known.quick)]


def _cases(known: Grid, size: Size) -> list[Case]:
    lines = {line.name: line for line in known.startups}
    return [_case(known, size, trace, lines[name]) for name in size.startups for trace in size.traces]


def shortened(case: Case) -> Case:
    """The case on the last hours of its train part and the first of its test part, under one seed, with fewer knobs."""

    def some(scenarios: tuple[Scenario, ...], *, last: bool) -> tuple[Scenario, ...]:
        if not scenarios:
            return ()
        scenario = scenarios[-1 if last else 0]
        start, duration = scenario.window.start_seconds, scenario.window.duration_seconds or 0.0
        first, end = start + scenario.score_from_seconds, start + duration
        if end - first <= _QUICK_SECONDS:
            return (scenario,)
        return (cut(scenario, end - _QUICK_SECONDS, end) if last else cut(scenario, first, first + _QUICK_SECONDS),)

    return replace(
        case,
        train=some(case.train, last=True),
        test=some(case.test, last=False),
        train_seeds=case.train_seeds[:1],
        test_seeds=case.test_seeds[:1],
        search="all",
        contenders=tuple(replace(c, knobs=c.knobs[:: max(1, len(c.knobs) // _QUICK_KNOBS)]) for c in case.contenders),
        notes=(
            *case.notes,
            f"Shortened to {_QUICK_SECONDS / 3600:g} hours a part and every second knob: a look, no result.",
        ),
    )


def _case(known: Grid, size: Size, trace: str, line: Line) -> Case:
    scenario, notes, capacity = sized(known, trace)
    entered = [p for p in peers(capacity) if policy_name(p) not in size.left_out]
    scenario = replace(
        scenario,
        name=f"{trace}, {line.name}",
        seeds=size.seeds,
        startup=Startup(profile=line.profile, factor=line.factor),
        policies=(*ours(known, capacity), *entered),
    )
    case = case_of(scenario, targets=size.targets, engine=size.engine, oracle=size.oracle)
    if case.train:
        split = case.test[0].window.start_seconds + case.test[0].score_from_seconds
        end = min(span_seconds(scenario), split + size.test_days * DAY)
        case = replace(
            case,
            train=(cut(scenario, max(0.0, split - size.train_days * DAY), split),),
            test=(cut(scenario, split, math.floor(end / DAY) * DAY),),
        )
    if size.turned is not None and line.name not in size.turned:
        case = replace(case, train=(), contenders=tuple(replace(c, knobs=()) for c in case.contenders))
        notes = (*notes, "Peers as shipped only: no knob was turned.")
    return replace(case, notes=(*case.notes, *notes), family=line.name, search=size.search)


def ours(known: Grid, capacity: Capacity) -> tuple[PoolPolicy, ...]:
    """This project's policy with its short config, and the same told what a load test of the train days would measure.

    Peers that count work are told as much.
    """
    told = {
        "profile": known.replica,
        "mean_prompt_tokens": capacity.mean_prompt_tokens,
        "mean_output_tokens": capacity.mean_output_tokens,
        "feasible_requests_per_second": capacity.requests_per_second,
    }
    return PoolPolicy(name="auto, load-tested", config={"replica": told}), PoolPolicy(name="auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one replica carries within the SLO, of requests with these mean lengths."""

    requests_per_second: float
    mean_prompt_tokens: float
    mean_output_tokens: float

    @property
    def tokens_per_second(self) -> float:
        """The same in tokens of prompts and answers."""
        return self.requests_per_second * (self.mean_prompt_tokens + self.mean_output_tokens)


def sized(known: Grid, trace: str) -> tuple[Scenario, tuple[str, ...], Capacity]:
    """The scenario of a trace at the wanted mean need over its train days, what to say of it, and a replica's capacity."""
    recorded = load_trace(BUILTIN + trace)
    lengths: Any = TraceLengths()
    if isinstance(recorded, RateTrace) and not np.nansum(recorded.prompt_tokens) > 0:
        lengths = LognormalLengths()
    traffic = TraceTraffic(trace=BUILTIN + trace, lengths=lengths)
    copies = known.copies.get(trace, 1)
    if copies > 1:
        traffic = replace(traffic, rotated_copies=copies, copy_shift_seconds=30.0)
    scenario = Scenario(
        version=1,
        name=trace,
        traffic=traffic,
        replica=Replica(profile=known.replica),
        slo=known.slo,
        interval_seconds=known.interval_seconds,
        limits=Limits(min_replicas=1, max_replicas=known.max_replicas),
    )
    train = recorded.facts.train_days * DAY or recorded.end_seconds
    mean = copies * _mean_rate(recorded, train)
    sample = replace(
        scenario,
        traffic=replace(traffic, thin_fraction=min(1.0, _SAMPLE / (mean * train))),
        window=Window(duration_seconds=min(train, recorded.end_seconds)),
        history_days=0.0,
    )
    requests = materialise(sample, 0).requests
    rate = Need(pool_models(sample)[0], requests, known.slo).requests_per_second
    thin = min(1.0, known.replicas * rate / mean)
    notes = () if thin < 1 else (f"The whole trace needs {mean / rate:.1f} replicas on average.",)
    # Few digits: settings must not hang on the last bits of a bisection.
    capacity = Capacity(
        requests_per_second=float(f"{rate:.3g}"),
        mean_prompt_tokens=float(f"{requests.prompt_tokens.mean():.4g}"),
        mean_output_tokens=float(f"{requests.output_tokens.mean():.4g}"),
    )
    return replace(scenario, traffic=replace(traffic, thin_fraction=float(f"{thin:.3g}"))), notes, capacity


def _mean_rate(recorded: Any, train: float) -> float:
    """Requests/s of the train days."""
    if isinstance(recorded, RateTrace):
        return float(np.nanmean(recorded.requests[recorded.t_seconds < train])) / recorded.interval_seconds
    return float((recorded.rows.arrival_seconds < train).sum() / train)


# What is entered beside the shipped defaults, where an original is used in several ways.
_VARIANTS: dict[type, tuple[dict[str, Any], ...]] = {
    DynamoSettings: (
        {"predictor": "constant"}, {"predictor": "arima"}, {"predictor": "kalman"}, {"mode": "load"}, {"mode": "both"},
    ),
    AibrixSettings: ({"algorithm": "apa"}, {"algorithm": "kpa"}),
}  # fmt: skip


def peers(capacity: Capacity) -> tuple[Policy, ...]:
    """Every known peer as it is shipped; where an original ships no target, the one stated here."""
    # 0.7 of what a replica carries is a target in common use.
    tokens = HpaSettings(signal="tokens_per_second", target=float(f"{0.7 * capacity.tokens_per_second:.4g}"))
    shipped: list[Policy] = [StaticPeakSettings(), HpaSettings(), tokens]
    known = {PoolPolicy, StaticSettings, *map(type, shipped)}
    for law in (c for c in get_args(Policy) if c not in known):
        shipped += [law(**variant) for variant in _VARIANTS.get(law, ({},))]
    return tuple(shipped)
