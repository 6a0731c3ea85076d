"""Kubernetes' HorizontalPodAutoscaler v2, as its controller computes it (1.33 and later).

One sync is: a proposal per metric (`pods`, `external_average`, `external_value`; None where the metric failed), then
`sync`, which takes the largest, applies the behaviour's stabilization and rates, and the bounds.  Source: the controller's
``replica_calculator.go`` and ``horizontal.go``; quantities are compared in whole thousandths, as there.

Ceilings here are plain ``math.ceil``, not the project's forgiving one: the original's phantom pod (0.28 * 25 is
7.000000000000001, and so 8) belongs to what is emulated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autoscaler.errors import ConfigError
from autoscaler.schema import setting

Events = tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPolicy:
    """One allowance per period: so many pods, or so many per cent of the pods at its start."""

    type: Literal["Pods", "Percent"] = setting(doc="Pods or Percent.")
    value: int = setting(doc="Pods, or per cent, per period.", low=1, high=2_000_000_000)
    period_seconds: int = setting(15, "Length of the period in seconds.", low=1, high=1800)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRules:
    """`behavior.scaleUp` or `behavior.scaleDown`."""

    stabilization_window_seconds: int = setting(
        0, "Seconds over which proposals must agree; 0 is off.", low=0, high=3600
    )
    select_policy: Literal["Max", "Min", "Disabled"] = setting(
        "Max", "Which policy counts; Disabled forbids the direction."
    )
    policies: tuple[ScalingPolicy, ...] = setting(doc="Allowances per period.")
    tolerance: float = setting(
        0.1, "No change while the ratio to the target is off by no more; 0 is off.", low=0, below=1
    )

    def __post_init__(self) -> None:
        if not self.policies:
            raise ConfigError("policies", "must hold at least one policy; selectPolicy Disabled forbids a direction")


def default_scale_up() -> ScalingRules:
    """At once, by the larger of 100 % and 4 pods per 15 s."""
    return ScalingRules(
        policies=(ScalingPolicy(type="Percent", value=100), ScalingPolicy(type="Pods", value=4)),
    )


def default_scale_down() -> ScalingRules:
    """To the largest proposal of the last 300 s, then by up to 100 % per 15 s."""
    return ScalingRules(stabilization_window_seconds=300, policies=(ScalingPolicy(type="Percent", value=100),))


@dataclass(frozen=True, slots=True, kw_only=True)
class HpaSpec:
    """Bounds and behaviour, with the defaults of the API."""

    min_replicas: int = setting(1, "Lower bound; 0 allows scaling to zero.", low=0, high=100_000)
    max_replicas: int = setting(100, "Upper bound.", low=1, high=100_000)
    scale_up: ScalingRules = setting(factory=default_scale_up, doc="behavior.scaleUp.")
    scale_down: ScalingRules = setting(factory=default_scale_down, doc="behavior.scaleDown.")

    def __post_init__(self) -> None:
        if self.max_replicas < self.min_replicas:
            raise ConfigError("max_replicas", f"{self.max_replicas} is below min_replicas {self.min_replicas}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HpaState:
    """What the controller remembers: raw proposals and changes made, as (at_seconds, number) pairs, oldest first."""

    proposals: Events = ()
    ups: Events = ()
    downs: Events = ()


def start(*, at_seconds: float, current: int) -> HpaState:
    """The state of a controller that sees this workload for the first time: its size counts as a proposal."""
    return HpaState(proposals=((at_seconds, current),))


def milli(value: float) -> int:
    """A quantity in whole thousandths."""
    return round(value * 1000)


def within_tolerance(spec: HpaSpec, ratio: float) -> bool:
    """True if the ratio of use to target asks for no change (NaN never does: 0 of 0 replicas is not on target)."""
    return 1.0 - spec.scale_down.tolerance <= ratio <= 1.0 + spec.scale_up.tolerance


def external_average(spec: HpaSpec, *, total: float | None, target: float, replicas: int) -> int | None:
    """Proposal of an External metric with an `AverageValue` target: ceil(total / target).

    `replicas` is `status.replicas` (pods that exist, ready or not).  From 0 there is no tolerance.  None if unknown.
    """
    if total is None:
        return None
    usage, per_pod = milli(total), milli(target)
    if replicas > 0 and within_tolerance(spec, usage / (per_pod * replicas)):
        return replicas
    return math.ceil(usage / per_pod)


def external_value(spec: HpaSpec, *, total: float | None, target: float, current: int, ready: int) -> int | None:
    """Proposal of an External metric with a `Value` target: ceil(ratio * ready pods), and ceil(ratio) from 0."""
    if total is None:
        return None
    ratio = milli(total) / milli(target)
    if current == 0:
        return math.ceil(ratio)
    return current if within_tolerance(spec, ratio) else math.ceil(ratio * ready)


def pods(
    spec: HpaSpec, *, values: Sequence[float], target: float, current: int, missing: int = 0, unready: int = 0
) -> int | None:
    """Proposal of a Pods metric with an `AverageValue` target.

    `values`: one reading per pod that has one.  `missing`: running pods without a reading (they count as at the target on
    the way down and as 0 on the way up).  `unready`: pending pods (they count as 0 on the way up).  None without readings.
    """
    if not values:
        return None
    goal, readings = milli(target), len(values)
    total = sum(map(milli, values))
    ratio = (total // readings) / goal
    fill_unready = unready if ratio > 1.0 else 0
    if not fill_unready and not missing:
        return current if within_tolerance(spec, ratio) else math.ceil(ratio * readings)
    if ratio < 1.0:
        total += missing * goal
    counted = readings + missing + fill_unready
    corrected = (total // counted) / goal
    if within_tolerance(spec, corrected) or (ratio < 1.0 < corrected) or (ratio > 1.0 > corrected):
        return current
    wanted = math.ceil(corrected * counted)
    if (corrected < 1.0 and wanted > current) or (corrected > 1.0 and wanted < current):
        return current
    return wanted


def largest(proposals: Sequence[int | None], current: int) -> int | None:
    """The largest proposal; None (do nothing) if all failed, or if some failed and the others would scale down."""
    known = [p for p in proposals if p is not None]
    if not known or (len(known) < len(proposals) and max(known) < current):
        return None
    return max(known)


def sync(
    spec: HpaSpec, state: HpaState, *, at_seconds: float, current: int, proposals: Sequence[int | None]
) -> tuple[int, HpaState]:
    """One turn of the controller: the new `spec.replicas`, and what it remembers.

    `current` is the present `spec.replicas`; 0 with `min_replicas` > 0 means paused by hand.
    """
    if current == 0 and spec.min_replicas > 0:
        return 0, state
    if current > spec.max_replicas:
        wanted = spec.max_replicas
    elif current < spec.min_replicas:
        wanted = spec.min_replicas
    else:
        proposed = largest(proposals, current)
        if proposed is None:
            return current, state
        calm = _stabilized(spec, state.proposals, at_seconds, current, proposed)
        wanted = _limited(spec, state, at_seconds, current, calm)
        state = HpaState(
            proposals=(*_since(state.proposals, at_seconds, _longest_window(spec)), (at_seconds, proposed)),
            ups=state.ups,
            downs=state.downs,
        )
    return wanted, _with_change(spec, state, at_seconds, wanted - current)


def _since(events: Events, at_seconds: float, window_seconds: float) -> Events:
    """The events younger than the window; one that is exactly as old as the window is out."""
    return tuple(event for event in events if at_seconds - event[0] < window_seconds)


def _longest_window(spec: HpaSpec) -> int:
    return max(spec.scale_up.stabilization_window_seconds, spec.scale_down.stabilization_window_seconds)


def _stabilized(spec: HpaSpec, recent: Events, at_seconds: float, current: int, proposed: int) -> int:
    """`current` moved up to the least proposal of the up window and down to the largest of the down window."""
    floor = ceiling = proposed
    up, down = spec.scale_up.stabilization_window_seconds, spec.scale_down.stabilization_window_seconds
    for at, number in recent:
        age = at_seconds - at
        if age < up and number < floor:
            floor = number
        if age < down and number > ceiling:
            ceiling = number
    return min(max(current, floor), ceiling)


def _limited(spec: HpaSpec, state: HpaState, at_seconds: float, current: int, wanted: int) -> int:
    """`wanted` within what the policies of its direction and the bounds allow now."""
    if wanted > current:
        most = max(current, _up_limit(spec.scale_up, state, at_seconds, current))
        return min(wanted, spec.max_replicas, most)
    if wanted < current:
        least = min(current, _down_limit(spec.scale_down, state, at_seconds, current))
        return max(wanted, spec.min_replicas, least)
    return wanted


def _period_start(state: HpaState, at_seconds: float, current: int, period_seconds: int) -> int:
    added = sum(change for _, change in _since(state.ups, at_seconds, period_seconds))
    removed = sum(change for _, change in _since(state.downs, at_seconds, period_seconds))
    return current - added + removed


def _up_limit(rules: ScalingRules, state: HpaState, at_seconds: float, current: int) -> int:
    if rules.select_policy == "Disabled":
        return current
    allowed = []
    for policy in rules.policies:
        start = _period_start(state, at_seconds, current, policy.period_seconds)
        by_percent = policy.type == "Percent"
        allowed.append(math.ceil(start * (1 + policy.value / 100)) if by_percent else start + policy.value)
    return min(allowed) if rules.select_policy == "Min" else max(allowed)


def _down_limit(rules: ScalingRules, state: HpaState, at_seconds: float, current: int) -> int:
    if rules.select_policy == "Disabled":
        return current
    allowed = []
    for policy in rules.policies:
        start = _period_start(state, at_seconds, current, policy.period_seconds)
        by_percent = policy.type == "Percent"
        # Go converts to an integer by cutting the fraction off.
        allowed.append(math.trunc(start * (1 - policy.value / 100)) if by_percent else start - policy.value)
    return max(allowed) if rules.select_policy == "Min" else min(allowed)


def _with_change(spec: HpaSpec, state: HpaState, at_seconds: float, change: int) -> HpaState:
    if change == 0:
        return state
    period = max(p.period_seconds for rules in (spec.scale_up, spec.scale_down) for p in rules.policies)
    ups, downs = _since(state.ups, at_seconds, period), _since(state.downs, at_seconds, period)
    if change > 0:
        ups = (*ups, (at_seconds, change))
    else:
        downs = (*downs, (at_seconds, -change))
    return HpaState(proposals=state.proposals, ups=ups, downs=downs)
