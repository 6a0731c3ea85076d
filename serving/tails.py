"""How many requests break the SLO at a given rate: tails around the closed forms, by small fixed sums.

Between two of its tokens a request meets other requests' prefills.  Over its tokens they are few, so their number is counted,
and the requests that decode beside it fluctuate too.  Time to first token is a wait with an exponential tail before the
request's own prefill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from serving.closed_forms import Engine, Law, Mix, mean_step, output_weight
from serving.pooling import Routed
from serving.prefills import Prefills, length_at, longer_share, prefills


def _points(edges: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """(normal quantile, share) in the middle of each pair of neighbouring probabilities."""
    pairs = zip(edges[:-1], edges[1:], strict=True)
    return tuple((round(NormalDist().inv_cdf((low + high) / 2.0), 9), round(high - low, 9)) for low, high in pairs)


# Where violations are added up, finer at the end that makes them: short answers, many residents, long waits, long prompts.
_OUTPUTS = _points((0.0, 0.005, 0.02, 0.05, 0.12, 0.3, 0.7, 1.0))
_RESIDENTS = _points((0.0, 0.5, 0.85, 0.96, 0.99, 0.997, 1.0))
_LONGEST = (0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 0.8)  # shares of prompts that are longer
# Behind a balancing router: how far the time in which newcomers delay a request is that of late ones, not the usual.
_LATE = 0.3


@lru_cache(maxsize=1024)
def answers(mean: float, cv: float) -> tuple[tuple[float, float], ...]:
    """(output length, share) pairs of the log-normal with this mean and coefficient of variation; lengths of at least 1."""
    square = math.log1p(cv * cv)
    if square == 0.0:
        return ((mean, 1.0),)
    sigma = math.sqrt(square)
    return tuple([(max(1.0, mean * math.exp(sigma * z - square / 2.0)), share) for z, share in _OUTPUTS])


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """A replica at one rate, on average: seconds of steps, residents, and the queue of prefills.

    `residents`: decoding (`running`) or in prefill.  `busy`: chance to find a prefill; `wait`: seconds it takes then.
    """

    law: Law
    mix: Mix
    engine: Engine
    pool: Routed
    rate: float
    prefills: Prefills
    step: float
    each: float
    running: float
    residents: float
    crowd: float
    beside: float
    busy: float
    wait: float


def _decode_step(law: Law, each: float, running: float) -> float:
    """Seconds of a step without prefill."""
    return law.a + each * running + law.b * max(0.0, law.floor - running)


def _state(law: Law, mix: Mix, engine: Engine, pool: Routed, rate: float) -> _State | None:
    """The replica at `rate`; None beyond saturation.

    A step of a full token budget takes its prefills and what decodes beside them; waits are Kingman's.
    """
    step = mean_step(law, mix, rate)
    if step == math.inf:
        return None
    times, each = prefills(law, mix), output_weight(law, mix)
    running = rate * max(0.0, mix.output - 1.0) * step  # the first token comes with the prefill
    beside = _decode_step(law, each, running)
    full = law.b * engine.budget_tokens
    service = times.mean * (1.0 + beside / full)
    load = rate * service
    if load >= 1.0:
        return None
    residents = max(1e-12, running + rate * (times.mean + beside))
    square = times.variance / (times.mean * times.mean)
    return _State(
        law=law, mix=mix, engine=engine, pool=pool, rate=rate, prefills=times, step=step, each=each, running=running,
        residents=residents,
        crowd=min(0.999, rate * mix.output * each / max(1e-9, 1.0 - rate * times.mean)),
        beside=beside,
        busy=load * pool.disturbed(residents, residents) * pool.queued(load),
        wait=(pool.gap_square() + square) / 2.0 * service / (1.0 - load),
    )  # fmt: skip


def violations(
    law: Law,
    mix: Mix,
    engine: Engine,
    limits: tuple[float, float],
    rate: float,
    pool: Routed,
    enough: float = 1.0,
) -> float:
    """Share of requests beyond `limits` (TTFT, ITL; seconds) at `rate` per second and replica; 1 beyond saturation.

    Adding up stops early once the answer is above `enough`.
    """
    state = _state(law, mix, engine, pool, rate)
    if state is None:
        return 1.0
    slow = late_first_tokens(state, limits[0])
    if slow > enough:
        return slow
    return 1.0 - (1.0 - late_tokens(state, limits[1], enough)) * (1.0 - slow)


def late_shares(
    law: Law, mix: Mix, engine: Engine, limits: tuple[float, float], rate: float, pool: Routed
) -> tuple[float, float]:
    """Shares of requests beyond each of `limits` (TTFT, ITL; seconds), as two histograms would count them."""
    state = _state(law, mix, engine, pool, rate)
    if state is None:
        return 1.0, 1.0
    return late_first_tokens(state, limits[0]), late_tokens(state, limits[1])


def late_tokens(s: _State, itl_seconds: float, enough: float = 1.0) -> float:
    """Share of requests whose mean inter-token latency exceeds `itl_seconds`.

    A request of G gaps is late if G decode steps and the prefills that come into them do not fit into G * itl_seconds, or
    if the residents beside it overflow the engine.
    """
    swing = s.pool.spread(s.residents, s.crowd)
    skew = min(2.0, (2.0 / (1.0 - s.crowd) - 1.0) / math.sqrt(s.residents / (1.0 - s.crowd) * s.pool.replicas))
    most = min(s.engine.seats, s.engine.kv_tokens / s.mix.context)
    total = 0.0
    for z, weight in reversed(_RESIDENTS):
        residents = max(0.0, s.residents + swing * (z + skew * (z * z - 1.0) / 6.0))
        running = s.running * residents / s.residents
        step = _decode_step(s.law, s.each, running)
        if step >= itl_seconds or running > most:
            total += weight
        else:
            newcomers = s.rate * s.pool.disturbed(residents, s.residents)
            if newcomers > 0.0:
                total += weight * _late_at(s, itl_seconds, step, running, newcomers)
        if total > enough:
            break
    return min(1.0, total)


def _late_at(s: _State, itl_seconds: float, step: float, running: float, newcomers: float) -> float:
    """Share of late requests beside `running` others whose steps take `step` without prefill.

    Newcomers delay a request while it waits for its prefill, and from there to the start of its last step.  For one that
    will be late this takes its decode steps and all their prefills but the last, which is longer than usual.
    """
    room = itl_seconds - step
    spared = s.prefills.spared * max(0.0, 1.0 - running / s.law.floor) if s.law.floor > 0.0 else 0.0
    needed = s.prefills.needed(room, spared)
    late = s.pool.alone + (1.0 - s.pool.alone) * _LATE
    own, square = s.prefills.mean + step, s.mix.output_cv * s.mix.output_cv
    total = 0.0
    for tokens, part in answers(s.mix.output, s.mix.output_cv):
        gaps = max(1.0, tokens - 1.0)
        usual = own + (gaps - 1.0) * s.step
        longest = max(own, itl_seconds) + (gaps - 1.0) * step + max(0.0, gaps * needed - s.prefills.biased)
        window = s.busy * s.wait + late * longest + (1.0 - late) * usual
        expected = newcomers * window * s.pool.again(s.rate * window)
        irregularity = s.pool.irregularity(square, gaps / s.mix.output)
        total += part * s.prefills.above(gaps * needed, expected, irregularity)
    return total


def late_first_tokens(s: _State, ttft_seconds: float) -> float:
    """Share of requests whose first token comes after `ttft_seconds`: ingress, half a step, the queue, own prefill.

    Prompts that are too long for an idle replica are counted exactly; the others by trapezoids over shares of prompts.
    Prefills that came while one waited share its steps, and lengthen the wait.
    """
    budget = ttft_seconds - s.engine.ingress_seconds - s.step / 2.0
    mean, cv = s.mix.prompt, s.mix.prompt_cv
    hopeless = longer_share(mean, cv, _longest_prompt(s, budget))
    wait = s.wait * (1.0 + s.busy)
    if s.busy <= 0.0 or wait <= 0.0 or hopeless >= 1.0:
        return hopeless
    if cv == 0.0:
        return s.busy * math.exp(-(budget - _own_prefill(s, mean)) / wait)
    total, share, late = hopeless, hopeless, s.busy
    for longer in _LONGEST:
        more = hopeless + (1.0 - hopeless) * longer
        room = budget - _own_prefill(s, length_at(mean, cv, more))
        then = s.busy * math.exp(-max(0.0, room) / wait)
        total += (more - share) * (late + then) / 2.0
        share, late = more, then
    return min(1.0, total + (1.0 - share) * late / 2.0)


def _own_prefill(s: _State, tokens: float) -> float:
    """Seconds of a prompt's prefill: chunks of the token budget, each beside a decode step."""
    chunks = max(1.0, tokens / s.engine.budget_tokens)
    return chunks * s.beside + s.law.b * tokens + s.law.e * tokens * tokens / 2.0


def _longest_prompt(s: _State, seconds: float) -> float:
    """The longest prompt whose prefill takes no more than `seconds` on an idle replica; 0 if none does."""
    if seconds <= s.beside:
        return 0.0
    one = _positive_root(s.law.e / 2.0, s.law.b, seconds - s.beside)
    if one <= s.engine.budget_tokens:
        return one
    return _positive_root(s.law.e / 2.0, s.law.b + s.beside / s.engine.budget_tokens, seconds)


def _positive_root(square: float, line: float, value: float) -> float:
    """x > 0 with square x^2 + line x = value."""
    return 2.0 * value / (line + math.sqrt(line * line + 4.0 * square * value))
