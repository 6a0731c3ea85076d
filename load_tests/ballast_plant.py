"""Deferrable work in the plant: a share of a trace's requests waits at a gate, which lets it to replicas that have room.

The gate stands where a batch queue stands before real engines: once a second it lets through as many requests, oldest
first, as bring the requests on each ready replica up to a mark, interactive ones included.  The mark rises as the oldest one
waits.  Engines serve both alike, so what was let through is in the way of what comes after it; the mark keeps that small.
The pool sees both apart: interactive requests as its demand and load, the others as a RequestClass.  Latencies are of both,
as an engine's histograms are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoscaler.embed import Pool, autoscaler_for
from autoscaler.types import Demand, Observation, RequestClass
from load_tests import draws
from load_tests.campaign import Prepared
from load_tests.contestants import Moment, PoolContestant
from load_tests.fleet import Fleet, PoolModel, Requests
from load_tests.kernel_state import Floats, Ints
from load_tests.life import Life
from load_tests.run import DONE, Bools
from load_tests.scenario import PoolPolicy, policy_settings
from load_tests.simulator import Simulation

LOOK_SECONDS = 1.0
# Requests on a replica up to which the gate fills it, over those it holds on average at what it carries: for requests that just
# came, and for those that have waited for half their deadline.
MARKS = (0.7, 1.2)
_SAMPLE = 3000


class Gate:
    """The deferrable requests of a trace.  `requests`: the plant's, interactive ones first, then room for these."""

    def __init__(
        self, traffic: Requests, share: float, seed: int, marks: tuple[float, float], deadline_seconds: float
    ) -> None:
        chosen: Bools = draws.uniforms(draws.key(seed, "ballast", "class"), len(traffic)) < share
        order = np.concatenate([np.flatnonzero(~chosen), np.flatnonzero(chosen)])
        self.interactive, n = int((~chosen).sum()), len(traffic)
        self.arrival: Floats = traffic.arrival_seconds[chosen]
        self.prompts: Ints = traffic.prompt_tokens[chosen]
        self.outputs: Ints = traffic.output_tokens[chosen]
        self._prompt_sum = np.concatenate([[0], np.cumsum(self.prompts)])
        waits = np.arange(n) >= self.interactive
        self.requests = Requests(
            arrival_seconds=np.where(waits, 0.0, traffic.arrival_seconds[order]),
            prompt_tokens=traffic.prompt_tokens[order],
            output_tokens=traffic.output_tokens[order],
            follows=np.where(waits, np.arange(n) - 1, -1) if waits.any() else None,
        )
        self.marks, self.deadline_seconds, self._looked = marks, deadline_seconds, 0.0
        self.arrived = self.released = 0
        self._held: Ints = np.zeros(0, dtype=np.int64)  # let through and not ended
        self._told = (0, 0, 0)  # arrived, released and ended at the last Observation
        self._told_output = 0.0
        self.ended, self._ended_output = 0, 0.0

    def next_seconds(self) -> float:
        """When the gate looks at the replicas next."""
        return self._looked + LOOK_SECONDS

    def look(self, fleet: Fleet) -> None:
        """Let through what there is room for."""
        now = self._looked = fleet.now_seconds
        self._end(fleet, now)
        self.arrived = int(np.searchsorted(self.arrival, now, side="right"))
        if self.arrived == self.released:
            return
        gauges = fleet.gauges(0)
        held = int(gauges.outstanding.sum()) + gauges.held_requests
        low, high = self.marks
        age = min(1.0, (now - float(self.arrival[self.released])) / (0.5 * self.deadline_seconds))
        room = math.floor((low + (high - low) * age) * len(gauges.ids) - held)
        last = min(self.arrived, self.released + max(0, room))
        for k in range(self.released, last):
            fleet.release(self.interactive + k, self.interactive + k, now)
        self._held = np.concatenate([self._held, np.arange(self.released, last)])
        self.released = last

    def _end(self, fleet: Fleet, now: float) -> None:
        done = fleet.finishes(self._held + self.interactive) <= now
        self.ended += int(done.sum())
        self._ended_output += float(self.outputs[self._held[done]].sum())
        self._held = self._held[~done]

    def apart(self, seen: Observation) -> Observation:
        """`seen`, which is of all requests at the replicas, with the deferrable ones in a class of their own."""
        before, before_output = self._told, self._told_output
        self._told, self._told_output = (self.arrived, self.released, self.ended), self._ended_output
        if seen.demand is None or seen.load is None:
            return seen
        through, ended = self.released - before[1], self.ended - before[2]
        prompts, output = self._prompt_sum, self._told_output - before_output
        demand, load = seen.demand, seen.load
        inside = len(self._held)
        here = replace(
            demand,
            requests=_less(demand.requests, through),
            prompt_tokens=_less(demand.prompt_tokens, float(prompts[self.released] - prompts[before[1]])),
            output_tokens=_less(demand.output_tokens, output),
            finished_requests=_less(demand.finished_requests, ended),
        )
        one = RequestClass(
            name="batch",
            deadline_seconds=self.deadline_seconds,
            demand=Demand(
                requests=float(self.arrived - before[0]),
                prompt_tokens=float(prompts[self.arrived] - prompts[before[0]]),
                output_tokens=output,
                finished_requests=float(ended),
            ),
            waiting_requests=float(self.arrived - self.released),
            waiting_prompt_tokens=float(prompts[self.arrived] - prompts[self.released]),
        )
        return replace(
            seen, demand=here, load=replace(load, running_requests=_less(load.running_requests, inside)), classes=(one,)
        )


