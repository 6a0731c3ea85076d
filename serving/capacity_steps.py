"""The step law of a replica, learned tick by tick: sums over windows of counters that forget, and the law they tell.

A window in which engines were busy for so many seconds is one equation over what they did meanwhile (steps, tokens of steps
of at least a floor, output tokens, tokens of context), divided by the seconds: errors are relative.  Columns are
counted in seconds of the prior law, so that every coefficient is a multiple of the prior's, and the prior is (1, 1, 1, 1).
`serving.step_fit` fits recorded windows all at once; this keeps a fixed number of sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

from autoscaler.copies import replace
from autoscaler.types import Histogram, Observation
from serving.closed_forms import Law, Mix
from serving.step_fit import solve

LEAST_STEPS = 20.0
FULL_RUNNING, MEAN_RUNNING = 2.0, 4.0  # per replica, at both ends and on average: fewer are idle at times
PARTLY_IDLE = 0.25  # weight of a window whose idle time only the GPU's utilization tells
SETTLE_SECONDS = 60  # after replicas came or went: caches are cold, and counters of the departed are in the sums
HALF_LIFE_SECONDS = 21_600.0
FLOORS = (0.0, 32.0, 64.0, 96.0, 128.0, 192.0, 256.0)
# Relative error of a window that a profile's law, or a generic one, is weighed against.
NOISE, GENERIC_NOISE = 0.05, 0.02
# How likely laws with other floors are: errors of windows are at least so large, and so many neighbours err alike.
QUIET, ALIKE = 0.003, 4.0
# A known profile has the floor that it says rather than none, by these odds (logarithm).  Of an unknown replica's decode
# steps, about this share is room below the floor, give or take; and it goes to another law once its own is so unlikely.
KNOWN_ODDS, ROOM, ROOM_SIGMA, UNLIKELY = 1.0, 0.5, 0.25, 0.2
LEAST_TOKENS = 0.05  # of the prior's cost of tokens, at the fitted scale: no prefill is free
SQUARES_HALF_LIFE_SECONDS = 3600.0
UNUSUAL = 3.0  # times the usual prompt, either way: then prefills happen elsewhere, or other lengths are not told yet
FEW_PROMPTS = 0.5  # requests that the usual prompt is worth among those of a window
LEAST_SIGMA, GATE = 0.03, 6.63  # chi-square, one degree of freedom, 99 %
SLACK, DOUBT, ALARM = 0.5, 2.0, 8.0  # of the cumulative sums, in standard deviations
KEPT = 0.05  # of the sums, after a drift
PACE_HALF_LIFE_SECONDS = 1200.0
FASTER = 1.05  # that a window's pace counts at most: a queue that drains ends slow answers while steps are short again
TRUSTED_ROWS = 20.0  # before so many windows nothing is gated and nothing drifts
WARNED_SECONDS = 600

Sums = tuple[float, ...]
Shapes = tuple[Law, ...]  # laws that may be the replica's, but for their coefficients' sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBeliefs:
    """Decayed sums over windows, and what watches them.

    `gram`: upper triangle of the columns' products, `right`: columns times target, `square`: target times target,
    `weight`: sum of weights.  `sigma`: relative error of a window.  `up`, `down`: cumulative sums of errors; `gated`: decayed
    share of windows left out.  `drifts`: so often the law was forgotten, the last time at `drift_at_seconds`; errors lasted
    at `warned_at_seconds`: a law fitted anew has a while to explain them first.
    `pace`: share of the time that steps account for, as far as latencies between tokens tell, over about half an hour.
    `prompts`: prompt tokens prefilled and their requests, over about an answer's stay.  `squares`: attention pairs as the
    usual lengths have them, and as large steps do, over about an hour.
    """

    gram: Sums = ()
    right: Sums = ()
    square: float = 0.0
    weight: float = 0.0
    sigma: float = 0.1
    up: float = 0.0
    down: float = 0.0
    gated: float = 0.0
    drifts: int = 0
    drift_at_seconds: int | None = None
    warned_at_seconds: int | None = None
    ready: int = 0
    ready_since_seconds: int = 0
    running: float | None = None
    pace: float | None = None
    prompts: tuple[float, float] = (0.0, 0.0)
    squares: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What engines did in a window: busy replica-seconds and counts; `weight` of the equation.

    `requests` got their first token.
    """

    seconds: float
    steps: float
    prefill: float
    decode: float
    context: float
    pairs: float
    requests: float
    weight: float
    step_tokens: Histogram | None


