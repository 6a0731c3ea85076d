"""From the results of cells to a comparison at equal attainment: shipped, tuned on train days, and in hindsight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from load_tests import draws
from load_tests.policy_bench_cases import BOUND, ORACLE, Asked, Case
from load_tests.policy_bench_cells import CellResult
from load_tests.policy_bench_contenders import Contender
from load_tests.policy_bench_stats import LEVEL, Floats, Points, Ratio, cost_at, holm, ratio

Claim = Literal["cheaper", "dearer", "no difference shown", "range only", "no interval", "not reached"]
Verdict = Literal["ratio", "cheaper and better", "dearer and worse", "not comparable"]

# Two attainments are equal if they differ by at most so much of the share that may be violated.
EQUAL = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Cost (GPU-hours, mean over seeds) and attainment as they came out, at a knob (None: as shipped)."""

    gpu_hours: float
    attainment_fraction: float
    knob: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """Our cost over somebody's: a ratio only at equal attainment.

    "cheaper and better": we cost no more and attain more; "dearer and worse" the other way round; else the two cannot be
    compared.
    """

    verdict: Verdict
    ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One contender at one target.

    `tuned` None: no knob attained the target on the train days, or there are none.  `hindsight_gpu_hours`: the cost at the
    place of comparison, on its lower frontier over the test days.  `ratio`: ours over that.  `target_gpu_hours`: the cost at
    the target itself, None where it is not reached; where ours realised something else the two are no pair.
    """

    contender: str
    shipped: Outcome | None
    shipped_against: Against | None
    tuned: Outcome | None
    tuned_against: Against | None
    hindsight_gpu_hours: float | None
    target_gpu_hours: float | None
    ratio: Ratio | None
    holm_p: float | None = None
    claim: Claim | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One case at one target: ours, and everybody else at the same attainment.

    `reference` is ours; None where no policy tunes itself.  `place`: the attainment at which frontiers are read, the target
    or what ours realised.  `oracle`: the clairvoyant's outcome, None where there is none; `oracle_policy` whose it is: what a
    policy reaches a clairvoyant can, so one that attains the target for less takes its place.  `bound_gpu_hours`: what
    nobody who attains the target can do without; None where it was not asked for or nobody can attain.
    """

    case: Case
    reference: str | None
    target: float
    ours: Outcome | None
    place: float
    days: int
    lines: tuple[Line, ...]
    oracle: Outcome | None = None
    oracle_policy: str = ORACLE
    oracle_seed_gpu_hours: float | None = None
    bound_gpu_hours: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the bound is one: nobody who attains the target costs less.  None where either is not known."""
        if self.oracle is None or self.bound_gpu_hours is None:
            return None
        return self.bound_gpu_hours <= self.oracle.gpu_hours

    @property
    def cheapest_at_target(self) -> Line | None:
        """The peer that in hindsight costs least at the target."""
        known = [line for line in self.lines if line.target_gpu_hours is not None]
        return min(known, key=lambda line: line.target_gpu_hours or 0.0) if known else None

    @property
    def over_cheapest(self) -> float | None:
        """Our cost over that peer's, where we attain the target: what is paid for the promise, whatever more we attain.

        Not at equal attainment, and against us: a policy that attains more than it was asked for pays for that here.  None
        where we miss the target by more than a tenth of what may be violated.
        """
        least = self.cheapest_at_target
        if self.ours is None or least is None or least.target_gpu_hours is None:
            return None
        if self.ours.attainment_fraction < self.target - EQUAL * (1 - self.target):
            return None
        return self.ours.gpu_hours / least.target_gpu_hours

    @property
    def over_oracle(self) -> float | None:
        """Our cost over the clairvoyant's under the seed that it was searched under, each at the attainment it reached."""
        if self.oracle is None or self.oracle_seed_gpu_hours is None:
            return None
        return self.oracle_seed_gpu_hours / self.oracle.gpu_hours


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All results of a case, found by what they were for."""

    case: Case
    by_key: dict[tuple[str, str, float | None, float | None], dict[int, list[CellResult]]]

    def knobs(self, contender: Contender, part: str) -> tuple[float, ...]:
        """The knobs of a contender that were run on a part."""
        return tuple(knob for knob in contender.knobs if (contender.name, part, knob, None) in self.by_key)

    def points(
        self, contender: str, part: str, knobs: Sequence[float | None], target: float | None = None,
        seed: int | None = None,
    ) -> Points | None:  # fmt: skip
        """The points of a contender over a part's days and seeds; None where there is nothing scored."""
        stacks = []
        for knob in knobs:
            seeds = self.by_key.get((contender, part, knob, target), {})
            chosen = {seed: seeds[seed]} if seed is not None and seed in seeds else seeds
            if any(not result.days for results in chosen.values() for result in results):
                return None
            stacks.append([_joined(results) for _, results in sorted(chosen.items())])
        if not stacks or not stacks[0] or not stacks[0][0][0].size:
            return None
        cost = np.array([[one[0] for one in seeds] for seeds in stacks])
        arrived = np.array([[one[1] for one in seeds] for seeds in stacks])
        violated = np.array([[one[2] for one in seeds] for seeds in stacks])
        if not (arrived == arrived[:1]).all():
            raise AssertionError(f"{contender}: knobs met different requests")
        return Points(cost=cost, violated=violated, arrived=arrived[0])


