"""One API server over HTTP: requests, lists page by page, and watches that live through whatever happens to them.

Plain aiohttp and parsed JSON, as of the dozen paths that are asked for none needs a generated class: the client package
is 126 MB and 55 MB of memory, keeps the certificates it began with, and is not needed in a cluster at all.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

from serving.kubernetes_access import Access, KubernetesError

logger = logging.getLogger("autoscaler.kubernetes")

Json = dict[str, Any]
TIMEOUT_SECONDS = 5.0
PAGE_ITEMS = 500
MOST_ANSWER_BYTES = 64_000_000
WATCH_SECONDS = 120  # a watch is asked for anew after so long: a connection that died silently is noticed by then
LEAST_WAIT_SECONDS = 0.5  # between two watches, however short a proxy makes them
MOST_WAIT_SECONDS = 30.0
NO_LIMIT = aiohttp.ClientTimeout()  # whoever sends sets its own
MERGE_PATCH = "application/merge-patch+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a watch saw of one object: `kind` is ADDED, MODIFIED or DELETED."""

    kind: str
    object: Json


class Api:
    """Requests to one API server.  Raises KubernetesError with the server's own sentence."""

    def __init__(self, access: Access, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.access, self.timeout_seconds = access, timeout_seconds
        self._session: aiohttp.ClientSession | None = None
        self._loaded = False

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give back the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, path: str, **query: str) -> Json:
        """The object at `path`."""
        return await self.request("GET", path, query)

    async def create(self, path: str, body: Json) -> Json:
        """POST `body` to a collection; the answer."""
        return await self.request("POST", path, body=body)

    async def update(self, path: str, body: Json) -> Json:
        """Replace an object; with a resourceVersion in it only if nobody wrote meanwhile."""
        return await self.request("PUT", path, body=body)

    async def patch(self, path: str, body: Json, content_type: str = MERGE_PATCH) -> Json:
        """Merge `body` into an object."""
        return await self.request("PATCH", path, body=body, content_type=content_type)

    async def items(self, path: str, **query: str) -> tuple[list[Json], str]:
        """(all items of a list, its resourceVersion), page by page.  An expired continuation begins anew, once."""
        try:
            return await self._pages(path, query)
        except KubernetesError as error:
            if error.status != 410:
                raise
        return await self._pages(path, query)

    async def _pages(self, path: str, query: Mapping[str, str]) -> tuple[list[Json], str]:
        found: list[Json] = []
        asked = {"limit": str(PAGE_ITEMS), **query}
        while True:
            page = await self.request("GET", path, asked)
            if not isinstance(page.get("items"), list):
                raise KubernetesError(f"{path}: the API server's answer is no list")
            found += page["items"]
            meta = page.get("metadata") or {}
            if not meta.get("continue"):
                return found, str(meta.get("resourceVersion", ""))
            asked = {**asked, "continue": str(meta["continue"])}

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """One request and its JSON answer.  An answer 401 makes the credentials be read anew, once."""
        try:
            return await self._request(method, path, query, body, content_type)
        except KubernetesError as error:
            if error.status != 401:
                raise
        self._loaded = False
        await self.close()
        return await self._request(method, path, query, body, content_type)

    async def _request(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Json | None, content_type: str
    ) -> Json:
        data = None if body is None else json.dumps(body)
        try:
            async with (
                asyncio.timeout(self.timeout_seconds),
                await self._send(method, path, query, data, content_type) as response,
            ):
                return _answer(path, response, await _bounded(response))
        except TimeoutError:
            raise KubernetesError(f"{path}: the API server gave no answer within {self.timeout_seconds:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            await self._distrust(error)
            raise KubernetesError(f"{path}: the API server cannot be asked: {_short(error)}") from None

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        data: str | None,
        content_type: str,
        patience: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        session = await self._open()
        headers = {"Accept": "application/json", "User-Agent": "replicast", **self.access.headers()}
        if data is not None:
            headers["Content-Type"] = content_type
        return await session.request(
            method, self.access.url + path, params=query, data=data, headers=headers, allow_redirects=False,
            timeout=patience or NO_LIMIT, **self.access.options(),
        )  # fmt: skip

    async def _open(self) -> aiohttp.ClientSession:
        if not self._loaded:
            await self.access.load()
            self._loaded = True
        if self._session is None:
            context = self.access.tls()
            connector = aiohttp.TCPConnector(limit=32, ssl=True if context is None else context)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=1 << 21
            )  # fmt: skip
        return self._session

    async def _distrust(self, error: Exception) -> None:
        """After a TLS failure the certificates are read anew with the next request."""
        if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
            self._loaded = False
            await self.close()

    async def watch(self, path: str, **query: str) -> AsyncGenerator[list[Json] | Change]:
        """The whole list, then each change; the whole list again whenever changes may have been missed.  Never ends.

        While the API server fails it is asked again after 1, 2, ... 30 s, and the log says so once.
        """
        failures, said = 0, ""
        while True:
            try:
                found, version = await self.items(path, **query)
                failures, said = 0, ""
                yield found
                async with aclosing(self._changes(path, query, version)) as changes:
                    async for change in changes:
                        yield change
            except KubernetesError as error:
                failures += 1
                if str(error) != said and error.status != 410:  # 410: what was missed is too old, the list tells it
                    said = str(error)
                    logger.warning("watch of %s: %s", path, error)
                await asyncio.sleep(min(MOST_WAIT_SECONDS, 2.0 ** min(10, failures - 1)))

    async def _changes(self, path: str, query: Mapping[str, str], version: str) -> AsyncGenerator[Change]:
        while True:
            asked = {
                **query, "watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true",
                "timeoutSeconds": str(WATCH_SECONDS),
            }  # fmt: skip
            async with aclosing(self._events(path, asked)) as events:
                async for change in events:
                    version = str((change.object.get("metadata") or {}).get("resourceVersion") or version)
                    if change.kind != "BOOKMARK":
                        yield change
            await asyncio.sleep(LEAST_WAIT_SECONDS)

    async def _events(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[Change]:
        # Limits on silence, not `asyncio.timeout`: that would fire in whoever reads from this generator.
        patience = aiohttp.ClientTimeout(
            sock_connect=self.timeout_seconds, sock_read=WATCH_SECONDS + self.timeout_seconds
        )
        try:
            async with await self._send("GET", path, query, None, "", patience) as response:
                if response.status != 200:
                    _answer(path, response, await _bounded(response))
                async for line in response.content:
                    yield _event(path, line)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            await self._distrust(error)
            raise KubernetesError(f"{path}: the watch broke: {_short(error)}") from None


def _event(path: str, line: bytes) -> Change:
    data = json.loads(line)
    if not isinstance(data, dict) or not isinstance(data.get("object"), dict):
        raise KubernetesError(f"{path}: the API server sent no event")
    if data.get("type") == "ERROR":
        said = data["object"]
        raise KubernetesError(
            f"{path}: {said.get('message', 'the watch failed')}", status=said.get("code"), reason=said.get("reason", "")
        )
    return Change(kind=str(data.get("type")), object=data["object"])


def _answer(path: str, response: aiohttp.ClientResponse, body: bytes) -> Json:
    try:
        data = json.loads(body)
    except ValueError:
        data = None
    if 200 <= response.status < 300:
        if isinstance(data, dict):
            return data
        raise KubernetesError(f"{path}: the API server's answer is no object", status=response.status)
    said = data if isinstance(data, dict) else {}
    message = " ".join(str(said.get("message") or "no reason is given").split())[:300]
    raise KubernetesError(
        f"{path}: HTTP {response.status} of the API server: {message}",
        status=response.status,
        reason=str(said.get("reason") or ""),
    )


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(1 << 16):
        size += len(chunk)
        if size > MOST_ANSWER_BYTES:
            raise KubernetesError(f"the API server's answer is larger than {MOST_ANSWER_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
