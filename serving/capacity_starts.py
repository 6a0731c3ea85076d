"""How long a replica takes from order to ready, learned from the counts of replicas: orders and joins are matched in turn.

The logarithm of a start is normal with unknown mean and variance (normal-inverse-gamma); starts that are still running
count as longer than they have taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from autoscaler.copies import replace
from autoscaler.types import Observation, Replicas
from serving.startup import QUANTILES, LogNormal

PRIOR_STARTS = 3.0  # that the prior's spread is worth
PRIOR_MIDDLE = 1.0  # starts that its median is worth, fewer with every start that was seen
HALF_LIFE_STARTS = 20.0
SLOW_STARTS = 3  # so many in a row beyond the 0.95 quantile: the past is forgotten
MOST_RUNNING = 64  # orders that are remembered
UNKNOWN = -1  # the instant of an order made before anybody looked, or while nothing was delivered
TOGETHER = 2.0  # medians between the orders of starts that end at once: something held them all up
MOST_GAP_SECONDS = 600  # without a look: what happened meanwhile is not known
LEAST_CHANGE = 0.1  # of a quantile, before it is told anew: windows of forecasts hang on it
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """Decayed count, sum and sum of squares of log seconds; orders under way (instants, oldest first).

    `slow`: log seconds of the last starts in a row that were beyond the 0.95 quantile.  `told`: quantiles as last told.
    """

    count: float = 0.0
    total: float = 0.0
    square: float = 0.0
    orders: tuple[int, ...] = ()
    slow: tuple[float, ...] = ()
    seen: int = 0
    before: Replicas | None = None
    before_seconds: int = 0
    told: tuple[float, ...] = ()


def observed(starts: Starts, prior: LogNormal, now: Observation) -> Starts:
    """`starts` after the counts of `now`: new orders, joins (the oldest orders first) and what was given up."""
    replicas, at, before = now.replicas, now.at_seconds, starts.before
    if before is None or at - starts.before_seconds > MOST_GAP_SECONDS:
        unknown = min(MOST_RUNNING, max(0, _starting(replicas)))
        return replace(starts, orders=(UNKNOWN,) * unknown, before=replicas, before_seconds=at)
    joined = max(0, replicas.ready - before.ready)
    underway = _starting(replicas)
    woken = max(0, before.sleeping - replicas.sleeping)
    orders, middle = list(starts.orders), (starts.before_seconds + at) // 2
    ended = [orders.pop(0) for _ in range(min(joined, len(orders)))]
    while len(orders) > max(0, underway):  # the youngest are given up first; a start that failed is the oldest one
        orders.pop(-1 if replicas.desired < before.desired else 0)
    while len(orders) < min(underway, MOST_RUNNING):
        orders.append(starts.before_seconds)
    if _released(ended, TOGETHER * _quantile(starts, prior, 0.5)):
        ended, orders = [UNKNOWN] * len(ended), [UNKNOWN] * len(orders)
    for order in (order for order in ended if order != UNKNOWN and not woken):
        starts = _learned(starts, prior, max(1.0, middle - order))
    starts = replace(starts, orders=tuple(orders), before=replicas, before_seconds=at)
    if not ended and not orders:
        return starts
    return _told(starts, prior, at)


def _released(ended: list[int], apart: float) -> bool:
    """Whether starts that were ordered far apart ended together: quota or nodes came back, their length is no news."""
    known = [order for order in ended if order != UNKNOWN]
    return len(known) > 1 and max(known) - min(known) > apart


def _starting(replicas: Replicas) -> int:
    """Starts under way, also where the platform only tells how many were asked for."""
    return max(replicas.starting, min(MOST_RUNNING, replicas.desired - replicas.ready - replicas.unhealthy))


def _learned(starts: Starts, prior: LogNormal, seconds: float) -> Starts:
    log = math.log(seconds)
    limit = _quantile(starts, prior, 0.95)
    slow = (*starts.slow, log)[-SLOW_STARTS:] if log > math.log(max(1e-9, limit)) else ()
    if len(slow) == SLOW_STARTS:
        return replace(
            starts, count=float(SLOW_STARTS), total=math.fsum(slow), square=math.fsum(x * x for x in slow),
            slow=(), seen=starts.seen + 1,
        )  # fmt: skip
    decay = 0.5 ** (1.0 / HALF_LIFE_STARTS)
    return replace(
        starts, count=decay * starts.count + 1.0, total=decay * starts.total + log,
        square=decay * starts.square + log * log, slow=slow, seen=starts.seen + 1,
    )  # fmt: skip


def _posterior(starts: Starts, prior: LogNormal) -> tuple[float, float, float]:
    """(mean, scale, degrees of freedom) of the next start's log seconds: a Student t."""
    middle, spread = math.log(max(1e-3, prior.median_seconds)), max(0.05, prior.sigma)
    held = PRIOR_MIDDLE * 0.5 ** (starts.seen / HALF_LIFE_STARTS)
    n = held + starts.count
    mean = (held * middle + starts.total) / n
    inside = between = 0.0
    if starts.count > 0.0:
        away = starts.total / starts.count - middle
        inside = max(0.0, starts.square - starts.total * starts.total / starts.count)
        between = held * starts.count / n * away * away
    freedom = PRIOR_STARTS + starts.count
    variance = (PRIOR_STARTS * spread * spread + inside + between) / freedom
    return mean, math.sqrt(variance * (1.0 + 1.0 / n)), freedom


