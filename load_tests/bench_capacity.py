"""How near the capacity that a pool believes in is to what the simulated replicas carry, after half an hour of looking on.

The estimate is the closed forms' rate at the learned law, times what the twin of a refit says of them (every half hour)
and times the learned factor; what is used is that less caution.
`told` pools know the profile, the others nothing but the promise.  Errors are signed where they are of one case: above zero
is too much.  The law's part is what the closed forms make of the learned law, over what they make of the true one; the
search's part is the twin's rate at the true law, over what the replicas carry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median

from autoscaler.embed import Pool
from autoscaler.lengths import lengths_of
from autoscaler.settings import Slo, StartupSettings
from autoscaler.types import Observation, Replicas
from load_tests.bench import BenchRow
from load_tests.bench_capacity_world import START, World, feasible_rate, observations, onlooker, watch, with_lengths
from load_tests.draws import key, normals
from load_tests.fleet import ReplicaModel
from load_tests.measured import replica_model
from serving.capacity import engine_of, laws_of, mean_rate, tail_rates
from serving.capacity_learned import LearnedBeliefs, LearnedCapacity
from serving.capacity_starts import Starts, observed, quantiles
from serving.closed_forms import Law, Mix
from serving.profiles import Profile, profile
from serving.startup import LogNormal, startup_prior
from serving.twin import twin_rate

PROFILES = (
    "llama-3.1-8b_bf16_h100_tp1", "llama-3.1-70b_bf16_a100_tp4", "qwen3-32b_bf16_h100_tp2", "llama-3.1-8b_bf16_l40s_tp1",
    "qwen2.5-7b_bf16_a100_tp1", "llama-3.1-70b_fp8_h200_tp1", "gpt-oss-120b_mxfp4_h100_tp4",
)  # fmt: skip
MIXES = (
    Mix(prompt=1000, output=200, prompt_cv=1.0, output_cv=0.8),
    Mix(prompt=300, output=600, prompt_cv=1.0, output_cv=0.8),
    Mix(prompt=2500, output=60, prompt_cv=0.6, output_cv=0.8),
)
SLOW_SLO = Slo(ttft_seconds=2.0, itl_seconds=0.08)
REPLICAS = 4
SEEDS = tuple(range(12))  # of what they carry: together they tell it to about 0.5 %
LOW, HIGH = (0.1, 0.35), (0.6, 0.95)  # of what the replicas carry, from begin to end
LOW_SECONDS, HIGH_SECONDS, REFIT_SECONDS = 1800.0, 5400.0, 1800
LINEAR_GOAL, ROOFLINE_GOAL, RESET_GOAL_SECONDS, SLOWER_GOAL = 0.03, 0.05, 600.0, 2.5
MIN_HISTORY = 3600.0


def rows(quick: bool) -> Iterable[BenchRow]:
    """Errors of the belief: linear and roofline replicas, told and not; then what happens when something changes."""
    names, mixes = (PROFILES[:2], MIXES[:1]) if quick else (PROFILES, MIXES)
    for law in ("linear", "roofline"):
        yield from _errors(law, [_case(name, law, mix) for name in names for mix in mixes])
    yield from _changes(PROFILES[2])
    yield from _starts()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    known: Profile
    world: World
    rate: float


def _linear(known: Profile) -> ReplicaModel:
    """The profile's replica without a floor; its token terms are those of the planning law, as far as the plant has them."""
    line = known.linear
    return replace(
        replica_model(known), a=line.a, b=line.b, c=max(0.0, line.c - line.b), d=line.d, e=line.e, floor_tokens=0.0
    )


def _case(name: str, law: str, mix: Mix) -> _Case:
    known = profile(name)
    model = _linear(known) if law == "linear" else replica_model(known)
    return _measured(known, World(model=model, mix=mix, replicas=REPLICAS, slo=SLOW_SLO))


def _measured(known: Profile, world: World) -> _Case:
    uncached = replace(world.mix, prompt=world.mix.prompt * (1.0 - world.cached_fraction))
    ceiling = max(mean_rate(one, uncached, engine_of(known), world.slo) for one in laws_of(known))
    return _Case(known=known, world=world, rate=feasible_rate(world, 1.3 * ceiling, SEEDS))


def _seen(case: _Case, shares: tuple[float, float], seconds: float) -> list[Observation]:
    low, high = shares
    full = case.rate * case.world.replicas
    return observations(case.world, lambda t: full * (low + (high - low) * t / seconds), seconds)


def _section(case: _Case, told: bool) -> dict[str, object]:
    return {"profile": case.known.id} if told else {}


def beliefs_of(pool: Pool) -> LearnedBeliefs:
    """What the pool learned of its replicas."""
    beliefs = pool.memory.beliefs.capacity
    assert isinstance(beliefs, LearnedBeliefs)
    return beliefs


