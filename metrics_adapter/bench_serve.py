"""``autoscaler bench serve``: what an HPA's questions cost while the loop runs a hundred pools, on one core.

The server is a process pinned to one core: TLS, the front proxy's certificate, reviews from the cache, the value out of the
last Step, and meanwhile every pool is observed, decided on and logged each ten seconds.  The client is another process on
another core.  What else runs on these cores is in every time: the share that it took is a row of its own.  Questions come
open loop, at instants drawn beforehand: one that waits for its turn has waited.  The baseline is a bare aiohttp handler with
the same TLS that says the same constant, and nothing else in its process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import random
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoscaler.embed import autoscaler_for
from autoscaler.schema import build
from autoscaler.settings import PoolSettings
from autoscaler.step import Autoscaler
from autoscaler.testing import FakeSource
from autoscaler.types import Demand, Histogram, Latency, Load, Memory, Observation, Replicas
from metrics_adapter.board import Board

POOLS, INTERVAL_SECONDS = 100, 10
RATE, CONNECTIONS = 1000.0, 32
HISTORY_SECONDS = 2 * 86_400
GROUP = "external.metrics.k8s.io"
HPA = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"


def rows(quick: bool) -> list[dict[str, Any]]:
    """Rows as fields of `BenchRow`."""
    seconds = 10.0 if quick else 60.0  # whole intervals: turns come in them evenly
    with tempfile.TemporaryDirectory() as folder:
        keys = _keys(Path(folder))
        bare = _measured("bare", keys, seconds, quick)
        ours = _measured("ours", keys, seconds, quick)
    named = "a bare aiohttp handler, same TLS, no loop"
    about = f"while {POOLS} pools turn"
    return [
        {
            "name": f"requests/s on one core {about}", "value": ours.most_per_second, "unit": "1/s", "op": ">=",
            "goal": RATE, "baseline": named, "baseline_value": bare.most_per_second,
        },
        {
            "name": f"99th percentile at {RATE:g} requests/s {about}", "value": 1e3 * ours.p99_seconds, "unit": "ms",
            "goal": 10.0, "baseline": named, "baseline_value": 1e3 * bare.p99_seconds,
        },
        {
            "name": f"median at {RATE:g} requests/s", "value": 1e3 * ours.median_seconds, "unit": "ms",
            "baseline": named, "baseline_value": 1e3 * bare.median_seconds,
        },
        {
            "name": f"longest at {RATE:g} requests/s", "value": 1e3 * ours.longest_seconds, "unit": "ms",
            "baseline": named, "baseline_value": 1e3 * bare.longest_seconds,
        },
        {
            "name": f"processor time of a question at {RATE:g} requests/s, the loop's with it",
            "value": 1e6 * ours.busy_seconds, "unit": "us", "baseline": named, "baseline_value": 1e6 * bare.busy_seconds,
        },
        {
            "name": "questions/s that a whole core carries, by that", "value": 1.0 / ours.busy_seconds, "unit": "1/s",
            "op": ">=", "goal": RATE, "baseline": named, "baseline_value": 1.0 / bare.busy_seconds,
        },
        {
            "name": "share of time that the server waited for its core, which others had", "value": ours.waited_share,
            "unit": "", "baseline": named, "baseline_value": bare.waited_share,
        },
        {"name": "answers that were no value", "value": float(ours.wrong), "unit": "", "goal": 0.0},
        {
            "name": f"turns of the loop meanwhile, of the {POOLS / INTERVAL_SECONDS:g} due a second",
            "value": ours.turns_per_second, "unit": "1/s", "op": ">=", "goal": 0.9 * POOLS / INTERVAL_SECONDS,
        },
        {"name": f"share of the core that {POOLS} pools alone take", "value": ours.idle_share, "unit": ""},
    ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the client saw of one server, and the server of itself."""

    most_per_second: float
    median_seconds: float
    p99_seconds: float
    longest_seconds: float
    busy_seconds: float
    waited_share: float
    wrong: int
    turns_per_second: float
    idle_share: float


def _keys(folder: Path) -> dict[str, str]:
    """A serving certificate, and the front proxy's authority with a client certificate of its own."""
    from metrics_adapter.self_signed import issue, issue_client

    serving = issue(("localhost",), folder / "serving")
    client = issue_client("front-proxy-client", folder / "client")
    return {
        "cert": str(serving.cert_file), "key": str(serving.key_file), "ca": serving.ca_pem,
        "client_cert": str(client.cert_file), "client_key": str(client.key_file), "client_ca": client.ca_pem,
        "log": str(folder / "steps"),
    }  # fmt: skip


