"""What the compiled plant remembers: record layouts, status codes and histogram bounds.

The plant is a set of flat arrays of records, so that one source serves two readers: numba compiles it, and with
``NUMBA_DISABLE_JIT=1`` numpy's record arrays make the same statements run as plain Python.

Times are seconds since the start of the simulation, tokens and requests are counts, -1 is "none" in every link.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Records = Any  # a structured array: typed by the dtypes below, which mypy cannot see

Function = TypeVar("Function", bound=Callable[..., Any])


# The kernel owns no memory: without numba's reference counts on every array that is passed it runs twice as fast.
_OPTIONS: Any = {"error_model": "numpy", "_nrt": False}


def compiled(function: Function) -> Function:
    """A function for the kernel's own use, laid into its callers; to a type checker it stays what it was."""
    made: Any = njit(forceinline=True, **_OPTIONS)(function)
    return cast("Function", made)


def cached(function: Function) -> Function:
    """An entry point of the kernel: compiled once per machine."""
    made: Any = njit(cache=True, **_OPTIONS)(function)
    return cast("Function", made)


INTERPRETED = bool(getattr(config, "DISABLE_JIT", 0))

# Request status.
DONE, FAILED, UNFINISHED = 0, 1, 2
MOVED = 3  # unfinished, and its KV comes with it from another pool
# Life of a replica slot.
FREE, ROUTABLE, DRAINING = 0, 1, 2
# Routing rules.
ROUND_ROBIN, LEAST_LOADED, TWO_CHOICES = 0, 1, 2
# Kinds of event, in their order at one instant.
ARRIVAL, INGRESS, TRANSFER, STEP = 0, 1, 2, 3

NOISE_WINDOW_SECONDS = 10.0
# A boundary of a jump is found by a square root; this many steps are forgiven so that an exact hit does not slip a step.
BOUNDARY_SLACK_STEPS = 1e-9

REQUEST = np.dtype(
    [
        ("arrival", "f8"),  # when it reached the door of its entry pool
        ("first", "f8"),  # first token, inf until then
        ("finish", "f8"),  # last token, inf until then
        ("resume", "f8"),  # its last token before it lost its KV or moved to another pool; end of its ingress before
        ("prompt", "i4"),
        ("output", "i4"),
        ("cached", "i4"),  # leading prompt tokens that need no prefill
        ("generated", "i4"),  # tokens made before it last entered a queue
        ("next", "i4"),  # link of the list it stands in: door, ingress or queue
        ("slot", "i4"),  # replica slot that holds it
        ("replica", "i4"),  # id of the last replica that held it
        ("preemptions", "u2"),
        ("status", "i1"),
        ("pool", "i1"),  # pool where it is, entry pool at first
    ],
    align=True,
)

REPLICA = np.dtype(
    [
        ("id", "i8"),
        ("pool", "i8"),
        ("life", "i8"),  # FREE, ROUTABLE, DRAINING
        ("position", "i8"),  # place in the pool's routable list
        ("decoding", "i8"),  # N: sequences that decode
        ("clock", "i8"),  # V: decode steps made so far
        ("kv", "i8"),  # K: tokens of context of the decoding sequences
        ("kv_prefill", "i8"),  # tokens reserved by prompts in prefill, in whole blocks
        ("prefilling", "i8"),  # prompts in prefill: those that complete in this step and a partial one
        ("queue_head", "i8"),
        ("queue_tail", "i8"),
        ("waiting", "i8"),
        ("waiting_tokens", "i8"),  # tokens that the queue still has to prefill
        ("complete_head", "i8"),  # seats whose prefill completes in the running step, in order of admission
        ("complete_tail", "i8"),
        ("partial", "i8"),  # seat whose prompt is prefilled in part, -1 if none
        ("partial_done", "i8"),  # its tokens of context so far
        ("stamp", "i8"),  # admissions so far
        ("steps", "i8"),  # j: engine steps of the running jump, 0 = idle
        ("step_prefill", "i8"),  # P: prefill tokens of the running step
        ("outstanding", "i8"),  # requests routed here that have not ended
        ("free_seats", "i8"),  # entries on the stack of free seats
        ("high_seats", "i8"),  # seats ever used
        ("idle_blocks", "i8"),  # prefix blocks that no live request holds
        ("oldest_block", "i8"),  # ends of their LRU list, -1 = empty
        ("newest_block", "i8"),
        ("free_block", "i8"),  # list of unused entries of the prefix table, -1 = empty
        ("high_blocks", "i8"),  # entries ever used
        ("started", "f8"),  # t: start of the running jump
        ("step_seconds", "f8"),  # duration of its first step
        ("growth_seconds", "f8"),  # how much longer each further step takes: d * N
        ("factor", "f8"),  # capacity factor: steps take 1 / factor as long
    ],
    align=True,
)