def believed(pool: Pool, world: World, *, cautious: bool) -> float:
    """Requests/s per replica that the pool believes in: what it plans with, or its best estimate."""
    model = pool.autoscaler.capacity_model
    assert isinstance(model, LearnedCapacity)
    capacity = model.capacity(beliefs_of(pool), lengths_of(pool.memory.state), world.replicas)
    prompt = world.mix.prompt * (1.0 - world.cached_fraction)
    work = capacity.seconds_per_prompt_token * prompt + capacity.seconds_per_output_token * world.mix.output
    load = capacity.feasible(world.replicas)
    return (load if cautious else load / model.caution(beliefs_of(pool), world.replicas)) / work


def _law(model: ReplicaModel) -> Law:
    """The law by which the simulated replica steps."""
    return Law(
        a=model.a + model.step_overhead_seconds, b=model.b, c=model.b + model.c + model.sequence_overhead_seconds,
        d=model.d, e=model.e, floor=model.floor_tokens,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _closed(law: Law, known: Profile, mix: Mix, slo: Slo) -> float:
    return dict(tail_rates(law, mix, engine_of(known), slo, "least_loaded"))[REPLICAS]


def _at_true_law(case: _Case) -> float:
    """Requests/s per replica that a refit would find if it knew the law; by the closed forms without the compiled extra."""
    world, law = case.world, _law(case.world.model)
    guess = _closed(law, case.known, world.mix, world.slo)
    found = twin_rate(law, world.mix, engine_of(case.known), world.slo, world.replicas, "least_loaded", guess)
    return guess if found is None else found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a pool believes of a case: `error` of its estimate, the `law`'s part, `used` over true, its own `sigma`."""

    case: _Case
    error: float
    law: float
    used: float
    sigma: float
    begun: float


def _found(case: _Case, seen: list[Observation], told: bool) -> _Found:
    pool = watch(onlooker(case.world, _section(case, told)), seen, REFIT_SECONDS)
    first = watch(onlooker(case.world, _section(case, told)), seen[:1])
    model, world = pool.autoscaler.capacity_model, case.world
    assert isinstance(model, LearnedCapacity)
    learned, true = (
        _closed(law, case.known, world.mix, world.slo) for law in (model.law(beliefs_of(pool)), _law(world.model))
    )
    return _Found(
        case=case,
        error=believed(pool, world, cautious=False) / case.rate - 1.0,
        law=learned / true - 1.0,
        used=believed(pool, world, cautious=True) / case.rate,
        sigma=model.deviation(beliefs_of(pool)),
        begun=believed(first, world, cautious=True) / case.rate,
    )


def _errors(law: str, cases: list[_Case]) -> Iterator[BenchRow]:
    yield from _searched(law, cases)
    low = [_seen(case, LOW, LOW_SECONDS) for case in cases]
    high = [_seen(case, HIGH, HIGH_SECONDS) for case in cases]
    goal = LINEAR_GOAL if law == "linear" else ROOFLINE_GOAL
    for told in (True, False):
        for seen, where in ((low, "30 min at 10 to 35 %"), (high, "90 min at 60 to 95 %")):
            found = [_found(c, s, told) for c, s in zip(cases, seen, strict=True)]
            yield from _group(f"{law} replicas, {'told the profile' if told else 'told nothing'}, {where}", found, goal)


def _searched(law: str, cases: list[_Case]) -> Iterator[BenchRow]:
    errors = {case: _at_true_law(case) / case.rate - 1.0 for case in cases}
    yield BenchRow(
        name=f"{law} replicas, the search alone, at the true law: error, median",
        value=100 * median(abs(e) for e in errors.values()), unit="%",
        baseline="largest", baseline_value=100 * max(errors.values(), key=abs),
    )  # fmt: skip
    for case, error in errors.items():
        yield BenchRow(name=f"  {_named(case)}", value=100 * error, unit="%")


def _group(name: str, found: list[_Found], goal: float) -> Iterator[BenchRow]:
    yield BenchRow(
        name=f"{name}: error of the estimate, median", value=100 * median(abs(f.error) for f in found), unit="%",
        goal=100 * goal, baseline="of the prior's use", baseline_value=100 * median(abs(f.begun - 1.0) for f in found),
    )  # fmt: skip
    yield BenchRow(
        name="  the law's part, median", value=100 * median(abs(f.law) for f in found), unit="%",
        baseline="largest", baseline_value=100 * max((f.law for f in found), key=abs),
    )  # fmt: skip
    within = sum(abs(math.log1p(f.error)) <= 2.0 * f.sigma for f in found) / len(found)
    yield BenchRow(
        name="  what the belief says of itself: one standard deviation, median",
        value=100 * median(f.sigma for f in found), unit="%",
        baseline="% of cases within two", baseline_value=100 * within,
    )  # fmt: skip
    yield BenchRow(
        name="  used / true, largest", value=max(f.used for f in found), unit="", goal=1.05,
        baseline="before anything was seen", baseline_value=max(f.begun for f in found),
    )  # fmt: skip
    yield BenchRow(
        name="  used / true, median", value=median(f.used for f in found), unit="",
        baseline="least", baseline_value=min(f.used for f in found),
    )  # fmt: skip
    for f in sorted(found, key=lambda f: f.error):
        yield BenchRow(
            name=f"  {_named(f.case)}", value=100 * f.error, unit="%", baseline="the law's part",
            baseline_value=100 * f.law,
        )  # fmt: skip


def _named(case: _Case) -> str:
    return f"{case.known.id}, {case.world.mix.prompt:g}/{case.world.mix.output:g}"


def _changes(name: str) -> Iterator[BenchRow]:
    case = _case(name, "roofline", MIXES[0])
    half = _measured(case.known, replace(case.world, cached_fraction=0.5))
    pool = watch(onlooker(half.world, _section(half, True)), _seen(half, LOW, LOW_SECONDS), REFIT_SECONDS)
    yield _row("half of every prompt cached: error of the estimate", pool, half)
    twice = _measured(case.known, with_lengths(case.world, 2.0))
    flat = 0.35 * case.rate * case.world.replicas
    seen = observations(
        case.world, lambda t: flat, 2 * MIN_HISTORY, longer=lambda at: 1.0 + (at >= MIN_HISTORY).astype(float)
    )
    pool = watch(onlooker(case.world, _section(case, True)), seen, REFIT_SECONDS)
    yield _row("prompts twice as long at the same requests/s, an hour later: error of the estimate", pool, twice)
    seen = observations(case.world, lambda t: 1.5 * flat, MIN_HISTORY + 1800.0, slower=(MIN_HISTORY, 0.7))
    pool = watch(onlooker(case.world, _section(case, True)), seen, REFIT_SECONDS)
    at = beliefs_of(pool).steps.drift_at_seconds
    yield BenchRow(
        name="capacity 30 % lower: seconds until the law was learned anew",
        value=math.inf if at is None else at - START - MIN_HISTORY, unit="s", goal=RESET_GOAL_SECONDS,
        baseline="drifts in all", baseline_value=float(beliefs_of(pool).steps.drifts),
    )  # fmt: skip
    slow = _measured(case.known, replace(case.world, model=_slower(case.world.model, 0.7)))
    yield _row("  half an hour later: error of the estimate", pool, slow)
    seen = observations(case.world, lambda t: flat * (1.5 + math.sin(t / 13750)), 86_400.0)
    pool = watch(onlooker(case.world, _section(case, True)), seen, REFIT_SECONDS)
    yield BenchRow(
        name="a day of nothing but the time of day: laws learned anew",
        value=float(beliefs_of(pool).steps.drifts), unit="", goal=0.0,
    )  # fmt: skip


def _row(name: str, pool: Pool, case: _Case) -> BenchRow:
    error = believed(pool, case.world, cautious=False) / case.rate - 1.0
    return BenchRow(name=name, value=100 * abs(error), unit="%", goal=100 * ROOFLINE_GOAL)


def _slower(model: ReplicaModel, factor: float) -> ReplicaModel:
    names = ("a", "b", "c", "d", "e", "step_overhead_seconds", "sequence_overhead_seconds")
    return replace(model, **{name: getattr(model, name) / factor for name in names})


def _starts() -> Iterator[BenchRow]:
    """Start-ups of sigma 0.35 around what is believed; then three times as long."""
    prior = startup_prior(StartupSettings(median_seconds=300.0, sigma=0.35), None)
    told = tuple((q, prior.quantile(q)) for q in (0.5, 0.9, 0.95, 0.99))
    for count, goal in ((10, 0.12), (30, 0.08)):
        errors = []
        for seed in range(40):
            starts = Starts()
            for i, z in enumerate(normals(key(seed, "starts"), count)):
                starts = _start(starts, prior, 300.0 * math.exp(0.35 * float(z)), i)
            errors.append(abs(dict(quantiles(starts, told))[0.9] / prior.quantile(0.9) - 1.0))
        yield BenchRow(
            name=f"D_0.9 after {count} starts: median error", value=100 * median(errors), unit="%", goal=100 * goal
        )
    starts = Starts()
    for i in range(10):
        starts = _start(starts, prior, 300.0 * (0.8, 1.0, 1.25)[i % 3], i)
    before = dict(quantiles(starts, told))[0.9]
    for i in range(3):
        starts = _start(starts, prior, 900.0, 100 + i)
    yield BenchRow(
        name="starts three times slower: D_0.9 after the third, over D_0.9 before",
        value=dict(quantiles(starts, told))[0.9] / before, unit="x", op=">=", goal=SLOWER_GOAL,
    )  # fmt: skip


def _start(starts: Starts, prior: LogNormal, seconds: float, number: int) -> Starts:
    """One start of so many seconds, seen every ten."""
    rows = [Replicas(desired=1, ready=1)]
    rows += [Replicas(desired=2, ready=1, starting=1)] * max(1, round(seconds / 10))
    rows += [Replicas(desired=2, ready=2), Replicas(desired=1, ready=1)]
    at = START + 10_000 * number
    for i, counts in enumerate(rows):
        now = Observation(pool="chat", at_seconds=at + 10 * i, window_seconds=10, replicas=counts)
        starts = observed(starts, prior, now)
    return starts
