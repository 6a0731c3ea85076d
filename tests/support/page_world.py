"""A pool that answers traffic with bursts in it, on a board, and a server of the page that can be stopped and started."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from typing import Any

from aiohttp import web

from autoscaler import Pool
from autoscaler.types import Demand, Histogram, Latency, Load, Observation, Replicas, Step
from metrics_adapter.board import Board
from metrics_adapter.page import install

INTERVAL = 10
START_SECONDS = 90
TTFT_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ITL_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.2)


class World:
    """Steps of an invented pool: 500 prompt and 150 output tokens a request, each start takes 90 s."""

    def __init__(self, name: str = "chat", *, start: int = 1_900_000_000, **section: Any) -> None:
        prior = {"feasible_requests_per_second": 4.0, "mean_prompt_tokens": 500.0, "mean_output_tokens": 150.0}
        self.pool = Pool.from_config(
            {"name": name, "replica": prior, "startup": {"median_seconds": START_SECONDS, "sigma": 0.2}}
            | {"limits": {"min_replicas": 0, "max_replicas": 12}, "keep_seconds": 300} | section
        )  # fmt: skip
        self.at = start
        self.ready, self.desired, self.coming = 2, 2, []

    def rate(self) -> float:
        """Requests per second: a slow wave, and every 40 minutes a burst."""
        t = self.at % 86400
        burst = 9.0 if 1500 <= t % 2400 < 1900 else 0.0
        return (5.0 + 2.5 * math.sin(t / 700.0) + burst) * (1.0 + 0.12 * math.sin(t / 37.0) * math.sin(t / 11.0))

    def step(self) -> Step:
        """One turn: replicas come, requests are served or late, the pool decides, and the order is carried out."""
        self.at += INTERVAL
        self.ready += sum(1 for at in self.coming if at <= self.at)
        self.coming = [at for at in self.coming if at > self.at]
        requests = self.rate() * INTERVAL
        crowd = requests / INTERVAL / (4.0 * max(1, self.ready))
        late = requests * min(0.9, max(0.0, crowd - 1.0))
        self.pool.step(self.observation(requests, late, crowd))
        step = self.pool.last_step
        assert step is not None
        wanted = step.decision.replicas
        if wanted > self.desired:
            self.coming += [self.at + START_SECONDS] * (wanted - self.desired)
        for _ in range(self.desired - wanted):
            if self.coming:
                self.coming.pop()
            else:
                self.ready -= 1
        self.desired = wanted
        return step

    def observation(self, requests: float, late: float, crowd: float) -> Observation:
        on_time = requests - late
        ttft = Histogram(
            upper_bounds=TTFT_BOUNDS, counts=(0.0, on_time * 0.6, on_time * 0.4, 0.0, late, 0.0, 0.0, 0.0),
            sum=on_time * 0.25 + late * 1.7,
        )  # fmt: skip
        itl = Histogram(upper_bounds=ITL_BOUNDS, counts=(0.0, requests, 0.0, 0.0, 0.0, 0.0), sum=requests * 0.02)
        return Observation(
            pool=self.pool.settings.name, at_seconds=self.at, window_seconds=INTERVAL,
            replicas=Replicas(
                desired=self.desired, ready=self.ready, starting=len(self.coming),
                starting_ready_at_seconds=tuple(self.coming),
            ),
            demand=Demand(
                requests=requests, prompt_tokens=500 * requests, output_tokens=150 * requests, finished_requests=requests
            ),
            load=Load(
                running_requests=min(crowd, 1.0) * 20 * self.ready, waiting_requests=late, kv_cache_fraction=0.3,
                replicas_reporting=self.ready,
            ),
            latency=Latency(ttft=ttft, itl=itl, served_requests=requests, violated_requests=(late, late)),
        )  # fmt: skip


class PageServer:
    """The page of a board on a loop of its own, in a thread: `start` again after `stop` is an adapter's restart."""

    def __init__(self, worlds: list[World], *, clock_seconds: float = 0.3) -> None:
        self.worlds, self.clock_seconds = worlds, clock_seconds
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.late_seconds = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Answer, with an empty board."""
        ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(ready),), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        newest = max
        self.board = Board(
            [w.pool.settings for w in self.worlds],
            now=lambda: newest(w.at for w in self.worlds) + 1.0 + self.late_seconds,
        )
        app = web.Application()
        install(app, self.board, clock_seconds=self.clock_seconds)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()
        ready.set()
        await self._end.wait()
        await runner.cleanup()

    def stop(self) -> None:
        """End, open streams too."""
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the server waits for its streams"
        self._thread = None

    def turn(self, turns: int = 1, world: int = 0) -> Step:
        """So many Steps of one world onto the board; the last of them."""
        steps = [self.worlds[world].step() for _ in range(turns)]
        self.post(*steps)
        return steps[-1]

    def post(self, *steps: Step) -> None:
        """Steps onto the board."""

        async def post() -> None:
            for step in steps:
                self.board.post(step)

        asyncio.run_coroutine_threadsafe(post(), self._loop).result(10)
