"""Locust against fake engines in processes of their own: right latencies, and what happens when things break."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from autoscaler.main import main
from load_tests.loadtest_plan import Bodies, Plan
from serving.calibrate_command import toml
from serving.profiles import profile

pytestmark = [pytest.mark.slow, pytest.mark.alone]

CORES = sorted(os.sched_getaffinity(0))


def steady(folder: Path, seconds: float) -> str:
    """A profile file whose steps take `seconds`, whatever is in them."""
    base = profile("llama-3.1-8b_bf16_h100_tp1")
    law = {"a": seconds, "b": 0.0, "c": 0.0, "d": 0.0}
    flat = {
        "id": "steady", "layers": base.layers, "weights_gb": base.weights_gb, "max_num_seqs": 512,
        "kv_bytes_per_token": base.kv_bytes_per_token, "kv_capacity_tokens": base.kv_capacity_tokens,
        "linear": law, "roofline": law, "host": {"per_step_seconds": 0.0, "per_sequence_seconds": 0.0},
    }  # fmt: skip
    path = folder / "steady.toml"
    path.write_text(toml(flat))
    return str(path)


@contextmanager
def engine(*flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A fake engine in a process of its own, on a core of its own where there are two; its address."""
    command = [sys.executable, "-m", "load_tests.fake_engine", "--port", "0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, {CORES[0]})
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if found := re.search(r"ready on (http://\S+)", line):
                    break
            else:
                pytest.fail("the fake engine did not start")
            yield found[1], process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _client_core() -> Iterator[None]:
    """The test and the Locust that it starts on the last core."""
    os.sched_setaffinity(0, {CORES[-1]})
    yield
    os.sched_setaffinity(0, set(CORES))


def scenario(folder: Path, rate: float, seconds: float, *, prompt: int = 100, output: int = 20, **more: Any) -> str:
    data = {
        "version": 1,
        "name": "steady",
        "traffic": {
            "kind": "shape",
            "shape": {"kind": "step", "requests_per_second": rate, "factor": 1.5, "at_seconds": seconds / 2},
            "lengths": {
                "kind": "lognormal", "prompt_tokens": prompt, "output_tokens": output, "prompt_sigma": 0.3, "output_sigma": 0.3,
            },
        },
        "window": {"duration_seconds": seconds},
        "slo": {"ttft_seconds": 2.0, "itl_seconds": 0.2, "attainment_fraction": 0.9},
        **more,
    }  # fmt: skip
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(data))
    return str(path)


def loadtest(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["loadtest", "--json", *arguments])
    out = capsys.readouterr().out
    return code, json.loads(out)


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = [line for path in folder.glob("records.*.jsonl") for line in path.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines), key=lambda row: row["i"])


async def plainly(plan: Plan, start_at: float) -> tuple[list[float], list[float]]:
    """The plan sent by a plain asyncio client from a Unix second on: TTFT from the intended start, gaps between tokens."""
    bodies, ttft, gaps = Bodies(plan), [], []
    sent = [bodies.body(i) for i in range(len(plan))]

    async def one(session: aiohttp.ClientSession, i: int, at: float) -> None:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        last = None
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{plan.sending.host}/v1/completions", data=sent[i], headers=headers) as answer:
            assert answer.status == 200
            while line := await answer.content.readline():
                now = time.perf_counter()
                if line.startswith(b"data: {") and json.loads(line[6:])["choices"]:
                    if last is None:
                        ttft.append(now - at)
                    else:
                        gaps.append(now - last)
                    last = now

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        zero = time.perf_counter() + start_at - time.time()
        await asyncio.gather(*(one(session, i, zero + at) for i, at in enumerate(plan.arrival_seconds.tolist())))
    return ttft, gaps


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def test_locust_measures_what_a_plain_client_measures(tmp_path: Path) -> None:
    """Both send the same schedule at the same time, so that both see the same hiccups of the machine and of the engine.

    Steps of 250 ms, so that milliseconds do not decide; medians of three rounds.
    """
    found: dict[tuple[str, str], list[float]] = {}
    with engine("--profile", steady(tmp_path, 0.25), "--no-enable-prefix-caching") as (url, _):
        file = scenario(tmp_path, rate=5, seconds=14, output=12)
        for turn in range(3):
            out = tmp_path / f"round{turn}"
            command = [sys.executable, "-m", "autoscaler.main", "loadtest", file, "--host", url, "--json"]
            child = subprocess.Popen(
                [*command, "--seed", str(turn), "--out", str(out)], stdout=subprocess.PIPE, text=True
            )
            while not (out / "start.json").exists() or not (out / "start.json").read_text():
                assert child.poll() is None
                time.sleep(0.05)
            start_at = json.loads((out / "start.json").read_text())["start_at"]
            ttft, gaps = asyncio.run(plainly(Plan.load(out), start_at))
            told = json.loads(child.communicate(timeout=60)[0])
            assert told["failed"] == told["unfinished"] == 0
            for name, q in (("p50", 0.5), ("p99", 0.99)):
                for what, mine in (("ttft", ttft), ("itl", gaps)):
                    found.setdefault(("locust", f"{what} {name}"), []).append(told[f"{what}_seconds"][name])
                    found.setdefault(("plain", f"{what} {name}"), []).append(quantile(mine, q))
    for name, limit in (("ttft p50", 0.05), ("itl p50", 0.05), ("ttft p99", 0.1), ("itl p99", 0.1)):
        locust, plain = (statistics.median(found[who, name]) for who in ("locust", "plain"))
        print(
            f"{name}: Locust {1000 * locust:.1f} ms, plain client {1000 * plain:.1f} ms, {100 * (locust / plain - 1):+.1f} %"
        )
        assert locust == pytest.approx(plain, rel=limit), (name, found)


