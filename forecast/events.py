"""The calendar: events that are known ahead, and by what factor they change the work.

A launch multiplies the work by 3, a holiday by 0.3.  While an event is ahead, forecasts of its time are multiplied; what
was measured during one is divided before it serves as the past of an ordinary day.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from autoscaler import cron
from autoscaler.settings import EventSettings

_MEMO = 4096  # minutes whose factor is remembered
_LOOKS = 16  # at a window, at most


class Events:
    """Known events.  Pure: the factor of an instant depends on the settings alone; a memo only saves time."""

    def __init__(self, settings: Sequence[EventSettings] = ()) -> None:
        self.settings = tuple(settings)
        self._spans = [_span(s) for s in self.settings]
        self._memo: dict[int, float] = {}

    def factor(self, at_seconds: int) -> float:
        """Product of the factors of the events that are on in the minute of `at_seconds`; 1 without any."""
        if not self.settings:
            return 1.0
        minute = at_seconds // 60
        found = self._memo.get(minute)
        if found is None:
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            found = 1.0
            for event, span in zip(self.settings, self._spans, strict=True):
                on = span[0] <= 60 * minute < span[1] if span else cron.active(event, 60 * minute)
                found *= event.factor if on else 1.0
            self._memo[minute] = found
        return found

    def largest(self, from_seconds: int, until_seconds: int) -> float:
        """The largest factor inside (from, until], looked at once a minute or 16 times."""
        if not self.settings:
            return 1.0
        step = max(60, (until_seconds - from_seconds) // _LOOKS)
        return max(map(self.factor, [*range(from_seconds + 1, until_seconds, step), until_seconds]))


def _span(event: EventSettings) -> tuple[int, int] | None:
    """(start, end) in Unix seconds of an event that is given by two instants; None for cron expressions."""
    if not event.once:
        return None
    start, end = datetime.fromisoformat(event.start), datetime.fromisoformat(event.end)
    return int(start.timestamp()), int(end.timestamp())
