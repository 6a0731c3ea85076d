"""A path of replica counts as a contestant: every start is ordered its own start-up time ahead.

Only somebody who knows the draws of the future can do that; it is how a clairvoyant's path is replayed in the plant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from autoscaler.types import Reason
from load_tests.births import Births
from load_tests.contestants import Answer, Moment
from load_tests.kernel_state import Floats, Ints
from load_tests.simulator import Setup

_ROUNDS = 12
_NEVER = 1_000_000_000


def births_of(setup: Setup, pool: int = 0) -> Births:
    """The starts that a simulation of `setup` will draw for a pool."""
    return Births(setup.startup, setup.pools[pool].name, setup.seed, setup.startup_factor, setup.failure_fraction)


def order_seconds(ready_by: Floats, births: Callable[[], Births]) -> tuple[Floats, Floats]:
    """(order, ready) instants of starts that are ready by the given ascending instants, each ordered as late as it may be.

    The k-th order gets the k-th draw.  Starts that share a store or a node delay each other: orders are moved forward
    until none is late, at most a few rounds.
    """
    orders = np.array(ready_by, dtype=float)
    ready = orders.copy()
    for _ in range(_ROUNDS):
        ready = _ready(orders, births())
        late = ready - ready_by
        if not (late > 1e-6).any():
            break
        orders = np.minimum.accumulate((orders - np.maximum(0.0, late))[::-1])[::-1]
    return orders, ready


def _ready(orders: Floats, births: Births) -> Floats:
    """When each of the ordered starts is ready; a start that fails is taken to be ready when it fails."""
    at = np.full(len(orders), math.inf)
    for instant in orders.tolist():
        for end, ordinal, _ in births.ended(instant):
            at[ordinal] = end
        births.order(instant)
    for end, ordinal, _ in births.ended(math.inf):
        at[ordinal] = end
    return at


def plan(path: Ints, bin_seconds: float, births: Callable[[], Births]) -> tuple[Floats, Floats, Floats]:
    """(order, ready, removal) instants that follow `path`, whose count i holds from ``i bin_seconds`` on.

    A removal while a start is on its way would give that start up instead: both are left out, which is also cheaper.
    """
    steps = np.diff(path)
    at = bin_seconds * np.arange(1, len(path))
    ups = np.repeat(at, np.maximum(steps, 0))
    downs = np.repeat(at, np.maximum(-steps, 0))
    while True:
        orders, ready = order_seconds(ups, births)
        ups_left, downs_left = _without_conflicts(ups, downs, np.floor(orders), ready)
        if len(ups_left) == len(ups):
            return orders, ready, downs
        ups, downs = ups_left, downs_left


def _without_conflicts(ups: Floats, downs: Floats, orders: Floats, ready: Floats) -> tuple[Floats, Floats]:
    """Ups and downs without the pairs in which a removal falls between an order and its being ready."""
    keep_up, keep_down = np.ones(len(ups), dtype=bool), np.ones(len(downs), dtype=bool)
    for i in range(len(ups)):
        last = int(np.searchsorted(downs, ready[i], side="right")) - 1
        while last >= 0 and not keep_down[last]:
            last -= 1
        if last >= 0 and downs[last] >= orders[i]:
            keep_up[i] = keep_down[last] = False
    return ups[keep_up], downs[keep_down]


class Schedule:
    """A contestant that orders and removes replicas at instants fixed beforehand.

    It decides at those instants only: `interval_seconds` is the time to the next one.
    """

    def __init__(self, path: Ints, bin_seconds: float, setup: Setup, *, name: str = "clairvoyant") -> None:
        self.name, self.initial = name, int(path[0])
        orders, _, downs = plan(path, bin_seconds, lambda: births_of(setup))
        # Whole seconds: an order a little earlier, a removal at its bin's start.
        at = np.concatenate([np.maximum(1.0, np.floor(orders)), np.ceil(downs)])
        change = np.concatenate([np.ones(len(orders), dtype=np.int64), -np.ones(len(downs), dtype=np.int64)])
        instants, index = np.unique(at, return_inverse=True)
        totals = np.bincount(index, weights=change, minlength=len(instants)).astype(np.int64)
        self._at, self._counts = instants, self.initial + np.cumsum(totals)
        self.interval_seconds = 1

    def begin(self, fleet: Any, pool: int, life: Any, origin_at_seconds: int) -> None:
        """From the start again."""
        self._wait(0.0)

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """The count that the plan has now."""
        done = self._wait(at_seconds)
        wanted = int(self._counts[done - 1]) if done else self.initial
        return Answer(wanted, (Reason(rule="clairvoyant", before=wanted, after=wanted),))

    def end(self) -> None:
        """Nothing is open."""

    def _wait(self, at_seconds: float) -> int:
        """Set the time to the next change; how many are done."""
        done = int(np.searchsorted(self._at, at_seconds, side="right"))
        self.interval_seconds = int(self._at[done] - at_seconds) if done < len(self._at) else _NEVER
        return done