def gather(case: Case, asked: Sequence[Asked], results: Sequence[CellResult]) -> Results:
    """Results beside what they were asked for."""
    by_key: dict[tuple[str, str, float | None, float | None], dict[int, list[CellResult]]] = {}
    for one, result in zip(asked, results, strict=True):
        place = by_key.setdefault((one.contender, one.part, one.knob, one.target), {})
        place.setdefault(one.seed, []).append(result)
    return Results(case=case, by_key=by_key)


def _joined(results: list[CellResult]) -> tuple[Floats, Floats, Floats]:
    """Cost, arrived, violated of every day of one part under one seed, in the order of days."""
    rows = sorted(row for r in results for row in zip(r.days, r.gpu_hours, r.arrived, r.violated, strict=True))
    table = np.array([row[1:] for row in rows], dtype=float).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def compare(found: Results) -> list[Comparison]:
    """The case at each of its targets, for each of our policies.  Holm's correction comes later: it is over cases."""
    case = found.case
    return [_at(found, target, reference) for reference in case.references or (None,) for target in case.targets]


def _at(found: Results, target: float, reference: Contender | None) -> Comparison:
    case = found.case
    ours = None if reference is None else found.points(reference.name, "test", (None,), target)
    outcome = None if ours is None else outcome_of(ours)
    allowed, place = 1 - target, target
    if outcome is not None and abs(outcome.attainment_fraction - target) > EQUAL * allowed * (1 + 1e-9):
        place = outcome.attainment_fraction
    lines = tuple(_line(found, c, target, ours, place) for c in case.contenders if c is not reference)
    oracle = _oracle(found, target)
    seed = case.test_seeds[0]
    same = None if reference is None else found.points(reference.name, "test", (None,), target, seed)
    return Comparison(
        case=case,
        reference=None if reference is None else reference.name,
        target=target,
        ours=outcome,
        place=place,
        days=0 if ours is None else ours.arrived.shape[1],
        lines=lines,
        oracle=None if oracle is None else oracle[1],
        oracle_policy=ORACLE if oracle is None else oracle[0],
        bound_gpu_hours=_bound(found, target),
        oracle_seed_gpu_hours=None if oracle is None or same is None else outcome_of(same).gpu_hours,
    )


def _oracle(found: Results, target: float) -> tuple[str, Outcome] | None:
    """The clairvoyant under the seed that it was searched under, or a policy that attains for less under that seed."""
    searched = found.points(ORACLE, "test", (None,), target)
    if searched is None:
        return None
    best, seed = (ORACLE, outcome_of(searched)), found.case.test_seeds[0]
    for contender in found.case.contenders:
        own = target if contender.tunes_itself else None
        for knob in (None, *found.knobs(contender, "test")):
            points = found.points(contender.name, "test", (knob,), own, seed)
            if points is None:
                continue
            made = outcome_of(points, 0, knob)
            if made.attainment_fraction >= target and made.gpu_hours < best[1].gpu_hours:
                best = contender.name, made
    return best


def _bound(found: Results, target: float) -> float | None:
    """Sum over the stretches of the test part."""
    by_seed = found.by_key.get((BOUND, "test", None, target), {})
    parts = [result.gpu_hours for results in by_seed.values() for result in results]
    return math.fsum(part[0] for part in parts) if parts and all(parts) else None


def outcome_of(points: Points, index: int = 0, knob: float | None = None) -> Outcome:
    """What one knob came to, over all days and seeds."""
    arrived = float(points.arrived.sum())
    return Outcome(
        gpu_hours=float(points.cost[index].sum(axis=1).mean()),
        attainment_fraction=1 - float(points.violated[index].sum()) / arrived if arrived else 1.0,
        knob=knob,
    )


