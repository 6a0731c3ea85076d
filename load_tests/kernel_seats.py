"""Seats of a replica: who runs, the heap of decoding seats by the step that finishes them, and who came last."""

# The fields of a record have no type that mypy could see.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from load_tests.kernel_state import (
    CHAIN,
    FREE_SEAT,
    KEY,
    OCCUPANT,
    SEAT_BITS,
    SEAT_MASK,
    STAMP,
    Ints,
    Records,
    compiled,
)


@compiled
def take_seat(r: Records, seats: Ints, slot: int, q: int) -> int:
    """Seat for the newly admitted request `q`, stamped with the order of admission."""
    if r.free_seats > 0:
        r.free_seats -= 1
        seat = seats[slot, FREE_SEAT, r.free_seats]
    else:
        seat = r.high_seats
        r.high_seats += 1
    r.stamp += 1
    seats[slot, OCCUPANT, seat] = q
    seats[slot, STAMP, seat] = r.stamp
    return seat


@compiled
def leave_seat(r: Records, seats: Ints, slot: int, seat: int) -> None:
    """Give a seat back."""
    seats[slot, OCCUPANT, seat] = -1
    seats[slot, STAMP, seat] = 0
    seats[slot, FREE_SEAT, r.free_seats] = seat
    r.free_seats += 1


@compiled
def latest_admitted(r: Records, seats: Ints, slot: int) -> int:
    """The seat that was admitted last among those that run."""
    best = 0
    for seat in range(1, r.high_seats):
        if seats[slot, STAMP, seat] > seats[slot, STAMP, best]:
            best = seat
    return best


@compiled
def chain_completing(r: Records, seats: Ints, slot: int, seat: int) -> None:
    """Note that the prefill of `seat` completes in the step that is being planned."""
    seats[slot, CHAIN, seat] = -1
    if r.complete_head < 0:
        r.complete_head = seat
    else:
        seats[slot, CHAIN, r.complete_tail] = seat
    r.complete_tail = seat


@compiled
def _sift_up(seats: Ints, slot: int, i: int, entry: int) -> None:
    while i > 0:
        above = (i - 1) >> 1
        other = seats[slot, KEY, above]
        if other <= entry:
            break
        seats[slot, KEY, i] = other
        i = above
    seats[slot, KEY, i] = entry


@compiled
def _sift_down(seats: Ints, slot: int, n: int, i: int, entry: int) -> None:
    child = 2 * i + 1
    while child < n:
        other = seats[slot, KEY, child]
        if child + 1 < n and seats[slot, KEY, child + 1] < other:
            child += 1
            other = seats[slot, KEY, child]
        if entry <= other:
            break
        seats[slot, KEY, i] = other
        i = child
        child = 2 * i + 1
    seats[slot, KEY, i] = entry


@compiled
def join_decode(
    m: Records, r: Records, seats: Ints, residues: Ints, slot: int, seat: int, context: int, steps: int
) -> None:
    """Let `seat` decode from now on: `context` tokens of KV, `steps` more decode steps."""
    _sift_up(seats, slot, r.decoding, (r.clock + steps) << SEAT_BITS | seat)
    r.decoding += 1
    r.kv += context
    if m.block > 1:
        residues[slot, (context - r.clock) % m.block] += 1


@compiled
def leave_decode(m: Records, r: Records, residues: Ints, slot: int, context: int) -> None:
    """Take the KV of one decoding sequence with `context` tokens out of the books."""
    r.kv -= context
    if m.block > 1:
        residues[slot, (context - r.clock) % m.block] -= 1


@compiled
def pop_finished(r: Records, seats: Ints, slot: int) -> int:
    """Take the seat that finishes first off the heap."""
    seat = seats[slot, KEY, 0] & SEAT_MASK
    r.decoding -= 1
    n = r.decoding
    if n > 0:
        _sift_down(seats, slot, n, 0, seats[slot, KEY, n])
    return seat


@compiled
def remove_decoding(r: Records, seats: Ints, slot: int, seat: int) -> int:
    """Take `seat` out of the middle of the heap; returns the step at which it would have finished."""
    i = 0
    while seats[slot, KEY, i] & SEAT_MASK != seat:
        i += 1
    finishes = seats[slot, KEY, i] >> SEAT_BITS
    r.decoding -= 1
    n = r.decoding
    if i < n:
        entry = seats[slot, KEY, n]
        if i > 0 and entry < seats[slot, KEY, (i - 1) >> 1]:
            _sift_up(seats, slot, i, entry)
        else:
            _sift_down(seats, slot, n, i, entry)
    return finishes
