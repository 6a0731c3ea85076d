"""Defaults are those that the claims were measured with, or the claims are to be measured anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from load_tests import policy_bench_frozen as kept


def test_the_defaults_are_those_that_the_claims_were_measured_with() -> None:
    changed = kept.differences(kept.frozen()["defaults"], kept.defaults())
    assert not changed, f"{'; '.join(changed)}. {kept.ADVICE}"


def test_what_decides_is_in_the_file_and_how_a_pool_is_run_is_not() -> None:
    known = kept.defaults()
    assert {"RiskSettings.gain", "PoolSettings.strategy", "WorkSettings.utilization_fraction"} <= set(known)
    assert not any(name.startswith(("LogSettings", "TargetSettings")) for name in known)
    assert "autoscaler/risk.py" in kept.sources()
    assert "serving/profiles.py" not in kept.sources()


def test_each_difference_is_a_sentence() -> None:
    assert kept.differences({"a": 1, "b": 2, "c": [1]}, {"a": 1, "b": 3, "d": None}) == [
        "b = 3 was 2",
        "c is gone; it was [1]",
        "d = None is new",
    ]


def test_the_command_writes_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kept, "FILE", tmp_path / "frozen.json")
    assert kept.main(["--write"]) == 0
    assert kept.main([]) == 0
    assert "0 files of the decision core differ" in capsys.readouterr().out
    monkeypatch.setattr(kept, "defaults", lambda: {**kept.frozen()["defaults"], "RiskSettings.gain": 99.0})
    assert kept.main([]) == 1
    told = capsys.readouterr().out
    assert "RiskSettings.gain = 99.0 was" in told
    assert "test_runs.md" in told
