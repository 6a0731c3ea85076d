"""Requests that end, move on or lose their seat at a step boundary."""

# The fields of a record have no type that mypy could see.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math

from load_tests.kernel_kv import whole_blocks
from load_tests.kernel_observe import observe_finish, observe_first, observe_gap
from load_tests.kernel_prefix import hold_rest, release_blocks
from load_tests.kernel_route import change_outstanding, prefill_tokens, push_transfer, reschedule
from load_tests.kernel_seats import (
    join_decode,
    latest_admitted,
    leave_decode,
    leave_seat,
    remove_decoding,
)
from load_tests.kernel_state import (
    CHAIN,
    DONE,
    FREE,
    MOVED,
    OCCUPANT,
    UNFINISHED,
    Floats,
    Ints,
    Records,
    compiled,
)


@compiled
def start_follower(world: Records, transfers: Records, requests: Records, followers: Ints, q: int, t: float) -> None:
    """In a closed loop the end of request `q` at `t` releases the request that follows it."""
    if followers.size > 0 and followers[q] >= 0:
        after = followers[q]
        requests[after].arrival += t  # held the think time until now
        push_transfer(world, transfers, requests[after].arrival, after)


@compiled
def finish(
    world: Records,
    pools: Records,
    replicas: Records,
    requests: Records,
    routable: Ints,
    transfers: Records,
    followers: Ints,
    histograms: Ints,
    slot: int,
    q: int,
    t: float,
) -> None:
    """Request `q` made its last token at `t`."""
    request = requests[q]
    request.finish = t
    request.status = DONE
    observe_finish(pools[request.pool], histograms, request.pool, request)
    change_outstanding(replicas, routable, slot, -1)
    start_follower(world, transfers, requests, followers, q, t)


@compiled
def complete_prefills(
    world: Records,
    pools: Records,
    replicas: Records,
    requests: Records,
    seats: Ints,
    residues: Ints,
    routable: Ints,
    transfers: Records,
    prefix: Ints,
    offsets: Ints,
    hashes: Ints,
    followers: Ints,
    histograms: Ints,
    slot: int,
    t: float,
) -> None:
    """Prefills that completed give a token; each then ends, moves to the next pool, or decodes."""
    r = replicas[slot]
    m = pools[r.pool]
    seat = r.complete_head
    r.complete_head = -1
    while seat >= 0:
        following = seats[slot, CHAIN, seat]
        q = seats[slot, OCCUPANT, seat]
        request = requests[q]
        context = request.prompt + request.generated
        r.kv_prefill -= whole_blocks(context, m.block)
        r.prefilling -= 1
        m.output_tokens += 1
        request.generated += 1
        if request.first == math.inf:
            request.first = t
            observe_first(m, histograms, r.pool, request)
        else:
            observe_gap(m, histograms, r.pool, t - request.resume)
        if m.prefix_block > 0:
            hold_rest(m, r, requests, prefix, offsets, hashes, slot, q)
            if request.generated == request.output or m.next_pool >= 0:
                release_blocks(m, r, requests, prefix, offsets, hashes, slot, q)
        if request.generated == request.output:
            leave_seat(r, seats, slot, seat)
            finish(world, pools, replicas, requests, routable, transfers, followers, histograms, slot, q, t)
        elif m.next_pool >= 0:
            leave_seat(r, seats, slot, seat)
            request.resume = t
            request.status = MOVED
            request.pool = m.next_pool
            m.handed_over += 1
            change_outstanding(replicas, routable, slot, -1)
            push_transfer(world, transfers, t + request.prompt * m.transfer_seconds_per_token, q)
        else:
            join_decode(m, r, seats, residues, slot, seat, context, request.output - request.generated)
        seat = following


@compiled
def preempt(
    m: Records,
    r: Records,
    requests: Records,
    seats: Ints,
    residues: Ints,
    prefix: Ints,
    offsets: Ints,
    hashes: Ints,
    slot: int,
    t: float,
) -> None:
    """The latest admitted loses its KV and goes to the head of the queue; all it has will be prefilled again."""
    seat = latest_admitted(r, seats, slot)
    q = seats[slot, OCCUPANT, seat]
    request = requests[q]
    if seat == r.partial:
        r.partial = -1
        r.prefilling -= 1
        r.kv_prefill -= whole_blocks(request.prompt + request.generated, m.block)
    else:
        request.generated = request.output - (remove_decoding(r, seats, slot, seat) - r.clock)
        request.resume = t
        leave_decode(m, r, residues, slot, request.prompt + request.generated - 1)
    leave_seat(r, seats, slot, seat)
    if m.prefix_block > 0:
        release_blocks(m, r, requests, prefix, offsets, hashes, slot, q)
    request.status = UNFINISHED
    request.preemptions += 1
    m.preemptions += 1
    request.next = r.queue_head
    if r.queue_head < 0:
        r.queue_tail = q
    r.queue_head = q
    r.waiting += 1
    r.waiting_tokens += prefill_tokens(request)


@compiled
def leave_fleet(replicas: Records, due: Floats, winners: Ints, departures: Floats, slot: int, t: float) -> None:
    """The replica is empty and gone at `t`; its slot is free."""
    r = replicas[slot]
    departures[r.id] = t
    r.life = FREE
    reschedule(due, winners, slot, math.inf)
