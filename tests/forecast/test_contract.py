"""What every forecaster promises, ours and all adapters: quantiles are numbers, ordered, and the same again."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import pytest

from autoscaler.errors import ForecastError
from autoscaler.ports import Forecaster
from autoscaler.record import decode, encode
from autoscaler.types import Forecast
from forecast.adapters import ADAPTERS, adapter
from forecast.seasonal import Seasonal

WINDOWS = ((10, 70), (180, 240), (0, 300), (600, 1200))
START = 1_760_400_000
NAMES = ("seasonal", *ADAPTERS)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]

Work = Callable[[int], float | None]


def build(name: str) -> Forecaster:
    if name == "seasonal":
        return Seasonal(WINDOWS, 60)
    for package in ADAPTERS[name][1]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    return adapter(name, WINDOWS)


def waves(second: int) -> float:
    """A day's curve with a jitter of its own."""
    jitter = (second // 60 * 7919 % 101) / 101
    return 20.0 + 10.0 * math.sin(2 * math.pi * second / 86_400) + 2.0 * jitter


def told(name: str, work: Work, minutes: int, *, step: int = 60, refits: int = 2) -> tuple[Any, Any, Forecast | None]:
    """The forecaster after `minutes` of `work`, refitted `refits` times on the way and at the end."""
    forecaster = build(name)
    history, beliefs = forecaster.start()
    count = minutes * 60 // step
    for i in range(1, count + 1):
        history = forecaster.observe(history, START + i * step, step, work(i * step))
        if refits and (i % max(1, count // refits) == 0 or i == count):
            beliefs = forecaster.refit(history, beliefs)
    return history, beliefs, forecaster.forecast(history, beliefs, START + count * step, WINDOWS)


def checked(forecast: Forecast | None) -> Forecast:
    assert forecast is not None
    assert forecast.windows == WINDOWS
    assert len(forecast.values) == len(WINDOWS)
    for row in forecast.values:
        assert len(row) == len(forecast.levels)
        assert all(math.isfinite(v) and v >= 0.0 for v in row), row
        assert list(row) == sorted(row)
    assert list(forecast.levels) == sorted(set(forecast.levels))
    assert {0.5, 0.9, 0.95, 0.99} <= set(forecast.levels)
    return forecast


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_day_and_a_half_gives_numbers_of_the_right_size_and_the_same_bytes_again(name: str) -> None:
    history, beliefs, forecast = told(name, waves, 36 * 60, step=300)
    values = checked(forecast).values
    truth = waves(36 * 3600)
    assert all(0.4 * truth < row[0] < 2.5 * truth for row in values), (truth, values)
    again = told(name, waves, 36 * 60, step=300)
    assert encode(again[2]) == encode(forecast)
    assert encode(again[1]) == encode(beliefs)
    forecaster = build(name)
    restored = decode(forecaster.history_type, _parsed(history)), decode(forecaster.beliefs_type, _parsed(beliefs))
    at = START + 36 * 3600
    assert forecaster.forecast(*restored, at, WINDOWS) == forecast
    assert forecaster.refit(*restored) == forecaster.refit(history, beliefs)


def _parsed(value: object) -> Any:
    import json

    return json.loads(encode(value))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_history_gives_none(name: str) -> None:
    forecaster = build(name)
    history, beliefs = forecaster.start()
    assert forecaster.forecast(history, beliefs, START, WINDOWS) is None
    assert forecaster.refit(history, beliefs) == beliefs


@pytest.mark.parametrize("name", NAMES)
def test_one_sample_gives_none_or_numbers(name: str) -> None:
    forecast = told(name, lambda s: 3.0, 1)[2]
    assert forecast is None or checked(forecast)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("what", "work"),
    [
        ("constant", lambda s: 5.0),
        ("zeros", lambda s: 0.0),
        ("huge", lambda s: 1e12 * waves(s)),
        ("tiny", lambda s: 1e-9),
        ("mostly zero", lambda s: 50.0 if s // 60 % 97 == 0 else 0.0),
        ("a jump by a million", lambda s: 1.0 if s < 4 * 3600 else 1e6),
        ("an hour missing", lambda s: None if 7200 <= s < 10_800 else waves(s)),
        ("every third missing", lambda s: None if s // 60 % 3 == 0 else waves(s)),
    ],
)
def test_odd_series_give_numbers(name: str, what: str, work: Work) -> None:
    checked(told(name, work, 6 * 60)[2])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_constant_is_forecast_as_one(name: str) -> None:
    for row in checked(told(name, lambda s: 5.0, 24 * 60, step=300, refits=24)[2]).values:
        assert row[0] == pytest.approx(5.0, rel=0.25)


@pytest.mark.parametrize("name", NAMES)
def test_after_two_hours_of_gap_there_is_no_forecast_and_no_exception(name: str) -> None:
    forecast = told(name, lambda s: waves(s) if s < 4 * 3600 else None, 6 * 60)[2]
    assert forecast is None


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_not_taken_back_in_time(name: str) -> None:
    forecaster = build(name)
    history, _ = forecaster.start()
    history = forecaster.observe(history, START, 60, 1.0)
    assert forecaster.observe(history, START, 60, 1.0) == history
    with pytest.raises(ForecastError):
        forecaster.observe(history, START - 60, 60, 1.0)
