"""Finding replicas: by hand, by name, and by EndpointSlices of a small fake API server over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web
from metrics_pages import Handler, serving

from autoscaler.errors import ConfigError, SourceError, SourceUnavailable
from autoscaler.schema import build
from autoscaler.scrape_settings import ScrapeSettings
from metrics_adapter.discovery import Addresses, Endpoint, EndpointSlices, Listed, discovery_of, endpoints_of

T = TypeVar("T")
PATH = "apis/discovery.k8s.io/v1/namespaces/llm/endpointslices"


def run(story: Callable[[], Awaitable[T]]) -> T:
    return asyncio.run(story())  # type: ignore[arg-type]


def one(name: str, address: str, *, ready: bool | None = True) -> dict[str, Any]:
    conditions = {} if ready is None else {"ready": ready, "serving": ready, "terminating": False}
    return {"addresses": [address], "conditions": conditions, "targetRef": {"kind": "Pod", "name": name}}


def slice_of(*endpoints: dict[str, Any], family: str = "IPv4", ports: Any = None) -> dict[str, Any]:
    named = [{"name": "http", "port": 8000, "protocol": "TCP"}] if ports is None else ports
    return {"addressType": family, "endpoints": list(endpoints), "ports": named}


def listing(*pages: list[Any]) -> Handler:
    """An API server's list in pages; it wants the label of the Service and a bearer token."""

    async def handle(request: web.Request) -> web.Response:
        assert request.query["labelSelector"] == "kubernetes.io/service-name=chat"
        if request.headers.get("Authorization") != "Bearer secret":
            return web.json_response({"kind": "Status", "message": "Unauthorized"}, status=401)
        page = int(request.query.get("continue", "0"))
        more = {"continue": str(page + 1)} if page + 1 < len(pages) else {}
        return web.json_response({"kind": "EndpointSliceList", "metadata": more, "items": pages[page]})

    return handle


def slices(host: str, token: Path, **more: Any) -> EndpointSlices:
    endpoints = {
        "namespace": "llm", "service": "chat", "api_url": f"http://{host}", "refresh_seconds": 0,
        "auth": {"bearer_token_file": str(token)}, **more,
    }  # fmt: skip
    found = discovery_of(build(ScrapeSettings, {"endpoints": endpoints}))
    assert isinstance(found, EndpointSlices)
    return found


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("secret\n")
    return path


def test_endpoints_of_all_pages_with_their_readiness(token: Path) -> None:
    pages = [
        [slice_of(one("chat-b", "10.0.0.2"), one("chat-a", "10.0.0.1"))],
        [slice_of(one("chat-c", "10.0.0.3", ready=False), one("chat-d", "10.0.0.4", ready=None))],
    ]

    async def story() -> list[Endpoint]:
        async with serving(**{PATH: listing(*pages)}) as host:
            found = slices(host, token)
            try:
                return list(await found.endpoints())
            finally:
                await found.close()

    assert run(story) == [
        Endpoint(name="chat-a", url="http://10.0.0.1:8000/metrics", ready=True),
        Endpoint(name="chat-b", url="http://10.0.0.2:8000/metrics", ready=True),
        Endpoint(name="chat-c", url="http://10.0.0.3:8000/metrics", ready=False),
        Endpoint(name="chat-d", url="http://10.0.0.4:8000/metrics", ready=True),
    ]


def test_an_api_server_that_is_away_is_believed_for_a_while(token: Path) -> None:
    now = 0.0

    async def story() -> None:
        nonlocal now
        async with serving(**{PATH: listing([slice_of(one("chat-a", "10.0.0.1"))])}) as host:
            found = slices(host, token, stale_after_seconds=60)
            found._clock = lambda: now
            before = await found.endpoints()
        now = 59.0
        assert await found.endpoints() == before
        now = 61.0
        with pytest.raises(SourceUnavailable, match="EndpointSlices: .*the API server cannot be asked"):
            await found.endpoints()
        await found.close()

    run(story)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (
            {"kind": "Status", "message": 'endpointslices is forbidden: User "x" cannot list'},
            403,
            "HTTP 403 .* cannot list",
        ),
        ({"items": 3}, 200, "the API server's answer is no list"),
        ("nothing", 200, "the API server's answer is no object"),
    ],
)
def test_what_the_api_server_refuses_is_said(token: Path, body: Any, status: int, words: str) -> None:
    async def handle(_: web.Request) -> web.Response:
        return (
            web.Response(text=body, status=status) if isinstance(body, str) else web.json_response(body, status=status)
        )

    async def story() -> None:
        async with serving(**{PATH: handle}) as host:
            found = slices(host, token)
            try:
                with pytest.raises(SourceError, match=words):
                    await found.endpoints()
            finally:
                await found.close()

    run(story)


