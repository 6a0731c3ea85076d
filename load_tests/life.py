"""The life of one pool's replicas: ordered, starting, ready, draining, asleep or gone; and what every stage costs.

As a platform does, it keeps as many replicas as were asked for: one that dies, or whose start fails, is ordered again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoscaler.types import Replicas
from load_tests.births import Births
from load_tests.fleet import Fleet
from load_tests.run import ReplicaSeconds

# A stuck engine's steps take so much longer that none ends.
_STUCK_FACTOR = 1e-12


@dataclass(slots=True)
class Span:
    """One replica's instants; inf where it has not come to that."""

    ordered: float
    ready: float = math.inf
    draining: float = math.inf
    gone: float = math.inf
    asleep: float = math.inf
    replica: int = -1


class Life:
    """Replicas of pool number `pool` of a Fleet.  Time moves forward: no call may be earlier than the last.

    `drain`: a removed replica finishes what it holds.  With `wakes` (the starts of a sleeping replica) up to `sleepers`
    removed replicas sleep once they are empty, held and paid for, and are woken before any is born.
    """

    def __init__(
        self, fleet: Fleet, pool: int, births: Births, *, initial: int, drain: bool = True,
        wakes: Births | None = None, sleepers: int = 0,
    ) -> None:  # fmt: skip
        self.fleet, self.pool, self.births = fleet, pool, births
        self.wakes, self.sleepers = wakes, sleepers if wakes is not None else 0
        self.desired = initial
        self.drains = drain
        self.capacity_factor = 1.0
        self.spans: list[Span] = []
        self._starting: dict[tuple[Births, int], Span] = {}
        self._serving: dict[int, Span] = {}
        self._leaving: list[Span] = []
        self._asleep: list[Span] = []
        self.stuck: tuple[int, ...] = ()
        self.lost: list[float] = []  # instants at which a replica died, or its start failed
        for _ in range(initial):
            self._join(Span(ordered=-math.inf, ready=fleet.now_seconds), fleet.now_seconds)

    @property
    def serving(self) -> tuple[int, ...]:
        """Ids of the replicas that take requests, oldest first."""
        return tuple(self._serving)

    @property
    def starting(self) -> int:
        """Number of starts in flight."""
        return len(self._starting)

    @property
    def draining(self) -> int:
        """Number of replicas that finish what they hold."""
        return len(self._leaving)

    @property
    def sleeping(self) -> int:
        """Number of replicas asleep."""
        return len(self._asleep)

    @property
    def sources(self) -> tuple[Births, ...]:
        """Where replicas come from: born, and woken."""
        return (self.births,) if self.wakes is None else (self.births, self.wakes)

    def next_event_seconds(self) -> float:
        """When the next start ends, or infinity."""
        return min(source.next_ready_seconds() for source in self.sources)

    def happen(self, at_seconds: float) -> None:
        """Take in the starts that end by `at_seconds`, which the fleet must have reached, and what has drained."""
        for source in self.sources:
            for end, ordinal, failed in source.ended(at_seconds):
                span = self._starting.pop((source, ordinal))
                if failed:
                    span.gone = end
                    self.lost.append(end)
                else:
                    self._join(span, end)
        for span in self._leaving:
            self._left(span)
        self._leaving = [s for s in self._leaving if s.gone == s.asleep == math.inf]
        self._reconcile(at_seconds)

    def scale(self, at_seconds: float, replicas: int) -> None:
        """Ask for `replicas`: order what is missing, or give up starts (youngest first), then the least loaded."""
        self.desired = replicas
        self._reconcile(at_seconds)

    def kill(self, at_seconds: float, count: int) -> None:
        """The `count` oldest serving replicas fail, with all they hold; the platform orders new ones."""
        self._kill(at_seconds, list(self._serving)[:count])

    def give_up(self, at_seconds: float, count: int) -> None:
        """The `count` oldest starts are lost; the platform orders new ones."""
        for source, ordinal in list(self._starting)[:count]:
            source.cancel(ordinal, at_seconds)
            self._starting.pop((source, ordinal)).gone = at_seconds
            self.lost.append(at_seconds)
        self._reconcile(at_seconds)

    def stick(self, at_seconds: float, count: int) -> None:
        """The `count` oldest serving replicas stop in the middle of a step, and nobody sees it."""
        self.stuck = self.serving[:count]
        for replica in self.stuck:
            self.fleet.set_capacity_factor(replica, _STUCK_FACTOR)

    def kill_stuck(self, at_seconds: float) -> None:
        """What is stuck fails, draining replicas included."""
        for span in self._leaving:
            if span.replica in self.stuck:
                self.fleet.kill(span.replica)
        self._kill(at_seconds, [r for r in self.stuck if r in self._serving])
        self.stuck = ()

    def change_law(self, step_factor: float, token_factor: float, context_factor: float) -> None:
        """From the next step on every engine of the pool has other terms in its step law."""
        self.fleet.change_law(self.pool, step_factor, token_factor, context_factor)

    def _kill(self, at_seconds: float, replicas: list[int]) -> None:
        for replica in replicas:
            span = self._serving.pop(replica)
            self.fleet.kill(replica)
            span.gone = at_seconds
            self.lost.append(at_seconds)
        self._reconcile(at_seconds)

    def slow_down(self, factor: float) -> None:
        """Every replica, and each that comes, has `factor` of its speed."""
        self.capacity_factor = factor
        for replica in self._serving:
            self.fleet.set_capacity_factor(replica, factor)

    def counts(self, origin_at_seconds: int) -> Replicas:
        """The counts as the platform tells them, with the expected ready instant (Unix seconds) of what is starting."""
        ready_at = sorted(
            origin_at_seconds + round(source.expected_ready_seconds(ordinal)) for source, ordinal in self._starting
        )
        oldest = min((span.ordered for span in self._starting.values()), default=None)
        return Replicas(
            desired=self.desired,
            ready=len(self._serving),
            starting=len(self._starting),
            draining=len(self._leaving),
            sleeping=len(self._asleep),
            starting_ready_at_seconds=tuple(ready_at),
            oldest_start_at_seconds=None if oldest is None else origin_at_seconds + round(oldest),
        )

    def paid(self, start: float, end: float) -> ReplicaSeconds:
        """Replica-seconds of every stage inside [start, end)."""

        def inside(a: float, b: float) -> float:
            return max(0.0, min(b, end) - max(a, start))

        starting = ready = draining = sleeping = 0.0
        for span in self.spans:
            starting += inside(span.ordered, min(span.ready, span.gone))
            ready += inside(span.ready, min(span.draining, span.gone)) if span.ready < math.inf else 0.0
            if span.draining < math.inf:
                draining += inside(span.draining, min(span.asleep, span.gone))
            if span.asleep < math.inf:
                sleeping += inside(span.asleep, span.gone)
        return ReplicaSeconds(starting=starting, ready=ready, draining=draining, sleeping=sleeping)

    def starts(self, start: float, end: float) -> int:
        """Starts ordered inside [start, end), wakes included."""
        return sum(start <= span.ordered < end for span in self.spans)

    def _join(self, span: Span, at_seconds: float) -> None:
        span.ready = at_seconds
        span.replica = self.fleet.add(self.pool, self.capacity_factor)
        self._serving[span.replica] = span
        if span.ordered == -math.inf:
            self.spans.append(span)

    def _reconcile(self, at_seconds: float) -> None:
        surplus = len(self._starting) + len(self._serving) - self.desired
        for _ in range(-surplus):
            source = self.births
            if self._asleep and self.wakes is not None:
                source = self.wakes
                self._asleep.pop().gone = at_seconds
            span = Span(ordered=at_seconds)
            self._starting[source, source.order(at_seconds)] = span
            self.spans.append(span)
        while surplus > 0 and self._starting:
            source, ordinal = next(reversed(self._starting))
            source.cancel(ordinal, at_seconds)
            self._starting.pop((source, ordinal)).gone = at_seconds
            surplus -= 1
        if surplus > 0:
            self._drain(at_seconds, surplus)

    def _drain(self, at_seconds: float, count: int) -> None:
        gauges = self.fleet.gauges(self.pool)
        load = dict(zip(gauges.ids.tolist(), gauges.outstanding.tolist(), strict=True))
        victims = sorted(self._serving, key=lambda r: (load.get(r, 0), -r))[:count]
        for replica in victims:
            span = self._serving.pop(replica)
            if not self.drains:
                self.fleet.kill(replica)
                span.gone = at_seconds
                continue
            self.fleet.drain(replica)
            span.draining = at_seconds
            if not self._left(span):
                self._leaving.append(span)

    def _left(self, span: Span) -> bool:
        """True once a draining replica is empty: it sleeps, where one more may, or is gone."""
        empty = self.fleet.gone_at(span.replica)
        if empty is None:
            return False
        if len(self._asleep) < self.sleepers:
            span.asleep = empty
            self._asleep.append(span)
        else:
            span.gone = empty
        return True
