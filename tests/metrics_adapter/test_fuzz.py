"""Pages and answers with anything wrong: no exception gets out, no number is wrong, memory stays bounded."""

from __future__ import annotations

import asyncio
import gzip
import math
import random
import tracemalloc
from pathlib import Path

import pytest
from metrics_pages import vllm_page
from page_oracle import mutated, oracle

from autoscaler.errors import MetricMissing
from autoscaler.schema import build
from autoscaler.scrape_settings import ScrapeSettings
from autoscaler.settings import Slo
from autoscaler.types import Observation, Replicas
from metrics_adapter.assembly import assemble
from metrics_adapter.engines import load_engine
from metrics_adapter.reading import EngineReader, Reading
from metrics_adapter.scrape import ScrapeSource
from metrics_adapter.text import MOST_KEYS, MOST_SERIES, PageError

SEED = 20261125
ENGINE = load_engine("vllm")
WANTED = ENGINE.sample_names()
SHORT = vllm_page(
    running=3,
    waiting=2,
    kv=0.25,
    ttft=(5, 4, 3, 2, 1),
    pace=(1, 2, 3, 4, 5),
    prompt_tokens=700,
    output_tokens=900,
    finished=15,
    steps=40,
).encode()
RECORDED = [p.read_bytes() for p in sorted((Path(__file__).parent / "samples" / "vllm").glob("*.prom"))]


def check_pages(count: int, pages: list[bytes], seed: int) -> tuple[int, int]:
    """(read, refused) of `count` mutated pages; fails where the reader and the oracle differ."""
    draw = random.Random(seed)
    reader, other = EngineReader(ENGINE), EngineReader(ENGINE)
    before = EngineReader(ENGINE).read(SHORT, 1000.0)
    read = refused = 0
    for i in range(count):
        page = mutated(pages[i % len(pages)], draw)
        expected = oracle(page, WANTED)
        found = read_or_said(reader, page)
        if isinstance(found, str):
            if expected is not None or not 0 < len(found) < 400:
                pytest.fail(f"{i}: {found}: {page!r}")
            refused += 1
            continue
        reading = found
        assert expected is not None, (i, page)
        again = reader._text.read(page)
        values = {s: v for s, v in zip(reader._text.series, again, strict=True) if v is not None}
        assert repr(sorted(values.items())) == repr(sorted(expected.items())), (i, page)
        plain = other.read_samples([(n, dict(labels), v) for (n, labels), v in expected.items()], 1010.0)
        assert reading == plain, (i, page)
        check_reading(reading)
        check_observation(assemble_one(before, reading))
        read += 1
    assert len(reader._text.series) <= MOST_SERIES
    assert len(reader._text._slots) <= 2 * MOST_KEYS
    return read, refused


def read_or_said(reader: EngineReader, page: bytes) -> Reading | str:
    try:
        return reader.read(page, 1010.0)
    except PageError as error:
        return str(error)


def check_reading(reading: Reading) -> None:
    for concept, value in reading.values.items():
        assert 0.0 <= value < math.inf, concept
    assert reading.values.get("kv_usage", 0.0) <= 1.0
    for buckets in reading.histograms.values():
        assert list(buckets.counts) == sorted(buckets.counts)
        assert list(buckets.upper_bounds) == sorted(set(buckets.upper_bounds))


def assemble_one(before: Reading, reading: Reading) -> Observation:
    return assemble(
        "p",
        {"a": before},
        {"a": reading},
        at_seconds=1010,
        window_seconds=10,
        replicas=Replicas(desired=1, ready=1),
        slo=Slo(),
    )


def check_observation(observation: Observation) -> None:
    """Observation and its parts refuse what is not finite by themselves; the rest is here."""
    latency = observation.latency
    if latency is not None and latency.violated_requests is not None:
        low, high = latency.violated_requests
        assert 0.0 <= low <= high < math.inf


def test_mutated_pages_are_read_as_they_are_or_refused() -> None:
    read, refused = check_pages(1000, [SHORT], SEED)
    assert read > 100
    assert refused > 100


def test_mutated_recorded_pages_are_read_as_they_are_or_refused() -> None:
    read, refused = check_pages(50, RECORDED, SEED + 1)
    assert read > 5
    assert refused > 5


