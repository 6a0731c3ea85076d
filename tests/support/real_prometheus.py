"""A real Prometheus on a free port, scraping given addresses; skipped with a sentence where there is none."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "prometheus"


@cache
def programs() -> dict[str, str]:
    """Paths by name: PROMETHEUS and PROMTOOL; builds them where needed, which takes minutes the first time."""
    found = subprocess.run([sys.executable, str(SCRIPT), "--find"], check=False).returncode == 0
    if not found and shutil.which("go") is None:
        why = "no prometheus and promtool on PATH and no Go to build them: install Go or Debian's package prometheus"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    done = subprocess.run([sys.executable, str(SCRIPT)], stdout=subprocess.PIPE, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.split())


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class RealPrometheus:
    """`with RealPrometheus(folder, {"vllm": ["127.0.0.1:8000"]}, scrape_seconds=1) as server: ... server.url`

    `web`: the text of a web config file (TLS, basic authentication), in `folder`.
    """

    def __init__(
        self,
        folder: Path,
        jobs: Mapping[str, Sequence[str]],
        *,
        scrape_seconds: float = 1.0,
        web: Mapping[str, object] | None = None,
    ) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"{'https' if web and 'tls_server_config' in web else 'http'}://127.0.0.1:{self.port}"
        every = f"{int(1000 * scrape_seconds)}ms"
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(targets)}]} for job, targets in jobs.items()
            ],
        }
        # JSON is YAML.
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self._web = web
        if web is not None:
            (folder / "web.yml").write_text(json.dumps(web))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (again), and wait until it answers."""
        command = [
            programs()["PROMETHEUS"],
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--storage.tsdb.retention.time=60d",
            "--log.level=warn",
        ]
        if self._web is not None:
            command.append(f"--web.config.file={self.folder / 'web.yml'}")
        with (self.folder / "prometheus.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.folder / "prometheus.log").read_text())
            time.sleep(0.1)

    def _listens(self) -> bool:
        if self._web is not None:
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", self.port)) == 0
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_for_targets(self, count: int) -> None:
        """Return when so many targets were scraped: discovery takes five seconds, and nobody can hurry it."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with urllib.request.urlopen(f"{self.url}/api/v1/targets?state=active", timeout=5) as answer:
                found = json.load(answer)["data"]["activeTargets"]
            if sum(t["health"] == "up" for t in found) >= count:
                return
            time.sleep(0.2)
        raise AssertionError(f"{count} targets were not scraped within a minute")

    def stop(self) -> None:
        """End it; what it stored stays."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def __enter__(self) -> RealPrometheus:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def load_history(folder: Path, openmetrics: str) -> None:
    """Put recorded samples, in OpenMetrics text with timestamps, into the store below `folder`, before it is started."""
    page = folder / "history.om"
    page.write_text(openmetrics)
    days = "--max-block-duration=32h"  # few blocks instead of one per two hours
    command = [
        programs()["PROMTOOL"],
        "tsdb",
        "create-blocks-from",
        "openmetrics",
        days,
        str(page),
        str(folder / "data"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
