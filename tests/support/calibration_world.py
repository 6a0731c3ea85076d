"""A simulated pool of fixed size under a load that rises in levels, as a scraper saw it."""

from __future__ import annotations

from functools import cache

import numpy as np

from autoscaler.settings import Slo
from autoscaler.types import Observation, Replicas
from load_tests import draws
from load_tests.fleet import Fleet, PoolModel, Requests
from load_tests.measured import replica_model
from load_tests.scrape import Scraper
from serving.capacity import laws_of
from serving.closed_forms import Mix, itl_rate
from serving.profiles import profile

PROMPT, OUTPUT, VARIATION = 600.0, 200.0, 0.6


def arrivals(rates: np.ndarray[tuple[int], np.dtype[np.float64]], seconds: float, seed: int) -> Requests:
    """Poisson arrivals whose rate steps through `rates`, lognormal lengths."""
    grid = np.linspace(0.0, seconds, len(rates) + 1)
    total = np.concatenate([[0.0], np.cumsum(rates * np.diff(grid))])
    unit = np.cumsum(draws.exponentials(draws.key(seed, "arrivals"), int(total[-1] * 1.3) + 100))
    arrival = np.interp(unit[unit < total[-1]], total, grid)
    sigma = np.sqrt(np.log1p(VARIATION**2))

    def lengths(mean: float, name: str, most: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        normal = draws.normals(draws.key(seed, name), len(arrival))
        return np.clip(np.exp(np.log(mean) - sigma**2 / 2 + sigma * normal), 1, most).astype(np.int64)

    return Requests(
        arrival_seconds=arrival,
        prompt_tokens=lengths(PROMPT, "prompt", 8000),
        output_tokens=lengths(OUTPUT, "output", 4000),
    )


@cache
def recorded(
    name: str,
    low: float,
    high: float,
    *,
    seconds: int = 1800,
    replicas: int = 1,
    levels: int = 6,
    interval: int = 10,
    seed: int = 1,
) -> list[Observation]:
    """Observations of the profile `name` at `low` to `high` of the rate at which its mean ITL is 50 ms."""
    known = profile(name)
    mix = Mix(prompt=PROMPT, output=OUTPUT, prompt_cv=VARIATION, output_cv=VARIATION)
    rates = np.linspace(low, high, levels) * itl_rate(laws_of(known)[1], mix, 0.05) * replicas
    fleet = Fleet([PoolModel(name="pool", replica=replica_model(known))], arrivals(rates, seconds, seed))
    for _ in range(replicas):
        fleet.add(0)
    scraper = Scraper("pool", Slo(), known.kv_capacity_tokens)
    observations = []
    for second in range(interval, seconds + 1, interval):
        fleet.advance(float(second))
        observations.append(
            scraper.observe(
                1_700_000_000 + second,
                interval,
                Replicas(desired=replicas, ready=replicas),
                lambda: (fleet.gauges(0), fleet.counters(0)),
            )  # fmt: skip
        )
    return observations