def _quantile(starts: Starts, prior: LogNormal, q: float) -> float:
    if starts.count <= 0.0:
        return prior.quantile(q)
    mean, scale, freedom = _posterior(starts, prior)
    return math.exp(mean + scale * student(q, freedom))


def with_running(starts: Starts, prior: LogNormal, at_seconds: int) -> Starts:
    """`starts` with those under way for longer than usual taken at the length to expect of them (one step of EM)."""
    mean, scale, _ = _posterior(starts, prior)
    count = total = square = 0.0
    for order in starts.orders:
        if order == UNKNOWN:
            continue
        z = (math.log(max(1.0, at_seconds - order)) - mean) / scale
        if z <= 0.0:
            break
        beyond = max(1e-12, 1.0 - _NORMAL.cdf(z))
        hazard = math.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi) / beyond if z < 6.0 else z + 1.0 / z
        expected = mean + scale * hazard
        inside = scale * scale * max(0.0, 1.0 + z * hazard - hazard * hazard)
        count, total, square = count + 1.0, total + expected, square + expected * expected + inside
    if count <= 0.0:
        return starts
    return replace(starts, count=starts.count + count, total=starts.total + total, square=starts.square + square)


def _told(starts: Starts, prior: LogNormal, at_seconds: int) -> Starts:
    """`starts` with new quantiles, if they moved enough to tell."""
    known = with_running(starts, prior, at_seconds)
    if known.count <= 0.0:
        return replace(starts, told=())
    new = tuple([round(_quantile(known, prior, q), 3) for q in QUANTILES])
    if starts.told and all(abs(math.log(a / b)) < LEAST_CHANGE for a, b in zip(new, starts.told, strict=True)):
        return starts
    return replace(starts, told=new)


def quantiles(starts: Starts, prior: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """Pairs (quantile, seconds) as last told, or the prior's."""
    return tuple(zip(QUANTILES, starts.told, strict=True)) if starts.told else prior


def student(q: float, freedom: float) -> float:
    """Quantile of Student's t by the expansion in 1/freedom (Abramowitz and Stegun 26.7.5).

    >>> round(student(0.95, 10.0), 3), round(student(0.99, 5.0), 2)
    (1.812, 3.36)
    """
    z = _NORMAL.inv_cdf(q)
    n, s = freedom, z * z
    one = z * (s + 1.0) / 4.0
    two = z * ((5.0 * s + 16.0) * s + 3.0) / 96.0
    three = z * (((3.0 * s + 19.0) * s + 17.0) * s - 15.0) / 384.0
    four = z * ((((79.0 * s + 776.0) * s + 1482.0) * s - 1920.0) * s - 945.0) / 92160.0
    return z + one / n + two / n**2 + three / n**3 + four / n**4
