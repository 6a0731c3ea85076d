"""The fleet on cases small enough to compute by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autoscaler.errors import ConfigError
from load_tests.fleet import Fleet, PoolModel, ReplicaModel, Requests


def replica(**changes: float) -> ReplicaModel:
    """One step takes exactly one second unless changed; no ingress, no host overhead, KV counted in tokens."""
    values: dict[str, object] = {
        "a": 1.0,
        "b": 0.0,
        "c": 0.0,
        "d": 0.0,
        "e": 0.0,
        "step_overhead_seconds": 0.0,
        "sequence_overhead_seconds": 0.0,
        "request_overhead_seconds": 0.0,
        "kv_capacity_tokens": 10_000,
        "kv_block_tokens": 1,
    }
    return ReplicaModel(**{**values, **changes})  # type: ignore[arg-type]


def requests(*rows: tuple[float, int, int]) -> Requests:
    """Requests from (arrival seconds, prompt tokens, output tokens)."""
    arrival, prompt, output = zip(*rows, strict=True)
    return Requests(
        arrival_seconds=np.array(arrival, dtype=float),
        prompt_tokens=np.array(prompt, dtype=np.int64),
        output_tokens=np.array(output, dtype=np.int64),
    )


def fleet(model: ReplicaModel, load: Requests, replicas: int = 1, **options: object) -> Fleet:
    """A pool of `replicas` replicas that are ready at 0."""
    made = Fleet([PoolModel(name="pool", replica=model, routing="round_robin")], load, **options)  # type: ignore[arg-type]
    for _ in range(replicas):
        made.add(0)
    return made


@pytest.mark.parametrize("every_step", [False, True])
def test_one_request_takes_one_prefill_step_and_one_step_per_further_token(every_step: bool) -> None:
    plant = fleet(replica(request_overhead_seconds=0.25), requests((2.0, 10, 5)), every_step=every_step)
    plant.advance(math.inf)
    outcome = plant.outcome()
    assert outcome.first_token_seconds[0] == 3.25
    assert outcome.finish_seconds[0] == 7.25
    assert outcome.ttft_seconds[0] == 1.25
    assert outcome.mean_itl_seconds[0] == 1.0
    assert outcome.status[0] == 0
    assert outcome.replica[0] == 0


def test_a_step_with_prefill_follows_the_roofline_law() -> None:
    model = replica(
        a=0.5, b=0.01, floor_tokens=30.0, c=0.2, d=0.001, e=0.0001, step_overhead_seconds=0.05,
        sequence_overhead_seconds=0.02,
    )  # fmt: skip
    plant = fleet(model, requests((0.0, 100, 2)))
    plant.advance(math.inf)
    prefill = 0.5 + 0.01 * 100 + 0.0001 * 100 * 50 + 0.05 + 0.02
    decode = 0.5 + 0.01 * 30 + 0.2 + 0.001 * 100 + 0.05 + 0.02
    assert plant.outcome().first_token_seconds[0] == pytest.approx(prefill, abs=1e-12)
    assert plant.outcome().finish_seconds[0] == pytest.approx(prefill + decode, abs=1e-12)


def test_a_prompt_longer_than_the_budget_is_prefilled_in_chunks_beside_decode() -> None:
    plant = fleet(replica(max_num_batched_tokens=10), requests((0.0, 5, 6), (0.5, 20, 1)))
    plant.advance(math.inf)
    # The second prompt has 9 tokens of budget beside one decoding sequence: steps from 1 to 4 carry 9 + 9 + 2.
    assert plant.outcome().first_token_seconds.tolist() == [1.0, 4.0]
    assert plant.counters(0).step_tokens.sum == 20 + 5 + 5


def test_bad_input_names_the_field() -> None:
    with pytest.raises(ConfigError, match="arrival_seconds"):
        requests((1.0, 1, 1), (0.5, 1, 1))
    with pytest.raises(ConfigError, match="output_tokens"):
        requests((1.0, 1, 0))
    with pytest.raises(ConfigError, match="kv_capacity_tokens"):
        replica(kv_capacity_tokens=0)
    with pytest.raises(ConfigError, match=r"pools\[0\].next_pool"):
        Fleet([PoolModel(name="p", replica=replica(), role="prefill", next_pool="q")], requests((0.0, 1, 1)))
