"""What is learned of a replica from what a scraper sees, beside the simulated plant that it was seen of."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from capacity_world import observations, pool_that_saw, world

from autoscaler.embed import Pool
from autoscaler.record import decode, encode
from autoscaler.settings import ReplicaSettings, Slo, StartupSettings
from autoscaler.types import Lengths
from load_tests import bench_capacity_world as worlds
from load_tests.measured import replica_model as worlds_model
from serving import capacity_violations as gains
from serving.capacity import GENERIC_LAW, laws_of
from serving.capacity_learned import LearnedBeliefs, LearnedCapacity
from serving.capacity_steps import Window, columns_of, nonnegative, predicted, stuck
from serving.capacity_violations import SIGMA, Curve, Gain, corrected
from serving.closed_forms import Mix, itl_rate
from serving.profiles import profile

H100, QWEN = "llama-3.1-8b_bf16_h100_tp1", "qwen3-32b_bf16_h100_tp2"
CHAT = Mix(prompt=1000.0, output=200.0, prompt_cv=1.0, output_cv=0.8)
ANSWERS = Mix(prompt=300.0, output=600.0, prompt_cv=1.0, output_cv=0.8)


def learned(pool: Pool) -> LearnedBeliefs:
    return pool.memory.beliefs.capacity


def law_of(pool: Pool):
    model = pool.autoscaler.capacity_model
    assert isinstance(model, LearnedCapacity)
    return model.law(learned(pool))


@pytest.mark.parametrize(("mix", "known"), [(CHAT, True), (ANSWERS, True), (CHAT, False), (ANSWERS, False)])
def test_half_an_hour_of_low_load_tells_the_step_law(mix, known):
    """From 10 to 35 % of the limit, with and without a profile: the rate at 50 ms is found to 3 and 8 %."""
    true = laws_of(profile(QWEN))[1]
    limit = itl_rate(true, mix, 0.05)
    seen = observations(QWEN, mix, 2, lambda t: 2 * limit * (0.1 + 0.25 * t / 1800), 1800)
    pool = pool_that_saw(seen, **({"profile": QWEN} if known else {}))
    assert learned(pool).steps.drifts == 0
    assert itl_rate(law_of(pool), mix, 0.05) == pytest.approx(limit, rel=0.03 if known else 0.08)


def test_a_wrong_profile_is_put_right():
    """A replica that is half as fast as the pool was told, and of another shape."""
    true = laws_of(profile(QWEN))[1]
    limit = itl_rate(true, CHAT, 0.05)
    seen = observations(QWEN, CHAT, 2, lambda t: 0.9 * limit, 1800)
    pool = pool_that_saw(seen, profile=H100)
    told = LearnedCapacity(ReplicaSettings(profile=H100), StartupSettings(), Slo())
    assert itl_rate(told.shapes[0], CHAT, 0.05) > 1.8 * limit
    assert itl_rate(law_of(pool), CHAT, 0.05) == pytest.approx(limit, rel=0.12)


def test_slower_engines_are_noticed_within_ten_minutes():
    true = laws_of(profile(QWEN))[1]
    limit = itl_rate(true, CHAT, 0.05)
    seen = observations(QWEN, CHAT, 2, lambda t: 0.8 * limit, 4200, slower=(3600.0, 0.7))
    before = pool_that_saw(seen[:360], profile=QWEN)
    after = pool_that_saw(seen, profile=QWEN)
    assert learned(before).steps.drifts == 0
    assert learned(after).steps.drifts >= 1
    slow = learned(after).steps.drift_at_seconds
    assert slow is not None
    assert slow - seen[359].at_seconds <= 600
    rates = [itl_rate(law_of(pool), CHAT, 0.08) for pool in (before, after)]
    assert rates[1] / rates[0] == pytest.approx(0.7, abs=0.06)


def test_an_engine_that_hangs_is_not_taken_for_slower_ones():
    """One of three keeps its requests and makes no steps: the others' latencies say that they are as fast as ever."""
    limit = itl_rate(laws_of(profile(QWEN))[1], CHAT, 0.05)
    seen = observations(QWEN, CHAT, 2, lambda t: 1.4 * limit, 2400)
    hung = []
    for now in seen:
        replicas, load = replace(now.replicas, ready=3, desired=3), now.load
        running = load.running_requests * 1.5
        if now.at_seconds - seen[0].at_seconds < 1200:  # all three work: half as much again of everything
            more = {name: getattr(now.demand, name) * 1.5 for name in ("prompt_tokens", "output_tokens", "requests")}
            sizes = replace(load.step_tokens, counts=tuple(1.5 * c for c in load.step_tokens.counts),
                            sum=1.5 * load.step_tokens.sum)  # fmt: skip
            load = replace(load, engine_steps=1.5 * load.engine_steps, step_tokens=sizes)
            now = replace(now, demand=replace(now.demand, **more))
        hung.append(replace(now, replicas=replicas, load=replace(load, running_requests=running, replicas_reporting=3)))
    before, after = (pool_that_saw(part, profile=QWEN) for part in (hung[:120], hung))
    assert stuck(learned(before).steps, hung[118]) == 0
    assert stuck(learned(before).steps, hung[121]) == 1
    assert learned(after).steps.drifts == 0
    assert learned(after).steps.weight <= learned(before).steps.weight


