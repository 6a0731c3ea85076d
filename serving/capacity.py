"""What a replica is believed to carry before it was measured: a profile's step law, closed forms and caution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from autoscaler.copies import replace
from autoscaler.settings import ReplicaSettings, Slo, StartupSettings
from autoscaler.types import Capacity, Lengths, Observation
from autoscaler.units import significant
from serving.closed_forms import (
    Engine,
    Law,
    Mix,
    itl_rate,
    kv_rate,
    output_weight,
    prompt_weight,
    request_work,
    seat_rate,
)
from serving.pooling import Routed, Routing
from serving.profiles import Profile, replica_of
from serving.search import allowed_share, narrowed
from serving.startup import startup_quantiles
from serving.tails import violations

SIZES = (1, 2, 4, 16, 64)
# Of the rate at which the closed forms meet the SLO; less where the replica is unknown.
MARGIN, GENERIC_MARGIN = 0.92, 0.64
LONELY = 0.06  # less still for a replica that nobody helps: measured against the simulated plant over all profiles
HEAVY = 0.25  # less for each unit of prompts' variation above one: their tail is heavier than the sums have it
PRECISION = 0.005  # of a feasible rate
STEPS = 12
# Lengths of chat traffic, believed until lengths were seen; and the mixes that are worth telling apart.
PROMPT_CV, OUTPUT_CV = 1.0, 0.8
MIX_STEP, CV_STEP, MOST_CV = 1.02, 0.05, 3.0
LEAST_LOAD = 0.05  # Erlangs per replica, where the SLO cannot be met by any number of replicas

GENERIC_LAW = Law(a=0.010, b=50e-6, c=100e-6, d=60e-9)
GENERIC_ENGINE = Engine(kv_tokens=150_000.0, seats=256.0, budget_tokens=2048.0, ingress_seconds=0.0156)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityBeliefs:
    """What was learned of a replica: nothing yet.  The prior speaks until learning is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replica:
    """A replica in plain numbers: its laws (the first one is for weights, the last for tails), limits, margin, router."""

    laws: tuple[Law, ...]
    engine: Engine
    margin: float
    routing: Routing


class PriorCapacity:
    """CapacityModel out of a shipped profile (or a cautious generic replica), the SLO and the start-up profile.

    The weights are those of the profile's linear law.  The feasible load is what meets the SLO at the share of requests that
    it names: by the roofline law, at the means and variations of lengths, behind the router, times a margin.  It holds
    settings only and learns nothing: `refit` returns the beliefs as they are.  A load test's rate in the settings replaces
    the closed forms.
    """

    beliefs_type: type = CapacityBeliefs

    def __init__(self, settings: ReplicaSettings, startup: StartupSettings, slo: Slo) -> None:
        known = replica_of(settings)
        self.slo = slo
        self.settings = settings
        self.replica = _replica(settings, known)
        self.startup = startup_quantiles(startup, known)
        self.source = "prior" if known else "generic prior"

    def start(self) -> CapacityBeliefs:
        """Beliefs before any data: the prior."""
        return CapacityBeliefs()

    def capacity(self, beliefs: CapacityBeliefs, lengths: Lengths, replicas: int) -> Capacity:
        """The Capacity at the present lengths, or at the settings' where they were not measured.

        Known sizes are `SIZES`, or 1 after a load test.
        """
        s = self.settings
        prompt = s.mean_prompt_tokens if lengths.mean_prompt_tokens is None else lengths.mean_prompt_tokens
        output = s.mean_output_tokens if lengths.mean_output_tokens is None else lengths.mean_output_tokens
        mix = rounded_mix(prompt, output, lengths.prompt_cv, lengths.output_cv)
        known = _capacity(self.replica, self.slo, self.startup, self.source, mix)
        if s.feasible_requests_per_second is None:
            return known
        then = rounded_mix(s.mean_prompt_tokens, s.mean_output_tokens, None, None)
        tested = weights_of(self.replica.laws[0], mix_of(then))
        work = tested[0] * s.mean_prompt_tokens + tested[1] * s.mean_output_tokens
        load = significant(s.feasible_requests_per_second * work)
        return replace(known, feasible_load=((1, load),), source="load test")

    def observe(
        self, beliefs: CapacityBeliefs, observation: Observation, lengths: Lengths, work: float | None
    ) -> CapacityBeliefs:
        """The same beliefs: this model does not learn."""
        return beliefs

    def adopt(self, beliefs: CapacityBeliefs, refitted: CapacityBeliefs) -> CapacityBeliefs:
        """The same beliefs: this model does not learn."""
        return beliefs

    def refit(self, beliefs: CapacityBeliefs, observations: Sequence[Observation]) -> CapacityBeliefs:
        """The same beliefs: this model does not learn."""
        return beliefs


def rounded_mix(prompt: float, output: float, prompt_cv: float | None, output_cv: float | None) -> tuple[int, ...]:
    """The nearest mix that is told apart: exponents of `MIX_STEP` for means, multiples of `CV_STEP` for variations.

    Means are at least one token; an unknown variation is that of chat traffic.
    """
    cvs = (PROMPT_CV if prompt_cv is None else prompt_cv, OUTPUT_CV if output_cv is None else output_cv)
    means = (round(math.log(max(1.0, tokens)) / math.log(MIX_STEP)) for tokens in (prompt, output))
    return (*means, *(round(min(cv, MOST_CV) / CV_STEP) for cv in cvs))


