"""Parts of the kernel alone, and the kernel uncompiled against itself compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from load_tests import kernel, kernel_kv, kernel_observe, kernel_route, kernel_state
from load_tests.fleet import Fleet, PoolModel, ReplicaModel, Requests, warm_up
from load_tests.kernel_build import tournament
from load_tests.kernel_seats import join_decode, pop_finished, remove_decoding

seconds = st.floats(1e-4, 1.0)


@settings(max_examples=200)
@given(steps=st.integers(1, 5000), step=seconds, growth=st.one_of(st.just(0.0), st.floats(1e-9, 1e-3)))
def test_the_boundary_after_an_instant_inverts_the_duration_of_a_jump(steps: int, step: float, growth: float) -> None:
    end = kernel_kv.jump_seconds(steps, step, growth)
    assert kernel_kv.boundary_after(end, step, growth) == steps
    assert kernel_kv.boundary_after(end + 0.4 * step, step, growth) == steps + 1
    assert kernel_kv.boundary_after(end - 0.4 * step, step, growth) == steps


def test_a_jump_lasts_as_long_as_its_steps() -> None:
    assert kernel_kv.jump_seconds(1000, 0.01, 1e-6) == np.float64(sum(0.01 + 1e-6 * i for i in range(1000))).round(12)


@settings(max_examples=200)
@given(
    sequences=st.integers(1, 300),
    steps=st.integers(1, 400),
    step=st.floats(0.001, 0.2),
    growth=st.one_of(st.just(0.0), st.floats(1e-8, 0.01)),
)
def test_gaps_of_a_jump_fall_into_the_buckets_of_its_steps(
    sequences: int, steps: int, step: float, growth: float
) -> None:
    counts = np.zeros((1, kernel_state.HISTOGRAM_BUCKETS), dtype=np.int64)
    kernel_observe.observe_gaps(counts, 0, sequences, steps, step, growth)
    gaps = step + growth * np.arange(steps)
    buckets = np.searchsorted(kernel_state.ITL_BOUNDS, gaps, side="left")
    expected = sequences * np.bincount(buckets, minlength=len(kernel_state.ITL_BOUNDS) + 1)
    at = kernel_state.ITL_AT
    found = counts[0, at : at + len(expected)]
    # A gap within rounding of a bound may fall on either side of it.
    near = sequences * int((np.abs(gaps[:, None] - kernel_state.ITL_BOUNDS) < 1e-12).any(axis=1).sum())
    assert np.abs(found - expected).sum() <= 2 * near
    assert found.sum() == sequences * steps


@settings(max_examples=100)
@given(
    contexts=st.lists(st.integers(1, 400), min_size=1, max_size=30), block=st.integers(2, 20), clock=st.integers(0, 99)
)
def test_kv_is_held_in_whole_blocks_after_any_number_of_steps(contexts: list[int], block: int, clock: int) -> None:
    pool, replica = kernel_state.records(1, kernel_state.POOL), kernel_state.records(1, kernel_state.REPLICA)
    pool[0]["block"] = block
    replica[0]["clock"] = clock
    seats = np.zeros((1, kernel_state.SEAT_PLANES, 30), dtype=np.int64)
    residues = np.zeros((1, block), dtype=np.int64)
    for seat, context in enumerate(contexts):
        join_decode(pool[0], replica[0], seats, residues, 0, seat, context, 1000)
    for ahead in range(2 * block + 2):
        held = sum(-(-(context + ahead) // block) * block for context in contexts)
        assert kernel_kv.decode_kv(pool[0], replica[0], residues, 0, ahead) == held
        pool[0]["kv_capacity"] = held
        if len(contexts) > 1 and ahead > 0:
            full = kernel_kv.steps_before_full(pool[0], replica[0], residues, 0, 10**6)
            after = [sum(-(-(context + steps) // block) * block for context in contexts) for steps in (full, full + 1)]
            assert after[0] <= held < after[1]


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=60))
def test_the_heap_of_seats_gives_them_back_in_order_of_their_end(moves: list[tuple[int, bool]]) -> None:
    pool, replica = kernel_state.records(1, kernel_state.POOL), kernel_state.records(1, kernel_state.REPLICA)
    pool[0]["block"] = 1
    seats = np.zeros((1, kernel_state.SEAT_PLANES, 60), dtype=np.int64)
    residues = np.zeros((1, 1), dtype=np.int64)
    ends: dict[int, int] = {}
    for seat, (steps, remove) in enumerate(moves):
        join_decode(pool[0], replica[0], seats, residues, 0, seat, 1, steps)
        ends[seat] = steps
        if remove and len(ends) > 1:
            victim = sorted(ends)[len(ends) // 2]
            assert remove_decoding(replica[0], seats, 0, victim) == ends.pop(victim)
    left = [pop_finished(replica[0], seats, 0) for _ in range(len(ends))]
    assert left == sorted(ends, key=lambda seat: (ends[seat], seat))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from([0.0, 1.0, 2.0, 3.0, np.inf])), max_size=40))
def test_the_tournament_names_the_slot_that_is_due_first_and_the_lower_at_a_tie(
    moves: list[tuple[int, float]],
) -> None:
    due = np.full(8, np.inf)
    winners = tournament(due)
    for slot, at in moves:
        kernel_route.reschedule(due, winners, slot, at)
        assert winners[1] == int(np.argmin(due))


@settings(max_examples=100)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=50))
def test_transfers_come_out_by_time_then_by_request(times: list[float]) -> None:
    world = kernel_state.records(1, kernel_state.WORLD)
    heap = kernel_state.records(50, kernel_state.TRANSFER_ENTRY)
    for request, at in enumerate(times):
        kernel_route.push_transfer(world, heap, at, request)
    out = [kernel_route.pop_transfer(world, heap) for _ in times]
    assert out == sorted(range(len(times)), key=lambda request: (times[request], request))


def test_nothing_is_left_to_compile_after_the_warm_up() -> None:
    if kernel_state.INTERPRETED:
        return
    warm_up()
    entries = [getattr(kernel, name) for name in ("advance", "join", "drain_replica", "kill_replica", "set_factor")]
    before = [len(entry.signatures) for entry in entries]
    columns = [np.array([0, 1]), np.array([5, 6]), np.array([2, 3]), np.array([0, 1, 2])]
    for array in columns:
        array.flags.writeable = False
    requests = Requests(
        arrival_seconds=columns[0].astype(float),
        prompt_tokens=columns[1],
        output_tokens=columns[2],
        tenant=columns[0].astype(np.int32),
        follows=np.array([-1, 0]),
        block_hash_offsets=columns[3],
        block_hashes=columns[0],
        prefix_block_tokens=4,
    )
    law = ReplicaModel(a=0.01, b=0.0, c=0.0, d=0.0, e=0.0, kv_capacity_tokens=1000)
    pools = [
        PoolModel(name="p", replica=law, role="prefill", next_pool="d"),
        PoolModel(name="d", replica=law, role="decode"),
    ]
    fleet = Fleet(pools, requests, noise_sigma=0.1)
    ids = [fleet.add(0), fleet.add(1)]
    fleet.advance(1)
    fleet.set_capacity_factor(ids[0], 1)
    fleet.drain(ids[0])
    fleet.kill(ids[1])
    assert [len(entry.signatures) for entry in entries] == before


SCRIPT = """
import math
import sys
import numpy as np
from load_tests import kernel_state
from load_tests.draws import key, uniforms
from load_tests.fleet import Fleet, PoolModel, ReplicaModel, Requests

