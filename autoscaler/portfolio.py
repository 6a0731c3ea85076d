"""Ways of deciding, replayed on the work that came: which would have been the cheapest that keeps the promise here.

Work does not depend on what we decide, so each variant of the reactive rule (how full replicas are planned, over how long work
is averaged, how long a replica is kept) can be played on it in a fluid model of the fleet:

    queue' = max(0, queue + (work - what the ready replicas carry) * cell)          replica-seconds
    late   = work that arrives while queue > TTFT limit * what the ready replicas carry
    cost   = (ready + starting) * cell

What each has cost and broken is carried on from refit to refit and forgotten over some days, so a refit plays only what is
new, and nothing where nobody acts on it: `advise` plays the log.  `chosen` changes lazily: for a gain that is worth it, or
where the promise would have been broken.  The variants contain what others do by rule: an HPA on work is a target with 15 to
60 s and 300 s of stabilization, a KPA one with 60 s and none.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from autoscaler.policy import drain_seconds
from autoscaler.settings import PoolSettings, WorkSettings
from autoscaler.types import Capacity, Choice, Replayed, Variant

UTILIZATIONS = (0.6, 0.7, 0.8, 0.95, 1.1)
WINDOWS = (20, 60, 180)
KEEPS = (60, 300, 900)
MEMORY_SECONDS = 3.5 * 86_400.0  # mean age of what counts: as much as a week's
LEAST_SECONDS = 6 * 3600.0  # replayed before another than the shipped variant is chosen
GAIN_FRACTION = 0.02  # of the cost: a change for less is not worth it
MOST_TABLE = 4_096  # replicas


def shipped(settings: PoolSettings, capacity: Capacity) -> Variant:
    """What decides before anything was replayed."""
    work = WorkSettings()
    keep = settings.keep_seconds if settings.keep_seconds is not None else max(300, round(capacity.startup(0.9)))
    return Variant(
        utilization_fraction=work.utilization_fraction, window_seconds=work.window_seconds, keep_seconds=keep
    )


def variants(settings: PoolSettings, capacity: Capacity) -> tuple[Variant, ...]:
    """All that are played, the shipped one first."""
    first = shipped(settings, capacity)
    keeps = sorted({*KEEPS, first.keep_seconds}) if settings.keep_seconds is None else [first.keep_seconds]
    every = (
        Variant(utilization_fraction=u, window_seconds=w, keep_seconds=k)
        for k in keeps
        for w in WINDOWS
        for u in UTILIZATIONS
    )
    return (first, *(v for v in every if v != first))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Mean work of equal cells of time, in Erlangs; the first begins at `start_seconds`.  None: not measured.

    Cells that were replayed before are there for the windows that reach back into them.
    """

    start_seconds: int
    cell_seconds: int
    values: Sequence[float | None]


