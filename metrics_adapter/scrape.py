"""The scrape source: asks every replica of a pool for its page, and makes one Observation of what they say.

A replica that is slow, refuses, redirects or says something else than metrics is silent this time, with a sentence in
`problems`; it never makes a number.  Counts are changes since a replica's last reading, so none is lost or told twice.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import aiohttp

from autoscaler.errors import MetricMissing, SourceError
from autoscaler.scrape_settings import ScrapeSettings
from autoscaler.settings import Slo
from autoscaler.types import Observation, Replicas
from metrics_adapter.assembly import assemble
from metrics_adapter.changes import LONGEST_WINDOWS
from metrics_adapter.discovery import Discovery, Endpoint, discovery_of
from metrics_adapter.door import DoorCounts
from metrics_adapter.engines import Engine, load_engine
from metrics_adapter.gpu import GpuState
from metrics_adapter.reading import EngineReader, Reading
from metrics_adapter.text import PageError
from metrics_adapter.transport import credentials, read_bounded, short, tls

if TYPE_CHECKING:
    from metrics_adapter.watch import Watch

ACCEPTED = ("text/plain", "application/openmetrics-text")
# Pages are not asked for compressed: within a cluster the engine's processor is dearer than the wire.
HEADERS = {"Accept": "text/plain;version=0.0.4;q=1,text/plain;q=0.5", "Accept-Encoding": "identity"}


class ScrapeSource:
    """Observations of one pool out of its replicas' pages.  Use it as an async context manager, or `close` it.

    `door` gives what passed the pool's door since it was made, `gpus` the state of replicas' GPUs by replica; both are asked
    at each look; without them the settings' own are read.  `problems`: why a replica was silent the last time, by replica;
    `notes`: why an exporter of GPUs or a door could not be read, by URL.
    """

    def __init__(
        self,
        pool: str,
        settings: ScrapeSettings,
        *,
        slo: Slo | None = None,
        interval_seconds: int = 10,
        discovery: Discovery | None = None,
        door: Callable[[], DoorCounts | None] | None = None,
        gpus: Callable[[], Mapping[str, GpuState]] | None = None,
    ) -> None:
        self.pool, self.settings, self._slo, self._interval = pool, settings, slo, interval_seconds
        self.engine: Engine = load_engine(settings.engine)
        self._reader = EngineReader(self.engine, settings.model)
        self._tls = tls(settings.auth) if settings.auth.changes_tls else True
        self._discovery = discovery or discovery_of(settings)
        self._door, self._gpus = door, gpus
        self._beside: list[Watch] = []
        self._watch(settings)
        self._session: aiohttp.ClientSession | None = None
        self._last: dict[str, Reading] = {}
        self._ready = self._leaving = 0
        self._last_door: tuple[int, DoorCounts] | None = None
        self._seen: Observation | None = None
        self._last_at: int | None = None
        self.problems: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.readings: Mapping[str, Reading] = {}

    def _watch(self, settings: ScrapeSettings) -> None:
        """Read the door and the GPUs that the settings name, unless somebody gave others."""
        from metrics_adapter.watch import door_of, gpus_of

        if settings.door is not None and self._door is None:
            self._door = door = door_of(settings.door)
            self._beside.append(door)
        if settings.gpus is not None and self._gpus is None:
            self._gpus = gpus = gpus_of(settings.gpus)
            self._beside.append(gpus)

    async def __aenter__(self) -> ScrapeSource:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give back the connections."""
        await self._discovery.close()
        for watch in self._beside:
            await watch.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def knocked(self) -> bool:
        """Whether somebody came to the door since the last Observation; not, where there is none or it does not answer."""
        from metrics_adapter.watch import DoorPage

        if isinstance(self._door, DoorPage):
            await self._door.refresh()
        counts, last = None if self._door is None else self._door(), self._last_door
        return counts is not None and last is not None and counts.since(last[1]).requests > 0

    async def backfill(self, since_seconds: int, until_seconds: int) -> Sequence[Observation]:
        """Empty: replicas do not keep their past."""
        return ()

    async def observe(self, at_seconds: int, replicas: Replicas) -> Observation:
        """The pool now; the same instant again is the same Observation.

        Raises SourceUnavailable where nobody says which replicas there are, and MetricMissing where all that answer lack a
        series: then the engine is another one.
        """
        if self._seen is not None and self._last_at == at_seconds:
            return self._seen
        last = self._last_at
        window = self._interval if last is None or at_seconds < last else max(1, at_seconds - last)  # a clock set back
        self._last_at, self._seen = at_seconds, None  # windows follow each other, also over one that fails
        missing: list[MetricMissing] = []
        endpoints, after = await self._look(at_seconds, missing)
        if missing and not after:
            raise missing[0]
        silent = self._silent(endpoints, after, replicas.ready)
        self._seen = assemble(
            self.pool,
            self._last,
            after,
            at_seconds=at_seconds,
            window_seconds=window,
            replicas=replicas,
            slo=self._slo,
            door=self._since_door(at_seconds, window),
            gpus=self._own_gpus(endpoints),
            unready=frozenset(e.name for e in endpoints if e.ready is False),
            silent=silent,
        )
        oldest = at_seconds - self.settings.forget_after_seconds
        self._last = {n: r for n, r in {**self._last, **after}.items() if r.at_seconds >= oldest}
        return self._seen

    def _silent(self, endpoints: Sequence[Endpoint], after: Mapping[str, Reading], ready: int) -> int:
        """Replicas that answered before, are still there, and do not answer now: what they hold is in nobody's numbers.

        A list of URLs goes on naming replicas that were scaled in: as many as fewer are ready are forgotten.
        """
        self._ready, self._leaving = ready, max(0, self._leaving + self._ready - ready)
        silent = sorted(
            e.name for e in endpoints if e.ready is not False and e.name in self._last and e.name not in after
        )
        for gone in silent[: self._leaving]:
            del self._last[gone]
            self._leaving -= 1
        return sum(name in self._last for name in silent)

    async def _look(
        self, at_seconds: int, missing: list[MetricMissing]
    ) -> tuple[Sequence[Endpoint], dict[str, Reading]]:
        """The replicas and their readings, with the door and the GPUs read meanwhile."""
        self.problems, self.readings = {}, {}
        refreshed = asyncio.gather(*(watch.refresh() for watch in self._beside))
        try:
            endpoints = await self._discovery.endpoints()
            self.readings = after = await self._read_all(endpoints, at_seconds, missing)
        finally:
            await refreshed
        self.notes = {where: text for watch in self._beside for where, text in watch.problems.items()}
        return endpoints, after

    def _own_gpus(self, endpoints: Sequence[Endpoint]) -> dict[str, GpuState] | None:
        """Exporters tell of every pod on their nodes: those of this pool's replicas."""
        names = {endpoint.name for endpoint in endpoints}
        return None if self._gpus is None else {name: gpu for name, gpu in self._gpus().items() if name in names}

    def _since_door(self, at_seconds: int, window_seconds: int) -> DoorCounts | None:
        counts = None if self._door is None else self._door()
        if counts is None:
            return None
        before, self._last_door = self._last_door, (at_seconds, counts)
        if before is None:
            return None  # what passed before the first look belongs to no window
        since, gap = counts.since(before[1]), at_seconds - before[0]
        return since if gap <= LONGEST_WINDOWS * window_seconds else _part(since, window_seconds / gap)

    async def _read_all(
        self, endpoints: Sequence[Endpoint], at_seconds: int, missing: list[MetricMissing]
    ) -> dict[str, Reading]:
        start = time.monotonic()
        turns = asyncio.Semaphore(self.settings.concurrency)
        headers = {**HEADERS, **credentials(self.settings.auth)}

        async def one(endpoint: Endpoint) -> Reading | None:
            await asyncio.sleep(self.settings.spread_seconds * place(endpoint.name))
            async with turns:
                try:
                    page = await self._page(endpoint.url, headers)
                    reading = self._reader.read(page, at_seconds + time.monotonic() - start)
                except SourceError as error:
                    self.problems[endpoint.name] = str(error)
                    return None
            lacks = reading.missing(self.engine, endpoint.name)
            if lacks is not None:
                self.problems[endpoint.name] = str(lacks)
                missing.append(lacks)
                return None
            return reading

        found = await asyncio.gather(*(one(endpoint) for endpoint in endpoints))
        return {e.name: r for e, r in zip(endpoints, found, strict=True) if r is not None}

    async def _page(self, url: str, headers: Mapping[str, str]) -> bytes:
        """The whole page.  Raises SourceError with a sentence, whatever the replica does."""
        session = self._session or self._open()
        try:
            async with (
                asyncio.timeout(self.settings.timeout_seconds),
                session.get(url, headers=headers, allow_redirects=False) as response,
            ):
                return await read_page(response, self.settings.max_page_bytes)
        except TimeoutError:
            raise SourceError(f"no whole page within {self.settings.timeout_seconds:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
            raise SourceError(f"no whole page: {short(error)}") from None

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=self.settings.concurrency, ssl=self._tls)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
        return self._session


