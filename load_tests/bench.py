"""Measurements on the user's machine: each row beside a named baseline that was measured in the same run.

    {"machine": {...}, "rows": [{"name", "value", "unit", "baseline", "baseline_value", "op", "goal", "holds"}]}

`holds` is null where a row has no goal.  A time on somebody's machine fails nothing: ratios are what counts.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from autoscaler.errors import ConfigError
from autoscaler.views import number


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One figure; `op` says on which side of `goal` it should lie."""

    name: str
    value: float
    unit: str
    baseline: str | None = None
    baseline_value: float | None = None
    op: Literal["<=", ">="] = "<="
    goal: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.op == "<=" else self.value >= self.goal


Bench = Callable[[bool], Iterable[BenchRow]]


def _sim(quick: bool) -> Iterable[BenchRow]:
    from load_tests.bench_sim import rows

    return rows(quick)


def _step(quick: bool) -> Iterable[BenchRow]:
    from load_tests.bench_step import rows

    return rows(quick)


def _forecast(quick: bool) -> Iterable[BenchRow]:
    from load_tests.bench_forecast import rows

    return rows(quick)


def _validate(quick: bool) -> Iterable[BenchRow]:
    from load_tests.validation import rows

    return rows(quick)


def _fluid(quick: bool) -> Iterable[BenchRow]:
    from load_tests.fluid_check import rows

    return rows(quick)


def _ballast(quick: bool) -> Iterable[BenchRow]:
    from load_tests.bench_ballast import rows

    return rows(quick)


def _tiers(quick: bool) -> Iterable[BenchRow]:
    from load_tests.bench_tiers import rows

    return rows(quick)


def _drills(quick: bool) -> Iterable[BenchRow]:
    from load_tests.drills import rows

    return rows(quick)


def _capacity(quick: bool) -> Iterable[BenchRow]:
    from load_tests.bench_capacity import rows

    return rows(quick)


BENCHES: dict[str, tuple[Bench, str]] = {
    "sim": (_sim, "how fast the simulator is, against itself stepping every engine step"),
    "step": (_step, "what one decision costs in time and memory"),
    "forecast": (_forecast, "what an update, a forecast and a refit cost"),
    "validate": (_validate, "how close the simulated replica is to queueing theory and to measured vLLM runs"),
    "fluid": (_fluid, "how close the fluid twin is to the simulated fleet, in cost and attainment"),
    "capacity": (_capacity, "how near the learned capacity of a replica is to what simulated replicas carry"),
    "ballast": (_ballast, "what work that may wait saves: GPU-hours over the work itself, in a fluid twin"),
    "tiers": (_tiers, "idle nights: what powering down costs and how long who returns waits, beside keep-alive"),
    "drills": (_drills, "what each policy does when something goes wrong at a rising load"),
}


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    return {"cpu": model, "cores": os.cpu_count() or 1, "python": platform.python_version(), "system": sys.platform}


def bench(name: str | None, *, quick: bool = False, as_json: bool = False) -> int:
    """The command `bench`: run one by name, or list them."""
    if name is None:
        for known, (_, about) in BENCHES.items():
            print(f"{known:<10} {about}")
        print(f"{'policy':<10} policies at equal attainment: the scenarios given, or the development traces")
        return 0
    if name not in BENCHES:
        raise ConfigError("bench", f"{name!r} must be one of {', '.join([*BENCHES, 'policy'])}")
    rows = list(BENCHES[name][0](quick))
    if as_json:
        print(json.dumps({"machine": machine(), "rows": [_row_json(r) for r in rows]}, indent=1))
    else:
        _print(rows)
    return 0


def _row_json(row: BenchRow) -> dict[str, Any]:
    return {**asdict(row), "holds": row.holds}


def _print(rows: list[BenchRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    here = machine()
    print(f"{here['cpu']}, {here['cores']} cores, Python {here['python']}")
    table = Table(box=None, pad_edge=False)
    for title, side in (("what", "left"), ("value", "right"), ("unit", "left"), ("goal", "right"), ("", "left")):
        table.add_column(title, justify="right" if side == "right" else "left")
    table.add_column("baseline", justify="left")
    for row in rows:
        goal = "" if row.goal is None else f"{row.op} {number(row.goal)}"
        mark = {True: "holds", False: "missed", None: ""}[row.holds]
        against = "" if row.baseline is None else f"{row.baseline}: {number(row.baseline_value)}"
        table.add_row(row.name, number(row.value), row.unit, goal, mark, against)
    Console(width=max(120, Console().width)).print(table)
