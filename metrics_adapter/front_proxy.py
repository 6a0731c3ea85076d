"""Who asks, and may they: the aggregation layer's client certificate and headers, else a bearer token; then a review.

    proxy = FrontProxy(certificates)
    asyncio.create_task(proxy.follow(cluster))
    external_metrics(metrics, middlewares=[guard(cluster, proxy, group)])

The headers ``X-Remote-User`` and its kind count only on a connection whose client certificate chains to the requestheader
CA and has an allowed common name; anybody can send them.  Both the CA and the names come from a ConfigMap and are followed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import unquote

from aiohttp import web

from metrics_adapter.certificates import Certificates, TrustingContext, common_name, is_current
from metrics_adapter.external_metrics import HEALTH_PATHS, VERSION, Handler, Refusal, status
from serving.kubernetes import Identity, KubernetesError

logger = logging.getLogger("autoscaler.serve")

NAMESPACE, NAME = "kube-system", "extension-apiserver-authentication"
MASTERS = "system:masters"
DER = 2  # _ssl.ENCODING_DER
REVIEW_SECONDS = 10.0
MOST_REVIEWS = 4096

T = TypeVar("T")


class Reviews(Protocol):
    """What is asked of the cluster; `serving.kubernetes.Kubernetes` is one."""

    async def review_token(self, token: str) -> Identity | None:
        """Whose token this is; None where nobody's."""

    async def may(self, who: Identity, **attributes: str) -> bool:
        """Whether `who` may."""

    def config_map_changes(self, namespace: str, name: str) -> AsyncIterator[dict[str, str] | None]:
        """A ConfigMap's data, now and after each change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHeaders:
    """What the ConfigMap says: the authorities (PEM), allowed common names (none: any), and names of headers."""

    ca_pem: str
    allowed_names: tuple[str, ...] = ()
    username_headers: tuple[str, ...] = ("X-Remote-User",)
    group_headers: tuple[str, ...] = ("X-Remote-Group",)
    extra_prefixes: tuple[str, ...] = ("X-Remote-Extra-",)
    uid_headers: tuple[str, ...] = ("X-Remote-Uid",)

    @classmethod
    def of(cls, data: Mapping[str, str]) -> RequestHeaders | None:
        """Out of the ConfigMap's data; None where the cluster has no front proxy.  Raises ValueError for what is no list."""
        ca_pem = data.get("requestheader-client-ca-file", "")
        if not ca_pem.strip():
            return None
        given = {
            field: _names(data, f"requestheader-{key}")
            for field, key in (
                ("allowed_names", "allowed-names"), ("username_headers", "username-headers"),
                ("group_headers", "group-headers"), ("extra_prefixes", "extra-headers-prefix"),
                ("uid_headers", "uid-headers"),
            )
            if f"requestheader-{key}" in data
        }  # fmt: skip
        return cls(ca_pem=ca_pem, **given)

    def identity(self, headers: Any) -> Identity | None:
        """Whom the proxy says it speaks for; None where it names nobody."""
        username = next((v for name in self.username_headers if (v := headers.get(name))), None)
        if username is None:
            return None
        extra: dict[str, tuple[str, ...]] = {}
        for prefix in self.extra_prefixes:
            for name, value in headers.items():
                if name.lower().startswith(prefix.lower()) and len(name) > len(prefix):
                    key = unquote(name[len(prefix) :].lower())
                    extra[key] = (*extra.get(key, ()), value)
        return Identity(
            username=username,
            uid=next((v for name in self.uid_headers if (v := headers.get(name))), ""),
            groups=tuple(v for name in self.group_headers for v in headers.getall(name, ())),
            extra=extra,
        )


def _names(data: Mapping[str, str], key: str) -> tuple[str, ...]:
    found = json.loads(data[key])
    if not isinstance(found, list) or not all(isinstance(n, str) for n in found):
        raise ValueError(f"{key} must be a JSON array of strings")
    return tuple(found)


class FrontProxy:
    """The front proxy that the cluster names now, if any, and whether a connection is its."""

    def __init__(self, certificates: Certificates | None) -> None:
        self._certificates = certificates
        self._headers: RequestHeaders | None = None

    def take(self, data: Mapping[str, str] | None) -> None:
        """What the ConfigMap holds now; what cannot be read changes nothing, and the log says so."""
        try:
            headers = RequestHeaders.of(data or {})
            if self._certificates is not None:
                self._certificates.trust(None if headers is None else headers.ca_pem)
        except ValueError as error:
            logger.warning("%s/%s cannot be used, what was known before stays: %s", NAMESPACE, NAME, error)
            return
        self._headers = headers

    async def follow(self, cluster: Reviews) -> None:
        """Take each change of the ConfigMap, for ever."""
        async for data in cluster.config_map_changes(NAMESPACE, NAME):
            self.take(data)

    def identity(self, request: web.Request) -> Identity | None:
        """Whom a request is for by its headers; None where it did not come from the front proxy.  Raises Refusal."""
        headers = self._headers
        transport = request.transport
        if headers is None or transport is None or self._certificates is None:
            return None
        certificate = transport.get_extra_info("peercert")
        connection = transport.get_extra_info("ssl_object")
        if not certificate or connection is None:
            return None
        if not self._still_trusted(connection) or not is_current(certificate):
            raise Untrusted
        if headers.allowed_names and common_name(certificate) not in headers.allowed_names:
            return None
        return headers.identity(request.headers)

    def _still_trusted(self, connection: ssl.SSLObject) -> bool:
        """Whether the authority that vouched for the connection is trusted now as well.

        A connection that was made while two were trusted outlives the one that did not vouch for it.
        """
        context = connection.context
        assert self._certificates is not None
        now = self._certificates.authorities
        return isinstance(context, TrustingContext) and (context.authorities <= now or _authority(connection) in now)


