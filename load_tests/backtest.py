"""The command ``autoscaler backtest``: forecasters over recorded traffic, none of it seen ahead of its time."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoscaler.errors import ConfigError

if TYPE_CHECKING:
    from load_tests.backtest_run import Told
    from load_tests.backtest_series import WorkSeries

QUICK_DAYS, TEST_DAYS, WARM_DAYS = 0.25, 7.0, 28.0
QUICK_WARM_DAYS = 7.0
Progress = Callable[[str, float], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "trace", nargs="*", help="builtin:NAME, a trace file, or recorded Observations (default: every shipped trace)"
    )
    parser.add_argument("--forecasters", help="names with commas between (default: every one that is installed)")
    parser.add_argument("--test-days", type=float, help=f"days of the test part (default: {TEST_DAYS:g})")
    parser.add_argument("--quick", action="store_true", help="six hours of the test part after a week: a look")
    parser.add_argument("--seed", type=int, default=0, help="of the traffic inside long intervals (default: 0)")
    parser.add_argument("--jobs", type=int, help="traces at a time (default: one per core)")
    parser.add_argument(
        "--decisions", action="store_true", help="also what each forecast costs in the simulator, in GPU-hours"
    )
    parser.add_argument(
        "--startup-factor", type=float, default=1.0, help="with --decisions: times two minutes of start-up (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--html", type=Path, help="write a page with forecast fans over what came")


def run(arguments: argparse.Namespace) -> int:
    """Backtest; the exit code."""
    from load_tests.backtest_decisions import Decided, decisions
    from load_tests.backtest_run import names_of
    from load_tests.backtest_score import lost_cells, scores
    from load_tests.backtest_series import work_series
    from load_tests.backtest_views import print_tables, to_json, write_page
    from load_tests.campaign import check_place, progress_bar
    from load_tests.traces import BUILTIN, builtin_names

    if arguments.jobs is not None and arguments.jobs < 1:
        raise ConfigError("--jobs", f"{arguments.jobs} must be >= 1")
    if arguments.seed < 0:
        raise ConfigError("--seed", f"{arguments.seed} must be >= 0")
    days = arguments.test_days if arguments.test_days is not None else QUICK_DAYS if arguments.quick else TEST_DAYS
    if not 0.05 <= days <= 366:
        raise ConfigError("--test-days", f"{days:g} must be in [0.05, 366]")
    if not 0 < arguments.startup_factor <= 100:
        raise ConfigError("--startup-factor", f"{arguments.startup_factor:g} must be in (0, 100]")
    check_place(arguments.html.parent if arguments.html is not None else None, "--html")
    names = names_of(arguments.forecasters)
    sources = arguments.trace or [BUILTIN + name for name in builtin_names()]
    warm = QUICK_WARM_DAYS if arguments.quick else WARM_DAYS
    series = [work_series(s, arguments.seed).cut(warm_days=warm, test_days=days) for s in sources]
    if len({s.name for s in series}) < len(series):
        raise ConfigError("trace", f"{[s.name for s in series]!r} must differ, since tables tell traces apart by name")
    decided: list[Decided] = []
    with progress_bar() as progress:
        told = run_all(series, names, jobs=arguments.jobs or os.cpu_count() or 1, progress=progress)
        if arguments.decisions:
            hours = 2.0 if arguments.quick else 24.0
            for source in sources:
                decided += decisions(
                    source, names, hours=hours, startup_factor=arguments.startup_factor, progress=progress
                )
    found = [score for one, said in zip(series, told, strict=True) for score in scores(one, said)]
    lost = lost_cells(found)
    if arguments.html is not None:
        write_page(arguments.html, series, told, found, lost, decided)
    if arguments.json:
        print(json.dumps(to_json(found, lost, decided), indent=1, allow_nan=False))
        return 0
    print_tables(found, lost, decided)
    if arguments.html is not None:
        print(f"\nReport: {arguments.html}", file=sys.stdout)
    return 0


def run_all(
    series: Sequence[WorkSeries], names: Sequence[str], *, jobs: int = 1, progress: Progress | None = None
) -> list[list[Told]]:
    """What each forecaster said of each series.  Same input, same digits (times apart), whatever the jobs."""
    from load_tests.backtest_run import OURS, told_by

    groups = [[n for n in names if n == OURS], [n for n in names if n != OURS]]
    cells = [(i, group) for i in range(len(series)) for group in groups if group]
    found: dict[str, list[Told]] = {s.name: [] for s in series}

    def tell(done: float, what: str) -> None:
        if progress is not None:
            progress(what, done / max(1, len(cells)))

    if jobs == 1:
        for number, (i, group) in enumerate(cells):
            one = series[i]

            def inside(what: str, share: float, number: int = number, name: str = one.name) -> None:
                tell(number + share, f"{name}: {what}")

            found[one.name] += told_by(group, one, progress=inside)
    else:
        for number, (i, said) in enumerate(_parallel(series, cells, jobs)):
            found[series[i].name] += said
            tell(number + 1, series[i].name)
    order = {name: n for n, name in enumerate(names)}
    return [sorted(found[s.name], key=lambda t: order[t.forecaster]) for s in series]


def _parallel(
    series: Sequence[WorkSeries], cells: Sequence[tuple[int, list[str]]], jobs: int
) -> Iterator[tuple[int, list[Told]]]:
    import joblib

    parallel = joblib.Parallel(n_jobs=jobs, backend="loky", return_as="generator_unordered", batch_size=1)
    yield from parallel(joblib.delayed(_cell)(i, series[i], group) for i, group in cells)


def _cell(number: int, one: WorkSeries, group: list[str]) -> tuple[int, list[Told]]:
    from load_tests.backtest_run import told_by

    return number, told_by(group, one)
