"""A plain asyncio client of an OpenAI-like completions API: streams, and what it saw of each, by its own clock."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass(slots=True)
class Seen:
    """One request: instants in seconds of this process's monotonic clock; `tokens` as the server's usage says."""

    prompt: int
    output: int
    sent: float
    first: float | None = None
    last: float | None = None
    done: float | None = None
    tokens: int = 0
    error: str = ""

    @property
    def ttft(self) -> float | None:
        return None if self.first is None else self.first - self.sent

    @property
    def tpot(self) -> float | None:
        if self.first is None or self.last is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)


@dataclass(slots=True)
class Client:
    """Sends requests of token ids to `base` and remembers all of them, `tokens_at`: when output arrived, and how much."""

    base: str
    model: str = "tiny"
    vocabulary: tuple[int, int] = (10, 4000)
    seen: list[Seen] = field(default_factory=list)
    session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        # No limit on connections, or queues would hide here; younger than the server's keep-alive of 5 s.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0)
        self.session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.session is not None
        await self.session.close()

    async def send(self, prompt: int, output: int, draw: random.Random) -> Seen:
        """One stream to its end."""
        assert self.session is not None
        start = draw.randrange(*self.vocabulary)
        body = {
            "model": self.model,
            "prompt": [10 + (start + 7 * k) % (self.vocabulary[1] - 10) for k in range(prompt)],
            "max_tokens": output,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        one = Seen(prompt=prompt, output=output, sent=time.monotonic())
        self.seen.append(one)
        try:
            async with self.session.post(f"{self.base}/v1/completions", json=body) as answer:
                if answer.status != 200:
                    one.error = f"status {answer.status}"
                    return one
                async for line in answer.content:
                    self._line(one, line)
        except aiohttp.ClientError as error:
            one.error = type(error).__name__
        finally:
            one.done = time.monotonic()
        return one

    def _line(self, one: Seen, line: bytes) -> None:
        if not line.startswith(b"data: {"):
            return
        now = time.monotonic()
        if b'"choices":[{' in line:  # most lines: not parsed, because a busy client times its own slowness
            one.first = now if one.first is None else one.first
            one.last = now
            return
        event: dict[str, Any] = json.loads(line[6:])
        if "error" in event:
            one.error = str(event["error"])
        if event.get("choices"):
            one.first = now if one.first is None else one.first
            one.last = now
        if event.get("usage"):
            one.tokens = event["usage"]["completion_tokens"]

    async def closed_loop(
        self,
        clients: int,
        until: float | asyncio.Event,
        prompts: tuple[int, int],
        outputs: tuple[int, int],
        draw: random.Random,
    ) -> None:
        """So many clients, each of which sends its next request when its last one has ended.

        `until`: for so many seconds, or until the event is set.
        """
        over = time.monotonic() + (until if isinstance(until, float) else float("inf"))

        async def one() -> None:
            while time.monotonic() < over and not (isinstance(until, asyncio.Event) and until.is_set()):
                await self.send(draw.randrange(*prompts), draw.randrange(*outputs), draw)

        await asyncio.gather(*(one() for _ in range(clients)))


def in_flight(seen: Iterable[Seen], at: float) -> tuple[int, int]:
    """(requests whose first token is there and whose last is not, requests without one) at an instant."""
    running = waiting = 0
    for one in seen:
        if one.sent <= at < (one.done if one.done is not None else at + 1.0):
            if one.first is not None and one.first <= at:
                running += 1
            else:
                waiting += 1
    return running, waiting


def output_between(seen: Iterable[Seen], start: float, end: float) -> float:
    """Output tokens that came in [start, end): each request's tokens are taken as even between its first and its last."""
    total = 0.0
    for one in seen:
        if one.first is None or one.last is None or not one.tokens:
            continue
        if start <= one.first < end:
            total += 1
        if one.tokens > 1 and one.last > one.first:
            inside = max(0.0, min(end, one.last) - max(start, one.first))
            total += (one.tokens - 1) * inside / (one.last - one.first)
    return total


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
