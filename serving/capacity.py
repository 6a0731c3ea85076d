"""What a replica is believed to carry before it was measured: a profile's step law, closed forms and caution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from autoscaler.settings import ReplicaSettings, Slo, StartupSettings
from autoscaler.types import Capacity, Observation
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
from serving.profiles import Profile, profile
from serving.startup import startup_quantiles
from serving.tails import violations

SIZES = (1, 2, 4, 8, 16, 32)
MARGIN, GENERIC_MARGIN = (
    0.9,
    0.63,
)  # of the rate at which the closed forms meet the SLO; less where the replica is unknown
LONELY = 0.07  # less still for a replica that nobody helps: measured against the simulated plant over all profiles
BISECTIONS = 8
PROMPT_CV, OUTPUT_CV = 1.0, 0.8  # lengths of chat traffic: the mix that decisions see has means only
MIX_STEP = (
    1.02  # lengths are rounded to powers of this; feasible loads are known at each `COARSE`-th and linear between
)
COARSE = 8
LEAST_LOAD = 0.05  # Erlangs per replica, where the SLO cannot be met by any number of replicas

GENERIC_LAW = Law(a=0.010, b=50e-6, c=100e-6, d=60e-9)
GENERIC_ENGINE = Engine(kv_tokens=150_000.0, seats=256.0, budget_tokens=2048.0, ingress_seconds=0.0156)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityBeliefs:
    """What was learned of a replica: nothing yet.  The prior speaks until learning is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replica:
    """A replica in plain numbers: its affine laws (the first one is for weights), engine limits and margin."""

    laws: tuple[Law, ...]
    engine: Engine
    margin: float


class PriorCapacity:
    """CapacityModel out of a shipped profile (or a cautious generic replica), the SLO and the start-up profile.

    The weights are those of the profile's linear law.  The feasible load is the least over the linear and the roofline law
    of what meets the SLO at the share of requests that it names, times a margin.  It holds settings only and learns
    nothing: `refit` returns the beliefs as they are.  A load test's rate in the settings replaces the closed forms.
    """

    beliefs_type: type = CapacityBeliefs

    def __init__(self, settings: ReplicaSettings, startup: StartupSettings, slo: Slo) -> None:
        known = profile(settings.profile) if settings.profile is not None else None
        self.slo = slo
        self.settings = settings
        self.replica = _replica(settings, known)
        self.startup = startup_quantiles(startup, known)
        self.source = "prior" if known else "generic prior"

    def start(self) -> CapacityBeliefs:
        """Beliefs before any data: the prior."""
        return CapacityBeliefs()

    def capacity(
        self,
        beliefs: CapacityBeliefs,
        mean_prompt_tokens: float | None,
        mean_output_tokens: float | None,
        replicas: int,
    ) -> Capacity:
        """The Capacity at the present mix of lengths, or at the settings' where nothing was measured.

        Known sizes are `SIZES`, or 1 after a load test.
        """
        s = self.settings
        prompt = _rounded(s.mean_prompt_tokens if mean_prompt_tokens is None else mean_prompt_tokens)
        output = _rounded(s.mean_output_tokens if mean_output_tokens is None else mean_output_tokens)
        known = _capacity(self.replica, self.slo, self.startup, self.source, prompt, output)
        if s.feasible_requests_per_second is None:
            return known
        mix = _rounded(s.mean_prompt_tokens), _rounded(s.mean_output_tokens)
        then = _capacity(self.replica, self.slo, self.startup, self.source, *mix)
        tested = (
            then.seconds_per_request
            + then.seconds_per_prompt_token * s.mean_prompt_tokens
            + then.seconds_per_output_token * s.mean_output_tokens
        )
        load = significant(s.feasible_requests_per_second * tested)
        return replace(known, feasible_load=((1, load),), source="load test")

    def refit(self, beliefs: CapacityBeliefs, observations: Sequence[Observation]) -> CapacityBeliefs:
        """The same beliefs: this model does not learn."""
        return beliefs


def _rounded(tokens: float) -> int:
    """The exponent of the nearest power of `MIX_STEP`, at least one token: so many mixes are worth telling apart."""
    return round(math.log(max(1.0, tokens)) / math.log(MIX_STEP))


def _replica(settings: ReplicaSettings, known: Profile | None) -> _Replica:
    base = GENERIC_ENGINE if known is None else Engine(
        kv_tokens=known.kv_capacity_tokens,
        seats=known.max_num_seqs,
        budget_tokens=known.max_num_batched_tokens,
        ingress_seconds=known.host.per_request_seconds,
    )  # fmt: skip
    engine = Engine(
        kv_tokens=settings.kv_capacity_tokens or base.kv_tokens,
        seats=settings.max_num_seqs or base.seats,
        budget_tokens=settings.max_num_batched_tokens or base.budget_tokens,
        ingress_seconds=base.ingress_seconds,
    )
    if known is None:
        return _Replica(laws=(GENERIC_LAW,), engine=engine, margin=GENERIC_MARGIN)
    return _Replica(laws=laws_of(known), engine=engine, margin=MARGIN)


