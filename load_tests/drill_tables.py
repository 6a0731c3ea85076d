"""Figures of the drills as tables for a page of text.

autoscaler bench drills --json > drills.json
python -m load_tests.drill_tables drills.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

from autoscaler.errors import ConfigError
from autoscaler.views import number
from load_tests.drill_list import Group, drills

_MISSED = "rules missed by "
_SIGNS = {"<=": "≤", ">=": "≥"}


class Cell(NamedTuple):
    """One figure as the bench printed it."""

    drill: str
    policy: str
    what: str
    value: float
    unit: str
    op: str
    goal: float
    holds: bool


def cells_of(text: str) -> list[Cell]:
    """The figures in the JSON of ``bench drills``.  Raises ConfigError for other JSON."""
    try:
        rows = json.loads(text)["rows"]
        names = [row["name"].removeprefix(_MISSED) for row in rows if row["name"].startswith(_MISSED)]
        return [_cell(row, names) for row in rows if not row["name"].startswith(_MISSED)]
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise ConfigError("FILE", f"must be the output of bench drills --json: {error!r}") from None


def _cell(row: dict[str, object], policies: Sequence[str]) -> Cell:
    """A row is named ``drill, policy: what``; names of policies may have commas, and drills as well."""
    name = str(row["name"])
    policy = next(p for p in sorted(policies, key=len, reverse=True) if f", {p}: " in name)
    drill, what = name.split(f", {policy}: ", 1)
    value, goal = float(str(row["value"])), float(str(row["goal"]))
    return Cell(drill, policy, what, value, str(row["unit"]), str(row["op"]), goal, row["holds"] is True)


def markdown(cells: Sequence[Cell]) -> str:
    """How many rules each policy missed, of each group; and a table per group, a line per policy, the missed in bold."""
    groups = {drill.name: drill.group for drill in drills(quick=True)}
    of = {cell.drill: groups.get(cell.drill, "forecasters") for cell in cells}
    policies = list(dict.fromkeys(cell.policy for cell in cells))
    names = list(dict.fromkeys(group for group in get_args(Group) if group in of.values()))
    lines = [_line(["missed, of", *names, "all"]), _head(len(names) + 1)]
    for policy in policies:
        mine = [cell for cell in cells if cell.policy == policy]
        parts = [[cell for cell in mine if of[cell.drill] == group] for group in names]
        lines.append(_line([policy, *map(_missed, [*parts, mine])]))
    for group in names:
        lines += ["", f"### {group.capitalize()}", ""]
        lines += _table([cell for cell in cells if of[cell.drill] == group], policies)
    return "\n".join(lines)


def _table(cells: Sequence[Cell], policies: Sequence[str]) -> list[str]:
    rules = {(cell.drill, cell.what): cell for cell in cells}
    found = {(cell.drill, cell.what, cell.policy): cell for cell in cells}
    titles = []
    last = ""
    for drill, what in rules:
        any_ = rules[drill, what]
        goal = f"{what} {_SIGNS[any_.op]} {number(any_.goal)} {any_.unit}".rstrip()
        titles.append(goal if drill == last else f"**{drill}**: {goal}")
        last = drill
    lines = [_line(["", *titles]), _head(len(titles))]
    for policy in policies:
        row = [found.get((*rule, policy)) for rule in rules]
        if any(row):
            lines.append(_line([policy, *map(_shown, row)]))
    return lines


def _head(columns: int) -> str:
    return _line(["---", *["--:"] * columns])


def _missed(cells: Sequence[Cell]) -> str:
    return f"{sum(not cell.holds for cell in cells)} of {len(cells)}" if cells else ""


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return number(cell.value) if cell.holds else f"**{number(cell.value)}**"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> int:
    """Print the table of a file."""
    if len(arguments) != 1:
        print("usage: python -m load_tests.drill_tables drills.json", file=sys.stderr)
        return 2
    try:
        with open(arguments[0], encoding="utf-8") as file:
            print(markdown(cells_of(file.read())))
    except (OSError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
