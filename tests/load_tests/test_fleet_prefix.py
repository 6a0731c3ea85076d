"""The prefix cache by blocks: hits against a dictionary kept by hand, invariants under load, and nothing when off."""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.errors import ConfigError
from load_tests import kernel_prefix
from load_tests.draws import key, uniforms
from load_tests.fleet import Fleet, PoolModel, ReplicaModel, Requests

BLOCK = 4


def model(**changes: float) -> ReplicaModel:
    """A prefilled token takes 0.01 s, a decode step 0.02 s; KV counted in tokens."""
    values: dict[str, object] = {
        "a": 0.0,
        "b": 0.01,
        "c": 0.01,
        "d": 0.0,
        "e": 0.0,
        "step_overhead_seconds": 0.0,
        "sequence_overhead_seconds": 0.0,
        "request_overhead_seconds": 0.0,
        "kv_capacity_tokens": 100,
        "kv_block_tokens": 1,
    }
    return ReplicaModel(**{**values, **changes})  # type: ignore[arg-type]


def with_blocks(arrival: list[float], prompt: list[int], output: list[int], blocks: list[list[int]]) -> Requests:
    return Requests(
        arrival_seconds=np.array(arrival, dtype=float),
        prompt_tokens=np.array(prompt, dtype=np.int64),
        output_tokens=np.array(output, dtype=np.int64),
        block_hash_offsets=np.cumsum([0, *map(len, blocks)]),
        block_hashes=np.array([block for row in blocks for block in row], dtype=np.int64),
        prefix_block_tokens=BLOCK,
    )


def fleet_of(load: Requests, replica: ReplicaModel, replicas: int = 1, **options: object) -> Fleet:
    fleet = Fleet([PoolModel(name="pool", replica=replica)], load, **options)  # type: ignore[arg-type]
    for _ in range(replicas):
        fleet.add(0)
    return fleet


def prefilled(fleet: Fleet) -> list[int]:
    """Tokens that each prefill computed, for requests that ran alone."""
    return [round(seconds / 0.01) for seconds in fleet.outcome().ttft_seconds.tolist()]


def test_a_second_prompt_with_the_same_prefix_skips_it() -> None:
    load = with_blocks([0.0, 10.0, 20.0, 30.0], [10, 10, 8, 12], [2] * 4, [[1, 2], [1, 3], [1, 2], [2, 1, 3]])
    fleet = fleet_of(load, model())
    fleet.advance(math.inf)
    # The last token of a prompt is always computed.  An id that is present is a hit wherever it stands: ids name a block
    # together with all before it.
    assert prefilled(fleet) == [10, 6, 1, 1]
    assert fleet.counters(0).cached_prompt_tokens == 0 + 4 + 7 + 11


def test_blocks_are_shared_while_their_holder_still_runs_but_not_before_its_prefill_ends() -> None:
    load = with_blocks([0.0, 0.01, 5.0], [9, 9, 9], [1000, 1, 1], [[1, 2], [1, 2], [1, 2]])
    fleet = fleet_of(load, model(kv_capacity_tokens=10_000))
    fleet.advance(0.5)
    assert fleet.counters(0).cached_prompt_tokens == 8  # the second waited for the end of the first one's prefill
    fleet.advance(6.0)
    assert fleet.counters(0).cached_prompt_tokens == 16


