"""What goes into a `Fleet` and what comes out: models, requests, gauges, counters, outcome."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoscaler.errors import ConfigError
from load_tests.kernel_state import SEAT_MASK, Floats, Ints

Routing = Literal["round_robin", "least_loaded", "two_choices"]
Role = Literal["all", "prefill", "decode"]


def _at_least(low: float, **fields: float) -> None:
    """Refuse a number below `low`, NaN and infinity."""
    for name, value in fields.items():
        if not low <= value < math.inf:
            raise ConfigError(name, f"{value!r} must be a finite number >= {low:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaModel:
    """Step law, host overhead and limits of one replica.

    A step with P prefill tokens in chunks of A attention pairs and N decoding sequences of K tokens of context takes

        a + max(b * floor_tokens, b * (P + N)) + c * N + d * K + e * A
          + step_overhead_seconds + sequence_overhead_seconds * (sequences in the step)

    seconds (the roofline law; floor_tokens 0 makes it the linear law up to ``b * N``).  `request_overhead_seconds`
    is the ingress of each request before it can be scheduled, paid once, in its entry pool.
    """

    a: float
    b: float
    floor_tokens: float = 0.0
    c: float
    d: float
    e: float
    step_overhead_seconds: float = 1.2e-4
    sequence_overhead_seconds: float = 5.5e-5
    request_overhead_seconds: float = 0.0156
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    kv_capacity_tokens: int
    kv_block_tokens: int = 16
    kv_bytes_per_token: int = 0

    def __post_init__(self) -> None:
        _at_least(0.0, a=self.a, b=self.b, floor_tokens=self.floor_tokens, c=self.c, d=self.d, e=self.e)
        _at_least(
            0.0,
            step_overhead_seconds=self.step_overhead_seconds,
            sequence_overhead_seconds=self.sequence_overhead_seconds,
            request_overhead_seconds=self.request_overhead_seconds,
            kv_bytes_per_token=self.kv_bytes_per_token,
        )
        _at_least(1, max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.max_num_batched_tokens)
        _at_least(1, kv_block_tokens=self.kv_block_tokens)
        _at_least(self.kv_block_tokens, kv_capacity_tokens=self.kv_capacity_tokens)
        if self.max_num_seqs > SEAT_MASK:
            raise ConfigError("max_num_seqs", f"{self.max_num_seqs!r} must be a whole number in [1, {SEAT_MASK}]")
        decode = self.a + self.b + self.c + self.step_overhead_seconds + self.sequence_overhead_seconds
        if decode <= 0.0:
            raise ConfigError("a", "0 must be above 0 unless b, c or a host overhead is, so that a step takes time")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolModel:
    """One pool of equal replicas.

    A pool of role ``prefill`` hands a request to `next_pool` after its first token, `prompt_tokens *
    kv_bytes_per_token / transfer_bytes_per_second` later (at once if that is None); the next pool starts with the KV.
    """

    name: str
    replica: ReplicaModel
    routing: Routing = "least_loaded"
    role: Role = "all"
    next_pool: str | None = None
    transfer_bytes_per_second: float | None = None

    def __post_init__(self) -> None:
        if self.routing not in ("round_robin", "least_loaded", "two_choices"):
            raise ConfigError("routing", f"{self.routing!r} must be round_robin, least_loaded or two_choices")
        if self.role not in ("all", "prefill", "decode"):
            raise ConfigError("role", f"{self.role!r} must be all, prefill or decode")
        if (self.role == "prefill") != (self.next_pool is not None):
            raise ConfigError("next_pool", f"{self.next_pool!r} must name a pool exactly when role is prefill")
        rate = self.transfer_bytes_per_second
        if rate is not None and not 0.0 < rate < math.inf:
            raise ConfigError("transfer_bytes_per_second", f"{rate!r} must be a finite number > 0, or None")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What arrives, one entry per request.

    `arrival_seconds` (f8) ascends, `prompt_tokens` and `output_tokens` (i8) are >= 1.  Optional: `cached_prompt_tokens`
    (leading prompt tokens whose prefill is skipped; KV still holds them), `tenant` (i4, >= 0), `pool` (entry pool, 0
    by default) and `follows` (i8): a request with ``follows[i] = k >= 0`` arrives ``arrival_seconds[i]`` seconds after
    request k ended, which makes a closed loop; such requests stand behind all others.

    Prefix cache by blocks: the prompt of request i begins with blocks of `prefix_block_tokens` tokens whose content is
    named by ``block_hashes[block_hash_offsets[i]:block_hash_offsets[i + 1]]`` (equal id = equal content and equal prefix,
    as in Mooncake traces; a last block that the prompt does not fill never hits).
    """

    arrival_seconds: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    cached_prompt_tokens: Ints | None = None
    tenant: NDArray[np.int32] | None = None
    pool: NDArray[np.int32] | None = None
    follows: Ints | None = None
    block_hash_offsets: Ints | None = None
    block_hashes: Ints | None = None
    prefix_block_tokens: int = 0

    def __post_init__(self) -> None:
        n = len(self.arrival_seconds)
        for name in ("prompt_tokens", "output_tokens", "cached_prompt_tokens", "tenant", "pool", "follows"):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                raise ConfigError(name, f"{len(column)} entries must be {n}, as many as arrival_seconds")
        arrival = self.arrival_seconds[: self.open_requests]
        if n and not (np.isfinite(self.arrival_seconds).all() and bool((self.arrival_seconds >= 0.0).all())):
            raise ConfigError("arrival_seconds", "every value must be a finite number >= 0")
        if bool((np.diff(arrival) < 0.0).any()):
            raise ConfigError("arrival_seconds", "values must ascend")
        self._within("prompt_tokens", 1, 2**30)
        self._within("output_tokens", 1, 2**30)
        self._within("cached_prompt_tokens", 0, 2**30)
        self._within("tenant", 0, 2**20)
        self._check_follows(n)
        self._check_blocks(n)

    def _within(self, name: str, low: int, high: int) -> None:
        column = getattr(self, name)
        if column is not None and len(column) and not (int(column.min()) >= low and int(column.max()) <= high):
            raise ConfigError(name, f"every value must be a whole number in [{low}, {high}]")

    def _check_follows(self, n: int) -> None:
        if self.follows is None:
            return
        led = self.follows[self.open_requests :]
        if len(led) and not (int(led.min()) >= 0 and int(led.max()) < n and len(np.unique(led)) == len(led)):
            raise ConfigError("follows", f"values behind the open requests must be distinct numbers in [0, {n - 1}]")

    def _check_blocks(self, n: int) -> None:
        offsets, hashes, block = self.block_hash_offsets, self.block_hashes, self.prefix_block_tokens
        if offsets is None and hashes is None and block == 0:
            return
        if block < 1:
            raise ConfigError(
                "prefix_block_tokens", f"{block!r} must be a whole number >= 1 when there are block hashes"
            )
        if offsets is None or hashes is None:
            raise ConfigError("block_hashes", "must be given together with block_hash_offsets")
        if len(offsets) != n + 1 or offsets[0] != 0 or offsets[-1] != len(hashes) or (np.diff(offsets) < 0).any():
            raise ConfigError("block_hash_offsets", f"must be {n + 1} numbers that ascend from 0 to {len(hashes)}")
        if self.cached_prompt_tokens is not None:
            raise ConfigError("cached_prompt_tokens", "must not be given together with block_hashes")

    def __len__(self) -> int:
        return len(self.arrival_seconds)

    @property
    def open_requests(self) -> int:
        """Requests that arrive by the clock; the rest follow others."""
        if self.follows is None:
            return len(self.arrival_seconds)
        led = np.flatnonzero(self.follows >= 0)
        return int(led[0]) if len(led) else len(self.arrival_seconds)


