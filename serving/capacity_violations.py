"""What measured latencies say of the believed capacity: one factor on it, with its uncertainty, learned from counts.

At a steady load the closed forms expect so many late first tokens and slow answers.  Their logarithm is near linear in the
load, so a count that is off by a factor means a capacity that is off by much less.  The factor's logarithm is normal; each
few of them move it as a Poisson count would (an extended Kalman filter), of which only every `CLUMP`-th is news, because one long
prompt delays everybody beside it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

from autoscaler.copies import replace
from autoscaler.settings import Slo
from autoscaler.types import Histogram, Observation
from serving.closed_forms import Engine, Law, Mix
from serving.pooling import Routed
from serving.tails import late_shares

SIGMA = 0.1  # of the factor's logarithm before anything was measured
DRIFT_PER_HOUR = 0.02
ENOUGH = 8.0  # late or expected requests, before the factor moves: in small counts chance looks like a sign
CLUMP = 25.0  # late requests that come together
BACKGROUND = 0.25  # of what the SLO allows: late requests that no steady load explains
MOST_STEP = 0.05  # of the logarithm, at a time
LEAST, MOST = math.log(0.5), math.log(1.6)
SETTLE_SECONDS = 120  # after replicas came or went
SMOOTH_SECONDS, SLOW_SECONDS = 60.0, 300.0
UNSTEADY = 1.25  # ratio of the load smoothed over the one time and the other, either way
OVERLOAD = 1.15  # of the believed capacity: beyond, queues grow and no steady state is measured
LEAST_BOUND = 0.6  # of a limit: a bucket's bound below says little of it
NEAR = 0.8  # of the feasible load, where the slope is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """The factor's logarithm and variance, and since when so many replicas are ready.

    `load`, `slow`: Erlangs per ready replica, smoothed over a minute and over five.

    `late`: decayed count of what was late, `expected`: of what the closed forms expected.  `waiting`: the same two since the
    factor last moved, what is late at any load at most, and the expected weighed by d log share / d log load.
    """

    log: float = 0.0
    variance: float = SIGMA * SIGMA
    load: float | None = None
    slow: float | None = None
    ready: int = 0
    ready_since_seconds: int = 0
    late: float = 0.0
    expected: float = 0.0
    waiting: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Share of requests beyond bounds that histograms have: `share` at the feasible load with `slope` of its log.

    `idle`: what may be late besides, at any load.
    """

    idle: float
    share: float
    slope: float

    def at(self, load: float) -> float:
        """The share that is late because of a `load`, in feasible loads."""
        return min(1.0, self.share * math.exp(min(20.0, self.slope * (load - 1.0))))


def bounds_below(observation: Observation, slo: Slo) -> tuple[float, float] | None:
    """The largest bucket bounds not above the limits (TTFT, ITL); inf for one that is far below; None without any."""
    latency = observation.latency
    if latency is None:
        return None
    first, each = _below(latency.ttft, slo.ttft_seconds), _below(latency.itl, slo.itl_seconds)
    return None if first == each == math.inf else (first, each)


def _below(histogram: Histogram | None, limit: float) -> float:
    if histogram is None:
        return math.inf
    index = bisect_right(histogram.upper_bounds, limit)
    bound = histogram.upper_bounds[index - 1] if index else 0.0
    return bound if bound >= LEAST_BOUND * limit else math.inf


@lru_cache(maxsize=512)
def curve(
    law: Law, mix: Mix, engine: Engine, bounds: tuple[float, float], allowed: float, rate: float, pool: Routed
) -> Curve:
    """What is expected beyond `bounds` around the feasible `rate` (requests/s and replica)."""

    def share(at: float) -> float:
        first, each = late_shares(law, mix, engine, (min(bounds[0], 1e6), min(bounds[1], 1e6)), at, pool)
        return (first if bounds[0] < math.inf else 0.0) + (each if bounds[1] < math.inf else 0.0)

    idle = share(0.0)
    full, near = max(1e-9, share(rate) - idle), max(1e-12, share(NEAR * rate) - idle)
    slope = min(60.0, max(3.0, math.log(full / near) / (1.0 - NEAR)))
    return Curve(idle=idle + BACKGROUND * allowed, share=full, slope=slope)


def seen(gain: Gain, now: Observation, work: float | None, ttft_seconds: float) -> Gain:
    """`gain` with the load of the window that ends `now`, `work` Erlangs over the ready replicas.

    Where requests wait for longer than `ttft_seconds`, all are late: that is a queue that drains, after which load settles
    anew, and no steady load of which a share is late.
    """
    ready, window = now.replicas.ready, now.window_seconds
    since = gain.ready_since_seconds if ready == gain.ready and not _queued(now, ttft_seconds) else now.at_seconds
    load, slow = gain.load, gain.slow
    if work is not None and ready > 0:
        new, same = work / ready, ready == gain.ready
        load = _smoothed(load if same else None, new, window / SMOOTH_SECONDS)
        # After replicas came or went the slow one goes on from what each carries now.
        slow = _smoothed(slow if same or slow is None else slow * gain.ready / ready, new, window / SLOW_SECONDS)
    variance = min(SIGMA * SIGMA, gain.variance + DRIFT_PER_HOUR**2 * window / 3600.0)
    return replace(gain, load=load, slow=slow, variance=variance, ready=ready, ready_since_seconds=since)


