"""Counting demand at the door of a pool, where the engines cannot: asleep, starting, or none there at all.

    app = DoorMiddleware(app, Door("chat"), metrics_path="/door/metrics")

A request is counted when its head arrives, whatever becomes of it: held, turned away, hung up or served.  Its prompt
tokens are counted when its body is complete: exactly where the client sends token ids, else as bytes of text over
`bytes_per_token`, or by a function of the user's (a tokenizer).  Standard library only; any ASGI server.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from autoscaler.errors import ConfigError
from metrics_adapter.door_shared import FIELDS, SharedCounts

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/generate", "/v1/messages")
BYTES_PER_TOKEN = 4.0  # English text and code under vocabularies of 32k to 200k tokens: 3.5 to 4.5
MOST_BODY_BYTES = 1 << 20
REJECTED = (429, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorCounts:
    """What passed a door since it was made: cumulative counts, and the requests in it now.

    `rejected`: answered 429 or 503.  `failed`: any other 5xx, or no whole answer though the client stayed.  `hung_up`:
    clients that left before the answer was whole, where the server tells.  `waiting`: not yet passed on, where known.
    None: this door does not count it.  `gap_seconds`, `gap_squares`: sums over the times between arrivals.
    """

    requests: float
    prompt_tokens: float | None = None
    rejected: float | None = None
    failed: float | None = None
    finished: float | None = None
    hung_up: float | None = None
    in_flight: float | None = None
    waiting: float | None = None
    gap_seconds: float | None = None
    gap_squares: float | None = None

    def since(self, before: DoorCounts | None) -> DoorCounts:
        """Counts since `before`; all of them where the door was made anew meanwhile (its count fell).

        In flight and waiting stay as they are now.
        """
        if before is None or self.requests < before.requests:
            return self
        changes: dict[str, float] = {}
        for f in fields(self):
            now, then = getattr(self, f.name), getattr(before, f.name)
            if f.name not in ("in_flight", "waiting") and now is not None and then is not None:
                changes[f.name] = max(0.0, now - then)
        return replace(self, **changes)

    @property
    def arrival_gap_cv(self) -> float | None:
        """Coefficient of variation of the times between arrivals; None for fewer than ten requests."""
        if self.gap_seconds is None or self.gap_squares is None or self.requests < 10 or self.gap_seconds <= 0.0:
            return None
        mean = self.gap_seconds / self.requests
        return float(max(0.0, self.gap_squares / self.requests - mean * mean) ** 0.5 / mean)


class Door:
    """Counts of one pool's door, in this process, or in those that share a folder.

    `tokens` says how many prompt tokens a request's JSON body has (a tokenizer, say); without it token ids are counted
    and text is estimated at `bytes_per_token`.  `shared` is a folder for the counts of several worker processes on this
    host: each of them then reads the sum.  Raises ConfigError for a `bytes_per_token` that is not > 0.
    """

    def __init__(
        self,
        pool: str,
        *,
        tokens: Callable[[Mapping[str, Any]], float] | None = None,
        bytes_per_token: float = BYTES_PER_TOKEN,
        shared: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0.0 < bytes_per_token < float("inf"):
            raise ConfigError("bytes_per_token", f"{bytes_per_token!r} must be a finite number > 0")
        self.pool, self.bytes_per_token = pool, bytes_per_token
        self._tokens, self._clock = tokens, clock
        self._folder, self._shared = shared, None if shared is None else SharedCounts(shared, pool)
        self._empty()

    def _empty(self) -> None:
        self._last: float | None = None
        self.requests = self.rejected = self.failed = self.finished = self.hung_up = self.in_flight = 0
        self.prompt_tokens = self.gap_seconds = self.gap_squares = 0.0

    def _publish(self) -> None:
        if self._shared is None or self._folder is None:
            return
        if self._shared.process != os.getpid():  # forked: the parent's counts are in the parent's file
            self._shared = SharedCounts(self._folder, self.pool)
        self._shared.write([getattr(self, name) for name in FIELDS])

    def read(self) -> DoorCounts:
        """The counts now.  Several processes do not know the gaps between each other's requests."""
        if self._shared is not None:
            self._publish()
            return DoorCounts(**dict(zip(FIELDS, self._shared.total(), strict=True)))
        return DoorCounts(
            requests=self.requests, prompt_tokens=self.prompt_tokens, rejected=self.rejected, failed=self.failed,
            finished=self.finished, hung_up=self.hung_up, in_flight=self.in_flight, gap_seconds=self.gap_seconds,
            gap_squares=self.gap_squares,
        )  # fmt: skip

    def arrive(self) -> None:
        """A request is here."""
        if self._shared is not None and self._shared.process != os.getpid():
            self._empty()
        now = self._clock()
        if self._last is not None:
            gap = now - self._last
            self.gap_seconds += gap
            self.gap_squares += gap * gap
        self._last = now
        self.requests += 1
        self.in_flight += 1
        self._publish()

    def weigh(self, body: bytes | None, size: int) -> None:
        """Its body is whole: the bytes, or their number alone where they are too many to keep."""
        self.prompt_tokens += self._weight(body, size)
        self._publish()

    def leave(self, *, status: int | None, whole: bool, gone: bool) -> None:
        """It has left: with the status it was answered, whether the answer was whole, and whether the client was gone."""
        self.in_flight -= 1
        if gone:
            self.hung_up += 1
        elif not whole or status is None:
            self.failed += 1
        elif status in REJECTED:
            self.rejected += 1
        elif status >= 500:
            self.failed += 1
        elif status < 400:
            self.finished += 1
        self._publish()

    def _weight(self, body: bytes | None, size: int) -> float:
        if body is None:
            return size / self.bytes_per_token
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            return size / self.bytes_per_token
        if not isinstance(data, dict):
            return size / self.bytes_per_token
        if self._tokens is not None:
            return float(self._tokens(data))
        ids, text = prompt_size(data)
        return ids + text / self.bytes_per_token


