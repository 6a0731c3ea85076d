"""What a forecast is worth: GPU-hours of the predictive policy with it, over the reactive one's at the same attainment.

Both run in the simulated fleet on the first hours of the trace's test days.  The reactive policy runs with several headrooms
(it is told that a replica carries so much less), which gives its cost at any attainment in between; the predictive one runs
once per forecaster, without headroom.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoscaler.embed import Pool, autoscaler_for, windows_for
from autoscaler.ports import Forecaster
from autoscaler.types import Observation
from load_tests.backtest_run import OURS, REFIT_SECONDS, forecaster_of
from load_tests.campaign import Prepared, prepare
from load_tests.contestants import Answer, Moment, PoolContestant
from load_tests.policy_bench_cases import case_of
from load_tests.policy_bench_cells import ENGINES, Engine, _counted, _flowed, _judged, scored_spans
from load_tests.policy_bench_grid import grid, ours, sized
from load_tests.policy_bench_stats import cost_at
from load_tests.scenario import PoolPolicy, Scenario, Startup, policy_settings
from load_tests.traces import BUILTIN
from serving.capacity_learned import LearnedCapacity

HEADROOMS = (0.7, 0.8, 0.9, 1.0, 1.15, 1.35, 1.6)
ASKED = 0.99
REACTIVE = "reactive"
_NO_ROWS = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """One policy on one trace.  `ratio`: its cost over the reactive policy's at the same attainment; None where the
    reactive one reached no such attainment, or all that it did attained more."""

    trace: str
    forecaster: str
    headroom: float
    attained_fraction: float
    gpu_hours: float
    ratio: float | None


class Refitted(PoolContestant):
    """A pool whose forecaster is refitted every ten minutes, as a running autoscaler does off its loop."""

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """Refit if it is time, observe and step."""
        if at_seconds % REFIT_SECONDS < self.interval_seconds:
            self.pool.refit()
        return super().decide(at_seconds, moment)


def decisions(
    source: str,
    names: Sequence[str],
    *,
    hours: float = 24.0,
    startup_factor: float = 1.0,
    engine: Engine = "plant",
    progress: Callable[[str, float], None] | None = None,
) -> list[Decided]:
    """The reactive policy at its headrooms, then each forecaster; empty for what is no shipped trace, or too small.

    `startup_factor`: replicas take so many times two minutes to be ready.
    """
    name = source.removeprefix(BUILTIN)
    if not source.startswith(BUILTIN) or name in grid().left_out:
        return []
    scenario = scenario_of(name, hours, startup_factor)
    prepared = prepare(scenario, 0)
    runs = [(REACTIVE, headroom) for headroom in HEADROOMS] + [(n, 1.0) for n in names]
    share, cost = [], []
    for number, (forecaster, headroom) in enumerate(runs):
        if progress is not None:
            progress(f"{name}: decisions, {forecaster}", number / len(runs))
        violated, paid = _played(prepared, scenario, forecaster, headroom, engine)
        share.append(violated)
        cost.append(paid)
    known = len(HEADROOMS)
    found = []
    for (forecaster, headroom), violated, paid in zip(runs, share, cost, strict=True):
        wanted = np.array([max(violated, 1e-9)])
        base = float(cost_at(np.maximum([share[:known]], 1e-9), np.array([cost[:known]]), wanted)[0])
        ratio = paid / base if math.isfinite(base) and base > 0 else None
        found.append(
            Decided(
                trace=name,
                forecaster=forecaster,
                headroom=headroom,
                attained_fraction=1.0 - violated,
                gpu_hours=paid,
                ratio=ratio,
            )  # fmt: skip
        )
    return found


def scenario_of(name: str, hours: float, startup_factor: float = 1.0) -> Scenario:
    """The first `hours` of the trace's test days, sized as the policy bench does; replicas are ready in about two minutes."""
    made, _, capacity = sized(grid(), name)
    told = ours(grid(), capacity)[:1]
    startup = Startup(profile="warm_node_local", factor=startup_factor)
    case = case_of(replace(made, startup=startup, policies=told), targets=(ASKED,), oracle=True)
    test = case.test[0]
    end = (test.window.duration_seconds or hours * 3600.0) - test.score_from_seconds
    return replace(
        test, window=replace(test.window, duration_seconds=test.score_from_seconds + min(end, hours * 3600.0))
    )


def _played(
    prepared: Prepared, scenario: Scenario, forecaster: str, headroom: float, engine: Engine
) -> tuple[float, float]:
    """(share of violated requests, GPU-hours)."""
    policy = scenario.policies[0]
    assert isinstance(policy, PoolPolicy)
    strategy = "reactive" if forecaster == REACTIVE else "predictive"
    slo = replace(scenario.slo, attainment_fraction=ASKED)
    asked = replace(scenario, slo=slo)
    told = dict(policy.config["replica"])
    told["feasible_requests_per_second"] /= headroom
    pool = prepared.setup.pools[0]
    settings = policy_settings(
        asked, PoolPolicy(name=forecaster, config={"replica": told, "strategy": strategy}), pool.name
    )
    settings = replace(settings, limits=scenario.limits)
    model: Forecaster | None = None
    if forecaster not in (REACTIVE, OURS):
        capacity = LearnedCapacity(settings.replica, settings.startup, settings.slo)
        model = forecaster_of(forecaster, windows_for(settings, capacity), settings.interval_seconds)
    past: list[Observation] = prepared.history()
    contestant = Refitted(
        forecaster, Pool(autoscaler_for(settings, forecaster=model)), slo, pool.replica.kv_capacity_tokens, history=past
    )
    setup = replace(prepared.setup, interval_seconds=_NO_ROWS, slo=slo)
    simulation = ENGINES[engine](setup, [contestant])
    simulation.run()
    spans = [spans for _, spans in scored_spans(scenario, setup)]
    if getattr(simulation, "flow", None) is not None:
        counts = _flowed(simulation, spans)
    else:
        violated = _judged(simulation).violated
        counts = [_counted(setup.requests.arrival_seconds, violated, some) for some in spans]
    seconds = math.fsum(life.paid(a, b).paid for life in simulation.lives for some in spans for a, b in some)
    arrived = max(1, sum(n for n, _ in counts))
    return sum(v for _, v in counts) / arrived, seconds * setup.gpus_per_replica / 3600.0
