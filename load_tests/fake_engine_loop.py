"""A fake engine in real time: steps of the profile's length, sleep, pause, drain and death, with the metrics they leave.

Steps end at absolute deadlines: a late wake-up of the event loop does not add up, and how late steps were is told by
`lateness`.  An engine that cannot keep up falls behind by one step at most and then runs slower than its profile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Literal

from load_tests.fake_engine_metrics import Metrics
from load_tests.fake_engine_scheduler import Scheduler, Sequence, Step
from load_tests.fake_engine_settings import FakeEngineSettings
from serving.profiles import Profile

Mode = Literal["abort", "wait", "keep"]

ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
_REMEMBERED_STEPS = 20_000


class Engine:
    """One engine.  Times are of the running event loop's clock.

    `accepting` is set while requests may reach the scheduler; asleep or paused they wait for it without an answer.
    """

    def __init__(self, settings: FakeEngineSettings, replica: Profile, metrics: Metrics) -> None:
        self.settings, self.replica, self.metrics = settings, replica, metrics
        self.scheduler = Scheduler(replica, prefix_cache=settings.enable_prefix_caching)
        self.accepting = asyncio.Event()
        self.accepting.set()
        self.dead = False
        self.paused = False
        self.level: int | None = None  # of the sleep; None is awake
        self.steps = 0
        self._asleep_tags: set[str] = set()
        self._frozen = False
        self._work = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._late: deque[float] = deque(maxlen=_REMEMBERED_STEPS)

    @property
    def is_sleeping(self) -> bool:
        """True from a sleep to the end of its wake-up."""
        return self.level is not None

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return len(self.scheduler.running) + len(self.scheduler.waiting)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens that wait."""
        return sum(s.prompt_tokens for s in self.scheduler.waiting)

    def lateness(self) -> dict[str, float | int]:
        """Steps so far and how late they ended against the profile, in seconds, over the last 20,000."""
        late = sorted(self._late) or [0.0]
        p50, p99, most = (late[min(len(late) - 1, int(q * len(late)))] for q in (0.5, 0.99, 1.0))
        return {"steps": self.steps, "p50": p50, "p99": p99, "max": most}

    def add(self, sequence: Sequence) -> None:
        """Hand a request to the scheduler."""
        self.scheduler.submit(sequence, asyncio.get_running_loop().time())
        self._work.set()

    def cancel(self, sequence: Sequence) -> None:
        """The client hung up: the request is gone, and no counter of finished requests ever sees it."""
        if not sequence.over and self.scheduler.remove(sequence) and not self._frozen:
            self._set_gauges()

    async def run(self) -> None:
        """Step until cancelled."""
        loop = asyncio.get_running_loop()
        due, seconds = loop.time(), 0.0
        while True:
            now = loop.time()
            step = None if self._frozen or self.dead else self.scheduler.plan(now)
            if step is None:
                self._rest()
                await self._work.wait()
                due = loop.time()
                continue
            self._settled.clear()
            seconds = step.seconds / self.settings.speed
            due = max(due, now - seconds) + seconds
            await asyncio.sleep(max(0.0, due - loop.time()))
            if self.dead:
                continue
            now = loop.time()
            self._late.append(now - due)
            self._account(step, now)

    def _rest(self) -> None:
        self._work.clear()
        self._settled.set()

    async def sleep(self, level: int, mode: Mode) -> None:
        """Go to sleep.  abort ends what there is, wait lets it end first, keep freezes it."""
        await self._hold(mode)
        if self.scheduler.cache is not None and level > 0:
            self.scheduler.cache.clear()
        self.level = level
        self._asleep_tags = {"weights", "kv_cache"}
        self.metrics.set_sleep(level)

    async def wake(self, tags: frozenset[str]) -> None:
        """Wake up; it stays asleep until both weights and kv_cache were asked for (none asks for both)."""
        if self.level is None:
            return
        self._asleep_tags -= tags or {"weights", "kv_cache"}
        await asyncio.sleep(self.settings.waking_seconds(self.replica, self.level) if not self._asleep_tags else 0.0)
        if not self._asleep_tags:
            self.level = None
            self.metrics.set_sleep(None)
            self._release()

    async def pause(self, mode: Mode) -> None:
        """Stop scheduling."""
        await self._hold(mode)
        self.paused = True

    def resume(self) -> None:
        """Go on after a pause."""
        self.paused = False
        self._release()

    def _release(self) -> None:
        if self.level is None and not self.paused:
            self._frozen = False
            self.accepting.set()
            self._work.set()

    async def _hold(self, mode: Mode) -> None:
        self.accepting.clear()
        if mode == "abort":
            self.abort_all()
        elif mode == "wait" and not self._frozen:
            while not (self.scheduler.idle or self.dead):
                await self._settled.wait()
                await asyncio.sleep(0)
        self._frozen = True

    def abort_all(self) -> None:
        """End everything as the engine does on sleep: finish reason abort, counted."""
        now = asyncio.get_running_loop().time()
        for sequence in self.scheduler.take_all():
            sequence.reason = "abort"
            self._finished(sequence, now)
            sequence.changed()
        self._set_gauges()

    def kill(self, *, silent: bool = False) -> None:
        """The engine process is gone: every request fails, or (silent) hangs for ever."""
        self.dead = True
        self._work.set()
        if silent:
            return
        for sequence in self.scheduler.take_all():
            sequence.error = (500, ENGINE_DEAD)
            sequence.changed()

    def _account(self, step: Step, now: float) -> None:
        """Book a step that is over: tokens, gaps, ends, gauges; then tell the streams."""
        gained = self.scheduler.end(now)
        metrics = self.metrics
        self.steps += 1
        metrics.step_tokens.observe(step.tokens)
        metrics.generation_tokens.value += len(gained)
        metrics.preemptions.value = float(self.scheduler.preemptions)
        metrics.cache_queries.value = float(self.scheduler.cache_queries)
        metrics.cache_hits.value = float(self.scheduler.cache_hits)
        gaps: dict[float, int] = {}
        for sequence in gained:
            if sequence.first is None or sequence.latest is None:
                sequence.first = now
                self._started(sequence, now)
            else:
                gap = now - sequence.latest
                gaps[gap] = gaps.get(gap, 0) + 1
            sequence.latest = now
            if sequence.reason is not None:
                self._finished(sequence, now)
            sequence.changed()
        for gap, times in gaps.items():
            metrics.itl.observe(gap, times)
        self._set_gauges()

    def _set_gauges(self) -> None:
        blocks = self.scheduler.kv_tokens // self.scheduler.block
        self.metrics.set_gauges(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            kv_fraction=min(1.0, blocks / (self.scheduler.kv_blocks - 1)),  # vLLM keeps one block for itself
        )

    def _started(self, sequence: Sequence, now: float) -> None:
        metrics = self.metrics
        metrics.ttft.observe(now - sequence.arrival)
        metrics.prompt_tokens.value += sequence.prompt_tokens
        metrics.prompt_computed.value += sequence.prompt_tokens - sequence.cached
        if sequence.cached:
            for series in (metrics.prompt_hit, metrics.prompt_cached, metrics.prompt_tiers["device"]):
                series.value += sequence.cached

    def _finished(self, sequence: Sequence, now: float) -> None:
        metrics = self.metrics
        metrics.success[sequence.reason or "error"].value += 1
        metrics.e2e.observe(now - sequence.arrival)
        metrics.prompt_length.observe(sequence.prompt_tokens)
        metrics.output_length.observe(sequence.generated)
        metrics.max_generation.observe(sequence.max_tokens)
        metrics.max_tokens.observe(sequence.max_tokens)
        metrics.parallel.observe(1)
        metrics.request_preemptions.observe(sequence.preemptions)
        if sequence.queued is not None and sequence.scheduled is not None:
            metrics.queue_time.observe(sequence.scheduled - sequence.queued)
            metrics.inference.observe(now - sequence.scheduled)
        if sequence.first is not None and sequence.scheduled is not None:
            metrics.prefill.observe(sequence.first - sequence.scheduled)
            metrics.decode.observe(now - sequence.first)
            metrics.computed.observe(sequence.prompt_tokens - sequence.cached)
            if sequence.generated > 1:
                metrics.tpot.observe((now - sequence.first) / (sequence.generated - 1))
