"""A recorded trace in accelerated time through the whole chain, and the same in the simulator.

The requests and the engines are the simulator's plant.  Everything between is real: the plant's signals go to the loop, its
Steps to the board, the external metrics server answers the aggregator, the HPA scales the Deployment, pods are scheduled
and started, and when one is ready or gone, so is a replica of the plant.  All times are scaled by one factor.
"""

from __future__ import annotations

import asyncio
import math
import queue
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import cluster_objects as objects
from aiohttp import web
from cluster_api import Namespace, Object, condition
from cluster_keys import Pair
from cluster_plane import ControlPlane

from autoscaler.embed import Pool, autoscaler_for
from autoscaler.loop import Loop
from autoscaler.ports import Clock
from autoscaler.settings import PoolSettings
from autoscaler.types import Observation, Replicas
from load_tests.births import StartupModel
from load_tests.campaign import Prepared, pool_models
from load_tests.contestants import PoolContestant
from load_tests.fleet import Fleet
from load_tests.run import ReplicaSeconds
from load_tests.scrape import Scraper
from load_tests.simulator import Setup, Simulation
from metrics_adapter.board import Board
from metrics_adapter.external_metrics import external_metrics
from metrics_adapter.external_metrics_values import metrics_of
from serving.profiles import StageSeconds

T = TypeVar("T")
HPA_SYNC_SECONDS = 15.0  # of a cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """What a pool did: (seconds, replicas) at each change, and what it cost in GPU-seconds until `end_seconds`."""

    wanted: list[tuple[float, int]]
    ready: list[tuple[float, int]]
    gpu_seconds: float
    end_seconds: float

    def difference(self, other: Path) -> float:
        """Mean distance of the ready replicas of two paths, as a fraction of the other's mean."""
        grid = [float(s) for s in range(int(self.end_seconds))]
        ours, theirs = (list(_at(path.ready, grid)) for path in (self, other))
        return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / sum(theirs)


def _at(steps: list[tuple[float, int]], grid: list[float]) -> Iterator[int]:
    rest, value = iter([*steps, (math.inf, 0)]), 0
    at, coming = next(rest)
    for t in grid:
        while at <= t:
            value = coming
            at, coming = next(rest)
        yield value


def startup(seconds: float, spread: float) -> StartupModel:
    """One lognormal stage with the mean and deviation of a start that is uniform in `seconds` +- `spread`."""
    sigma = spread / math.sqrt(3) / seconds
    stage = StageSeconds(name="start", seconds=seconds, sigma=sigma, of_node=False, weights_gb=0.0)
    return StartupModel(stages=(stage,))


def simulated(setup: Setup, contestant: PoolContestant) -> Path:
    """The simulator's path."""
    simulation = Simulation(setup, [contestant])
    simulation.run()
    life, end = simulation.lives[0], setup.end_seconds
    changes = sorted(
        [(max(0.0, s.ready), 1) for s in life.spans if s.ready < end]
        + [(min(s.draining, s.gone), -1) for s in life.spans if s.ready < end and min(s.draining, s.gone) < end]
    )
    wanted = [(0.0, setup.initial[0]), *((e.at_seconds, e.after) for e in simulation.events)]
    paid: ReplicaSeconds = life.paid(0.0, end)
    return Path(wanted=wanted, ready=_summed(changes), gpu_seconds=paid.paid * setup.gpus_per_replica, end_seconds=end)


def _summed(changes: list[tuple[float, int]]) -> list[tuple[float, int]]:
    total, steps = 0, []
    for at, change in changes:
        total += change
        steps.append((at, total))
    return steps


