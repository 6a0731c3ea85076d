"""Arrivals keep counts, burstiness and slopes; lengths keep means, spread and ranks; scaling never multiplies or stretches."""

from __future__ import annotations

import os
import subprocess
import sys
from math import gamma

import numpy as np
import pytest
from scipy import stats

from load_tests import draws
from load_tests.arrivals import (
    Rows,
    lognormal_pairs,
    merged,
    resampled_pairs,
    rotated,
    slopes,
    spread_counts,
    spread_rates,
    thinned,
    thinned_cv,
    weibull_shape,
)


def flat(n: int, value: float) -> np.ndarray:
    return np.full(n, value)


def rows(at: list[float], tenant: int = 0) -> Rows:
    n = len(at)
    return Rows(
        arrival_seconds=np.array(at, float),
        prompt_tokens=np.arange(1, n + 1),
        output_tokens=np.arange(1, n + 1),
        tenant=np.full(n, tenant, np.int32),
    )


def test_exact_counts_are_kept_in_every_interval_and_arrivals_ascend() -> None:
    counts = draws.poissons(draws.key(1), np.linspace(0, 40, 200))
    for cv in (0.3, 1.0, 13.0):
        at = spread_counts(5, counts, flat(200, cv), np.zeros(200))
        assert (np.diff(at) >= 0).all()
        np.testing.assert_array_equal(np.bincount(at.astype(int), minlength=200), counts)


def test_poisson_arrivals_of_a_fixed_count_are_uniform() -> None:
    at = spread_counts(draws.key(2), np.full(4000, 5), flat(4000, 1.0), np.zeros(4000), law="poisson") % 1.0
    assert stats.kstest(at, "uniform").pvalue > 1e-3
    smallest = at.reshape(4000, 5).min(axis=1)
    assert stats.kstest(smallest, stats.beta(1, 5).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("law", "cv"), [("gamma", 0.5), ("gamma", 2.0), ("weibull", 2.24), ("poisson", 1.0)])
def test_a_renewal_process_has_its_burstiness_and_its_law(law: str, cv: float) -> None:
    at = spread_rates(draws.key(3, law), flat(100, 300.0), flat(100, cv), np.zeros(100), law=law) * 300.0
    gaps = np.diff(at)
    assert gaps.mean() == pytest.approx(1.0, abs=4 * cv / np.sqrt(gaps.size))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.08)
    shape = float(weibull_shape(cv)) if law == "weibull" else 1 / cv**2
    law_of = (
        stats.weibull_min(shape, scale=1 / gamma(1 + 1 / shape))
        if law == "weibull"
        else stats.gamma(shape, scale=1 / shape)
    )
    assert stats.kstest(gaps, law_of.cdf).pvalue > 1e-3


def test_counts_of_a_bursty_process_are_right_on_average_from_its_first_second() -> None:
    first = [np.sum(spread_rates(draws.key(9, k), flat(4, 20.0), flat(4, 3.0), np.zeros(4)) < 1.0) for k in range(1500)]
    assert np.mean(first) == pytest.approx(20.0, abs=4 * np.std(first) / np.sqrt(1500))


def test_burstiness_is_kept_where_the_rate_varies() -> None:
    means = np.repeat([20.0, 200.0], 200)
    at = spread_rates(draws.key(4), means, flat(400, 3.0), np.zeros(400))
    operational = np.interp(at, np.arange(401), np.concatenate([[0.0], np.cumsum(means)]))
    gaps = np.diff(operational)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.08)


def test_weibull_shapes_of_known_coefficients_of_variation() -> None:
    np.testing.assert_allclose(weibull_shape([2.23607, 1.46242, 1.0, 0.67897]), [0.5, 0.7, 1.0, 1.5], rtol=1e-4)


def test_thinning_a_renewal_process_nears_poisson_as_the_formula_says() -> None:
    gaps = draws.gammas(draws.key(6), 400_000, 1 / 9.0)
    at = np.cumsum(gaps)
    kept = at[draws.uniforms(draws.key(7), at.size) < 0.1]
    seen = np.diff(kept).std() / np.diff(kept).mean()
    assert seen == pytest.approx(float(thinned_cv(np.array([3.0]), 0.1)[0]), rel=0.03)


