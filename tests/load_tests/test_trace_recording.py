"""Recorded Observations as a trace: the even grid, gaps, overlaps, and a simulation of what was seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoscaler.errors import ConfigError, LogError
from autoscaler.main import main
from autoscaler.record import encode_line
from autoscaler.testing import observation, without
from autoscaler.types import Demand, Observation
from load_tests.traces import RateTrace, load_trace

START = 1_700_000_000


def written(path: Path, *seen: Observation) -> Path:
    path.write_text("".join(encode_line("observation", o) + "\n" for o in seen))
    return path


def at(t: int, rate: float = 2.0, window: int = 10) -> Observation:
    return observation("chat", START + t, requests_per_second=rate, window_seconds=window)


def trace(path: Path) -> RateTrace:
    found = load_trace(path)
    assert isinstance(found, RateTrace)
    return found


def test_an_even_recording_is_its_counts(tmp_path: Path):
    found = trace(written(tmp_path / "seen.jsonl", at(10), at(20, 3.0), at(30, 0.0)))
    assert found.requests.tolist() == [20.0, 30.0, 0.0]
    assert found.prompt_tokens.tolist() == [20_000.0, 30_000.0, 0.0]
    assert found.interval_seconds == 10.0
    assert found.facts.origin_at_seconds == START


def test_a_gap_is_unknown_and_a_long_window_after_an_outage_is_spread(tmp_path: Path):
    blank = without(at(30), "demand")
    silent = trace(written(tmp_path / "a.jsonl", at(10), at(20), blank, at(40), at(50)))
    assert np.isnan(silent.requests[2])
    assert silent.missing.tolist() == [False, False, True, False, False]
    made_up = trace(written(tmp_path / "b.jsonl", at(10), at(20), at(50, window=30), at(60), at(70)))
    assert made_up.requests.tolist() == [20.0] * 7


def test_windows_that_overlap_count_once(tmp_path: Path):
    found = trace(written(tmp_path / "seen.jsonl", *(at(t, window=60) for t in range(60, 200, 10))))
    assert found.requests.sum() == pytest.approx(2.0 * 190, abs=1)


def test_fractions_of_requests_become_whole_ones_and_none_is_lost(tmp_path: Path):
    third = [replace(at(t), demand=Demand(requests=1 / 3, prompt_tokens=100.0)) for t in range(10, 310, 10)]
    found = trace(written(tmp_path / "seen.jsonl", *third))
    assert set(found.requests.tolist()) == {0.0, 1.0}
    assert found.requests.sum() == 10.0
    assert np.isnan(found.output_tokens[found.requests > 0]).all()


def test_what_holds_no_demand_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="seen.jsonl: holds no demand above 0"):
        load_trace(written(tmp_path / "seen.jsonl", at(10, 0.0), at(20, 0.0)))
    two = written(tmp_path / "two.jsonl", at(10), replace(at(20), pool="other"))
    with pytest.raises(LogError, match="holds the pools chat, other"):
        load_trace(two)


def test_a_recording_is_simulated_and_its_simulated_log_is_a_recording_again(tmp_path: Path, capsys):
    written(tmp_path / "seen.jsonl", *(at(t, 2.0 if t < 150 else 6.0) for t in range(10, 310, 10)))
    scenario = {
        "version": 1, "name": "as seen", "traffic": {"kind": "trace", "trace": str(tmp_path / "seen.jsonl")},
        "startup": {"profile": "warm_node_local"}, "limits": {"max_replicas": 4},
    }  # fmt: skip
    (tmp_path / "again.json").write_text(json.dumps(scenario))
    words = ["simulate", str(tmp_path / "again.json"), "--json", "--log", str(tmp_path / "logs")]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)
    logs = sorted({p.parent for p in (tmp_path / "logs").rglob("000001.jsonl")})
    assert logs
    assert trace(logs[0]).requests.sum() > 0
