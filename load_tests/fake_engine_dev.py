"""Routes of a fake engine's dev mode: sleep, wake, pause, resume, abort, and a crash on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import cast

from aiohttp import web

from load_tests.fake_engine_http import Api, refuse, told
from load_tests.fake_engine_loop import Mode


class DevRoutes:
    """What VLLM_SERVER_DEV_MODE=1 adds.  `crash` is called for POST /fake_engine/crash."""

    def __init__(self, api: Api, crash: Callable[[], None]) -> None:
        self.api, self.engine, self._crash = api, api.engine, crash

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.add_routes(
            [
                web.post("/sleep", self._sleep),
                web.post("/wake_up", self._wake),
                web.get("/is_sleeping", self._is_sleeping),
                web.post("/release_kv_cache_memory", self._release_memory),
                web.post("/pause", self._pause),
                web.post("/resume", self._resume),
                web.get("/is_paused", self._is_paused),
                web.post("/abort_requests", self._abort),
                web.post("/reset_prefix_cache", self._reset),
                web.get("/server_info", self._info),
                web.post("/fake_engine/crash", self._die),
            ]
        )

    async def _sleep(self, request: web.Request) -> web.Response:
        mode = self._mode(request)
        level = request.query.get("level", "1")
        if level not in ("0", "1", "2"):
            return refuse(400, f"level {level!r} must be one of 0, 1, 2", "Bad Request", "query.level")
        if mode is None:
            return self._bad_mode(request)
        await self._timed("sleep", self.engine.sleep(int(level), mode))
        return told({"status": "slept", "level": int(level)})

    async def _wake(self, request: web.Request) -> web.Response:
        tags = frozenset(t for value in request.query.getall("tags", []) for t in value.split(",") if t)
        await self._timed("wake", self.engine.wake(tags))  # unknown tags are taken, and wake nothing
        return told({"status": "woken", "tags": sorted(tags) or None})

    async def _is_sleeping(self, _: web.Request) -> web.Response:
        return told({"is_sleeping": self.engine.is_sleeping})

    async def _release_memory(self, _: web.Request) -> web.Response:
        if not self.engine.paused:
            return refuse(500, "release_kv_cache_memory requires a completed pause first", "InternalServerError")
        await self._timed("release_kv_cache_memory", asyncio.sleep(0))
        return web.Response()

    async def _pause(self, request: web.Request) -> web.Response:
        mode = self._mode(request)
        if mode is None:
            return self._bad_mode(request)
        await self.engine.pause(mode)
        return told({"status": "paused"})

    async def _resume(self, _: web.Request) -> web.Response:
        self.engine.resume()
        return told({"status": "resumed"})

    async def _is_paused(self, _: web.Request) -> web.Response:
        return told({"is_paused": self.engine.paused})

    async def _abort(self, _: web.Request) -> web.Response:
        self.engine.abort_all()
        return web.Response()

    async def _reset(self, _: web.Request) -> web.Response:
        if self.engine.scheduler.cache is not None:
            self.engine.scheduler.cache.clear()
        return told({"success": True})

    async def _info(self, _: web.Request) -> web.Response:
        return told({"vllm_config": asdict(self.api.settings)})

    async def _die(self, _: web.Request) -> web.Response:
        self._crash()
        return web.Response()

    async def _timed(self, name: str, operation: Awaitable[None]) -> None:
        in_flight, seconds = self.api.metrics.operation(name)
        in_flight.value += 1
        begun = time.monotonic()
        try:
            await operation
        finally:
            in_flight.value -= 1
            seconds.observe(time.monotonic() - begun)

    @staticmethod
    def _mode(request: web.Request) -> Mode | None:
        mode = request.query.get("mode", "abort")
        return cast(Mode, mode) if mode in ("abort", "wait", "keep") else None

    @staticmethod
    def _bad_mode(request: web.Request) -> web.Response:
        return refuse(
            400, f"mode {request.query['mode']!r} must be one of abort, wait, keep", "Bad Request", "query.mode"
        )