def _queued(now: Observation, ttft_seconds: float) -> bool:
    """Whether who waits does so for longer than `ttft_seconds`, at the rate of first tokens in the window."""
    load, latency = now.load, now.latency
    if load is None or not load.waiting_requests or latency is None or latency.ttft is None:
        return False
    return load.waiting_requests * now.window_seconds > ttft_seconds * latency.ttft.total


def _smoothed(before: float | None, new: float, share: float) -> float:
    return new if before is None else before + (1.0 - math.exp(-share)) * (new - before)


def steady(gain: Gain, now: Observation) -> bool:
    """Whether the window tells of a steady state: load and replicas are settled, all report, few requests fail."""
    load, demand, latency = now.load, now.demand, now.latency
    if gain.load is None or gain.slow is None or not gain.slow / UNSTEADY <= gain.load <= gain.slow * UNSTEADY:
        return False
    if latency is None or not latency.served_requests or now.replicas.draining:
        return False
    if now.at_seconds - gain.ready_since_seconds < SETTLE_SECONDS:
        return False
    if load is not None and load.replicas_reporting not in (None, now.replicas.ready):
        return False
    return demand is not None and not demand.closed_loop


def corrected(gain: Gain, now: Observation, bounds: tuple[float, float], expected: Curve, feasible: float) -> Gain:
    """`gain` after the late requests of a steady window, against the curve at a feasible load of `feasible` Erlangs."""
    latency = now.latency
    assert latency is not None
    assert gain.load is not None
    served = latency.served_requests or 0.0
    load = gain.load / (feasible * math.exp(gain.log))
    if load > OVERLOAD:
        return gain
    late = sum(
        histogram.above(bound)[0]
        for histogram, bound in ((latency.ttft, bounds[0]), (latency.itl, bounds[1]))
        if histogram is not None and bound < math.inf
    )
    awaited = served * expected.at(load)
    decay = 0.5 ** (now.window_seconds / 3600.0)
    news = (late, awaited, served * expected.idle, awaited * expected.slope * load)
    waiting = tuple([decay * a + b for a, b in zip(gain.waiting, news, strict=True)])
    gain = replace(
        gain, late=decay * gain.late + late, expected=decay * gain.expected + awaited,
        waiting=(waiting[0], waiting[1], waiting[2], waiting[3]),
    )  # fmt: skip
    return _taught(gain) if waiting[0] + waiting[1] >= ENOUGH else gain


def _taught(gain: Gain) -> Gain:
    """`gain` moved by what waits.  How many would be late at any load is not known: only what that cannot explain is news."""
    late, awaited, idle, weighed = gain.waiting
    steep = weighed / max(1e-9, awaited)
    if late > awaited + idle:
        off = late - awaited - idle
        steep *= awaited / (awaited + idle)
    else:
        off = min(0.0, late - awaited)
    variance = gain.variance / (1.0 + gain.variance * awaited * steep * steep / CLUMP)
    step = min(MOST_STEP, max(-MOST_STEP, -variance * steep * off / CLUMP))
    log = min(MOST, max(LEAST, gain.log + step))
    return replace(gain, log=log, variance=variance, waiting=(0.0, 0.0, 0.0, 0.0))


def moved(gain: Gain, log_ratio: float, sigma: float = SIGMA) -> Gain:
    """`gain` after the closed forms moved by a factor: what was measured still holds, less surely.

    `sigma`: its deviation where nothing was measured.
    """
    gain, known = unsettled(gain, 0.5 * log_ratio), max(0.0, 1.0 - gain.variance / (sigma * sigma))
    return replace(gain, log=min(MOST, max(LEAST, gain.log - known * log_ratio)), waiting=(0.0, 0.0, 0.0, 0.0))


def known(gain: Gain, sigma: float) -> Gain:
    """`gain`, known to a standard deviation of `sigma` at least."""
    return replace(gain, variance=min(gain.variance, sigma * sigma))


def unsettled(gain: Gain, sigma: float) -> Gain:
    """`gain`, known less well by a standard deviation of `sigma`."""
    return replace(gain, variance=min(SIGMA * SIGMA, gain.variance + sigma * sigma))


def drifted(gain: Gain) -> Gain:
    """`gain` after the engines became others: what was late on the way is no news of them."""
    return replace(gain, variance=SIGMA * SIGMA, waiting=(0.0, 0.0, 0.0, 0.0))