assert kernel_state.INTERPRETED == (sys.argv[1] == "interpreted")
count = 120
requests = Requests(
    arrival_seconds=np.cumsum(-np.log(uniforms(key(3, "gap"), count)) / 40.0),
    prompt_tokens=1 + np.floor(uniforms(key(3, "prompt"), count) * 900).astype(np.int64),
    output_tokens=1 + np.floor(uniforms(key(3, "output"), count) * 160).astype(np.int64),
    cached_prompt_tokens=np.floor(uniforms(key(3, "cached"), count) * 300).astype(np.int64),
    tenant=np.arange(count, dtype=np.int32) % 3,
)
law = dict(a=0.004, b=2e-05, floor_tokens=100, c=4e-06, d=4e-08, e=9e-10, kv_bytes_per_token=131072)
prefill = PoolModel(
    name="prefill",
    replica=ReplicaModel(**law, kv_capacity_tokens=50_000, max_num_batched_tokens=512),
    role="prefill",
    next_pool="decode",
    transfer_bytes_per_second=25e9,
)
decode = PoolModel(
    name="decode", replica=ReplicaModel(**law, kv_capacity_tokens=2_000), role="decode", routing="two_choices"
)
fleet = Fleet([prefill, decode], requests, seed=4, noise_sigma=0.1)
ids = [fleet.add(pool, capacity_factor=0.9) for pool in (0, 1, 1, 1)]
for tick in range(1, 30):
    fleet.advance(0.1 * tick)
    print(fleet.gauges(1))
    if tick == 5:
        fleet.set_capacity_factor(ids[1], 0.7)
    if tick == 10:
        fleet.drain(ids[2])
    if tick == 20:
        fleet.kill(ids[1])
        print(fleet.add(1))
fleet.advance(math.inf)
np.set_printoptions(threshold=10**6, floatmode="unique")
print(fleet.counters(0), fleet.counters(1), fleet.outcome(), fleet.gone_at(ids[2]), fleet.now_seconds)
assert fleet.counters(1).preemptions > 10
"""


def test_uncompiled_and_compiled_give_the_same_bytes() -> None:
    root = Path(__file__).parents[2]
    texts = []
    for mode in ("compiled", "interpreted"):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": "1" if mode == "interpreted" else "0"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT, mode],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert texts[0] == texts[1]
    assert len(texts[0]) > 5000