def test_windows_of_idle_or_changing_replicas_teach_nothing():
    seen = observations(QWEN, CHAT, 2, lambda t: 3.0, 300)
    whole = learned(pool_that_saw(seen, profile=QWEN)).steps.weight
    assert whole > 10
    moving = [replace(o, replicas=replace(o.replicas, ready=2 + i % 2, desired=2 + i % 2)) for i, o in enumerate(seen)]
    assert learned(pool_that_saw(moving, profile=QWEN)).steps.weight == 0.0
    silent = [replace(o, load=None) for o in seen]
    assert learned(pool_that_saw(silent, profile=QWEN)).steps.weight == 0.0
    blind = [replace(o, load=replace(o.load, gpu_utilization_fraction=None, running_requests=1.0)) for o in seen]
    assert learned(pool_that_saw(blind, profile=QWEN)).steps.weight == 0.0


def test_an_engine_without_step_histogram_is_learned_from_token_counts():
    limit = itl_rate(laws_of(profile(QWEN))[1], CHAT, 0.05)
    seen = observations(QWEN, CHAT, 2, lambda t: 2 * limit * 0.4, 1800)
    bare = [replace(o, load=replace(o.load, step_tokens=None, gpu_utilization_fraction=None)) for o in seen]
    pool = pool_that_saw(bare, profile=QWEN)
    assert learned(pool).steps.weight > 50
    assert itl_rate(law_of(pool), CHAT, 0.05) == pytest.approx(limit, rel=0.1)


def test_the_kv_cache_of_an_unknown_replica_is_told_from_its_use():
    known = profile(QWEN)
    limit = itl_rate(laws_of(known)[1], CHAT, 0.05)
    seen = observations(QWEN, CHAT, 2, lambda t: 2 * limit * 0.4, 1800)
    pool = pool_that_saw(seen)
    model = pool.autoscaler.capacity_model
    assert model.engine(learned(pool)).kv_tokens == pytest.approx(known.kv_capacity_tokens, rel=0.15)
    assert model.engine(learned(pool_that_saw(seen[:3]))).kv_tokens == model.told.kv_tokens  # too early
    told = pool_that_saw(seen, kv_capacity_tokens=90_000)
    assert told.autoscaler.capacity_model.engine(learned(told)).kv_tokens == 90_000
    assert model.engine(learned(pool)).budget_tokens >= model.told.budget_tokens


def test_beliefs_are_written_down_and_read_back_whole():
    seen = observations(QWEN, CHAT, 2, lambda t: 5.0, 900)
    pool = pool_that_saw(seen, profile=QWEN)
    beliefs = learned(pool)
    again = pool_that_saw(seen[:1], profile=QWEN)
    again.restore(pool.snapshot())
    assert learned(again) == beliefs
    assert again.snapshot() == pool.snapshot()


