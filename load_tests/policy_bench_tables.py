"""A comparison for the terminal and for scripts.  Losing rows are printed as plainly as winning ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from load_tests.policy_bench_cases import ORACLE, Case
from load_tests.policy_bench_compare import Against, Comparison, Line, Outcome, Results
from load_tests.policy_bench_stats import LEAST_DAYS, Ratio, on_frontier
from load_tests.report import attainment_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

KEY = (
    "shipped, tuned: GPU-hours and attainment as they came out. tuned: the cheapest knob that attained on the train days."
    " hindsight: GPU-hours on the peer's own frontier over the test days, at the target and at our attainment; the knob is"
    " picked after the fact, which favours the peer. ours/peer: below 1 we are cheaper; [..] 95 % of resampled days, (..) the"
    " range over single seeds and days left out. A ratio is only given at equal attainment."
)


GLANCE_KEY = (
    "! a claim: the 95 % interval excludes 1, corrected over traces. never: no knob attains as much as we did. all more: even"
    " the cheapest knob attains more. * our cost over that of the cheapest peer in hindsight at just the target: not at equal"
    " attainment, since we may attain more; empty where we missed the target."
)


# Cases side by side in one table; more go below.
_COLUMNS = 12


def print_comparisons(comparisons: Sequence[Comparison], console: Console | None = None) -> None:
    """One table per case and target, then all ratios at a glance."""
    from rich.console import Console

    out = console if console is not None else Console()
    page = out if out.is_terminal else Console(file=out.file, width=max(out.width, 170))
    for comparison in comparisons:
        page.print()
        page.print(heading(comparison), highlight=False, markup=False)
        for note in comparison.case.notes:
            page.print(note, style="dim", highlight=False, markup=False)
        page.print()
        page.print(_table(comparison), highlight=False)
    page.print(KEY, style="dim", highlight=False, markup=False)
    if len(comparisons) > 1:
        _print_glances(comparisons, page)


def _print_glances(comparisons: Sequence[Comparison], page: Console) -> None:
    """All ratios, a table per policy of ours and target."""
    pairs = dict.fromkeys((c.reference, c.target) for c in comparisons)
    cases = list(dict.fromkeys(c.case.name for c in comparisons))
    page.print()
    for i, name in enumerate(cases):
        page.print(f"[{i + 1}] {name}", style="dim", highlight=False, markup=False)
    for reference, target in pairs:
        chosen = [c for c in comparisons if (c.reference, c.target) == (reference, target)]
        page.print()
        title = f"{reference} over each peer in hindsight, at equal attainment, asked for {attainment_text(target)}"
        page.print(title, highlight=False, markup=False)
        for at in range(0, len(chosen), _COLUMNS):
            some = chosen[at : at + _COLUMNS]
            page.print()
            page.print(_glance(some, [cases.index(c.case.name) + 1 for c in some]), highlight=False)
    page.print(GLANCE_KEY, style="dim", highlight=False, markup=False)


def heading(comparison: Comparison) -> str:
    """What is compared, in a sentence or two."""
    case, ours = comparison.case, comparison.ours
    asked = f"{case.name}, asked for {attainment_text(comparison.target)}"
    seeds = f"{comparison.days} test days, {len(case.test_seeds)} seed{'s' if len(case.test_seeds) > 1 else ''}"
    if ours is None:
        return f"{asked}: {seeds}"
    told = (
        f"{asked}: {comparison.reference} {hours(ours.gpu_hours)} GPU-hours"
        f" at {attainment_text(ours.attainment_fraction)} ({seeds}; compared at {attainment_text(comparison.place)})"
    )
    least, paid = comparison.cheapest_at_target, comparison.over_cheapest
    if least is not None and paid is not None:
        told += (
            f"; for the promise {paid:.2f} times the {hours(least.target_gpu_hours or 0.0)} of the cheapest peer in hindsight"
            f" ({least.contender}, at just {attainment_text(comparison.target)})"
        )
    over = comparison.over_oracle
    if over is not None and comparison.oracle is not None:
        told += f"; {over:.2f} times the clairvoyant's {hours(comparison.oracle.gpu_hours)}"
        if comparison.oracle_policy != ORACLE:
            told += f" ({comparison.oracle_policy} found it: the programme's best path costs more)"
    if comparison.bound_gpu_hours is not None:
        told += f"; nobody does it below {hours(comparison.bound_gpu_hours)}"
        if comparison.holds is False:
            told += ", WHICH IS NO BOUND: somebody did"
    return told


def _table(comparison: Comparison) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column("\nPolicy")
    columns = (
        ("shipped\nGPU-hours", "\nattained"), ("\nours/it",),
        ("tuned on train\nGPU-hours", "\nattained"), ("\nours/it",), ("hindsight\nat target",), ("\nat ours",), ("\nours/peer",),
    )  # fmt: skip
    for group in columns:
        for title in group:
            table.add_column(title, justify="right", no_wrap=True)
    table.add_column("\n95 % interval", justify="left", no_wrap=True)
    table.add_column("\nclaim", justify="left")
    for line in comparison.lines:
        table.add_row(*cells(line))
    return table


def cells(line: Line) -> list[str]:
    """One row of the table."""
    return [
        line.contender,
        *_outcome(line.shipped),
        _against(line.shipped_against),
        *_outcome(line.tuned),
        _against(line.tuned_against),
        "" if line.target_gpu_hours is None else hours(line.target_gpu_hours),
        hours(line.hindsight_gpu_hours) if line.hindsight_gpu_hours is not None else _missed(line.ratio),
        "" if line.ratio is None or line.ratio.value is None else f"{line.ratio.value:.3f}",
        interval_text(line.ratio),
        claim_text(line),
    ]


def claim_text(line: Line) -> str:
    """What may be said, seen from us."""
    if line.claim is None:
        return ""
    words = {"cheaper": "ours cheaper", "dearer": "OURS DEARER"}
    return words.get(line.claim, line.claim)


def interval_text(ratio: Ratio | None) -> str:
    """``[0.91, 0.97]`` of resampled days, ``(0.91 to 0.97)`` as a range."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return ""
    if ratio.interval == "range":
        return f"({ratio.low:.3f} to {ratio.high:.3f})"
    return f"[{ratio.low:.3f}, {ratio.high:.3f}]"


