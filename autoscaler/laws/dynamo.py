"""NVIDIA Dynamo's planner for aggregated engines: the throughput rule, and the load rule in its two kinds.

Source: Dynamo's planner, ``core/throughput_scaling.py``, ``core/load_scaling.py`` and ``core/perf_model/agg.py`` (1.6).
Where the original fits a step time to what it measures, a step law is given here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

EasyTarget = Literal["throughput", "latency"]
_EASY: dict[EasyTarget, tuple[float, float]] = {"throughput": (1.0, 0.6), "latency": (0.4, 0.1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLaw:
    """Step time and limits of one engine; coefficients in seconds, as in the roofline law."""

    a: float
    b: float = 0.0
    floor_tokens: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 0.0
    step_overhead_seconds: float = 0.0
    sequence_overhead_seconds: float = 0.0
    max_num_batched_tokens: int
    max_num_seqs: int
    max_kv_tokens: int

    def seconds(self, prefill_tokens: float, decodes: float, kv_tokens: float, mean_prompt_tokens: float) -> float:
        """One step with so much prefill (of prompts of that length), so many decodes and so much context."""
        tokens = max(self.b * self.floor_tokens, self.b * (prefill_tokens + decodes))
        sequences = decodes + prefill_tokens / max(1.0, mean_prompt_tokens)
        work = self.c * decodes + self.d * kv_tokens + self.e * prefill_tokens * mean_prompt_tokens / 2
        return self.a + tokens + work + self.step_overhead_seconds + self.sequence_overhead_seconds * sequences

    def ttft_seconds(
        self, queued_tokens: float, decodes: float, kv_tokens: float, mean_prompt_tokens: float, hit: float = 0.0
    ) -> float:
        """Steps until a request behind so many queued tokens is prefilled, in chunks of the token budget."""
        total = (queued_tokens + mean_prompt_tokens) * (1.0 - hit)
        whole = math.floor(total / self.max_num_batched_tokens)
        rest = total - whole * self.max_num_batched_tokens
        seconds = 0.0
        if whole:
            seconds = whole * self.seconds(self.max_num_batched_tokens, decodes, kv_tokens, mean_prompt_tokens)
        return seconds + (self.seconds(rest, decodes, kv_tokens, mean_prompt_tokens) if rest > 0 else 0.0)


class Engine(NamedTuple):
    """One engine as its forward passes report it."""

    queued_prefill_tokens: float
    kv_tokens: float
    running: float


class Rate(NamedTuple):
    """What one engine can do: requests per second, and TTFT and ITL at that."""

    requests_per_second: float
    ttft_seconds: float
    itl_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The SLA, and how much of it may be used up after a scale-down."""

    ttft_seconds: float
    itl_seconds: float
    down_sensitivity: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """Moving averages of what engines do: prompt length, context of a decode, prefill tokens per step; hit rate."""

    prompt_tokens: float
    decode_tokens: float
    prefill_tokens_per_step: float
    hit: float = 0.0


def engine_rate(
    law: EngineLaw, promise: Promise, *, prompt_tokens: float, output_tokens: float, hit: float = 0.0
) -> Rate | None:
    """The request rate of the largest batch that keeps both promises; of a batch of one if none does.

    None if the lengths make no sense.  Both times grow with the batch, so bisection finds what the original's sweep finds.
    """
    if prompt_tokens <= 0 or output_tokens <= 0:
        return None
    most = _largest_batch(law, prompt_tokens, output_tokens, hit)

    def at(batch: int) -> tuple[Rate, bool]:
        rate = _rate(law, batch, prompt_tokens, output_tokens, hit)
        return rate, rate.itl_seconds <= promise.itl_seconds and rate.ttft_seconds <= promise.ttft_seconds

    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if at(middle)[1]:
            low = middle
        else:
            high = middle - 1
    return at(low)[0]


def _largest_batch(law: EngineLaw, prompt_tokens: float, output_tokens: float, hit: float) -> int:
    """The batch that KV, seats and the token budget allow, and at which prefill keeps up with what leaves."""
    fits = max(1, int(law.max_kv_tokens / max(1.0, prompt_tokens + output_tokens / 2)))
    budget = law.max_num_batched_tokens
    balanced = int(budget / (1.0 + prompt_tokens * (1.0 - hit) / output_tokens))
    return max(1, min(fits, law.max_num_seqs, budget - 1, balanced))


