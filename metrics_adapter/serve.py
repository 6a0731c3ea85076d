"""What `autoscaler serve` puts together: loops that decide, a board, and the faces that read it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import tempfile
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from autoscaler.errors import ConfigError
from autoscaler.ports import Target
from autoscaler.settings import FileSettings, PoolSettings
from metrics_adapter import page
from metrics_adapter.board import Board
from metrics_adapter.certificates import Certificates
from metrics_adapter.exposition import CONTENT_TYPE
from metrics_adapter.external_metrics import VERSION, api_routes, errors_as_status, external_metrics
from metrics_adapter.external_metrics_values import Metric, metrics_of
from metrics_adapter.front_proxy import FrontProxy, guard
from metrics_adapter.keda import KedaServer
from metrics_adapter.self_signed import Keeper, issue, service_names
from metrics_adapter.serve_pools import Runner, Served, runners_of
from metrics_adapter.serve_refit import refits
from metrics_adapter.wva import Variants
from serving.kubernetes import Kubernetes
from serving.targets import KubernetesTarget, ReadOnly

logger = logging.getLogger("autoscaler.serve")

STUCK_SECONDS = 300.0  # a loop that has not turned for so long, or for ten intervals, is not alive
BACKFILLS_AT_ONCE = 4
SHUTDOWN_SECONDS = 2.0


@dataclass(slots=True)
class Life:
    """Whether we are ready, and which loops turn: what the probes ask."""

    runners: list[Runner] = field(default_factory=list)
    ready: bool = False

    def stuck(self) -> list[str]:
        """Pools whose loop stands still."""
        now = time.monotonic()
        return [
            pool.name
            for runner in self.runners
            if now - runner.turned > max(STUCK_SECONDS, 10.0 * runner.interval_seconds)
            for pool in runner.pools
        ]


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
        text = board.exposition.text(board.now()) + (variants.text() if variants is not None else "")
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    application = web.Application(client_max_size=65_536)
    application.router.add_get("/livez", livez)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/healthz", livez)
    application.router.add_get("/metrics", metrics)
    page.install(application, board)
    return application


async def serve(config: FileSettings, asked: argparse.Namespace) -> int:
    """Decide and answer until SIGINT or SIGTERM; 1 where a part of it ended by itself."""
    stop = asyncio.Event()
    # By name, since a shell's background job inherits SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        server = Server(config, asked, stack)
        await server.start()
        ended = await _first(stop, server.tasks)
        for task in ended:
            logger.error("%s ended by itself", task.get_name(), exc_info=task.exception())
        await server.drain(0.0 if ended else asked.drain_seconds)
    return 1 if ended else 0


async def _first(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Wait for `stop`, or for a task that should have gone on for ever; those that ended."""
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return {task for task in tasks if task.done()}


