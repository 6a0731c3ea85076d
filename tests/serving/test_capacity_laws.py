"""Which laws explain what was seen: the context of a window's own prompts, and floors that small batches cannot tell apart."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from capacity_world import observations, pool_that_saw, world

from autoscaler.embed import Pool
from autoscaler.types import Demand, Histogram, Load, Observation, Replicas
from load_tests import bench_capacity_world as worlds
from serving import capacity_steps as steps
from serving.capacity import laws_of
from serving.capacity_learned import GENERIC, GENERIC_SHAPES, LearnedBeliefs, LearnedCapacity
from serving.capacity_steps import Solved, StepBeliefs, Window
from serving.closed_forms import Law, Mix, itl_rate
from serving.profiles import profile

QWEN = "qwen3-32b_bf16_h100_tp2"
CHAT = Mix(prompt=1000.0, output=200.0, prompt_cv=1.0, output_cv=0.8)
BOUNDS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)


def busy(prompt: float, requests: float = 20.0) -> Observation:
    """Ten seconds of one busy replica: 500 steps of 8 answers each, and `requests` prompts of so many tokens."""
    made = 8.0 * 500 + requests
    counts = [0.0] * (len(BOUNDS) + 1)
    counts[1] = 500.0 - requests
    counts[next(i for i, bound in enumerate(BOUNDS) if bound >= prompt)] += requests
    sizes = Histogram(upper_bounds=BOUNDS, counts=tuple(counts), sum=made + requests * prompt)
    return Observation(
        pool="chat", at_seconds=1000, window_seconds=10, replicas=Replicas(desired=1, ready=1),
        demand=Demand(requests=requests, prompt_tokens=requests * prompt, output_tokens=made),
        load=Load(running_requests=8.0, engine_steps=500.0, step_tokens=sizes, replicas_reporting=1),
    )  # fmt: skip


def seen_before(now: Observation, times: int, mix: Mix = CHAT) -> StepBeliefs:
    beliefs = StepBeliefs(ready=1, ready_since_seconds=0, running=8.0)
    for _ in range(times):
        beliefs = steps.with_prompts(beliefs, now, mix)
    return beliefs


def window(beliefs: StepBeliefs, now: Observation) -> Window:
    found = steps.window_of(steps.with_prompts(beliefs, now, CHAT), now, CHAT)
    assert found is not None
    return found


def test_answers_have_the_prompts_of_their_window_as_context():
    usual, longer = window(StepBeliefs(ready=1, running=8.0), busy(1000.0)), busy(2000.0)
    more = window(StepBeliefs(ready=1, running=8.0), longer)
    assert usual.context == pytest.approx(usual.decode * CHAT.context, rel=0.01)
    assert more.context - usual.context == pytest.approx(usual.decode * 1000.0, rel=0.05)


def test_a_window_of_long_prompts_has_more_attention_per_token():
    before = seen_before(busy(1000.0), 30)
    usual, more = window(before, busy(1000.0)), window(before, busy(2000.0))
    assert usual.pairs == pytest.approx(usual.prefill * CHAT.prompt_square / (2.0 * CHAT.prompt), rel=0.05)
    assert more.pairs / more.prefill == pytest.approx(2.0 * usual.pairs / usual.prefill, rel=0.15)


def test_where_prompts_are_prefilled_elsewhere_the_usual_ones_are_the_context():
    now = busy(1000.0)
    assert now.load is not None
    sizes = now.load.step_tokens
    assert sizes is not None
    away = replace(now, load=replace(now.load, step_tokens=replace(sizes, sum=now.demand.output_tokens)))
    found = window(seen_before(away, 5), away)
    assert found.prefill == 0.0
    assert found.context == pytest.approx(found.decode * CHAT.context)


def test_a_window_without_counts_of_prompts_changes_nothing():
    now = busy(1000.0)
    dumb = replace(now, load=replace(now.load, step_tokens=None), demand=replace(now.demand, prompt_tokens=None))
    beliefs = seen_before(now, 3)
    assert steps.with_prompts(beliefs, dumb, CHAT) == beliefs


def fitted(rows: list[tuple[float, float, float]], law: Law) -> tuple[StepBeliefs, tuple[float, ...]]:
    """Sums of windows (requests, prompt, batch) that follow `law` exactly, and the chances of the generic shapes."""
    beliefs, size = StepBeliefs(), 3 + len(GENERIC_SHAPES)
    gram, right, weight = [0.0] * (size * (size + 1) // 2), [0.0] * size, 0.0
    for requests, prompt, batch in rows:
        plain = 500.0 - requests
        spent = plain * (law.a + law.b * max(law.floor, batch)) + requests * (
            law.a + law.b * max(law.floor, prompt + batch)
        )
        spent += 500.0 * batch * (law.c - law.b)
        counts = [0.0] * (len(BOUNDS) + 1)
        counts[next(i for i, bound in enumerate(BOUNDS) if bound >= batch)] += plain
        counts[next(i for i, bound in enumerate(BOUNDS) if bound >= prompt + batch)] += requests
        sizes = Histogram(upper_bounds=BOUNDS, counts=tuple(counts), sum=500.0 * batch + requests * prompt)
        one = Window(
            seconds=spent, steps=500.0, prefill=requests * prompt, decode=500.0 * batch, context=0.0, pairs=0.0,
            requests=requests, weight=1.0, step_tokens=sizes,
        )  # fmt: skip
        columns = steps.columns_of(one, GENERIC_SHAPES)
        gram = [g + x for g, x in zip(gram, [x * y for i, x in enumerate(columns) for y in columns[i:]], strict=True)]
        right, weight = [r + x for r, x in zip(right, columns, strict=True)], weight + 1.0
    beliefs = replace(beliefs, gram=tuple(gram), right=tuple(right), square=weight, weight=weight)
    found = steps.candidates(beliefs, GENERIC_SHAPES, *GENERIC, steps.GENERIC_NOISE)
    return beliefs, steps.chances(beliefs, GENERIC_SHAPES, found)


def test_chances_are_shares_and_batches_above_the_floor_tell_it():
    law = Law(a=0.008, b=6e-5, c=16e-5, d=0.0, floor=96.0)
    small = [(n, 1000.0, b) for n in (2.0, 6.0, 12.0) for b in (4.0, 8.0, 12.0)] * 4
    large = [(n, 1000.0, b) for n in (2.0, 12.0, 40.0) for b in (8.0, 64.0, 120.0, 200.0)] * 4
    _, low = fitted(small, law)
    _, high = fitted(large, law)
    at = steps.FLOORS.index(96.0)
    assert math.fsum(low) == pytest.approx(1.0)
    assert max(low) < 0.6
    assert high[at] > low[at]
    assert math.fsum(high[at - 1 : at + 2]) > 0.95


def test_an_unknown_replica_gets_the_law_nearest_to_the_mean_and_a_known_one_keeps_its_own():
    found = tuple((Solved(z=(1.0, 1.0, 1.0, 1.0), floor=at), 0.0) for at in range(3))
    rates = (10.0, 12.0, 20.0)
    law, sigma = steps.chosen(found, (0.45, 0.45, 0.1), rates, False, 0)
    assert law.floor == 1
    assert 0.1 < sigma < 0.4
    assert steps.chosen(found, (0.3, 0.7, 0.0), rates, True, 0)[0].floor == 0
    assert steps.chosen(found, (0.1, 0.9, 0.0), rates, True, 0)[0].floor == 1
    assert steps.chosen(found, (1.0, 0.0, 0.0), rates, False, 0)[1] == 0.0


def belief_of(pool: Pool) -> tuple[LearnedCapacity, LearnedBeliefs]:
    model = pool.autoscaler.capacity_model
    assert isinstance(model, LearnedCapacity)
    return model, pool.memory.beliefs.capacity


@pytest.mark.slow
def test_low_load_leaves_a_law_in_doubt_and_the_belief_says_so_until_load_rises():
    """Told nothing: what is planned with is further below the estimate while floors cannot be told apart."""
    limit = itl_rate(laws_of(profile(QWEN))[1], CHAT, 0.05)
    low = observations(QWEN, CHAT, 2, lambda t: 2 * limit * (0.1 + 0.25 * t / 1800), 1800)
    high = observations(QWEN, CHAT, 2, lambda t: 2 * limit * (0.5 + 0.35 * t / 3600), 3600)
    (model, early), (_, late) = belief_of(pool_that_saw(low)), belief_of(pool_that_saw(high))
    assert early.law_sigma > 1.2 * late.law_sigma
    assert model.deviation(early) ** 2 >= early.law_sigma**2
    sure = replace(early, law_sigma=0.0)
    assert model.caution(early, 2) < model.caution(sure, 2)
    assert itl_rate(model.law(late), CHAT, 0.05) == pytest.approx(limit, rel=0.03)


def test_runs_that_are_judged_together_carry_what_lies_between_them():
    here = world(QWEN, CHAT, 2)
    one, other, both = (worlds.feasible_rate(here, 14.0, seeds) for seeds in ((0,), (3,), (0, 3)))
    assert other < both < one
