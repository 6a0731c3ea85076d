"""Changed copies of frozen values, in half the time that `dataclasses.replace` takes: a step makes twenty of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

T = TypeVar("T")


def replace(value: T, /, **changes: Any) -> T:
    """`value`, of a dataclass with slots, with `changes`; its own checks are made again.

    All else is shared with `value`, what its constructor does not take too.  Raises TypeError for a name that is no field.
    """
    cls: Any = type(value)
    slots = _slots_of(cls)
    new: T = object.__new__(cls)
    for put, old in zip(slots.puts.values(), slots.read(value), strict=True):
        put(new, old)
    for name, changed in changes.items():
        if name not in slots.puts:
            raise TypeError(f"{cls.__name__} has no field {name!r}")
        slots.puts[name](new, changed)
    if slots.check is not None:
        slots.check(new)
    return new


@dataclass(frozen=True, slots=True)
class _Slots:
    """How the fields of a class are read, all at once, and put, each by its name; and how it checks itself."""

    read: Callable[[Any], tuple[Any, ...]]
    puts: dict[str, Callable[[Any, Any], None]]
    check: Callable[[Any], None] | None


@cache
def _slots_of(cls: Any) -> _Slots:
    names = [f.name for f in fields(cls)]
    return _Slots(
        # One name alone would not be read into a tuple.
        read=attrgetter(*names) if len(names) > 1 else lambda value: tuple([getattr(value, n) for n in names]),
        puts={name: getattr(cls, name).__set__ for name in names},
        check=getattr(cls, "__post_init__", None),
    )
