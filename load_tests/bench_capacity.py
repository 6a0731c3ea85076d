"""How near the capacity that a pool believes in is to what the simulated replicas carry, after half an hour of looking on.

The estimate is the closed forms' rate at the learned law, times what the twin of a refit says of them (every half hour)
and times the learned factor; what is used is that less caution.
`told` pools know the profile, the others nothing but the promise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import fmean, median

from autoscaler.embed import Pool
from autoscaler.lengths import lengths_of
from autoscaler.settings import Slo, StartupSettings
from autoscaler.types import Observation, Replicas
from load_tests.bench import BenchRow
from load_tests.bench_capacity_world import START, World, feasible_rate, observations, onlooker, watch, with_lengths
from load_tests.draws import key, normals
from load_tests.fleet import ReplicaModel
from load_tests.measured import replica_model
from serving.capacity import laws_of, mean_rate
from serving.capacity_learned import LearnedBeliefs, LearnedCapacity
from serving.capacity_starts import Starts, observed, quantiles
from serving.closed_forms import Engine, Mix
from serving.profiles import Profile, profile
from serving.startup import LogNormal, startup_prior

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
SEEDS = (0, 1, 2)  # of what they carry: one run in which one request of a hundred is late tells it to 2 to 4 %
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
    engine = Engine(
        kv_tokens=known.kv_capacity_tokens, seats=known.max_num_seqs, budget_tokens=known.max_num_batched_tokens
    )
    uncached = replace(world.mix, prompt=world.mix.prompt * (1.0 - world.cached_fraction))
    ceiling = max(mean_rate(one, uncached, engine, world.slo) for one in laws_of(known))
    return _Case(known=known, world=world, rate=fmean(feasible_rate(world, 1.3 * ceiling, seed) for seed in SEEDS))


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


def _errors(law: str, cases: list[_Case]) -> Iterator[BenchRow]:
    goal = LINEAR_GOAL if law == "linear" else ROOFLINE_GOAL
    low = [_seen(case, LOW, LOW_SECONDS) for case in cases]
    high = [_seen(case, HIGH, HIGH_SECONDS) for case in cases]
    for told in (True, False):
        kind = f"{law} replicas, {'told the profile' if told else 'told nothing'}"
        for seen, where in ((low, "30 min at 10 to 35 %"), (high, "90 min at 60 to 95 %")):
            pools = [
                watch(onlooker(c.world, _section(c, told)), s, REFIT_SECONDS) for c, s in zip(cases, seen, strict=True)
            ]
            pairs = list(zip(pools, cases, strict=True))
            errors = [believed(p, c.world, cautious=False) / c.rate - 1.0 for p, c in pairs]
            used = [believed(p, c.world, cautious=True) / c.rate for p, c in pairs]
            size = [abs(e) for e in errors]
            begun = [believed(watch(onlooker(c.world, _section(c, told)), s[:1]), c.world, cautious=True) / c.rate
                     for c, s in zip(cases, seen, strict=True)]  # fmt: skip
            yield BenchRow(
                name=f"{kind}, {where}: error of the estimate, median", value=100 * median(size), unit="%",
                goal=100 * goal, baseline="of the prior's use", baseline_value=100 * median(abs(b - 1.0) for b in begun),
            )  # fmt: skip
            worst = max(range(len(cases)), key=lambda i: size[i])
            yield BenchRow(
                name=f"  the same, worst ({_named(cases[worst])})", value=100 * errors[worst], unit="%",
                baseline="median used / true", baseline_value=median(used),
            )  # fmt: skip
            yield BenchRow(
                name="  used / true, largest", value=max(used), unit="", goal=1.05,
                baseline="before anything was seen", baseline_value=max(begun),
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
