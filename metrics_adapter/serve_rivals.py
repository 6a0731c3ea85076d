"""Two autoscalers on one object fight; whoever reads our log is told which two."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from metrics_adapter.wva import Variant

logger = logging.getLogger("autoscaler.serve")

LOOK_SECONDS = 30.0


def rivals(variants: Iterable[Variant]) -> dict[str, tuple[str, ...]]:
    """The HPAs on what a pool scales, by the pool's name, where they are more than one."""
    found: dict[str, list[str]] = {}
    for variant in variants:
        found.setdefault(variant.pool, []).append(f"{variant.hpa.namespace}/{variant.hpa.name}")
    return {pool: tuple(sorted(names)) for pool, names in found.items() if len(names) > 1}


def tell(now: Mapping[str, tuple[str, ...]], before: Mapping[str, tuple[str, ...]]) -> None:
    """Log what is new of them, and what is over."""
    for pool, names in now.items():
        if before.get(pool) != names:
            logger.warning(
                "pool %s: %d HPAs scale it and will fight, leave one: %s", pool, len(names), ", ".join(names)
            )
    for pool in before.keys() - now.keys():
        logger.info("pool %s: one HPA scales it now", pool)


async def watch(variants: Iterable[Variant], interval_seconds: float = LOOK_SECONDS) -> None:
    """Look for them for ever."""
    before: Mapping[str, tuple[str, ...]] = {}
    while True:
        await asyncio.sleep(interval_seconds)
        now = rivals(variants)
        tell(now, before)
        before = now
