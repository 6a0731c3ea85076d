"""The twin beside the simulated fleet, which shares no code with it; its orders; and what becomes of it in beliefs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from capacity_world import observations, pool_that_saw, world

from autoscaler.settings import Slo
from load_tests import bench_capacity_world as worlds
from serving import twin
from serving.capacity import engine_of, laws_of
from serving.capacity_learned import LearnedCapacity
from serving.closed_forms import Mix, itl_rate
from serving.profiles import Profile, profile

H100, QWEN = "llama-3.1-8b_bf16_h100_tp1", "qwen3-32b_bf16_h100_tp2"
CHAT = Mix(prompt=1000.0, output=200.0, prompt_cv=1.0, output_cv=0.8)
LONG = Mix(prompt=2500.0, output=60.0, prompt_cv=0.6, output_cv=0.8)


def rate(known: Profile, mix: Mix, replicas: int = 2, **changes) -> float:
    law = replace(laws_of(known)[1], **changes)
    found = twin.twin_rate(law, mix, engine_of(known), Slo(), replicas, "least_loaded", itl_rate(law, mix, 0.05) / 2)
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mix"), [(H100, CHAT), (QWEN, CHAT), (QWEN, LONG)])
def test_it_carries_what_the_simulated_fleet_carries(name, mix):
    known, here = profile(name), world(name, mix, 8)
    ceiling = 1.3 * itl_rate(laws_of(known)[1], mix, 0.05)
    fleet = worlds.feasible_rate(here, ceiling, range(8))
    assert rate(known, mix, 8) == pytest.approx(fleet, rel=0.04)  # 3 %, and chance in the fleet


def test_more_replicas_carry_no_less_each_and_dearer_steps_no_more():
    known = profile(QWEN)
    by_size = [rate(known, CHAT, n) for n in (1, 2, 4, 8)]
    assert by_size == sorted(by_size)
    law, usual = laws_of(known)[1], by_size[1]
    for name in ("a", "b", "c", "d"):
        assert rate(known, CHAT, **{name: 1.3 * getattr(law, name)}) < usual * 1.005


def test_limits_of_the_engine_hold_in_it():
    known, law = profile(QWEN), laws_of(profile(QWEN))[1]
    free = rate(known, CHAT)
    few = replace(engine_of(known), seats=8.0)
    seats = twin.twin_rate(law, CHAT, few, Slo(), 2, "least_loaded", free)
    small = replace(engine_of(known), kv_tokens=20_000.0)
    cache = twin.twin_rate(law, CHAT, small, Slo(), 2, "least_loaded", free)
    assert seats is not None
    assert cache is not None
    assert seats < 0.8 * free
    assert cache < 0.9 * free


def test_the_same_again_is_the_same():
    assert rate(profile(QWEN), CHAT) == rate(profile(QWEN), CHAT)


def test_a_refit_corrects_the_closed_forms_and_is_kept_while_lengths_stay():
    limit = itl_rate(laws_of(profile(QWEN))[1], LONG, 0.05)
    seen = observations(QWEN, LONG, 2, lambda t: 2 * limit * 0.3, 900)
    pool = pool_that_saw(seen, profile=QWEN)
    model = pool.autoscaler.capacity_model
    assert isinstance(model, LearnedCapacity)
    before = pool.memory.beliefs.capacity
    refitted = model.refit(before, seen[-10:])
    after = model.adopt(before, refitted)
    assert refitted.twin is not None
    assert refitted.twin.log != 0.0
    assert after.gain.variance < before.gain.variance
    assert model.caution(after, 2) > model.caution(before, 2)
    assert model.adopt(after, refitted) == after
    assert model.refit(after, seen[-10:]) is after  # nothing has changed
    longer = replace(after, point=(after.point[0] + 10, *after.point[1:]))
    assert model.refit(longer, seen[-10:]).twin != after.twin


def test_without_the_compiled_extra_closed_forms_speak(monkeypatch):
    monkeypatch.setattr(twin, "_kernel", lambda: None)
    seen = observations(QWEN, CHAT, 2, lambda t: 5.0, 300)
    pool = pool_that_saw(seen, profile=QWEN)
    beliefs = pool.memory.beliefs.capacity
    model = pool.autoscaler.capacity_model
    assert model.refit(beliefs, seen[-10:]) == beliefs
    assert not twin.available()