def test_within_a_pod_the_account_says_who_where_and_which_namespace(tmp_path: Path) -> None:
    settings = build(ScrapeSettings, {"endpoints": {"service": "chat"}})
    assert settings.endpoints is not None
    (tmp_path / "token").write_text("t")
    (tmp_path / "namespace").write_text("llm\n")
    found = EndpointSlices(
        settings, settings.endpoints, account=tmp_path, environment={"KUBERNETES_SERVICE_HOST": "fd00::1"}
    )
    with pytest.raises(SourceError, match=r"ca\.crt: cannot be read: No such file or directory"):
        run(found.endpoints)
    assert (found.access.namespace, found.access.url) == ("llm", "https://[fd00::1]:443")
    assert found.access.headers() == {"Authorization": "Bearer t"}
    outside = EndpointSlices(settings, settings.endpoints, account=tmp_path, environment={})
    with pytest.raises(SourceError, match=r"no pod of a cluster: set endpoints\.api_url"):
        run(outside.endpoints)


def test_one_pod_in_many_slices_is_one_replica() -> None:
    settings = build(ScrapeSettings, {"endpoints": {"service": "chat"}})
    found = endpoints_of(
        [
            slice_of(one("a", "fd00::7"), family="IPv6"),
            slice_of(one("a", "10.0.0.1", ready=False)),
            slice_of(one("a", "10.0.0.1")),
            slice_of(one("six", "fd00::8"), family="IPv6"),
        ],
        settings,
        None,
    )
    assert found == [
        Endpoint(name="a", url="http://10.0.0.1:8000/metrics", ready=True),
        Endpoint(name="six", url="http://[fd00::8]:8000/metrics", ready=True),
    ]


def test_ports_by_name_the_only_one_or_the_settings() -> None:
    settings = build(ScrapeSettings, {"port": 9000, "endpoints": {"service": "chat"}})
    two = [{"name": "http", "port": 8000}, {"name": "metrics", "port": 8001}]

    def port(ports: Any, name: str | None) -> list[str]:
        found = endpoints_of([slice_of(one("a", "10.0.0.1"), ports=ports)], settings, name)
        return [e.url.split(":")[2].split("/")[0] for e in found]

    assert port(two, "metrics") == ["8001"]
    assert port(two, "grpc") == []
    assert port(two, None) == ["9000"]
    assert port(two[:1], None) == ["8000"]
    assert port([], None) == ["9000"]


@pytest.mark.parametrize(
    "junk",
    [
        None,
        3,
        {},
        {"endpoints": [None, 3, {}, {"addresses": []}, {"addresses": [7]}, {"addresses": ["a b/../x"]}], "ports": [1]},
    ],
)
def test_slices_that_are_none_make_no_endpoint(junk: Any) -> None:
    settings = build(ScrapeSettings, {"endpoints": {"service": "chat"}})
    assert endpoints_of([junk], settings, None) == []


def test_targets_by_hand() -> None:
    targets = ["10.0.0.1:8001", "host", "https://h/v1/metrics?a=b", "[fd00::1]:7000"]
    found = run(Listed(build(ScrapeSettings, {"targets": targets})).endpoints)
    assert [e.url for e in found] == [
        "http://10.0.0.1:8001/metrics",
        "http://host:8000/metrics",
        "https://h:443/v1/metrics?a=b",
        "http://[fd00::1]:7000/metrics",
    ]


def test_names_resolve_to_one_replica_per_address_and_no_address_is_no_replica() -> None:
    found = run(Addresses(build(ScrapeSettings, {"dns": "localhost", "port": 8123})).endpoints)
    assert "http://127.0.0.1:8123/metrics" in [e.url for e in found]
    nobody = Addresses(build(ScrapeSettings, {"dns": "a..b"}))
    with pytest.raises(SourceUnavailable, match=r"a\.\.b: "):
        run(nobody.endpoints)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "targets: none is given: exactly one of targets, dns, endpoints"),
        ({"targets": ["a"], "dns": "b"}, "targets: targets and dns are given"),
        ({"targets": ["a", "a"]}, "targets: must not name a replica twice"),
        ({"targets": ["http://u:p@a"]}, "targets[0]: "),
        ({"targets": ["ftp://a"]}, "targets[0]: "),
        ({"targets": ["a:99999"]}, "targets[0]: "),
        ({"targets": ["a"], "path": "metrics"}, "path: 'metrics' must begin with /"),
        ({"endpoints": {}}, "endpoints.service: must be given, or selector instead"),
        ({"endpoints": {"service": "a", "api_url": "x"}}, "endpoints.api_url: 'x' must be a URL"),
        ({"targets": ["a"], "timeout_seconds": 0}, "timeout_seconds: 0.0 must be in (0, 60]"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(ScrapeSettings, settings)
    assert words in str(refused.value)
