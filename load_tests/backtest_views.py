"""A backtest for people and programs: tables, JSON, and one page that holds its data and asks the network for nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forecast.adapters import ADAPTERS, LEVELS
from load_tests.backtest_decisions import REACTIVE, Decided
from load_tests.backtest_run import OURS, WINDOWS, Told, origins, outcomes
from load_tests.backtest_score import COVERED, LEAST_ORIGINS, SHOWN, Lost, Score, decision_loss, starts
from load_tests.backtest_series import MINUTE, WorkSeries
from load_tests.report_page import filled, write_at_once

if TYPE_CHECKING:
    from rich.console import Console

LARGEST_BYTES = 5_000_000
_FANS = (0.5, 0.9, 0.95, 0.99)
_MOST_ORIGINS = 1008  # of a trace on the page: a week of ten minutes


def print_tables(
    found: Sequence[Score], lost: Sequence[Lost], decided: Sequence[Decided], console: Console | None = None
) -> None:
    """Losses by trace and forecaster, our coverage by window, times, decisions, and the cells that are lost."""
    from rich.console import Console

    out = console if console is not None else Console()
    page = out if out.is_terminal else Console(file=out.file, width=max(out.width, 190))
    for title, table in tables(found, decided):
        page.print(f"\n{title}", highlight=False, markup=False)
        page.print(_rich(table), highlight=False)
    page.print("\nLost cells" if lost else "\nNo cell is lost.", highlight=False)
    for one in lost:
        page.print(f"  {lost_text(one)}", highlight=False, markup=False)


Table = list[list[str]]


def tables(found: Sequence[Score], decided: Sequence[Decided]) -> list[tuple[str, Table]]:
    """(title, rows of cells, the first row a heading): what the terminal and the documentation show."""
    names = list(dict.fromkeys(s.forecaster for s in found))
    traces = list(dict.fromkeys(s.trace for s in found))
    made = [("Weighted quantile loss in %, mean of the start windows; * least of a row", _losses(found, names, traces))]
    enough = [s for s in found if s.origins >= LEAST_ORIGINS] or list(found)
    made.append((f"{OURS}: coverage and errors by window, mean over traces that tell enough", _coverage(enough)))
    made.append(
        ("Coverage at 0.95 overall, in bursts and in the hour after a shift; milliseconds", _by_name(enough, names))
    )
    if decided:
        made.append(
            ("GPU-hours over the reactive policy's at the same attainment (attained %)", _decided(decided, names))
        )
    return made


def _losses(found: Sequence[Score], names: list[str], traces: list[str]) -> Table:
    rows = [["trace", "origins", *names]]
    columns: dict[str, list[float]] = {n: [] for n in names}
    for trace in traces:
        values = {n: decision_loss(found, trace, n) for n in names}
        known = [v for v in values.values() if math.isfinite(v)]
        count = min(s.origins for s in found if s.trace == trace and s.window in starts())
        rows.append([trace, str(count), *(_percent(values[n], min(known, default=0.0)) for n in names)])
        if len(known) == len(names):
            for n in names:
                columns[n].append(values[n])
    means = {n: float(np.mean(v)) if v else math.nan for n, v in columns.items()}
    least = min((v for v in means.values() if math.isfinite(v)), default=0.0)
    rows.append(["mean", "", *(_percent(means[n], least) for n in names)])
    return rows


def _percent(value: float, least: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:.2f}{'*' if value <= least * (1 + 1e-9) else ''}"


def _coverage(found: Sequence[Score]) -> Table:
    heads = [f"{100 * c:g} %" for c in COVERED]
    rows = [
        [
            "window s",
            *heads,
            *(f"burst {h}" for h in heads),
            "shift 95 %",
            "least hour 95 %",
            *(f"pinball {q:g}" for q in SHOWN),
        ]
        + ["MASE naive", "MASE seasonal"]
    ]
    for window in WINDOWS:
        mine = [s for s in found if s.forecaster == OURS and s.window == window and s.origins]
        if not mine:
            continue

        def mean(values: list[float], form: str) -> str:
            known = [v for v in values if math.isfinite(v)]
            return format(float(np.mean(known)), form) if known else "-"

        rows.append(
            [
                f"{window[0]}-{window[1]}",
                *(mean([100 * s.coverage[i] for s in mine], ".1f") for i in range(len(COVERED))),
                *(mean([100 * s.burst_coverage[i] for s in mine], ".1f") for i in range(len(COVERED))),
                mean([100 * s.shift_coverage[1] for s in mine], ".1f"),
                mean([100 * s.least_hour_coverage for s in mine], ".1f"),
                *(mean([100 * s.pinball[i] for s in mine], ".2f") for i in range(len(SHOWN))),
                mean([s.mase_naive for s in mine], ".2f"),
                mean([s.mase_seasonal for s in mine], ".2f"),
            ]
        )
    return rows


def _by_name(found: Sequence[Score], names: list[str]) -> Table:
    rows = [
        ["forecaster", "95 %", "burst", "shift", "least hour", "MASE naive", "MASE seasonal", "update ms", "refit ms"]
    ]
    for name in names:
        mine = [s for s in found if s.forecaster == name and s.window in starts() and s.origins]

        def mean(values: list[float], form: str) -> str:
            known = [v for v in values if math.isfinite(v)]
            return format(float(np.mean(known)), form) if known else "-"

        rows.append(
            [
                name,
                mean([100 * s.coverage[1] for s in mine], ".1f"),
                mean([100 * s.burst_coverage[1] for s in mine], ".1f"),
                mean([100 * s.shift_coverage[1] for s in mine], ".1f"),
                mean([100 * s.least_hour_coverage for s in mine], ".1f"),
                mean([s.mase_naive for s in mine], ".2f"),
                mean([s.mase_seasonal for s in mine], ".2f"),
                mean([s.milliseconds_per_update for s in mine], ".2f"),
                mean([s.milliseconds_per_refit for s in mine], ".1f"),
            ]
        )
    return rows


def _decided(decided: Sequence[Decided], names: list[str]) -> Table:
    rows = [["trace", *names]]
    for trace in dict.fromkeys(d.trace for d in decided):
        known = {d.forecaster: d for d in decided if d.trace == trace and d.forecaster != REACTIVE}
        rows.append([trace, *(_ratio(known.get(n)) for n in names)])
    return rows


def _ratio(one: Decided | None) -> str:
    if one is None:
        return "-"
    ratio = "?" if one.ratio is None else f"{one.ratio:.3f}"
    return f"{ratio} ({100 * one.attained_fraction:.2f})"


def lost_text(one: Lost) -> str:
    """A lost cell in a line."""
    where = one.trace if one.window is None else f"{one.trace}, {one.window[0]}-{one.window[1]} s"
    if one.window is None:
        return f"{where}: {one.what} is {one.value:.3f}, allowed {one.allowed:g}"
    return f"{where}: {one.what} is {100 * one.value:.1f} %"


def _rich(rows: Table) -> Any:
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for i, head in enumerate(rows[0]):
        table.add_column(head, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def markdown(rows: Table) -> str:
    """A table for a page of documentation."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|---{'|--:' * (len(rows[0]) - 1)}|", *lines[1:]])