def prompt_size(body: Mapping[str, Any]) -> tuple[int, int]:
    """(token ids, bytes of text) in the prompt of an OpenAI-like, Anthropic-like or TGI-like request body."""
    ids = text = 0
    for key in ("prompt", "input", "inputs", "messages", "system", "instructions"):
        more_ids, more_text = _size(body.get(key), 0)
        ids, text = ids + more_ids, text + more_text
    return ids, text


def _size(value: Any, depth: int) -> tuple[int, int]:
    if isinstance(value, str):
        return 0, len(value.encode("utf-8", "replace"))
    if isinstance(value, bool) or value is None or depth > 6:
        return 0, 0
    if isinstance(value, int):
        return 1, 0
    if isinstance(value, list):
        if value and all(type(item) is int for item in value):
            return len(value), 0
        parts = [_size(item, depth + 1) for item in value]
    elif isinstance(value, dict):
        # Of a message or a part of one: what it says, not its role, type, or picture.
        parts = [_size(value.get(key), depth + 1) for key in ("content", "text")]
    else:
        return 0, 0
    return sum(p[0] for p in parts), sum(p[1] for p in parts)


class DoorMiddleware:
    """Counts what goes through an ASGI application.

    `door`: one door, or one per model name (``"model"`` in the body).  Only POST to `paths` is counted.  With
    `metrics_path` a GET there answers with the counts in Prometheus' text format.  `unattributed` counts requests whose
    body never told a known model.
    """

    def __init__(
        self,
        app: App,
        door: Door | Mapping[str, Door],
        *,
        paths: tuple[str, ...] = PATHS,
        metrics_path: str | None = None,
    ) -> None:
        self.app, self.door, self.paths, self.metrics_path = app, door, paths, metrics_path
        self.unattributed = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "GET" and self.metrics_path is not None and scope["path"] == self.metrics_path:
            await self._expose(send)
            return
        if scope["method"] != "POST" or scope["path"].rstrip("/") not in self.paths:
            await self.app(scope, receive, send)
            return
        visit = _Visit(self, scope, receive, send)
        gone = False
        try:
            await self.app(scope, visit.receive, visit.send)
        except asyncio.CancelledError:
            gone = True  # a server that cancels does so because the client left, or because it stops
            raise
        finally:
            visit.close(gone)

    async def _expose(self, send: Send) -> None:
        from metrics_adapter.door_pages import exposition

        doors = [self.door] if isinstance(self.door, Door) else list(dict.fromkeys(self.door.values()))
        body = exposition({door.pool: door.read() for door in doors}).encode()
        kind = b"text/plain; version=0.0.4; charset=utf-8"
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Visit:
    """One request on its way through."""

    def __init__(
        self, middleware: DoorMiddleware, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        self._middleware, self._scope, self._receive, self._send = middleware, scope, receive, send
        self._door = middleware.door if isinstance(middleware.door, Door) else None
        self._body: list[bytes] | None = []
        self._size = 0
        self._read = self._whole = self._gone = False
        self._status: int | None = None
        if self._door is not None:
            self._door.arrive()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone = self._gone or not self._whole
        elif message["type"] == "http.request" and not self._read:
            self._take(message.get("body") or b"")
            if not message.get("more_body", False):
                self._finish_body()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._whole = True
        try:
            await self._send(message)
        except OSError:  # how servers tell that the client is gone
            self._whole, self._gone = False, True
            raise

    def close(self, gone: bool) -> None:
        if not self._read and not self._gone and not gone:
            # An application that answers without reading: what the client said it would send.
            length = dict(self._scope.get("headers") or ()).get(b"content-length", b"0")
            self._body, self._size = None, int(length) if length.isdigit() else 0
            self._finish_body()
        if self._door is None:
            self._middleware.unattributed += 1
        else:
            self._door.leave(status=self._status, whole=self._whole, gone=gone or self._gone)

    def _take(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MOST_BODY_BYTES:
            self._body = None
        elif self._body is not None:
            self._body.append(part)

    def _finish_body(self) -> None:
        self._read = True
        body = None if self._body is None else b"".join(self._body)
        self._body = None
        if self._door is None:
            self._door = self._named(body)
            if self._door is not None:
                self._door.arrive()
        if self._door is not None and self._size:
            self._door.weigh(body, self._size)

    def _named(self, body: bytes | None) -> Door | None:
        doors = self._middleware.door
        assert not isinstance(doors, Door)
        try:
            data = json.loads(body or b"null")
        except (ValueError, RecursionError):
            return None
        return doors.get(str(data.get("model"))) if isinstance(data, dict) else None
