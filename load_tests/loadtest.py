"""The command ``autoscaler loadtest``: a scenario's requests on a real server, open loop, by Locust.

Locust runs in processes of its own.  Exit codes: 0 the SLO is met, 1 missed, 2 something a person wrote is wrong, 3 the run is
invalid: the generator, not the server, was the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoscaler.errors import ConfigError, SourceUnavailable

if TYPE_CHECKING:
    from load_tests.loadtest_plan import Plan, Sending

TOKENS_PER_PROCESS = 2500.0  # token events a second of one Locust process, for errors below 20 ms at p99
POLL_SECONDS = 0.25
STARTING_SECONDS = 120.0
TOLD_SECONDS = 30.0
PROBE_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("scenario", help="scenario file, or builtin:NAME")
    parser.add_argument("--host", required=True, help="address of the server, such as http://127.0.0.1:8000")
    parser.add_argument("--seed", type=int, help="seed of arrivals and lengths (default: the scenario's first)")
    parser.add_argument("--window", metavar="START:END", help="only the requests that arrive between these seconds")
    parser.add_argument("--seconds", type=float, help="only the first so many seconds")
    parser.add_argument("--warm-up", type=float, metavar="SECONDS", help="seconds that are sent and not judged")
    parser.add_argument("--model", help="model to ask for (default: the server's first)")
    parser.add_argument(
        "--api", choices=("completions", "chat"), default="completions", help="route (default: completions)"
    )
    parser.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="sent along; may be repeated"
    )
    parser.add_argument("--processes", type=int, help="generator processes (default: by tokens per second and cores)")
    parser.add_argument(
        "--grace", type=float, default=60.0, metavar="SECONDS", help="wait for open requests (default: 60)"
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, help="only with a fake engine that runs at the same --speed"
    )
    parser.add_argument("--no-probe", action="store_true", help="send no request of its own before; --model is needed")
    parser.add_argument("--out", type=Path, help="folder of plan and records (default: loadtest/SCENARIO-TIME)")
    parser.add_argument(
        "--prepare", type=Path, metavar="FOLDER", help="write the plan for locust here, and send nothing"
    )
    parser.add_argument("--web", type=int, metavar="PORT", help="serve Locust's page on this port while it runs")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Plan, send, judge; the exit code."""
    from load_tests.loadtest_plan import plan_of
    from load_tests.loadtest_result import outcome_of, table
    from load_tests.scenario import load_scenario

    _check(arguments)
    scenario = load_scenario(arguments.scenario)
    if arguments.prepare is None and find_spec("locust") is None:
        raise ModuleNotFoundError("No module named 'locust'", name="locust")
    sending = _sending(arguments)
    plan = plan_of(
        scenario,
        scenario.seeds[0] if arguments.seed is None else arguments.seed,
        sending,
        window=_window(arguments),
        warm_up_seconds=arguments.warm_up,
    )
    plan = _with_limits(plan, arguments)
    folder = arguments.prepare or arguments.out or _default_folder(scenario.name)
    if list(folder.glob("records.*.jsonl")):
        raise ConfigError("--out", f"{folder} holds the records of another run: must be a new or empty folder")
    plan.save(folder)
    processes = arguments.processes or _processes(plan)
    _tell_plan(plan, processes, folder)
    if arguments.prepare is not None:
        return 0
    _send(plan, folder.absolute(), processes, arguments.web)
    outcome = outcome_of(folder)
    (folder / "outcome.json").write_text(json.dumps(outcome.data(), indent=2) + "\n", encoding="utf-8")
    print(json.dumps(outcome.data()) if arguments.json else table(outcome))
    return outcome.exit_code


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.host.startswith(("http://", "https://")):
        raise ConfigError("--host", f"{arguments.host!r} must begin with http:// or https://")
    if arguments.processes is not None and not 1 <= arguments.processes <= 1024:
        raise ConfigError("--processes", f"{arguments.processes} must be in [1, 1024]")
    if not 0.0 <= arguments.grace < 86400.0:
        raise ConfigError("--grace", f"{arguments.grace:g} must be in [0, 86400)")
    if not 0.0 < arguments.speed <= 1000.0:
        raise ConfigError("--speed", f"{arguments.speed:g} must be in (0, 1000]")
    if arguments.window is not None and arguments.seconds is not None:
        raise ConfigError("--seconds", "must be left out where --window is given")


def _window(arguments: argparse.Namespace) -> tuple[float, float] | None:
    if arguments.seconds is not None:
        if not arguments.seconds > 0.0:
            raise ConfigError("--seconds", f"{arguments.seconds:g} must be > 0")
        return 0.0, arguments.seconds
    if arguments.window is None:
        return None
    start, colon, end = arguments.window.partition(":")
    try:
        return float(start), float(end if colon else "x")
    except ValueError:
        raise ConfigError("--window", f"{arguments.window!r} must be START:END in seconds") from None