POOL = np.dtype(
    [
        # step law, seconds
        ("a", "f8"),
        ("b", "f8"),
        ("floor_tokens", "f8"),
        ("c", "f8"),
        ("d", "f8"),
        ("e", "f8"),
        ("step_overhead", "f8"),
        ("sequence_overhead", "f8"),
        ("ingress_seconds", "f8"),
        ("transfer_seconds_per_token", "f8"),
        # limits
        ("seats", "i8"),
        ("batch_tokens", "i8"),
        ("kv_capacity", "i8"),  # whole blocks, in tokens
        ("block", "i8"),
        ("prefix_block", "i8"),  # tokens of a hashed block of a prompt, 0 = no prefix cache
        # routing
        ("routing", "i8"),
        ("next_pool", "i8"),  # where a request goes after its first token, -1 = it stays
        ("ready", "i8"),  # routable replicas
        ("turn", "i8"),  # round robin: position of the next replica
        ("draws", "i8"),  # two choices made so far
        ("routing_key", "u8"),
        ("door_head", "i8"),
        ("door_tail", "i8"),
        ("held", "i8"),
        ("held_tokens", "i8"),
        ("ingress_head", "i8"),
        ("ingress_tail", "i8"),
        # cumulative counters
        ("arrivals", "i8"),
        ("arrived_prompt_tokens", "i8"),
        ("prefilled_prompt_tokens", "i8"),  # prompts whose first token came, cached tokens included
        ("cached_prompt_tokens", "i8"),
        ("computed_tokens", "i8"),  # tokens that went through prefill, recomputed ones included
        ("output_tokens", "i8"),
        ("finished", "i8"),
        ("failed", "i8"),
        ("handed_over", "i8"),
        ("engine_steps", "i8"),
        ("preemptions", "i8"),
        ("busy_seconds", "f8"),
        ("decode_seconds", "f8"),  # integral of the number of decoding sequences
        ("ttft_sum", "f8"),
        ("itl_sum", "f8"),
        ("tpot_sum", "f8"),
        ("e2e_sum", "f8"),
        ("prompt_sum", "f8"),
        ("output_sum", "f8"),
        ("step_tokens_sum", "f8"),
    ],
    align=True,
)

WORLD = np.dtype(
    [
        ("now", "f8"),
        ("next_arrival", "i8"),  # first request that has not arrived
        ("open_requests", "i8"),  # requests [0, open_requests) arrive by the clock, the others follow another request
        ("transfers", "i8"),  # entries in the heap of transfers
        ("leaves", "i8"),  # replica slots, a power of two
        ("noise_sigma", "f8"),
        ("noise_key", "u8"),
        ("every_step", "i8"),
    ],
    align=True,
)

TRANSFER_ENTRY = np.dtype([("at", "f8"), ("request", "i8")], align=True)

# Histogram bounds that vLLM prints (releases 0.8.5 to 0.33), seconds and tokens.
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
TTFT_BOUNDS = np.array([*_TTFT, 160.0, 640.0, 2560.0])
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
ITL_BOUNDS = np.array(_ITL)
_E2E = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0)
E2E_BOUNDS = np.array([*_E2E, 1920.0, 7680.0])
LENGTH_BOUNDS = np.array([digit * 10.0**power for power in range(6) for digit in (1, 2, 5)][:16])  # up to 100,000
STEP_BOUNDS = np.array([1.0, *(2.0**power for power in range(3, 15))])

# One row of counts per pool holds all histograms, each with one bucket more than it has bounds.
TTFT_AT = 0
ITL_AT = TTFT_AT + len(TTFT_BOUNDS) + 1
TPOT_AT = ITL_AT + len(ITL_BOUNDS) + 1
E2E_AT = TPOT_AT + len(ITL_BOUNDS) + 1
PROMPT_AT = E2E_AT + len(E2E_BOUNDS) + 1
OUTPUT_AT = PROMPT_AT + len(LENGTH_BOUNDS) + 1
STEP_AT = OUTPUT_AT + len(LENGTH_BOUNDS) + 1
HISTOGRAM_BUCKETS = STEP_AT + len(STEP_BOUNDS) + 1

# Planes of the seat table of a replica.
# KEY: heap of the decoding seats by the step that finishes them; OCCUPANT: request, -1 = free; STAMP: order of
# admission, 0 = free; CHAIN: link of the prefills of the running step; FREE_SEAT: stack of seats given back.
KEY, OCCUPANT, STAMP, CHAIN, FREE_SEAT = 0, 1, 2, 3, 4
SEAT_PLANES = 5
# A heap entry is (finishing step << SEAT_BITS) | seat, so that one integer compare orders it.
SEAT_BITS = 16
SEAT_MASK = (1 << SEAT_BITS) - 1


class Plant(NamedTuple):
    """Every array of one simulation, as the kernel takes them."""

    world: Records  # one WORLD
    pools: Records  # POOL per pool
    replicas: Records  # REPLICA per slot
    requests: Records  # REQUEST per request
    seats: Ints  # (slot, plane, seat)
    residues: Ints  # (slot, residue): decoding sequences by where they cross into a new KV block
    routable: Ints  # (pool, 2, position): slot and its outstanding requests
    due: Floats  # next event of each slot, inf = none
    winners: Ints  # tournament over `due`: winners[1] is the slot that is due first
    transfers: Records  # heap of TRANSFER_ENTRY
    departures: Floats  # instant at which the replica of this id was gone, NaN until then
    prefix: Ints  # (slot, plane, entry): prefix caches; empty without
    offsets: Ints  # where the block hashes of each request begin; empty without
    hashes: Ints  # block hashes of the prompts
    followers: Ints  # request that arrives when this one ends, -1 = none; empty without a closed loop
    tenants: NDArray[np.int32]  # tenant of each request; empty without tenants
    tenant_arrivals: Ints  # (pool, tenant)
    histograms: Ints  # (pool, bucket)


def records(count: int, dtype: np.dtype[Any]) -> Records:
    """`count` zeroed records that the kernel can index by field name, compiled or not."""
    made = np.zeros(count, dtype=dtype)
    return made.view(np.recarray) if INTERPRETED else made


def _fingerprint() -> int:
    """A number that changes with any source line of the kernel."""
    here = Path(__file__).parent
    sources = [*sorted(here.glob("kernel*.py")), here / "draws.py"]
    return zlib.crc32(b"".join(source.read_bytes() for source in sources if source.exists())) or 1


# numba's cache looks at the file of the compiled entry only; the entries close over this number, so that a change in
# any file below them compiles anew.
SOURCE = _fingerprint()
