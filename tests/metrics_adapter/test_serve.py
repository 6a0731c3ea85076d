"""`autoscaler serve` as a process: it decides, answers on its ports, resumes from its log, and ends well when told."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from aiohttp import web
from served import served

from autoscaler.errors import ConfigError
from autoscaler.log import settings_of
from autoscaler.main import main
from metrics_adapter.serve_command import add_arguments, check

API = "/apis/external.metrics.k8s.io/v1beta1/namespaces/llm"


@pytest.fixture(scope="module")
def engine() -> Iterator[int]:
    """The port of a replica's page."""
    page = files("metrics_adapter").joinpath("data/vllm_page.prom").read_text(encoding="utf-8")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/plain")

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    with served(application) as server:
        yield server.port


def config(folder: Path, engine: int, **section: Any) -> Path:
    path = folder / "config.json"
    source = {"kind": "scrape", "targets": [f"http://127.0.0.1:{engine}/metrics"], "spread_seconds": 0}
    pool = {"name": "chat", "source": source, "limits": {"min_replicas": 1, "max_replicas": 9}, **section}
    path.write_text(json.dumps({"version": 1, "interval_seconds": 1, "pools": [pool]}))
    return path


class Process:
    """A running `serve`: what it printed, and where its plain port is."""

    def __init__(self, config: Path, *options: str) -> None:
        command = [sys.executable, "-m", "autoscaler.main", "serve", "-c", str(config), "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=config.parent)
        self.lines: list[str] = []
        self.port = int(self.wait_for(r"page, probes and metrics: http://127\.0\.0\.1:(\d+)/"))

    def wait_for(self, pattern: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(pattern, line)
            if found:
                return found.group(1)
        raise AssertionError(f"no line like {pattern}:\n{''.join(self.lines)}")

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def until(self, path: str, code: int, seconds: float = 20.0) -> str:
        """The body once `path` answers `code`."""
        end = time.monotonic() + seconds
        while True:
            found, body = self.get(path)
            if found == code:
                return body
            assert time.monotonic() < end, (found, body)
            time.sleep(0.1)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        assert self.process.stderr is not None
        self.lines += self.process.stderr.readlines()
        return code


@contextmanager
def serving(config: Path, *options: str) -> Iterator[Process]:
    process = Process(config, *options)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()
        assert process.process.stderr is not None
        process.process.stderr.close()


QUICK = ("--without-cluster", "--refit-minutes", "0", "--drain-seconds", "0")


def test_it_decides_answers_ends_well_and_goes_on_where_it_was(tmp_path: Path, engine: int):
    path = config(tmp_path, engine)
    with serving(path, *QUICK, "--log", "steps") as process:
        body = json.loads(process.until(f"{API}/desired_replicas?labelSelector=pool%3Dchat", 200))
        assert body["items"][0]["value"] == "1"
        assert process.get("/livez")[0] == process.get("/readyz")[0] == 200
        assert 'autoscaler_decision_replicas{pool="chat"} 1' in process.get("/metrics")[1]
        assert "<!doctype html>" in process.get("/")[1]
        code, text = process.get(f"{API}/desired_replicas?labelSelector=pool%3Dcode")
        assert (code, json.loads(text)["kind"]) == (404, "Status")
        assert json.loads(process.get("/apis/external.metrics.k8s.io/v1beta1")[1])["kind"] == "APIResourceList"
        assert process.end() == 0
        assert "Traceback" not in "".join(process.lines)
    assert settings_of(tmp_path / "steps" / "chat").name == "chat"
    path.write_text(path.read_text().replace('"interval_seconds": 1', '"interval_seconds": 3600'))
    with serving(path, *QUICK, "--log", "steps", "--stale-after-seconds", "3600") as process:
        # What the log ended with: the next turn is at the next full hour.
        again = json.loads(process.until(f"{API}/desired_replicas?labelSelector=pool%3Dchat", 200))
        assert again["items"][0]["timestamp"] >= body["items"][0]["timestamp"]
        assert process.end() == 0
    assert len(list((tmp_path / "steps" / "chat").glob("*.jsonl"))) == 2


def test_a_killed_process_leaves_a_log_that_replays(tmp_path: Path, engine: int):
    path = config(tmp_path, engine)
    with serving(path, *QUICK, "--log", "steps") as process:
        process.until(f"{API}/desired_replicas", 200)
        process.process.send_signal(signal.SIGKILL)
        process.process.wait()
    assert main(["replay", str(tmp_path / "steps" / "chat")]) == 0


def test_replicas_that_do_not_answer_hold_the_number(tmp_path: Path):
    path = config(tmp_path, 9)
    with serving(path, *QUICK, "--log", "steps") as process:
        body = json.loads(process.until(f"{API}/desired_replicas", 200))
        assert body["items"][0]["value"] == "1"
        code, text = process.get(f"{API}/requests_per_second")
        assert (code, json.loads(text)["message"]) == (
            503,
            "pool chat: requests_per_second is not known in the last step",
        )
        assert process.end() == 0


def test_a_port_that_is_taken_is_a_sentence(tmp_path: Path, engine: int):
    path = config(tmp_path, engine)
    command = [sys.executable, "-m", "autoscaler.main", "serve", "-c", str(path), *QUICK, "--port", str(engine)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    said = f"autoscaler: error: --port: {engine} cannot be listened on: Address already in use"
    assert done.stderr.splitlines()[-1] == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "70000"], r"--port: 70000 must be in \[0, 65535\]"),
        (["--stale-after-seconds", "0"], r"--stale-after-seconds: 0 must be in \[1, 3600\]"),
        (["--secure-port", "https"], "--secure-port: 'https' must be off, or in"),
        (["--tls-cert-file", "a"], "--tls-cert-file: must be given together with --tls-private-key-file"),
        (["--without-cluster", "--keda-port", "9090"], "--keda-port: must be left out with --without-cluster"),
        (["--without-cluster", "--secure-port", "6443"], "--secure-port: must be left out with --without-cluster"),
        (["--lease", "autoscaler"], r"--address: is missing: .* \$POD_IP is not set"),
    ],
)
def test_options_that_make_no_sense(options: list[str], said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("POD_IP", raising=False)
    with pytest.raises(ConfigError, match=said):
        check(arguments(*options))


def arguments(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["-c", "config.yaml", *options])


def test_what_depends_on_something_else_is_filled_in(monkeypatch: pytest.MonkeyPatch):
    def filled(*options: str) -> tuple[Any, ...]:
        asked = arguments(*options)
        check(asked)
        return asked.host, asked.secure_port, asked.lease, asked.address

    monkeypatch.delenv("POD_IP", raising=False)
    assert filled() == (None, 6443, None, None)
    assert filled("--keda-port", "9090") == (None, None, None, None), "KEDA owns the group"
    assert filled("--keda-port", "9090", "--secure-port", "7443")[1] == 7443
    assert filled("--secure-port", "off")[1] is None
    assert filled("--without-cluster") == ("127.0.0.1", None, None, None)
    monkeypatch.setitem(os.environ, "POD_IP", "fd00::7")
    assert filled()[2:] == ("autoscaler", "http://[fd00::7]:8080")
    assert filled("--lease", "other", "--port", "81")[2:] == ("other", "http://[fd00::7]:81")
    assert filled("--lease", "off")[2:] == (None, None)
    assert filled("--without-cluster")[2:] == (None, None)


def test_a_pool_without_a_source_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "config.json"
    path.write_text('{"version": 1, "pools": [{"name": "chat"}]}')
    assert main(["serve", "-c", str(path), "--without-cluster"]) == 2
    assert "pools[0].source: is missing: pool 'chat' does not say" in capsys.readouterr().err
