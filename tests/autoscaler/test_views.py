"""Prose is a view: every rule that can be given has a sentence, and none raises on what another version left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from plain_pools import plain_pool

from autoscaler.testing import Story, observation
from autoscaler.types import Reason
from autoscaler.views import _PROSE, changed_line, explain, instant, reason_text, rows

ROOT = Path(__file__).resolve().parents[2]


def test_a_decision_is_told_from_the_first_stage_to_the_number() -> None:
    story = (
        Story(plain_pool()).expect(4, seconds=60, requests_per_second=32).expect(4, seconds=60, requests_per_second=8)
    )
    step = story.pool.last_step  # type: ignore[attr-defined]
    told = explain(step).splitlines()
    assert (
        told[0] == f"{instant(step.decision.at_seconds)}  pool p: 4 replicas -> 4   (4 ready, 0 starting, 0 draining)"
    )
    assert "work arrives at 0.8 replica-seconds per second (mean of 1m); one replica carries 1" in told[1]
    assert "as many were wanted within the last 5m" in told[2]


def test_one_line_per_changed_decision() -> None:
    pool = plain_pool()
    pool.step(observation("p", 1_700_000_000, requests_per_second=32))
    assert pool.last_step is not None
    assert changed_line(pool.last_step).startswith("pool p: 1 -> 4: reactive: work arrives at 3.2")
    assert rows([pool.last_step])[0][:4] == ("2023-11-14 22:13:20Z", "1 -> 4", "1+0", "reactive")


@pytest.mark.parametrize("rule", [*_PROSE, "target:requests_per_second", "target:odd", "unheard of"])
def test_a_reason_that_lacks_its_inputs_is_still_told(rule: str) -> None:
    assert isinstance(reason_text(Reason(rule=rule, before=1, after=2)), str)
    odd = Reason(rule=rule, before=1, after=2, inputs=(("strange", "word"),))
    assert isinstance(reason_text(odd), str)


def test_every_rule_of_policies_and_limits_has_prose() -> None:
    named: set[str] = set()
    for name in ("policy.py", "limits.py", "step.py"):
        source = (ROOT / "autoscaler" / name).read_text()
        named |= set(re.findall(r'(?:_reason|_changed|_renamed)\(\s*"([a-z_]+)"', source))
        named |= set(re.findall(r'rule="([a-z_]+)"', source))
        named |= set(re.findall(r'"(wake|reactive)"', source))
    assert {"reactive", "wake", "keep", "bounds", "unknown_hold", "hold", "observer"} <= named
    assert named <= set(_PROSE), named - set(_PROSE)
