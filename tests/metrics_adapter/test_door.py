"""Counting at the door: by hand, through a real server with clients that hang up, and from other doors' pages."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from autoscaler.errors import ConfigError
from autoscaler.types import Replicas
from metrics_adapter.assembly import assemble
from metrics_adapter.door import App, Door, DoorCounts, DoorMiddleware, Receive, Send, prompt_size
from metrics_adapter.door_pages import demand_of, exposition, read_door

Scope = MutableMapping[str, Any]
PATH = "/v1/completions"


def samples(page: str) -> list[tuple[str, dict[str, str], float]]:
    return [(s.name, s.labels, s.value) for f in text_string_to_metric_families(page) for s in f.samples]


async def read_body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


def exchange(
    app: App, body: bytes, *, path: str = PATH, method: str = "POST", leaves: bool = False, parts: int = 1
) -> list[MutableMapping[str, Any]]:
    """One request straight through an ASGI application; what it sent."""
    size = max(1, -(-len(body) // parts))
    pieces = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    inbox: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": leaves or i + 1 < len(pieces)}
        for i, piece in enumerate(pieces)
    ]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return inbox.pop(0) if inbox else {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(_quietly(app(scope, receive, send)))
    return sent


async def _quietly(call: Any) -> None:
    with suppress(ConnectionResetError, ZeroDivisionError):
        await call


def responder(status: int, *, reads: bool = True) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if reads:
            await read_body(receive)
        await answer(send, status)

    return app


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({"prompt": "abcdefgh"}, (0, 8)),
        ({"prompt": "äö"}, (0, 4)),
        ({"prompt": [1, 2, 3]}, (3, 0)),
        ({"prompt": [[1, 2], [3]]}, (3, 0)),
        ({"prompt": ["abcd", "ef"]}, (0, 6)),
        ({"messages": [{"role": "system", "content": "abcd"}, {"role": "user", "content": "ef"}]}, (0, 6)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "abc"}, {"type": "image_url"}]}]}, (0, 3)),
        ({"inputs": "abc", "parameters": {"max_new_tokens": 7}}, (0, 3)),
        ({"system": "ab", "messages": [{"role": "user", "content": None}]}, (0, 2)),
        ({"max_tokens": 3}, (0, 0)),
    ],
)
def test_the_size_of_a_prompt(body: dict[str, Any], size: tuple[int, int]) -> None:
    assert prompt_size(body) == size


@pytest.mark.parametrize(
    ("status", "field"), [(200, "finished"), (429, "rejected"), (503, "rejected"), (500, "failed"), (504, "failed")]
)
def test_every_request_is_an_arrival_and_ends_one_way(status: int, field: str) -> None:
    door = Door("chat")
    exchange(DoorMiddleware(responder(status), door), b'{"prompt":[1,2,3,4,5]}', parts=3)
    counts = door.read()
    assert (counts.requests, counts.prompt_tokens, counts.in_flight) == (1, 5.0, 0)
    ends = {name: getattr(counts, name) for name in ("finished", "rejected", "failed", "hung_up")}
    assert ends == {**dict.fromkeys(ends, 0), field: 1}


def test_a_client_that_leaves_is_an_arrival_without_tokens_unless_its_body_came_whole() -> None:
    door = Door("chat")
    exchange(DoorMiddleware(responder(200), door), b'{"prompt":[1,2,3', leaves=True)
    assert (door.requests, door.hung_up, door.prompt_tokens, door.in_flight) == (1, 1, 0.0, 0)

    async def holds(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        assert (await receive())["type"] == "http.disconnect"
        await answer(send, 200)  # to nobody

    exchange(DoorMiddleware(holds, door), b'{"prompt":[1,2,3]}')
    assert (door.requests, door.hung_up, door.finished, door.prompt_tokens) == (2, 2, 0, 3.0)


def test_an_application_that_breaks_or_never_answers_is_a_failure() -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)

    door = Door("chat")
    exchange(DoorMiddleware(breaks, door), b"{}")
    exchange(DoorMiddleware(silent, door), b"{}")
    assert (door.requests, door.failed, door.in_flight) == (2, 2, 0)


def test_tokens_of_bodies_that_nobody_reads_or_parses_are_estimated_by_their_bytes() -> None:
    door = Door("chat", bytes_per_token=2.0)
    exchange(DoorMiddleware(responder(503, reads=False), door), b'{"prompt":"abcd"}')
    assert door.prompt_tokens == 17 / 2
    exchange(DoorMiddleware(responder(200), door), b"not JSON")
    assert door.prompt_tokens == 17 / 2 + 4
    exchange(DoorMiddleware(responder(200), door), b'{"prompt":"' + b"a" * (1 << 20) + b'"}', parts=9)
    assert door.prompt_tokens == 17 / 2 + 4 + ((1 << 20) + 13) / 2


def test_a_tokenizer_of_the_users_counts_instead() -> None:
    door = Door("chat", tokens=lambda body: len(str(body["prompt"]).split()))
    exchange(DoorMiddleware(responder(200), door), b'{"prompt":"one two three"}')
    assert door.prompt_tokens == 3.0


def test_other_paths_and_methods_are_let_through_uncounted() -> None:
    door = Door("chat")
    app = DoorMiddleware(responder(200), door)
    assert exchange(app, b"", path="/health", method="GET")[0]["status"] == 200
    assert exchange(app, b"", path="/v1/models")[0]["status"] == 200
    assert door.requests == 0


def test_one_door_per_model_and_a_count_of_those_that_name_none() -> None:
    chat, code = Door("chat"), Door("code")
    app = DoorMiddleware(responder(200), {"chat-8b": chat, "code-34b": code})
    exchange(app, b'{"model":"chat-8b","prompt":[1]}')
    exchange(app, b'{"model":"code-34b","prompt":[1,2]}')
    exchange(app, b'{"model":"other","prompt":[1,2]}')
    exchange(app, b'{"model":"chat-8b"', leaves=True)
    assert (chat.requests, code.requests, code.prompt_tokens, app.unattributed) == (1, 1, 2.0, 2)
    assert (chat.in_flight, chat.finished) == (0, 1)


def test_counts_since_then_and_after_a_restart() -> None:
    before = DoorCounts(requests=10, prompt_tokens=100.0, rejected=1, in_flight=5)
    now = DoorCounts(requests=25, prompt_tokens=180.0, rejected=1, in_flight=2)
    assert now.since(before) == DoorCounts(requests=15, prompt_tokens=80.0, rejected=0, in_flight=2)
    assert before.since(now) == before  # the door was made anew
    assert now.since(None) == now


def test_the_variation_of_the_gaps() -> None:
    clock = iter([0.0, *[float(k) for k in range(1, 21)]])
    door = Door("chat", clock=lambda: next(clock))
    door.arrive()
    start = door.read()
    for _ in range(20):
        door.arrive()
    assert door.read().since(start).arrival_gap_cv == 0.0
    assert start.arrival_gap_cv is None


WORKER = """
import sys
from pathlib import Path
from metrics_adapter.door import Door
door = Door("chat", shared=Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    door.arrive()
    door.weigh(b'{"prompt":[1,2]}', 16)
    door.leave(status=200, whole=True, gone=False)
door.arrive()
print("there", flush=True)
sys.stdin.read()
"""


def test_workers_that_share_a_folder_tell_the_sum_of_all() -> None:
    """Three processes; one dies in the middle of a request: its counts stay, what it held is nowhere any more."""
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, folder, str(many)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for many in (100, 200)
        ]
        try:
            for worker in workers:
                assert worker.stdout is not None
                assert worker.stdout.readline() == b"there\n"
            door = Door("chat", shared=Path(folder))
            other = Door("code", shared=Path(folder))
            door.arrive()
            expected = DoorCounts(
                requests=303.0,
                prompt_tokens=600.0,
                rejected=0.0,
                failed=0.0,
                finished=300.0,
                hung_up=0.0,
                in_flight=3.0,
            )
            assert door.read() == expected
            assert other.read().requests == 0.0
            workers[0].kill()
            workers[0].wait()
            assert door.read() == replace(expected, in_flight=2.0)
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()


FORKING = """
import os, sys
from pathlib import Path
from metrics_adapter.door import Door
door = Door("chat", shared=Path(sys.argv[1]))
door.arrive()
child = os.fork()
if child == 0:
    door.arrive()
    door.leave(status=503, whole=True, gone=False)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
counts = door.read()
print(counts.requests, counts.rejected, counts.in_flight)
"""


def test_a_forked_worker_starts_a_file_of_its_own_from_zero(tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, "-c", FORKING, str(tmp_path)], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["2.0", "1.0", "1.0"]


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="bytes_per_token: 0 must be a finite number > 0"):
        Door("chat", bytes_per_token=0)
    with pytest.raises(ConfigError, match="'nginx' must be one of autoscaler, envoy, epp"):
        read_door([], "nginx")


def test_our_own_page_says_what_was_counted() -> None:
    door, odd = Door("chat"), Door('a "b"')
    app = DoorMiddleware(responder(200), {"m": door, "n": odd}, metrics_path="/door/metrics")
    for _ in range(3):
        exchange(app, b'{"model":"m","prompt":[1,2]}')
    exchange(app, b'{"model":"n","prompt":[1,2]}')
    sent = exchange(app, b"", path="/door/metrics", method="GET")
    page = sent[1]["body"].decode()
    assert page == exposition({"chat": door.read(), 'a "b"': odd.read()})
    found = read_door(samples(page), "autoscaler", "chat")
    assert found is not None
    assert (found.requests, found.prompt_tokens, found.finished, found.in_flight) == (3, 6.0, 3, 0)
    assert read_door(samples(page), "autoscaler", "none") is None
    everything = read_door(samples(page), "autoscaler")
    assert everything is not None
    assert everything.requests == 4


ENVOY = """
# TYPE envoy_cluster_upstream_rq_total counter
envoy_cluster_upstream_rq_total{envoy_cluster_name="chat"} 100
envoy_cluster_upstream_rq_total{envoy_cluster_name="other"} 7
# TYPE envoy_cluster_upstream_rq_retry counter
envoy_cluster_upstream_rq_retry{envoy_cluster_name="chat"} 4
# TYPE envoy_cluster_upstream_cx_none_healthy counter
envoy_cluster_upstream_cx_none_healthy{envoy_cluster_name="chat"} 30
# TYPE envoy_cluster_upstream_rq_pending_overflow counter
envoy_cluster_upstream_rq_pending_overflow{envoy_cluster_name="chat"} 2
# TYPE envoy_cluster_upstream_rq_cancelled counter
envoy_cluster_upstream_rq_cancelled{envoy_cluster_name="chat"} 5
# TYPE envoy_cluster_upstream_rq_active gauge
envoy_cluster_upstream_rq_active{envoy_cluster_name="chat"} 9
# TYPE envoy_cluster_upstream_rq_pending_active gauge
envoy_cluster_upstream_rq_pending_active{envoy_cluster_name="chat"} 3
"""


def test_an_envoy_tells_arrivals_that_no_upstream_saw() -> None:
    found = read_door(samples(ENVOY), "envoy", "chat")
    assert found == DoorCounts(requests=133, rejected=32, hung_up=5, in_flight=12, waiting=3)
    assert demand_of(found).prompt_tokens is None


@pytest.mark.parametrize(
    ("requests", "sizes", "queue"),
    [
        ("llm_d_epp_request_total", "llm_d_epp_request_size_bytes", "llm_d_epp_flow_control_queue_size"),
        (
            "inference_objective_request_total",
            "inference_objective_request_sizes",
            "inference_extension_flow_control_queue_size",
        ),
    ],
)
def test_an_endpoint_picker_under_both_names(requests: str, sizes: str, queue: str) -> None:
    page = f"""
# TYPE {requests} counter
{requests}{{model_name="chat",target_model_name="chat-v2"}} 40
{requests}{{model_name="chat",target_model_name="chat-v3"}} 2
{requests}{{model_name="code",target_model_name="code"}} 9
# TYPE {sizes} histogram
{sizes}_bucket{{model_name="chat",target_model_name="chat-v2",le="+Inf"}} 42
{sizes}_sum{{model_name="chat",target_model_name="chat-v2"}} 84000
{sizes}_count{{model_name="chat",target_model_name="chat-v2"}} 42
# TYPE {queue} gauge
{queue}{{fairness_id="a",priority="0"}} 6
"""
    found = read_door(samples(page), "epp", "chat")
    assert found == DoorCounts(requests=42, prompt_tokens=21000.0, waiting=6)


# -- a real server -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(app: App) -> AsyncIterator[int]:
    """The application under uvicorn on a free port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(app, log_level="critical", lifespan="off", http="h11", ws="none", timeout_keep_alive=30)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


def empty_pool(asleep: Callable[[], float]) -> App:
    """What stands before a pool without replicas: it holds each request for a while, and then turns it away."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        waiting = asyncio.ensure_future(receive())  # the client's leaving
        await asyncio.wait([waiting], timeout=asleep())
        if not waiting.done():
            waiting.cancel()
            await answer(send, 503)

    return app


def head(length: int) -> bytes:
    return b"POST /v1/completions HTTP/1.1\r\nhost: door\r\ncontent-length: " + str(length).encode() + b"\r\n\r\n"


async def visit(port: int, kind: str, body: bytes) -> None:
    """One client: stays for its answer, leaves after its request, in the middle of its body, or while it is held."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if kind == "half":
            writer.write(head(len(body)) + body[: len(body) // 2])
            await writer.drain()
            await asyncio.sleep(0.02)
            return
        writer.write(head(len(body)) + body)
        await writer.drain()
        if kind == "stays":
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 503")
        elif kind == "held":
            await asyncio.sleep(0.01)
        else:
            transport = writer.transport
            await asyncio.sleep(0.002)
            transport.abort()  # a reset, not an orderly end
    finally:
        writer.close()


@pytest.mark.parametrize("many", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_requests_at_an_empty_pool_are_counted_to_the_last_one(many: int) -> None:
    """A third of the clients hang up, at three moments; requests and tokens are exact, and every one ends one way."""
    draw = random.Random(5)
    kinds = [
        draw.choice(["stays", "stays", "stays", "stays", "stays", "stays", "half", "held", "reset"])
        for _ in range(many)
    ]
    lengths = [draw.randrange(1, 60) for _ in kinds]
    door = Door("chat")

    async def story() -> None:
        app = DoorMiddleware(empty_pool(lambda: 0.03), door)
        async with served(app) as port:
            at_once = asyncio.Semaphore(200)

            async def one(kind: str, length: int) -> None:
                body = json.dumps({"model": "m", "prompt": list(range(length))}).encode()
                async with at_once:
                    await visit(port, kind, body)

            await asyncio.gather(*(one(k, n) for k, n in zip(kinds, lengths, strict=True)))
            for _ in range(200):
                if door.in_flight == 0 and door.requests == len(kinds):
                    break
                await asyncio.sleep(0.05)

    asyncio.run(story())
    counts = door.read()
    whole = sum(n for k, n in zip(kinds, lengths, strict=True) if k != "half")
    assert counts.requests == many
    assert counts.prompt_tokens == whole
    assert counts.in_flight == 0
    assert (counts.rejected or 0) + (counts.hung_up or 0) == many
    assert (counts.finished, counts.failed) == (0, 0)
    observation = assemble(
        "chat", {}, {}, at_seconds=10, window_seconds=10, replicas=Replicas(desired=0, ready=0), door=counts
    )
    assert observation.demand is not None
    assert (observation.demand.requests, observation.demand.prompt_tokens) == (many, whole)
    # Whether a client that leaves while it is held is faster than its answer is a race; the others are not.
    assert (counts.rejected or 0) >= kinds.count("stays")
    assert (counts.hung_up or 0) >= kinds.count("half")
