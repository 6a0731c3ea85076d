"""Dynamo's planner rules and predictors against vectors worked out by hand from its source."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.laws import dynamo
from autoscaler.laws import dynamo_predict as predict

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "dynamo.json").read_text())
LAW = dynamo.EngineLaw(**GOLDEN["law"])
PROMISE = dynamo.Promise(ttft_seconds=1.0, itl_seconds=0.05)


@pytest.mark.parametrize("case", GOLDEN["rates"], ids=lambda c: c["why"])
def test_what_an_engine_can_do(case: dict[str, Any]) -> None:
    found = dynamo.engine_rate(dynamo.EngineLaw(**case["law"]), dynamo.Promise(**case["promise"]), **case["inputs"])
    if case["expect"] is None:
        assert found is None
    else:
        assert found is not None
        assert found.requests_per_second == pytest.approx(case["expect"])


@given(
    a=st.floats(0.001, 0.05), b=st.floats(0, 1e-4), c=st.floats(0, 2e-3), d=st.floats(0, 1e-7),
    prompt=st.floats(1, 20_000), output=st.floats(1, 2_000), kv=st.integers(1_000, 2_000_000),
    ttft=st.floats(0.05, 3), itl=st.floats(0.005, 0.2), hit=st.floats(0, 0.9),
)  # fmt: skip
def test_bisection_finds_what_a_sweep_finds(
    a: float, b: float, c: float, d: float, prompt: float, output: float, kv: int, ttft: float, itl: float, hit: float
) -> None:
    law = dynamo.EngineLaw(a=a, b=b, c=c, d=d, max_num_batched_tokens=2048, max_num_seqs=64, max_kv_tokens=kv)
    promise = dynamo.Promise(ttft_seconds=ttft, itl_seconds=itl)
    found = dynamo.engine_rate(law, promise, prompt_tokens=prompt, output_tokens=output, hit=hit)
    best = None
    for batch in range(1, dynamo._largest_batch(law, prompt, output, hit) + 1):
        rate = dynamo._rate(law, batch, prompt, output, hit)
        broken = rate.itl_seconds > itl or rate.ttft_seconds > ttft
        if best is None or not broken:
            best = rate
        if broken:
            break
    assert found == best


@pytest.mark.parametrize("case", GOLDEN["throughput"], ids=lambda c: c["why"])
def test_throughput_rule(case: dict[str, Any]) -> None:
    assert dynamo.throughput_replicas(**case["inputs"]) == case["expect"]


@pytest.mark.parametrize("case", GOLDEN["by_sla"], ids=lambda c: c["why"])
def test_load_rule_by_sla(case: dict[str, Any]) -> None:
    habits = dynamo.Habits(
        prompt_tokens=1000, decode_tokens=500, prefill_tokens_per_step=case["prefill_tokens_per_step"]
    )
    engines = [dynamo.Engine(*e) for e in case["engines"]]
    assert dynamo.load_by_sla(LAW, PROMISE, habits, engines) == case["expect"]


@pytest.mark.parametrize("case", GOLDEN["by_use"], ids=lambda c: c["why"])
def test_load_rule_by_use(case: dict[str, Any]) -> None:
    engines = [dynamo.Engine(0, use * LAW.max_kv_tokens, 1) for use in case["use"]]
    assert dynamo.load_by_use(LAW, case["target"], engines) == case["expect"]


def test_waiting_prompts_fill_the_cache_in_the_easy_modes() -> None:
    assert dynamo.load_by_use(LAW, "throughput", [dynamo.Engine(60_000, 50_000, 1)]) == 2


@pytest.mark.parametrize("case", GOLDEN["kalman"], ids=lambda c: c["why"])
def test_kalman(case: dict[str, Any]) -> None:
    spec, state = predict.KalmanSpec(least_points=case["least_points"]), predict.KalmanState()
    for value in case["values"]:
        state = predict.kalman_add(spec, state, value)
    assert predict.kalman_next(spec, state) == pytest.approx(case["expect"], abs=1e-5)


def test_kalman_learns_a_slope() -> None:
    spec, state = predict.KalmanSpec(), predict.KalmanState()
    for i in range(100):
        state = predict.kalman_add(spec, state, 50.0 + 3.0 * i)
    assert predict.kalman_next(spec, state) == pytest.approx(50 + 3 * 100, abs=0.5)


def _fed(values: list[float]) -> predict.ArimaState:
    state = predict.ArimaState()
    for value in values:
        state = predict.arima_add(state, value)
    return state


def test_arima_says_the_last_value_before_five_points_and_a_constant_for_a_constant() -> None:
    assert predict.arima_next(_fed([]))[0] == 0.0
    assert predict.arima_next(_fed([0, 0, 3, 8, 4]))[0] == 4
    assert predict.arima_next(_fed([7.0] * 9))[0] == 7.0


def test_arima_as_shipped_is_the_mean_of_all_it_ever_saw() -> None:
    """These five show neither AR nor MA terms, as most do, and the order is never chosen again."""
    first = [100.0, 120.0, 110.0, 90.0, 105.0]
    following, state = predict.arima_next(_fed(first))
    assert state.logarithmic
    assert following == pytest.approx(math.prod(v + 1 for v in first) ** (1 / 5) - 1)
    for value in [1000.0 + 10 * (i % 3) for i in range(15)]:
        state = predict.arima_add(state, value)
    stuck, _ = predict.arima_next(state)
    assert stuck == pytest.approx(math.prod(v + 1 for v in state.values) ** (1 / 20) - 1)
    assert stuck < 600  # three quarters of what it saw was above 1000
    anew, _ = predict.arima_next(state, choose_every=80)
    assert anew > 900


def test_predictions_are_never_negative_and_leave_the_state_alone() -> None:
    state = _fed([500.0, 400.0, 300.0, 200.0, 100.0, 10.0, 1.0, 0.0])
    value, after = predict.arima_next(state, choose_every=80)
    assert value >= 0
    assert predict.arima_next(after, choose_every=80) == (value, after)


def test_the_order_is_looked_at_again_after_a_quarter_more_values() -> None:
    state, looks = _fed([100.0, 120.0, 110.0, 90.0, 105.0]), []
    for i in range(200):
        before = state.chosen_at
        _, state = predict.arima_next(state, choose_every=20)
        if state.chosen_at != before:
            looks.append(state.chosen_at)
        state = predict.arima_add(state, 100.0 + 17 * (i % 5) + 3 * (i % 7))
    assert looks[:9] == [5, 6, 7, 8, 10, 12, 15, 18, 22]
    assert looks[-1] - looks[-2] == 20
