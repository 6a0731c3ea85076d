"""A fake engine: vLLM's HTTP API and metrics page, driven by a replica profile's step law in real time.

    python -m load_tests.fake_engine --port 8000 --profile llama-3.1-8b_bf16_h100_tp1 --startup-seconds 20

In a test::

    async with FakeEngine(max_num_seqs=16) as engine:
        ...  # engine.url
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import MISSING, fields, replace
from types import TracebackType
from typing import Any, Self, get_args, get_type_hints

from aiohttp import web

from autoscaler.errors import AutoscalerError
from autoscaler.schema import build
from load_tests.fake_engine_asks import Rules
from load_tests.fake_engine_dev import DevRoutes
from load_tests.fake_engine_http import Api
from load_tests.fake_engine_loop import Engine
from load_tests.fake_engine_metrics import Metrics
from load_tests.fake_engine_settings import FakeEngineSettings

# As measured on vLLM 0.32.
KEEP_ALIVE_SECONDS = 5.0
GONE_AFTER_KILL_SECONDS = 0.5
GONE_AFTER_PORT_SECONDS = 1.3
GONE_AFTER_CRASH_SECONDS = 5.4


class FakeEngine:
    """One fake engine on a port of its own.  Keywords are fields of FakeEngineSettings; port 0, the default, is a free one.

    `async with` waits for the port to open unless a start-up time is set; `ready` tells.  `terminate` is what SIGTERM does.
    """

    def __init__(self, settings: FakeEngineSettings | None = None, **changes: Any) -> None:
        base = FakeEngineSettings(port=0) if settings is None else settings
        build(FakeEngineSettings, changes)
        self.settings = replace(base, **changes)
        self.replica = self.settings.replica()
        self.model_len = self.settings.model_len(self.replica)
        self.model = self.settings.served_model_name or self.replica.model or self.replica.id
        self.port = self.settings.port or _free_port(self.settings.host)
        self.ready = asyncio.Event()
        self.gone = asyncio.Event()
        self.failure: BaseException | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        """Where it answers, without a path."""
        return f"http://{self.settings.host}:{self.port}"

    async def __aenter__(self) -> Self:
        self.start()
        if self.settings.closed_seconds(self.replica) == 0.0:
            await self._opening
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def start(self) -> None:
        """Begin the start-up; the port opens when it is over."""
        self.metrics = Metrics(self.model, self.model_len, self._cache_config())
        self.engine = Engine(self.settings, self.replica, self.metrics)
        rules = Rules(
            model=self.model,
            model_len=self.model_len,
            block=self.replica.kv_block_tokens,
            seed=self.settings.seed,
            mean_output_tokens=self.settings.mean_output_tokens,
        )
        self.api = Api(self.settings, self.engine, self.metrics, rules)
        self._opening = self._begin(self._open())

    async def _open(self) -> None:
        await asyncio.sleep(self.settings.closed_seconds(self.replica))
        app = self.api.application()
        if self.settings.dev_mode:
            DevRoutes(self.api, self.crash).add_to(app)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, keepalive_timeout=KEEP_ALIVE_SECONDS, shutdown_timeout=0.1
        )
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, self.settings.host, self.port, backlog=4096)
        await self._site.start()
        self._begin(self.engine.run())
        self.ready.set()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failure = error
            self.gone.set()

    def _cache_config(self) -> dict[str, str]:
        tokens, block = self.replica.kv_capacity_tokens, self.replica.kv_block_tokens
        blocks = tokens // block
        override = self.settings.num_gpu_blocks_override
        return {
            "block_size": str(block), "cache_dtype": "auto", "enable_prefix_caching": str(self.settings.enable_prefix_caching),
            "gpu_memory_utilization": "0.92", "kv_cache_max_concurrency": str(round(blocks * block / self.model_len, 2)),
            "kv_cache_size_tokens": str(blocks * block), "num_gpu_blocks": str(blocks),
            "num_gpu_blocks_override": str(override), "prefix_caching_hash_algo": "sha256", "sliding_window": "None",
        }  # fmt: skip

    def crash(self) -> None:
        """The engine process dies: streams fail now, /health says 503 after 0.3 s, the server is gone after 5.4 s."""
        self.api.died_at = asyncio.get_running_loop().time()
        self.engine.kill()
        self._begin(self._vanish(GONE_AFTER_CRASH_SECONDS))

    async def _vanish(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._runner.cleanup()
        self.gone.set()

    async def terminate(self) -> None:
        """What SIGTERM does; returns when the process would be gone, which may be never while clients hang on."""
        if not self.ready.is_set() or self.gone.is_set():
            self.gone.set()
            return
        timeout = self.settings.shutdown_timeout
        if timeout == 0.0:
            await self._site.stop()
            self.engine.kill()
            await self._vanish(GONE_AFTER_KILL_SECONDS)
            return
        self.api.terminating = True
        try:
            await asyncio.wait_for(self.api.quiet(), timeout)
        except TimeoutError:
            self.engine.kill(silent=True)
            await self._site.stop()
            await self.api.quiet()
            await self._vanish(0.0)
            return
        await asyncio.sleep(self.settings.teardown_seconds)
        await self._site.stop()
        await self._vanish(GONE_AFTER_PORT_SECONDS if self.settings.teardown_seconds else 0.0)

    async def close(self) -> None:
        """Stop at once, whatever is open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.ready.is_set():
            await self._runner.cleanup()
        self.gone.set()


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def parser() -> argparse.ArgumentParser:
    """One option per setting; switches are --name and --no-name."""
    top = argparse.ArgumentParser(
        prog="python -m load_tests.fake_engine", description="A fake vLLM server, timed by a replica profile.",
        allow_abbrev=False,
    )  # fmt: skip
    hints = get_type_hints(FakeEngineSettings)
    for one in fields(FakeEngineSettings):
        option, text = f"--{one.name.replace('_', '-')}", one.metadata["doc"].replace("%", "%%")
        kinds = [k for k in (get_args(hints[one.name]) or (hints[one.name],)) if k is not type(None)]
        if kinds == [bool]:
            top.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif isinstance(kinds[0], str):
            top.add_argument(option, choices=kinds, help=text)
        else:
            shown = "" if one.default in (None, "", MISSING) else f" (default: {one.default})"
            top.add_argument(option, type=kinds[0], metavar=kinds[0].__name__.upper(), help=text + shown)
    return top


