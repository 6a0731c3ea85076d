"""AIBrix's APA, KPA and cooldown against vectors worked out by hand from its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.laws import aibrix

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "aibrix.json").read_text())
SPEC = aibrix.AibrixSpec()


@pytest.mark.parametrize("case", GOLDEN["apa"], ids=lambda c: c["why"])
def test_apa(case: dict[str, Any]) -> None:
    assert aibrix.apa(SPEC, **case["inputs"]) == case["expect"]


@pytest.mark.parametrize("case", GOLDEN["kpa"], ids=lambda c: c["why"])
def test_kpa(case: dict[str, Any]) -> None:
    assert aibrix.kpa(SPEC, **case["inputs"]) == case["expect"]


@pytest.mark.parametrize("case", GOLDEN["means"], ids=lambda c: c["why"])
def test_windows(case: dict[str, Any]) -> None:
    state = aibrix.AibrixState()
    for at, value in case["samples"]:
        state = aibrix.record(SPEC, state, at_seconds=at, per_pod=value)
    assert aibrix.means(state) == tuple(case["expect"])


def test_nothing_recorded_is_unknown() -> None:
    assert aibrix.means(aibrix.AibrixState()) is None


@pytest.mark.parametrize("case", GOLDEN["cooldowns"], ids=lambda c: c["why"])
def test_cooldown(case: dict[str, Any]) -> None:
    state, current, inverted = aibrix.AibrixState(), case["start"], case["inverted"]
    seen = []
    for at, recommendation, _ in case["steps"]:
        current, state = aibrix.stabilize(
            SPEC, state, at_seconds=at, recommendation=recommendation, current=current, inverted=inverted
        )
        seen.append(current)
    assert seen == [expect for _, _, expect in case["steps"]]


@given(ratio=st.floats(0, 20), more=st.floats(0, 5), current=st.integers(0, 200))
def test_more_load_never_fewer_pods_and_at_most_a_factor_of_two(ratio: float, more: float, current: int) -> None:
    def of(value: float) -> int:
        return aibrix.apa(SPEC, per_pod=value, target=1.0, current=current)

    assert current // 2 <= of(ratio) <= of(ratio + more) <= 2 * current


@given(
    steps=st.lists(st.tuples(st.integers(1, 200), st.integers(0, 50)), max_size=30), inverted=st.booleans(),
    start=st.integers(0, 50),
)  # fmt: skip
def test_cooldown_answers_with_a_recommendation_of_the_window(
    steps: list[tuple[int, int]], inverted: bool, start: int
) -> None:
    state = aibrix.AibrixState()
    now, current, made = 0, start, []
    for wait, recommendation in steps:
        now += wait
        made.append((now, recommendation))
        before = current
        current, state = aibrix.stabilize(
            SPEC, state, at_seconds=now, recommendation=recommendation, current=current, inverted=inverted
        )
        allowed = {number for at, number in made if now - at < 300} | {before}
        assert current in allowed
        if not inverted and recommendation < before:
            assert current <= before
