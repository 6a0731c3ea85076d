"""Where the replica-hours of a log went: parts that sum to what was decided, by rule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autoscaler import Demand, Load, Observation, Pool, Replicas
from autoscaler.costs_command import costs, parts, told
from autoscaler.log import StepLog
from autoscaler.main import main
from autoscaler.types import Reason, Step

CONFIG = {
    "name": "chat",
    "slo": {"ttft_seconds": 2.0, "itl_seconds": 0.08},
    "limits": {"min_replicas": 1, "max_replicas": 9},
}


def seen(at: int, requests: float, waiting: float, desired: int) -> Observation:
    return Observation(
        pool="chat", at_seconds=at, window_seconds=15, replicas=Replicas(desired=desired, ready=desired),
        demand=Demand(requests=requests, prompt_tokens=1000.0 * requests, output_tokens=200.0 * requests),
        load=Load(running_requests=5.0, waiting_requests=waiting, kv_cache_fraction=0.1, replicas_reporting=desired),
    )  # fmt: skip


def played(log: StepLog | None = None, pool: Pool | None = None) -> list[Step]:
    """A busy half hour, a burst that waits, and a quiet one in which replicas are kept at first."""
    pool, steps, desired = pool or Pool.from_config(CONFIG), [], 2
    for i in range(1, 200):
        requests, waiting = (400.0, 30.0 if 80 < i < 90 else 0.0) if i < 100 else (10.0, 0.0)
        pool.step(seen(15 * i, requests, waiting, desired))
        assert pool.last_step is not None
        steps.append(pool.last_step)
        desired = pool.last_step.decision.replicas
        if log is not None:
            log.append(pool.last_step, pool.memory)
    return steps


def test_the_parts_of_every_decision_sum_to_it() -> None:
    steps = played()
    for step in steps:
        assert sum(parts(step).values()) == pytest.approx(step.decision.replicas)
    assert any(parts(s).get("keep", 0.0) > 0 for s in steps)
    assert any(parts(s).get("queue", 0.0) > 0 for s in steps)
    busy = steps[60]
    inputs = dict(next(r for r in busy.proposals if r.rule == "reactive").inputs)
    assert busy.capacity is not None
    feasible = busy.capacity.feasible(busy.decision.reasons[0].after)
    assert parts(busy)["work"] == pytest.approx(float(inputs["work"]) / feasible)
    assert parts(busy)["utilization"] == pytest.approx(parts(busy)["work"] * (1 / 0.95 - 1))


def test_a_rule_that_asks_for_more_gets_what_is_beyond_and_a_forecast_what_it_adds() -> None:
    step = played()[60]
    ours = next(r for r in step.proposals if r.rule == "reactive")
    by_hand = Reason(rule="schedule", before=ours.after, after=ours.after + 3)
    decision = replace(step.decision, replicas=by_hand.after, reasons=(by_hand,))
    found = parts(replace(step, proposals=(*step.proposals, by_hand), decision=decision))
    assert found["schedule"] == pytest.approx(3.0)
    assert sum(found.values()) == pytest.approx(by_hand.after)

    work = 2.0 * float(dict(ours.inputs)["work"])
    ahead = Reason(rule="predictive", before=0, after=2 * ours.after, inputs=(("work", work), ("headroom", 1.0)))
    decision = replace(step.decision, replicas=ahead.after, reasons=(ahead,))
    found = parts(replace(step, proposals=(*step.proposals, ahead), decision=decision))
    assert found["work"] + found["utilization"] + found["forecast"] == pytest.approx(2.0 * found["work"])
    assert sum(found.values()) == pytest.approx(ahead.after)


def test_policies_by_hand_and_steps_without_reasons_are_counted_too() -> None:
    target = {"kind": "target_tracking", "signal": "running_requests", "target": 2.0}
    steps = played(pool=Pool.from_config({**CONFIG, "policies": [target]}))
    assert parts(steps[60])["target:running_requests"] == steps[60].decision.reasons[0].after
    bare = replace(steps[0], decision=replace(steps[0].decision, reasons=()))
    assert parts(bare) == {"unknown": steps[0].decision.replicas}


def test_hours_are_those_of_the_clock_and_sum_to_the_total() -> None:
    steps = played()
    found = costs(steps)
    assert found["hours"] == pytest.approx(199 * 15 / 3600)
    assert found["replica_hours"] == pytest.approx(sum(s.decision.replicas for s in steps) * 15 / 3600)
    assert sum(found["parts"].values()) == pytest.approx(found["replica_hours"])
    assert costs([])["replica_hours"] == 0.0
    assert told(costs([])) == "no replicas were asked for in 0.0 hours"


def test_the_command_reads_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = Pool.from_config(CONFIG)
    log = StepLog(tmp_path / "chat", pool.autoscaler, pool.memory)
    played(log, pool)
    log.close()
    assert main(["costs", str(tmp_path / "chat"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["parts"].values()) == pytest.approx(found["replica_hours"])
    assert main(["costs", str(tmp_path / "chat")]) == 0
    table = capsys.readouterr().out
    assert table.startswith(f"{found['replica_hours']:.1f} replica-hours in 0.8 hours")
    assert "the work of the last minute" in table
