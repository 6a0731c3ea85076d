"""Changed copies are what `dataclasses.replace` makes."""

from __future__ import annotations

import dataclasses

import pytest

from autoscaler.copies import replace
from autoscaler.errors import ConfigError
from autoscaler.types import Idle, Replicas, State
from forecast.learned import SeasonalHistory
from forecast.seasonal import Seasonal


@dataclasses.dataclass(frozen=True, slots=True)
class One:
    only: int


@pytest.mark.parametrize(
    ("value", "changes"),
    [
        (State(at_seconds=3, seen=("load",)), {"desired": 4, "seen": ()}),
        (Idle(since_seconds=7), {}),
        (One(1), {"only": 2}),
        (Seasonal(((0, 60),), 10).start()[0], {"mean": 2.5, "shares": (("a", 1.0),)}),  # of a class with a base
    ],
)
def test_a_copy_has_the_changes_and_all_else(value: object, changes: dict[str, object]) -> None:
    before = repr(value)
    assert replace(value, **changes) == dataclasses.replace(value, **changes)  # type: ignore[type-var]
    assert repr(value) == before


def test_a_copy_is_checked_and_frozen() -> None:
    with pytest.raises(ConfigError, match="ready"):
        replace(Replicas(desired=1, ready=1), ready=-1)
    with pytest.raises(TypeError, match="SeasonalHistory has no field 'means'"):
        replace(Seasonal(((0, 60),), 10).start()[0], means=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        replace(Idle(), replicas=2).replicas = 3  # type: ignore[misc]
    assert SeasonalHistory is type(replace(Seasonal(((0, 60),), 10).start()[0]))
