"""The compiled part of the fluid twin: one mean replica, requests of a second as a cohort, decode tokens as a flow.

All ready replicas are taken to hold the same.  With R sequences on each, a decode step takes ``s(R)`` by the replica's step
law; in a second, prompts take w seconds of each replica and the token clock V of every sequence runs (1 - w) / s(R) on.
A cohort waits in FIFO order for its prefill, starts at V0 when that is done, and the share of it with o output tokens ends
when V reaches V0 + o - 1.  Replicas that join while others have a backlog do not get any of it: the backlog is stuck to
those that had it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from load_tests.kernel_observe import bucket
from load_tests.kernel_state import (
    E2E_AT,
    E2E_BOUNDS,
    HISTOGRAM_BUCKETS,
    ITL_AT,
    ITL_BOUNDS,
    LENGTH_BOUNDS,
    OUTPUT_AT,
    STEP_AT,
    STEP_BOUNDS,
    TPOT_AT,
    TTFT_AT,
    TTFT_BOUNDS,
    Floats,
    Ints,
    cached,
    compiled,
)

# Places in `law`.
(
    FIXED, PER_TOKEN, FLOOR, PER_SEQUENCE, PER_CONTEXT, INGRESS, TTFT_LIMIT, ITL_LIMIT, SEATS, BATCH_TOKENS, KV_CAPACITY,
    KV_BLOCK, EVENING, CHOICES, BIN, OBSERVED,
) = range(16)  # fmt: skip
LAW = 16
# Places in `now`.  CONTEXT: prompt tokens of what runs, BEGUN: the sum of its V0.  MOMENT: request-seconds of this bin beside
# what runs at its start.  STEP_SECONDS: seconds per decode step.  UNEVEN: variance of the requests that come to one replica
# over that of Poisson arrivals.  PREFILLING, QUEUEING: requests in their prefill, and waiting for the running step to end.
# WORK_RATE: share of a replica's time that prompts take, SEEN_RATE: the same as those see it that decode.  ENDED: requests
# that ended in the last bin.  BEHIND: seconds of others' prompts that a prompt finds ahead of it.  BEGIN_RATE: prompts per
# second and replica while there is a backlog.
(
    AT, READY, DRAINING, CLOCK, RUNNING, CONTEXT, QUEUED, QUEUED_TOKENS, FACTOR, STUCK_REPLICAS, STEP_SECONDS, WORK_RATE,
    SQUARE_RATE, HEAD_LEFT, FRESH_LEFT, LEAVING, FRESH_QUEUED, MEAN_RUNNING, MOMENT, BEGUN,
    COUNT_RATE, RAW_RATE, UNEVEN, PREFILLING, QUEUEING, SEEN_RATE, ENDED, BEHIND, BEGIN_RATE,
) = range(29)  # fmt: skip
NOW = 29
# Places in `at`: bins that have arrived; the first whose prefill is not over; the end of the stuck backlog, and the first of
# the rest whose prefill is not over.
ARRIVED, HEAD, STUCK_END, FRESH = range(4)
PLACES = 4
# Places in `counts`.
(
    ARRIVALS, ARRIVED_TOKENS, PREFILLED, CACHED, OUTPUTS, FINISHED, FAILURES, STEPS, BUSY, DECODE_SECONDS, TTFT_SUM,
    ITL_SUM, TPOT_SUM, E2E_SUM, OUTPUT_SUM, STEP_SUM, COMPUTED,
) = range(17)  # fmt: skip
COUNTS = 17

_SMOOTH_SECONDS = 5.0
# Fitted by hand to the plant: on synthetic mixes of Poisson arrivals, and on one train day each of rate_servegen_mmid_c66 and
# rate_servegen_msmall_c31.  How fast routing to the least loaded stops sparing what decodes as more runs:
_AVOIDED, _AVOIDED_ALONE = 0.75, 2.8
# Variance of what prompts add, over that of a compound Poisson process: by their lengths (long prompts keep others away from
# their replica), and by their number.
_TAMED, _TAMED_COUNT = 0.42, 1.0


class Flow(NamedTuple):
    """Every array of one twin.  Per bin: what arrives in it, and what has become of it."""

    law: Floats
    arrivals: Floats
    prompt_tokens: Floats
    fresh_tokens: Floats
    prefill_seconds: Floats
    prefill_squares: Floats  # sum of squared prefill seconds
    longer: Floats  # share of requests whose prefill takes longer than the i-th part of the TTFT limit
    residual: Floats  # the same of what is left of a running prefill
    shares: Floats  # (bin, class): requests by output length
    outputs: Floats  # mean output tokens of each class
    begun_clock: Floats  # V0
    pending: Floats  # seconds into the running bin at which it began, until the bin's clock is known
    begun_seconds: Floats  # mean instant of the first token
    late: Floats  # share of the cohort whose first token was late
    weight: Floats  # share of the cohort that was not lost with a replica
    violated: Floats
    done: Ints  # bit per class: ended before its turn, while an older backlog was stuck
    ends: Ints  # (2, class): first bin that has not ended, of all and of those behind the stuck backlog
    at: Ints
    now: Floats
    counts: Floats
    histograms: Floats


def places() -> int:
    """Buckets of all histograms."""
    return HISTOGRAM_BUCKETS


@compiled
def above(mean: float, variance: float, limit: float) -> float:
    """Chance that a gamma variable of this mean and variance is above `limit` (Wilson and Hilferty's cube root)."""
    if variance <= 1e-12 or mean <= 1e-9:
        return 1.0 if mean > limit else 0.0
    ninth = variance / (9.0 * mean * mean)
    z = ((max(0.0, limit) / mean) ** (1.0 / 3.0) - (1.0 - ninth)) / math.sqrt(ninth)
    if z > 6.0:
        return 0.0
    if z < -6.0:
        return 1.0
    return 0.5 * math.erfc(z * 0.7071067811865476)


@compiled
def late_share(f: Any, wait: float, own: float) -> float:
    """Share of a cohort whose first token is late: it waits `wait` seconds on average, `own` of them for its own prefill."""
    n, law = f.now, f.law
    half, limit = 0.5 * law[BIN], law[TTFT_LIMIT]
    if wait - half >= limit:
        return 1.0
    kept = 1.0 - max(0.0, (wait + half - limit) / (2.0 * half))
    last = f.longer.size - 1
    spare = limit - (wait - own - n[BEHIND])
    place = int(spare * n[FACTOR] / limit * last)
    kept *= 1.0 - (f.longer[min(last, place)] if place >= 0 else 1.0)
    load = min(0.99, n[WORK_RATE])
    if load > 0.01:
        place = int((spare - own) * n[FACTOR] / limit * last)
        behind = load * (f.residual[min(last, place)] if place >= 0 else 1.0)
        spread = n[SQUARE_RATE] - (1.0 - n[UNEVEN]) * n[RAW_RATE] * n[RAW_RATE] / max(1e-9, n[COUNT_RATE])
        if spread > 1e-12 and spare > own:
            decay = 2.0 * (1.0 - load) * n[RAW_RATE] / spread
            behind = max(behind, load * math.exp(-min(50.0, decay * (spare - own))))
        kept *= 1.0 - behind
    share: float = 1.0 - kept
    return share


@compiled
def late_place(bounds: Floats, limit: float) -> int:
    """Index of the bucket of what is just above the largest bound that is not above `limit`."""
    place = bucket(bounds, limit)
    if place < bounds.size and bounds[place] == limit:
        place += 1
    return place


@compiled
def begin(f: Any, i: int, part: float, instant: float, wait: float, own: float) -> None:
    """A `part` of cohort `i` gives its first tokens at `instant`, after `wait` seconds on average."""
    n, h = f.now, f.histograms
    requests = f.arrivals[i] * part * f.weight[i]
    late = late_share(f, wait, own)
    f.late[i] += part * late
    ahead = instant - n[AT]
    f.begun_clock[i] += part * n[CLOCK]
    f.pending[i] += part * ahead
    f.begun_seconds[i] += part * instant
    n[RUNNING] += requests
    n[MOMENT] += requests * (f.law[BIN] - ahead)
    n[BEGUN] += requests * n[CLOCK]
    n[CONTEXT] += f.prompt_tokens[i] * part * f.weight[i]
    n[QUEUED] = max(0.0, n[QUEUED] - requests)
    n[QUEUED_TOKENS] = max(0.0, n[QUEUED_TOKENS] - f.fresh_tokens[i] * part * f.weight[i])
    f.counts[PREFILLED] += f.prompt_tokens[i] * part * f.weight[i]
    f.counts[CACHED] += (f.prompt_tokens[i] - f.fresh_tokens[i]) * part * f.weight[i]
    f.counts[COMPUTED] += f.fresh_tokens[i] * part * f.weight[i]
    f.counts[OUTPUTS] += requests
    f.counts[TTFT_SUM] += requests * wait
    if f.law[OBSERVED] > 0.0:
        usual = bucket(TTFT_BOUNDS, wait)
        h[TTFT_AT + usual] += requests * (1.0 - late)
        h[TTFT_AT + max(usual, late_place(TTFT_BOUNDS, f.law[TTFT_LIMIT]))] += requests * late


@compiled
def prefill(f: Any, first: int, left: float, last: int, replicas: float, room: float, step: float) -> Any:
    """Serve the prompts of cohorts [first, last) on so many replicas for a bin.

    `left`: share of the first cohort that is still to come; `room`: requests that seats and KV admit.  Returns the new
    first cohort, its share left, seconds of each replica that prompts took, steps with prompts on each, and requests begun.
    """
    n, law = f.now, f.law
    size = law[BIN]
    budget = max(1.0, law[BATCH_TOKENS] - n[RUNNING] / max(1.0, n[READY]))
    most = max(1.0, size / n[STEP_SECONDS])
    admitted = max(1e-9, room)
    tight = n[QUEUED] > room
    spent, mixed, pure, begun, each = 0.0, 0.0, 0.0, 0.0, max(1e-9, replicas)
    while first < last:
        part = left
        requests = f.arrivals[first] * part * f.weight[first]
        if requests <= 0.0:
            first, left = first + 1, 1.0
            continue
        seconds = f.prefill_seconds[first] * part * f.weight[first] / n[FACTOR] / each
        tokens = f.fresh_tokens[first] * part * f.weight[first] / each
        # Each step with prompts holds at most the budget, and pays the decode step it goes with.
        longest = seconds + tokens / budget * step
        fits = min(1.0, (size - spent) / longest) if longest > 0.0 else 1.0
        fits = min(fits, room / requests)
        if fits <= 1e-9:
            break
        instants = max(tokens / budget, most * (1.0 - math.exp(-requests / each / most))) * fits
        spent_after = spent + longest * fits
        start = first * size
        alone = f.prefill_seconds[first] / max(1e-9, f.arrivals[first]) / n[FACTOR]
        own = law[INGRESS] + 1.5 * step + alone + n[BEHIND]
        if first == f.at[ARRIVED] - 1 and left == 1.0 and fits == 1.0 and not tight:
            # Served in the second in which it came: only those ahead in its step are waited for.
            wait = own
            instant = start + 0.5 * size + own
        else:
            place = 0.5 * (spent + spent_after)
            if tight:
                place = max(place, size * (begun + 0.5 * requests * fits) / admitted)
            instant = n[AT] + min(size, place) + step
            wait = max(own, instant - start - 0.5 * size)
            instant = start + 0.5 * size + wait
        begin(f, first, part * fits, instant, wait, alone)
        n[PREFILLING] += requests * fits * (step + alone) / size
        n[QUEUEING] += requests * fits * 0.5 * step / size
        room -= requests * fits
        begun += requests * fits
        pure += seconds * fits
        spent = spent_after
        mixed += instants
        if fits < 1.0:
            left = part * (1.0 - fits)
            break
        first, left = first + 1, 1.0
    return first, left, pure, mixed, begun


@compiled
def end(f: Any, i: int, j: int, last: float, step: float, until: float) -> None:
    """Share `j` of cohort `i` made its last token when the clock stood at `last`."""
    n, law, h = f.now, f.law, f.histograms
    requests = f.shares[i, j] * f.weight[i]
    if requests <= 0.0:
        return
    output = f.outputs[j]
    gaps = output - 1.0
    ended = until - (n[CLOCK] - last) * step
    spent = max(0.0, ended - f.begun_seconds[i])
    slow, told = 0.0, 0.0
    place = late_place(ITL_BOUNDS, law[ITL_LIMIT])
    if gaps >= 0.5:
        # What others' prompts add to its decoding: how many come meanwhile, and how long each is.
        idle = max(0.02, 1.0 - n[SEEN_RATE])
        added = spent * n[SEEN_RATE]
        # What the arrivals of the whole pool scatter from bin to bin is in the flow already.
        own = (1.0 - math.exp(-spent / law[BIN])) / max(1.0, n[READY])
        uneven = max(0.0, n[UNEVEN] - own)
        uneven += (1.0 - own - uneven) * math.exp(-min(50.0, 3.0 * n[COUNT_RATE] * spent))
        alike = n[RAW_RATE] * n[RAW_RATE] / max(1e-9, n[COUNT_RATE])
        per_second = _TAMED * (1.0 - own) * max(0.0, n[SQUARE_RATE] - alike) + _TAMED_COUNT * uneven * alike
        variance = per_second * spent / (idle * idle)
        slow = above(added, variance, gaps * law[ITL_LIMIT] - (spent - added))
        if law[OBSERVED] > 0.0 and place > 0:  # what a scraper sees of the same tail
            told = above(added, variance, gaps * ITL_BOUNDS[place - 1] - (spent - added))
    f.violated[i] += requests * (1.0 - (1.0 - f.late[i]) * (1.0 - slow))
    n[RUNNING] -= requests
    n[MOMENT] -= requests * (until - ended)
    n[CONTEXT] -= requests * f.prompt_tokens[i] / f.arrivals[i]
    n[BEGUN] -= requests * f.begun_clock[i]
    f.counts[FINISHED] += requests
    whole = ended - (i + 0.5) * law[BIN]
    f.counts[E2E_SUM] += requests * whole
    f.counts[OUTPUT_SUM] += requests * output
    if gaps > 0.0:
        f.counts[TPOT_SUM] += requests * spent / gaps
    if law[OBSERVED] > 0.0:
        h[E2E_AT + bucket(E2E_BOUNDS, whole)] += requests
        h[OUTPUT_AT + bucket(LENGTH_BOUNDS, output)] += requests
        if gaps > 0.0:
            usual = bucket(ITL_BOUNDS, spent / gaps)
            h[TPOT_AT + usual] += requests * (1.0 - told)
            h[TPOT_AT + max(usual, place)] += requests * told


@compiled
def finish(f: Any, step: float, until: float) -> None:
    """End the shares whose last token the clock has passed."""
    clock = f.now[CLOCK]
    for j in range(f.outputs.size):
        gaps = f.outputs[j] - 1.0
        i = f.ends[0, j]
        while i < f.at[HEAD]:
            if f.arrivals[i] > 0.0 and (f.done[i] >> j) & 1 == 0:
                if clock < f.begun_clock[i] + gaps:
                    break
                end(f, i, j, f.begun_clock[i] + gaps, step, until)
            i += 1
        f.ends[0, j] = i
        if f.now[STUCK_REPLICAS] > 0.0:
            i = max(f.ends[1, j], f.at[STUCK_END])
            while i < f.at[FRESH]:
                if f.arrivals[i] > 0.0:
                    if clock < f.begun_clock[i] + gaps:
                        break
                    end(f, i, j, f.begun_clock[i] + gaps, step, until)
                    f.done[i] |= 1 << j
                i += 1
            f.ends[1, j] = i
    if f.now[RUNNING] < 1e-6:
        f.now[RUNNING], f.now[CONTEXT], f.now[BEGUN] = 0.0, 0.0, 0.0


@compiled
def context_tokens(f: Any) -> float:
    """Tokens of context of all that runs."""
    n = f.now
    tokens: float = n[CONTEXT] + max(0.0, n[RUNNING] * n[CLOCK] - n[BEGUN])
    return tokens


@compiled
def step_seconds(f: Any, sequences: float, context: float) -> float:
    """A decode step with so many sequences, and tokens of context, on each replica."""
    law = f.law
    base = law[FIXED] + law[PER_TOKEN] * max(law[FLOOR], sequences) + law[PER_SEQUENCE] * sequences
    seconds: float = (base + law[PER_CONTEXT] * context) / f.now[FACTOR]
    return seconds


@compiled
def serve(f: Any, room: float, step: float) -> Any:
    """Prompts of a bin, by those that have the stuck backlog and by the others; seconds and steps of each ready replica."""
    n, at, size = f.now, f.at, f.law[BIN]
    if n[STUCK_REPLICAS] > 0.0:
        old = min(n[STUCK_REPLICAS], n[READY])
        behind = max(0.0, n[QUEUED] - n[FRESH_QUEUED])
        if behind * (n[READY] - old) < n[FRESH_QUEUED] * old:
            # The newcomers hold as much as the others: what comes goes to all.
            old = n[READY] * behind / n[QUEUED]
        new = n[READY] - old
        # Those with the backlog go on as before: what they decode is theirs too.
        most = old * size * n[BEGIN_RATE] if n[BEGIN_RATE] > 0.0 else room
        share = min(room * old / n[READY], most)
        first, left, one, some, _ = prefill(f, at[HEAD], n[HEAD_LEFT], at[STUCK_END], old, share, step)
        at[HEAD], n[HEAD_LEFT] = first, left
        first, left, two, more, begun = prefill(
            f, at[FRESH], n[FRESH_LEFT], at[ARRIVED], new, room * new / n[READY], step
        )
        at[FRESH], n[FRESH_LEFT] = first, left
        n[FRESH_QUEUED] = max(0.0, n[FRESH_QUEUED] - begun)
        spent = (one * old + two * new) / n[READY]
        mixed = (some * old + more * new) / n[READY]
        if at[HEAD] >= at[STUCK_END]:
            at[HEAD], n[HEAD_LEFT], n[STUCK_REPLICAS] = at[FRESH], n[FRESH_LEFT], 0.0
    else:
        first, left, spent, mixed, begun = prefill(f, at[HEAD], n[HEAD_LEFT], at[ARRIVED], n[READY], room, step)
        at[HEAD], n[HEAD_LEFT] = first, left
        if first < at[ARRIVED]:
            keep = math.exp(-size / _SMOOTH_SECONDS) if n[BEGIN_RATE] > 0.0 else 0.0
            n[BEGIN_RATE] = keep * n[BEGIN_RATE] + (1.0 - keep) * begun / n[READY] / size
        else:
            n[BEGIN_RATE] = 0.0
    return spent, mixed


@compiled
def observe(
    f: Any, replicas: float, seen: float, step: float, steps: float, mixed: float, work: float, computed: float
) -> None:
    """Count the engine steps of a bin: `mixed` of them on each replica hold `computed` tokens of prompts in all."""
    size, running, h = f.law[BIN], f.now[MEAN_RUNNING], f.histograms
    busy = min(replicas, running)
    f.counts[STEPS] += busy * steps
    f.counts[BUSY] += busy * size
    f.counts[DECODE_SECONDS] += running * size
    f.counts[ITL_SUM] += running * size
    f.counts[STEP_SUM] += busy * steps * seen + computed
    if f.law[OBSERVED] == 0.0:
        return
    plain = max(0.0, steps - mixed)
    h[ITL_AT + bucket(ITL_BOUNDS, step)] += running * plain
    h[STEP_AT + bucket(STEP_BOUNDS, seen)] += busy * plain
    if mixed > 0.0:
        h[ITL_AT + bucket(ITL_BOUNDS, step + work / mixed)] += running * mixed
        h[STEP_AT + bucket(STEP_BOUNDS, seen + computed / replicas / mixed)] += busy * mixed


@compiled
def place(f: Any, first: int, last: int, steps_per_second: float) -> None:
    """Say at which step cohorts [first, last] began, now that the pace of the bin is known."""
    for i in range(first, min(last + 1, f.at[ARRIVED])):
        if f.pending[i] != 0.0:
            later = f.pending[i] * steps_per_second
            f.begun_clock[i] += later
            f.now[BEGUN] += later * f.arrivals[i] * f.weight[i]
            f.pending[i] = 0.0


@compiled
def one_bin(f: Any) -> None:
    """The next bin: arrivals, prefill, decoding, ends."""
    n, law, at = f.now, f.law, f.at
    size, i = law[BIN], f.at[ARRIVED]
    if i < f.arrivals.size:
        at[ARRIVED] = i + 1
        n[QUEUED] += f.arrivals[i]
        if n[STUCK_REPLICAS] > 0.0:
            n[FRESH_QUEUED] += f.arrivals[i]
        n[QUEUED_TOKENS] += f.fresh_tokens[i]
        f.counts[ARRIVALS] += f.arrivals[i]
        f.counts[ARRIVED_TOKENS] += f.prompt_tokens[i]
    computed = f.counts[COMPUTED]
    replicas = n[READY] + n[LEAVING]
    if replicas <= 0.0:
        n[AT] += size
        return
    seen = max(1.0, n[MEAN_RUNNING] / replicas)
    held = context_tokens(f)
    context = seen * held / n[RUNNING] if n[RUNNING] > 1e-9 else 0.0
    step = step_seconds(f, seen, context)
    n[STEP_SECONDS] = step / max(0.02, 1.0 - n[SEEN_RATE])
    n[MOMENT] = n[RUNNING] * size
    n[UNEVEN] = max(1.0, n[READY]) ** -law[EVENING]
    spread = n[SQUARE_RATE] - (1.0 - n[UNEVEN]) * n[RAW_RATE] * n[RAW_RATE] / max(1e-9, n[COUNT_RATE])
    n[BEHIND] = 0.5 * max(0.0, spread) / max(0.05, 1.0 - n[WORK_RATE])
    n[PREFILLING], n[QUEUEING] = 0.0, 0.0
    spent, mixed, first, fresh = 0.0, 0.0, at[HEAD], at[FRESH]
    if n[READY] > 0.0 and at[HEAD] < at[ARRIVED]:
        room = n[READY] * law[SEATS] - n[RUNNING] * n[READY] / replicas
        per_prompt = max(1.0, n[QUEUED_TOKENS] / max(1e-9, n[QUEUED]) + law[KV_BLOCK])
        kv = n[READY] * law[KV_CAPACITY] - (held + n[RUNNING] * 0.5 * law[KV_BLOCK]) * n[READY] / replicas
        spent, mixed = serve(f, max(0.0, min(room, kv / per_prompt) + n[ENDED] * n[READY] / replicas), step)
    # Tokens of prompts below the floor of a step cost nothing.
    free = mixed * law[PER_TOKEN] / n[FACTOR] * max(0.0, law[FLOOR] - seen)
    work = max(0.0, spent - free)
    # Routing sends prompts to where little runs, so that what runs sees fewer of them.
    met = 1.0
    if law[CHOICES] > 0.0 and n[READY] > 1.0:
        met -= math.exp(-(_AVOIDED + _AVOIDED_ALONE / n[READY]) * n[MEAN_RUNNING] / replicas)
    if i < f.arrivals.size:
        # Nobody's own prompt is in its way.
        met *= 1.0 - 1.0 / max(1.0, f.arrivals[i] + n[MEAN_RUNNING])
    steps = max(0.0, size - work * met) / step
    decay = math.exp(-size / _SMOOTH_SECONDS)
    n[WORK_RATE] = decay * n[WORK_RATE] + (1.0 - decay) * min(1.0, work / size)
    n[SEEN_RATE] = n[WORK_RATE] * met
    each = n[FACTOR] * max(1.0, n[READY]) * size
    if i < f.arrivals.size:
        n[SQUARE_RATE] = decay * n[SQUARE_RATE] + (1.0 - decay) * f.prefill_squares[i] / (n[FACTOR] * each)
        n[RAW_RATE] = decay * n[RAW_RATE] + (1.0 - decay) * f.prefill_seconds[i] / each
        n[COUNT_RATE] = decay * n[COUNT_RATE] + (1.0 - decay) * f.arrivals[i] * n[FACTOR] / each
    n[AT] += size
    if n[RUNNING] > 0.0:
        place(f, first, at[HEAD], steps / size)
        if fresh > first or at[FRESH] > at[HEAD]:
            place(f, fresh, at[FRESH], steps / size)
        n[CLOCK] += steps
        n[STEP_SECONDS] = size / max(1e-9, steps)
        observe(f, replicas, seen, step, steps, mixed, work, f.counts[COMPUTED] - computed)
        finished = f.counts[FINISHED]
        finish(f, n[STEP_SECONDS], n[AT])
        n[ENDED] = f.counts[FINISHED] - finished
    mean = max(0.0, n[MOMENT] / size)
    f.counts[OUTPUTS] += mean * steps
    n[MEAN_RUNNING] = mean


@cached
def advance(f: Any, until: float) -> None:
    """All bins that end by `until`."""
    while f.now[AT] + f.law[BIN] <= until + 1e-9:
        one_bin(f)


@cached
def in_flight(f: Any, before: int) -> float:
    """Requests of cohorts before bin `before` that have not ended."""
    total = 0.0
    for j in range(f.outputs.size):
        for i in range(f.ends[0, j], min(before, f.at[ARRIVED])):
            if (f.done[i] >> j) & 1 == 0:
                total += f.shares[i, j] * f.weight[i]
    return total


@cached
def context(f: Any) -> float:
    """Tokens of context of all that runs."""
    return context_tokens(f)


@cached
def split(f: Any) -> None:
    """Replicas are about to join: a backlog stays with those that are there."""
    n, at = f.now, f.at
    if n[READY] > 0.0 and n[STUCK_REPLICAS] == 0.0 and at[HEAD] < at[ARRIVED]:
        n[STUCK_REPLICAS] = n[READY]
        at[STUCK_END], at[FRESH], n[FRESH_LEFT], n[FRESH_QUEUED] = at[ARRIVED], at[ARRIVED], 1.0, 0.0


@cached
def lose(f: Any, share: float) -> None:
    """A `share` of all that is in flight or queued fails."""
    oldest = f.at[ARRIVED]
    for j in range(f.outputs.size):
        oldest = min(oldest, f.ends[0, j])
    for i in range(oldest, f.at[ARRIVED]):
        waiting = 0.0
        for j in range(f.outputs.size):
            if f.ends[0, j] <= i and (f.done[i] >> j) & 1 == 0:
                waiting += f.shares[i, j]
        lost = waiting * f.weight[i] * share
        f.violated[i] += lost
        f.counts[FAILURES] += lost
        f.weight[i] *= 1.0 - share
    for place in (RUNNING, CONTEXT, BEGUN, QUEUED, QUEUED_TOKENS, FRESH_QUEUED):
        f.now[place] *= 1.0 - share


@cached
def count_open(f: Any, violated: Floats) -> None:
    """Add what has not ended to `violated`."""
    for j in range(f.outputs.size):
        for i in range(f.ends[0, j], f.arrivals.size):
            if (f.done[i] >> j) & 1 == 0:
                violated[i] += f.shares[i, j] * f.weight[i]