def test_two_hundred_streams_at_70_ms_take_less_than_half_a_core(tmp_path: Path) -> None:
    async def load(url: str) -> list[float]:
        gaps: list[float] = []

        async def one(session: aiohttp.ClientSession, i: int) -> None:
            body = {"prompt": [i] * 50, "max_tokens": 60, "ignore_eos": True, "stream": True}
            last = None
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                while line := await answer.content.readline():
                    if line.startswith(b"data: {"):
                        now = time.perf_counter()
                        gaps.extend([] if last is None else [now - last])
                        last = now

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(one(session, i) for i in range(200)))
        return gaps

    with engine("--profile", steady(tmp_path, 0.07)) as (url, process):
        ticks = os.sysconf("SC_CLK_TCK")

        def cpu_seconds() -> float:
            parts = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return (int(parts[11]) + int(parts[12])) / ticks

        used, begun = cpu_seconds(), time.monotonic()
        gaps = asyncio.run(load(url))
        share = (cpu_seconds() - used) / (time.monotonic() - begun)
    assert len(gaps) == 200 * 59
    told = (
        f"CPU share {share:.2f}, ITL p50 {1000 * quantile(gaps, 0.5):.1f} ms, p99 {1000 * quantile(gaps, 0.99):.1f} ms"
    )
    print(told)
    assert share < 0.5, told
    assert statistics.median(gaps) == pytest.approx(0.07, rel=0.05), told


def test_processes_share_the_plan_and_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with engine("--profile", steady(tmp_path, 0.05)) as (url, _):
        out = tmp_path / "out"
        file = scenario(tmp_path, rate=6, seconds=8)
        _, told = loadtest(capsys, file, "--host", url, "--processes", "2", "--api", "chat", "--out", str(out))
        made = float(
            next(
                line.split()[-1]
                for line in subprocess.check_output(["curl", "-s", f"{url}/metrics"], text=True).splitlines()
                if line.startswith("vllm:generation_tokens_total{")
            )
        )
    seen = rows(out)
    assert [row["i"] for row in seen] == list(range(told["planned"]))
    assert len(list(out.glob("records.*.jsonl"))) == 2
    assert all(abs(row["sent"] - row["intended"]) < 1.0 for row in seen)  # the processes' clocks agree
    assert sum(row["output_tokens"] for row in seen) == made - 2  # the probe asked for two
    assert {row["status"] for row in seen} == {"done"}


def test_rejections_and_a_short_grace_are_violations_and_fail_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--max-num-seqs", "2", "--max-num-queued-reqs", "4")
    with engine("--profile", steady(tmp_path, 0.1), *flags) as (url, _):
        out = tmp_path / "out"
        file = scenario(tmp_path, rate=8, seconds=8, output=60)
        code, told = loadtest(capsys, file, "--host", url, "--grace", "1", "--out", str(out))
    assert told["failed"] > 10
    assert told["unfinished"] > 0
    assert told["client_errors"] == 0
    assert not told["met"]
    assert code in (1, 3)  # 3 where a busy machine made the generator late
    seen = rows(out)
    assert any(row["http"] == 503 for row in seen)
    assert any(row["http"] == 200 and "error event 503" in str(row["error"]) for row in seen)
    assert all(row["error"] == "open at the end" for row in seen if row["status"] == "unfinished")
    assert told["violated"] >= told["failed"] + told["unfinished"]


