"""The fake engine's metrics page against what a real vLLM 0.32 printed, and against what a client saw."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from load_tests.fake_engine import FakeEngine
from load_tests.fake_engine_metrics import Histogram, Metrics, lengths

RECORDED = Path(__file__).with_name("vllm_0_32_families.txt")
VALUES = ("reason", "source", "finished_reason", "sleep_state", "operation")

Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Page:
    samples: Page = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def total(page: Page, name: str, **labels: str) -> float:
    found = [v for (n, have), v in page.items() if n == name and set(labels.items()) <= have]
    assert found, name
    return sum(found)


def buckets(page: Page, name: str) -> list[tuple[float, float]]:
    return sorted((float(dict(have)["le"]), v) for (n, have), v in page.items() if n == f"{name}_bucket")


def families(text: str) -> dict[str, tuple[str, set[str], list[str]]]:
    """Name -> type, labels, buckets: the same reading as in the recorded list."""
    found: dict[str, tuple[str, set[str], list[str]]] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            name, kind = line.split()[2:]
            kinds[name] = kind
            found[name] = kind, set(), []
    for (name, labels), _ in parse(text).items():
        base = name
        for ending in ("_bucket", "_sum", "_count"):
            if base not in kinds and kinds.get(base.removesuffix(ending)) == "histogram":
                base = base.removesuffix(ending)
        for key, value in labels:
            if key == "le":
                if value not in found[base][2]:
                    found[base][2].append(value)
            elif base != "vllm:cache_config_info" or key == "engine":
                found[base][1].add(f"{key}={value}" if key in VALUES else key)
    return found


def test_every_modelled_family_is_there_with_its_type_labels_and_buckets() -> None:
    metrics = Metrics("tiny", 2048, {"block_size": "16"})
    for name in ("sleep", "wake", "release_kv_cache_memory"):
        metrics.operation(name)
    metrics.http_requests.value(handler="/v1/completions", method="POST", status="2xx")
    metrics.http_seconds.histogram(handler="/v1/completions", method="POST")
    here = families(metrics.page().decode())
    rows = [line.split(" ") for line in RECORDED.read_text().splitlines() if not line.startswith("#")]
    assert len(rows) > 80
    for name, kind, labels, bounds in rows:
        assert name in here, name
        kind_here, labels_here, bounds_here = here[name]
        assert kind_here == kind, name
        assert labels_here == set(labels.split(",")) - {"-"}, name
        assert sorted(map(float, bounds_here)) == sorted(
            map(float, bounds.replace("-", "").split(",") if bounds != "-" else [])
        ), name
    assert {n for n in here if n.startswith("vllm:")} <= {row[0] for row in rows}  # and nothing that vLLM has not


def test_lengths_end_below_the_longest_request() -> None:
    assert lengths(2048)[-3:] == (500.0, 1000.0, 2000.0)
    assert lengths(2000)[-1] == 2000.0
    assert lengths(1) == (1.0,)


def test_a_value_on_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.counts == [1, 2, 1]
    lines = histogram.lines("h", {"a": 'q"'})
    assert 'h_bucket{a="q\\"",le="+Inf"} 4.0' in lines


def test_gauges_keep_their_value_and_sleep_states_are_exclusive() -> None:
    metrics = Metrics("m", 100, {})
    metrics.set_gauges(running=3, waiting=2, kv_fraction=0.5)
    metrics.set_sleep(2)
    page = parse(metrics.page().decode())
    assert total(page, "vllm:num_requests_running") == 3
    assert total(page, "vllm:num_requests_waiting") == 2
    assert total(page, "vllm:num_requests_waiting_by_reason", reason="capacity") == 2
    assert total(page, "vllm:engine_sleep_state", sleep_state="discard_all") == 1
    assert total(page, "vllm:engine_sleep_state") == 1


async def stream(session: aiohttp.ClientSession, url: str, prompt: int, tokens: int) -> list[float]:
    """Instants of a request: sent, then each token."""
    body = {"prompt": list(range(prompt)), "max_tokens": tokens, "ignore_eos": True, "stream": True}
    instants = [time.perf_counter()]
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        assert answer.status == 200
        async for line in answer.content:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["text"]:
                instants.append(time.perf_counter())
    return instants


async def page_of(session: aiohttp.ClientSession, url: str) -> Page:
    async with session.get(f"{url}/metrics") as answer:
        return parse(await answer.text())


async def observed() -> tuple[Page, list[list[float]]]:
    """The page after a dozen streams on four seats, and the streams."""
    async with (
        FakeEngine(max_num_seqs=4, profile="llama-3.1-70b_bf16_a100_tp4", enable_prefix_caching=False) as engine,
        aiohttp.ClientSession() as session,
    ):
        streams = await asyncio.gather(*(stream(session, engine.url, 40 + i, 8 + i) for i in range(12)))
        return await page_of(session, engine.url), list(streams)


def test_the_page_agrees_with_what_the_client_saw() -> None:
    page, streams = asyncio.run(observed())
    outputs = [len(s) - 1 for s in streams]
    assert outputs == [8 + i for i in range(12)]
    assert total(page, "vllm:generation_tokens_total") == sum(outputs)
    assert total(page, "vllm:prompt_tokens_total") == sum(40 + i for i in range(12))
    assert total(page, "vllm:request_success_total", finished_reason="length") == 12
    assert total(page, "vllm:time_to_first_token_seconds_count") == 12
    assert total(page, "vllm:inter_token_latency_seconds_count") == sum(outputs) - 12
    assert total(page, "vllm:request_generation_tokens_sum") == sum(outputs)
    assert total(page, "vllm:iteration_tokens_total_sum") == sum(40 + i for i in range(12)) + sum(outputs) - 12
    assert total(page, "http_requests_total", handler="/v1/completions", status="2xx") == 12
    assert total(page, "vllm:num_requests_running") == total(page, "vllm:num_requests_waiting") == 0
    assert total(page, "vllm:request_queue_time_seconds_sum") > 0  # 12 requests on 4 seats
    ttft = sorted(s[1] - s[0] for s in streams)
    assert total(page, "vllm:time_to_first_token_seconds_sum") == pytest.approx(sum(ttft), rel=0.15, abs=0.1 * 12)
    # The median TTFT lies in the page's bucket, or beside it: the client sees the same tokens a little later.
    cumulative = buckets(page, "vllm:time_to_first_token_seconds")
    at = next(i for i, (_, count) in enumerate(cumulative) if count >= 6)
    mine = next(i for i, (le, _) in enumerate(cumulative) if ttft[5] <= le)
    assert abs(at - mine) <= 1


def test_counters_of_the_page_never_fall_under_load() -> None:
    async def scrapes() -> list[Page]:
        found = []
        async with FakeEngine(speed=4.0) as engine, aiohttp.ClientSession() as session:
            work = asyncio.gather(*(stream(session, engine.url, 20, 60) for _ in range(10)))
            while not work.done():
                found.append(await page_of(session, engine.url))
                await asyncio.sleep(0.01)
            await work
            found.append(await page_of(session, engine.url))
        return found

    pages = asyncio.run(scrapes())
    assert len(pages) > 2
    seen: dict[object, float] = defaultdict(float)
    for page in pages:
        for (name, labels), value in page.items():
            if name.endswith(("_total", "_bucket", "_count", "_sum")):
                assert value >= seen[name, labels], name
                seen[name, labels] = value
    assert max(total(page, "vllm:num_requests_running") for page in pages) > 0
