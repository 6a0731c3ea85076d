"""What a replica is believed to carry before it was measured: a profile's step law, closed forms and caution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    ttft_seconds,
)
from serving.profiles import Profile, profile
from serving.startup import startup_quantiles

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
MARGIN, GENERIC_MARGIN = 0.75, 0.75 * 0.7  # of the rate at which means meet the SLO; less where the replica is unknown
PROMPT_CV, OUTPUT_CV = 1.0, 0.8  # of chat traffic, until measured
MIX_STEP = 1.02  # lengths are rounded to powers of this
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

    The weights are exact for the profile's linear law; the feasible load is the least of the closed forms over the linear
    and the roofline law, times a margin, because a mean that meets the limit leaves a tail that does not.  It holds
    settings only and learns nothing: `refit` returns the beliefs as they are.
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
        """The Capacity at the present mix of lengths (the settings' where not measured); known sizes are always `SIZES`."""
        s = self.settings
        prompt = _rounded(s.mean_prompt_tokens if mean_prompt_tokens is None else mean_prompt_tokens)
        output = _rounded(s.mean_output_tokens if mean_output_tokens is None else mean_output_tokens)
        return _capacity(self.replica, self.slo, self.startup, self.source, prompt, output)

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
    work = request_work(law, mix)
    rates = feasible_rates(replica.laws, mix, replica.engine, slo, replica.margin)
    return Capacity(
        seconds_per_request=0.0,
        seconds_per_prompt_token=significant(prompt_weight(law, mix)),
        seconds_per_output_token=significant(output_weight(law, mix)),
        feasible_load=tuple((n, significant(max(LEAST_LOAD, rate * work))) for n, rate in rates),
        startup_seconds=startup,
        mean_output_tokens=significant(mix.output),
        source=source,
    )


def feasible_rates(
    laws: tuple[Law, ...], mix: Mix, engine: Engine, slo: Slo, margin: float = MARGIN
) -> tuple[tuple[int, float], ...]:
    """Requests per second and replica within the SLO, as pairs (replicas, rate) for `SIZES`; the least over `laws`.

    Non-decreasing in the replicas, non-increasing in every coefficient.
    """
    rate = margin * min(_mean_rate(law, mix, engine, slo) for law in laws)
    return tuple((n, rate) for n in SIZES)


def _mean_rate(law: Law, mix: Mix, engine: Engine, slo: Slo) -> float:
    """The least of the closed forms: mean ITL, KV cache, seats, and the TTFT at the quantile that the SLO asks for."""
    rate = min(
        itl_rate(law, mix, slo.itl_seconds),
        kv_rate(law, mix, engine.kv_tokens),
        seat_rate(law, mix, engine.seats),
    )
    low, high = 0.0, rate
    if ttft_seconds(law, mix, engine, high, slo.attainment_fraction) <= slo.ttft_seconds:
        return high
    for _ in range(24):
        middle = (low + high) / 2.0
        if ttft_seconds(law, mix, engine, middle, slo.attainment_fraction) <= slo.ttft_seconds:
            low = middle
        else:
            high = middle
    return low
