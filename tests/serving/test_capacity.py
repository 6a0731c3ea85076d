"""What one replica is believed to carry: worked digits, order, and what the mix does."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.errors import ConfigError
from autoscaler.settings import ReplicaSettings, Slo, StartupSettings
from autoscaler.types import Capacity, Lengths
from serving.capacity import SIZES, PriorCapacity, feasible_rates, laws_of, mean_rate
from serving.closed_forms import Engine, Mix, itl_rate, kv_rate, output_weight, prompt_weight, request_work, seat_rate
from serving.pooling import Routed
from serving.prefills import length_at, longer_share
from serving.profiles import profile, profile_ids
from serving.tails import violations

LLAMA = "llama-3.1-8b_bf16_h100_tp1"
FIXED = Mix(prompt=1000.0, output=200.0)  # every request alike
CHAT = Mix(prompt=1000.0, output=200.0, prompt_cv=1.0, output_cv=0.8)
ENGINE = Engine(kv_tokens=440_180, seats=256, budget_tokens=8192, ingress_seconds=0.0156)


def model(name=LLAMA, slo=None, **replica):
    return PriorCapacity(ReplicaSettings(profile=name, **replica), StartupSettings(), slo or Slo())


def told(capacity_model, prompt=1000.0, output=200.0, replicas=4, **cv) -> Capacity:
    lengths = Lengths(mean_prompt_tokens=prompt, mean_output_tokens=output, **cv)
    return capacity_model.capacity(capacity_model.start(), lengths, replicas)


def test_the_worked_example_of_work():
    law = laws_of(profile(LLAMA))[0]
    assert prompt_weight(law, FIXED) * 1e6 == pytest.approx(16.63, abs=0.005)
    assert output_weight(law, FIXED) * 1e6 == pytest.approx(115.3, abs=0.05)
    work = request_work(law, FIXED)
    assert work * 1e3 == pytest.approx(39.70, abs=0.005)
    assert 100 * work == pytest.approx(3.97, abs=0.005)
    half_cached = 500 * prompt_weight(law, FIXED) + 200 * output_weight(law, FIXED)
    assert 100 * half_cached == pytest.approx(3.14, abs=0.005)


def test_the_worked_example_at_fifteen_requests_per_second():
    law = laws_of(profile(LLAMA))[0]
    load = 15 * request_work(law, FIXED)
    itl = law.a / (1 - load)
    assert load == pytest.approx(0.596, abs=0.001)
    assert itl * 1e3 == pytest.approx(15.3, abs=0.1)
    assert 15 * 200 * itl == pytest.approx(46, abs=0.5)


def test_the_worked_example_of_limits_for_means():
    law = laws_of(profile(LLAMA))[0]
    assert itl_rate(law, FIXED, 0.05) == pytest.approx(22.1, abs=0.05)
    assert kv_rate(law, FIXED, 440_180) == pytest.approx(23.4, abs=0.15)
    assert seat_rate(law, FIXED, 256) == pytest.approx(22.5, abs=0.05)


@pytest.mark.parametrize("name", [None, *profile_ids()])
@pytest.mark.parametrize(("prompt", "output"), [(1000.0, 200.0), (4000.0, 100.0), (1.0, 1.0), (30_000.0, 2000.0)])
def test_every_profile_gives_a_capacity_in_order(name, prompt, output):
    capacity = told(model(name), prompt, output)
    assert [n for n, _ in capacity.feasible_load] == list(SIZES)
    loads = [load for _, load in capacity.feasible_load]
    assert all(0.0 < a <= b + 1e-9 for a, b in pairwise(loads))
    assert loads[-1] < 1.0
    assert [q for q, _ in capacity.startup_seconds] == [0.5, 0.9, 0.95, 0.99]
    assert capacity.mean_output_tokens == pytest.approx(output, rel=0.011)


def test_an_unknown_replica_is_trusted_less():
    generic = told(model(None))
    assert generic.source == "generic prior"
    assert generic.feasible(4) < told(model("llama-3.1-8b_bf16_a100_tp1")).feasible(4)


def test_lengths_that_were_not_measured_are_the_settings():
    m = model(mean_prompt_tokens=3000.0, mean_output_tokens=50.0)
    assert told(m, None, None) == told(m, 3000.0, 50.0)
    assert told(m, None, None) != told(m, 1000.0, 200.0)


def test_what_the_engine_is_started_with_matters():
    assert told(model(max_num_seqs=16)).feasible(4) < 0.5 * told(model()).feasible(4)
    assert told(model(kv_capacity_tokens=20_000)).feasible(4) < 0.5 * told(model()).feasible(4)


def test_a_laxer_slo_carries_no_less_and_a_stricter_share_no_more():
    usual = told(model("llama-3.1-70b_bf16_h100_tp4"))
    lax = told(model("llama-3.1-70b_bf16_h100_tp4", Slo(ttft_seconds=2.0, itl_seconds=0.1)))
    strict = told(model("llama-3.1-70b_bf16_h100_tp4", Slo(attainment_fraction=0.999)))
    assert strict.feasible(1) < usual.feasible(1) < lax.feasible(1)


def test_loads_move_smoothly_with_the_mix():
    m = model()
    loads = [told(m, 1000.0 * 1.02**i, 200.0 * 1.02 ** (i // 2)).feasible(4) for i in range(40)]
    assert all(abs(a - b) < 0.02 * a for a, b in pairwise(loads))


def test_refit_learns_nothing_and_says_so():
    m = model()
    beliefs = m.start()
    assert m.refit(beliefs, ()) is beliefs


def test_an_unknown_profile_is_named_with_its_neighbour():
    with pytest.raises(ConfigError, match="did you mean llama-3.1-8b_bf16_h100_tp1"):
        model("llama-3.1-8b_bf16_h100_tp")


@settings(max_examples=30)
@given(
    st.sampled_from(["a", "b", "c", "d", "e", "floor"]),
    st.floats(1.02, 1.6),
    st.floats(100, 3000),
    st.floats(20, 600),
)
def test_a_slower_replica_carries_no_more(coefficient, factor, prompt, output):
    mix = Mix(prompt=prompt, output=output, prompt_cv=1.0, output_cv=0.8)
    slo = Slo(ttft_seconds=5.0, itl_seconds=0.1)
    law = laws_of(profile(LLAMA))[1]
    slower = replace(law, **{coefficient: getattr(law, coefficient) * factor})
    fast, slow = feasible_rates(law, mix, ENGINE, slo), feasible_rates(slower, mix, ENGINE, slo)
    grain = mean_rate(law, mix, ENGINE, slo) / 2**7
    assert all(b <= a + grain for (_, a), (_, b) in zip(fast, slow, strict=True))


@settings(max_examples=30)
@given(st.floats(0.02, 0.9), st.floats(1.05, 1.5), st.sampled_from([1, 2, 8, 32]))
def test_more_load_breaks_the_slo_more_often(share, factor, replicas):
    law = laws_of(profile(LLAMA))[1]
    rate = share * mean_rate(law, CHAT, ENGINE, Slo())
    low = violations(law, CHAT, ENGINE, (1.0, 0.05), rate, Routed(replicas=replicas))
    high = violations(law, CHAT, ENGINE, (1.0, 0.05), rate * factor, Routed(replicas=replicas))
    assert 0.0 <= low <= high + 1e-5 <= 1.0 + 2e-5  # sums are that coarse


def test_adding_up_may_stop_early_but_tells_the_same_side():
    law = laws_of(profile(LLAMA))[0]
    for rate in (5.0, 12.0, 18.0, 20.0, 22.0):
        whole = violations(law, CHAT, ENGINE, (1.0, 0.05), rate, Routed(replicas=1))
        early = violations(law, CHAT, ENGINE, (1.0, 0.05), rate, Routed(replicas=1), 0.01)
        assert (whole > 0.01) == (early > 0.01)


def test_more_replicas_never_break_it_more_often():
    law = laws_of(profile(LLAMA))[0]
    shares = [violations(law, CHAT, ENGINE, (1.0, 0.05), 19.0, Routed(replicas=n)) for n in (1, 2, 4, 16, 64)]
    assert all(b <= a + 1e-9 for a, b in pairwise(shares))
    assert shares[-1] < 0.5 * shares[0]


def test_a_load_test_replaces_the_closed_forms() -> None:
    """The rate that was measured is carried, at the lengths of the test, by pools of every size."""
    settings = ReplicaSettings(
        profile="llama-3.1-70b_bf16_a100_tp4",
        mean_prompt_tokens=800.0,
        mean_output_tokens=14.0,
        feasible_requests_per_second=3.3,
    )
    model = PriorCapacity(settings, StartupSettings(), Slo())
    capacity = told(model, 800.0, 14.0, 10)
    per_request = 800.0 * capacity.seconds_per_prompt_token + 14.0 * capacity.seconds_per_output_token
    assert capacity.source == "load test"
    assert capacity.feasible(1) == capacity.feasible(50)
    assert capacity.feasible(1) / per_request == pytest.approx(3.3, rel=1e-4)
    longer = told(model, 1600.0, 14.0, 10)
    assert longer.feasible(1) == capacity.feasible(1)  # the same work, of fewer longer requests


def test_lengths_that_are_all_alike_are_easier_to_serve():
    """Short answers among equal prompts: no long prompt comes between."""
    m = model("llama-3.1-70b_bf16_a100_tp4", Slo(ttft_seconds=2.0, itl_seconds=0.08))
    alike = told(m, 803.0, 14.0, prompt_cv=0.0, output_cv=0.3)
    chat = told(m, 803.0, 14.0, prompt_cv=1.0, output_cv=0.8)
    assert alike.feasible(8) > 1.7 * chat.feasible(8)
    assert chat == told(m, 803.0, 14.0)  # what is believed until lengths were seen


def test_a_wider_spread_of_prompts_carries_no_more():
    loads = [told(model(), prompt_cv=cv, output_cv=0.8).feasible(1) for cv in (0.0, 0.3, 0.6, 1.0, 1.5, 2.5)]
    assert all(b <= 1.01 * a for a, b in pairwise(loads))


def test_a_router_that_looks_at_all_replicas_helps_most():
    def many(routing):
        m = model("llama-3.1-70b_bf16_a100_tp4", Slo(itl_seconds=0.08), routing=routing)
        return told(m, 800.0, 14.0).feasible(16)

    assert max(many("round_robin"), many("two_choices")) < many("least_loaded")


def test_prompts_of_which_nearly_none_is_in_time_still_have_a_capacity():
    for prompt in 10.0 ** np.arange(3.0, 9.5, 0.02):
        for cv in (0.3, 1.0, 2.0):
            found = told(model(), prompt=float(prompt), prompt_cv=cv)
            assert 0.0 < found.feasible(4) < 2.0, (prompt, cv)


def test_a_length_is_exceeded_by_the_share_that_it_was_asked_for():
    for above in (1e-9, 0.1, 0.5, 0.999):
        assert longer_share(1000.0, 1.0, length_at(1000.0, 1.0, above)) == pytest.approx(above, rel=1e-6)
    assert length_at(1000.0, 1.0, 1.0) == 0.0
    assert length_at(1000.0, 1.0, 0.0) == math.inf
