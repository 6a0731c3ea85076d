"""The façade over a small API server on HTTP: requests, refusals, rotations, and watches that live through all of it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fake_kubernetes import FakeKubernetes

from autoscaler.errors import ConfigError
from serving.kubernetes import DEPLOYMENT, Identity, Kind, Kubernetes, KubernetesError, kind_named
from serving.kubernetes_access import KubeConfig, Plain, ServiceAccount
from serving.kubernetes_objects import Lease, micro_time, pod_of, unix_seconds

T = TypeVar("T")
CA = "/api/v1/namespaces/kube-system/configmaps/ca"


def story(tell: Callable[[FakeKubernetes, Kubernetes], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        async with FakeKubernetes() as server, Kubernetes(Plain(server.url), **options) as cluster:
            return await asyncio.wait_for(tell(server, cluster), 20)

    return asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_paths_are_quoted_and_the_core_group_has_its_own_root() -> None:
    assert DEPLOYMENT.path("llm", "chat", "scale") == "/apis/apps/v1/namespaces/llm/deployments/chat/scale"
    assert Kind(group="", version="v1", plural="pods").path(None) == "/api/v1/pods"
    assert DEPLOYMENT.path("a/b", "..%").endswith("/namespaces/a%2Fb/deployments/..%25")
    assert kind_named("leaderworkersets.v1.leaderworkerset.x-k8s.io").group == "leaderworkerset.x-k8s.io"
    with pytest.raises(ConfigError, match="must be plural.version.group"):
        kind_named("deployments")


def test_a_refusal_says_what_the_server_said() -> None:
    async def tell(server: FakeKubernetes, cluster: Kubernetes) -> None:
        with pytest.raises(KubernetesError, match="HTTP 404 of the API server: chat not found") as missing:
            await cluster.scale(DEPLOYMENT, "llm", "chat")
        assert missing.value.not_found
        server.refuse["/deployments"] = (403, "deployments.apps is forbidden: User x cannot get")
        with pytest.raises(KubernetesError, match="cannot get") as forbidden:
            await cluster.scale(DEPLOYMENT, "llm", "chat")
        assert (forbidden.value.status, forbidden.value.not_found) == (403, False)

    story(tell)


def test_nobody_there_and_nobody_answering_are_errors_with_a_sentence() -> None:
    async def tell(server: FakeKubernetes, cluster: Kubernetes) -> None:
        server.hang.clear()
        with pytest.raises(KubernetesError, match="no answer within 0.2 s") as late:
            await cluster.config_map("kube-system", "ca")
        assert late.value.status is None
        async with Kubernetes(Plain("http://127.0.0.1:9")) as nobody:
            with pytest.raises(KubernetesError, match="cannot be asked"):
                await nobody.config_map("kube-system", "ca")

    story(tell, timeout_seconds=0.2)


def test_a_scale_is_written_only_over_what_was_read() -> None:
    async def tell(server: FakeKubernetes, cluster: Kubernetes) -> None:
        path = DEPLOYMENT.path("llm", "chat")
        server.put(
            path, {"spec": {"replicas": 2, "selector": {"matchLabels": {"app": "chat"}}}, "status": {"replicas": 3}}
        )
        seen = await cluster.scale(DEPLOYMENT, "llm", "chat")
        assert (seen.replicas, seen.status_replicas, seen.selector) == (2, 3, "app=chat")
        after = await cluster.set_scale(DEPLOYMENT, "llm", "chat", 5, seen.resource_version)
        assert after.replicas == 5
        assert server.objects[path]["spec"]["selector"] == {"matchLabels": {"app": "chat"}}
        with pytest.raises(KubernetesError) as conflict:
            await cluster.set_scale(DEPLOYMENT, "llm", "chat", 7, seen.resource_version)
        assert conflict.value.conflict
        assert server.objects[path]["spec"]["replicas"] == 5

    story(tell)


def test_lists_come_page_by_page() -> None:
    async def tell(server: FakeKubernetes, cluster: Kubernetes) -> None:
        for i in range(1203):
            server.put(
                f"/api/v1/namespaces/llm/pods/p{i:04d}", {"metadata": {"labels": {"app": "a" if i % 2 else "b"}}}
            )
        assert len(await cluster.pods("llm", "app=a")) == 601
        assert len(await cluster.pods("llm", "")) == 1203
        assert server.asked.count(("GET", "/api/v1/namespaces/llm/pods")) == 2 + 3

    story(tell)


def test_reviews_give_an_identity_and_a_yes_or_no() -> None:
    async def tell(server: FakeKubernetes, cluster: Kubernetes) -> None:
        user = {"username": "system:serviceaccount:kube-system:hpa", "uid": "7", "groups": ["g"], "extra": {"e": ["1"]}}
        server.review_token = lambda token: {"authenticated": token == "good", "user": user}
        who = await cluster.review_token("good")
        assert who == Identity(username=str(user["username"]), uid="7", groups=("g",), extra={"e": ("1",)})
        assert await cluster.review_token("bad") is None
        specs: list[dict[str, Any]] = []

        def review(spec: dict[str, Any]) -> dict[str, Any]:
            specs.append(spec)
            return {"allowed": True, "denied": spec.get("nonResourceAttributes") is not None}

        server.review_access = review
        assert await cluster.may(who, group="g", version="v1", resource="m", namespace="n", verb="list")
        assert not await cluster.may(who, path="/openapi/v3", verb="get")
        assert specs[0] == {
            "user": who.username, "groups": ["g"], "uid": "7", "extra": {"e": ["1"]},
            "resourceAttributes": {"group": "g", "version": "v1", "resource": "m", "namespace": "n", "verb": "list"},
        }  # fmt: skip
        assert specs[1]["nonResourceAttributes"] == {"path": "/openapi/v3", "verb": "get"}

    story(tell)


def test_a_config_map_is_followed_through_changes_cuts_compactions_and_refusals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.kubernetes_api.LEAST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr("serving.kubernetes_api.MOST_WAIT_SECONDS", 0.02)

    async def tell(server: FakeKubernetes, cluster: Kubernetes) -> None:
        async with aclosing(cluster.config_map_changes("kube-system", "ca")) as changes:
            assert await anext(changes) is None  # there is none yet
            server.put(CA, {"data": {"k": "1"}})
            assert await anext(changes) == {"k": "1"}
            server.put(CA.replace("/ca", "/other"), {"data": {"k": "no"}})
            waiting = asyncio.ensure_future(anext(changes))
            await until(lambda: server.watches == 1)
            server.cut()
            server.put(CA, {"data": {"k": "2"}})  # while nobody watches, or somebody does again
            assert await waiting == {"k": "2"}
            server.refuse["configmaps"] = (500, "etcd is slow")
            waiting = asyncio.ensure_future(anext(changes))
            await until(lambda: server.watches == 1)
            server.cut()
            server.put(CA, {"data": {"k": "3"}})
            await until(lambda: server.asked.count(("GET", CA.removesuffix("/ca"))) > 5)
            server.refuse.clear()
            assert await waiting == {"k": "3"}
            waiting = asyncio.ensure_future(anext(changes))
            await until(lambda: server.watches == 1)
            server.forget()
            assert await waiting == {"k": "3"}  # the list again, as something may have been missed
            server.delete(CA)
            assert await anext(changes) is None

    story(tell)


def test_hpas_are_held_by_name_as_they_change() -> None:
    async def tell(server: FakeKubernetes, cluster: Kubernetes) -> None:
        path = "/apis/autoscaling/v2/namespaces/llm/horizontalpodautoscalers/chat"
        metric = {"name": "wva_desired_replicas", "selector": {"matchLabels": {"variant_name": "chat"}}}
        spec = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "metrics": [
                {"type": "Resource", "resource": {}},
                {"type": "External", "external": {"metric": metric, "target": {"type": "Value", "value": "1"}}},
            ],
        }
        server.put(path, {"spec": spec, "status": {"currentReplicas": 3}})
        async with aclosing(cluster.watch_hpas()) as changes:
            held = (await anext(changes))["llm", "chat"]
            assert (held.target_kind, held.target_name, held.current_replicas) == ("Deployment", "chat", 3)
            assert [(m.name, m.labels, m.target_type, m.target) for m in held.external] == [
                ("wva_desired_replicas", {"variant_name": "chat"}, "Value", "1")
            ]
            assert await cluster.scalers_of("Deployment", "llm", "chat") == ["HorizontalPodAutoscaler/chat"]
            assert await cluster.scalers_of("StatefulSet", "llm", "chat") == []
            server.put(
                "/apis/keda.sh/v1alpha1/namespaces/llm/scaledobjects/s", {"spec": {"scaleTargetRef": {"name": "chat"}}}
            )
            assert "ScaledObject/s" in await cluster.scalers_of("Deployment", "llm", "chat")
            server.delete(path)
            assert await anext(changes) == {}

    story(tell)


def test_a_lease_is_made_once_and_replaced_only_over_what_was_read() -> None:
    async def tell(server: FakeKubernetes, cluster: Kubernetes) -> None:
        assert await cluster.lease("llm", "leader") is None
        mine = Lease(namespace="llm", name="leader", holder="a", renewed=micro_time(1.5), annotations={"x": "y"})
        first = await cluster.write_lease(mine)
        assert (first.holder, first.renewed, first.annotations) == ("a", "1970-01-01T00:00:01.500000Z", {"x": "y"})
        with pytest.raises(KubernetesError) as late:
            await cluster.write_lease(mine)
        assert late.value.conflict
        assert await cluster.lease("llm", "leader") == first
        again = await cluster.write_lease(first)
        with pytest.raises(KubernetesError) as old:
            await cluster.write_lease(first)
        assert old.value.conflict
        assert again.resource_version != first.resource_version

    story(tell)


def test_a_ca_bundle_is_patched_and_nothing_else() -> None:
    async def tell(server: FakeKubernetes, cluster: Kubernetes) -> None:
        path = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.external.metrics.k8s.io"
        server.put(path, {"spec": {"group": "external.metrics.k8s.io", "service": {"name": "s"}}})
        await cluster.set_ca_bundle("v1beta1.external.metrics.k8s.io", base64.b64encode(b"pem").decode())
        assert server.objects[path]["spec"] == {
            "group": "external.metrics.k8s.io", "service": {"name": "s"}, "caBundle": "cGVt"
        }  # fmt: skip

    story(tell)


def test_a_rotated_token_is_used_at_once_and_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    async def run() -> None:
        token = tmp_path / "token"
        token.write_text("one\n")
        async with FakeKubernetes() as server, Kubernetes(Plain(server.url, token_file=token)) as cluster:
            server.put(CA, {"data": {}})
            server.token = "one"
            await cluster.config_map("kube-system", "ca")
            token.write_text("two\n")
            with pytest.raises(KubernetesError, match="HTTP 401"):
                await cluster.config_map("kube-system", "ca")
            server.token = "two"
            await cluster.config_map("kube-system", "ca")
            token.unlink()
            with pytest.raises(KubernetesError, match="token: cannot be read"):
                await cluster.config_map("kube-system", "ca")

    asyncio.run(run())


def test_a_pod_finds_the_server_by_its_environment(tmp_path: Path) -> None:
    account = ServiceAccount(
        environment={"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, account=tmp_path
    )
    assert not account.there
    (tmp_path / "token").write_text("secret")
    (tmp_path / "namespace").write_text("llm\n")
    asyncio.run(account.load())
    assert (account.there, account.url, account.namespace) == (True, "https://[fd00::1]:6443", "llm")
    assert account.headers() == {"Authorization": "Bearer secret"}
    with pytest.raises(KubernetesError, match="ca.crt: cannot be read"):
        account.tls()
    with pytest.raises(ConfigError, match="no pod of a cluster"):
        _ = ServiceAccount(environment={}, account=tmp_path).url


def kubeconfig(path: Path, server: str, user: dict[str, Any]) -> Path:
    entry = {"cluster": "c", "user": "u", "namespace": "llm"}
    path.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "x", "contexts": [{"name": "x", "context": entry}],
        "clusters": [{"name": "c", "cluster": {"server": server}}], "users": [{"name": "u", "user": user}],
    }))  # fmt: skip
    return path


def test_a_kubeconfig_gives_server_namespace_and_a_plug_in_s_token(tmp_path: Path) -> None:
    """The plug-in's token is fetched anew when the server no longer takes the old one."""
    counter = tmp_path / "count"
    plug_in = tmp_path / "plug-in"
    plug_in.write_text(
        f"#!/bin/sh\necho x >> {counter}\nn=$(wc -l < {counter})\n"
        'echo "{\\"apiVersion\\": \\"client.authentication.k8s.io/v1\\", \\"kind\\": \\"ExecCredential\\",'
        ' \\"status\\": {\\"token\\": \\"token-$n\\"}}"\n'
    )
    plug_in.chmod(0o755)
    user = {
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plug_in), "interactiveMode": "Never"}
    }

    async def run() -> None:
        async with FakeKubernetes() as server:
            server.put(CA, {"data": {"k": "v"}})
            server.token = "token-1"
            path = kubeconfig(tmp_path / "config", server.url, user)
            async with Kubernetes.connect(str(path)) as cluster:
                assert cluster.namespace == "llm"
                assert await cluster.config_map("kube-system", "ca") == {"k": "v"}
                server.token = "token-2"
                assert await cluster.config_map("kube-system", "ca") == {"k": "v"}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "must be a file"), ("{", "cannot be used"), ('{"current-context": "x"}', "cannot be used")],
)
def test_a_kubeconfig_that_is_none_is_a_sentence(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        asyncio.run(KubeConfig(str(path)).load())


MADE = {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}, {"ready": True}),
        ({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}, {"ready": False}),
        (
            {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]},
            {"ready": False, "broken": None},
        ),
        (
            {"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]},
            {"ready": False, "broken": "CrashLoopBackOff"},
        ),
        (
            {"phase": "Pending", "initContainerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
            {"broken": "ImagePullBackOff"},
        ),
        (
            {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
            },
            {"unschedulable": True, "broken": None},
        ),
        ({"phase": "Failed"}, {"finished": True}),
        (
            {
                "phase": "Running",
                "containerStatuses": [{"restartCount": 2, "state": {"running": {"startedAt": "2026-01-01T00:10:00Z"}}}],
            },
            {"since_seconds": 1767226200},
        ),
    ],
)
def test_what_a_pod_s_status_means(status: dict[str, Any], found: dict[str, Any]) -> None:
    pod = pod_of({"metadata": MADE, "status": status})
    assert pod.created_at_seconds == 1767225600
    assert {name: getattr(pod, name) for name in found} == found


def test_a_pod_that_is_being_deleted_terminates_and_an_empty_one_is_nothing_yet() -> None:
    assert pod_of({"metadata": {**MADE, "deletionTimestamp": "2026-01-01T00:00:09Z"}}).terminating
    assert not pod_of({}).ready
    assert unix_seconds("yesterday") is None
    assert unix_seconds("2026-01-01T00:00:00") is None
