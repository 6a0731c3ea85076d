"""Short forms of `load_tests.bench_capacity_world` for tests: a profile's simulated replicas, and a pool that looks on."""

from __future__ import annotations

from collections.abc import Callable

from autoscaler.embed import Pool
from autoscaler.settings import Slo
from autoscaler.types import Observation
from load_tests import bench_capacity_world as worlds
from load_tests.measured import replica_model
from serving.closed_forms import Mix
from serving.profiles import profile


def world(name: str, mix: Mix, replicas: int = 2, **more) -> worlds.World:
    """Replicas of a profile under the default promise."""
    return worlds.World(model=replica_model(profile(name)), mix=mix, replicas=replicas, slo=Slo(), **more)


def observations(
    name: str, mix: Mix, replicas: int, rate: Callable[[float], float], seconds: float, **more
) -> list[Observation]:
    return worlds.observations(world(name, mix, replicas), rate, seconds, **more)


def pool_that_saw(seen: list[Observation], **replica: object) -> Pool:
    """A pool after these Observations."""
    return worlds.watch(Pool.from_config({"name": "chat", "replica": replica}), seen)
