"""The small ARIMA finds the parameters of series that were made with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from autoscaler.laws import dynamo_arima as arima
from autoscaler.laws.dynamo_arima import Order
from load_tests import draws


def _noise(n: int, seed: int) -> list[float]:
    return [float(x) for x in draws.normals(draws.key(seed, "arima"), n)]


def _made(noise: Sequence[float], ar: Sequence[float] = (), ma: Sequence[float] = (), mean: float = 0.0) -> list[float]:
    out: list[float] = []
    for i, e in enumerate(noise):
        value = e + sum(c * out[i - 1 - k] for k, c in enumerate(ar) if k < i)
        out.append(value + sum(c * noise[i - 1 - k] for k, c in enumerate(ma) if k < i))
    return [mean + v for v in out]


def test_an_autoregression_is_found_and_followed() -> None:
    series = _made(_noise(800, 1), ar=(0.8,), mean=50.0)
    found = arima.fit(series, Order(p=1))
    assert found.ar[0] == pytest.approx(0.8, abs=0.06)
    assert found.mean == pytest.approx(50, abs=1)
    assert found.variance == pytest.approx(1.0, rel=0.1)
    assert arima.forecast(series, found) == pytest.approx(found.mean + found.ar[0] * (series[-1] - found.mean))


def test_a_moving_average_is_found() -> None:
    found = arima.fit(_made(_noise(800, 2), ma=(0.6,)), Order(q=1))
    assert found.ma[0] == pytest.approx(0.6, abs=0.08)


def test_both_are_found() -> None:
    found = arima.fit(_made(_noise(1500, 3), ar=(0.7,), ma=(0.4,)), Order(p=1, q=1))
    assert found.ar[0] == pytest.approx(0.7, abs=0.08)
    assert found.ma[0] == pytest.approx(0.4, abs=0.1)


def test_the_order_follows_the_series() -> None:
    assert arima.choose(_made(_noise(400, 4), ar=(0.85,), mean=9.0)).p >= 1
    walk, total = [], 0.0
    for e in _noise(400, 5):
        total += e
        walk.append(total)
    assert arima.choose(walk).d == 1
    wobble = [100.0, 120.0, 110.0, 90.0, 105.0]
    assert arima.choose(wobble) == Order()


def test_a_line_goes_on() -> None:
    line = [3.0 + 2.0 * i for i in range(40)]
    assert arima.forecast(line, arima.fit(line, Order(d=1))) == pytest.approx(3 + 2 * 40)
    parabola = [float(i * i) for i in range(40)]
    assert arima.forecast(parabola, arima.fit(parabola, Order(d=2))) == pytest.approx(40 * 40 - 2)


def test_kpss_tells_a_level_from_a_walk() -> None:
    noise = _noise(200, 6)
    assert arima.kpss(noise) < 0.463 < arima.kpss([math.fsum(noise[: i + 1]) for i in range(200)])
    assert arima.kpss([4.0] * 10) == 0.0


def test_parameters_stay_where_the_process_is_stable() -> None:
    exploding = [1.5**i for i in range(30)]
    for order in (Order(p=2), Order(p=1, q=1), Order(q=2)):
        found = arima.fit(exploding, order)
        assert arima._stable(found.ar)
        assert arima._stable([-m for m in found.ma])
        assert math.isfinite(arima.forecast(exploding, found))