def _less(value: float | None, part: float) -> float | None:
    return None if value is None else max(0.0, value - part)


class _Contestant(PoolContestant):
    """A pool whose host tells it the class apart."""

    gate: Gate | None = None

    def look(self, at_seconds: float, moment: Moment) -> Observation:
        seen = super().look(at_seconds, moment)
        return seen if self.gate is None else self.gate.apart(seen)


class _Simulation(Simulation):
    """A simulation with a gate: it looks at the replicas where impatient clients would look at theirs."""

    def __init__(self, setup: Any, contestant: _Contestant, gate: Gate) -> None:
        super().__init__(setup, [contestant])
        if gate.interactive < len(gate.requests):
            self.fleet.hold()
            self.clients = gate  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What a run cost over what the work needs, and the shares of both kinds that were in time, inside the scored window."""

    cost_over_work: float
    interactive_fraction: float
    deferrable_fraction: float
    mean_need: float


def per_replica_of(pool: PoolModel, requests: Requests, rate: float, replicas: int = 8) -> float:
    """Requests that a replica holds on average at `rate` requests/s each, by a run of Poisson arrivals in the plant."""
    count = min(_SAMPLE, len(requests))
    chosen = (draws.uniforms(draws.key(3, "ballast", "lengths"), count) * len(requests)).astype(np.int64)
    gaps = draws.exponentials(draws.key(3, "ballast", "gaps"), count) / (rate * replicas)
    arrivals = np.cumsum(gaps)
    fleet = Fleet(
        [pool],
        Requests(
            arrival_seconds=arrivals, prompt_tokens=requests.prompt_tokens[chosen],
            output_tokens=requests.output_tokens[chosen],
        ),
    )  # fmt: skip
    for _ in range(replicas):
        fleet.add(0)
    fleet.advance(math.inf)
    settled = slice(count // 5, None)
    return rate * float((fleet.outcome().finish_seconds - arrivals)[settled].mean())


def play(
    prepared: Prepared,
    config: dict[str, Any],
    share: float,
    deadline_seconds: float,
    marks: tuple[float, float] = MARKS,
) -> Played:
    """One run of a prepared scenario under a pool of this library, `share` of whose requests may wait."""
    scenario, setup = prepared.scenario, prepared.setup
    pool, requests = setup.pools[0], prepared.traffic.requests
    held = per_replica_of(pool, requests, prepared.need.requests_per_second)
    gate = Gate(requests, share, setup.seed, (marks[0] * held, marks[1] * held), deadline_seconds)
    settings = policy_settings(scenario, PoolPolicy(name="auto", config=config), pool.name)
    contestant = _Contestant(
        "auto", Pool(autoscaler_for(settings)), scenario.slo, pool.replica.kv_capacity_tokens,
        history=[_part(seen, 1.0 - share) for seen in prepared.history()],
    )  # fmt: skip
    if share > 0.0:
        contestant.gate = gate
    simulation = _Simulation(replace(setup, requests=gate.requests, interval_seconds=86_400), contestant, gate)
    simulation.run()
    return _judged(prepared, simulation, gate, deadline_seconds)


def _part(seen: Observation, share: float) -> Observation:
    """A past in which so much of the demand was interactive."""
    if seen.demand is None or share == 1.0:
        return seen
    demand = seen.demand

    def part(value: float | None) -> float | None:
        return None if value is None else share * value

    scaled = Demand(
        requests=part(demand.requests),
        prompt_tokens=part(demand.prompt_tokens),
        output_tokens=part(demand.output_tokens),
        finished_requests=part(demand.finished_requests),
    )
    return replace(seen, demand=scaled)


def _judged(prepared: Prepared, simulation: _Simulation, gate: Gate, deadline_seconds: float) -> Played:
    setup, slo = prepared.setup, prepared.scenario.slo
    start, end = setup.score_from_seconds, setup.end_seconds
    out, n = simulation.fleet.outcome(), gate.interactive
    done = out.status == DONE
    arrival = gate.requests.arrival_seconds[:n]
    late = out.first_token_seconds[:n] - arrival > slo.ttft_seconds + 1e-9
    pace = out.finish_seconds[:n] - out.first_token_seconds[:n]
    slow = pace > slo.itl_seconds * np.maximum(1, out.output_tokens[:n] - 1) + 1e-9
    inside = (arrival >= start) & (arrival < end)
    waited = out.finish_seconds[n:] - gate.arrival
    due = (gate.arrival >= start) & (gate.arrival < end - deadline_seconds)
    kept = done[n:] & (waited <= deadline_seconds)
    edges = np.arange(start, end, 60.0)
    need = float(np.nansum(prepared.need.between(edges, edges + 60.0)) * 60.0)
    lives: Sequence[Life] = simulation.lives
    paid = math.fsum(life.paid(start, end).paid for life in lives)
    return Played(
        cost_over_work=paid / need,
        interactive_fraction=1.0 - float((late | slow | ~done[:n])[inside].mean()),
        deferrable_fraction=float(kept[due].mean()) if due.any() else 1.0,
        mean_need=need / (end - start),
    )
