"""How replicas are born: stages drawn at random, weights read from a store that all starting replicas share.

Every stage is lognormal around its value.  Stage s of the k-th start of a pool is drawn from (seed, pool, s, k), so that
two policies on one scenario see the same k-th start.  A store of bandwidth B gives each of n readers
``r = min(client rate, B / n)``; with S(t) the integral of r, reader i is done when S has grown by its bytes: one heap,
exact.  Replicas that share a new node wait for its stages together.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from load_tests import draws
from serving.profiles import StageSeconds, StartupProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupModel:
    """A start-up at one replica's size.  `store_gb_per_second` is the store's total rate; None means without limit."""

    stages: tuple[StageSeconds, ...]
    store_gb_per_second: float | None = None
    replicas_per_node: int = 1

    def __post_init__(self) -> None:
        if sum(s.weights_gb > 0 for s in self.stages) > 1:
            raise ValueError("at most one stage may read from the store")
        if self.replicas_per_node < 1:
            raise ValueError(f"replicas_per_node {self.replicas_per_node} must be >= 1")

    @classmethod
    def of(
        cls,
        profile: StartupProfile,
        *,
        weights_gb: float,
        layers: int,
        image_gb: float = 10.0,
        store_gb_per_second: float | None = None,
        replicas_per_node: int = 1,
    ) -> StartupModel:
        """The stages of a start-up profile for a replica of `weights_gb` and `layers`."""
        return cls(
            stages=profile.stage_seconds(weights_gb=weights_gb, layers=layers, image_gb=image_gb),
            store_gb_per_second=store_gb_per_second,
            replicas_per_node=replicas_per_node,
        )

    @property
    def median_seconds(self) -> float:
        """Sum of the stages' medians for a replica that starts alone."""
        return math.fsum(s.seconds for s in self.stages)


@dataclass(slots=True)
class SharedStore:
    """Readers of one store: each gets min(`client_rate`, `bandwidth` / readers) GB/s."""

    client_rate: float
    bandwidth: float
    now: float = 0.0
    served: float = 0.0
    readers: list[tuple[float, int]] = field(default_factory=list)

    def copy(self) -> SharedStore:
        """An independent copy."""
        return SharedStore(self.client_rate, self.bandwidth, self.now, self.served, list(self.readers))

    def rate(self) -> float:
        """GB/s that each reader gets now."""
        return min(self.client_rate, self.bandwidth / max(1, len(self.readers)))

    def next_end(self) -> float:
        """When the next reader is done if nobody else comes; infinity without readers."""
        return self.now + max(0.0, self.readers[0][0] - self.served) / self.rate() if self.readers else math.inf

    def advance(self, until: float) -> list[tuple[float, int]]:
        """Move on to `until`; (end, reader) of those done by then, in time order."""
        done = []
        while self.readers and (end := self.next_end()) <= until:
            self.now, self.served = end, self.readers[0][0]
            done.append((end, heapq.heappop(self.readers)[1]))
        self.served += self.rate() * (until - self.now)
        self.now = until
        if not self.readers:
            self.served = 0.0  # keeps the sum short, and so exact
        return done

    def join(self, reader: int, gigabytes: float) -> None:
        """A new reader of so many GB begins now."""
        heapq.heappush(self.readers, (self.served + gigabytes, reader))

    def leave(self, reader: int) -> None:
        """A reader gives up now."""
        self.readers = [r for r in self.readers if r[1] != reader]
        heapq.heapify(self.readers)


@dataclass(slots=True)
class _Birth:
    """`before`: order, then ends of the stages before the store, the last of which `joins` it.  `after`: seconds after it.

    `read_until` is final once the past is; `told` when its end has been reported.
    """

    ordinal: int
    before: list[float]
    gigabytes: float
    after: list[float]
    fails: bool
    joined: bool = False
    read_until: float = math.inf
    told: bool = False

    @property
    def joins(self) -> float:
        return self.before[-1]


