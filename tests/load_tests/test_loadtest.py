"""Load tests without a server: plans, bodies, reading of streams, judging of records, what is refused."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.errors import ConfigError
from autoscaler.main import main
from autoscaler.settings import Slo
from load_tests.loadtest import _processes, _window
from load_tests.loadtest_plan import Bodies, Plan, Sending, plan_of
from load_tests.loadtest_result import outcome_of, table
from load_tests.loadtest_stream import Reading, Sketch, merged
from load_tests.scenario import Scenario, scenario_from
from load_tests.traffic import materialise

SENDING = Sending(host="http://localhost:1", model="m")


def scenario(**changes: Any) -> Scenario:
    data = {
        "version": 1,
        "name": "small",
        "traffic": {
            "kind": "shape",
            "shape": {"kind": "step", "requests_per_second": 5, "factor": 2, "at_seconds": 30},
            "lengths": {"kind": "lognormal", "prompt_tokens": 300, "output_tokens": 20},
        },
        "window": {"duration_seconds": 60},
        "slo": {"ttft_seconds": 1.0, "itl_seconds": 0.05, "attainment_fraction": 0.9},
    }
    return scenario_from({**data, **changes}, Path())


# -- plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_is_the_simulators_traffic_and_survives_a_file(tmp_path: Path) -> None:
    whole = materialise(scenario(), 3).requests
    plan = plan_of(scenario(), 3, replace(SENDING, headers=(("Authorization", "secret"),)))
    assert np.array_equal(plan.arrival_seconds, whole.arrival_seconds)
    assert np.array_equal(plan.prompt_tokens, whole.prompt_tokens)
    plan.save(tmp_path / "new")
    again = Plan.load(tmp_path / "new")
    assert np.array_equal(again.arrival_seconds, plan.arrival_seconds)
    assert np.array_equal(again.output_tokens, plan.output_tokens)
    assert (again.sending, again.slo, again.duration_seconds) == (SENDING, plan.slo, 60.0)
    assert "secret" not in (tmp_path / "new" / "plan.json").read_text()


def test_a_window_holds_the_same_requests_as_the_whole() -> None:
    whole = plan_of(scenario(), 0, SENDING)
    cut = plan_of(scenario(), 0, SENDING, window=(20.0, 40.0))
    inside = (whole.arrival_seconds >= 20.0) & (whole.arrival_seconds < 40.0)
    assert np.array_equal(cut.arrival_seconds, whole.arrival_seconds[inside] - 20.0)
    assert np.array_equal(cut.output_tokens, whole.output_tokens[inside])
    assert cut.duration_seconds == 20.0
    assert plan_of(scenario(), 0, SENDING, window=(50.0, 900.0)).duration_seconds == 10.0


def test_the_warm_up_is_the_scenarios_unless_the_window_is_cut() -> None:
    warm = scenario(score_from_seconds=10)
    assert plan_of(warm, 0, SENDING).score_from_seconds == 10.0
    assert plan_of(warm, 0, SENDING, window=(0.0, 20.0)).score_from_seconds == 0.0
    assert plan_of(warm, 0, SENDING, window=(0.0, 20.0), warm_up_seconds=5.0).score_from_seconds == 5.0
    with pytest.raises(ConfigError, match=r"--warm-up: 20 must be >= 0 and < 20"):
        plan_of(warm, 0, SENDING, window=(0.0, 20.0), warm_up_seconds=20.0)


@pytest.mark.parametrize("window", [(-1.0, 5.0), (5.0, 5.0), (70.0, 80.0), (0.0, 1e-9)])
def test_a_window_without_requests_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="--window"):
        plan_of(scenario(), 0, SENDING, window=window)


def test_tokens_per_second_is_of_the_busiest_minute_and_decides_the_processes() -> None:
    plan = plan_of(scenario(), 0, SENDING)
    assert plan.tokens_per_second == pytest.approx(plan.output_tokens.sum() / 60.0)
    assert _processes(plan) == 1
    assert replace(plan, sending=replace(SENDING, speed=4.0)).tokens_per_second == pytest.approx(
        4 * plan.tokens_per_second
    )


# -- bodies -----------------------------------------------------------------------------------------------------------


def test_bodies_have_the_planned_lengths_and_share_no_prefix() -> None:
    plan = plan_of(scenario(), 0, SENDING)
    bodies = Bodies(plan)
    seen = set()
    for i in range(len(plan)):
        body = json.loads(bodies.body(i))
        assert len(body["prompt"]) == plan.prompt_tokens[i]
        assert body["max_tokens"] == plan.output_tokens[i]
        assert (body["stream"], body["ignore_eos"], body["model"]) == (True, True, "m")
        assert body["stream_options"] == {"include_usage": True}
        assert all(1000 <= token < 4000 for token in body["prompt"])
        seen.add(tuple(body["prompt"][:2]))
    assert len(seen) == len(plan)
    assert bodies.body(3) == Bodies(plan).body(3)


def test_blocks_of_a_trace_become_equal_prefixes() -> None:
    plan = replace(
        plan_of(scenario(), 0, SENDING),
        prompt_tokens=np.array([100, 90, 20]),
        block_offsets=np.array([0, 2, 4, 5]),
        block_ids=np.array([7, 8, 7, 9, 7]),
        block_tokens=32,
    )
    one, two, three = (Bodies(plan).ids(i, int(plan.prompt_tokens[i])) for i in range(3))
    assert one[:32] == two[:32]
    assert one[32:64] != two[32:64]
    assert three == one[:20]
    assert (len(one), len(two)) == (100, 90)


def test_chat_bodies_are_words() -> None:
    plan = plan_of(scenario(), 0, replace(SENDING, api="chat", chunk_usage=True))
    body = json.loads(Bodies(plan).body(0))
    assert len(body["messages"][0]["content"].split()) == plan.prompt_tokens[0]
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


# -- reading ----------------------------------------------------------------------------------------------------------


def event(**data: Any) -> bytes:
    return f"data: {json.dumps(data)}\n".encode()


def text(content: str, reason: str | None = None, **more: Any) -> bytes:
    return event(choices=[{"text": content, "finish_reason": reason}], **more)


def test_the_first_token_is_content_not_a_role_a_comment_or_usage() -> None:
    reading = Reading()
    lines = [
        (b": ping\n", 1.0),
        (event(choices=[{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]), 2.0),
        (b"\n", 2.5),
        (event(choices=[{"delta": {"content": "a"}, "finish_reason": None}]), 3.0),
        (event(choices=[{"delta": {"content": "b"}, "finish_reason": None}]), 3.5),
        (event(choices=[{"delta": {}, "finish_reason": "stop"}]), 4.0),
        (event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 2}), 4.1),
    ]
    assert not any(reading.feed(line, at) for line, at in lines)
    assert reading.feed(b"data: [DONE]\n", 4.2)
    assert (reading.first, reading.last, reading.events, reading.reason) == (3.0, 3.5, 2, "stop")
    assert (reading.prompt_tokens, reading.output_tokens) == (9, 2)
    assert reading.gaps == [(0.5, 1.0)]


def test_half_a_character_is_a_token_too() -> None:
    reading = Reading()
    reading.feed(text(""), 1.0)
    reading.feed(text("é"), 2.0)
    reading.feed(text("", "length"), 3.0)
    assert (reading.first, reading.last, reading.events) == (1.0, 2.0, 2)


def test_tokens_of_a_chunk_share_its_gap() -> None:
    told = Reading()
    for tokens, at in ((1, 1.0), (2, 1.1), (6, 1.5)):
        told.feed(text("x", usage={"prompt_tokens": 3, "completion_tokens": tokens}), at)
    assert [seconds for seconds, _ in told.gaps] == pytest.approx([0.1, 0.4])
    assert [tokens for _, tokens in told.gaps] == [1, 4]
    sketch = Sketch()
    told.into(sketch)
    assert sketch.total == 5
    assert sketch.quantile(0.99) == pytest.approx(0.1, rel=0.006)
    untold = Reading()  # only the end tells: 6 tokens in 3 events
    for at in (1.0, 1.2, 1.4):
        untold.feed(text("x"), at)
    untold.feed(event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 6}), 1.4)
    sketch = Sketch()
    untold.into(sketch)
    assert sketch.total == 4
    assert sketch.quantile(0.5) == pytest.approx(0.1, rel=0.006)


def test_errors_inside_200_and_rubbish_are_failures() -> None:
    reading = Reading()
    reading.feed(text("x"), 1.0)
    assert not reading.feed(event(error={"message": "EngineCore encountered an issue", "code": 500}), 2.0)
    assert reading.error == "error event 500: EngineCore encountered an issue"
    for line, says in ((b"data: {", "not JSON"), (b'data: {"error": "full"}', "full")):
        other = Reading()
        other.feed(line, 1.0)
        assert other.error is not None
        assert says in other.error
    whole = Reading()
    for line in (
        b"data: 5\n",
        b"data: null\n",
        b'data: {"choices": null}\n',
        b"event: x\n",
        b'data: {"choices":[{}]}\n',
    ):
        assert not whole.feed(line, 1.0)
    assert whole.error is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "text", "content", "usage", "completion_tokens", "error", "finish_reason"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def test_a_usage_of_nothing_does_not_outweigh_what_was_seen() -> None:
    reading, sketch = Reading(), Sketch()
    for at in (1.0, 2.0, 3.0):
        reading.feed(text("x", usage={"prompt_tokens": 1, "completion_tokens": 0}), at)
    reading.into(sketch)
    assert sketch.total == 2


@given(events=st.lists(json_values | st.binary(max_size=20), max_size=8))
def test_no_stream_breaks_the_reader(events: list[Any]) -> None:
    reading, sketch = Reading(), Sketch()
    for at, one in enumerate(events):
        data = one if isinstance(one, bytes) else json.dumps(one).encode()
        reading.feed(b"data: " + data + b"\n", float(at + 1))
    reading.into(sketch)
    assert all(tokens > 0 for _, tokens in reading.gaps)
    assert all(count >= 0 for count in sketch.counts.values())


def test_sketches_are_within_half_a_per_cent_and_add_up() -> None:
    values = np.random.default_rng(0).lognormal(-3.0, 1.0, 20_000)
    parts = [Sketch(), Sketch()]
    for i, value in enumerate(values):
        parts[i % 2].add(float(value))
    whole = merged(Sketch(json.loads(json.dumps(part.counts))) for part in parts)
    for q in (0.01, 0.5, 0.95, 0.99):
        assert whole.quantile(q) == pytest.approx(float(np.quantile(values, q)), rel=0.01)
    assert whole.total == 20_000
    assert Sketch().quantile(0.5) is None


# -- judging ----------------------------------------------------------------------------------------------------------


def records(folder: Path, plan: Plan, **changes: dict[int, Any]) -> None:
    """Perfect answers: sent on time, first token after 0.5 s, 20 ms a token; `changes`: column -> {request: value}."""
    plan.save(folder)
    lines = []
    for i, at in enumerate((plan.arrival_seconds / plan.sending.speed).tolist()):
        tokens = int(plan.output_tokens[i])
        row = {
            "i": i, "intended": at, "sent": at + 0.001, "first": at + 0.5, "last": at + 0.5 + 0.02 * (tokens - 1),
            "end": at + 9.0, "prompt_tokens": 3, "output_tokens": tokens, "status": "done", "whose": None, "error": None,
        }  # fmt: skip
        row.update({name: values[i] for name, values in changes.items() if i in values})
        lines.append(json.dumps(row))
    half = len(lines) // 2
    (folder / "records.0.jsonl").write_text("\n".join(lines[:half]) + "\n")
    (folder / "records.1.jsonl").write_text("\n".join(lines[half:]) + "\n")
    sketch = Sketch()
    sketch.add(0.02, 100)
    for process in (0, 1):
        told = {"process": process, "of": 2, "cpu_fraction": 0.1, "gaps": sketch.counts}
        (folder / f"summary.{process}.json").write_text(json.dumps(told))


def test_good_answers_meet_the_slo(tmp_path: Path) -> None:
    plan = plan_of(scenario(), 0, SENDING)
    records(tmp_path, plan)
    outcome = outcome_of(tmp_path)
    assert outcome.requests == outcome.sent == len(plan)
    assert (outcome.violated, outcome.met, outcome.exit_code) == (0, True, 0)
    assert outcome.ttft_seconds["p99"] == pytest.approx(0.5)
    assert outcome.ttft_from_actual_start_seconds["p50"] == pytest.approx(0.499)
    assert outcome.itl_seconds["p50"] == pytest.approx(0.02, rel=0.006)
    assert outcome.tpot_seconds["p95"] == pytest.approx(0.02)
    assert outcome.lateness_seconds["max"] == pytest.approx(0.001)
    assert outcome.output_tokens_per_second == pytest.approx(plan.output_tokens.sum() / 60.0)
    told = json.loads(json.dumps(outcome.data(), allow_nan=False))
    assert told["valid"]
    assert "met" in table(outcome)


def test_what_is_late_from_the_intended_start_is_violated_though_it_was_quick_when_sent(tmp_path: Path) -> None:
    plan = plan_of(scenario(), 0, SENDING)
    some = range(100)
    at = plan.arrival_seconds.tolist()
    late = {"sent": 3.0, "first": 3.1, "last": 3.5}
    records(tmp_path, plan, **{name: {i: at[i] + seconds for i in some} for name, seconds in late.items()})
    outcome = outcome_of(tmp_path)
    assert outcome.violated_ttft == 100
    assert outcome.ttft_from_actual_start_seconds["p99"] == pytest.approx(0.499)
    assert not outcome.valid  # and the generator was late, so nothing is said about the server
    assert outcome.exit_code == 3
    assert "INVALID: dispatch lateness p99" in table(outcome)


def test_open_and_failed_requests_count_as_violated(tmp_path: Path) -> None:
    plan = plan_of(scenario(), 0, SENDING)
    n = len(plan)
    records(
        tmp_path, plan, status={**dict.fromkeys(range(40), "failed"), **dict.fromkeys(range(40, 60), "unfinished")},
        error=dict.fromkeys(range(40), "HTTP 503: full"), whose=dict.fromkeys(range(40), "server"),
        first=dict.fromkeys(range(60)), last=dict.fromkeys(range(60)), output_tokens=dict.fromkeys(range(60)),
    )  # fmt: skip
    outcome = outcome_of(tmp_path)
    assert (outcome.failed, outcome.unfinished, outcome.violated) == (40, 20, 60)
    assert outcome.met is (0.1 * n >= 60)
    assert outcome.valid
    assert outcome.exit_code == 1
    assert outcome.errors == {"HTTP 503: full": 40}
    assert outcome.data()["ttft_seconds"]["p99"] is None  # never
    assert "never" in table(outcome)


def test_a_run_that_was_cut_off_is_invalid_and_its_torn_line_is_left_out(tmp_path: Path) -> None:
    plan = plan_of(scenario(), 0, SENDING)
    records(tmp_path, plan)
    path = tmp_path / "records.1.jsonl"
    path.write_text(path.read_text()[:-200])
    (tmp_path / "summary.1.json").unlink()
    outcome = outcome_of(tmp_path)
    assert outcome.sent < outcome.planned
    assert outcome.unfinished == outcome.planned - outcome.sent
    broken = {gate.name for gate in outcome.gates if not gate.holds}
    assert "CPU share of the busiest generator process" in broken  # not known, so it does not hold
    assert outcome.exit_code == 3


def test_client_errors_are_told_apart_and_too_many_make_a_run_invalid(tmp_path: Path) -> None:
    plan = plan_of(scenario(), 0, SENDING)
    bad = dict.fromkeys(range(10), "client")
    records(
        tmp_path, plan, status=dict.fromkeys(bad, "failed"), whose=bad, error=dict.fromkeys(bad, "HTTPConnectionClosed")
    )
    outcome = outcome_of(tmp_path)
    assert (outcome.failed, outcome.client_errors) == (10, 10)
    assert not outcome.valid


def test_a_fast_engine_is_judged_in_the_scenarios_seconds(tmp_path: Path) -> None:
    plan = replace(plan_of(scenario(), 0, SENDING), sending=replace(SENDING, speed=4.0))
    records(tmp_path, plan)
    outcome = outcome_of(tmp_path)
    assert outcome.ttft_seconds["p50"] == pytest.approx(2.0)
    assert outcome.itl_seconds["p50"] == pytest.approx(0.08, rel=0.006)
    assert outcome.lateness_seconds["max"] == pytest.approx(0.001)
    assert outcome.violated == len(plan)


def test_an_itl_limit_is_of_a_requests_mean(tmp_path: Path) -> None:
    plan = replace(
        plan_of(scenario(), 0, SENDING), slo=Slo(ttft_seconds=1.0, itl_seconds=0.019, attainment_fraction=0.9)
    )
    records(tmp_path, plan)
    outcome = outcome_of(tmp_path)
    assert outcome.violated_itl == int((plan.output_tokens > 1).sum())


# -- command ----------------------------------------------------------------------------------------------------------


def asked(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"window": None, "seconds": None, **given})


def test_windows_are_read() -> None:
    assert _window(asked()) is None
    assert _window(asked(seconds=5.0)) == (0.0, 5.0)
    assert _window(asked(window="10:20.5")) == (10.0, 20.5)
    for wrong in ("10", "a:b", "10:"):
        with pytest.raises(ConfigError, match="must be START:END"):
            _window(asked(window=wrong))
    with pytest.raises(ConfigError, match="--seconds"):
        _window(asked(seconds=0.0))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "--host: must be given"),
        (["--judge", "nowhere"], "nowhere must be a folder that holds plan.json"),
        (["--host", "localhost:8000"], "must begin with http"),
        (["--host", "http://127.0.0.1:9"], "does not answer"),
        (["--host", "http://127.0.0.1:9", "--speed", "10"], "do not shrink with the trace; cut it with --window"),
        (["--host", "http://127.0.0.1:9", "--no-probe"], "--model"),
        (["--host", "http://127.0.0.1:9", "--processes", "0"], "--processes: 0 must be in [1, 1024]"),
        (["--host", "http://127.0.0.1:9", "--header", "x"], "must be NAME:VALUE"),
        (["--host", "http://127.0.0.1:9", "--grace", "-1"], "--grace"),
        (["--host", "http://127.0.0.1:9", "--seconds", "5", "--window", "1:2"], "must be left out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    more: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["loadtest", "builtin:azure_conv", *more]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_plan_can_be_prepared_for_locust_on_other_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "plan"
    command = [
        "loadtest",
        "builtin:azure_conv",
        "--host",
        "http://10.0.0.1",
        "--no-probe",
        "--model",
        "m",
        "--seconds",
        "30",
    ]
    assert main([*command, "--prepare", str(folder)]) == 0
    assert "requests over 30 s to http://10.0.0.1 (m)" in capsys.readouterr().err
    plan = Plan.load(folder)
    assert plan.arrival_seconds.max() < 30
    records(folder, plan)
    assert main(["loadtest", "--judge", str(folder)]) == 0  # the records that the others sent back
    assert "attainment 100.000 %" in capsys.readouterr().out
    assert json.loads((folder / "outcome.json").read_text())["met"]
    assert main([*command, "--prepare", str(folder)]) == 2
    assert "holds the records of another run" in capsys.readouterr().err
