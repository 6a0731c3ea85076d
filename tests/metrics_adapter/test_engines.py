"""Every engine's table reads a page of that engine; older vLLM reads as newer; a user's table; errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from autoscaler.errors import ConfigError
from autoscaler.main import main
from metrics_adapter.engines import CONCEPTS, known_engines, load_engine
from metrics_adapter.reading import EngineReader, Reading

SAMPLES = Path(__file__).parent / "samples"

KNOWN: dict[str, tuple[str, str | None, dict[str, float]]] = {
    "sglang": ("sglang", None, {
        "running": 7, "waiting": 5, "waiting_deferred": 2, "kv_usage": 0.28, "kv_capacity_tokens": 33004, "finished": 11000,
        "failed": 21, "preemptions": 4, "prompt_tokens": 128201, "cached_prompt_tokens": 51200, "output_tokens": 7557572,
        "ttft": 11010, "itl": 961542, "e2e": 11000, "queue": 11000,
    }),
    "trtllm": ("trtllm", None, {
        "running": 6, "waiting": 2, "kv_usage": 0.125, "finished": 42, "failed": 1, "prompt_tokens": 4410,
        "cached_prompt_tokens": 640, "output_tokens": 8190, "ttft": 42, "tpot": 42, "e2e": 42, "queue": 42,
    }),
    "triton": ("triton", "tensorrt_llm", {
        "running": 9, "waiting": 5, "kv_usage": 0.375, "finished": 120, "failed": 3, "ttft": 120,
    }),
    "nim": ("nim", None, {
        "running": 4, "waiting": 1, "kv_usage": 0.0625, "finished": 12, "failed": 1, "prompt_tokens": 1620,
        "output_tokens": 3300, "ttft": 17, "itl": 3283, "e2e": 12, "prompt_length": 12, "output_length": 12,
    }),
    "tgi": ("tgi", None, {
        "running": 11, "waiting": 4, "arrivals": 260, "finished": 231, "failed": 2, "rejected": 9, "prompt_tokens": 71000,
        "output_tokens": 52000, "tpot": 231, "e2e": 231, "queue": 231, "prompt_length": 251, "output_length": 231,
    }),
    "epp": ("epp", "llama-8b", {
        "running": 31, "waiting": 6, "arrivals": 1000, "failed": 8, "finished": 950, "prompt_tokens": 500000,
        "cached_prompt_tokens": 90000, "output_tokens": 180000, "ttft": 950, "tpot": 950, "e2e": 950,
        "prompt_length": 950, "output_length": 950,
    }),
    "envoy": ("envoy", "chat", {
        "running": 40, "waiting": 3, "arrivals": 5030, "finished": 4900, "failed": 30, "rejected": 30, "e2e": 4960,
    }),
    "knative": ("knative", None, {"running": 12, "finished": 417, "failed": 3, "e2e": 420}),
    "knative_1_19": ("knative", None, {"running": 12, "finished": 420}),
}  # fmt: skip


def read(page: str, engine: str = "vllm", model: str | None = None) -> Reading:
    return EngineReader(load_engine(engine), model).read(page.encode(), 0.0)


def told(reading: Reading) -> dict[str, float]:
    return {**reading.values, **{name: buckets.total for name, buckets in reading.histograms.items()}}


@pytest.mark.parametrize("page", sorted(KNOWN))
def test_a_page_of_the_engine_reads_as_its_values(page: str) -> None:
    engine, model, known = KNOWN[page]
    reading = read((SAMPLES / f"{page}.prom").read_text(), engine, model)
    assert told(reading) == known
    assert reading.missing(load_engine(engine), page) is None


def test_every_engine_has_a_page_under_test_and_every_row_is_read_on_one() -> None:
    assert {engine for engine, _, _ in KNOWN.values()} | {"vllm"} == set(known_engines())
    for name in known_engines():
        seen: set[str] = set()
        pages = [p for p, (engine, _, _) in KNOWN.items() if engine == name]
        for path in [SAMPLES / f"{p}.prom" for p in pages] if name != "vllm" else sorted((SAMPLES / "vllm").iterdir()):
            seen |= told(read(path.read_text(), name, KNOWN[path.stem][1] if name != "vllm" else None)).keys()
        unread = (
            set(load_engine(name).rows) - seen - {"started_at_seconds"} - ({"prefill"} if name == "trtllm" else set())
        )
        assert unread - ({"prompt_length", "output_length"} if name == "sglang" else set()) == set(), name


def test_times_are_in_seconds() -> None:
    envoy = read((SAMPLES / "envoy.prom").read_text(), "envoy", "chat").histograms["e2e"]
    assert envoy.upper_bounds == (0.5, 1.0, 5.0, 10.0)
    assert envoy.sum == 14000
    assert read((SAMPLES / "triton.prom").read_text(), "triton", "tensorrt_llm").histograms["ttft"].sum == 31


# What a version called what 0.32 calls otherwise, and what it did not have.  After the releases' sources.
OLD: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "0.8.5": (
        {
            "vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc",
            "vllm:prefix_cache_": "vllm:gpu_prefix_cache_",
            "vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds",
        },
        ("tpot", "awake", "waiting_deferred", "rejected", "kv_capacity_tokens"),
    ),
    "0.11.0": ({}, ("awake", "waiting_deferred", "rejected", "kv_capacity_tokens")),
    "0.18.1": ({}, ("waiting_deferred", "rejected", "kv_capacity_tokens")),
}
ABSENT = {
    "tpot": "vllm:request_time_per_output_token_seconds", "awake": "vllm:engine_sleep_state",
    "waiting_deferred": "vllm:num_requests_waiting_by_reason", "rejected": "vllm:admission_rejections_total",
    "kv_capacity_tokens": "vllm:cache_config_info",
}  # fmt: skip


@pytest.mark.parametrize("version", OLD)
@pytest.mark.parametrize("page", ["prefix_cache", "saturated"])
def test_older_vllm_reads_as_newer_does(version: str, page: str) -> None:
    text = (SAMPLES / "vllm" / f"{page}.prom").read_text()
    now = told(read(text))
    renamed, absent = OLD[version]
    lines = [line for line in text.splitlines(keepends=True) if not any(ABSENT[a] in line for a in absent)]
    lines = [
        line for line in lines if "vllm:prompt_tokens_cached" not in line
    ]  # from 0.17; older have the prefix cache's
    old = "".join(lines)
    for name, before in renamed.items():
        old = old.replace(name, before)
    assert told(read(old)) == {k: v for k, v in now.items() if k not in absent}


def test_both_names_at_once_are_not_added_up() -> None:
    text = (SAMPLES / "vllm" / "saturated.prom").read_text()
    lines = text.splitlines(keepends=True)
    both = text + "".join(
        line.replace("kv_cache_usage_perc", "gpu_cache_usage_perc").replace(
            "inter_token_latency", "time_per_output_token"
        )
        for line in lines
        if line.startswith(("vllm:kv_cache_usage_perc", "vllm:inter_token_latency"))
    )
    assert both != text
    assert read(both) == read(text)


def test_the_old_engine_has_no_label_for_engines() -> None:
    text = (SAMPLES / "vllm" / "queued.prom").read_text()
    assert read(text.replace('engine="0",', "").replace('{engine="0"}', "")) == read(text)


def test_a_user_adds_an_engine_or_changes_a_row(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nrows:\n  running: {series: [my_running], required: true}\n"
        "  ttft: {series: [my_ttft_ms], scale: 0.001}\n"
    )
    mine = load_engine({"file": str(file)})
    page = b'my_running 3\nmy_ttft_ms_bucket{le="500"} 2\nmy_ttft_ms_bucket{le="+Inf"} 3\n'
    page += b"my_ttft_ms_sum 1500\nmy_ttft_ms_count 3\n"
    reading = EngineReader(mine).read(page, 0.0)
    assert told(reading) == {"running": 3, "ttft": 3}
    assert reading.histograms["ttft"].upper_bounds == (0.5,)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"base": "vllm", "rows": {"running": {"series": ["ours:running"]}}}))
    changed = load_engine({"file": str(other)})
    assert changed.rows["running"].series == ("ours:running",)
    assert changed.rows["waiting"] == load_engine("vllm").rows["waiting"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("vlm", "engine: 'vlm' must be one of envoy, epp, "),
        ({"file": 3}, "engine.file: must be a path, and stand alone"),
        ({"file": "/no/such.yaml"}, "/no/such.yaml: cannot be read: No such file or directory"),
        (
            {"name": "x", "rows": {"runing": {"series": ["a"]}}},
            "engine.rows.runing: unknown concept, must be one of running, ",
        ),
        (
            {"name": "x", "rows": {"running": {"series": []}}},
            "engine.rows.running.series: () must hold at least one name",
        ),
        (
            {"name": "x", "rows": {"running": {"serie": ["a"]}}},
            "engine.rows.running.serie: unknown key; did you mean series?",
        ),
        (
            {"name": "x", "rows": {"running": {"series": ["a"], "scale": 0}}},
            "engine.rows.running.scale: 0.0 must be > 0",
        ),
        (
            {"name": "x", "rows": {"finished": {"series": ["a"], "merge": "max"}}},
            "'max' must be sum: only gauges are merged",
        ),
        ({"base": "vlm"}, "engine.base: 'vlm' must be one of"),
        (3, "engine: 3 must be the name of an engine"),
    ],
)
def test_a_wrong_table_is_refused_in_a_sentence(table: object, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_engine(table)  # type: ignore[arg-type]
    assert words in str(refused.value)


def test_the_command_line_checks_a_table_and_a_configs_engine_and_tells_the_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "mine.toml"
    table.write_text('name = "mine"\n[rows.running]\nseries = ["x"]\n')
    config = tmp_path / "config.yaml"
    config.write_text(f"version: 1\npools:\n- name: a\n  source: {{kind: scrape, dns: a, engine: {{file: {table}}}}}\n")
    assert main(["validate", str(table), str(config)]) == 0
    assert "an engine table: mine, 1 rows" in capsys.readouterr().out
    table.write_text('name = "mine"\n[rows.runing]\nseries = ["x"]\n')
    assert main(["validate", str(config)]) == 2
    assert "pools[0].source" in (said := capsys.readouterr().err)
    assert "rows.runing: unknown concept" in said
    assert main(["schema", "engine"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.validate({"name": "mine", "rows": {"running": {"series": ["x"]}}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "mine", "rows": {"running": {"serie": ["x"]}}}, schema)


def test_every_concept_is_read_by_some_engine() -> None:
    read_somewhere = {concept for name in known_engines() for concept in load_engine(name).rows}
    assert set(CONCEPTS) - read_somewhere == {"waiting_prompt_tokens", "first_tokens", "engine_steps"}
