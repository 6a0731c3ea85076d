"""The thin shell: observe, step, write down, act.  Only here are errors of the world caught."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from autoscaler.errors import SourceError, TargetConflict, TargetError
from autoscaler.log import StepLog
from autoscaler.ports import Clock, MetricsSource, Target
from autoscaler.step import Autoscaler
from autoscaler.types import Memory, Observation, Replicas, Step
from autoscaler.views import changed_line

logger = logging.getLogger("autoscaler")


class SystemClock:
    """Wall time."""

    def now_seconds(self) -> int:
        """Whole Unix seconds."""
        return int(time.time())

    async def sleep_until(self, at_seconds: int) -> None:
        """Return at `at_seconds`, or at once if it has passed."""
        await asyncio.sleep(max(0.0, at_seconds - time.time()))


@dataclass(slots=True)
class Counts:
    """What went wrong so far, for the exposition."""

    ticks: int = 0
    skipped_ticks: int = 0
    source_errors: int = 0
    target_errors: int = 0
    conflicts: int = 0


@dataclass(slots=True)
class Loop:
    """Decides for one pool for as long as it runs: its settings' interval gives the grid of instants."""

    autoscaler: Autoscaler
    memory: Memory
    source: MetricsSource
    target: Target
    clock: Clock
    log: StepLog | None = None
    counts: Counts = field(default_factory=Counts)

    async def tick(self) -> Step | None:
        """One turn; None when the target's counts could not be read, which skips the turn."""
        at = self._instant()
        self.counts.ticks += 1
        try:
            replicas = await self.target.replicas()
        except TargetError as error:
            self.counts.skipped_ticks += 1
            logger.warning("pool %s: turn skipped, the target cannot be read: %s", self.memory.pool, error)
            return None
        observation = await self._observe(at, replicas)
        last = self.memory.state.at_seconds
        if last is not None and observation.at_seconds < last:
            self.counts.skipped_ticks += 1
            logger.warning("pool %s: turn skipped, the clock went back", self.memory.pool)
            return None
        before = self.memory.last_step
        step, self.memory = self.autoscaler.step(self.memory, observation)
        if step is before:
            return step
        if self.log is not None:
            self.log.append(step, self.memory)  # before acting: a crash leaves its reason behind
        await self._act(step)
        return step

    async def run(self, ticks: int | None = None) -> None:
        """Turn on every multiple of the interval, `ticks` times or for ever."""
        interval = self.autoscaler.settings.interval_seconds
        done = 0
        while ticks is None or done < ticks:
            await self.clock.sleep_until((self.clock.now_seconds() // interval + 1) * interval)
            await self.tick()
            done += 1

    def _instant(self) -> int:
        interval = self.autoscaler.settings.interval_seconds
        return self.clock.now_seconds() // interval * interval

    async def _observe(self, at: int, replicas: Replicas) -> Observation:
        try:
            return await self.source.observe(at, replicas)
        except SourceError as error:
            self.counts.source_errors += 1
            logger.warning("pool %s: nothing could be measured: %s", self.memory.pool, error)
            interval = self.autoscaler.settings.interval_seconds
            return Observation(pool=self.memory.pool, at_seconds=at, window_seconds=interval, replicas=replicas)

    async def _act(self, step: Step) -> None:
        wanted = step.decision.replicas
        if wanted == step.observation.replicas.desired:
            return
        logger.info("%s", changed_line(step))
        try:
            await self.target.scale(wanted)
        except TargetConflict as error:
            self.counts.conflicts += 1
            logger.warning(
                "pool %s: somebody else scaled it meanwhile, tried again next turn: %s", step.decision.pool, error
            )
        except TargetError as error:
            self.counts.target_errors += 1
            logger.warning("pool %s: could not be scaled: %s", step.decision.pool, error)
