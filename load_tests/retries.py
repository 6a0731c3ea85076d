"""Clients that lose patience: who has no first token in time gives up and sends the request again, a few times.

Every attempt is a request of the plant.  Attempts that nobody needs are held for ever; the rest arrive behind the traffic.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from autoscaler.errors import ConfigError
from load_tests.faults import Retries
from load_tests.fleet import Fleet, Outcome, Requests
from load_tests.kernel_state import Floats, Ints

# How often clients look at the clock.
LOOK_SECONDS = 1.0


class Clients:
    """The clients of one simulation.  `requests` are the traffic's and, behind them, room for every further attempt."""

    def __init__(self, settings: Retries, traffic: Requests) -> None:
        self.settings, self.given_up = settings, 0
        n, more = len(traffic), settings.most * len(traffic)
        self._next, self._looked = n, 0.0
        self._attempts: deque[tuple[float, int, int]] = deque()  # (arrival, request, number of attempts before it)
        self._arrival = traffic.arrival_seconds
        self._first = np.arange(n + more)  # the first attempt at the same
        if traffic.block_hashes is not None or traffic.follows is not None:
            raise ConfigError("faults", "retries must not be set for traffic with prompt blocks or in a closed loop")

        def longer(column: Any, filling: int) -> Any:
            return None if column is None else np.concatenate([column, np.full(more, filling, dtype=column.dtype)])

        self.requests = Requests(
            arrival_seconds=longer(traffic.arrival_seconds, 0),
            prompt_tokens=longer(traffic.prompt_tokens, 1),
            output_tokens=longer(traffic.output_tokens, 1),
            cached_prompt_tokens=longer(traffic.cached_prompt_tokens, 0),
            tenant=longer(traffic.tenant, 0),
            pool=longer(traffic.pool, 0),
            follows=np.concatenate([np.full(n, -1), np.arange(n - 1, n + more - 1)]).astype(np.int64),
        )

    def next_seconds(self) -> float:
        """When clients look at the clock next."""
        return self._looked + LOOK_SECONDS

    def look(self, fleet: Fleet) -> None:
        """Give up whose first token has not come within the patience, and send it again."""
        now, settings = fleet.now_seconds, self.settings
        low, high = self._looked - settings.timeout_seconds, now - settings.timeout_seconds
        self._looked = now
        first, last = np.searchsorted(self._arrival, [low, high], side="right").tolist()
        due = [(request, 0) for request in range(first, last)]
        while self._attempts and self._attempts[0][0] <= high:
            _, request, before = self._attempts.popleft()
            due.append((request, before))
        if not due:
            return
        tokens = fleet.first_tokens([request for request, _ in due])
        for (request, before), token in zip(due, tokens.tolist(), strict=True):
            if token < math.inf:
                continue
            self.given_up += 1
            if before < settings.most:
                at = now + settings.delay_seconds
                fleet.release(self._next, request, at)
                self._attempts.append((at, self._next, before + 1))
                self._first[self._next] = self._first[request]
                self._next += 1

    def arrived(self, outcome: Outcome) -> tuple[Ints, Ints, Floats]:
        """(attempts, first attempts at the same, instants) of every attempt that arrived, in order of arrival."""
        at = outcome.arrival_seconds[: self._next]
        order = np.argsort(at, kind="stable")
        return order, self._first[order], at[order]