def _rate(law: EngineLaw, batch: int, prompt_tokens: float, output_tokens: float, hit: float) -> Rate:
    context = batch * (prompt_tokens + output_tokens / 2)
    new = prompt_tokens * (1.0 - hit)
    prefill = min(batch * new / max(1.0, output_tokens), law.max_num_batched_tokens)
    step = law.seconds(prefill, batch, context, max(1.0, new))
    queued = int(min(batch * prompt_tokens / max(1.0, output_tokens), law.max_num_batched_tokens))
    ttft = law.ttft_seconds(queued, batch, int(context), prompt_tokens, hit)
    leaving = batch / (output_tokens * step)
    entering = (law.max_num_batched_tokens - batch) / (new * step) if new > 0 else leaving
    return Rate(min(leaving, entering), ttft, step)


def throughput_replicas(
    requests_per_second: float,
    engine_requests_per_second: float,
    *,
    replicas: int,
    least: int = 1,
    most_change: int | None = 8,
) -> int:
    """Engines for a rate; changed by at most `most_change` at once (None: by any number)."""
    wanted = max(math.ceil(requests_per_second / engine_requests_per_second), least)
    if most_change is None:
        return wanted
    return min(max(wanted, replicas - most_change), replicas + most_change)


def load_by_sla(law: EngineLaw, promise: Promise, habits: Habits, engines: Sequence[Engine], *, least: int = 1) -> int:
    """One engine more if all are estimated to break a promise, one less if both hold on the others; else as many."""
    n = len(engines)
    prefill, decode = _by_ttft(law, promise, habits, engines), _by_itl(law, promise, habits, engines)
    if prefill > 0 or decode > 0:
        return n + 1
    return max(n - 1, least) if n > 1 and prefill < 0 and decode < 0 else n


def _by_ttft(law: EngineLaw, promise: Promise, habits: Habits, engines: Sequence[Engine]) -> int:
    """1 if all engines are late, -1 if one fewer would do, 0 else.

    A request's own prefill does not get shorter with more engines: only what queueing adds is held against the margin.
    """

    def estimate(queued: float, engine: Engine, factor: float) -> float:
        return law.ttft_seconds(
            queued, engine.running * factor, engine.kv_tokens * factor, habits.prompt_tokens, habits.hit
        )

    if all(estimate(e.queued_prefill_tokens, e, 1.0) > promise.ttft_seconds for e in engines):
        return 1
    if len(engines) < 2:
        return 0
    factor = len(engines) / (len(engines) - 1)
    for e in engines:
        own = estimate(0.0, e, factor)
        budget = (promise.ttft_seconds - own) * promise.down_sensitivity
        after = estimate(int(e.queued_prefill_tokens * factor), e, factor)
        if budget <= 0 or after - own >= budget:
            return 0
    return -1


def _by_itl(law: EngineLaw, promise: Promise, habits: Habits, engines: Sequence[Engine]) -> int:
    """1 if all engines are slow, -1 if one fewer would do, 0 else."""

    def estimate(kv_tokens: float, decodes: float) -> float:
        return law.seconds(
            habits.prefill_tokens_per_step, decodes, kv_tokens + habits.decode_tokens, habits.prompt_tokens
        )

    if all(estimate(e.kv_tokens, e.running + 1) > promise.itl_seconds for e in engines):
        return 1
    if len(engines) < 2:
        return 0
    factor = len(engines) / (len(engines) - 1)
    for e in engines:
        kv = int((e.kv_tokens + e.queued_prefill_tokens) * factor)
        waiting = e.queued_prefill_tokens / max(1.0, habits.prompt_tokens)
        slow = estimate(kv, (e.running + waiting) * factor + 1) >= promise.itl_seconds * promise.down_sensitivity
        if kv >= law.max_kv_tokens or slow:
            return 0
    return -1


def load_by_use(law: EngineLaw, target: EasyTarget, engines: Sequence[Engine], *, least: int = 1) -> int:
    """The easy modes: one engine more if any KV cache (with what waits for it) is above a threshold, one less if all are
    below another and would stay below the first on one engine fewer."""
    n, (up, down) = len(engines), _EASY[target]
    use = [(e.kv_tokens + e.queued_prefill_tokens) / law.max_kv_tokens for e in engines]
    if any(u > up for u in use):
        return n + 1
    if n > 1 and all(u < down and u * n / (n - 1) <= up for u in use):
        return max(n - 1, least)
    return n
