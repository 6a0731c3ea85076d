"""Locust as a child of the load test: started clean, watched, ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autoscaler.errors import SourceUnavailable
from load_tests.loadtest_plan import HEADERS_VARIABLE, Plan

POLL_SECONDS = 0.25
STARTING_SECONDS = 120.0
TOLD_SECONDS = 30.0

Tell = Callable[[dict[str, int], int, float, float], None]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(plan: Plan, folder: Path, processes: int, web: int | None) -> list[str]:
    locustfile = Path(__file__).with_name("locustfile.py")
    command = [
        sys.executable, "-m", "locust", "-f", str(locustfile), "--plan", str(folder), "--host", plan.sending.host,
        "--users", str(processes), "--spawn-rate", str(processes), "--stop-timeout", "2", "--exit-code-on-error", "0",
        "--loglevel", "WARNING",
    ]  # fmt: skip
    if processes > 1:
        port = str(_free_port())
        command += ["--processes", str(processes), "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        command += ["--master-host", "127.0.0.1", "--master-port", port]
    if web is None:
        return [*command, "--headless", "--only-summary"]
    return [*command, "--autostart", "--web-port", str(web), "--web-host", "127.0.0.1"]


def send(plan: Plan, folder: Path, processes: int, web: int | None) -> None:
    """Run Locust to its end, telling how far it is; Ctrl-C ends it early and still lets the records be judged."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LOCUST_")}
    root = str(Path(__file__).resolve().parents[1])
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, (root, clean.get("PYTHONPATH"))))
    clean[HEADERS_VARIABLE] = json.dumps(plan.sending.headers)
    span = plan.duration_seconds / plan.sending.speed
    with (folder / "locust.log").open("w", encoding="utf-8") as log:
        # Its own session, so that Ctrl-C comes once, from us, and its own folder, so that no locust.conf is read.
        child = subprocess.Popen(
            _command(plan, folder, processes, web),
            stdout=log,
            stderr=log,
            cwd=folder,
            env=clean,
            start_new_session=True,
        )
        try:
            with _progress() as tell:
                _watch(child, folder, plan, span, tell)
        except KeyboardInterrupt:
            print("autoscaler: interrupted, judging what was sent", file=sys.stderr)
        finally:
            _end(child)
    if not list(folder.glob("records.*.jsonl")):
        tail = (folder / "locust.log").read_text(encoding="utf-8")[-2000:]
        raise SourceUnavailable(f"Locust sent nothing; its log {folder / 'locust.log'} ends with: {tail.strip()}")


def _watch(child: subprocess.Popen[bytes], folder: Path, plan: Plan, span: float, tell: Tell) -> None:
    begun = time.monotonic()
    most = STARTING_SECONDS + plan.sending.lead_seconds + span + plan.sending.grace_seconds + 30.0
    while child.poll() is None:
        time.sleep(POLL_SECONDS)
        told = []
        for path in folder.glob("progress.*.json"):
            with suppress(OSError, ValueError):
                told.append(json.loads(path.read_text(encoding="utf-8")))
        sums = {k: int(sum(t[k] for t in told)) for k in ("sent", "done", "failed", "over")}
        tell(sums, len(plan), max((t["at"] for t in told), default=0.0), span)
        if time.monotonic() - begun > most:
            print(f"autoscaler: Locust did not end within {most:.0f} s: {folder / 'locust.log'}", file=sys.stderr)
            return


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on a terminal, else a line every half minute: sent, done, failed, time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    last = [time.monotonic()]
    columns = (BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(sums: dict[str, int], planned: int, at: float, span: float) -> None:
            left = max(0.0, span - at)
            what = f"sent {sums['sent']}/{planned}, done {sums['done']}, failed {sums['failed']}"
            what += f", {left:.0f} s left" if left > 0 else f", {sums['sent'] - sums['over']} open"
            bar.update(task, description=what, completed=min(1.0, max(0.0, at) / span))
            if not console.is_terminal and time.monotonic() - last[0] >= TOLD_SECONDS:
                last[0] = time.monotonic()
                print(what, file=sys.stderr, flush=True)

        yield tell


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the generator and all its processes, where it has not ended by itself."""
    if child.poll() is not None:
        return
    for sign, seconds in ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
            return
