"""Learn the step law of a replica from what a scraper saw of it.

One window of a pool that is never idle is one equation: so many replica-seconds held so many steps, prefill tokens, decode
tokens and tokens of context, and the law is additive.

    linear   seconds = a*steps + b*prefill + c*decode + d*context
    floor    seconds = a*steps + b*sum(max(floor, tokens of the step)) + c'*decode + d*context        with c = b + c'

Coefficients are >= 0 and minimise the squared relative error.  A prior holds every coefficient that the data cannot tell
from the others: each is what the prior law says, give or take a share of it.  Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import median

from autoscaler.types import Histogram, Observation
from serving.closed_forms import Law

LEAST_RUNNING, MEAN_RUNNING = 2.0, 4.0  # per replica: at both ends of a window, and on average; fewer are idle at times
LEAST_STEPS = 20.0
ROW_SECONDS = 10.0  # shorter windows are put together
FLOORS = (0.0, 16.0, 32.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0)
# A floor other than the prior's must leave this much less error: buckets alone make a difference of 0.3 %.
FLOOR_GAIN, FLOOR_SHARE = 0.005, 0.2
HUBER = 1.345  # standard deviations beyond which a window pulls linearly
LEAST_SIGMA = 0.01  # of a window's relative error: gauges and neighbours are never quieter
LENGTHS_MEMORY = 0.9  # of the lengths of finished requests, per window: those in flight are like the last finished ones
TURNS = 5

Vector = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One window: busy replica-seconds and what the engines did in them.

    `pairs` are attention pairs of prefill, `running` the mean number of requests in the batch of a replica, `step_tokens`
    the tokens of its steps as a histogram, where known.
    """

    at_seconds: int
    seconds: float
    steps: float
    prefill: float
    decode: float
    context: float
    pairs: float
    running: float
    step_tokens: Histogram | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A law, how much of each of a, b, c, d the data told (0: the prior, 1: the data), and the relative error left.

    `sigma` is the standard deviation of a window's relative error, robustly.
    """

    law: Law
    told: Vector
    sigma: float
    rows: int


def rows_of(observations: Sequence[Observation], kv_capacity_tokens: float | None = None) -> tuple[list[Row], str]:
    """Windows that say something of the step law, and why the others do not (for a person, most frequent reason first).

    The context comes from the lengths of finished requests; where the source has none, from the KV cache in use, if its
    capacity is known.
    """
    rows: list[Row] = []
    reasons: dict[str, int] = {}
    parts: list[tuple[Observation, Observation]] = []
    lengths = _Lengths()
    for before, now in pairwise(observations):
        lengths.see(now)
        reason = _unfit(before, now, lengths, kv_capacity_tokens)
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
            parts.clear()
            continue
        parts.append((before, now))
        if sum(o.window_seconds for _, o in parts) >= ROW_SECONDS:
            row = _row(parts, lengths, kv_capacity_tokens)
            if row is not None:
                rows.append(row)
            parts.clear()
    told = sorted(reasons.items(), key=lambda item: -item[1])
    return rows, "; ".join(f"{count} windows {reason}" for reason, count in told)


class _Lengths:
    """Decayed sums over finished requests: count, prompt, prompt squared, output, output squared."""

    def __init__(self) -> None:
        self.sums: list[float] = [0.0] * 5

    def see(self, observation: Observation) -> None:
        demand = observation.demand
        if demand is None or demand.prompt_lengths is None or demand.output_lengths is None:
            return
        prompt, output = _moments(demand.prompt_lengths), _moments(demand.output_lengths)
        if prompt is None or output is None:
            return
        new = (prompt[0], prompt[1], prompt[2], output[1] * prompt[0] / output[0], output[2] * prompt[0] / output[0])
        self.sums = [LENGTHS_MEMORY * old + value for old, value in zip(self.sums, new, strict=True)]

    @property
    def known(self) -> bool:
        return self.sums[0] > 0.0 and self.sums[3] > 0.0

    @property
    def context(self) -> float:
        """E[y (x + y/2)] / E[y]: tokens of context that an output token meets, lengths being independent."""
        count, prompt, _, output, output_square = self.sums
        return prompt / count + output_square / (2.0 * output)

    @property
    def pairs_per_token(self) -> float:
        """E[x^2] / (2 E[x]): attention pairs per prefill token."""
        return self.sums[2] / (2.0 * self.sums[1]) if self.sums[1] > 0.0 else 0.0


def _moments(histogram: Histogram) -> tuple[float, float, float] | None:
    """(count, sum, sum of squares): squares by the middle of buckets, scaled to the sum where that is known."""
    count = histogram.total
    if count <= 0.0:
        return None
    total = square = 0.0
    lower = 0.0
    for upper, n in zip((*histogram.upper_bounds, None), histogram.counts, strict=True):
        top = 2.0 * lower if upper is None else upper
        total += n * (lower + top) / 2.0
        square += n * (lower * lower + lower * top + top * top) / 3.0
        lower = top
    if histogram.sum is not None and total > 0.0:
        scale = histogram.sum / total
        return count, histogram.sum, square * scale * scale
    return count, total, square


def _unfit(before: Observation, now: Observation, lengths: _Lengths, kv_capacity: float | None) -> str:
    """Why a window says nothing; empty if it does."""
    load, earlier, demand = now.load, before.load, now.demand
    if load is None or earlier is None or demand is None:
        return "were not measured"
    ready = now.replicas.ready
    if ready < 1 or ready != before.replicas.ready or now.replicas.draining or before.replicas.draining:
        return "had replicas come or go"
    if load.replicas_reporting not in (None, ready) or earlier.replicas_reporting not in (None, ready):
        return "lacked a replica's answer"
    if load.engine_steps is None or demand.output_tokens is None:
        return "lacked load.engine_steps or demand.output_tokens"
    if load.step_tokens is None and demand.prompt_tokens is None:
        return "lacked load.step_tokens and demand.prompt_tokens"
    if not lengths.known and (load.kv_cache_fraction is None or kv_capacity is None):
        return "lacked lengths of requests"
    if load.running_requests is None or earlier.running_requests is None:
        return "lacked load.running_requests"
    ends = load.running_requests / ready, earlier.running_requests / ready
    if min(ends) < LEAST_RUNNING or sum(ends) / 2.0 < MEAN_RUNNING:
        return f"had fewer than {MEAN_RUNNING:g} requests running on a replica, which is idle at times then"
    return ""


def _row(parts: Sequence[tuple[Observation, Observation]], lengths: _Lengths, kv_capacity: float | None) -> Row | None:
    seconds = steps = prefill = decode = running = kv = 0.0
    counts: list[float] = []
    bounds: Vector | None = None
    tokens = 0.0
    whole = True
    for before, now in parts:
        load, demand = now.load, now.demand
        assert load is not None
        assert demand is not None
        assert before.load is not None
        made = demand.output_tokens or 0.0
        first = now.latency.ttft.total if now.latency is not None and now.latency.ttft is not None else 0.0
        seconds += now.replicas.ready * now.window_seconds
        steps += load.engine_steps or 0.0
        decode += max(0.0, made - first)
        ends = (load.running_requests or 0.0) + (before.load.running_requests or 0.0)
        running += ends / 2.0 * now.window_seconds
        kv += (load.kv_cache_fraction or 0.0) * now.window_seconds
        h = load.step_tokens
        if h is None or h.sum is None or (bounds is not None and h.upper_bounds != bounds):
            prefill += max(0.0, (demand.prompt_tokens or 0.0) - (demand.cached_prompt_tokens or 0.0))
            whole = False
            continue
        prefill += max(0.0, h.sum - made)
        bounds, tokens = h.upper_bounds, tokens + h.sum
        counts = [a + b for a, b in zip(counts, h.counts, strict=True)] if counts else list(h.counts)
    if steps < LEAST_STEPS or decode <= 0.0:
        return None
    window = sum(now.window_seconds for _, now in parts)
    context = decode * lengths.context if lengths.known else steps * kv / window * (kv_capacity or 0.0)
    told = whole and bounds is not None
    return Row(
        at_seconds=parts[-1][1].at_seconds, seconds=seconds, steps=steps, prefill=prefill, decode=decode,
        context=context, pairs=prefill * lengths.pairs_per_token, running=running / seconds,
        step_tokens=Histogram(upper_bounds=bounds or (), counts=tuple(counts), sum=tokens) if told else None,
    )  # fmt: skip


def floored_tokens(row: Row, floor: float) -> float:
    """Sum over the steps of max(floor, tokens of the step); by the middle of buckets below the floor."""
    histogram = row.step_tokens
    total = row.prefill + row.decode
    if floor <= 0.0:
        return total
    if histogram is None:
        return max(total, floor * row.steps)
    lower, missing = 0.0, 0.0
    for upper, count in zip(histogram.upper_bounds, histogram.counts, strict=False):
        if lower >= floor:
            break
        # Within a bucket tokens are taken as even; what is short of the floor is added.
        top = min(upper, floor)
        missing += count * (top - lower) / (upper - lower) * (floor - (lower + top) / 2.0)
        lower = upper
    return total + missing


def fit(rows: Sequence[Row], prior: Law, spread: float, floor: float | None = None) -> Fit:
    """The floor law that `rows` tell, held by `prior` to within its `spread` (a share of each coefficient).

    A prior without a floor asks for the linear law, in which decode tokens cost no b.  `floor` fixes the floor; None finds
    it.  Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("there is no window to fit")
    if floor is not None:
        return _fit_at(rows, prior, spread, floor)
    best = _fit_at(rows, prior, spread, prior.floor)
    known = _loss(best.law, rows)
    least = min(known - FLOOR_GAIN, known * (1.0 - FLOOR_SHARE))
    for other in FLOORS:
        tried = _fit_at(rows, prior, spread, other)
        if (loss := _loss(tried.law, rows)) < least:
            best, least = tried, loss
    return best