def window_of(beliefs: StepBeliefs, now: Observation, mix: Mix, cached: float = 0.0) -> Window | None:
    """The window that ends `now`, if it tells something of the law; `mix` gives the context, `beliefs` what was before.

    `cached`: share of prompt tokens that are found in the prefix cache; the others attend to them.
    """
    load, demand, ready = now.load, now.demand, now.replicas.ready
    if load is None or demand is None or demand.output_tokens is None or ready < 1 or now.replicas.draining:
        return None
    if ready != beliefs.ready or now.at_seconds - beliefs.ready_since_seconds < SETTLE_SECONDS:
        return None
    if load.replicas_reporting not in (None, ready) or not load.engine_steps or load.engine_steps < LEAST_STEPS:
        return None
    seconds, weight = _busy(beliefs, now, ready)
    if stuck(beliefs, now) >= 1:
        return None
    h = load.step_tokens
    if seconds <= 0.0 or ((h is None or h.sum is None) and demand.prompt_tokens is None):
        return None
    prefill, decode, first = _tokens(now)
    window = Window(
        seconds=seconds, steps=load.engine_steps, prefill=prefill, decode=decode, context=0.0,
        pairs=_usual_pairs(prefill, mix, cached), requests=first, weight=weight, step_tokens=h,
    )  # fmt: skip
    met, usual = beliefs.prompts, mix.prompt * (1.0 - cached)
    longer = (met[0] / usual + FEW_PROMPTS) / (met[1] + FEW_PROMPTS)
    prompt = mix.prompt * (longer if 1.0 / UNUSUAL < longer < UNUSUAL else 1.0)
    implied, by_size = beliefs.squares
    pairs = window.pairs if by_size <= 0.0 else pairs_by_size(h, load.engine_steps, prefill, decode) * implied / by_size
    return replace(window, context=decode * (prompt + mix.context - mix.prompt), pairs=pairs)


def _tokens(now: Observation) -> tuple[float, float, float]:
    """(prefill tokens, decode tokens, requests that got their first token) of a window."""
    load, demand, latency = now.load, now.demand, now.latency
    assert load is not None
    assert demand is not None
    made, h = demand.output_tokens or 0.0, load.step_tokens
    first = latency.ttft.total if latency is not None and latency.ttft is not None else demand.requests or 0.0
    if h is not None and h.sum is not None:
        prefill = max(0.0, h.sum - made)
    else:
        prefill = max(0.0, (demand.prompt_tokens or 0.0) - (demand.cached_prompt_tokens or 0.0))
    return prefill, max(0.0, made - first), first


def with_prompts(beliefs: StepBeliefs, now: Observation, mix: Mix, cached: float = 0.0) -> StepBeliefs:
    """`beliefs` with the prompts of the window that ends `now`, which its answers have as context.

    Long prompts in a window are many tokens to prefill, much context and more attention at once.  Were context and attention
    taken at the usual lengths, their cost would be blamed on the number of prompts, which looks like a floor.
    """
    load, demand, ready = now.load, now.demand, now.replicas.ready
    if load is None or demand is None or demand.output_tokens is None or not load.engine_steps or ready < 1:
        return beliefs
    if (load.step_tokens is None or load.step_tokens.sum is None) and demand.prompt_tokens is None:
        return beliefs
    prefill, decode, first = _tokens(now)
    stay = ready * now.window_seconds / load.engine_steps * mix.output * (1.0 + mix.output_cv * mix.output_cv)
    kept, held = math.exp(-now.window_seconds / stay), 0.5 ** (now.window_seconds / SQUARES_HALF_LIFE_SECONDS)
    met, squares = beliefs.prompts, beliefs.squares
    by_size = pairs_by_size(load.step_tokens, load.engine_steps, prefill, decode)
    return replace(
        beliefs,
        prompts=(kept * met[0] + prefill, kept * met[1] + first),
        squares=(held * squares[0] + _usual_pairs(prefill, mix, cached), held * squares[1] + by_size),
    )


