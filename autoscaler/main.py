"""The command line, and the root that puts the rooms together.  Nobody imports it.

Exit codes: 0 done, 1 a check failed (a replay differs, an SLO gate is missed), 2 something a person wrote is wrong,
3 a load test is invalid.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import autoscaler
from autoscaler.config import load_config
from autoscaler.errors import AutoscalerError, ConfigError, ReplayMismatch
from autoscaler.log import steps_of
from autoscaler.schema import json_schema
from autoscaler.settings import FileSettings, PoolSettings
from autoscaler.views import explain

# Which extra brings a package that is missing.
EXTRAS = {
    "numpy": "sim", "numba": "sim", "rich": "sim", "yaml": "sim", "scipy": "bench", "joblib": "bench",
    "ray": "ray", "dask": "dask", "distributed": "dask", "aiohttp": "adapter",
    "locust": "locust", "gevent": "locust", "pandas": "forecast", "statsmodels": "forecast", "statsforecast": "forecast",
    "sklearn": "forecast", "prophet": "prophet", "pynvml": "nvml", "cryptography": "serve",
}  # fmt: skip

# Commands that live in a room of their own: name, module, help.  The module has add_arguments(parser) and
# run(arguments) -> exit code, and imports nothing heavy before run.
VERBS: tuple[tuple[str, str, str], ...] = (
    (
        "replay",
        "autoscaler.replay_command",
        "Decide every recorded step again: byte for byte, or under another config.",
    ),
    (
        "observe",
        "metrics_adapter.observe",
        "Show live what the autoscaler sees of running pools; record it, decide on it.",
    ),
    (
        "advise",
        "autoscaler.advise_command",
        "Tell what a pool has cost and attained by its log, and what `auto` would have.",
    ),
    (
        "costs",
        "autoscaler.costs_command",
        "Tell what the replicas of a pool were there for, in replica-hours, by its log.",
    ),
    (
        "serve",
        "metrics_adapter.serve_command",
        "Decide for all pools, and answer HPAs, KEDA and Prometheus; with a page that says why.",
    ),
    (
        "backtest",
        "load_tests.backtest",
        "Forecast recorded traffic as if live, beside well-known models; say who loses.",
    ),
    ("predict", "metrics_adapter.predict", "Serve forecasts over HTTP, as Katalyst's resource portrait asks for them."),
    (
        "capacity",
        "autoscaler.capacity_command",
        "Show what is believed of a pool's replicas, from what data, how well.",
    ),
    ("calibrate", "serving.calibrate_command", "Learn a replica's profile from a step log or recorded observations."),
    (
        "loadtest",
        "load_tests.loadtest",
        "Send a scenario's requests to a real server, open loop, and judge the answers.",
    ),
)

# Benches of a room that load_tests must not know: name, module, help.  The module has rows(quick) -> fields of BenchRows.
ROOM_BENCHES: tuple[tuple[str, str, str], ...] = (
    ("scrape", "metrics_adapter.bench_scrape", "what reading pages of metrics costs, for one replica and for a fleet"),
    ("serve", "metrics_adapter.bench_serve", "what an HPA's questions cost while the loop runs a hundred pools"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except ReplayMismatch as error:
        print(f"autoscaler: {error}", file=sys.stderr)
        return 1
    except AutoscalerError as error:
        print(f"autoscaler: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        print(f"autoscaler: error: {error.name} is missing: pip install 'replicast[{extra}]'", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"autoscaler: error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("autoscaler: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="autoscaler", description="An autoscaler for LLM inference that says why.", allow_abbrev=False
    )
    top.add_argument("--version", action="version", version=f"autoscaler {autoscaler.__version__}")
    verbs = top.add_subparsers(metavar="COMMAND", required=True, parser_class=_Command)

    def verb(name: str, run: Any, text: str) -> _Command:
        one: _Command = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.set_defaults(run=run)
        return one

    demo = verb("demo", _demo, "Replay two real LLM traces against a simulated fleet; one table, one report.")
    demo.add_argument("--out", type=Path, default=Path("out"), help="directory of the report (default: out)")
    demo.add_argument("--json", action="store_true", help="print the figures as JSON")

    simulate = verb("simulate", _simulate, "Run the policies of a scenario on a simulated fleet and compare them.")
    simulate.add_argument("scenario", nargs="+", help="scenario file, or builtin:NAME")
    simulate.add_argument("--policy", action="append", help="run only this policy of the scenario; may be repeated")
    simulate.add_argument("--seed", type=int, action="append", help="seed instead of the scenario's; may be repeated")
    simulate.add_argument("--html", type=Path, help="write the interactive report here")
    simulate.add_argument("--log", type=Path, help="write the step logs of our policies below this directory")
    simulate.add_argument("--json", action="store_true", help="print the figures as JSON")

    told = verb("explain", _explain, "Tell the decisions of a step log in plain words.")
    told.add_argument("log", type=Path, help="directory of a pool's log, or one segment")
    told.add_argument("--last", type=int, help="only the last N decisions")
    told.add_argument("--at", type=int, help="only the decision in force at this Unix second")
    told.add_argument("--all", action="store_true", help="also decisions that changed nothing")
    told.add_argument("--json", action="store_true", help="print the steps as JSON lines")

    check = verb("validate", _validate, "Check config, scenario, profile, engine and trace files.")
    check.add_argument("files", nargs="+", help="files, or builtin:NAME")

    schema = verb("schema", _schema, "Print the JSON Schema of a kind of file.")
    schema.add_argument("kind", nargs="?", default="config", choices=("config", "scenario", "profile", "engine"))

    bench = verb("bench", _bench, "Measure on this machine.")
    bench.add_argument("name", nargs="?", help="sim, step, scrape, policy, ... (default: list them)")
    bench.add_argument("scenario", nargs="*", help="policy: scenario files or builtin:NAME (default: the shipped grid)")
    bench.add_argument("--quick", action="store_true", help="smaller sizes, for a look")
    bench.add_argument("--json", action="store_true", help="print the rows as JSON")
    policy = bench.add_argument_group("policy", "policies compared at equal attainment")
    policy.add_argument(
        "--full", action="store_true", help="the whole grid: more start-ups, days and seeds, many hours"
    )
    policy.add_argument(
        "--claims",
        action="store_true",
        help="what is promised: every test day, five seeds, the best peers in hindsight",
    )
    policy.add_argument("--engine", choices=("plant", "fluid"), help="instead of the grid's or, for files, the plant")
    policy.add_argument(
        "--backend", choices=("loky", "ray", "dask"), help="where runs go (default: loky, this machine)"
    )
    policy.add_argument("--jobs", type=int, help="runs at a time (default: one per core)")
    policy.add_argument("--html", type=Path, help="write the interactive comparison here")
    policy.add_argument(
        "--cache", type=Path, help="keep finished runs here (default: below the user's cache directory)"
    )
    for name, module, text in VERBS:
        verb(name, None, text).module = module
    return top


class _Command(argparse.ArgumentParser):
    """A command; one of a room gets its options from its `module` once it is chosen, so that no other is imported."""

    module: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The options of the command."""
        self._complete()
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """What the options of the command are."""
        self._complete()
        return super().format_help()

    def _complete(self) -> None:
        if self.module is not None:
            room, self.module = import_module(self.module), None
            room.add_arguments(self)
            self.set_defaults(run=room.run)


