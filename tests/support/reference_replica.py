"""An engine replica one step at a time in plain Python: what the compiled plant is checked against.

Written from the prose of the model only (rules of vLLM's V1 scheduler), with one object per request and one turn of a
loop per engine step; it shares no code with the plant.  Slow on purpose.  Times in seconds, sizes in tokens.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Law:
    """Step time t = a + max(b*floor, b*(P+N)) + c*N + d*K + e*A plus host time, and the engine's limits."""

    a: float = 0.0
    b: float = 0.0
    floor_tokens: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 0.0
    step_overhead: float = 0.0
    sequence_overhead: float = 0.0
    request_overhead: float = 0.0
    seats: int = 256
    budget: int = 8192
    capacity: int = 10**9
    block: int = 1

    def seconds(self, decodes: int, contexts: int, chunks: list[tuple[int, int]]) -> float:
        """Duration of a step with `decodes` sequences over `contexts` tokens and prefill `chunks` (context, tokens)."""
        tokens = sum(size for _, size in chunks)
        pairs = sum(size * (context + size / 2) for context, size in chunks)
        weights = self.b * max(self.floor_tokens, tokens + decodes)
        host = self.step_overhead + self.sequence_overhead * (decodes + len(chunks))  # every sequence in the step
        return self.a + weights + self.c * decodes + self.d * contexts + self.e * pairs + host


@dataclass(slots=True, kw_only=True)
class Request:
    """One request and its whole life."""

    arrival: float
    prompt: int
    output: int
    cached: int = 0
    generated: int = 0
    prefilled: int = 0  # tokens of this prefill whose KV is there
    context: int = 0  # KV tokens while it decodes
    preemptions: int = 0
    first_token: float = math.inf
    finish: float = math.inf

    @property
    def length(self) -> int:
        """Tokens that a prefill must cover: the prompt and what was generated before a preemption."""
        return self.prompt + self.generated


@dataclass(slots=True, kw_only=True)
class Replica:
    """Queue, prefills and decodes of one engine.  `decodes` and `prefills` are in order of admission."""

    law: Law
    now: float = 0.0
    queue: deque[Request] = field(default_factory=deque)
    prefills: list[Request] = field(default_factory=list)
    decodes: list[Request] = field(default_factory=list)
    steps: int = 0

    def held(self, tokens: int) -> int:
        """KV tokens that `tokens` occupy once rounded up to blocks."""
        return -(-tokens // self.law.block) * self.law.block

    def kv_of_next_step(self) -> int:
        """KV that everything admitted needs for one more token of each decode."""
        growing = sum(self.held(request.context + 1) for request in self.decodes)
        return growing + sum(self.held(request.length) for request in self.prefills)

    def preempt(self) -> None:
        """Send the latest admitted back to the head of the queue until the next tokens fit."""
        while len(self.decodes) > 1 and self.kv_of_next_step() > self.law.capacity:
            victim = self.prefills.pop() if self.prefills else self.decodes.pop()
            victim.preemptions += 1
            victim.prefilled = victim.context = 0
            self.queue.appendleft(victim)

    def plan(self) -> list[tuple[int, int]]:
        """Chunks (context before, tokens) of the next step: the partial prefill, then the queue in order."""
        budget = self.law.budget - len(self.decodes)
        chunks = []
        for request in self.prefills:  # at most one, left over from the step before
            budget -= self.chunk(request, budget, chunks)
        while self.queue and budget > 0 and len(self.decodes) + len(self.prefills) < self.law.seats:
            request = self.queue[0]
            empty = not self.decodes and not self.prefills
            if not empty and self.kv_of_next_step() + self.held(request.length + 1) > self.law.capacity:
                break
            self.queue.popleft()
            self.prefills.append(request)
            request.prefilled = min(request.cached, request.length - 1)  # the last token is always computed
            budget -= self.chunk(request, budget, chunks)
        return chunks

    @staticmethod
    def chunk(request: Request, budget: int, chunks: list[tuple[int, int]]) -> int:
        size = min(budget, request.length - request.prefilled)
        if size > 0:
            chunks.append((request.prefilled, size))
            request.prefilled += size
        return max(size, 0)

    def step(self) -> bool:
        """Run one engine step from `now`; False if there is nothing to do."""
        self.preempt()
        chunks = self.plan()
        if not chunks and not self.decodes:
            return False
        self.now += self.law.seconds(len(self.decodes), sum(r.context for r in self.decodes), chunks)
        self.steps += 1
        for request in self.decodes:
            request.generated += 1
            request.context += 1
        completed = [request for request in self.prefills if request.prefilled == request.length]
        self.prefills = [request for request in self.prefills if request.prefilled < request.length]
        for request in completed:
            request.context = request.length
            request.generated += 1
            request.first_token = min(request.first_token, self.now)
        self.decodes += completed
        for request in self.decodes:
            if request.generated >= request.output:
                request.finish = self.now
        self.decodes = [request for request in self.decodes if request.generated < request.output]
        return True


def simulate(law: Law, requests: list[Request], replicas: int = 1) -> list[Replica]:
    """Serve `requests` (ascending arrivals) on `replicas` in turn; fills in their times and returns the replicas."""
    fleet = [Replica(law=law) for _ in range(replicas)]
    for turn, replica in enumerate(fleet):
        arriving = deque(requests[turn::replicas])
        while True:
            while arriving and arriving[0].arrival + law.request_overhead <= replica.now:
                replica.queue.append(arriving.popleft())
            if not replica.step():
                if not arriving:
                    break
                replica.now = arriving[0].arrival + law.request_overhead
    return fleet