def test_before_any_data_it_is_the_prior():
    pool = pool_that_saw([], profile=QWEN)
    prior = LearnedCapacity(ReplicaSettings(profile=QWEN), StartupSettings(), Slo()).prior
    told = pool.autoscaler.capacity_model.capacity(learned(pool), Lengths(), 4)
    known = prior.capacity(prior.start(), Lengths(), 4)
    assert told.source == known.source == "prior"
    assert told.feasible(4) == pytest.approx(known.feasible(4), rel=0.005)
    assert told.startup_seconds == known.startup_seconds


def test_a_refit_keeps_what_was_learned_meanwhile():
    seen = observations(QWEN, CHAT, 2, lambda t: 5.0, 600)
    pool = pool_that_saw(seen[:30], profile=QWEN)
    beliefs = pool.autoscaler.refit(pool.memory)
    for observation in seen[30:]:
        pool.step(observation)
    pool.memory = pool.autoscaler.adopt(pool.memory, beliefs)
    kept, whole = learned(pool), learned(pool_that_saw(seen, profile=QWEN))
    assert kept.twin is not None
    assert replace(kept, twin=None, gain=whole.gain) == whole


STEADY = Curve(idle=0.0003, share=0.01, slope=15.0)


def gained(late: float, load: float, windows: int = 360) -> Gain:
    """After an hour at `load` feasible loads with `late` of 100 requests per window beyond the limit."""
    from autoscaler.types import Histogram, Latency, Observation, Replicas

    now = Observation(
        pool="chat", at_seconds=1000, window_seconds=10, replicas=Replicas(desired=4, ready=4),
        latency=Latency(
            itl=Histogram(upper_bounds=(0.05,), counts=(100.0 - late, late)), served_requests=100.0
        ),
    )  # fmt: skip
    gain = Gain(load=load, ready=4)
    for _ in range(windows):
        gain = corrected(gain, now, (math.inf, 0.05), STEADY, 1.0)
    return gain


def test_late_answers_move_the_factor_to_where_they_are_expected():
    for true in (0.8, 0.9, 1.0, 1.1):
        share = STEADY.idle + STEADY.share * math.exp(STEADY.slope * (0.85 / true - 1.0))
        gain = gained(100.0 * share, 0.85)
        assert math.exp(gain.log) == pytest.approx(true, abs=0.08), true
        assert gain.variance < 0.5 * SIGMA**2


def test_far_below_the_limit_nothing_is_learned_of_it():
    gain = gained(0.0, 0.3)
    assert gain.log < 0.01
    assert gain.variance > 0.9 * SIGMA**2


def test_more_late_answers_never_raise_the_factor():
    factors = [gained(late, 0.9).log for late in (0.0, 0.2, 0.5, 1.0, 3.0, 20.0)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] < -0.2 < 0.05 < factors[0]


def test_columns_are_shares_of_the_window_by_the_prior():
    law = replace(GENERIC_LAW, floor=64.0)
    window = Window(
        seconds=100.0,
        steps=5000.0,
        prefill=1e5,
        decode=2e5,
        context=1e8,
        pairs=0.0,
        requests=0.0,
        weight=1.0,
        step_tokens=None,
    )
    columns = columns_of(window, (law,))
    whole = law.a * 5000 + law.b * (3e5 + 24 * 5000) + (law.c - law.b) * 2e5 + law.d * 1e8
    assert predicted(columns, (1.0, 1.0, 1.0, 1.0), 0) == pytest.approx(whole / 100.0)


def test_a_replica_without_a_floor_is_told_from_one_with():
    """A profile has two laws; the windows of a replica of either say which it is."""
    known = profile(QWEN)
    limit = itl_rate(laws_of(known)[1], CHAT, 0.05)
    linear = replace(
        worlds_model(known), a=known.linear.a, b=known.linear.b, c=max(0.0, known.linear.c - known.linear.b), d=known.linear.d,
        e=known.linear.e, floor_tokens=0.0,
    )  # fmt: skip
    for model, true in ((linear, laws_of(known)[0]), (worlds_model(known), laws_of(known)[1])):
        here = worlds.World(model=model, mix=CHAT, replicas=2, slo=Slo())
        seen = worlds.observations(here, lambda t: 2 * limit * (0.1 + 0.25 * t / 1800), 1800)
        found = law_of(pool_that_saw(seen, profile=QWEN))
        assert found.floor == true.floor
        assert itl_rate(found, CHAT, 0.05) == pytest.approx(itl_rate(true, CHAT, 0.05), rel=0.03)


