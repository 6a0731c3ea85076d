"""The rate at which requests break the SLO as often as is allowed: how often that is, and the search for it."""

from __future__ import annotations

from collections.abc import Callable

from autoscaler.settings import Slo

Bracket = tuple[float, float, float, float]  # low, its excess (<= 0), high, its excess (> 0)


def allowed_share(slo: Slo, hopeless: float) -> float:
    """The share of requests that may break the SLO, where a share of `hopeless` breaks it on an idle replica.

    No number of replicas helps those.  Where they use up most of what the SLO allows, load may still add a quarter of it,
    or a quarter as many again.
    """
    allowed = 1.0 - slo.attainment_fraction
    return max(allowed, hopeless + allowed / 4.0, 1.25 * hopeless)


def narrowed(
    excess: Callable[[float], float], bracket: Bracket, steps: int, close: Callable[[float, float], bool]
) -> Bracket:
    """`bracket` around the root of an increasing function, by false position (Illinois): until `close`, or `steps` later."""
    low, below, high, above = bracket
    last = 0
    for _ in range(steps):
        if close(low, high):
            break
        at = low + (high - low) * min(0.9, max(0.1, below / (below - above)))
        value = excess(at)
        if value <= 0.0:
            low, below = at, value
            above = above / 2.0 if last < 0 else above
            last = -1
        else:
            high, above = at, value
            below = below / 2.0 if last > 0 else below
            last = 1
    return low, below, high, above
