"""KV memory and the closed form of a jump: what fits, and where the next step boundary lies.

A jump runs j decode steps of one constant batch; step i of it takes ``step_seconds + growth_seconds * i``.
KV is held in whole blocks: a sequence with c tokens of context holds ``ceil(c / block) * block`` tokens.
"""

# The fields of a record have no type that mypy could see.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math

from load_tests.kernel_state import BOUNDARY_SLACK_STEPS, MOVED, Ints, Records, compiled


@compiled
def whole_blocks(tokens: int, block: int) -> int:
    """`tokens` rounded up to whole blocks."""
    return tokens if block == 1 else (tokens + block - 1) // block * block


@compiled
def steps_within(seconds: float, step_seconds: float, growth_seconds: float) -> float:
    """The real j at which a jump has run for `seconds`: the root of ``j*t0 + growth/2*j*(j-1) = seconds``.

    Written with the root in the denominator, so that growth 0 needs no case of its own.
    """
    half = 0.5 * growth_seconds
    slope = step_seconds - half
    return 2.0 * seconds / (slope + math.sqrt(slope * slope + 4.0 * half * seconds))


@compiled
def boundary_after(seconds: float, step_seconds: float, growth_seconds: float) -> int:
    """Number of steps up to the first boundary not before `seconds` into a jump, at least 1."""
    return max(1, int(math.ceil(steps_within(seconds, step_seconds, growth_seconds) - BOUNDARY_SLACK_STEPS)))


@compiled
def jump_seconds(steps: int, step_seconds: float, growth_seconds: float) -> float:
    """Duration of a jump of `steps` steps."""
    return steps * step_seconds + 0.5 * growth_seconds * (steps * (steps - 1.0))


@compiled
def steps_done(r: Records, now: float, due_at: float) -> int:
    """Step boundaries that a running jump has passed at `now`, its end left out."""
    if r.steps <= 1 or now >= due_at:
        return 0
    done = int(math.floor(steps_within(now - r.started, r.step_seconds, r.growth_seconds) + BOUNDARY_SLACK_STEPS))
    return max(0, min(done, r.steps - 1))


@compiled
def decode_kv(m: Records, r: Records, residues: Ints, slot: int, ahead: int) -> int:
    """KV in tokens, whole blocks, that the decoding sequences hold after `ahead` more steps."""
    total = r.kv + r.decoding * ahead
    block = m.block
    if block > 1:
        missing = -(r.clock + ahead) % block  # of a sequence of residue 0 to the end of its last block
        for residue in range(block):
            total += residues[slot, residue] * missing
            missing = missing - 1 if missing > 0 else block - 1
    return total


@compiled
def over_capacity(m: Records, r: Records, residues: Ints, slot: int) -> bool:
    """Whether the next decode step would need more KV than there is."""
    loose = r.kv + r.decoding * m.block + r.kv_prefill
    if loose <= m.kv_capacity:
        return False
    return decode_kv(m, r, residues, slot, 1) + r.kv_prefill > m.kv_capacity


@compiled
def fits(m: Records, r: Records, residues: Ints, slot: int, request: Records, ahead: int) -> bool:
    """Whether a queued request finds KV after `ahead` more steps: all contexts, one further step, and its own."""
    context = request.prompt + request.generated - (1 if request.status == MOVED else 0)
    own = r.kv_prefill + whole_blocks(context + 1, m.block)
    bare = r.kv + r.decoding * (ahead + 1) + own
    if bare > m.kv_capacity:
        return False
    if bare + r.decoding * (m.block - 1) <= m.kv_capacity:
        return True
    return decode_kv(m, r, residues, slot, ahead + 1) + own <= m.kv_capacity


@compiled
def steps_before_full(m: Records, r: Records, residues: Ints, slot: int, wanted: int) -> int:
    """How many of `wanted` decode steps the KV allows, at least 1.  A sequence that is alone goes on regardless."""
    n = r.decoding
    if n == 1:
        return wanted
    space = m.kv_capacity - r.kv_prefill - r.kv
    sure = (space - n * (m.block - 1)) // n
    if sure >= wanted:
        return wanted
    block = m.block
    if block == 1:
        return max(1, sure)
    steps = max(1, sure)
    room = m.kv_capacity - r.kv_prefill - decode_kv(m, r, residues, slot, steps)
    while steps < wanted:
        room -= block * residues[slot, -(r.clock + steps) % block]  # those whose last block is full take one more
        if room < 0:
            break
        steps += 1
    return steps