def _loss(law: Law, rows: Sequence[Row]) -> float:
    """Mean absolute relative error: a few wrong windows cannot choose a floor by it."""
    return sum(abs(seconds_of(law, r) / r.seconds - 1.0) for r in rows) / len(rows)


def fit_linear(rows: Sequence[Row], prior: Law, spread: float) -> Fit:
    """The linear law, for planning: decode tokens cost c alone."""
    table = [(r.steps, r.prefill, r.decode, r.context) for r in rows]
    z, told, sigma = _solve(table, _targets(rows, prior.e), (prior.a, prior.b, prior.c, prior.d), spread)
    law = Law(a=z[0], b=z[1], c=z[2], d=z[3], e=prior.e)
    return Fit(law=law, told=told, sigma=sigma, rows=len(rows))


def _fit_at(rows: Sequence[Row], prior: Law, spread: float, floor: float) -> Fit:
    table = [(r.steps, floored_tokens(r, floor), r.decode, r.context) for r in rows]
    extra = max(prior.c - prior.b, 0.1 * prior.c)
    # Steps below the floor cost what the prior says, whichever way its floor divides that between a and b.
    fixed = max(0.1 * prior.a, prior.a + prior.b * (prior.floor - floor))
    z, told, sigma = _solve(table, _targets(rows, prior.e), (fixed, prior.b, extra, prior.d), spread)
    law = Law(a=z[0], b=z[1], c=z[1] + z[2], d=z[3], e=prior.e, floor=floor)
    return Fit(law=law, told=told, sigma=sigma, rows=len(rows))


