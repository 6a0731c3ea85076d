"""The scheduler of a fake engine: vLLM V1's rules, one engine step at a time, on whatever clock the caller has.

The same rules and the same profile as the simulated replica (`load_tests.kernel_step`), written plainly because a fake
engine needs one object per request anyway.  In this order at each step boundary: decodes are accounted, completed prefills
give their token, the latest admitted lose their KV while the next tokens would not fit, then the partial prefill and the
queue fill the token budget.  Sizes in tokens, times in seconds.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from serving.profiles import Profile


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One request inside the engine.  `changed` is called when `generated`, `reason` or `error` changed.

    `output_tokens`: after so many tokens it ends by itself, with `natural_reason`.  `arrival`, `queued`, `scheduled`,
    `first`, `latest` are instants of the caller's clock; None: not yet.  A lower `priority` is served first.
    """

    prompt_tokens: int
    output_tokens: int
    natural_reason: str = "length"
    max_tokens: int = 0
    priority: int = 0
    arrival: float = 0.0
    blocks: tuple[Hashable, ...] = ()
    changed: Callable[[], None] = field(default=lambda: None)
    generated: int = 0
    prefilled: int = 0
    cached: int = 0
    computed: int = 0
    decoding: bool = False
    queued: float | None = None
    scheduled: float | None = None
    first: float | None = None
    latest: float | None = None
    preemptions: int = 0
    reason: str | None = None
    error: tuple[int, str] | None = None

    @property
    def context(self) -> int:
        """Tokens whose KV a prefill must make: the prompt, and what was generated before a preemption."""
        return self.prompt_tokens + self.generated

    @property
    def kv(self) -> int:
        """KV tokens while it decodes: the newest token has none yet."""
        return self.prompt_tokens + self.generated - 1

    @property
    def over(self) -> bool:
        """True once nothing more will come."""
        return self.reason is not None or self.error is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One planned engine step: its duration by the profile's law, and what is in it."""

    seconds: float
    prefill_tokens: int
    decodes: int

    @property
    def tokens(self) -> int:
        """Tokens that the step computes."""
        return self.prefill_tokens + self.decodes


class PrefixCache:
    """Which full prompt blocks were computed lately: least recently used out first, as many as the KV cache holds."""

    def __init__(self, blocks: int) -> None:
        self.capacity = blocks
        self._blocks: OrderedDict[Hashable, None] = OrderedDict()

    def hits(self, blocks: tuple[Hashable, ...]) -> int:
        """How many leading blocks are there."""
        for n, block in enumerate(blocks):
            if block not in self._blocks:
                return n
            self._blocks.move_to_end(block)
        return len(blocks)

    def keep(self, blocks: tuple[Hashable, ...]) -> None:
        """Remember the blocks of a prompt that was prefilled."""
        for block in blocks:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self.capacity:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """Forget all: the KV is gone."""
        self._blocks.clear()


