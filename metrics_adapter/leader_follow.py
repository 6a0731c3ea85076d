"""Following a leader: its Steps go to our board as it made them, and its Memory is ours to go on with.

    follower = Follower(board, {"chat": autoscaler_})
    await follower.run(lambda: election.leader)

A Step is the leader's own, byte for byte.  We decide it again only to have what the leader has in mind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from autoscaler.errors import AutoscalerError, LogError
from autoscaler.log import Line, advance
from autoscaler.record import parse_line, step_of
from autoscaler.step import Autoscaler
from autoscaler.types import Memory
from metrics_adapter.board import Board
from metrics_adapter.leader import Leader
from metrics_adapter.leader_feed import HEARTBEAT_SECONDS, PATH

logger = logging.getLogger("autoscaler.leader")

SILENCE_SECONDS = 5 * HEARTBEAT_SECONDS
WAIT_SECONDS = 0.5
MOST_LINE_BYTES = 64_000_000


class Follower:
    """`memories`: each pool's, as far as it is known: those given, or the leader's once one was heard."""

    def __init__(
        self, board: Board, autoscalers: Mapping[str, Autoscaler], memories: Mapping[str, Memory] | None = None
    ) -> None:
        self._board, self._autoscalers = board, autoscalers
        self.memories: dict[str, Memory] = dict(memories or {})
        self.heard: set[str] = set()
        """Pools whose leader's Memory we have."""
        self._said = ""

    async def run(self, leader: Callable[[], Leader | None]) -> None:
        """Repeat whomever `leader` names, for ever."""
        while True:
            whom = leader()
            if whom is not None and whom.address:
                await self._attempt(whom, leader)
            await asyncio.sleep(WAIT_SECONDS)

    async def _attempt(self, whom: Leader, leader: Callable[[], Leader | None]) -> None:
        try:
            async with aclosing(_lines(whom)) as lines:
                async for line in lines:
                    if leader() != whom:
                        return
                    if line:
                        self.take(line)
                        self._said = ""
        except (AutoscalerError, aiohttp.ClientError, OSError, ValueError) as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            if text != self._said:
                self._said = text
                logger.warning("following %s: %s", whom.holder, text)

    def take(self, text: bytes) -> None:
        """One line of a leader's feed.  Raises LogError for what is none."""
        framed = parse_line(text.decode())
        pool, data = framed.get("pool"), framed.get("line")
        if not isinstance(pool, str) or not isinstance(data, dict):
            raise LogError("the leader's feed has a line without a pool")
        autoscaler = self._autoscalers.get(pool)
        if autoscaler is None:
            return  # its config is another one, as during a change of it
        memory = self._advanced(autoscaler, pool, data)
        self.memories[pool] = memory
        if memory.last_step is not None:
            self._board.post(memory.last_step, refits=memory.beliefs.refits)

    def _advanced(self, autoscaler: Autoscaler, pool: str, data: dict[str, Any]) -> Memory:
        kind = str(data.get("type"))
        line = Line(path=Path("leader"), number=0, kind=kind, data=data, text="")
        if kind == "snapshot":
            self.heard.add(pool)
        elif pool not in self.heard:
            raise LogError(f"the leader's feed of pool {pool} does not begin with a snapshot")
        _, memory = advance(autoscaler, self.memories.get(pool) or autoscaler.start(), line)
        if kind != "step":
            return memory
        # The leader's own: another version, or pools that it decides together, may come to another number than we here.
        step = step_of(data)
        return replace(memory, state=step.state, last_step=step)


async def _lines(whom: Leader) -> AsyncGenerator[bytes]:
    """Lines of a leader's feed, empty ones too."""
    patience = aiohttp.ClientTimeout(sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
    headers = {"Authorization": f"Bearer {whom.key}"}
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), timeout=patience) as session,
        session.get(whom.address.rstrip("/") + PATH, headers=headers, allow_redirects=False) as response,
    ):
        if response.status != 200:
            raise LogError(
                f"HTTP {response.status}: {(await response.content.read(200)).decode(errors='replace').strip()}"
            )
        rest = b""
        async for chunk in response.content.iter_any():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line
            if len(rest) > MOST_LINE_BYTES:
                raise LogError(f"the leader's feed has a line of more than {MOST_LINE_BYTES} bytes")