@dataclass(slots=True)
class FastClock:
    """Unix seconds of the trace: `factor` of them pass in one; the trace's second 0 is `origin`."""

    origin: int
    factor: float
    started: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Seconds of the trace so far."""
        return (time.monotonic() - self.started) * self.factor

    def now(self) -> float:
        """Unix seconds."""
        return self.origin + self.seconds()

    def now_seconds(self) -> int:
        """Whole Unix seconds."""
        return math.floor(self.now())

    async def sleep_until(self, at_seconds: int) -> None:
        """Return at that instant of the trace."""
        await asyncio.sleep(max(0.0, (at_seconds - self.now()) / self.factor))


@dataclass(slots=True)
class _Span:
    """A pod and its replica of the plant; instants in seconds of the trace."""

    created: float
    ready: float = math.inf
    gone: float = math.inf
    replica: int = -1


class World:
    """The plant, with a replica for each pod that is ready: source and target of the loop.

    A pod that is removed drains: its replica finishes what it has and is paid until then, as in the simulator.
    """

    def __init__(
        self, setup: Setup, settings: PoolSettings, namespace: Namespace, name: str, start_seconds: float
    ) -> None:
        self.setup, self.settings, self.namespace, self.name = setup, settings, namespace, name
        self.fleet = Fleet(setup.pools, setup.requests, seed=setup.seed)
        self.pods: dict[str, _Span] = {}
        self.wanted: list[tuple[float, int]] = []
        self.clock = FastClock(setup.origin_at_seconds, 1.0)
        self._start_seconds = start_seconds
        self._scraper = Scraper(settings.name, setup.slo, setup.pools[0].replica.kv_capacity_tokens)
        self._seen: queue.SimpleQueue[tuple[float, Object]] = queue.SimpleQueue()

    def follow(self, seconds: float) -> None:
        """Hear of every change of a pod, on a thread of its own."""
        path = self.namespace.path("v1", "Pod")
        listed = self.namespace.api.get(path)
        for pod in listed["items"]:
            self._seen.put((0.0, pod))

        def watch() -> None:
            for pod in self.namespace.api.watch(path, listed["metadata"]["resourceVersion"], seconds=seconds):
                self._seen.put((self.clock.seconds(), pod))

        threading.Thread(target=watch, daemon=True).start()

    def advance(self, until: float) -> None:
        """Let the plant run, with pods coming and going at their instants."""
        while not self._seen.empty():
            at, pod = self._seen.get()
            self._change(min(max(at, self.fleet.now_seconds), until), pod)
        self.fleet.advance(max(until, self.fleet.now_seconds))

    def _change(self, at: float, pod: Object) -> None:
        meta = pod["metadata"]
        span = self.pods.setdefault(meta["uid"], _Span(created=at))
        self.fleet.advance(at)
        if span.gone < math.inf:
            return
        if "deletionTimestamp" in meta:
            span.gone = at
            if span.replica >= 0:
                self.fleet.drain(span.replica)
        elif span.replica < 0 and condition(pod, "Ready").get("status") == "True":
            span.ready, span.replica = at, self.fleet.add(0)

    async def replicas(self) -> Replicas:
        """As the cluster counts them now."""
        now = self.clock.seconds()
        self.advance(now)
        desired = await asyncio.to_thread(self.namespace.wanted, self.name)
        if not self.wanted or self.wanted[-1][1] != desired:
            self.wanted.append((now, desired))
        alive = [s for s in self.pods.values() if s.gone == math.inf]
        starting = [s for s in alive if s.ready == math.inf]
        coming = (self.setup.origin_at_seconds + round(max(now, s.created + self._start_seconds)) for s in starting)
        return Replicas(
            desired=desired,
            ready=len(alive) - len(starting),
            starting=len(starting),
            draining=sum(
                s.replica >= 0 and s.gone < math.inf and self.fleet.gone_at(s.replica) is None
                for s in self.pods.values()
            ),
            starting_ready_at_seconds=tuple(sorted(coming)),
        )

    async def scale(self, replicas: int) -> None:
        """The HPA does it."""

    async def observe(self, at_seconds: int, replicas: Replicas) -> Observation:
        """What a scraper would see of the plant."""
        self.advance(self.clock.seconds())
        return self._scraper.observe(
            at_seconds,
            self.settings.interval_seconds,
            replicas,
            lambda: (self.fleet.gauges(0), self.fleet.counters(0)),
        )

    async def backfill(self, since_seconds: int, until_seconds: int) -> list[Observation]:
        """No past."""
        return []

    def path(self) -> Path:
        """What it did, and what it cost."""
        end = self.setup.end_seconds
        self.advance(end)
        gone = {id(s): self._left(s) for s in self.pods.values()}
        paid = sum(max(0.0, min(gone[id(s)], end) - s.created) for s in self.pods.values())
        changes = [(s.ready, 1) for s in self.pods.values() if s.ready < end]
        changes += [(s.gone, -1) for s in self.pods.values() if s.ready < s.gone < end]
        return Path(
            wanted=self.wanted,
            ready=_summed(sorted(changes)),
            gpu_seconds=paid * self.setup.gpus_per_replica,
            end_seconds=end,
        )

    def _left(self, span: _Span) -> float:
        """When its GPUs were free: a pod that was removed drains first."""
        if span.gone == math.inf or span.replica < 0:
            return span.gone
        empty = self.fleet.gone_at(span.replica)
        return math.inf if empty is None else max(span.gone, empty)


async def played(
    plane: ControlPlane, world: World, pair: Pair, factor: float, *, service_namespace: str, hpa_limits: tuple[int, int]
) -> Path:
    """The chain's path.  The Deployment must be there with the replicas of the beginning, all ready."""
    if abs(plane.hpa_sync_seconds * factor - HPA_SYNC_SECONDS) > 1e-9:
        raise ValueError(f"the HPA looks every {plane.hpa_sync_seconds:g} s: times must be scaled by 15 / that")
    board = Board([world.settings], now=lambda: world.clock.now())
    application = external_metrics(metrics_of(board))
    runner = web.AppRunner(application)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    made = autoscaler_for(world.settings)
    clock: Clock = world.clock
    loop = Loop(autoscaler=made, memory=made.start(), source=world, target=world, clock=clock, owns_target=False)
    behavior = _faster(objects.PASS_THROUGH, factor)
    low, high = hpa_limits
    try:
        await asyncio.to_thread(
            plane.register, port, namespace=service_namespace, service="replay", ca_bundle=plane.serving.pem
        )
        world.namespace.apply(
            objects.hpa(world.name, selector={"pool": world.settings.name}, low=low, high=high, behavior=behavior)
        )
        world.clock = FastClock(world.setup.origin_at_seconds, factor)
        loop.clock = world.clock
        world.follow(world.setup.end_seconds / factor + 30)
        while world.clock.seconds() < world.setup.end_seconds:
            await loop.run(1)
            if loop.memory.last_step is not None:
                board.post(loop.memory.last_step, counts=loop.counts)
    finally:
        await runner.cleanup()
    return world.path()


def _faster(behavior: Object, factor: float) -> Object:
    """The HPA's own periods, scaled too."""
    scaled: Object = {}
    for way, rules in behavior.items():
        policies = [{**p, "periodSeconds": max(1, round(p["periodSeconds"] / factor))} for p in rules["policies"]]
        scaled[way] = {**rules, "policies": policies}
    return scaled


def contestant_of(settings: PoolSettings, prepared: Prepared) -> PoolContestant:
    """The same policy for the simulator."""
    model = pool_models(prepared.scenario)[0]
    return PoolContestant(
        "chain", Pool(autoscaler_for(settings)), prepared.scenario.slo, model.replica.kv_capacity_tokens
    )


def with_startup(setup: Setup, model: StartupModel) -> Setup:
    """The setup with other starts, beginning on an instant at which a loop turns."""
    return replace(setup, startup=model, origin_at_seconds=setup.origin_at_seconds // 3600 * 3600)
