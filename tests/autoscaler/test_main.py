"""The command line: what each verb does, and that a mistake is one sentence, exit code 2 and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from autoscaler.embed import Pool
from autoscaler.log import StepLog, read_observations
from autoscaler.main import VERBS, main
from autoscaler.record import encode_line
from autoscaler.testing import observation
from load_tests.bench import BENCHES

SCENARIO = """
version: 1
name: short step
traffic:
  kind: shape
  shape: {kind: step, requests_per_second: 10, factor: 4, at_seconds: 120}
  lengths: {kind: lognormal, prompt_tokens: 300, output_tokens: 60}
window: {duration_seconds: 400}
startup: {profile: warm_node_local}
limits: {min_replicas: 1, max_replicas: 8}
policies:
  - {kind: pool, name: auto}
  - {kind: hpa, signal: running_and_waiting_requests}
  - {kind: static, replicas: 2}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "step.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    pool = Pool.from_config({"name": "p"})
    directory = tmp_path / "p"
    steps = StepLog(directory, pool.autoscaler, pool.memory)
    count = 1
    for i in range(60):
        seen = observation("p", 1_700_000_000 + 10 * i, replicas=count, requests_per_second=2 if i < 30 else 40)
        count = pool.step(seen).replicas
        assert pool.last_step is not None
        steps.append(pool.last_step, pool.memory)
    steps.close()
    return directory


