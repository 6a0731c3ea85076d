"""Skipping events changes nothing, cutting a run into calls changes nothing, and nothing is lost."""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from load_tests.draws import key, uniforms
from load_tests.fleet import Counters, Fleet, PoolModel, ReplicaModel, Requests, Routing

ROUTINGS: tuple[Routing, ...] = ("round_robin", "least_loaded", "two_choices")


def some_requests(seed: int, count: int, rate: float, prompt: int, output: int, cached: bool = False) -> Requests:
    """Poisson arrivals, exponential lengths of the given means."""
    gaps = -np.log(uniforms(key(seed, "gap"), count)) / rate
    prompts = 1 + np.floor(-np.log(uniforms(key(seed, "prompt"), count)) * prompt).astype(np.int64)
    outputs = 1 + np.floor(-np.log(uniforms(key(seed, "output"), count)) * output).astype(np.int64)
    shares = uniforms(key(seed, "cached"), count)
    return Requests(
        arrival_seconds=np.cumsum(gaps),
        prompt_tokens=prompts,
        output_tokens=outputs,
        cached_prompt_tokens=np.floor(shares * prompts).astype(np.int64) if cached else None,
    )


def a_model(**changes: float) -> ReplicaModel:
    """An 8B model on a large GPU, step law from measured kernels."""
    values: dict[str, object] = {
        "a": 0.003396,
        "b": 1.874e-05,
        "floor_tokens": 176,
        "c": 4.018e-06,
        "d": 4.229e-08,
        "e": 8.831e-10,
        "kv_capacity_tokens": 440_180,
    }
    return ReplicaModel(**{**values, **changes})  # type: ignore[arg-type]


def total_preemptions(fleet: Fleet) -> int:
    return int(fleet.outcome().preemptions.sum())


def assert_same_outcome(one: Fleet, other: Fleet, seconds: float) -> None:
    """Same times to `seconds`, same everything else."""
    a, b = one.outcome(), other.outcome()
    for name in ("first_token_seconds", "finish_seconds"):
        left, right = getattr(a, name), getattr(b, name)
        assert np.array_equal(np.isfinite(left), np.isfinite(right))
        both = np.isfinite(left)
        assert np.abs(left[both] - right[both]).max(initial=0.0) <= seconds
    for name in ("status", "replica", "preemptions"):
        assert np.array_equal(getattr(a, name), getattr(b, name))


def assert_same_counters(a: Counters, b: Counters, exactly: bool) -> None:
    """Counts equal; sums of seconds equal, or to 1e-9 relative where steps were added up in another order."""
    for field in fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if hasattr(left, "counts"):
            assert np.array_equal(left.counts, right.counts), field.name
            left, right = left.sum, right.sum
        if isinstance(left, float) and not exactly:
            assert left == pytest.approx(right, rel=1e-9, abs=1e-9), field.name
        else:
            assert np.array_equal(left, right), field.name


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    rate=st.floats(2.0, 60.0),
    prompt=st.integers(1, 2500),
    output=st.integers(1, 250),
    capacity=st.integers(3000, 60_000),
    block=st.sampled_from([1, 7, 16]),
    seats=st.integers(1, 80),
    budget=st.integers(8, 4096),
    replicas=st.integers(1, 4),
    routing=st.sampled_from(ROUTINGS),
    cached=st.booleans(),
    noise=st.sampled_from([0.0, 0.1]),
    ingress=st.sampled_from([0.0, 0.0156]),
)
def test_skipping_gives_the_results_of_every_step(
    seed: int,
    rate: float,
    prompt: int,
    output: int,
    capacity: int,
    block: int,
    seats: int,
    budget: int,
    replicas: int,
    routing: Routing,
    cached: bool,
    noise: float,
    ingress: float,
) -> None:
    load = some_requests(seed, 150, rate, prompt, output, cached)
    model = a_model(
        kv_capacity_tokens=capacity,
        kv_block_tokens=block,
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        request_overhead_seconds=ingress,
    )
    pool = PoolModel(name="pool", replica=model, routing=routing)
    skip, step = (
        Fleet([pool], load, seed=seed, every_step=every_step, noise_sigma=noise) for every_step in (False, True)
    )
    middle = float(load.arrival_seconds[75])
    for fleet in (skip, step):
        ids = [fleet.add(0, capacity_factor=1.0 - 0.1 * i) for i in range(replicas)]
        fleet.advance(middle)
        fleet.set_capacity_factor(ids[0], 0.63)
        fleet.add(0)
        fleet.drain(ids[-1])
    assert_same_counters(skip.counters(0), step.counters(0), exactly=False)
    for name in ("ids", "running", "waiting", "kv_tokens", "waiting_prompt_tokens", "outstanding"):
        assert np.array_equal(getattr(skip.gauges(0), name), getattr(step.gauges(0), name)), name
    for fleet in (skip, step):
        fleet.advance(math.inf)
    assert_same_outcome(skip, step, 1e-9)
    assert_same_counters(skip.counters(0), step.counters(0), exactly=False)


