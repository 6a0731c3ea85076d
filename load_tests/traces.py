"""Recorded traffic: shipped traces by name (``builtin:NAME``) and files of the user's, in one shape each for requests and rates.

Time is never stretched and counts are never multiplied here; unknown is NaN, and a gap stays a gap.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from autoscaler.errors import ConfigError
from autoscaler.schema import build, setting
from load_tests.trace_formats import Floats, RateRows, RequestRows, read_rows
from load_tests.trace_recording import is_recording, recorded_rows

BUILTIN = "builtin:"
_LAST_INSTANT = 7_258_118_400  # 2200-01-01


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFacts:
    """What is known of a trace beside its rows; ``load_tests/data/traces/traces.toml`` holds those of the shipped ones."""

    origin: str | None = setting(None, "Instant of second 0, RFC 3339; None where it is not known.")
    time_zone: str = setting("UTC", "IANA zone of the users' day.")
    origin_published: bool = setting(True, "False: the date is a choice, only the hour of the day is known.")
    train_days: int = setting(0, "Days on which anything may be tuned; 0: nothing is tuned on it.", low=0)
    zero_is_missing: bool = setting(False, "True: an interval of zero requests is one without a row in the source.")
    prompt_sigma: float | None = setting(None, "Spread of log prompt length; None where not published.", low=0, high=3)
    output_sigma: float | None = setting(None, "Spread of log output length; None where not published.", low=0, high=3)
    iat_cv: float | None = setting(None, "Inter-arrival coefficient of variation where rows have none.", above=0)
    shape: bool = setting(False, "True: a demand series of something else than LLM requests.")

    def __post_init__(self) -> None:
        if self.origin is not None:
            instant_of(self.origin, "origin")
        zone_of(self.time_zone, "time_zone")

    @property
    def origin_at_seconds(self) -> int | None:
        """Unix second of the trace's second 0."""
        return None if self.origin is None else instant_of(self.origin, "origin")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTrace:
    """A request-level trace: rows in order of arrival, seconds since the trace's second 0."""

    name: str
    facts: TraceFacts
    rows: RequestRows

    @property
    def end_seconds(self) -> float:
        """Just past the last arrival: the next whole second."""
        return float(np.floor(self.rows.arrival_seconds[-1]) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTrace:
    """A rate-level trace on an even grid; `missing` intervals are unknown, their values NaN.

    Missing are intervals without a row, those the source marks as gaps with one neighbour each side, and empty ones where
    zero means no row.
    """

    name: str
    facts: TraceFacts
    t_seconds: Floats
    interval_seconds: float
    requests: Floats
    prompt_tokens: Floats
    output_tokens: Floats
    iat_cv: Floats
    missing: NDArray[np.bool_]

    @property
    def end_seconds(self) -> float:
        """End of the last interval."""
        return float(self.t_seconds[-1] + self.interval_seconds)


Trace = RequestTrace | RateTrace


def builtin_names() -> tuple[str, ...]:
    """Names of the shipped traces."""
    return tuple(_facts())


def load_trace(source: str | Path) -> Trace:
    """A shipped trace (``builtin:NAME``), a file, or what ``observe`` recorded; ConfigError says what is wrong with it."""
    text = str(source)
    if text.startswith(BUILTIN):
        return _builtin(text[len(BUILTIN) :])
    path = Path(source)
    if is_recording(path):
        seen, origin = recorded_rows(path)
        return _trace(path.name, seen, TraceFacts(origin=datetime.fromtimestamp(origin, ZoneInfo("UTC")).isoformat()))
    return _trace(path.name, read_rows(path), TraceFacts())


def instant_of(text: str, field: str) -> int:
    """Unix second of an RFC 3339 instant with an offset."""
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is not None and 0 <= at.timestamp() < _LAST_INSTANT:
            return int(at.timestamp())
    except (ValueError, OverflowError):
        pass
    raise ConfigError(
        field, f"{text!r} must be an instant with an offset from 1970 to 2199, such as 2023-11-16T18:15:46+00:00"
    )


def zone_of(name: str, field: str) -> ZoneInfo:
    """The IANA time zone `name`."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):  # ZoneInfoNotFoundError is a KeyError
        raise ConfigError(field, f"{name!r} must be an IANA time zone such as Europe/Paris") from None


@cache
def _facts() -> dict[str, TraceFacts]:
    text = (files("load_tests") / "data" / "traces" / "traces.toml").read_text(encoding="utf-8")
    return {name: build(TraceFacts, row, name) for name, row in tomllib.loads(text).items()}


@lru_cache(maxsize=4)
def _builtin(name: str) -> Trace:
    if name not in _facts():
        close = get_close_matches(name, _facts(), n=1)
        hint = f"did you mean {BUILTIN}{close[0]}? " if close else ""
        raise ConfigError("trace", f"{BUILTIN + name!r} is unknown; {hint}it must be one of {', '.join(_facts())}")
    with as_file(files("load_tests") / "data" / "traces" / f"{name}.csv.gz") as path:
        return _trace(name, read_rows(path), _facts()[name])


def _trace(name: str, rows: RequestRows | RateRows, facts: TraceFacts) -> Trace:
    if isinstance(rows, RequestRows):
        if facts.origin is None and rows.origin_at_seconds is not None:
            stamp = datetime.fromtimestamp(int(rows.origin_at_seconds), ZoneInfo("UTC"))
            facts = replace(facts, origin=stamp.isoformat())
        _freeze(rows)
        return RequestTrace(name=name, facts=facts, rows=rows)
    missing = rows.absent | rows.published_gap
    missing[1:] |= rows.published_gap[:-1]
    missing[:-1] |= rows.published_gap[1:]
    if facts.zero_is_missing:
        missing |= rows.requests == 0
    known = {
        n: np.where(missing, np.nan, getattr(rows, n)) for n in ("requests", "prompt_tokens", "output_tokens", "iat_cv")
    }
    trace = RateTrace(
        name=name, facts=facts, t_seconds=rows.t_seconds, interval_seconds=rows.interval_seconds, missing=missing, **known
    )  # fmt: skip
    _freeze(trace)
    return trace


def _freeze(holder: Any) -> None:
    """Cached traces are shared: nobody may write into their arrays."""
    for name in holder.__dataclass_fields__:
        value = getattr(holder, name)
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
