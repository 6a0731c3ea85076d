"""Kubernetes as the rest of this library sees it: a page of questions, each with a small frozen answer.

    async with Kubernetes.connect() as cluster:                     # a pod's own account, or the kubeconfig
        user = await cluster.review_token(token)
        async for data in cluster.config_map_changes("kube-system", "extension-apiserver-authentication"): ...

Everything raises KubernetesError with the API server's own sentence; a watch never does, and never ends.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

from autoscaler.errors import ConfigError
from serving.kubernetes_access import Access, KubernetesError, access_of
from serving.kubernetes_api import TIMEOUT_SECONDS, Api, Change, Json
from serving.kubernetes_objects import Hpa, Lease, Pod, Scale, hpa_of, lease_body, lease_of, pod_of, scale_of

__all__ = ["Identity", "Kind", "Kubernetes", "KubernetesError"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Where objects of a kind live: API group ("" is the core's), version, and the plural name in paths."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Path of an object, or of its collection; `namespace` None is the cluster's scope."""
        parts = ["api", self.version] if not self.group else ["apis", self.group, self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts += [p for p in (self.plural, name, subresource) if p is not None]
        return "/" + "/".join(quote(p, safe="") for p in parts)


DEPLOYMENT = Kind(group="apps", version="v1", plural="deployments")
STATEFUL_SET = Kind(group="apps", version="v1", plural="statefulsets")
POD = Kind(group="", version="v1", plural="pods")
CONFIG_MAP = Kind(group="", version="v1", plural="configmaps")
LEASE = Kind(group="coordination.k8s.io", version="v1", plural="leases")
HPA = Kind(group="autoscaling", version="v2", plural="horizontalpodautoscalers")
SCALED_OBJECT = Kind(group="keda.sh", version="v1alpha1", plural="scaledobjects")
API_SERVICE = Kind(group="apiregistration.k8s.io", version="v1", plural="apiservices")
ENDPOINT_SLICE = Kind(group="discovery.k8s.io", version="v1", plural="endpointslices")
TOKEN_REVIEW = Kind(group="authentication.k8s.io", version="v1", plural="tokenreviews")
ACCESS_REVIEW = Kind(group="authorization.k8s.io", version="v1", plural="subjectaccessreviews")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whom the cluster takes somebody for."""

    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Kubernetes:
    """One cluster."""

    def __init__(self, access: Access, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.api = Api(access, timeout_seconds=timeout_seconds)

    @classmethod
    def connect(
        cls, kubeconfig: str | None = None, context: str | None = None, *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> Self:
        """With a pod's own account where there is one and no kubeconfig is asked for, else with a kubeconfig."""
        return cls(access_of(kubeconfig, context), timeout_seconds=timeout_seconds)

    async def __aenter__(self) -> Self:
        """Raises ConfigError or KubernetesError where the credentials cannot be read."""
        await self.api.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.api.close()

    async def close(self) -> None:
        """Give back the connections."""
        await self.api.close()

    @property
    def namespace(self) -> str | None:
        """Our own namespace, where known."""
        return self.api.access.namespace

    # What is scaled

    async def scale(self, kind: Kind, namespace: str, name: str) -> Scale:
        """The scale of an object of any kind that has one."""
        return scale_of(await self.api.get(kind.path(namespace, name, "scale")))

    async def set_scale(self, kind: Kind, namespace: str, name: str, replicas: int, resource_version: str) -> Scale:
        """Ask for `replicas`; refused as a conflict where somebody wrote since `resource_version`."""
        body = {"metadata": {"resourceVersion": resource_version}, "spec": {"replicas": replicas}}
        return scale_of(await self.api.patch(kind.path(namespace, name, "scale"), body))

    async def pods(self, namespace: str, selector: str) -> list[Pod]:
        """The pods that a label selector finds."""
        found, _ = await self.api.items(POD.path(namespace), labelSelector=selector)
        return [pod_of(item) for item in found]

    async def hpa(self, namespace: str, name: str) -> Hpa:
        """One HorizontalPodAutoscaler."""
        return hpa_of(await self.api.get(HPA.path(namespace, name)))

    async def hpas(self, namespace: str | None = None, **query: str) -> list[Hpa]:
        """All of a namespace, or of the cluster."""
        return [hpa_of(item) for item in (await self.api.items(HPA.path(namespace), **query))[0]]

    def watch_hpas(self, namespace: str | None = None) -> AsyncGenerator[dict[tuple[str, str], Hpa]]:
        """All of a namespace, or of the cluster, by (namespace, name): now and after each change."""
        return self._collection(HPA, namespace, hpa_of)

    async def scaled_object(self, namespace: str, name: str) -> Json:
        """One ScaledObject of KEDA."""
        return await self.api.get(SCALED_OBJECT.path(namespace, name))

    async def scalers_of(self, target_kind: str, namespace: str, name: str) -> list[str]:
        """Other autoscalers on an object, as kind/name: HPAs, and ScaledObjects where there is KEDA."""
        found = [
            f"HorizontalPodAutoscaler/{h.name}"
            for h in await self.hpas(namespace)
            if (h.target_kind, h.target_name) == (target_kind, name)
        ]
        try:
            objects, _ = await self.api.items(SCALED_OBJECT.path(namespace))
        except KubernetesError as error:
            if error.not_found:
                return found
            raise
        for item in objects:
            target = item.get("spec", {}).get("scaleTargetRef", {})
            if (target.get("kind") or "Deployment", target.get("name")) == (target_kind, name):
                found.append(f"ScaledObject/{item['metadata']['name']}")
        return found

    # Who may ask us

    async def review_token(self, token: str, audiences: Sequence[str] = ()) -> Identity | None:
        """Whose bearer token this is; None where the cluster does not know it."""
        spec: Json = {"token": token} | ({"audiences": list(audiences)} if audiences else {})
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        status = (await self.api.create(TOKEN_REVIEW.path(None), body)).get("status") or {}
        user = status.get("user") or {}
        if status.get("authenticated") is not True or not user.get("username"):
            return None
        return Identity(
            username=str(user["username"]),
            uid=str(user.get("uid") or ""),
            groups=tuple(map(str, user.get("groups") or ())),
            extra={str(k): tuple(map(str, v or ())) for k, v in (user.get("extra") or {}).items()},
        )

    async def may(self, who: Identity, **attributes: str) -> bool:
        """Whether `who` may: ``group, version, resource, namespace, verb`` of an API, or ``path, verb`` of none."""
        kind = "nonResourceAttributes" if "path" in attributes else "resourceAttributes"
        spec: Json = {"user": who.username, "groups": list(who.groups), kind: attributes}
        if who.uid:
            spec["uid"] = who.uid
        if who.extra:
            spec["extra"] = {k: list(v) for k, v in who.extra.items()}
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        status = (await self.api.create(ACCESS_REVIEW.path(None), body)).get("status") or {}
        return status.get("allowed") is True and status.get("denied") is not True

    # What we must know of the cluster, and it of us

    async def config_map(self, namespace: str, name: str) -> dict[str, str]:
        """The data of a ConfigMap."""
        found = await self.api.get(CONFIG_MAP.path(namespace, name))
        return {str(k): str(v) for k, v in (found.get("data") or {}).items()}

    async def config_map_changes(self, namespace: str, name: str) -> AsyncGenerator[dict[str, str] | None]:
        """The data of a ConfigMap, now and after each change; None while there is no such map.  Never ends."""
        # A field selector of one name is what a Role with that resourceName lets us list and watch.
        query = {"fieldSelector": f"metadata.name={name}"}
        async with aclosing(self.api.watch(CONFIG_MAP.path(namespace), **query)) as seen:
            async for what in seen:
                gone = isinstance(what, Change) and what.kind == "DELETED"
                found = what.object if isinstance(what, Change) else next(iter(what), None)
                yield None if found is None or gone else {str(k): str(v) for k, v in (found.get("data") or {}).items()}

    async def set_ca_bundle(self, api_service: str, ca_bundle_base64: str) -> None:
        """Let the aggregator trust our serving certificate: the caBundle of an APIService such as v1beta1.GROUP."""
        await self.api.patch(API_SERVICE.path(None, api_service), {"spec": {"caBundle": ca_bundle_base64}})

    async def api_service(self, name: str) -> Json:
        """One APIService."""
        return await self.api.get(API_SERVICE.path(None, name))

    async def endpoint_slices(self, namespace: str, selector: str) -> list[Json]:
        """The EndpointSlices that a label selector finds."""
        return (await self.api.items(ENDPOINT_SLICE.path(namespace), labelSelector=selector))[0]

    # Leader election

    async def lease(self, namespace: str, name: str) -> Lease | None:
        """A Lease; None where there is none yet."""
        try:
            return lease_of(await self.api.get(LEASE.path(namespace, name)))
        except KubernetesError as error:
            if error.not_found:
                return None
            raise

    async def write_lease(self, lease: Lease) -> Lease:
        """Make it, or where it has a resource_version replace that version; a conflict where somebody else was first."""
        path = LEASE.path(lease.namespace, lease.name if lease.resource_version else None)
        write = self.api.update if lease.resource_version else self.api.create
        return lease_of(await write(path, lease_body(lease)))

    async def _collection(
        self, kind: Kind, namespace: str | None, read: Any
    ) -> AsyncGenerator[dict[tuple[str, str], Any]]:
        held: dict[tuple[str, str], Any] = {}
        async with aclosing(self.api.watch(kind.path(namespace))) as seen:
            async for what in seen:
                if not isinstance(what, Change):
                    held = {_key(item): read(item) for item in what}
                elif what.kind == "DELETED":
                    held.pop(_key(what.object), None)
                else:
                    held[_key(what.object)] = read(what.object)
                yield dict(held)


def _key(item: Json) -> tuple[str, str]:
    meta = item.get("metadata") or {}
    return str(meta.get("namespace", "")), str(meta.get("name", ""))


def kind_named(text: str) -> Kind:
    """A kind as ``plural.version.group`` spells it, such as ``leaderworkersets.v1.leaderworkerset.x-k8s.io``."""
    parts = text.split(".", 2)
    if len(parts) != 3 or not all(parts):
        raise ConfigError("kind", f"{text!r} must be plural.version.group")
    return Kind(plural=parts[0], version=parts[1], group=parts[2])
