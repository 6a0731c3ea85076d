"""Who is next and who gets what: the tournament of due times, the heap of transfers, doors, routing and queues."""

# The fields of a record have no type that mypy could see.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math

from load_tests.draws import uniform_at
from load_tests.kernel_kv import boundary_after, fits
from load_tests.kernel_state import (
    LEAST_LOADED,
    MOVED,
    ROUND_ROBIN,
    ROUTABLE,
    Floats,
    Ints,
    Records,
    compiled,
)


@compiled
def reschedule(due: Floats, winners: Ints, slot: int, at: float) -> None:
    """Set the next event of `slot` and replay its matches: the earlier wins, the lower slot at a tie."""
    due[slot] = at
    node = (slot + due.size) >> 1
    while node >= 1:
        left, right = winners[2 * node], winners[2 * node + 1]
        winners[node] = right if due[right] < due[left] else left
        node >>= 1


@compiled
def push_transfer(world: Records, transfers: Records, at: float, request: int) -> None:
    """Put (at, request) on the heap of requests that are under way."""
    i = world[0].transfers
    world[0].transfers = i + 1
    while i > 0:
        above = (i - 1) >> 1
        entry = transfers[above]
        if entry.at < at or (entry.at == at and entry.request < request):
            break
        transfers[i].at, transfers[i].request = entry.at, entry.request
        i = above
    transfers[i].at, transfers[i].request = at, request


@compiled
def pop_transfer(world: Records, transfers: Records) -> int:
    """Take the request that is due first off the heap, at a tie the lower request."""
    first = transfers[0].request
    n = world[0].transfers - 1
    world[0].transfers = n
    at, request = transfers[n].at, transfers[n].request
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n:
            a, b = transfers[child], transfers[child + 1]
            if b.at < a.at or (b.at == a.at and b.request < a.request):
                child += 1
        entry = transfers[child]
        if at < entry.at or (at == entry.at and request < entry.request):
            break
        transfers[i].at, transfers[i].request = entry.at, entry.request
        i = child
    transfers[i].at, transfers[i].request = at, request
    return first


@compiled
def choose(pools: Records, routable: Ints, pool: int) -> int:
    """Position in the pool's routable list that takes the next request."""
    m = pools[pool]
    n = m.ready
    if m.routing == ROUND_ROBIN:
        position = m.turn
        m.turn = position + 1 if position + 1 < n else 0
        return position
    if m.routing == LEAST_LOADED:
        best = 0
        for i in range(1, n):
            if routable[pool, 1, i] < routable[pool, 1, best]:
                best = i
        return best
    first = min(int(uniform_at(m.routing_key, 2 * m.draws) * n), n - 1)
    m_draw = 2 * m.draws + 1
    m.draws += 1
    if n == 1:
        return first
    second = min(int(uniform_at(m.routing_key, m_draw) * (n - 1)), n - 2)
    if second >= first:
        second += 1
    return second if routable[pool, 1, second] < routable[pool, 1, first] else first


@compiled
def change_outstanding(replicas: Records, routable: Ints, slot: int, by: int) -> None:
    """Count requests that came to a replica or ended there; routing sees the same number."""
    r = replicas[slot]
    r.outstanding += by
    if r.life == ROUTABLE:
        routable[r.pool, 1, r.position] += by


@compiled
def prefill_tokens(q: Records) -> int:
    """Tokens that a queued request still has to prefill."""
    if q.status == MOVED:
        return 0
    context = q.prompt + q.generated
    return context - min(q.cached, context - 1)


@compiled
def enqueue(
    pools: Records, replicas: Records, requests: Records, residues: Ints, due: Floats, winners: Ints, q: int, t: float
) -> None:
    """Put request `q` at the tail of its replica's queue at `t`; wake the replica, or cut its jump if `q` can start."""
    request = requests[q]
    slot = request.slot
    r = replicas[slot]
    was_empty = r.queue_head < 0
    request.next = -1
    if was_empty:
        r.queue_head = q
    else:
        requests[r.queue_tail].next = q
    r.queue_tail = q
    r.waiting += 1
    r.waiting_tokens += prefill_tokens(request)
    if r.steps == 0:
        if due[slot] == math.inf:
            reschedule(due, winners, slot, t)
        return
    m = pools[r.pool]
    if not was_empty or r.steps == 1 or r.decoding + r.prefilling >= m.seats or r.decoding >= m.batch_tokens:
        return
    j = boundary_after(t - r.started, r.step_seconds, r.growth_seconds)
    if j < r.steps and fits(m, r, residues, slot, request, j):
        r.steps = j
        reschedule(due, winners, slot, r.started + j * r.step_seconds + 0.5 * r.growth_seconds * (j * (j - 1.0)))


@compiled
def route(
    pools: Records,
    replicas: Records,
    requests: Records,
    residues: Ints,
    routable: Ints,
    due: Floats,
    winners: Ints,
    q: int,
    t: float,
) -> None:
    """Give request `q`, which stands at its pool's door at `t`, to a replica; hold it if none is ready."""
    request = requests[q]
    pool = request.pool
    m = pools[pool]
    request.next = -1
    if m.ready == 0:
        if m.door_head < 0:
            m.door_head = q
        else:
            requests[m.door_tail].next = q
        m.door_tail = q
        m.held += 1
        m.held_tokens += request.prompt
        return
    slot = routable[pool, 0, choose(pools, routable, pool)]
    request.slot = slot
    request.replica = replicas[slot].id
    change_outstanding(replicas, routable, slot, 1)
    if m.ingress_seconds <= 0.0 or request.generated > 0:
        enqueue(pools, replicas, requests, residues, due, winners, q, t)
        return
    request.resume = t + m.ingress_seconds
    if m.ingress_head < 0:
        m.ingress_head = q
    else:
        requests[m.ingress_tail].next = q
    m.ingress_tail = q
