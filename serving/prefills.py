"""How long the prefills take that others bring while a request decodes: a random number of random times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from serving.closed_forms import Law, Mix

_MANY = 16.0  # prefills above which their sum is taken as one log-normal
_SEVERAL, _FAR = 3.0, 60.0  # of so many prefills none take longer than the mean by the root of so many variances
_NUMBERS = 64
_NORMAL = NormalDist()


def longer_share(mean: float, cv: float, limit: float) -> float:
    """Share of log-normal lengths above `limit`; all alike if `cv` is 0."""
    square = math.log1p(cv * cv)
    if square == 0.0:
        return 1.0 if mean > limit else 0.0
    return 0.5 * math.erfc((math.log(limit / mean) + square / 2.0) / math.sqrt(2.0 * square)) if limit > 0.0 else 1.0


def length_at(mean: float, cv: float, above: float) -> float:
    """The log-normal length that a share `above` of lengths exceeds: 0 where all do, infinite where none does."""
    if not 0.0 < 1.0 - above < 1.0:
        return 0.0 if above > 0.5 else math.inf
    square = math.log1p(cv * cv)
    return mean * math.exp(math.sqrt(square) * _NORMAL.inv_cdf(1.0 - above) - square / 2.0)


def capped_mean(mean: float, cv: float, cap: float) -> float:
    """E[min(x, cap)] of log-normal lengths x."""
    square = math.log1p(cv * cv)
    if square == 0.0 or cap <= 0.0:
        return min(mean, cap)
    below = 1.0 - longer_share(mean * math.exp(square), cv, cap)
    return mean * below + cap * longer_share(mean, cv, cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefills:
    """Times of prefills in seconds: mean, variance, and what the first of a step spares if the floor was not reached.

    `scales`: the time of one, two, ... prefills together as log-normals of the same mean and variance.
    """

    mean: float
    variance: float
    spared: float
    scales: tuple[tuple[float, float], ...]

    @property
    def biased(self) -> float:
        """The mean, weighed by time: of the prefill that fills the last room, which is longer than usual."""
        return self.mean + self.variance / self.mean

    def needed(self, room: float, spared: float) -> float:
        """Seconds of prefill per step that take `room` more than steps without: the first prefill of each spares some.

        With r prefills per step on average, 1 - exp(-r) of the steps have one.
        """
        if spared <= 0.0:
            return room
        seconds = room + spared
        for _ in range(3):
            seconds = room + spared * (1.0 - math.exp(-seconds / self.mean))
        return seconds

    def above(self, room: float, count: float, irregularity: float) -> float:
        """P(prefills take longer than `room` seconds) if `count` are expected; variance over mean of their number given.

        The number is a fixed part and a Poisson part.
        """
        if room <= 0.0:
            return 1.0
        variance = count * (self.variance + irregularity * self.mean * self.mean)
        beyond = room - count * self.mean
        if count > _SEVERAL and beyond > 0.0 and beyond * beyond > _FAR * variance:
            return 0.0
        reach = math.log(room)
        if count > _MANY:
            return _tail(reach, _scale(count * self.mean, variance))
        fixed, random = count * (1.0 - irregularity), count * irregularity
        low = int(fixed)
        share, chance, total, left = fixed - low, math.exp(-random), 0.0, 1.0
        before = _tail(reach, self.scales[low - 1]) if low else 0.0
        for number in range(_NUMBERS - low):
            at, narrow = self.scales[low + number]
            after = 0.5 * math.erfc((reach - at) * narrow)
            total += chance * (before + (after - before) * share)
            left -= chance
            if left < 1e-5:
                break
            if before > 0.9999:  # all larger numbers take longer still
                return total + left
            chance *= random / (number + 1)
            before = after
        return total


@lru_cache(maxsize=256)
def prefills(law: Law, mix: Mix) -> Prefills:
    """The prefills of a mix: b x + e x^2/2 seconds for x tokens, with the moments of a log-normal x."""
    x, q = mix.prompt, 1.0 + mix.prompt_cv * mix.prompt_cv
    mean = law.b * x + law.e * x * x * q / 2.0
    square = law.b**2 * x**2 * q + law.b * law.e * x**3 * q**3 + law.e**2 * x**4 * q**6 / 4.0
    variance = max(0.0, square - mean * mean)
    return Prefills(
        mean=mean,
        variance=variance,
        spared=law.b * capped_mean(x, mix.prompt_cv, law.floor),
        scales=tuple(_scale(n * mean, n * variance) for n in range(1, _NUMBERS + 1)),
    )


def _scale(mean: float, variance: float) -> tuple[float, float]:
    """Location and 1 / (sqrt(2) sigma) of the logarithm of a log-normal with this mean and variance."""
    square = math.log1p(max(1e-12, variance / (mean * mean)))
    return math.log(mean) - square / 2.0, 1.0 / math.sqrt(2.0 * square)


def _tail(reach: float, scale: tuple[float, float]) -> float:
    return 0.5 * math.erfc((reach - scale[0]) * scale[1])
