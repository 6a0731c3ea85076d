"""What a replica carries and how long its birth takes, learned from what is seen of it.

Three things are learned, each on its own and each tick: the step law (`capacity_steps`), one factor between the closed forms
and measured latencies (`capacity_violations`), and start-ups (`capacity_starts`).  Before any data all are the prior's, and
what is not known yet costs capacity: caution shrinks as load is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from autoscaler.copies import replace
from autoscaler.settings import ReplicaSettings, Slo, StartupSettings
from autoscaler.types import Capacity, Lengths, Observation
from autoscaler.units import significant
from serving import capacity_starts as births
from serving import capacity_steps as steps
from serving import capacity_violations as gains
from serving.capacity import (
    CV_STEP,
    GENERIC_LAW,
    GENERIC_MARGIN,
    LEAST_LOAD,
    LONELY,
    MARGIN,
    MIX_STEP,
    SIZES,
    PriorCapacity,
    cautions,
    mean_rate,
    mix_of,
    rounded_mix,
    tail_rates,
    weights_of,
)
from serving.capacity_starts import Starts
from serving.capacity_steps import Solved, StepBeliefs
from serving.capacity_violations import Gain
from serving.closed_forms import Engine, Law, Mix
from serving.pooling import Routed, Routing
from serving.profiles import replica_of
from serving.startup import startup_prior
from serving.twin import twin_rate

SOLVE_SECONDS, EARLY_SECONDS = 300, 60
LEAST_ROWS = 5.0  # windows before a law is told from them
NEW_MIX, MIX_SIGMA = 0.1, 0.1  # change of log lengths that is another mix, and what it adds to the factor's deviation
CACHED_STEP, MOST_CACHED = 0.05, 0.95  # shares of prompts in the prefix cache that are told apart
# Steps of rounded lengths, variations and cached share that are no other point: the closed forms take milliseconds.
NEAR = (1, 1, 2, 2, 1)
CACHED_HALF_LIFE_SECONDS = 600.0
CV_SHARE = 0.3  # of a change of variations, which are estimates, against one of log means
NEW_LAW = 0.01  # of the rate at the limit, before another law of the same shape is believed
# How far windows may pull coefficients apart from the prior's shape, and how many the prior's scale is worth.
ATTENTION = 4e-5  # of an unknown replica's seconds per prompt token, for each token before it
GENERIC_SHAPES = tuple(replace(GENERIC_LAW, e=ATTENTION * GENERIC_LAW.b, floor=floor) for floor in steps.FLOORS)
KNOWN, GENERIC = (0.15, 5.0), (1.0, 0.5)
# Of the KV cache: so much use in all before its size is told from it, and the steps of its logarithm that are told apart.
LEAST_KV, KV_GRAIN, KV_HALF_LIFE_SECONDS = 1.0, 0.1, 3600.0
# The twin: simulated replicas at most, the deviation of its factor, the largest one that is believed, and how unlike
# lengths may be before nothing is left of it, and before it is simulated again.
TWIN_REPLICAS, TWIN_SIGMA, MOST_TWIN, TWIN_REACH, TWIN_STEP = 8, 0.06, 0.4, 0.6, 0.05
GRAIN = 0.005  # of the logarithm of the factor: a pool's belief does not move with every request
# Caution: so many standard deviations of what is not known, so that without data it is the prior's margin.
DEVIATIONS = -math.log(MARGIN) / gains.SIGMA
GENERIC_SIGMA = math.sqrt((math.log(GENERIC_MARGIN) / DEVIATIONS) ** 2 - gains.SIGMA**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """What a refit found by simulation: logarithm of its rate over the closed forms', at rounded lengths `mix`.

    `law` and `replicas` were simulated: others, or lengths that are clearly others, are reasons to simulate again.
    """

    log: float
    mix: tuple[int, ...]
    law: Solved
    replicas: int


PRIOR = Solved(z=(1.0, 1.0, 1.0, 1.0), floor=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedBeliefs:
    """What was learned: sums of windows, the law they tell (multiples of the prior's), the factor, start-ups.

    `fit`: what windows told last; `law`: the same when it last was another one at the limit, which capacity goes by.

    `mix`: the lengths, rounded, that the factor was learned at; `point`: those the closed forms were last asked for.
    `cached`: share of prompt tokens found in the prefix cache, over about ten minutes.  `kv`: decayed sums of the share of
    the KV cache in use and of tokens that requests then held; `budget`: the largest steps seen, in tokens.  `twin`: None
    before a refit with the compiled extra.  `law_sigma`: deviation of the logarithm of the rate that the law implies, over
    the laws that explain the windows about as well.
    """

    steps: StepBeliefs = field(default_factory=StepBeliefs)
    law: Solved = PRIOR
    fit: Solved = PRIOR
    solved_at_seconds: int = 0
    gain: Gain = field(default_factory=Gain)
    starts: Starts = field(default_factory=Starts)
    mix: tuple[int, ...] = ()
    point: tuple[int, ...] = ()
    cached: float | None = None
    kv: tuple[float, float] = (0.0, 0.0)
    budget: float = 0.0
    twin: Twin | None = None
    law_sigma: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What the closed forms say of a law and a mix: rates and cautions per size, work of a request in Erlang-seconds."""

    rates: tuple[tuple[int, float], ...]
    cautions: tuple[float, ...]
    weights: tuple[float, float]
    work: float


class LearnedCapacity:
    """CapacityModel that begins as `PriorCapacity` and learns from every Observation.

    Work is counted in the prior's weights whatever is learned, so that yesterday's work and today's are in one unit: a
    replica that is found to be faster carries more of it, more than one Erlang if need be.  A load test's rate in the
    settings is believed as it is; only start-ups are learned then.
    """

    beliefs_type: type = LearnedBeliefs

    def __init__(self, settings: ReplicaSettings, startup: StartupSettings, slo: Slo) -> None:
        self.prior = PriorCapacity(settings, startup, slo)
        self.settings, self.slo = settings, slo
        known = replica_of(settings)
        self.generic = known is None
        self.startup_prior = startup_prior(startup, known)
        self.told, self.routing = self.prior.replica.engine, self.prior.replica.routing
        self.unit: Law = self.prior.replica.laws[0]
        linear, rooflike = self.prior.replica.laws[0], self.prior.replica.laws[-1]
        self.shapes = GENERIC_SHAPES if known is None else (rooflike, linear)

    def start(self) -> LearnedBeliefs:
        """Beliefs before any data: the prior."""
        return LearnedBeliefs()

    def law(self, beliefs: LearnedBeliefs) -> Law:
        """The step law in force."""
        if beliefs.law.floor == 0 and beliefs.law.z == (1.0, 1.0, 1.0, 1.0):
            return self.prior.replica.laws[-1]
        return steps.law_from(self.shapes, beliefs.law)

    def engine(self, beliefs: LearnedBeliefs) -> Engine:
        """The limits in force: those that were told, or of an unknown replica what its gauges imply, in steps."""
        s, engine = self.settings, self.told
        if not self.generic:
            return engine
        used, held = beliefs.kv
        if s.kv_capacity_tokens is None and used >= LEAST_KV:
            engine = replace(engine, kv_tokens=math.exp(KV_GRAIN * round(math.log(held / used) / KV_GRAIN)))
        if s.max_num_batched_tokens is None:
            engine = replace(engine, budget_tokens=max(engine.budget_tokens, beliefs.budget))
        return engine

    def capacity(self, beliefs: LearnedBeliefs, lengths: Lengths, replicas: int) -> Capacity:
        """The Capacity at the present lengths, or at the settings' where they were not measured."""
        startup = births.quantiles(beliefs.starts, self.prior.startup)
        if self.settings.feasible_requests_per_second is not None:
            return replace(self.prior.capacity(self.prior.start(), lengths, replicas), startup_seconds=startup)
        base = self._base(beliefs, self._rounded(beliefs, lengths))
        return Capacity(
            seconds_per_request=0.0,
            seconds_per_prompt_token=base.weights[0],
            seconds_per_output_token=base.weights[1],
            feasible_load=self._loads(beliefs, base),
            startup_seconds=startup,
            mean_output_tokens=significant(max(1.0, self._means(lengths)[1])),
            source="learned" if self._learned(beliefs) else self.prior.source,
        )

    def observe(
        self, beliefs: LearnedBeliefs, observation: Observation, lengths: Lengths, work: float | None
    ) -> LearnedBeliefs:
        """`beliefs` after one more Observation; `work`: Erlangs that arrived in its window, None if not known."""
        starts = births.observed(beliefs.starts, self.startup_prior, observation)
        if self.settings.feasible_requests_per_second is not None:
            return replace(beliefs, starts=starts)
        beliefs = replace(beliefs, cached=_cached(beliefs.cached, observation))
        rounded = self._rounded(beliefs, lengths)
        if self.generic:
            beliefs = _with_limits(beliefs, observation, mix_of(rounded[:4]))
        sick = steps.stuck(beliefs.steps, observation) > 0
        beliefs = self._with_window(self._with_mix(beliefs, rounded), observation, rounded)
        doubtful = sick or steps.doubtful(beliefs.steps, observation.at_seconds)
        gain = self._with_latency(beliefs, observation, rounded, work, doubtful)
        return replace(beliefs, starts=starts, gain=gain, point=rounded)

    def refit(self, beliefs: LearnedBeliefs, observations: Sequence[Observation]) -> LearnedBeliefs:
        """What a simulation says of the closed forms at the present law and lengths; all else is learned tick by tick."""
        if self.settings.feasible_requests_per_second is not None or not beliefs.point or not observations:
            return beliefs
        replicas = min(TWIN_REPLICAS, max(1, observations[-1].replicas.ready))
        base = self._base(beliefs, beliefs.point)
        at = min(range(len(SIZES)), key=lambda i: abs(math.log(SIZES[i] / replicas)))
        n, rate = base.rates[at]
        if _same(beliefs.twin, beliefs, n):
            return beliefs
        less, shorter, smaller = uncached(self.law(beliefs), self.engine(beliefs), beliefs.point)
        found = twin_rate(less, shorter, smaller, self.slo, n, self.routing, rate)
        if found is None or found <= 0.0 or rate <= 0.0:
            return beliefs
        log = min(MOST_TWIN, max(-MOST_TWIN, math.log(found / rate)))
        twin = Twin(log=significant(log), mix=beliefs.point, law=beliefs.law, replicas=n)
        return replace(beliefs, twin=twin)

    def adopt(self, beliefs: LearnedBeliefs, refitted: LearnedBeliefs) -> LearnedBeliefs:
        """What was learned since the refit began is kept; a measured factor still holds, so it moves against the twin's."""
        if refitted.twin is None or refitted.twin == beliefs.twin:
            return beliefs
        new = replace(beliefs, twin=refitted.twin)
        gain = gains.moved(beliefs.gain, _twin_log(new) - _twin_log(beliefs), _sigma(beliefs))
        return replace(new, gain=gains.known(gain, TWIN_SIGMA))

    def _means(self, lengths: Lengths) -> tuple[float, float]:
        s = self.settings
        prompt = s.mean_prompt_tokens if lengths.mean_prompt_tokens is None else lengths.mean_prompt_tokens
        output = s.mean_output_tokens if lengths.mean_output_tokens is None else lengths.mean_output_tokens
        return prompt, output

    def _rounded(self, beliefs: LearnedBeliefs, lengths: Lengths) -> tuple[int, ...]:
        """Rounded lengths, and the share of prompts that is cached; those in use while they are near."""
        mix = rounded_mix(*self._means(lengths), lengths.prompt_cv, lengths.output_cv)
        now = (*mix, round(min(beliefs.cached or 0.0, MOST_CACHED) / CACHED_STEP))
        used = beliefs.point
        if used and all(abs(a - b) <= most for a, b, most in zip(used, now, NEAR, strict=True)):
            return used
        return now

    def _base(self, beliefs: LearnedBeliefs, rounded: tuple[int, ...]) -> _Base:
        return _base(self.law(beliefs), self.unit, self.engine(beliefs), self.slo, self.routing, rounded)

    def _loads(self, beliefs: LearnedBeliefs, base: _Base) -> tuple[tuple[int, float], ...]:
        """Erlangs per replica, by size, less for what is not known yet."""
        unsure, margin = self._unsure(beliefs)
        factor = math.exp(GRAIN * round((beliefs.gain.log + _twin_log(beliefs) + margin) / GRAIN))
        return tuple(
            (n, significant(max(LEAST_LOAD, rate * base.work * factor * caution**unsure)))
            for (n, rate), caution in zip(base.rates, base.cautions, strict=True)
        )

    def _unsure(self, beliefs: LearnedBeliefs) -> tuple[float, float]:
        """(deviation of the factor in that of the prior, logarithm of the margin for it and for the law)."""
        variance = beliefs.gain.variance
        law = beliefs.law_sigma**2 + (GENERIC_SIGMA**2 / (1.0 + beliefs.steps.weight) if self.generic else 0.0)
        return round(math.sqrt(variance) / gains.SIGMA, 2), -DEVIATIONS * math.sqrt(variance + law)

    def deviation(self, beliefs: LearnedBeliefs) -> float:
        """Standard deviation of the logarithm of the best estimate, as the belief has it."""
        return -self._unsure(beliefs)[1] / DEVIATIONS

    def caution(self, beliefs: LearnedBeliefs, replicas: int) -> float:
        """What is used of the best estimate, as a fraction, in a pool of `replicas`."""
        unsure, margin = self._unsure(beliefs)
        lonely: float = (1.0 - LONELY / replicas) ** unsure
        return math.exp(margin) * lonely

    @staticmethod
    def _learned(beliefs: LearnedBeliefs) -> bool:
        return beliefs.steps.weight >= steps.TRUSTED_ROWS or beliefs.gain.variance < 0.5 * gains.SIGMA**2

    @staticmethod
    def _with_mix(beliefs: LearnedBeliefs, rounded: tuple[int, ...]) -> LearnedBeliefs:
        """`beliefs` at other lengths: what the closed forms miss there is less known."""
        if not beliefs.mix:
            return replace(beliefs, mix=rounded)
        apart = _apart(beliefs.mix, rounded)
        if apart < NEW_MIX:
            return beliefs
        return replace(beliefs, mix=rounded, gain=gains.unsettled(beliefs.gain, MIX_SIGMA * apart))

    def _with_window(self, beliefs: LearnedBeliefs, now: Observation, rounded: tuple[int, ...]) -> LearnedBeliefs:
        """`beliefs` with the engine steps of the last window, and now and then a new law."""
        mix, cached = mix_of(rounded[:4]), CACHED_STEP * rounded[4]
        beliefs = replace(beliefs, steps=steps.with_prompts(beliefs.steps, now, mix, cached))
        window = steps.window_of(beliefs.steps, now, mix, cached)
        columns, weight, error = None, 0.0, 0.0
        if window is not None:
            columns, weight = steps.columns_of(window, self.shapes), window.weight
            error = steps.predicted(columns, beliefs.fit.z, beliefs.fit.floor) - 1.0
        drifts, warned = beliefs.steps.drifts, beliefs.steps.warned_at_seconds
        beliefs = replace(beliefs, steps=steps.observed(beliefs.steps, now, columns, weight, error))
        early = beliefs.steps.weight < steps.TRUSTED_ROWS
        drifted = beliefs.steps.drifts > drifts
        due = now.at_seconds - beliefs.solved_at_seconds >= (EARLY_SECONDS if early else SOLVE_SECONDS)
        due = due or drifted or beliefs.steps.warned_at_seconds not in (None, warned)
        if columns is None or not due or beliefs.steps.weight < LEAST_ROWS:
            return beliefs
        if drifted:
            beliefs = replace(beliefs, gain=gains.drifted(beliefs.gain))
        beliefs = self._with_law(replace(beliefs, solved_at_seconds=now.at_seconds), mix)
        if drifted and beliefs.twin is not None:  # what it says of the closed forms is about as true at another speed
            beliefs = replace(beliefs, gain=gains.known(beliefs.gain, TWIN_SIGMA))
        return beliefs

    def _with_law(self, beliefs: LearnedBeliefs, mix: Mix) -> LearnedBeliefs:
        held = (*GENERIC, steps.GENERIC_NOISE) if self.generic else (*KNOWN, steps.NOISE)
        found = steps.candidates(beliefs.steps, self.shapes, *held)
        if not found:
            return beliefs
        shares = steps.chances(beliefs.steps, self.shapes, found)
        engine = self.engine(beliefs)
        rates = tuple([mean_rate(steps.law_from(self.shapes, one), mix, engine, self.slo) for one, _ in found])
        law, sigma = steps.chosen(found, shares, rates, not self.generic, beliefs.fit.floor)
        beliefs = replace(beliefs, fit=law, law_sigma=significant(min(1.0, sigma)))
        new = replace(beliefs, law=law)
        before, after = (max(1e-9, mean_rate(self.law(b), mix, engine, self.slo)) for b in (beliefs, new))
        change = math.log(after / before)
        if abs(change) < NEW_LAW and law.floor == beliefs.law.floor:
            return beliefs
        return replace(new, gain=gains.moved(beliefs.gain, max(-1.0, min(1.0, change)), _sigma(beliefs)))

    def _with_latency(
        self, beliefs: LearnedBeliefs, now: Observation, rounded: tuple[int, ...], work: float | None, doubtful: bool
    ) -> Gain:
        gain = gains.seen(beliefs.gain, now, work, self.slo.ttft_seconds)
        bounds = gains.bounds_below(now, self.slo)
        if bounds is None or not gains.steady(gain, now) or doubtful:
            return gain
        base = self._base(beliefs, rounded)
        at = min(range(len(SIZES)), key=lambda i: abs(math.log(SIZES[i] / now.replicas.ready)))
        n, rate = base.rates[at]
        if rate <= 0.0:
            return gain
        pool = Routed(replicas=n, routing=self.routing)
        allowed = 1.0 - self.slo.attainment_fraction
        expected = gains.curve(*uncached(self.law(beliefs), self.engine(beliefs), rounded), bounds, allowed, rate, pool)
        return gains.corrected(gain, now, bounds, expected, rate * base.work * math.exp(_twin_log(beliefs)))


def _apart(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """How unlike two rounded mixes are, in logarithms of lengths."""
    means = sum(abs(a - b) for a, b in zip(one[:2], other[:2], strict=True)) * math.log(MIX_STEP)
    variations = sum(abs(a - b) for a, b in zip(one[2:4], other[2:4], strict=True)) * CV_STEP
    return means + CV_SHARE * variations + CACHED_STEP * abs(one[4] - other[4])


def _sigma(beliefs: LearnedBeliefs) -> float:
    """Deviation of the factor before anything was measured."""
    return gains.SIGMA if beliefs.twin is None else TWIN_SIGMA


def _same(twin: Twin | None, beliefs: LearnedBeliefs, replicas: int) -> bool:
    """Whether a simulation would find what `twin` says."""
    if twin is None or twin.law != beliefs.law or twin.replicas != replicas:
        return False
    return _apart(twin.mix, beliefs.point) < TWIN_STEP


def _twin_log(beliefs: LearnedBeliefs) -> float:
    """What the twin adds to the logarithm of the closed forms' rate: less, the more unlike the lengths have become."""
    twin = beliefs.twin
    if twin is None or not beliefs.point:
        return 0.0
    return twin.log * max(0.0, 1.0 - _apart(twin.mix, beliefs.point) / TWIN_REACH)


def _cached(before: float | None, now: Observation) -> float | None:
    demand = now.demand
    if demand is None or demand.cached_prompt_tokens is None or not demand.prompt_tokens:
        return before
    share = min(1.0, demand.cached_prompt_tokens / demand.prompt_tokens)
    faded: float = 0.5 ** (now.window_seconds / CACHED_HALF_LIFE_SECONDS)
    return share if before is None else before + (1.0 - faded) * (share - before)


def _with_limits(beliefs: LearnedBeliefs, now: Observation, mix: Mix) -> LearnedBeliefs:
    """`beliefs` with what gauges imply of an engine's limits: tokens held over the share in use, and its largest steps."""
    load, ready = now.load, now.replicas.ready
    if load is None or ready < 1 or load.replicas_reporting not in (None, ready):
        return beliefs
    sizes, kv, budget = load.step_tokens, beliefs.kv, beliefs.budget
    if load.kv_cache_fraction and load.running_requests and load.running_requests >= ready:
        faded: float = 0.5 ** (now.window_seconds / KV_HALF_LIFE_SECONDS)
        news = (ready * load.kv_cache_fraction, load.running_requests * mix.context)
        kv = (faded * kv[0] + news[0], faded * kv[1] + news[1])
    if sizes is not None:
        seen = [upper for upper, count in zip(sizes.upper_bounds, sizes.counts, strict=False) if count > 0.0]
        budget = max(budget, seen[-1] if seen else 0.0)
    return replace(beliefs, kv=kv, budget=budget)


@lru_cache(maxsize=1024)
def uncached(law: Law, engine: Engine, rounded: tuple[int, ...]) -> tuple[Law, Mix, Engine]:
    """The same replica with prompts as short as their uncached part: what is cached is only context and room."""
    mix, share = mix_of(rounded[:4]), CACHED_STEP * rounded[4]
    if share == 0.0:
        return law, mix, engine
    shorter = replace(mix, prompt=max(1.0, mix.prompt * (1.0 - share)))
    away = mix.prompt - shorter.prompt
    kv = engine.kv_tokens * shorter.context / mix.context
    return replace(law, b=law.b + law.e * away, c=law.c + law.d * away), shorter, replace(engine, kv_tokens=kv)


@lru_cache(maxsize=4096)
def _base(law: Law, unit: Law, engine: Engine, slo: Slo, routing: Routing, rounded: tuple[int, ...]) -> _Base:
    mix = mix_of(rounded[:4])
    less, shorter, smaller = uncached(law, engine, rounded)
    weights = weights_of(unit, mix)
    return _Base(
        rates=tail_rates(less, shorter, smaller, slo, routing),
        cautions=cautions(mix),
        weights=weights,
        work=shorter.prompt * weights[0] + mix.output * weights[1],
    )
