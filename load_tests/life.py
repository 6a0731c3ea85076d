"""The life of one pool's replicas: ordered, starting, ready, draining, gone; and what every stage costs.

As a platform does, it keeps as many replicas as were asked for: one that dies, or whose start fails, is ordered again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoscaler.types import Replicas
from load_tests.births import Births
from load_tests.fleet import Fleet
from load_tests.run import ReplicaSeconds


@dataclass(slots=True)
class Span:
    """One replica's instants; inf where it has not come to that."""

    ordered: float
    ready: float = math.inf
    draining: float = math.inf
    gone: float = math.inf
    replica: int = -1


class Life:
    """Replicas of pool number `pool` of a Fleet.  Time moves forward: no call may be earlier than the last."""

    def __init__(self, fleet: Fleet, pool: int, births: Births, *, initial: int, drain: bool = True) -> None:
        self.fleet, self.pool, self.births = fleet, pool, births
        self.desired = initial
        self.drains = drain
        self.capacity_factor = 1.0
        self.spans: list[Span] = []
        self._starting: dict[int, Span] = {}
        self._serving: dict[int, Span] = {}
        self._leaving: list[Span] = []
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

    def next_event_seconds(self) -> float:
        """When the next start ends, or infinity."""
        return self.births.next_ready_seconds()

    def happen(self, at_seconds: float) -> None:
        """Take in the starts that end by `at_seconds`, which the fleet must have reached, and what has drained."""
        for end, ordinal, failed in self.births.ended(at_seconds):
            span = self._starting.pop(ordinal)
            if failed:
                span.gone = end
            else:
                self._join(span, end)
        for span in self._leaving:
            gone = self.fleet.gone_at(span.replica)
            if gone is not None:
                span.gone = gone
        self._leaving = [s for s in self._leaving if s.gone == math.inf]
        self._reconcile(at_seconds)

    def scale(self, at_seconds: float, replicas: int) -> None:
        """Ask for `replicas`: order what is missing, or give up starts (youngest first), then the least loaded."""
        self.desired = replicas
        self._reconcile(at_seconds)

    def kill(self, at_seconds: float, count: int) -> None:
        """The `count` oldest serving replicas fail, with all they hold; the platform orders new ones."""
        for replica in list(self._serving)[:count]:
            span = self._serving.pop(replica)
            self.fleet.kill(replica)
            span.gone = at_seconds
        self._reconcile(at_seconds)

    def slow_down(self, factor: float) -> None:
        """Every replica, and each that comes, has `factor` of its speed."""
        self.capacity_factor = factor
        for replica in self._serving:
            self.fleet.set_capacity_factor(replica, factor)

    def counts(self, origin_at_seconds: int) -> Replicas:
        """The counts as the platform tells them, with the expected ready instant (Unix seconds) of what is starting."""
        ready_at = sorted(origin_at_seconds + round(self.births.expected_ready_seconds(o)) for o in self._starting)
        return Replicas(
            desired=self.desired,
            ready=len(self._serving),
            starting=len(self._starting),
            draining=len(self._leaving),
            starting_ready_at_seconds=tuple(ready_at),
        )

    def paid(self, start: float, end: float) -> ReplicaSeconds:
        """Replica-seconds of every stage inside [start, end)."""

        def inside(a: float, b: float) -> float:
            return max(0.0, min(b, end) - max(a, start))

        starting = ready = draining = 0.0
        for span in self.spans:
            starting += inside(span.ordered, min(span.ready, span.gone))
            ready += inside(span.ready, min(span.draining, span.gone)) if span.ready < math.inf else 0.0
            draining += inside(span.draining, span.gone) if span.draining < math.inf else 0.0
        return ReplicaSeconds(starting=starting, ready=ready, draining=draining)

    def starts(self, start: float, end: float) -> int:
        """Starts ordered inside [start, end)."""
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
            span = Span(ordered=at_seconds)
            self._starting[self.births.order(at_seconds)] = span
            self.spans.append(span)
        while surplus > 0 and self._starting:
            ordinal = max(self._starting)
            self.births.cancel(ordinal, at_seconds)
            self._starting.pop(ordinal).gone = at_seconds
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
            gone = self.fleet.gone_at(replica)
            if gone is None:
                self._leaving.append(span)
            else:
                span.gone = gone
