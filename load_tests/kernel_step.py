"""One replica at a step boundary: what ended, who is preempted, what runs next (vLLM V1 rules).

In this order: decode steps are accounted and finished requests leave; completed prefills give their token and join; the
latest admitted lose their KV while the next step would not fit; the partial prefill, then the queue in FIFO order, fill
the token budget; and the replica runs one step with prefill, or a jump of decode steps, or idles.
"""

# The fields of a record have no type that mypy could see.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math

from load_tests.draws import child_key, normal_at
from load_tests.kernel_kv import boundary_after, fits, jump_seconds, over_capacity, steps_before_full, whole_blocks
from load_tests.kernel_observe import observe_finish, observe_first, observe_gap, observe_steps
from load_tests.kernel_prefix import hold_hits, hold_rest, release_blocks, trim
from load_tests.kernel_route import change_outstanding, prefill_tokens, push_transfer, reschedule
from load_tests.kernel_seats import (
    chain_completing,
    join_decode,
    latest_admitted,
    leave_decode,
    leave_seat,
    pop_finished,
    remove_decoding,
    take_seat,
)
from load_tests.kernel_state import (
    CHAIN,
    DONE,
    DRAINING,
    FREE,
    KEY,
    MOVED,
    NOISE_WINDOW_SECONDS,
    OCCUPANT,
    SEAT_BITS,
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
def admit(
    m: Records,
    r: Records,
    requests: Records,
    seats: Ints,
    residues: Ints,
    prefix: Ints,
    offsets: Ints,
    hashes: Ints,
    slot: int,
) -> int:
    """Move the head of the queue into a seat; returns the seat if its prompt is to be prefilled, else -1."""
    q = r.queue_head
    request = requests[q]
    r.queue_head = request.next
    r.waiting -= 1
    r.waiting_tokens -= prefill_tokens(request)
    seat = take_seat(r, seats, slot, q)
    if m.prefix_block > 0:
        request.cached = hold_hits(m, r, requests, prefix, offsets, hashes, slot, q)
    if request.status == MOVED:
        context = request.prompt + request.generated - 1
        join_decode(m, r, seats, residues, slot, seat, context, request.output - request.generated)
        if m.prefix_block > 0:
            trim(m, r, residues, prefix, slot)
            hold_rest(m, r, requests, prefix, offsets, hashes, slot, q)
        return -1
    context = request.prompt + request.generated
    r.kv_prefill += whole_blocks(context, m.block)
    if m.prefix_block > 0:
        trim(m, r, residues, prefix, slot)
    r.prefilling += 1
    r.partial = seat
    r.partial_done = min(request.cached, context - 1)
    if request.preemptions == 0:
        m.cached_prompt_tokens += r.partial_done
    return seat


@compiled
def prefill_chunk(r: Records, requests: Records, seats: Ints, slot: int, budget: int) -> int:
    """Take the next chunk of the partial prefill, as far as `budget` goes; returns its tokens."""
    request = requests[seats[slot, OCCUPANT, r.partial]]
    context = request.prompt + request.generated
    chunk = min(context - r.partial_done, budget)
    r.partial_done += chunk
    if r.partial_done == context:
        chain_completing(r, seats, slot, r.partial)
        r.partial = -1
    return chunk


@compiled
def slowness(world: Records, r: Records, t: float) -> float:
    """Factor on the durations of steps that start at `t`: the replica's capacity, and noise per 10-s window."""
    factor = 1.0 / r.factor
    sigma = world[0].noise_sigma
    if sigma > 0.0:
        window = int(math.floor(t / NOISE_WINDOW_SECONDS))
        factor *= math.exp(sigma * normal_at(child_key(world[0].noise_key, r.id), window) - 0.5 * sigma * sigma)
    return factor


@compiled
def plan(
    world: Records,
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
) -> float:
    """Decide what runs from `t` on: sets the replica's running step or jump; returns its end, inf when idle."""
    budget = m.batch_tokens - r.decoding
    tokens, pairs, sequences = 0, 0.0, 0
    while budget > 0:
        if r.partial < 0:
            running = r.decoding + r.prefilling
            if r.queue_head < 0 or running >= m.seats:
                break
            if running > 0 and not fits(m, r, residues, slot, requests[r.queue_head], 0):
                break
            if admit(m, r, requests, seats, residues, prefix, offsets, hashes, slot) < 0:
                budget -= 1
                continue
        before = r.partial_done
        chunk = prefill_chunk(r, requests, seats, slot, budget)
        tokens += chunk
        pairs += chunk * (before + 0.5 * chunk)
        sequences += 1
        budget -= chunk
    n = r.decoding
    r.step_prefill = tokens
    r.started = t
    if tokens == 0 and n == 0:
        r.steps = 0
        return math.inf
    slow = slowness(world, r, t)
    weights = m.b * max(m.floor_tokens, float(tokens + n))
    host = m.step_overhead + m.sequence_overhead * (n + sequences)
    r.step_seconds = slow * (m.a + weights + m.c * n + m.d * r.kv + m.e * pairs + host)
    m.computed_tokens += tokens
    if tokens > 0:
        r.steps = 1
        r.growth_seconds = 0.0
        return t + r.step_seconds
    r.growth_seconds = slow * m.d * n
    r.steps = 1
    if world[0].every_step == 0:
        wanted = (seats[slot, KEY, 0] >> SEAT_BITS) - r.clock
        if world[0].noise_sigma > 0.0:
            window_end = (math.floor(t / NOISE_WINDOW_SECONDS) + 1.0) * NOISE_WINDOW_SECONDS
            wanted = min(wanted, boundary_after(window_end - t, r.step_seconds, r.growth_seconds))
        r.steps = steps_before_full(m, r, residues, slot, wanted)
    return t + jump_seconds(r.steps, r.step_seconds, r.growth_seconds)


@compiled
def end_step(
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
    histograms: Ints,
    slot: int,
    t: float,
) -> None:
    """The running step or jump of `slot` ends at `t` (or an idle replica wakes): do everything due at the boundary."""
    r = replicas[slot]
    m = pools[r.pool]
    if r.steps > 0:
        observe_steps(r, r.steps, m, histograms, r.pool)
        r.clock += r.steps
        r.kv += r.decoding * r.steps
        if m.prefix_block > 0:
            trim(m, r, residues, prefix, slot)
        while r.decoding > 0 and seats[slot, KEY, 0] >> SEAT_BITS <= r.clock:
            seat = pop_finished(r, seats, slot)
            q = seats[slot, OCCUPANT, seat]
            leave_decode(m, r, residues, slot, requests[q].prompt + requests[q].output - 1)
            leave_seat(r, seats, slot, seat)
            if m.prefix_block > 0:
                release_blocks(m, r, requests, prefix, offsets, hashes, slot, q)
            finish(world, pools, replicas, requests, routable, transfers, followers, histograms, slot, q, t)
        if r.complete_head >= 0:
            complete_prefills(
                world,
                pools,
                replicas,
                requests,
                seats,
                residues,
                routable,
                transfers,
                prefix,
                offsets,
                hashes,
                followers,
                histograms,
                slot,
                t,
            )
        while r.decoding > 1 and over_capacity(m, r, residues, slot):
            preempt(m, r, requests, seats, residues, prefix, offsets, hashes, slot, t)
    if m.prefix_block > 0:
        trim(m, r, residues, prefix, slot)  # a prompt larger than all KV leaves more than can stay
    reschedule(due, winners, slot, plan(world, m, r, requests, seats, residues, prefix, offsets, hashes, slot, t))
    if r.life == DRAINING and r.outstanding == 0:
        leave_fleet(replicas, due, winners, departures, slot, t)


@compiled
def leave_fleet(replicas: Records, due: Floats, winners: Ints, departures: Floats, slot: int, t: float) -> None:
    """The replica is empty and gone at `t`; its slot is free."""
    r = replicas[slot]
    departures[r.id] = t
    r.life = FREE
    reschedule(due, winners, slot, math.inf)
