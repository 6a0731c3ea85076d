"""What a leader tells on the second port, so that others can go on where it stops: each pool's Memory, then every log line.

    feed = Feed(key=election.me.key)
    feed.attach("chat", lambda: loop.memory)                        # while it leads
    StepLog(..., on_line=partial(feed.publish, "chat"))
    application.add_routes(feed.routes())

One line per log line, ``{"pool":"chat","line":{...}}``, and an empty one now and then to show that somebody is there.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web

from autoscaler.record import encode_memory
from autoscaler.types import Memory

PATH = "/replication"
HEARTBEAT_SECONDS = 1.0
MOST_FOLLOWERS = 8
MOST_LINES = 20_000  # a follower that is so far behind begins anew


class Feed:
    """The stream to followers.  `key`: what they must show, as the Lease tells it."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._pools: dict[str, Callable[[], Memory]] = {}
        self._followers: set[_Follower] = set()

    def attach(self, pool: str, memory: Callable[[], Memory]) -> None:
        """We decide for `pool`, and `memory` gives what we know of it."""
        self._pools[pool] = memory

    def detach(self) -> None:
        """We decide for nobody any more: followers are sent away."""
        self._pools.clear()
        for follower in self._followers:
            follower.end()

    def publish(self, pool: str, line: str) -> None:
        """A line was written to the pool's log."""
        for follower in self._followers:
            follower.put(pool, line)

    def routes(self) -> list[web.RouteDef]:
        """For the second port."""
        return [web.get(PATH, self._stream)]

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(shown.encode(), self._key.encode()):
            return web.Response(status=401, text="the Lease tells the key\n")
        if not self._pools or len(self._followers) >= MOST_FOLLOWERS:
            why = "this one does not lead" if not self._pools else "there are followers enough"
            return web.Response(status=503, text=f"{why}\n")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        follower = _Follower()
        self._followers.add(follower)
        try:
            await response.prepare(request)
            for pool, memory in tuple(self._pools.items()):
                follower.pools.add(pool)
                snapshot = memory()  # what comes after it is in the queue from here on
                text = await asyncio.to_thread(encode_memory, snapshot)
                await response.write(_framed(pool, f'{{"type":"snapshot","memory":{text}}}'))
            while (lines := await follower.next()) is not None:
                await response.write(lines)
            await response.write_eof()
        except ConnectionError:
            pass  # it hung up
        finally:
            self._followers.discard(follower)
        return response


class _Follower:
    """Lines that one of them has not got yet."""

    def __init__(self) -> None:
        self.pools: set[str] = set()
        self._lines: list[bytes] = []
        self._some = asyncio.Event()
        self._ended = False

    def put(self, pool: str, line: str) -> None:
        if pool not in self.pools or self._ended:
            return
        if len(self._lines) >= MOST_LINES:
            self.end()
            return
        self._lines.append(_framed(pool, line))
        self._some.set()

    def end(self) -> None:
        self._ended = True
        self._some.set()

    async def next(self) -> bytes | None:
        """What there is, or an empty line after a while without any; None at the end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await self._some.wait()
        if self._ended:
            return None
        self._some.clear()
        lines, self._lines = self._lines, []
        return b"".join(lines) or b"\n"


def _framed(pool: str, line: str) -> bytes:
    return f'{{"pool":{json.dumps(pool)},"line":{line}}}\n'.encode()
