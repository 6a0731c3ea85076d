"""Doors, routing, draining, failures, speeds, several pools and closed loops, by hand where a hand can do it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from load_tests.draws import key, uniforms
from load_tests.fleet import Fleet, PoolModel, ReplicaModel, Requests


def unit(**changes: float) -> ReplicaModel:
    """One step takes one second; no overhead; KV counted in tokens."""
    values: dict[str, object] = {
        "a": 1.0,
        "b": 0.0,
        "c": 0.0,
        "d": 0.0,
        "e": 0.0,
        "step_overhead_seconds": 0.0,
        "sequence_overhead_seconds": 0.0,
        "request_overhead_seconds": 0.0,
        "kv_capacity_tokens": 1_000_000,
        "kv_block_tokens": 1,
    }
    return ReplicaModel(**{**values, **changes})  # type: ignore[arg-type]


def load(*rows: tuple[float, int, int], **columns: list[int]) -> Requests:
    """Requests from (arrival seconds, prompt tokens, output tokens)."""
    arrival, prompt, output = zip(*rows, strict=True)
    return Requests(
        arrival_seconds=np.array(arrival, dtype=float),
        prompt_tokens=np.array(prompt, dtype=np.int64),
        output_tokens=np.array(output, dtype=np.int64),
        **{name: np.array(column) for name, column in columns.items()},
    )


def pool(model: ReplicaModel, routing: str = "round_robin") -> PoolModel:
    return PoolModel(name="pool", replica=model, routing=routing)  # type: ignore[arg-type]


def test_without_a_replica_requests_wait_at_the_door_in_order() -> None:
    fleet = Fleet([pool(unit(max_num_seqs=1))], load((1.0, 7, 1), (2.0, 5, 1), (3.0, 4, 1)))
    fleet.advance(10.0)
    held = fleet.gauges(0)
    assert (held.held_requests, held.held_prompt_tokens, len(held.ids)) == (3, 16, 0)
    assert fleet.counters(0).arrivals == 3
    fleet.add(0)
    assert fleet.gauges(0).held_requests == 0
    fleet.advance(math.inf)
    assert fleet.outcome().first_token_seconds.tolist() == [11.0, 12.0, 13.0]
    assert fleet.outcome().ttft_seconds.tolist() == [10.0, 10.0, 10.0]


def test_requests_that_never_meet_a_replica_stay_unfinished() -> None:
    fleet = Fleet([pool(unit())], load((1.0, 7, 1)))
    fleet.advance(math.inf)
    outcome = fleet.outcome()
    assert outcome.status.tolist() == [2]
    assert outcome.replica.tolist() == [-1]
    assert outcome.first_token_seconds.tolist() == [math.inf]
    assert outcome.ttft_seconds.tolist() == [math.inf]


def test_round_robin_takes_turns_and_keeps_them_when_a_replica_leaves() -> None:
    rows = [(float(i), 1, 1) for i in range(9)]
    fleet = Fleet([pool(unit())], load(*rows))
    for _ in range(3):
        fleet.add(0)
    fleet.advance(3.5)  # 0 1 2 0
    fleet.drain(0)
    fleet.advance(math.inf)
    assert fleet.outcome().replica.tolist() == [0, 1, 2, 0, 1, 2, 1, 2, 1]


def test_least_loaded_sends_to_the_fewest_outstanding_and_the_first_at_a_tie() -> None:
    rows = [(0.1, 1, 100), (0.2, 1, 1), (0.3, 1, 100), (5.0, 1, 50), (5.5, 1, 50)]
    fleet = Fleet([pool(unit(), "least_loaded")], load(*rows))
    fleet.add(0)
    fleet.add(0)
    fleet.advance(math.inf)
    # At 0.3 both hold one, a tie; at 5.0 it is two against none, at 5.5 two against one.
    assert fleet.outcome().replica.tolist() == [0, 1, 0, 1, 1]


def test_two_choices_depends_on_the_seed_alone_and_beats_chance() -> None:
    rows = [(0.01 * i, 1, 20) for i in range(400)]

    def spread(seed: int) -> tuple[list[int], int]:
        fleet = Fleet([pool(unit(), "two_choices")], load(*rows), seed=seed)
        for _ in range(10):
            fleet.add(0)
        fleet.advance(3.999)
        most = int(fleet.gauges(0).outstanding.max())
        fleet.advance(math.inf)
        return fleet.outcome().replica.tolist(), most

    assert spread(1) == spread(1)
    assert spread(1)[0] != spread(2)[0]
    assert spread(1)[1] <= 45  # 40 on average; random choice of one gives about 50


def test_draining_takes_nothing_new_and_is_gone_when_its_last_request_ends() -> None:
    fleet = Fleet([pool(unit())], load((0.0, 1, 10), (2.0, 1, 1)))
    first, second = fleet.add(0), fleet.add(0)
    fleet.advance(1.0)
    fleet.drain(first)
    fleet.drain(second)
    assert fleet.gone_at(second) == 1.0
    assert fleet.gone_at(first) is None
    fleet.advance(5.0)
    seen = fleet.gauges(0)
    assert (seen.ids.tolist(), seen.draining_ids.tolist(), seen.draining_running.tolist()) == ([], [first], [1])
    assert seen.held_requests == 1
    fleet.advance(20.0)
    assert fleet.gone_at(first) == 10.0
    third = fleet.add(0)
    fleet.advance(30.0)
    assert third == 2
    assert fleet.outcome().finish_seconds.tolist() == [10.0, 21.0]


def test_draining_waits_for_a_request_in_ingress() -> None:
    fleet = Fleet([pool(unit(request_overhead_seconds=5.0))], load((0.0, 1, 2)))
    replica = fleet.add(0)
    fleet.advance(1.0)
    fleet.drain(replica)
    assert fleet.gone_at(replica) is None
    fleet.advance(math.inf)
    assert fleet.gone_at(replica) == 7.0


def test_a_killed_replica_fails_what_runs_waits_and_enters() -> None:
    rows = [(0.0, 1, 50), (0.0, 1, 50), (0.0, 1, 50), (10.2, 1, 50)]
    fleet = Fleet([pool(unit(max_num_seqs=2, request_overhead_seconds=0.5))], load(*rows))
    replica = fleet.add(0)
    fleet.advance(10.3)
    before = fleet.counters(0)
    assert before.output_tokens == 2 * 9
    fleet.kill(replica)
    assert fleet.gone_at(replica) == 10.3
    after = fleet.counters(0)
    assert (after.failed, after.finished, after.output_tokens, after.engine_steps) == (4, 0, 18, 9)
    other = fleet.add(0)
    fleet.advance(math.inf)
    outcome = fleet.outcome()
    assert outcome.status.tolist() == [1, 1, 1, 1]
    assert outcome.first_token_seconds.tolist() == [1.5, 1.5, math.inf, math.inf]
    assert outcome.finish_seconds.tolist() == [math.inf] * 4
    assert fleet.gauges(0).outstanding.tolist() == [0]
    assert fleet.gone_at(other) is None
    fleet.kill(replica)  # twice is once
    assert fleet.counters(0).failed == 4


@pytest.mark.parametrize("every_step", [False, True])
def test_a_new_capacity_factor_applies_from_the_next_step_on(every_step: bool) -> None:
    fleet = Fleet([pool(unit())], load((0.0, 1, 10)), every_step=every_step)
    replica = fleet.add(0)
    fleet.advance(3.5)
    fleet.set_capacity_factor(replica, 0.5)
    fleet.advance(8.0)  # a boundary: the step that begins here is already under way
    fleet.set_capacity_factor(replica, 1.0)
    fleet.advance(math.inf)
    assert fleet.outcome().finish_seconds[0] == 4.0 + 2.0 + 2.0 + 2.0 + 3.0


def test_slots_are_reused_and_the_fleet_grows_to_any_size() -> None:
    rows = [(0.05 * i, 3, 4) for i in range(4000)]
    fleet = Fleet([pool(unit(a=0.01, max_num_seqs=4))], load(*rows))
    alive: list[int] = []
    for tick in range(200):
        fleet.advance(float(tick))
        alive += [fleet.add(0) for _ in range(20 if tick < 15 else 5)]
        while len(alive) > 250 - tick:
            fleet.drain(alive.pop(0))
    fleet.advance(math.inf)
    outcome = fleet.outcome()
    assert (outcome.status == 0).all()
    assert len(np.unique(outcome.replica)) > 800
    assert fleet.gone_at(0) is not None
    assert fleet.gauges(0).ids.tolist() == alive
    assert len(fleet._plant.replicas) == 512


def test_admission_is_first_in_first_out() -> None:
    count = 300
    arrival = np.cumsum(-np.log(uniforms(key(1, "gap"), count)) * 0.01)
    prompt = 1 + np.floor(uniforms(key(1, "prompt"), count) * 500).astype(np.int64)
    requests = Requests(arrival_seconds=arrival, prompt_tokens=prompt, output_tokens=np.full(count, 30))
    model = unit(a=0.01, max_num_batched_tokens=256, max_num_seqs=8, kv_capacity_tokens=100_000)
    fleet = Fleet([pool(model)], requests)
    fleet.add(0)
    fleet.advance(math.inf)
    assert (np.diff(fleet.outcome().first_token_seconds) >= 0).all()
    assert fleet.counters(0).preemptions == 0


def test_the_latest_admitted_is_preempted_and_prefilled_again_with_its_output() -> None:
    # 24 tokens of KV.  Two requests of 8 + 9 tokens: after five tokens each they hold 12 + 12, the next step needs 26.
    for block in (1, 4):
        fleet = Fleet([pool(unit(kv_capacity_tokens=24, kv_block_tokens=block))], load((0.0, 8, 9), (0.0, 8, 9)))
        fleet.add(0)
        fleet.advance(5.0)
        assert fleet.gauges(0).running.tolist() == [1]
        assert fleet.gauges(0).waiting.tolist() == [1]
        assert fleet.gauges(0).waiting_prompt_tokens.tolist() == [8 + 5]
        fleet.advance(math.inf)
        outcome, seen = fleet.outcome(), fleet.counters(0)
        # The first runs on alone to 9; the second then prefills 13 tokens in one step, which yields its sixth token.
        assert outcome.first_token_seconds.tolist() == [1.0, 1.0]
        assert outcome.finish_seconds.tolist() == [9.0, 13.0]
        assert outcome.preemptions.tolist() == [0, 1]
        assert seen.computed_tokens == 8 + 8 + 13
        assert seen.itl.counts[12:14].tolist() == [0, 1]  # the gap of 5 s
        assert seen.itl.sum == 8 + 12


def test_cached_prompt_tokens_are_not_prefilled_but_held() -> None:
    fleet = Fleet(
        [pool(unit(a=0.0, b=0.01, e=0.001))], load((0.0, 100, 2), (50.0, 100, 2), cached_prompt_tokens=[60, 100])
    )
    fleet.add(0)
    fleet.advance(1.0)
    assert fleet.gauges(0).kv_tokens.tolist() == [100]
    fleet.advance(math.inf)
    # Chunk of 40 tokens behind 60 of context; of a fully cached prompt the last token is computed.
    assert fleet.outcome().ttft_seconds == pytest.approx([0.4 + 0.001 * 40 * 80, 0.01 + 0.001 * 99.5])
    seen = fleet.counters(0)
    assert (seen.cached_prompt_tokens, seen.computed_tokens, seen.prefilled_prompt_tokens) == (159, 41, 200)


def split(kv_capacity: int = 1_000_000, decode_replicas: int = 1, **options: float) -> Fleet:
    """A prefill pool and a decode pool; 1,000 B of KV a token over 10,000 B/s."""
    prefill = PoolModel(
        name="prefill",
        replica=unit(kv_bytes_per_token=1000),
        role="prefill",
        next_pool="decode",
        transfer_bytes_per_second=10_000.0,
    )
    decode = PoolModel(name="decode", replica=unit(kv_capacity_tokens=kv_capacity), role="decode")
    rows = [(0.0, 20, 4), (0.0, 20, 1), (7.0, 5, 3)]
    fleet = Fleet([prefill, decode], load(*rows), **options)  # type: ignore[arg-type]
    fleet.add(0)
    for _ in range(decode_replicas):
        fleet.add(1)
    return fleet


def test_a_prefill_pool_hands_over_after_the_transfer_and_decode_does_not_prefill_again() -> None:
    fleet = split()
    fleet.advance(2.0)
    assert fleet.counters(0).handed_over == 1
    assert fleet.counters(1).arrivals == 0
    fleet.advance(3.5)
    assert fleet.gauges(1).kv_tokens.tolist() == [20]
    fleet.advance(math.inf)
    outcome = fleet.outcome()
    assert outcome.first_token_seconds.tolist() == [1.0, 1.0, 8.0]
    assert outcome.finish_seconds.tolist() == [1.0 + 2.0 + 3.0, 1.0, 8.0 + 0.5 + 2.0]
    assert outcome.replica.tolist() == [1, 0, 1]
    prefill, decode = fleet.counters(0), fleet.counters(1)
    assert (prefill.finished, prefill.handed_over, prefill.output_tokens) == (1, 2, 3)
    assert (decode.finished, decode.arrivals, decode.output_tokens, decode.computed_tokens) == (2, 2, 5, 0)
    assert int(prefill.ttft.counts.sum()) == 3
    assert int(decode.ttft.counts.sum()) == 0


def test_a_decode_pool_without_replicas_holds_what_is_handed_over() -> None:
    fleet = split(decode_replicas=0)
    fleet.advance(20.0)
    assert fleet.gauges(1).held_requests == 2
    fleet.add(1)
    fleet.advance(math.inf)
    assert fleet.outcome().finish_seconds.tolist() == [23.0, 1.0, 22.0]


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), capacity=st.integers(1500, 20_000), rate=st.floats(5.0, 60.0))
def test_split_pools_conserve_tokens_and_skip_like_they_step(seed: int, capacity: int, rate: float) -> None:
    count = 200
    requests = Requests(
        arrival_seconds=np.cumsum(-np.log(uniforms(key(seed, "gap"), count)) / rate),
        prompt_tokens=1 + np.floor(uniforms(key(seed, "prompt"), count) * 1200).astype(np.int64),
        output_tokens=1 + np.floor(uniforms(key(seed, "output"), count) * 200).astype(np.int64),
    )
    law = {"a": 0.004, "b": 2e-05, "c": 4e-06, "d": 4e-08, "e": 9e-10, "kv_bytes_per_token": 131072}
    prefill = PoolModel(
        name="prefill",
        replica=unit(**law),
        role="prefill",
        next_pool="decode",
        transfer_bytes_per_second=25e9,
        routing="least_loaded",
    )
    small = unit(**law, kv_capacity_tokens=capacity, kv_block_tokens=16)
    decode = PoolModel(name="decode", replica=small, role="decode", routing="least_loaded")
    made = []
    for every_step in (False, True):
        fleet = Fleet([prefill, decode], requests, every_step=every_step)
        for which in (0, 1, 1):
            fleet.add(which)
        fleet.advance(math.inf)
        made.append(fleet.outcome())
        first, second = fleet.counters(0), fleet.counters(1)
        assert first.output_tokens + second.output_tokens == int(requests.output_tokens.sum())
        assert first.finished + second.finished == count
        assert first.handed_over == second.arrivals == second.finished
    assert (made[0].status == 0).all()
    assert np.abs(made[0].finish_seconds - made[1].finish_seconds).max() <= 1e-9
    assert np.array_equal(made[0].preemptions, made[1].preemptions)


def test_pools_that_are_not_joined_do_not_touch_each_other() -> None:
    rows = [(0.0, 1, 5), (0.0, 1, 5), (0.5, 1, 2)]
    pools = [PoolModel(name="a", replica=unit()), PoolModel(name="b", replica=unit(a=2.0))]
    fleet = Fleet(pools, load(*rows, pool=[0, 1, 1], tenant=[0, 1, 1]))
    fleet.add(0)
    fleet.add(1)
    fleet.advance(math.inf)
    assert fleet.outcome().finish_seconds.tolist() == [5.0, 10.0, 6.0]
    assert fleet.counters(0).arrivals_by_tenant.tolist() == [1, 0]
    assert fleet.counters(1).arrivals_by_tenant.tolist() == [0, 2]


def test_a_closed_loop_sends_the_next_request_when_the_last_ended() -> None:
    rows = [(1.0, 1, 2), (1.0, 1, 4), (0.5, 1, 1), (0.0, 1, 3)]
    fleet = Fleet([pool(unit())], load(*rows, follows=[-1, -1, 0, 2]))
    fleet.add(0)
    fleet.advance(math.inf)
    outcome = fleet.outcome()
    # Request 2 thinks 0.5 s after 3.0, starts at the boundary 4.0 and ends at 5.0; request 3 follows at once.
    assert outcome.arrival_seconds.tolist() == [1.0, 1.0, 3.5, 5.0]
    assert outcome.finish_seconds.tolist() == [3.0, 5.0, 5.0, 8.0]


def test_noise_has_mean_one_and_belongs_to_the_seed_the_replica_and_the_window() -> None:
    count = 2000
    rows = [(10.0 * i, 1, 2) for i in range(count)]

    def steps(seed: int) -> np.ndarray:
        fleet = Fleet([pool(unit(a=0.1))], load(*rows), seed=seed, noise_sigma=0.2)
        fleet.add(0)
        fleet.advance(math.inf)
        return fleet.outcome().ttft_seconds / 0.1

    one = steps(1)
    assert np.array_equal(one, steps(1))
    assert abs(one.mean() - 1.0) < 4 * 0.2 / math.sqrt(count)
    assert np.log(one).std() == pytest.approx(0.2, rel=0.06)
    assert not np.array_equal(one, steps(2))


@pytest.mark.parametrize(("block", "prompt", "first_token"), [(1, 12, 4.0), (1, 13, 21.0), (4, 11, 4.0), (4, 12, 21.0)])
@pytest.mark.parametrize("every_step", [False, True])
def test_a_prompt_is_admitted_only_if_it_and_the_next_step_of_all_fit(
    block: int, prompt: int, first_token: float, every_step: bool
) -> None:
    # At the boundary 3.0 the first request holds 10 tokens and wants an 11th; the second wants its prompt and one more.
    model = unit(kv_capacity_tokens=24, kv_block_tokens=block)
    fleet = Fleet([pool(model)], load((0.0, 8, 20), (2.5, prompt, 1)), every_step=every_step)
    fleet.add(0)
    fleet.advance(math.inf)
    assert fleet.outcome().finish_seconds[0] == 20.0
    assert fleet.outcome().first_token_seconds[1] == first_token
    assert fleet.counters(0).preemptions == 0


def test_an_empty_replica_admits_a_prompt_larger_than_its_kv() -> None:
    fleet = Fleet([pool(unit(kv_capacity_tokens=24))], load((0.0, 50, 3), (0.5, 2, 1)))
    fleet.add(0)
    fleet.advance(math.inf)
    assert fleet.outcome().finish_seconds.tolist() == [3.0, 4.0]


def test_seats_bound_what_runs() -> None:
    fleet = Fleet([pool(unit(max_num_seqs=2))], load((0.0, 1, 5), (0.0, 1, 9), (0.0, 1, 2), (0.0, 1, 1)))
    fleet.add(0)
    fleet.advance(0.5)
    assert (fleet.gauges(0).running.tolist(), fleet.gauges(0).waiting.tolist()) == ([2], [2])
    fleet.advance(math.inf)
    assert fleet.outcome().finish_seconds.tolist() == [5.0, 9.0, 7.0, 8.0]