def _part(counts: DoorCounts, share: float) -> DoorCounts:
    """That share of what passed; what is in the door now is all there."""
    passed = {f.name: getattr(counts, f.name) for f in fields(counts) if f.name not in ("in_flight", "waiting")}
    return replace(counts, **{name: value * share for name, value in passed.items() if value is not None})


def place(name: str) -> float:
    """A replica's own place in [0, 1), always the same, so that its readings stay equally far apart."""
    return zlib.crc32(name.encode()) / 2.0**32


def _check(response: aiohttp.ClientResponse) -> None:
    if 300 <= response.status < 400:
        raise SourceError(f"HTTP {response.status}: a redirect is not followed")
    if response.status != 200:
        raise SourceError(f"HTTP {response.status}")
    kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
    if kind and kind not in ACCEPTED:
        raise PageError(f"the page is {kind[:60]!r}, and not {' or '.join(ACCEPTED)}")
    if (
        "Content-Length" not in response.headers
        and "chunked" not in response.headers.get("Transfer-Encoding", "").lower()
    ):
        raise PageError("the page has neither a length nor chunks: one that is cut short would not be noticed")


async def read_page(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The page of an answer that may be read.  Raises SourceError or PageError with a sentence."""
    _check(response)
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", "x-gzip"):
        raise PageError(f"the page is compressed by {coding[:40]!r}, which was not asked for")
    try:
        page, behind = await read_bounded(response, most, gzip=coding != "identity")
    except OverflowError:
        raise PageError(f"the page is larger than {most} bytes (max_page_bytes)") from None
    except EOFError:
        raise PageError("the compressed page is cut short") from None
    if behind:
        raise PageError("the compressed page is cut short")
    return page
