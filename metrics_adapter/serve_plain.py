"""The second port of `autoscaler serve`: probes, our own metrics and the page, for whoever gets through the network."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from metrics_adapter import page
from metrics_adapter.board import Board
from metrics_adapter.exposition import CONTENT_TYPE
from metrics_adapter.external_metrics import Handler
from metrics_adapter.serve_pools import Runner
from metrics_adapter.wva import Variants

STUCK_SECONDS = 300.0  # a loop that has not turned for so long, or for ten intervals, is not alive
ANSWERS, LEADS = "autoscaler_external_metrics_answers_total", "autoscaler_leads"


@dataclass(slots=True)
class Life:
    """What the probes ask, and what this process tells of itself: which loops turn, who leads, what was answered.

    `leads`: None where nobody else could.  `answers`: to questions for external metrics, by HTTP status.
    """

    runners: list[Runner] = field(default_factory=list)
    ready: bool = False
    leads: Callable[[], bool] | None = None
    answers: Counter[int] = field(default_factory=Counter)

    def stuck(self) -> list[str]:
        """Pools whose loop stands still."""
        now = time.monotonic()
        return [
            pool.name
            for runner in self.runners
            if now - runner.turned > max(STUCK_SECONDS, 10.0 * runner.interval_seconds)
            for pool in runner.pools
        ]

    def text(self) -> str:
        """The series of this process."""
        lines = []
        if self.leads is not None:
            lines += [
                f"# HELP {LEADS} 1 where this replica decides, 0 where it repeats what the one that does has decided.",
                f"# TYPE {LEADS} gauge",
                f"{LEADS} {int(self.leads())}",
            ]
        if self.answers:
            lines += [
                f"# HELP {ANSWERS} Answers to questions for external metrics.",
                f"# TYPE {ANSWERS} counter",
                *(f'{ANSWERS}{{code="{code}"}} {count}' for code, count in sorted(self.answers.items())),
            ]
        return "".join(f"{line}\n" for line in lines)

    def counting(self) -> Any:
        """A middleware that counts the answers of the API below ``/apis``."""

        @web.middleware
        async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            if request.path.startswith("/apis/"):
                self.answers[response.status] += 1
            return response

        return count


def plain_application(board: Board, life: Life, variants: Variants | None = None) -> web.Application:
    """Probes, our own metrics and the page."""

    async def livez(_: web.Request) -> web.Response:
        stuck = life.stuck()
        if stuck:
            return web.Response(status=500, text=f"these pools' loops stand still: {', '.join(stuck)}\n")
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        # Also while every pool is stale: its sentence is only read by who gets through to us.
        return web.Response(text="ok\n") if life.ready else web.Response(status=503, text="starting or stopping\n")

    async def metrics(_: web.Request) -> web.Response:
        text = board.exposition.text(board.now()) + (variants.text() if variants is not None else "") + life.text()
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    application = web.Application(client_max_size=65_536)
    application.router.add_get("/livez", livez)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/healthz", livez)
    application.router.add_get("/metrics", metrics)
    page.install(application, board)
    return application
