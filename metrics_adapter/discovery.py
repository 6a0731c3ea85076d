"""Where a pool's replicas are: a list by hand, the addresses of a name, or Kubernetes' EndpointSlices."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from autoscaler.errors import ConfigError, SourceError, SourceUnavailable
from autoscaler.scrape_settings import EndpointSliceSettings, ScrapeSettings
from autoscaler.source_settings import AuthSettings
from metrics_adapter.transport import context_of, credentials
from serving.kubernetes import Kubernetes, KubernetesError
from serving.kubernetes_access import ACCOUNT, Access, ServiceAccount

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
        self._scrape, self._settings, self._clock = scrape, settings, clock
        self.access: Access = (
            ServiceAccount(environment=environment, account=account)
            if settings.api_url is None
            else ApiUrl(settings.api_url, settings.auth)
        )
        self._cluster = Kubernetes(self.access, timeout_seconds=API_TIMEOUT_SECONDS)
        self._list: list[Endpoint] | None = None
        self._listed_at = 0.0

    async def endpoints(self) -> Sequence[Endpoint]:
        """The replicas as of the last `refresh_seconds`."""
        now = self._clock()
        if self._list is not None and now - self._listed_at < self._settings.refresh_seconds:
            return self._list
        error: SourceError
        try:
            slices = await self._slices()
            self._list, self._listed_at = endpoints_of(slices, self._scrape, self._settings.port_name), now
            return self._list
        except SourceError as failure:
            error = failure
        except KubernetesError as failure:
            kind = SourceUnavailable if failure.status is None else SourceError
            error = kind(f"EndpointSlices: {failure}")
        if self._list is not None and now - self._listed_at <= self._settings.stale_after_seconds:
            return self._list
        raise error

    async def _slices(self) -> list[Any]:
        settings = self._settings
        try:
            await self.access.load()
        except ConfigError:
            raise SourceError("EndpointSlices: this is no pod of a cluster: set endpoints.api_url") from None
        namespace = settings.namespace or self.access.namespace
        if namespace is None:
            raise SourceError("EndpointSlices: our own namespace is not known: set endpoints.namespace")
        selector = settings.selector or f"kubernetes.io/service-name={settings.service}"
        return await self._cluster.endpoint_slices(namespace, selector)

    async def close(self) -> None:
        """Give back the connections."""
        await self._cluster.close()


class ApiUrl:
    """An API server that the settings name, and who we are to it."""

    namespace: str | None = None

    def __init__(self, url: str, auth: AuthSettings) -> None:
        self.url, self._auth = url.rstrip("/"), auth

    async def load(self) -> None:
        """Nothing is kept."""

    def headers(self) -> dict[str, str]:
        """Credentials out of their files as they are now."""
        return credentials(self._auth)

    def tls(self) -> ssl.SSLContext | None:
        """Out of the files as they are now."""
        try:
            return context_of(self._auth) if self.url.startswith("https") else None
        except OSError as error:
            text = error.strerror or str(error)
            raise KubernetesError(f"the API server's certificate files cannot be read: {text}") from None

    def options(self) -> dict[str, Any]:
        """None."""
        return {}


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
