"""A small client of an API server: JSON in, JSON out.  Objects are the dicts that a manifest would hold."""

from __future__ import annotations

import http.client
import json
import math
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from cluster_programs import wait_for

Object = dict[str, Any]

# Kinds that live in no namespace, of those that tests write.
CLUSTER_WIDE = {
    "APIService", "ClusterRole", "ClusterRoleBinding", "ClusterServingRuntime", "CustomResourceDefinition", "Namespace", "Node",
    "PriorityClass", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration",
}  # fmt: skip
MANAGER = "cluster-tests"


class ApiError(OSError):
    """The server's refusal: its HTTP `code` and its sentence."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"HTTP {code}: {message}")
        self.code = code


def plural(kind: str) -> str:
    """The resource of a kind: Policy -> policies, Ingress -> ingresses, Pod -> pods."""
    word = kind.lower()
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x")) else "s")


def path_of(api_version: str, kind: str, namespace: str | None, name: str | None = None) -> str:
    """Where objects of a kind are, or where one of them is."""
    path = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
    if kind not in CLUSTER_WIDE:
        path += f"/namespaces/{namespace or 'default'}"
    return f"{path}/{plural(kind)}" + (f"/{name}" if name else "")


@dataclass(frozen=True, slots=True)
class Api:
    """One user's view of an API server at `url`; every call is a connection of its own, so threads may share it."""

    url: str
    ca_file: Path
    token: str
    kubeconfig: Path
    kubectl_program: Path

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Any:
        """The answer's JSON, or its text if it is none; ApiError for a code from 400 on."""
        parts = urlsplit(self.url)
        context = ssl.create_default_context(cafile=str(self.ca_file))
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, context=context, timeout=timeout)
        sent = {"Authorization": f"Bearer {self.token}", "Accept": "application/json", **(headers or {})}
        data = None
        if body is not None:
            data, sent["Content-Type"] = json.dumps(body).encode(), content_type
        try:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        finally:
            connection.close()
        try:
            found = json.loads(text)
        except ValueError:
            found = text
        if answer.status >= 400:
            sentence = found.get("message", text) if isinstance(found, dict) else text
            raise ApiError(answer.status, str(sentence))
        return found

    def get(self, path: str, **parameters: str) -> Any:
        """GET."""
        return self.request("GET", f"{path}?{urlencode(parameters)}" if parameters else path)

    def watch(self, path: str, since: str, *, seconds: float, **parameters: str) -> Iterator[Object]:
        """Every state of the objects at a path after the resource version `since`, for so many seconds."""
        parts = urlsplit(self.url)
        context = ssl.create_default_context(cafile=str(self.ca_file))
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, context=context, timeout=seconds + 5)
        asked = {"watch": "1", "resourceVersion": since, "timeoutSeconds": str(math.ceil(seconds)), **parameters}
        try:
            connection.request("GET", f"{path}?{urlencode(asked)}", headers={"Authorization": f"Bearer {self.token}"})
            answer = connection.getresponse()
            while line := answer.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(event["object"].get("code", 500), event["object"].get("message", ""))
                yield event["object"]
        finally:
            connection.close()

    def apply(self, *objects: Object) -> None:
        """Server-side apply, in turn."""
        for o in objects:
            meta = o["metadata"]
            path = path_of(o["apiVersion"], o["kind"], meta.get("namespace"), meta["name"])
            self.request(
                "PATCH", f"{path}?fieldManager={MANAGER}&force=true", o, content_type="application/apply-patch+yaml"
            )

    def patch(self, path: str, change: Object) -> Any:
        """A merge patch."""
        return self.request("PATCH", path, change, content_type="application/merge-patch+json")

    def delete(self, path: str, *, grace_seconds: int | None = None) -> None:
        """DELETE; an object that is gone already is as good."""
        try:
            self.request("DELETE", path if grace_seconds is None else f"{path}?gracePeriodSeconds={grace_seconds}")
        except ApiError as error:
            if error.code != 404:
                raise

    def token_of(self, namespace: str, service_account: str) -> str:
        """A token that says it is this service account, which must exist."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
        return str(self.request("POST", path, wanted)["status"]["token"])

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """What `kubectl` prints; its complaint as AssertionError."""
        done = subprocess.run(
            [str(self.kubectl_program), "--kubeconfig", str(self.kubeconfig), *words],
            input=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout


def condition(o: Object, kind: str) -> Object:
    """The condition of that type, or an empty dict."""
    found: Sequence[Object] = o.get("status", {}).get("conditions") or ()
    return next((c for c in found if c["type"] == kind), {})


@dataclass(frozen=True, slots=True)
class Namespace:
    """A test's own namespace, with what tests do in it."""

    name: str
    api: Api

    def apply(self, *objects: Object) -> None:
        """As `Api.apply`, into this namespace."""
        self.api.apply(*({**o, "metadata": {"namespace": self.name, **o["metadata"]}} for o in objects))

    def path(self, api_version: str, kind: str, name: str | None = None) -> str:
        """Where such objects of this namespace are."""
        return path_of(api_version, kind, self.name, name)

    def deployment(self, name: str) -> Object:
        """A Deployment as it is now."""
        return dict(self.api.get(self.path("apps/v1", "Deployment", name)))

    def wanted(self, name: str) -> int:
        """`spec.replicas` of a Deployment."""
        return int(self.deployment(name)["spec"]["replicas"])

    def ready(self, name: str) -> int:
        """Ready pods of a Deployment."""
        return int(self.deployment(name).get("status", {}).get("readyReplicas", 0))

    def scale(self, name: str, replicas: int) -> None:
        """By hand, through `/scale`."""
        self.api.patch(self.path("apps/v1", "Deployment", name) + "/scale", {"spec": {"replicas": replicas}})

    def wait_wanted(self, name: str, replicas: int, *, seconds: float = 30.0) -> None:
        """Until `spec.replicas` is that."""
        wait_for(
            f"{replicas} replicas wanted of {name}", lambda: self._same(self.wanted(name), replicas), seconds=seconds
        )

    def wait_ready(self, name: str, replicas: int, *, seconds: float = 30.0) -> None:
        """Until so many pods, no more and no fewer, are wanted, there and ready."""

        def look() -> bool:
            status = self.deployment(name).get("status", {})
            there = (self.wanted(name), status.get("replicas", 0), status.get("readyReplicas", 0))
            return self._same(there, (replicas,) * 3)

        wait_for(f"{replicas} ready replicas of {name}", look, seconds=seconds)

    @staticmethod
    def _same(found: object, expected: object) -> bool:
        assert found == expected, f"{found!r}, not {expected!r}"
        return True

    def sizes(self, since: Object, *, until: int, seconds: float = 30.0) -> list[int]:
        """Each size that a Deployment was told to have after it was `since`, up to `until`, none left out."""
        seen, last = [], since["spec"]["replicas"]
        meta = since["metadata"]
        path, only = self.path("apps/v1", "Deployment"), f"metadata.name={meta['name']}"
        for state in self.api.watch(path, meta["resourceVersion"], seconds=seconds, fieldSelector=only):
            if (now := int(state["spec"]["replicas"])) != last:
                seen.append(now)
                last = now
            if last == until:
                break
        return seen

    def hpa(self, name: str) -> Object:
        """A HorizontalPodAutoscaler as it is now."""
        return dict(self.api.get(self.path("autoscaling/v2", "HorizontalPodAutoscaler", name)))

    def describe(self, kind: str, name: str) -> str:
        """`kubectl describe`."""
        return self.api.kubectl("-n", self.name, "describe", kind, name)

    def hold(self, name: str, replicas: int, *, seconds: float) -> None:
        """Fails if `spec.replicas` is anything else within `seconds`."""
        pause = threading.Event()
        for _ in range(max(1, int(seconds / 0.25))):
            self._same(self.wanted(name), replicas)
            pause.wait(0.25)
