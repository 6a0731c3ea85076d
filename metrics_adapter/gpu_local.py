"""GPUs of this machine without an exporter: NVML (extra ``nvml``), else the ``nvidia-smi`` command.

Both block for some milliseconds: call them in a thread.
"""

from __future__ import annotations

import csv
import io
import shutil
import socket
import subprocess
from importlib import import_module
from types import ModuleType
from typing import Any

from autoscaler.errors import AutoscalerError
from metrics_adapter.gpu import MIB, Gpu

QUERY = ("uuid", "name", "utilization.gpu", "memory.used", "memory.total", "power.draw")
TIMEOUT_SECONDS = 10.0  # a GPU that fell off the bus makes the command hang
NOT_TOLD = ("[N/A]", "[Not Supported]", "N/A", "")


class GpuReadError(AutoscalerError):
    """The GPUs of this machine cannot be read; the message says why."""


class LocalGpus:
    """Reads this machine's GPUs.

    Xids come only from NVML, from the moment that this was made: `read` tells those since then.
    """

    def __init__(self, nvml: ModuleType | None = None) -> None:
        """Raises GpuReadError where neither NVML nor nvidia-smi answers."""
        self.host = socket.gethostname()
        self._nvml: Any = None
        self._events: Any = None
        self._xids: dict[str, set[int]] = {}
        why = self._open_nvml(nvml)
        if self._nvml is None and shutil.which("nvidia-smi") is None:
            raise GpuReadError(f"no GPU can be read here: {why}, and there is no nvidia-smi on PATH")

    def read(self) -> list[Gpu]:
        """The GPUs now.  Raises GpuReadError."""
        return self._read_nvml() if self._nvml is not None else read_nvidia_smi(self.host)

    def close(self) -> None:
        """Let NVML go."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def _open_nvml(self, given: ModuleType | None) -> str:
        nvml: Any = given
        if nvml is None:
            try:
                nvml = import_module("pynvml")
            except ImportError:
                return "the extra nvml is not installed"
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            return f"NVML says {error}"
        self._nvml = nvml
        try:
            self._events = nvml.nvmlEventSetCreate()
            for handle in self._handles():
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._events)
        except nvml.NVMLError:
            self._events = None  # a virtual GPU tells no events: its Xids stay unknown
        return ""

    def _handles(self) -> list[Any]:
        nvml = self._nvml
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]

    def _read_nvml(self) -> list[Gpu]:
        try:
            self._take_events()
            handles = self._handles()
        except self._nvml.NVMLError as error:
            raise GpuReadError(f"NVML says {error}") from None
        return [self._gpu(i, handle) for i, handle in enumerate(handles)]

    def _take_events(self) -> None:
        nvml = self._nvml
        while self._events is not None:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError_Timeout:
                return
            uuid = _text(nvml.nvmlDeviceGetUUID(event.device))
            self._xids.setdefault(uuid, set()).add(int(event.eventData))

    def _gpu(self, index: int, handle: Any) -> Gpu:
        """One GPU; what NVML does not tell stays unknown, and a GPU that is lost is a fault."""
        nvml = self._nvml
        faults: list[str] = []

        def ask(function: Any, *arguments: Any) -> Any:
            try:
                return function(handle, *arguments)
            except nvml.NVMLError_NotSupported:
                return None
            except nvml.NVMLError as error:
                if str(error) not in faults:
                    faults.append(str(error))
                return None

        uuid = _text(ask(nvml.nvmlDeviceGetUUID)) or f"{self.host}:{index}"
        rates, memory = ask(nvml.nvmlDeviceGetUtilizationRates), ask(nvml.nvmlDeviceGetMemoryInfo)
        power = ask(nvml.nvmlDeviceGetPowerUsage)
        return Gpu(
            id=uuid,
            host=self.host,
            model=_text(ask(nvml.nvmlDeviceGetName)),
            utilization_fraction=None if rates is None else min(1.0, rates.gpu / 100.0),
            memory_used_bytes=None if memory is None else float(memory.used),
            memory_total_bytes=None if memory is None else float(memory.total),
            power_watts=None if power is None else power / 1000.0,
            xids=tuple(sorted(self._xids.get(uuid, ()))),
            recent_xids=tuple(sorted(self._xids.get(uuid, ()))),
            faults=tuple(faults),
        )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def read_nvidia_smi(host: str = "") -> list[Gpu]:
    """The GPUs as ``nvidia-smi`` prints them.  Raises GpuReadError if it fails or hangs."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise GpuReadError(f"nvidia-smi did not answer in {TIMEOUT_SECONDS:g} s") from None
    except OSError as error:
        raise GpuReadError(f"nvidia-smi cannot be run: {error.strerror or error}") from None
    rows = [row for row in csv.reader(io.StringIO(done.stdout), skipinitialspace=True) if len(row) == len(QUERY)]
    if not rows:
        first = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise GpuReadError(f"nvidia-smi says {first[0]}")
    return [_smi_gpu(row, host) for row in rows]


def _smi_gpu(row: list[str], host: str) -> Gpu:
    faults: list[str] = []

    def number(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:
            if text not in NOT_TOLD and not faults:
                faults.append(f"nvidia-smi prints {text}")
            return None

    uuid, name, percent, used, total, watts = row
    busy, use, size, power = (number(text) for text in (percent, used, total, watts))
    return Gpu(
        id=uuid,
        host=host,
        model=name,
        utilization_fraction=None if busy is None else min(1.0, busy / 100.0),
        memory_used_bytes=None if use is None else use * MIB,
        memory_total_bytes=None if size is None else size * MIB,
        power_watts=power,
        faults=tuple(faults),
    )
