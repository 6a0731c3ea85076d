"""What an idle pool powers down to, and when: live, sleeping, weights at hand, off.  Pure.

A state costs `rate` of a live replica and, when requests come back, `wake` replica-seconds: the time of waking, which is
paid for, and the price of what the first requests wait longer than may be expected of them.  Without knowing gaps, a pool
idle for t is in the state with the least rate * t + wake: at most twice the cost of who knows the gap (Augustine, Irani,
Swamy 2004).  Once enough gaps were seen, the instants are those of least cost over them; beyond the longest the rule without
knowledge holds again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from autoscaler.copies import replace
from autoscaler.settings import PreloadSettings
from autoscaler.types import Capacity, Count, Idle, Observation, Reason

LEAST_GAPS = 10  # before thresholds go by those seen: no worse than the rule without knowledge by more than a tenth
MOST_GAPS = 64  # that are remembered of each kind, brief and long
LEAST_RETURNS = 30  # long gaps before a quantile of returns is acted on
YIELDING = ("reactive", "wake", "predictive", "deferrable")  # rules that keep no last replica of an idle pool
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
    patience = max(ttft_seconds, settings.return_seconds)
    rows = [(t.name, t.cost_fraction, t.wake_seconds) for t in settings.tiers]
    rows.append(("off", 0.0, capacity.startup(0.9)))
    late = [
        PowerState(
            name=name, rate=rate, wake=seconds + settings.late_cost * max(0.0, seconds - patience), wake_seconds=seconds,
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


def least_cost(
    states: Sequence[PowerState], gaps: Sequence[float], brief: Sequence[float] = (), brief_share: float = 0.0
) -> tuple[float, ...]:
    """When each state is entered at the least cost over gaps: exact, by going back over the instants at which one ended.

    `brief_share` of all gaps are like those of `brief`, the others like `gaps`.  A state never worth entering within the
    longest gap is entered as without knowledge, but not before that.
    """
    return _least_cost(tuple(states), tuple(gaps), tuple(brief), brief_share)


@lru_cache(maxsize=256)  # a pool asks every tick, and its gaps change only when one ends
def _least_cost(
    states: tuple[PowerState, ...], gaps: tuple[float, ...], brief: tuple[float, ...], brief_share: float
) -> tuple[float, ...]:
    weighed = [(g, (1.0 - brief_share) / len(gaps)) for g in gaps] if brief else [(g, 1.0) for g in gaps]
    weighed = sorted(weighed + [(g, (brief_share if gaps else 1.0) / len(brief)) for g in brief])
    ended = [g for g, _ in weighed]
    until = [0.0]  # weight of the first gaps
    for _, weight in weighed:
        until.append(until[-1] + weight)
    points = [0.0, *sorted(set(ended))]
    known = envelope(states)
    # cost[s]: of what is to come from the last point on, in state s; choice[i][s]: state to be in from point i on.
    cost = [0.0] * len(states)
    choice: list[list[int]] = []
    for i in range(len(points) - 2, -1, -1):
        start, end = points[i], points[i + 1]
        past = until[bisect_right(ended, start)]
        alive, going = until[-1] - past, until[bisect_right(ended, end)] - past
        stay = [alive * s.rate * (end - start) + going * s.wake + c for s, c in zip(states, cost, strict=True)]
        best = list(range(len(states)))
        for s in range(len(states) - 2, -1, -1):
            if stay[best[s + 1]] < stay[s]:
                best[s] = best[s + 1]
        cost = [stay[b] for b in best]
        choice.append(best)
    enter, state = [math.inf] * len(states), 0
    for point, best in zip(points, reversed(choice), strict=False):
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
    if len(gaps) < LEAST_RETURNS or not open_gaps:
        return False
    first = open_gaps[int(RETURN_QUANTILE * (len(open_gaps) - 1))]
    return first - idle_seconds <= seconds


def with_gap(idle: Idle | None, observation: Observation, states: Sequence[PowerState]) -> Idle:
    """`idle` after one more Observation: a gap begins, goes on, or ends and is remembered.  Unknown changes nothing.

    A gap begins with the first window in which nothing came.  Those shorter than the slowest wake are brief and remembered
    apart: by day there are hundreds of them for each night.
    """
    here = idle or Idle()
    quiet = is_quiet(observation)
    at = observation.at_seconds
    if quiet is None or quiet == (here.since_seconds is not None):
        return here
    if quiet:
        return replace(
            here, since_seconds=at - observation.window_seconds, replicas=max(1, observation.replicas.desired)
        )
    assert here.since_seconds is not None
    length = at - here.since_seconds
    brief = length < states[-1].wake_seconds
    known = len(here.gaps) + len(here.brief)
    share = here.brief_share + (float(brief) - here.brief_share) / min(known + 1, MOST_GAPS)
    if brief:
        return replace(here, since_seconds=None, brief=(*here.brief, length)[-MOST_GAPS:], brief_share=share)
    return replace(here, since_seconds=None, gaps=(*here.gaps, length)[-MOST_GAPS:], brief_share=share)


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

    @property
    def inputs(self) -> tuple[tuple[str, float | str], ...]:
        """What a Reason says of it."""
        into = self.tiers[0].name if self.tiers else "live" if self.live else "off"
        return ("idle_seconds", self.idle_seconds), ("threshold_seconds", self.threshold_seconds), ("tier", into)


def powered_down(power: PowerPlan | None, proposals: Sequence[Reason], wanted: int) -> tuple[int, Reason | None]:
    """None are wanted once the time to be live is over, though averages still remember a replica's work that has ended.

    Nor does a forecast of no more than that keep one: that somebody may come back is what thresholds are for.
    """
    if power is None or power.live or not wanted or not all(map(_is_over, proposals)):
        return wanted, None
    return 0, Reason(rule="power_down", before=wanted, after=0, inputs=power.inputs)


def _is_over(proposal: Reason) -> bool:
    return proposal.after <= 1 and proposal.rule in YIELDING


def plan(idle: Idle | None, states: Sequence[PowerState], at_seconds: int) -> PowerPlan | None:
    """What to power down to now; None while the pool is not idle."""
    if idle is None or idle.since_seconds is None:
        return None
    age = float(at_seconds - idle.since_seconds)
    enter = envelope(states)
    if len(idle.gaps) + len(idle.brief) >= LEAST_GAPS:
        enter = least_cost(states, idle.gaps, idle.brief, idle.brief_share)
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
