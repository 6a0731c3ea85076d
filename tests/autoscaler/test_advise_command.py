"""What a log says acting on it would bring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoscaler import Demand, Latency, Load, Observation, Pool, Replicas
from autoscaler.advise_command import Advice, advice, told
from autoscaler.log import StepLog, settings_of, steps_of
from autoscaler.main import main

TICK = 60


def observed(at: int, rate: float) -> Observation:
    served = TICK * rate
    return Observation(
        pool="chat", at_seconds=at, window_seconds=TICK, replicas=Replicas(desired=9, ready=8, starting=1),
        demand=Demand(requests=served, prompt_tokens=1e3 * served, output_tokens=200.0 * served),
        load=Load(running_requests=8.0, waiting_requests=0.0, kv_cache_fraction=0.2, replicas_reporting=8),
        latency=Latency(served_requests=served, violated_requests=(0.01 * served, 0.03 * served)),
    )  # fmt: skip


def written(path: Path, hours: float) -> Path:
    """The log of an observer of a pool that stands at nine replicas, whatever comes."""
    config = {"name": "chat", "slo": {"ttft_seconds": 2.0, "itl_seconds": 0.08}, "interval_seconds": TICK}
    pool = Pool.from_config({**config, "strategy": "observer"})
    log = StepLog(path, pool.autoscaler, pool.memory)
    for i in range(1, round(hours * 60) + 1):
        pool.step(observed(TICK * i, 2.0 if i // 30 % 2 else 4.0))
        assert pool.last_step is not None
        log.append(pool.last_step, pool.memory)
    log.close()
    return path


def found_in(path: Path) -> Advice | None:
    return advice(settings_of(path), steps_of(path))


def test_it_sets_what_was_beside_what_would_have_been(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(tmp_path / "chat", 9.0)
    found = found_in(log)
    assert found is not None
    assert found.measured.replica_hours == pytest.approx(9 * 9.0)
    assert found.measured.attained_fraction == pytest.approx(0.98)
    assert found.days == pytest.approx(9 / 24, rel=0.01)
    assert 0.0 < found.hindsight.replica_hours < found.measured.replica_hours
    assert found.auto.replica_hours > 0.0
    assert told(found).count("replica-hours") == 4
    assert main(["advise", str(log), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured"]["replica_hours"] == pytest.approx(81.0)


def test_a_short_log_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(tmp_path / "chat", 2.0)
    assert found_in(log) is None
    assert main(["advise", str(log)]) != 0
    assert "6 hours" in capsys.readouterr().err