def test_a_server_that_dies_is_the_servers_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with engine("--profile", steady(tmp_path, 0.1)) as (url, process):
        out = tmp_path / "out"
        file = scenario(tmp_path, rate=4, seconds=10, output=30)
        killer = subprocess.Popen([sys.executable, "-c", KILLER, str(out), str(process.pid), "5"])
        code, told = loadtest(capsys, file, "--host", url, "--out", str(out), "--grace", "5")
        killer.wait()
    assert code in (1, 3)
    assert told["failed"] > 5
    assert told["client_errors"] < told["failed"] / 2  # a refused connection is the server's
    assert told["unfinished"] == 0
    assert sum(told["errors"].values()) == told["failed"]


KILLER = """
import json, os, pathlib, signal, sys, time
start = pathlib.Path(sys.argv[1]) / "start.json"
while not start.exists():
    time.sleep(0.05)
time.sleep(max(0.0, json.loads(start.read_text())["start_at"] + float(sys.argv[3]) - time.time()))
os.kill(int(sys.argv[2]), signal.SIGKILL)
"""


def test_ctrl_c_judges_what_was_sent_and_leaves_no_process(tmp_path: Path) -> None:
    with engine("--profile", steady(tmp_path, 0.05)) as (url, _):
        out = tmp_path / "out"
        file = scenario(tmp_path, rate=4, seconds=300)
        # A background job of a shell inherits SIGINT ignored; somebody's terminal does not.
        code = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "from autoscaler.main import main; sys.exit(main())"
        )
        command = [sys.executable, "-c", code, "loadtest", file, "--host", url, "--out", str(out), "--json"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 90
        while not (out / "records.0.jsonl").exists() or len(rows(out)) < 3:
            assert time.monotonic() < deadline, child.poll()
            time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        text, _ = child.communicate(timeout=60)
    told = json.loads(text)
    assert child.returncode == 3
    assert 0 < told["sent"] < told["planned"]
    assert told["unfinished"] >= told["planned"] - told["sent"]
    left = subprocess.run(["pgrep", "-f", str(out)], capture_output=True, text=True, check=False).stdout
    assert not left.strip()


def test_a_fast_engine_takes_a_fast_trace_and_only_at_its_own_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine("--profile", steady(tmp_path, 0.4), "--speed", "4") as (url, _):
        file = scenario(tmp_path, rate=1, seconds=32, slo={"ttft_seconds": 2.0, "itl_seconds": 0.5})
        assert main(["loadtest", file, "--host", url, "--speed", "8", "--out", str(tmp_path / "no")]) == 2
        assert "--speed: 8 must be 1" in capsys.readouterr().err
        begun = time.monotonic()
        _, told = loadtest(capsys, file, "--host", url, "--speed", "4", "--out", str(tmp_path / "yes"))
    assert time.monotonic() - begun < 32 + 20
    assert told["itl_seconds"]["p50"] == pytest.approx(0.4, rel=0.1)
    assert told["violated"] == 0


def test_locusts_page_is_served_meanwhile_and_the_run_still_ends(tmp_path: Path) -> None:
    with engine("--profile", steady(tmp_path, 0.05)) as (url, _), socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        file = scenario(tmp_path, rate=4, seconds=8)
        command = [
            sys.executable,
            "-m",
            "autoscaler.main",
            "loadtest",
            file,
            "--host",
            url,
            "--web",
            str(port),
            "--json",
        ]
        states = set()
        with subprocess.Popen([*command, "--out", str(tmp_path / "out")], stdout=subprocess.PIPE, text=True) as child:
            while child.poll() is None and time.sleep(0.2) is None:
                with (
                    suppress(OSError),
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/stats/requests", timeout=5) as page,
                ):
                    states.add(json.loads(page.read())["state"])
            assert child.stdout is not None
            told = json.loads(child.stdout.read())
    assert "running" in states
    assert told["sent"] == told["planned"]
