"""Finding the programs of a cluster, running them, and ending them whatever happens."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

SCRIPT = Path(__file__).parents[3] / "scripts" / "cluster-parts"
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
T = TypeVar("T")


class CannotBuild(RuntimeError):
    """A program is neither here nor can it be built; the message says what to install."""


@cache
def folder_of(part: str) -> Path:
    """The folder of a part's programs (control-plane, kwok, keda, kserve), built where it is missing."""
    done = subprocess.run([sys.executable, str(SCRIPT), part], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise CannotBuild(
            f"{part} is neither installed here nor could it be built: install Go 1.26 or later (https://go.dev/dl)"
        )
    return Path(done.stdout.strip().split("=", 1)[1])


def free_ports(count: int) -> list[int]:
    """Ports on loopback that were free a moment ago, all different."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in held]
    for s in held:
        s.close()
    return ports


def wait_for(what: str, look: Callable[[], T | None], *, seconds: float = 30.0, every: float = 0.1) -> T:
    """The first true answer of `look`; TimeoutError naming `what`, and the last answer, after `seconds`.

    What `look` raises as OSError, KeyError or AssertionError counts as "not yet".
    """
    deadline = time.monotonic() + seconds
    last: object = None
    while True:
        try:
            if answer := look():
                return answer
            last = answer
        except (OSError, KeyError, AssertionError, LookupError) as error:
            last = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s; last seen: {last!r}")
        time.sleep(every)


def _die_with_parent() -> None:
    """Linux: a killed test run leaves nothing behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


class Program:
    """A child process with a log; `stop` ends it, and so does the end of this process, on Linux even by SIGKILL."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name, self.command, self.log = name, [str(word) for word in command], log
        self._environment, self._cwd = {**os.environ, **(environment or {})}, cwd
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again; the log goes on."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, stdout=out, stderr=out, env=self._environment, cwd=self._cwd,
                start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process is not None and self.process.poll() is None

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def wait_until(self, what: str, look: Callable[[], T | None], *, seconds: float = 60.0) -> T:
        """As `wait_for`; a program that ends meanwhile fails at once, with its log."""

        def looked() -> T | None:
            if not self.running():
                raise RuntimeError(f"{self.name} ended:\n{self.tail()}")
            return look()

        try:
            return wait_for(f"{self.name}: {what}", looked, seconds=seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.tail()}") from None

    def kill(self) -> None:
        """At once, without a word (SIGKILL)."""
        self.stop(signal.SIGKILL)

    def stop(self, how: signal.Signals = signal.SIGTERM, *, seconds: float = 10.0) -> None:
        """End it; it gets `seconds` to do so by itself."""
        if self.process is None:
            return
        if self.running():
            self.process.send_signal(how)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None
