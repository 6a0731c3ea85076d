"""Prose is a view: every rule that can be given has a sentence, and none raises on what another version left out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from plain_pools import plain_pool

from autoscaler.testing import FixedCapacity, Story, observation
from autoscaler.types import Group, Reason, Replicas
from autoscaler.views import _PROSE, changed_line, explain, instant, paragraph, reason_text, rows

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
    assert paragraph(step) == (
        "Pool p stays at 4 replicas: work arrives at 0.8 replica-seconds per second (mean of 1m); one replica carries 1"
        " within the SLO, planned to 95%, which asks for 1. As many were wanted within the last 5m: 4 instead of 1."
    )
    assert " ".join(line.strip() for line in told[1:-2]) == paragraph(step)
    assert told[-2].split()[:4] == ["reactive", "4", "->", "1"]
    assert "work 0.8" in told[-2]
    assert told[-1] == "  keep              1 -> 4  window_seconds 300"


def test_a_scale_up_is_told_with_its_wait_and_what_else_asked() -> None:
    capacity = FixedCapacity(startup_seconds=90.0)
    pool = plain_pool(capacity, limits={"max_replicas": 3}, preload={"tiers": []})
    here = observation("p", 1_700_000_000, requests_per_second=32, waiting_requests=600, running_requests=3)
    pool.step(here)
    assert pool.last_step is not None
    assert paragraph(pool.last_step) == (
        "Pool p goes from 1 to 3 replicas: work arrives at 3.2 replica-seconds per second (mean of 1m) and 60"
        " replica-seconds are queued, to be gone in 30s; one replica carries 1 within the SLO, planned to 95%, which asks for"
        " 6. Bounds are 1 to 3: 3 instead of 6. Beside it asked in flight for 1. A replica ordered now is ready in about 1m30s."
    )
    assert any(
        line.startswith("  · in_flight            1  requests 603") for line in explain(pool.last_step).splitlines()
    )


def test_groups_are_told_with_what_they_cost() -> None:
    pool = plain_pool(keep_seconds=0)
    groups = (
        Group(name="eu", replicas=Replicas(desired=1, ready=1), price_per_replica_hour=3.5),
        Group(name="us", replicas=Replicas(desired=0, ready=0), price_per_replica_hour=2.0, spare_replicas=2),
    )
    pool.step(replace(observation("p", 1_700_000_000, requests_per_second=28), groups=groups))
    assert pool.last_step is not None
    assert paragraph(pool.last_step).endswith("They go to eu 1, us 2, at 7.5 an hour.")


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
    for name in ("policy", "limits", "step", "health", "coupling", "deferrable", "placement"):
        source = (ROOT / "autoscaler" / f"{name}.py").read_text()
        named |= set(re.findall(r'(?:_reason|_changed|_renamed)\(\s*"([a-z_]+)"', source))
        named |= set(re.findall(r'rule="([a-z_]+)"', source))
        named |= set(re.findall(r'"(wake|reactive)"', source))
    assert {"reactive", "wake", "keep", "bounds", "unknown_hold", "hold", "observer"} <= named
    assert named <= set(_PROSE), named - set(_PROSE)


def test_the_headroom_is_told_where_it_is_one() -> None:
    inputs = (
        ("work", 4.0), ("feasible_load", 0.8), ("utilization_fraction", 0.95), ("window_seconds", 60.0), ("drain_seconds", 30.0)
    )  # fmt: skip

    def told(headroom: float) -> str:
        return reason_text(Reason(rule="reactive", before=4, after=5, inputs=(*inputs, ("headroom", headroom))))

    assert told(1.12).endswith("with 12 % more work than that, as the attainment measured so far asks")
    assert told(0.9).endswith("with 10 % less work than that, as the attainment measured so far asks")
    assert told(1.001).endswith("planned to 95%")
