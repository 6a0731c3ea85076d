"""The page on the second port: what happens to every pool, live, and why.

    install(app, board)        GET /          the page: one file, nothing is loaded from elsewhere
                               GET /events    its data as Server-Sent Events; ?pool=NAME chooses

An event ``state`` comes first and holds everything; then a ``step`` for each new Step of any pool (details for the chosen
one), and a ``clock`` every few seconds, so that a reader notices a connection that died.  The page reads, it decides
nothing, and it changes nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import autoscaler
from autoscaler import pages
from autoscaler.settings import PoolSettings
from metrics_adapter import page_views as views
from metrics_adapter.board import Board, Stale

if TYPE_CHECKING:
    from aiohttp import web

CLOCK_SECONDS = 5.0
MOST_READERS = 100
SCRIPTS = (
    "format.js",
    "chart.js",
    "paint.js",
    "gestures.js",
    "reasons.js",
    "page_data.js",
    "page_charts.js",
    "page.js",
)
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@lru_cache(maxsize=1)
def page() -> bytes:
    """The page's bytes; it fetches its data."""
    data = {"columns": views.COLUMNS, "clock_seconds": CLOCK_SECONDS}
    return pages.filled(
        files("metrics_adapter") / "page_assets", "page.html", styles=("page.css",), scripts=SCRIPTS, data=data
    )


class Page:
    """The page of one board and its open streams.  `clock_seconds`: how often a silent stream says that it lives."""

    def __init__(self, board: Board, *, clock_seconds: float = CLOCK_SECONDS) -> None:
        self.board, self.clock_seconds, self.started = board, clock_seconds, time.time()
        self._readers: set[asyncio.Task[Any]] = set()

    def routes(self) -> list[web.RouteDef]:
        from aiohttp import web

        return [web.get("/", self.html), web.get("/events", self.events)]

    async def html(self, _: web.Request) -> web.Response:
        """The page itself."""
        from aiohttp import web

        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return web.Response(body=page(), content_type="text/html", charset="utf-8", headers=headers)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The stream of one reader, until it leaves or the page is closed."""
        from aiohttp import web

        pools = self.board.pools
        chosen = request.query.get("pool") or next(iter(pools))
        if chosen not in pools:
            return web.Response(status=404, text=f"pool {chosen!r} must be one of {', '.join(pools)}\n")
        if len(self._readers) >= MOST_READERS:
            return web.Response(status=503, text=f"{MOST_READERS} readers are the most at a time\n")
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        answer = web.StreamResponse(headers=headers)
        task = asyncio.current_task()
        assert task is not None
        self._readers.add(task)
        try:
            await answer.prepare(request)
            async for event, data in told(self.board, chosen, self.started, self.clock_seconds):
                packed = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
                await answer.write(f"event: {event}\ndata: {packed}\n\n".encode())
        except ConnectionError:  # the reader has gone
            pass
        finally:
            self._readers.discard(task)
        return answer

    async def close(self, _: web.Application | None = None) -> None:
        """End the streams: a server that stops would wait for them."""
        for task in tuple(self._readers):
            task.cancel()


def routes(board: Board, *, clock_seconds: float = CLOCK_SECONDS) -> list[web.RouteDef]:
    """The routes of the page; who stops servers fast uses `install`."""
    return Page(board, clock_seconds=clock_seconds).routes()


def install(app: web.Application, board: Board, *, clock_seconds: float = CLOCK_SECONDS) -> None:
    """Add the page to `app`; its streams end when `app` shuts down."""
    made = Page(board, clock_seconds=clock_seconds)
    app.add_routes(made.routes())
    app.on_shutdown.append(made.close)


async def told(board: Board, chosen: str, started: float, clock_seconds: float) -> AsyncIterator[tuple[str, Any]]:
    """The events of one reader of the pool `chosen`, for ever."""
    changes = board.changes()
    yield (
        "state",
        {
            "version": autoscaler.__version__,
            "started": started,
            "now": board.now(),
            "pools": [overview(board, name) for name in board.pools],
            "pool": detail(board, chosen),
        },
    )
    last = board.last(chosen)
    sent = -1 if last is None else last.observation.at_seconds
    waiting = asyncio.ensure_future(anext(changes))
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=clock_seconds)
            if not done:
                yield "clock", {"now": board.now(), "pool": overview(board, chosen)}
                continue
            name = waiting.result()
            waiting = asyncio.ensure_future(anext(changes))
            data: dict[str, Any] = {"now": board.now(), "overview": overview(board, name)}
            if name == chosen:
                data["pool"] = detail(board, chosen, sent)
                step = board.last(chosen)
                sent = sent if step is None else step.observation.at_seconds
            yield "step", data
    finally:
        waiting.cancel()


def overview(board: Board, name: str) -> dict[str, Any]:
    """What the list of pools shows of one: counts, the number, how old, and why it may not be acted on."""
    step = board.last(name)
    stale: str | None = None
    try:
        board.fresh(name)
    except Stale as error:
        stale = str(error)
    if step is None:
        return {"name": name, "at": None, "stale": stale}
    counts = step.observation.replicas
    return {
        "name": name, "at": step.observation.at_seconds, "stale": stale, "wanted": step.decision.replicas,
        "desired": counts.desired, "ready": counts.ready, "starting": counts.starting,
        "unknown": step.state.unknown_since_seconds,
    }  # fmt: skip


def detail(board: Board, name: str, after_seconds: int = -1) -> dict[str, Any]:
    """Everything about one pool; rows and changes later than `after_seconds` only."""
    settings, steps = board.pools[name], board.recent(name)
    data: dict[str, Any] = {
        "name": name,
        "rows": views.rows(steps, after_seconds),
        "changes": views.changes(steps, after_seconds),
        "settings": settings_json(settings, board.limit_seconds(name)),
    }
    if not steps:
        return data
    last = steps[-1]
    seen = last.observation
    violated = board.exposition.view(name, board.now()).violated
    return data | {
        "last": views.told(last),
        "burn": views.burn(settings, violated),
        "starts": [views.start_json(s) for s in views.starts(steps)],
        "coming": [at - seen.at_seconds for at in seen.replicas.starting_ready_at_seconds],
        "beliefs": views.beliefs(last),
        "missing": [g for g in ("demand", "load", "latency") if getattr(seen, g) is None],
    }


def settings_json(settings: PoolSettings, stale_after_seconds: int) -> dict[str, Any]:
    """What a reader must know of the settings."""
    slo, limits = settings.slo, settings.limits
    return {
        "strategy": settings.strategy, "ttft": slo.ttft_seconds, "itl": slo.itl_seconds,
        "attainment": slo.attainment_fraction, "min": limits.min_replicas, "max": limits.max_replicas,
        "gpus": settings.target.gpus_per_replica if settings.target is not None else 1.0,
        "interval": settings.interval_seconds, "stale_after": stale_after_seconds,
    }  # fmt: skip
