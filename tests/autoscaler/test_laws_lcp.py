"""LCP against paths worked out by hand, and against the best path in hindsight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.laws import lcp

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "lcp.json").read_text())


def _path(
    needs: list[float], *, start: int, most: int, bin_cost: float, start_cost: float, violation_cost: float
) -> list[int]:
    state, path = lcp.start(replicas=start, start_cost=start_cost), []
    for need in needs:
        replicas, state = lcp.step(
            state, need=need, bin_cost=bin_cost, start_cost=start_cost, violation_cost=violation_cost, most=most
        )
        path.append(replicas)
    return path


@pytest.mark.parametrize("case", GOLDEN["stories"], ids=lambda c: c["why"])
def test_a_path(case: dict[str, Any]) -> None:
    found = _path(
        case["needs"], start=case["start"], most=case.get("most", 50), bin_cost=1, start_cost=3, violation_cost=10
    )
    assert found == case["expect"]


def _bin(n: int, need: float, bin_cost: float, violation_cost: float) -> float:
    return n * bin_cost + (violation_cost * max(0.0, 1 - n / need) if need > 0 else 0.0)


def _cost(path: list[int], needs: list[float], bin_cost: float, start_cost: float, violation_cost: float) -> float:
    starts = [max(0, b - a) for a, b in zip([0, *path], path, strict=False)]
    return start_cost * sum(starts) + sum(
        _bin(n, need, bin_cost, violation_cost) for n, need in zip(path, needs, strict=True)
    )


def _best(needs: list[float], most: int, bin_cost: float, start_cost: float, violation_cost: float) -> float:
    costs = {0: 0.0}
    for need in needs:
        costs = {
            n: min(c + start_cost * max(0, n - m) for m, c in costs.items()) + _bin(n, need, bin_cost, violation_cost)
            for n in range(most + 1)
        }
    return min(costs.values())


@given(
    needs=st.lists(st.floats(0, 8).map(lambda x: round(x, 2)), min_size=1, max_size=30), bin_cost=st.floats(0.1, 2),
    start_cost=st.floats(0, 20), violation_cost=st.floats(0, 60),
)  # fmt: skip
def test_at_most_three_times_the_best_in_hindsight(
    needs: list[float], bin_cost: float, start_cost: float, violation_cost: float
) -> None:
    costs = (bin_cost, start_cost, violation_cost)
    path = _path(needs, start=0, most=12, bin_cost=bin_cost, start_cost=start_cost, violation_cost=violation_cost)
    best = _best(needs, 12, *costs)
    paid = _cost(path, needs, *costs)
    assert best - 1e-6 <= paid <= 3 * best + 1e-6


@given(needs=st.lists(st.floats(0, 40), min_size=1, max_size=20), most=st.integers(0, 10), start=st.integers(0, 10))
def test_bounds_hold_and_memory_is_one_entry_per_number(needs: list[float], most: int, start: int) -> None:
    state = lcp.start(replicas=start, start_cost=5.0)
    for need in needs:
        replicas, state = lcp.step(state, need=need, bin_cost=1.0, start_cost=5.0, violation_cost=30.0, most=most)
        assert 0 <= replicas <= most
        assert len(state.lower) == len(state.upper) <= most + 1
