"""The Series call: stamps, zones, gaps, units."""

from __future__ import annotations

import math

import pytest

from autoscaler.errors import ForecastError
from forecast.frame import forecast_samples, forecast_series

pd = pytest.importorskip("pandas")


def day_curve(hours: float, freq_seconds: int = 300, tz: str | None = "Europe/Paris", scale: float = 1.0):
    n = int(hours * 3600 / freq_seconds)
    index = pd.date_range("2025-10-01", periods=n, freq=f"{freq_seconds}s", tz=tz)
    values = [
        scale * (50 + 30 * math.sin(2 * math.pi * i * freq_seconds / 86_400) + (i * 37 % 11) / 4) for i in range(n)
    ]
    return pd.Series(values, index=index)


def test_rows_are_the_windows_after_the_end_in_the_zone_of_the_series() -> None:
    series = day_curve(30)
    found = forecast_series(series, steps=6, step_seconds=600)
    assert found.index.names == ["start", "end"]
    assert found.shape == (6, 7)
    assert found.index[0][0] == series.index[-1] + pd.Timedelta(seconds=300)
    assert found.index[0][1] == found.index[1][0]
    assert str(found.index.levels[0].tz) == "Europe/Paris"
    assert (found.diff(axis=1).iloc[:, 1:] >= 0).all().all()
    assert found[0.5].between(0.5 * series.iloc[-1], 2 * series.iloc[-1]).all()


def test_a_naive_index_is_answered_without_a_zone_and_alike() -> None:
    zoned, naive = forecast_series(day_curve(6, tz="UTC")), forecast_series(day_curve(6, tz=None))
    assert naive.index.levels[0].tz is None
    assert naive.to_numpy().tolist() == zoned.to_numpy().tolist()
    assert [a.tz_localize("UTC") for a, _ in naive.index] == [a for a, _ in zoned.index]


def test_a_right_label_says_that_stamps_are_ends() -> None:
    series = day_curve(6)
    left, right = forecast_series(series), forecast_series(series, label="right")
    assert right.index[0][0] == series.index[-1]
    assert left.index[0][0] - right.index[0][0] == pd.Timedelta(seconds=300)


@pytest.mark.parametrize("scale", [1e-6, 1e9])
def test_units_do_not_matter(scale: float) -> None:
    one, other = forecast_series(day_curve(6)), forecast_series(day_curve(6, scale=scale))
    assert (other / scale).to_numpy() == pytest.approx(one.to_numpy(), rel=1e-3)


def test_missing_is_nan_or_a_stamp_left_out_and_never_zero() -> None:
    full = day_curve(8)
    holes = full.copy()
    holes.iloc[40:60] = float("nan")
    with_nan, without = forecast_series(holes), forecast_series(holes.dropna())
    assert with_nan.to_numpy() == pytest.approx(without.to_numpy(), rel=0.05)
    zeros = full.copy()
    zeros.iloc[-12:] = 0.0
    assert forecast_series(zeros)[0.5].iloc[0] < 0.5 * with_nan[0.5].iloc[0]


def test_too_little_gives_an_empty_frame() -> None:
    assert forecast_series(day_curve(6).iloc[:1], steps=3).empty
    assert forecast_series(day_curve(6) * float("nan")).empty
    assert forecast_series(day_curve(6).iloc[:0]).empty


def test_two_weeks_of_minutes_find_the_daily_curve() -> None:
    series = day_curve(10 * 24, freq_seconds=600)
    found = forecast_series(series, windows=[(6 * 3600, 6 * 3600 + 600)])
    assert found[0.5].iloc[0] == pytest.approx(series.iloc[-144 + 36], rel=0.25)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.iloc[::-1], "must ascend in time"),
        (lambda s: -s, "must be in"),
        (lambda s: s.reset_index(drop=True), "DatetimeIndex"),
        (lambda s: s.tolist(), "pandas Series"),
    ],
)
def test_what_is_no_series_is_refused_in_a_sentence(change, said: str) -> None:
    with pytest.raises(ForecastError, match=said):
        forecast_series(change(day_curve(2)))


@pytest.mark.parametrize("windows", [[(5, 5)], [(-1, 5)], [], [(0, 10**9)]])
def test_windows_are_checked(windows) -> None:
    with pytest.raises(ForecastError, match="window"):
        forecast_series(day_curve(2), windows=windows)


def test_samples_need_no_pandas_and_another_forecaster_may_be_given() -> None:
    from forecast.adapters import adapter

    samples = [(1_760_400_000 + 60 * i, 3.0 + i % 2) for i in range(1, 200)]
    found = forecast_samples(samples, [(0, 300)], forecaster=adapter("naive", [(0, 300)]))
    assert found is not None
    assert found.expert == "naive"
    assert forecast_samples(samples, [(0, 300)], at_seconds=samples[-1][0] + 7_200) is None
    with pytest.raises(ForecastError, match="at_seconds"):
        forecast_samples(samples, [(0, 300)], at_seconds=samples[0][0])