def settings_from(argv: Sequence[str] | None = None) -> FakeEngineSettings:
    """The settings of a command line; VLLM_SERVER_DEV_MODE=1 turns the dev mode on, as with vLLM."""
    given = {k: v for k, v in vars(parser().parse_args(argv)).items() if v is not None}
    if os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
        given.setdefault("dev_mode", True)
    return build(FakeEngineSettings, given)


async def serve(settings: FakeEngineSettings) -> None:
    """Serve until SIGTERM, SIGINT or a crash has run its course."""
    fake = FakeEngine(settings)
    fake.start()
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []

    def end() -> None:
        if not ending:
            ending.append(loop.create_task(fake.terminate()))

    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, end)
    announcing = loop.create_task(_announce(fake))
    await fake.gone.wait()
    announcing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await announcing
    await fake.close()
    if fake.failure is not None:
        raise fake.failure


async def _announce(fake: FakeEngine) -> None:
    closed = fake.settings.closed_seconds(fake.replica)
    print(
        f"fake engine: {fake.replica.id} as {fake.model}, port {fake.port} opens in {closed:g} s",
        file=sys.stderr,
        flush=True,
    )
    await fake.ready.wait()
    print(f"fake engine: ready on {fake.url}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one; 0 after SIGTERM, 2 for a setting that is wrong."""
    try:
        asyncio.run(serve(settings_from(argv)))
    except AutoscalerError as error:
        print(f"fake engine: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fake engine: error: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