def _demo(arguments: argparse.Namespace) -> int:
    from load_tests.demo import demo

    return demo(arguments.out, as_json=arguments.json)


def _simulate(arguments: argparse.Namespace) -> int:
    from load_tests.campaign import simulate_files

    return simulate_files(
        arguments.scenario,
        policies=arguments.policy,
        seeds=arguments.seed,
        html=arguments.html,
        log=arguments.log,
        as_json=arguments.json,
    )


def _explain(arguments: argparse.Namespace) -> int:
    steps = list(steps_of(arguments.log))
    if arguments.at is not None:
        steps = [s for s in steps if s.observation.at_seconds <= arguments.at][-1:]
        if not steps:
            raise ConfigError("--at", f"{arguments.at} must not be before the first step of the log")
    elif not arguments.all:
        changed = [s for s in steps if s.decision.replicas != s.observation.replicas.desired]
        if not changed and steps:
            print(f"{len(steps)} steps, and none changed the number; the last of them:", file=sys.stderr)
        steps = changed or steps[-1:]
    if arguments.last is not None:
        if arguments.last < 1:
            raise ConfigError("--last", f"{arguments.last} must be >= 1")
        steps = steps[-arguments.last :]
    for step in steps:
        print(step.to_json() if arguments.json else explain(step))
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    for name in arguments.files:
        print(f"{name}: {_kind_of_file(name)}")
    return 0


