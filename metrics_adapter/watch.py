"""Pages beside the replicas' own, read in the background: exporters of GPUs, and doors that another process counts.

    async with GpuExporters(["http://node-a:9400/metrics"], namespace="serving") as gpus, DoorPage(url, "envoy", "chat") as door:
        source = ScrapeSource("chat", settings, gpus=gpus, door=door)

Each answers at once with what it read last; what is too old is unknown, and a replica that broke stays broken.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import aiohttp

from autoscaler.errors import SourceError
from autoscaler.scrape_settings import DoorSettings, GpuSettings, ScrapeSettings
from metrics_adapter.discovery import Discovery, EndpointSlices
from metrics_adapter.door import BYTES_PER_TOKEN, DoorCounts
from metrics_adapter.door_pages import DoorRow, read_door
from metrics_adapter.gpu import Gpu, GpuState, GpuWatch, read_gpus, state_of
from metrics_adapter.gpu_local import GpuReadError, LocalGpus
from metrics_adapter.scrape import HEADERS, read_page
from metrics_adapter.text import Sample, samples

MOST_PAGE_BYTES = 16_000_000


class Watch(ABC):
    """Something that is read every `interval_seconds` in the background, while it is held as an async context manager.

    `problems`: why a page could not be read the last time, by its URL.
    """

    def __init__(self, interval_seconds: float, timeout_seconds: float) -> None:
        self.interval_seconds, self.timeout_seconds = interval_seconds, timeout_seconds
        self.problems: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.refresh()
        self._task = asyncio.create_task(self._forever())
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self.close()

    async def close(self) -> None:
        """Give back the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @abstractmethod
    async def refresh(self) -> None:
        """Read now; never raises for what a page is or lacks."""

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(self.interval_seconds)
            await self.refresh()

    async def _samples(self, url: str) -> list[Sample] | None:
        """The samples of a page; None, with a sentence in `problems`, where it cannot be read."""
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)
        self.problems.pop(url, None)
        try:
            async with (
                asyncio.timeout(self.timeout_seconds),
                self._session.get(url, headers=HEADERS, allow_redirects=False) as response,
            ):
                return list(samples(await read_page(response, MOST_PAGE_BYTES)))
        except TimeoutError:
            self.problems[url] = f"no whole page within {self.timeout_seconds:g} s"
        except (SourceError, aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
            self.problems[url] = " ".join(str(error).split())[:200] or type(error).__name__
        return None


class _Gpus(Watch):
    """States of replicas out of GPUs: what `ScrapeSource(gpus=...)` asks for."""

    def __init__(
        self, interval_seconds: float, timeout_seconds: float, stale_after_seconds: float, watch: GpuWatch | None
    ) -> None:
        super().__init__(interval_seconds, timeout_seconds)
        self.stale_after_seconds = stale_after_seconds
        self.watch = watch or GpuWatch()
        self._gpus: dict[str, tuple[float, str, Gpu]] = {}  # when it was read, the replica, the GPU
        self._broken: dict[str, str] = {}

    def __call__(self) -> dict[str, GpuState]:
        """Replicas by name: those whose GPUs were read lately, and those that broke."""
        fresh = time.monotonic() - self.stale_after_seconds
        held: dict[str, list[Gpu]] = {}
        for read_at, replica, gpu in self._gpus.values():
            if read_at >= fresh:
                held.setdefault(replica, []).append(gpu)
            elif gpu.id in self._broken:
                held.setdefault(replica, []).append(Gpu(id=gpu.id, host=gpu.host))
        return {replica: state_of(gpus, self._broken) for replica, gpus in held.items()}

    def _take(self, found: Sequence[tuple[str, Gpu]]) -> None:
        now = time.monotonic()
        self._broken = self.watch.see([gpu for _, gpu in found], int(now))
        for replica, gpu in found:
            if replica:
                self._gpus[gpu.id] = (now, replica, gpu)
            else:
                self._gpus.pop(gpu.id, None)  # nobody holds it any more
        oldest = now - max(self.stale_after_seconds, self.watch.forget_seconds)
        self._gpus = {k: v for k, v in self._gpus.items() if v[0] >= oldest}


class GpuExporters(_Gpus):
    """GPUs by the pages of dcgm-exporter or AMD's device-metrics-exporter, one a node; `discovery` finds further ones.

    Only pods of `namespace` count (None: of all).  `replica_of` gives the name that the source of metrics knows a GPU's
    replica by, or None; without it that is the pod.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        namespace: str | None = None,
        replica_of: Callable[[Gpu], str | None] | None = None,
        interval_seconds: float = 10.0,
        timeout_seconds: float = 5.0,
        stale_after_seconds: float = 45.0,
        watch: GpuWatch | None = None,
        discovery: Discovery | None = None,
    ) -> None:
        super().__init__(interval_seconds, timeout_seconds, stale_after_seconds, watch)
        self.urls, self.namespace = tuple(urls), namespace
        self._replica_of, self._discovery = replica_of, discovery

    async def close(self) -> None:
        """Give back the connections, the discovery's too."""
        await super().close()
        if self._discovery is not None:
            await self._discovery.close()

    async def refresh(self) -> None:
        """Read all pages now."""
        urls = list(self.urls)
        if self._discovery is not None:
            self.problems.pop("exporters", None)
            try:
                urls += [endpoint.url for endpoint in await self._discovery.endpoints()]
            except SourceError as error:
                self.problems["exporters"] = str(error)
        pages = await asyncio.gather(*(self._samples(url) for url in urls))
        gpus = [gpu for page in pages if page is not None for gpu in read_gpus(page)]
        self._take([(self._name(gpu), gpu) for gpu in gpus])

    def _name(self, gpu: Gpu) -> str:
        if self.namespace is not None and gpu.namespace != self.namespace:
            return ""
        return (self._replica_of(gpu) or "") if self._replica_of is not None else gpu.pod


class LocalGpuWatch(_Gpus):
    """GPUs of this machine, by NVML or nvidia-smi: all are one replica's, or those that `replica` names by GPU id.

    Raises GpuReadError where none can be read at all.
    """

    def __init__(
        self,
        replica: str | Mapping[str, str],
        *,
        local: LocalGpus | None = None,
        interval_seconds: float = 10.0,
        stale_after_seconds: float = 45.0,
        watch: GpuWatch | None = None,
    ) -> None:
        super().__init__(interval_seconds, 10.0, stale_after_seconds, watch)
        self._local, self._replica = local or LocalGpus(), replica

    async def refresh(self) -> None:
        """Ask the driver now, in a thread."""
        self.problems = {}
        try:
            gpus = await asyncio.to_thread(self._local.read)
        except GpuReadError as error:
            self.problems = {"local": str(error)}
            return
        named = self._replica
        self._take([(named if isinstance(named, str) else named.get(gpu.id, ""), gpu) for gpu in gpus])


class DoorPage(Watch):
    """A door's counts by its page: what `ScrapeSource(door=...)` asks for.

    `pool` is the value of the row's label (``envoy_cluster_name``, ``model_name``, our ``pool``); None takes all.
    """

    def __init__(
        self,
        url: str,
        row: DoorRow | str,
        pool: str | None = None,
        *,
        bytes_per_token: float = BYTES_PER_TOKEN,
        interval_seconds: float = 5.0,
        timeout_seconds: float = 2.0,
        stale_after_seconds: float = 15.0,
    ) -> None:
        super().__init__(interval_seconds, timeout_seconds)
        self.url, self.stale_after_seconds = url, stale_after_seconds
        read_door([], row)  # refuses a row that is not known
        self._row, self._pool, self._bytes = row, pool, bytes_per_token
        self._counts: DoorCounts | None = None
        self._read_at = 0.0

    def __call__(self) -> DoorCounts | None:
        """The counts read last; None where they are too old, or the page has none of this pool."""
        return self._counts if time.monotonic() - self._read_at <= self.stale_after_seconds else None

    async def refresh(self) -> None:
        """Read the page now."""
        found = await self._samples(self.url)
        if found is None:
            return
        self._counts, self._read_at = read_door(found, self._row, self._pool, self._bytes), time.monotonic()
        if self._counts is None:
            self.problems[self.url] = "the page has no request series of this pool"


def gpus_of(settings: GpuSettings) -> _Gpus:
    """The watch that `settings` ask for; its owner refreshes it, or holds it.

    Raises GpuReadError where this machine's GPUs are asked for and cannot be read.
    """
    watch = GpuWatch(settings.ignore_xids)
    if settings.local_replica is not None:
        return LocalGpuWatch(settings.local_replica, stale_after_seconds=settings.stale_after_seconds, watch=watch)
    discovery = None
    if settings.endpoints is not None:
        discovery = EndpointSlices(ScrapeSettings(endpoints=settings.endpoints, port=settings.port), settings.endpoints)
    return GpuExporters(
        settings.exporters, namespace=settings.namespace, stale_after_seconds=settings.stale_after_seconds, watch=watch,
        discovery=discovery,
    )  # fmt: skip


def door_of(settings: DoorSettings) -> DoorPage:
    """The door that `settings` name; its owner refreshes it, or holds it."""
    return DoorPage(settings.url, settings.kind, settings.pool, bytes_per_token=settings.bytes_per_token)