def mix_of(rounded: tuple[int, ...]) -> Mix:
    prompt, output, prompt_cv, output_cv = rounded
    return Mix(
        prompt=MIX_STEP**prompt, output=MIX_STEP**output, prompt_cv=CV_STEP * prompt_cv, output_cv=CV_STEP * output_cv
    )


def _replica(settings: ReplicaSettings, known: Profile | None) -> _Replica:
    base = GENERIC_ENGINE if known is None else engine_of(known)
    engine = Engine(
        kv_tokens=settings.kv_capacity_tokens or base.kv_tokens,
        seats=settings.max_num_seqs or base.seats,
        budget_tokens=settings.max_num_batched_tokens or base.budget_tokens,
        ingress_seconds=base.ingress_seconds,
    )
    if known is None:
        return _Replica(laws=(GENERIC_LAW,), engine=engine, margin=GENERIC_MARGIN, routing=settings.routing)
    return _Replica(laws=laws_of(known), engine=engine, margin=MARGIN, routing=settings.routing)


def engine_of(known: Profile) -> Engine:
    """What bounds batches in a replica of a profile."""
    return Engine(
        kv_tokens=known.kv_capacity_tokens,
        seats=known.max_num_seqs,
        budget_tokens=known.max_num_batched_tokens,
        ingress_seconds=known.host.per_request_seconds,
    )


def laws_of(known: Profile) -> tuple[Law, Law]:
    """The profile's laws with host time: the linear one, and the roofline with its floor, where decode tokens cost b too."""
    step, each = known.host.per_step_seconds, known.host.per_sequence_seconds
    line, roof = known.linear, known.roofline
    return (
        Law(a=line.a + step, b=line.b, c=line.c + each, d=line.d, e=line.e),
        Law(a=roof.a + step, b=roof.b, c=roof.b + roof.c + each, d=roof.d, e=roof.e, floor=roof.floor_tokens),
    )


def weights_of(law: Law, mix: Mix) -> tuple[float, float]:
    """Replica-seconds per prompt token and per output token, as they are written down."""
    return significant(prompt_weight(law, mix)), significant(output_weight(law, mix))


@lru_cache(maxsize=4096)
def _capacity(
    replica: _Replica, slo: Slo, startup: tuple[tuple[float, float], ...], source: str, rounded: tuple[int, ...]
) -> Capacity:
    mix = mix_of(rounded)
    prompt, output = weights_of(replica.laws[0], mix)
    work = request_work(replica.laws[0], mix)
    rates = feasible_rates(replica.laws[-1], mix, replica.engine, slo, replica.margin, replica.routing)
    return Capacity(
        seconds_per_request=0.0,
        seconds_per_prompt_token=prompt,
        seconds_per_output_token=output,
        feasible_load=tuple((n, significant(max(LEAST_LOAD, rate * work))) for n, rate in rates),
        startup_seconds=startup,
        mean_output_tokens=significant(mix.output),
        source=source,
    )


def feasible_rates(
    law: Law, mix: Mix, engine: Engine, slo: Slo, margin: float = MARGIN, routing: Routing = "least_loaded"
) -> tuple[tuple[int, float], ...]:
    """Requests per second and replica within the SLO, as pairs (replicas, rate) for `SIZES`.

    Non-decreasing in the replicas and, where an idle replica meets the SLO, non-increasing in every coefficient.
    """
    rates = tail_rates(law, mix, engine, slo, routing)
    return tuple((n, margin * at * rate) for (n, rate), at in zip(rates, cautions(mix), strict=True))


def cautions(mix: Mix) -> tuple[float, ...]:
    """Factors on tail rates, per size, against what the closed forms are known to miss."""
    heavy = max(0.5, 1.0 - HEAVY * max(0.0, mix.prompt_cv - 1.0))
    return tuple(heavy * (1.0 - LONELY / n) for n in SIZES)


def tail_rates(law: Law, mix: Mix, engine: Engine, slo: Slo, routing: Routing) -> tuple[tuple[int, float], ...]:
    """Requests per second and replica that meet the SLO by the closed forms, without caution, for `SIZES`."""
    ceiling = mean_rate(law, mix, engine, slo)
    rates, least = [], 0.0
    for n in SIZES:
        least = _tail_rate(law, mix, engine, slo, Routed(replicas=n, routing=routing), least, ceiling)
        rates.append((n, least))
    return tuple(rates)


def mean_rate(law: Law, mix: Mix, engine: Engine, slo: Slo) -> float:
    """The least of the closed forms for means: ITL, KV cache, seats.  No tail is in it: an upper bound."""
    return min(
        itl_rate(law, mix, slo.itl_seconds),
        kv_rate(law, mix, engine.kv_tokens),
        seat_rate(law, mix, engine.seats),
    )


def _tail_rate(law: Law, mix: Mix, engine: Engine, slo: Slo, routed: Routed, low: float, high: float) -> float:
    """The largest rate in [low, high] at which no more requests break the SLO than are allowed; at least `low`.

    The logarithm of the violations is near linear in the rate: its root is found by false position.
    """
    limits = slo.ttft_seconds, slo.itl_seconds
    allowed = allowed_share(slo, violations(law, mix, engine, limits, 0.0, routed))

    def excess(rate: float) -> float:
        share = violations(law, mix, engine, limits, rate, routed, 8.0 * allowed)
        return math.log(max(share, 1e-6 * allowed) / allowed)

    above = excess(high)
    if above <= 0.0:
        return high
    below = excess(low)
    if below > 0.0:
        return low
    return narrowed(excess, (low, below, high, above), STEPS, lambda a, b: b - a <= PRECISION * b)[0]