def to_json(found: Sequence[Score], lost: Sequence[Lost], decided: Sequence[Decided]) -> dict[str, Any]:
    """All figures; null where there is none."""
    told = {
        "levels": LEVELS,
        "pinball_levels": SHOWN,
        "coverage_levels": COVERED,
        "least_origins": LEAST_ORIGINS,
        "forecasters": {OURS: "this project's", **{n: about for n, (_, _, about) in ADAPTERS.items()}},
        "scores": [asdict(s) for s in found],
        "lost": [asdict(one) for one in lost],
        "decisions": [asdict(d) for d in decided],
    }
    clean: dict[str, Any] = _finite(told)
    return clean


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def write_page(
    path: Path, series: Sequence[WorkSeries], told: Sequence[Sequence[Told]], found: Sequence[Score], lost: Sequence[Lost],
    decided: Sequence[Decided],
) -> Path:  # fmt: skip
    """Write the page to `path`, at once or not at all, at most 5 MB.  Missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    every = 1
    content = page(series, told, found, lost, decided)
    while len(content) > LARGEST_BYTES and every < 64:
        every *= 2
        content = page(series, told, found, lost, decided, every=every)
    write_at_once(path, content)
    return path


def page(
    series: Sequence[WorkSeries], told: Sequence[Sequence[Told]], found: Sequence[Score], lost: Sequence[Lost],
    decided: Sequence[Decided], *, every: int = 1,
) -> bytes:  # fmt: skip
    """The page's bytes; `every`: only each so manyeth origin is drawn."""
    data = {
        "tables": [{"title": title, "rows": rows} for title, rows in tables(found, decided)],
        "lost": [lost_text(one) for one in lost],
        "windows": [f"{a} to {b} s" for a, b in WINDOWS],
        "levels": _FANS,
        "traces": [_fans(one, said, every) for one, said in zip(series, told, strict=True)],
    }
    return filled(
        "backtest.html",
        styles=("report.css", "backtest.css"),
        scripts=("format.js", "backtest.js"),
        data=_finite(data),
    )


def _fans(series: WorkSeries, told: Sequence[Told], every: int) -> dict[str, Any]:
    rows = slice(0, _MOST_ORIGINS, every)
    at = origins(series)[rows]
    actual = outcomes(series)[rows]
    columns = [LEVELS.index(q) for q in _FANS]

    def short(values: Any) -> list[float | None]:
        return [float(f"{v:.4g}") if math.isfinite(v) else None for v in values]

    return {
        "name": series.name,
        "zone": series.time_zone,
        "at": [series.start_at_seconds + int(m) * MINUTE for m in at],
        "actual": [short(actual[:, n]) for n in range(len(WINDOWS))],
        "fans": {
            one.forecaster: [[short(one.quantiles[rows, n, c]) for c in columns] for n in range(len(WINDOWS))]
            for one in told
            if np.isfinite(one.quantiles).any()
        },
    }
