"""Reports: a table for the terminal, JSON for scripts, one HTML file to look at.

All three are views of the same Runs.  The HTML file holds its data, code and style, and asks the network for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from load_tests.report_data import payload
from load_tests.report_page import filled, write_at_once
from load_tests.report_summary import LESS_IS_BETTER, Group, Row, Spread, setting_text, summarize, to_json
from load_tests.run import Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["print_table", "to_json", "write_report"]

# A report of two weeks must stay easy to send and to open.
LARGEST_BYTES = 5_000_000

# Consoles that are narrower show the range over seeds as two lines: least, largest.
_WIDE = 150

_SCRIPTS = (
    "format.js",
    "data.js",
    "chart.js",
    "paint.js",
    "gestures.js",
    "panels.js",
    "summary.js",
    "reasons.js",
    "decision.js",
    "app.js",
)


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _milliseconds(value: float) -> str:
    return f"{1000 * value:.1f}" if value < 0.01 else f"{1000 * value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%" if value < 0.1 else f"{100 * value:,.0f}%"


def _hours(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("TTFT s\np50", "ttft_p50_seconds", _seconds),
    ("\np95", "ttft_p95_seconds", _seconds),
    ("\np99", "ttft_p99_seconds", _seconds),
    ("ITL ms\np50", "itl_p50_seconds", _milliseconds),
    ("\np95", "itl_p95_seconds", _milliseconds),
    ("\np99", "itl_p99_seconds", _milliseconds),
    ("GPU-\nhours", "gpu_hours", _hours),
    ("\nover", "over_fraction", _percent),
    ("\nunder", "under_fraction", _percent),
    ("\nstarts", "starts", _count),
)


def attainment_text(fraction: float) -> str:
    """A share in percent, never rounded up to a hundred: 0.99999 is not everything."""
    for digits in (2, 3, 4, 5):
        text = f"{100 * fraction:.{digits}f}"
        if fraction == 1 or float(text) < 100:
            return f"{text}%"
    return "<100%"


def print_table(runs: Sequence[Run], console: Console | None = None) -> None:
    """Print one table per scenario and pool: a row per policy, the setting above it and a key below.

    Of the policies that kept the SLO the best of each column is bold; in a pipe or file it is starred, and no column is
    squeezed to a terminal's width.
    """
    from rich.console import Console

    out = console if console is not None else Console()
    plain = not out.is_terminal
    page = Console(file=out.file, width=max(out.width, 200)) if plain else out
    for group in summarize(runs):
        out.print()
        out.print(setting_text(group), highlight=False, markup=False)
        out.print()
        page.print(_table(group, page.width, "*" if plain else ""), highlight=False)
        out.print(_key(group, plain), style="dim", highlight=False, markup=False)


class _How(NamedTuple):
    """How cells are written: the mark of the best, whether with ranges, and these below one another."""

    star: str
    ranged: bool
    stacked: bool


def _key(group: Group, plain: bool) -> str:
    several = any(len(row.runs) > 1 for row in group.rows)
    return (
        "over, under: mean ready replicas beyond or short of the least whole number that carries the work."
        + (
            " * best of those that kept the SLO."
            if any(group.best(name) is not None for name in LESS_IS_BETTER)
            else ""
        )
        + (" Mean of seeds, range below." if several else "")
    )


def _table(group: Group, width: int, star: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("\nPolicy", overflow="fold", min_width=min(12, max(len(row.policy) for row in group.rows)))
    table.add_column("\nSLO", no_wrap=True)
    table.add_column("\nwithin", justify="right", no_wrap=True)
    for title, _, _ in _COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for row in group.rows:
        table.add_row(*_cells(group, row, star=star, stacked=width < _WIDE))
    return table


def _cells(group: Group, row: Row, *, star: str, stacked: bool) -> list[Text]:
    from rich.text import Text

    kept = "?" if row.met is None else "yes" if row.met else "no"
    if len(row.runs) > 1 and 0 < row.met_seeds < len(row.runs):
        kept += f"\n{row.met_seeds}/{len(row.runs)}"
    style = "" if row.met is None else "green" if row.met else "red"
    how = _How(star, len(row.runs) > 1, stacked)
    cells = [Text(row.policy), Text(kept, style=style)]
    cells.append(_cell(row.spreads["attainment_fraction"], attainment_text, None, how))
    for _, name, form in _COLUMNS:
        cells.append(_cell(row.spreads[name], form, group.best(name) if row.met else None, how))
    return cells


def _cell(spread: Spread, form: Callable[[float], str], best: float | None, how: _How) -> Text:
    from rich.text import Text

    if spread.mean is None or spread.low is None or spread.high is None:
        return Text("?", style="dim")
    shown = "never" if math.isinf(spread.mean) else form(spread.mean)
    # What prints alike is equally good: a mark must not hang on digits that nobody sees.
    wins = best is not None and math.isfinite(spread.mean) and shown == form(best)
    blank = " " * len(how.star)
    text = Text(shown + (how.star if wins else blank), style="bold" if wins else "")
    if how.ranged:
        low, high = (("never" if math.isinf(v) else form(v)) for v in (spread.low, spread.high))
        text.append(f"\n{low}{blank}\n{high}{blank}" if how.stacked else f"\n{low}-{high}{blank}", style="dim not bold")
    return text


def write_report(runs: Sequence[Run], path: str | Path, *, title: str) -> Path:
    """Write the HTML report of `runs` to `path`, at most 5 MB, at once or not at all.  Missing folders are made.

    The charts show the first seed of each policy; the summary speaks for all.  Long runs are drawn from least and largest
    values per bucket.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    budget = 4_000_000
    page = _page(runs, title, budget)
    while len(page) > LARGEST_BYTES and budget > 50_000:
        budget //= 2
        page = _page(runs, title, budget)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_at_once(target, page)
    return target


def _page(runs: Sequence[Run], title: str, budget: int) -> bytes:
    told = payload(runs, title, budget)
    return filled("page.html", styles=("report.css",), scripts=_SCRIPTS, data=told, title=title)
