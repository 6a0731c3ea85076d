"""Cron bounds: what a field means, which days match, and what happens when clocks change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoscaler import cron
from autoscaler.errors import ConfigError

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The three texts that cron reads."""

    start: str = "0 8 * * *"
    end: str = "0 20 * * *"
    time_zone: str = "UTC"


def at(text: str, zone: str = "UTC", fold: int = 0) -> int:
    """Unix seconds of a local time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp())


def fires(expression: str, since: str, until: str, zone: str = "UTC") -> list[str]:
    """Local times (with offset) at which the expression fires between two UTC times."""
    found = cron.between(cron.parse(expression), cron.zone(zone), at(since), at(until))
    return [datetime.fromtimestamp(t, ZoneInfo(zone)).isoformat(timespec="minutes") for t in found]


@pytest.mark.parametrize(
    ("expression", "minutes"),
    [
        ("30 8 * * *", [510]),
        ("0,30 8-10/2 * * *", [480, 510, 600, 630]),
        ("*/20 0 * * *", [0, 20, 40]),
        ("50/4 0 * * *", [50, 54, 58]),
        ("5-5,7 0 ? * ?", [5, 7]),
    ],
)
def test_minutes_of_the_day(expression: str, minutes: list[int]) -> None:
    assert list(cron.parse(expression).minutes) == minutes


@pytest.mark.parametrize(
    ("expression", "days"),
    [
        # March 2026 begins on a Sunday.
        ("0 0 * 3 sun", [1, 8, 15, 22, 29]),
        ("0 0 * 3 7", [1, 8, 15, 22, 29]),
        ("0 0 * MAR 0", [1, 8, 15, 22, 29]),
        ("0 0 * 3 sat-sun", [1, 7, 8, 14, 15, 21, 22, 28, 29]),
        ("0 0 * 3 mon-fri/2", [2, 4, 6, 9, 11, 13, 16, 18, 20, 23, 25, 27, 30]),
        ("0 0 13 3 fri", [6, 13, 20, 27]),  # both restricted: either matches
        ("0 0 13 3 mon", [2, 9, 13, 16, 23, 30]),
        ("0 0 */2 3 mon", [9, 23]),  # a leading star restricts too, but both must match
        ("0 0 31 1-4 *", [31]),
        ("0 0 ? 3 1", [2, 9, 16, 23, 30]),
    ],
)
def test_days_of_march(expression: str, days: list[int]) -> None:
    parsed = cron.parse(expression)
    march = [datetime(2026, 3, d).date() for d in range(1, 32)]
    assert [d.day for d in march if parsed.on(d)] == days


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("61 * * * *", ("minute '61'", "0-59")),
        ("0 24 * * *", ("hour '24'", "0-23")),
        ("0 0 0 * *", ("day of month '0'", "1-31")),
        ("0 0 * 13 *", ("month '13'", "1-12", "jan")),
        ("0 0 * * 8", ("day of week '8'", "0-7", "sun")),
        ("0 0 * * mo", ("day of week 'mo'", "0-7")),
        ("* * * *", ("has 4 fields", "must have 5")),
        ("", ("has 0 fields",)),
        ("0 0 30 2 *", ("never fires",)),
        ("0 0 31 4,6 ?", ("never fires",)),
        ("*/0 * * * *", ("step", ">= 1")),
        ("*/x * * * *", ("step",)),
        ("5-1 * * * *", ("'5-1'", "ascends")),
        ("1,,2 * * * *", ("minute ''",)),
        ("-1 * * * *", ("minute ''",)),
        ("٣ * * * *", ("minute",)),
        ("1.5 * * * *", ("minute '1.5'",)),
        ("99999999999999999999 * * * *", ("minute",)),
    ],
)
def test_a_bad_expression_is_one_sentence(expression: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        cron.check(Entry(end=expression))
    assert caught.value.field == "end"
    assert "\n" not in str(caught.value)
    for word in (repr(expression), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("zone", ["Europe/Berln", "", "../etc/passwd", "America", "\x00", "europe berlin"])
def test_a_bad_zone_is_one_sentence(zone: str) -> None:
    with pytest.raises(ConfigError, match=r"^time_zone: .* must be an IANA time zone") as caught:
        cron.check(Entry(time_zone=zone))
    if zone == "Europe/Berln":
        assert "did you mean Europe/Berlin?" in str(caught.value)


def test_a_good_entry_passes() -> None:
    cron.check(Entry(start="0 8 * * mon-fri", end="30 18 * * 1-5", time_zone=NEW_YORK))


def test_office_hours() -> None:
    entry = Entry(start="0 8 * * mon-fri", end="0 20 * * mon-fri", time_zone=BERLIN)
    expected = {
        "2026-06-01T07:59:59": False,  # Monday
        "2026-06-01T08:00:00": True,
        "2026-06-01T19:59:59": True,
        "2026-06-01T20:00:00": False,
        "2026-06-06T12:00:00": False,  # Saturday
        "2026-06-08T08:00:00": True,
    }
    assert {text: cron.active(entry, at(text, BERLIN)) for text in expected} == expected


def test_over_midnight_and_over_months() -> None:
    night = Entry(start="0 22 * * *", end="0 6 * * *")
    assert [cron.active(night, at(f"2026-01-01T{h:02}:00")) for h in (0, 5, 6, 21, 22)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    season = Entry(start="0 0 24 11 *", end="0 0 2 1 *")
    assert cron.active(season, at("2026-12-31T23:59"))
    assert not cron.active(season, at("2027-01-02T00:00"))
    assert not cron.active(season, at("2026-11-23T23:59"))
    leap = Entry(start="0 0 29 2 *", end="0 0 1 3 *")
    assert cron.active(leap, at("2028-02-29T12:00"))
    assert not cron.active(leap, at("2027-02-28T12:00"))


def test_start_and_end_at_once_is_inactive() -> None:
    entry = Entry(start="0 * * * *", end="0 */2 * * *")
    assert not cron.active(entry, at("2026-01-01T02:30"))
    assert cron.active(entry, at("2026-01-01T03:30"))


def test_a_local_time_that_does_not_exist_fires_after_the_gap() -> None:
    # Berlin, 2026-03-29: 02:00 becomes 03:00.
    assert fires("30 2 * * *", "2026-03-28T00:00", "2026-03-31T00:00", BERLIN) == [
        "2026-03-28T02:30+01:00",
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:30+02:00",
    ]
    entry = Entry(start="30 2 * * *", end="0 4 * * *", time_zone=BERLIN)
    assert not cron.active(entry, at("2026-03-29T01:59:59", BERLIN))
    assert cron.active(entry, at("2026-03-29T03:00", BERLIN))
    assert not cron.active(entry, at("2026-03-29T04:00", BERLIN))


def test_an_ambiguous_local_time_fires_once() -> None:
    # New York, 2026-11-01: 02:00 becomes 01:00.
    assert fires("30 1 * * *", "2026-10-31T12:00", "2026-11-02T12:00", NEW_YORK) == [
        "2026-11-01T01:30-04:00",
        "2026-11-02T01:30-05:00",
    ]
    entry = Entry(start="30 1 * * *", end="45 1 * * *", time_zone=NEW_YORK)
    assert cron.active(entry, at("2026-11-01T01:40", NEW_YORK, fold=0))
    assert not cron.active(entry, at("2026-11-01T01:40", NEW_YORK, fold=1))


def test_an_hourly_job_follows_elapsed_time() -> None:
    assert fires("0 * * * *", "2026-11-01T04:30", "2026-11-01T08:00", NEW_YORK) == [
        "2026-11-01T01:00-04:00",
        "2026-11-01T01:00-05:00",
        "2026-11-01T02:00-05:00",
    ]
    entry = Entry(start="0 * * * *", end="15 * * * *", time_zone=NEW_YORK)
    assert cron.active(entry, at("2026-11-01T01:10", NEW_YORK, fold=1))


def test_a_skipped_day_fires_at_its_end() -> None:
    # Apia had no 30 December 2011.
    assert fires("0 12 30 12 *", "2011-12-28T00:00", "2012-01-02T00:00", "Pacific/Apia") == ["2011-12-31T00:00+14:00"]


def test_half_hour_gaps() -> None:
    # Lord Howe, 2026-10-04: 02:00 becomes 02:30.
    assert fires("15 2 * * *", "2026-10-03T12:00", "2026-10-04T12:00", "Australia/Lord_Howe") == [
        "2026-10-04T02:30+11:00"
    ]


def _field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    # A span of one with a step is left out: cronsim reads 0-0/1 as 0/1.
    spans = st.tuples(number, number).filter(lambda ab: ab[0] != ab[1]).map(lambda ab: f"{min(ab)}-{max(ab)}")
    bases = st.one_of(number.map(str), spans)
    stepped = st.tuples(st.one_of(st.just("*"), spans), st.integers(1, 9)).map(lambda t: f"{t[0]}/{t[1]}")
    return st.lists(st.one_of(bases, bases, stepped), min_size=1, max_size=3).map(",".join)


FIXED_TIMES = st.tuples(
    _field(0, 59).filter(lambda f: f[0] != "*"),
    _field(0, 23).filter(lambda f: f[0] != "*"),
    st.one_of(st.just("*"), _field(1, 28)),
    st.one_of(st.just("*"), _field(1, 12)),
    st.one_of(st.just("*"), _field(0, 6)),
).map(" ".join)


@given(expression=FIXED_TIMES, day=st.integers(0, 730), zone=st.sampled_from(["UTC", BERLIN, NEW_YORK, "Asia/Kolkata"]))
@example(expression="30 2 * * *", day=87, zone=BERLIN)
@example(expression="59 1-3 * * *", day=304, zone=NEW_YORK)
@settings(max_examples=150)
def test_the_next_firings_are_those_of_cronsim(expression: str, day: int, zone: str) -> None:
    cronsim = pytest.importorskip("cronsim")
    since = datetime(2026, 1, 1, 12, 7, tzinfo=UTC) + timedelta(days=day)
    until = since + timedelta(days=3)
    theirs = set()
    for local in cronsim.CronSim(expression, since.astimezone(ZoneInfo(zone))):
        if local.timestamp() >= until.timestamp():
            break
        theirs.add(int(local.timestamp()))
    ours = cron.between(cron.parse(expression), cron.zone(zone), int(since.timestamp()) + 1, int(until.timestamp()))
    assert set(ours) == theirs


@given(start=FIXED_TIMES, end=FIXED_TIMES, minute=st.integers(0, 60 * 24 * 365), zone=st.sampled_from(["UTC", BERLIN]))
@settings(max_examples=60)
def test_active_is_the_order_of_the_last_firings(start: str, end: str, minute: int, zone: str) -> None:
    now = at("2026-01-01T00:00") + 60 * minute
    where = cron.zone(zone)

    def last(expression: str) -> int:
        for days in (3, 40, 400, 4000):
            found = cron.between(cron.parse(expression), where, now - days * 86_400, now + 1)
            if found:
                return found[-1]
        return -1

    assert cron.active(Entry(start=start, end=end, time_zone=zone), now) == (last(start) > last(end))
