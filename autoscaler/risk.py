"""Steering on the promise itself: a headroom factor on the work that moves until the measured attainment is the one asked for.

    log headroom += gain * (violated - (1 - attainment) * served) / mean served per turn        (clipped)

Once the gain has fallen to what is set, while it is not clipped, and turns serve alike, its net move over K turns is
K * gain * (realised - allowed violations), so that what it may still owe shrinks as 1/K whatever the traffic does (Gibbs and
Candès 2021, arXiv:2106.00170; the bound is that of Feldman et al. 2022, arXiv:2205.09095).  So it is an error budget in the
sense of SREs, and goes faster while more than half of the last day's is unspent: nobody gets anything for that.  It learns
only from what replicas can change: see `held`.
"""

from __future__ import annotations

import math
from bisect import bisect_left

from autoscaler.copies import replace
from autoscaler.settings import RiskSettings, Slo
from autoscaler.types import Histogram, Latency, Observation, Risk, Tail

DAY_SECONDS = 86_400.0
LEAST_SERVED = 1e-6  # requests; parts of one come from rates
GAIN_SECONDS = 30.0  # the time for which `gain` is given
FIRST_GAIN = 4.0  # times `gain` at first, falling as a day's memory fills: found in 1 day instead of 4, and calm after
LEAN_GAIN = 3.0  # times that while the last day's error budget is unspent, falling until half of it is spent
BUSY_FRACTION = 0.7  # of the feasible load: violations of a pool that has not been so busy lately have another cause
BUSY_SECONDS = 600.0  # how long it counts as lately: long answers are counted when they end
SURGE_LEAST = 0.5  # Erlangs more: in a small pool a few requests double the work
SURGE_STARTS = 2.5  # start-up times after a surge, in which what was ordered at its end comes and its queue goes


def steered(
    risk: Risk, settings: RiskSettings, slo: Slo, now: Observation, *, load: float | None, unknown: bool,
    work: float | None = None, lead_seconds: float = 0.0, short: bool = False,
) -> Risk:  # fmt: skip
    """`risk` after one more Observation.

    `work`: Erlangs of the last minute, `lead_seconds`: how long a start takes, `short`: replicas that were ordered are
    overdue; all to tell what no order could have avoided.

    `load`: Erlangs that arrived over what the ready replicas carry within the SLO; None where not known.  `unknown`: a
    declared signal is missing.
    """
    window, latency = now.window_seconds, now.latency
    if short or risk.bound == "most":  # what queued up meanwhile is late for a while after, like what came in a surge
        risk = replace(risk, surge_at_seconds=now.at_seconds)
    risk = _surged(risk, settings.surge_factor, now.at_seconds, work, lead_seconds)
    busy = risk.busy * math.exp(-window / BUSY_SECONDS)
    busy = busy if load is None else max(busy, load)
    if latency is None or (latency.served_requests or 0.0) < LEAST_SERVED or settings.gain == 0.0:
        return replace(risk, busy=busy)
    first = _counted(risk.first, latency.ttft, slo.ttft_seconds, window)
    pace = _counted(risk.pace, latency.itl, slo.itl_seconds, window)
    served, forget = latency.served_requests or 0.0, math.exp(-window / DAY_SECONDS)
    risk = replace(
        risk, busy=busy, first=first, pace=pace, served=forget * risk.served + served,
        seconds=forget * risk.seconds + window, late=forget * risk.late,
    )  # fmt: skip
    violated = violations(risk, latency, slo)
    if violated is None:
        return risk
    violated = min(violated, served)
    risk = replace(risk, late=risk.late + violated)
    per_window = risk.served / risk.seconds * window
    allowed = 1.0 - slo.attainment_fraction
    excess = (violated - allowed * served) / per_window
    if held(risk, now, excess, unknown=unknown, lead_seconds=lead_seconds):
        return risk
    gain = settings.gain * (FIRST_GAIN - (FIRST_GAIN - 1.0) * min(1.0, risk.seconds / DAY_SECONDS))
    gain *= 1.0 + (LEAN_GAIN - 1.0) * max(0.0, 1.0 - 2.0 * risk.late / (allowed * risk.served))
    moved = risk.log_headroom + gain * window / GAIN_SECONDS * excess
    low, high = math.log(settings.min_headroom), math.log(settings.max_headroom)
    return replace(risk, log_headroom=min(high, max(low, moved)))


