"""Recorded pages of a real vLLM read as what was known of the server when they were recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metrics_adapter.engines import load_engine
from metrics_adapter.reading import EngineReader, Reading

PAGES = Path(__file__).parent / "samples" / "vllm"
KNOWN: dict[str, dict[str, float]] = {
    "idle": {"running": 0, "waiting": 0, "awake": 1, "kv_capacity_tokens": 6144, "prompt_tokens": 0, "ttft": 0},
    "running": {"running": 4, "waiting": 0, "ttft": 24, "finished": 20, "prompt_tokens": 796, "output_tokens": 2397},
    "queued": {"running": 15, "waiting": 47, "waiting_deferred": 0, "kv_usage": 0.4042553191489362, "preemptions": 0},
    "saturated": {"running": 8, "waiting": 56, "kv_usage": 0.9787234042553191, "preemptions": 21},
    "drained": {"running": 0, "waiting": 0, "kv_usage": 0, "ttft": 456, "finished": 456, "e2e": 456},
    "prefix_cache": {"finished": 480, "cached_prompt_tokens": 23 * 512},
    "aborted": {"ttft": 510, "finished": 506, "failed": 0, "prompt_length": 506},
    "sleeping": {"awake": 0, "running": 0, "waiting": 0, "failed": 3, "finished": 5},
    "rejected": {"rejected": 54, "finished": 6, "ttft": 6},
    "dp2": {"running": 16, "waiting": 7, "kv_capacity_tokens": 2 * 64 * 128, "finished": 52, "ttft": 68},
    "api_servers2": {"running": 8, "waiting": 8, "finished": 7, "ttft": 15},
    "lora": {"running": 3, "waiting": 3, "waiting_deferred": 3, "ttft": 3},
}


def read(name: str) -> Reading:
    return EngineReader(load_engine("vllm")).read((PAGES / f"{name}.prom").read_bytes(), 0.0)


def value(reading: Reading, concept: str) -> float:
    return reading.values[concept] if concept in reading.values else reading.histograms[concept].total


@pytest.mark.parametrize("name", sorted(p.stem for p in PAGES.glob("*.prom")))
def test_a_recorded_page_reads_as_what_was_known_of_the_server(name: str) -> None:
    reading = read(name)
    assert {concept: value(reading, concept) for concept in KNOWN[name]} == KNOWN[name]
    assert reading.missing(load_engine("vllm"), name) is None


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_fast_reader_says_what_the_reference_parser_says(name: str) -> None:
    text = (PAGES / f"{name}.prom").read_text()
    samples = [(s.name, s.labels, s.value) for f in text_string_to_metric_families(text) for s in f.samples]
    assert EngineReader(load_engine("vllm")).read_samples(samples, 0.0) == read(name)


def test_one_reader_reads_pages_of_many_servers_in_any_order() -> None:
    reader = EngineReader(load_engine("vllm"))
    for name in [*KNOWN, *reversed(KNOWN), *KNOWN]:
        assert reader.read((PAGES / f"{name}.prom").read_bytes(), 0.0) == read(name)


def test_a_server_without_process_metrics_has_no_known_start() -> None:
    assert "started_at_seconds" in read("idle").values
    assert "started_at_seconds" not in read("api_servers2").values


def test_another_model_on_the_same_server_is_left_out() -> None:
    page = (PAGES / "queued.prom").read_bytes()
    other = EngineReader(load_engine("vllm"), model="other").read(page, 0.0)
    assert "running" not in other.values
    assert EngineReader(load_engine("vllm"), model="tiny").read(page, 0.0) == read("queued")


def test_a_page_of_another_engine_names_series_row_and_table() -> None:
    missing = (
        EngineReader(load_engine("vllm"))
        .read(b"sglang:num_running_reqs 3\n", 0.0)
        .missing(load_engine("vllm"), "replica chat-0")
    )
    assert str(missing) == (
        "replica chat-0: no series vllm:num_requests_running, which the row 'running' of the engine table 'vllm' reads"
        " (requests in the running batch; of a gateway, in flight); is the engine another one?"
    )
