"""The scrape source against real servers on loopback: what replicas say, and what they do wrong."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import pytest
from aiohttp import web
from metrics_pages import Handler, answer, raw_server, serving, vllm_page

from autoscaler.errors import ConfigError, MetricMissing
from autoscaler.schema import build
from autoscaler.scrape_settings import ScrapeSettings
from autoscaler.settings import PoolSettings, Slo
from autoscaler.types import Observation, Replicas
from metrics_adapter.door import DoorCounts
from metrics_adapter.gpu import GpuState
from metrics_adapter.scrape import ScrapeSource
from metrics_adapter.sources import check_source, source_of

T = TypeVar("T")
QUICK = {"timeout_seconds": 1.0, "spread_seconds": 0.0}


def source(*targets: str, **more: object) -> ScrapeSource:
    return ScrapeSource("chat", build(ScrapeSettings, {"targets": list(targets), **QUICK, **more}), slo=Slo())


def pages(*texts: str) -> Handler:
    """One page after another, the last for ever."""
    left = list(texts)

    async def handle(_: web.Request) -> web.Response:
        return web.Response(text=left.pop(0) if len(left) > 1 else left[0], content_type="text/plain")

    return handle


def run(story: Callable[[], Awaitable[T]]) -> T:
    return asyncio.run(story())  # type: ignore[arg-type]


def test_two_looks_at_two_replicas_make_counts_and_gauges() -> None:
    async def story() -> Observation:
        first = vllm_page(running=2, ttft=(5, 0, 0, 0, 0), prompt_tokens=500, steps=10)
        second = vllm_page(running=3, waiting=4, kv=0.5, ttft=(9, 2, 0, 0, 0), prompt_tokens=1100, steps=60)
        async with (
            serving(
                a=pages(first, second), b=pages(vllm_page(), vllm_page(ttft=(1, 0, 0, 0, 0), prompt_tokens=70))
            ) as host,
            source(f"http://{host}/a", f"http://{host}/b") as one,
        ):
            before = await one.observe(1000, Replicas(desired=2, ready=2))
            assert before.demand is None
            assert before.load is not None
            assert before.load.running_requests == 2
            assert before.latency is None
            return await one.observe(1010, Replicas(desired=2, ready=2))

    seen = run(story)
    assert seen.demand is not None
    assert seen.load is not None
    # Six first tokens and four that wait on one, one first token on the other; prompts of 670/7 tokens each.
    assert seen.demand.requests == pytest.approx(11)
    assert seen.demand.prompt_tokens == pytest.approx(11 * 670 / 7)
    assert (seen.load.running_requests, seen.load.waiting_requests, seen.load.kv_cache_fraction) == (3, 4, 0.25)
    assert (seen.load.engine_steps, seen.load.replicas_reporting, seen.window_seconds) == (50, 2, 10)


def test_silent_replicas_are_told_of_and_make_no_number() -> None:
    async def story() -> tuple[Observation, dict[str, str]]:
        page = vllm_page(running=3)
        slow = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5000\r\n\r\n" + page.encode()
        whole = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(page)}\r\n\r\n".encode()

        async def moved(_: web.Request) -> web.Response:
            raise web.HTTPFound("/good")

        async with AsyncExitStack() as stack:
            host = await stack.enter_async_context(
                serving(
                    good=answer(page),
                    moved=moved,
                    html=answer("<html></html>", "text/html"),
                    words=answer("Service is healthy\n"),
                    cut=answer(page[:-4]),
                    twice=answer(page + page),
                    nan=answer(
                        page.replace('num_requests_running{engine="0",model_name="m"} 3', "num_requests_running NaN")
                    ),
                    binary=answer(bytes(range(256)) * 20 + b"\n"),
                    large=answer(page + "# x\n" * 30_000),
                    bomb=answer(gzip.compress(b"# a\n" * 5_000_000), **{"Content-Encoding": "gzip"}),
                    zipped=answer(gzip.compress(page.encode()), **{"Content-Encoding": "gzip"}),
                    zipcut=answer(gzip.compress(page.encode())[:-9], **{"Content-Encoding": "gzip"}),
                    brotli=answer(zlib.compress(page.encode()), **{"Content-Encoding": "br"}),
                )
            )
            closed = await stack.enter_async_context(raw_server(b""))
            short = await stack.enter_async_context(raw_server(slow))
            slowly = await stack.enter_async_context(raw_server(whole + page.encode(), pause_seconds=0.3))
            endless = await stack.enter_async_context(raw_server(b"HTTP/1.1 200 OK\r\n\r\n" + page.encode()))
            names = (
                "good",
                "moved",
                "html",
                "words",
                "cut",
                "twice",
                "nan",
                "binary",
                "large",
                "bomb",
                "zipped",
                "zipcut",
            )
            targets = [f"http://{host}/{n}" for n in (*names, "brotli", "absent")]
            others = [closed, short, slowly, endless, "127.0.0.1:1", "no-such-host.invalid"]
            one = await stack.enter_async_context(source(*targets, *others, max_page_bytes=100_000))
            seen = await one.observe(1000, Replicas(desired=20, ready=20))
            problems = {name.rsplit("/", 1)[-1] if "/" in name else name: text for name, text in one.problems.items()}
            tags = {closed: "closed", short: "short", slowly: "slowly", endless: "endless"}
            return seen, {tags.get(name, name): text for name, text in problems.items()}

    seen, problems = run(story)
    assert seen.load is not None
    assert (seen.load.running_requests, seen.load.replicas_reporting) == (6, 2)  # the good one and the compressed one
    expected = {
        "moved": "a redirect is not followed",
        "html": "the page is 'text/html'",
        "words": "has no value|is no metric|no series",
        "cut": "cut short",
        "twice": "twice",
        "nan": "no series vllm:num_requests_running",
        "binary": "is no metric",
        "large": "larger than 100000 bytes",
        "bomb": "larger than 100000 bytes",
        "zipcut": "the compressed page is cut short",
        "brotli": "compressed by 'br'",
        "absent": "HTTP 404",
        "closed": "no whole page",
        "short": "no whole page",
        "slowly": "no whole page within 1 s",
        "endless": "neither a length nor chunks",
        "127.0.0.1:1": "no whole page",
        "no-such-host.invalid": "no whole page",
    }
    assert problems.keys() == expected.keys()
    for name, words in expected.items():
        assert any(w in problems[name] for w in words.split("|")), f"{name}: {problems[name]}"


def test_others_that_answer_do_not_stand_for_a_silent_one() -> None:
    async def story() -> list[tuple[float | None, int | None]]:
        async def silent(_: web.Request) -> web.Response:
            raise web.HTTPServiceUnavailable

        answers = [answer(vllm_page(running=2)), silent, silent, answer(vllm_page(running=1)), silent]
        idle = answer(vllm_page())

        async def busy(request: web.Request) -> web.StreamResponse:
            return await answers.pop(0)(request)

        async with (
            serving(a=busy, b=idle, c=idle) as host,
            source(*(f"http://{host}/{name}" for name in "abc")) as one,
        ):
            # Three answer where two are ready; then the one that holds all requests does not.
            looks = [await one.observe(1000 + 10 * i, Replicas(desired=2, ready=2)) for i in range(4)]
            # It was scaled in, and the list of URLs goes on naming it.
            looks.append(await one.observe(1040, Replicas(desired=1, ready=1)))
        return [(seen.load.running_requests, seen.load.replicas_reporting) for seen in looks if seen.load is not None]

    assert run(story) == [(2, 2), (0, 1), (0, 1), (1, 2), (0, 1)]


def test_others_that_answer_do_not_stand_for_a_stuck_one() -> None:
    async def story() -> list[tuple[float | None, int | None]]:
        busy, idle = pages(vllm_page(running=2, steps=7), vllm_page(running=2, steps=7)), answer(vllm_page())
        async with (
            serving(a=busy, b=idle, c=idle) as host,
            source(*(f"http://{host}/{name}" for name in "abc")) as one,
        ):
            looks = [await one.observe(at, Replicas(desired=2, ready=2)) for at in (1000, 1030)]
        return [(seen.load.running_requests, seen.load.replicas_reporting) for seen in looks if seen.load is not None]

    assert run(story) == [(2, 2), (0, 1)]


def test_a_fleet_of_another_engine_is_an_error_that_names_series_and_row() -> None:
    async def story() -> None:
        async with serving(a=answer("sglang:num_running_reqs 1\n")) as host, source(f"http://{host}/a") as one:
            with pytest.raises(MetricMissing, match=r"no series vllm:num_requests_running, which the row 'running'"):
                await one.observe(1000, Replicas(desired=1, ready=1))

    run(story)


def test_a_replica_that_was_silent_gives_its_share_of_the_window() -> None:
    async def story() -> list[Observation]:
        good = [vllm_page(ttft=(n, 0, 0, 0, 0)) for n in (0, 10, 40, 50)]
        async with (
            serving(a=pages(good[0], "broken", "broken", good[2], good[3])) as host,
            source(f"http://{host}/a") as one,
        ):
            return [await one.observe(at, Replicas(desired=1, ready=1)) for at in (1000, 1010, 1020, 1030, 1040)]

    seen = run(story)
    assert [o.demand is None for o in seen] == [True, True, True, False, False]
    assert seen[1].load is not None
    assert (seen[1].load.replicas_reporting, seen[1].load.running_requests) == (0, None)
    assert seen[3].demand is not None
    assert seen[3].demand.requests == pytest.approx(40 / 3, rel=0.01)  # 40 in 30 s, of which this window is 10
    assert seen[4].demand is not None
    assert seen[4].demand.requests == pytest.approx(10)


def test_a_window_over_a_clock_that_was_set_back_is_an_interval_long() -> None:
    async def story() -> list[Observation]:
        good = [vllm_page(ttft=(n, 0, 0, 0, 0)) for n in (0, 10, 20, 30)]
        async with serving(a=pages(*good)) as host, source(f"http://{host}/a") as one:
            return [await one.observe(at, Replicas(desired=1, ready=1)) for at in (9000, 9010, 5400, 5410)]

    seen = run(story)
    assert [o.window_seconds for o in seen] == [10, 10, 10, 10]
    assert [None if o.demand is None else o.demand.requests for o in seen] == [None, 10, 10, 10]


def test_a_door_counts_what_the_engines_cannot_see() -> None:
    async def story() -> Observation:
        counts = iter(
            [DoorCounts(requests=100, prompt_tokens=5000), DoorCounts(requests=130, prompt_tokens=6500, waiting=7)]
        )
        settings = build(ScrapeSettings, {"dns": "no-such-host.invalid", **QUICK})
        async with ScrapeSource("chat", settings, door=lambda: next(counts)) as one:
            await one.observe(1000, Replicas(desired=0, ready=0))
            return await one.observe(1010, Replicas(desired=0, ready=0))

    seen = run(story)
    assert seen.demand is not None
    assert (seen.demand.requests, seen.demand.prompt_tokens) == (30, 1500)
    assert seen.load is not None
    assert (seen.load.waiting_requests, seen.load.replicas_reporting) == (7, 0)


def test_a_door_that_was_silent_gives_its_share_of_the_window() -> None:
    async def story() -> list[Observation]:
        counts = iter([DoorCounts(requests=100), None, None, DoorCounts(requests=190, waiting=4)])
        settings = build(ScrapeSettings, {"dns": "no-such-host.invalid", **QUICK})
        async with ScrapeSource("chat", settings, door=lambda: next(counts)) as one:
            return [await one.observe(at, Replicas(desired=0, ready=0)) for at in (1000, 1010, 1020, 1030)]

    seen = run(story)
    assert [o.demand is None for o in seen] == [True, True, True, False]
    assert seen[3].demand is not None
    assert seen[3].demand.requests == pytest.approx(30)  # 90 in 30 s
    assert seen[3].load is not None
    assert seen[3].load.waiting_requests == 4


def test_the_same_instant_again_is_the_same_observation_and_loses_no_count() -> None:
    async def story() -> list[Observation]:
        texts = [vllm_page(ttft=(n, 0, 0, 0, 0)) for n in (0, 5, 8)]
        async with serving(a=pages(*texts)) as host, source(f"http://{host}/a") as one:
            return [await one.observe(at, Replicas(desired=1, ready=1)) for at in (1000, 1010, 1010, 1020)]

    seen = run(story)
    assert seen[1] is seen[2]
    assert [o.demand.requests for o in seen if o.demand is not None] == [5, 5, 3]


def test_gpus_of_other_pods_on_the_same_nodes_are_left_out() -> None:
    broken = GpuState(
        gpus=1, utilization_fraction=0.9, sm_active_fraction=None, memory_used_bytes=None, unhealthy="Xid 79"
    )

    async def story() -> Observation:
        async with serving(a=answer(vllm_page(running=1))) as host:
            settings = build(ScrapeSettings, {"targets": [f"http://{host}/a"], **QUICK})
            async with ScrapeSource("chat", settings, gpus=lambda: {"somebody-else": broken}) as one:
                return await one.observe(1000, Replicas(desired=1, ready=1))

    seen = run(story)
    assert (seen.replicas.ready, seen.replicas.unhealthy) == (1, 0)
    assert seen.load is not None
    assert seen.load.gpu_utilization_fraction is None


def test_a_token_is_read_anew_and_shown_to_replicas_alone(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")

    async def handle(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {token.read_text().strip()}":
            raise web.HTTPUnauthorized
        return web.Response(text=vllm_page(running=1), content_type="text/plain")

    async def story() -> tuple[list[int], str]:
        async with serving(m=handle) as host:
            async with source(f"http://{host}/m", auth={"bearer_token_file": str(token)}) as one:
                await one.observe(1000, Replicas(desired=1, ready=1))
                reporting = [len(one.readings)]
                token.write_text("two\n")
                await one.observe(1010, Replicas(desired=1, ready=1))
                reporting.append(len(one.readings))
            async with source(f"http://{host}/m") as stranger:
                await stranger.observe(1000, Replicas(desired=1, ready=1))
                return reporting, stranger.problems[f"http://{host}/m"]

    assert run(story) == ([1, 1], "HTTP 401")


def test_a_thousand_replicas_are_asked_a_few_at_a_time() -> None:
    async def story() -> tuple[int, Observation]:
        page, now, most = vllm_page(running=1), 0, 0

        async def handle(_: web.Request) -> web.Response:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            now -= 1
            return web.Response(text=page, content_type="text/plain")

        async with serving(m=handle) as host:
            targets = [f"http://{host}/m?replica={i}" for i in range(1000)]
            async with source(*targets, concurrency=16, timeout_seconds=20.0) as one:
                return most, await one.observe(1000, Replicas(desired=1000, ready=1000))

    most, seen = run(story)
    assert most <= 16
    assert seen.load is not None
    assert (seen.load.replicas_reporting, seen.load.running_requests) == (1000, 1000)


def test_a_pool_in_a_config_says_its_source() -> None:
    pool = build(PoolSettings, {"name": "chat", "source": {"kind": "scrape", "targets": ["10.0.0.1:8000"]}})
    assert isinstance(source_of(pool), ScrapeSource)
    wrong = build(PoolSettings, {"name": "chat", "source": {"kind": "scrape", "engine": "vlm", "targets": ["a:1"]}})
    with pytest.raises(ConfigError, match=r"source\.engine: 'vlm' must be one of .*vllm"):
        check_source(wrong)
    with pytest.raises(ConfigError, match=r"auth: the certificate files cannot be read"):
        source("https://a/metrics", auth={"ca_file": "/no/such.pem"})
    with pytest.raises(ConfigError, match=r"source: is missing"):
        source_of(build(PoolSettings, {"name": "chat"}))
