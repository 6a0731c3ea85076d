"""Which placement groups the replicas go to: cheapest first, a floor on demand, spot with a margin for what is taken away.

Closed form, no optimiser: with prices per replica and one kind of load the cheapest group that has room is best.  m needed
replicas on spot take the least s of which m survive with z standard deviations when each is taken with probability p within
a start-up time: (1 - p) s - z sqrt(s p (1 - p)) >= m.  p begins as the fraction told and is learned from what is taken: the
mean of a beta distribution, of which the fraction told is the prior.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from autoscaler.health import asked_to_go
from autoscaler.settings import SpotSettings
from autoscaler.types import Count, Group, Observation, Reason, State
from autoscaler.units import replicas_for

Placed = tuple[Count, ...]

PRIOR_STARTS = 100.0  # replicas times start-up times that the fraction told is worth
REMEMBERED_SECONDS = 7 * 86_400.0  # markets change
MOST_FRACTION = 0.9


def taken(state: State, before: Observation | None, now: Observation, startup_seconds: float) -> tuple[float, float]:
    """(spot replicas taken away, replicas times start-up times in which they could have been), lately, `now` included."""
    lost, starts = state.spot_taken, state.spot_starts
    was = {g.name: g.replicas for g in before.groups if g.spot} if before is not None else {}
    if before is None or not was or startup_seconds <= 0.0:
        return lost, starts
    passed = now.at_seconds - before.at_seconds
    forget = math.exp(-passed / REMEMBERED_SECONDS)
    lost, starts = lost * forget, starts * forget
    for group in now.groups:
        old, new = was.get(group.name), group.replicas
        if group.spot and old is not None:
            lost += max(0, old.ready - new.ready - asked_to_go(old, new))
            starts += old.ready * passed / startup_seconds
    return lost, starts


def learned(spot: SpotSettings, state: State) -> SpotSettings:
    """`spot` with the interruptions that this pool has seen.

    >>> learned(SpotSettings(interruption_fraction=0.05), State(spot_taken=1.0, spot_starts=200.0)).interruption_fraction
    0.02
    """
    if not state.spot_starts:
        return spot
    told = spot.interruption_fraction
    fraction = (PRIOR_STARTS * told + state.spot_taken) / (PRIOR_STARTS + state.spot_starts)
    return replace(spot, interruption_fraction=min(max(told, MOST_FRACTION), fraction))


def spot_replicas(needed: int, spot: SpotSettings) -> int:
    """Spot replicas of which `needed` survive, as far as the margin goes.

    >>> spot_replicas(20, SpotSettings(interruption_fraction=0.05, margin_sigmas=2.0))
    24
    """
    if needed <= 0:
        return 0
    p, z = spot.interruption_fraction, spot.margin_sigmas
    half = z * math.sqrt(p * (1.0 - p))
    root = (half + math.sqrt(half * half + 4.0 * (1.0 - p) * needed)) / (2.0 * (1.0 - p))
    return replicas_for(root * root)


def place(
    groups: Sequence[Group], wanted: int, most: int, spot: SpotSettings, least: int = 0
) -> tuple[Placed, Reason | None]:
    """(replicas by group, why the number changed) for `wanted` replicas that serve, `least` to `most` in all.

    A group is left only as fast as the replicas that take over become ready elsewhere; at `most` nothing moves.
    """
    need = wanted
    counts, on_spot = _split(groups, need, spot)
    while need > 0 and sum(counts.values()) > most:
        need -= 1
        counts, on_spot = _split(groups, need, spot)
    firm = sum(counts[g.name] for g in groups if not g.spot)
    bought = sum(counts.values()) - firm
    counts = _held_over(groups, counts, most)
    after = max(wanted, least, sum(counts.values()))  # what finds no room is asked for all the same: room may come
    placed = tuple(Count(name=g.name, replicas=counts[g.name]) for g in groups)
    inputs = (
        ("on_demand", float(firm)),
        ("spot", float(bought)),
        ("margin", float(max(0, bought - on_spot))),
        ("moving", float(max(0, sum(counts.values()) - firm - bought))),
        ("interruption_fraction", spot.interruption_fraction),
    )
    return placed, None if after == wanted else Reason(rule="groups", before=wanted, after=after, inputs=inputs)


def _split(groups: Sequence[Group], need: int, spot: SpotSettings) -> tuple[dict[str, int], int]:
    """(replicas by group, those of the need that spot carries)."""
    counts = {g.name: 0 for g in groups}
    firm, cheap = _by_price(g for g in groups if not g.spot), _by_price(g for g in groups if g.spot)
    _fill(counts, firm, min(need, replicas_for(need * spot.on_demand_fraction)))
    rest = need - sum(counts.values())
    on_spot = 0
    if cheap and _pays(cheap[0], firm, rest, spot):
        room = sum(_room(g, rest + need + 1) for g in cheap)
        on_spot = rest
        while on_spot > 0 and spot_replicas(on_spot, spot) > room:
            on_spot -= 1
        _fill(counts, cheap, spot_replicas(on_spot, spot))
    _fill(counts, firm, rest - on_spot)
    short = need - on_spot - sum(counts[g.name] for g in firm)
    if short > 0 and cheap:  # dear spot is better than nothing
        more = on_spot + short
        _fill(counts, cheap, spot_replicas(more, spot) - spot_replicas(on_spot, spot))
        on_spot = min(more, sum(counts[g.name] for g in cheap))
    return counts, on_spot


def _pays(cheapest: Group, firm: Sequence[Group], rest: int, spot: SpotSettings) -> bool:
    """Whether spot with its margin costs less than on demand; without prices it is taken to."""
    open_firm = next((g for g in firm if g.price_per_replica_hour is not None), None)
    if open_firm is None or cheapest.price_per_replica_hour is None or open_firm.price_per_replica_hour is None:
        return True
    return cheapest.price_per_replica_hour * spot_replicas(rest, spot) <= open_firm.price_per_replica_hour * rest


def _by_price(groups: Iterable[Group]) -> list[Group]:
    """Cheapest first, then where more replicas are already; without a price last."""

    def key(g: Group) -> tuple[float, int]:
        price = math.inf if g.price_per_replica_hour is None else g.price_per_replica_hour
        return price, -g.replicas.desired

    return sorted(groups, key=key)


def _room(group: Group, otherwise: int) -> int:
    """Replicas that the group can have in all."""
    rooms = [otherwise + group.replicas.desired]
    if group.max_replicas is not None:
        rooms.append(group.max_replicas)
    if group.spare_replicas is not None:
        rooms.append(group.replicas.desired + group.spare_replicas)
    return min(rooms)


def _fill(counts: dict[str, int], groups: Sequence[Group], amount: int) -> None:
    """Add `amount` replicas to `groups`, which are sorted by price; at one price where replicas are already."""
    for _, alike in groupby(groups, key=lambda g: g.price_per_replica_hour):
        level = list(alike)
        for already in (True, False):
            for group in level:
                room = _room(group, amount + counts[group.name])
                room = min(room, group.replicas.desired) if already else room
                more = max(0, min(amount, room - counts[group.name]))
                counts[group.name] += more
                amount -= more


def _held_over(groups: Sequence[Group], counts: dict[str, int], most: int) -> dict[str, int]:
    """`counts` with replicas of groups that shrink kept while those that take over start; those wait where `most` is less."""
    held = dict(counts)
    coming = sum(max(0, counts[g.name] - g.replicas.ready) for g in groups)
    for group in _by_price(groups):
        kept = min(coming, max(0, group.replicas.ready - counts[group.name]))
        held[group.name] += kept
        coming -= kept
    over = sum(held.values()) - most
    for spared in (True, False):  # what is not ready yet first
        for group in reversed(_by_price(groups)):
            less = max(0, min(over, held[group.name] - (group.replicas.ready if spared else 0)))
            held[group.name] -= less
            over -= less
    return held
