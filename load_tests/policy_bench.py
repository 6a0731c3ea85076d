"""`autoscaler bench policy`: who is cheaper at the same attainment, on which trace, and how sure that is."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autoscaler.errors import ConfigError
from load_tests.campaign import check_place, progress_bar
from load_tests.policy_bench_cache import Cache, default_directory
from load_tests.policy_bench_cases import Asked, Case, asked, case_of, knobbed
from load_tests.policy_bench_cells import CellResult, Engine, Own
from load_tests.policy_bench_compare import Comparison, Results, compare, corrected, gather
from load_tests.policy_bench_run import Backend, Progress, run_cells
from load_tests.policy_bench_search import first_knobs, more_knobs
from load_tests.policy_bench_tables import print_comparisons, to_json
from load_tests.scenario import Scenario, load_scenario


def run_cases(
    cases: Sequence[Case],
    *,
    cache: Cache | None = None,
    backend: Backend = "loky",
    jobs: int = 1,
    progress: Progress | None = None,
) -> tuple[list[Comparison], list[Results]]:
    """Run what the cases need and compare.  Same cases, same digits: whatever the backend, the jobs and the cache."""
    known: list[list[tuple[Asked, CellResult]]] = [[] for _ in cases]
    chosen = [first_knobs(case) for case in cases]
    found: list[Results] = []
    wanted = [list(asked(case, knobs)) for case, knobs in zip(cases, chosen, strict=True)]
    number = 1
    while any(wanted):
        flat = [one.cell for some in wanted for one in some]
        tell = _numbered(progress, number if any(case.search != "all" for case in cases) else None)
        results = iter(run_cells(flat, cache=cache, backend=backend, jobs=jobs, progress=tell))
        for some, had in zip(wanted, known, strict=True):
            had += [(one, next(results)) for one in some]
        found = [gather(case, *zip(*had, strict=True)) for case, had in zip(cases, known, strict=True)]
        wanted = [list(knobbed(one.case, more_knobs(one))) for one in found]
        number += 1
    return corrected([c for one in found for c in compare(one)]), found


def _numbered(progress: Progress | None, number: int | None) -> Progress | None:
    """Progress that says which round it is of: later rounds run knobs that earlier ones asked for."""
    if progress is None or number is None:
        return progress
    return lambda what, share: progress(f"round {number}: {what}", share)


def compare_scenarios(
    *scenarios: Scenario, also: Sequence[Own] = (), cache: Path | None = None, jobs: int = 1, backend: Backend = "loky",
    knobs: int = 16,
) -> list[Comparison]:  # fmt: skip
    """The policies of each scenario, and your own, at equal attainment.

    `cache` keeps finished runs below that directory.  Raises ConfigError for what cannot be compared.
    """
    cases = [case_of(scenario, knobs=knobs, also=also) for scenario in scenarios]
    return run_cases(cases, cache=None if cache is None else Cache(cache), backend=backend, jobs=jobs)[0]


def bench_policy(
    sources: Sequence[str],
    *,
    quick: bool = False,
    full: bool = False,
    backend: Backend | None = None,
    jobs: int | None = None,
    as_json: bool = False,
    html: Path | None = None,
    cache: Path | None = None,
    engine: Engine | None = None,
    claims: bool = False,
) -> int:
    """The command: scenario files, or the grid of development traces where none is given; `claims`: what is promised.

    The exit code: 1 where somebody attains a target for less than its lower bound, which then is none.
    """
    from load_tests.policy_bench_grid import default_cases, quick_cases, shortened

    if jobs is not None and jobs < 1:
        raise ConfigError("--jobs", f"{jobs} must be >= 1")
    if full and (quick or sources):
        raise ConfigError("--full", "must be left out where scenarios are named, and with --quick")
    if claims:
        for name, value in (
            ("scenario", sources),
            ("--quick", quick),
            ("--full", full),
            ("--html", html),
            ("--engine", engine),
        ):
            if value:
                raise ConfigError(name, f"{value!r} must be left out with --claims, whose rows are given")
        from load_tests.policy_bench_claims_table import bench_claims

        return bench_claims(cache=cache, jobs=jobs, backend=backend, as_json=as_json)
    check_place(html.parent if html is not None else None, "--html")
    directory = cache or default_directory()
    check_place(directory, "--cache")
    scenarios = [load_scenario(source) for source in sources]
    cases = [case_of(s) for s in scenarios]
    if not sources:
        cases = quick_cases() if quick else default_cases(full=full)
    elif quick:
        cases = [shortened(case) for case in cases]
    if engine is not None:
        cases = [replace(case, engine=engine) for case in cases]
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise ConfigError("name", f"{names!r} must differ, since the comparison tells cases apart by name")
    with progress_bar() as progress:
        comparisons, found = run_cases(
            cases,
            cache=Cache(directory),
            backend=backend or "loky",
            jobs=jobs or os.cpu_count() or 1,
            progress=progress,
        )
    if html is not None:
        from load_tests.policy_bench_html import write_page

        write_page(to_json(comparisons, found), html)
    broken = any(comparison.holds is False for comparison in comparisons)
    if as_json:
        print(json.dumps(to_json(comparisons, found), indent=1, allow_nan=False))
        return int(broken)
    print_comparisons(comparisons)
    if html is not None:
        print(f"\nReport: {html}", file=sys.stdout)
    return int(broken)