def _targets(rows: Sequence[Row], e: float) -> list[float]:
    """Seconds less what attention in prefill takes, which the windows cannot tell apart from the rest."""
    return [max(0.1 * r.seconds, r.seconds - e * r.pairs) for r in rows]


def scaled_to(prior: Law, rows: Sequence[Row]) -> Law:
    """The prior times the one factor that makes its median error zero: a shape for a replica of unknown speed."""
    factor = median(r.seconds / seconds_of(prior, r) for r in rows)
    return Law(
        a=prior.a * factor, b=prior.b * factor, c=prior.c * factor, d=prior.d * factor, e=prior.e * factor,
        floor=prior.floor,
    )  # fmt: skip


def seconds_of(law: Law, row: Row) -> float:
    """Replica-seconds that the law predicts for a window."""
    idle = max(0.0, floored_tokens(row, law.floor) - row.prefill - row.decode)
    busy = law.a * row.steps + law.b * (row.prefill + idle) + law.c * row.decode
    return busy + law.d * row.context + law.e * row.pairs


def _solve(
    table: Sequence[Vector], target: Sequence[float], prior: Vector, spread: float
) -> tuple[Vector, Vector, float]:
    """(coefficients >= 0, told, sigma) of the robust relative least squares with a prior."""
    size = len(prior)
    scale = tuple(max(p, 1e-12) for p in prior)
    rows = [tuple(x * s / y for x, s in zip(line, scale, strict=True)) for line, y in zip(table, target, strict=True)]
    weights = [1.0] * len(rows)
    sigma = 0.1
    z: Vector = (1.0,) * size
    data = [[0.0] * size for _ in range(size)]
    for _ in range(TURNS):
        data, right = _normal(rows, weights)
        held = (sigma / spread) ** 2
        gram = [[data[i][j] + (held if i == j else 0.0) for j in range(size)] for i in range(size)]
        z = _nonnegative(gram, [r + held for r in right])
        errors = [sum(a * b for a, b in zip(row, z, strict=True)) - 1.0 for row in rows]
        sigma = max(LEAST_SIGMA, 1.4826 * median(abs(e) for e in errors))
        weights = [min(1.0, HUBER * sigma / max(abs(e), 1e-12)) for e in errors]
    told = _told(data, (sigma / spread) ** 2)
    return tuple(v * s for v, s in zip(z, scale, strict=True)), told, sigma


