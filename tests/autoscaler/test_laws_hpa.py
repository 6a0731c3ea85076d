"""The HPA law against vectors worked out by hand from the controller's formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.errors import ConfigError
from autoscaler.laws import hpa
from autoscaler.schema import build

GOLDEN = Path(__file__).parent.parent / "golden"
PROPOSALS = json.loads((GOLDEN / "hpa_proposals.json").read_text())["cases"]
SEQUENCES = json.loads((GOLDEN / "hpa_sequences.json").read_text())["sequences"]


def _spec(tolerance: float) -> hpa.HpaSpec:
    up = hpa.ScalingRules(policies=hpa.default_scale_up().policies, tolerance=tolerance)
    down = hpa.ScalingRules(policies=hpa.default_scale_down().policies, tolerance=tolerance)
    return hpa.HpaSpec(scale_up=up, scale_down=down)


@pytest.mark.parametrize("case", PROPOSALS, ids=lambda c: c["why"])
def test_one_metric(case: dict[str, Any]) -> None:
    spec = _spec(case["spec"]["tolerance"]) if "spec" in case else hpa.HpaSpec()
    assert getattr(hpa, case["law"])(spec, **case["inputs"]) == case["expect"]


@pytest.mark.parametrize("case", SEQUENCES, ids=lambda c: c["why"])
def test_a_sequence_of_syncs(case: dict[str, Any]) -> None:
    spec = build(hpa.HpaSpec, case["spec"])
    current, state = case["start"], hpa.HpaState()
    seen = []
    for step in case["steps"]:
        current, state = hpa.sync(spec, state, at_seconds=step["at"], current=current, proposals=step["proposals"])
        seen.append(current)
    assert seen == [step["expect"] for step in case["steps"]]


def test_older_clients_acted_on_ten_to_eleven() -> None:
    # abs(1 - 1.1) > 0.1 in floats: the form before 1.33; the one here says 1.1 <= 1.1.
    assert abs(1 - 1.1) > 0.1
    assert hpa.external_average(hpa.HpaSpec(), total=11, target=1, replicas=10) == 10


def test_the_size_at_the_start_counts_as_a_proposal() -> None:
    spec, state = hpa.HpaSpec(), hpa.start(at_seconds=0, current=10)
    current, state = hpa.sync(spec, state, at_seconds=0, current=10, proposals=(2,))
    assert current == 10
    current, state = hpa.sync(spec, state, at_seconds=299, current=10, proposals=(2,))
    assert current == 10
    assert hpa.sync(spec, state, at_seconds=300, current=10, proposals=(2,))[0] == 2


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"hpa\.max_replicas: 2 is below min_replicas 3"):
        build(hpa.HpaSpec, {"min_replicas": 3, "max_replicas": 2}, "hpa")
    with pytest.raises(ConfigError, match=r"hpa\.scale_up\.policies: must hold at least one policy"):
        build(hpa.HpaSpec, {"scale_up": {"policies": []}}, "hpa")
    with pytest.raises(ConfigError, match=r"policies\[0\]\.period_seconds: 1801 must be in \[1, 1800\]"):
        build(hpa.HpaSpec, {"scale_up": {"policies": [{"type": "Pods", "value": 1, "period_seconds": 1801}]}})


WALKS = st.lists(
    st.tuples(st.integers(1, 200), st.lists(st.one_of(st.none(), st.integers(0, 500)), min_size=1, max_size=3)),
    max_size=40,
)


@given(walk=WALKS, start=st.integers(1, 60), low=st.integers(0, 5), high=st.integers(5, 60))
def test_a_sync_stays_within_bounds_and_policies(
    walk: list[tuple[int, list[int | None]]], start: int, low: int, high: int
) -> None:
    spec = hpa.HpaSpec(min_replicas=low, max_replicas=high)
    now, current, state = 0, start, hpa.HpaState()
    for wait, proposals in walk:
        now += wait
        before = current
        current, state = hpa.sync(spec, state, at_seconds=now, current=current, proposals=proposals)
        if before:
            assert low <= current <= high
        assert current <= max(high, 2 * before, before + 4)
        if all(p is None for p in proposals) and low <= before <= high:
            assert current == before
        assert len(state.proposals) <= 301
        assert max(len(state.ups), len(state.downs)) <= 15


@given(walk=WALKS, start=st.integers(1, 60))
def test_down_only_to_what_was_proposed_in_the_window(walk: list[tuple[int, list[int | None]]], start: int) -> None:
    spec = hpa.HpaSpec(max_replicas=1000)
    now, current, state = 0, start, hpa.HpaState()
    proposed: list[tuple[int, int]] = []
    for wait, proposals in walk:
        now += wait
        before = current
        current, state = hpa.sync(spec, state, at_seconds=now, current=current, proposals=proposals)
        best = hpa.largest(proposals, before)
        if best is not None:
            proposed.append((now, best))
        recent = [p for at, p in proposed if now - at < 300]
        if current < before:
            assert current >= max(1, max(recent))
