"""The embedding API: one pool, decided in-process by plain calls.  A promise: it is kept stable and needs no extra.

from autoscaler import Observation, Pool, Replicas

pool = Pool.from_config({"name": "llama-8b", "slo": {"ttft_seconds": 1.0}})
decision = pool.step(Observation(pool="llama-8b", at_seconds=..., window_seconds=10, replicas=Replicas(...)))
decision.replicas, decision.reasons, pool.last_step.to_json()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoscaler.config import load_config
from autoscaler.errors import ConfigError
from autoscaler.log import memory_of
from autoscaler.ports import CapacityModel, Forecaster, Policy
from autoscaler.record import encode_memory, parse_line
from autoscaler.schema import build
from autoscaler.settings import PoolSettings
from autoscaler.step import Autoscaler, forecast_windows, step_group
from autoscaler.types import Decision, Lengths, Memory, Observation, Step
from forecast.seasonal import Seasonal
from serving.capacity_learned import LearnedCapacity


def autoscaler_for(
    settings: PoolSettings,
    *,
    policies: Sequence[Policy] = (),
    forecaster: Forecaster | None = None,
    capacity_model: CapacityModel | None = None,
) -> Autoscaler:
    """The Autoscaler of `settings` with the library's models, or with the caller's own."""
    capacity = capacity_model or LearnedCapacity(settings.replica, settings.startup, settings.slo)
    guess = forecaster or Seasonal(windows_for(settings, capacity), settings.interval_seconds, settings.events)
    return Autoscaler.of(settings, guess, capacity, policies)


def windows_for(settings: PoolSettings, capacity_model: CapacityModel) -> tuple[tuple[int, int], ...]:
    """The windows that decisions ask for, as they are before anything was learned."""
    return forecast_windows(settings, capacity_model.capacity(capacity_model.start(), Lengths(), 1))


class Pool:
    """One pool of replicas: give it Observations, take its Decisions."""

    def __init__(self, autoscaler: Autoscaler, memory: Memory | None = None) -> None:
        self.autoscaler = autoscaler
        self.memory = memory if memory is not None else autoscaler.start()

    @classmethod
    def from_config(
        cls,
        section: Mapping[str, Any],
        *,
        policies: Sequence[Policy] = (),
        forecaster: Forecaster | None = None,
        capacity_model: CapacityModel | None = None,
    ) -> Pool:
        """A pool out of one pool's section of a config file.  Raises ConfigError with one sentence.

        `policies` (objects with a method ``recommend(facts)``) are asked besides, or instead of, those of the strategy:
        where any is given or configured, these alone decide.
        """
        settings = build(PoolSettings, section)
        return cls(autoscaler_for(settings, policies=policies, forecaster=forecaster, capacity_model=capacity_model))

    @classmethod
    def from_file(cls, path: str | Path, name: str | None = None) -> Pool:
        """The pool `name` of a JSON, TOML or (with the extra) YAML file; the only one, if it holds one."""
        pools = load_config(Path(path)).pools
        if name is None and len(pools) == 1:
            return cls(autoscaler_for(pools[0]))
        for settings in pools:
            if settings.name == name:
                return cls(autoscaler_for(settings))
        names = ", ".join(p.name for p in pools)
        raise ConfigError("pools", f"{name!r} must be one of {names}")

    @property
    def settings(self) -> PoolSettings:
        """What was configured."""
        return self.autoscaler.settings

    @property
    def last_step(self) -> Step | None:
        """The Step of the last Decision; its `to_json()` is the canonical log line."""
        return self.memory.last_step

    def backfill(self, observations: Sequence[Observation]) -> None:
        """Take recorded Observations, oldest first, as history."""
        self.memory = self.autoscaler.backfill(self.memory, observations)

    def step(self, observation: Observation) -> Decision:
        """Decide on what is seen now.  The same instant again gives the same Decision."""
        step, self.memory = self.autoscaler.step(self.memory, observation)
        return step.decision

    @staticmethod
    def step_together(pools: Sequence[Pool], observations: Sequence[Observation]) -> list[Decision]:
        """Decide for pools that share a ratio or a quota, in one call: an Observation each, in the order of `pools`."""
        made = step_group([p.autoscaler for p in pools], [p.memory for p in pools], observations)
        for pool, (_, memory) in zip(pools, made, strict=True):
            pool.memory = memory
        return [step.decision for step, _ in made]

    def refit(self) -> None:
        """Better beliefs from what was seen; slow, so call it every 10 to 60 minutes, off the path of decisions."""
        self.memory = self.autoscaler.adopt(self.memory, self.autoscaler.refit(self.memory))

    def snapshot(self) -> str:
        """All that this pool knows, as one line of JSON."""
        return encode_memory(self.memory)

    def restore(self, snapshot: str) -> None:
        """Become the pool that wrote `snapshot`: the next Decision is the one it would have made.  Raises LogError."""
        memory = memory_of(self.autoscaler, parse_line(snapshot))
        if memory.pool != self.settings.name:
            raise ConfigError("snapshot.pool", f"{memory.pool!r} must be {self.settings.name!r}")
        self.memory = memory
