"""The board: the last Step of every pool.  Every face reads it, none decides.

    board = Board(config.pools)
    board.post(step, counts=loop.counts, refits=memory.beliefs.refits)      # after every turn
    board.fresh("chat").decision.replicas                                   # what a face answers, or Stale

All of it happens on one event loop: nothing here waits, and nothing here is thread-safe.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import MappingProxyType
from weakref import WeakSet

from autoscaler.errors import AutoscalerError, ConfigError
from autoscaler.loop import Counts
from autoscaler.settings import PoolSettings
from autoscaler.types import Step
from metrics_adapter.exposition import Exposition

MOST_RECENT = 360  # an hour at the default interval
MOST_STEPS = 20_000  # of all pools, 6 kB each: with more than 55 pools each has a shorter past


class Stale(AutoscalerError):
    """A pool has no Step that may still be acted on.  Its text is what a person reads in ``kubectl describe hpa``."""


class Board:
    """The last Step of each of `pools`, for as long as the process runs.

    A Step may be acted on until it is `stale_after_seconds` old, or three intervals of its pool where those are longer.
    `recent` keeps `most_recent` Steps a pool (default: an hour's, or less where pools are many).  `now` gives Unix seconds.
    """

    def __init__(
        self,
        pools: Sequence[PoolSettings],
        *,
        stale_after_seconds: int = 45,
        now: Callable[[], float] = time.time,
        most_recent: int | None = None,
    ) -> None:
        self.pools: Mapping[str, PoolSettings] = MappingProxyType({pool.name: pool for pool in pools})
        self.exposition = Exposition(stale_after_seconds=stale_after_seconds)
        self.stale_after_seconds, self.now = stale_after_seconds, now
        for pool in pools:
            self.exposition.add_pool(pool, stale_after_seconds=self.limit_seconds(pool.name))
        kept = most_recent or max(10, min(MOST_RECENT, MOST_STEPS // max(1, len(pools))))
        self._steps: dict[str, deque[Step]] = {name: deque(maxlen=kept) for name in self.pools}
        self._problems: dict[str, str] = {}
        self._listeners: WeakSet[_Changes] = WeakSet()

    def post(self, step: Step, *, counts: Counts | None = None, refits: int | None = None) -> None:
        """Take the Step that its pool just made; one that is earlier than the last is left out.

        Raises ConfigError for a pool that the board does not have.
        """
        pool = step.decision.pool
        steps = self._of(pool)
        last = steps[-1].decision.at_seconds if steps else None
        self.exposition.update(step, counts=counts, refits=refits)
        if last is not None and step.decision.at_seconds < last:
            return
        if step.decision.at_seconds == last:
            steps.pop()
        steps.append(step)
        self._problems.pop(pool, None)
        for listener in tuple(self._listeners):
            listener.tell(pool)

    def note(self, pool: str, *, counts: Counts | None = None, refits: int | None = None, problem: str = "") -> None:
        """Take what the loop counted in a turn that made no Step, and why it made none."""
        self._of(pool)
        self._problems[pool] = problem
        self.exposition.note(pool, counts=counts, refits=refits)

    def last(self, pool: str) -> Step | None:
        """The last Step, however old; None before the first."""
        steps = self._of(pool)
        return steps[-1] if steps else None

    def fresh(self, pool: str) -> Step:
        """The last Step.  Raises Stale if there is none, or it is too old to act on."""
        step = self.last(pool)
        problem = self._problems.get(pool)
        why = f": {problem}" if problem else ""
        if step is None:
            raise Stale(f"pool {pool}: not observed yet, nothing has been decided since the start{why}")
        age, limit = self.now() - step.decision.at_seconds, self.limit_seconds(pool)
        if age > limit:
            raise Stale(f"pool {pool}: last step is {age:.0f} s old, the limit is {limit} s{why}")
        if -age > limit:
            raise Stale(f"pool {pool}: last step is {-age:.0f} s ahead of the clock, the limit is {limit} s")
        return step

    def age_seconds(self, pool: str) -> float | None:
        """Seconds since the last Step's instant, at least 0; None before the first."""
        step = self.last(pool)
        return None if step is None else max(0.0, self.now() - step.decision.at_seconds)

    def limit_seconds(self, pool: str) -> int:
        """The age up to which a Step of `pool` may be acted on."""
        return max(self.stale_after_seconds, 3 * self.pools[pool].interval_seconds)

    def recent(self, pool: str) -> Sequence[Step]:
        """The last Steps, oldest first."""
        return tuple(self._of(pool))

    def changes(self) -> AsyncIterator[str]:
        """The name of a pool whenever it got a new Step, from this call on.

        A listener that is slow is told a name once, however many Steps came meanwhile; it holds up nobody.
        """
        listener = _Changes()
        self._listeners.add(listener)
        return listener

    def _of(self, pool: str) -> deque[Step]:
        try:
            return self._steps[pool]
        except KeyError:
            raise ConfigError("pool", f"{pool!r} must be one of {', '.join(self._steps) or 'none'}") from None


class _Changes(AsyncIterator[str]):
    """What one listener has not heard yet: at most every pool's name, in the order of their Steps."""

    def __init__(self) -> None:
        self._untold: dict[str, None] = {}
        self._some = asyncio.Event()

    def tell(self, pool: str) -> None:
        self._untold[pool] = None
        self._some.set()

    async def __anext__(self) -> str:
        while not self._untold:
            self._some.clear()
            await self._some.wait()
        pool = next(iter(self._untold))
        del self._untold[pool]
        return pool