@dataclass(frozen=True, slots=True)
class Gauges:
    """One pool at an instant; the arrays have one entry per routable replica, in order of readiness.

    `running` counts decoding and prefilling sequences, `waiting` those in the scheduler's queue (not in ingress),
    `waiting_prompt_tokens` the tokens these still have to prefill, `kv_tokens` whole blocks, `outstanding` all requests
    routed to the replica that have not ended.  The `draining_*` arrays are the replicas that take no new requests.
    """

    ids: Ints
    running: Ints
    waiting: Ints
    kv_tokens: Ints
    waiting_prompt_tokens: Ints
    outstanding: Ints
    held_requests: int
    held_prompt_tokens: int
    draining_ids: Ints
    draining_running: Ints
    draining_outstanding: Ints


@dataclass(frozen=True, slots=True)
class HistogramCounts:
    """Cumulative histogram: `counts` per bucket (not summed up), one more than `bounds` for the rest up to infinity."""

    bounds: Floats
    counts: Ints
    sum: float


@dataclass(frozen=True, slots=True)
class Counters:
    """Cumulative since the start, of one pool; what a scraper could add up over its engines and its gateway.

    `itl` and `step_tokens` run with every engine step; in a pool that takes over requests `itl` starts at their
    admission, while `tpot` and `e2e` run from the first token and the arrival in the entry pool.
    """

    arrivals: int
    arrived_prompt_tokens: int
    prefilled_prompt_tokens: int
    cached_prompt_tokens: int
    computed_tokens: int
    output_tokens: int
    finished: int
    failed: int
    handed_over: int
    engine_steps: int
    preemptions: int
    busy_seconds: float
    decode_seconds: float
    ttft: HistogramCounts
    itl: HistogramCounts
    tpot: HistogramCounts
    e2e: HistogramCounts
    prompt_lengths: HistogramCounts
    output_lengths: HistogramCounts
    step_tokens: HistogramCounts
    arrivals_by_tenant: Ints


@dataclass(frozen=True, slots=True)
class Outcome:
    """Per request: times in seconds (inf if it did not happen), status (0 done, 1 failed, 2 unfinished), replica id.

    `replica` is the last that held it, -1 if none.  `arrival_seconds` is when it arrived (inf if a request it follows
    has not ended).
    """

    arrival_seconds: Floats
    first_token_seconds: Floats
    finish_seconds: Floats
    status: NDArray[np.int8]
    replica: NDArray[np.int32]
    preemptions: NDArray[np.int32]
    output_tokens: Ints

    @property
    def ttft_seconds(self) -> Floats:
        """First token - arrival; inf without a first token."""
        with np.errstate(invalid="ignore"):
            wait: Any = self.first_token_seconds - self.arrival_seconds
        return np.where(np.isfinite(self.first_token_seconds), wait, np.inf)

    @property
    def mean_itl_seconds(self) -> Floats:
        """(finish - first token) / (output tokens - 1); NaN for one output token, inf if unfinished."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean: Any = (self.finish_seconds - self.first_token_seconds) / (self.output_tokens - 1)
        mean = np.where(np.isfinite(self.finish_seconds), mean, np.inf)
        return np.where(self.output_tokens > 1, mean, np.nan)
