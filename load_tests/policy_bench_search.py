"""Which knobs are run: all of them, or only those that decide what is read off a frontier.

A bracket search runs a few knobs, then halves the interval between the two points of the frontier that enclose each wanted
attainment until they are neighbours, and on the test days runs the knobs beside them too, in case cost does not rise with
the knob.  What it leaves out lies on neither side of a place that is read.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from load_tests.policy_bench_cases import Case
from load_tests.policy_bench_compare import Results, tuned_knob
from load_tests.policy_bench_contenders import Contender
from load_tests.policy_bench_stats import Floats, on_frontier

# Knobs by (contender, part).
Chosen = dict[tuple[str, str], tuple[float, ...]]

_FIRST = 4


def first_knobs(case: Case) -> Chosen:
    """What is run before anything is known."""
    chosen: Chosen = {}
    for contender in case.contenders:
        count = len(contender.knobs)
        if count and case.search == "bracket":
            places = sorted({round(i * (count - 1) / (_FIRST - 1)) for i in range(_FIRST)})
        else:
            places = list(range(count))
        for part in ("test", "train"):
            chosen[contender.name, part] = tuple(contender.knobs[i] for i in places)
    return chosen


def more_knobs(found: Results) -> Chosen:
    """What is to be run next; empty when every wanted place lies between neighbours."""
    case, chosen = found.case, Chosen()
    if case.search != "bracket":
        return chosen
    targets = [1 - target for target in case.targets]
    realised = [share for target in case.targets for share in _realised(found, target)]
    for contender in case.contenders:
        for part, wanted in (("train", targets), ("test", [*targets, *realised])):
            places = _missing(found, contender, part, wanted)
            if part == "test":
                places |= _tuned(found, contender)
            if places:
                chosen[contender.name, part] = tuple(contender.knobs[i] for i in sorted(places))
    return chosen


def _realised(found: Results, target: float) -> Iterator[float]:
    for reference in found.case.references:
        points = found.points(reference.name, "test", (None,), target)
        if points is not None:
            yield float(points.totals()[0][0, 0])


def _tuned(found: Results, contender: Contender) -> set[int]:
    """Knobs that the train days chose and the test days have not run."""
    known = found.knobs(contender, "train")
    train = found.points(contender.name, "train", known) if known else None
    chosen = [tuned_knob(train, known, target) for target in found.case.targets]
    run = set(found.knobs(contender, "test"))
    return {contender.knobs.index(knob) for knob in chosen if knob is not None and knob not in run}


def _missing(found: Results, contender: Contender, part: str, wanted: list[float]) -> set[int]:
    known = found.knobs(contender, part)
    points = found.points(contender.name, part, known) if known else None
    if points is None:
        return set()
    share, cost = (column[0] for column in points.totals())
    places = [contender.knobs.index(knob) for knob in known]
    run, out = set(places), set[int]()
    for value in wanted:
        ends = [places[i] for i in _ends(share, cost, value)]
        between = {i for i in range(min(ends), max(ends)) if i not in run} if ends else set()
        if between:
            out.add(sorted(between)[len(between) // 2])
            continue
        if part == "train":  # a knob is picked there, no cost is read
            continue
        beside = {i + step for i in ends for step in (-1, 1)}
        out |= {i for i in beside if 0 <= i < len(contender.knobs) and i not in run}
    return out


def _ends(share: Floats, cost: Floats, wanted: float) -> list[int]:
    """The points of the frontier on both sides of `wanted`, or the one at its end."""
    kept = np.flatnonzero(on_frontier(share, cost))
    kept = kept[np.argsort(share[kept])]
    attains = share[kept] <= wanted
    ends = []
    if attains.any():
        ends.append(int(kept[attains][-1]))
    if not attains.all():
        ends.append(int(kept[~attains][0]))
    return ends
