"""Which periods does the work have?  Robust against spikes, trend and missing blocks; nothing is found in two cycles' noise.

1. Logs of 15-min means (hours for weeks) less a rolling median, clipped as Huber does, missing cells left out.
2. Candidates: 24 h, 168 h, 1 h, and the tallest peaks of the Lomb-Scargle periodogram that pass Fisher's g-test.
3. A candidate is accepted if the autocorrelation at it is a hill, is significant, and repeats at its double.

*Refs*: RobustPeriod (2002.09535); R. A. Fisher, "Tests of significance in harmonic analysis", 1929.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoscaler.units import significant
from forecast.history import DAY, FIVE, History

QUARTER, HOUR, WEEK = 900, 3_600, 7 * DAY
LEAST_CORRELATION, LEAST_OF_FEW = 0.3, 0.5  # at one period; where fewer than three cycles were seen
LEAST_HILL = 0.1  # above the autocorrelation at one and a half periods
LEAST_KNOWN_SHARE = 0.5  # of pairs one period apart
FISHER_P = 0.001
MOST_PEAKS = 3
HUBER = 3.0  # scaled median absolute deviations
NEAR = 0.15  # periods closer than this are one

Masked = Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A period and the autocorrelation at it."""

    period_seconds: int
    correlation: float


def periods_of(history: History) -> tuple[Found, ...]:
    """Periods from 1 h to a week of which two full cycles were seen, the most correlated first."""
    cells = history.five_mean
    means = cells.between(cells.first, cells.stop)
    found: list[Found] = []
    for size, longest, fixed in ((QUARTER, 30 * HOUR, (DAY, HOUR)), (HOUR, 8 * DAY, (WEEK,))):
        values = _binned(means, size // FIVE)
        flat = _flattened(values, (WEEK if size == QUARTER else 4 * WEEK) // size)
        if sum(v is not None for v in flat) < 48:
            continue
        own = _peaks(flat, size, longest) if size == QUARTER else []
        for period in (*fixed, *own):
            if all(abs(period - f.period_seconds) > NEAR * f.period_seconds for f in found):
                correlation = _confirmed(flat, period / size)
                if correlation is not None:
                    found.append(Found(period_seconds=period, correlation=significant(correlation)))
    return tuple(sorted(found, key=lambda f: (-f.correlation, f.period_seconds)))


def _binned(values: Masked, count: int) -> list[float | None]:
    """Logs of means over `count` cells, of which half must be known."""
    known = sorted(v for v in values if v is not None)
    if not known:
        return []
    floor = max(0.05 * sum(known) / len(known), 1e-6)
    out: list[float | None] = []
    for i in range(len(values) % count, len(values), count):
        some = [v for v in values[i : i + count] if v is not None]
        out.append(math.log(sum(some) / len(some) + floor) if 2 * len(some) >= count else None)
    return out


def _flattened(values: list[float | None], width: int) -> list[float | None]:
    """Less a rolling median over about `width` cells (taken in steps of a tenth of it), clipped at HUBER scaled MADs."""
    step = max(1, width // 10)
    half = width // 2
    rest: list[float | None] = []
    for begin in range(0, len(values), step):
        middle = begin + step // 2
        near = sorted(v for v in values[max(0, middle - half) : middle + half + 1] if v is not None)
        level = near[len(near) // 2] if near else 0.0
        rest += [None if v is None else v - level for v in values[begin : begin + step]]
    sizes = sorted(abs(v) for v in rest if v is not None)
    # Where more than half are equal (idle nights) the median says nothing, and the mean size stands in.
    scale = 1.4826 * sizes[len(sizes) // 2] or 1.2533 * sum(sizes) / len(sizes) if sizes else 0.0
    limit = HUBER * scale
    if limit <= 0.0:
        return [None if v is None else 0.0 for v in rest]
    clipped = [None if v is None else max(-limit, min(limit, v)) for v in rest]
    mean = sum(v for v in clipped if v is not None) / max(1, sum(v is not None for v in clipped))
    return [None if v is None else v - mean for v in clipped]


def _peaks(flat: list[float | None], size: int, longest: int) -> list[int]:
    """Periods (seconds, whole cells) at the tallest peaks of the periodogram, as far as Fisher's g-test lets them pass."""
    known = [(i, v) for i, v in enumerate(flat) if v is not None]
    total = sum(v * v for _, v in known)
    span = len(flat)
    if total <= 0.0:
        return []
    power: list[tuple[float, float]] = []
    low, high = max(2, math.ceil(span * size / longest)), span * size // HOUR
    stride = max(1, (high - low) // 240)
    for k in range(low, high + 1, stride):
        omega = 2.0 * math.pi * k / span
        c = s = 0.0
        for i, v in known:
            c += v * math.cos(omega * i)
            s += v * math.sin(omega * i)
        power.append(((c * c + s * s) / len(known) / total * 2.0, span * size / k))
    m = len(known) // 2
    passing = [(p, t) for p, t in power if m * (1.0 - min(p, 1.0)) ** (m - 1) < FISHER_P]
    tallest = sorted(passing, key=lambda x: -x[0])[:MOST_PEAKS]
    return [_sharpened(flat, t / size) * size for _, t in tallest if HOUR <= t <= longest]


def _sharpened(flat: list[float | None], lag: float) -> int:
    """The whole lag of largest autocorrelation near `lag`: a periodogram tells long periods coarsely."""
    near = range(max(4, math.floor(0.94 * lag)), math.ceil(1.06 * lag) + 1)
    return max(near, key=lambda n: _correlation(flat, n) or -1.0)


def _confirmed(flat: list[float | None], lag: float) -> float | None:
    """The autocorrelation at `lag` cells if that makes a period; else None."""
    n = round(lag)
    if n < 4 or len(flat) < 2 * n:
        return None
    one = _correlation(flat, n)
    trough = _correlation(flat, round(lag * 1.5)) if len(flat) >= 2.5 * lag else _correlation(flat, round(lag * 0.5))
    least = LEAST_CORRELATION if len(flat) >= 3 * n else LEAST_OF_FEW
    if one is None or trough is None or one < least or one - trough < LEAST_HILL:
        return None
    if any((_correlation(flat, n + d) or -1.0) > one + 0.02 for d in (-max(1, n // 8), max(1, n // 8))):
        return None
    if len(flat) >= 3 * n:
        two = _correlation(flat, 2 * n)
        if two is not None and two < LEAST_CORRELATION / 2:
            return None
    return one


def _correlation(flat: list[float | None], lag: int) -> float | None:
    """Correlation of cells `lag` apart, over pairs of known ones; None if too few are."""
    pairs = [(a, b) for a, b in zip(flat, flat[lag:], strict=False) if a is not None and b is not None]
    if len(pairs) < max(8, LEAST_KNOWN_SHARE * (len(flat) - lag)):
        return None
    cross = sum([a * b for a, b in pairs])
    size = math.sqrt(sum([a * a for a, _ in pairs]) * sum([b * b for _, b in pairs]))
    return cross / size if size > 0.0 else None
