"""Which promises hold: ours as it is, over all test days and several seeds, against the best peer in hindsight.

A row is a trace at a start-up.  Every test day is run under two seeds or more (the stretches of the grid).  All peers are
searched on one short stretch of the test days themselves; those near the best one there are searched on all of them.
Cost and violations of a day are means over its seeds, and days are what is resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from load_tests import draws
from load_tests.campaign import policy_name
from load_tests.peers import LcpSettings
from load_tests.policy_bench_cases import cut
from load_tests.policy_bench_cells import Cell, CellResult, Own
from load_tests.policy_bench_compare import EQUAL
from load_tests.policy_bench_contenders import KNOBS, Contender, contender
from load_tests.policy_bench_grid import Capacity, Claims, Grid, Line, Stretch, peers, sized
from load_tests.policy_bench_search import ends_at, next_place
from load_tests.policy_bench_stats import Floats, Points, Ratio, cost_at, ratio
from load_tests.scenario import Policy, PoolPolicy, Scenario, Startup
from load_tests.shapes import DAY
from load_tests.traces import BUILTIN, load_trace

# Results in the order of the cells; None is one that is not to be had, where only kept ones are looked at.
Run = Callable[[Sequence[Cell]], list[CellResult | None]]
# Results of a knob (its place) on each stretch.
ByPlace = dict[int, list[CellResult]]

OURS = PoolPolicy(name="auto")
# Where nobody holds the promise at crowds, peers are searched where fewer requests keep it.
_CROWD_SHARE = 0.05
_FIRST = (1 / 3, 2 / 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A trace at a start-up; `first_day` is its first test day."""

    trace: str
    line: Line
    scenario: Scenario
    capacity: Capacity
    first_day: int
    claims: Claims

    @property
    def name(self) -> str:
        """In tables."""
        return f"{self.trace}, {self.line.name}"

    def stretch(self, stretch: Stretch) -> Scenario:
        """The scenario on a stretch of days."""
        start = self.first_day + stretch.first_day
        return cut(self.scenario, start * DAY, (start + stretch.days) * DAY)

    def cells(self, policy: Policy | Own, stretches: Sequence[Stretch]) -> list[Cell]:
        """A policy on each stretch."""
        return [Cell(scenario=self.stretch(one), policy=policy, seed=one.seed) for one in stretches]

    def contenders(self) -> list[Contender]:
        """The peers, most promising first."""
        known = {policy_name(p): p for p in peers(self.capacity)}
        # A price ranges over decades: twice as many values, so that what is read between two of them is as near.
        knobs = {name: 2 * KNOBS - 1 if isinstance(known[name], LcpSettings) else KNOBS for name in self.claims.peers}
        return [contender(known[name], knobs=count) for name, count in knobs.items()]


def claim_rows(known: Grid, *, train: bool = False) -> Iterator[Row]:
    """The rows of the grid, in its order; `train`: on the last train days instead, to see that all of it runs."""
    lines = {line.name: line for line in known.startups}
    slo = replace(known.slo, attainment_fraction=known.claims.target)
    for group in known.claims.rows:
        for trace in group.traces:
            scenario, _, capacity = sized(known, trace)
            first_day = load_trace(BUILTIN + trace).facts.train_days
            if train:
                first_day -= max(s.first_day + s.days for s in known.claims.stretches)
            for name in group.startups:
                line = lines[name]
                startup = Startup(profile=line.profile, factor=line.factor)
                made = replace(scenario, slo=slo, startup=startup, policies=(OURS,))
                yield Row(
                    trace=trace, line=line, scenario=made, capacity=capacity, first_day=first_day, claims=known.claims
                )


def by_day(results: Sequence[CellResult]) -> Floats:
    """[day, (cost, arrived, violated, arrived in surges, violated in surges)]: means over the seeds of each day."""
    rows: dict[int, list[tuple[float, ...]]] = {}
    for one in results:
        nothing = (0,) * len(one.days)
        columns = (one.gpu_hours, one.arrived, one.violated, one.surged or nothing, one.surged_violated or nothing)
        for day, *values in zip(one.days, *columns, strict=True):
            rows.setdefault(day, []).append(tuple(float(v) for v in values))
    return np.array([np.mean(rows[day], axis=0) for day in sorted(rows)]).reshape(-1, 5)


def points_of(knobs: Sequence[Sequence[CellResult]]) -> Points:
    """The points of a policy, one per knob; a day's seeds are in its means."""
    tables = [by_day(results) for results in knobs]
    return Points(
        cost=np.array([[t[:, 0]] for t in tables]),
        violated=np.array([[t[:, 2]] for t in tables]),
        arrived=tables[0][None, :, 1],
    )


