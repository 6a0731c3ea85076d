"""Cron expressions in a time zone: is a schedule entry active at an instant?

An expression has five fields (minute, hour, day of month, month, day of week), each a list of numbers, names, ranges
and steps.  Days follow Vixie cron: if both day fields are restricted (neither begins with ``*`` or ``?``) either may
match, else both must.  Where clocks change, a local time that does not exist fires at the first instant after the gap,
and one that occurs twice fires at its first occurrence only, unless the hour field begins with ``*``: an hourly job
follows elapsed time and fires in both.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from difflib import get_close_matches
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo, available_timezones

from autoscaler.errors import ConfigError

_DAY_SECONDS = 86_400
# 29 February is at most 8 years away (1896, 1904), and falls on one given weekday at most 40 years later.
_LOOK_BACK_DAYS = 366 * 41


class Entry(Protocol):
    """What this module reads of a schedule entry (`autoscaler.settings.ScheduleEntry` is one)."""

    @property
    def start(self) -> str: ...
    @property
    def end(self) -> str: ...
    @property
    def time_zone(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (
    _Field(name="minute", low=0, high=59),
    _Field(name="hour", low=0, high=23),
    _Field(name="day of month", low=1, high=31),
    _Field(name="month", low=1, high=12, names=_MONTHS),
    _Field(name="day of week", low=0, high=7, names=_WEEKDAYS),
)
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_NUMBER = re.compile(r"[0-9]{1,4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """A parsed cron expression.  `minutes` of the day ascend; Sunday is weekday 0."""

    minutes: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    both_days_must_match: bool
    hourly: bool

    def on(self, day: date) -> bool:
        """True if the expression fires on this local date."""
        if day.month not in self.months:
            return False
        by_day, by_weekday = day.day in self.days, (day.weekday() + 1) % 7 in self.weekdays
        return (by_day and by_weekday) if self.both_days_must_match else (by_day or by_weekday)


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """The expression in `text`.  Raises ValueError with a sentence that names the part that is wrong."""
    parts = text.lower().split()
    if len(parts) != 5:
        raise ValueError(
            f"has {len(parts)} fields and must have 5, in this order: minute, hour, day of month, month, day of week"
        )
    minutes, hours, days, months, weekdays = (_values(part, f) for part, f in zip(parts, _FIELDS, strict=True))
    star = [part[0] in "*?" for part in parts]
    both = star[2] or star[4]
    if both and all(day > _LONGEST[month - 1] for day in days for month in months):
        raise ValueError(f"never fires: no month of {parts[3]!r} has a day {parts[2]!r}")
    return Expression(
        minutes=tuple(60 * h + m for h in sorted(hours) for m in sorted(minutes)),
        days=days,
        months=months,
        weekdays=frozenset(w % 7 for w in weekdays),
        both_days_must_match=both,
        hourly=star[1],
    )


def _values(part: str, field: _Field) -> frozenset[int]:
    found: set[int] = set()
    for term in part.split(","):
        found.update(_term(term, field))
    return frozenset(found)


def _term(term: str, field: _Field) -> range:
    body, slash, step_text = term.partition("/")
    step = 1
    if slash:
        if not _NUMBER.fullmatch(step_text) or int(step_text) < 1:
            raise ValueError(f"{field.name} {term!r} must have a step that is a whole number >= 1")
        step = int(step_text)
    if body in ("*", "?"):
        # Day of week runs to 6: with 7 in the range a step would count Sunday twice.
        return range(field.low, (6 if field.high == 7 else field.high) + 1, step)
    first, dash, last = body.partition("-")
    low = _number(first, field)
    if not dash:
        return range(low, field.high + 1, step) if slash else range(low, low + 1)
    high = _number(last, field)
    if field.high == 7 and high == 0 and low > 0:
        high = 7  # fri-sun
    if high < low:
        raise ValueError(f"{field.name} {body!r} must be a range that ascends")
    return range(low, high + 1, step)


def _number(text: str, field: _Field) -> int:
    if text in field.names:
        return field.names.index(text) + field.low
    if not _NUMBER.fullmatch(text) or not field.low <= int(text) <= field.high:
        names = f" or one of {', '.join(field.names)}" if field.names else ""
        raise ValueError(f"{field.name} {text!r} must be in {field.low}-{field.high}{names}")
    return int(text)


@lru_cache(maxsize=64)
def zone(name: str) -> tzinfo:
    """The time zone of an IANA name.  Raises ValueError with a sentence."""
    if name == "UTC":
        return UTC  # known even where no zone database is installed
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        close = get_close_matches(name, sorted(available_timezones()), n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        raise ValueError(f"must be an IANA time zone such as Europe/Berlin{hint}") from None


def check(entry: Entry) -> None:
    """Raises ConfigError naming `start`, `end` or `time_zone` if that text of the entry cannot be understood."""
    for field, text in (("start", entry.start), ("end", entry.end)):
        try:
            parse(text)
        except ValueError as error:
            raise ConfigError(field, f"cron expression {text!r} {error}") from None
    try:
        zone(entry.time_zone)
    except ValueError as error:
        raise ConfigError("time_zone", f"{entry.time_zone!r} {error}") from None


def active(entry: Entry, at_seconds: int) -> bool:
    """True if the last start at or before `at_seconds` (Unix seconds) is later than the last end.

    A start and an end at the same instant leave it inactive, and so does a start that never was.
    """
    first, changes = _changes(entry.start, entry.end, entry.time_zone, at_seconds // _DAY_SECONDS)
    return first ^ (bisect_right(changes, at_seconds) % 2 == 1)


@lru_cache(maxsize=512)
def _changes(start: str, end: str, zone_name: str, utc_day: int) -> tuple[bool, tuple[int, ...]]:
    """(active just before the UTC day, instants inside the day at which this turns over): a tick costs one look-up."""
    where = zone(zone_name)
    starts, ends = parse(start), parse(end)
    begin = utc_day * _DAY_SECONDS
    before = _last(starts, where, begin - 1), _last(ends, where, begin - 1)
    now = first = before[0] is not None and (before[1] is None or before[0] > before[1])
    until = begin + _DAY_SECONDS
    ending = set(between(ends, where, begin, until))
    changes = []
    for at in sorted(ending | set(between(starts, where, begin, until))):
        if (at not in ending) != now:
            now = not now
            changes.append(at)
    return first, tuple(changes)


def between(expression: Expression, where: tzinfo, since: int, until: int) -> list[int]:
    """Instants (ascending, Unix seconds) in [since, until) at which the expression fires."""
    # A local date lies within two days of its UTC date, skipped days (Apia, 2011) included.
    day, last = _utc_date(since) - timedelta(days=2), _utc_date(until) + timedelta(days=2)
    found: set[int] = set()
    while day <= last:
        found.update(at for at in _instants(expression, where, day) if since <= at < until)
        day += timedelta(days=1)
    return sorted(found)


def _last(expression: Expression, where: tzinfo, at_seconds: int) -> int | None:
    """The last firing at or before `at_seconds`; None if there was none in living memory."""
    day = _utc_date(at_seconds) + timedelta(days=2)
    for _ in range(_LOOK_BACK_DAYS):
        fired = [at for at in _instants(expression, where, day) if at <= at_seconds]
        day -= timedelta(days=1)
        if fired:
            # Where clocks fall back over midnight, the date before may fire once more after this one.
            return max(*fired, *(at for at in _instants(expression, where, day) if at <= at_seconds), fired[0])
    return None


def _utc_date(at_seconds: int) -> date:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at_seconds)).date()


def _instants(expression: Expression, where: tzinfo, day: date) -> Iterator[int]:
    """The instants at which the expression fires for this local date."""
    if not expression.on(day):
        return
    midnight = datetime(day.year, day.month, day.day)
    for minute in expression.minutes:
        local = midnight + timedelta(minutes=minute)
        early, late = (_unix(local.replace(tzinfo=where, fold=fold)) for fold in (0, 1))
        if late < early:  # in a gap the offset of fold 0 is the old one, so that fold 0 is the later instant
            yield _gap_end(where, late, early)
            continue
        yield early
        if late > early and expression.hourly:
            yield late


def _gap_end(where: tzinfo, before: int, after: int) -> int:
    """The instant at which the zone's offset changes, in (before, after]."""
    old = _offset(where, before)
    while after - before > 1:
        middle = (before + after) // 2
        before, after = (middle, after) if _offset(where, middle) == old else (before, middle)
    return after


def _offset(where: tzinfo, at_seconds: int) -> timedelta | None:
    return datetime.fromtimestamp(at_seconds, where).utcoffset()


def _unix(local: datetime) -> int:
    return round(local.timestamp())
