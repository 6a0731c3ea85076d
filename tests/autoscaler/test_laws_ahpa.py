"""The AHPA-like law and the static peak against vectors worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoscaler.laws import ahpa, static

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "ahpa.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["peaks"], ids=lambda c: c["why"])
def test_peak(case: dict[str, Any]) -> None:
    assert ahpa.peak(case["minutes"], case["width"]) == case["expect"]


@pytest.mark.parametrize("case", GOLDEN["proactive"], ids=lambda c: c["why"])
def test_proactive(case: dict[str, Any]) -> None:
    assert ahpa.proactive(ahpa.AhpaSpec(), case["days"]) == case["expect"]


@pytest.mark.parametrize("case", GOLDEN["wanted"], ids=lambda c: c["why"])
def test_the_larger_counts(case: dict[str, Any]) -> None:
    assert ahpa.wanted(ahpa.AhpaSpec(), **case["inputs"]) == case["expect"]


def test_the_present_is_the_largest_of_five_minutes() -> None:
    assert ahpa.reactive(ahpa.AhpaSpec(), [9.0, 1.0, 2.0, None, 4.0, 3.0]) == 4.0


def test_static_peak() -> None:
    assert static.peak([2.0, None, 5.6, 3.0], use=0.8) == 7
    assert static.peak([4.0], use=0.8) == 5  # 4/0.8 is 5.000000000000001 nowhere
    assert static.peak([None], use=0.8) is None
