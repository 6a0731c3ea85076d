"""KEDA's protocol over a real gRPC channel, decoded as a client of the published field numbers would."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from steps import step

from autoscaler import Pool
from autoscaler.errors import ConfigError
from metrics_adapter import serve_command
from metrics_adapter.board import Board

grpc = pytest.importorskip("grpc")
m = pytest.importorskip("metrics_adapter.keda_messages")

from metrics_adapter.keda import KedaServer, KedaTls, UnknownPool, pool_of  # noqa: E402

AT = 1_000_000


class World:
    def __init__(self) -> None:
        self.now = float(AT)
        pools = [
            Pool.from_config({"name": "chat", "target": {"namespace": "llm", "name": "chat-deployment"}}).settings,
            Pool.from_config({"name": "free"}).settings,
        ]
        self.board = Board(pools, now=lambda: self.now)
        self.server = KedaServer(self.board, port=0, host="127.0.0.1")
        self.channel: Any = None

    def wants(self, replicas: int, pool: str = "chat") -> None:
        self.now += 1
        self.board.post(step(pool, int(self.now), replicas))

    async def call(self, method: str, request: Any, answer: Any) -> Any:
        ask = self.channel.unary_unary(
            f"/externalscaler.ExternalScaler/{method}", request.__class__.SerializeToString, answer.FromString
        )
        return await asyncio.wait_for(ask(request), 5)

    async def active(self, ref: Any) -> bool:
        return bool((await self.call("IsActive", ref, m.IsActiveResponse)).result)

    async def value(self, ref: Any, metric: str = "desired_replicas") -> Any:
        asked = m.GetMetricsRequest(scaledObjectRef=ref, metricName=metric)
        return (await self.call("GetMetrics", asked, m.GetMetricsResponse)).metricValues

    def stream(self, ref: Any) -> Any:
        ask = self.channel.unary_stream(
            "/externalscaler.ExternalScaler/StreamIsActive",
            m.ScaledObjectRef.SerializeToString,
            m.IsActiveResponse.FromString,
        )
        return ask(ref)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    w = World()
    async with w.server, grpc.aio.insecure_channel(f"127.0.0.1:{w.server.port}") as w.channel:
        yield w


def story(tell: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        async with world() as w:
            await tell(w)

    asyncio.run(run())


def ref(name: str = "so", namespace: str = "llm", **metadata: str) -> Any:
    return m.ScaledObjectRef(name=name, namespace=namespace, scalerMetadata=metadata)


CHAT = ref(pool="chat", scalerAddress="autoscaler:9090")


def test_the_wire_is_that_of_the_published_protocol() -> None:
    """Bytes put together by hand from the numbers and types of externalscaler.proto."""
    value = m.MetricValue(metricName="d", metricValue=3, metricValueFloat=3.0)
    assert value.SerializeToString() == b"\x0a\x01d\x10\x03\x19" + b"\x00\x00\x00\x00\x00\x00\x08@"
    spec = m.MetricSpec(metricName="d", targetSize=1, targetSizeFloat=1.0)
    assert spec.SerializeToString() == b"\x0a\x01d\x10\x01\x19" + b"\x00\x00\x00\x00\x00\x00\xf0?"
    asked = m.ScaledObjectRef.FromString(b"\x0a\x02so\x12\x03llm\x1a\x0c\x0a\x04pool\x12\x04chat")
    assert (asked.name, asked.namespace, dict(asked.scalerMetadata)) == ("so", "llm", {"pool": "chat"})
    assert m.GetMetricsRequest.FromString(b"\x0a\x04\x0a\x02so\x12\x01d").scaledObjectRef.name == "so"
    assert m.IsActiveResponse(result=True).SerializeToString() == b"\x08\x01"


def test_the_wanted_count_comes_in_both_fields_with_target_one() -> None:
    async def tell(w: World) -> None:
        w.wants(7)
        spec = (await w.call("GetMetricSpec", CHAT, m.GetMetricSpecResponse)).metricSpecs
        assert [(s.metricName, s.targetSize, s.targetSizeFloat) for s in spec] == [("desired_replicas", 1, 1.0)]
        for metric in ("desired_replicas", "s0-desired_replicas"):
            (value,) = await w.value(CHAT, metric)
            assert (value.metricName, value.metricValue, value.metricValueFloat) == (metric, 7, 7.0)
        assert await w.active(CHAT)

    story(tell)


def test_zero_is_zero_in_both_fields_and_inactive() -> None:
    async def tell(w: World) -> None:
        w.wants(0)
        (value,) = await w.value(CHAT)
        assert (value.metricValue, value.metricValueFloat) == (0, 0.0)
        assert not await w.active(CHAT)

    story(tell)


def test_what_is_not_known_is_unavailable_in_value_and_activity_alike() -> None:
    async def tell(w: World) -> None:
        for says in ("not observed yet", "last step is 94 s old"):
            for ask in (w.value, w.active):
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await ask(CHAT)
                assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
                assert says in str(failed.value.details())
            assert (
                await w.call("GetMetricSpec", CHAT, m.GetMetricSpecResponse)
            ).metricSpecs  # KEDA makes the HPA of it
            w.wants(0)
            w.now += 94

    story(tell)


def test_whom_nobody_knows_is_not_found() -> None:
    async def tell(w: World) -> None:
        w.wants(1)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await w.active(ref(pool="chta"))
        assert failed.value.code() == grpc.StatusCode.NOT_FOUND
        assert failed.value.details() == "pool 'chta' must be one of chat, free"
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await w.value(CHAT, "queue")
        assert failed.value.code() == grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await anext(aiter(w.stream(ref(name="nobody"))))
        assert failed.value.code() == grpc.StatusCode.NOT_FOUND

    story(tell)


@pytest.mark.parametrize(
    ("namespace", "name", "metadata", "found"),
    [
        ("x", "y", {"pool": "chat"}, "chat"),
        ("llm", "chat-deployment", {}, "chat"),  # what both scale
        ("llm", "chat", {}, "chat"),  # its name, in its namespace
        ("other", "chat", {}, None),
        ("anywhere", "free", {}, "free"),
        ("llm", "nobody", {}, None),
        ("llm", "chat", {"pool": ""}, None),
    ],
)
def test_which_pool_a_scaled_object_means(
    namespace: str, name: str, metadata: dict[str, str], found: str | None
) -> None:
    pools = World().board.pools
    if found is None:
        with pytest.raises(UnknownPool):
            pool_of(pools, namespace, name, metadata)
    else:
        assert pool_of(pools, namespace, name, metadata) == found


def test_two_pools_of_one_target_must_be_told_apart() -> None:
    target = {"namespace": "llm", "name": "d"}
    pools = {n: Pool.from_config({"name": n, "target": target}).settings for n in ("a", "b")}
    with pytest.raises(UnknownPool, match="2 pools scale llm/d: the trigger's metadata must name one"):
        pool_of(pools, "llm", "d", {})


def test_a_stream_tells_the_state_at_once_each_change_and_nothing_else() -> None:
    async def tell(w: World) -> None:
        w.wants(0)
        stream = aiter(w.stream(CHAT))
        assert (await asyncio.wait_for(anext(stream), 5)).result is False
        w.wants(0)
        w.wants(5, pool="free")
        await asyncio.sleep(0.05)
        w.wants(3)
        assert (await asyncio.wait_for(anext(stream), 5)).result is True
        w.wants(4)
        await asyncio.sleep(0.05)
        w.wants(0)
        assert (await asyncio.wait_for(anext(stream), 5)).result is False

    story(tell)


def test_a_stream_says_nothing_while_nothing_is_known() -> None:
    async def tell(w: World) -> None:
        stream = aiter(w.stream(CHAT))
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        assert not first.done()
        w.wants(2)
        assert (await asyncio.wait_for(first, 5)).result is True

    story(tell)


def test_streams_end_well_when_we_stop() -> None:
    async def tell(w: World) -> None:
        w.wants(1)
        calls = [w.stream(CHAT), w.stream(ref(pool="free"))]  # the second one never had anything to say
        assert (await asyncio.wait_for(calls[0].read(), 5)).result
        second = asyncio.ensure_future(calls[1].read())
        await asyncio.sleep(0.1)
        await w.server.stop()
        assert await calls[0].read() is grpc.aio.EOF
        assert await second is grpc.aio.EOF
        assert [await c.code() for c in calls] == [grpc.StatusCode.OK] * 2

    story(tell)


def test_a_client_that_hangs_up_leaves_nothing_behind() -> None:
    async def tell(w: World) -> None:
        w.wants(1)
        before = len(asyncio.all_tasks())
        calls = [w.stream(CHAT) for _ in range(20)]
        for call in calls:
            await call.read()
        for call in calls:
            call.cancel()
        for _ in range(100):
            if len(asyncio.all_tasks()) <= before + 2:
                break
            await asyncio.sleep(0.02)
        assert len(asyncio.all_tasks()) <= before + 2

    story(tell)


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    key, cert = folder / f"{name}.key", folder / f"{name}.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for certificates")
def test_tls_follows_its_files_and_asks_clients_for_theirs(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "server")
    client_cert, client_key = certificate(tmp_path, "client")
    tls = KedaTls(cert_file=cert, key_file=key, client_ca_file=client_cert)

    async def ask(w: World, server: KedaServer, ca: bytes, *mine: Path) -> bool:
        own = [p.read_bytes() for p in mine] or [None, None]
        credentials = grpc.ssl_channel_credentials(ca, own[1], own[0])
        async with grpc.aio.secure_channel(f"localhost:{server.port}", credentials) as w.channel:
            return await w.active(CHAT)

    async def run() -> None:
        w = World()
        w.wants(1)
        async with KedaServer(w.board, port=0, host="127.0.0.1", tls=tls) as server:
            old = cert.read_bytes()
            assert await ask(w, server, old, client_cert, client_key)
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(w, server, old)
            certificate(tmp_path, "server")  # rotated
            assert await ask(w, server, cert.read_bytes(), client_cert, client_key)
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(w, server, old, client_cert, client_key)

    asyncio.run(run())


def test_a_port_that_is_taken_and_files_that_are_none_are_sentences(tmp_path: Path) -> None:
    async def run() -> None:
        board = World().board
        async with KedaServer(board, port=0, host="127.0.0.1") as first:
            with pytest.raises(ConfigError, match="cannot be listened on"):
                await KedaServer(board, port=first.port, host="127.0.0.1").start()
        tls = KedaTls(cert_file=tmp_path / "no.crt", key_file=tmp_path / "no.key")
        with pytest.raises(ConfigError, match="no.key: cannot be read"):
            await KedaServer(board, port=0, host="127.0.0.1", tls=tls).start()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            "--keda-port 0 --keda-tls-cert-file c",
            "--keda-tls-cert-file: must be given together with --keda-tls-private",
        ),
        ("--keda-tls-cert-file c --keda-tls-private-key-file k", "must be given together with --keda-port"),
        ("--keda-port 0 --keda-client-ca-file a", "must be given together with --keda-tls-cert-file"),
    ],
)
def test_options_that_need_each_other(options: str, says: str) -> None:
    parser = argparse.ArgumentParser()
    serve_command.add_arguments(parser)
    with pytest.raises(ConfigError, match=says):
        serve_command.check(parser.parse_args(["-c", "x", *options.split()]))
