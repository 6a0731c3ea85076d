"""Limits say how fast and how far we may go.  Each only narrows, and leaves a Reason where it changed the number.

Order: keep, unknown, tolerance, stabilization, rate, ratio (in replicas that carry), sick, spare, bounds, observer (in all
that are asked for).  Bounds come after ignorance and beat it: a maximum that a person wrote holds even during an outage.
"""

from __future__ import annotations

from collections.abc import Iterable

from autoscaler import cron, health
from autoscaler.facts import Facts
from autoscaler.settings import Limits, Rate
from autoscaler.tiers import PowerPlan
from autoscaler.types import Reason, State
from autoscaler.units import replicas_for

Pairs = tuple[tuple[int, int], ...]


def push(pairs: Pairs, at_seconds: int, value: int, window_seconds: float, *, largest: bool) -> Pairs:
    """`pairs` with (at_seconds, value) added, expired and dominated entries dropped: its first is the window's extreme.

    >>> push(((0, 5), (10, 3)), 20, 4, 60, largest=True)
    ((0, 5), (20, 4))
    """
    alive = [
        (at, kept)
        for at, kept in pairs
        if at_seconds - at <= window_seconds and (kept > value if largest else kept < value)
    ]
    return (*alive, (at_seconds, value))


def extreme(pairs: Pairs, at_seconds: int, window_seconds: float) -> int | None:
    """The largest (or least, as the pairs were pushed) value of the last `window_seconds`; None if there is none."""
    return next((value for at, value in pairs if at_seconds - at <= window_seconds), None)


def keep(
    state: State, at_seconds: int, current: int, wanted: int, keep_seconds: float, power: PowerPlan | None = None
) -> tuple[int, Reason | None]:
    """Do not give up a replica that was wanted within the keep window: it would be paid for twice.

    An idle pool that has tiers to power down to (`power`) goes by them instead.
    """
    if wanted >= current:
        return wanted, None
    if power is not None and wanted == 0:
        return _changed("power_down", wanted, current if power.live else wanted, power.inputs)
    recent = extreme(state.recommended, at_seconds, keep_seconds)
    kept = max(wanted, min(current, recent if recent is not None else wanted))
    return _changed("keep", wanted, kept, (("window_seconds", float(keep_seconds)),))


def unknown(facts: Facts, wanted: int) -> tuple[int, Reason | None]:
    """Lower nothing while a declared signal is missing; count each silent replica as fully loaded while some are."""
    current, observation = facts.current, facts.observation
    if wanted >= current:
        return wanted, None
    if facts.unknown:
        since = facts.state.unknown_since_seconds
        age = float(observation.at_seconds - since) if since is not None else 0.0
        return _changed("unknown_hold", wanted, current, (("missing", "+".join(facts.unknown)), ("age_seconds", age)))
    load, ready = observation.load, observation.replicas.ready
    reporting = load.replicas_reporting if load is not None else None
    silent = 0 if reporting is None else max(0, ready - reporting)
    return _changed("silent", wanted, min(current, wanted + silent), (("silent_replicas", float(silent)),))


def observer(strategy: str, current: int, wanted: int) -> tuple[int, Reason | None]:
    """An observer acts on nothing: its Reason holds the number that would have been."""
    if strategy != "observer" or wanted == current:
        return wanted, None
    return current, Reason(rule="observer", before=wanted, after=current, inputs=(("would_be", float(wanted)),))


def tolerance(limits: Limits, current: int, wanted: int) -> tuple[int, Reason | None]:
    """Leave the number alone while it is off by no more than the tolerance; a pool at zero always may wake."""
    if not current or abs(wanted - current) > limits.tolerance_fraction * current + 1e-9:
        return wanted, None
    return _changed("tolerance", wanted, current, (("tolerance_fraction", limits.tolerance_fraction),))


def stabilization(
    limits: Limits, state: State, at_seconds: int, current: int, wanted: int
) -> tuple[int, Reason | None]:
    """Up only as far as every recommendation of the up window agrees; down likewise (Kubernetes' rule)."""
    if wanted > current > 0 and limits.scale_up.stabilization_seconds > 0:
        least = extreme(state.recommended_low, at_seconds, limits.scale_up.stabilization_seconds)
        calm = max(current, min(wanted, least if least is not None else wanted))
        return _changed(
            "stabilization", wanted, calm, (("window_seconds", float(limits.scale_up.stabilization_seconds)),)
        )
    if wanted < current and limits.scale_down.stabilization_seconds > 0:
        return _renamed(
            "stabilization", keep(state, at_seconds, current, wanted, limits.scale_down.stabilization_seconds)
        )
    return wanted, None


