"""AIBrix's two pod autoscalers: APA on one window, KPA on a stable and a panic window, and the cooldown around both.

Source: AIBrix' ``pkg/controller/podautoscaler`` (``algorithm/apa.go``, ``algorithm/kpa.go``, ``metrics/client.go`` and the
controller's ``stabilizeRecommendation``).  As shipped, KPA takes the mean per pod for the total of all pods, the cooldown
takes the minimum of its window on the way down and the maximum on the way up, and pods on their way are not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autoscaler.schema import setting

Samples = tuple[tuple[float, float], ...]
Recommendations = tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AibrixSpec:
    """AIBrix's knobs with its shipped defaults."""

    up_tolerance: float = setting(0.1, "No change up to this share above the target.", low=0, below=1)
    down_tolerance: float = setting(0.1, "No change down to this share below the target.", low=0, below=1)
    max_scale_up_rate: float = setting(2.0, "At most so many times the pods.", above=1)
    max_scale_down_rate: float = setting(2.0, "At least the pods divided by this.", above=1)
    stable_window_seconds: int = setting(180, "Seconds of the stable mean.", low=1, high=3600)
    panic_window_seconds: int = setting(60, "Seconds of the panic mean (KPA).", low=1, high=3600)
    panic_threshold: float = setting(
        2.0, "Panic when the panic mean is more than so many times the stable one.", above=1
    )
    up_cooldown_seconds: int = setting(0, "Window of recommendations on the way up.", low=0, high=3600)
    down_cooldown_seconds: int = setting(300, "Window of recommendations on the way down.", low=0, high=3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class AibrixState:
    """Samples of the mean per pod, and past recommendations: (at_seconds, number) pairs, oldest first."""

    stable: Samples = ()
    panic: Samples = ()
    recommendations: Recommendations = ()


def record(spec: AibrixSpec, state: AibrixState, *, at_seconds: float, per_pod: float) -> AibrixState:
    """The state with one more sample.  Windows are pruned here only: without samples old ones stay for ever."""
    sample = (at_seconds, per_pod)
    return replace(
        state,
        stable=(*_younger(state.stable, at_seconds - spec.stable_window_seconds), sample),
        panic=(*_younger(state.panic, at_seconds - spec.panic_window_seconds), sample),
    )


def means(state: AibrixState) -> tuple[float, float] | None:
    """(stable, panic) mean; None before the first sample."""
    if not state.stable:
        return None
    return _mean(state.stable), _mean(state.panic)


def apa(spec: AibrixSpec, *, per_pod: float, target: float, current: int) -> int:
    """Pods in proportion to the mean per pod over its target."""
    ratio = per_pod / target
    if ratio > 1 + spec.up_tolerance:
        return min(math.ceil(current * ratio), math.ceil(spec.max_scale_up_rate * current))
    if ratio < 1 - spec.down_tolerance:
        return max(math.ceil(current * ratio), math.floor(current / spec.max_scale_down_rate))
    return current


def kpa(spec: AibrixSpec, *, stable: float, panic: float, target: float, current: int) -> int:
    """Pods for the values over the target; in panic the larger of both windows.

    The values are meant to be totals; the controller hands over means per pod.
    """
    low = math.floor(current / spec.max_scale_down_rate)
    high = max(1, math.ceil(spec.max_scale_up_rate * current))

    def desired(value: float) -> int:
        outside = value > target * (1 + spec.up_tolerance) or value < target * (1 - spec.down_tolerance)
        return min(max(math.ceil(value / target) if outside else current, low), high)

    in_panic = stable <= 0 or panic / stable > spec.panic_threshold
    return max(desired(stable), desired(panic)) if in_panic else desired(stable)


def stabilize(
    spec: AibrixSpec,
    state: AibrixState,
    *,
    at_seconds: float,
    recommendation: int,
    current: int,
    inverted: bool = True,
) -> tuple[int, AibrixState]:
    """The recommendation after the cooldown of its direction, and what is remembered.

    `inverted`: down to the minimum of the window and up to the maximum, as shipped; False: the other way round.
    """
    longest = max(spec.up_cooldown_seconds, spec.down_cooldown_seconds)
    kept = tuple(r for r in state.recommendations if at_seconds - r[0] < longest)
    state = replace(state, recommendations=(*kept, (at_seconds, recommendation)))
    if recommendation == current:
        return current, state
    up = recommendation > current
    window = spec.up_cooldown_seconds if up else spec.down_cooldown_seconds
    recent = [number for at, number in state.recommendations if at_seconds - at < window] or [recommendation]
    if inverted:
        return (max(recent) if up else min(recent)), state
    return (max(current, min(recent)) if up else min(current, max(recent))), state


def _younger(samples: Samples, cutoff_seconds: float) -> Samples:
    return tuple(s for s in samples if s[0] >= cutoff_seconds)


def _mean(samples: Samples) -> float:
    return math.fsum(value for _, value in samples) / len(samples)
