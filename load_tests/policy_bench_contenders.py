"""Who competes: policies that tune themselves, and peers with one headroom knob each, as shipped and tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from autoscaler.units import replicas_for
from load_tests.campaign import policy_name
from load_tests.peers import HpaSettings, KpaSettings, StaticSettings, peer_of
from load_tests.scenario import Policy, PoolPolicy

# Knobs: so many values, geometric, around the shipped 1; above 1 is more replicas.
KNOBS, LOWEST, HIGHEST = 16, 0.25, 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One row of a comparison.  `settings` are the shipped ones; a policy of this project has no knob."""

    name: str
    settings: Policy
    knobs: tuple[float, ...]

    @property
    def tunes_itself(self) -> bool:
        """Whether it is run once per target, as it is."""
        return isinstance(self.settings, PoolPolicy)

    def at(self, knob: float | None) -> Policy:
        """The settings at a knob, known traps removed; None: as shipped, traps and all."""
        return self.settings if knob is None else with_headroom(self.settings, knob)


def contender(settings: Policy, *, knobs: int = KNOBS, lowest: float = LOWEST, highest: float = HIGHEST) -> Contender:
    """The contender that a policy of a scenario is."""
    name = policy_name(settings)
    if isinstance(settings, PoolPolicy):
        return Contender(name=name, settings=settings, knobs=())
    return Contender(name=name, settings=settings, knobs=geometric(lowest, highest, knobs))


def contenders(policies: Sequence[Policy], *, knobs: int = KNOBS) -> tuple[Contender, ...]:
    """One contender per policy, of those with the same name the first."""
    made = {c.name: c for c in reversed([contender(p, knobs=knobs) for p in policies])}
    return tuple(made[name] for name in dict.fromkeys(policy_name(p) for p in policies))


def geometric(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` values from `low` to `high`, each the same factor above the last; rounded so that their names are short."""
    if count == 1:
        return (1.0,)
    return tuple(float(f"{low * (high / low) ** (i / (count - 1)):.6g}") for i in range(count))


def with_headroom(settings: Policy, headroom: float) -> Policy:
    """A peer's settings with its one knob turned: `headroom` 2 asks for about twice the replicas."""
    if isinstance(settings, PoolPolicy):
        raise ValueError(f"{settings.name} tunes itself and has no knob")
    if isinstance(settings, StaticSettings):
        return replace(settings, replicas=max(1, replicas_for(settings.replicas * headroom)))
    if isinstance(settings, HpaSettings):
        target = getattr(peer_of(settings), "target")  # noqa: B009 - the default depends on the signal
        return replace(settings, target=target / headroom)
    if isinstance(settings, KpaSettings):
        target = settings.spec.container_concurrency_target / headroom
        return replace(settings, spec=replace(settings.spec, container_concurrency_target=target))
    return _with_field(settings, headroom)


def _with_field(settings: Any, headroom: float) -> Policy:
    """The settings of all other peers say what their `headroom` scales and, where they have traps, keep or remove them."""
    known = {f.name for f in fields(settings)}
    changes: dict[str, Any] = {"headroom": settings.headroom * headroom}
    if "traps" in known:
        changes["traps"] = "removed"
    return replace(settings, **changes)  # type: ignore[no-any-return]