class Births:
    """The starts of one pool.  Time only moves forward: every call with an instant may not be earlier than the last.

    `factor` stretches every stage of the starts ordered from then on (a slow day), `failure_fraction` of them fail at the
    instant at which they would be ready, the next `hangs` never end; all may be set at any time.
    """

    def __init__(
        self, model: StartupModel, pool: str, seed: int, factor: float = 1.0, failure_fraction: float = 0.0
    ) -> None:
        self.model, self.pool, self.seed = model, pool, seed
        self.factor, self.failure_fraction, self.hangs = factor, failure_fraction, 0
        self._split = next((i for i, s in enumerate(model.stages) if s.weights_gb > 0), len(model.stages))
        self._keys = [np.uint64(draws.key(seed, "startup", pool, s.name)) for s in model.stages]
        self._failure_key = np.uint64(draws.key(seed, "startup failure", pool))
        reader = model.stages[self._split] if self._split < len(model.stages) else None
        client = reader.weights_gb / reader.seconds if reader and reader.seconds > 0 else math.inf
        self._store = SharedStore(client, math.inf if model.store_gb_per_second is None else model.store_gb_per_second)
        self._births: dict[int, _Birth] = {}
        self._waiting: list[int] = []
        self._shortage = False
        self._ordered = 0
        self._nodes, self._on_node, self._node_ends = 0, 0, [0.0]
        self._now = -math.inf
        self._plan: list[tuple[float, int]] | None = None
        self._reads: dict[int, float] = {}

    @property
    def starting(self) -> tuple[int, ...]:
        """Ordinals of the starts in flight, oldest first."""
        return tuple(sorted((*(o for o, b in self._births.items() if not b.told), *self._waiting)))

    @property
    def ordered(self) -> int:
        """Starts ordered so far."""
        return self._ordered

    def order(self, at_seconds: float) -> int:
        """Order one start; its ordinal, counted from 0."""
        self._commit(at_seconds)
        ordinal, self._ordered = self._ordered, self._ordered + 1
        if self._shortage:
            self._waiting.append(ordinal)
        else:
            self._begin(ordinal, at_seconds)
        return ordinal

    def cancel(self, ordinal: int, at_seconds: float | None = None) -> None:
        """Give up a start (at the last instant seen, unless said); its share of the store is free from then on."""
        self._commit(self._now if at_seconds is None else at_seconds)
        if ordinal in self._waiting:
            self._waiting.remove(ordinal)
            return
        if ordinal not in self._births or self._births[ordinal].told:
            raise ValueError(f"start {ordinal} is not in flight")
        del self._births[ordinal]
        self._store.leave(ordinal)
        self._plan = None

    def shortage(self, at_seconds: float, on: bool) -> None:
        """While on, the platform has no node for new starts: they wait, and begin in order when it ends."""
        self._commit(at_seconds)
        self._shortage = on
        while not on and self._waiting:
            self._begin(self._waiting.pop(0), at_seconds)

    def next_ready_seconds(self) -> float:
        """The next instant at which a start ends, well or not, if nothing is ordered or given up before; or infinity."""
        plan = self._planned()
        return plan[0][0] if plan else math.inf

    def ready(self, until_seconds: float) -> list[tuple[float, int]]:
        """(instant, ordinal) of the replicas that become ready by then, in time order; each is told once.

        Starts that fail by then are dropped in silence; `ended` tells of both.
        """
        return [(at, ordinal) for at, ordinal, failed in self.ended(until_seconds) if not failed]

    def ended(self, until_seconds: float) -> list[tuple[float, int, bool]]:
        """(instant, ordinal, failed) of the starts that end by then, well or not, in time order; each is told once."""
        found = []
        plan = self._planned()
        while plan and plan[0][0] <= until_seconds:
            at, ordinal = plan.pop(0)
            birth = self._births[ordinal]
            birth.told = True
            found.append((at, ordinal, birth.fails))
        self._now = max(self._now, until_seconds)
        return found

    def expected_ready_seconds(self, ordinal: int, at_seconds: float | None = None) -> float:
        """When a controller would expect the start to be ready: the medians of the stages that are left.

        It sees which stages are over, not what was drawn, nor `factor`, nor who shares the store.  A stage that takes
        longer than its median is expected to end now.  A start that waits for a node is expected as if it began now.
        """
        now = self._now if at_seconds is None else at_seconds
        medians = [s.seconds for s in self.model.stages]
        if ordinal in self._waiting:
            return now + math.fsum(medians)
        self._planned()
        begun, over = self._progress(self._births[ordinal], now)
        return max(now, begun + medians[over]) + math.fsum(medians[over + 1 :])

    def _begin(self, ordinal: int, at_seconds: float) -> None:
        seconds = [s.seconds * self._spread(i, ordinal) for i, s in enumerate(self.model.stages)]
        node_ends = iter(self._node(at_seconds))
        ends, last = [at_seconds], at_seconds
        for stage, length in zip(self.model.stages[: self._split], seconds, strict=False):
            last = max(last, next(node_ends)) if stage.of_node else last + length
            ends.append(last)
        reads = self._split < len(seconds)
        gigabytes = self.model.stages[self._split].weights_gb * self._spread(self._split, ordinal) if reads else 0.0
        fails = bool(draws.uniform_at(self._failure_key, ordinal) < self.failure_fraction)
        after = seconds[self._split + 1 :]
        if self.hangs > 0:
            self.hangs -= 1
            (after or ends)[-1] = math.inf
        self._births[ordinal] = _Birth(ordinal, ends, gigabytes, after, fails)
        self._plan = None

    def _node(self, at_seconds: float) -> list[float]:
        """Ends of the node stages for a start ordered now: of the last new node while it has room, else of another."""
        if self._nodes == 0 or self._on_node == self.model.replicas_per_node:
            self._on_node, end, ends = 0, at_seconds, []
            for i, stage in enumerate(self.model.stages):
                if stage.of_node:
                    end += stage.seconds * self._spread(i, self._nodes)
                    ends.append(end)
            self._nodes, self._node_ends = self._nodes + 1, ends
        self._on_node += 1
        return self._node_ends

    def _spread(self, stage: int, ordinal: int) -> float:
        sigma = self.model.stages[stage].sigma
        drawn = math.exp(sigma * float(draws.normal_at(self._keys[stage], ordinal))) if sigma else 1.0
        return self.factor * drawn

    def _commit(self, at_seconds: float) -> None:
        """Make the past final up to `at_seconds`.

        Only where something changes, so that results do not depend on how often anybody asks.
        """
        if at_seconds < self._now:
            raise ValueError(f"{at_seconds} s is before {self._now} s, the last instant seen")
        for end, ordinal in self._run(self._store, at_seconds, final=True):
            self._births[ordinal].read_until = end
        self._births = {o: b for o, b in self._births.items() if not (b.told and b.read_until < math.inf)}
        self._now = at_seconds

    def _run(self, store: SharedStore, until: float, *, final: bool) -> list[tuple[float, int]]:
        """Run the store; (end of reading, ordinal) of those that finish by `until`."""
        coming = sorted((b.joins, b.ordinal) for b in self._births.values() if not b.joined and b.joins <= until)
        done: list[tuple[float, int]] = []
        for joins, ordinal in coming:
            birth = self._births[ordinal]
            birth.joined = final
            if birth.gigabytes <= 0 or math.isinf(store.client_rate):
                done.append((joins, ordinal))
                continue
            done += store.advance(joins)
            store.join(ordinal, birth.gigabytes)
        if until < math.inf:
            return done + store.advance(until)
        while store.readers:
            done += store.advance(store.next_end())
        return done

    def _planned(self) -> list[tuple[float, int]]:
        """(end, ordinal) of every start in flight, in time order, if nothing is ordered or given up any more."""
        if self._plan is None:
            self._reads = {b.ordinal: b.read_until for b in self._births.values() if b.read_until < math.inf}
            self._reads |= {ordinal: end for end, ordinal in self._run(self._store.copy(), math.inf, final=False)}
            flying = [b for b in self._births.values() if not b.told]
            self._plan = sorted((self._reads[b.ordinal] + math.fsum(b.after), b.ordinal) for b in flying)
        return self._plan

    def _progress(self, birth: _Birth, now: float) -> tuple[float, int]:
        """(begin, index) of the stage that a start is in."""
        for i, (begin, end) in enumerate(pairwise(birth.before)):
            if now < end:
                return begin, i
        read_until = self._reads[birth.ordinal]
        if now < read_until or not birth.after:
            return birth.joins, min(self._split, len(self.model.stages) - 1)
        begin, last = read_until, len(self.model.stages) - 1
        for i, length in enumerate(birth.after[:-1], start=self._split + 1):
            if now < begin + length:
                return begin, i
            begin += length
        return begin, last
