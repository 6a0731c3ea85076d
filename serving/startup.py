"""How long a replica takes from order to ready: the prior, before any start was seen.

Stages are log-normal around their values and follow one another; their sum is taken as log-normal with the same mean and
variance (Fenton-Wilkinson).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from autoscaler.settings import StartupSettings
from serving.profiles import Profile, startup_profile

QUANTILES = (0.5, 0.9, 0.95, 0.99)
# A replica of unknown size: weights and layers of a 13B model, and a spread that covers 8B to 34B.
GENERIC_WEIGHTS_GB, GENERIC_LAYERS, GENERIC_SIGMA = 30.0, 40, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormal:
    """A positive random time: its median in seconds, and the standard deviation of its logarithm."""

    median_seconds: float
    sigma: float

    def quantile(self, q: float) -> float:
        """Seconds that are not exceeded with probability `q`.

        >>> round(LogNormal(median_seconds=100.0, sigma=0.35).quantile(0.9), 1)
        156.6
        """
        return (
            self.median_seconds * math.exp(self.sigma * NormalDist().inv_cdf(q))
            if self.sigma > 0
            else self.median_seconds
        )


def summed(stages: Iterable[tuple[float, float]]) -> LogNormal:
    """The log-normal with the mean and variance of a sum of independent log-normal (median seconds, sigma) stages."""
    mean = variance = 0.0
    for seconds, sigma in stages:
        stage_mean = seconds * math.exp(sigma * sigma / 2.0)
        mean += stage_mean
        variance += stage_mean * stage_mean * math.expm1(sigma * sigma)
    if mean <= 0.0:
        return LogNormal(median_seconds=0.0, sigma=0.0)
    square = math.log1p(variance / (mean * mean))
    return LogNormal(median_seconds=mean * math.exp(-square / 2.0), sigma=math.sqrt(square))


def startup_prior(settings: StartupSettings, profile: Profile | None) -> LogNormal:
    """What is believed of a start-up: the profile's stages at this replica's size, unless the person knows better.

    A replica of unknown size is given that of a 13B model and a wide spread.  Raises ConfigError for an unknown start-up
    profile.
    """
    shape = startup_profile(settings.profile)
    weights_gb = profile.weights_gb if profile else GENERIC_WEIGHTS_GB
    layers = profile.layers if profile else GENERIC_LAYERS
    total = summed((s.seconds, s.sigma) for s in shape.stage_seconds(weights_gb=weights_gb, layers=layers))
    known_size = profile is not None or settings.median_seconds is not None
    sigma = total.sigma if known_size else max(total.sigma, GENERIC_SIGMA)
    return LogNormal(
        median_seconds=total.median_seconds if settings.median_seconds is None else settings.median_seconds,
        sigma=sigma if settings.sigma is None else settings.sigma,
    )


def startup_quantiles(settings: StartupSettings, profile: Profile | None) -> tuple[tuple[float, float], ...]:
    """Ascending pairs (quantile, seconds) at `QUANTILES`, as `Capacity.startup_seconds` wants them."""
    prior = startup_prior(settings, profile)
    return tuple((q, round(prior.quantile(q), 3)) for q in QUANTILES)
