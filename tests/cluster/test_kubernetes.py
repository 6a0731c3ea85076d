"""The façade on the real API server, with the credentials that a pod finds in its files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cluster_api import Namespace
from cluster_plane import TRUST, ControlPlane
from cluster_serve import HOME, give_rights

from serving.kubernetes import Kubernetes, KubernetesError
from serving.kubernetes_access import ServiceAccount

pytestmark = pytest.mark.cluster

GROUP = "external.metrics.k8s.io"


@pytest.fixture
def account(plane: ControlPlane, namespace: Namespace, tmp_path: Path) -> ServiceAccount:
    """The files and the environment of a pod that runs as the manifests' service account."""
    give_rights(plane.api, namespace.name)
    (tmp_path / "token").write_text(plane.service_account(HOME, "autoscaler").token)
    (tmp_path / "ca.crt").write_bytes(plane.serving.pem)
    (tmp_path / "namespace").write_text(HOME)
    where = urlsplit(plane.url)
    environment = {"KUBERNETES_SERVICE_HOST": str(where.hostname), "KUBERNETES_SERVICE_PORT": str(where.port)}
    return ServiceAccount(environment=environment, account=tmp_path)


def story(account: ServiceAccount, tell: Callable[[Kubernetes], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Kubernetes(account) as cluster:
            await asyncio.wait_for(tell(cluster), 60)

    asyncio.run(run())


def test_who_a_token_is_and_what_he_may(account: ServiceAccount, plane: ControlPlane, namespace: Namespace) -> None:
    async def tell(cluster: Kubernetes) -> None:
        assert cluster.namespace == HOME
        who = await cluster.review_token(plane.service_account("kube-system", "horizontal-pod-autoscaler").token)
        assert who is not None
        assert who.username == "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
        assert "system:serviceaccounts:kube-system" in who.groups
        assert who.uid
        assert await cluster.review_token("nonsense") is None
        nobody = await cluster.review_token(plane.token("nobody"))
        assert nobody is not None
        asked = {"group": GROUP, "version": "v1beta1", "resource": "desired_replicas", "namespace": namespace.name}
        assert await cluster.may(who, verb="list", **asked)
        assert not await cluster.may(who, verb="delete", **asked)
        assert not await cluster.may(nobody, verb="list", **asked)
        assert await cluster.may(nobody, path="/openapi/v3", verb="get")
        assert not await cluster.may(nobody, path="/metrics", verb="get")

    story(account, tell)


def test_a_config_map_of_which_one_name_may_be_read_is_followed(account: ServiceAccount, plane: ControlPlane) -> None:
    async def tell(cluster: Kubernetes) -> None:
        with pytest.raises(KubernetesError, match="cannot get resource") as refused:
            await cluster.config_map("kube-system", "kube-root-ca.crt")
        assert refused.value.status == 403
        async with aclosing(changes(cluster)) as seen:
            first = await anext(seen)
            assert first is not None
            assert "requestheader-client-ca-file" in first
            for mark in ("1", "2"):
                await asyncio.to_thread(plane.api.patch, TRUST, {"data": {"test": mark}})
                found = await anext(seen)
                assert found is not None
                assert found["test"] == mark
        await asyncio.to_thread(plane.api.patch, TRUST, {"data": {"test": None}})

    story(account, tell)


def changes(cluster: Kubernetes) -> AsyncGenerator[dict[str, str] | None]:
    return cluster.config_map_changes("kube-system", "extension-apiserver-authentication")


def test_a_token_that_rotates_is_read_anew(account: ServiceAccount, plane: ControlPlane, tmp_path: Path) -> None:
    async def tell(cluster: Kubernetes) -> None:
        await cluster.lease(HOME, "autoscaler")
        (tmp_path / "token").write_text("of-yesterday")
        with pytest.raises(KubernetesError) as refused:
            await cluster.lease(HOME, "autoscaler")
        assert refused.value.status == 401
        (tmp_path / "token").write_text(plane.api.token_of(HOME, "autoscaler"))
        await cluster.lease(HOME, "autoscaler")

    story(account, tell)
