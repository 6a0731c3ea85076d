"""What was learned about each window ahead: forecasts wait for their outcome, outcomes move quantiles and weights.

Logarithms are of work + shift, the shift being a share of the day's mean work: a night at zero then differs from a night
near zero by little, as it does in replicas, while a day that doubles still counts as such.

The last correction of the vote is kept per kind of moment (`KINDS`), so that quantiles hold inside bursts and on idle
nights as often as they say, not only on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoscaler.copies import replace
from forecast.events import Events
from forecast.experts import EXPERTS, LEAST_WORK, Levels, Present, view
from forecast.history import History
from forecast.shifts import Shift
from forecast.trackers import (
    LEVELS,
    LOSS_MEMORY,
    PRIOR_WEIGHT,
    SPREAD_SECONDS,
    TAILS,
    Tracker,
    combined,
    weights,
)

KINDS = ("calm", "rising", "idle")  # see `forecast.moments`
KIND_GAINS = (0.01, 0.06, 0.02)  # step of a correction, in standard deviations: rare kinds must learn from fewer
SHIFT = 0.6  # of the day's mean work, added before logarithms
LONGEST_SWING = 0.6  # standard deviations that a correction may move while one forecast waits
SHIFT_LOSS_MEMORY = 60.0  # matured forecasts that losses remember after a regime shift
_Q95 = LEVELS.index(0.95)
_ZERO = (0.0,) * len(LEVELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A forecast that waits for its outcome over (`from_seconds`, `until_seconds`].

    Logarithms of work + `shift`: the experts' `guesses`, the vote's median before its correction, the corrected quantiles
    (not yet sorted: each level answers for itself).  `kind`: index in `KINDS`.  `weight`: work per unit of logarithm, over
    the shift.  `top`: the expert of most weight.
    """

    at_seconds: int
    from_seconds: int
    until_seconds: int
    shift: float
    kind: int
    weight: float
    guesses: tuple[float | None, ...]
    median: float
    quantiles: tuple[float, ...]
    top: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """All that was learned about one window: per expert, and a last correction of the vote per kind of moment.

    `coverage`: share of the matured forecasts of about a day that stayed below the 0.95 quantile.
    """

    start_seconds: int
    end_seconds: int
    experts: tuple[Tracker, ...] = (Tracker(),) * len(EXPERTS)
    corrections: tuple[tuple[float, ...], ...] = (_ZERO,) * len(KINDS)
    variance: float = 0.01
    matured: int = 0
    coverage: float = 0.0
    scored_at_seconds: int | None = None
    pending: tuple[Pending, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a guess needs to know beside the window."""

    past: History
    levels: Levels
    events: Events
    now: Present
    kind: int


def shift_of(mean: float) -> float:
    """Erlangs that are added before logarithms, where a day has a mean of `mean`."""
    return SHIFT * max(mean, LEAST_WORK)


def guessed(
    moment: Moment, track: Track, at_seconds: int, start: int, end: int, tenants: float | None = None
) -> Pending | None:
    """What the experts and their vote say about the window; None if no expert is awake.

    `tenants`: the sum of the tenants' own forecasts of it, in Erlangs.
    """
    seen = view(moment.past, moment.events, moment.now, at_seconds, start, end, tenants)
    shift = moment.now.shift
    factor = moment.events.largest(at_seconds + start, at_seconds + end)
    log = math.log
    guesses = tuple(
        [
            None if value is None else log(max(factor * value, LEAST_WORK) + shift)
            for value in [guess(seen) for _, guess in EXPERTS]
        ]
    )
    shares = weights(track.experts, tuple([g is not None for g in guesses]))
    best = max(shares)
    if best <= 0.0:
        return None
    raw = combined(guesses, track.experts, shares)
    level = moment.levels.five or 0.0
    return Pending(
        at_seconds=at_seconds,
        from_seconds=at_seconds + start,
        until_seconds=at_seconds + end,
        shift=shift,
        kind=moment.kind,
        weight=(level + shift) / shift,
        guesses=guesses,
        median=raw[0],
        quantiles=tuple([r + c for r, c in zip(raw, track.corrections[moment.kind], strict=True)]),
        top=shares.index(best),
    )


def matured(track: Track, past: History, shift: Shift) -> tuple[Track, Shift]:
    """The track after every forecast whose window is over has been scored; a masked window scores nothing.

    While `shift` sounds, experts are judged by the last hour.  It hears by how much outcomes exceeded the median.
    """
    done = 0
    for pending in track.pending:
        if past.at_seconds is None or pending.until_seconds > past.at_seconds:
            break
        done += 1
        outcome = past.peak_between(pending.from_seconds, pending.until_seconds)
        if outcome is not None:
            y = math.log(max(outcome, LEAST_WORK) + pending.shift)
            sounding = shift.active(pending.until_seconds)
            track = _scored(track, pending, y, SHIFT_LOSS_MEMORY if sounding else LOSS_MEMORY)
            shift = shift.told(y - pending.median, math.sqrt(track.variance), pending.until_seconds)
    return (track, shift) if done == 0 else (replace(track, pending=track.pending[done:]), shift)


def _scored(track: Track, pending: Pending, outcome: float, memory: float) -> Track:
    """The track after the outcome (a logarithm) of one forecast."""
    last = track.scored_at_seconds
    step = float(pending.at_seconds - last) if last is not None else 0.0
    n = track.matured + 1
    off = outcome - pending.median
    variance = track.variance + max(1.0 / (n + PRIOR_WEIGHT), min(1.0, step / SPREAD_SECONDS)) * (
        off * off - track.variance
    )
    # A forecast is judged as it was issued, so that errors which came in a burst all count; a long wait wants small steps.
    size = min(KIND_GAINS[pending.kind], LONGEST_SWING / max(1, len(track.pending))) * math.sqrt(variance)
    moved = tuple(
        [
            c + size * m * q if outcome > deployed else c - size * m * (1.0 - q)
            for c, deployed, q, m in zip(track.corrections[pending.kind], pending.quantiles, LEVELS, TAILS, strict=True)
        ]
    )
    hit = 1.0 if outcome <= pending.quantiles[_Q95] else 0.0
    return Track(
        start_seconds=track.start_seconds,
        end_seconds=track.end_seconds,
        experts=tuple(
            [
                t if g is None else t.scored(outcome - g, step, pending.weight, memory)
                for t, g in zip(track.experts, pending.guesses, strict=True)
            ]
        ),
        corrections=tuple([moved if k == pending.kind else c for k, c in enumerate(track.corrections)]),
        variance=variance,
        matured=n,
        coverage=track.coverage + max(1.0 / n, min(1.0, step / SPREAD_SECONDS)) * (hit - track.coverage),
        scored_at_seconds=pending.at_seconds,
        pending=track.pending,
    )
