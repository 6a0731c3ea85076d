"""Who competes: policies that tune themselves, and peers with one headroom knob each, as shipped and tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoscaler.errors import ConfigError
from load_tests.campaign import policy_name
from load_tests.peers import (
    AibrixSettings,
    HpaSettings,
    KedaTokenSettings,
    KpaSettings,
    LcpSettings,
    RayServeSettings,
    StaticSettings,
    WvaV1Settings,
    WvaV2Settings,
    with_headroom,
    without_traps,
)
from load_tests.policy_bench_cells import Own
from load_tests.scenario import Policy, PoolPolicy

# Knobs: so many values, geometric, around the shipped 1; above 1 is more replicas.
KNOBS, LOWEST, HIGHEST = 16, 0.25, 4.0
# Targets in requests or in shares of the KV cache say little of the SLO: short answers need a fraction of what is shipped.
_LOADS = (KpaSettings, AibrixSettings, KedaTokenSettings, WvaV1Settings, WvaV2Settings, RayServeSettings)
_LOWEST_LOAD, _HIGHEST_LOAD = 0.25, 32.0
# Where the knob is a price, of which replicas are about the logarithm, the range is wider.
_PRICES = (LcpSettings,)
_LOWEST_PRICE, _HIGHEST_PRICE = 0.01, 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One row of a comparison.  `settings` are the shipped ones; a policy of this project has no knob."""

    name: str
    settings: Policy | Own
    knobs: tuple[float, ...]

    @property
    def tunes_itself(self) -> bool:
        """Whether it is run once per target, as it is."""
        return isinstance(self.settings, PoolPolicy)

    def at(self, knob: float | None) -> Policy | Own:
        """The settings at a knob, known traps removed; None: as shipped, traps and all."""
        return self.settings if knob is None else turned(self.settings, knob)


def contender(settings: Policy | Own, *, knobs: int = KNOBS) -> Contender:
    """The contender that a policy of a scenario, or one from outside, is."""
    name = settings.name if isinstance(settings, Own) else policy_name(settings)
    if isinstance(settings, PoolPolicy):
        return Contender(name=name, settings=settings, knobs=())
    low, high = _range(settings)
    return Contender(name=name, settings=settings, knobs=geometric(low, high, knobs))


def _range(settings: Policy | Own) -> tuple[float, float]:
    if isinstance(settings, _PRICES):
        return _LOWEST_PRICE, _HIGHEST_PRICE
    load = isinstance(settings, HpaSettings) and settings.signal in ("running_and_waiting_requests", "waiting_requests")
    return (_LOWEST_LOAD, _HIGHEST_LOAD) if load or isinstance(settings, _LOADS) else (LOWEST, HIGHEST)


def contenders(policies: Sequence[Policy | Own], *, knobs: int = KNOBS) -> tuple[Contender, ...]:
    """One contender per policy.  Raises ConfigError where two have the same name."""
    made = tuple(contender(p, knobs=knobs) for p in policies)
    names = [c.name for c in made]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                "policies", f"{name!r} must be the name of one policy only, since tables tell them by name"
            )
    return made


def geometric(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` values from `low` to `high`, each the same factor above the last; rounded so that their names are short."""
    if count == 1:
        return (1.0,)
    return tuple(float(f"{low * (high / low) ** (i / (count - 1)):.6g}") for i in range(count))


def turned(settings: Policy | Own, headroom: float) -> Policy | Own:
    """A peer's settings with its one knob turned and its known traps mended: `headroom` 2 asks for about twice the replicas."""
    if isinstance(settings, PoolPolicy):
        raise ValueError(f"{settings.name} tunes itself and has no knob")
    if isinstance(settings, Own):
        return replace(settings, headroom=settings.headroom * headroom)  # type: ignore[type-var]
    shipped = 1.0 if isinstance(settings, StaticSettings) else settings.headroom
    return with_headroom(without_traps(settings), float(f"{shipped * headroom:.6g}"))