def rate(limits: Limits, state: State, at_seconds: int, current: int, wanted: int) -> tuple[int, Reason | None]:
    """At most so many replicas, or such a fraction (the larger of the two), per period; a wake from zero is free.

    Both count from the number at the period's start, whichever way it moved since (Kubernetes' rule).
    """
    if wanted > current > 0:
        start = current - sum(to - was for was, to in _changes(state, at_seconds, limits.scale_up))
        allowed = _allowance(limits.scale_up, start)
        if allowed is not None:
            return _changed("rate", wanted, min(wanted, max(current, start + allowed)), _rate_inputs(limits.scale_up))
    if wanted < current:
        start = current - sum(to - was for was, to in _changes(state, at_seconds, limits.scale_down))
        allowed = _allowance(limits.scale_down, start)
        if allowed is not None:
            return _changed("rate", wanted, max(wanted, min(current, start - allowed)), _rate_inputs(limits.scale_down))
    return wanted, None


def sick(limits: Limits, facts: Facts, wanted: int) -> tuple[int, Reason | None]:
    """One more for each replica that carries nothing (see `health`); the pool's minimum is one of healthy replicas."""
    state, seen = facts.state, facts.observation
    if not any(health.sick(state, seen)):
        return wanted, None
    low, high = bounds_at(limits, seen.at_seconds)
    least = seen.replicas.desired if facts.unknown else 0
    return health.replace_sick(state, seen, wanted, min(low, high), least)


def spare(spare_replicas: int | None, current: int, wanted: int) -> tuple[int, Reason | None]:
    """Ask for no more than the platform says it could give."""
    if spare_replicas is None or wanted <= current + spare_replicas:
        return wanted, None
    return _changed("spare", wanted, current + spare_replicas, (("spare_replicas", float(spare_replicas)),))


def bounds(limits: Limits, at_seconds: int, wanted: int) -> tuple[int, Reason | None]:
    """Into [min, max] of the active schedule entries and of the pool; where they cross, the pool's maximum wins."""
    low, high = bounds_at(limits, at_seconds)
    bounded = min(max(wanted, low), high)
    return _changed("bounds", wanted, bounded, (("min_replicas", float(low)), ("max_replicas", float(high))))


def bounds_at(limits: Limits, at_seconds: int) -> tuple[int, int]:
    """(min, max) of the pool and of the schedule entries that are active."""
    active = [entry for entry in limits.schedule if cron.active(entry, at_seconds)]
    low = max([limits.min_replicas, *(e.min_replicas for e in active if e.min_replicas is not None)])
    return low, min([limits.max_replicas, *(e.max_replicas for e in active if e.max_replicas is not None)])


def remember(limits: Limits, state: State, at_seconds: int, wanted: int, keep_seconds: float) -> tuple[Pairs, Pairs]:
    """The state's (recommended, recommended_low) with this recommendation in it."""
    down_window = max(keep_seconds, limits.scale_down.stabilization_seconds)
    largest = push(state.recommended, at_seconds, wanted, down_window, largest=True)
    up_window = limits.scale_up.stabilization_seconds
    least = push(state.recommended_low, at_seconds, wanted, up_window, largest=False) if up_window > 0 else ()
    return largest, least


def remember_change(
    limits: Limits, state: State, at_seconds: int, current: int, decided: int
) -> tuple[tuple[int, int, int], ...]:
    """The state's `scaled` with this change in it and what no rate asks about any more dropped."""
    rates = [r for r in (limits.scale_up, limits.scale_down) if _allowance(r, 1) is not None]
    if not rates:
        return ()
    horizon = max(r.period_seconds for r in rates)
    alive = tuple(event for event in state.scaled if at_seconds - event[0] < horizon)
    return alive if decided == current else (*alive, (at_seconds, current, decided))


def _changes(state: State, at_seconds: int, limit: Rate) -> Iterable[tuple[int, int]]:
    return [(was, to) for at, was, to in state.scaled if at_seconds - at < limit.period_seconds]


def _allowance(limit: Rate, start: int) -> int | None:
    by_count, by_fraction = limit.max_replicas_per_period, limit.max_fraction_per_period
    if by_count is None and by_fraction is None:
        return None
    return max(by_count or 0, replicas_for(start * by_fraction) if by_fraction is not None else 0)


def _rate_inputs(limit: Rate) -> tuple[tuple[str, float | str], ...]:
    inputs: list[tuple[str, float | str]] = [("period_seconds", float(limit.period_seconds))]
    if limit.max_replicas_per_period is not None:
        inputs.append(("max_replicas_per_period", float(limit.max_replicas_per_period)))
    if limit.max_fraction_per_period is not None:
        inputs.append(("max_fraction_per_period", limit.max_fraction_per_period))
    return tuple(inputs)


def _changed(
    rule: str, before: int, after: int, inputs: tuple[tuple[str, float | str], ...]
) -> tuple[int, Reason | None]:
    return after, None if before == after else Reason(rule=rule, before=before, after=after, inputs=inputs)


def _renamed(rule: str, outcome: tuple[int, Reason | None]) -> tuple[int, Reason | None]:
    number, reason = outcome
    if reason is None:
        return outcome
    return number, Reason(rule=rule, before=reason.before, after=reason.after, inputs=reason.inputs)