def test_nothing_of_a_law_is_negative():
    assert nonnegative([[2.0, 0.0], [0.0, 2.0]], [2.0, 4.0]) == pytest.approx((1.0, 2.0))
    assert nonnegative([[2.0, 0.0], [0.0, 2.0]], [2.0, -4.0]) == pytest.approx((1.0, 0.0))
    assert nonnegative([[1.0]], [-1.0]) == (0.0,)


def test_work_keeps_its_unit_whatever_is_learned():
    """Forecasts compare today's work with last week's: weights are the prior's, what replicas carry is not."""
    limit = itl_rate(laws_of(profile(H100))[1], CHAT, 0.05)
    seen = observations(H100, CHAT, 2, lambda t: 2 * limit * 0.4, 1800)
    pool = pool_that_saw(seen)
    assert pool.last_step is not None
    capacity = pool.last_step.capacity
    assert capacity is not None
    assert capacity.source == "learned"
    first = pool_that_saw(seen[:1]).last_step
    assert first is not None
    assert first.capacity is not None
    assert capacity.seconds_per_prompt_token == pytest.approx(GENERIC_LAW.b, rel=1e-3)
    assert capacity.feasible(2) > 1.5 * first.capacity.feasible(2)


def test_digits_are_the_same_again():
    seen = observations(QWEN, CHAT, 2, lambda t: 4.0, 600)
    beliefs = learned(pool_that_saw(seen, profile=QWEN))
    assert beliefs == learned(pool_that_saw(seen, profile=QWEN))
    import json

    assert decode(LearnedBeliefs, json.loads(encode(beliefs))) == beliefs


def test_what_the_prefix_cache_holds_is_no_work_but_context():
    """Half of every prompt is cached: the share is learned, and more requests are carried, of less work each."""
    limit = itl_rate(laws_of(profile(QWEN))[1], CHAT, 0.05)
    pools = [
        worlds.watch(
            Pool.from_config({"name": "chat", "replica": {"profile": QWEN}}),
            worlds.observations(world(QWEN, CHAT, cached_fraction=half), lambda t: 0.6 * limit, 3600.0),
        )
        for half in (0.0, 0.5)
    ]
    shares = [learned(pool).cached for pool in pools]
    assert shares[0] == 0.0
    assert shares[1] == pytest.approx(0.5, abs=0.02)
    rates = []
    for pool in pools:
        assert pool.last_step is not None
        capacity = pool.last_step.capacity
        assert capacity is not None
        share = learned(pool).cached or 0.0
        prompt, output = 1000.0 * (1.0 - share), 200.0
        work = capacity.seconds_per_prompt_token * prompt + capacity.seconds_per_output_token * output
        rates.append(capacity.feasible(2) / work)
    assert 1.3 < rates[1] / rates[0] < 1.9


def test_a_queue_that_drains_is_no_steady_load():
    """Who waits longer than the limit is late whatever a replica carries; a few that wait are usual."""
    now = observations(QWEN, CHAT, 2, lambda t: 5.0, 300)[-1]
    gain = Gain(load=0.5, slow=0.5, ready=2, ready_since_seconds=now.at_seconds - 600)
    first = now.latency.ttft.total
    few, many = (replace(now, load=replace(now.load, waiting_requests=w)) for w in (0.1 * first, 2.0 * first))
    assert gains.steady(gains.seen(gain, few, 1.0, 2.0), few)
    queued = gains.seen(gain, many, 1.0, 2.0)
    assert not gains.steady(queued, many)
    later = [replace(few, at_seconds=now.at_seconds + s) for s in (60, 130)]
    assert [gains.steady(gains.seen(queued, o, 1.0, 2.0), o) for o in later] == [False, True]
