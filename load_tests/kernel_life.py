"""Replicas come and go: doors open, replicas drain, fail or change speed; and what each shows at an instant."""

from __future__ import annotations

from load_tests.kernel_kv import boundary_after, decode_kv, jump_seconds, steps_done
from load_tests.kernel_leave import leave_fleet, start_follower
from load_tests.kernel_observe import observe_steps
from load_tests.kernel_route import reschedule, route
from load_tests.kernel_state import (
    BOUNDARY_SLACK_STEPS,
    DRAINING,
    FAILED,
    FREE,
    OCCUPANT,
    ROUTABLE,
    Floats,
    Ints,
    Records,
    compiled,
)


@compiled
def join_fleet(
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
    """A prepared replica is ready at `t`: it becomes routable, and what waits at the door is routed in FIFO order."""
    r = replicas[slot]
    m = pools[r.pool]
    r.life = ROUTABLE
    r.position = m.ready
    routable[r.pool, 0, m.ready] = slot
    routable[r.pool, 1, m.ready] = 0
    m.ready += 1
    while m.door_head >= 0:
        q = m.door_head
        m.door_head = requests[q].next
        m.held -= 1
        m.held_tokens -= requests[q].prompt
        route(pools, replicas, requests, residues, routable, due, winners, q, t)


@compiled
def leave_routing(pools: Records, replicas: Records, routable: Ints, slot: int) -> None:
    """Take a replica out of the routable list; the order of the others and the turn of round robin stay."""
    r = replicas[slot]
    m = pools[r.pool]
    for i in range(r.position, m.ready - 1):
        routable[r.pool, 0, i] = routable[r.pool, 0, i + 1]
        routable[r.pool, 1, i] = routable[r.pool, 1, i + 1]
        replicas[routable[r.pool, 0, i]].position = i
    m.ready -= 1
    if m.turn > r.position:
        m.turn -= 1
    if m.turn >= m.ready:
        m.turn = 0


@compiled
def drain(
    pools: Records,
    replicas: Records,
    routable: Ints,
    due: Floats,
    winners: Ints,
    departures: Floats,
    slot: int,
    t: float,
) -> None:
    """No new requests from `t` on; gone once empty, which may be now."""
    r = replicas[slot]
    if r.life == ROUTABLE:
        leave_routing(pools, replicas, routable, slot)
        r.life = DRAINING
    if r.outstanding == 0:
        leave_fleet(replicas, due, winners, departures, slot, t)


@compiled
def fail(
    world: Records,
    pools: Records,
    requests: Records,
    transfers: Records,
    followers: Ints,
    q: int,
    t: float,
) -> None:
    """Request `q` fails at `t`."""
    requests[q].status = FAILED
    pools[requests[q].pool].failed += 1
    start_follower(world, transfers, requests, followers, q, t)


@compiled
def kill(
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
    """The replica is gone at `t`; steps it completed count, everything it holds fails."""
    r = replicas[slot]
    m = pools[r.pool]
    if r.life == ROUTABLE:
        leave_routing(pools, replicas, routable, slot)
    done = steps_done(r, t, due[slot])
    if done > 0:
        observe_steps(r, done, m, histograms, r.pool)
    for seat in range(r.high_seats):
        if seats[slot, OCCUPANT, seat] >= 0:
            fail(world, pools, requests, transfers, followers, seats[slot, OCCUPANT, seat], t)
    q = r.queue_head
    while q >= 0:
        fail(world, pools, requests, transfers, followers, q, t)
        q = requests[q].next
    q = m.ingress_head
    while q >= 0:
        if requests[q].slot == slot and requests[q].replica == r.id:
            fail(world, pools, requests, transfers, followers, q, t)
        q = requests[q].next
    r.outstanding = 0
    leave_fleet(replicas, due, winners, departures, slot, t)


@compiled
def change_factor(replicas: Records, due: Floats, winners: Ints, slot: int, t: float, factor: float) -> None:
    """Steps that start after `t` take 1 / `factor` as long; a jump that runs is cut at its next boundary."""
    r = replicas[slot]
    r.factor = factor
    if r.steps > 1:
        j = boundary_after(t - r.started, r.step_seconds, r.growth_seconds)
        if jump_seconds(j, r.step_seconds, r.growth_seconds) <= t - r.started + BOUNDARY_SLACK_STEPS * r.step_seconds:
            j += 1  # that boundary is over, a step with the old factor has begun
        if j < r.steps:
            r.steps = j
            reschedule(due, winners, slot, r.started + jump_seconds(j, r.step_seconds, r.growth_seconds))


@compiled
def show_replica(
    pools: Records, replicas: Records, residues: Ints, due: Floats, slot: int, now: float, rows: Ints, at: int
) -> None:
    """Fill row `at` with id, running, waiting, KV tokens, waiting prompt tokens and outstanding requests of a replica."""
    r = replicas[slot]
    rows[at, 0] = r.id
    rows[at, 1] = r.decoding + r.prefilling
    rows[at, 2] = r.waiting
    rows[at, 3] = decode_kv(pools[r.pool], r, residues, slot, steps_done(r, now, due[slot])) + r.kv_prefill
    rows[at, 4] = r.waiting_tokens
    rows[at, 5] = r.outstanding


@compiled
def show_pool(
    pools: Records,
    replicas: Records,
    residues: Ints,
    routable: Ints,
    due: Floats,
    now: float,
    pool: int,
    rows: Ints,
) -> tuple[int, int]:
    """Fill `rows` with the routable replicas of `pool`, then the draining ones; returns how many of each."""
    ready = pools[pool].ready
    for i in range(ready):
        show_replica(pools, replicas, residues, due, routable[pool, 0, i], now, rows, i)
    total = ready
    for slot in range(replicas.size):
        if replicas[slot].life == DRAINING and replicas[slot].pool == pool:
            show_replica(pools, replicas, residues, due, slot, now, rows, total)
            total += 1
    return ready, total - ready


@compiled
def count_pool(
    pools: Records,
    replicas: Records,
    due: Floats,
    histograms: Ints,
    now: float,
    pool: int,
    counters: Records,
    counts: Ints,
) -> None:
    """Copy the counters of `pool` to `counters` and `counts`, steps of running jumps up to `now` included."""
    counters[0] = pools[pool]
    for i in range(counts.shape[1]):
        counts[0, i] = histograms[pool, i]
    for slot in range(replicas.size):
        r = replicas[slot]
        if r.life != FREE and r.pool == pool and r.steps > 1:
            done = steps_done(r, now, due[slot])
            if done > 0:
                observe_steps(r, done, counters[0], counts, 0)
