"""Which knobs are run: all of them, or only those that decide what is read off a frontier.

A bracket search runs two knobs, goes outwards until two points of the frontier enclose each wanted attainment, then
inwards, where a line between them through log10 of the violated share points to, until they are neighbours; on the test days
it runs the knobs beside them too, in case cost does not rise with the knob.  What it leaves out lies on neither side of a
place that is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from load_tests.policy_bench_cases import Case
from load_tests.policy_bench_compare import Results, tuned_knob
from load_tests.policy_bench_contenders import Contender
from load_tests.policy_bench_stats import Floats, on_frontier

# Knobs by (contender, part).
Chosen = dict[tuple[str, str], tuple[float, ...]]

# The first two knobs as shares of the range: extreme ones are slow to run and tell little.  Outwards in so many knobs.
_FIRST = (1 / 3, 2 / 3)
_OUTWARDS = 3


def first_knobs(case: Case) -> Chosen:
    """What is run before anything is known."""
    chosen: Chosen = {}
    for contender in case.contenders:
        count = len(contender.knobs)
        if count and case.search == "bracket":
            places = sorted({round(share * (count - 1)) for share in _FIRST})
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
        ends = ends_at(share, cost, value)
        step = next_place([(places[i], float(share[i])) for i in ends], run, len(contender.knobs), value)
        if step is not None:
            out.add(step)
        elif part == "test":  # on train days a knob is picked, no cost is read
            beside = {places[i] + one for i in ends for one in (-1, 1)}
            out |= {i for i in beside if 0 <= i < len(contender.knobs) and i not in run}
    return out


def next_place(ends: list[tuple[int, float]], run: set[int], count: int, wanted: float) -> int | None:
    """The next knob's place: outwards where the wanted share is not enclosed, else between; None between neighbours."""
    if len(ends) < 2:
        outside = max(0, min(run) - _OUTWARDS) if ends[0][1] <= wanted else min(count - 1, max(run) + _OUTWARDS)
        return None if outside in run else outside
    (low, attained), (high, missed) = ends
    between = [i for i in range(min(low, high) + 1, max(low, high)) if i not in run]
    if not between:
        return None
    part = math.log(max(wanted, attained) / attained) / math.log(missed / attained)
    aim = low + part * (high - low)
    return min(between, key=lambda i: (abs(i - aim), i))


def ends_at(share: Floats, cost: Floats, wanted: float) -> list[int]:
    """Indices of the points of the frontier on both sides of `wanted`, the one that attains first; or the one at its end."""
    kept = np.flatnonzero(on_frontier(share, cost))
    kept = kept[np.argsort(share[kept])]
    attains = share[kept] <= wanted
    ends = []
    if attains.any():
        ends.append(int(kept[attains][-1]))
    if not attains.all():
        ends.append(int(kept[~attains][0]))
    return ends