def _headers(arguments: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    found = []
    for text in arguments.header:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise ConfigError("--header", f"{text!r} must be NAME:VALUE")
        found.append((name.strip(), value.strip()))
    return tuple(found)


def _sending(arguments: argparse.Namespace) -> Sending:
    """How to send, after a look at the server."""
    from load_tests.loadtest_plan import Sending

    host, headers = arguments.host.rstrip("/"), _headers(arguments)
    _refuse_compression(host, arguments.speed, dict(headers))
    model = arguments.model
    if arguments.no_probe:
        if model is None:
            raise ConfigError("--model", "must be given with --no-probe, which asks the server nothing")
    elif model is None:
        models = _ask(f"{host}/v1/models", dict(headers))[1].get("data") or []
        if not models:
            raise SourceUnavailable(f"{host}/v1/models names no model: give --model")
        model = models[0]["id"]
    sending = Sending(
        host=host, model=model, api=arguments.api, speed=arguments.speed, grace_seconds=arguments.grace, headers=headers
    )
    return sending if arguments.no_probe else replace(sending, chunk_usage=_tells_chunk_usage(sending))


def _refuse_compression(host: str, speed: float, headers: dict[str, str]) -> None:
    """A trace in fast motion is another problem, unless the server's step times and start-ups shrink alike."""
    if speed == 1.0:
        return
    told: float | None = None
    with suppress(SourceUnavailable):
        told = _ask(f"{host}/fake_engine", headers)[1].get("speed")
    if told != speed:
        raise ConfigError(
            "--speed",
            f"{speed:g} must be 1: a real server's start-up and step times do not shrink with the trace; cut it with"
            " --window instead (only a fake engine started with the same --speed takes it)",
        )


def _ask(url: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer; SourceUnavailable if there is none."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    except (OSError, ValueError) as error:
        raise SourceUnavailable(f"{url} does not answer: {error}") from None
    try:
        told = json.loads(text)
    except ValueError:
        told = {}
    return status, told if isinstance(told, dict) else {}


def _tells_chunk_usage(sending: Sending) -> bool:
    """One small request, which also warms the server: does it take the option that tells the tokens of each chunk?"""
    path = "chat/completions" if sending.api == "chat" else "completions"
    prompt: dict[str, Any] = {"prompt": [1000, 1001]}
    if sending.api == "chat":
        prompt = {"messages": [{"role": "user", "content": "time"}]}
    url, headers = f"{sending.host}/v1/{path}", dict(sending.headers)
    asked = {**prompt, "model": sending.model, "max_tokens": 2, "ignore_eos": True, "stream": True}
    for chunk_usage in (True, False):
        options = {"include_usage": True} | ({"continuous_usage_stats": True} if chunk_usage else {})
        status, told = _ask(url, headers, json.dumps({**asked, "stream_options": options}).encode())
        if status == 200:
            return chunk_usage
    error = told.get("error", {})
    said = error.get("message", "") if isinstance(error, dict) else str(error)
    raise SourceUnavailable(f"{url} answers a small request with {status}: {said or 'no reason given'}")


def _with_limits(plan: Plan, arguments: argparse.Namespace) -> Plan:
    """A note where the server will refuse requests for their length."""
    if arguments.no_probe:
        return plan
    _, told = _ask(f"{plan.sending.host}/v1/models", dict(plan.sending.headers))
    limits = [m.get("max_model_len") for m in told.get("data") or [] if m.get("id") == plan.sending.model]
    if not limits or not isinstance(limits[0], int):
        return plan
    long = int(((plan.prompt_tokens + plan.output_tokens) > limits[0]).sum())
    if not long:
        return plan
    note = f"{long} requests are longer than the server's max_model_len, {limits[0]}, and will be refused"
    return replace(plan, notes=(*plan.notes, note))


def _default_folder(name: str) -> Path:
    plain = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    return Path("loadtest") / f"{plain}-{time.strftime('%Y%m%d-%H%M%S')}"


def _processes(plan: Plan) -> int:
    wanted = -(-plan.tokens_per_second // TOKENS_PER_PROCESS)
    return int(max(1, min(wanted, os.cpu_count() or 1)))


def _tell_plan(plan: Plan, processes: int, folder: Path) -> None:
    seconds = plan.duration_seconds / plan.sending.speed
    print(
        f"{len(plan)} requests over {seconds:g} s to {plan.sending.host} ({plan.sending.model}), up to"
        f" {plan.tokens_per_second:.0f} output tokens/s, {processes} process{'es' if processes > 1 else ''}; records in {folder}",
        file=sys.stderr,
    )
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    if plan.tokens_per_second > TOKENS_PER_PROCESS * processes:
        enough = int(-(-plan.tokens_per_second // TOKENS_PER_PROCESS))
        print(f"note: {enough} processes would be needed for latencies that are right to 20 ms", file=sys.stderr)
    sys.stderr.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(plan: Plan, folder: Path, processes: int, web: int | None) -> list[str]:
    locustfile = Path(__file__).with_name("locustfile.py")
    command = [
        sys.executable, "-m", "locust", "-f", str(locustfile), "--plan", str(folder), "--host", plan.sending.host,
        "--users", str(processes), "--spawn-rate", str(processes), "--stop-timeout", "5", "--exit-code-on-error", "0",
        "--loglevel", "WARNING",
    ]  # fmt: skip
    if processes > 1:
        port = str(_free_port())
        command += ["--processes", str(processes), "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        command += ["--master-host", "127.0.0.1", "--master-port", port]
    if web is None:
        return [*command, "--headless", "--only-summary"]
    return [*command, "--autostart", "--web-port", str(web), "--web-host", "127.0.0.1"]


def _send(plan: Plan, folder: Path, processes: int, web: int | None) -> None:
    """Run Locust to its end, telling how far it is; Ctrl-C ends it early and still lets the records be judged."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LOCUST_")}
    root = str(Path(__file__).resolve().parents[1])
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, (root, clean.get("PYTHONPATH"))))
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


def _watch(child: subprocess.Popen[bytes], folder: Path, plan: Plan, span: float, tell: Any) -> None:
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
            raise SourceUnavailable(f"Locust did not end within {most:.0f} s; see {folder / 'locust.log'}")


@contextmanager
def _progress() -> Iterator[Any]:
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
    """End the generator and all its processes."""
    for sign, seconds in ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        if child.poll() is not None:
            break
        with suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