def _kind_of_file(name: str) -> str:
    """What a file is, once it has been read without an error."""
    from autoscaler.config import load_mapping

    path = Path(name)
    if path.suffix.lower() in (".json", ".toml", ".yaml", ".yml"):
        data = load_mapping(path)
        if "pools" in data:
            pools = load_config(path).pools
            _check_sources(pools)
            return f"a config of {len(pools)} pool{'s' if len(pools) != 1 else ''}: {', '.join(p.name for p in pools)}"
        if "rows" in data:
            from metrics_adapter.engines import load_engine

            table = load_engine({"file": name})
            return f"an engine table: {table.name}, {len(table.rows)} rows"
        if "step" in data or "roofline" in data or "linear" in data or "weights_gb" in data:
            from serving.profiles import load_profile

            return f"a replica profile: {load_profile(path).id}"
    if path.suffix.lower() in (".json", ".toml", ".yaml", ".yml") or name.startswith("builtin:"):
        from load_tests.scenario import load_scenario

        return f"a scenario: {load_scenario(name).name}"
    from load_tests.traces import load_trace

    return f"a trace: {load_trace(name)}"


def _check_sources(pools: Sequence[PoolSettings]) -> None:
    """Refuse an engine that is not known; what a config cannot say by itself."""
    from metrics_adapter.sources import check_source

    for i, pool in enumerate(pools):
        try:
            check_source(pool)
        except ConfigError as error:
            raise error.under(f"pools[{i}]") from None


def _schema(arguments: argparse.Namespace) -> int:
    kind: type = FileSettings
    if arguments.kind == "scenario":
        from load_tests.scenario import Scenario

        kind = Scenario
    elif arguments.kind == "profile":
        from serving.profiles import Profile

        kind = Profile
    elif arguments.kind == "engine":
        from metrics_adapter.engines import Engine

        kind = Engine
    print(json.dumps(json_schema(kind), indent=2))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    asked = {
        name: getattr(arguments, name) for name in ("full", "claims", "engine", "backend", "jobs", "html", "cache")
    }
    if arguments.name == "policy":
        from load_tests.policy_bench import bench_policy

        return bench_policy(arguments.scenario, quick=arguments.quick, as_json=arguments.json, **asked)
    for name, value in (*asked.items(), ("scenario", arguments.scenario)):
        if value:
            raise ConfigError(
                name if name == "scenario" else f"--{name}", f"{value!r} must be left out: only policy has it"
            )
    from load_tests.bench import BENCHES, BenchRow, bench

    for known, module, about in ROOM_BENCHES:

        def rows(quick: bool, module: str = module) -> list[BenchRow]:
            return [BenchRow(**row) for row in import_module(module).rows(quick)]

        BENCHES[known] = (rows, about)
    return bench(arguments.name, quick=arguments.quick, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
