"""The closed forms beside the simulated plant: they never claim more than it carries within the SLO."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autoscaler.settings import Slo
from load_tests.draws import exponentials, key, normals
from load_tests.fleet import Fleet, PoolModel, ReplicaModel, Requests
from serving.capacity import engine_of, feasible_rates, laws_of
from serving.closed_forms import Mix
from serving.profiles import profile

WARM, SECONDS = 60.0, 500.0


def plant_of(p):
    law, host = p.roofline, p.host
    return ReplicaModel(
        a=law.a, b=law.b, floor_tokens=law.floor_tokens, c=law.c, d=law.d, e=law.e,
        step_overhead_seconds=host.per_step_seconds, sequence_overhead_seconds=host.per_sequence_seconds,
        request_overhead_seconds=host.per_request_seconds, max_num_seqs=p.max_num_seqs,
        max_num_batched_tokens=p.max_num_batched_tokens, kv_capacity_tokens=p.kv_capacity_tokens,
    )  # fmt: skip


def lengths(stream, n, mean, cv):
    square = math.log1p(cv * cv)
    drawn = mean * np.exp(math.sqrt(square) * normals(stream, n) - square / 2)
    return np.clip(np.round(drawn), 1, 30_000).astype(np.int64)


def attained(p, mix, slo, rate, replicas, seed, routing="least_loaded"):
    """Share of requests that arrive after the warm-up and meet both limits, with `replicas` at `rate` each."""
    n = int(rate * replicas * (WARM + SECONDS)) + 1
    arrival = np.cumsum(exponentials(key(seed, "arrival"), n)) / (rate * replicas)
    prompts = lengths(key(seed, "prompt"), n, mix.prompt, mix.prompt_cv)
    outputs = lengths(key(seed, "output"), n, mix.output, mix.output_cv)
    fleet = Fleet(
        [PoolModel(name="chat", replica=plant_of(p), routing=routing)],
        Requests(arrival_seconds=arrival, prompt_tokens=prompts, output_tokens=outputs),
    )
    for _ in range(replicas):
        fleet.add(0)
    fleet.advance(math.inf)
    outcome = fleet.outcome()
    ttft = outcome.first_token_seconds - arrival
    itl = (outcome.finish_seconds - outcome.first_token_seconds) / np.maximum(1, outputs - 1)
    met = (ttft <= slo.ttft_seconds) & ((itl <= slo.itl_seconds) | (outputs == 1))
    return float(met[arrival > WARM].mean())


def claimed(p, mix, slo, replicas, routing="least_loaded"):
    return dict(feasible_rates(laws_of(p)[1], mix, engine_of(p), slo, routing=routing))[replicas]


CHAT = Mix(prompt=1155, output=211, prompt_cv=1.0, output_cv=0.8)
ALIKE = Mix(prompt=803, output=14)
LONG_PROMPTS = Mix(prompt=4000, output=200, prompt_cv=0.5, output_cv=0.8)
CODE = Mix(prompt=2000, output=27, prompt_cv=0.8, output_cv=1.0)
LONG_ANSWERS = Mix(prompt=300, output=800, prompt_cv=1.0, output_cv=0.8)
USUAL, SLOWER = Slo(), Slo(ttft_seconds=2.0, itl_seconds=0.08)
H100, A100, L40S = "llama-3.1-8b_bf16_h100_tp1", "llama-3.1-70b_bf16_a100_tp4", "llama-3.1-8b_bf16_l40s_tp1"
QWEN = "qwen3-32b_bf16_h100_tp2"


@pytest.mark.parametrize("replicas", [1, 4, 16])
@pytest.mark.parametrize(
    ("name", "mix", "slo"),
    [
        (H100, CHAT, USUAL),
        (H100, ALIKE, USUAL),
        (H100, CODE, SLOWER),
        (H100, LONG_PROMPTS, USUAL),
        (H100, LONG_ANSWERS, Slo(attainment_fraction=0.95)),
        (A100, CHAT, SLOWER),
        (A100, ALIKE, SLOWER),
        (A100, LONG_ANSWERS, SLOWER),
        (QWEN, CHAT, USUAL),
        (QWEN, CODE, SLOWER),
        (L40S, CHAT, SLOWER),
        (L40S, LONG_PROMPTS, SLOWER),
    ],
)
def test_what_is_claimed_holds_in_the_plant_and_little_is_left(name, mix, slo, replicas):
    """The rate that is claimed meets the SLO; 45 % more does not."""
    p = profile(name)
    rate = claimed(p, mix, slo, replicas)
    held = [attained(p, mix, slo, rate, replicas, seed) for seed in (1, 2)]
    assert sum(held) / 2 >= slo.attainment_fraction - 0.0015  # the noise of so many requests
    beyond = [attained(p, mix, slo, 1.45 * rate, replicas, seed) for seed in (1, 2)]
    assert sum(beyond) / 2 < slo.attainment_fraction


@pytest.mark.parametrize("routing", ["round_robin", "two_choices"])
@pytest.mark.parametrize("mix", [CHAT, ALIKE, LONG_PROMPTS])
def test_it_holds_behind_other_routers(mix, routing):
    p = profile(QWEN)
    rate = claimed(p, mix, SLOWER, 16, routing)
    assert attained(p, mix, SLOWER, rate, 16, 1, routing) >= SLOWER.attainment_fraction - 0.0015
    assert attained(p, mix, SLOWER, 1.45 * rate, 16, 1, routing) < SLOWER.attainment_fraction


@pytest.mark.parametrize("mix", [CHAT, ALIKE, CODE])
def test_many_replicas_carry_more_each_as_in_the_plant(mix):
    """What sixteen carry breaks the SLO of one alone."""
    p = profile(A100)
    many = claimed(p, mix, SLOWER, 16)
    assert attained(p, mix, SLOWER, many, 16, 1) >= SLOWER.attainment_fraction - 0.0015
    assert attained(p, mix, SLOWER, many, 1, 1) < SLOWER.attainment_fraction
