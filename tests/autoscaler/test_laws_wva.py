"""WVA's two analyzers against vectors worked out by hand from its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.laws import wva

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "wva.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["v1"], ids=lambda c: c["why"])
def test_v1(case: dict[str, Any]) -> None:
    assert wva.v1(wva.V1Spec(), **case["inputs"]) == case["expect"]


@pytest.mark.parametrize("case", GOLDEN["v2_wanted"], ids=lambda c: c["why"])
def test_v2_number(case: dict[str, Any]) -> None:
    assert wva.wanted(wva.V2Spec(), **case["inputs"]) == case["expect"]


@pytest.mark.parametrize("case", GOLDEN["v2"], ids=lambda c: c["why"])
def test_v2_capacity(case: dict[str, Any]) -> None:
    engine, state = wva.EngineLimits(**case["engine"]), wva.V2State()
    for step in case["steps"]:
        found, state = wva.v2(
            wva.V2Spec(),
            state,
            engine=engine,
            readings=[wva.Reading(*r) for r in step["readings"]],
            ready=step["ready"],
            pending=step["pending"],
            mean_prompt_tokens=step["prompt"],
            mean_output_tokens=step["output"],
            queued_upstream=step.get("upstream", 0.0),
        )
        assert (found, state.capacity_tokens) == (step["expect"], step["capacity"])


def test_only_the_last_ten_observations_count() -> None:
    engine = wva.EngineLimits(kv_capacity_tokens=400_000, max_num_batched_tokens=8192, max_num_seqs=256)
    state = wva.V2State()
    for tokens in (300_000, *[100_000] * 10):
        _, state = wva.v2(
            wva.V2Spec(), state, engine=engine, readings=[wva.Reading(tokens, 5)], ready=1, pending=0,
            mean_prompt_tokens=1000, mean_output_tokens=200,
        )  # fmt: skip
    assert state.observed == (("medium", (100_000.0,) * 10),)


@given(
    demand=st.floats(0, 1e8), more=st.floats(0, 1e7), ready=st.integers(0, 100), pending=st.integers(0, 100),
    capacity=st.integers(1000, 10**6),
)  # fmt: skip
def test_v2_more_demand_never_fewer_replicas(
    demand: float, more: float, ready: int, pending: int, capacity: int
) -> None:
    def of(tokens: float) -> int:
        return wva.wanted(wva.V2Spec(), demand=tokens, capacity=capacity, ready=ready, pending=pending)

    assert of(demand + more) >= of(demand) >= 0


@given(
    kv=st.lists(st.floats(0, 1), min_size=1, max_size=20), queue=st.integers(0, 9), current=st.integers(1, 25),
    published=st.integers(0, 25), blocked=st.booleans(),
)  # fmt: skip
def test_v1_moves_by_one_and_only_at_rest(
    kv: list[float], queue: int, current: int, published: int, blocked: bool
) -> None:
    found = wva.v1(
        wva.V1Spec(), kv_fractions=kv, waiting=[queue] * len(kv), current=current, published=published,
        blocked_by_transition=blocked,
    )  # fmt: skip
    if not blocked:
        assert abs(found - max(current, len(kv))) <= 1
    elif published in (0, current) and len(kv) == current:
        assert abs(found - current) <= 1
    else:
        assert found in (current, published)