@dataclass(slots=True, kw_only=True)
class Searched:
    """A peer's knobs as they were run on some stretches."""

    contender: Contender
    found: ByPlace = field(default_factory=dict)
    whole: bool = True

    def totals(self) -> tuple[list[int], Floats, Floats]:
        """(places, share violated, cost)."""
        places = sorted(self.found)
        share, cost = points_of([self.found[i] for i in places]).totals()
        return places, share[0], cost[0]

    def points(self) -> Points:
        """All knobs that were run, in their order."""
        return points_of([self.found[i] for i in sorted(self.found)])

    def cost(self, share: float) -> float | None:
        """GPU-hours at a share of violated requests; None where its frontier does not enclose it."""
        if not self.found:
            return None
        _, shares, costs = self.totals()
        value = float(cost_at(shares[None], costs[None], np.array([share]))[0])
        return value if np.isfinite(value) else None

    def ends(self, share: float) -> list[int]:
        """The places on both sides of a share, or the one at the end that is nearest."""
        places, shares, costs = self.totals()
        return [places[i] for i in ends_at(shares, costs, share)]


def search(
    run: Run, row: Row, peer: Contender, stretches: Sequence[Stretch], begin: Sequence[int], wanted: Sequence[float],
    dearest: float = np.inf,
) -> Searched:  # fmt: skip
    """Turn a peer's knob until neighbours enclose every wanted share of violated requests.

    Stops where it would cost more than `dearest` at the first of them; `whole` is False where a result was not to be had.
    """
    made = Searched(contender=peer)
    todo = sorted({min(max(0, i), len(peer.knobs) - 1) for i in begin})
    while todo:
        cells = [cell for i in todo for cell in row.cells(peer.at(peer.knobs[i]), stretches)]
        results = iter(run(cells))
        for place in todo:
            some = [next(results) for _ in stretches]
            known = [one for one in some if one is not None]
            if len(known) < len(some):
                made.whole = False
            else:
                made.found[place] = known
        if not made.whole or _too_dear(made, wanted[0], dearest):
            return made
        todo = sorted(_next(made, wanted))
    return made


def _next(made: Searched, wanted: Sequence[float]) -> set[int]:
    places, share, cost = made.totals()
    count = len(made.contender.knobs)
    steps = set()
    for value in wanted:
        ends = [(places[i], float(share[i])) for i in ends_at(share, cost, value)]
        steps.add(next_place(ends, set(places), count, value))
    return {i for i in steps if i is not None}


def _too_dear(made: Searched, wanted: float, dearest: float) -> bool:
    """Whether even the next point of the frontier that misses the wanted share costs more: attaining it costs no less."""
    places, share, cost = made.totals()
    missed = [float(cost[i]) for i in ends_at(share, cost, wanted) if share[i] > wanted]
    return bool(missed) and missed[0] > dearest


@dataclass(slots=True, kw_only=True)
class RowResult:
    """What a row came to.  `screened`: peers on the short stretch, `kept`: on all of them, `shipped`: as shipped on the short
    one.  `whole` is False where a result was not to be had."""

    row: Row
    ours: list[CellResult]
    screened: dict[str, Searched]
    kept: list[Searched]
    shipped: dict[str, CellResult]
    whole: bool

    def screened_gpu_hours(self) -> dict[str, float]:
        """Each peer's cost on the short stretch; without those that do not get there at a cost near the best one's."""
        wanted = screen_share(self.row)
        return {name: cost for name, one in self.screened.items() if (cost := one.cost(wanted)) is not None}

    @property
    def share(self) -> float:
        """Share of requests that ours violated."""
        return float(points_of([self.ours]).totals()[0][0, 0])

    @property
    def gpu_hours(self) -> float:
        """Ours, summed over the days."""
        return float(by_day(self.ours)[:, 0].sum())

    @property
    def outside_surges(self) -> tuple[float, float]:
        """(attained by requests that arrive outside surges, share of requests that arrive in surges)."""
        _, arrived, violated, surged, late = by_day(self.ours).sum(axis=0)
        return float(1 - (violated - late) / (arrived - surged)), float(surged / arrived)

    def ratios(self) -> list[tuple[str, Ratio]]:
        """Ours over each peer that was run on all stretches, at equal attainment."""
        ours, target = points_of([self.ours]), 1 - self.row.claims.target
        return [
            (
                one.contender.name,
                ratio(ours, one.points(), target_share=target, key=draws.key(0, self.row.name, one.contender.name)),
            )
            for one in self.kept
            if one.found
        ]

    def best(self, *, reactive: bool = False) -> tuple[str, Ratio] | None:
        """The peer that costs least at our attainment."""
        known = [
            (name, r)
            for name, r in self.ratios()
            if r.value is not None and not (reactive and name in self.row.claims.planned)
        ]
        return max(known, key=lambda one: one[1].value or 0.0) if known else None

    def for_the_promise(self) -> tuple[str, float] | None:
        """The peer that costs least at just the target, and ours over it; None where ours misses the target."""
        if self.share > (1 + EQUAL) * (1 - self.row.claims.target):
            return None
        costs = [(one.contender.name, one.cost(1 - self.row.claims.target)) for one in self.kept]
        known = [(name, cost) for name, cost in costs if cost is not None]
        if not known:
            return None
        name, cost = min(known, key=lambda one: one[1])
        return name, self.gpu_hours / cost


