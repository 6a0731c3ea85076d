"""The clairvoyant: its programme against brute force, its bounds, and its schedule in the plant."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import setup, theirs

from load_tests.need import Need
from load_tests.oracle import (
    Bins,
    attainment_of,
    better_of,
    bins_of,
    cheapest,
    find_oracle,
    replay,
    sweep,
)
from load_tests.oracle_bound import bound_gpu_hours, least_seconds
from load_tests.oracle_dp import best_path, path_cost, path_violated
from load_tests.oracle_lp import lower_bound, trivial_bound
from load_tests.oracle_schedule import Schedule, births_of, order_seconds
from load_tests.peers import Hpa, HpaSettings, Static, StaticSettings
from load_tests.rate_clairvoyant import RateClairvoyant
from load_tests.simulator import Simulation, simulate

# Bins of need and arrivals, and prices of a start and a removal.
worlds = st.tuples(
    st.lists(st.tuples(st.floats(0.0, 4.0), st.integers(0, 20)), min_size=1, max_size=25),
    st.floats(0.0, 60.0),
    st.floats(0.0, 20.0),
)


def bins(rows: list[tuple[float, int]], start: float, drain: float, top: int = 6) -> Bins:
    need = np.array([n for n, _ in rows])
    arrivals = np.array([float(c) for _, c in rows])
    # No request without work and no work without a request.
    need, arrivals = np.where(arrivals > 0, need, 0.0), np.where(need > 0, arrivals, 0.0)
    return Bins(
        need=need, arrivals=arrivals, carried=np.arange(top + 1.0), low=0, start_seconds=start, drain_seconds=drain
    )


def lagrangian(world: Bins, counts: np.ndarray, penalty: float) -> float:
    prices = {"start_seconds": world.start_seconds, "drain_seconds": world.drain_seconds}
    violated = path_violated(counts, world.need, world.arrivals, world.carried)
    return path_cost(counts, **prices) + penalty * violated


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 20)), min_size=1, max_size=5),
    start=st.floats(0.0, 60.0),
    drain=st.floats(0.0, 20.0),
    penalty=st.floats(0.1, 30.0),
)
def test_the_programme_equals_brute_force(rows, start, drain, penalty):
    world = bins(rows, start, drain, top=3)
    found = world.path(penalty).counts
    every = itertools.product(range(4), repeat=len(rows))
    least = min(lagrangian(world, np.array(counts), penalty) for counts in every)
    assert lagrangian(world, found, penalty) == pytest.approx(least, rel=1e-9, abs=1e-9)


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 20)), min_size=1, max_size=5),
    start=st.floats(0.0, 60.0),
)
def test_an_infinite_penalty_is_the_cheapest_path_that_violates_least(rows, start):
    world = bins(rows, start, 5.0, top=3)
    found = world.path(math.inf)
    every = [world.judged(np.array(c)) for c in itertools.product(range(4), repeat=len(rows))]
    most = max(p.attainment_fraction for p in every)
    least = min(p.cost_seconds for p in every if p.attainment_fraction >= most - 1e-12)
    assert found.attainment_fraction == pytest.approx(most)
    assert found.cost_seconds == pytest.approx(least)


@settings(max_examples=60)
@given(world=worlds, penalty=st.floats(0.01, 1e3), counts=st.lists(st.integers(0, 6), min_size=25, max_size=25))
def test_no_path_beats_the_programme_at_its_own_penalty(world, penalty, counts):
    made = bins(*world)
    other = np.array(counts[: len(made.need)])
    assert lagrangian(made, made.path(penalty).counts, penalty) <= lagrangian(made, other, penalty) + 1e-6


@settings(max_examples=40)
@given(
    world=worlds,
    attainment=st.sampled_from([0.8, 0.95, 0.99, 1.0]),
    slack=st.sampled_from([0.0, 2.0, 10.0, 25.0]),
    headroom=st.floats(1.0, 2.0),
)
def test_bounds_lie_below_the_programme_and_that_below_simple_policies(world, attainment, slack, headroom):
    made = bins(*world)
    oracle = cheapest(made, attainment)
    assert oracle.attainment_fraction >= attainment - 1e-9
    work = made.need * made.seconds
    trivial = trivial_bound(work, made.arrivals, attainment)
    bound = lower_bound(work, made.arrivals, attainment, start_seconds=made.start_seconds, slack_seconds=slack)
    margin = 1e-6 * (1.0 + oracle.cost_seconds)
    assert trivial <= bound + margin
    assert bound <= oracle.cost_seconds + margin
    static = np.full(len(made.need), math.ceil(made.need.max(initial=0.0)))
    follower = np.minimum(6, np.ceil(headroom * made.need)).astype(np.int64)
    for counts in (static, follower):
        path = made.judged(counts)
        if path.attainment_fraction >= attainment:
            assert bound <= path.cost_seconds + margin
        if path.attainment_fraction >= sweep(made)[-1].attainment_fraction - 1e-12:
            assert sweep(made)[-1].cost_seconds <= path.cost_seconds + margin


def test_more_slack_and_less_attainment_never_cost_more():
    rng = np.arange(200)
    work = 10.0 * (2 + np.sin(rng / 10) + (rng % 7 == 0))
    arrivals = np.round(work)
    tight = [lower_bound(work, arrivals, a, start_seconds=30.0) for a in (0.9, 0.99, 1.0)]
    assert tight[0] < tight[1] < tight[2]
    slack = [lower_bound(work, arrivals, 0.99, start_seconds=30.0, slack_seconds=s) for s in (0.0, 2.0, 20.0)]
    assert slack[0] > slack[1] > slack[2] >= trivial_bound(work, arrivals, 0.99)


def test_a_bound_that_nobody_can_keep_is_said():
    with pytest.raises(ValueError, match="no lower bound"):
        lower_bound(np.full(5, 100.0), np.ones(5), 1.0, start_seconds=1.0, high=2.0)


def test_trivial_bound_gives_up_the_dearest_requests_first():
    # 10 requests of 1 s each and 10 of 5 s; a tenth, two requests, may be given up: 60 - 2 * 5.
    assert trivial_bound(np.array([10.0, 50.0]), np.array([10.0, 10.0]), 0.9) == pytest.approx(50.0)


def test_counts_outside_what_the_programme_holds_are_refused():
    with pytest.raises(ValueError, match="carried"):
        best_path(np.ones(3), np.ones(3), np.zeros(0), start_seconds=1.0, penalty=1.0)


@pytest.mark.parametrize("store", [None, 6.0])
def test_starts_are_ordered_so_that_none_is_late(store):
    world = setup()
    world = replace(world, startup=replace(world.startup, store_gb_per_second=store))
    wanted = np.repeat([300.0, 310.0, 600.0], [3, 1, 2])
    orders, ready = order_seconds(wanted, lambda: births_of(world))
    assert (ready <= wanted + 1e-6).all()
    assert (np.diff(orders) >= 0).all()
    assert (wanted - orders).max() < 8 * world.startup.median_seconds
    births = births_of(world)
    for instant in orders:
        births.order(instant)
    assert [at for at, _ in births.ready(math.inf)] == pytest.approx(sorted(ready))


def test_a_schedule_gives_the_path_in_the_plant():
    world = setup()
    counts = np.repeat([1, 3, 2, 5, 5, 1, 4, 4], 15)
    schedule = Schedule(counts, 10.0, world)
    simulation = Simulation(replace(world, initial=(1,)), [schedule])
    simulation.run()
    run = simulation.outcome("clairvoyant", None, 0.0)
    ready = run.timeline.ready
    # Never less than the path asks for; at most a start's scatter more.
    assert (ready >= counts).all()
    assert (ready - counts).sum() * 10.0 < 12 * 2 * world.startup.median_seconds
    assert (ready[-5:] == 4).all()


def test_a_removal_never_gives_up_a_start_that_was_ordered():
    world = setup()
    counts = np.repeat([3, 2, 4, 3, 5], [30, 2, 30, 1, 57])
    schedule = Schedule(counts, 10.0, world)
    simulation = Simulation(replace(world, initial=(schedule.initial,)), [schedule])
    simulation.run()
    run = simulation.outcome("clairvoyant", None, 0.0)
    assert all(span.ready < math.inf for span in simulation.lives[0].spans)
    assert (run.timeline.ready >= counts).all()


def test_the_oracle_attains_in_the_plant_and_is_below_every_peer():
    world = setup()
    need = Need(world.pools[0], world.requests, world.slo)
    oracle = find_oracle(world, need, 0.99, given_up=(0.5,), smooth_seconds=(30.0,))
    assert oracle is not None
    assert oracle.attainment_fraction >= 0.99
    peers = [simulate(world, [theirs(Hpa(HpaSettings(target=t)))]) for t in (10.0, 20.0, 60.0, 120.0)]
    peers += [simulate(replace(world, initial=(n,)), [theirs(Static(StaticSettings(replicas=n)))]) for n in (1, 2, 3)]
    attained = [run for run in peers if attainment_of(run) >= 0.99]
    assert len(attained) >= 2
    assert len(attained) < len(peers)
    assert better_of(oracle, 0.99, peers).policy == "clairvoyant"
    requests = world.requests
    made = bins_of(world, need)
    each = least_seconds(world.pools[0], requests.prompt_tokens, requests.output_tokens, world.slo)
    index = (requests.arrival_seconds // made.seconds).astype(int)
    work = np.bincount(index, weights=each, minlength=len(made.need))
    bound = lower_bound(work, made.arrivals, 0.99, start_seconds=made.start_seconds, slack_seconds=60.0)
    assert bound / 3600 <= oracle.gpu_hours
    scored = [(world.score_from_seconds, world.end_seconds)]
    told = bound_gpu_hours(world, scored, 0.99, low=1, high=100)
    assert told is not None
    work = float(each.sum()) * world.gpus_per_replica / 3600
    assert 0.2 * work < told <= oracle.gpu_hours
    assert bound_gpu_hours(world, scored, 0.99, low=3, high=100) > told
    assert bound_gpu_hours(world, scored, 0.9, low=0, high=100) <= bound_gpu_hours(world, scored, 0.99, low=0, high=100)


def test_a_bound_does_not_price_what_nobody_pays_for():
    work, arrivals = np.full(30, 20.0), np.ones(30)
    paid = np.ones(30)
    paid[10:20] = 0.0
    whole = lower_bound(work, arrivals, 1.0, start_seconds=30.0)
    part = lower_bound(work, arrivals, 1.0, start_seconds=30.0, paid=paid)
    assert whole == pytest.approx(30 * 20.0, rel=1e-5)
    assert part == pytest.approx(20 * 20.0, rel=1e-5)


def test_a_policy_that_is_cheaper_becomes_the_oracle():
    world = setup()
    need = Need(world.pools[0], world.requests, world.slo)
    oracle = find_oracle(world, need, 0.99, given_up=(0.5,), smooth_seconds=(30.0,))
    wasteful = replay(world, np.full(120, 4), 10.0)
    assert better_of(oracle, 0.99, [wasteful]) is oracle
    thrifty = replace(oracle.run, policy="thrifty", replica_seconds=oracle.run.replica_seconds._replace(ready=1.0))
    assert better_of(oracle, 0.99, [thrifty]).policy == "thrifty"
    assert better_of(None, 0.99, [wasteful]).policy == "clairvoyant"
    assert better_of(None, 1.01, [wasteful]) is None


def test_no_oracle_where_nothing_attains():
    world = setup()
    need = Need(world.pools[0], world.requests, world.slo)
    assert find_oracle(world, need, 0.999, given_up=(0.0,), smooth_seconds=(10.0,), high=1) is None


def test_the_rate_clairvoyant_orders_before_the_ramp():
    world = setup(initial=(2,))
    need = Need(world.pools[0], world.requests, world.slo)
    contestant = RateClairvoyant(world, need, utilisation=0.6, deviations=2.0)
    run = simulate(world, [contestant])
    assert attainment_of(run) > 0.99
    greedy = simulate(world, [RateClairvoyant(world, need, utilisation=1.2, deviations=0.0)])
    assert attainment_of(greedy) < attainment_of(run)
    assert greedy.replica_seconds.paid < run.replica_seconds.paid
