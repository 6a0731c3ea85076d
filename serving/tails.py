"""How many requests break the SLO at a given rate: tails around the closed forms, by small fixed sums.

Between two of its tokens a request meets other requests' prefills.  Over y tokens they are few, so their number is counted
(Poisson for a replica alone, near regular for one of many behind a router that balances), and the sequences that decode
beside it fluctuate too.  Time to first token is a wait with an exponential tail before the request's own prefill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from serving.closed_forms import Engine, Law, Mix, output_weight, prompt_weight, request_work


def _points(edges: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """(normal quantile, share) in the middle of each pair of neighbouring probabilities."""
    pairs = zip(edges[:-1], edges[1:], strict=True)
    return tuple((round(NormalDist().inv_cdf((low + high) / 2.0), 9), round(high - low, 9)) for low, high in pairs)


# Where violations are added up, finer at the end that makes them: long prompts, short answers, many sequences, long waits.
_PROMPTS = _points((0.0, 0.5, 0.8, 0.92, 0.97, 0.985, 0.99, 0.993, 0.996, 0.998, 0.999, 1.0))
_OUTPUTS = _points((0.0, 0.005, 0.02, 0.05, 0.12, 0.3, 0.7, 1.0))
_RUNNING = _points((0.0, 0.5, 0.85, 0.96, 0.99, 0.997, 1.0))
_WAITS = ((0.586, 0.854), (3.414, 0.146))  # Gauss-Laguerre, in means of an exponential wait
# Share of the upper bound in the window in which prefills come; the rest is the mean window.  Set by the simulated plant.
_BOUND = 0.85
_MANY = 6.0  # prefills during a request above which their sum is taken as log-normal


@lru_cache(maxsize=1024)
def lengths(
    mean: float, cv: float, points: tuple[tuple[float, float], ...] = _PROMPTS
) -> tuple[tuple[float, float], ...]:
    """(length, share) pairs of the log-normal with this mean and coefficient of variation; lengths of at least 1."""
    square = math.log1p(cv * cv)
    if square == 0.0:
        return ((mean, 1.0),)
    sigma = math.sqrt(square)
    return tuple([(max(1.0, mean * math.exp(sigma * z - square / 2.0)), share) for z, share in points])


def violations(
    law: Law,
    mix: Mix,
    engine: Engine,
    limits: tuple[float, float],
    rate: float,
    replicas: int,
    enough: float = 1.0,
) -> float:
    """Share of requests beyond `limits` (TTFT, ITL; seconds) at `rate` per second and replica; 1 beyond saturation.

    Adding up stops early once the answer is above `enough`.
    """
    left = 1.0 - rate * request_work(law, mix)
    if left <= 0.0:
        return 1.0
    step = law.a / left
    slow = late_first_tokens(law, mix, engine, limits[0], rate, step, replicas)
    if slow > enough:
        return slow
    late = late_tokens(law, mix, engine, limits[1], rate, step, replicas, enough)
    return 1.0 - (1.0 - late) * (1.0 - slow)


def late_tokens(
    law: Law, mix: Mix, engine: Engine, itl_seconds: float, rate: float, step: float, replicas: int, enough: float = 1.0
) -> float:
    """Share of requests whose mean inter-token latency exceeds `itl_seconds`; `step`: mean time of a step.

    A request of G gaps is late if G decode steps, the prefills that waited when it began and those that come meanwhile
    do not fit into G * itl_seconds (those that come within G * itl_seconds are an upper bound), or if the sequences
    beside it overflow the engine.  Their number is that of processor sharing, negative binomial.
    """
    prefill, sums = mix.prompt * prompt_weight(law, mix), _prefills(law, mix)
    each = output_weight(law, mix)
    running = rate * mix.output * step
    crowd = min(0.999, rate * mix.output * each / max(1e-9, 1.0 - rate * prefill))
    swing = math.sqrt(running / (1.0 - crowd) / replicas)
    busy, wait = _queue(law, mix, engine, rate, step, replicas)
    waits = ((0.0, 1.0 - busy), *((m * wait, busy * share) for m, share in _WAITS))
    outputs = lengths(mix.output, mix.output_cv, _OUTPUTS)
    most = min(engine.seats, engine.kv_tokens / mix.context)
    window = _BOUND * itl_seconds + (1.0 - _BOUND) * step
    total = 0.0
    for z, weight in reversed(_RUNNING):
        if total > enough:
            break
        beside = max(0.0, running + z * swing)
        room = itl_seconds - law.a - each * beside
        if room <= 0.0 or beside > most:
            total += weight
            continue
        for tokens, part in outputs:
            gaps = max(1.0, tokens - 1.0)
            for waited, chance in waits:
                left = gaps * room - waited
                total += weight * part * chance * sums.above(left, rate * gaps * window, replicas)
    return min(1.0, total)


def late_first_tokens(
    law: Law, mix: Mix, engine: Engine, ttft_seconds: float, rate: float, step: float, replicas: int
) -> float:
    """Share of requests whose first token comes after `ttft_seconds`: ingress, half a step, the queue, own prefill."""
    beside = law.a + rate * mix.output * step * output_weight(law, mix)
    busy, wait = _queue(law, mix, engine, rate, step, replicas)
    if busy >= 1.0:
        return 1.0
    total = 0.0
    for prompt, part in lengths(mix.prompt, mix.prompt_cv):
        own = math.ceil(prompt / engine.budget_tokens) * beside + law.b * prompt + law.e * prompt * prompt / 2.0
        room = ttft_seconds - engine.ingress_seconds - step / 2.0 - own
        total += part if room <= 0.0 else part * busy * math.exp(-room / wait) if wait > 0.0 else 0.0
    return min(1.0, total)


def _queue(law: Law, mix: Mix, engine: Engine, rate: float, step: float, replicas: int) -> tuple[float, float]:
    """Chance that a prefill waits, and its mean wait in seconds if it does (Kingman); (1, inf) beyond saturation.

    A step of a full budget takes its prefill and what decodes beside it; behind a balancing router arrivals are regular.
    """
    beside = law.a + rate * mix.output * step * output_weight(law, mix)
    full = law.b * engine.budget_tokens
    work = mix.prompt * prompt_weight(law, mix)
    if work <= 0.0:
        return 0.0, 0.0
    service = work * (1.0 + beside / full) if full > 0.0 else work
    busy = rate * service
    if busy >= 1.0:
        return 1.0, math.inf
    square = _prefill_variance(law, mix) / (work * work)
    return busy, (1.0 / replicas + square) / 2.0 * service / (1.0 - busy)


@lru_cache(maxsize=256)
def _prefill_variance(law: Law, mix: Mix) -> float:
    """Variance of a prefill's seconds, from the log-normal of its prompt: b x dominates, e x^2/2 widens it."""
    mean = mix.prompt * prompt_weight(law, mix)
    square = sum(share * (law.b * x + law.e * x * x / 2.0) ** 2 for x, share in lengths(mix.prompt, mix.prompt_cv))
    return max(0.0, square - mean * mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prefills:
    """The time that a number of prefills takes together, as a log-normal per number: its `scales`, from one on."""

    mean: float
    variance: float
    scales: tuple[tuple[float, float], ...]

    def above(self, room: float, count: float, replicas: int) -> float:
        """P(the prefills take longer than `room` seconds) if `count` of them are expected.

        Poisson for a replica alone; behind a balancing router their number is near regular, and the more so the more
        replicas there are.
        """
        if room <= 0.0:
            return 1.0
        if self.mean <= 0.0:
            return 0.0
        reach = math.log(room)
        if count > _MANY:
            regular = _tail(reach, _scale(count * self.mean, count * self.variance))
            variance = count * (self.variance + self.mean * self.mean)
            poisson = _tail(reach, _scale(count * self.mean, variance))
            return regular + (poisson - regular) / replicas
        low = int(count)
        upper = _tail(reach, self.scales[low])
        regular = upper * (count - low) + (_tail(reach, self.scales[low - 1]) * (1.0 - count + low) if low else 0.0)
        chance, poisson = math.exp(-count), 0.0
        for number, scale in enumerate(self.scales, 1):
            chance *= count / number
            poisson += chance * _tail(reach, scale)
            if number > count and chance < 1e-6:
                break
        return regular + (poisson - regular) / replicas


@lru_cache(maxsize=256)
def _prefills(law: Law, mix: Mix) -> _Prefills:
    mean, variance = mix.prompt * prompt_weight(law, mix), _prefill_variance(law, mix)
    scales = tuple(_scale(n * mean, n * variance) for n in range(1, 25)) if mean > 0.0 else ()
    return _Prefills(mean=mean, variance=variance, scales=scales)


def _scale(mean: float, variance: float) -> tuple[float, float]:
    """Location and 1 / (sqrt(2) sigma) of the logarithm of a log-normal with this mean and variance."""
    square = math.log1p(max(1e-12, variance / (mean * mean)))
    return math.log(mean) - square / 2.0, 1.0 / math.sqrt(2.0 * square)


def _tail(reach: float, scale: tuple[float, float]) -> float:
    return 0.5 * math.erfc((reach - scale[0]) * scale[1])