def replayed(
    choice: Choice | None,
    settings: PoolSettings,
    capacity: Capacity,
    recorded: Recorded,
    memory_seconds: float = MEMORY_SECONDS,
) -> Choice:
    """`choice` with every variant played on over `recorded`, and the variant that is best by now."""
    asked = variants(settings, capacity)
    before = {r.variant: r for r in choice.replayed} if choice is not None else {}
    cells = recorded.cell_seconds
    done = 0 if choice is None else max(0, (choice.at_seconds - recorded.start_seconds) // cells)
    known = [v for v in recorded.values[done:] if v is not None]
    decay = math.exp(-cells * len(known) / memory_seconds)
    world = _World.of(settings, capacity, recorded, done)
    # One that joins late, because start-ups became longer, has no past: it begins with that of the present one.
    first = before.get(choice.chosen) if choice is not None else None
    means = {w: world.means(w) for w in {v.window_seconds for v in asked}}
    played = tuple(_played(before.get(v) or _joining(v, first), world, means[v.window_seconds], decay) for v in asked)
    arrived = decay * (choice.arrived if choice is not None else 0.0) + cells * sum(known)
    seconds = decay * (choice.seconds if choice is not None else 0.0) + cells * len(known)
    at = recorded.start_seconds + cells * len(recorded.values)
    chosen = choice.chosen if choice is not None and choice.chosen in asked else asked[0]
    after = Choice(at_seconds=at, chosen=chosen, arrived=arrived, seconds=seconds, replayed=played)
    return after if seconds < LEAST_SECONDS else replace(after, chosen=best(after, settings.slo.attainment_fraction))


def _joining(variant: Variant, like: Replayed | None) -> Replayed:
    return Replayed(variant=variant) if like is None else replace(like, variant=variant)


def best(choice: Choice, attainment_fraction: float) -> Variant:
    """The cheapest that attains, of the window and keep that cost least at just what is promised; chosen lazily.

    How full replicas may be is learned from the attainment itself, so ways of deciding are set beside each other where each
    has lost the same, between two utilizations that were played.  Where none attains, what hardly more than the best of them
    has lost.  The present window and keep stay unless they break the promise or are dearer by more than `GAIN_FRACTION`.
    """
    allowed = (1.0 - attainment_fraction) * choice.arrived
    least = min(r.late for r in choice.replayed)
    bound = allowed if least <= allowed else 1.1 * least
    ways: dict[tuple[int, int], list[Replayed]] = {}
    for each in choice.replayed:
        ways.setdefault(_way(each.variant), []).append(each)
    costs = {way: _cost_at(bound, played) for way, played in ways.items()}
    way = min(costs, key=lambda w: costs[w])
    present = _way(choice.chosen)
    if costs[way] > (1.0 - GAIN_FRACTION) * costs.get(present, math.inf):
        way = present
    return min((r for r in ways[way] if r.late <= bound), key=lambda r: r.replica_seconds).variant


def _way(variant: Variant) -> tuple[int, int]:
    return variant.window_seconds, variant.keep_seconds


def _cost_at(bound: float, played: Sequence[Replayed]) -> float:
    """Replica-seconds at which so much is late, straight between neighbouring utilizations; infinite where always more is."""
    line = sorted(played, key=lambda r: -r.variant.utilization_fraction)
    found = min((r.replica_seconds for r in line if r.late <= bound), default=math.inf)
    for lean, full in pairwise(line):
        if full.late <= bound < lean.late:
            share = (bound - full.late) / (lean.late - full.late)
            found = min(found, full.replica_seconds + share * (lean.replica_seconds - full.replica_seconds))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _World:
    """What all variants meet: cells, of which the first `done` were played before.

    `loads[n]`: Erlangs that n replicas carry within the SLO, ascending.
    """

    recorded: Recorded
    done: int
    loads: Sequence[float]
    least: int
    startup_seconds: float
    slack_seconds: float

    @classmethod
    def of(cls, settings: PoolSettings, capacity: Capacity, recorded: Recorded, done: int) -> _World:
        peak = max((v for v in recorded.values if v is not None), default=0.0)
        most = settings.limits.max_replicas or capacity.replicas(4.0 * peak) + 1
        most = max(settings.limits.min_replicas, min(most, MOST_TABLE))
        loads = list(accumulate((n * capacity.feasible(n) if n else 0.0 for n in range(most + 1)), max))
        return cls(
            recorded=recorded, done=done, loads=loads, least=settings.limits.min_replicas,
            startup_seconds=capacity.startup(0.5), slack_seconds=settings.slo.ttft_seconds,
        )  # fmt: skip

    def means(self, window_seconds: int) -> list[float | None]:
        """Of every cell to play, the mean of the known cells in the window that ends with it."""
        values = self.recorded.values
        width = max(1, round(window_seconds / self.recorded.cell_seconds))
        sums = list(accumulate((v or 0.0 for v in values), initial=0.0))
        counts = list(accumulate((v is not None for v in values), initial=0))
        found: list[float | None] = []
        for i in range(self.done + 1, len(values) + 1):
            low = max(0, i - width)
            n = counts[i] - counts[low]
            found.append((sums[i] - sums[low]) / n if n else None)
        return found


def _played(before: Replayed, world: _World, means: Sequence[float | None], decay: float) -> Replayed:
    """One variant on the recorded cells and their `means` over its window.

    What was not measured costs and breaks nothing, and nothing is decided on it.
    """
    variant, loads, cell = before.variant, world.loads, world.recorded.cell_seconds
    most, shut = len(loads) - 1, variant.keep_seconds
    ready, queued, late, paid = before.ready, before.queued_seconds, 0.0, 0.0
    starting, recent = deque(before.starting_ready_at_seconds), deque(before.wanted)
    at = float(world.recorded.start_seconds + world.done * cell)
    for work, mean in zip(world.recorded.values[world.done :], means, strict=True):
        begun, at = at, at + cell
        if work is None or mean is None:
            continue
        while starting and starting[0] <= begun:
            starting.popleft()
            ready += 1
        if ready < 0:  # the very first: as many as the work asks for
            ready = min(most, max(world.least, bisect_left(loads, mean / variant.utilization_fraction)))
        paid += (ready + len(starting)) * cell
        carried = loads[ready]
        after = max(0.0, queued + (work - carried) * cell)
        limit = world.slack_seconds * carried
        if after > limit or queued > limit:
            late += work * cell * _share_above(queued, after, limit)
        queued = after
        asked = mean / variant.utilization_fraction
        if queued:
            asked += queued / drain_seconds(queued, mean, WorkSettings().drain_seconds)
        wanted = min(most, max(world.least, bisect_left(loads, asked)))
        while recent and (recent[-1][1] <= wanted or at - recent[0][0] > shut):
            recent.pop() if recent[-1][1] <= wanted else recent.popleft()
        recent.append((int(at), wanted))
        total = ready + len(starting)
        if wanted > total:
            starting.extend([at + world.startup_seconds] * (wanted - total))
        elif recent[0][1] < total:
            spare = total - recent[0][1]
            while spare and starting:
                starting.pop()
                spare -= 1
            ready -= spare
    return Replayed(
        variant=variant, ready=ready, starting_ready_at_seconds=tuple(starting), queued_seconds=queued,
        wanted=tuple(recent), replica_seconds=decay * before.replica_seconds + paid, late=decay * before.late + late,
    )  # fmt: skip


def _share_above(start: float, end: float, limit: float) -> float:
    """The share of a cell in which a queue that moves evenly from `start` to `end` is above `limit`."""
    low, high = min(start, end), max(start, end)
    if low >= limit:
        return 1.0
    return (high - limit) / (high - low) if high > limit else 0.0