def _line(found: Results, contender: Contender, target: float, ours: Points | None, place: float) -> Line:
    own = None if ours is None else outcome_of(ours)
    run_for = target if contender.tunes_itself else None
    shipped_points = found.points(contender.name, "test", (None,), run_for)
    shipped = None if shipped_points is None else outcome_of(shipped_points)
    line = Line(
        contender=contender.name,
        shipped=shipped,
        shipped_against=against(own, shipped, 1 - target),
        tuned=None,
        tuned_against=None,
        hindsight_gpu_hours=None,
        target_gpu_hours=None,
        ratio=None,
    )
    if contender.tunes_itself:
        return line
    run, trained = found.knobs(contender, "test"), found.knobs(contender, "train")
    test = found.points(contender.name, "test", run)
    knob = tuned_knob(found.points(contender.name, "train", trained), trained, target)
    tuned = None
    if test is not None and knob in run:
        tuned = outcome_of(test, run.index(knob), knob)
    line = replace(line, tuned=tuned, tuned_against=against(own, tuned, 1 - target))
    if test is None:
        return line
    line = replace(
        line, hindsight_gpu_hours=_read(test, _share(ours, 1 - place)), target_gpu_hours=_read(test, 1 - target)
    )
    if ours is None:
        return line
    words = draws.key(0, "policy bench", found.case.name, contender.name)
    made = ratio(ours, test, target_share=1 - target, key=words)
    return replace(line, ratio=made, claim=claim_of(made, None))


def _share(ours: Points | None, wanted: float) -> float:
    """The share of violated requests at the place of comparison: no violation at all counts as half a request."""
    return wanted if ours is None else max(wanted, 0.5 / max(1.0, float(ours.arrived.sum())))


def _read(points: Points, wanted: float) -> float | None:
    found = float(cost_at(*points.totals(), np.array([wanted]))[0])
    return found if np.isfinite(found) else None


def tuned_knob(train: Points | None, knobs: Sequence[float], target: float) -> float | None:
    """The knob that attained the target at the least cost on the train days; None where none did."""
    if train is None:
        return None
    made = [outcome_of(train, i, knob) for i, knob in enumerate(knobs)]
    enough = [o for o in made if o.attainment_fraction >= target - 1e-12]
    return min(enough, key=lambda o: o.gpu_hours).knob if enough else None


def against(ours: Outcome | None, other: Outcome | None, allowed: float) -> Against | None:
    """Our cost over another's, where their attainments are equal to within a tenth of what may be violated."""
    if ours is None or other is None:
        return None
    better = ours.attainment_fraction - other.attainment_fraction
    # Two that both violate much less than allowed are compared by what ours violates, as frontiers are.
    if abs(better) <= EQUAL * min(allowed, max(1 - ours.attainment_fraction, 1e-12)):
        return Against(verdict="ratio", ratio=ours.gpu_hours / other.gpu_hours if other.gpu_hours > 0 else None)
    if better > 0 and ours.gpu_hours <= other.gpu_hours:
        return Against(verdict="cheaper and better")
    if better < 0 and ours.gpu_hours >= other.gpu_hours:
        return Against(verdict="dearer and worse")
    return Against(verdict="not comparable")


def claim_of(found: Ratio, holm_p: float | None) -> Claim:
    """What may be said of a ratio: of more than a range only where the corrected p and the interval agree."""
    if found.value is None:
        return "not reached"
    if found.interval == "range":
        return "range only"
    if found.interval == "none" or found.low is None or found.high is None:
        return "no interval"
    if holm_p is None or holm_p > LEVEL or found.low <= 1 <= found.high:
        return "no difference shown"
    return "cheaper" if found.high < 1 else "dearer"


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with Holm's correction over the cases of a family, for each pair of policies and target on its own."""
    members: dict[tuple[str, str | None, float, str], list[tuple[int, int]]] = {}
    for i, comparison in enumerate(comparisons):
        for j, line in enumerate(comparison.lines):
            pair = comparison.case.family, comparison.reference, comparison.target, line.contender
            members.setdefault(pair, []).append((i, j))
    lines = [list(c.lines) for c in comparisons]
    for places in members.values():
        found = [lines[i][j].ratio for i, j in places]
        adjusted = holm([None if r is None else r.p for r in found])
        for (i, j), made, p in zip(places, found, adjusted, strict=True):
            if made is not None:
                lines[i][j] = replace(lines[i][j], holm_p=p, claim=claim_of(made, p))
    return [replace(c, lines=tuple(rows)) for c, rows in zip(comparisons, lines, strict=True)]
