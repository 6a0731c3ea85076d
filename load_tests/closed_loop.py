"""A closed loop: so many clients, each of which sends its next request when its last one has ended.

This is how most published engine measurements are taken (``vllm bench serve --max-concurrency``), so it is what a
replica model must reproduce to be compared with them.  It is no way to judge an autoscaler: see the open loop.
"""

from __future__ import annotations

import math

import numpy as np

from autoscaler.errors import ConfigError
from load_tests.draws import key, uniforms
from load_tests.fleet import Fleet, Outcome, PoolModel, ReplicaModel, Requests


def closed_loop_requests(
    *,
    clients: int,
    rounds: int,
    prompt_tokens: int,
    output_tokens: int,
    least_fraction: float = 1.0,
    think_seconds: float = 0.0,
    seed: int = 0,
) -> Requests:
    """`clients` that all start at 0 s and send `rounds` requests each, one after the other.

    Lengths are whole numbers drawn uniformly from [least_fraction * length, length], prompt and output apart; 1 gives
    equal requests.  The next request leaves `think_seconds` after the last token of the one before.
    """
    if clients < 1 or rounds < 1:
        raise ConfigError("clients" if clients < 1 else "rounds", f"{min(clients, rounds)!r} must be >= 1")
    if not 0.0 < least_fraction <= 1.0:
        raise ConfigError("least_fraction", f"{least_fraction!r} must be in (0, 1]")
    n = clients * rounds
    follows = np.arange(n, dtype=np.int64) - clients
    follows[:clients] = -1
    arrival = np.full(n, think_seconds)
    arrival[:clients] = 0.0
    return Requests(
        arrival_seconds=arrival,
        prompt_tokens=_lengths(prompt_tokens, least_fraction, n, key(seed, "closed loop", "prompt")),
        output_tokens=_lengths(output_tokens, least_fraction, n, key(seed, "closed loop", "output")),
        follows=follows,
    )


def run_closed_loop(replica: ReplicaModel, requests: Requests, replicas: int = 1) -> Outcome:
    """Serve a closed loop to its end on `replicas` replicas, each request on the least loaded one."""
    fleet = Fleet([PoolModel(name="closed loop", replica=replica)], requests)
    for _ in range(replicas):
        fleet.add(0)
    fleet.advance(math.inf)
    return fleet.outcome()


def _lengths(longest: int, least_fraction: float, n: int, stream: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    least = max(1, int(longest * least_fraction))
    return least + np.floor((longest + 1 - least) * uniforms(stream, n)).astype(np.int64)
