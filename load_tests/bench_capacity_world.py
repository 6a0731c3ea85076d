"""A fixed number of simulated replicas under a given load, and what a pool that looks on believes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoscaler.embed import Pool
from autoscaler.settings import Slo
from autoscaler.types import Observation, Replicas
from load_tests.draws import exponentials, key, normals
from load_tests.fleet import Fleet, PoolModel, ReplicaModel, Requests
from load_tests.kernel_state import Floats, Ints
from load_tests.scrape import Scraper
from serving.closed_forms import Mix

START = 1_700_000_000
INTERVAL_SECONDS = 10
_LONGEST = 30_000
_BISECTIONS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """So many replicas of one kind, the lengths of what is asked of them, and the promise.

    `cached_fraction`: of every prompt, found in the prefix cache.
    """

    model: ReplicaModel
    mix: Mix
    replicas: int
    slo: Slo
    cached_fraction: float = 0.0


def lengths(seed: int, name: str, n: int, mean: float, cv: float) -> Ints:
    """Log-normal lengths in tokens."""
    square = math.log1p(cv * cv)
    drawn = mean * np.exp(math.sqrt(square) * normals(key(seed, name), n) - square / 2)
    return np.clip(np.round(drawn), 1, _LONGEST).astype(np.int64)


def _requests(world: World, arrivals: Floats, seed: int, longer: Callable[[Floats], Floats] | None = None) -> Requests:
    n = len(arrivals)
    prompts = lengths(seed, "prompts", n, world.mix.prompt, world.mix.prompt_cv)
    if longer is not None:
        prompts = np.maximum(1, np.round(prompts * longer(arrivals))).astype(np.int64)
    return Requests(
        arrival_seconds=arrivals,
        prompt_tokens=prompts,
        output_tokens=lengths(seed, "answers", n, world.mix.output, world.mix.output_cv),
        cached_prompt_tokens=(prompts * world.cached_fraction).astype(np.int64) if world.cached_fraction else None,
    )


def feasible_rate(world: World, ceiling: float, seeds: Sequence[int] = (0,)) -> float:
    """Requests/s per replica that the simulated replicas carry within the promise, by bisection below `ceiling`.

    Late requests of all `seeds` are counted together: a run that overflows its cache is late as a whole, and the mean of
    what runs carry one by one lies above the rate at which as many are late as may be.
    """
    n = min(60_000, max(10_000, 5000 * world.replicas))
    low, high = 0.0, ceiling
    for _ in range(_BISECTIONS):
        rate = (low + high) / 2.0
        if math.fsum(_late_share(world, rate, n, seed) for seed in seeds) <= len(seeds) * (
            1.0 - world.slo.attainment_fraction
        ):
            low = rate
        else:
            high = rate
    return (low + high) / 2.0


def _late_share(world: World, rate: float, n: int, seed: int) -> float:
    """Share of `n` requests beyond either limit at `rate` per second and replica."""
    arrivals = np.cumsum(exponentials(key(seed, "gaps"), n)) / (rate * world.replicas)
    requests = _requests(world, arrivals, seed)
    fleet = Fleet([PoolModel(name="chat", replica=world.model)], requests)
    for _ in range(world.replicas):
        fleet.add(0)
    fleet.advance(math.inf)
    out = fleet.outcome()
    several = requests.output_tokens > 1
    each = (out.finish_seconds - out.first_token_seconds) / np.maximum(1, requests.output_tokens - 1)
    late = (out.first_token_seconds - arrivals > world.slo.ttft_seconds) | (several & (each > world.slo.itl_seconds))
    settled = slice(n // 8, n - n // 20)  # the first meet an empty fleet, the last leave one
    return float(late[settled].mean())


def observations(
    world: World, rate: Callable[[float], float], seconds: float, *, seed: int = 1,
    slower: tuple[float, float] | None = None, longer: Callable[[Floats], Floats] | None = None,
) -> list[Observation]:  # fmt: skip
    """What a scraper sees of `rate` requests/s at an instant.

    `slower`: (instant, factor of every replica's speed from then on); `longer`: factor of prompts by arrival.
    """
    t = np.linspace(0.0, seconds, 2000)
    whole = np.concatenate([[0.0], np.cumsum(np.array([rate(x) for x in t[1:]]) * np.diff(t))])
    unit = np.cumsum(exponentials(key(seed, "arrivals"), int(whole[-1] * 1.2) + 200))
    requests = _requests(world, np.interp(unit[unit < whole[-1]], whole, t), seed, longer)
    fleet = Fleet([PoolModel(name="chat", replica=world.model)], requests)
    ids = [fleet.add(0) for _ in range(world.replicas)]
    scraper = Scraper("chat", world.slo, world.model.kv_capacity_tokens)
    counts = Replicas(desired=world.replicas, ready=world.replicas)
    seen = []
    for at in range(INTERVAL_SECONDS, int(seconds) + 1, INTERVAL_SECONDS):
        fleet.advance(float(at))
        if slower is not None and at - INTERVAL_SECONDS < slower[0] <= at:
            for replica in ids:
                fleet.set_capacity_factor(replica, slower[1])
        seen.append(scraper.observe(START + at, INTERVAL_SECONDS, counts, lambda: (fleet.gauges(0), fleet.counters(0))))
    return seen


def onlooker(world: World, replica: dict[str, object]) -> Pool:
    """A pool that is told `replica` (its section of the config) and the promise, and nothing else."""
    slo = world.slo
    promise = {
        "ttft_seconds": slo.ttft_seconds,
        "itl_seconds": slo.itl_seconds,
        "attainment_fraction": slo.attainment_fraction,
    }
    return Pool.from_config({"name": "chat", "slo": promise, "replica": replica})


def watch(pool: Pool, seen: Sequence[Observation], refit_seconds: int | None = None) -> Pool:
    """The pool after these Observations; with a refit every `refit_seconds`."""
    for observation in seen:
        pool.step(observation)
        if refit_seconds is not None and (observation.at_seconds - START) % refit_seconds == 0:
            pool.refit()
    return pool


def with_lengths(world: World, factor: float) -> World:
    """The same with prompts `factor` times as long."""
    return replace(world, mix=replace(world.mix, prompt=factor * world.mix.prompt))
