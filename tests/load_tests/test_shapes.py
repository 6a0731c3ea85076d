"""Shapes have the form they are named after, before second 0 too, and their random parts belong to absolute time."""

from __future__ import annotations

import numpy as np
import pytest

from autoscaler.errors import ConfigError
from autoscaler.schema import build, json_schema
from load_tests.shapes import (
    Bursts,
    Clock,
    Constant,
    Diurnal,
    FlashCrowd,
    IdleNights,
    LongOutputs,
    PromptShift,
    Ramp,
    Sawtooth,
    StepShape,
    Tenants,
    TenantVisit,
)

DAY = 86_400.0


def rates(shape, t, clock: Clock | None = None, seed: int = 0):  # type: ignore[no-untyped-def]
    return shape.streams(np.asarray(t, float), clock or Clock(), seed)[0].rates


@pytest.mark.parametrize(
    ("shape", "at", "expected"),
    [
        (Constant(requests_per_second=3), [-5, 0, 1e6], [3, 3, 3]),
        (StepShape(requests_per_second=2, factor=10, at_seconds=100), [-1, 99, 100, 1e6], [2, 2, 20, 20]),
        (
            StepShape(requests_per_second=2, factor=0.5, at_seconds=100, until_seconds=200),
            [99, 100, 199, 200],
            [2, 1, 1, 2],
        ),
        (
            Ramp(requests_per_second=2, factor=5, at_seconds=100, over_seconds=40),
            [0, 100, 120, 140, 500],
            [2, 2, 6, 10, 10],
        ),
        (
            Sawtooth(low_requests_per_second=1, high_requests_per_second=3, period_seconds=100),
            [0, 50, 100, 175, -50],
            [1, 2, 1, 2.5, 2],
        ),
        (
            FlashCrowd(
                requests_per_second=1, factor=11, at_seconds=100, rise_seconds=10, hold_seconds=20, decay_seconds=50
            ),
            [99, 105, 110, 130, 180],
            [1, 6, 11, 11, 1 + 10 / np.e],
        ),
        (
            Diurnal(requests_per_second=10, swing_fraction=0.5, peak_hour=15, noise_sigma=0),
            [15 * 3600, 3 * 3600, 9 * 3600, -9 * 3600],
            [15, 5, 10, 15],
        ),
        (
            IdleNights(requests_per_second=4, open_hour=8, close_hour=20, edge_hours=1),
            [7.9 * 3600, 8.5 * 3600, 12 * 3600, 19.75 * 3600, 20 * 3600, 5.5 * DAY],
            [0, 2, 4, 1, 0, 0],
        ),
    ],
)
def test_a_shape_has_its_rate(shape, at, expected) -> None:  # type: ignore[no-untyped-def]
    np.testing.assert_allclose(rates(shape, at), expected, atol=1e-9)


def test_local_time_moves_the_daily_shapes() -> None:
    noon_start = Clock(day_seconds=12 * 3600.0, weekday=5)  # second 0 is Saturday noon
    shape = Diurnal(requests_per_second=10, swing_fraction=1, peak_hour=15, weekend_factor=0.5, noise_sigma=0)
    np.testing.assert_allclose(rates(shape, [3 * 3600, 3 * 3600 + 2 * DAY], noon_start), [10, 20])
    assert rates(IdleNights(requests_per_second=4), [0.0], noon_start) == 0
    assert rates(IdleNights(requests_per_second=4, weekends=True), [0.0], noon_start) == 4


def test_length_shifts_keep_the_rate_constant() -> None:
    prompt = PromptShift(requests_per_second=5, factor=3, at_seconds=10, over_seconds=10).streams(
        np.array([0.0, 15, 30]), Clock(), 0
    )[0]
    assert prompt.rates.tolist() == [5, 5, 5]
    assert prompt.prompt_factors.tolist() == [1, 2, 3]
    assert prompt.output_factors.tolist() == [1, 1, 1]
    output = LongOutputs(requests_per_second=5, factor=4, at_seconds=10).streams(np.array([0.0, 10]), Clock(), 0)[0]
    assert output.output_factors.tolist() == [1, 4]


def test_tenants_join_and_leave_with_lengths_of_their_own() -> None:
    visit = TenantVisit(requests_per_second=7, join_seconds=10, leave_seconds=20, prompt_factor=4)
    base, other = Tenants(requests_per_second=1, tenants=(visit,)).streams(np.array([9.0, 10, 19, 20]), Clock(), 0)
    assert base.rates.tolist() == [1, 1, 1, 1]
    assert other.rates.tolist() == [0, 7, 7, 0]
    assert other.prompt_factors.tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize(
    "shape",
    [
        Diurnal(requests_per_second=10, noise_sigma=0.3, swing_fraction=0),
        Bursts(requests_per_second=10, bursts_per_hour=3),
    ],
)
def test_random_parts_belong_to_absolute_time(shape) -> None:  # type: ignore[no-untyped-def]
    t = np.arange(-2 * DAY, 2 * DAY, 97.0)
    whole = rates(shape, t, seed=4)
    np.testing.assert_array_equal(rates(shape, t[1000:1100], seed=4), whole[1000:1100])
    assert not np.array_equal(rates(shape, t, seed=5), whole)
    assert (whole > 0).all()


def test_noise_has_its_spread_its_mean_and_its_memory() -> None:
    shape = Diurnal(requests_per_second=1, swing_fraction=0, noise_sigma=0.3, noise_seconds=1800)
    level = rates(shape, np.arange(0, 400 * DAY, 600.0))
    assert level.mean() == pytest.approx(1.0, abs=0.02)
    assert np.log(level).std() == pytest.approx(0.3, rel=0.05)
    log = np.log(level) - np.log(level).mean()
    assert (log[1:] * log[:-1]).mean() / log.var() == pytest.approx(np.exp(-600 / 1800), abs=0.03)


def test_bursts_come_at_their_rate_with_a_heavy_tail() -> None:
    shape = Bursts(requests_per_second=1, bursts_per_hour=1, burst_seconds=60, tail_index=1.5, highest_factor=1000)
    t = np.arange(0, 100 * DAY, 60.0)
    added = rates(shape, t) - 1
    assert (added > 0).mean() == pytest.approx(1 / 60, rel=0.15)  # 60 of 3600 seconds
    heights = added[added > 0]
    assert heights.min() >= 1.0
    assert (heights > 4).mean() == pytest.approx(4**-1.5, abs=0.03)


def test_shapes_are_built_from_mappings_and_refuse_nonsense() -> None:
    with pytest.raises(ConfigError, match=r"^shape.close_hour: 7 must be > open_hour, 8$"):
        build(IdleNights, {"requests_per_second": 1, "close_hour": 7}, "shape")
    with pytest.raises(ConfigError, match=r"^high_requests_per_second: 1 must be > low_requests_per_second, 2$"):
        build(Sawtooth, {"low_requests_per_second": 2, "high_requests_per_second": 1})
    assert json_schema(Tenants)["properties"]["tenants"]["type"] == "array"
