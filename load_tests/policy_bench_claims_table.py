"""`autoscaler bench policy --claims`: the rows as tables of markdown, goal by goal, losing rows as plainly as winning ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from load_tests.campaign import check_place, progress_bar
from load_tests.policy_bench_cache import Cache, default_directory
from load_tests.policy_bench_cells import Cell, CellResult
from load_tests.policy_bench_claims import RowResult, by_day, claim_rows, run_row, warm_places
from load_tests.policy_bench_grid import grid
from load_tests.policy_bench_markdown import head, table_row
from load_tests.policy_bench_run import Backend, run_cells
from load_tests.policy_bench_stats import Ratio

# Up to this start-up the attainment itself is promised, beyond it that of requests outside surges.
_PROMPT_STARTS = ("start 10 s", "start 60 s", "start 180 s")


def bench_claims(
    *, cache: Path | None = None, jobs: int | None = None, backend: Backend | None = None, as_json: bool = False
) -> int:
    """The command: every row of the grid in its order.  Finished runs are kept, so that it goes on where it was stopped."""
    directory = cache or default_directory()
    check_place(directory, "--cache")
    kept, results = Cache(directory), list[RowResult]()
    warm: dict[str, dict[str, list[int]]] = {}
    with progress_bar() as progress:
        rows = list(claim_rows(grid()))
        for i, row in enumerate(rows):

            def run(cells: Sequence[Cell], name: str = row.name, done: int = i) -> list[CellResult | None]:
                def tell(what: str, share: float) -> None:
                    progress(f"{name}: {what}", (done + share) / len(rows))

                return list(
                    run_cells(
                        cells, cache=kept, backend=backend or "loky", jobs=jobs or os.cpu_count() or 1, progress=tell
                    )
                )

            result = run_row(run, row, warm.get(row.trace, {}))
            assert result is not None
            warm[row.trace] = warm_places(row, result.screened)
            results.append(result)
    print(json.dumps(to_json(results), indent=1, allow_nan=False) if as_json else "\n".join(lines(results)))
    return 0


def attained(result: RowResult) -> tuple[bool, float, bool]:
    """(whether the attainment as a whole is promised, the one that is, whether it is held)."""
    claims, row = result.row.claims, result.row
    whole = row.trace not in claims.small and row.line.name in _PROMPT_STARTS
    value = float(1 - result.share if whole else result.outside_surges[0])
    off = value - claims.target
    # Outside surges a pool that holds more is not at fault: its surges pull the other way.
    return whole, value, abs(off) <= claims.attained_goal if whole else off >= -claims.attained_goal


def near_best(result: RowResult) -> bool | None:
    """Whether ours costs no more over the best peer than promised; None where no peer attains as much."""
    best = result.best()
    if best is None or best[1].value is None:
        return None
    return best[1].value <= result.row.claims.ratio_goals[result.row.line.name]


def near_reactive(result: RowResult) -> bool | None:
    """At crowds, whether ours costs no more over the best reactive peer than promised; None elsewhere, or without one."""
    best = result.best(reactive=True)
    if result.row.trace not in result.row.claims.crowds or best is None or best[1].value is None:
        return None
    return best[1].value <= result.row.claims.crowd_goal


def shipped(result: RowResult) -> Iterator[tuple[str, float, float, bool | None]]:
    """(peer, its attainment as shipped, ours over its cost, whether that is as promised; None where it misses the target)."""
    claims = result.row.claims
    ours = by_day([result.ours[claims.screen]])[:, 0].sum()
    for name, one in result.shipped.items():
        cost, arrived, violated = by_day([one])[:, :3].sum(axis=0)
        kept = 1 - violated / max(1.0, arrived)
        over = float(ours / cost)
        yield name, float(kept), over, (over <= claims.shipped_goal if kept >= claims.target else None)


def lines(results: Sequence[RowResult]) -> list[str]:
    """The page: goals first, then the rows."""
    return [*_goals(results), "", *_rows(results), "", *_peers(results), "", *_shipped(results)]


def _goals(results: Sequence[RowResult]) -> Iterator[str]:
    claims = results[0].row.claims
    yield from head(["goal", "met", "missed by"])
    whole = [r for r in results if attained(r)[0]]
    rest = [r for r in results if not attained(r)[0]]
    off = 100 * claims.attained_goal
    for text, some in (
        (f"attained {_percent(claims.target)} ± {off:g} %, starts to 180 s, need >= 5", whole),
        (f"outside surges at least {_percent(claims.target - claims.attained_goal)} %, elsewhere", rest),
    ):
        missed = [f"{_short(r)} ({_percent(attained(r)[1])})" for r in some if not attained(r)[2]]
        yield _goal(text, len(some), missed)
    for line, goal in claims.ratio_goals.items():
        known = [r for r in results if r.row.line.name == line and near_best(r) is not None]
        missed = [f"{r.row.trace.removeprefix('rate_')} ({_value(r.best())})" for r in known if not near_best(r)]
        yield _goal(f"GPU-hours <= {goal:g} of the best peer in hindsight, {line}", len(known), missed)
    known = [r for r in results if near_reactive(r) is not None]
    missed = [f"{_short(r)} ({_value(r.best(reactive=True))})" for r in known if not near_reactive(r)]
    yield _goal(f"crowds: <= {claims.crowd_goal:g} of the best reactive peer in hindsight", len(known), missed)
    told = [(r, name, over, held) for r in results for name, _, over, held in shipped(r) if held is not None]
    missed = [f"{_short(r)}: {name} ({over:.2f})" for r, name, over, held in told if not held]
    yield _goal(f"<= {claims.shipped_goal:g} of each peer as shipped that meets the SLO", len(told), missed)


def _goal(text: str, count: int, missed: Sequence[str]) -> str:
    return table_row(text, [f"{count - len(missed)} of {count}", "; ".join(missed)])


def _rows(results: Sequence[RowResult]) -> Iterator[str]:
    yield from head(
        [
            "row", "attained, %", "outside surges, % (share in them)", "GPU-hours a week", "over the best peer",
            "95 % of days", "best peer", "goal", "for just the target",
        ]
    )  # fmt: skip
    for result in results:
        best, outside, promise = result.best(), result.outside_surges, result.for_the_promise()
        goal = result.row.claims.ratio_goals[result.row.line.name]
        held, near = attained(result), near_best(result)
        whole = _percent(1 - result.share)
        yield table_row(
            _short(result),
            [
                whole if not held[0] else _bold(whole, held[2]),
                f"{_percent(outside[0]) if held[0] else _bold(_percent(outside[0]), held[2])} ({100 * outside[1]:.1f})",
                f"{result.gpu_hours:,.0f}",
                ("nobody attains it" if result.kept else "") if best is None else _bold(_value(best), bool(near)),
                "" if best is None else _interval(best[1]),
                "" if best is None else best[0],
                f"{goal:g}",
                "" if promise is None else f"{promise[1]:.3f} ({promise[0]})",
            ],
        )


def _peers(results: Sequence[RowResult]) -> Iterator[str]:
    """Ours over each peer in hindsight; in brackets over its cost on the short stretch, for those that were not run on all."""
    names = list(results[0].row.claims.peers)
    yield from head(["row", *names])
    for result in results:
        ratios, told = dict(result.ratios()), []
        known = result.screened_gpu_hours()
        least = min(known.values(), default=None)
        for name in names:
            if name in ratios:
                told.append(_ratio(ratios[name]))
            elif name in known and least:
                told.append(f"(x{known[name] / least:.2f})")
            else:
                told.append("(far)" if known else "")
        yield table_row(_short(result), told)


def _shipped(results: Sequence[RowResult]) -> Iterator[str]:
    names = list(results[0].row.claims.peers)
    yield from head(["row", *names])
    for result in results:
        told = {name: (kept, over, held) for name, kept, over, held in shipped(result)}
        cells = []
        for name in names:
            if name not in told:
                cells.append("")
                continue
            kept, over, held = told[name]
            cells.append(_bold(f"{over:.2f} ({_percent(kept)})", held is True))
        yield table_row(_short(result), cells)


def to_json(results: Sequence[RowResult]) -> list[dict[str, Any]]:
    """Plain data of every row: what is in the tables, and each day."""
    told = []
    for result in results:
        best, reactive = result.best(), result.best(reactive=True)
        told.append(
            {
                "trace": result.row.trace,
                "start": result.row.line.name,
                "attained_fraction": 1 - result.share,
                "attained_outside_surges_fraction": result.outside_surges[0],
                "surges_fraction": result.outside_surges[1],
                "gpu_hours": result.gpu_hours,
                "days": by_day(result.ours).tolist(),
                "stretches": [one.to_json() for one in result.ours],
                "best_peer": None if best is None else best[0],
                "over_best": None if best is None else _ratio_json(best[1]),
                "best_reactive_peer": None if reactive is None else reactive[0],
                "over_best_reactive": None if reactive is None else _ratio_json(reactive[1]),
                "for_the_promise": result.for_the_promise(),
                "peers": {name: _ratio_json(r) for name, r in result.ratios()},
                "screened_gpu_hours": result.screened_gpu_hours(),
                "shipped": [list(one) for one in shipped(result)],
                "attained_held": attained(result)[2],
                "near_best": near_best(result),
                "near_reactive": near_reactive(result),
                "whole": result.whole,
            }
        )
    return told


def _ratio_json(found: Ratio) -> dict[str, Any]:
    return {"value": found.value, "missed": found.missed, "low": found.low, "high": found.high, "p": found.p}


def _short(result: RowResult) -> str:
    return result.row.name.removeprefix("rate_").removeprefix("servegen_").replace("start ", "")


def _percent(fraction: float) -> str:
    """Two digits, and never rounded up to a hundred."""
    return f"{min(100 * fraction, 99.99 if fraction < 1 else 100.0):.2f}"


def _bold(text: str, held: bool) -> str:
    return f"**{text}**" if held else text


def _value(best: tuple[str, Ratio] | None) -> str:
    return "" if best is None or best[1].value is None else f"{best[1].value:.3f}"


def _interval(found: Ratio) -> str:
    return "" if found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"


def _ratio(found: Ratio) -> str:
    if found.value is None or not np.isfinite(found.value):
        return {"above": "never", "below": "all more"}.get(found.missed or "", "")
    return f"{found.value:.3f}"
