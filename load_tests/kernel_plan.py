"""What a replica runs next: admission in FIFO order, chunks of prefill within the token budget, steps and jumps."""

# The fields of a record have no type that mypy could see.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math

from load_tests.draws import child_key, normal_at
from load_tests.kernel_kv import boundary_after, fits, jump_seconds, steps_before_full, whole_blocks
from load_tests.kernel_prefix import hold_hits, hold_rest, trim
from load_tests.kernel_route import prefill_tokens
from load_tests.kernel_seats import (
    chain_completing,
    join_decode,
    take_seat,
)
from load_tests.kernel_state import (
    KEY,
    MOVED,
    NOISE_WINDOW_SECONDS,
    OCCUPANT,
    SEAT_BITS,
    Ints,
    Records,
    compiled,
)


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
