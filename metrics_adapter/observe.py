"""The command ``autoscaler observe``: look at the pools of a config as the autoscaler would, show and record what is seen.

Nothing is scaled.  With ``--decide`` each look is also decided on and written to a step log, which `replay` decides again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from autoscaler.config import load_config
from autoscaler.errors import ConfigError, SourceError
from autoscaler.loop import Counts
from autoscaler.settings import FileSettings, PoolSettings
from autoscaler.types import Observation, Replicas
from metrics_adapter.observe_table import Seen, line, table

if TYPE_CHECKING:
    from aiohttp.web import AppRunner
    from rich.live import Live
    from rich.progress import Progress, TaskID

    from autoscaler.embed import Pool
    from autoscaler.log import StepLog
    from metrics_adapter.exposition import Exposition
    from metrics_adapter.prometheus import PrometheusSource
    from metrics_adapter.scrape import ScrapeSource

HOUR = 3600
ANY = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("-c", "--config", type=Path, required=True, help="config file: pools with a source")
    parser.add_argument("--pool", action="append", help="look at this pool only; may be repeated")
    parser.add_argument("--once", action="store_true", help="end after one look that has counts")
    parser.add_argument("--seconds", type=float, help="end after so many seconds")
    parser.add_argument("--record", type=Path, metavar="FILE", help="append each observation here, one JSON line each")
    parser.add_argument("--backfill", type=float, metavar="HOURS", help="fetch so much of the past first")
    parser.add_argument("--decide", action="store_true", help="also decide on each look; nothing is scaled")
    parser.add_argument("--log", type=Path, metavar="DIR", help="--decide: step logs go here (default: the config's)")
    parser.add_argument("--listen", metavar="HOST:PORT", help="--decide: answer GET /metrics there with our own series")
    parser.add_argument("--replicas", type=int, help="the number that is asked for now (default: those that are seen)")
    parser.add_argument("--json", action="store_true", help="print observations, or steps, as JSON lines")


def run(arguments: argparse.Namespace) -> int:
    """Look until told to end; the exit code: 1 where the last look of a pool saw nothing."""
    for name in ("seconds", "backfill", "replicas"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name}", f"{value:g} must be > 0")
    for name in ("log", "listen"):
        if getattr(arguments, name) is not None and not arguments.decide:
            raise ConfigError(f"--{name}", "must be left out without --decide")
    config = load_config(arguments.config)
    pools = chosen(config, arguments.pool)
    with contextlib.ExitStack() as stack:
        record = None
        if arguments.record is not None:
            arguments.record.parent.mkdir(parents=True, exist_ok=True)
            record = stack.enter_context(arguments.record.open("a", encoding="utf-8", newline="\n"))
        log = arguments.log if arguments.log is not None else Path(config.log.path)
        watches = [
            Watch(p, record=record, replicas=arguments.replicas, log=log if arguments.decide else None) for p in pools
        ]
        return asyncio.run(watch(watches, arguments))


def chosen(config: FileSettings, names: Sequence[str] | None) -> list[PoolSettings]:
    """The pools to look at.  Raises ConfigError for one that is not there or has no source."""
    known = {p.name: p for p in config.pools}
    for name in names or ():
        if name not in known:
            raise ConfigError("--pool", f"{name!r} must be one of {', '.join(known)}")
    pools = [known[n] for n in dict.fromkeys(names)] if names else list(config.pools)
    for pool in pools:
        if pool.source is None:
            raise ConfigError("source", f"is missing: pool {pool.name!r} does not say where its metrics come from")
    return pools


@dataclass(slots=True)
class Watch:
    """One pool under observation."""

    settings: PoolSettings
    record: TextIO | None = None
    replicas: int | None = None
    log: Path | None = None
    seen: Seen = field(init=False)
    source: ScrapeSource | PrometheusSource = field(init=False)
    pool: Pool | None = None
    exposition: Exposition | None = None
    counts: Counts = field(default_factory=Counts)
    _log: StepLog | None = None

    def __post_init__(self) -> None:
        from metrics_adapter.sources import source_of

        self.seen = Seen(self.settings.name)
        self.source = source_of(self.settings)

    def open_log(self) -> None:
        """Begin to decide, on from where the pool's log ended."""
        if self.log is None:
            return
        from autoscaler.embed import Pool, autoscaler_for
        from autoscaler.log import StepLog, restore, segments

        folder = self.log / self.settings.name
        made = autoscaler_for(self.settings)
        known = folder.is_dir() and segments(folder)
        self.pool = Pool(made, restore(made, folder) if known else None)
        self._log = StepLog(folder, made, self.pool.memory)

    async def close(self) -> None:
        """Give back the connections and the log."""
        await self.source.close()
        if self._log is not None:
            self._log.close()

    async def backfill(self, since_seconds: int, until_seconds: int, progress: Callable[[int, int], None]) -> int:
        """Take the past in; the number of Observations."""
        from metrics_adapter.prometheus import PrometheusSource

        if not isinstance(self.source, PrometheusSource):
            raise ConfigError("--backfill", f"pool {self.settings.name!r} must have a source with a past: prometheus")
        past = await self.source.backfill(since_seconds, until_seconds, progress=progress)
        if self.pool is not None and self._log is not None:
            last = self.pool.memory.state.at_seconds
            past = [o for o in past if last is None or o.at_seconds > last]
            for start in range(0, len(past), 1000):  # a line a day, not a line of weeks
                self.pool.backfill(past[start : start + 1000])
                self._log.backfill(past[start : start + 1000], self.pool.memory)
        for observation in past:
            self._write(observation)
        return len(past)

    async def turn(self, at_seconds: int, *, keep: bool = True) -> None:
        """One look; where it is to be kept, recorded, and decided on where asked."""
        self.seen.error = None
        self.counts.ticks += keep
        try:
            # Any number may report: what the platform has is not asked here, the replicas are those that were seen.
            observation = await self.source.observe(at_seconds, Replicas(desired=ANY, ready=ANY))
        except SourceError as error:
            self.seen.error = str(error)
            self.counts.source_errors += keep
            before, window = self.seen.observation, self.settings.interval_seconds
            if before is None:  # not even a number of replicas is known: no turn
                self.counts.skipped_ticks += keep
                return
            observation = Observation(
                pool=self.settings.name, at_seconds=at_seconds, window_seconds=window, replicas=before.replicas
            )
        else:
            observation = replace(observation, replicas=self._counts(observation.replicas))
        notes: dict[str, str] = getattr(self.source, "notes", {})  # of exporters and doors beside the replicas' pages
        self.seen.observation, self.seen.problems = observation, {**self.source.problems, **notes}
        if keep:
            self._write(observation)
            self._decide(observation)

    def _counts(self, seen: Replicas) -> Replicas:
        """Replicas that answered are ready but for the broken ones; silent ones exist too, as far as the source knows."""
        answered = len(self.source.readings)
        broken = min(answered, seen.unhealthy)
        silent = len([name for name in self.source.problems if name not in self.source.readings])
        desired = self.replicas if self.replicas is not None else answered + silent
        return Replicas(desired=desired, ready=answered - broken, unhealthy=broken)

    def _decide(self, observation: Observation) -> None:
        if self.pool is None or self._log is None:
            return
        last = self.pool.memory.state.at_seconds
        if last is not None and observation.at_seconds <= last:
            self.seen.error = f"the log already has {last}: nothing is decided on an earlier instant"
            return
        self.pool.step(observation)
        self.seen.step = self.pool.last_step
        assert self.seen.step is not None
        self._log.append(self.seen.step, self.pool.memory)
        if self.exposition is not None:
            self.exposition.update(self.seen.step, counts=self.counts, refits=self.pool.memory.beliefs.refits)

    def _write(self, observation: Observation) -> None:
        if self.record is not None:
            from autoscaler.record import encode_line

            self.record.write(encode_line("observation", observation) + "\n")
            self.record.flush()

    @property
    def complete(self) -> bool:
        """True once a look had counts."""
        return self.seen.observation is not None and self.seen.observation.demand is not None

    def text(self, as_json: bool) -> str:
        """The last turn, for a pipe."""
        if not as_json or self.seen.observation is None:
            return line(self.seen)
        from autoscaler.record import encode_line

        return (
            self.seen.step.to_json()
            if self.seen.step is not None
            else encode_line("observation", self.seen.observation)
        )


