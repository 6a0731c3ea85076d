"""GPUs behind replicas: utilisation, SM activity, memory, and whether they still work.

From the page of NVIDIA's dcgm-exporter or of AMD's device-metrics-exporter; a machine without either asks NVML or
``nvidia-smi`` (`gpu_local`).  A GPU belongs to the pod in its labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

Sample = tuple[str, Mapping[str, str], float]

# Xids that an application causes, and that its end cures; NVIDIA's Kubernetes device plugin leaves them out too.
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
# DCGM writes "blank" as a number near the largest of its type; nothing that is read here comes near the smallest of them.
BLANK = 2147483632.0
MIB = 1024.0 * 1024.0
HEALTH_FAIL = 20.0  # DCGM: 0 pass, 10 warn, 20 fail

# What is read of a page; every other line may be left unread.
DCGM_SERIES = (
    "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_PROF_SM_ACTIVE", "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_RESERVED", "DCGM_FI_DEV_FB_TOTAL", "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_XID_ERRORS", "DCGM_EXP_XID_ERRORS_COUNT", "DCGM_EXP_XID_ERRORS_TOTAL", "DCGM_FI_DEV_ROW_REMAP_FAILURE",
    "DCGM_EXP_GPU_HEALTH_STATUS",
)  # fmt: skip
AMD_SERIES = (
    "gpu_gfx_activity", "gpu_used_vram", "gpu_total_vram", "gpu_package_power", "gpu_power_usage", "gpu_health",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG instance or partition of it, at an instant.

    `id` is its UUID (with the instance, where there is one).  `pod` and `namespace` are empty where nobody holds it or the
    exporter does not know.  `xids`: codes that were told, `recent_xids`: those of them that the exporter counted within its
    window.  `faults`: what else the source calls broken, in words.
    """

    id: str
    host: str = ""
    pod: str = ""
    namespace: str = ""
    model: str = ""
    utilization_fraction: float | None = None
    sm_active_fraction: float | None = None
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    power_watts: float | None = None
    xids: tuple[int, ...] = ()
    recent_xids: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(slots=True)
class _Device:
    """A GPU while its lines are read."""

    labels: Mapping[str, str]
    values: dict[str, float] = field(default_factory=dict)
    xids: set[int] = field(default_factory=set)
    recent: set[int] = field(default_factory=set)
    faults: set[str] = field(default_factory=set)


def read_gpus(samples: Iterable[Sample]) -> list[Gpu]:
    """The GPUs of an exporter's page, NVIDIA's or AMD's, in the order of the page; empty if it is neither."""
    nvidia: dict[str, _Device] = {}
    amd: dict[str, _Device] = {}
    for name, labels, value in samples:
        if name.startswith("DCGM_"):
            _dcgm(nvidia, name, labels, value)
        elif (plain := _amd_name(name)) in AMD_SERIES:
            _take(amd, _amd_id(labels), labels).values.setdefault(plain, value)
    whole = {key: device for key, device in nvidia.items() if "/" not in key}
    return [
        *(_nvidia_gpu(key, device, whole.get(key.split("/")[0])) for key, device in nvidia.items() if _is_gpu(device)),
        *(_amd_gpu(key, device) for key, device in amd.items()),
    ]


def _take(devices: dict[str, _Device], key: str, labels: Mapping[str, str]) -> _Device:
    if key not in devices:
        devices[key] = _Device(labels)
    return devices[key]