def _normal(rows: Sequence[Vector], weights: Sequence[float]) -> tuple[list[list[float]], list[float]]:
    size = len(rows[0])
    gram = [[0.0] * size for _ in range(size)]
    right = [0.0] * size
    for row, weight in zip(rows, weights, strict=True):
        for i in range(size):
            here = weight * row[i]
            right[i] += here
            for j in range(i, size):
                gram[i][j] += here * row[j]
    for i in range(size):
        for j in range(i):
            gram[i][j] = gram[j][i]
    return gram, right


def _nonnegative(gram: list[list[float]], right: list[float]) -> Vector:
    """The z >= 0 that minimises z'Gz/2 - r'z, by trying every set of positive ones (few columns only)."""
    size = len(right)
    best, least = (0.0,) * size, 0.0
    for many in range(1, size + 1):
        for chosen in combinations(range(size), many):
            part = solve([[gram[i][j] for j in chosen] for i in chosen], [right[i] for i in chosen])
            if part is None or min(part) < 0.0:
                continue
            value = -sum(p * right[i] for p, i in zip(part, chosen, strict=True)) / 2.0
            if value < least:
                least = value
                best = tuple(part[chosen.index(i)] if i in chosen else 0.0 for i in range(size))
    return best


def _told(data: list[list[float]], held: float) -> Vector:
    """Diagonal of (D + P)^-1 D, the resolution: the share of each coefficient that the data decide."""
    size = len(data)
    whole = [[data[i][j] + (held if i == j else 0.0) for j in range(size)] for i in range(size)]
    shares = []
    for k in range(size):
        column = solve(whole, [data[i][k] for i in range(size)])
        shares.append(min(1.0, max(0.0, column[k])) if column is not None else 0.0)
    return tuple(shares)


def solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """The solution of a small system by elimination with pivots; None where there is none."""
    rows = [[*line, value] for line, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for k in range(size):
        pivot = max(range(k, size), key=lambda i: abs(rows[i][k]))
        if abs(rows[pivot][k]) < 1e-300 or not math.isfinite(rows[pivot][k]):
            return None
        rows[k], rows[pivot] = rows[pivot], rows[k]
        for i in range(size):
            if i != k and rows[i][k] != 0.0:
                factor = rows[i][k] / rows[k][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [rows[k][size] / rows[k][k] for k in range(size)]
