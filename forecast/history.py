"""What is remembered of the work that arrived: falling resolution, gaps as gaps, nothing copied but the newest chunk.

    fine       cells of 10 s (up to 60 s for slower loops)          ~2 h
    rolling    trailing 60-s mean at the end of every fine cell     ~2 h
    minute     60-s means                                           ~2 days
    five_mean  5-min means                                          5 weeks
    five_peak  largest trailing 60-s mean inside the 5 min          5 weeks

Cells are counted from the Unix epoch plus `phase_seconds`, so that a regular loop closes one cell at each tick.  Samples
that straddle cells are weighted by time.  A cell of which more than 20 % was not measured is masked.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoscaler.errors import ForecastError
from autoscaler.units import significant
from forecast.cells import Cells, largest_known, mean_known

MINUTE, FIVE, DAY = 60, 300, 86_400
FINE_KEPT, MINUTE_KEPT, FIVE_KEPT = 7_200, 2 * DAY, 35 * DAY  # seconds
LEAST_KNOWN_FRACTION = 0.8


def fine_seconds(interval_seconds: int) -> int:
    """Length of a fine cell: the longest divisor of a minute that is not above the loop's interval, at least 10 s."""
    return max(s for s in (10, 12, 15, 20, 30, 60) if s <= max(10, interval_seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The past of one pool's work, in Erlangs.  `at_seconds`: its end; `known_seconds`: how much of it was measured.

    `open_sum`, `open_known`: Erlang-seconds and seconds measured of the fine cell that has not closed yet.
    """

    cell_seconds: int
    phase_seconds: int = 0
    at_seconds: int | None = None
    known_at_seconds: int | None = None
    known_seconds: float = 0.0
    open_sum: float = 0.0
    open_known: float = 0.0
    fine: Cells
    rolling: Cells
    minute: Cells = Cells(keep=MINUTE_KEPT // MINUTE)
    five_mean: Cells = Cells(keep=FIVE_KEPT // FIVE)
    five_peak: Cells = Cells(keep=FIVE_KEPT // FIVE)

    @classmethod
    def empty(cls, interval_seconds: int) -> History:
        """Nothing yet, for a loop that ticks about every `interval_seconds`."""
        size = fine_seconds(interval_seconds)
        blank = Cells(keep=FINE_KEPT // size)
        return cls(cell_seconds=size, fine=blank, rolling=blank)

    def cell(self, at_seconds: int, size_seconds: int) -> int:
        """Number of the cell of `size_seconds` that holds the instant just after `at_seconds`."""
        return (at_seconds - self.phase_seconds) // size_seconds

    def observed(self, at_seconds: int, window_seconds: int, work: float | None) -> History:
        """The history with the mean work (Erlangs) over the `window_seconds` that end at `at_seconds`; None = not measured.

        The same instant again changes nothing.  Time between the last sample and this window is a gap; an overlap counts
        once.  Raises ForecastError for an instant before the last one.
        """
        last = self.at_seconds
        if last is not None and at_seconds <= last:
            if at_seconds == last:
                return self
            raise ForecastError(f"at_seconds {at_seconds} must not be before {last}, the end of the history")
        if last is None or at_seconds - last > FIVE_KEPT:
            return self._begun(at_seconds - window_seconds, at_seconds)._fed(at_seconds, window_seconds, work)
        return self._fed(at_seconds, window_seconds, work)

    def _begun(self, start_seconds: int, at_seconds: int) -> History:
        """An empty history that begins at or a little before `start_seconds`, on a boundary of every cell size."""
        phase = at_seconds % self.cell_seconds
        begin = (start_seconds - phase) // FIVE * FIVE

        def blank(keep: int, size: int) -> Cells:
            return Cells(keep=keep, first=begin // size)

        return History(
            cell_seconds=self.cell_seconds,
            phase_seconds=phase,
            at_seconds=begin + phase,
            fine=blank(self.fine.keep, self.cell_seconds),
            rolling=blank(self.fine.keep, self.cell_seconds),
            minute=blank(self.minute.keep, MINUTE),
            five_mean=blank(self.five_mean.keep, FIVE),
            five_peak=blank(self.five_peak.keep, FIVE),
        )

    def _fed(self, at_seconds: int, window_seconds: int, work: float | None) -> History:
        """Time moves to `at_seconds`; what was measured on the way fills cells."""
        assert self.at_seconds is not None
        size, position = self.cell_seconds, self.at_seconds
        start = max(position, at_seconds - window_seconds) if work is not None else at_seconds
        amount, known = self.open_sum, self.open_known
        closed: list[float | None] = []
        while position < at_seconds:
            boundary = (self.cell(position, size) + 1) * size + self.phase_seconds
            until = min(boundary, at_seconds)
            seconds = max(0, until - max(position, start))
            if seconds and work is not None:
                amount, known = amount + seconds * work, known + seconds
            if until == boundary:
                closed.append(significant(amount / known) if known >= LEAST_KNOWN_FRACTION * size else None)
                amount, known = 0.0, 0.0
            position = until
        fine, rolling, minute, five_mean, five_peak = self._closed(closed)
        return History(
            cell_seconds=size,
            phase_seconds=self.phase_seconds,
            at_seconds=at_seconds,
            known_at_seconds=self.known_at_seconds if work is None else at_seconds,
            known_seconds=self.known_seconds + (0.0 if work is None else at_seconds - start),
            open_sum=amount,
            open_known=known,
            fine=fine,
            rolling=rolling,
            minute=minute,
            five_mean=five_mean,
            five_peak=five_peak,
        )

    def _closed(self, values: list[float | None]) -> tuple[Cells, Cells, Cells, Cells, Cells]:
        """Fine cells with these behind them, and the coarser cells that follow, in the order of the fields."""
        if not values:
            return self.fine, self.rolling, self.minute, self.five_mean, self.five_peak
        per_minute, per_five = MINUTE // self.cell_seconds, FIVE // self.cell_seconds
        before = self.fine.stop
        tail = [*self.fine.between(before - per_minute + 1, before), *values]
        skip = len(tail) - len(values)
        rolled = [
            _minute_mean(tail[max(0, skip + i + 1 - per_minute) : skip + i + 1], per_minute) for i in range(len(values))
        ]
        fine, rolling = self.fine.extended(values), self.rolling.extended(rolled)
        after = fine.stop
        if after // per_minute == before // per_minute:
            return fine, rolling, self.minute, self.five_mean, self.five_peak
        minute = self.minute.extended(
            [rolled[n * per_minute - 1 - before] for n in range(before // per_minute + 1, after // per_minute + 1)]
        )
        if after // per_five == before // per_five:
            return fine, rolling, minute, self.five_mean, self.five_peak
        means, peaks = [], []
        past = [*self.rolling.between(before - per_five, before), *rolled]
        for n in range(before // per_five + 1, after // per_five + 1):
            end = len(past) - (after - n * per_five)
            inside = past[max(0, end - per_five) : end]
            mean = mean_known(inside[per_minute - 1 :: per_minute])
            means.append(None if mean is None else significant(mean))
            peaks.append(largest_known(inside, LEAST_KNOWN_FRACTION))
        return fine, rolling, minute, self.five_mean.extended(means), self.five_peak.extended(peaks)

    def peak_between(self, from_seconds: int, until_seconds: int) -> float | None:
        """Largest trailing 60-s mean in (from, until] of the last ~2 h; None if more than 20 % of it is masked."""
        size = self.cell_seconds
        # The rolling mean of cell i is known at the end of cell i: ends in (from, until].
        start = self.cell(from_seconds, size)
        stop = max(self.cell(until_seconds, size), start + 1)
        values = self.rolling.between(start, stop)
        return largest_known(values, LEAST_KNOWN_FRACTION) if len(values) == stop - start else None

    def past_peak(self, from_seconds: int, until_seconds: int) -> float | None:
        """Largest 60-s mean in (from, until] long ago: from minutes where they are kept, else from 5-min cells.

        Inside a window of two minutes at most, 5-min peaks would say too much: there it is the mean, interpolated.
        """
        start = self.cell(from_seconds, MINUTE)
        if start >= self.minute.first:
            values = self.minute.between(start, max(start + 1, -(-(until_seconds - self.phase_seconds) // MINUTE)))
        elif until_seconds - from_seconds <= 2 * MINUTE:
            place = ((from_seconds + until_seconds) / 2.0 - self.phase_seconds) / FIVE - 0.5
            whole = int(place // 1.0)
            near = self.five_mean.between(whole, whole + 2)
            if len(near) < 2 or near[0] is None or near[1] is None:
                return largest_known(near) if near else None
            return near[0] + (place - whole) * (near[1] - near[0])
        else:
            start = self.cell(from_seconds, FIVE)
            values = self.five_peak.between(start, max(start + 1, -(-(until_seconds - self.phase_seconds) // FIVE)))
        return largest_known(values, LEAST_KNOWN_FRACTION)

    def level_before(self, at_seconds: int) -> float | None:
        """Mean of the last 15 whole minutes by `at_seconds`; None if under half of it is known."""
        stop = self.cell(at_seconds, MINUTE)
        if stop - 15 >= self.minute.first:
            return mean_known(self.minute.between(stop - 15, stop), 0.5)
        per_five = FIVE // MINUTE
        last, minutes = divmod(stop, per_five)
        values = self.five_mean.between(last - 3, last + 1)
        if len(values) < 4 or any(v is None for v in values):
            known = values[: 3 if minutes == 0 else None]
            return mean_known(known, 0.5) if known else None
        share = minutes / per_five  # of the newest cell, and the rest of the oldest
        a, b, c, d = (v or 0.0 for v in values)
        return ((1.0 - share) * a + b + c + share * d) / 3.0


def _minute_mean(values: list[float | None], full: int) -> float | None:
    """Mean of the `full` cells of a minute, of which the oldest may be missing altogether; None if masked."""
    known = [v for v in values if v is not None]
    return significant(sum(known) / len(known)) if known and len(known) >= LEAST_KNOWN_FRACTION * full else None
