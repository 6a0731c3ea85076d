"""Idle nights: what keeping a replica alive, letting it sleep or taking it away costs, and how long who returns then waits.

Arrivals of recorded series, on their training days, one replica.  What is ours is decided by the real pool, look by look; what
runs is not simulated, only what stands by.  A pool at zero is looked at within a second of a request at its door, as
`autoscaler serve` does.  Beside it: keeping alive for a fixed time, the least that a sleep tier can cost who looks so often,
and who knows when requests return.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoscaler.embed import Pool
from autoscaler.schema import build
from autoscaler.settings import PreloadSettings
from autoscaler.testing import FixedCapacity
from autoscaler.tiers import PowerState, states_of
from autoscaler.types import Count, Decision, Demand, Lengths, Load, Observation, Replicas
from load_tests import draws
from load_tests.bench import BenchRow
from load_tests.kernel_state import Floats
from load_tests.traces import RateTrace, load_trace

TTFT_SECONDS, STARTUP_SECONDS, TICK_SECONDS, QUICK_TICK_SECONDS = 2.0, 120.0, 10, 2
IDLE_SECONDS = 20.0  # shorter times between requests are no idle times
# Requests per second at the busiest: so many that a few minutes pass between two of them.
SPARSE = {"rate_nasa1995_july": 0.02, "rate_servegen_msmall_c5": 0.02}
MOST_TOLD = 300  # idle times of a sparse series
WAKE = {"live": 0.0, "sleep_l1": 4.0, "weights_local": 40.0, "off": STARTUP_SECONDS}
COSTS = {"live": 1.0, "sleep_l1": 0.05, "weights_local": 0.01, "off": 0.0}
NIGHTS = ("rate_servegen_mmid_c44", "rate_servegen_msmall_c13")
KEEP_MINUTES = (0.0, 5.0, 15.0, 60.0, 240.0, math.inf)
SLEEP, LOCAL = ({"name": n, "cost_fraction": COSTS[n], "wake_seconds": WAKE[n]} for n in ("sleep_l1", "weights_local"))
SETTINGS: dict[str, dict[str, object]] = {
    "no tier": {"tiers": []},
    "sleep_l1": {"tiers": [SLEEP]},
    "sleep_l1, no second beyond the TTFT limit is free": {"tiers": [SLEEP], "return_seconds": 0.0},
    "sleep_l1 that nobody else can use": {"tiers": [{**SLEEP, "cost_fraction": 1.0}]},
    "weights_local": {"tiers": [LOCAL]},
    "sleep_l1 and weights_local": {"tiers": [SLEEP, LOCAL]},
    "sleep_l1 and weights_local, GPUs alone count": {"tiers": [SLEEP, LOCAL], "late_cost": 0.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby:
    """Standing by over all gaps: replica-seconds (wakes included) over those of always on, and waits of who returned."""

    cost_fraction: float
    waits: Floats

    def wait(self, quantile: float) -> float:
        """Seconds that returning requests waited for a replica."""
        return float(np.quantile(self.waits, quantile)) if len(self.waits) else 0.0


Decide = Callable[[Observation], Decision]


def rows(quick: bool) -> Iterable[BenchRow]:
    """Per series: ours with the sleep tier against its goals, beside keep-alive; then the frontier."""
    for name in NIGHTS if quick else (*NIGHTS, *SPARSE):
        arrivals = arrivals_of(name)
        ours = lived(arrivals, pool_of(SETTINGS["sleep_l1"]))
        alive = {m: lived(arrivals, keep_alive(60.0 * m)) for m in KEEP_MINUTES}
        yield from _goals(name, TICK_SECONDS, arrivals, ours, alive)
        if name in SPARSE:
            often = lived(arrivals, pool_of(SETTINGS["sleep_l1"], QUICK_TICK_SECONDS), QUICK_TICK_SECONDS)
            yield from _goals(name, QUICK_TICK_SECONDS, arrivals, often, alive)
        if not quick:
            yield from _frontier(name, arrivals, ours, alive)


def _goals(name: str, tick: int, arrivals: Floats, ours: Standby, alive: Mapping[float, Standby]) -> Iterable[BenchRow]:
    gaps = gaps_of(arrivals)
    about = f"{name}, {len(gaps)} idle times, a look every {tick} s"
    equal = min(a.cost_fraction for a in alive.values() if a.wait(0.95) <= ours.wait(0.95))
    yield BenchRow(
        name=f"{about}: first token after one, p95", value=ours.wait(0.95), unit="s", op="<=", goal=5.0,
        baseline="off after 5 min", baseline_value=alive[5].wait(0.95),
    )  # fmt: skip
    yield BenchRow(
        name=f"{about}: standing by, of always on", value=100 * ours.cost_fraction, unit="%", op="<=", goal=10.0,
        baseline="asleep from the first whole look on", baseline_value=100 * asleep(gaps, float(tick)),
    )  # fmt: skip
    yield BenchRow(
        name=f"{about}: over the cheapest keep-alive of no longer waits", value=ours.cost_fraction / equal, unit="",
        op="<=", goal=1.0, baseline="over off after 5 min", baseline_value=ours.cost_fraction / alive[5].cost_fraction,
    )  # fmt: skip


def _frontier(name: str, arrivals: Floats, ours: Standby, alive: Mapping[float, Standby]) -> Iterable[BenchRow]:
    found = {
        f"ours, {k}": ours if k == "sleep_l1" else lived(arrivals, pool_of(v), costs=_costs(v))
        for k, v in SETTINGS.items()
    }
    found |= {"always on" if m == math.inf else f"off after {m:g} min": one for m, one in alive.items()}
    for what, one in found.items():
        yield BenchRow(
            name=f"{name}, {what}: standing by, of always on", value=100 * one.cost_fraction, unit="%",
            baseline="p95 wait, s", baseline_value=one.wait(0.95),
        )  # fmt: skip
    gaps = gaps_of(arrivals)
    bounds = {"asleep at any instant": asleep(gaps, 0.0), "who knows when requests return": foreseen(gaps)}
    for what, cost in bounds.items():
        yield BenchRow(name=f"{name}, bound, {what}: standing by, of always on", value=100 * cost, unit="%")


def arrivals_of(name: str) -> Floats:
    """Instants of requests, in seconds, drawn from a recorded series on its training days."""
    trace = load_trace(f"builtin:{name}")
    assert isinstance(trace, RateTrace)
    rates = np.nan_to_num(trace.requests) / trace.interval_seconds
    rates *= SPARSE.get(name, 2.0) / rates.max()
    counts = draws.poissons(draws.key(1, "tiers", name), rates * trace.interval_seconds)
    begins = np.repeat(trace.t_seconds, counts)
    arrivals: Floats = np.sort(
        begins + trace.interval_seconds * draws.uniforms(draws.key(2, "tiers", name), len(begins))
    )
    arrivals = arrivals[arrivals < 86_400.0 * trace.facts.train_days]
    if name not in SPARSE:
        return arrivals
    told = np.flatnonzero(np.diff(arrivals) > IDLE_SECONDS)[:MOST_TOLD]
    return arrivals[: told[-1] + 2]


def gaps_of(arrivals: Floats) -> list[float]:
    """Idle times: seconds between two requests."""
    gaps = np.diff(arrivals)
    return [float(g) for g in gaps[gaps > IDLE_SECONDS]]


def asleep(gaps: Sequence[float], tick: float) -> float:
    """The least share of always on that the sleep tier can cost who looks every `tick` seconds, in hindsight.

    Live while it wakes, and until a look has seen nothing for as long as a look is; then asleep to the end.
    """
    rate, wake = COSTS["sleep_l1"], WAKE["sleep_l1"]
    live = max(tick, wake)
    return math.fsum(min(g, live + rate * (g - live)) for g in gaps) / math.fsum(gaps)


def foreseen(gaps: Sequence[float]) -> float:
    """The share of always on of who knows each idle time: asleep or off for all of it, and back before its end."""
    states = _states({**SETTINGS["sleep_l1"], "late_cost": 0.0})
    paid = (min(s.rate * max(0.0, g - s.wake_seconds) + min(g, s.wake_seconds) for s in states) for g in gaps)
    return math.fsum(paid) / math.fsum(gaps)


def keep_alive(seconds: float) -> Decide:
    """Live for so long after requests were last seen, then off."""
    until = seconds

    def decide(seen: Observation) -> Decision:
        nonlocal until
        assert seen.demand is not None
        assert seen.load is not None
        if seen.demand.requests or seen.load.waiting_requests:
            until = max(until, seen.at_seconds + seconds)
        live = bool(seen.load.waiting_requests) or seen.at_seconds < until
        return Decision(pool="p", at_seconds=seen.at_seconds, replicas=int(live))

    return decide


def pool_of(section: dict[str, object], tick: int = TICK_SECONDS) -> Decide:
    """A pool with these tiers; nothing but the tiers is told it."""
    capacity: Any = FixedCapacity(startup_seconds=STARTUP_SECONDS)
    settings = {"name": "p", "limits": {"min_replicas": 0, "max_replicas": 1}, "slo": {"ttft_seconds": TTFT_SECONDS},
                "interval_seconds": tick, "preload": section}  # fmt: skip
    return Pool.from_config(settings, capacity_model=capacity).step


def _costs(section: dict[str, object]) -> dict[str, float]:
    """What states cost a pool with these settings."""
    return {s.name: s.rate for s in _states(section)}


def _states(section: dict[str, object]) -> tuple[PowerState, ...]:
    capacity = FixedCapacity(startup_seconds=STARTUP_SECONDS).capacity(FixedCapacity().start(), Lengths(), 1)
    return states_of(build(PreloadSettings, section), capacity, TTFT_SECONDS)


def lived(arrivals: Floats, decide: Decide, tick: int = TICK_SECONDS, costs: Mapping[str, float] = COSTS) -> Standby:
    """What somebody who decides makes of these requests, one look every `tick` seconds."""
    world = _World(arrivals, tick, costs)
    at = 0
    while at < arrivals[-1]:
        at = world.next_look(at)
        world.ordered(at, decide(world.seen(at)))
    return world.standby()


class _World:
    """One replica: live, waking, or in one of the states, and the requests that come to its door."""

    def __init__(self, arrivals: Floats, tick: int, costs: Mapping[str, float]) -> None:
        self.arrivals, self.tick, self.costs = arrivals, tick, costs
        self.quiet = arrivals[:-1][np.diff(arrivals) > tick]  # after these a look may see that nothing came
        self.state, self.ready_at = "live", 0.0
        self.seen_until, self.index, self.waiting = 0, 0, 0
        self.times, self.rates = [0.0], [1.0]  # what it costs from an instant on
        self.waits = np.zeros(len(arrivals))

    def next_look(self, at: int) -> int:
        """Every `tick` seconds; every minute where no look would see anything new; of a pool at zero soon after a request."""
        until = self.arrivals[self.index] if self.index < len(self.arrivals) else math.inf
        since = at - (self.arrivals[self.index - 1] if self.index else -math.inf)
        quiet = self.quiet[np.searchsorted(self.quiet, at - self.tick) :][:1]
        busy = since <= self.tick and not self.waiting and (not len(quiet) or quiet[0] > at + 60)
        far = since > 600 and until > at + 600
        then = at + (60 if busy or far else self.tick)
        if self.state != "live" and until < then:
            then = max(at + 1, math.floor(until) + 1)
        return then

    def seen(self, at: int) -> Observation:
        """What the pool sees now; requests that came to a replica that was ready are served."""
        last = int(np.searchsorted(self.arrivals, at, side="right"))
        arrived, live = last - self.index, self.state == "live" and self.ready_at <= at
        came = self.arrivals[self.index : last]
        if self.state == "live":
            self.waits[self.index : last] = np.maximum(0.0, self.ready_at - came)
            self.waiting = int((self.ready_at > at) * (self.waiting + arrived))
        else:
            self.waiting += arrived
        window, self.seen_until, self.index = at - self.seen_until, at, last
        here = self.state
        away = () if here in ("live", "off") else (Count(name=here, replicas=1),)
        count = float(arrived)
        return Observation(
            pool="p", at_seconds=at, window_seconds=window,
            replicas=Replicas(
                desired=int(here == "live"), ready=int(live), starting=int(here == "live" and not live),
                sleeping=len(away), tiers=away,
            ),
            demand=Demand(requests=count, prompt_tokens=count, output_tokens=count, finished_requests=count),
            load=Load(running_requests=0.0, waiting_requests=float(self.waiting), replicas_reporting=int(live)),
        )  # fmt: skip

    def ordered(self, at: int, decision: Decision) -> None:
        """Go to the state that was decided; to be live again takes the state's time, and is paid for."""
        tiers = decision.tiers
        state = "live" if decision.replicas else tiers[0].name if tiers else "off"
        before, self.state = self.state, state
        if state == before:
            return
        if state == "live":
            self.ready_at = at + WAKE[before]
            came = self.arrivals[self.index - self.waiting : self.index]
            self.waits[self.index - self.waiting : self.index] = self.ready_at - came
        elif before != "live" and WAKE[state] < WAKE[before]:  # brought nearer ahead of time
            self._costs(at, 1.0)
            at += math.ceil(WAKE[before])
        self._costs(at, 1.0 if state == "live" else self.costs[state])

    def _costs(self, at: int, rate: float) -> None:
        self.times.append(float(at))
        self.rates.append(rate)

    def standby(self) -> Standby:
        """Costs of idle times and of the wakes after them; waits of the requests that ended one."""
        times, rates = np.array([*self.times, self.arrivals[-1] + 1e6]), np.array(self.rates)
        paid = np.concatenate([[0.0], np.cumsum(rates * np.diff(times))])
        ends = np.flatnonzero(np.diff(self.arrivals) > IDLE_SECONDS) + 1
        start, end, waits = self.arrivals[ends - 1], self.arrivals[ends], self.waits[ends]
        until = end + waits
        begin = np.maximum(start, np.concatenate([[0.0], until[:-1]]))  # a wake may reach into the next idle time
        cost = np.interp(until, times, paid) - np.interp(begin, times, paid)
        return Standby(cost_fraction=float(cost.sum() / (end - start).sum()), waits=waits)
