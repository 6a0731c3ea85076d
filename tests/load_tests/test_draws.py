"""Streams are functions of (key, i), and their values follow the distributions they are named after."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import special, stats

from load_tests import draws

N = 20_000


def test_mixing_gives_the_published_sequence() -> None:
    # First outputs of Vigna's splitmix64.c from state 0.
    got = [draws.mix_int((i + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1) for i in range(3)]
    assert got == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(draws.child_key(np.uint64(0), i)) for i in range(3)] == got


def test_keys_depend_on_seed_words_and_their_order() -> None:
    keys = {
        draws.key(1),
        draws.key(2),
        draws.key(1, 1),
        draws.key(1, "1"),
        draws.key(1, "a", "b"),
        draws.key(1, "b", "a"),
        draws.key(1, "ab"),
        draws.key(1, 0, 0),
        draws.key(1, 0),
        draws.key(-1),
    }
    assert len(keys) == 10
    assert draws.key(7, "arrivals", 3) == draws.key(7, "arrivals", 3)


@pytest.mark.parametrize(
    "draw",
    [
        draws.uniforms,
        draws.normals,
        draws.exponentials,
        lambda key, n, start=0: draws.gammas(key, n, 0.3, start),
        lambda key, n, start=0: draws.gammas(key, n, 2.5, start),
        lambda key, n, start=0: draws.weibulls(key, n, 0.7, start),
        lambda key, n, start=0: draws.poissons(key, np.full(n, 40.0), start),
        lambda key, n, start=0: draws.poissons(key, np.full(n, 0.4), start),
        lambda key, n, start=0: draws.binomials(key, np.full(n, 90), 0.4, start),
    ],
)
def test_any_part_of_a_stream_is_the_same_drawn_alone(draw) -> None:  # type: ignore[no-untyped-def]
    key = draws.key(3, "part")
    whole = draw(key, 200)
    assert whole.tobytes() == draw(key, 200).tobytes()
    assert whole[50:60].tobytes() == draw(key, 10, start=50).tobytes()
    assert whole.tobytes() != draw(draws.key(4, "part"), 200).tobytes()


def test_normal_quantile_is_accurate_in_the_body_and_in_both_tails() -> None:
    p = np.concatenate([np.linspace(0.001, 0.999, 999), 10.0 ** -np.arange(3, 16), 1 - 10.0 ** -np.arange(3, 12)])
    got = np.array([draws.normal_quantile(float(x)) for x in p])
    np.testing.assert_allclose(got, special.ndtri(p), rtol=1e-13, atol=1e-14)


def weibull(shape: float) -> stats.rv_continuous:
    from math import gamma

    return stats.weibull_min(shape, scale=1 / gamma(1 + 1 / shape))


@pytest.mark.parametrize(
    ("values", "law"),
    [
        (draws.uniforms(draws.key(11), N), stats.uniform()),
        (draws.normals(draws.key(12), N), stats.norm()),
        (draws.exponentials(draws.key(13), N), stats.expon()),
        (draws.gammas(draws.key(14), N, 0.3), stats.gamma(0.3, scale=1 / 0.3)),
        (draws.gammas(draws.key(15), N, 1.0), stats.gamma(1.0)),
        (draws.gammas(draws.key(16), N, 7.0), stats.gamma(7.0, scale=1 / 7.0)),
        (draws.weibulls(draws.key(17), N, 0.5), weibull(0.5)),
        (draws.weibulls(draws.key(18), N, 1.5), weibull(1.5)),
    ],
    ids=["uniform", "normal", "exponential", "gamma .3", "gamma 1", "gamma 7", "weibull .5", "weibull 1.5"],
)
def test_values_follow_their_law(values: np.ndarray, law) -> None:  # type: ignore[no-untyped-def]
    assert stats.kstest(values, law.cdf).pvalue > 1e-3
    sd = law.std() / np.sqrt(N)
    assert abs(values.mean() - law.mean()) < 4 * sd


@pytest.mark.parametrize("mean", [0.05, 3.0, 9.9, 10.1, 60.0, 5e4])
def test_poisson_counts(mean: float) -> None:
    values = draws.poissons(draws.key(21, int(mean * 100)), np.full(N, mean))
    check_counts(values, stats.poisson(mean))


@pytest.mark.parametrize(
    ("count", "p"), [(1, 0.3), (20, 0.1), (40, 0.24), (40, 0.26), (200, 0.5), (200, 0.9), (100_000, 0.02)]
)
def test_binomial_counts(count: int, p: float) -> None:
    values = draws.binomials(draws.key(22, count), np.full(N, count), p)
    assert values.min() >= 0
    assert values.max() <= count
    check_counts(values, stats.binom(count, p))


def check_counts(values: np.ndarray, law) -> None:  # type: ignore[no-untyped-def]
    """Chi-square over about 20 bins of equal probability, and the first two moments."""
    edges = np.unique(law.ppf(np.linspace(0.05, 0.95, 19)))
    expected = np.diff(np.concatenate([[0.0], law.cdf(edges), [1.0]])) * N
    seen = np.bincount(np.searchsorted(edges, values), minlength=edges.size + 1)
    keep = expected > 5
    statistic = ((seen - expected)[keep] ** 2 / expected[keep]).sum()
    assert stats.chi2.sf(statistic, max(1, keep.sum() - 1)) > 1e-3
    assert abs(values.mean() - law.mean()) < 4 * law.std() / np.sqrt(N)
    assert values.var() == pytest.approx(law.var(), rel=0.1)


def test_degenerate_counts() -> None:
    assert draws.poissons(1, [0.0, 0.0]).tolist() == [0, 0]
    assert draws.binomials(1, [0, 5, 5], [0.5, 0.0, 1.0]).tolist() == [0, 0, 5]


def test_neighbouring_keys_and_indices_are_uncorrelated() -> None:
    block = np.array([draws.uniforms(draws.key(5, k), 2000) for k in range(20)])
    between_keys = np.corrcoef(block)[np.triu_indices(20, 1)]
    assert np.abs(between_keys).max() < 4.5 / np.sqrt(2000)
    flat = block.ravel() - 0.5
    assert abs((flat[1:] * flat[:-1]).mean() * 12) < 4.5 / np.sqrt(flat.size)


def test_a_vector_of_shapes_gives_each_value_its_own() -> None:
    shapes = np.array([0.2, 1.0, 5.0])
    single = [draws.gammas(9, 1, s, start=i)[0] for i, s in enumerate(shapes)]
    assert draws.gammas(9, 3, shapes).tolist() == single


def test_uncompiled_source_gives_the_same_numbers() -> None:
    code = (
        "from load_tests import draws as d\n"
        "v = [*d.uniforms(3, 3), *d.normals(3, 3), *d.gammas(3, 3, .2), *d.poissons(3, [2.0, 50.0]),"
        " *d.binomials(3, [9, 900], .4), *d.weibulls(3, 2, .5)]\n"
        "print([float(x).hex() for x in v])"
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