def _measured(which: str, keys: dict[str, str], seconds: float, quick: bool) -> Measured:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    asked = {"which": which, "keys": keys, "core": cores[0], "history": HISTORY_SECONDS // (8 if quick else 1)}
    server = subprocess.Popen(
        [sys.executable, "-c", "from metrics_adapter.bench_serve import server; server()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        port = int(server.stdout.readline())
        _pin(cores[-1])
        try:
            return asyncio.run(_client(port, keys, seconds, server))
        finally:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cores)
    finally:
        server.terminate()
        server.wait()
        server.stdin.close()
        server.stdout.close()


def _pin(core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


# The client

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _client(port: int, keys: dict[str, str], seconds: float, server: subprocess.Popen[str]) -> Measured:
    context = ssl.create_default_context(cadata=keys["ca"])
    context.load_cert_chain(keys["client_cert"], keys["client_key"])
    connections: list[Connection] = []
    try:
        for _ in range(CONNECTIONS):
            connections.append(await asyncio.open_connection("localhost", port, ssl=context))
        return await _ask_all(connections, seconds, server)
    finally:
        for _, writer in connections:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in connections), return_exceptions=True)


async def _ask_all(connections: list[Connection], seconds: float, server: subprocess.Popen[str]) -> Measured:
    chance = random.Random(1)
    quiet = [await _told(server)]
    await asyncio.sleep(seconds / 2)
    quiet.append(await _told(server))
    await _open_loop(connections, RATE, 1.0, chance)  # reviews are cached from here on
    begun = await _told(server)
    delays, wrong = await _open_loop(connections, RATE, seconds, chance)
    ended = await _told(server)
    most, more_wrong = await _closed_loop(connections, seconds / 2, chance)
    delays.sort()
    return Measured(
        most_per_second=most,
        median_seconds=delays[len(delays) // 2],
        p99_seconds=delays[int(0.99 * len(delays))],
        longest_seconds=delays[-1],
        busy_seconds=(ended["busy"] - begun["busy"]) / len(delays),
        waited_share=(ended["waited"] - begun["waited"]) / (ended["at"] - begun["at"]),
        wrong=wrong + more_wrong,
        turns_per_second=(ended["turns"] - begun["turns"]) / (ended["at"] - begun["at"]),
        idle_share=(quiet[1]["busy"] - quiet[0]["busy"]) / (quiet[1]["at"] - quiet[0]["at"]),
    )


async def _told(server: subprocess.Popen[str]) -> dict[str, float]:
    """What the server says of itself: when, turns so far, and its processor time so far."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    line = await asyncio.to_thread(server.stdout.readline)
    return {k: float(v) for k, v in json.loads(line).items()}


async def _open_loop(
    connections: list[Connection], rate: float, seconds: float, chance: random.Random
) -> tuple[list[float], int]:
    """(seconds from when each question was due until its answer, answers that were none)."""
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    for connection in connections:
        idle.put_nowait(connection)
    delays: list[float] = []
    wrong = 0
    due = time.perf_counter() + 0.1
    end = due + seconds
    asking: set[asyncio.Task[None]] = set()

    async def ask(connection: Connection, due: float) -> None:
        nonlocal wrong
        wrong += not await _ask(connection, chance.randrange(POOLS))
        delays.append(time.perf_counter() - due)
        idle.put_nowait(connection)

    while due < end:
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(ask(await idle.get(), due))
        asking.add(task)
        task.add_done_callback(asking.discard)
        due += chance.expovariate(rate)
    await asyncio.gather(*asking)
    return delays, wrong


async def _closed_loop(connections: list[Connection], seconds: float, chance: random.Random) -> tuple[float, int]:
    """(answers a second when each connection asks again at once, answers that were none)."""
    begun, end = time.perf_counter(), time.perf_counter() + seconds
    answers = wrong = 0

    async def ask(connection: Connection) -> None:
        nonlocal answers, wrong
        while time.perf_counter() < end:
            wrong += not await _ask(connection, chance.randrange(POOLS))
            answers += 1

    await asyncio.gather(*(ask(connection) for connection in connections))
    return answers / (time.perf_counter() - begun), wrong


async def _ask(connection: Connection, pool: int) -> bool:
    """One question as the aggregator puts it; whether the answer is a value."""
    reader, writer = connection
    writer.write(
        f"GET /apis/{GROUP}/v1beta1/namespaces/llm/desired_replicas?labelSelector=pool%3Dp{pool} HTTP/1.1\r\n"
        f"Host: localhost\r\nAccept: application/vnd.kubernetes.protobuf, */*\r\nX-Remote-User: {HPA}\r\n"
        "X-Remote-Group: system:serviceaccounts\r\nX-Remote-Group: system:authenticated\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    body = await reader.readexactly(size)
    return head.startswith(b"HTTP/1.1 200") and b'"value"' in body


# The server


def server() -> None:
    """A server on the core that standard input names; tells its port, and then of itself whenever it is asked."""
    asked = json.loads(sys.stdin.readline())
    _pin(asked["core"])
    asyncio.run(_serve(asked))


async def _serve(asked: dict[str, Any]) -> None:
    from aiohttp import web

    from metrics_adapter.certificates import Certificates
    from metrics_adapter.front_proxy import FrontProxy

    keys = asked["keys"]
    certificates = Certificates(Path(keys["cert"]), Path(keys["key"]))
    proxy = FrontProxy(certificates)
    proxy.take(
        {"requestheader-client-ca-file": keys["client_ca"], "requestheader-allowed-names": '["front-proxy-client"]'}
    )
    turns = [0]
    application = _bare() if asked["which"] == "bare" else _ours(asked, proxy, turns)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "localhost", 0, ssl_context=certificates.context).start()
    print(runner.addresses[0][1], flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        told = {"at": time.perf_counter(), "turns": turns[0], "busy": time.process_time(), "waited": _waited_seconds()}
        print(json.dumps(told), flush=True)


def _waited_seconds() -> float:
    """Time that this thread could have run and others did; 0 where the system does not say."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _bare() -> Any:
    from aiohttp import web

    body = {
        "kind": "ExternalMetricValueList", "apiVersion": f"{GROUP}/v1beta1", "metadata": {},
        "items": [{"metricName": "desired_replicas", "metricLabels": {"pool": "p0"}, "value": "3"}],
    }  # fmt: skip
    data = json.dumps(body).encode()

    async def constant(_: web.Request) -> web.Response:
        return web.Response(body=data, content_type="application/json")

    application = web.Application()
    application.router.add_get("/{rest:.*}", constant)
    return application


def _ours(asked: dict[str, Any], proxy: Any, turns: list[int]) -> Any:
    from metrics_adapter.external_metrics import external_metrics
    from metrics_adapter.external_metrics_values import metrics_of
    from metrics_adapter.front_proxy import guard
    from metrics_adapter.serve_pools import Served, runners_of

    section = {
        "interval_seconds": INTERVAL_SECONDS, "target": {"name": "chat", "namespace": "llm"},
        "replica": {"profile": "llama-3.1-8b_bf16_h100_tp1"}, "source": {"kind": "scrape", "targets": ["localhost:9"]},
    }  # fmt: skip
    settings = [build(PoolSettings, {**section, "name": f"p{i}"}) for i in range(POOLS)]
    board = Board(settings)
    now = int(time.time()) // INTERVAL_SECONDS * INTERVAL_SECONDS
    began = now - asked["history"]
    made = autoscaler_for(settings[0])
    past = made.backfill(made.start(), [seen("p0", at, 60, 3) for at in range(began, now, 60)])
    pools = []
    for one in settings:
        autoscaler: Autoscaler = autoscaler_for(one)
        step, memory = autoscaler.step(_renamed(past, one.name), seen(one.name, now, INTERVAL_SECONDS, 3))
        board.post(step)
        pools.append(Served.open(autoscaler, memory, target=None, log=Path(asked["keys"]["log"]), board=board))
        pools[-1].loop.source = FakeSource(make=lambda at, counts, name=one.name: _look(turns, name, at, counts))  # type: ignore[misc]
    gate = asyncio.Semaphore(4)
    application = external_metrics(metrics_of(board), group=GROUP, middlewares=[guard(_Everybody(), proxy, GROUP)])
    runners = runners_of(pools)
    gc.collect()
    gc.freeze()  # as `serve` does

    async def turning(_: Any) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(runner.run(0.0, gate)) for runner in runners]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    application.cleanup_ctx.append(turning)
    return application


def _look(turns: list[int], name: str, at_seconds: int, counts: Replicas) -> Observation:
    turns[0] += 1
    return seen(name, at_seconds, INTERVAL_SECONDS, counts.desired)


def _renamed(memory: Memory, pool: str) -> Memory:
    recent = tuple(replace(o, pool=pool) for o in memory.recent)
    return replace(memory, pool=pool, recent=recent, last_step=None)


class _Everybody:
    """A cluster in which everybody may, after the time that a review takes."""

    async def review_token(self, token: str) -> None:
        return None

    async def may(self, who: object, **attributes: str) -> bool:
        await asyncio.sleep(0.002)
        return True

    async def config_map_changes(self, namespace: str, name: str) -> AsyncIterator[dict[str, str] | None]:
        while True:
            yield None
            await asyncio.sleep(3600)


BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)


