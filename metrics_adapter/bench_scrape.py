"""``autoscaler bench scrape``: what reading one page costs beside the reference parser, and what a fleet of replicas costs.

The fleet is one server on loopback, in a process of its own; only our side's processor time counts.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from autoscaler.schema import build
from autoscaler.scrape_settings import ScrapeSettings
from autoscaler.settings import Slo
from autoscaler.types import Replicas
from metrics_adapter.engines import load_engine
from metrics_adapter.reading import EngineReader
from metrics_adapter.scrape import ScrapeSource

INTERVAL_SECONDS = 10.0


def rows(quick: bool) -> list[dict[str, Any]]:
    """Rows as fields of `BenchRow`."""
    page = files("metrics_adapter").joinpath("data/vllm_page.prom").read_bytes()
    return [*_page_rows(page, 3 if quick else 9), *_fleet_rows(200 if quick else 1000, 3 if quick else 6)]


def _page_rows(page: bytes, rounds: int) -> list[dict[str, Any]]:
    reader = EngineReader(load_engine("vllm"))
    # In turns, and the least of each: a machine that is busy in between slows both.
    ours, theirs = [], []
    parse, text = _reference(), page.decode()
    for _ in range(rounds):
        ours.append(_seconds(lambda: reader.read(page, 0.0), 40))
        if parse is not None:
            theirs.append(_seconds(lambda: parse(text), 2))
    named = "prometheus_client's parser"
    found: list[dict[str, Any]] = [
        {
            "name": f"read a vLLM page of {len(page) / 1000:.0f} kB",
            "value": 1000.0 * min(ours),
            "unit": "ms",
            "baseline": named if theirs else None,
            "baseline_value": 1000.0 * min(theirs) if theirs else None,
        }
    ]
    if theirs:
        ratio = min(theirs) / min(ours)
        found.append({"name": f"times faster than {named}", "value": ratio, "unit": "x", "op": ">=", "goal": 20.0})
    return found


def _reference() -> Callable[[str], object] | None:
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ModuleNotFoundError:
        return None
    return lambda text: list(text_string_to_metric_families(text))


def _seconds(work: Callable[[], object], times: int) -> float:
    work()
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def _fleet_rows(replicas: int, looks: int) -> list[dict[str, Any]]:
    server = subprocess.Popen(
        [sys.executable, "-c", "from metrics_adapter.bench_scrape import serve; serve()"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        busy, wall, memory, reporting = asyncio.run(_fleet(port, replicas, looks))
    finally:
        server.terminate()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()
    per_thousand = busy * 1000.0 / replicas
    return [
        {
            "name": f"cores for 1 000 replicas every {INTERVAL_SECONDS:g} s, measured on {replicas}",
            "value": per_thousand / INTERVAL_SECONDS,
            "unit": "cores",
            "goal": 0.5,
        },
        {"name": f"one look at {replicas} replicas, server on the same machine", "value": wall, "unit": "s"},
        {
            "name": "replicas that answered in the last look",
            "value": reporting,
            "unit": "",
            "op": ">=",
            "goal": replicas,
        },
        {"name": f"memory held for {replicas} replicas", "value": memory, "unit": "MB"},
        {"name": "memory of the process, at most", "value": _most_memory(), "unit": "MB"},
    ]


async def _fleet(port: int, replicas: int, looks: int) -> tuple[float, float, float, float]:
    """(processor seconds and wall seconds of one look, MB held, replicas that answered)."""
    before = _memory()
    targets = [f"http://127.0.0.1:{port}/metrics?replica={i}" for i in range(replicas)]
    settings = build(ScrapeSettings, {"targets": targets, "spread_seconds": 0.0, "timeout_seconds": 60.0})
    async with ScrapeSource("bench", settings, slo=Slo()) as source:
        counts = Replicas(desired=replicas, ready=replicas)
        await source.observe(0, counts)  # learns, and connects
        busy, wall = time.process_time(), time.perf_counter()
        for look in range(1, looks + 1):
            seen = await source.observe(int(look * INTERVAL_SECONDS), counts)
        busy, wall = time.process_time() - busy, time.perf_counter() - wall
        gc.collect()
        reporting = float(len(source.readings)) if seen.load is not None else 0.0
        return busy / looks, wall / looks, _memory() - before, reporting


def _memory() -> float:
    """Memory of this process now, in MB; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def _most_memory() -> float:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def serve() -> None:
    """A server of one page whose token counter moves; prints its port."""
    from aiohttp import web

    page = files("metrics_adapter").joinpath("data/vllm_page.prom").read_text(encoding="utf-8")
    head, _, rest = page.partition('vllm:generation_tokens_total{engine="0",model_name="tiny"} ')
    tail = rest.partition("\n")[2]
    asked = 0

    async def handle(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        line = f'vllm:generation_tokens_total{{engine="0",model_name="tiny"}} {24099.0 + asked}\n'
        return web.Response(text=f"{head}{line}{tail}", content_type="text/plain")

    async def start() -> None:
        app = web.Application()
        app.router.add_get("/metrics", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(start())
