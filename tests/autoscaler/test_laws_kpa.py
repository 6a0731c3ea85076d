"""The KPA law against vectors worked out by hand from Knative's formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.laws import kpa
from autoscaler.schema import build

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "kpa.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["averages"], ids=lambda c: c["why"])
def test_window_average(case: dict[str, Any]) -> None:
    spec, state = kpa.KpaSpec(), kpa.KpaState()
    for second, value in case["records"]:
        state = kpa.record(spec, state, second=second, concurrency=value)
    first = state.first_panic if case["window"] == spec.panic_window_seconds else state.first_stable
    assert kpa.average(state, at_seconds=case["at"], window_seconds=case["window"], first=first) == case["expect"]


@pytest.mark.parametrize("case", GOLDEN["sequences"], ids=lambda c: c["why"])
def test_a_story(case: dict[str, Any]) -> None:
    spec = build(kpa.KpaSpec, case["spec"])
    begin = case["start"]
    state = kpa.start(at_seconds=begin["at"], ready=begin["ready"])
    current, seen = begin.get("current", begin["ready"]), {}
    for phase in case["phases"]:
        for second in range(phase["since"], phase["until"]):
            if phase["concurrency"] is not None:
                state = kpa.record(spec, state, second=second, concurrency=phase["concurrency"])
            if second % 2 == 0:
                current, state = kpa.scale(spec, state, at_seconds=second, ready=phase["ready"], current=current)
                seen[second] = current
    assert [[at, seen[at]] for at, _ in case["expect"]] == case["expect"]


def test_time_does_not_run_back() -> None:
    state = kpa.record(kpa.KpaSpec(), kpa.KpaState(), second=5, concurrency=1.0)
    with pytest.raises(ValueError, match="second 4 is before 5"):
        kpa.record(kpa.KpaSpec(), state, second=4, concurrency=1.0)


def test_windows() -> None:
    assert kpa.KpaSpec().target == 70
    assert kpa.KpaSpec().panic_window_seconds == 6
    assert kpa.KpaSpec(stable_window_seconds=6).panic_window_seconds == 1


@given(
    loads=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 30)), min_size=1, max_size=80),
    low=st.integers(0, 3),
    high=st.integers(4, 20),
)
def test_never_down_in_panic_and_always_in_bounds(loads: list[tuple[int, int]], low: int, high: int) -> None:
    spec = kpa.KpaSpec(min_replicas=low, max_replicas=high)
    state, current = kpa.start(at_seconds=0, ready=1), 1
    for i, (concurrency, ready) in enumerate(loads):
        for second in (2 * i, 2 * i + 1):
            state = kpa.record(spec, state, second=second, concurrency=concurrency)
        was_in_panic, before = state.panic_since_seconds is not None, current
        current, state = kpa.scale(spec, state, at_seconds=2 * i + 1, ready=ready, current=current)
        assert low <= current <= high
        assert len(state.buckets) <= 60
        if was_in_panic and state.panic_since_seconds is not None:
            assert current >= before
