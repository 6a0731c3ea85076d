"""The objects that tests write: nodes with GPUs, pools of stub replicas, HPAs, the way to an adapter on loopback."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]
GROUP = "external.metrics.k8s.io"

# Our limits shall be the only ones: nothing that the HPA adds delays or swallows a number.
PASS_THROUGH: Object = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "tolerance": "0",
        "policies": [{"type": "Pods", "value": 1000, "periodSeconds": 15}],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 0,
        "tolerance": "0",
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
    },
}


def gpu_node(name: str, *, gpus: int = 8, kind: str = "H100", pods: int = 256) -> Object:
    """A node that kwok plays."""
    room = {"cpu": "192", "memory": "2Ti", "pods": str(pods), "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/hostname": name, "nvidia.com/gpu.product": kind},
        },
        "status": {"allocatable": room, "capacity": room},
    }


def pool(
    name: str,
    *,
    replicas: int = 1,
    startup_seconds: float = 0.0,
    startup_longest_seconds: float | None = None,
    gpus: int = 1,
    labels: Mapping[str, str] | None = None,
    surge: int | str = 0,
) -> Object:
    """A Deployment of stub replicas: ready between the two start-up times (uniform) after they were bound to a node.

    `surge`: pods above the number that a rollout may make.
    """
    longest = startup_seconds if startup_longest_seconds is None else startup_longest_seconds
    marks = {"startup/seconds": f"{startup_seconds}s", "startup/longest-seconds": f"{longest}s"}
    selector = {"app": name}
    container: Object = {"name": "engine", "image": "example.invalid/engine"}
    if gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {**selector, **(labels or {})}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector},
            "strategy": {
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 0 if surge else 1},
                "type": "RollingUpdate",
            },
            "template": {
                "metadata": {"labels": {**selector, **(labels or {})}, "annotations": marks},
                "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
            },
        },
    }


def hpa(
    name: str,
    *,
    target: str | None = None,
    metric: str = "desired_replicas",
    selector: Mapping[str, str] | None = None,
    average_value: str | None = "1",
    value: str | None = None,
    low: int = 1,
    high: int = 100,
    behavior: Object | None = PASS_THROUGH,
) -> Object:
    """An HPA on a Deployment (`target`, else of its own name) for one external metric; `value` instead of an average."""
    aim = {"type": "Value", "value": value} if value else {"type": "AverageValue", "averageValue": average_value}
    what: Object = {"name": metric}
    if selector is not None:
        what["selector"] = {"matchLabels": dict(selector)}
    spec: Object = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target or name},
        "minReplicas": low,
        "maxReplicas": high,
        "metrics": [{"type": "External", "external": {"metric": what, "target": aim}}],
    }
    if behavior is not None:
        spec["behavior"] = behavior
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": spec,
    }


def service_to_loopback(name: str, namespace: str, port: int) -> Object:
    """A Service that leads to a port of this machine.  An EndpointSlice may not hold a loopback address; a name may."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "ExternalName",
            "externalName": "localhost",
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        },
    }


def api_service(
    service: str,
    namespace: str,
    port: int,
    *,
    group: str = GROUP,
    ca_bundle: bytes | None = None,
    insecure: bool = False,
) -> Object:
    """The group's registration; `ca_bundle` (PEM) is who signed the serving certificate, unless it is not looked at."""
    trust: Object = {"insecureSkipTLSVerify": True} if insecure else {}
    if ca_bundle is not None:
        trust = {"caBundle": base64.b64encode(ca_bundle).decode()}
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"v1beta1.{group}"},
        "spec": {
            "group": group,
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": {"name": service, "namespace": namespace, "port": port},
            **trust,
        },
    }


def permission_to_read(group: str = GROUP, *, namespace: str = "kube-system") -> list[Object]:
    """What lets the HPA controller, who asks as a service account of its own, read the group's numbers."""
    name = f"reads-{group}"
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": [{"apiGroups": [group], "resources": ["*"], "verbs": ["get", "list"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "horizontal-pod-autoscaler", "namespace": namespace}],
        },
    ]
