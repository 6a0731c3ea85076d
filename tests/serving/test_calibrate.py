"""``autoscaler calibrate``: from a recording to a profile that the other commands accept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibration_world import arrivals, recorded

from autoscaler.embed import Pool
from autoscaler.errors import ConfigError, LogError
from autoscaler.log import observations_of
from autoscaler.main import main
from autoscaler.record import encode, encode_line
from autoscaler.types import Observation, Replicas
from load_tests.closed_loop import closed_loop_requests, run_closed_loop
from load_tests.fleet import Fleet, PoolModel
from load_tests.measured import replica_model
from load_tests.scenario import load_scenario
from serving.calibrate import calibrate, startup_profile_of, startups
from serving.capacity import laws_of
from serving.profiles import HostTerms, load_profile, load_startup, profile

H100 = "llama-3.1-8b_bf16_h100_tp1"
SIZES = {"layers": 32, "weights_gb": 16.1, "kv_bytes_per_token": 131072, "kv_capacity_tokens": 440180}


def write(path: Path, observations: list[Observation]) -> Path:
    path.write_text("".join(encode_line("observation", o) + "\n" for o in observations), encoding="utf-8")
    return path


def mean_itl(of: object, rate: float, seed: int = 9) -> float:
    """Mean time per output token of a replica at a steady rate, by simulation."""
    requests = arrivals(np.array([rate]), 600, seed)
    fleet = Fleet([PoolModel(name="pool", replica=replica_model(of))], requests)  # type: ignore[arg-type]
    fleet.add(0)
    fleet.advance(900.0)
    return float(np.nanmean(fleet.outcome().mean_itl_seconds))


def test_a_real_engines_recording_predicts_the_itl_of_a_load_between() -> None:
    """Recorded at 6, 24 and 40 streams; 14 streams took 8.06 ms a token (see the README of the data)."""
    seen = observations_of(Path(__file__).parent / "data" / "vllm_cpu_tiny.jsonl")
    sizes = {**SIZES, "kv_bytes_per_token": 2048, "kv_capacity_tokens": 524288, "kv_block_tokens": 128}
    learned = calibrate(seen, None, {**sizes, "layers": 4, "weights_gb": 0.0068, "max_num_seqs": 64})
    assert learned.held_out.mape_percent < 10.0
    loop = closed_loop_requests(clients=14, rounds=40, prompt_tokens=128, output_tokens=96, least_fraction=0.25)
    outcome = run_closed_loop(replica_model(learned.profile), loop)
    assert float(np.nanmean(outcome.mean_itl_seconds)) == pytest.approx(0.00806, rel=0.1)


@pytest.mark.parametrize("name", [H100, "llama-3.1-70b_bf16_a100_tp4", "qwen3-32b_bf16_h100_tp2"])
@pytest.mark.parametrize("with_prior", [True, False])
def test_the_profile_predicts_itl_at_a_load_that_was_not_seen(name: str, with_prior: bool) -> None:
    """Recorded at 20 to 60 % of the limit, asked at 85 % of it."""
    known = profile(name)
    slower = replace(known, linear=replace(known.linear, a=1.3 * known.linear.a), roofline=replace(
        known.roofline, a=1.3 * known.roofline.a, c=0.7 * known.roofline.c))  # fmt: skip
    sizes = {field: getattr(known, field) for field in (*SIZES, "max_num_seqs", "max_num_batched_tokens")}
    learned = calibrate(recorded(name, 0.2, 0.6), slower if with_prior else None, {"id": "x", **sizes})
    assert learned.held_out.mape_percent < 4.0
    assert learned.busier is not None
    assert learned.busier.mape_percent < 12.0
    law = laws_of(known)[1]
    rate = 0.85 * 20.0 / 27.0 * (1.0 - law.a / 0.05) / (600.0 * law.b + 200.0 * (law.c + 800.0 * law.d))
    assert mean_itl(learned.profile, rate) == pytest.approx(mean_itl(known, rate), rel=0.05 if with_prior else 0.1)


def test_the_command_writes_a_profile_that_validate_and_scenarios_accept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = write(tmp_path / "seen.jsonl", recorded(H100, 0.2, 0.7))
    out = tmp_path / "mine.toml"
    assert main(["calibrate", str(recording), "--prior", H100, "--set", "id=mine", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "held-out windows: step time off by" in said
    assert "told by the data" in said
    made = load_profile(out)
    assert made.id == "mine"
    assert made.host == replace(HostTerms(), per_step_seconds=0.0, per_sequence_seconds=0.0)
    assert main(["validate", str(out)]) == 0
    assert "a replica profile: mine" in capsys.readouterr().out
    scenario = tmp_path / "day.json"
    body = {
        "version": 1, "name": "x", "traffic": {"kind": "shape", "shape": {"kind": "constant", "requests_per_second": 1.0}},
        "replica": {"profile": "mine.toml"}, "policies": [{"kind": "static", "replicas": 1}],
    }  # fmt: skip
    scenario.write_text(json.dumps(body))
    assert load_scenario(str(scenario)).replica.profile.endswith("mine.toml")


def test_without_a_file_the_profile_is_printed_as_toml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = write(tmp_path / "seen.jsonl", recorded(H100, 0.2, 0.7))
    sets = [word for name, value in SIZES.items() for word in ("--set", f"{name}={value}")]
    assert main(["calibrate", str(recording), *sets]) == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out)
    assert load_profile(printed).id == "calibrated"
    assert main(["calibrate", str(recording), *sets, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] > 60
    assert [name for name, _, _ in told["told"]] == ["a", "b", "c", "d"]


def test_one_load_is_refused_without_a_prior_and_told_with_one(tmp_path: Path) -> None:
    steady = recorded(H100, 0.5, 0.5)
    with pytest.raises(ConfigError, match=r"one load only, .* must span a factor of 2, or --prior must name"):
        calibrate(steady, None, SIZES)
    learned = calibrate(steady, profile(H100))
    assert learned.running[1] < 2 * learned.running[0]
    assert learned.from_prior, "at one load something must come from the prior"
    assert all(name in learned.profile.quality for name in learned.from_prior)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "kv=3"], "'kv=3' must be NAME=VALUE with a NAME among"),
        (["--set", "layers"], "'layers' must be NAME=VALUE"),
        (["--prior", "llama"], "'llama' is unknown"),
        ([], "--set.layers: is missing"),
        (["--prior", H100, "--set", "layers=0"], "--set.layers: 0 must be >= 1"),
        (["--prior", H100, "--out", "x.yaml"], "'.yaml' must be one of .toml, .json"),
        (["--prior", H100, "--startup", "x.toml"], "0 starts from order to ready must be 3 or more"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = write(tmp_path / "seen.jsonl", recorded(H100, 0.2, 0.7))
    assert main(["calibrate", str(recording), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_too_few_windows_are_refused_and_the_reason_is_told() -> None:
    few = recorded(H100, 0.2, 0.7, seconds=100)
    with pytest.raises(ConfigError, match="usable windows of 10 s must be 10 or more"):
        calibrate(few, profile(H100))
    blind = [replace(o, load=None) for o in recorded(H100, 0.2, 0.7)]
    with pytest.raises(ConfigError, match=r"0 usable windows .* \(179 windows were not measured\)"):
        calibrate(blind, profile(H100))


def test_every_kind_of_recording_is_read(tmp_path: Path) -> None:
    seen = recorded(H100, 0.2, 0.7, seconds=300)
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(encode(o) + "\n" for o in seen))
    assert observations_of(plain) == seen
    assert observations_of(write(tmp_path / "typed.jsonl", seen)) == seen
    pool = Pool.from_config({"name": "pool", "replica": {"profile": H100}})
    steps = tmp_path / "steps.jsonl"
    with steps.open("w") as file:
        for observation in seen:
            pool.step(observation)
            assert pool.last_step is not None
            file.write(pool.last_step.to_json() + "\n")
    assert observations_of(steps) == seen
    backfill = tmp_path / "backfill.jsonl"
    backfill.write_text(f'{{"type":"backfill","observations":[{",".join(map(encode, seen))}]}}\n')
    assert observations_of(backfill) == seen
    assert observations_of(tmp_path) == seen  # together, each instant once
    with pytest.raises(LogError, match="there is no such log"):
        observations_of(tmp_path / "nothing")


def test_of_several_pools_one_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = recorded(H100, 0.2, 0.7)
    recording = write(tmp_path / "seen.jsonl", [p for o in seen for p in (o, replace(o, pool="other", load=None))])
    command = ["calibrate", str(recording), "--prior", H100, "--json"]
    assert main(command) == 2
    assert "--pool: must name one of other, pool: each is calibrated apart" in capsys.readouterr().err
    assert main([*command, "--pool", "third"]) == 2
    assert "'third' must be one of other, pool" in capsys.readouterr().err
    assert main([*command, "--pool", "pool"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] > 60


def lives(*counts: tuple[int, int], every: int = 10) -> list[Observation]:
    return [
        Observation(
            pool="p",
            at_seconds=1000 + every * k,
            window_seconds=every,
            replicas=Replicas(desired=ready + starting, ready=ready, starting=starting),
        )  # fmt: skip
        for k, (ready, starting) in enumerate(counts)
    ]


def test_starts_are_read_off_the_counts() -> None:
    assert startups(lives((1, 0), (1, 2), (1, 2), (2, 1), (3, 0))) == ([20.0, 30.0], 0)
    assert startups(lives((1, 0), (1, 1), (1, 0), (1, 1), (2, 0))) == ([10.0], 1)
    assert startups(lives((1, 0), (2, 0))) == ([1.0], 0)  # ordered and ready within one window
    assert startups(lives((1, 1), (2, 0))) == ([], 0)  # ordered before the recording: nobody knows when
    assert startups(lives((1, 0), (1, 3), (1, 3))) == ([], 0)  # not over yet


def test_a_start_up_profile_needs_three_starts_and_says_its_spread(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 starts .* must be 3 or more"):
        startup_profile_of([30.0, 40.0])
    made = startup_profile_of([30.0, 40.0, 50.0])
    assert made.stages[0].fixed_seconds == 40.0
    assert 0.1 < made.stages[0].sigma < 0.4


def test_the_command_writes_the_start_up_profile(tmp_path: Path) -> None:
    busy = recorded(H100, 0.2, 0.7)
    born = lives(*[(1, 0), (1, 1), (1, 1), (2, 0), (1, 0)] * 4)
    later = [replace(o, pool="pool", at_seconds=o.at_seconds + 2_000_000_000) for o in born]
    recording = write(tmp_path / "seen.jsonl", [*busy, *later])
    out = tmp_path / "startup.toml"
    assert (
        main(["calibrate", str(recording), "--prior", H100, "--out", str(tmp_path / "p.json"), "--startup", str(out)])
        == 0
    )
    assert load_startup(out).stages[0].fixed_seconds == 20.0
    assert load_profile(tmp_path / "p.json").id == f"{H100}_calibrated"
