"""Deferrable requests in the plant: what the gate lets through, what the pool is told of it, and what it saves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoscaler.types import Demand, Load, Observation, Replicas
from load_tests.ballast_plant import Gate, per_replica_of, play
from load_tests.bench_ballast import _prepared
from load_tests.fleet import Fleet, PoolModel, ReplicaModel, Requests

MODEL = ReplicaModel(a=0.01, b=1e-5, c=1e-4, d=0.0, e=0.0, kv_capacity_tokens=10**6)
POOL = PoolModel(name="pool", replica=MODEL)


def traffic(count: int = 200, gap: float = 0.1) -> Requests:
    return Requests(
        arrival_seconds=gap * np.arange(1, count + 1),
        prompt_tokens=np.full(count, 100),
        output_tokens=np.full(count, 500),
    )


def opened(share: float, marks: tuple[float, float]) -> tuple[Gate, Fleet]:
    gate = Gate(traffic(), share, 0, marks, 600.0)
    fleet = Fleet([POOL], gate.requests)
    fleet.add(0)
    if share > 0.0:
        fleet.hold()
    return gate, fleet


def test_the_gate_fills_each_replica_to_its_mark_and_no_further() -> None:
    gate, fleet = opened(0.5, (8.0, 8.0))
    assert gate.interactive + len(gate.arrival) == 200
    assert 60 < gate.interactive < 140
    fleet.advance(1.0)  # an answer takes 500 steps of ten milliseconds: nothing ends before
    gate.look(fleet)
    fleet.advance(2.0)
    inside = int(np.sum(gate.requests.arrival_seconds[: gate.interactive] <= 1.0))
    assert gate.released == min(8 - inside, int(np.sum(gate.arrival <= 1.0)))
    for at in range(2, 5):
        fleet.advance(float(at))
        gate.look(fleet)
    assert gate.released < gate.arrived  # interactive ones alone are more than the mark by now
    assert np.isinf(fleet.finishes(np.arange(gate.interactive + gate.released, 200))).all()


def test_all_ends_that_was_let_through() -> None:
    gate, fleet = opened(0.5, (1000.0, 1000.0))
    for at in range(1, 60):
        fleet.advance(float(at))
        gate.look(fleet)
    assert (gate.arrived, gate.released, gate.ended) == (len(gate.arrival),) * 3
    assert (fleet.finishes(np.arange(200)) < 60.0).all()


def test_the_pool_is_told_both_apart() -> None:
    gate, fleet = opened(0.5, (1000.0, 1000.0))
    fleet.advance(10.0)
    gate.look(fleet)
    through = gate.released
    seen = Observation(
        pool="p", at_seconds=10, window_seconds=10, replicas=Replicas(desired=1, ready=1),
        demand=Demand(requests=100.0, prompt_tokens=1e4, output_tokens=0.0, finished_requests=0.0),
        load=Load(running_requests=100.0, waiting_requests=0.0),
    )  # fmt: skip
    told = gate.apart(seen)
    assert told.demand is not None
    assert told.load is not None
    assert told.demand.requests == 100.0 - through
    assert told.demand.prompt_tokens == 100.0 * (100 - through)
    assert told.load.running_requests == 100.0 - through
    (one,) = told.classes
    assert one.demand is not None
    assert (one.demand.requests, one.waiting_requests, one.deadline_seconds) == (float(through), 0.0, 600.0)
    again = gate.apart(replace(seen, at_seconds=20))
    assert again.classes[0].demand == Demand(requests=0.0, prompt_tokens=0.0, output_tokens=0.0, finished_requests=0.0)
    assert gate.apart(replace(seen, demand=None)).classes == ()


def test_a_replica_holds_what_littles_law_says() -> None:
    # An answer of 500 steps of a little over ten milliseconds takes some five seconds.
    assert per_replica_of(POOL, traffic(), 0.2, replicas=2) == pytest.approx(0.2 * 5.2, rel=0.05)


@pytest.mark.slow
def test_an_hour_of_a_service_is_cheaper_when_a_fifth_may_wait() -> None:
    prepared, config = _prepared("llm_azure2023_conv", "start 10 s")
    plain, mixed = (play(prepared, config, share, 600.0) for share in (0.0, 0.2))
    assert mixed.cost_over_work < 0.95 * plain.cost_over_work
    assert mixed.deferrable_fraction >= 0.99
    assert mixed.interactive_fraction >= 0.97
