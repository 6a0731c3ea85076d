"""The front proxy over real TLS: who is let in, by what, and what rotates while the server goes on."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from authorities import Authority
from served import Served, served

from metrics_adapter.board import Board
from metrics_adapter.certificates import Certificates
from metrics_adapter.external_metrics import GROUP, external_metrics
from metrics_adapter.external_metrics_values import metrics_of
from metrics_adapter.front_proxy import Cache, FrontProxy, RequestHeaders, guard
from serving.kubernetes import Identity, KubernetesError

VALUE = f"/apis/{GROUP}/v1beta1/namespaces/llm/desired_replicas?labelSelector=pool%3Dchat"
DISCOVERY = f"/apis/{GROUP}/v1beta1"
HPA = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"


class FakeCluster:
    """A cluster that knows one token and lets one user at one thing, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Identity, dict[str, str]]] = []
        self.tokens: list[str] = []
        self.down = False
        self.maps: list[dict[str, str] | None] = []

    async def review_token(self, token: str) -> Identity | None:
        self.tokens.append(token)
        if self.down:
            raise KubernetesError("the API server is away")
        return Identity(username=HPA, groups=("system:serviceaccounts",)) if token == "good" else None

    async def may(self, who: Identity, **attributes: str) -> bool:
        self.asked.append((who, attributes))
        if self.down:
            raise KubernetesError("the API server is away")
        if "path" in attributes:
            return attributes["verb"] == "get" and attributes["path"] == DISCOVERY
        return who.username == HPA and attributes["verb"] == "list" and attributes["namespace"] == "llm"

    async def config_map_changes(self, namespace: str, name: str) -> AsyncIterator[dict[str, str] | None]:
        assert (namespace, name) == ("kube-system", "extension-apiserver-authentication")
        for data in self.maps:
            yield data