def _dcgm(devices: dict[str, _Device], name: str, labels: Mapping[str, str], value: float) -> None:
    uuid = labels.get("UUID") or f"{labels.get('Hostname', '')}:{labels.get('gpu', '')}"
    instance = labels.get("GPU_I_ID")
    device = _take(devices, f"{uuid}/{instance}" if instance else uuid, labels)
    if not abs(value) < BLANK:  # NaN too
        return
    if name == "DCGM_FI_DEV_XID_ERRORS":
        if value > 0:
            device.xids.add(int(value))
    elif name in ("DCGM_EXP_XID_ERRORS_COUNT", "DCGM_EXP_XID_ERRORS_TOTAL"):
        if value > 0 and labels.get("xid", "").isdigit() and int(labels["xid"]) > 0:
            device.xids.add(int(labels["xid"]))
            if name == "DCGM_EXP_XID_ERRORS_COUNT":
                device.recent.add(int(labels["xid"]))
    elif name == "DCGM_FI_DEV_ROW_REMAP_FAILURE":
        if value > 0:
            device.faults.add("row remapping failed")
    elif name == "DCGM_EXP_GPU_HEALTH_STATUS":
        if value >= HEALTH_FAIL:
            device.faults.add(f"health watch {labels.get('health_watch', 'of DCGM')} failed")
    else:
        device.values[name] = value


def _is_gpu(device: _Device) -> bool:
    return bool(device.values or device.xids or device.faults)


def _nvidia_gpu(key: str, device: _Device, whole: _Device | None) -> Gpu:
    values = device.values
    percent = values.get("DCGM_FI_DEV_GPU_UTIL")
    # An instance of MIG has no utilisation of its own, but its graphics engine's activity.
    busy = values.get("DCGM_FI_PROF_GR_ENGINE_ACTIVE") if percent is None else percent / 100.0
    used, free = values.get("DCGM_FI_DEV_FB_USED"), values.get("DCGM_FI_DEV_FB_FREE")
    total = values.get("DCGM_FI_DEV_FB_TOTAL")
    if total is None and used is not None and free is not None:
        total = used + free + values.get("DCGM_FI_DEV_FB_RESERVED", 0.0)
    pod, namespace = _pod(device.labels)
    # What breaks a GPU breaks its instances.
    xids = device.xids | (whole.xids if whole is not None else set())
    recent = device.recent | (whole.recent if whole is not None else set())
    faults = device.faults | (whole.faults if whole is not None else set())
    return Gpu(
        id=key,
        host=device.labels.get("Hostname", ""),
        pod=pod,
        namespace=namespace,
        model=device.labels.get("modelName", ""),
        utilization_fraction=_fraction(busy),
        sm_active_fraction=_fraction(values.get("DCGM_FI_PROF_SM_ACTIVE")),
        memory_used_bytes=None if used is None else used * MIB,
        memory_total_bytes=None if total is None else total * MIB,
        power_watts=values.get("DCGM_FI_DEV_POWER_USAGE"),
        xids=tuple(sorted(xids)),
        recent_xids=tuple(sorted(recent)),
        faults=tuple(sorted(faults)),
    )


def _amd_name(name: str) -> str:
    """AMD's names come in either case and under a prefix of the site's: ``GPU_HEALTH``, ``amd_gpu_health``."""
    plain = name.lower()
    start = plain.find("gpu_")
    return plain[start:] if start >= 0 else plain


def _amd_id(labels: Mapping[str, str]) -> str:
    known = {k.lower(): v for k, v in labels.items()}
    named = known.get("gpu_uuid") or known.get("serial_number")
    partition = known.get("gpu_partition_id", "0")
    return f"{named or known.get('hostname', '')}:{known.get('gpu_id', '')}/{partition}"


def _amd_gpu(key: str, device: _Device) -> Gpu:
    labels = {k.lower(): v for k, v in device.labels.items()}
    values = {name: value for name, value in device.values.items() if value == value}
    percent = values.get("gpu_gfx_activity")
    used, total = values.get("gpu_used_vram"), values.get("gpu_total_vram")
    pod, namespace = _pod(labels)
    return Gpu(
        id=key,
        host=labels.get("hostname", ""),
        pod=pod,
        namespace=namespace,
        model=labels.get("card_series") or labels.get("card_model", ""),
        utilization_fraction=_fraction(None if percent is None else percent / 100.0),
        memory_used_bytes=None if used is None else used * MIB,
        memory_total_bytes=None if total is None else total * MIB,
        power_watts=values.get("gpu_package_power", values.get("gpu_power_usage")),
        faults=("the exporter calls it unhealthy",) if values.get("gpu_health") == 0.0 else (),
    )


