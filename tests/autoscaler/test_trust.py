"""A forecast acts only once it has earned it, and for as long as outcomes bear it out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoscaler.trust import REGAIN_SECONDS, trusted, witnessed
from autoscaler.types import Forecast, Trust

GOOD = Forecast(
    at_seconds=0, levels=(0.5, 0.95), windows=((60, 120), (0, 300)), values=((2.0, 4.0), (3.0, 9.0)), matured=500,
    coverage=0.95,
)  # fmt: skip


def told(value: float) -> Forecast:
    return replace(GOOD, values=((value / 2, value), (value, value)))


def hours(trust: Trust, start: int, seconds: int, value: float, came: float | None, least: float = 0.1) -> Trust:
    """`trust` after a time in which `value` was told and `came` arrived, a turn every 10 s."""
    for at in range(start, start + seconds, 10):
        trust = witnessed(trust, at, told(value), 0.95, work=came, least=least)
    return trust


def acts(trust: Trust, at: int) -> bool:
    return trusted(GOOD, 0.95, trust, at)


@pytest.mark.parametrize("changes", [{"matured": 199}, {"coverage": None}, {"coverage": 0.919}])
def test_a_young_or_wrong_forecast_does_not_act(changes: dict[str, float | None]) -> None:
    assert acts(Trust(), 0)
    assert not trusted(replace(GOOD, **changes), 0.95, Trust(), 0)


def test_ten_times_too_much_is_believed_for_minutes_only() -> None:
    assert not acts(hours(Trust(), 0, 480, 10.0, 1.0), 480)
    assert acts(hours(Trust(), 0, 180, 10.0, 1.0), 180)


def test_trust_comes_back_six_hours_after_the_answers_are_right_again() -> None:
    trust = hours(Trust(), 0, 3600, 10.0, 1.0)
    last = trust.distrusted_until_seconds
    assert last is not None
    assert 3600 - 60 + REGAIN_SECONDS <= last <= 3600 + REGAIN_SECONDS
    trust = hours(trust, 3600, 7 * 3600, 1.2, 1.0)
    end = trust.distrusted_until_seconds
    assert end is not None
    assert end <= last + 180  # the answers that were still open
    assert not acts(trust, end - 10)
    assert acts(trust, end)


def test_a_quantile_of_bursts_that_do_not_come_stays_trusted() -> None:
    assert acts(hours(Trust(), 0, 6 * 3600, 3.9, 1.0), 6 * 3600)
    after_burst = hours(hours(Trust(), 0, 3600, 1.5, 1.0), 3600, 600, 6.0, 1.0)
    assert acts(after_burst, 4200)


def test_what_costs_nothing_and_what_is_not_known_count_for_nothing() -> None:
    assert acts(hours(Trust(), 0, 3600, 0.3, 0.0), 3600)  # less than a replica either way
    assert acts(hours(Trust(), 0, 3600, 10.0, None), 3600)


def test_few_answers_are_kept_however_long_a_start_takes() -> None:
    slow = replace(GOOD, windows=((1000, 1060), (0, 1000)))
    trust = Trust()
    for at in range(0, 7200, 10):
        trust = witnessed(trust, at, slow, 0.95, work=1.0, least=0.1)
        assert len(trust.told) <= 10
