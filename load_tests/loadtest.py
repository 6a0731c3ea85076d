"""The command ``autoscaler loadtest``: a scenario's requests on a real server, open loop, by Locust.

Locust runs in processes of its own.  Exit codes: 0 the SLO is met, 1 missed, 2 something a person wrote is wrong, 3 the run is
invalid: the generator, not the server, was the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from autoscaler.errors import ConfigError

if TYPE_CHECKING:
    from load_tests.loadtest_plan import Plan, Sending

TOKENS_PER_PROCESS = 2500.0  # token events a second of one Locust process, for errors below 20 ms at p99


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("scenario", nargs="?", help="scenario file, or builtin:NAME")
    parser.add_argument("--host", help="address of the server, such as http://127.0.0.1:8000")
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
    parser.add_argument("--judge", type=Path, metavar="FOLDER", help="send nothing, judge the records in this folder")
    parser.add_argument("--web", type=int, metavar="PORT", help="serve Locust's page on this port while it runs")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Plan, send, judge; the exit code."""
    from load_tests.loadtest_locust import send
    from load_tests.loadtest_plan import plan_of
    from load_tests.loadtest_probe import with_length_note
    from load_tests.scenario import load_scenario

    if arguments.judge is not None:
        return _judge(arguments.judge, as_json=arguments.json)
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
    plan = plan if arguments.no_probe else with_length_note(plan)
    folder = arguments.prepare or arguments.out or _default_folder(scenario.name)
    if list(folder.glob("records.*.jsonl")):
        raise ConfigError("--out", f"{folder} holds the records of another run: must be a new or empty folder")
    plan.save(folder)
    processes = arguments.processes or _processes(plan)
    _tell_plan(plan, processes, folder)
    if arguments.prepare is not None:
        return 0
    send(plan, folder.absolute(), processes, arguments.web)
    return _judge(folder, as_json=arguments.json)


def _judge(folder: Path, *, as_json: bool) -> int:
    """Tell what the records in a folder are worth; the exit code."""
    from load_tests.loadtest_plan import META
    from load_tests.loadtest_result import outcome_of, table

    if not (folder / META).is_file():
        raise ConfigError("--judge", f"{folder} must be a folder that holds {META}")
    outcome = outcome_of(folder)
    (folder / "outcome.json").write_text(json.dumps(outcome.data(), indent=2) + "\n", encoding="utf-8")
    print(json.dumps(outcome.data()) if as_json else table(outcome))
    return outcome.exit_code


def _check(arguments: argparse.Namespace) -> None:
    for name, value in (("scenario", arguments.scenario), ("--host", arguments.host)):
        if value is None:
            raise ConfigError(name, "must be given")
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
    from load_tests.loadtest_probe import first_model, refuse_compression, tells_chunk_usage

    host, headers = arguments.host.rstrip("/"), _headers(arguments)
    refuse_compression(host, arguments.speed, dict(headers))
    model = arguments.model
    if arguments.no_probe:
        if model is None:
            raise ConfigError("--model", "must be given with --no-probe, which asks the server nothing")
    elif model is None:
        model = first_model(host, dict(headers))
    sending = Sending(
        host=host, model=model, api=arguments.api, speed=arguments.speed, grace_seconds=arguments.grace, headers=headers
    )
    return sending if arguments.no_probe else replace(sending, chunk_usage=tells_chunk_usage(sending))


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
