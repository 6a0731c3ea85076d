"""Shapes of traffic that are made up: each is a rate over time, and factors on the lengths, per tenant.

A shape is evaluated at instants relative to the start of the scenario, negative ones included: that is its history.  Random
parts are drawn from counters of absolute time, so that no instant depends on which others are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autoscaler.errors import ConfigError
from autoscaler.schema import setting
from load_tests import draws

Floats = NDArray[np.float64]

DAY = 86_400.0
_BEFORE = 2**40  # added to block numbers, which may be negative, so that they can count draws
_RATE = "Requests per second"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Local time at the scenario's second 0: seconds since midnight, and the weekday (0 is Monday)."""

    day_seconds: float = 0.0
    weekday: int = 0

    def hours(self, t: Floats) -> Floats:
        """Hour of the local day."""
        out: Floats = np.mod(t + self.day_seconds, DAY) / 3600.0
        return out

    def weekend(self, t: Floats) -> NDArray[np.bool_]:
        """True on Saturday and Sunday."""
        day = np.mod(np.floor((t + self.day_seconds) / DAY) + self.weekday, 7)
        weekend: NDArray[np.bool_] = day >= 5
        return weekend


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One tenant's traffic: requests per second, and factors on the mean lengths, at each instant."""

    rates: Floats
    prompt_factors: Floats
    output_factors: Floats


def _stream(rates: Floats, prompt: Floats | float = 1.0, output: Floats | float = 1.0) -> tuple[Stream, ...]:
    one = np.ones_like(rates)
    return (Stream(rates=rates, prompt_factors=one * prompt, output_factors=one * output),)


def _between(t: Floats, start: float, end: float | None) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (t >= start) & (t < (np.inf if end is None else end))
    return inside


