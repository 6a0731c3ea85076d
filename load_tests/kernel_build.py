"""The plant's arrays from what a person gives: pools, requests, an empty fleet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from autoscaler.errors import ConfigError
from load_tests import kernel_state as state
from load_tests.draws import key
from load_tests.kernel_state import records
from load_tests.kernel_views import PoolModel, Requests

_ROUTINGS = {"round_robin": state.ROUND_ROBIN, "least_loaded": state.LEAST_LOADED, "two_choices": state.TWO_CHOICES}


def prefix_entries(models: Sequence[PoolModel], requests: Requests) -> int:
    """Size of a replica's prefix table: twice its blocks at least, a power of two; 1 without a prefix cache."""
    if requests.prefix_block_tokens == 0:
        return 1
    capacity = max(model.replica.kv_capacity_tokens for model in models)
    tokens = capacity + int(np.max(requests.prompt_tokens, initial=0))
    return int(2 ** (2 * (tokens // requests.prefix_block_tokens + 2)).bit_length())


def tournament(due: state.Floats) -> state.Ints:
    """Winner of each match of the knock-out tree over `due`; the leaves are the slots themselves."""
    leaves = len(due)
    winners = np.zeros(2 * leaves, dtype=np.int64)
    winners[leaves:] = np.arange(leaves)
    for node in range(leaves - 1, 0, -1):
        left, right = winners[2 * node], winners[2 * node + 1]
        winners[node] = right if due[right] < due[left] else left
    return winners


def column(values: Any) -> state.Ints:
    """An optional column as the kernel takes it: empty if absent, a copy else (a read-only array is another type)."""
    return np.zeros(0, dtype=np.int64) if values is None else np.array(values, dtype=np.int64)


def pool_records(models: Sequence[PoolModel], seed: int, prefix_block: int) -> Any:
    """One POOL record per model.

    Raises ConfigError for names that are not unique and for pools that hand over to no other pool or to a prefill pool.
    """
    names = [model.name for model in models]
    if not models or len(set(names)) != len(names):
        raise ConfigError("pools", f"{names!r} must be at least one pool, each with its own name")
    made = records(len(models), state.POOL)
    for i, model in enumerate(models):
        row, law = made[i], model.replica
        for name in ("a", "b", "floor_tokens", "c", "d", "e"):
            row[name] = getattr(law, name)
        row["step_overhead"], row["sequence_overhead"] = law.step_overhead_seconds, law.sequence_overhead_seconds
        row["ingress_seconds"] = law.request_overhead_seconds
        row["seats"], row["batch_tokens"] = law.max_num_seqs, law.max_num_batched_tokens
        row["block"], row["prefix_block"] = law.kv_block_tokens, prefix_block
        row["kv_capacity"] = law.kv_capacity_tokens // law.kv_block_tokens * law.kv_block_tokens
        row["routing"], row["routing_key"] = _ROUTINGS[model.routing], np.uint64(key(seed, "routing", i))
        row["next_pool"] = -1
        row["door_head"] = row["door_tail"] = row["ingress_head"] = row["ingress_tail"] = -1
        if model.next_pool is not None:
            if model.next_pool not in names or model.next_pool == model.name:
                raise ConfigError(f"pools[{i}].next_pool", f"{model.next_pool!r} must name another pool of {names!r}")
            if models[names.index(model.next_pool)].role == "prefill":
                raise ConfigError(f"pools[{i}].next_pool", f"{model.next_pool!r} must not be a prefill pool")
            row["next_pool"] = names.index(model.next_pool)
            if model.transfer_bytes_per_second is not None:
                row["transfer_seconds_per_token"] = law.kv_bytes_per_token / model.transfer_bytes_per_second
    return made


def request_records(requests: Requests, pools: int) -> Any:
    """One REQUEST record per request, all of them still to come.  Raises ConfigError for an entry pool that is not there."""
    made = records(len(requests), state.REQUEST)
    made["arrival"] = requests.arrival_seconds
    made["first"] = made["finish"] = math.inf
    made["prompt"], made["output"] = requests.prompt_tokens, requests.output_tokens
    if requests.cached_prompt_tokens is not None:
        made["cached"] = requests.cached_prompt_tokens
    made["replica"] = -1
    made["status"] = state.UNFINISHED
    if requests.pool is not None and len(requests):
        if not (int(requests.pool.min()) >= 0 and int(requests.pool.max()) < pools):
            raise ConfigError("requests.pool", f"every value must be a whole number in [0, {pools - 1}]")
        made["pool"] = requests.pool
    return made


def followers_of(requests: Requests) -> state.Ints:
    """Who arrives when a request ends (the inverse of `Requests.follows`); empty without a closed loop."""
    if requests.follows is None:
        return np.zeros(0, dtype=np.int64)
    followers = np.full(len(requests), -1, dtype=np.int64)
    led = np.arange(requests.open_requests, len(requests))
    followers[np.asarray(requests.follows)[led]] = led
    return followers
