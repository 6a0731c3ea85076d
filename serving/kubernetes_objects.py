"""What is read of Kubernetes' objects: small frozen values, and the readers that make them of parsed JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]

# A container that waits for one of these will not come up by waiting: the kubelet tries ever more seldom.
BROKEN = frozenset({
    "CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName",
    "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PostStartHookError",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A scale subresource: what is asked for, the pods that exist, and the selector that finds them."""

    replicas: int
    status_replicas: int
    selector: str
    resource_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod.  `since_seconds`: when it was made, or when its containers last began anew; Unix seconds.

    `broken`: a code word where it will not become ready by waiting; `unschedulable`: no node takes it now.
    """

    name: str
    created_at_seconds: int
    since_seconds: int
    ready: bool = False
    terminating: bool = False
    finished: bool = False
    broken: str | None = None
    unschedulable: bool = False
    node: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalMetric:
    """One external metric of an HPA: its selector's exact labels, and which kind of target, at how much (as written)."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    target_type: str = "AverageValue"
    target: str = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hpa:
    """One HorizontalPodAutoscaler, as far as we ask.  `scaled_object`: KEDA's, that it was made of."""

    namespace: str
    name: str
    target_kind: str
    target_name: str
    target_api_version: str = ""
    annotations: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    external: tuple[ExternalMetric, ...] = ()
    scaled_object: str | None = None
    current_replicas: int | None = None
    desired_replicas: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who leads.  Instants as text of the API's microseconds; only whether they change is looked at."""

    namespace: str
    name: str
    holder: str = ""
    duration_seconds: int = 15
    acquired: str | None = None
    renewed: str | None = None
    transitions: int = 0
    resource_version: str = ""
    annotations: dict[str, str] = field(default_factory=dict)


def scale_of(item: Json) -> Scale:
    """Of an autoscaling/v1 Scale."""
    spec, status = item.get("spec") or {}, item.get("status") or {}
    return Scale(
        replicas=int(spec.get("replicas") or 0),
        status_replicas=int(status.get("replicas") or 0),
        selector=str(status.get("selector") or ""),
        resource_version=str((item.get("metadata") or {}).get("resourceVersion") or ""),
    )


def pod_of(item: Json) -> Pod:
    """Of a v1 Pod."""
    meta, status = item.get("metadata") or {}, item.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or () if isinstance(c, dict)}
    containers = [
        c for c in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        if isinstance(c, dict)
    ]  # fmt: skip
    created = unix_seconds(meta.get("creationTimestamp")) or 0
    phase = status.get("phase")
    scheduled = conditions.get("PodScheduled") or {}
    return Pod(
        name=str(meta.get("name", "")),
        created_at_seconds=created,
        since_seconds=max([created, *(_restarted(c) for c in status.get("containerStatuses") or ())]),
        ready=phase == "Running" and (conditions.get("Ready") or {}).get("status") == "True",
        terminating=bool(meta.get("deletionTimestamp")),
        finished=phase in ("Succeeded", "Failed"),
        broken=next((why for c in containers if (why := _waits(c)) in BROKEN), None),
        unschedulable=scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable",
        node=(item.get("spec") or {}).get("nodeName"),
    )


def _waits(container: Json) -> str:
    return str(((container.get("state") or {}).get("waiting") or {}).get("reason") or "")


def _restarted(container: Json) -> int:
    if not container.get("restartCount"):
        return 0
    return unix_seconds(((container.get("state") or {}).get("running") or {}).get("startedAt")) or 0


def hpa_of(item: Json) -> Hpa:
    """Of an autoscaling/v2 HorizontalPodAutoscaler."""
    meta, spec, status = item.get("metadata") or {}, item.get("spec") or {}, item.get("status") or {}
    ref = spec.get("scaleTargetRef") or {}
    return Hpa(
        namespace=str(meta.get("namespace", "")),
        name=str(meta.get("name", "")),
        target_kind=str(ref.get("kind", "")),
        target_name=str(ref.get("name", "")),
        target_api_version=str(ref.get("apiVersion", "")),
        annotations=dict(meta.get("annotations") or {}),
        labels=dict(meta.get("labels") or {}),
        external=tuple(_external(m["external"]) for m in spec.get("metrics") or () if m.get("type") == "External"),
        scaled_object=next(
            (o.get("name") for o in meta.get("ownerReferences") or () if o.get("kind") == "ScaledObject"), None
        ),
        current_replicas=status.get("currentReplicas"),
        desired_replicas=status.get("desiredReplicas"),
    )


def _external(part: Json) -> ExternalMetric:
    metric, target = part.get("metric") or {}, part.get("target") or {}
    kind = str(target.get("type") or "AverageValue")
    value = target.get("value") if kind == "Value" else target.get("averageValue")
    return ExternalMetric(
        name=str(metric.get("name", "")),
        labels=dict((metric.get("selector") or {}).get("matchLabels") or {}),
        target_type=kind,
        target=str(value if value is not None else "1"),
    )


def lease_of(item: Json) -> Lease:
    """Of a coordination.k8s.io/v1 Lease."""
    meta, spec = item.get("metadata") or {}, item.get("spec") or {}
    return Lease(
        namespace=str(meta.get("namespace", "")),
        name=str(meta.get("name", "")),
        holder=str(spec.get("holderIdentity") or ""),
        duration_seconds=int(spec.get("leaseDurationSeconds") or 15),
        acquired=spec.get("acquireTime"),
        renewed=spec.get("renewTime"),
        transitions=int(spec.get("leaseTransitions") or 0),
        resource_version=str(meta.get("resourceVersion") or ""),
        annotations=dict(meta.get("annotations") or {}),
    )


def lease_body(lease: Lease) -> Json:
    """The Lease as it is written."""
    meta: Json = {"namespace": lease.namespace, "name": lease.name, "annotations": lease.annotations}
    if lease.resource_version:
        meta["resourceVersion"] = lease.resource_version
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": meta,
        "spec": {
            "holderIdentity": lease.holder,
            "leaseDurationSeconds": lease.duration_seconds,
            "acquireTime": lease.acquired,
            "renewTime": lease.renewed,
            "leaseTransitions": lease.transitions,
        },
    }


def unix_seconds(text: object) -> int | None:
    """Unix seconds of an RFC 3339 instant; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int(at.timestamp()) if at.tzinfo is not None else None


def micro_time(at_seconds: float) -> str:
    """An instant as the API spells it, in microseconds."""
    return datetime.fromtimestamp(at_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
