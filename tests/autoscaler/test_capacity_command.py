"""``autoscaler capacity``: the belief at the end of a log, for a person and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autoscaler.embed import Pool
from autoscaler.log import StepLog
from autoscaler.main import main
from autoscaler.testing import observation
from autoscaler.types import Load, Replicas

QWEN = "qwen3-32b_bf16_h100_tp2"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A pool of two that is known to be slow: windows of engine steps, and one start of 200 s."""
    pool = Pool.from_config({"name": "chat", "replica": {"profile": QWEN}, "limits": {"min_replicas": 2}})
    written = StepLog(tmp_path, pool.autoscaler, pool.memory)
    for i in range(90):
        seen = observation("chat", 1_700_000_000 + 10 * i, replicas=2, ready=2, requests_per_second=4.0)
        counts = Replicas(desired=3, ready=2, starting=1) if 40 <= i < 60 else Replicas(desired=2, ready=2)
        if i >= 60:
            counts = Replicas(desired=3, ready=3)
        load = Load(running_requests=20.0, waiting_requests=0.0, engine_steps=1000.0, replicas_reporting=counts.ready)
        pool.step(replace(seen, replicas=counts, load=load))
        assert pool.last_step is not None
        written.append(pool.last_step, pool.memory)
    written.close()
    return tmp_path


def test_it_tells_law_factor_and_starts(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", str(log)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("pool chat, 2023-11-14T22:28:10+00:00:")
    assert "one of 3 replicas carries" in out
    assert "requests/s of the present lengths" in out
    assert "step law, from" in out
    assert "prior" in out
    assert "(1 seen, 0 under way)" in out
    assert "by the twin of the last refit: unknown" in out


def test_json_has_the_same_numbers(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", str(log), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pool"] == "chat"
    assert found["windows"] > 10
    assert 0.0 < found["caution_fraction"] < 1.0
    assert found["law"]["floor"] in (0.0, found["prior_law"]["floor"])
    assert found["startup_seconds"]["0.5"] < found["startup_seconds"]["0.99"]
    assert found["starts_seen"] == 1


def test_a_log_that_is_not_there_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