def screen(run: Run, row: Row, warm: Mapping[str, list[int]]) -> dict[str, Searched]:
    """Peers on the short stretch: all of them, or those of `warm` from its places.  Results that lack are left out."""
    claims = row.claims
    short = [claims.stretches[claims.screen]]
    wanted, best = screen_share(row), np.inf
    made: dict[str, Searched] = {}
    for peer in row.contenders():
        if warm and peer.name not in warm:
            continue
        begin = warm.get(peer.name) or [round(share * (len(peer.knobs) - 1)) for share in _FIRST]
        one = search(run, row, peer, short, begin, [wanted], claims.far * best)
        made[peer.name] = one
        best = min(best, one.cost(wanted) or np.inf)
    return made


def warm_places(row: Row, screened: Mapping[str, Searched]) -> dict[str, list[int]]:
    """Where the next start-up of the trace begins to search: without those that are dearer by far than the best one."""
    wanted = screen_share(row)
    known = [cost for one in screened.values() if (cost := one.cost(wanted)) is not None]
    dearest = row.claims.hopeless * min(known, default=np.inf)
    return {
        name: one.ends(wanted) for name, one in screened.items() if one.found and not _too_dear(one, wanted, dearest)
    }


def screen_share(row: Row) -> float:
    """The share of violated requests at which peers are screened."""
    return _CROWD_SHARE if row.trace in row.claims.crowds else 1 - row.claims.target


def near_best(row: Row, screened: Mapping[str, Searched]) -> list[Searched]:
    """Those to be run on all stretches, cheapest first: two, and a third that is next to the best one."""
    claims, wanted = row.claims, screen_share(row)
    costs = sorted((cost, name) for name, one in screened.items() if (cost := one.cost(wanted)) is not None)
    return [
        screened[name]
        for i, (cost, name) in enumerate(costs[:3])
        if cost <= (claims.near if i > 1 else claims.far) * costs[0][0]
    ]


def run_peers(
    run: Run, row: Row, warm: Mapping[str, list[int]], realised: float | None = None
) -> tuple[dict[str, Searched], list[Searched]]:
    """(screened, kept): peers at the target, and where it is known at the share that ours realised."""
    screened = screen(run, row, warm)
    target = 1 - row.claims.target
    wanted = [target] if realised is None else [target, realised]
    if realised is not None and row.trace in row.claims.crowds and realised > (1 + EQUAL) * target:
        wanted = [realised]  # where ours misses, nothing is read at the target
    kept = []
    for one in near_best(row, screened):
        ends = one.ends(screen_share(row))
        kept.append(search(run, row, one.contender, row.claims.stretches, ends, wanted))
    return screened, kept


def run_shipped(run: Run, row: Row) -> dict[str, CellResult]:
    """Every peer as shipped on the short stretch."""
    short = [row.claims.stretches[row.claims.screen]]
    known = row.contenders()
    results = run([cell for peer in known for cell in row.cells(peer.at(None), short)])
    return {peer.name: one for peer, one in zip(known, results, strict=True) if one is not None}


def run_row(run: Run, row: Row, warm: Mapping[str, list[int]]) -> RowResult | None:
    """A whole row; None where ours is not to be had."""
    results = run(row.cells(OURS, row.claims.stretches))
    ours = [one for one in results if one is not None]
    if len(ours) < len(results):
        return None
    realised = float(points_of([ours]).totals()[0][0, 0])
    screened, kept = run_peers(run, row, warm, realised)
    return RowResult(
        row=row,
        ours=ours,
        screened=screened,
        kept=kept,
        shipped=run_shipped(run, row),
        whole=all(one.whole for one in (*screened.values(), *kept)),
    )
