"""Tables for a page of text out of the JSON of a comparison: ``python -m load_tests.policy_bench_markdown bench.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def shipped(told: Json) -> Iterator[str]:
    """Every policy as shipped, against the clairvoyant: cost over its cost, and the attainment in percent.

    In bold what attained the target; the others' costs are those of a promise not kept.
    """
    for target, family, cases in _groups(told):
        yield f"{_title(target, family)}. Cost over the clairvoyant's (attained, %):"
        yield ""
        yield from head(["", *(_trace(case) for case, _ in cases)])
        for name in _names(cases):
            yield table_row(name, [_shipped(_outcome(rows, name), rows[0]["oracle"], target) for _, rows in cases])
        yield table_row("*lower bound*", [_below(rows[0]) for _, rows in cases])
        yield table_row("*clairvoyant, GPU-hours*", [_hours(rows[0]["oracle"]) for _, rows in cases])
        yield ""


def hindsight(told: Json) -> Iterator[str]:
    """Our cost over each peer's in hindsight, at the attainment that ours realised."""
    for target, family, cases in _groups(told):
        for i in range(max(len(rows) for _, rows in cases)):
            now = [rows[i] for _, rows in cases]
            names = dict.fromkeys(line["contender"] for c in now for line in c["lines"] if line["ratio"])
            if not names:  # no knob was turned here
                continue
            yield f"{_title(target, family)}: {now[0]['reference']} over each peer in hindsight, at equal attainment:"
            yield ""
            yield from head(["", *(_trace(case) for case, _ in cases)])
            yield table_row("*ours attained, %*", [percent(c["ours"]["attainment_fraction"]) for c in now])
            yield table_row("*over the cheapest at just the target*", [_ratio(c["over_cheapest"]) for c in now])
            for name in names:
                yield table_row(name, [_place(c, name) for c in now])
            yield ""


def _groups(told: Json) -> Iterator[tuple[float, str, list[tuple[Json, list[Json]]]]]:
    """(target, family, cases with their comparisons): a table each."""
    targets = dict.fromkeys(c["target"] for case in told["cases"] for c in case["targets"])
    for family in dict.fromkeys(case["family"] for case in told["cases"]):
        members = [case for case in told["cases"] if case["family"] == family]
        for target in targets:
            yield target, family, [(case, [c for c in case["targets"] if c["target"] == target]) for case in members]


def _title(target: float, family: str) -> str:
    return f"Asked for {100 * target:g} %, {family}"


def _names(cases: Sequence[tuple[Json, list[Json]]]) -> list[str]:
    ours = [c["reference"] for _, rows in cases for c in rows]
    return list(dict.fromkeys([*ours, *(line["contender"] for _, rows in cases for c in rows for line in c["lines"])]))


def _outcome(rows: Sequence[Json], name: str) -> Json | None:
    for comparison in rows:
        if comparison["reference"] == name:
            return comparison["ours"]  # type: ignore[no-any-return]
        for line in comparison["lines"]:
            if line["contender"] == name:
                return line["shipped"]  # type: ignore[no-any-return]
    return None


def _shipped(outcome: Json | None, oracle: Json | None, target: float) -> str:
    if outcome is None or oracle is None:
        return ""
    attained = outcome["attainment_fraction"]
    text = f"{outcome['gpu_hours'] / oracle['gpu_hours']:.2f} ({percent(attained)})"
    return f"**{text}**" if attained >= target else text


def _below(comparison: Json) -> str:
    bound, oracle = comparison["bound_gpu_hours"], comparison["oracle"]
    return "" if bound is None or oracle is None else _ratio(bound / oracle["gpu_hours"])


def _place(comparison: Json, name: str) -> str:
    line = next((one for one in comparison["lines"] if one["contender"] == name), None)
    if line is None or line["ratio"] is None:
        return ""
    if line["ratio"]["value"] is None:
        return "never" if line["ratio"]["missed"] == "above" else "all more"
    return _ratio(line["ratio"]["value"])


def percent(fraction: float) -> str:
    """Never rounded up to a hundred."""
    for digits in (1, 2, 3, 4):
        text = f"{100 * fraction:.{digits}f}"
        if float(text) < 99.95 or (digits > 1 and float(text) < 100) or fraction == 1:
            return text
    return "<100"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _hours(outcome: Json | None) -> str:
    return "" if outcome is None else f"{outcome['gpu_hours']:.0f}"


def _trace(case: Json) -> str:
    return str(case["name"]).removeprefix("rate_").split(",")[0]


def head(titles: Sequence[str]) -> Iterator[str]:
    """The first two lines of a table, numbers to the right."""
    yield table_row(titles[0], titles[1:])
    yield table_row("---", ["--:"] * (len(titles) - 1))


def table_row(name: str, cells: Sequence[str]) -> str:
    """One line of it."""
    return f"| {name} | {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> int:
    """Print both tables of a file."""
    told = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    print("\n".join([*shipped(told), *hindsight(told)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