async def watch(watches: Sequence[Watch], arguments: argparse.Namespace) -> int:
    """Look at all pools, each on its own grid of instants, until the end that `arguments` ask for."""
    deadline = None if arguments.seconds is None else time.monotonic() + arguments.seconds
    served = None
    live = sys.stdout.isatty() and not arguments.json and not arguments.once
    try:
        for one in watches:
            one.open_log()
        if arguments.listen is not None:
            served = await serve(watches, arguments.listen)
        if arguments.backfill is not None:
            await _backfill(watches, arguments.backfill)
        screen = _screen(watches) if live else None
        with screen if screen is not None else contextlib.nullcontext():

            def show(one: Watch) -> None:
                if screen is not None:
                    screen.update(table([w.seen for w in watches]), refresh=True)
                elif not arguments.once or one.complete:
                    print(one.text(arguments.json), flush=True)

            async with asyncio.TaskGroup() as group:
                for one in watches:
                    group.create_task(_turns(one, deadline, arguments.once, show))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        if served is not None:
            await served.cleanup()
        for one in watches:
            await one.close()
    if arguments.once:
        for one in watches:
            if not one.complete:
                print(one.text(arguments.json), flush=True)
    return 1 if any(w.seen.error is not None or w.seen.observation is None for w in watches) else 0


