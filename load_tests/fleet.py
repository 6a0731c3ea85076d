"""The simulated fleet: pools of replicas that serve requests by continuous batching, advanced to any instant.

    fleet = Fleet([PoolModel(name="chat", replica=model)], requests)
    replica = fleet.add(0)
    fleet.advance(15.0)
    fleet.gauges(0), fleet.counters(0)
    fleet.advance(math.inf)
    fleet.outcome()

Exact to the token: the rules are in `kernel_step`, the event loop in `kernel`, the record layouts in `kernel_state`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from autoscaler.errors import ConfigError
from load_tests import kernel
from load_tests import kernel_state as state
from load_tests.draws import key
from load_tests.kernel_build import column, followers_of, pool_records, prefix_entries, request_records, tournament
from load_tests.kernel_prefix import BUCKET, PREFIX_PLANES
from load_tests.kernel_route import push_transfer
from load_tests.kernel_state import Plant, records
from load_tests.kernel_views import (
    Counters,
    Gauges,
    HistogramCounts,
    Outcome,
    PoolModel,
    ReplicaModel,
    Requests,
    Role,
    Routing,
)

__all__ = [
    "Counters",
    "Fleet",
    "Gauges",
    "HistogramCounts",
    "Outcome",
    "PoolModel",
    "ReplicaModel",
    "Requests",
    "Role",
    "Routing",
    "warm_up",
]

_COUNTS = (
    "arrivals",
    "arrived_prompt_tokens",
    "prefilled_prompt_tokens",
    "cached_prompt_tokens",
    "computed_tokens",
    "output_tokens",
    "finished",
    "failed",
    "handed_over",
    "engine_steps",
    "preemptions",
)
_HISTOGRAMS = (
    ("ttft", state.TTFT_AT, state.TTFT_BOUNDS, "ttft_sum"),
    ("itl", state.ITL_AT, state.ITL_BOUNDS, "itl_sum"),
    ("tpot", state.TPOT_AT, state.ITL_BOUNDS, "tpot_sum"),
    ("e2e", state.E2E_AT, state.E2E_BOUNDS, "e2e_sum"),
    ("prompt_lengths", state.PROMPT_AT, state.LENGTH_BOUNDS, "prompt_sum"),
    ("output_lengths", state.OUTPUT_AT, state.LENGTH_BOUNDS, "output_sum"),
    ("step_tokens", state.STEP_AT, state.STEP_BOUNDS, "step_tokens_sum"),
)
_NO_LINK = (
    "queue_head",
    "queue_tail",
    "complete_head",
    "complete_tail",
    "partial",
    "oldest_block",
    "newest_block",
    "free_block",
)
_FIRST_SLOTS = 8


class Fleet:
    """Pools of simulated replicas and the requests that they serve.

    `seed` decides two-choices routing and noise; `noise_sigma` > 0 scales step times by a lognormal factor of mean 1
    per replica and 10-s window.  `every_step` runs each engine step as an event: the same results, slowly.

    Raises ConfigError for a pool or request column that makes no sense.
    """

    def __init__(
        self,
        pools: Sequence[PoolModel],
        requests: Requests,
        seed: int = 0,
        every_step: bool = False,
        noise_sigma: float = 0.0,
    ) -> None:
        if not 0.0 <= noise_sigma < math.inf:
            raise ConfigError("noise_sigma", f"{noise_sigma!r} must be a finite number >= 0")
        self._models = tuple(pools)
        self._output = np.ascontiguousarray(requests.output_tokens, dtype=np.int64)
        self._slots: dict[int, int] = {}  # replica id -> slot, while it lives
        self._births = 0
        tenants = np.zeros(0, dtype=np.int32)
        if requests.tenant is not None:
            tenants = np.array(requests.tenant, dtype=np.int32)
        world = records(1, state.WORLD)
        world["open_requests"] = requests.open_requests
        world["noise_sigma"] = noise_sigma
        world["noise_key"] = np.uint64(key(seed, "step noise"))
        world["every_step"] = every_step
        moving = requests.follows is not None or any(model.next_pool is not None for model in self._models)
        self._plant = Plant(
            world=world,
            pools=pool_records(self._models, seed, requests.prefix_block_tokens),
            replicas=records(0, state.REPLICA),
            requests=request_records(requests, len(self._models)),
            seats=np.zeros((0, state.SEAT_PLANES, 0), dtype=np.int64),
            residues=np.zeros((0, 0), dtype=np.int64),
            routable=np.zeros((len(self._models), 2, 0), dtype=np.int64),
            due=np.zeros(0),
            winners=np.zeros(0, dtype=np.int64),
            transfers=records(len(requests) + 1 if moving else 1, state.TRANSFER_ENTRY),
            departures=np.full(_FIRST_SLOTS, np.nan),
            prefix=np.zeros((0, PREFIX_PLANES, prefix_entries(self._models, requests)), dtype=np.int64),
            offsets=column(requests.block_hash_offsets),
            hashes=column(requests.block_hashes),
            followers=followers_of(requests),
            tenants=tenants,
            tenant_arrivals=np.zeros((len(self._models), int(tenants.max(initial=-1)) + 1), dtype=np.int64),
            histograms=np.zeros((len(self._models), state.HISTOGRAM_BUCKETS), dtype=np.int64),
        )
        self._counters = records(1, state.POOL)
        self._grow(_FIRST_SLOTS)

    # -- time ---------------------------------------------------------------------------------------------------

    @property
    def now_seconds(self) -> float:
        """The instant up to which everything has happened."""
        return float(self._plant.world[0]["now"])

    def advance(self, until_seconds: float) -> None:
        """Let everything happen up to and including `until_seconds`; ``math.inf`` runs until nothing is left to do."""
        if not until_seconds >= self.now_seconds:
            raise ValueError(f"until_seconds {until_seconds!r} must be a number >= now_seconds {self.now_seconds!r}")
        kernel.advance(*self._plant, float(until_seconds))

    # -- replicas -----------------------------------------------------------------------------------------------

    def add(self, pool: int, capacity_factor: float = 1.0) -> int:
        """A replica that is ready now; returns its id.  With `capacity_factor` 0.7 its steps take 1/0.7 as long."""
        _check_factor(capacity_factor)
        if not 0 <= pool < len(self._models):
            raise ValueError(f"pool {pool!r} must be in [0, {len(self._models) - 1}]")
        free = np.flatnonzero(self._plant.replicas["life"] == state.FREE)
        if not len(free):
            free = np.array([len(self._plant.replicas)])
            self._grow(2 * len(self._plant.replicas))
        slot, replica = int(free[0]), self._births
        self._births += 1
        if replica >= len(self._plant.departures):
            longer = np.full(2 * replica, np.nan)
            longer[:replica] = self._plant.departures[:replica]
            self._plant = self._plant._replace(departures=longer)
        p = self._plant
        row = np.zeros(1, dtype=state.REPLICA)
        for name in _NO_LINK:
            row[name] = -1
        row["id"], row["pool"], row["factor"] = replica, pool, capacity_factor
        p.replicas[slot] = row[0]
        p.seats[slot, state.OCCUPANT] = -1
        p.seats[slot, state.STAMP] = 0
        p.residues[slot] = 0
        p.prefix[slot, BUCKET] = 0
        self._slots[replica] = slot
        kernel.join(p.pools, p.replicas, p.requests, p.residues, p.routable, p.due, p.winners, slot, self.now_seconds)
        return replica

    def drain(self, replica_id: int) -> None:
        """No new requests for this replica; it is gone when it is empty.  Nothing happens if it is gone already."""
        slot = self._slot(replica_id)
        if slot is not None:
            p = self._plant
            kernel.drain_replica(
                p.pools, p.replicas, p.routable, p.due, p.winners, p.departures, slot, self.now_seconds
            )

    def kill(self, replica_id: int) -> None:
        """The replica fails now, and with it every request that it holds.  Nothing happens if it is gone already."""
        slot = self._slot(replica_id)
        if slot is not None:
            p = self._plant
            kernel.kill_replica(
                p.world,
                p.pools,
                p.replicas,
                p.requests,
                p.seats,
                p.routable,
                p.due,
                p.winners,
                p.transfers,
                p.departures,
                p.followers,
                p.histograms,
                slot,
                self.now_seconds,
            )

    def gone_at(self, replica_id: int) -> float | None:
        """Instant at which the replica was gone; None while it lives."""
        self._check_id(replica_id)
        at = float(self._plant.departures[replica_id])
        return None if math.isnan(at) else at

    def set_capacity_factor(self, replica_id: int, factor: float) -> None:
        """Steps that start from now on take 1 / `factor` as long.  Nothing happens if the replica is gone."""
        _check_factor(factor)
        slot = self._slot(replica_id)
        if slot is not None:
            p = self._plant
            kernel.set_factor(p.replicas, p.due, p.winners, slot, self.now_seconds, float(factor))

    def change_law(self, pool: int, step_factor: float, token_factor: float, context_factor: float) -> None:
        """Steps of a pool that start from now on have other terms: per step, per token in it, per token of context."""
        p = self._plant
        for slot in np.flatnonzero((p.replicas["life"] != state.FREE) & (p.replicas["pool"] == pool)):
            kernel.set_factor(
                p.replicas, p.due, p.winners, int(slot), self.now_seconds, float(p.replicas[slot]["factor"])
            )
        law = p.pools[pool]
        law["a"] *= step_factor
        for name, factor in (("b", token_factor), ("c", token_factor), ("d", context_factor), ("e", context_factor)):
            law[name] *= factor

    # -- requests -----------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Requests that follow others do so no more by themselves: `release` says when each arrives."""
        self._plant.followers[:] = -1

    def release(self, request: int, like: int, at_seconds: float) -> None:
        """A held request arrives at `at_seconds`, which is not past, with the lengths of request `like`."""
        if at_seconds < self.now_seconds:
            raise ValueError(f"at_seconds {at_seconds!r} must be >= now_seconds {self.now_seconds!r}")
        p = self._plant
        row, model = p.requests[request], p.requests[like]
        row["arrival"] = at_seconds
        for name in ("prompt", "output", "cached"):
            row[name] = model[name]
        self._output[request] = self._output[like]
        push = getattr(push_transfer, "py_func", push_transfer)  # once in a while, so not worth compiling
        push(p.world.view(np.recarray), p.transfers.view(np.recarray), at_seconds, request)

    def first_tokens(self, requests: Sequence[int]) -> state.Floats:
        """Instants of the first tokens of some requests; inf where none has come."""
        first: state.Floats = self._plant.requests["first"][np.asarray(requests, dtype=np.int64)]
        return first

    def finishes(self, requests: Sequence[int] | state.Ints) -> state.Floats:
        """Instants at which some requests ended; inf where they have not."""
        finish: state.Floats = self._plant.requests["finish"][np.asarray(requests, dtype=np.int64)]
        return finish

    def _check_id(self, replica_id: int) -> None:
        if not 0 <= replica_id < self._births:
            raise ValueError(f"replica_id {replica_id!r} must be the id of a replica that was added")

    def _slot(self, replica_id: int) -> int | None:
        """Slot of a living replica."""
        self._check_id(replica_id)
        return self._slots[replica_id] if self.gone_at(replica_id) is None else None

    def _grow(self, slots: int) -> None:
        """Room for `slots` replicas (a power of two); what is there stays."""
        p, pools = self._plant, len(self._models)
        seats = int(p.pools["seats"].max(initial=1))
        blocks = int(p.pools["block"].max(initial=1))
        old = len(p.replicas)
        replicas = records(slots, state.REPLICA)
        replicas[:old] = p.replicas
        table = np.zeros((slots, state.SEAT_PLANES, seats), dtype=np.int64)
        residues = np.zeros((slots, blocks), dtype=np.int64)
        routable = np.zeros((pools, 2, slots), dtype=np.int64)
        due = np.full(slots, np.inf)
        prefix = np.zeros((slots, *p.prefix.shape[1:]), dtype=np.int64)
        if old:
            table[:old], residues[:old], routable[:, :, :old], due[:old] = p.seats, p.residues, p.routable, p.due
            prefix[:old] = p.prefix
        self._plant = p._replace(
            replicas=replicas,
            seats=table,
            residues=residues,
            routable=routable,
            due=due,
            winners=tournament(due),
            prefix=prefix,
        )
        self._rows = np.zeros((slots, 6), dtype=np.int64)

    # -- what is seen -------------------------------------------------------------------------------------------

    def gauges(self, pool: int) -> Gauges:
        """State of one pool now."""
        p = self._plant
        ready, draining = kernel.gauges(
            p.pools, p.replicas, p.residues, p.routable, p.due, self.now_seconds, pool, self._rows
        )
        columns = self._rows[: ready + draining].T.copy()
        door = p.pools[pool]
        return Gauges(
            ids=columns[0, :ready],
            running=columns[1, :ready],
            waiting=columns[2, :ready],
            kv_tokens=columns[3, :ready],
            waiting_prompt_tokens=columns[4, :ready],
            outstanding=columns[5, :ready],
            held_requests=int(door["held"]),
            held_prompt_tokens=int(door["held_tokens"]),
            draining_ids=columns[0, ready:],
            draining_running=columns[1, ready:],
            draining_outstanding=columns[5, ready:],
        )

    def counters(self, pool: int) -> Counters:
        """Cumulative counters and histograms of one pool, up to now."""
        p = self._plant
        totals, counts = self._counters, np.empty((1, state.HISTOGRAM_BUCKETS), dtype=np.int64)
        kernel.counters(p.pools, p.replicas, p.due, p.histograms, self.now_seconds, pool, totals, counts)
        total, row = totals[0], counts[0]
        values: dict[str, Any] = {name: int(total[name]) for name in _COUNTS}
        for name, at, bounds, sums in _HISTOGRAMS:
            values[name] = HistogramCounts(bounds, row[at : at + len(bounds) + 1], float(total[sums]))
        return Counters(
            busy_seconds=float(total["busy_seconds"]),
            decode_seconds=float(total["decode_seconds"]),
            arrivals_by_tenant=p.tenant_arrivals[pool].copy(),
            **values,
        )

    def outcome(self) -> Outcome:
        """What became of each request so far."""
        requests: Any = np.asarray(self._plant.requests)
        status = requests["status"].copy()
        status[status == state.MOVED] = state.UNFINISHED
        return Outcome(
            arrival_seconds=requests["arrival"].copy(),
            first_token_seconds=requests["first"].copy(),
            finish_seconds=requests["finish"].copy(),
            status=status,
            replica=requests["replica"].copy(),
            preemptions=requests["preemptions"].astype(np.int32),
            output_tokens=self._output,
        )


def warm_up() -> float:
    """Compile the kernel, or load it from numba's cache; returns the seconds that took."""
    started = time.perf_counter()
    law = ReplicaModel(a=0.01, b=0.0, c=0.0, d=0.0, e=0.0, kv_capacity_tokens=1000)
    one = np.ones(1, dtype=np.int64)
    requests = Requests(arrival_seconds=np.zeros(1), prompt_tokens=one, output_tokens=one)
    fleet = Fleet([PoolModel(name="warm-up", replica=law)], requests)
    first, second = fleet.add(0), fleet.add(0)
    fleet.advance(1.0)
    fleet.gauges(0)
    fleet.counters(0)
    fleet.set_capacity_factor(first, 0.5)
    fleet.drain(first)
    fleet.kill(second)
    return time.perf_counter() - started


def _check_factor(factor: float) -> None:
    if not 0.0 < factor < math.inf:
        raise ValueError(f"capacity_factor {factor!r} must be a finite number > 0")
