"""KEDA's external scaler (triggers ``external`` and ``external-push``): the wanted count of each pool over gRPC.

    async with KedaServer(board, port=9090):
        ...

An error holds and ``false`` kills: a Step that is too old is UNAVAILABLE, in the value and in the activity.  KEDA ignores
a float <= 0 and reads the integer instead, so both are always filled.  Whatever is asked is answered from the board.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from autoscaler.errors import ConfigError
from autoscaler.settings import PoolSettings
from metrics_adapter.board import Board, Stale

METRIC = "desired_replicas"
TARGET = 1
SERVICE = "externalscaler.ExternalScaler"
GRACE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KedaTls:
    """Files of the server's certificate; with `client_ca_file` clients must show one that it signed.  Read anew on change."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None


class UnknownPool(LookupError):
    """A ScaledObject that means no pool of ours; its text is the answer."""


def pool_of(pools: Mapping[str, PoolSettings], namespace: str, name: str, metadata: Mapping[str, str]) -> str:
    """The pool that a ScaledObject means: by its trigger's ``pool``, else by what both scale, else by its name.

    Raises UnknownPool.
    """
    named = metadata.get("pool")
    if named is not None:
        if named in pools:
            return named
        raise UnknownPool(f"pool {named!r} must be one of {', '.join(sorted(pools))}")
    targets = {n: p.target for n, p in pools.items() if p.target is not None}
    same = [n for n, t in targets.items() if (t.namespace, t.name) == (namespace, name)]
    if len(same) == 1:
        return same[0]
    if not same and name in pools and (name not in targets or targets[name].namespace == namespace):
        return name
    what = f"{len(same)} pools scale" if same else "no pool is or scales"
    raise UnknownPool(f"{what} {namespace}/{name}: the trigger's metadata must name one as `pool`")


class ExternalScaler:
    """The answers.  `board`: read, never written."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End every stream, well: KEDA then dials again at once; after an error it may wait for a minute."""
        self._stopping.set()

    def wanted(self, ref: Any) -> int:
        """The wanted count of the pool that a ScaledObjectRef means.  Raises UnknownPool or Stale."""
        return self.board.fresh(self._pool(ref)).decision.replicas

    def _pool(self, ref: Any) -> str:
        return pool_of(self.board.pools, ref.namespace, ref.name, ref.scalerMetadata)

    async def is_active(self, ref: Any) -> Any:
        """Whether anything is wanted."""
        return _messages().IsActiveResponse(result=self.wanted(ref) > 0)

    async def get_metric_spec(self, ref: Any) -> Any:
        """One metric, one a replica; also before the first Step, as KEDA makes the HPA of it."""
        self._pool(ref)
        spec = _messages().MetricSpec(metricName=METRIC, targetSize=TARGET, targetSizeFloat=float(TARGET))
        return _messages().GetMetricSpecResponse(metricSpecs=[spec])

    async def get_metrics(self, request: Any) -> Any:
        """The wanted count."""
        if re.sub(r"^s\d+-", "", request.metricName) != METRIC:
            raise UnknownPool(f"metric {request.metricName!r} must be {METRIC}")
        count = self.wanted(request.scaledObjectRef)
        value = _messages().MetricValue(metricName=request.metricName, metricValue=count, metricValueFloat=float(count))
        return _messages().GetMetricsResponse(metricValues=[value])

    async def stream_is_active(self, ref: Any) -> AsyncIterator[Any]:
        """The activity at once and whenever it changes; nothing while it is not known.  Ends when we stop."""
        pool = self._pool(ref)
        changes, told = self.board.changes(), None
        stopping = asyncio.ensure_future(self._stopping.wait())
        changed = asyncio.ensure_future(_until(changes, pool))
        try:
            while not self._stopping.is_set():
                with suppress(Stale):
                    active = self.board.fresh(pool).decision.replicas > 0
                    if active is not told:
                        told = active
                        yield _messages().IsActiveResponse(result=active)
                await asyncio.wait((changed, stopping), return_when=asyncio.FIRST_COMPLETED)
                if changed.done():
                    changed = asyncio.ensure_future(_until(changes, pool))
        finally:
            changed.cancel()
            stopping.cancel()


async def _until(changes: AsyncIterator[str], pool: str) -> None:
    async for name in changes:
        if name == pool:
            return


def _messages() -> Any:
    from metrics_adapter import keda_messages  # protobuf is an extra, loaded by whoever asks for this face

    return keda_messages


class KedaServer:
    """The gRPC server.  `port` 0 takes a free one, told by `port` after the start.  Plain text without `tls`."""

    def __init__(self, board: Board, *, port: int = 9090, host: str = "[::]", tls: KedaTls | None = None) -> None:
        self.scaler = ExternalScaler(board)
        self.host, self.port, self.tls = host, port, tls
        self._server: Any = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen.  Raises ConfigError where the extra is missing, the port is taken or the TLS files are none."""
        try:
            import grpc

            _messages()
        except ImportError:
            raise ConfigError("keda", "needs the extra: pip install 'replicast[keda]'") from None
        # Half-open connections are noticed, as streams say nothing for hours.
        options = (("grpc.keepalive_time_ms", 60_000), ("grpc.keepalive_timeout_ms", 20_000), ("grpc.so_reuseport", 0))
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((_handlers(self.scaler),))
        address = f"{self.host}:{self.port}"
        try:
            if self.tls is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, _credentials(self.tls))
        except RuntimeError as error:
            raise ConfigError("keda.port", f"{address} cannot be listened on: {error}") from None
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """End the streams, answer what is under way, close."""
        self.scaler.stop()
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(GRACE_SECONDS)


def _handlers(scaler: ExternalScaler) -> Any:
    import grpc

    messages = _messages()

    def unary(request: Any, answer: Callable[[Any], Awaitable[Any]]) -> Any:
        async def handle(asked: Any, context: Any) -> Any:
            try:
                return await answer(asked)
            except Stale as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            except UnknownPool as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, str(error))

        return grpc.unary_unary_rpc_method_handler(handle, request.FromString, lambda m: m.SerializeToString())

    async def stream(ref: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for answer in scaler.stream_is_active(ref):
                yield answer
        except UnknownPool as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))

    ref = messages.ScaledObjectRef
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "IsActive": unary(ref, scaler.is_active),
            "GetMetricSpec": unary(ref, scaler.get_metric_spec),
            "GetMetrics": unary(messages.GetMetricsRequest, scaler.get_metrics),
            "StreamIsActive": grpc.unary_stream_rpc_method_handler(
                stream, ref.FromString, lambda m: m.SerializeToString()
            ),
        },
    )


def _credentials(tls: KedaTls) -> Any:
    """Server credentials that follow their files."""
    import grpc

    def read() -> tuple[tuple[bytes, ...], Any]:
        files = [tls.key_file, tls.cert_file, *([tls.client_ca_file] if tls.client_ca_file else [])]
        key, cert, *ca = (f.read_bytes() for f in files)
        pairs = [(key, cert)]
        return (key, cert, *ca), grpc.ssl_server_certificate_configuration(pairs, ca[0] if ca else None)

    try:
        held, first = read()
    except OSError as error:
        raise ConfigError("keda.tls", f"{error.filename}: cannot be read: {error.strerror}") from None

    def fetch() -> Any:
        nonlocal held
        with suppress(OSError):  # in the middle of a rotation: the next connection reads again
            now, made = read()
            if now != held:
                held = now
                return made
        return None  # as before

    return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=bool(tls.client_ca_file))