def _usual_pairs(prefill: float, mix: Mix, cached: float) -> float:
    """Attention pairs of so many prompt tokens at the usual lengths, of which a share of `cached` more is found."""
    return prefill * (1.0 + cached) * mix.prompt_square / (2.0 * mix.prompt)


def pairs_by_size(sizes: Histogram | None, steps: float, prefill: float, decode: float) -> float:
    """Attention pairs as if each large step was the prefill of one prompt: right in proportion, as prompts are cut and meet.

    `sizes`: tokens of the `steps`, in which so many tokens were prefilled and decoded.
    """
    if sizes is None:
        return 0.0
    batch, total, square, lower = decode / steps, 0.0, 0.0, 0.0
    for upper, count in zip((*sizes.upper_bounds, None), sizes.counts, strict=False):
        top = 2.0 * lower if upper is None else upper
        if count > 0.0 and lower >= 2.0 * batch:
            size, width = (lower + top) / 2.0 - batch, top - lower
            total += count * size
            square += count * (size * size + width * width / 12.0)
        lower = top
    return square * (prefill / total) ** 2 / 2.0 if total > 0.0 else 0.0


def _busy(beliefs: StepBeliefs, now: Observation, ready: int) -> tuple[float, float]:
    """Replica-seconds in which engines stepped, and how well that is known; 0 where it is not."""
    load = now.load
    assert load is not None
    running, before, whole = load.running_requests, beliefs.running, float(ready * now.window_seconds)
    if running is not None and before is not None:
        least, mean = min(running, before) / ready, (running + before) / 2.0 / ready
        if least >= FULL_RUNNING and mean >= MEAN_RUNNING:
            return whole, 1.0
    if load.gpu_utilization_fraction is None:
        return 0.0, 0.0
    return load.gpu_utilization_fraction * whole, PARTLY_IDLE


def pace_of(beliefs: StepBeliefs, now: Observation) -> float | None:
    """Steps times the mean latency between tokens, over the time of the ready replicas; None unless all are busy.

    Of engines that step without a pause it is about one, whatever their speed: both say how long a step takes.
    """
    load, latency, ready = now.load, now.latency, now.replicas.ready
    if load is None or latency is None or latency.itl is None or ready < 1 or not load.engine_steps:
        return None
    each, running, before = latency.itl.mean, load.running_requests, beliefs.running
    if each is None or running is None or before is None or min(running, before) < FULL_RUNNING * ready:
        return None
    return load.engine_steps * each / (ready * now.window_seconds)


def stuck(beliefs: StepBeliefs, now: Observation) -> int:
    """Replicas that hold requests and make no steps: fewer steps than usual, none of them slower.

    Their gauges stand still and nobody says so; the others' steps must not be taken for everybody's.
    """
    pace = pace_of(beliefs, now)
    if pace is None or beliefs.pace is None or now.replicas.ready != beliefs.ready:
        return 0
    return round(now.replicas.ready * max(0.0, 1.0 - pace / beliefs.pace))


