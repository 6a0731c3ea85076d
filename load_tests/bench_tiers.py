"""Idle nights: what keeping a replica alive, letting it sleep or taking it away costs, and how long who returns then waits.

Arrivals of a recorded series, one replica, told by idle gaps: what runs is not simulated, only what stands by.  Our thresholds
learn from gap to gap, as a pool's do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoscaler.schema import build
from autoscaler.settings import PreloadSettings
from autoscaler.testing import FixedCapacity
from autoscaler.tiers import MOST_GAPS, PowerState, envelope, plan, states_of
from autoscaler.types import Idle, Lengths
from load_tests import draws
from load_tests.bench import BenchRow
from load_tests.kernel_state import Floats
from load_tests.traces import RateTrace, load_trace

TTFT_SECONDS, STARTUP_SECONDS, TICK_SECONDS = 2.0, 120.0, 10
SLEEP = {"name": "sleep_l1", "cost_fraction": 0.05, "wake_seconds": 4.0}
LOCAL = {"name": "weights_local", "cost_fraction": 0.01, "wake_seconds": 40.0}
# Requests per second at the busiest: so many that a few minutes pass between two of them.
SPARSE = {"rate_nasa1995_july": 0.02, "rate_servegen_msmall_c5": 0.02}
MOST_TOLD = 300  # idle times of a sparse series
NIGHTS = ("rate_servegen_mmid_c44", "rate_servegen_msmall_c13")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby:
    """Standing by over all gaps: replica-seconds (wakes included) over those of always on, and waits of who returned."""

    cost_fraction: float
    waits: Floats

    def wait(self, quantile: float) -> float:
        """Seconds that returning requests waited for a replica."""
        return float(np.quantile(self.waits, quantile)) if len(self.waits) else 0.0


# For a gap: (replica-seconds paid in it, wake included; seconds that its end waits).
Rule = Callable[[float], tuple[float, float]]


def rows(quick: bool) -> Iterable[BenchRow]:
    """Per series: ours with the sleep tier against its goals, beside keep-alive; then the frontier."""
    for name in NIGHTS if quick else (*NIGHTS, *SPARSE):
        gaps = gaps_of(name)
        ours = stand_by(gaps, ours_of({"tiers": [SLEEP]}))
        alive = [stand_by(gaps, keep_alive(60.0 * m)) for m in (0, 5, 15, 60, 240, 100_000)]
        equal = min((a.cost_fraction for a in alive if a.wait(0.95) <= ours.wait(0.95)), default=math.inf)
        about = f"{name}, {len(gaps)} idle times"
        yield BenchRow(
            name=f"{about}: first token after one, p95", value=ours.wait(0.95), unit="s", op="<=", goal=5.0,
            baseline="off after 5 min", baseline_value=alive[1].wait(0.95),
        )  # fmt: skip
        yield BenchRow(
            name=f"{about}: standing by, of always on", value=100 * ours.cost_fraction, unit="%", op="<=", goal=10.0,
            baseline="off after 5 min", baseline_value=100 * alive[1].cost_fraction,
        )  # fmt: skip
        yield BenchRow(
            name=f"{about}: over the cheapest keep-alive of no longer waits", value=ours.cost_fraction / equal, unit="",
            op="<=", goal=1.0,
        )  # fmt: skip
        if not quick:
            yield from _frontier(name, gaps)


def _frontier(name: str, gaps: Sequence[float]) -> Iterable[BenchRow]:
    settings: dict[str, dict[str, object]] = {
        "no tier": {"tiers": []},
        "sleep_l1": {"tiers": [SLEEP]},
        "weights_local": {"tiers": [LOCAL]},
        "sleep_l1 that nobody else can use": {"tiers": [{**SLEEP, "cost_fraction": 1.0}]},
        "both, GPUs alone count": {"tiers": [SLEEP, LOCAL], "late_cost": 0.0},
        "both": {"tiers": [SLEEP, LOCAL]},
    }
    found = {f"ours, {k}": stand_by(gaps, ours_of(v)) for k, v in settings.items()}
    found |= {f"off after {m} min": stand_by(gaps, keep_alive(60.0 * m)) for m in (5, 60)}
    for what, one in found.items():
        yield BenchRow(
            name=f"{name}, {what}: standing by, of always on", value=100 * one.cost_fraction, unit="%",
            baseline="p95 wait, s", baseline_value=one.wait(0.95),
        )  # fmt: skip


def gaps_of(name: str) -> list[float]:
    """Idle times of a recorded series: seconds between two arrivals of which a tick sees nothing."""
    trace = load_trace(f"builtin:{name}")
    assert isinstance(trace, RateTrace)
    rates = np.nan_to_num(trace.requests) / trace.interval_seconds
    rates *= SPARSE.get(name, 2.0) / rates.max()
    counts = draws.poissons(draws.key(1, "tiers", name), rates * trace.interval_seconds)
    begins = np.repeat(trace.t_seconds, counts)
    arrivals = np.sort(begins + trace.interval_seconds * draws.uniforms(draws.key(2, "tiers", name), len(begins)))
    gaps = np.diff(arrivals)
    told = [float(g) for g in gaps if g > 2 * TICK_SECONDS]
    return told[:MOST_TOLD] if name in SPARSE else told


def stand_by(gaps: Sequence[float], rule: Rule) -> Standby:
    """All gaps, one after the other."""
    paid = [rule(gap) for gap in gaps]
    return Standby(
        cost_fraction=math.fsum(cost for cost, _ in paid) / math.fsum(gaps), waits=np.array([wait for _, wait in paid])
    )


def keep_alive(seconds: float) -> Rule:
    """Live for so long after the last request, then off."""

    def rule(gap: float) -> tuple[float, float]:
        return (gap, 0.0) if gap <= seconds else (seconds + STARTUP_SECONDS, STARTUP_SECONDS)

    return rule


def ours_of(section: dict[str, object]) -> Rule:
    """What a pool with these tiers does, tick for tick; it remembers gaps as a pool does."""
    settings = build(PreloadSettings, section)
    capacity = FixedCapacity(startup_seconds=STARTUP_SECONDS).capacity(FixedCapacity().start(), Lengths(), 1)
    states = states_of(settings, capacity, TTFT_SECONDS)
    first = envelope(states)[1]
    memory = Idle(replicas=1)

    def rule(gap: float) -> tuple[float, float]:
        nonlocal memory
        cost, wait = _gap(states, replace(memory, since_seconds=0), gap)
        if gap >= first:
            memory = replace(memory, gaps=(*memory.gaps, int(gap))[-MOST_GAPS:])
        return cost, wait

    return rule


def _gap(states: Sequence[PowerState], idle: Idle, gap: float) -> tuple[float, float]:
    by_name = {s.name: s for s in states}
    cost, wait, at = 0.0, 0.0, 0
    before = states[0]
    while at < gap:
        # Far from any change a minute is as good as a tick, and the end of a gap is looked at closely.
        step = TICK_SECONDS if at < 600 or gap - at < 600 else 60
        chosen = plan(idle, states, at)
        assert chosen is not None
        here = states[0] if chosen.live else by_name[chosen.tiers[0].name] if chosen.tiers else states[-1]
        if here.rate > before.rate:
            cost += before.wake_seconds  # brought nearer ahead of time
        span = min(float(step), gap - at)
        cost, wait, before, at = cost + here.rate * span, here.wake_seconds, here, at + step
    return cost + wait, wait