def _authority(connection: ssl.SSLObject) -> bytes | None:
    """The authority (DER) at the end of the chain by which a client was let in; None where Python does not tell."""
    inner: Any = getattr(connection, "_sslobj", None)  # SSLObject itself tells it from Python 3.13 on
    chain = inner.get_verified_chain() if hasattr(inner, "get_verified_chain") else None
    return bytes(chain[-1].public_bytes(DER)) if chain else None


class Untrusted(Exception):
    """The connection's client certificate was good once and is no longer: it must be made anew."""


class Cache(Generic[T]):
    """Answers of the cluster, for `seconds`: at most `most` of them, and one question at a time for each key."""

    def __init__(self, seconds: float, now: Callable[[], float], most: int = MOST_REVIEWS) -> None:
        self._seconds, self._now, self._most = seconds, now, most
        self._held: dict[Hashable, tuple[float, T]] = {}
        self._asked: dict[Hashable, asyncio.Future[T]] = {}

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        """What is held, or what `ask` gives.  Raises what `ask` raises, and holds nothing then."""
        held = self._held.get(key)
        if held is not None and self._now() < held[0]:
            return held[1]
        asked = self._asked.get(key)
        if asked is None:
            asked = asyncio.ensure_future(self._ask(key, ask))
            self._asked[key] = asked
            asked.add_done_callback(lambda _: self._asked.pop(key, None))
        # Others wait for the same answer: one who hangs up must not take it from them.
        return await asyncio.shield(asked)

    async def _ask(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        answer = await ask()
        now = self._now()
        if len(self._held) >= self._most:
            self._held = {k: v for k, v in self._held.items() if v[0] > now}
            while len(self._held) >= self._most:
                self._held.pop(next(iter(self._held)))
        self._held[key] = (now + self._seconds, answer)
        return answer


def guard(
    cluster: Reviews,
    proxy: FrontProxy,
    group: str,
    *,
    review_seconds: float = REVIEW_SECONDS,
    now: Callable[[], float] = time.monotonic,
) -> Any:
    """A middleware that lets through who is known and may; 401 and 403 for others, 503 where the cluster cannot be asked."""
    tokens: Cache[Identity | None] = Cache(review_seconds, now)
    allowed: Cache[bool] = Cache(review_seconds, now)

    async def who(request: web.Request) -> Identity:
        found = proxy.identity(request)
        if found is not None:
            return found
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            key = hashlib.sha256(token.strip().encode()).digest()
            found = await tokens.get(key, lambda: cluster.review_token(token.strip()))
        if found is None:
            raise Refusal(401, "Unauthorized: neither the front proxy's client certificate nor a token that is known")
        return found

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in HEALTH_PATHS:
            return await handler(request)
        try:
            identity = await who(request)
            attributes = attributes_of(request, group)
            if MASTERS not in identity.groups:
                key = (_key(identity), tuple(attributes.items()))
                if not await allowed.get(key, lambda: cluster.may(identity, **attributes)):
                    raise Refusal(403, _forbidden(identity, attributes))
        except Untrusted:
            response = status(401, "Unauthorized: the client certificate of this connection is trusted no more")
            response.force_close()
            return response
        except KubernetesError as error:
            raise Refusal(503, f"who asks cannot be checked: {error}") from None
        return await handler(request)

    return check


def attributes_of(request: web.Request, group: str) -> dict[str, str]:
    """What a request asks for, as a SubjectAccessReview spells it: a GET without an object's name is a `list`."""
    namespace, metric = (request.match_info.get(name) for name in ("namespace", "metric"))
    if namespace is not None and metric is not None:
        return {"group": group, "version": VERSION, "resource": metric, "namespace": namespace, "verb": "list"}
    return {"path": request.path, "verb": request.method.lower()}


def _forbidden(who: Identity, attributes: Mapping[str, str]) -> str:
    if "path" in attributes:
        return f"forbidden: User {who.username!r} cannot {attributes['verb']} path {attributes['path']!r}"
    return (
        f"forbidden: User {who.username!r} cannot list resource {attributes['resource']!r} in API group"
        f" {attributes['group']!r} in the namespace {attributes['namespace']!r}"
    )


def _key(who: Identity) -> Hashable:
    return who.username, who.uid, who.groups, tuple(sorted(who.extra.items()))