def step_sizes(window: Window) -> tuple[tuple[float, float, float, float], ...]:
    """(lower, upper, mean, count) of the buckets of step tokens that hold any.

    Steps of up to about twice the mean batch are taken as without prefill: their buckets' means are moved so that they hold
    the mean batch together, which is known exactly.
    """
    histogram = window.step_tokens
    if histogram is None:
        return ()
    lower, rows = 0.0, []
    for upper, count in zip(histogram.upper_bounds, histogram.counts, strict=False):
        if count > 0.0:
            rows.append((lower, upper, (lower + upper) / 2.0, count))
        lower = upper
    batch = window.decode / window.steps
    low = [r for r in rows if r[0] < 2.0 * batch]
    count = math.fsum(r[3] for r in low)
    if count <= 0.0:
        return tuple(rows)
    excess = math.fsum(r[2] * r[3] for r in low) - count * batch
    room = math.fsum((r[2] - r[0] if excess > 0.0 else r[1] - r[2]) * r[3] for r in low)
    share = min(1.0, max(-1.0, excess / room)) if room > 0.0 else 0.0
    moved = [(a, b, m - share * (m - a if share > 0.0 else b - m), n) for a, b, m, n in low]
    return (*moved, *rows[len(low) :])


def floored(window: Window, sizes: tuple[tuple[float, float, float, float], ...], floor: float) -> float:
    """Sum over the steps of max(floor, tokens of the step); tokens are even inside the bucket that holds the floor."""
    total = window.prefill + window.decode
    if floor <= 0.0:
        return total
    missing = 0.0
    if not sizes:  # every request's prefill is one step, as far as is known
        room, prefills = max(0.0, floor - window.decode / window.steps), min(window.requests, window.steps)
        left = max(0.0, room - window.prefill / prefills) if prefills > 0.0 else 0.0
        return total + (window.steps - prefills) * room + prefills * left
    for lower, upper, mean, count in sizes:
        if upper <= floor:
            missing += count * (floor - mean)
        elif lower < floor:
            missing += count * (floor - lower) * (floor - lower) / (2.0 * (upper - lower))
    return total + missing


def columns_of(window: Window, shapes: Shapes) -> Sums:
    """Steps, output tokens and context by the first of `shapes`, floored tokens by each: in shares of the window.

    Attention in prefill goes with prefill tokens, in a shape's proportion.
    """
    y, sizes, first = window.seconds, step_sizes(window), shapes[0]
    tokens = tuple([(one.b * floored(window, sizes, one.floor) + one.e * window.pairs) / y for one in shapes])
    fixed = first.a * window.steps / y
    return (fixed, _apart(first) * window.decode / y, first.d * window.context / y, *tokens)


def _apart(law: Law) -> float:
    """What an output token costs beyond a prompt token; at least a tenth, so that it can be multiplied."""
    return max(law.c - law.b, 0.1 * law.c)


def _middle(shapes: Shapes, at: int) -> Sums:
    """Multiples (steps, output, context, tokens) that are the shape number `at` itself."""
    first, one = shapes[0], shapes[at]
    return one.a / first.a, _apart(one) / _apart(first), one.d / first.d, 1.0


def law_from(shapes: Shapes, found: Solved) -> Law:
    """The law of multiples (steps, output, context: of the first of `shapes`; tokens: of the chosen one)."""
    first, one, z = shapes[0], shapes[found.floor], found.z
    b = z[3] * one.b
    c = b + z[1] * _apart(first)
    return Law(a=z[0] * first.a, b=b, c=c, d=z[2] * first.d, e=z[3] * one.e, floor=one.floor)


def predicted(columns: Sums, z: Sums, at: int) -> float:
    """Share of the window that multiples `z` explain, with the floor number `at`; 1 is all of it."""
    return z[0] * columns[0] + z[1] * columns[1] + z[2] * columns[2] + z[3] * columns[3 + at]