def reference_prefills(prompt: list[int], output: list[int], blocks: list[list[int]], capacity: int) -> list[int]:
    """Computed tokens of requests that run one after the other, with an ordered dictionary as cache."""
    idle: OrderedDict[int, None] = OrderedDict()
    computed = []
    for tokens, made, row in zip(prompt, output, blocks, strict=True):
        own = row[: tokens // BLOCK]
        hits = 0
        while hits < len(own) and own[hits] in idle:
            hits += 1
        computed.append(tokens - min(hits * BLOCK, tokens - 1))
        for block in own[:hits]:
            idle.pop(block, None)
        for held in (tokens, tokens + made - 1):
            while idle and held + len(idle) * BLOCK > capacity:
                idle.popitem(last=False)
            for block in own:
                idle.pop(block, None)
        for block in reversed(own):
            idle[block] = None
            idle.move_to_end(block)
        while len(idle) * BLOCK > capacity:
            idle.popitem(last=False)
    return computed


@settings(max_examples=150)
@given(data=st.data(), capacity=st.integers(8, 120), spread=st.sampled_from([1, 1000, 2**40]))
def test_hits_and_evictions_are_those_of_an_ordered_dictionary(data: st.DataObject, capacity: int, spread: int) -> None:
    chains = data.draw(
        st.lists(st.lists(st.integers(0, 12), min_size=0, max_size=8, unique=True), min_size=1, max_size=40)
    )
    blocks = [[block * spread - 5 for block in chain] for chain in chains]
    prompt = [max(1, len(row) * BLOCK + data.draw(st.integers(-2, 3))) for row in blocks]
    output = [data.draw(st.integers(1, 20)) for _ in blocks]
    load = with_blocks([100.0 * i for i in range(len(blocks))], prompt, output, blocks)
    fleet = fleet_of(load, model(kv_capacity_tokens=capacity))
    fleet.advance(math.inf)
    assert prefilled(fleet) == reference_prefills(prompt, output, blocks, capacity)
    assert_sound(fleet)


def assert_sound(fleet: Fleet) -> None:
    """An empty fleet holds no block, its idle ones fit, and the index knows exactly the idle ones."""
    plant = fleet._plant
    for slot in range(len(plant.replicas)):
        replica, table = plant.replicas[slot], plant.prefix[slot]
        listed, entry = [], int(replica["oldest_block"]) if replica["life"] else -1
        while entry >= 0:
            assert table[kernel_prefix.HOLDERS, entry] == 0
            listed.append(entry)
            entry = int(table[kernel_prefix.NEWER, entry])
        if not replica["life"]:
            continue
        assert len(listed) == replica["idle_blocks"]
        assert len(listed) * int(plant.pools[0]["prefix_block"]) <= int(
            plant.pools[int(replica["pool"])]["kv_capacity"]
        )
        buckets = table[kernel_prefix.BUCKET]
        assert sorted((buckets[buckets > 0] - 1).tolist()) == sorted(listed)
        for entry in listed:
            assert kernel_prefix.find(plant.prefix, slot, int(table[kernel_prefix.HASH, entry])) == entry


def shared_load(seed: int, count: int, rate: float) -> Requests:
    """Conversations that grow: a request repeats the blocks of an earlier one and adds its own."""
    pick = uniforms(key(seed, "pick"), count)
    blocks: list[list[int]] = []
    for i in range(count):
        base = blocks[int(pick[i] * i)] if i and pick[i] > 0.2 else []
        blocks.append(base[:10] + [10 * i + j for j in range(int(pick[i] * 97) % 5)])
    extra = 1 + np.floor(uniforms(key(seed, "extra"), count) * 9).astype(np.int64)
    return with_blocks(
        np.cumsum(-np.log(uniforms(key(seed, "gap"), count)) / rate).tolist(),
        [len(row) * BLOCK + int(extra[i]) for i, row in enumerate(blocks)],
        (1 + np.floor(uniforms(key(seed, "output"), count) * 40)).astype(int).tolist(),
        blocks,
    )


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    capacity=st.integers(64, 800),
    rate=st.floats(2.0, 40.0),
    block=st.sampled_from([1, 16]),
    budget=st.sampled_from([16, 64, 8192]),
    split=st.booleans(),
)
def test_with_a_prefix_cache_skipping_gives_the_results_of_every_step(
    seed: int, capacity: int, rate: float, block: int, budget: int, split: bool
) -> None:
    load = shared_load(seed, 150, rate)
    replica = model(
        a=0.004, b=0.0003, c=0.0001, d=1e-06, kv_capacity_tokens=capacity, kv_block_tokens=block,
        max_num_batched_tokens=budget, max_num_seqs=16,
    )  # fmt: skip
    pools = [PoolModel(name="a", replica=replica)]
    if split:
        pools = [
            PoolModel(name="a", replica=replica, role="prefill", next_pool="b"),
            PoolModel(name="b", replica=replica, role="decode"),
        ]
    made = []
    for every_step in (False, True):
        fleet = Fleet(pools, load, every_step=every_step)
        for pool in range(len(pools)):
            fleet.add(pool)
            fleet.add(pool)
        fleet.advance(math.inf)
        assert_sound(fleet)
        made.append(fleet)
    one, other = (fleet.outcome() for fleet in made)
    assert (one.status == 0).all()
    assert np.abs(one.finish_seconds - other.finish_seconds).max() <= 1e-9
    assert np.array_equal(one.preemptions, other.preemptions)
    for pool in range(len(pools)):
        left, right = (fleet.counters(pool) for fleet in made)
        assert left.cached_prompt_tokens == right.cached_prompt_tokens
        assert left.computed_tokens == right.computed_tokens
    assert made[0].counters(0).cached_prompt_tokens > 0


def test_a_cache_that_never_hits_changes_nothing() -> None:
    plain = shared_load(7, 150, 20.0)
    count = int(plain.block_hash_offsets[-1])  # type: ignore[index]
    fresh = Requests(
        arrival_seconds=plain.arrival_seconds,
        prompt_tokens=plain.prompt_tokens,
        output_tokens=plain.output_tokens,
        block_hash_offsets=plain.block_hash_offsets,
        block_hashes=np.arange(count) * 2**33 - 2**50,
        prefix_block_tokens=BLOCK,
    )
    without = Requests(
        arrival_seconds=plain.arrival_seconds,
        prompt_tokens=plain.prompt_tokens,
        output_tokens=plain.output_tokens,
    )
    replica = model(a=0.004, b=0.0003, kv_capacity_tokens=100_000)
    outcomes = []
    for load in (fresh, without):
        fleet = fleet_of(load, replica)
        fleet.advance(math.inf)
        assert fleet.counters(0).cached_prompt_tokens == fleet.counters(0).preemptions == 0
        outcomes.append(fleet.outcome().finish_seconds)
    assert np.array_equal(*outcomes)


def test_a_new_replica_in_an_old_slot_has_an_empty_cache() -> None:
    load = with_blocks([0.0, 10.0, 20.0], [9, 9, 9], [1, 1, 1], [[1, 2], [1, 2], [1, 2]])
    fleet = fleet_of(load, model())
    fleet.advance(15.0)
    fleet.drain(0)
    fleet.add(0)
    fleet.advance(math.inf)
    assert prefilled(fleet) == [9, 1, 9]


def test_bad_blocks_are_named() -> None:
    good = with_blocks([0.0], [9], [1], [[1, 2]])
    with pytest.raises(ConfigError, match="prefix_block_tokens"):
        Requests(
            arrival_seconds=good.arrival_seconds,
            prompt_tokens=good.prompt_tokens,
            output_tokens=good.output_tokens,
            block_hash_offsets=good.block_hash_offsets,
            block_hashes=good.block_hashes,
        )
    with pytest.raises(ConfigError, match="block_hash_offsets"):
        Requests(
            arrival_seconds=good.arrival_seconds,
            prompt_tokens=good.prompt_tokens,
            output_tokens=good.output_tokens,
            block_hash_offsets=np.array([0, 3]),
            block_hashes=good.block_hashes,
            prefix_block_tokens=4,
        )
