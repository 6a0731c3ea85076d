"""The loops of `autoscaler serve`: each pool resumes from its log, fetches the past that it lacks, turns, and learns anew.

    made = autoscaler_for(settings)
    pool = Served.open(made, resumed(made, log / settings.name), target=..., log=log, board=board)
    runners = runners_of([pool, ...])

A pool's trouble stays its own: its Step grows stale, and every face says so.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from autoscaler.errors import ConfigError, LogError, SourceError
from autoscaler.log import StepLog, restore, segments
from autoscaler.loop import Loop, SystemClock, tick_together
from autoscaler.ports import Clock, Target
from autoscaler.settings import LogSettings, PoolSettings
from autoscaler.step import Autoscaler
from autoscaler.types import Memory, Observation, Replicas
from metrics_adapter.board import Board
from metrics_adapter.sources import source_of
from metrics_adapter.transport import short

if TYPE_CHECKING:
    from metrics_adapter.prometheus import PrometheusSource
    from metrics_adapter.scrape import ScrapeSource

logger = logging.getLogger("autoscaler.serve")

CHUNK = 200  # observations of the past that are taken in at once: other pools turn in between
KNOCK_SECONDS = 0.5  # how often the door of a pool at zero is looked at between turns
KNOCK_FRACTION = 0.25  # of the time, at most, that all such looks together take: more pools are looked at more seldom
SPREAD_FRACTION = 0.5  # of an interval, over which the turns of all pools are spread


class Kept:
    """A target for a pool that nothing here counts: what was last decided is asked for, and those that answer are ready."""

    def __init__(self, settings: PoolSettings, decided: int | None, answering: Callable[[], int | None]) -> None:
        self._settings, self._desired, self._answering = settings, decided, answering

    async def replicas(self) -> Replicas:
        """Those decided; before the first decision those that answer, else the least allowed."""
        seen = self._answering()
        if self._desired is None:
            self._desired = seen or max(1, self._settings.limits.min_replicas)
        return Replicas(desired=self._desired, ready=self._desired if seen is None else seen)

    async def scale(self, replicas: int) -> None:
        """Remember it."""
        self._desired = replicas


@dataclass(slots=True, kw_only=True)
class Served:
    """One pool: its loop, its source and its log.  `past_is_new`: a past was taken in that no refit has seen."""

    settings: PoolSettings
    loop: Loop
    source: PrometheusSource | ScrapeSource
    board: Board
    past_is_new: bool = False

    @classmethod
    def open(
        cls, made: Autoscaler, memory: Memory, *, target: Target | None, log: Path, board: Board,
        clock: Clock | None = None, rotation: LogSettings | None = None, on_line: Callable[[str], None] | None = None,
    ) -> Served:  # fmt: skip
        """A pool that goes on from `memory`.  `target` None: see `Kept`.

        Raises ConfigError without a source, OSError where the log cannot be written.
        """
        settings = made.settings
        source = source_of(settings)
        rotation = rotation or LogSettings()
        written = StepLog(
            log / settings.name, made, memory, segment_bytes=rotation.segment_bytes, keep_bytes=rotation.keep_bytes,
            on_line=on_line,
        )  # fmt: skip
        if target is None:
            last = memory.last_step
            decided = None if last is None else last.decision.replicas
            target = Kept(settings, decided, lambda: len(source.readings) or None)
        loop = Loop(
            autoscaler=made, memory=memory, source=source, target=target, clock=clock or SystemClock(), log=written,
            owns_target=False,
        )  # fmt: skip
        return cls(settings=settings, loop=loop, source=source, board=board)

    @property
    def name(self) -> str:
        """The pool's."""
        return self.settings.name

    @property
    def at_zero(self) -> bool:
        """Whether it was decided that no replica is wanted."""
        step = self.loop.memory.last_step
        return step is not None and step.decision.replicas == 0

    async def backfill(self, hours: float) -> int:
        """Take in the past that the log does not have, of a source that has one; the number of Observations."""
        from metrics_adapter.prometheus import PrometheusSource

        if not isinstance(self.source, PrometheusSource) or hours <= 0:
            return 0
        until = self.loop.clock.now_seconds()
        last = self.loop.memory.state.at_seconds
        since = max(until - int(hours * 3600), 0 if last is None else last + 1)
        if until - since <= 2 * self.settings.interval_seconds:
            return 0
        try:
            past = await self.source.backfill(since, until)
        except SourceError as error:
            logger.warning("pool %s: starts without its past, which cannot be fetched: %s", self.name, error)
            return 0
        past = [o for o in past if last is None or o.at_seconds > last]
        for start in range(0, len(past), CHUNK):
            self._take_past(past[start : start + CHUNK])
            await asyncio.sleep(0)
        if past:
            self.past_is_new = True
            logger.info(
                "pool %s: took in %d observations of the past %.3g h", self.name, len(past), (until - since) / 3600
            )
        return len(past)

    def _take_past(self, past: Sequence[Observation]) -> None:
        loop = self.loop
        loop.memory = loop.autoscaler.backfill(loop.memory, past)
        if loop.log is not None:
            loop.log.backfill(past, loop.memory)

    def show(self, posted: bool, failure: str = "") -> None:
        """Post the last Step, or only what was counted, and why, where the turn made none."""
        memory, counts = self.loop.memory, self.loop.counts
        if posted and memory.last_step is not None:
            self.board.post(memory.last_step, counts=counts, refits=memory.beliefs.refits)
        else:
            self.board.note(
                self.name, counts=counts, refits=memory.beliefs.refits, problem=failure or self.loop.problem
            )

    async def close(self) -> None:
        """Give back the connections and the log."""
        await self.source.close()
        if self.loop.log is not None:
            self.loop.log.close()