def held(risk: Risk, now: Observation, excess: float, *, unknown: bool, lead_seconds: float) -> str | None:
    """Why violations (`excess` of those allowed, > 0 if too many) say nothing of headroom now; None if they do."""
    if unknown:
        return "unknown"
    if now.demand is not None and now.demand.closed_loop:
        return "closed_loop"
    if excess > 0.0:
        if risk.bound == "most":
            return "most"
        if risk.surge_at_seconds is not None and now.at_seconds - risk.surge_at_seconds <= SURGE_STARTS * lead_seconds:
            return "surge"
        return "idle" if risk.busy < BUSY_FRACTION else None
    # Fewer violations than allowed say nothing where headroom did not set the number.
    return "least" if risk.bound == "least" else None


def _surged(risk: Risk, factor: float, at_seconds: int, work: float | None, lead_seconds: float) -> Risk:
    """`risk` that knows whether `work` is more than what was there when what is ready now was ordered let anybody expect."""
    if work is None:
        return risk
    past = risk.past
    while len(past) > 1 and past[1][0] <= at_seconds - lead_seconds:
        past = past[1:]
    surge = bool(past) and past[0][0] <= at_seconds - lead_seconds and work > factor * past[0][1] + SURGE_LEAST
    if not past or at_seconds - past[-1][0] >= max(10.0, lead_seconds / 6.0):
        past = (*past, (at_seconds, work))
    return replace(risk, past=past, surge_at_seconds=at_seconds if surge else risk.surge_at_seconds)


def violations(risk: Risk, latency: Latency, slo: Slo) -> float | None:
    """Requests out of `latency.served_requests` that missed the SLO; None where that was not measured.

    Histograms leave the bucket open that holds the limit: the share of it beyond the limit is that of a Pareto tail through
    the counts of the last day above the bucket's two bounds.  Late and slow requests are taken for different ones.
    """
    pair = latency.violated_requests
    if pair is None:
        return None
    found = _beyond(risk.first, latency.ttft, slo.ttft_seconds)
    if latency.itl is not None and latency.itl.total <= 1.5 * (latency.served_requests or 0.0):  # else: single gaps
        found += _beyond(risk.pace, latency.itl, slo.itl_seconds)
    elif latency.ttft is None:
        found = 0.5 * (pair[0] + pair[1])
    return min(pair[1], max(pair[0], found))


def _edges(histogram: Histogram, limit: float) -> tuple[float, float]:
    """The bounds of the bucket that holds `limit`: in (lower, upper]."""
    index = bisect_left(histogram.upper_bounds, limit)
    upper = histogram.upper_bounds[index] if index < len(histogram.upper_bounds) else math.inf
    return (histogram.upper_bounds[index - 1] if index else 0.0), upper


def _counted(tail: Tail | None, histogram: Histogram | None, limit: float, window: float) -> Tail | None:
    """Decayed counts above the bounds of the bucket of `limit`; begun anew where the engine has other buckets."""
    if histogram is None:
        return tail
    lower, upper = _edges(histogram, limit)
    if upper == math.inf:
        return None
    above_upper = histogram.above(upper)[0]
    above_lower = histogram.above(lower)[0] if lower > 0.0 else histogram.total
    if tail is None or (tail.lower_seconds, tail.upper_seconds) != (lower, upper):
        return Tail(lower_seconds=lower, upper_seconds=upper, above_lower=above_lower, above_upper=above_upper)
    forget = math.exp(-window / DAY_SECONDS)
    return Tail(
        lower_seconds=lower, upper_seconds=upper, above_lower=forget * tail.above_lower + above_lower,
        above_upper=forget * tail.above_upper + above_upper,
    )  # fmt: skip


def _beyond(tail: Tail | None, histogram: Histogram | None, limit: float) -> float:
    if histogram is None:
        return 0.0
    certain, possible = histogram.above(limit)
    if tail is None or possible <= certain:
        return certain
    return certain + (possible - certain) * share_beyond(tail, limit)


def share_beyond(tail: Tail, limit: float) -> float:
    """The share of the bucket's samples beyond `limit`, in [0, 1].

    >>> share_beyond(Tail(lower_seconds=1.0, upper_seconds=4.0, above_lower=100.0, above_upper=1.0), 2.0)
    0.09090909090909091
    """
    low, high = max(tail.above_lower, 1e-9), max(0.5, tail.above_upper)
    if high >= low or tail.lower_seconds <= 0.0:  # nothing to draw a tail through
        return (tail.upper_seconds - limit) / (tail.upper_seconds - tail.lower_seconds)
    along = math.log(limit / tail.lower_seconds) / math.log(tail.upper_seconds / tail.lower_seconds)
    at = low * math.exp(along * math.log(high / low))
    return min(1.0, max(0.0, (at - high) / (low - high)))
