"""llm-d's laws for KEDA against vectors worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.errors import ConfigError
from autoscaler.laws import keda_llmd as law
from autoscaler.schema import build

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "keda_llmd.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["slo"], ids=lambda c: c["why"])
def test_latency_law(case: dict[str, Any]) -> None:
    assert law.slo_demand(law.SloSpec(), **case["inputs"]) == case["expect"]


@pytest.mark.parametrize("case", GOLDEN["signals"], ids=lambda c: c["why"])
def test_signal(case: dict[str, Any]) -> None:
    spec, samples = law.SloSpec(), ()
    for at, share in case["samples"]:
        samples = law.remember(spec, samples, at_seconds=at, share=share)
    found = law.signal(samples, nan_is_zero=case["nan_is_zero"])
    assert found == (None if case["expect"] is None else pytest.approx(case["expect"]))


@pytest.mark.parametrize("case", GOLDEN["tokens"], ids=lambda c: c["why"])
def test_token_law(case: dict[str, Any]) -> None:
    assert law.token_demand(law.TokenSpec(prefill_tokens_per_second=15_928), **case["inputs"]) == case["expect"]


@pytest.mark.parametrize("case", GOLDEN["guards"], ids=lambda c: c["why"])
def test_overshoot_guard(case: dict[str, Any]) -> None:
    assert law.guarded(**case["inputs"]) == case["expect"]


def test_the_larger_share_counts_and_a_missing_one_does_not() -> None:
    limits = {"ttft_slo_seconds": 1.0, "tpot_slo_seconds": 0.05}
    assert law.share_of_slo(0.5, 0.04, **limits) == pytest.approx(0.8)
    assert law.share_of_slo(0.5, None, **limits) == 0.5
    assert law.share_of_slo(None, None, **limits) is None


def test_thresholds_must_be_in_order() -> None:
    with pytest.raises(ConfigError, match=r"law\.down_threshold: 0\.7 must be <= up_threshold 0\.55"):
        build(law.SloSpec, {"down_threshold": 0.7}, "law")


@given(signal=st.floats(0, 2), replicas=st.integers(1, 200), more=st.floats(0, 1))
def test_a_slower_pool_never_gets_fewer_when_all_are_ready(signal: float, replicas: int, more: float) -> None:
    spec = law.SloSpec()
    slow = law.slo_demand(spec, signal=min(2.0, signal + more), replicas=replicas, ready=replicas)
    fast = law.slo_demand(spec, signal=signal, replicas=replicas, ready=replicas)
    assert slow is not None
    assert fast is not None
    assert slow >= fast >= 0


@given(demand=st.integers(0, 100), replicas=st.integers(0, 100), pending=st.integers(0, 100))
def test_the_guard_only_takes_off_what_was_added(demand: int, replicas: int, pending: int) -> None:
    found = law.guarded(demand, replicas=replicas, pending=pending)
    assert min(demand, replicas) <= found <= demand