def observed(beliefs: StepBeliefs, now: Observation, columns: Sums | None, weight: float, error: float) -> StepBeliefs:
    """`beliefs` after the window that ends `now`: its `columns` (None: it tells nothing) and the `error` of the law in force.

    A window far off the law is left out; many such, or a lasting error, are a drift: the past then counts little.
    """
    running = None if now.load is None else now.load.running_requests
    ready = now.replicas.ready
    since = beliefs.ready_since_seconds if ready == beliefs.ready else now.at_seconds
    beliefs = replace(
        beliefs,
        ready=ready,
        ready_since_seconds=since,
        running=running,
        pace=_paced(beliefs, pace_of(beliefs, now), now),
    )
    if columns is None:
        return beliefs
    decay = 0.5 ** (now.window_seconds / HALF_LIFE_SECONDS)
    z = error / beliefs.sigma
    known = beliefs.weight >= TRUSTED_ROWS
    out = known and z * z > GATE
    up = down = gated = 0.0
    if known:
        up, down = max(0.0, beliefs.up + min(z, 4.0) - SLACK), max(0.0, beliefs.down - max(z, -4.0) - SLACK)
        gated = 0.9 * beliefs.gated + (0.1 if out else 0.0)
    huber = weight * (0.0 if out else min(1.0, 1.345 / max(abs(z), 1e-9)) if known else 1.0)
    sigma = beliefs.sigma
    if not out:
        sigma = max(LEAST_SIGMA, 0.97 * sigma + 0.03 * 1.25 * min(abs(error), 1.0))
    alarm, warned = up > ALARM or down > ALARM or gated > 0.5, beliefs.warned_at_seconds
    drifted = alarm and warned is not None and now.at_seconds - warned <= WARNED_SECONDS
    if alarm:
        up, down, gated, warned = 0.0, 0.0, 0.0, now.at_seconds
    if drifted:
        decay, huber, sigma, warned = KEPT, weight, max(sigma, 0.1), None
    size = len(columns)
    old = beliefs.gram or (0.0,) * (size * (size + 1) // 2)
    new = [huber * x * y for i, x in enumerate(columns) for y in columns[i:]]
    # What is kept of the past is kept at the new speed: engines that became slower are mostly slower in everything.
    speed = min(2.0, max(0.5, 1.0 + error)) if drifted else 1.0
    return replace(
        beliefs,
        gram=tuple([decay * speed * speed * a + b for a, b in zip(old, new, strict=True)]),
        right=tuple([decay * speed * a + huber * x for a, x in zip(beliefs.right or (0.0,) * size, columns, strict=True)]),
        square=decay * beliefs.square + huber,
        weight=decay * beliefs.weight + huber,
        sigma=sigma, up=up, down=down, gated=gated,
        drifts=beliefs.drifts + drifted,
        drift_at_seconds=now.at_seconds if drifted else beliefs.drift_at_seconds,
        warned_at_seconds=warned,
    )  # fmt: skip


def doubtful(beliefs: StepBeliefs, at_seconds: int) -> bool:
    """Whether errors of late say that the law may not hold: what else is late now is no news beside it."""
    warned = beliefs.warned_at_seconds
    return max(beliefs.up, beliefs.down) > DOUBT or (warned is not None and at_seconds - warned <= SETTLE_SECONDS)


def _paced(beliefs: StepBeliefs, pace: float | None, now: Observation) -> float | None:
    """The usual pace after one more; it follows in the end what stays, as when an engine learns to guess tokens."""
    if pace is None or beliefs.pace is None:
        return beliefs.pace if pace is None else pace
    faded: float = 0.5 ** (now.window_seconds / PACE_HALF_LIFE_SECONDS)
    pace = min(pace, FASTER * beliefs.pace)
    return pace + faded * (beliefs.pace - pace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """Multiples of the prior's coefficients (steps, output, context, tokens), and the number of the shape with its floor."""

    z: Sums
    floor: int


def candidates(
    beliefs: StepBeliefs, shapes: Shapes, spread: float, rows: float, noise: float = NOISE
) -> tuple[tuple[Solved, float], ...]:
    """What the sums tell of a law of each of `shapes`, held to it within `spread` and to its scale as by `rows` windows.

    Pairs (law, squared error left); `noise`: relative error of a window that the shape is weighed against.  Empty without
    a window.
    """
    if not beliefs.gram or beliefs.weight <= 0.0:
        return ()
    found = []
    for at in range(len(shapes)):
        gram, right = _four(beliefs, at)
        middle = _middle(shapes, at)
        whole = math.fsum(
            m * math.fsum(g * n for g, n in zip(row, middle, strict=True)) for m, row in zip(middle, gram, strict=True)
        )
        scale = (math.fsum(m * r for m, r in zip(middle, right, strict=True)) + rows) / (whole + rows)
        held = [(noise / (spread * m)) ** 2 for m in middle]
        held_gram = [[gram[i][j] + (held[i] if i == j else 0.0) for j in range(4)] for i in range(4)]
        z = nonnegative(held_gram, [right[i] + held[i] * scale * middle[i] for i in range(4)])
        z = (*z[:3], max(z[3], LEAST_TOKENS * scale))
        left = beliefs.square + math.fsum(
            z[i] * (math.fsum(gram[i][j] * z[j] for j in range(4)) - 2.0 * right[i]) for i in range(4)
        )
        found.append((Solved(z=z, floor=at), left))
    return tuple(found)


def chances(beliefs: StepBeliefs, shapes: Shapes, found: tuple[tuple[Solved, float], ...]) -> tuple[float, ...]:
    """How likely each of the `candidates` is, by the error that it leaves and by what is usual of floors.

    While batches are smaller than a floor, all floors explain the steps about equally well; what a token costs above the
    floor is then told by prompts alone.
    """
    least = min(left for _, left in found)
    noise = ALIKE * max(QUIET * QUIET, least / beliefs.weight)
    logs = []
    for one, left in found:
        law = law_from(shapes, one)
        if shapes[0].floor > 0.0:
            usual = 0.0 if law.floor > 0.0 else -KNOWN_ODDS
        else:
            room = law.b * law.floor / (law.a + law.b * law.floor)
            usual = -((room - ROOM) ** 2) / (2.0 * ROOM_SIGMA**2)
        logs.append(usual - (left - least) / (2.0 * noise))
    top = max(logs)
    weights = [math.exp(log - top) for log in logs]
    return tuple([weight / math.fsum(weights) for weight in weights])


def chosen(
    found: tuple[tuple[Solved, float], ...], shares: tuple[float, ...], rates: tuple[float, ...], known: bool, used: int
) -> tuple[Solved, float]:
    """(law, deviation of the logarithm of its rate) out of `candidates` with their chances and the rates they imply.

    Of a known profile the law in use until it is unlikely; of an unknown replica the one nearest to the mean.
    """
    logs = [math.log(max(1e-9, rate)) for rate in rates]
    mean = math.fsum(share * log for share, log in zip(shares, logs, strict=True))
    if known:
        best = max(range(len(shares)), key=lambda i: shares[i])
        at = used if shares[used] >= UNLIKELY else best
    else:
        at = min(range(len(shares)), key=lambda i: abs(logs[i] - mean))
    off = math.fsum(share * (log - logs[at]) ** 2 for share, log in zip(shares, logs, strict=True))
    return found[at][0], math.sqrt(off)


def _four(beliefs: StepBeliefs, at: int) -> tuple[list[list[float]], list[float]]:
    """The 4x4 part of the sums that has the floor number `at`."""
    size = len(beliefs.right)
    chosen = (0, 1, 2, 3 + at)

    def place(i: int, j: int) -> float:
        low, high = (i, j) if i <= j else (j, i)
        return beliefs.gram[low * size - low * (low - 1) // 2 + high - low]

    return [[place(i, j) for j in chosen] for i in chosen], [beliefs.right[i] for i in chosen]


def nonnegative(gram: list[list[float]], right: list[float]) -> Sums:
    """The z >= 0 that minimises z'Gz/2 - r'z: the free solution if it is one, else the best over the active sets."""
    size = len(right)
    free = solve(gram, right)
    if free is not None and min(free) >= 0.0:
        return tuple(free)
    best, least = (0.0,) * size, 0.0
    for many in range(1, size):
        for chosen in combinations(range(size), many):
            part = solve([[gram[i][j] for j in chosen] for i in chosen], [right[i] for i in chosen])
            if part is None or min(part) < 0.0:
                continue
            value = -math.fsum(p * right[i] for p, i in zip(part, chosen, strict=True)) / 2.0
            if value < least:
                least = value
                best = tuple(part[chosen.index(i)] if i in chosen else 0.0 for i in range(size))
    return best
