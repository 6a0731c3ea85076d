"""What an idle pool powers down to, and when: live, sleeping, weights at hand, off.  Pure.

A state costs `rate` of a live replica and, when requests come back, `wake` replica-seconds: the time of waking, which is paid
for, and the price of what the first requests wait beyond the limit.  Without knowing gaps, a pool idle for t is in the state with
the least rate * t + wake: at most twice the cost of who knows the gap (Augustine, Irani, Swamy 2004).  Once enough gaps were
seen, the instants are those of least cost over them; beyond the longest the rule without knowledge holds again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoscaler.settings import PreloadSettings
from autoscaler.types import Capacity, Count, Idle, Observation

LEAST_GAPS = 30
MOST_GAPS = 64  # that are remembered
RETURN_QUANTILE = 0.1  # of the gaps that are still possible: so early a return is prepared for


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerState:
    """One state: its cost as a share of a live replica's, what leaving it costs (replica-seconds), and takes (seconds)."""

    name: str
    rate: float
    wake: float
    wake_seconds: float


def states_of(settings: PreloadSettings, capacity: Capacity, ttft_seconds: float) -> tuple[PowerState, ...]:
    """Live, the pool's tiers, and off, which takes a whole start-up to leave; dominated ones are left out."""
    rows = [(t.name, t.cost_fraction, t.wake_seconds) for t in settings.tiers]
    rows.append(("off", 0.0, capacity.startup(0.9)))
    late = [
        PowerState(
            name=name, rate=rate, wake=seconds + settings.late_cost * max(0.0, seconds - ttft_seconds),
            wake_seconds=seconds,
        )
        for name, rate, seconds in rows
    ]  # fmt: skip
    live = PowerState(name="live", rate=1.0, wake=0.0, wake_seconds=0.0)
    kept = [live]
    for state in sorted(late, key=lambda s: (-s.rate, s.wake)):
        while len(kept) > 1 and kept[-1].wake >= state.wake:
            kept.pop()
        if state.rate < kept[-1].rate:
            kept.append(state)
    return tuple(kept)


def envelope(states: Sequence[PowerState]) -> tuple[float, ...]:
    """When each state is entered, without knowledge of gaps: where its line falls below those before it.

    States that are best at no instant are entered together with the next one.
    """
    enter = [0.0] * len(states)
    for i in range(1, len(states)):
        before = [(states[i].wake - s.wake) / (s.rate - states[i].rate) for s in states[:i] if s.rate > states[i].rate]
        enter[i] = max(before)
    for i in range(len(states) - 2, 0, -1):
        enter[i] = min(enter[i], enter[i + 1])
    return tuple(enter)


def least_cost(states: Sequence[PowerState], gaps: Sequence[float]) -> tuple[float, ...]:
    """When each state is entered at the least cost over `gaps`: exact, by going back over the instants at which one ended.

    A state never worth entering within the longest gap is entered as without knowledge, but not before that.
    """
    ended = sorted(gaps)
    points = [0.0, *sorted(set(ended))]
    known = envelope(states)
    # cost[s]: of what is to come from the last point on, in state s; choice[i][s]: state to be in from point i on.
    cost = [0.0] * len(states)
    choice: list[list[int]] = []
    for i in range(len(points) - 2, -1, -1):
        start, end = points[i], points[i + 1]
        past = bisect_right(ended, start)
        alive, going = len(ended) - past, bisect_right(ended, end) - past
        stay = [alive * s.rate * (end - start) + going * s.wake + c for s, c in zip(states, cost, strict=True)]
        best = list(range(len(states)))
        for s in range(len(states) - 2, -1, -1):
            if stay[best[s + 1]] < stay[s]:
                best[s] = best[s + 1]
        cost, choice = [stay[b] for b in best], [best, *choice]
    enter, state = [math.inf] * len(states), 0
    for point, best in zip(points, choice, strict=False):
        state = best[state]
        for s in range(state + 1):
            enter[s] = min(enter[s], point)
    longest = points[-1]
    return tuple(e if e < math.inf else max(longest, k) for e, k in zip(enter, known, strict=True))


def state_at(enter: Sequence[float], idle_seconds: float) -> int:
    """The deepest state entered after `idle_seconds`."""
    return max(i for i, at in enumerate(enter) if idle_seconds >= at)


def returns_within(gaps: Sequence[float], idle_seconds: float, seconds: float) -> bool:
    """Whether the 0.1-quantile of the gaps that can still be is at most `seconds` away."""
    open_gaps = sorted(g for g in gaps if g > idle_seconds)
    if len(gaps) < LEAST_GAPS or not open_gaps:
        return False
    first = open_gaps[int(RETURN_QUANTILE * (len(open_gaps) - 1))]
    return first - idle_seconds <= seconds


def with_gap(idle: Idle | None, observation: Observation, states: Sequence[PowerState]) -> Idle:
    """`idle` after one more Observation: a gap begins, goes on, or ends and is remembered.  Unknown changes nothing.

    Gaps that end before the first state would be entered are not remembered: they decide nothing.
    """
    here = idle or Idle()
    quiet = is_quiet(observation)
    at = observation.at_seconds
    if quiet is None or quiet == (here.since_seconds is not None):
        return here
    if quiet:
        return replace(here, since_seconds=at, replicas=max(1, observation.replicas.desired))
    assert here.since_seconds is not None
    length = at - here.since_seconds
    if length < envelope(states)[1]:
        return replace(here, since_seconds=None)
    return replace(here, since_seconds=None, gaps=(*here.gaps, length)[-MOST_GAPS:])


def is_quiet(observation: Observation) -> bool | None:
    """Whether nothing arrived, runs or waits; None where that is not known."""
    demand, load = observation.demand, observation.load
    if demand is None or demand.requests is None:
        return None
    held = 0.0 if load is None else (load.running_requests or 0.0) + (load.waiting_requests or 0.0)
    waits = sum(one.waiting_requests or 0.0 for one in observation.classes)
    return demand.requests == 0 and held == 0 and waits == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerPlan:
    """What an idle pool should be in: `live` replicas stay; else `tiers` hold them, `preload` of them in a faster one."""

    idle_seconds: float
    threshold_seconds: float
    live: bool
    tiers: tuple[Count, ...] = ()
    preload: int = 0


def plan(idle: Idle | None, states: Sequence[PowerState], at_seconds: int) -> PowerPlan | None:
    """What to power down to now; None while the pool is not idle."""
    if idle is None or idle.since_seconds is None:
        return None
    age = float(at_seconds - idle.since_seconds)
    enter = least_cost(states, idle.gaps) if len(idle.gaps) >= LEAST_GAPS else envelope(states)
    number = state_at(enter, age)
    faster = number - 1
    raised = faster >= 1 and returns_within(idle.gaps, age, states[number].wake_seconds)
    here = states[faster if raised else number]
    held = () if here.name in ("live", "off") else (Count(name=here.name, replicas=idle.replicas),)
    return PowerPlan(
        idle_seconds=age,
        threshold_seconds=enter[1],
        live=number == 0,
        tiers=held,
        preload=idle.replicas if raised else 0,
    )
