"""The thin shell: observe, step, write down, act.  Only here are errors of the world caught."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from autoscaler.errors import SourceError, TargetConflict, TargetError
from autoscaler.log import StepLog
from autoscaler.ports import Clock, MetricsSource, Target
from autoscaler.step import Autoscaler, step_group
from autoscaler.types import Beliefs, Memory, Observation, Replicas, Step
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


# A second number that is not ours within the one time is left alone for the other: two who overwrite each other make
# replicas come and go, and both numbers are then worse than either.
AGAIN_SECONDS, YIELD_SECONDS = 3600, 600
# A clock that was set back by less is waited for.
WAIT_SECONDS = 60


@dataclass(slots=True)
class Writers:
    """Watches the number that the target was asked for: somebody else may write it too.

    His first number is put right, as a slip would be; after the next one he has the target for a while.
    """

    expected: int | None = None
    replaced: int | None = None
    stranger_at_seconds: int | None = None
    yields_until_seconds: int = 0

    def wrote(self, replicas: int, before: int) -> None:
        """We asked for `replicas` where `before` was asked for."""
        self.expected, self.replaced = replicas, before

    def stranger(self, at_seconds: int, desired: int) -> bool:
        """Whether somebody else wrote `desired` since the last look.  The turn after our write may still see the old one."""
        old, self.replaced = self.replaced, None
        if self.expected is not None and desired == old != self.expected:
            return False
        ours = self.expected is None or desired == self.expected
        self.expected = desired
        if ours:
            return False
        if self.stranger_at_seconds is not None and at_seconds - self.stranger_at_seconds <= AGAIN_SECONDS:
            self.yields_until_seconds = at_seconds + YIELD_SECONDS
        self.stranger_at_seconds = at_seconds
        return True


@dataclass(slots=True)
class Loop:
    """Decides for one pool for as long as it runs: its settings' interval gives the grid of instants.

    `problem`: why the last turn was skipped or saw nothing, "" if it did not; the log says it when it changes.
    `owns_target`: nobody else is meant to write the number.  One who does is reported and not fought; where others scale
    by our decisions (an HPA), it is False.  `told`: the change that the log said last; an HPA may take turns to make it.
    `looked_at_seconds`: the clock at the last turn.
    """

    autoscaler: Autoscaler
    memory: Memory
    source: MetricsSource
    target: Target
    clock: Clock
    log: StepLog | None = None
    counts: Counts = field(default_factory=Counts)
    owns_target: bool = True
    writers: Writers = field(default_factory=Writers)
    problem: str = ""
    told: tuple[int, int] | None = None
    looked_at_seconds: int | None = None

    async def tick(self) -> Step | None:
        """One turn; None when the target's counts could not be read, which skips the turn."""
        observation = await self.look()
        return None if observation is None else await self.take(*self.autoscaler.step(self.memory, observation))

    async def look(self, *, early: bool = False) -> Observation | None:
        """The first half of a turn: what is seen now; None skips the turn.

        `early`: at this very second, between two instants of the grid, as something happened that cannot wait.
        """
        clock = self._instant(early)
        at = self._going_on(clock)
        self.counts.ticks += 1
        try:
            replicas = await self.target.replicas()
        except TargetError as error:
            self.counts.skipped_ticks += 1
            self._trouble(f"turn skipped, the target cannot be read: {error}")
            return None
        self._look(at, replicas.desired)
        observation = later(await self._observe(clock, replicas), at - clock)
        last = self.memory.state.at_seconds
        if last is not None and observation.at_seconds < last:
            self.counts.skipped_ticks += 1
            self._trouble("turn skipped, the clock went back")
            return None
        return observation

    async def take(self, step: Step, memory: Memory) -> Step:
        """The second half: remember what was decided, write it down, act."""
        before, self.memory = self.memory.last_step, memory
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

    def adopt(self, beliefs: Beliefs) -> None:
        """Take the outcome of a refit that was begun on an earlier Memory, and write it down."""
        self.memory = self.autoscaler.adopt(self.memory, beliefs)
        if self.log is not None:
            self.log.refit(beliefs, self.memory)

    def _instant(self, early: bool) -> int:
        """The last instant of the grid; this very second if it is `early`, or an early turn has come after that instant."""
        now, interval, last = (
            self.clock.now_seconds(),
            self.autoscaler.settings.interval_seconds,
            self.memory.state.at_seconds,
        )
        grid = now // interval * interval
        return now if early or (last is not None and grid < last <= now) else grid

    def _going_on(self, clock: int) -> int:
        """The instant of a turn at `clock`: time goes on where the clock was set back, and gives a tenth back each turn.

        Whoever waited until it has caught up would decide nothing for so long.
        """
        last, before, self.looked_at_seconds = self.memory.state.at_seconds, self.looked_at_seconds, clock
        if last is None or last - clock <= WAIT_SECONDS:
            return clock
        if before == clock:
            return last
        interval = self.autoscaler.settings.interval_seconds
        passed = clock - before if before is not None and clock > before else interval
        if before is None or clock < before:
            logger.warning(
                "pool %s: the clock is %d s behind the last turn: time goes on", self.memory.pool, last - clock
            )
        return last + max(1, passed - passed // 10)

    async def _observe(self, at: int, replicas: Replicas) -> Observation:
        try:
            seen = await self.source.observe(at, replicas)
        except SourceError as error:
            self.counts.source_errors += 1
            self._trouble(f"nothing could be measured: {error}")
            interval = self.autoscaler.settings.interval_seconds
            return Observation(pool=self.memory.pool, at_seconds=at, window_seconds=interval, replicas=replicas)
        self._trouble("")
        return seen

    def _trouble(self, text: str) -> None:
        """What is wrong now; the log says it once, however many turns it lasts, and when it is over."""
        if text != self.problem:
            if text:
                logger.warning("pool %s: %s", self.memory.pool, text)
            else:
                logger.info("pool %s: no more: %s", self.memory.pool, self.problem)
        self.problem = text

    def _look(self, at: int, desired: int) -> None:
        """Report a number that somebody else wrote."""
        if not self.owns_target or not self.writers.stranger(at, desired):
            return
        self.counts.conflicts += 1
        left = self.writers.yields_until_seconds - at
        then = f"left alone for {left} s" if left > 0 else "put right if need be"
        logger.warning("pool %s: somebody else asked for %d replicas: %s", self.memory.pool, desired, then)

    async def _act(self, step: Step) -> None:
        wanted, before = step.decision.replicas, step.observation.replicas.desired
        if wanted == before or step.decision.at_seconds < self.writers.yields_until_seconds:
            self.told = None
            return
        if self.told != (before, wanted):
            logger.info("%s", changed_line(step))
        self.told = before, wanted
        try:
            await self.target.scale(wanted)
            self.writers.wrote(wanted, before)
        except TargetConflict as error:
            self.counts.conflicts += 1
            logger.warning(
                "pool %s: somebody else scaled it meanwhile, tried again next turn: %s", step.decision.pool, error
            )
        except TargetError as error:
            self.counts.target_errors += 1
            logger.warning("pool %s: could not be scaled: %s", step.decision.pool, error)


def later(observation: Observation, seconds: int) -> Observation:
    """`observation` with its instants so many seconds later."""
    if not seconds:
        return observation
    replicas = observation.replicas
    ready_at = tuple(at + seconds for at in replicas.starting_ready_at_seconds)
    oldest = replicas.oldest_start_at_seconds
    moved = replace(
        replicas,
        starting_ready_at_seconds=ready_at,
        oldest_start_at_seconds=None if oldest is None else oldest + seconds,
    )
    return replace(observation, at_seconds=observation.at_seconds + seconds, replicas=moved)


async def tick_together(loops: Sequence[Loop], *, early: bool = False) -> list[Step | None]:
    """One turn of pools that share a ratio or a quota, decided in one call; None for a pool whose turn is skipped."""
    seen = await asyncio.gather(*(loop.look(early=early) for loop in loops))
    found: list[Step | None] = [None] * len(loops)
    there = [(i, loop, o) for i, (loop, o) in enumerate(zip(loops, seen, strict=True)) if o is not None]
    made = step_group([x.autoscaler for _, x, _ in there], [x.memory for _, x, _ in there], [o for _, _, o in there])
    for (i, loop, _), (step, memory) in zip(there, made, strict=True):
        found[i] = await loop.take(step, memory)
    return found