def laws_of(known: Profile) -> tuple[Law, ...]:
    """The profile's affine laws with host time: linear first, then the roofline above and below its floor.

    Above the floor a decode token costs b + c; below, the step costs b * floor whatever it holds.
    """
    step, each = known.host.per_step_seconds, known.host.per_sequence_seconds
    line, roof = known.linear, known.roofline
    return (
        Law(a=line.a + step, b=line.b, c=line.c + each, d=line.d, e=line.e),
        Law(a=roof.a + step, b=roof.b, c=roof.b + roof.c + each, d=roof.d, e=roof.e),
        Law(a=roof.a + roof.b * roof.floor_tokens + step, b=0.0, c=roof.c + each, d=roof.d, e=roof.e),
    )


@lru_cache(maxsize=4096)
def _capacity(
    replica: _Replica, slo: Slo, startup: tuple[tuple[float, float], ...], source: str, prompt: int, output: int
) -> Capacity:
    mix = Mix(prompt=MIX_STEP**prompt, output=MIX_STEP**output, prompt_cv=PROMPT_CV, output_cv=OUTPUT_CV)
    law = replica.laws[0]
    return Capacity(
        seconds_per_request=0.0,
        seconds_per_prompt_token=significant(prompt_weight(law, mix)),
        seconds_per_output_token=significant(output_weight(law, mix)),
        feasible_load=tuple(
            (n, significant(load)) for n, load in zip(SIZES, _between(replica, slo, prompt, output), strict=True)
        ),
        startup_seconds=startup,
        mean_output_tokens=significant(mix.output),
        source=source,
    )


def _between(replica: _Replica, slo: Slo, prompt: int, output: int) -> list[float]:
    """Feasible loads between the four nearest mixes of a coarser grid, so that loads move smoothly and cost little."""
    x, y = prompt // COARSE, output // COARSE
    p, q = prompt / COARSE - x, output / COARSE - y
    corners = [(x, y, (1 - p) * (1 - q)), (x + 1, y, p * (1 - q)), (x, y + 1, (1 - p) * q), (x + 1, y + 1, p * q)]
    loads = [0.0] * len(SIZES)
    for i, j, share in corners:
        if share > 0.0:
            known = _loads(replica, slo, i * COARSE, j * COARSE)
            loads = [total + share * load for total, load in zip(loads, known, strict=True)]
    return loads


@lru_cache(maxsize=4096)
def _loads(replica: _Replica, slo: Slo, prompt: int, output: int) -> tuple[float, ...]:
    """Feasible load in Erlangs for each of `SIZES` at one mix of the coarser grid."""
    mix = Mix(prompt=MIX_STEP**prompt, output=MIX_STEP**output, prompt_cv=PROMPT_CV, output_cv=OUTPUT_CV)
    work = request_work(replica.laws[0], mix)
    rates = feasible_rates(replica.laws, mix, replica.engine, slo, replica.margin)
    return tuple(max(LEAST_LOAD, rate * work) for _, rate in rates)


def feasible_rates(
    laws: tuple[Law, ...], mix: Mix, engine: Engine, slo: Slo, margin: float = MARGIN
) -> tuple[tuple[int, float], ...]:
    """Requests per second and replica within the SLO, as pairs (replicas, rate) for `SIZES`; the least over `laws`.

    Non-decreasing in the replicas and, where an idle replica meets the SLO, non-increasing in every coefficient.
    """
    ceiling = min(mean_rate(law, mix, engine, slo) for law in laws)
    rates, least = [], 0.0
    for n in SIZES:
        rate = ceiling
        for law in laws:
            rate = _tail_rate(law, mix, engine, slo, n, least, rate)
        least = rate
        rates.append((n, margin * (1.0 - LONELY / n) * rate))
    return tuple(rates)


def mean_rate(law: Law, mix: Mix, engine: Engine, slo: Slo) -> float:
    """The least of the closed forms for means: ITL, KV cache, seats.  No tail is in it: an upper bound."""
    return min(
        itl_rate(law, mix, slo.itl_seconds),
        kv_rate(law, mix, engine.kv_tokens),
        seat_rate(law, mix, engine.seats),
    )


def _tail_rate(law: Law, mix: Mix, engine: Engine, slo: Slo, replicas: int, low: float, high: float) -> float:
    """The largest rate in [low, high] at which no more requests break the SLO than are allowed; at least `low`.

    Some break it on an idle replica (a prompt too long for the limit), and no number of replicas helps them.  Where they
    use up more than half of what the SLO allows, load may still add another half of it, or half as many again.
    """
    if law.b <= 0.0:  # below the floor of the roofline prefill is free: its time is the other laws' business
        return high
    limits, allowed = (slo.ttft_seconds, slo.itl_seconds), 1.0 - slo.attainment_fraction
    hopeless = violations(law, mix, engine, limits, 0.0, replicas)
    allowed = max(allowed, hopeless + allowed / 2.0, 1.5 * hopeless)
    if violations(law, mix, engine, limits, high, replicas, allowed) <= allowed:
        return high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        if violations(law, mix, engine, limits, middle, replicas, allowed) <= allowed:
            low = middle
        else:
            high = middle
    return low