@pytest.mark.parametrize("block", [1, 16])
def test_skipping_gives_the_results_of_every_step_through_thousands_of_preemptions(block: int) -> None:
    load = some_requests(5, 6000, 400.0, 300, 250)
    model = a_model(kv_capacity_tokens=12_000, kv_block_tokens=block)
    made = []
    for every_step in (False, True):
        fleet = Fleet([PoolModel(name="pool", replica=model, routing="least_loaded")], load, every_step=every_step)
        for _ in range(4):
            fleet.add(0)
        fleet.advance(math.inf)
        made.append(fleet)
    assert total_preemptions(made[0]) > 3000
    assert_same_outcome(made[0], made[1], 1e-9)
    assert_same_counters(made[0].counters(0), made[1].counters(0), exactly=False)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    cuts=st.lists(st.floats(0.0, 30.0), max_size=60),
    capacity=st.integers(3000, 40_000),
    routing=st.sampled_from(ROUTINGS),
    noise=st.sampled_from([0.0, 0.2]),
)
def test_a_run_does_not_depend_on_how_it_is_cut_into_calls(
    seed: int, cuts: list[float], capacity: int, routing: Routing, noise: float
) -> None:
    load = some_requests(seed, 300, 20.0, 700, 100)
    pool = PoolModel(name="pool", replica=a_model(kv_capacity_tokens=capacity), routing=routing)
    whole, sliced = (Fleet([pool], load, seed=seed, noise_sigma=noise) for _ in range(2))
    for fleet in (whole, sliced):
        fleet.add(0)
        fleet.add(0)
    for cut in sorted(cuts):
        sliced.advance(cut)
        sliced.gauges(0)
        sliced.counters(0)
    whole.advance(30.0)
    sliced.advance(30.0)
    assert_same_counters(whole.counters(0), sliced.counters(0), exactly=True)
    for fleet in (whole, sliced):
        fleet.advance(math.inf)
    assert_same_outcome(whole, sliced, 0.0)
    assert_same_counters(whole.counters(0), sliced.counters(0), exactly=True)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    capacity=st.integers(2500, 30_000),
    routing=st.sampled_from(ROUTINGS),
    until=st.floats(1.0, 20.0),
    cached=st.booleans(),
)
def test_tokens_and_requests_are_conserved(
    seed: int, capacity: int, routing: Routing, until: float, cached: bool
) -> None:
    load = some_requests(seed, 300, 30.0, 700, 120, cached)
    fleet = Fleet([PoolModel(name="pool", replica=a_model(kv_capacity_tokens=capacity), routing=routing)], load)
    for _ in range(2):
        fleet.add(0)
    fleet.advance(until)
    seen, now = fleet.counters(0), fleet.gauges(0)
    assert seen.arrivals == int((load.arrival_seconds <= until).sum())
    assert seen.arrivals == seen.finished + int(now.outstanding.sum())
    assert seen.busy_seconds <= 2 * until + 1e-9
    fleet.advance(math.inf)
    outcome, end, idle = fleet.outcome(), fleet.counters(0), fleet.gauges(0)
    assert (outcome.status == 0).all()
    assert end.output_tokens == int(load.output_tokens.sum())
    assert end.arrived_prompt_tokens == end.prefilled_prompt_tokens == int(load.prompt_tokens.sum())
    assert end.preemptions == int(outcome.preemptions.sum())
    for gauge in (idle.running, idle.waiting, idle.kv_tokens, idle.waiting_prompt_tokens, idle.outstanding):
        assert gauge.tolist() == [0, 0]
    gaps = int((load.output_tokens - 1).sum())
    assert int(end.itl.counts.sum()) == gaps
    assert int(end.ttft.counts.sum()) == int(end.e2e.counts.sum()) == len(load)
    assert int(end.tpot.counts.sum()) == int((load.output_tokens > 1).sum())
    assert int(end.step_tokens.counts.sum()) == end.engine_steps
    decoded = end.step_tokens.sum - end.computed_tokens
    assert decoded == gaps - _tokens_from_recompute(end, load)
    if end.preemptions == 0:
        skipped = end.cached_prompt_tokens
        assert end.computed_tokens == int(load.prompt_tokens.sum()) - skipped


def _tokens_from_recompute(end: Counters, load: Requests) -> float:
    """Tokens that a completed prefill gave after a preemption: all tokens less first ones less decoded ones."""
    decoded = end.step_tokens.sum - end.computed_tokens
    recomputed = end.output_tokens - len(load) - decoded
    assert 0 <= recomputed <= end.preemptions
    return recomputed


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), capacity=st.integers(2500, 30_000))
def test_littles_law(seed: int, capacity: int) -> None:
    load = some_requests(seed, 300, 30.0, 700, 120)
    fleet = Fleet([PoolModel(name="pool", replica=a_model(kv_capacity_tokens=capacity))], load)
    fleet.add(0)
    fleet.advance(math.inf)
    outcome, end = fleet.outcome(), fleet.counters(0)
    between = float((outcome.finish_seconds - outcome.first_token_seconds).sum())
    # All gaps together are the time between first and last tokens; sequences decode in all of it but the preempted part.
    assert end.itl.sum == pytest.approx(between, rel=1e-9)
    assert end.decode_seconds <= between * (1 + 1e-9)
    if end.preemptions == 0:
        assert end.decode_seconds == pytest.approx(between, rel=1e-9)
    # Mean number in the system x time = rate x time x mean time in the system, from counts seen along the way.
    again = Fleet([PoolModel(name="pool", replica=a_model(kv_capacity_tokens=capacity))], load)
    again.add(0)
    instants = np.unique(np.concatenate([load.arrival_seconds, outcome.finish_seconds]))
    area = 0.0
    for start, stop in pairwise(instants.tolist()):
        again.advance(start)
        area += int(again.gauges(0).outstanding.sum()) * (stop - start)
    stays = float((outcome.finish_seconds - outcome.arrival_seconds).sum())
    assert area == pytest.approx(stays, rel=1e-9)