def resumed(made: Autoscaler, folder: Path) -> Memory:
    """The Memory that a log ended with; an empty one without a log, or, with a warning, where it cannot be read."""
    if not folder.is_dir() or not segments(folder):
        return made.start()
    try:
        return restore(made, folder)
    except (LogError, ConfigError) as error:
        logger.error("pool %s: begins anew, its log cannot be resumed: %s", made.settings.name, error)
        return made.start()


def show_last(board: Board, memory: Memory) -> None:
    """Post the Step that a log ended with, where it may still be acted on: a restart is no gap."""
    step = memory.last_step
    if step is not None and 0 <= board.now() - step.decision.at_seconds <= board.limit_seconds(memory.pool):
        board.post(step)


@dataclass(slots=True)
class Knocks:
    """How many runners look at doors between their turns."""

    watching: int = 0

    def pause_seconds(self, took_seconds: float) -> float:
        """Until the next look of one whose last one took so long."""
        return max(KNOCK_SECONDS, took_seconds * self.watching / KNOCK_FRACTION)


@dataclass(slots=True, kw_only=True)
class Runner:
    """The turns of one pool, or of some that are decided together, `offset_seconds` after each instant of the grid.

    `turned`: when the last turn ended, on the monotonic clock.
    """

    pools: Sequence[Served]
    offset_seconds: float = 0.0
    turned: float = field(default_factory=time.monotonic)
    knocks: Knocks = field(default_factory=Knocks)

    @property
    def interval_seconds(self) -> int:
        """The shortest of theirs."""
        return min(pool.settings.interval_seconds for pool in self.pools)

    async def run(self, backfill_hours: float, gate: asyncio.Semaphore) -> None:
        """Fetch the past, as many at a time as `gate` lets through, then turn for ever."""
        self.turned = math.inf  # the past of weeks may take longer than a loop may stand still
        for pool in self.pools:
            async with gate:
                await pool.backfill(backfill_hours)
        while True:
            self.turned = time.monotonic()
            until = self.turned + self.wait_seconds(time.time())
            if await self.knocked(until):
                await self.turn(early=True)
            await asyncio.sleep(max(0.0, until - time.monotonic()))
            await self.turn()

    async def knocked(self, until: float) -> bool:
        """Whether, before `until`, somebody comes to the door of a pool that has no replica and should not wait for the turn."""
        sources = [pool.source for pool in self.pools if pool.at_zero]
        if not sources:
            return False
        self.knocks.watching += 1
        try:
            took = 0.0
            while (pause := self.knocks.pause_seconds(took)) < until - time.monotonic():
                await asyncio.sleep(pause)
                begun = time.monotonic()
                for source in sources:
                    if await source.knocked():
                        return True
                took = time.monotonic() - begun
        finally:
            self.knocks.watching -= 1
        return False

    def wait_seconds(self, now: float) -> float:
        """Until the next turn: `offset_seconds` after a multiple of the interval."""
        interval = self.interval_seconds
        return interval - (now - self.offset_seconds) % interval

    async def turn(self, *, early: bool = False) -> None:
        """One turn of all; whatever goes wrong is logged and leaves the last Steps to grow stale."""
        failure = ""
        try:
            steps = await tick_together([pool.loop for pool in self.pools], early=early)
        except Exception as error:  # one pool's defect, or a full disk, must not silence the others
            failure = f"the turn failed: {short(error)}"
            logger.exception("pool %s: this turn failed", ", ".join(pool.name for pool in self.pools))
            steps = [None] * len(self.pools)
        for pool, step in zip(self.pools, steps, strict=True):
            pool.show(step is not None, failure)


def runners_of(pools: Sequence[Served]) -> list[Runner]:
    """A runner for each pool, one for all that a ratio or a quota ties together; their turns are spread over time."""
    tied = groups_of([pool.settings for pool in pools])
    named = {pool.name: pool for pool in pools}
    knocks = Knocks()
    runners = [Runner(pools=[named[name] for name in names], knocks=knocks) for names in tied]
    for i, runner in enumerate(runners):
        runner.offset_seconds = SPREAD_FRACTION * runner.interval_seconds * i / len(runners)
    return runners


def groups_of(pools: Sequence[PoolSettings]) -> list[list[str]]:
    """The pools' names, those together that share a ratio or a quota, directly or by others.

    Raises ConfigError for a ratio to a pool that is not there.
    """
    names = [pool.name for pool in pools]
    group = {name: {name} for name in names}

    def tie(one: str, other: str) -> None:
        both = group[one] | group[other]
        for name in both:
            group[name] = both

    quotas: dict[str, str] = {}
    for i, pool in enumerate(pools):
        ratio, quota = pool.limits.ratio, pool.limits.quota
        if ratio is not None:
            if ratio.to not in group:
                raise ConfigError(f"pools[{i}].limits.ratio.to", f"{ratio.to!r} must be one of {', '.join(names)}")
            tie(pool.name, ratio.to)
        if quota is not None:
            tie(pool.name, quotas.setdefault(quota.name, pool.name))
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(id(group[name]), []).append(name)
    return list(found.values())
