"""What of a fleet one contestant is shown while something is wrong with its signals: silent, stuck, reset or stale.

Counters of the plant are of the whole pool.  A silent replica's share of them is that of its number, for the router keeps
replicas about equally busy; what was not seen when it happened is never seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from load_tests.fault_plan import FaultPlan
from load_tests.fleet import Counters, Fleet, Gauges, HistogramCounts
from load_tests.kernel_state import Ints
from load_tests.life import Life

# Counted where requests come in, whoever serves them.
_DOOR = ("arrivals", "arrived_prompt_tokens", "failed", "arrivals_by_tenant")
_ENGINE = ("running", "waiting", "kv_tokens", "waiting_prompt_tokens")


class Seen:
    """Stands for the fleet in a contestant's eyes; `given_up` tells how many requests clients have given up so far."""

    def __init__(self, fleet: Fleet, plan: FaultPlan, life: Life, given_up: Callable[[], int] = lambda: 0) -> None:
        self._fleet, self._plan, self._life, self._given_up = fleet, plan, life, given_up
        self._gauges: Gauges | None = None
        self._frozen: dict[int, tuple[int, ...]] = {}
        self._real: Counters | None = None
        self._shown: Counters | None = None
        self._at = 0.0

    @property
    def now_seconds(self) -> float:
        """The instant up to which everything has happened."""
        return self._fleet.now_seconds

    def gauges(self, pool: int) -> Gauges:
        """What the source says of the replicas now."""
        at = self.now_seconds
        if self._plan.stale_seconds(at) > 0.0 and self._gauges is not None:
            return self._gauges
        gauges = self._freeze(self._fleet.gauges(pool))
        silent = self._plan.silent(at)
        if self._plan.empty(at):
            gauges = _only(gauges, np.zeros(len(gauges.ids), dtype=bool), door=False)
        elif silent is not None:
            gauges = _only(gauges, _answers(gauges.ids, silent.fraction), door=silent.door)
        self._gauges = gauges
        return gauges

    def counters(self, pool: int) -> Counters:
        """What the source has counted so far, as far as it was seen."""
        at, real = self.now_seconds, self._fleet.counters(pool)
        real = replace(real, failed=real.failed + self._given_up())
        engine, door = self._shares(at)
        before, shown, since = self._real, self._shown, self._at
        self._real, self._at = real, at
        if before is None or shown is None:
            self._shown = real
            return real
        kept = self._plan.kept_fraction(at, at - since, len(self._life.serving)) if at > since else 1.0
        whole = engine == door == kept == 1.0 and shown is before
        self._shown = real if whole else _added(shown, before, real, engine * kept, door * kept)
        return self._shown

    def _shares(self, at: float) -> tuple[float, float]:
        """Shares of what the engines and the door have counted since the last time that are seen."""
        if self._plan.empty(at) or self._plan.stale_seconds(at) > 0.0:
            return 0.0, 0.0
        silent, ids = self._plan.silent(at), np.array(self._life.serving, dtype=np.int64)
        if silent is None or not len(ids):
            return 1.0, 1.0
        share = float(_answers(ids, silent.fraction).mean())
        return share, 1.0 if silent.door else share

    def _freeze(self, gauges: Gauges) -> Gauges:
        """A stuck engine repeats what it said last; the door goes on counting what it was sent."""
        stuck = self._life.stuck
        if not stuck:
            self._frozen = {}
            return gauges
        columns = {name: getattr(gauges, name).copy() for name in _ENGINE}
        for row, replica in enumerate(gauges.ids.tolist()):
            if replica in stuck:
                kept = self._frozen.setdefault(replica, tuple(int(columns[name][row]) for name in _ENGINE))
                for name, value in zip(_ENGINE, kept, strict=True):
                    columns[name][row] = value
        return replace(gauges, **columns)


def _answers(ids: Ints, fraction: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which replicas answer while a share is silent: spread evenly over their numbers, and the same all the while."""
    answers: np.ndarray[Any, np.dtype[np.bool_]] = np.floor((ids + 1) * fraction) == np.floor(ids * fraction)
    return answers


def _only(gauges: Gauges, answers: np.ndarray[Any, np.dtype[np.bool_]], *, door: bool) -> Gauges:
    """The readings of those that answer; what the door knows of each replica stays where it answers."""
    cut = {name: getattr(gauges, name)[answers] for name in ("ids", *_ENGINE)}
    if door:
        return replace(gauges, **cut)
    return replace(gauges, **cut, outstanding=gauges.outstanding[answers], held_requests=0, held_prompt_tokens=0)


def _added(shown: Counters, before: Counters, now: Counters, engine: float, door: float) -> Counters:
    """`shown` and the seen shares of what came between `before` and `now`."""
    values: dict[str, Any] = {}
    for field in fields(Counters):
        share = door if field.name in _DOOR else engine
        old, was, here = (getattr(row, field.name) for row in (shown, before, now))
        if isinstance(here, HistogramCounts):
            counts = old.counts + share * (here.counts - was.counts)
            values[field.name] = HistogramCounts(here.bounds, counts, old.sum + share * (here.sum - was.sum))
        else:
            values[field.name] = old + share * (here - was)
    return Counters(**values)