class Scheduler:
    """Queue, running batch and KV of one engine under `profile`.

    `plan` decides the next step and `end` accounts it; in between anything may be submitted, removed or aborted.
    """

    def __init__(self, profile: Profile, *, prefix_cache: bool = True) -> None:
        self.profile = profile
        self.block = profile.kv_block_tokens
        self.kv_blocks = profile.kv_capacity_tokens // self.block
        self.capacity = self.kv_blocks * self.block
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission; at most one is a partial prefill
        self.cache = PrefixCache(self.kv_blocks) if prefix_cache else None
        self.preemptions = 0
        self.cache_queries = self.cache_hits = 0

    @property
    def idle(self) -> bool:
        """True with nothing to run or to admit."""
        return not self.running and not self.waiting

    @property
    def kv_tokens(self) -> int:
        """KV held now, in whole blocks."""
        return sum(self._held(s.kv if s.decoding else s.context) for s in self.running)

    def submit(self, sequence: Sequence, now: float) -> None:
        """Put a request into the queue, behind all of its priority."""
        sequence.queued = now
        at = len(self.waiting)
        while at > 0 and self.waiting[at - 1].priority > sequence.priority:
            at -= 1
        self.waiting.insert(at, sequence)

    def remove(self, sequence: Sequence) -> bool:
        """Take a request out wherever it is, as when its client hangs up; False if it is not here."""
        for queue in (self.waiting, self.running):
            if sequence in queue:
                queue.remove(sequence)
                return True
        return False

    def plan(self, now: float) -> Step | None:
        """The next step; None with nothing to do."""
        self._preempt()
        decodes = [s for s in self.running if s.decoding]
        contexts = sum(s.prompt_tokens + s.generated - 1 for s in decodes)
        n = len(decodes)
        budget = self.profile.max_num_batched_tokens - n
        chunks: list[tuple[int, int]] = []
        for sequence in self.running[-1:]:
            if not sequence.decoding:
                budget -= self._chunk(sequence, budget, chunks)
        need: int | None = None
        while self.waiting and budget > 0 and len(self.running) < self.profile.max_num_seqs:
            head = self.waiting[0]
            need = self._kv_of_next_step() if need is None else need
            if self.running and need + self._held(head.context + 1) > self.capacity:
                break
            self._admit(head, now)
            need += self._held(head.context)
            budget -= self._chunk(head, budget, chunks)
        if not chunks and n == 0:
            return None
        tokens = sum(size for _, size in chunks)
        pairs = sum(size * (before + 0.5 * size) for before, size in chunks)
        host = self.profile.host
        seconds = self.profile.roofline.seconds(tokens, n, contexts, pairs)
        seconds += host.per_step_seconds + host.per_sequence_seconds * (n + len(chunks))
        return Step(seconds=seconds, prefill_tokens=tokens, decodes=n)

    def end(self, now: float) -> list[Sequence]:
        """The planned step is over: one more token for each decode and each completed prefill; who got one.

        `latest` still holds the instant of the token before, for the caller to observe and to move on.
        """
        gained = []
        for sequence in self.running:
            if sequence.decoding:
                sequence.generated += 1
                gained.append(sequence)
            elif sequence.prefilled >= sequence.context:
                if self.cache is not None and sequence.blocks:
                    self.cache.keep(sequence.blocks)
                sequence.decoding = True
                sequence.generated += 1
                gained.append(sequence)
        ended = False
        for sequence in gained:
            if sequence.generated >= sequence.output_tokens:
                sequence.reason = sequence.natural_reason
                ended = True
        if ended:
            self.running = [s for s in self.running if s.reason is None]
        return gained

    def take_all(self) -> list[Sequence]:
        """Everything that runs or waits, taken out."""
        taken = [*self.running, *self.waiting]
        self.running.clear()
        self.waiting.clear()
        return taken

    def _held(self, tokens: int) -> int:
        return -(-tokens // self.block) * self.block

    def _kv_of_next_step(self) -> int:
        """KV that everything admitted needs for one more token of each decode."""
        return sum(self._held(s.context) for s in self.running)  # kv + 1 of a decode is its context

    def _preempt(self) -> None:
        decoding = sum(s.decoding for s in self.running)
        if decoding < 2:
            return
        need = self._kv_of_next_step()
        while decoding > 1 and need > self.capacity:
            victim = self.running.pop()
            need -= self._held(victim.context)
            decoding -= victim.decoding
            victim.decoding, victim.prefilled = False, 0
            victim.preemptions += 1
            self.preemptions += 1
            self.waiting.appendleft(victim)

    def _admit(self, sequence: Sequence, now: float) -> None:
        self.waiting.popleft()
        self.running.append(sequence)
        again = sequence.scheduled is not None
        sequence.scheduled = now if sequence.scheduled is None else sequence.scheduled
        sequence.prefilled = 0
        if self.cache is not None:
            hits = self.cache.hits(sequence.blocks) * self.block
            sequence.prefilled = min(hits, sequence.context - 1)  # the last token is always computed
            if not again:
                self.cache_queries += sequence.prompt_tokens
                self.cache_hits += sequence.prefilled
                sequence.cached = sequence.prefilled

    @staticmethod
    def _chunk(sequence: Sequence, budget: int, chunks: list[tuple[int, int]]) -> int:
        size = max(0, min(budget, sequence.context - sequence.prefilled))
        if size > 0:
            chunks.append((sequence.prefilled, size))
            sequence.prefilled += size
            sequence.computed += size
        return size


def fitting_context(profile: Profile) -> int:
    """Longest context that a replica of `profile` can hold at all, capped as engines cap it by default."""
    return min(131_072, math.floor(profile.kv_capacity_tokens // profile.kv_block_tokens) * profile.kv_block_tokens)
