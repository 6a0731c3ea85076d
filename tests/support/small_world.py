"""A small simulated world: an 8B replica, ten minutes to an hour of traffic, starts of about half a minute."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from autoscaler.embed import Pool
from autoscaler.settings import Slo
from load_tests import draws
from load_tests.births import StartupModel
from load_tests.contestants import PeerContestant, PoolContestant
from load_tests.fleet import PoolModel, Requests
from load_tests.peers import Peer
from load_tests.scenario import Startup, replica_model, startup_of
from load_tests.simulator import Setup
from serving.profiles import profile

PROFILE = "llama-3.1-8b_bf16_h100_tp1"


@cache
def requests(seconds: float = 1200.0, peak_per_second: float = 80.0, seed: int = 1) -> Requests:
    """A ramp from a tenth of the peak to the peak and back, lognormal lengths."""
    stream = draws.key(seed, "small world")
    unit = np.cumsum(draws.exponentials(stream, int(2 * peak_per_second * seconds)))
    grid = np.linspace(0.0, seconds, 1001)
    rate = peak_per_second * (0.1 + 0.9 * np.sin(np.pi * grid / seconds) ** 2)
    total = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(grid))])
    arrivals = np.interp(unit[unit < total[-1]], total, grid)
    n = len(arrivals)
    prompts = np.clip(np.exp(6.0 + 0.6 * draws.normals(draws.key(seed, "p"), n)), 1, 4000).astype(np.int64)
    outputs = np.clip(np.exp(4.5 + 0.6 * draws.normals(draws.key(seed, "o"), n)), 1, 1000).astype(np.int64)
    return Requests(arrival_seconds=arrivals, prompt_tokens=prompts, output_tokens=outputs)


def setup(**changes: Any) -> Setup:
    """The world, with whatever a test wants otherwise."""
    known = profile(PROFILE)
    world = Setup(
        scenario="small world",
        seed=1,
        pools=(PoolModel(name="pool", replica=replica_model(known)),),
        requests=requests(),
        startup=StartupModel.of(
            startup_of(Startup(profile="warm_node_local")), weights_gb=known.weights_gb, layers=known.layers
        ),
        slo=Slo(),
        initial=(1,),
        end_seconds=1200.0,
        origin_at_seconds=1_700_000_000,
    )
    return replace(world, **changes)


def ours(log: Any = None, **section: Any) -> PoolContestant:
    """A pool of this library that knows the profile."""
    base = {
        "name": "pool", "replica": {"profile": PROFILE}, "startup": {"profile": "warm_node_local"},
        "limits": {"min_replicas": 1, "max_replicas": 20},
    }  # fmt: skip
    pool = Pool.from_config({**base, **section})
    return PoolContestant("ours", pool, pool.settings.slo, profile(PROFILE).kv_capacity_tokens, log=log)


def theirs(peer: Peer) -> PeerContestant:
    """A peer."""
    return PeerContestant(peer)