@pytest.mark.slow
def test_a_hundred_thousand_mutated_pages_and_answers() -> None:
    check_pages(95_000, [SHORT], SEED + 2)
    tracemalloc.start()
    try:
        check_pages(4000, [SHORT], SEED + 5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64_000_000
    check_pages(1000, RECORDED, SEED + 3)
    check_answers(3000, SEED + 4)


# Answers: the page is right, and what is around it is wrong.

HEAD = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(b"# a\n" * 5_000_000)


def wrong_answer(page: bytes, draw: random.Random) -> bytes:
    """An HTTP answer with one of many things wrong with it, or nothing."""
    length = b"Content-Length: %d\r\n" % len(page)
    plain = b"Content-Type: text/plain; version=0.0.4\r\n"
    whole = HEAD + plain + length + b"\r\n" + page
    zipped = gzip.compress(page, compresslevel=1)
    coded = HEAD + plain + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(zipped)
    chunked = HEAD + plain + b"Transfer-Encoding: chunked\r\n\r\n"
    size = draw.randint(1, len(page))
    pieces = b"".join(
        b"%x\r\n" % len(page[i : i + size]) + page[i : i + size] + b"\r\n" for i in range(0, len(page), size)
    )
    answers = (
        whole,
        whole[: draw.randint(0, len(whole))],
        HEAD + plain + b"Content-Length: %d\r\n\r\n" % draw.choice((0, 1, len(page) + 5, 10**15, -3)) + page,
        HEAD + plain + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + page,
        HEAD + plain + b"Content-Length: many\r\n\r\n" + page,
        HEAD + plain + b"\r\n" + page,
        chunked + pieces + b"0\r\n\r\n",
        chunked + pieces[: draw.randint(0, len(pieces))],
        chunked + b"ZZ\r\n" + page,
        chunked + b"FFFFFFFFFFFFFFFFF\r\n" + page,
        coded + zipped,
        coded + zipped[: draw.randint(0, len(zipped))],
        coded + draw.randbytes(len(zipped)),
        HEAD + plain + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB,
        HEAD + plain + b"Content-Encoding: gzip\r\n" + length + b"\r\n" + page,
        HEAD + plain + b"Content-Encoding: zstd\r\n" + length + b"\r\n" + page,
        HEAD + b"Content-Type: text/html\r\n" + length + b"\r\n" + page,
        HEAD + b"Content-Type: application/json\r\n" + length + b"\r\n" + page,
        HEAD + b"Content-Type: \xff\xfe\r\n" + length + b"\r\n" + page,
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 %d Odd\r\n" % draw.choice((204, 206, 304, 404, 500, 503, 999)) + plain + length + b"\r\n" + page,
        b"HTTP/1.1 100 Continue\r\n\r\n" * draw.randint(1, 3) + whole,
        b"HTTP/9.9 200 OK\r\n" + plain + length + b"\r\n" + page,
        HEAD + b"X: " + b"y" * 100_000 + b"\r\n" + length + b"\r\n" + page,
        HEAD + b"no colon\r\n" + length + b"\r\n" + page,
        draw.randbytes(draw.randint(0, 500)),
        b"",
    )
    return answers[draw.randrange(len(answers))]


def check_answers(count: int, seed: int) -> None:
    """`count` wrong answers: what is read of each is what the page says, or nothing."""
    draw = random.Random(seed)
    truth = EngineReader(ENGINE).read(SHORT, 0.0)
    seen = {"whole": 0, "silent": 0}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(wrong_answer(SHORT, draw))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def story() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        targets = [f"http://{host}:{port}/{i}" for i in range(50)]
        settings = build(
            ScrapeSettings, {"targets": targets, "timeout_seconds": 20, "spread_seconds": 0, "concurrency": 8}
        )
        async with server, ScrapeSource("p", settings, slo=Slo()) as source:
            for look in range(count // len(targets)):
                try:
                    await source.observe(1000 + 10 * look, Replicas(desired=50, ready=50))
                except MetricMissing:
                    pytest.fail("a page that is cut short must not pass for another engine's")
                for reading in source.readings.values():
                    assert dict(reading.values) == dict(truth.values)
                    assert dict(reading.histograms) == dict(truth.histograms)
                assert len(source.readings) + len(source.problems) == len(targets)
                seen["whole"] += len(source.readings)
                seen["silent"] += len(source.problems)

    asyncio.run(story())
    assert seen["whole"] > count // 20
    assert seen["silent"] > count // 2


def test_wrong_answers_are_silence_and_never_a_number() -> None:
    check_answers(200, SEED)
