"""A server that answers Prometheus' query API out of pages that replicas printed at known instants."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families

LOOKBACK_SECONDS = 300

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def vector(*samples: tuple[Mapping[str, str], float, float]) -> dict[str, Any]:
    """An answer of (labels, instant, value)."""
    result = [{"metric": dict(labels), "value": [at, repr(value)]} for labels, at, value in samples]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}


def page(
    requests: float,
    *,
    running: float = 2,
    waiting: float = 1,
    started: float = 1000.0,
    late: float = 0.0,
    tokens: float = 100.0,
) -> str:
    """A page of a vLLM that gave `requests` first tokens so far, `late` of them after more than a second."""
    name, of = "vllm:time_to_first_token_seconds", '{model_name="m",engine="0"'
    return (
        f"vllm:num_requests_running{of}}} {running}\n"
        f"vllm:num_requests_waiting{of}}} {waiting}\n"
        f"process_start_time_seconds {started}\n"
        f"vllm:prompt_tokens_total{of}}} {requests * tokens}\n"
        f"vllm:generation_tokens_total{of}}} {requests * 10}\n"
        f'{name}_bucket{of},le="0.5"}} {(requests - late) / 2}\n'
        f'{name}_bucket{of},le="1.0"}} {requests - late}\n'
        f'{name}_bucket{of},le="+Inf"}} {requests}\n'
        f"{name}_sum{of}}} {requests / 2}\n"
        f"{name}_count{of}}} {requests}\n"
    )


@dataclass
class Store:
    """What a Prometheus knows: for each replica the instants of its scrapes and its page then."""

    pages: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    queries: dict[str, float] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)

    def scrape(self, replica: str, at: float, text: str) -> None:
        self.pages.setdefault(replica, []).append((at, text))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        form = {k: str(v) for k, v in (await request.post()).items()}
        self.asked.append(form)
        query, at = form["query"], float(form["time"])
        if query in self.queries:
            return web.json_response(vector(({}, at, self.queries[query])))
        latest = {
            name: found[-1]
            for name, kept in self.pages.items()
            if (found := [(t, p) for t, p in kept if at - LOOKBACK_SECONDS < t <= at])
        }
        if query.startswith("max by (instance) (timestamp("):
            return web.json_response(vector(*(({"instance": n}, at, t) for n, (t, _) in latest.items())))
        if query.startswith("{__name__=~"):
            samples = [
                ({"__name__": s.name, "instance": n, "job": "vllm", **s.labels}, at, s.value)
                for n, (_, text) in latest.items()
                for family in text_string_to_metric_families(text)
                for s in family.samples
            ]
            return web.json_response(vector(*samples))
        return web.json_response(vector())


class Server:
    """`async with Server(handler) as url`: POST /api/v1/query and /api/v1/query_range go to `handler`."""

    def __init__(self, handler: Handler) -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/api/v1/query", handler)
        app.router.add_post("/api/v1/query_range", handler)
        self._server = TestServer(app)

    async def __aenter__(self) -> str:
        await self._server.start_server()
        return str(self._server.make_url("")).rstrip("/")

    async def __aexit__(self, *exception: object) -> None:
        await self._server.close()
