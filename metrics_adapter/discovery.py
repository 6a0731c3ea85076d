"""Where a pool's replicas are: a list by hand, the addresses of a name, or Kubernetes' EndpointSlices.

EndpointSlices are asked for over the API server's HTTP, without a client library: one list, page by page.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import aiohttp

from autoscaler.errors import SourceError, SourceUnavailable
from autoscaler.scrape_settings import EndpointSliceSettings, ScrapeSettings
from autoscaler.source_settings import AuthSettings
from metrics_adapter.transport import context_of, credentials

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PAGE_ENDPOINTS = 500
MOST_SLICES = 10_000
MOST_ANSWER_BYTES = 64_000_000
API_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One replica's page.  `ready`: whether it gets requests; None where nobody says."""

    name: str
    url: str
    ready: bool | None = None


class Discovery(Protocol):
    """Who knows the replicas."""

    async def endpoints(self) -> Sequence[Endpoint]:
        """The replicas now.  Raises SourceError with a sentence."""

    async def close(self) -> None:
        """Give back the connections."""


def discovery_of(settings: ScrapeSettings) -> Discovery:
    """The discovery that `settings` ask for."""
    if settings.endpoints is not None:
        return EndpointSlices(settings, settings.endpoints)
    return Addresses(settings) if settings.dns is not None else Listed(settings)


class Listed:
    """Replicas by hand."""

    def __init__(self, settings: ScrapeSettings) -> None:
        self._endpoints = [_endpoint(settings, target) for target in settings.targets]

    async def endpoints(self) -> Sequence[Endpoint]:
        """Always the same."""
        return self._endpoints

    async def close(self) -> None:
        """Nothing is held."""


def _endpoint(settings: ScrapeSettings, target: str) -> Endpoint:
    """A URL means what URLs mean; host:port takes the rest from the settings."""
    whole = "//" in target
    parts = urlsplit(target if whole else f"{settings.scheme}://{target}")
    port = parts.port or ({"http": 80, "https": 443}[parts.scheme] if whole else settings.port)
    url = url_of(parts.hostname or "", port, parts.scheme, parts.path or settings.path)
    return Endpoint(name=target, url=f"{url}?{parts.query}" if parts.query else url)


