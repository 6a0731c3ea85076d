"""What nobody can do without in the plant: the linear programme of `oracle_lp` on the least work that requests make."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autoscaler.settings import Slo
from load_tests.fleet import PoolModel
from load_tests.kernel_state import Floats, Ints
from load_tests.oracle_lp import lower_bound
from load_tests.simulator import Setup
from serving.startup import summed

BIN_SECONDS = 60.0
# A start is priced as one that only so many are faster than.
_FAST = 0.01


def least_seconds(pool: PoolModel, prompt_tokens: Ints, output_tokens: Ints, slo: Slo) -> Floats:
    """Replica-seconds that each request takes at the very least while the SLO holds, in mean field.

    Its prefill, and its decoding in steps as long as the ITL allows: a step of length L costs its fixed part a once, so
    decoding work w becomes w / (1 - a / L) (Jensen: no mixture of batch sizes with mean L does with fewer steps).
    """
    law = pool.replica
    p, o = prompt_tokens.astype(float), output_tokens.astype(float)
    fixed = law.a + law.step_overhead_seconds
    busy = max(0.0, 1.0 - fixed / slo.itl_seconds)
    decode = (o - 1) * (law.c + law.b + law.sequence_overhead_seconds + law.d * (p + o / 2))
    prefill = law.b * p + law.e * p * p / 2
    each: Floats = prefill + decode / busy if busy > 0 else prefill + decode
    return each


def bound_gpu_hours(
    setup: Setup, spans: Sequence[tuple[float, float]], attainment_fraction: float, *, low: int, high: int
) -> float | None:
    """GPU-hours inside `spans` (seconds of the run) below which no path of replica counts attains; None where none can.

    Work may wait as long as a first token and the longest answer may, bins know only their mean, and what is in flight at
    the ends costs nothing: each makes the bound lower, none higher.
    """
    requests, slo = setup.requests, setup.slo
    slack = slo.ttft_seconds + slo.itl_seconds * float(requests.output_tokens.max(initial=0))
    start, end = spans[0][0], spans[-1][1] - slack
    bins = math.floor((end - start) / BIN_SECONDS)
    if bins < 2:
        return None
    each = least_seconds(setup.pools[0], requests.prompt_tokens, requests.output_tokens, slo)
    place = np.floor((requests.arrival_seconds - start) / BIN_SECONDS).astype(np.int64)
    inside = (place >= 0) & (place < bins)
    startup = summed((s.seconds, s.sigma) for s in setup.startup.stages)
    edges = start + BIN_SECONDS * np.arange(bins + 1)
    paid = sum(np.clip(np.minimum(edges[1:], b) - np.maximum(edges[:-1], a), 0.0, None) / BIN_SECONDS for a, b in spans)
    try:
        seconds = lower_bound(
            np.bincount(place[inside], weights=each[inside], minlength=bins).astype(float),
            np.bincount(place[inside], minlength=bins).astype(float),
            attainment_fraction,
            bin_seconds=BIN_SECONDS,
            start_seconds=startup.quantile(_FAST) * setup.startup_factor,
            slack_seconds=slack,
            low=low,
            high=high,
            paid=np.asarray(paid),
        )
    except ValueError:
        return None
    return seconds * setup.gpus_per_replica / 3600
