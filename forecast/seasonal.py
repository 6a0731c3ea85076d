"""The forecaster: recent levels, the same time in other cycles, known events, and how far outcomes have exceeded them.

Each tick every expert guesses the largest 60-s mean work inside each configured window ahead.  Once a window is over, what
exceeded the guesses moves their quantiles and their weights.  All of this lives in the history, so that a forecast is a
pure view of it.  `refit` looks for periods in weeks of history; `adopt` lets the experts use them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from autoscaler.copies import replace
from autoscaler.errors import ForecastError
from autoscaler.settings import EventSettings
from autoscaler.types import Forecast
from autoscaler.units import significant
from forecast import tenants as senders
from forecast.events import Events
from forecast.experts import EXPERTS, LEAST_WORK, present
from forecast.history import DAY, MINUTE, History
from forecast.learned import (
    Learned,
    Part,
    SeasonalBeliefs,
    SeasonalHistory,
    closed,
    day_mean,
    distance,
    levelled,
)
from forecast.periods import periods_of
from forecast.profile import Profile
from forecast.trackers import LEVELS
from forecast.tracks import Moment, Pending, Track, guessed, matured, shift_of

LEAST_HISTORY_SECONDS = 600.0  # measured, before the first forecast
STALE_SECONDS = 3_600  # without a sample for so long there is no present to forecast from
MOST_PENDING = 240  # forecasts per window that wait for their outcome; longer windows are issued less often
FIRST_ISSUES, FIRST_ISSUE_SECONDS = 200, 20  # the first ones come fast, to earn trust in an hour or so
ISSUE_SECONDS = 60  # between scored forecasts later: outcomes are means over a minute, closer ones say little new
CAP = 1.5  # of the largest work in memory, once that is a day long
H = TypeVar("H", bound=Learned)


class Seasonal:
    """Forecaster of the largest work inside windows ahead.  It holds settings only.

    `windows`: (start, end) pairs in seconds ahead that are scored; a forecast of another window takes the offsets of the
    nearest one.  Change them freely (the lead time is learned): a new window begins with what its nearest one knew.
    `events`: known ahead.
    """

    history_type: type = SeasonalHistory
    beliefs_type: type = SeasonalBeliefs

    def __init__(
        self, windows: Sequence[tuple[int, int]], interval_seconds: int, events: Sequence[EventSettings] = ()
    ) -> None:
        for start, end in windows:
            if not 0 <= start < end:
                raise ForecastError(f"windows must be (start, end) with 0 <= start < end, not ({start}, {end})")
        if not windows:
            raise ForecastError("windows must name at least one (start, end)")
        self.windows = tuple((int(start), int(end)) for start, end in windows)
        self.interval_seconds = interval_seconds
        self.events = Events(events)

    def start(self) -> tuple[SeasonalHistory, SeasonalBeliefs]:
        """Empty (history, beliefs)."""
        return SeasonalHistory(past=History.empty(self.interval_seconds), tracks=self._blank()), SeasonalBeliefs()

    def _blank(self) -> tuple[Track, ...]:
        return tuple(Track(start_seconds=start, end_seconds=end) for start, end in self.windows)

    def observe(
        self, history: SeasonalHistory, at_seconds: int, window_seconds: int, work: float | None
    ) -> SeasonalHistory:
        """One sample more; forecasts whose window is over are scored, and new ones issued.  See History.observed."""
        return self.observe_tenants(history, at_seconds, window_seconds, work, {})

    def observe_tenants(
        self, history: SeasonalHistory, at_seconds: int, window_seconds: int, work: float | None,
        tenants: Mapping[str, float],
    ) -> SeasonalHistory:  # fmt: skip
        """As `observe`, told the work of each tenant that sent any, in Erlangs; empty: not known of any."""
        after = self._observed(history, at_seconds, window_seconds, work)
        if after is history:
            return history
        if tenants or history.parts:
            after = self._parted(history, after, at_seconds, window_seconds, work, tenants)
        return self._issued(after, at_seconds, work, after.parts)

    def _observed(self, history: H, at_seconds: int, window_seconds: int, work: float | None) -> H:
        """The history with one sample more, and what it taught; itself for the instant that it ends at."""
        before = history.past
        past = before.observed(at_seconds, window_seconds, work)
        if past is before:
            return history
        since = before.fine.stop if before.at_seconds is not None and before.fine.stop > past.fine.first else None
        fresh = past.fine.between(past.fine.first if since is None else since, past.fine.stop)
        known = [v for v in fresh if v is not None]
        tracks, shift = self._retracked(history.tracks), history.shift
        if fresh:
            scored = [matured(track, past, shift) for track in tracks]
            tracks, shift = tuple(track for track, _ in scored), scored[0][1]  # the first window judges the regime
        mean = day_mean(history.mean, known, past)
        fives = closed(before.five_mean, past.five_mean, before.at_seconds is not None)
        profile = history.profile if past.phase_seconds == before.phase_seconds else Profile()
        return replace(
            history,
            past=past,
            levels=levelled(history.levels, fresh, past.cell_seconds),
            mean=mean,
            largest=max([history.largest, *known]),
            steps=history.steps.after(
                past.minute, min(closed(before.minute, past.minute, before.at_seconds is not None), 2 * DAY // MINUTE)
            ),
            shift=shift,
            profile=profile.after(past, fives, shift_of(mean), self.events.factor),
            tracks=tracks,
        )

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
        moment: Moment | None = None
        rows, top = [], 0
        for number, (start, end) in enumerate(windows):
            track = min(history.tracks, key=lambda t: distance(t, start, end))
            pending = track.pending[-1] if track.pending else None
            asked = (at_seconds, at_seconds + start, at_seconds + end)
            if pending is None or (pending.at_seconds, pending.from_seconds, pending.until_seconds) != asked:
                moment = moment or self._moment(history, at_seconds)
                whole = self._sum(history.parts, at_seconds, history.tracks.index(track), start, end)
                pending = guessed(moment, track, at_seconds, start, end, whole)
            if pending is None:
                return None
            rows.append(self._row(history, pending, at_seconds, end))
            top = pending.top if number == 0 else top
        first = min(history.tracks, key=lambda t: distance(t, *windows[0]))
        return Forecast(
            at_seconds=at_seconds,
            levels=LEVELS,
            windows=tuple((start, end) for start, end in windows),
            values=tuple(rows),
            expert=EXPERTS[top][0],
            matured=first.matured,
            coverage=significant(first.coverage) if first.matured else None,
        )

    def recorded(
        self, history: SeasonalHistory, since_seconds: int | None
    ) -> tuple[int, int, tuple[float | None, ...]] | None:
        """(start in seconds, seconds of a cell, Erlangs of every cell since) for replays; None if there is none that is over.

        What is more than two hours old is told in minutes cut into cells, two days back at most.
        """
        past = history.past
        if past.at_seconds is None:
            return None
        size, fine = past.cell_seconds, past.fine
        begin = past.minute.first * (MINUTE // size)
        if since_seconds is not None:
            begin = max(begin, past.cell(since_seconds, size))
        if fine.stop <= begin:
            return None
        per = MINUTE // size
        old = past.minute.between(begin // per, -(-fine.first // per)) if begin < fine.first else ()
        cut = [v for v in old for _ in range(per)]
        values = (*cut[begin % per :][: max(0, fine.first - begin)], *fine.between(begin, fine.stop))
        return begin * size + past.phase_seconds, size, values

    def refit(self, history: SeasonalHistory, beliefs: SeasonalBeliefs) -> SeasonalBeliefs:
        """Beliefs with the periods of the last weeks; about 0.2 s for five weeks.  Pure."""
        past = history.past
        if past.at_seconds is None:
            return beliefs
        return SeasonalBeliefs(found=periods_of(past), at_seconds=past.at_seconds)

    def adopt(self, history: SeasonalHistory, beliefs: SeasonalBeliefs) -> SeasonalHistory:
        """The history whose experts use the periods of `beliefs`, days excepted, which they look at anyway."""
        return replace(history, periods=tuple(p for p in beliefs.periods if p != DAY))

    def _retracked(self, tracks: tuple[Track, ...]) -> tuple[Track, ...]:
        """The tracks of the configured windows; a window that is new takes over what its nearest one knew."""
        if all((t.start_seconds, t.end_seconds) == w for t, w in zip(tracks, self.windows, strict=False)) and len(
            tracks
        ) == len(self.windows):
            return tracks
        return tuple(
            replace(min(tracks, key=lambda t: distance(t, start, end)), start_seconds=start, end_seconds=end)
            for start, end in self.windows
        )

    def _moment(self, history: Learned, at_seconds: int) -> Moment:
        return Moment(
            past=history.past,
            levels=history.levels,
            events=self.events,
            now=present(
                history.past,
                history.levels,
                self.events,
                history.periods,
                history.profile,
                shift_of(history.mean),
                at_seconds,
            ),  # fmt: skip
            kind=history.steps.kind(history.levels.fifteen, history.mean),
        )

    def _parted(
        self, history: SeasonalHistory, after: SeasonalHistory, at_seconds: int, window_seconds: int,
        work: float | None, tenants: Mapping[str, float],
    ) -> SeasonalHistory:  # fmt: skip
        """`after`, with the parts of `history` told of theirs; without tenants they were not measured."""
        shares = senders.told(history.shares, tenants, window_seconds) if tenants else history.shares
        names = before = tuple(part.name for part in history.parts)
        last, hour = history.past.at_seconds, senders.ELECTED_SECONDS
        if not names or last is None or at_seconds // hour != last // hour:
            names = senders.followed(shares, before[:-1])
        old = {part.name: part.history for part in history.parts if names == before or part.name != senders.REST}
        works: Sequence[float | None] = [None] * len(names)
        if work is not None and tenants:
            works = senders.split(work, tenants, names)
        parts = []
        for name, own in zip(names, works, strict=True):
            known = old.get(name) or Learned(past=History.empty(self.interval_seconds), tracks=self._blank())
            told = self._observed(known, at_seconds, window_seconds, own)
            parts.append(Part(name=name, history=self._issued(told, at_seconds, own)))
        return replace(after, shares=shares, parts=tuple(parts))

    def _sum(self, parts: Sequence[Part], at_seconds: int, number: int, start: int, end: int) -> float | None:
        """The sum of the parts' medians, without the factor of known events; None while one of them cannot tell."""
        if not parts:
            return None
        total = 0.0
        for part in parts:
            track = part.history.tracks[number]
            pending = track.pending[-1] if track.pending else None
            if part.history.past.known_seconds < LEAST_HISTORY_SECONDS:
                return None
            if pending is None or (pending.at_seconds, pending.until_seconds) != (at_seconds, at_seconds + end):
                pending = guessed(self._moment(part.history, at_seconds), track, at_seconds, start, end)
            if pending is None:
                return None
            total += max(0.0, math.exp(min(pending.quantiles[0], 50.0)) - pending.shift)
        return total / self.events.largest(at_seconds + start, at_seconds + end)

    def _issued(self, history: H, at_seconds: int, work: float | None, parts: Sequence[Part] = ()) -> H:
        """The history with one forecast more per window, unless one was issued a moment ago or nothing was measured."""
        if work is None or history.past.known_seconds < LEAST_HISTORY_SECONDS:
            return history
        moment: Moment | None = None
        tracks = []
        for number, track in enumerate(history.tracks):
            fast = track.matured < FIRST_ISSUES
            gap = max(FIRST_ISSUE_SECONDS if fast else ISSUE_SECONDS, track.end_seconds // MOST_PENDING)
            if not track.pending or at_seconds - track.pending[-1].at_seconds >= gap:
                moment = moment or self._moment(history, at_seconds)
                start, end = track.start_seconds, track.end_seconds
                whole = self._sum(parts, at_seconds, number, start, end)
                guess = guessed(moment, track, at_seconds, start, end, whole)
                track = track if guess is None else replace(track, pending=(*track.pending, guess))
            tracks.append(track)
        return replace(history, tracks=tuple(tracks))

    def _row(self, history: SeasonalHistory, pending: Pending, at_seconds: int, end: int) -> tuple[float, ...]:
        """Erlangs at `LEVELS`.  Old news widens them: the last sample is further from the window than scored ones."""
        logs = sorted(pending.quantiles)
        stale = at_seconds - (history.past.known_at_seconds or at_seconds)
        if stale > 0:
            stretch, median = math.sqrt(1.0 + stale / end), logs[0]
            logs = [median + stretch * (x - median) for x in logs]
        cap = math.inf
        if history.past.known_seconds >= DAY:
            ahead = self.events.largest(pending.from_seconds, pending.until_seconds)
            cap = CAP * max(history.largest, LEAST_WORK) * max(1.0, ahead)
        return tuple([significant(min(max(math.exp(min(x, 50.0)) - pending.shift, 0.0), cap)) for x in logs])