class World:
    """A server with its certificates, a cluster, a clock, and the front proxy's authority."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.serving, self.front, self.other = Authority("serving"), Authority("front-proxy"), Authority("other")
        self.certificates = Certificates(*self.serving.sign(folder / "serving", "server", server=True))
        self.cluster, self.proxy = FakeCluster(), FrontProxy(self.certificates)
        self.seconds = 0.0
        self.proxy.take(self.config_map(self.front.pem))
        check = guard(self.cluster, self.proxy, GROUP, now=lambda: self.seconds)
        self.application = external_metrics(metrics_of(Board([])), middlewares=[check])
        self.server: Served

    def config_map(self, ca_pem: str, names: str = '["front-proxy-client"]') -> dict[str, str]:
        return {
            "requestheader-client-ca-file": ca_pem,
            "requestheader-allowed-names": names,
            "requestheader-username-headers": '["X-Remote-User"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
            "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
        }

    def take(self, data: dict[str, str] | None) -> None:
        self.server.run(lambda: self.proxy.take(data))

    def client(
        self, by: Authority | None = None, common_name: str = "front-proxy-client"
    ) -> http.client.HTTPSConnection:
        """A connection with a client certificate of `by`."""
        context = ssl.create_default_context(cadata=self.serving.pem)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if by is not None:
            context.load_cert_chain(*by.sign(self.folder / "clients", common_name))
        return http.client.HTTPSConnection("127.0.0.1", self.server.port, context=context, timeout=10)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    with served(made.application, made.certificates.context) as made.server:
        yield made


def get(client: http.client.HTTPSConnection, path: str, **headers: str | list[str]) -> tuple[int, dict[str, Any]]:
    client.putrequest("GET", path)
    for name, value in headers.items():
        for one in value if isinstance(value, list) else [value]:
            client.putheader(name.replace("_", "-"), one)
    client.endheaders()
    answer = client.getresponse()
    body = answer.read()
    return answer.status, json.loads(body) if body.startswith(b"{") else {"text": body.decode()}


def once(client: http.client.HTTPSConnection, path: str = VALUE, **headers: str | list[str]) -> int:
    try:
        return get(client, path, **headers)[0]
    finally:
        client.close()


def cut_off(client: http.client.HTTPSConnection) -> bool:
    """Whether the server hangs up on a client: its alert arrives with, or instead of, the first answer."""
    try:
        once(client, **AS_HPA)
    except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
        return True
    return False


AS_HPA = {"X_Remote_User": HPA, "X_Remote_Group": ["system:serviceaccounts", "system:authenticated"]}


def test_the_front_proxy_speaks_for_a_user_who_is_reviewed_for_list(world: World):
    # There is no pool: 404 is what somebody gets who is let in.
    code = once(world.client(world.front), **AS_HPA, **{"X_Remote_Extra_Scopes.example%2Fa": ["x", "y"]})
    assert code == 404
    who, attributes = world.cluster.asked[0]
    assert (who.username, who.groups) == (HPA, ("system:serviceaccounts", "system:authenticated"))
    assert who.extra == {"scopes.example/a": ("x", "y")}
    assert attributes == {
        "group": GROUP, "version": "v1beta1", "resource": "desired_replicas", "namespace": "llm", "verb": "list",
    }  # fmt: skip


def test_no_certificate_is_401_with_and_without_forged_headers(world: World):
    client = world.client()
    code, body = get(client, VALUE)
    assert (code, body["kind"], body["reason"]) == (401, "Status", "Unauthorized")
    assert get(client, VALUE, **AS_HPA)[0] == 401
    assert get(client, DISCOVERY, X_Remote_User="admin", X_Remote_Group="system:masters")[0] == 401
    assert get(client, "/nothing", **AS_HPA)[0] == 401
    client.close()
    assert not world.cluster.asked


def test_a_certificate_of_the_right_authority_with_a_wrong_name_is_401(world: World):
    assert once(world.client(world.front, "somebody"), **AS_HPA) == 401


def test_an_empty_list_of_names_allows_any(world: World):
    world.take(world.config_map(world.front.pem, "[]"))
    assert once(world.client(world.front, "somebody"), **AS_HPA) == 404


def test_a_certificate_of_another_authority_does_not_get_a_connection(world: World):
    assert cut_off(world.client(world.other))


def test_the_front_proxy_without_a_user_is_401(world: World):
    assert once(world.client(world.front)) == 401


def test_a_denied_review_is_403_and_says_what_is_not_allowed(world: World):
    client = world.client(world.front)
    code, body = get(client, VALUE.replace("/llm/", "/other/"), **AS_HPA)
    assert (code, body["reason"]) == (403, "Forbidden")
    assert "cannot list resource 'desired_replicas'" in body["message"]
    assert get(client, VALUE, X_Remote_User="mallory")[0] == 403
    assert get(client, "/openapi/v2", X_Remote_User="mallory")[0] == 403
    client.close()


def test_masters_and_health_paths_are_not_reviewed(world: World):
    masters = {"X_Remote_User": "system:kube-aggregator", "X_Remote_Group": "system:masters"}
    assert once(world.client(world.front), DISCOVERY, **masters) == 200
    for path in ("/livez", "/readyz", "/healthz"):
        assert once(world.client(), path) == 200
    assert not world.cluster.asked


def test_a_bearer_token_is_reviewed_once_in_ten_seconds(world: World):
    client = world.client()
    for _ in range(3):
        assert get(client, VALUE, Authorization="Bearer good")[0] == 404
    assert get(client, VALUE, Authorization="Bearer bad")[0] == 401
    assert get(client, VALUE, Authorization="Basic good")[0] == 401
    assert world.cluster.tokens == ["good", "bad"]
    assert len(world.cluster.asked) == 1
    world.seconds = 10.5
    assert get(client, VALUE, Authorization="Bearer good")[0] == 404
    assert world.cluster.tokens == ["good", "bad", "good"]
    assert len(world.cluster.asked) == 2
    client.close()


def test_while_the_cluster_cannot_be_asked_it_is_503_with_its_sentence(world: World):
    world.cluster.down = True
    client = world.client()
    code, body = get(client, VALUE, Authorization="Bearer good")
    assert (code, body["message"]) == (503, "who asks cannot be checked: the API server is away")
    world.cluster.down = False
    assert get(client, VALUE, Authorization="Bearer good")[0] == 404, "a failure is not kept"
    client.close()


def test_the_authority_rotates_under_open_connections(world: World):
    new = Authority("front-proxy")  # the same name, as rotations have it
    old_client = world.client(world.front)
    assert get(old_client, VALUE, **AS_HPA)[0] == 404
    world.take(world.config_map(world.front.pem + new.pem))
    assert get(old_client, VALUE, **AS_HPA)[0] == 404, "both are trusted: nobody is disturbed"
    new_client = world.client(new)
    assert get(new_client, VALUE, **AS_HPA)[0] == 404
    world.take(world.config_map(new.pem))
    assert get(new_client, VALUE, **AS_HPA)[0] == 404, "its own authority stays, and so does its connection"
    new_client.close()
    code, body = get(old_client, VALUE, **AS_HPA)
    assert code == 401
    assert "trusted no more" in body["message"]
    old_client.close()
    assert once(world.client(new), **AS_HPA) == 404
    assert cut_off(world.client(world.front))


def test_without_a_front_proxy_in_the_cluster_nobody_is_asked_for_a_certificate(world: World):
    world.take(None)
    assert once(world.client(world.other), **AS_HPA) == 401
    assert once(world.client(), Authorization="Bearer good") == 404
    world.take(world.config_map(world.front.pem))
    assert once(world.client(world.front), **AS_HPA) == 404


def test_each_change_of_the_config_map_is_taken(world: World):
    world.cluster.maps = [None, world.config_map(world.other.pem)]
    asyncio.run_coroutine_threadsafe(world.proxy.follow(world.cluster), world.server.loop).result(10)
    assert once(world.client(world.other), **AS_HPA) == 404
    assert cut_off(world.client(world.front))


def test_a_config_map_that_cannot_be_read_changes_nothing(world: World, caplog: pytest.LogCaptureFixture):
    for data in (world.config_map("no certificate"), world.config_map(world.other.pem, "front-proxy-client")):
        world.take(data)
        assert once(world.client(world.front), **AS_HPA) == 404
    assert caplog.text.count("what was known before stays") == 2


def test_a_certificate_that_ended_meanwhile_is_401(world: World, monkeypatch: pytest.MonkeyPatch):
    client = world.client(world.front)
    assert get(client, VALUE, **AS_HPA)[0] == 404
    monkeypatch.setattr("metrics_adapter.certificates.time.time", lambda: 4e9)
    assert get(client, VALUE, **AS_HPA)[0] == 401
    client.close()


def test_the_serving_certificate_rotates_and_a_half_written_one_does_not(world: World):
    def serial() -> bytes:
        client = world.client()
        client.connect()
        assert isinstance(client.sock, ssl.SSLSocket)
        found = client.sock.getpeercert(binary_form=True)
        client.close()
        assert found is not None
        return found

    before, open_client = serial(), world.client()
    assert get(open_client, "/livez")[0] == 200
    key = world.certificates.key_file.read_bytes()
    world.serving.sign(world.folder / "serving", "server", server=True)
    new_key = world.certificates.key_file.read_bytes()
    world.certificates.key_file.write_bytes(key)  # the certificate is there, its key is not yet
    assert world.server.run(world.certificates.reload) is False
    assert serial() == before
    world.certificates.key_file.write_bytes(new_key)
    assert world.server.run(world.certificates.reload) is True
    assert serial() != before
    assert get(open_client, "/livez")[0] == 200
    open_client.close()
    assert once(world.client(world.front), **AS_HPA) == 404, "the front proxy is known under the new one too"
    world.certificates.key_file.unlink()
    assert world.server.run(world.certificates.reload) is False
    assert once(world.client(), "/livez") == 200


def test_the_config_map_without_lists_takes_the_usual_names():
    found = RequestHeaders.of({"requestheader-client-ca-file": "PEM"})
    assert found is not None
    assert (found.allowed_names, found.username_headers) == ((), ("X-Remote-User",))
    assert RequestHeaders.of({}) is None


def test_concurrent_questions_are_one_and_the_cache_is_bounded():
    async def story() -> None:
        asked = []

        async def ask() -> int:
            asked.append(1)
            await asyncio.sleep(0)
            return len(asked)

        cache: Cache[int] = Cache(10.0, lambda: 0.0, most=3)
        assert await asyncio.gather(*(cache.get("a", ask) for _ in range(5))) == [1] * 5
        for i in range(10):
            await cache.get(i, ask)
        assert len(cache._held) == 3

    asyncio.run(story())


def test_over_plain_http_headers_are_nobodys():
    cluster = FakeCluster()
    check = guard(cluster, FrontProxy(None), GROUP)
    application: web.Application = external_metrics({}, middlewares=[check])
    with served(application) as server:
        client = http.client.HTTPConnection("127.0.0.1", server.port)
        client.request("GET", VALUE, headers={"X-Remote-User": HPA})
        assert client.getresponse().status == 401
        client.close()
