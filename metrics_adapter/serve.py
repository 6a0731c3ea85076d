"""What `autoscaler serve` puts together: loops that decide, a board, and the faces that read it."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Coroutine, MutableMapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from autoscaler.embed import autoscaler_for
from autoscaler.errors import ConfigError
from autoscaler.ports import Target
from autoscaler.settings import FileSettings, PoolSettings
from autoscaler.step import Autoscaler
from autoscaler.types import Memory
from metrics_adapter import serve_rivals
from metrics_adapter.board import Board
from metrics_adapter.certificates import Certificates
from metrics_adapter.external_metrics import VERSION, api_routes, errors_as_status, external_metrics
from metrics_adapter.external_metrics_values import Metric, metrics_of
from metrics_adapter.front_proxy import FrontProxy, guard
from metrics_adapter.keda import KedaServer, KedaTls
from metrics_adapter.leader import Election, Fenced, take_turns
from metrics_adapter.leader_feed import Feed
from metrics_adapter.leader_follow import Follower
from metrics_adapter.self_signed import Keeper, issue, service_names
from metrics_adapter.serve_plain import Life, plain_application
from metrics_adapter.serve_pools import Served, groups_of, resumed, runners_of, show_last
from metrics_adapter.serve_refit import refits
from metrics_adapter.wva import Variants
from serving.kubernetes import Kubernetes
from serving.targets import KubernetesTarget, ReadOnly

logger = logging.getLogger("autoscaler.serve")

BACKFILLS_AT_ONCE = 4
SHUTDOWN_SECONDS = 2.0


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
        self.log = asked.log if asked.log is not None else Path(config.log.path)
        self.board = Board(config.pools, stale_after_seconds=asked.stale_after_seconds)
        self.autoscalers = {settings.name: autoscaler_for(settings) for settings in config.pools}
        groups_of(config.pools)  # refuses a ratio to a pool that is not there
        self.life = Life()
        self.tasks: list[asyncio.Task[None]] = []
        self.metrics: dict[str, Metric] = metrics_of(self.board)
        self.cluster: Kubernetes | None = None
        self.variants: Variants | None = None
        self.election: Election | None = None
        self.feed: Feed | None = None

    async def start(self) -> None:
        """Open everything; the faces first, so that whoever asks is told that nothing is decided yet.

        Raises ConfigError or KubernetesError with a sentence.
        """
        self.stack.push_async_callback(self._cancel)
        if not self.asked.without_cluster:
            await self._join()
        plain = plain_application(self.board, self.life, self.variants)
        if self.feed is not None:
            plain.add_routes(self.feed.routes())
        if self.asked.without_cluster:
            self._open_api(plain)
        await self._listen(plain, "--port", self.asked.port, "page, probes and metrics")
        if self.asked.secure_port is not None:
            await self._secure()
        if self.asked.keda_port is not None:
            await self._open_keda()
        self._go("the loops", self._decide())
        self.life.ready = True

    async def _decide(self) -> None:
        """Go on where the logs end; as the leader, or behind one.  Reading the logs holds up no answer."""
        memories = {}
        for name, made in self.autoscalers.items():
            memories[name] = await asyncio.to_thread(resumed, made, self.log / name)
            show_last(self.board, memories[name])
        if self.election is None:
            await self.lead(memories)
        else:
            follower = Follower(self.board, self.autoscalers, memories)
            await take_turns(self.election, follower, self.lead)

    async def _open_keda(self) -> None:
        asked, tls = self.asked, None
        if asked.keda_tls_cert_file is not None:
            tls = KedaTls(
                cert_file=asked.keda_tls_cert_file, key_file=asked.keda_tls_private_key_file,
                client_ca_file=asked.keda_client_ca_file,
            )  # fmt: skip
        host = asked.host or "[::]"
        keda = KedaServer(self.board, port=asked.keda_port, host=host, tls=tls)
        await self.stack.enter_async_context(keda)
        logger.info("KEDA: %s:%d, %s", host, keda.port, "no TLS" if tls is None else "TLS")

    async def lead(self, memories: MutableMapping[str, Memory]) -> None:
        """Decide for all pools, going on from `memories`, until cancelled; what is known then is left there."""
        async with AsyncExitStack() as stack:
            pools = []
            for name, made in self.autoscalers.items():
                pools.append(self._open(made, memories.get(name) or made.start()))
                stack.push_async_callback(pools[-1].close)
                await asyncio.sleep(0)  # each writes all it knows to a new segment: answers go between
            stack.callback(lambda: memories.update({pool.name: pool.loop.memory for pool in pools}))
            self.life.runners = runners_of(pools)
            stack.callback(setattr, self.life, "runners", [])
            if self.feed is not None:
                for pool in pools:
                    self.feed.attach(pool.name, partial(getattr, pool.loop, "memory"))
                stack.callback(self.feed.detach)
            # What there is now stays: to look through all of it again and again would hold up answers for 50 ms.
            gc.collect()
            gc.freeze()
            gate = asyncio.Semaphore(BACKFILLS_AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for runner in self.life.runners:
                    group.create_task(runner.run(self.asked.backfill_hours, gate))
                if self.asked.refit_minutes > 0:
                    group.create_task(refits(pools, 60.0 * self.asked.refit_minutes))

    async def drain(self, seconds: float) -> None:
        """Tell the cluster to ask somebody else, answer on until it does, and decide no more."""
        self.life.ready = False
        await asyncio.sleep(seconds)
        await self._cancel()

    async def _join(self) -> None:
        """Connect to the cluster, watch its HPAs, and stand for election where there may be others of us."""
        self.cluster = await self.stack.enter_async_context(
            Kubernetes.connect(self.asked.kubeconfig, self.asked.context)
        )
        self.variants = Variants(self.board)
        self.metrics |= self.variants.metrics()
        self._go("the watch of HPAs", self.variants.follow(self.cluster))
        self._go("the look for rivals", serve_rivals.watch(self.variants))
        if self.asked.lease is not None:
            namespace, name = self._namespace(), self.asked.lease
            self.election = Election(
                self.cluster, namespace=namespace, name=name, address=self.asked.address,
                identity=os.environ.get("POD_NAME") or socket.gethostname(),
            )  # fmt: skip
            self.feed = Feed(self.election.me.key)
            self.life.leads = partial(getattr, self.election, "leads")

    def _namespace(self) -> str:
        assert self.cluster is not None
        found = self.asked.namespace or os.environ.get("POD_NAMESPACE") or self.cluster.namespace
        if found is None:
            raise ConfigError("--namespace", "is missing: our Service, and the Lease of our leader, live in one")
        return str(found)

    def _open(self, made: Autoscaler, memory: Memory) -> Served:
        name = made.settings.name
        target = self._target(made.settings)
        pool = Served.open(
            made, memory, target=self._fenced(target), log=self.log, board=self.board,
            rotation=self.config.log,
            on_line=None if self.feed is None else partial(self.feed.publish, name),
        )  # fmt: skip
        if target is not None:
            target.startup = partial(_startup, pool)
        return pool

    def _target(self, settings: PoolSettings) -> KubernetesTarget | None:
        target = settings.target
        if self.cluster is None or target is None or target.kind == "processes":
            return None
        return KubernetesTarget(self.cluster, target, now=time.time)

    def _fenced(self, target: KubernetesTarget | None) -> Target | None:
        if target is None:
            return None
        read = ReadOnly(target)
        return read if self.election is None else Fenced(read, partial(getattr, self.election, "leads"))

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
        application = external_metrics(
            self.metrics, group=group, outer=[self.life.counting()], middlewares=[guard(self.cluster, proxy, group)]
        )
        await self._listen(application, "--secure-port", self.asked.secure_port, group, certificates)

    def _own_certificates(self, group: str) -> Certificates:
        assert self.cluster is not None
        namespace, service = self._namespace(), self.asked.service
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
        api = web.Application(middlewares=[self.life.counting(), errors_as_status])
        prefix = f"/apis/{self.asked.api_group}"
        for route in api_routes(self.metrics, self.asked.api_group):
            if route.path.startswith(prefix) and route.path != prefix:
                api.router.add_route(route.method, route.path.removeprefix(prefix), route.handler)
        plain.add_subapp(prefix, api)

    async def _listen(
        self, application: web.Application, option: str, port: int, what: str, certificates: Certificates | None = None
    ) -> None:
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        self.stack.push_async_callback(runner.cleanup)
        context = None if certificates is None else certificates.context
        try:
            await web.TCPSite(runner, self.asked.host, port, ssl_context=context).start()
        except OSError as error:
            raise ConfigError(option, f"{port} cannot be listened on: {os.strerror(error.errno or 0)}") from None
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
