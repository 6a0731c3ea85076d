"""From guesses to quantiles: what outcomes exceeded each guess by, tracked online, and a vote weighted by past loss.

Residuals are logarithms of (outcome + shift) over (guess + shift), see `forecast.tracks`.  Everything is
O(experts x levels) per matured forecast, frozen and plain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_Z = tuple(round(NormalDist().inv_cdf(q), 9) for q in LEVELS)

GAIN = 0.05  # step of a quantile tracker, in standard deviations of the residual
TAILS = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 5.0)  # far levels are missed rarely: longer steps, or they lag for days
PRIOR_SPREAD, PRIOR_WEIGHT = 0.5, 3.0  # before any residual: 0.5 z, worth so many matured forecasts
WARM = 400  # matured forecasts until the tracker stops leaning on the normal quantile
SPREAD_SECONDS = 86_400.0  # memory of mean and spread
LOSS_MEMORY = 1000.0  # matured forecasts that losses remember
VOTE_RATE = 11.0  # times the square root of 8 log experts: how sharply losses (over their median) decide the vote
LEAST_WEIGHT = 0.01  # of the best expert's; below it an expert is scored but not heard
JOIN = 90  # matured forecasts before an expert may vote, if another one has so many
_Q_UP = tuple(GAIN * m * q for m, q in zip(TAILS, LEVELS, strict=True))
_Q_DOWN = tuple(GAIN * m * (1.0 - q) for m, q in zip(TAILS, LEVELS, strict=True))


@dataclass(frozen=True, slots=True)
class Tracker:
    """Quantiles (at `LEVELS`) of the log residual of one expert over one window, their spread and the expert's loss."""

    matured: int = 0
    mean: float = 0.0
    variance: float = PRIOR_SPREAD * PRIOR_SPREAD
    offsets: tuple[float, ...] = tuple(PRIOR_SPREAD * z for z in _Z)
    loss: float = 0.0

    def scored(self, residual: float, step_seconds: float, weight: float = 1.0, memory: float = LOSS_MEMORY) -> Tracker:
        """The tracker after an outcome that exceeded the guess by exp(`residual`), `step_seconds` after the one before.

        `weight` of the loss: what a unit of log residual costs in work.  `memory`: matured forecasts that losses remember.
        """
        n = self.matured + 1
        fade = max(1.0 / (n + PRIOR_WEIGHT), min(1.0, step_seconds / SPREAD_SECONDS))
        off = residual - self.mean
        mean = self.mean + fade * off
        variance = (1.0 - fade) * (self.variance + fade * off * off)
        spread = math.sqrt(variance)
        total, offsets = 0.0, []
        for u, q, up, down in _rows(self.offsets):
            d = residual - u
            if d > 0.0:
                total += d * q
                offsets.append(u + spread * up)
            else:
                total += d * (q - 1.0)
                offsets.append(u - spread * down)
        if n <= WARM:
            offsets = [mean + spread * z for z in _Z]
        loss = weight * total / len(LEVELS)
        return Tracker(n, mean, variance, tuple(offsets), self.loss + max(1.0 / n, 1.0 / memory) * (loss - self.loss))


def _rows(offsets: tuple[float, ...]) -> Iterator[tuple[float, float, float, float]]:
    """Per level: its offset, the level, and the steps up and down in spreads.

    Up by gain q where the quantile was exceeded, else down by gain (1 - q): in the long run it is exceeded in 1 - q of
    cases, whatever the series does (2307.16895).
    """
    return zip(offsets, LEVELS, _Q_UP, _Q_DOWN, strict=True)


def weights(trackers: tuple[Tracker, ...], awake: tuple[bool, ...]) -> tuple[float, ...]:
    """Share of each expert in the vote, summing to 1 over those `awake`: exponential in past loss over its median.

    An expert that has seen little does not vote while another has seen enough.  All zero if none is awake.
    """
    voting = [i for i, on in enumerate(awake) if on and trackers[i].matured >= JOIN]
    if not voting:
        voting = [i for i, on in enumerate(awake) if on]
        return tuple(1.0 / len(voting) if i in voting else 0.0 for i in range(len(awake)))
    losses = sorted([trackers[i].loss for i in voting])
    median, best = losses[len(losses) // 2], losses[0]
    rate = VOTE_RATE * math.sqrt(8.0 * math.log(max(2, len(voting)))) / max(median, 1e-12)
    shares = [0.0] * len(awake)
    for i in voting:
        share = math.exp(-min(700.0, rate * (trackers[i].loss - best)))
        shares[i] = share if share >= LEAST_WEIGHT else 0.0
    total = sum(shares)
    return tuple([s / total for s in shares])


def combined(
    guesses: tuple[float | None, ...], trackers: tuple[Tracker, ...], shares: tuple[float, ...]
) -> tuple[float, ...]:
    """Log quantiles: the weighted mean of each expert's log guess plus its offsets."""
    voices = [(s, g, t.offsets) for s, g, t in zip(shares, guesses, trackers, strict=True) if s > 0.0 and g is not None]
    centre = sum([s * g for s, g, _ in voices])
    totals = [centre] * len(LEVELS)
    for s, _, offsets in voices:
        totals = [t + s * o for t, o in zip(totals, offsets, strict=True)]
    return tuple(totals)
