"""What a scraper could see: histograms and sums, filled per step, per jump and per request."""

from __future__ import annotations

import math

from load_tests.kernel_kv import jump_seconds
from load_tests.kernel_state import (
    E2E_AT,
    E2E_BOUNDS,
    ITL_AT,
    ITL_BOUNDS,
    LENGTH_BOUNDS,
    OUTPUT_AT,
    PROMPT_AT,
    STEP_AT,
    STEP_BOUNDS,
    TPOT_AT,
    TTFT_AT,
    TTFT_BOUNDS,
    Floats,
    Ints,
    Records,
    compiled,
)


@compiled
def bucket(bounds: Floats, value: float) -> int:
    """Index of the first bound that is not below `value` (Prometheus' ``le``); the number of bounds if none is."""
    i = 0
    while i < bounds.size and bounds[i] < value:
        i += 1
    return i


@compiled
def observe_gaps(
    histograms: Ints, pool: int, sequences: int, steps: int, step_seconds: float, growth_seconds: float
) -> None:
    """Add the token gaps of a jump: `sequences` gaps at each value of ``step_seconds + growth_seconds * i``, i < steps."""
    i = bucket(ITL_BOUNDS, step_seconds)
    seen = 0
    while seen < steps:
        upto = steps
        if i < ITL_BOUNDS.size and step_seconds + growth_seconds * (steps - 1) > ITL_BOUNDS[i]:
            upto = min(steps, 1 + int(math.floor((ITL_BOUNDS[i] - step_seconds) / growth_seconds)))
        if upto > seen:
            histograms[pool, ITL_AT + i] += sequences * (upto - seen)
            seen = upto
        i += 1


@compiled
def observe_steps(r: Records, steps: int, counters: Records, histograms: Ints, at: int) -> None:
    """Add `steps` engine steps of the running jump to ``counters`` (one POOL record) and row `at` of ``histograms``."""
    n = r.decoding
    seconds = jump_seconds(steps, r.step_seconds, r.growth_seconds)
    tokens = r.step_prefill + n
    counters.engine_steps += steps
    counters.busy_seconds += seconds
    counters.step_tokens_sum += float(tokens * steps)
    histograms[at, STEP_AT + bucket(STEP_BOUNDS, tokens)] += steps
    if n > 0:
        counters.output_tokens += n * steps
        counters.itl_sum += n * seconds
        counters.decode_seconds += n * seconds
        observe_gaps(histograms, at, n, steps, r.step_seconds, r.growth_seconds)


@compiled
def observe_first(m: Records, histograms: Ints, pool: int, request: Records) -> None:
    """A first token came."""
    seconds = request.first - request.arrival
    m.ttft_sum += seconds
    m.prefilled_prompt_tokens += request.prompt
    histograms[pool, TTFT_AT + bucket(TTFT_BOUNDS, seconds)] += 1


@compiled
def observe_gap(m: Records, histograms: Ints, pool: int, seconds: float) -> None:
    """One token came after a gap of its own: a recompute or a transfer lay in it."""
    m.itl_sum += seconds
    histograms[pool, ITL_AT + bucket(ITL_BOUNDS, seconds)] += 1


@compiled
def observe_finish(m: Records, histograms: Ints, pool: int, request: Records) -> None:
    """A request ended well."""
    m.finished += 1
    seconds = request.finish - request.arrival
    m.e2e_sum += seconds
    histograms[pool, E2E_AT + bucket(E2E_BOUNDS, seconds)] += 1
    if request.output > 1:
        per_token = (request.finish - request.first) / (request.output - 1)
        m.tpot_sum += per_token
        histograms[pool, TPOT_AT + bucket(ITL_BOUNDS, per_token)] += 1
    m.prompt_sum += float(request.prompt)
    m.output_sum += float(request.output)
    histograms[pool, PROMPT_AT + bucket(LENGTH_BOUNDS, request.prompt)] += 1
    histograms[pool, OUTPUT_AT + bucket(LENGTH_BOUNDS, request.output)] += 1
