"""One replica at a step boundary: what ended, who is preempted, what runs next (vLLM V1 rules).

In this order: decode steps are accounted and finished requests leave; completed prefills give their token and join; the
latest admitted lose their KV while the next step would not fit; the partial prefill, then the queue in FIFO order, fill
the token budget; and the replica runs one step with prefill, or a jump of decode steps, or idles.
"""

# The fields of a record have no type that mypy could see.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from load_tests.kernel_kv import over_capacity
from load_tests.kernel_leave import complete_prefills, finish, leave_fleet, preempt
from load_tests.kernel_observe import observe_steps
from load_tests.kernel_plan import plan
from load_tests.kernel_prefix import release_blocks, trim
from load_tests.kernel_route import reschedule
from load_tests.kernel_seats import (
    leave_decode,
    leave_seat,
    pop_finished,
)
from load_tests.kernel_state import (
    DRAINING,
    KEY,
    OCCUPANT,
    SEAT_BITS,
    Floats,
    Ints,
    Records,
    compiled,
)


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