def url_of(host: str, port: int, scheme: str, path: str) -> str:
    """A URL, with IPv6 addresses in brackets."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{path}"


class Addresses:
    """The addresses of a name.  Of a headless Service these are the ready replicas."""

    def __init__(self, settings: ScrapeSettings) -> None:
        self._settings, self._host = settings, settings.dns or ""

    async def endpoints(self) -> Sequence[Endpoint]:
        """Asks the resolver each time; a name without addresses is a pool without replicas."""
        s = self._settings
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(API_TIMEOUT_SECONDS):
                found = await loop.getaddrinfo(self._host, s.port, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise SourceUnavailable(
                f"{self._host}: the resolver did not answer within {API_TIMEOUT_SECONDS:g} s"
            ) from None
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                return []
            raise SourceUnavailable(f"{self._host}: {error.strerror or 'cannot be resolved'}") from None
        except (OSError, UnicodeError) as error:
            raise SourceUnavailable(f"{self._host}: cannot be resolved: {error}") from None
        hosts = sorted({str(address[4][0]) for address in found})
        return [Endpoint(name=f"{h}:{s.port}", url=url_of(h, s.port, s.scheme, s.path)) for h in hosts]

    async def close(self) -> None:
        """Nothing is held."""


class EndpointSlices:
    """The endpoints of a Service, asked of the API server; its last list is believed while it does not answer."""

    def __init__(
        self,
        scrape: ScrapeSettings,
        settings: EndpointSliceSettings,
        *,
        environment: Mapping[str, str] | None = None,
        account: Path = ACCOUNT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scrape, self._settings, self._account, self._clock = scrape, settings, account, clock
        self._environment = os.environ if environment is None else environment
        self._session: aiohttp.ClientSession | None = None
        self._list: list[Endpoint] | None = None
        self._listed_at = 0.0

    async def endpoints(self) -> Sequence[Endpoint]:
        """The replicas as of the last `refresh_seconds`."""
        now = self._clock()
        if self._list is not None and now - self._listed_at < self._settings.refresh_seconds:
            return self._list
        error: SourceError
        try:
            async with asyncio.timeout(API_TIMEOUT_SECONDS):
                slices = await self._slices()
            self._list, self._listed_at = endpoints_of(slices, self._scrape, self._settings.port_name), now
            return self._list
        except SourceError as failure:
            error = failure
        except TimeoutError:
            error = SourceUnavailable(f"EndpointSlices: the API server gave no answer within {API_TIMEOUT_SECONDS:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            text = " ".join(str(failure).split()) or type(failure).__name__
            error = SourceUnavailable(f"EndpointSlices: the API server cannot be asked: {text[:200]}")
        if self._list is not None and now - self._listed_at <= self._settings.stale_after_seconds:
            return self._list
        raise error

    async def _slices(self) -> list[Any]:
        base, headers = self._server()
        settings = self._settings
        selector = settings.selector or f"kubernetes.io/service-name={settings.service}"
        path = f"{base}/apis/discovery.k8s.io/v1/namespaces/{quote(self._namespace(), safe='')}/endpointslices"
        session = self._session or self._open()
        slices: list[Any] = []
        query = {"labelSelector": selector, "limit": str(PAGE_ENDPOINTS)}
        while True:
            async with session.get(path, params=query, headers=headers, allow_redirects=False) as response:
                body = await _bounded(response)
            if response.status != 200:
                raise SourceError(f"EndpointSlices: HTTP {response.status} of the API server: {_said(body)}")
            data = json.loads(body)
            if not isinstance(data, dict) or not isinstance(data.get("items"), list):
                raise SourceError("EndpointSlices: the API server's answer is no list")
            slices += data["items"]
            meta = data.get("metadata")
            more = meta.get("continue") if isinstance(meta, dict) else None
            if not more or len(slices) > MOST_SLICES:
                return slices
            query = {**query, "continue": str(more)}

    def _server(self) -> tuple[str, dict[str, str]]:
        """(base URL, headers) of the API server: as set, or as a pod finds it."""
        settings = self._settings
        if settings.api_url is not None:
            return settings.api_url.rstrip("/"), credentials(settings.auth)
        host = self._environment.get("KUBERNETES_SERVICE_HOST")
        port = self._environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise SourceError("EndpointSlices: this is no pod of a cluster: set endpoints.api_url")
        try:
            token = (self._account / "token").read_text().strip()  # it rotates: read anew each time
        except OSError as error:
            raise SourceError(f"{self._account / 'token'}: cannot be read: {error.strerror}") from None
        return url_of(host, int(port), "https", ""), {"Authorization": f"Bearer {token}"}

    def _open(self) -> aiohttp.ClientSession:
        own = self._settings.api_url is None
        try:
            context = context_of(AuthSettings(ca_file=str(self._account / "ca.crt")) if own else self._settings.auth)
        except OSError as error:
            text = error.strerror or str(error)
            raise SourceError(f"EndpointSlices: the API server's certificate files cannot be read: {text}") from None
        connector = aiohttp.TCPConnector(limit=2, ssl=context)
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    def _namespace(self) -> str:
        if self._settings.namespace is not None:
            return self._settings.namespace
        try:
            return (self._account / "namespace").read_text().strip()
        except OSError:
            raise SourceError("EndpointSlices: our own namespace is not known: set endpoints.namespace") from None

    async def close(self) -> None:
        """Give back the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(1 << 16):
        size += len(chunk)
        if size > MOST_ANSWER_BYTES:
            raise SourceError(f"EndpointSlices: the answer is larger than {MOST_ANSWER_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _said(body: bytes) -> str:
    try:
        data = json.loads(body)
    except ValueError:
        return "no reason is given"
    said = data.get("message") if isinstance(data, dict) else None
    return " ".join(str(said).split())[:300] if said else "no reason is given"


def endpoints_of(slices: Sequence[Any], settings: ScrapeSettings, port_name: str | None) -> list[Endpoint]:
    """The replicas in EndpointSlices, each once, by name of the pod.

    One pod may be in several slices: of several Services, and of both address families, of which IPv4 is taken.  An endpoint
    that terminates is left to finish, and is still read.
    """
    found: dict[str, Endpoint] = {}
    for one in sorted(slices, key=lambda s: isinstance(s, dict) and s.get("addressType") == "IPv6"):
        if not isinstance(one, dict):
            continue
        port = _port(one.get("ports"), port_name, settings.port)
        if port is None:
            continue
        for endpoint in one.get("endpoints") or ():
            made = _of(endpoint, port, settings)
            if made is not None:
                known = found.get(made.name)
                if known is None or (made.ready and not known.ready):
                    found[made.name] = made
    return [found[name] for name in sorted(found)]


def _of(endpoint: Any, port: int, settings: ScrapeSettings) -> Endpoint | None:
    if not isinstance(endpoint, dict):
        return None
    addresses = endpoint.get("addresses")
    if not isinstance(addresses, list) or not addresses or not isinstance(addresses[0], str):
        return None
    host = addresses[0]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not all(c.isalnum() or c in "-." for c in host):
            return None
    target = endpoint.get("targetRef")
    name = target.get("name") if isinstance(target, dict) else None
    conditions = endpoint.get("conditions")
    ready = conditions.get("ready") if isinstance(conditions, dict) else None
    return Endpoint(
        name=name if isinstance(name, str) and name else f"{host}:{port}",
        url=url_of(host, port, settings.scheme, settings.path),
        ready=ready is not False,  # the API's own rule: not said is ready
    )


def _port(ports: Any, name: str | None, default: int) -> int | None:
    known = [p for p in ports or () if isinstance(p, dict) and isinstance(p.get("port"), int)]
    if name is not None:
        return next((int(p["port"]) for p in known if p.get("name") == name), None)
    if len(known) == 1:
        return int(known[0]["port"])
    return default
