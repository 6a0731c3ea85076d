"""The command line under damaged files: a sentence and exit code 2, or the right answer; never a traceback, never a part."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.main import main

CONFIG: dict[str, Any] = {
    "version": 1,
    "interval_seconds": 10,
    "log": {"path": "steps", "segment_bytes": 1_000_000},
    "pools": [
        {
            "name": "chat",
            "slo": {"ttft_seconds": 1.0, "itl_seconds": 0.05, "attainment_fraction": 0.99},
            "strategy": "auto",
            "policies": [
                {"kind": "target_tracking", "signal": "requests_per_second", "target": 5.0, "window_seconds": 60},
                {"kind": "backlog", "drain_seconds": 30.0},
                {"kind": "saturation", "kv_cache_fraction": 0.8},
                {"kind": "predictive", "quantile": 0.95},
            ],
            "limits": {
                "min_replicas": 1,
                "max_replicas": 9,
                "tolerance_fraction": 0.1,
                "scale_up": {"max_replicas_per_period": 4, "period_seconds": 15},
                "schedule": [
                    {"start": "0 8 * * *", "end": "0 18 * * *", "time_zone": "Europe/Paris", "min_replicas": 2}
                ],
            },
            "replica": {"profile": "llama-3.1-8b_bf16_h100_tp1"},
            "startup": {"profile": "warm_node_local", "median_seconds": 40.0},
            "target": {"kind": "deployment", "namespace": "llm", "name": "chat", "gpus_per_replica": 1},
        }
    ],
}
SCENARIO: dict[str, Any] = {
    "version": 1,
    "name": "damaged",
    "traffic": {"kind": "trace", "trace": "trace.csv"},
    "replica": {"profile": "llama-3.1-8b_bf16_h100_tp1"},
    "startup": {"profile": "warm_node_local", "factor": 1.0},
    "slo": {"ttft_seconds": 1.0, "itl_seconds": 0.05, "attainment_fraction": 0.99},
    "limits": {"min_replicas": 1, "max_replicas": 4},
    "seeds": [0],
    "policies": [
        {"kind": "pool", "name": "auto", "config": {"strategy": "reactive"}},
        {"kind": "static", "replicas": 2},
    ],
    "faults": [{"kind": "scrape_gap", "at_seconds": 10.0, "for_seconds": 10.0}],
}
TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i * 2.5},{100 + i},{5 + i % 7}\n" for i in range(24))
WRONG: tuple[object, ...] = (None, "text", -1, 1e300, True, [], {}, [1, "a"], float("nan"))


def paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested mappings and lists."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from paths(value, (*path, key))


def changed(data: Any, path: tuple[Any, ...], value: object, *, drop: bool = False) -> Any:
    """A copy with one place changed, or dropped."""
    made = copy.deepcopy(data)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return made


def damages(data: Any) -> Iterator[tuple[str, Any]]:
    """Each place dropped, misspelt and given wrong values in turn."""
    for number, path in enumerate(paths(data)):
        name = ".".join(map(str, path))
        yield f"{name} dropped", changed(data, path, None, drop=True)
        yield f"{name} = {WRONG[number % len(WRONG)]!r}", changed(data, path, WRONG[number % len(WRONG)])
        yield f"{name} = {WRONG[(number + 4) % len(WRONG)]!r}", changed(data, path, WRONG[(number + 4) % len(WRONG)])
        if isinstance(path[-1], str):
            misspelt = (*path[:-1], path[-1] + "s")
            yield f"{name} misspelt", changed(changed(data, path, None, drop=True), misspelt, 1)


def trace_damages() -> Iterator[tuple[str, str]]:
    """The trace's text, damaged line by line and cell by cell."""
    lines = TRACE.splitlines(keepends=True)
    for number in (0, 1, 7, len(lines) - 1):
        yield f"line {number} dropped", "".join(lines[:number] + lines[number + 1 :])
        yield f"line {number} twice", "".join(lines[: number + 1] + lines[number:])
        yield f"line {number} cut", "".join([*lines[:number], lines[number][:4] + "\n", *lines[number + 1 :]])
        for wrong in ("x", "NaN", "-5", "1e999", "", '"'):
            cells = lines[number].split(",")
            yield (
                f"line {number} = {wrong}",
                "".join([*lines[:number], ",".join([wrong, *cells[1:]]), *lines[number + 1 :]]),
            )
    yield "empty", ""
    yield "reversed", "".join([lines[0], *reversed(lines[1:])])
    yield "cut", TRACE[: len(TRACE) // 2]


def refused_in_one_sentence(code: int, capsys: pytest.CaptureFixture[str], what: str) -> bool:
    """Exit code 0, or 2 with one line on stderr and nothing on stdout; True if refused."""
    said = capsys.readouterr()
    assert code in (0, 2), what
    if code == 0:
        return False
    assert said.out == "", what
    assert said.err.startswith("autoscaler: error: "), what
    assert said.err.count("\n") == 1, what
    assert "Traceback" not in said.err, what
    return True


def test_damaged_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = 0
    cases = list(damages(CONFIG))
    for number, (what, data) in enumerate(cases):
        path = tmp_path / (f"{number}.yaml" if number % 2 else f"{number}.json")
        path.write_text(yaml.safe_dump(data) if number % 2 else json.dumps(data))
        refused += refused_in_one_sentence(main(["validate", str(path)]), capsys, what)
    assert len(cases) >= 150
    assert refused > len(cases) / 2


def test_damaged_scenarios_run_or_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr("load_tests.campaign.write_report", lambda runs, path, title: written.append(len(runs)))
    cases = [(what, yaml.safe_dump(data), TRACE) for what, data in damages(SCENARIO)]
    cases += [(what, yaml.safe_dump(SCENARIO), trace) for what, trace in trace_damages()]
    refused = 0
    for number, (what, scenario, trace) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "trace.csv").write_text(trace)
        (folder / "scenario.yaml").write_text(scenario)
        before = len(written)
        code = main(
            [
                "simulate",
                str(folder / "scenario.yaml"),
                "--html",
                str(folder / "r.html"),
                "--log",
                str(folder / "steps"),
            ]
        )
        if refused_in_one_sentence(code, capsys, what):
            refused += 1
            assert sorted(p.name for p in folder.iterdir()) == ["scenario.yaml", "trace.csv"], what
            assert len(written) == before
        else:
            assert len(written) == before + 1, what
    assert len(cases) >= 100
    assert refused > len(cases) / 2


def test_a_report_that_cannot_be_written_leaves_no_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    (tmp_path / "scenario.yaml").write_text(yaml.safe_dump(SCENARIO))
    (tmp_path / "taken").write_text("a file, not a folder")
    code = main(["simulate", str(tmp_path / "scenario.yaml"), "--html", str(tmp_path / "taken" / "r.html")])
    assert code == 2
    assert "taken" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "a file, not a folder"