def test_simulate_prints_a_table_and_writes_a_report(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "deep" / "report.html"
    assert main(["simulate", str(scenario), "--html", str(report), "--log", str(tmp_path / "steps")]) == 0
    out = capsys.readouterr().out
    for word in ("auto", "hpa running_and_waiting_requests", "static 2", "short step"):
        assert word in " ".join(out.split())
    assert report.stat().st_size > 10_000
    log = tmp_path / "steps" / "short-step" / "seed0" / "auto" / "pool"
    assert main(["replay", str(log)]) == 0
    assert "39 steps decided again, every byte the same" in capsys.readouterr().out


def test_simulate_as_json_for_chosen_policies_and_seeds(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(scenario), "--policy", "auto", "--seed", "3", "--seed", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (group,) = told["groups"]
    assert [p["policy"] for p in group["policies"]] == ["auto"]
    assert "static" not in json.dumps(group["policies"])


def test_simulate_twice_says_the_same(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def figures() -> object:
        assert main(["simulate", str(scenario), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        return json.loads(json.dumps(told), object_hook=lambda d: {k: v for k, v in d.items() if "wall" not in k})

    assert figures() == figures()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("kind: step", "kind: stepp"), "traffic.shape.kind: 'stepp' must be one of"),
        (("version: 1", "version: 2"), "version: 2 must be one of 1"),
        (("max_replicas: 8", "max_replicas: -8"), "limits.max_replicas: -8 must be in [0, 100000]"),
        (("limits:", "limit:"), "limit: unknown key; did you mean limits?"),
        (("signal: running_and", "signal: walking_and"), "policies[1].signal: 'walking_and_waiting_requests' must be"),
        (("warm_node_local", "warm_nod_local"), "startup"),
        (("duration_seconds: 400", "duration_seconds: none"), "window.duration_seconds: 'none' must be"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], sentence: str
) -> None:
    assert change[0] in SCENARIO
    scenario.write_text(SCENARIO.replace(*change))
    report = tmp_path / "report.html"
    assert main(["simulate", str(scenario), "--html", str(report)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("autoscaler: error: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert not report.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "nowhere.yaml"],
        ["simulate", "builtin:nowhere"],
        ["simulate", "builtin:azure_conv", "--policy", "nobody"],
        ["simulate", "builtin:azure_conv", "--seed", "-1"],
        ["explain", "nowhere"],
        ["replay", "nowhere"],
        ["validate", "nowhere.yaml"],
        ["validate", "nowhere.csv"],
        ["bench", "nothing"],
    ],
)
def test_what_is_not_there_is_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("autoscaler: error: ")
    assert said.err.count("\n") == 1


def test_help_lists_every_command_and_imports_none_that_was_not_chosen() -> None:
    code = """
import sys
from autoscaler.main import VERBS, main
try:
    main(sys.argv[1:])
except SystemExit:
    print(*(name for name, module, _ in VERBS if module in sys.modules), file=sys.stderr)
"""

    def asked(*arguments: str) -> tuple[str, list[str]]:
        found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        return found.stdout, found.stderr.split()

    told, imported = asked("--help")
    assert imported == []
    assert {name for name, _, _ in VERBS} <= set(told.split())
    told, imported = asked("advise", "--help")
    assert imported == ["advise"]
    assert "--json" in told


def test_explain_tells_changes_in_words(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(log), "--last", "1"]) == 0
    told = capsys.readouterr().out
    assert "pool p:" in told
    assert "reactive" in told
    assert "one replica carries" in " ".join(told.split())
    assert main(["explain", str(log), "--at", "1700000305", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"]["at_seconds"] == 1_700_000_300
    assert main(["explain", str(log), "--all"]) == 0
    assert capsys.readouterr().out.count("pool p:") == 60
    assert main(["explain", str(log), "--at", "5"]) == 2
    assert main(["explain", str(log), "--last", "0"]) == 2


def test_replay_decides_on_a_recording_under_a_config(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = tmp_path / "seen.jsonl"
    seen = read_observations(log)
    recording.write_text("".join(encode_line("observation", o) + "\n" for o in seen))
    assert main(["replay", str(recording)]) == 2
    assert "--config" in capsys.readouterr().err
    config = tmp_path / "pools.json"
    config.write_text(json.dumps({"version": 1, "pools": [{"name": "p", "limits": {"max_replicas": 1}}]}))
    assert main(["replay", str(recording), "--config", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["steps"], told["open_loop"]) == (len(seen), True)
    asked_for = {o.at_seconds: o.replicas.desired for o in seen}
    assert told["differing"]
    assert all((one["was"], one["now"]) == (asked_for[one["at_seconds"]], 1) for one in told["differing"])
    config.write_text(json.dumps({"version": 1, "pools": [{"name": "other"}]}))
    assert main(["replay", str(recording), "--config", str(config)]) == 2
    assert "'p'" in capsys.readouterr().err


def test_replay_tells_a_changed_byte_and_answers_what_if(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(log), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 60
    config = tmp_path / "pools.json"
    config.write_text(json.dumps({"version": 1, "pools": [{"name": "p", "limits": {"max_replicas": 1}}]}))
    assert main(["replay", str(log), "--config", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["open_loop"] is True
    assert told["differing"]
    assert all(one["now"] == 1 for one in told["differing"])
    assert main(["replay", str(log), "--config", str(config)]) == 0
    assert "open loop" in capsys.readouterr().out
    segment = next(log.glob("*.jsonl"))
    segment.write_text(segment.read_text().replace('"waiting_requests":0.0', '"waiting_requests":0.5', 1))
    assert main(["replay", str(log)]) == 1
    assert "recorded" in capsys.readouterr().err


def test_a_log_without_a_header_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "000001.jsonl").write_text('{"type":"step"}\n')
    assert main(["replay", str(tmp_path / "p")]) == 2
    assert "must begin with a header" in capsys.readouterr().err


def test_validate_says_what_each_file_is(scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "pools.toml"
    config.write_text('version = 1\n[[pools]]\nname = "a"\n[[pools]]\nname = "b"\n')
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0.0,10,5\n1.5,20,6\n")
    assert main(["validate", str(config), str(scenario), str(trace), "builtin:diurnal_day"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("a config of 2 pools: a, b")
    assert out[1].endswith("a scenario: short step")
    assert "a trace" in out[2]
    assert out[3] == "builtin:diurnal_day: a scenario: Diurnal day"


@pytest.mark.parametrize("kind", ["config", "scenario", "profile"])
def test_schema_prints_a_json_schema(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", kind]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False


def test_bench_lists_what_it_can_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*BENCHES, "policy"]


def test_bench_rows_have_the_promised_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--quick", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"cpu", "cores", "python"} <= set(told["machine"])
    for row in told["rows"]:
        assert set(row) == {"name", "value", "unit", "baseline", "baseline_value", "op", "goal", "holds"}
        assert row["holds"] is None if row["goal"] is None else isinstance(row["holds"], bool)
    assert any(row["holds"] is not None for row in told["rows"])
