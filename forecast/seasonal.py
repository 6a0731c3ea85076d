"""The first predictive forecaster: recent levels, the same time on other days, and how far outcomes have exceeded both.

Each tick every expert guesses the largest 60-s mean work inside each configured window ahead.  Once a window is over, what
exceeded the guesses moves their quantiles and their weights.  All of this lives in the history, so that a forecast is a
pure view of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoscaler.errors import ForecastError
from autoscaler.types import Forecast
from autoscaler.units import significant
from forecast.experts import EXPERTS, LEAST_WORK, Levels, Present, present, view
from forecast.history import DAY, History
from forecast.trackers import GAIN, LEVELS, PRIOR_WEIGHT, SPREAD_SECONDS, Tracker, combined, weights

LEAST_HISTORY_SECONDS = 600.0  # measured, before the first forecast
STALE_SECONDS = 3_600  # without a sample for so long there is no present to forecast from
MOST_PENDING = 240  # forecasts per window that wait for their outcome; longer windows are issued less often
ISSUE_SECONDS = 20  # between scored forecasts: outcomes are means over a minute, so that closer ones say little new
LONGEST_SWING = 0.6  # standard deviations that a correction may move while one forecast waits
CAP = 1.5  # of the largest work in memory, once that is a day long
_Q95 = LEVELS.index(0.95)
_TIME_CONSTANTS = (60.0, 300.0, 900.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A forecast that waits for its outcome over (`from_seconds`, `until_seconds`].

    Logarithms: the experts' `guesses`, the vote's median before its correction, the corrected quantiles (not yet sorted:
    each level answers for itself).  `top`: the expert of most weight.
    """

    at_seconds: int
    from_seconds: int
    until_seconds: int
    guesses: tuple[float | None, ...]
    median: float
    quantiles: tuple[float, ...]
    top: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """All that was learned about one window: per expert, and a last correction of the vote itself.

    `coverage`: share of the matured forecasts of about a day that stayed below the 0.95 quantile.
    """

    start_seconds: int
    end_seconds: int
    experts: tuple[Tracker, ...] = (Tracker(),) * len(EXPERTS)
    corrections: tuple[float, ...] = (0.0,) * len(LEVELS)
    variance: float = 0.01
    matured: int = 0
    coverage: float = 0.0
    scored_at_seconds: int | None = None
    pending: tuple[Pending, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeasonalHistory:
    """The past and what was learned from it."""

    past: History
    levels: Levels = Levels()
    largest: float = 0.0
    tracks: tuple[Track, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeasonalBeliefs:
    """Nothing is learned slowly: this forecaster learns at every step, in its history."""


class Seasonal:
    """Forecaster of the largest work inside windows ahead.  It holds settings only.

    `windows`: (start, end) pairs in seconds ahead that are scored; a forecast of another window takes the offsets of the
    nearest one.  Change them freely (the lead time is learned): a new window begins with what its nearest one knew.
    """

    history_type: type = SeasonalHistory
    beliefs_type: type = SeasonalBeliefs

    def __init__(self, windows: Sequence[tuple[int, int]], interval_seconds: int) -> None:
        for start, end in windows:
            if not 0 <= start < end:
                raise ForecastError(f"windows must be (start, end) with 0 <= start < end, not ({start}, {end})")
        if not windows:
            raise ForecastError("windows must name at least one (start, end)")
        self.windows = tuple((int(start), int(end)) for start, end in windows)
        self.interval_seconds = interval_seconds

    def start(self) -> tuple[SeasonalHistory, SeasonalBeliefs]:
        """Empty (history, beliefs)."""
        tracks = tuple(Track(start_seconds=start, end_seconds=end) for start, end in self.windows)
        return SeasonalHistory(past=History.empty(self.interval_seconds), tracks=tracks), SeasonalBeliefs()

    def observe(
        self, history: SeasonalHistory, at_seconds: int, window_seconds: int, work: float | None
    ) -> SeasonalHistory:
        """One sample more; forecasts whose window is over are scored, and new ones issued.  See History.observed."""
        before = history.past
        past = before.observed(at_seconds, window_seconds, work)
        if past is before:
            return history
        fresh = past.fine.between(before.fine.stop, past.fine.stop) if before.at_seconds is not None else ()
        if before.at_seconds is None:
            fresh = past.fine.between(past.fine.first, past.fine.stop)
        levels = _levelled(history.levels, fresh, past.cell_seconds)
        known = [v for v in fresh if v is not None]
        tracks = self._retracked(history.tracks)
        if fresh:
            tracks = tuple(_matured(track, past) for track in tracks)
        largest = max([history.largest, *known])
        after = SeasonalHistory(past=past, levels=levels, largest=largest, tracks=tracks)
        if work is None or past.known_seconds < LEAST_HISTORY_SECONDS:
            return after
        return replace(after, tracks=self._issued(after, at_seconds))

    def forecast(
        self,
        history: SeasonalHistory,
        beliefs: SeasonalBeliefs,
        at_seconds: int,
        windows: Sequence[tuple[int, int]],
    ) -> Forecast | None:
        """Quantiles at `LEVELS` of the largest 60-s mean in each window; None below 10 min measured or 1 h without any."""
        past = history.past
        if past.known_at_seconds is None or past.known_seconds < LEAST_HISTORY_SECONDS:
            return None
        if at_seconds - past.known_at_seconds > STALE_SECONDS:
            return None
        now: Present | None = None
        rows, top = [], 0
        for number, (start, end) in enumerate(windows):
            track = min(history.tracks, key=lambda t: _distance(t, start, end))
            pending = track.pending[-1] if track.pending else None
            asked = (at_seconds, at_seconds + start, at_seconds + end)
            if pending is None or (pending.at_seconds, pending.from_seconds, pending.until_seconds) != asked:
                now = now or present(past, at_seconds)
                pending = _guessed(history, now, track, at_seconds, start, end)
            if pending is None:
                return None
            rows.append(_row(history, pending, at_seconds, end))
            top = pending.top if number == 0 else top
        first = min(history.tracks, key=lambda t: _distance(t, *windows[0]))
        return Forecast(
            at_seconds=at_seconds,
            levels=LEVELS,
            windows=tuple((start, end) for start, end in windows),
            values=tuple(rows),
            expert=EXPERTS[top][0],
            matured=first.matured,
            coverage=significant(first.coverage) if first.matured else None,
        )

    def refit(self, history: SeasonalHistory, beliefs: SeasonalBeliefs) -> SeasonalBeliefs:
        """The same beliefs: nothing is learned slowly."""
        return beliefs

    def _retracked(self, tracks: tuple[Track, ...]) -> tuple[Track, ...]:
        """The tracks of the configured windows; a window that is new takes over what its nearest one knew."""
        if all((t.start_seconds, t.end_seconds) == w for t, w in zip(tracks, self.windows, strict=False)) and len(
            tracks
        ) == len(self.windows):
            return tracks
        return tuple(
            replace(min(tracks, key=lambda t: _distance(t, start, end)), start_seconds=start, end_seconds=end)
            for start, end in self.windows
        )

    def _issued(self, history: SeasonalHistory, at_seconds: int) -> tuple[Track, ...]:
        """The tracks with one forecast more each, unless one was issued a moment ago."""
        now = present(history.past, at_seconds)
        tracks = []
        for track in history.tracks:
            gap = max(ISSUE_SECONDS, track.end_seconds // MOST_PENDING)
            if not track.pending or at_seconds - track.pending[-1].at_seconds >= gap:
                guess = _guessed(history, now, track, at_seconds, track.start_seconds, track.end_seconds)
                track = track if guess is None else replace(track, pending=(*track.pending, guess))
            tracks.append(track)
        return tuple(tracks)


def _distance(track: Track, start: int, end: int) -> tuple[int, int]:
    """How unlike a track's window is: first by length, then by start."""
    return abs((track.end_seconds - track.start_seconds) - (end - start)), abs(track.start_seconds - start)


def _levelled(levels: Levels, values: Sequence[float | None], cell_seconds: int) -> Levels:
    """Levels after these cells; masked ones leave them alone, the first known one sets them."""
    one, five, fifteen = levels.minute, levels.five, levels.fifteen
    a, b, c = (1.0 - math.exp(-cell_seconds / tau) for tau in _TIME_CONSTANTS)
    for x in values:
        if x is None:
            continue
        if one is None or five is None or fifteen is None:
            one = five = fifteen = x
            continue
        one, five, fifteen = one + a * (x - one), five + b * (x - five), fifteen + c * (x - fifteen)
    return Levels(minute=one, five=five, fifteen=fifteen)


def _guessed(
    history: SeasonalHistory, now: Present, track: Track, at_seconds: int, start: int, end: int
) -> Pending | None:
    """What the experts and their vote say about the window; None if no expert is awake."""
    seen = view(history.past, history.levels, now, at_seconds, start, end)
    guesses = tuple(
        None if value is None else math.log(max(value, LEAST_WORK)) for value in [guess(seen) for _, guess in EXPERTS]
    )
    shares = weights(track.experts, tuple(g is not None for g in guesses))
    best = max(shares)
    if best <= 0.0:
        return None
    raw = combined(guesses, track.experts, shares)
    return Pending(
        at_seconds=at_seconds,
        from_seconds=at_seconds + start,
        until_seconds=at_seconds + end,
        guesses=guesses,
        median=raw[0],
        quantiles=tuple([r + c for r, c in zip(raw, track.corrections, strict=True)]),
        top=shares.index(best),
    )


def _row(history: SeasonalHistory, pending: Pending, at_seconds: int, end: int) -> tuple[float, ...]:
    """Erlangs at `LEVELS`.  Old news widens the upper half: the last sample is further from the window than scored ones."""
    logs = sorted(pending.quantiles)
    stale = at_seconds - (history.past.known_at_seconds or at_seconds)
    if stale > 0:
        stretch, median = math.sqrt(1.0 + stale / end), logs[0]
        logs = [median + stretch * (x - median) for x in logs]
    cap = math.inf if history.past.known_seconds < DAY else CAP * max(history.largest, LEAST_WORK)
    return tuple([significant(min(math.exp(min(x, 50.0)), cap)) for x in logs])


def _matured(track: Track, past: History) -> Track:
    """The track after every forecast whose window is over has been scored; a masked window scores nothing."""
    done = 0
    for pending in track.pending:
        if past.at_seconds is None or pending.until_seconds > past.at_seconds:
            break
        done += 1
        outcome = past.peak_between(pending.from_seconds, pending.until_seconds)
        if outcome is not None:
            track = _scored(track, pending, math.log(max(outcome, LEAST_WORK)))
    return track if done == 0 else replace(track, pending=track.pending[done:])


def _scored(track: Track, pending: Pending, outcome: float) -> Track:
    """The track after the outcome (a logarithm) of one forecast."""
    last = track.scored_at_seconds
    step = float(pending.at_seconds - last) if last is not None else 0.0
    n = track.matured + 1
    off = outcome - pending.median
    variance = track.variance + max(1.0 / (n + PRIOR_WEIGHT), min(1.0, step / SPREAD_SECONDS)) * (
        off * off - track.variance
    )
    # A forecast is judged as it was issued, so that errors which came in a burst all count; a long wait wants small steps.
    size = min(GAIN, LONGEST_SWING / max(1, len(track.pending))) * math.sqrt(variance)
    hit = 1.0 if outcome <= pending.quantiles[_Q95] else 0.0
    return Track(
        start_seconds=track.start_seconds,
        end_seconds=track.end_seconds,
        experts=tuple(
            [
                t if g is None else t.scored(outcome - g, step)
                for t, g in zip(track.experts, pending.guesses, strict=True)
            ]
        ),
        corrections=tuple(
            [
                c + size * q if outcome > deployed else c - size * (1.0 - q)
                for c, deployed, q in zip(track.corrections, pending.quantiles, LEVELS, strict=True)
            ]
        ),
        variance=variance,
        matured=n,
        coverage=track.coverage + max(1.0 / n, min(1.0, step / SPREAD_SECONDS)) * (hit - track.coverage),
        scored_at_seconds=pending.at_seconds,
        pending=track.pending,
    )