async def serve(watches: Sequence[Watch], listen: str) -> AppRunner:
    """Answer GET /metrics at `listen` out of the pools' last steps, until the runner that this gives is cleaned up."""
    from aiohttp import web

    from metrics_adapter.exposition import CONTENT_TYPE, Exposition

    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError("--listen", f"{listen!r} must be HOST:PORT, such as 127.0.0.1:9109")
    exposition = Exposition()
    for one in watches:
        exposition.add_pool(one.settings)
        one.exposition = exposition

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=exposition.text(time.time()).encode(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
    return runner


async def _turns(one: Watch, deadline: float | None, once: bool, show: Callable[[Watch], None]) -> None:
    """Turn at every multiple of the interval.  Once: until counts are known, which takes a scraper two looks."""
    interval, turns, at = one.settings.interval_seconds, 0, 0
    while True:
        now = time.time()
        later = at + interval if once else (int(now) // interval + 1) * interval
        at = later if turns else int(now) + 1  # the first is for the eyes: nobody waits for the grid to see something
        keep = once or at % interval == 0
        wait = max(0.0, at - now)
        if deadline is not None and time.monotonic() + wait >= deadline:
            return
        await asyncio.sleep(wait)
        await one.turn(at, keep=keep)
        turns += 1
        show(one)
        if once and (one.complete or turns == 2):
            return


def _screen(watches: Sequence[Watch]) -> Live:
    from rich.live import Live

    return Live(table([w.seen for w in watches]), auto_refresh=False)


async def _backfill(watches: Sequence[Watch], hours: float) -> None:
    from rich.console import Console
    from rich.progress import Progress

    until = int(time.time())
    since = until - int(hours * HOUR)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for one in watches:
            task = bar.add_task(f"history of {one.settings.name}", total=until - since)
            count = await one.backfill(since, until, partial(_moved, bar, task))
            print(f"{one.settings.name}: {count} observations of the last {hours:g} h", file=sys.stderr)


def _moved(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)