class Server:
    """All parts of one process; what is opened is given back by `stack`, the last first."""

    def __init__(self, config: FileSettings, asked: argparse.Namespace, stack: AsyncExitStack) -> None:
        self.config, self.asked, self.stack = config, asked, stack
        self.board = Board(config.pools, stale_after_seconds=asked.stale_after_seconds)
        self.life = Life()
        self.tasks: list[asyncio.Task[None]] = []
        self.metrics: dict[str, Metric] = metrics_of(self.board)
        self.cluster: Kubernetes | None = None
        self.variants: Variants | None = None

    async def start(self) -> None:
        """Open everything; the faces first, so that whoever asks is told that nothing is decided yet.

        Raises ConfigError or KubernetesError with a sentence, OSError for a port that is taken.
        """
        self.stack.push_async_callback(self._cancel)
        if not self.asked.without_cluster:
            self.cluster = await self.stack.enter_async_context(
                Kubernetes.connect(self.asked.kubeconfig, self.asked.context)
            )
            self.variants = Variants(self.board)
            self.metrics |= self.variants.metrics()
            self._go("the watch of HPAs", self.variants.follow(self.cluster))
        pools = [self._open(settings) for settings in self.config.pools]
        self.life.runners = runners_of(pools)
        plain = plain_application(self.board, self.life, self.variants)
        if self.asked.without_cluster:
            self._open_api(plain)
        await self._listen(plain, self.asked.port, "page, probes and metrics")
        if self.asked.secure_port is not None:
            await self._secure()
        if self.asked.keda_port is not None:
            keda = KedaServer(self.board, port=self.asked.keda_port)
            await self.stack.enter_async_context(keda)
            logger.info("KEDA: port %d", keda.port)
        gate = asyncio.Semaphore(BACKFILLS_AT_ONCE)
        for runner in self.life.runners:
            names = ", ".join(pool.name for pool in runner.pools)
            self._go(f"the loop of {names}", runner.run(self.asked.backfill_hours, gate))
        if self.asked.refit_minutes > 0:
            self._go("the schedule of refits", refits(pools, 60.0 * self.asked.refit_minutes))
        self.life.ready = True

    async def drain(self, seconds: float) -> None:
        """Tell the cluster to ask somebody else, answer on until it does, and decide no more."""
        self.life.ready = False
        await asyncio.sleep(seconds)
        await self._cancel()

    def _open(self, settings: PoolSettings) -> Served:
        log = self.asked.log if self.asked.log is not None else Path(self.config.log.path)
        pool = Served.open(
            settings, target=self._target(settings), log=log, board=self.board,
            segment_bytes=self.config.log.segment_bytes,
        )  # fmt: skip
        self.stack.push_async_callback(pool.close)
        target = pool.loop.target
        if isinstance(target, ReadOnly) and isinstance(target.target, KubernetesTarget):
            target.target.startup = lambda quantile: _startup(pool, quantile)
        pool.show_last()
        return pool

    def _target(self, settings: PoolSettings) -> Target | None:
        target = settings.target
        if self.cluster is None or target is None or target.kind == "processes":
            return None
        return ReadOnly(KubernetesTarget(self.cluster, target, now=time.time))

    async def _secure(self) -> None:
        """The external metrics API with TLS, reviews and, unless files are given, a certificate of our own."""
        assert self.cluster is not None
        group = self.asked.api_group
        cert, key = self.asked.tls_cert_file, self.asked.tls_private_key_file
        if cert is not None and key is not None:
            certificates = Certificates(cert, key)
            self._go("the watch of the certificate", certificates.follow())
        else:
            certificates = self._own_certificates(group)
        proxy = FrontProxy(certificates)
        self._go("the watch of the front proxy's authority", proxy.follow(self.cluster))
        application = external_metrics(self.metrics, group=group, middlewares=[guard(self.cluster, proxy, group)])
        await self._listen(application, self.asked.secure_port, f"{group}", certificates)

    def _own_certificates(self, group: str) -> Certificates:
        assert self.cluster is not None
        namespace = self.asked.namespace or os.environ.get("POD_NAMESPACE") or self.cluster.namespace
        if namespace is None:
            raise ConfigError("--namespace", "is missing: a certificate of our own names our Service and its namespace")
        service = self.asked.service
        folder = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="autoscaler-"))
        issued = issue(service_names(service, namespace), Path(folder))
        certificates = Certificates(issued.cert_file, issued.key_file)
        keeper = Keeper(
            self.cluster, certificates, issued, api_service=f"{VERSION}.{group}", service=f"{namespace}/{service}"
        )
        self._go("the care of our certificate", keeper.keep())
        return certificates

    def _open_api(self, plain: web.Application) -> None:
        """Without a cluster nobody can be reviewed, and the API is as open as the page."""
        api = web.Application(middlewares=[errors_as_status])
        prefix = f"/apis/{self.asked.api_group}"
        for route in api_routes(self.metrics, self.asked.api_group):
            if route.path.startswith(prefix) and route.path != prefix:
                api.router.add_route(route.method, route.path.removeprefix(prefix), route.handler)
        plain.add_subapp(prefix, api)

    async def _listen(
        self, application: web.Application, port: int, what: str, certificates: Certificates | None = None
    ) -> None:
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        self.stack.push_async_callback(runner.cleanup)
        context = None if certificates is None else certificates.context
        await web.TCPSite(runner, self.asked.host, port, ssl_context=context).start()
        scheme = "http" if certificates is None else "https"
        host = self.asked.host or "*"
        logger.info("%s: %s://%s:%d/", what, scheme, host, runner.addresses[0][1])

    def _go(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work, name=name))

    async def _cancel(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def _startup(pool: Served, quantile: float) -> float | None:
    """Order to ready at a quantile, as the last Step believed it."""
    step = pool.loop.memory.last_step
    capacity = None if step is None else step.capacity
    return None if capacity is None else capacity.startup(quantile)
