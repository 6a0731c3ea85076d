"""Pages of a made-up vLLM replica with the counts a test wants, and servers that hand them out or misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

TTFT = (0.1, 0.5, 1.0, 2.5)
GAP = (0.01, 0.025, 0.05, 0.1)
LENGTH = (10.0, 100.0, 1000.0)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def histogram(name: str, bounds: Sequence[float], counts: Sequence[float], total: float, labels: str) -> list[str]:
    """Lines of a histogram; `counts` are per bucket."""
    lines, seen = [f"# TYPE {name} histogram"], 0.0
    for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        seen += count
        lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {seen}')
    return [*lines, f"{name}_sum{{{labels}}} {total}", f"{name}_count{{{labels}}} {seen}"]


def vllm_page(
    *,
    running: float = 0,
    waiting: float = 0,
    kv: float = 0.0,
    ttft: Sequence[float] = (0, 0, 0, 0, 0),
    pace: Sequence[float] = (0, 0, 0, 0, 0),
    prompt_tokens: float = 0,
    output_tokens: float = 0,
    finished: float = 0,
    rejected: float = 0,
    steps: float = 0,
    started: float | None = 500.0,
    awake: float = 1,
) -> str:
    """A page of vLLM 0.32's form."""
    own = 'engine="0",model_name="m"'
    lines = [
        "# HELP vllm:num_requests_running Number of requests in model execution batches.",
        "# TYPE vllm:num_requests_running gauge",
        f"vllm:num_requests_running{{{own}}} {running}",
        f"vllm:num_requests_waiting{{{own}}} {waiting}",
        f"vllm:kv_cache_usage_perc{{{own}}} {kv}",
        f'vllm:engine_sleep_state{{{own},sleep_state="awake"}} {awake}',
        f"vllm:prompt_tokens_total{{{own}}} {prompt_tokens}",
        f"vllm:generation_tokens_total{{{own}}} {output_tokens}",
        f'vllm:request_success_total{{{own},finished_reason="length"}} {finished}',
        f'vllm:request_success_total{{{own},finished_reason="abort"}} 0',
        f'vllm:admission_rejections_total{{model_name="m",reason="max_num_queued_reqs"}} {rejected}',
        *histogram("vllm:time_to_first_token_seconds", TTFT, ttft, 0.3 * sum(ttft), own),
        *histogram("vllm:request_time_per_output_token_seconds", GAP, pace, 0.02 * sum(pace), own),
        *histogram("vllm:request_prompt_tokens", LENGTH, (0, finished, 0, 0), 50.0 * finished, own),
        *histogram("vllm:iteration_tokens_total", (8.0, 64.0), (steps, 0, 0), 4.0 * steps, own),
    ]
    if started is not None:
        lines.append(f"process_start_time_seconds {started}")
    return "\n".join(lines) + "\n"


def answer(page: str | bytes, content_type: str = "text/plain; version=0.0.4", **headers: str) -> Handler:
    """A handler that always gives `page`."""
    body = page.encode() if isinstance(page, str) else page

    async def handle(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Type": content_type, **headers})

    return handle


@asynccontextmanager
async def serving(**handlers: Handler) -> AsyncIterator[str]:
    """A server on loopback with one path per handler; gives its ``host:port``."""
    app = web.Application()
    for name, handler in handlers.items():
        app.router.add_get(f"/{name}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_server(data: bytes, *, pause_seconds: float = 0.0, close: bool = True) -> AsyncIterator[str]:
    """A server that answers anything with these bytes, in pieces with pauses between if asked; gives its ``host:port``."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            size = 40 if pause_seconds else max(1, len(data))
            for start in range(0, len(data), size):
                writer.write(data[start : start + size])
                await writer.drain()
                await asyncio.sleep(pause_seconds)
            if not close:
                await asyncio.sleep(30)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"{host}:{port}"
    finally:
        server.close()