def test_slopes_follow_the_curve_keep_it_positive_and_stop_at_extremes() -> None:
    np.testing.assert_allclose(slopes(np.array([10.0, 20.0, 30.0, 40.0]))[1:3], [0.5, 1 / 3])
    np.testing.assert_array_equal(slopes(np.array([1.0, 5.0, 1.0])), 0.0)  # a peak stays flat
    np.testing.assert_array_equal(slopes(np.array([0.0, 0.0, 9.0, 9.0])), 0.0)  # a step stays a step
    g = slopes(np.array([0.0, 1.0, 100.0, np.nan, 50.0]))
    assert np.abs(g).max() <= 2.0
    assert g[2] == 0.0  # beside the unknown


def test_a_linear_rate_inside_an_interval_keeps_its_count_and_leans() -> None:
    n = 40_000
    at = spread_counts(draws.key(8), np.array([n]), flat(1, 1.0), flat(1, 1.2))
    # Density 1 + 1.2 (x - 1/2): distribution function x + 0.6 (x^2 - x).
    assert stats.kstest(at, lambda x: x + 0.6 * (x * x - x)).pvalue > 1e-3


def test_a_window_cut_elsewhere_gives_the_same_arrivals() -> None:
    counts = draws.poissons(draws.key(1), flat(50, 9.0))
    whole = spread_counts(5, counts, flat(50, 1.3), np.zeros(50))
    part = spread_counts(5, counts[20:30], flat(10, 1.3), np.zeros(10), first=20)
    inside = whole[(whole >= 20) & (whole < 30)]
    np.testing.assert_allclose(part, inside - 20, atol=1e-12)


def test_lognormal_lengths_have_their_means_spread_and_correlation() -> None:
    n = 100_000
    p, o = lognormal_pairs(3, flat(n, 1000.0), flat(n, 200.0), prompt_sigma=0.6, output_sigma=0.4, correlation=0.5)
    assert p.mean() == pytest.approx(1000, rel=0.01)
    assert o.mean() == pytest.approx(200, rel=0.01)
    assert np.log(p).std() == pytest.approx(0.6, rel=0.01)
    assert np.corrcoef(np.log(p), np.log(o))[0, 1] == pytest.approx(0.5, abs=0.01)
    assert min(p.min(), o.min()) >= 1
    still, _ = lognormal_pairs(3, flat(5, 7.4), flat(5, 1.0), prompt_sigma=0.0, output_sigma=0.0)
    assert still.tolist() == [7] * 5


def test_resampled_pairs_stay_pairs_and_scale_to_the_wanted_means() -> None:
    prompts, outputs = np.array([10, 100, 1000]), np.array([1000, 100, 10])
    p, o = resampled_pairs(3, prompts, outputs, 30_000)
    assert set(zip(p.tolist(), o.tolist(), strict=True)) == {(10, 1000), (100, 100), (1000, 10)}
    assert np.bincount(np.searchsorted(prompts, p)) == pytest.approx([10_000] * 3, rel=0.03)
    p2, o2 = resampled_pairs(3, prompts, outputs, 30_000, prompt_means=flat(30_000, 3700.0))
    assert p2.mean() == pytest.approx(3700, rel=0.02)
    np.testing.assert_array_equal(p2, p * 10)
    np.testing.assert_array_equal(o2, o)


def test_scaling_keeps_requests_whole() -> None:
    base = rows([0.0, 1.0, 2.5, 9.0])
    turned = rotated(base, 2.0, 10.0)
    assert turned.arrival_seconds.tolist() == [1.0, 2.0, 3.0, 4.5]
    assert turned.prompt_tokens.tolist() == [4, 1, 2, 3]
    both = merged([base, rows([1.0, 3.0], tenant=1)])
    assert both.arrival_seconds.tolist() == [0.0, 1.0, 1.0, 2.5, 3.0, 9.0]
    assert both.tenant.tolist() == [0, 0, 1, 0, 1, 0]
    assert both.cached_prompt_tokens is None
    many = rows(list(np.arange(50_000) / 10.0))
    part = thinned(4, many, 0.2)
    assert part.arrival_seconds.size == pytest.approx(10_000, rel=0.05)
    assert np.isin(part.arrival_seconds, many.arrival_seconds).all()
    assert thinned(4, many, 1.0) is many


def test_uncompiled_source_gives_the_same_arrivals() -> None:
    code = (
        "import numpy as np; from load_tests.arrivals import spread_counts as c, spread_rates as r\n"
        "a = c(5, np.array([3, 0, 9]), np.full(3, 2.0), np.array([0, 0, .7]))\n"
        "b = r(5, np.array([3.0, 1, 9]), np.full(3, .5), np.array([0, 0, .7]), law='weibull')\n"
        "print([float(x).hex() for x in (*a, *b)])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={**os.environ, "NUMBA_DISABLE_JIT": off},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for off in ("0", "1")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].count("0x") >= 12
