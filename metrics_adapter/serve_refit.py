"""Slow learning off the loop: each pool's beliefs are made anew on a schedule, in a process of its own that ends after it.

So a refit of seconds stops no turn and no answer, its memory is given back, and one that hangs is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from autoscaler.types import Beliefs, Memory

if TYPE_CHECKING:
    from autoscaler.settings import PoolSettings
    from metrics_adapter.serve_pools import Served

logger = logging.getLogger("autoscaler.serve")

TIMEOUT_SECONDS = 900.0
LOOK_SECONDS = 1.0
CHILD = "from metrics_adapter.serve_refit import child; child()"


class RefitFailed(Exception):
    """No new beliefs came of it; its text says why."""


async def refitted(settings: PoolSettings, memory: Memory, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Beliefs:
    """Better beliefs from what `memory` has seen, by a process that is gone afterwards.  Raises RefitFailed."""
    asked = pickle.dumps((settings, replace(memory, last_step=None)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_seconds):
            answer, told = await process.communicate(asked)
    except TimeoutError:
        raise RefitFailed(f"it took more than {timeout_seconds:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = told.decode(errors="replace").strip().rpartition("\n")[2]
        raise RefitFailed(f"its process ended with {process.returncode}: {last[:300]}")
    beliefs = pickle.loads(answer)
    assert isinstance(beliefs, Beliefs)
    return beliefs


def child() -> None:
    """The other side: one refit, from standard input to standard output."""
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    os.nice(10)
    settings, memory = pickle.loads(sys.stdin.buffer.read())
    from autoscaler.embed import autoscaler_for

    with open(answer, "wb") as out:
        out.write(pickle.dumps(autoscaler_for(settings).refit(memory)))


async def refit(pool: Served) -> bool:
    """New beliefs for one pool; whether there are any.  Turns go on meanwhile."""
    begun = time.monotonic()
    try:
        beliefs = await refitted(pool.settings, pool.loop.memory)
    except RefitFailed as error:
        logger.warning("pool %s: could not be learned anew, its beliefs stay: %s", pool.name, error)
        return False
    pool.loop.adopt(beliefs)
    logger.info("pool %s: learned anew in %.1f s", pool.name, time.monotonic() - begun)
    return True


async def refits(pools: Sequence[Served], every_seconds: float) -> None:
    """Learn each pool anew every `every_seconds`, one at a time and evenly spread, for ever.

    A pool that has just taken in its past comes first: nobody has learned from that yet.
    """
    begun = time.monotonic()
    due = {pool.name: begun + every_seconds * (i + 1) / len(pools) for i, pool in enumerate(pools)}
    while True:
        await asyncio.sleep(min(LOOK_SECONDS, every_seconds / len(pools)))
        now = time.monotonic()
        waiting = [
            p for p in pools if p.past_is_new or (due[p.name] <= now and p.loop.memory.state.at_seconds is not None)
        ]
        if waiting:
            pool = min(waiting, key=lambda p: (not p.past_is_new, due[p.name]))
            pool.past_is_new, due[pool.name] = False, now + every_seconds
            await refit(pool)
