"""Numbers: the one rounding rule, canonical floats, plain words for durations."""

from __future__ import annotations

import math

# Two quotients that differ by less than this are the same number of replicas: 7 * (29 / 7) must not order a 30th GPU.
_SLACK = 1e-9


def replicas_for(amount: float) -> int:
    """The least whole number of replicas that carries `amount`: a ceiling that forgives the last bits of a float.

    Below zero counts as zero.  This is the only ceiling in the project that makes a replica count.

    >>> 7 * (29 / 7), replicas_for(7 * (29 / 7)), replicas_for(29.001)
    (29.000000000000004, 29, 30)

    Raises ValueError for NaN and infinity: no number of replicas carries them.
    """
    if not math.isfinite(amount):
        raise ValueError(f"{amount} is not a number of replicas")
    return max(0, math.ceil(amount - _SLACK * max(1.0, abs(amount))))


def replicas_within(amount: float) -> int:
    """The largest whole number of replicas not above `amount`, with the same forgiveness (never below 0)."""
    if not math.isfinite(amount):
        raise ValueError(f"{amount} is not a number of replicas")
    return max(0, math.floor(amount + _SLACK * max(1.0, abs(amount))))


def significant(value: float) -> float:
    """`value` rounded to six significant digits, so that stored history is short and prints one way.

    >>> significant(1234567.8), significant(-0.0)
    (1234570.0, 0.0)
    """
    rounded = float(f"{value:.6g}")
    return rounded + 0.0  # -0.0 becomes 0.0


def clamp(value: int, low: int, high: int) -> int:
    """`value` moved into [low, high]; `low` wins when they cross."""
    return max(low, min(value, high))


def duration(seconds: float) -> str:
    """A duration for a person: ``90 -> '1m30s'``, ``7200 -> '2h'``, ``0.4 -> '0.4s'``."""
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 60:
        return f"{seconds:g}s" if seconds == int(seconds) else f"{seconds:.3g}s"
    whole = round(seconds)
    parts = []
    for size, name in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{name}")
    return "".join(parts[:2])
