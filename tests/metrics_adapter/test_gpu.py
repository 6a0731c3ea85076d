"""GPUs: exporters' pages, a machine without an exporter, and what breaks a replica."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metrics_adapter.gpu import APPLICATION_XIDS, MIB, Gpu, GpuWatch, by_pod, read_gpus, state_of
from metrics_adapter.gpu_local import GpuReadError, LocalGpus, read_nvidia_smi

DATA = Path(__file__).parent / "data"


def page(name: str, **replaced: str) -> list[tuple[str, dict[str, str], float]]:
    text = (DATA / name).read_text()
    for old, new in replaced.items():
        text = text.replace(old, new)
    return [(s.name, s.labels, s.value) for f in text_string_to_metric_families(text) for s in f.samples]


def test_a_dcgm_page_reads_to_the_values_it_states() -> None:
    first, second, third, idle = read_gpus(page("dcgm.prom"))
    assert first == Gpu(
        id="GPU-0a", host="node-a", pod="chat-0", namespace="serving", model="NVIDIA H100 80GB HBM3",
        utilization_fraction=0.96, sm_active_fraction=0.64, memory_used_bytes=75000 * MIB,
        memory_total_bytes=81559 * MIB, power_watts=650.25,
    )  # fmt: skip
    assert second.xids == (31,)
    assert third.xids == (79,)
    assert (third.memory_used_bytes, third.memory_total_bytes) == (None, None)  # blank is not 2 PiB
    assert (idle.pod, idle.utilization_fraction) == ("", 0.0)


def test_instances_of_mig_share_what_breaks_their_gpu() -> None:
    gpus = read_gpus(page("dcgm_mig.prom"))
    parts = [g for g in gpus if g.pod]
    assert [(g.id, g.pod, g.utilization_fraction) for g in parts] == [
        ("GPU-0a/1", "small-0", 0.25),
        ("GPU-0a/2", "small-1", 0.5),
    ]
    assert all(g.xids == (48,) for g in parts)
    assert [g.memory_total_bytes for g in parts] == [40000 * MIB, 40000 * MIB]


def test_through_prometheus_the_pod_is_the_one_that_holds_the_gpu() -> None:
    gpus = read_gpus(page("dcgm_prometheus.prom"))
    assert {g.pod: g.namespace for g in gpus} == {"chat-0": "serving", "chat-1": "serving"}
    broken = GpuWatch().see(gpus, 0)
    assert broken == {"GPU-2c": "Xid 94"}  # 43 is an application's; a health watch that warns has not failed
    assert next(g for g in gpus if g.pod == "chat-1").xids == (43, 94)


def test_an_amd_page_under_every_spelling_of_its_names() -> None:
    busy, bad = read_gpus(page("amd.prom"))
    assert (busy.pod, busy.namespace, busy.utilization_fraction) == ("rocm-0", "serving", 0.37)
    assert (busy.memory_used_bytes, busy.memory_total_bytes) == (150000 * MIB, 196592 * MIB)
    assert (busy.power_watts, busy.model, busy.faults) == (512.0, "AMD Instinct MI300X OAM", ())
    assert bad.faults == ("the exporter calls it unhealthy",)
    for prefix in ("amd_gpu_", "GPU_"):
        assert len(read_gpus(page("amd.prom", gpu_health=f"{prefix}health", gpu_gfx=f"{prefix}gfx"))) == 2
    shouted = [(name.upper(), labels, value) for name, labels, value in page("amd.prom")]
    assert [g.faults for g in read_gpus(shouted)] == [(), bad.faults]


def test_a_page_of_something_else_has_no_gpus() -> None:
    assert read_gpus([("vllm:num_requests_running", {"engine": "0"}, 3.0), ("gpu_cache_usage_perc", {}, 0.5)]) == []


def test_not_a_number_and_nonsense_are_not_measured() -> None:
    labels = {"UUID": "GPU-x", "gpu": "0", "Hostname": "h"}
    (gpu,) = read_gpus(
        [
            ("DCGM_FI_DEV_GPU_UTIL", labels, float("nan")),
            ("DCGM_FI_DEV_FB_USED", labels, 5.0),
            ("DCGM_FI_PROF_SM_ACTIVE", labels, -1.0),
            ("DCGM_EXP_XID_ERRORS_COUNT", {**labels, "xid": "many"}, 3.0),
            ("DCGM_FI_DEV_XID_ERRORS", labels, float("inf")),
        ]
    )
    assert (gpu.utilization_fraction, gpu.sm_active_fraction, gpu.xids) == (None, None, ())
    assert gpu.memory_used_bytes == 5 * MIB


def test_a_xid_breaks_a_replica_and_an_applications_own_does_not() -> None:
    gpus = read_gpus(page("dcgm.prom"))
    broken = GpuWatch().see(gpus, 100)
    replicas = {pod: state_of(held, broken) for pod, held in by_pod(gpus, "serving").items()}
    assert set(replicas) == {"chat-0", "chat-1"}
    assert replicas["chat-0"].unhealthy == ""
    assert replicas["chat-0"].gpus == 2
    assert replicas["chat-0"].utilization_fraction == pytest.approx(0.92)
    assert replicas["chat-0"].sm_active_fraction == pytest.approx(0.60)
    assert replicas["chat-0"].memory_used_bytes == 148000 * MIB
    assert replicas["chat-1"].unhealthy == "GPU GPU-2c on node-a: Xid 79"
    assert by_pod(gpus, "elsewhere") == {}
    assert 31 in APPLICATION_XIDS
    strict = GpuWatch(ignore=())
    strict.see([replace(gpu, xids=()) for gpu in gpus], 90)
    assert set(strict.see(gpus, 100)) == {"GPU-1b", "GPU-2c"}


def test_a_harmless_xid_does_not_hide_the_one_before() -> None:
    watch = GpuWatch(forget_seconds=600)
    assert watch.see([Gpu(id="g", xids=(79,))], 0) == {"g": "Xid 79"}
    assert watch.see([Gpu(id="g", xids=(43,))], 500) == {"g": "Xid 79"}
    assert watch.see([], 1000) == {"g": "Xid 79"}  # its page is late
    assert watch.see([Gpu(id="g")], 1010) == {}  # a new driver
    assert watch.see([Gpu(id="g", faults=("row remapping failed",))], 1020) == {"g": "row remapping failed"}
    assert watch.see([], 2000) == {}  # gone for good
    assert watch.see([Gpu(id="g", xids=(13,))], 3000) == {}


def test_what_a_working_gpu_says_at_the_first_look_is_old_news() -> None:
    watch = GpuWatch()
    busy = Gpu(id="g", xids=(94,), utilization_fraction=0.7)
    assert watch.see([busy], 0) == {}
    assert watch.see([Gpu(id="g", xids=(94,), utilization_fraction=0.0)], 10) == {}
    assert watch.see([Gpu(id="g", xids=(95,), utilization_fraction=0.7)], 20) == {"g": "Xid 95"}
    assert watch.see([busy], 30) == {"g": "Xid 94"}  # told again, so it is news
    idle = GpuWatch()
    assert idle.see([Gpu(id="g", xids=(79,), utilization_fraction=0.0)], 0) == {"g": "Xid 79"}
    assert idle.see([Gpu(id="h", xids=(79,))], 0) == {"g": "Xid 79", "h": "Xid 79"}
    fault = Gpu(id="f", xids=(64,), faults=("row remapping failed",), utilization_fraction=0.5)
    assert "Xid 64" in GpuWatch().see([fault], 0)["f"]


def test_unknown_stays_unknown() -> None:
    assert state_of([Gpu(id="a"), Gpu(id="b", utilization_fraction=0.5)], {}).utilization_fraction == 0.5
    empty = state_of([], {})
    assert (empty.gpus, empty.utilization_fraction, empty.memory_used_bytes, empty.unhealthy) == (0, None, None, "")


# -- without an exporter -------------------------------------------------------------------------------------------


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A command nvidia-smi that does what `script` says."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_nvidia_smi_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(
        tmp_path, monkeypatch,
        'test "$1" = --query-gpu=uuid,name,utilization.gpu,memory.used,memory.total,power.draw || exit 9\n'
        'echo "GPU-1, NVIDIA L4, 37, 1024, 23034, 55.10"\n'
        'echo "GPU-2, NVIDIA L4, [N/A], 0, 23034, [Not Supported]"\n'
        'echo "GPU-3, NVIDIA L4, [Unknown Error], [Unknown Error], 23034, ERR!"',
    )  # fmt: skip
    one, two, three = read_nvidia_smi("h")
    assert one == Gpu(
        id="GPU-1", host="h", model="NVIDIA L4", utilization_fraction=0.37, memory_used_bytes=1024 * MIB,
        memory_total_bytes=23034 * MIB, power_watts=55.1,
    )  # fmt: skip
    assert (two.utilization_fraction, two.power_watts, two.faults) == (None, None, ())
    assert three.faults == ("nvidia-smi prints [Unknown Error]",)
    assert GpuWatch().see([one, two, three], 0) == {"GPU-3": "nvidia-smi prints [Unknown Error]"}


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo 'NVIDIA-SMI has failed because it could not talk to the driver.'; exit 9", "says NVIDIA-SMI has failed"),
        ("exit 12", "says exit code 12"),
        ("echo 'No devices were found'", "says No devices were found"),
    ],
)
def test_an_nvidia_smi_that_fails_is_told(
    script: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path, monkeypatch, script)
    with pytest.raises(GpuReadError, match=sentence):
        read_nvidia_smi()


def test_an_nvidia_smi_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "exec sleep 30")
    monkeypatch.setattr("metrics_adapter.gpu_local.TIMEOUT_SECONDS", 0.2)
    with pytest.raises(GpuReadError, match=r"did not answer in 0\.2 s"):
        read_nvidia_smi()


class FakeNvml(types.ModuleType):
    """What `gpu_local` asks of NVML: two GPUs, the second lost; Xids come as events."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    class NVMLError_Timeout(NVMLError):
        pass

    nvmlEventTypeXidCriticalError = 8

    def __init__(self, works: bool = True) -> None:
        super().__init__("pynvml")
        self.works, self.events, self.registered = works, [], []  # type: ignore[var-annotated]

    def nvmlInit(self) -> None:
        if not self.works:
            raise self.NVMLError("Driver Not Loaded")

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlEventSetCreate": lambda: "set",
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda i: i,
            "nvmlDeviceRegisterEvents": lambda handle, kind, events: self.registered.append((handle, kind)),
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}".encode(),
            "nvmlDeviceGetName": lambda handle: "NVIDIA H100",
            "nvmlDeviceGetUtilizationRates": lambda handle: self._of(handle, types.SimpleNamespace(gpu=42)),
            "nvmlDeviceGetMemoryInfo": lambda handle: self._of(handle, types.SimpleNamespace(used=5, total=9)),
            "nvmlDeviceGetPowerUsage": self._no_power,
            "nvmlShutdown": lambda: None,
            "nvmlEventSetWait_v2": self._wait,
        }
        if name not in answers:
            raise AttributeError(name)
        return answers[name]

    def _of(self, handle: int, answer: Any) -> Any:
        if handle == 1:
            raise self.NVMLError("GPU is lost")
        return answer

    def _no_power(self, handle: int) -> Any:
        raise self.NVMLError_NotSupported("Not Supported")

    def _wait(self, events: str, milliseconds: int) -> Any:
        if not self.events:
            raise self.NVMLError_Timeout("Timeout")
        return self.events.pop(0)


def test_nvml_is_asked_for_values_and_events() -> None:
    nvml = FakeNvml()
    local = LocalGpus(nvml)
    assert nvml.registered == [(0, 8), (1, 8)]
    one, lost = local.read()
    assert (one.id, one.utilization_fraction, one.memory_used_bytes, one.power_watts) == ("GPU-0", 0.42, 5.0, None)
    assert (one.xids, one.faults) == ((), ())
    assert lost.faults == ("GPU is lost",)
    assert lost.utilization_fraction is None
    nvml.events += [types.SimpleNamespace(device=0, eventData=79), types.SimpleNamespace(device=0, eventData=13)]
    assert local.read()[0].xids == (13, 79)
    assert local.read()[0].xids == (13, 79)  # an event is told once, and kept
    local.close()


def test_without_nvml_the_command_is_used_and_without_both_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path, monkeypatch, 'echo "GPU-1, NVIDIA L4, 37, 1024, 23034, 55.10"')
    assert LocalGpus(FakeNvml(works=False)).read()[0].id == "GPU-1"
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(GpuReadError, match="NVML says Driver Not Loaded, and there is no nvidia-smi on PATH"):
        LocalGpus(FakeNvml(works=False))
