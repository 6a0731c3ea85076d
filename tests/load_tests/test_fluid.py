"""The fluid twin: it keeps the books, shows what a scraper sees, and agrees with the plant."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from small_world import ours, requests, setup, theirs

from autoscaler.errors import ConfigError
from load_tests import draws
from load_tests.fleet import Fleet, PoolModel, Requests
from load_tests.fluid import FluidFleet, FluidSimulation, fluid_run
from load_tests.peers import Hpa, HpaSettings, Kpa, KpaSettings, Static, StaticSettings
from load_tests.run import metrics
from load_tests.simulator import simulate


def static(replicas: int):
    return theirs(Static(StaticSettings(replicas=replicas)))


def hpa(target: float):
    return theirs(Hpa(HpaSettings(target=target)))


def poisson(rate: float, seconds: float, *, prompt: float, output: float, sigma: float) -> Requests:
    n = int(rate * seconds * 1.3) + 10
    at = np.cumsum(draws.exponentials(draws.key(5, "gaps"), n)) / rate
    n = int(np.searchsorted(at, seconds))

    def lengths(mean: float, name: str) -> np.ndarray:
        drawn = np.exp(np.log(mean) - sigma**2 / 2 + sigma * draws.normals(draws.key(5, name), n))
        return np.maximum(1, drawn).astype(np.int64)

    return Requests(
        arrival_seconds=at[:n], prompt_tokens=lengths(prompt, "prompts"), output_tokens=lengths(output, "outputs")
    )


@pytest.mark.parametrize(
    ("make", "initial"),
    [
        (lambda: static(1), 1),
        (lambda: static(2), 2),
        (lambda: hpa(20.0), 1),
        (lambda: hpa(50.0), 1),
        (ours, 1),
    ],
    ids=["static 1", "static 2", "hpa 20", "hpa 50", "ours"],
)
def test_cost_and_attainment_are_those_of_the_plant(make, initial):
    world = setup(initial=(initial,))
    plant, twin = metrics(simulate(world, [make()])), fluid_run(world, [make()])
    assert twin.gpu_hours == pytest.approx(plant.gpu_hours, rel=0.05)
    assert twin.attainment_fraction == pytest.approx(plant.attainment_fraction, abs=0.01)
    assert abs(twin.starts - plant.starts) <= max(1, 0.1 * plant.starts)


def test_an_oscillating_policy_does_in_the_twin_what_it_does_in_the_plant():
    world = setup(end_seconds=560.0)
    kpa = [theirs(Kpa(KpaSettings())) for _ in range(2)]
    plant, twin = metrics(simulate(world, [kpa[0]])), fluid_run(world, [kpa[1]])
    assert plant.starts > 20
    assert twin.starts == pytest.approx(plant.starts, rel=0.15)
    assert twin.gpu_hours == pytest.approx(plant.gpu_hours, rel=0.15)
    assert twin.attainment_fraction == pytest.approx(plant.attainment_fraction, abs=0.04)


@pytest.mark.parametrize("per_replica", [5.0, 15.0])
@pytest.mark.parametrize("replicas", [2, 8])
def test_mean_latencies_are_those_of_the_plant(replicas, per_replica):
    traffic = poisson(per_replica * replicas, 200.0, prompt=800.0, output=120.0, sigma=0.6)
    world = setup(requests=traffic, end_seconds=200.0, initial=(replicas,))
    fleet, twin = Fleet(world.pools, traffic), FluidFleet(world)
    for _ in range(replicas):
        fleet.add(0)
        twin.add(0)
    fleet.advance(260.0)
    twin.advance(260.0)
    plant, flow = fleet.counters(0), twin.counters(0)
    assert flow.finished == plant.finished == len(traffic)
    for name, tolerance in (("ttft", 0.2), ("tpot", 0.05), ("e2e", 0.05)):
        expected, found = getattr(plant, name), getattr(flow, name)
        assert found.sum / found.counts.sum() == pytest.approx(expected.sum / expected.counts.sum(), rel=tolerance), (
            name
        )
    assert flow.prefilled_prompt_tokens == plant.prefilled_prompt_tokens
    assert flow.output_tokens == pytest.approx(plant.output_tokens, rel=0.1)
    assert flow.prompt_lengths.counts.sum() == pytest.approx(len(traffic), abs=20)
    assert flow.output_lengths.counts.sum() == pytest.approx(len(traffic), abs=20)
    assert flow.step_tokens.sum == pytest.approx(plant.step_tokens.sum, rel=0.1)


def test_every_request_ends_is_open_or_is_lost():
    world = setup(initial=(1,))
    fleet = FluidFleet(world)
    ids = [fleet.add(0) for _ in range(3)]
    for second in range(1, 1201):
        fleet.advance(float(second))
        if second == 400:
            fleet.kill(ids[0])
        if second == 500:
            fleet.drain(ids[1])
        if second in (700, 705):
            fleet.add(0)
    counts = fleet.counters(0)
    running, waiting = fleet.totals()
    assert counts.arrivals == len(world.requests)
    assert counts.failed > 0
    open_requests = running + waiting
    assert counts.finished + counts.failed + open_requests == pytest.approx(counts.arrivals, rel=0.005)
    fleet.advance(2000.0)
    counts = fleet.counters(0)
    assert counts.finished + counts.failed == pytest.approx(counts.arrivals, abs=2)
    arrived, violated = fleet.per_second()
    assert arrived.sum() == counts.arrivals
    assert (violated <= arrived + 1e-6).all()
    assert (violated >= 0).all()
    assert violated.sum() >= counts.failed


def test_requests_are_held_until_a_replica_is_ready():
    world = setup(initial=(0,))
    fleet = FluidFleet(world)
    fleet.advance(60.0)
    held = int((world.requests.arrival_seconds < 60.0).sum())
    assert fleet.gauges(0).held_requests == held
    assert fleet.gauges(0).held_prompt_tokens == int(world.requests.prompt_tokens[:held].sum())
    assert fleet.counters(0).finished == 0
    fleet.add(0)
    fleet.advance(120.0)
    assert fleet.gauges(0).held_requests == 0
    assert fleet.counters(0).finished > held / 2
    late = fleet.counters(0).ttft
    assert late.sum > 20.0 * held / 2


def test_newcomers_do_not_take_over_a_backlog():
    traffic = poisson(120.0, 120.0, prompt=400.0, output=100.0, sigma=0.5)
    world = setup(requests=traffic, end_seconds=120.0, initial=(1,))
    fleet, twin = Fleet(world.pools, traffic), FluidFleet(world)
    waiting = []
    for second in range(1, 121):
        if second == 1:
            fleet.add(0)
            twin.add(0)
        if second == 60:
            for _ in range(3):
                fleet.add(0)
                twin.add(0)
        fleet.advance(float(second))
        twin.advance(float(second))
        gauges = fleet.gauges(0)
        waiting.append((float(gauges.waiting.sum()), twin.totals()[1]))
    plant, flow = np.array(waiting).T
    assert plant[58] > 1000
    assert flow[58] == pytest.approx(plant[58], rel=0.15)
    # Ten seconds on, most of it still waits for the replica that had it.
    assert plant[69] > 0.6 * plant[58]
    assert flow[69] == pytest.approx(plant[69], rel=0.25)


def test_a_killed_replica_loses_its_share():
    world = setup(initial=(4,))
    fleet = FluidFleet(world)
    ids = [fleet.add(0) for _ in range(4)]
    fleet.advance(600.0)
    running, _ = fleet.totals()
    fleet.kill(ids[2])
    assert fleet.gone_at(ids[2]) == 600.0
    assert fleet.counters(0).failed == pytest.approx(running / 4, rel=0.2)
    assert len(fleet.gauges(0).ids) == 3
    fleet.kill(ids[2])
    assert len(fleet.gauges(0).ids) == 3


def test_a_drained_replica_goes_once_its_requests_have_ended():
    world = setup(initial=(2,))
    fleet = FluidFleet(world)
    ids = [fleet.add(0) for _ in range(2)]
    fleet.advance(600.0)
    fleet.drain(ids[0])
    assert fleet.gone_at(ids[0]) is None
    assert fleet.gauges(0).draining_ids.tolist() == [ids[0]]
    fleet.advance(700.0)
    gone = fleet.gone_at(ids[0])
    assert gone is not None
    assert 601.0 <= gone <= 700.0
    assert fleet.gauges(0).draining_ids.tolist() == []


def test_slower_replicas_take_longer():
    world = setup(initial=(3,))
    slow = FluidFleet(world)
    normal = FluidFleet(world)
    for fleet, factor in ((slow, 0.5), (normal, 1.0)):
        for _ in range(3):
            fleet.add(0, factor)
        fleet.advance(600.0)
    means = [f.counters(0).tpot.sum / f.counters(0).finished for f in (slow, normal)]
    assert means[0] > 1.9 * means[1]


def test_the_same_run_gives_the_same_digits_and_histograms_may_be_left_out():
    world = setup()
    first, again = fluid_run(world, [hpa(60.0)]), fluid_run(world, [hpa(60.0)])
    unseen = fluid_run(world, [hpa(60.0)], observed=False)
    for other in (again, unseen):
        assert other.attainment_fraction == first.attainment_fraction
        assert other.gpu_hours == first.gpu_hours
        assert np.array_equal(other.days.violated, first.days.violated)


def test_days_add_up():
    world = setup(score_from_seconds=300.0)
    result = fluid_run(world, [hpa(60.0)])
    inside = world.requests.arrival_seconds >= 300.0
    assert result.days.requests.sum() == inside.sum()
    assert result.days.replica_seconds.sum() / 3600 == pytest.approx(result.gpu_hours)
    assert 1 - result.days.violated.sum() / inside.sum() == pytest.approx(result.attainment_fraction)


def test_counters_never_fall():
    world = setup(requests=requests(300.0, 60.0), end_seconds=300.0)
    simulation = FluidSimulation(world, [static(1)])
    simulation.flow.add(0)
    before = simulation.flow.counters(0)
    for second in range(1, 300, 7):
        simulation.flow.advance(float(second))
        now = simulation.flow.counters(0)
        for name in (
            "arrivals",
            "finished",
            "output_tokens",
            "engine_steps",
            "busy_seconds",
            "prefilled_prompt_tokens",
        ):
            assert getattr(now, name) >= getattr(before, name)
        for name in ("ttft", "itl", "tpot", "e2e", "step_tokens", "prompt_lengths", "output_lengths"):
            assert (getattr(now, name).counts >= getattr(before, name).counts).all()
        before = now


def test_worlds_that_only_the_plant_knows_are_refused():
    world = setup()
    pool = world.pools[0]
    two = replace(world, pools=(pool, PoolModel(name="other", replica=pool.replica)), initial=(1, 1))
    with pytest.raises(ConfigError, match="prefill_decode: must be None"):
        FluidFleet(two)
    few = Requests(
        arrival_seconds=np.zeros(2),
        prompt_tokens=np.full(2, 32),
        output_tokens=np.full(2, 3),
        block_hash_offsets=np.array([0, 1, 2]),
        block_hashes=np.array([1, 1]),
        prefix_block_tokens=16,
    )
    with pytest.raises(ConfigError, match="traffic"):
        FluidFleet(replace(world, requests=few))
    with pytest.raises(ValueError, match="until_seconds"):
        FluidFleet(world).advance(math.nan)


def test_a_scraper_counts_as_many_late_as_the_twin_does():
    """At the SLO's limits, where they are bounds of buckets: late first tokens and slow answers, against violations."""
    traffic = poisson(61.0, 400.0, prompt=800.0, output=120.0, sigma=0.6)
    world = setup(requests=traffic, initial=(2,), end_seconds=400.0)
    twin = FluidSimulation(world, [static(2)])
    twin.run()
    counters = twin.fleet.counters(0)
    seen = 0.0
    for told, limit in ((counters.ttft, world.slo.ttft_seconds), (counters.tpot, world.slo.itl_seconds)):
        assert limit in told.bounds
        seen += float(told.counts[int(np.searchsorted(told.bounds, limit)) + 1 :].sum())
    _, violated = twin.flow.per_second()
    ended = float(violated.sum())
    assert ended > 20.0
    assert 0.8 * ended < seen < 1.3 * ended
