"""How fast the simulator is: a day of a million requests on fifty replicas, and a grid of loads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np

from autoscaler.embed import Pool
from autoscaler.laws.hpa import HpaSpec
from autoscaler.settings import Slo
from load_tests import draws
from load_tests.bench import BenchRow
from load_tests.births import StartupModel
from load_tests.contestants import Contestant, PeerContestant, PoolContestant
from load_tests.fleet import PoolModel, Requests
from load_tests.peers import HpaSettings, peer_of
from load_tests.scenario import Startup, replica_model, startup_of
from load_tests.simulator import Setup, Simulation
from serving.profiles import profile

PROFILE = "llama-3.1-8b_bf16_h100_tp1"
DAY = 86400.0


def rows(quick: bool) -> Iterable[BenchRow]:
    """Seconds for the day, requests per second in a grid, and the time to compile, apart."""
    scale = 10 if quick else 1
    begun = perf_counter()
    seconds(world(2_000, 60.0, 2), [hpa(2)])
    yield BenchRow(name="first use (compiling, or loading what was compiled)", value=perf_counter() - begun, unit="s")
    day = world(1_000_000 // scale, DAY / scale, 50)
    size = f"{'a tenth of ' if quick else ''}1 day, 1 M requests, 50 replicas"
    every = seconds(replace(day, every_step=True), [hpa(50)])
    fast = min(seconds(day, [hpa(50)]) for _ in range(3))
    yield BenchRow(
        name=f"{size}, HPA law every 15 s", value=fast, unit="s", op="<=", goal=1.0 / scale,
        baseline="every step", baseline_value=every,
    )  # fmt: skip
    yield BenchRow(name=f"{size}, auto every 15 s", value=seconds(day, [auto()]), unit="s")
    for name, requests, replicas, per_replica, kv in (
        ("light load", 1_000_000, 50, 0.25, None),
        ("heavy load", 1_000_000, 50, 15.0, None),
        ("overload", 1_000_000, 50, 26.0, 60_000),
        ("5 M requests", 5_000_000, 50, 8.0, None),
    ):
        count = requests // scale
        grid = world(count, count / (per_replica * replicas), replicas, kv_capacity_tokens=kv)
        fast, preempted = timed(grid, [hpa(replicas)])
        slow_count = max(2_000, count // 20)
        slow = world(slow_count, slow_count / (per_replica * replicas), replicas, kv_capacity_tokens=kv)
        stepping = slow_count / seconds(replace(slow, every_step=True), [hpa(replicas)])
        preemptions = f", {preempted:,} preemptions" if preempted else ""
        yield BenchRow(
            name=f"{name}, {count:,} requests{preemptions}", value=count / fast, unit="requests/s", op=">=", goal=500_000,
            baseline=f"every step, {slow_count:,} requests", baseline_value=stepping,
        )  # fmt: skip


def world(count: int, length_seconds: float, replicas: int, kv_capacity_tokens: int | None = None) -> Setup:
    """Poisson arrivals of lognormal 1000/200-token requests on so many 8B replicas."""
    known = profile(PROFILE)
    model = replica_model(known)
    if kv_capacity_tokens is not None:
        model = replace(model, kv_capacity_tokens=kv_capacity_tokens)
    unit = np.cumsum(draws.exponentials(draws.key(7, "bench gaps"), count))
    prompts = draws.normals(draws.key(7, "bench prompts"), count)
    outputs = draws.normals(draws.key(7, "bench outputs"), count)
    requests = Requests(
        arrival_seconds=unit / unit[-1] * length_seconds * (1 - 1e-9),
        prompt_tokens=np.clip(np.exp(np.log(1000) - 0.18 + 0.6 * prompts), 1, 16000).astype(np.int64),
        output_tokens=np.clip(np.exp(np.log(200) - 0.18 + 0.6 * outputs), 1, 4000).astype(np.int64),
    )
    started = startup_of(Startup(profile="warm_node_local"))
    return Setup(
        scenario="bench",
        seed=7,
        pools=(PoolModel(name="pool", replica=model),),
        requests=requests,
        startup=StartupModel.of(started, weights_gb=known.weights_gb, layers=known.layers),
        slo=Slo(),
        initial=(replicas,),
        end_seconds=length_seconds,
        interval_seconds=60,
        origin_at_seconds=1_700_000_000,
    )


def hpa(replicas: int) -> Contestant:
    """Kubernetes' law every 15 s, held at a size."""
    return PeerContestant(peer_of(HpaSettings(spec=HpaSpec(min_replicas=replicas, max_replicas=replicas))))


def auto() -> Contestant:
    """This library's pool every 15 s, held at fifty."""
    pool = Pool.from_config(
        {
            "name": "pool", "interval_seconds": 15, "replica": {"profile": PROFILE},
            "limits": {"min_replicas": 50, "max_replicas": 50},
        }
    )  # fmt: skip
    return PoolContestant("auto", pool, pool.settings.slo, profile(PROFILE).kv_capacity_tokens)


def seconds(setup: Setup, contestants: Sequence[Contestant]) -> float:
    """Wall seconds of one simulation, without making its traffic."""
    return timed(setup, contestants)[0]


def timed(setup: Setup, contestants: Sequence[Contestant]) -> tuple[float, int]:
    """Wall seconds of one simulation, without making its traffic, and its preemptions."""
    simulation = Simulation(setup, contestants)
    begun = perf_counter()
    simulation.run()
    return perf_counter() - begun, simulation.fleet.counters(0).preemptions
