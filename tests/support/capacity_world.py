"""A fixed number of simulated replicas under a load that is a function of time, and a pool that looks on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from autoscaler.embed import Pool
from autoscaler.settings import Slo
from autoscaler.types import Observation, Replicas
from load_tests.draws import exponentials, key, normals
from load_tests.fleet import Fleet, PoolModel, ReplicaModel, Requests
from load_tests.measured import replica_model
from load_tests.scrape import Scraper
from serving.closed_forms import Mix
from serving.profiles import profile

START = 1_700_000_000


def lengths(seed: int, name: str, n: int, mean: float, cv: float):
    square = math.log1p(cv * cv)
    drawn = mean * np.exp(math.sqrt(square) * normals(key(seed, name), n) - square / 2)
    return np.clip(np.round(drawn), 1, 30_000).astype(np.int64)


def observations(
    name: str, mix: Mix, replicas: int, rate: Callable[[float], float], seconds: float, *,
    slo: Slo | None = None, interval: int = 10, seed: int = 1, slower: tuple[float, float] | None = None,
    model: ReplicaModel | None = None,
) -> list[Observation]:  # fmt: skip
    """What a scraper sees; `rate` requests/s at an instant; `slower`: (instant, factor of speed from then on)."""
    model = model or replica_model(profile(name))
    t = np.linspace(0.0, seconds, 2000)
    whole = np.concatenate([[0.0], np.cumsum(np.array([rate(x) for x in t[1:]]) * np.diff(t))])
    unit = np.cumsum(exponentials(key(seed, "arrivals"), int(whole[-1] * 1.2) + 200))
    arrivals = np.interp(unit[unit < whole[-1]], whole, t)
    n = len(arrivals)
    fleet = Fleet(
        [PoolModel(name="chat", replica=model)],
        Requests(
            arrival_seconds=arrivals,
            prompt_tokens=lengths(seed, "prompts", n, mix.prompt, mix.prompt_cv),
            output_tokens=lengths(seed, "answers", n, mix.output, mix.output_cv),
        ),
    )
    ids = [fleet.add(0) for _ in range(replicas)]
    scraper = Scraper("chat", slo or Slo(), model.kv_capacity_tokens)
    seen = []
    for at in range(interval, int(seconds) + 1, interval):
        fleet.advance(float(at))
        if slower is not None and at - interval < slower[0] <= at:
            for replica in ids:
                fleet.set_capacity_factor(replica, slower[1])
        counts = Replicas(desired=replicas, ready=replicas)
        seen.append(scraper.observe(START + at, interval, counts, lambda: (fleet.gauges(0), fleet.counters(0))))
    return seen


def pool_that_saw(seen: list[Observation], *, slo: Slo | None = None, **replica: object) -> Pool:
    """A pool after these Observations."""
    slo = slo or Slo()
    pool = Pool.from_config(
        {
            "name": "chat",
            "slo": {"ttft_seconds": slo.ttft_seconds, "itl_seconds": slo.itl_seconds},
            "replica": replica,
        }
    )
    for observation in seen:
        pool.step(observation)
    return pool
