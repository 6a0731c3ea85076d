"""Ray Serve's default policy: replicas in proportion to ongoing requests, changed once the direction has lasted.

Source: ``ray/serve/autoscaling_policy.py`` of Ray 2.60, where delays are measured by the clock.  Bounds are the caller's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoscaler.schema import setting

_EPSILON_SECONDS = 1e-6  # the original's tolerance when it compares instants


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySpec:
    """`AutoscalingConfig`, with its shipped defaults."""

    target_ongoing_requests: float = setting(
        2.0, "Requests running and queued that one replica is meant to have.", above=0
    )
    upscaling_factor: float = setting(1.0, "Share of the way up that is taken at once.", above=0)
    downscaling_factor: float = setting(1.0, "Share of the way down that is taken at once.", above=0)
    upscale_delay_seconds: float = setting(30.0, "Seconds that more must have been wanted without a break.", low=0)
    downscale_delay_seconds: float = setting(600.0, "Seconds that less must have been wanted without a break.", low=0)
    downscale_to_zero_delay_seconds: float | None = setting(
        None, "The same for the last replica; None: as above.", low=0
    )
    look_back_seconds: float = setting(30.0, "Seconds over which ongoing requests are averaged.", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayState:
    """`direction`: 1 up, -1 down, 0 neither, wanted since `since_seconds`."""

    direction: int = 0
    since_seconds: float = 0.0


def decide(
    spec: RaySpec, state: RayState, *, at_seconds: float, ongoing: float, running: int, target: int
) -> tuple[int, RayState]:
    """The new target, and what is remembered.

    `ongoing` requests are averaged over the look-back; `running` replicas serve; `target` is the present target.
    """
    if running == 0:
        if ongoing > 0:
            return max(math.ceil(spec.upscaling_factor), target), state
        return target, state
    # Through the error ratio as in the original: its rounding decides on which side of a whole number a quotient falls.
    desired = running * (ongoing / (spec.target_ongoing_requests * running))
    return _delayed(spec, state, at_seconds, max(0, _scaled(spec, desired, running)), target)


def _scaled(spec: RaySpec, desired: float, running: int) -> int:
    change = desired - running
    factor = spec.upscaling_factor if change > 0 else spec.downscaling_factor
    scaled = math.ceil(running + factor * change)
    return scaled - 1 if math.ceil(desired) < running and scaled == running else scaled


def _delayed(spec: RaySpec, state: RayState, at_seconds: float, wanted: int, target: int) -> tuple[int, RayState]:
    direction = (wanted > target) - (wanted < target)
    if direction == 0:
        return target, RayState()
    since = state.since_seconds if state.direction == direction else at_seconds
    delay = spec.upscale_delay_seconds if direction > 0 else spec.downscale_delay_seconds
    if direction < 0 and target == 1:
        to_zero = spec.downscale_to_zero_delay_seconds
        delay = delay if to_zero is None else to_zero
    elif direction < 0:
        wanted = max(1, wanted)
    if at_seconds - since + _EPSILON_SECONDS >= delay:
        return wanted, RayState()
    return target, RayState(direction=direction, since_seconds=since)
