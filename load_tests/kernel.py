"""The plant's event loop: arrivals, ends of ingress, transfers and step ends in one total order (time, kind, id).

`advance` never looks at where a call ends, so a run does not depend on how it was cut into calls.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from load_tests.kernel_life import change_factor, count_pool, drain, join_fleet, kill, show_pool
from load_tests.kernel_route import enqueue, pop_transfer, route
from load_tests.kernel_state import (
    ARRIVAL,
    FAILED,
    INGRESS,
    SOURCE,
    STEP,
    TRANSFER,
    Floats,
    Ints,
    Records,
    cached,
    compiled,
)
from load_tests.kernel_step import end_step


@compiled
def arrive(pools: Records, requests: Records, tenants: NDArray[Any], tenant_arrivals: Ints, q: int) -> None:
    """Count request `q` at the door of its pool."""
    request = requests[q]
    m = pools[request.pool]
    m.arrivals += 1
    m.arrived_prompt_tokens += request.prompt
    if tenants.size > 0:
        tenant_arrivals[request.pool, tenants[q]] += 1


@compiled
def pop_ingress(pools: Records, requests: Records, pool: int) -> int:
    """Take the request whose ingress ends first off the pool's list."""
    q: int = pools[pool].ingress_head
    pools[pool].ingress_head = requests[q].next
    return q


@compiled
def run(
    world: Records,
    pools: Records,
    replicas: Records,
    requests: Records,
    seats: Ints,
    residues: Ints,
    routable: Ints,
    due: Floats,
    winners: Ints,
    transfers: Records,
    departures: Floats,
    prefix: Ints,
    offsets: Ints,
    hashes: Ints,
    followers: Ints,
    tenants: NDArray[Any],
    tenant_arrivals: Ints,
    histograms: Ints,
    until: float,
) -> None:
    """Process every event with time <= `until`, in the order (time, kind, id)."""
    w = world[0]
    while True:
        slot = winners[1]
        at, kind, which = due[slot], STEP, slot
        if w.transfers > 0 and transfers[0].at <= at:
            at, kind, which = transfers[0].at, TRANSFER, 0
        for pool in range(pools.size - 1, -1, -1):
            head = pools[pool].ingress_head
            if head >= 0 and requests[head].resume <= at:
                at, kind, which = requests[head].resume, INGRESS, pool
        if w.next_arrival < w.open_requests and requests[w.next_arrival].arrival <= at:
            at, kind, which = requests[w.next_arrival].arrival, ARRIVAL, w.next_arrival
        if at > until or at == math.inf:
            break
        w.now = at
        if kind == STEP:
            end_step(
                world,
                pools,
                replicas,
                requests,
                seats,
                residues,
                routable,
                due,
                winners,
                transfers,
                departures,
                prefix,
                offsets,
                hashes,
                followers,
                histograms,
                which,
                at,
            )
            continue
        if kind == INGRESS:
            q = pop_ingress(pools, requests, which)
            if requests[q].status != FAILED:
                enqueue(pools, replicas, requests, residues, due, winners, q, at)
            continue
        if kind == TRANSFER:
            which = pop_transfer(world, transfers)
        else:
            w.next_arrival += 1
        arrive(pools, requests, tenants, tenant_arrivals, which)
        route(pools, replicas, requests, residues, routable, due, winners, which, at)
    if until != math.inf:
        w.now = until


def _entries(source: int) -> tuple[Any, ...]:
    """The compiled entry points.  Each closes over `source`, which makes it part of numba's cache key."""

    @cached
    def advance(
        world: Records,
        pools: Records,
        replicas: Records,
        requests: Records,
        seats: Ints,
        residues: Ints,
        routable: Ints,
        due: Floats,
        winners: Ints,
        transfers: Records,
        departures: Floats,
        prefix: Ints,
        offsets: Ints,
        hashes: Ints,
        followers: Ints,
        tenants: NDArray[Any],
        tenant_arrivals: Ints,
        histograms: Ints,
        until: float,
    ) -> None:
        if source != 0:
            run(
                world,
                pools,
                replicas,
                requests,
                seats,
                residues,
                routable,
                due,
                winners,
                transfers,
                departures,
                prefix,
                offsets,
                hashes,
                followers,
                tenants,
                tenant_arrivals,
                histograms,
                until,
            )

    @cached
    def join(
        pools: Records,
        replicas: Records,
        requests: Records,
        residues: Ints,
        routable: Ints,
        due: Floats,
        winners: Ints,
        slot: int,
        t: float,
    ) -> None:
        if source != 0:
            join_fleet(pools, replicas, requests, residues, routable, due, winners, slot, t)

    @cached
    def drain_replica(
        pools: Records,
        replicas: Records,
        routable: Ints,
        due: Floats,
        winners: Ints,
        departures: Floats,
        slot: int,
        t: float,
    ) -> None:
        if source != 0:
            drain(pools, replicas, routable, due, winners, departures, slot, t)

    @cached
    def kill_replica(
        world: Records,
        pools: Records,
        replicas: Records,
        requests: Records,
        seats: Ints,
        routable: Ints,
        due: Floats,
        winners: Ints,
        transfers: Records,
        departures: Floats,
        followers: Ints,
        histograms: Ints,
        slot: int,
        t: float,
    ) -> None:
        if source != 0:
            kill(
                world,
                pools,
                replicas,
                requests,
                seats,
                routable,
                due,
                winners,
                transfers,
                departures,
                followers,
                histograms,
                slot,
                t,
            )

    @cached
    def set_factor(replicas: Records, due: Floats, winners: Ints, slot: int, t: float, factor: float) -> None:
        if source != 0:
            change_factor(replicas, due, winners, slot, t, factor)

    @cached
    def gauges(
        pools: Records,
        replicas: Records,
        residues: Ints,
        routable: Ints,
        due: Floats,
        now: float,
        pool: int,
        rows: Ints,
    ) -> tuple[int, int]:
        if source != 0:
            return show_pool(pools, replicas, residues, routable, due, now, pool, rows)
        return 0, 0

    @cached
    def counters(
        pools: Records,
        replicas: Records,
        due: Floats,
        histograms: Ints,
        now: float,
        pool: int,
        totals: Records,
        counts: Ints,
    ) -> None:
        if source != 0:
            count_pool(pools, replicas, due, histograms, now, pool, totals, counts)

    return advance, join, drain_replica, kill_replica, set_factor, gauges, counters


advance, join, drain_replica, kill_replica, set_factor, gauges, counters = _entries(SOURCE)
