"""Cost at equal attainment: frontiers, interpolation, the paired block bootstrap and Holm's correction.

A policy's knob gives points (share of requests that violate the SLO, cost).  What it costs at a wanted share is read off
its lower frontier, between neighbours and never beyond the ends: "not reached" is a result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from load_tests import draws

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

DRAWS = 2000
LEVEL = 0.05
# Below so many days a block bootstrap says little: ranges are given, and nothing is claimed.
LEAST_DAYS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """What one policy did at each of its knobs, by day.

    `cost` (GPU-hours) and `violated` are [knob, seed, day], `arrived` is [seed, day]: every policy meets the same
    requests.
    """

    cost: Floats
    violated: Floats
    arrived: Floats

    def totals(self, weights: Floats | None = None) -> tuple[Floats, Floats]:
        """(share violated, cost) as [draw, knob], days weighted by each row of `weights` [draw, day]; None: one row of 1.

        Cost is the mean over seeds.  No violation at all counts as half a request, so that it has a logarithm.
        """
        days = np.ones((1, self.arrived.shape[1])) if weights is None else weights
        arrived = days @ self.arrived.sum(axis=0)
        violated = days @ self.violated.sum(axis=1).T
        cost = days @ self.cost.mean(axis=1).T
        share = np.maximum(violated, 0.5) / np.maximum(arrived, 1.0)[:, None]
        return share, cost

    def part(self, *, seed: int | None = None, without_day: int | None = None) -> Points:
        """One seed alone, or all days but one."""
        seeds = slice(None) if seed is None else slice(seed, seed + 1)
        days = np.arange(self.arrived.shape[1]) != without_day
        return Points(
            cost=self.cost[:, seeds][:, :, days],
            violated=self.violated[:, seeds][:, :, days],
            arrived=self.arrived[seeds][:, days],
        )


def on_frontier(share: Floats, cost: Floats) -> Bools:
    """Which points no other one beats: none attains as much for as little.  All points, no convex hull."""
    order = np.lexsort((cost, share))
    kept, least = np.zeros(len(share), dtype=bool), np.inf
    for i in order:
        if cost[i] < least:
            kept[i], least = True, cost[i]
    return kept


def cost_at(share: Floats, cost: Floats, wanted: Floats) -> Floats:
    """Cost at the share of violated requests `wanted` [draw], for points [draw, knob]: linear over log10 of the share.

    Between neighbours of the lower frontier only: inf where no knob attains as much, -inf where even the cheapest point of
    the frontier attains more.
    """
    want = wanted[:, None]
    inside = share <= want * (1 + 1e-12)
    # The cheapest of those that attain enough, and of equals the one that attains most, ends the left side.
    least = np.where(inside, cost, np.inf).min(axis=1)
    left_share = np.where(inside & (cost <= least[:, None]), share, np.inf).min(axis=1)
    beyond = ~inside & (cost < least[:, None])
    right_share = np.where(beyond, share, np.inf).min(axis=1)
    right_cost = np.where(beyond & (share == right_share[:, None]), cost, np.inf).min(axis=1)
    exact = np.isclose(left_share, wanted, rtol=1e-12, atol=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        place = (np.log10(wanted) - np.log10(left_share)) / (np.log10(right_share) - np.log10(left_share))
        between = least + place * (right_cost - least)
    found = np.where(np.isfinite(right_share), between, np.where(exact, least, -np.inf))
    return np.where(np.isfinite(least), found, np.inf)


def day_weights(days: int, key: int, count: int = DRAWS) -> Floats:
    """How often each day is drawn in each of `count` resamples of `days` days, as [draw, day]."""
    chosen = (draws.uniforms(key, count * days) * days).astype(np.int64).reshape(count, days)
    weights = np.zeros((count, days))
    np.add.at(weights, (np.arange(count)[:, None], chosen), 1.0)
    return weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A cost over a peer's at equal attainment.

    `value` None: not reached, and `missed` says on which side ("above": no knob of the peer attains as much; "below": its
    whole frontier attains more).  `low`, `high`: 95 % interval where `interval` is "bootstrap", the range over single seeds
    and over all days but one where it is "range", None where too few resamples were reached.  `p`: two-sided, of no
    difference; only with a bootstrap.
    """

    value: float | None
    missed: str | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    interval: str = "none"
    reached_fraction: float = 1.0


def ratio(ours: Points, theirs: Points, *, target_share: float, key: int, count: int = DRAWS) -> Ratio:
    """Cost of a policy that tunes itself over a peer's cost at the same attainment, days drawn jointly for both.

    `ours` has one knob.  Where it realises the target to within a tenth of the allowed share the peer is read at the target,
    else at what was realised; in each draw that place moves with the draw's own violations, as all of the pair does.
    """
    share, cost = ours.totals()
    realised = float(share[0, 0])
    shift = target_share / realised if abs(realised - target_share) <= 0.1 * target_share else 1.0

    def value(a: Points, b: Points, weights: Floats | None = None) -> Floats:
        own_share, own_cost = a.totals(weights)
        found = cost_at(*b.totals(weights), own_share[:, 0] * shift)
        with np.errstate(divide="ignore"):
            return np.where(np.isfinite(found), own_cost[:, 0] / found, np.sign(found) * np.inf)

    at = float(value(ours, theirs)[0])
    if not np.isfinite(at):
        return Ratio(value=None, missed="above" if at > 0 else "below")
    seeds, days = ours.arrived.shape
    if days < LEAST_DAYS:
        return _ranged(at, ours, theirs, value)
    drawn = value(ours, theirs, day_weights(days, key, count))
    known = drawn[np.isfinite(drawn)]
    reached = len(known) / len(drawn)
    # A resample that a peer does not reach has no cost to compare: with more than a tail of them there is no interval.
    if reached < 1 - LEVEL / 2:
        return Ratio(value=at, reached_fraction=reached)
    low, high = np.quantile(known, [LEVEL / 2, 1 - LEVEL / 2])
    less, more = int((known <= 1).sum()), int((known >= 1).sum())
    p = min(1.0, 2 * (min(less, more) + 1) / (len(known) + 1))
    return Ratio(value=at, low=float(low), high=float(high), p=p, interval="bootstrap", reached_fraction=reached)


def _ranged(at: float, ours: Points, theirs: Points, value: Callable[[Points, Points], Floats]) -> Ratio:
    seeds, days = ours.arrived.shape
    parts: list[dict[str, int]] = [{"seed": i} for i in range(seeds)] if seeds > 1 else []
    parts += [{"without_day": i} for i in range(days)] if days > 1 else []
    found = [float(value(ours.part(**p), theirs.part(**p))[0]) for p in parts]
    known = [v for v in (*found, at) if np.isfinite(v)]
    if len(known) < 2:
        return Ratio(value=at)
    reached = len(known) / (len(found) + 1)
    return Ratio(value=at, low=min(known), high=max(known), interval="range", reached_fraction=reached)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction over a family; None stays None and is no member.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    members = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    out: list[float | None] = [None] * len(p_values)
    worst = 0.0
    for rank, (p, i) in enumerate(members):
        worst = max(worst, min(1.0, (len(members) - rank) * p))
        out[i] = worst
    return out
