"""Counter-based randomness: value i of a stream depends on (key, i) only, so any part can be drawn alone, in any order.

The generator is the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) over ``key + (i + 1) * golden``.  Every
other distribution is made from those bits here, so that no library's generator stream is part of a result: the same key
gives the same bytes.  A value that needs several uniforms (rejection) has its own stream, keyed by (key, i).

Kernels are compiled by numba; with ``NUMBA_DISABLE_JIT=1`` the same source runs uncompiled and gives the same numbers.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numba import config, njit
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_UNIT = 2.0**-52


def mix_int(z: int) -> int:
    """The splitmix64 finaliser on a Python integer below 2**64."""
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def key(seed: int, *words: int | str) -> int:
    """64-bit key of the stream named by `seed` and `words`; other words, or the same in another order, name another."""
    state = mix_int((seed + _GOLDEN) & _MASK)
    for word in words:
        if isinstance(word, str):
            bits = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        else:
            bits = mix_int((int(word) * _GOLDEN + 1) & _MASK)
        state = mix_int(((state ^ bits) + _GOLDEN) & _MASK)
    return state


if getattr(config, "DISABLE_JIT", 0):  # numpy warns of wrapping 64-bit scalars, Python integers do not

    def child_key(key: Any, i: Any) -> Any:
        """Key of the stream that belongs to value `i` of stream `key`."""
        return np.uint64(mix_int((int(key) + (int(i) + 1) * _GOLDEN) & _MASK))

    def uniform_at(key: Any, i: Any) -> float:
        """Value `i` of the uniform stream `key`, in (0, 1)."""
        return ((int(child_key(key, i)) >> 12) + 0.5) * _UNIT

else:
    _G, _M1, _M2 = np.uint64(_GOLDEN), np.uint64(_MIX_1), np.uint64(_MIX_2)
    _S30, _S27, _S31, _S12, _ONE = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(12), np.uint64(1)

    @njit(cache=True, inline="always")
    def child_key(key: Any, i: Any) -> Any:
        """Key of the stream that belongs to value `i` of stream `key`."""
        z = np.uint64(key) + (np.uint64(i) + _ONE) * _G
        z = (z ^ (z >> _S30)) * _M1
        z = (z ^ (z >> _S27)) * _M2
        return z ^ (z >> _S31)

    @njit(cache=True)
    def uniform_at(key: Any, i: Any) -> float:
        """Value `i` of the uniform stream `key`, in (0, 1)."""
        return (np.float64(child_key(key, i) >> _S12) + 0.5) * _UNIT


# Coefficients of AS241 PPND16 (Wichura 1988): relative accuracy about 1e-16; highest power first.
_A = (
    2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
    1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0,
)  # fmt: skip
_B = (
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
    5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0,
)  # fmt: skip
_C = (
    7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
    3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0,
)  # fmt: skip
_D = (
    1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
    6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0,
)  # fmt: skip
_E = (
    2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
    2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0,
)  # fmt: skip
_F = (
    2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
    1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0,
)  # fmt: skip


@njit(cache=True, inline="always")
def _ratio(top: Any, bottom: Any, x: float) -> float:
    p, q = top[0], bottom[0]
    for i in range(1, 8):
        p = p * x + top[i]
        q = q * x + bottom[i]
    return p / q  # type: ignore[no-any-return]


@njit(cache=True)
def normal_quantile(p: float) -> float:
    """Inverse of the standard normal distribution function at `p` in (0, 1): AS241 PPND16."""
    q = p - 0.5
    if abs(q) <= 0.425:
        return q * _ratio(_A, _B, 0.180625 - q * q)
    r = math.sqrt(-math.log(p if q < 0 else 1.0 - p))
    value = _ratio(_C, _D, r - 1.6) if r <= 5.0 else _ratio(_E, _F, r - 5.0)
    return -value if q < 0 else value


@njit(cache=True)
def normal_at(key: Any, i: Any) -> float:
    """Value `i` of the standard normal stream `key`."""
    return normal_quantile(uniform_at(key, i))


@njit(cache=True)
def gamma_at(key: Any, i: Any, shape: float) -> float:
    """Value `i` of the gamma stream `key`, mean 1, variance 1/shape: Marsaglia and Tsang 2000, boosted below 1."""
    own = child_key(key, i)
    base = shape if shape >= 1.0 else shape + 1.0
    d = base - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    attempt = 1
    while True:
        x = normal_at(own, attempt)
        v = 1.0 + c * x
        v = v * v * v
        if v > 0.0 and math.log(uniform_at(own, attempt + 1)) < 0.5 * x * x + d - d * v + d * math.log(v):
            break
        attempt += 2
    value = d * v / shape
    if shape < 1.0:
        value *= math.exp(math.log(uniform_at(own, 0)) / shape)
    return value


@njit(cache=True)
def poisson_at(key: Any, i: Any, mean: float) -> int:
    """Value `i` of the Poisson stream `key`: inversion below mean 10, else PTRS (Hoermann 1993)."""
    if mean < 10.0:
        u, k, p = uniform_at(key, i), 0, math.exp(-mean)
        total = p
        while u > total and k < 200:
            k += 1
            p *= mean / k
            total += p
        return k
    own, attempt = child_key(key, i), 0
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    log_scale = math.log(1.1239 + 1.1328 / (b - 3.4))
    while True:
        u, v = uniform_at(own, attempt) - 0.5, uniform_at(own, attempt + 1)
        attempt += 2
        us = 0.5 - abs(u)
        x = math.floor((2.0 * a / us + b) * u + mean + 0.43)
        if us >= 0.07 and v <= 0.9277 - 3.6224 / (b - 2.0):
            return int(x)
        if x < 0 or (us < 0.013 and v > us):
            continue
        if math.log(v) + log_scale - math.log(a / (us * us) + b) <= x * math.log(mean) - mean - math.lgamma(x + 1.0):
            return int(x)


@njit(cache=True)
def binomial_at(key: Any, i: Any, count: int, p: float) -> int:
    """Value `i` of the binomial stream `key`: inversion for few expected successes, else BTRS (Hoermann 1993)."""
    if count <= 0 or p <= 0.0:
        return 0
    if p >= 1.0:
        return count
    if p > 0.5:
        return count - _binomial_half(key, i, count, 1.0 - p)
    return _binomial_half(key, i, count, p)


@njit(cache=True)
def _binomial_half(key: Any, i: Any, count: int, p: float) -> int:
    odds = p / (1.0 - p)
    if count * p < 10.0:
        u, k, term = uniform_at(key, i), 0, math.exp(count * math.log1p(-p))
        total = term
        while u > total and k < count:
            term *= odds * (count - k) / (k + 1)
            k += 1
            total += term
        return k
    own, attempt = child_key(key, i), 0
    sd = math.sqrt(count * p * (1.0 - p))
    b = 1.15 + 2.53 * sd
    a = -0.0873 + 0.0248 * b + 0.01 * p
    alpha = (2.83 + 5.1 / b) * sd
    mode = math.floor((count + 1) * p)
    top = math.lgamma(mode + 1.0) + math.lgamma(count - mode + 1.0)
    while True:
        u, v = uniform_at(own, attempt) - 0.5, uniform_at(own, attempt + 1)
        attempt += 2
        us = 0.5 - abs(u)
        x = math.floor((2.0 * a / us + b) * u + count * p + 0.5)
        if x < 0 or x > count:
            continue
        if us >= 0.07 and v <= 0.92 - 4.2 / b:
            return int(x)
        bound = top - math.lgamma(x + 1.0) - math.lgamma(count - x + 1.0) + (x - mode) * math.log(odds)
        if math.log(v * alpha / (a / (us * us) + b)) <= bound:
            return int(x)


@njit(cache=True)
def _fill_uniforms(key: Any, start: int, out: Floats) -> None:
    for i in range(out.size):
        out[i] = uniform_at(key, start + i)


@njit(cache=True)
def _fill_normals(key: Any, start: int, out: Floats) -> None:
    for i in range(out.size):
        out[i] = normal_quantile(uniform_at(key, start + i))


@njit(cache=True)
def _fill_exponentials(key: Any, start: int, out: Floats) -> None:
    for i in range(out.size):
        out[i] = -math.log(uniform_at(key, start + i))


@njit(cache=True)
def _fill_gammas(key: Any, start: int, shapes: Floats, out: Floats) -> None:
    for i in range(out.size):
        out[i] = gamma_at(key, start + i, shapes[i] if shapes.size > 1 else shapes[0])


@njit(cache=True)
def _fill_poissons(key: Any, start: int, means: Floats, out: Ints) -> None:
    for i in range(out.size):
        out[i] = poisson_at(key, start + i, means[i])


@njit(cache=True)
def _fill_binomials(key: Any, start: int, counts: Ints, p: Floats, out: Ints) -> None:
    for i in range(out.size):
        out[i] = binomial_at(key, start + i, counts[i], p[i] if p.size > 1 else p[0])


def uniforms(key: int, n: int, start: int = 0) -> Floats:
    """Values start .. start + n - 1 of the uniform stream, each in (0, 1)."""
    out = np.empty(n)
    _fill_uniforms(np.uint64(key), start, out)
    return out


def normals(key: int, n: int, start: int = 0) -> Floats:
    """Values of the standard normal stream, by the inverse distribution function: one uniform each."""
    out = np.empty(n)
    _fill_normals(np.uint64(key), start, out)
    return out


def exponentials(key: int, n: int, start: int = 0) -> Floats:
    """Values of the exponential stream of mean 1."""
    out = np.empty(n)
    _fill_exponentials(np.uint64(key), start, out)
    return out


def gammas(key: int, n: int, shape: ArrayLike, start: int = 0) -> Floats:
    """Values of the gamma stream of mean 1 and variance 1/shape; `shape` > 0 is one number or one per value."""
    out = np.empty(n)
    _fill_gammas(np.uint64(key), start, np.ravel(np.asarray(shape, dtype=np.float64)), out)
    return out


def weibulls(key: int, n: int, shape: float, start: int = 0) -> Floats:
    """Values of the Weibull stream of mean 1; `shape` > 0 below 1 is burstier than Poisson."""
    waits: Floats = exponentials(key, n, start) ** (1.0 / shape) / math.gamma(1.0 + 1.0 / shape)
    return waits


def poissons(key: int, means: ArrayLike, start: int = 0) -> Ints:
    """One Poisson count for each mean >= 0."""
    mean = np.ravel(np.asarray(means, dtype=np.float64))
    out = np.empty(mean.size, dtype=np.int64)
    _fill_poissons(np.uint64(key), start, mean, out)
    return out


def binomials(key: int, counts: ArrayLike, p: ArrayLike, start: int = 0) -> Ints:
    """One number of successes for each count >= 0; `p` in [0, 1] is one probability or one per count."""
    count = np.ravel(np.asarray(counts, dtype=np.int64))
    out = np.empty(count.size, dtype=np.int64)
    _fill_binomials(np.uint64(key), start, count, np.ravel(np.asarray(p, dtype=np.float64)), out)
    return out