def _rise(t: Floats, start: float, over: float) -> Floats:
    """0 before `start`, 1 after `over` seconds more, linear between."""
    return np.clip((t - start) / over, 0.0, 1.0) if over > 0 else (t >= start).astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """The same rate at all times."""

    kind: Literal["constant"] = "constant"
    requests_per_second: float = setting(doc=f"{_RATE}.", above=0)

    def streams(self, t: Floats, clock: Clock, seed: int) -> tuple[Stream, ...]:
        """Traffic at the instants `t`."""
        return _stream(np.full_like(t, self.requests_per_second))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """A sudden level, for good or for a while."""

    kind: Literal["step"] = "step"
    requests_per_second: float = setting(doc=f"{_RATE} before.", above=0)
    factor: float = setting(2.0, "Rate after the step over the rate before.", low=0)
    at_seconds: float = setting(600.0, "When it steps.", low=0)
    until_seconds: float | None = setting(None, "When it steps back; None is never.", low=0)

    def streams(self, t: Floats, clock: Clock, seed: int) -> tuple[Stream, ...]:
        """Traffic at the instants `t`."""
        stepped = _between(t, self.at_seconds, self.until_seconds)
        return _stream(self.requests_per_second * np.where(stepped, self.factor, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """A linear change from one level to another."""

    kind: Literal["ramp"] = "ramp"
    requests_per_second: float = setting(doc=f"{_RATE} before.", above=0)
    factor: float = setting(5.0, "Rate after the ramp over the rate before.", low=0)
    at_seconds: float = setting(600.0, "When it begins.", low=0)
    over_seconds: float = setting(600.0, "How long it takes.", above=0)

    def streams(self, t: Floats, clock: Clock, seed: int) -> tuple[Stream, ...]:
        """Traffic at the instants `t`."""
        return _stream(
            self.requests_per_second * (1.0 + (self.factor - 1.0) * _rise(t, self.at_seconds, self.over_seconds))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sawtooth:
    """Linear rises, each followed by a sudden fall."""

    kind: Literal["sawtooth"] = "sawtooth"
    low_requests_per_second: float = setting(doc=f"{_RATE} after a fall.", low=0)
    high_requests_per_second: float = setting(doc=f"{_RATE} before a fall.", above=0)
    period_seconds: float = setting(1800.0, "From fall to fall.", above=0)

    def __post_init__(self) -> None:
        if self.high_requests_per_second <= self.low_requests_per_second:
            raise ConfigError(
                "high_requests_per_second",
                f"{self.high_requests_per_second:g} must be > low_requests_per_second, {self.low_requests_per_second:g}",
            )

    def streams(self, t: Floats, clock: Clock, seed: int) -> tuple[Stream, ...]:
        """Traffic at the instants `t`."""
        swing = self.high_requests_per_second - self.low_requests_per_second
        return _stream(self.low_requests_per_second + swing * np.mod(t, self.period_seconds) / self.period_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashCrowd:
    """A crowd that comes within seconds, stays, and loses interest exponentially."""

    kind: Literal["flash_crowd"] = "flash_crowd"
    requests_per_second: float = setting(doc=f"{_RATE} without the crowd.", above=0)
    factor: float = setting(10.0, "Peak rate over the rate without the crowd.", low=1)
    at_seconds: float = setting(600.0, "When it begins.", low=0)
    rise_seconds: float = setting(30.0, "From nothing to the peak.", low=0)
    hold_seconds: float = setting(300.0, "At the peak.", low=0)
    decay_seconds: float = setting(600.0, "Time constant of the way down.", above=0)

    def streams(self, t: Floats, clock: Clock, seed: int) -> tuple[Stream, ...]:
        """Traffic at the instants `t`."""
        over = t - self.at_seconds - self.rise_seconds - self.hold_seconds
        crowd = _rise(t, self.at_seconds, self.rise_seconds) * np.exp(-np.maximum(over, 0.0) / self.decay_seconds)
        return _stream(self.requests_per_second * (1.0 + (self.factor - 1.0) * crowd))


@dataclass(frozen=True, slots=True, kw_only=True)
class Diurnal:
    """A day's curve with quieter weekends and correlated noise."""

    kind: Literal["diurnal"] = "diurnal"
    requests_per_second: float = setting(doc=f"{_RATE} on average over a weekday.", above=0)
    swing_fraction: float = setting(0.8, "Height of the daily wave over the mean; 0 is flat.", low=0, high=1)
    peak_hour: float = setting(15.0, "Local hour of the peak.", low=0, high=24)
    weekend_factor: float = setting(1.0, "Weekend rate over weekday rate; 1 is no week.", low=0)
    noise_sigma: float = setting(0.1, "Spread of the log rate around the curve; 0 is none.", low=0, high=2)
    noise_seconds: float = setting(1800.0, "Correlation time of the noise.", low=60, high=DAY)

    def streams(self, t: Floats, clock: Clock, seed: int) -> tuple[Stream, ...]:
        """Traffic at the instants `t`."""
        wave = 1.0 + self.swing_fraction * np.cos(2.0 * np.pi * (clock.hours(t) - self.peak_hour) / 24.0)
        week = np.where(clock.weekend(t), self.weekend_factor, 1.0)
        return _stream(self.requests_per_second * wave * week * self._noise(t, seed))

    def _noise(self, t: Floats, seed: int) -> Floats:
        """Lognormal factor of mean 1: exponentially weighted mean of one normal per minute, five time constants back."""
        if self.noise_sigma == 0.0 or t.size == 0:
            return np.ones_like(t)
        block = np.floor(t / 60.0).astype(np.int64)
        weights = np.exp(-np.arange(int(5 * self.noise_seconds / 60.0) + 1) * 60.0 / self.noise_seconds)
        weights /= np.sqrt(np.square(weights).sum())
        first = int(block.min()) - weights.size + 1
        z = draws.normals(draws.key(seed, "diurnal noise"), int(block.max()) - first + 1, first + _BEFORE)
        level = np.convolve(z, weights, mode="valid")[block - int(block.min())]
        out: Floats = np.exp(self.noise_sigma * level - 0.5 * self.noise_sigma**2)
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """Bursts at random instants whose heights have a heavy tail."""

    kind: Literal["bursts"] = "bursts"
    requests_per_second: float = setting(doc=f"{_RATE} between bursts.", above=0)
    bursts_per_hour: float = setting(2.0, "Mean number of bursts per hour.", above=0, high=60)
    burst_seconds: float = setting(120.0, "Length of a burst.", above=0, high=3600)
    tail_index: float = setting(
        1.5, "Exponent of the Pareto tail of heights; at 2 or less the variance is infinite.", above=0
    )
    lowest_factor: float = setting(1.0, "Added rate of the smallest burst over the rate between bursts.", above=0)
    highest_factor: float = setting(30.0, "Added rate at most.", above=0)

    def streams(self, t: Floats, clock: Clock, seed: int) -> tuple[Stream, ...]:
        """Traffic at the instants `t`."""
        added = np.zeros_like(t)
        if t.size:
            first = int(np.floor(t.min() / 3600.0)) - 1
            cells = np.arange(first, int(np.floor(t.max() / 3600.0)) + 1)
            counts = draws.poissons(
                draws.key(seed, "bursts"), np.full(cells.size, self.bursts_per_hour), first + _BEFORE
            )
            for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
                self._add_hour(added, t, cell, count, seed)
        return _stream(self.requests_per_second * (1.0 + added))

    def _add_hour(self, added: Floats, t: Floats, cell: int, count: int, seed: int) -> None:
        u = draws.uniforms(draws.key(seed, "burst", cell), 2 * count)
        heights = np.minimum(self.lowest_factor * u[count:] ** (-1.0 / self.tail_index), self.highest_factor)
        for at, height in zip(3600.0 * (cell + u[:count]), heights, strict=True):
            added[_between(t, at, at + self.burst_seconds)] += height


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantVisit:
    """A tenant that comes and may go."""

    requests_per_second: float = setting(doc=f"{_RATE} while there.", above=0)
    join_seconds: float = setting(doc="When the tenant comes.", low=0)
    leave_seconds: float | None = setting(None, "When it goes; None is never.", low=0)
    prompt_factor: float = setting(1.0, "Its mean prompt length over the others'.", above=0)
    output_factor: float = setting(1.0, "Its mean output length over the others'.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    """A base load, and tenants with lengths of their own that join and leave."""

    kind: Literal["tenants"] = "tenants"
    requests_per_second: float = setting(doc=f"{_RATE} of the tenant that is always there.", above=0)
    tenants: tuple[TenantVisit, ...] = setting(doc="Those that come and go.")

    def streams(self, t: Floats, clock: Clock, seed: int) -> tuple[Stream, ...]:
        """Traffic at the instants `t`: the base, then each visitor."""
        visits = [
            _stream(
                np.where(_between(t, v.join_seconds, v.leave_seconds), v.requests_per_second, 0.0),
                v.prompt_factor,
                v.output_factor,
            )
            for v in self.tenants
        ]
        return sum(visits, _stream(np.full_like(t, self.requests_per_second)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptShift:
    """Prompts grow while the rate stays: what rate- and concurrency-based policies do not see coming."""

    kind: Literal["prompt_shift"] = "prompt_shift"
    requests_per_second: float = setting(doc=f"{_RATE}, constant.", above=0)
    factor: float = setting(2.0, "Mean prompt length after over before.", above=0)
    at_seconds: float = setting(600.0, "When it begins.", low=0)
    over_seconds: float = setting(0.0, "How long the change takes; 0 is at once.", low=0)

    def streams(self, t: Floats, clock: Clock, seed: int) -> tuple[Stream, ...]:
        """Traffic at the instants `t`."""
        factors = 1.0 + (self.factor - 1.0) * _rise(t, self.at_seconds, self.over_seconds)
        return _stream(np.full_like(t, self.requests_per_second), prompt=factors)


@dataclass(frozen=True, slots=True, kw_only=True)
class LongOutputs:
    """Answers grow while the rate stays."""

    kind: Literal["long_outputs"] = "long_outputs"
    requests_per_second: float = setting(doc=f"{_RATE}, constant.", above=0)
    factor: float = setting(4.0, "Mean output length after over before.", above=0)
    at_seconds: float = setting(600.0, "When it begins.", low=0)
    over_seconds: float = setting(0.0, "How long the change takes; 0 is at once.", low=0)

    def streams(self, t: Floats, clock: Clock, seed: int) -> tuple[Stream, ...]:
        """Traffic at the instants `t`."""
        factors = 1.0 + (self.factor - 1.0) * _rise(t, self.at_seconds, self.over_seconds)
        return _stream(np.full_like(t, self.requests_per_second), output=factors)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleNights:
    """Office hours, and nothing at all at night (and on weekends, where wanted)."""

    kind: Literal["idle_nights"] = "idle_nights"
    requests_per_second: float = setting(doc=f"{_RATE} during the day.", above=0)
    open_hour: float = setting(8.0, "Local hour at which traffic begins.", low=0, high=24)
    close_hour: float = setting(20.0, "Local hour at which it ends.", low=0, high=24)
    edge_hours: float = setting(1.0, "Hours of the rise after opening and of the fall before closing.", low=0, high=12)
    weekends: bool = setting(False, "True: open on weekends too.")

    def __post_init__(self) -> None:
        if self.close_hour <= self.open_hour:
            raise ConfigError("close_hour", f"{self.close_hour:g} must be > open_hour, {self.open_hour:g}")

    def streams(self, t: Floats, clock: Clock, seed: int) -> tuple[Stream, ...]:
        """Traffic at the instants `t`."""
        hour = clock.hours(t)
        edge = max(self.edge_hours, 1e-9)
        day = np.clip(np.minimum(hour - self.open_hour, self.close_hour - hour) / edge, 0.0, 1.0)
        if not self.weekends:
            day = np.where(clock.weekend(t), 0.0, day)
        return _stream(self.requests_per_second * day)


Shape = (
    Constant
    | StepShape
    | Ramp
    | Sawtooth
    | FlashCrowd
    | Diurnal
    | Bursts
    | Tenants
    | PromptShift
    | LongOutputs
    | IdleNights
)
