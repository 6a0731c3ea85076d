"""The grid that is run when no scenario is named: development traces x start-ups x seeds, every known peer.

``load_tests/data/policy_bench.toml`` says which; sizes are reached by thinning only.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, get_args

import numpy as np

from autoscaler.schema import build, setting
from autoscaler.settings import Limits, Slo
from load_tests.campaign import pool_models
from load_tests.need import Need
from load_tests.peers import HpaSettings, KpaSettings, StaticSettings
from load_tests.policy_bench_cases import Case, case_of, cut, span_seconds
from load_tests.policy_bench_cells import ENGINES, Engine
from load_tests.scenario import Policy, PoolPolicy, Replica, Scenario, Startup
from load_tests.shapes import DAY
from load_tests.traces import BUILTIN, RateTrace, load_trace
from load_tests.traffic import materialise
from load_tests.traffic_settings import LognormalLengths, TraceLengths, TraceTraffic, Window

# Requests that a replica's capacity is measured on, for sizing.
_SAMPLE = 30_000
# Shortened comparisons see so much of each part.
_QUICK_SECONDS = 8 * 3600.0
_QUICK_KNOBS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Start-ups by a short name."""

    name: str = setting(doc="Name in the tables.")
    profile: str = setting(doc="Start-up profile.")
    factor: float = setting(1.0, "Every stage takes so many times as long.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The table of what is run."""

    traces: tuple[str, ...] = setting(doc="Shipped traces, without their file ending.")
    copies: dict[str, int] = setting(
        factory=dict, doc="Traces too small for a fleet: copies, each half a minute later."
    )
    left_out: dict[str, str] = setting(factory=dict, doc="Traces that are not in the grid, and why.")
    replicas: float = setting(doc="Mean need on the train days, in replicas; less where the trace has less.", above=0)
    replica: str = setting(doc="Replica profile.")
    startups: tuple[Line, ...] = setting(doc="How replicas start.")
    slo: Slo = setting(doc="The promise; each target replaces its attainment.")
    targets: tuple[float, ...] = setting(doc="Attainments to compare at.")
    test_seeds: tuple[int, ...] = setting(doc="Seeds of the test days.")
    train_days: int = setting(doc="Last train days that knobs are tuned on.", low=1)
    test_days: int = setting(doc="First test days that are run.", low=1)
    interval_seconds: int = setting(15, "Seconds between decisions of this project's policies.", low=1)
    max_replicas: int = setting(200, "Upper bound for every policy.", low=1)
    quick_traces: tuple[str, ...] = setting(doc="Traces of --quick.")
    ours: tuple[str, ...] = setting(("auto",), "Strategies of this project.")


@cache
def grid() -> Grid:
    """The shipped grid."""
    text = (files("load_tests") / "data" / "policy_bench.toml").read_text(encoding="utf-8")
    return build(Grid, tomllib.loads(text), "policy_bench")


def default_cases(asked: Grid | None = None, engine: Engine | None = None) -> list[Case]:
    """Every trace with every start-up."""
    known = asked or grid()
    chosen: Engine = engine or ("fluid" if "fluid" in ENGINES else "plant")
    return [_case(known, trace, line, chosen) for line in known.startups for trace in known.traces]


def quick_cases(asked: Grid | None = None) -> list[Case]:
    """A few traces, one start-up, hours instead of days: a look, and CI's check that all of it runs."""
    known = asked or grid()
    line = known.startups[min(1, len(known.startups) - 1)]
    return [shortened(_case(known, trace, line, "plant")) for trace in known.quick_traces]


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
        contenders=tuple(replace(c, knobs=c.knobs[:: max(1, len(c.knobs) // _QUICK_KNOBS)]) for c in case.contenders),
        notes=(
            *case.notes,
            f"Shortened to {_QUICK_SECONDS / 3600:g} hours a part and every second knob: a look, no result.",
        ),
    )


def _case(known: Grid, trace: str, line: Line, engine: Engine) -> Case:
    scenario, notes, capacity = sized(known, trace)
    scenario = replace(
        scenario,
        name=f"{trace}, {line.name}",
        startup=Startup(profile=line.profile, factor=line.factor),
        policies=(*(ours(name) for name in known.ours), *peers(scenario, capacity)),
    )
    case = case_of(scenario, targets=known.targets, engine=engine)
    if case.train:
        split = case.test[0].window.start_seconds + case.test[0].score_from_seconds
        end = min(span_seconds(scenario), split + known.test_days * DAY)
        case = replace(
            case,
            train=(cut(scenario, max(0.0, split - known.train_days * DAY), split),),
            test=(cut(scenario, split, math.floor(end / DAY) * DAY),),
        )
    return replace(case, notes=(*case.notes, *notes), family=line.name)


def ours(strategy: str) -> PoolPolicy:
    """A policy of this project as its short config gives it."""
    return PoolPolicy(name=strategy, config={} if strategy == "auto" else {"strategy": strategy})


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one replica carries within the SLO, and what the peak of the train days needs."""

    requests_per_second: float
    tokens_per_second: float
    peak_replicas: float


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
        seeds=known.test_seeds,
    )
    train = recorded.facts.train_days * DAY or recorded.end_seconds
    mean, peak = _rates(recorded, train, copies)
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
    per_request = float((requests.prompt_tokens + requests.output_tokens).mean())
    capacity = Capacity(
        requests_per_second=rate, tokens_per_second=rate * per_request, peak_replicas=thin * peak / rate
    )
    # Three digits: what is thinned must not hang on the last bits of a bisection.
    return replace(scenario, traffic=replace(traffic, thin_fraction=float(f"{thin:.3g}"))), notes, capacity


def _rates(recorded: Any, train: float, copies: int) -> tuple[float, float]:
    """(mean, peak) requests/s of the train days; the peak is of the trace's intervals, of minutes where it has requests."""
    if isinstance(recorded, RateTrace):
        rates = recorded.requests[recorded.t_seconds < train] / recorded.interval_seconds
        return copies * float(np.nanmean(rates)), copies * float(np.nanmax(rates))
    at = recorded.rows.arrival_seconds
    per_minute = np.bincount((at[at < train] // 60).astype(np.int64)) / 60
    return copies * float((at < train).sum() / train), copies * float(per_minute.max())


# What shipped configurations differ in, where a law has several that are in use.
_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {}


def peers(scenario: Scenario, capacity: Capacity) -> tuple[Policy, ...]:
    """Every known peer as it is shipped; where an original ships no target, the one stated here."""
    fixed = StaticSettings(name="static peak", replicas=max(1, math.ceil(capacity.peak_replicas)))
    shipped: list[Policy] = [
        fixed,
        HpaSettings(),
        # 0.7 of what a replica carries is a target in common use.
        HpaSettings(signal="tokens_per_second", target=float(f"{0.7 * capacity.tokens_per_second:.4g}")),
        KpaSettings(),
    ]
    known = (PoolPolicy, StaticSettings, HpaSettings, KpaSettings)
    for law in sorted((c for c in get_args(Policy) if c not in known), key=lambda c: c.__name__):
        shipped += [law(**variant) for variant in _VARIANTS.get(law.__name__, ({},))]
    return tuple(shipped)


def names(cases: Sequence[Case]) -> list[str]:
    """Names of the cases."""
    return [case.name for case in cases]