def _pod(labels: Mapping[str, str]) -> tuple[str, str]:
    """(pod, namespace) that hold the GPU.

    A Prometheus that does not honour labels moves them to ``exported_*``, and writes the exporter's own pod in their place.
    """
    if "exported_pod" in labels or "exported_namespace" in labels:
        return labels.get("exported_pod", ""), labels.get("exported_namespace", "")
    return labels.get("pod", ""), labels.get("namespace", "")


def _fraction(value: float | None) -> float | None:
    return None if value is None or not value >= 0.0 else min(1.0, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """The GPUs of one replica together: means over them, memory in sum, and why it is broken (empty: it is not)."""

    gpus: int
    utilization_fraction: float | None
    sm_active_fraction: float | None
    memory_used_bytes: float | None
    unhealthy: str


class GpuWatch:
    """Remembers which GPUs broke.

    DCGM tells the last Xid alone, and a harmless one hides the one before; so a GPU that broke stays broken until its
    source takes back what it said (its Xid reads 0: a reset or a new driver) or it is gone for `forget_seconds`.  It also
    tells one from months ago: what a GPU says at the first look, while it works, is old news.  Xids in `ignore` break nothing.
    """

    def __init__(self, ignore: Iterable[int] = APPLICATION_XIDS, forget_seconds: int = 3600) -> None:
        self.ignore, self.forget_seconds = frozenset(ignore), forget_seconds
        self._broken: dict[str, tuple[str, int]] = {}
        self._old: dict[str, tuple[int, ...]] = {}  # Xids at the first look, by GPU

    def see(self, gpus: Iterable[Gpu], at_seconds: int) -> dict[str, str]:
        """GPUs that are broken now, by id, with the reason in words."""
        for gpu in gpus:
            works = bool(gpu.utilization_fraction) and not gpu.faults
            undated = tuple(x for x in gpu.xids if x not in gpu.recent_xids)
            old = self._old.setdefault(gpu.id, undated if works else ())
            if old and undated != old:
                old = self._old[gpu.id] = ()
            reason = self._reason(gpu, old)
            if reason:
                self._broken[gpu.id] = (reason, at_seconds)
            elif gpu.id in self._broken:
                if gpu.xids:
                    self._broken[gpu.id] = (self._broken[gpu.id][0], at_seconds)
                else:
                    del self._broken[gpu.id]
        self._broken = {k: v for k, v in self._broken.items() if at_seconds - v[1] <= self.forget_seconds}
        return {key: reason for key, (reason, _) in self._broken.items()}

    def _reason(self, gpu: Gpu, old: tuple[int, ...]) -> str:
        codes = [str(x) for x in gpu.xids if x not in self.ignore and x not in old]
        return "; ".join([*(f"Xid {code}" for code in codes), *gpu.faults])


def by_pod(gpus: Iterable[Gpu], namespace: str | None = None) -> dict[str, list[Gpu]]:
    """GPUs by the pod that holds them, of one namespace or all; those that nobody holds are left out."""
    found: dict[str, list[Gpu]] = {}
    for gpu in gpus:
        if gpu.pod and (namespace is None or gpu.namespace == namespace):
            found.setdefault(gpu.pod, []).append(gpu)
    return found


def state_of(gpus: Sequence[Gpu], broken: Mapping[str, str]) -> GpuState:
    """One replica's state out of its GPUs: it is broken if one of them is."""
    reasons = [f"GPU {gpu.id} on {gpu.host or 'this host'}: {broken[gpu.id]}" for gpu in gpus if gpu.id in broken]
    used = [g.memory_used_bytes for g in gpus if g.memory_used_bytes is not None]
    return GpuState(
        gpus=len(gpus),
        utilization_fraction=_mean([g.utilization_fraction for g in gpus]),
        sm_active_fraction=_mean([g.sm_active_fraction for g in gpus]),
        memory_used_bytes=sum(used) if used else None,
        unhealthy="; ".join(reasons),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None