def _missed(ratio: Ratio | None) -> str:
    if ratio is None or ratio.missed is None:
        return ""
    return "no knob attains it" if ratio.missed == "above" else "all attain more"


def _outcome(outcome: Outcome | None) -> tuple[str, str]:
    if outcome is None:
        return "", ""
    return hours(outcome.gpu_hours), attainment_text(outcome.attainment_fraction)


def _against(found: Against | None) -> str:
    if found is None:
        return ""
    if found.verdict == "ratio":
        return "" if found.ratio is None else f"{found.ratio:.3f}"
    return {"cheaper and better": "better", "dearer and worse": "WORSE"}.get(found.verdict, "-")


def hours(value: float) -> str:
    """GPU-hours in four digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _glance(comparisons: Sequence[Comparison], numbers: Sequence[int]) -> Table:
    """A row per contender, a numbered column per case and target."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    for number in numbers:
        table.add_column(f"[{number}]".replace("[", "\\["), justify="right", no_wrap=True)

    def row(name: str, cells: Sequence[str]) -> None:
        table.add_row(name, *cells)

    row("ours attained", [attainment_text(c.ours.attainment_fraction) if c.ours else "" for c in comparisons])
    row("over clairvoyant", ["" if c.over_oracle is None else f"{c.over_oracle:.2f}" for c in comparisons])
    row("for the promise *", ["" if c.over_cheapest is None else f"{c.over_cheapest:.2f}" for c in comparisons])
    for name in dict.fromkeys(line.contender for c in comparisons for line in c.lines if line.ratio is not None):
        rows = [next((line for line in c.lines if line.contender == name), None) for c in comparisons]
        row(name, [_short(line) for line in rows])
    return table


def _short(line: Line | None) -> str:
    if line is None or line.ratio is None:
        return ""
    if line.ratio.value is None:
        return {"above": "never", "below": "all more"}.get(line.ratio.missed or "", "")
    return f"{line.ratio.value:.2f}{'!' if line.claim in ('cheaper', 'dearer') else ''}"


def to_json(comparisons: Sequence[Comparison], found: Sequence[Results]) -> dict[str, Any]:
    """Everything a script could want: points of every knob, and all that is said of them.  A missing number is null."""
    return {
        "version": 1,
        "least_days": LEAST_DAYS,
        "cases": [_case_json(results, [c for c in comparisons if c.case is results.case]) for results in found],
    }


def _case_json(results: Results, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    case = results.case
    return {
        "name": case.name,
        "family": case.family,
        "engine": case.engine,
        "notes": list(case.notes),
        "train_days": _days(case, train=True),
        "test_days": _days(case, train=False),
        "test_seeds": list(case.test_seeds),
        "references": [c.name for c in case.references],
        "search": case.search,
        "contenders": [_points_json(results, i) for i in range(len(case.contenders))],
        "targets": [_comparison_json(c) for c in comparisons],
    }


def _days(case: Case, *, train: bool) -> list[list[float]]:
    parts = case.train if train else case.test
    return [
        [s.window.start_seconds / 86400, (s.window.start_seconds + (s.window.duration_seconds or 0)) / 86400]
        for s in parts
    ]


def _points_json(results: Results, index: int) -> dict[str, Any]:
    contender = results.case.contenders[index]
    out: dict[str, Any] = {"name": contender.name, "tunes_itself": contender.tunes_itself}
    for part in ("test", "train"):
        knobs = results.knobs(contender, part)
        points = results.points(contender.name, part, knobs)
        if points is None:
            out[part] = []
            continue
        share, cost = points.totals()
        kept = on_frontier(share[0], cost[0])
        out[part] = [
            {"knob": k, "violated": float(s), "gpu_hours": float(c), "frontier": bool(f)}
            for k, s, c, f in zip(knobs, np.asarray(share[0]), np.asarray(cost[0]), kept, strict=True)
        ]
    return out


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "target": comparison.target,
        "reference": comparison.reference,
        "place": comparison.place,
        "days": comparison.days,
        "ours": None if comparison.ours is None else asdict(comparison.ours),
        "oracle_policy": comparison.oracle_policy,
        "oracle": None if comparison.oracle is None else asdict(comparison.oracle),
        "over_oracle": comparison.over_oracle,
        "bound_gpu_hours": comparison.bound_gpu_hours,
        "bound_holds": comparison.holds,
        "over_cheapest": comparison.over_cheapest,
        "cheapest_at_target": comparison.cheapest_at_target.contender if comparison.cheapest_at_target else None,
        "lines": [asdict(line) for line in comparison.lines],
    }