def seen(pool: str, at_seconds: int, window_seconds: int, replicas: int) -> Observation:
    """As full as vLLM's pages make it: a daily curve, tokens, histograms."""
    wave = 0.5 + 0.5 * math.sin(2 * math.pi * at_seconds / 86_400) + 0.1 * math.sin(at_seconds / 977)
    requests = float(round((2.0 + 12.0 * max(0.0, wave)) * window_seconds))
    ttft = Histogram(upper_bounds=BOUNDS, counts=(*[0.0] * 8, *[requests / 8] * 8, *[0.0] * 4), sum=0.4 * requests)
    itl = Histogram(upper_bounds=BOUNDS, counts=(*[0.0] * 3, requests, *[0.0] * 16), sum=0.02 * requests)
    return Observation(
        pool=pool,
        at_seconds=at_seconds,
        window_seconds=window_seconds,
        replicas=Replicas(desired=replicas, ready=replicas),
        demand=Demand(
            requests=requests, prompt_tokens=900.0 * requests, output_tokens=210.0 * requests, finished_requests=requests
        ),
        load=Load(running_requests=40.0, waiting_requests=0.0, kv_cache_fraction=0.3, replicas_reporting=replicas),
        latency=Latency(ttft=ttft, itl=itl, served_requests=requests, violated_requests=(0.0, 0.0)),
    )  # fmt: skip
