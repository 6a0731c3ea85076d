"""One canonical spelling of every value: a Step is one line, and the line gives the same Step back.

Lines are JSON objects.  Fields come in the order of the class, those that are None or equal their default are left out, and
a number has one spelling (floats as Python prints them, -0.0 as 0.0).  So the same Step is the same bytes on one version of
Python, and a field added later leaves old lines as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, Literal, TypeVar, get_args, get_origin

from autoscaler.errors import LogError
from autoscaler.schema import hints, is_union
from autoscaler.types import Beliefs, Memory, Step

T = TypeVar("T")
Encoder = Callable[[Any], str]
Decoder = Callable[[Any], Any]

FORMAT_VERSION = 1


def encode(value: object) -> str:
    """The canonical JSON text of a frozen dataclass."""
    of: Any = type(value)
    return encoder_of(of)(value)


def encode_line(kind: str, value: object) -> str:
    """The canonical log line of `value`, an object with its type first, without a line end."""
    body = encode(value)
    return f'{{"type":"{kind}"}}' if body == "{}" else f'{{"type":"{kind}",{body[1:]}'


def decode(cls: type[T], data: object) -> T:
    """The value of class `cls` that parsed JSON `data` spells.  Raises LogError when it does not spell one."""
    try:
        of: Any = cls
        result: T = decoder_of(of)(data)
    except LogError:
        raise
    except Exception as error:  # whatever a broken line does to a constructor
        raise LogError(f"{cls.__name__} cannot be read: {error}") from error
    return result


def encode_memory(memory: Memory) -> str:
    """The canonical text of a whole Memory, with the models' own values in it."""
    last = f',"last_step":{encode(memory.last_step)}' if memory.last_step is not None else ""
    recent = ",".join(map(encode, memory.recent))
    return (
        f'{{"pool":{json.dumps(memory.pool)},"state":{encode(memory.state)},"recent":[{recent}]'
        f',"history":{encode(memory.history)},"refits":{memory.beliefs.refits}'
        f',"forecast":{encode(memory.beliefs.forecast)},"capacity":{encode(memory.beliefs.capacity)}{choice_text(memory.beliefs)}{last}}}'
    )


def choice_text(beliefs: Beliefs) -> str:
    """The field of the choice in a JSON object; nothing where none was made."""
    return f',"choice":{encode(beliefs.choice)}' if beliefs.choice is not None else ""


def parse_line(text: str) -> dict[str, Any]:
    """The JSON object of one line.  Raises LogError."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise LogError(f"not a JSON line: {error}") from error
    if not isinstance(data, dict):
        raise LogError("not a JSON object")
    return data


def step_of(data: Mapping[str, Any]) -> Step:
    """The Step of a parsed ``step`` line."""
    return decode(Step, {k: v for k, v in data.items() if k != "type"})


@lru_cache(maxsize=4096)
def _float_text(value: float) -> str:
    # Counts are mostly small whole numbers, and a Step says many numbers twice: looking one up is cheaper than spelling it.
    number = float(value) + 0.0
    if not math.isfinite(number):
        raise ValueError(f"{number} has no place in a log: unknown is None")
    return repr(number)


def _floats_text(values: tuple[float, ...]) -> str:
    return f"[{','.join(map(_float_text, values))}]"


_bounds_text = lru_cache(maxsize=256)(_floats_text)


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return json.dumps(text)


@cache
def encoder_of(annotation: Any) -> Encoder:
    """The function that spells values of a type."""
    if annotation is bool:
        return lambda v: "true" if v else "false"
    if annotation is int:
        return lambda v: str(int(v))
    if annotation is float:
        return _float_text
    if annotation is str:
        return _quoted
    if get_origin(annotation) is Literal:
        return json.dumps
    if is_union(annotation):
        return _union_encoder(annotation)
    if get_origin(annotation) is tuple:
        return _tuple_encoder(get_args(annotation))
    if is_dataclass(annotation):
        return _class_encoder(annotation)  # type: ignore[arg-type]
    return _any_text


def _any_text(value: Any) -> str:
    return "null" if value is None else encode(value)


def _union_encoder(annotation: Any) -> Encoder:
    members = [m for m in get_args(annotation) if m is not type(None)]
    if len(members) == 1:
        inner = encoder_of(members[0])
        return lambda v: "null" if v is None else inner(v)
    if set(members) <= {int, float, str, bool}:
        return _scalar_text
    return _any_text


def _scalar_text(value: Any) -> str:
    if value is None:
        return "null"
    if type(value) is float:
        return _float_text(value)
    if isinstance(value, str):
        return _quoted(value)
    return json.dumps(value) if isinstance(value, bool) else _float_text(value)


def _tuple_encoder(arguments: tuple[Any, ...]) -> Encoder:
    if len(arguments) == 2 and arguments[1] is ...:
        if arguments[0] is float:
            return _floats_text
        item = encoder_of(arguments[0])
        return lambda v: "[" + ",".join([item(i) for i in v]) + "]"
    items = [encoder_of(a) for a in arguments]
    if len(items) == 2:
        one, two = items
        return lambda v: f"[{one(v[0])},{two(v[1])}]"
    return lambda v: "[" + ",".join([e(i) for e, i in zip(items, v, strict=True)]) + "]"


def _class_encoder(cls: type) -> Encoder:
    known = hints(cls)
    names = [f.name for f in fields(cls)]
    parts = [
        (f'"{f.name}":', _bounds_text if f.name == "upper_bounds" else encoder_of(known[f.name]), f.default)
        for f in fields(cls)
    ]
    # All fields in one call, where there are several: with one alone it would not give a tuple.
    values_of = attrgetter(*names) if len(names) > 1 else lambda value: [getattr(value, name) for name in names]

    def encode_class(value: Any) -> str:
        rows = zip(parts, values_of(value), strict=True)
        told = [label + text(v) for (label, text, default), v in rows if v is not None and v != default]
        return f"{{{','.join(told)}}}"

    return encode_class


@cache
def decoder_of(annotation: Any) -> Decoder:
    """The function that makes a value of a type out of parsed JSON."""
    if annotation is float:
        return _float_of
    if annotation in (int, str, bool):
        return lambda v: _checked(annotation, v)
    if get_origin(annotation) is Literal:
        return lambda v: v
    if is_union(annotation):
        members = [m for m in get_args(annotation) if m is not type(None)]
        if len(members) == 1:
            inner = decoder_of(members[0])
            return lambda v: None if v is None else inner(v)
        return lambda v: float(v) if isinstance(v, int) and not isinstance(v, bool) else v
    if get_origin(annotation) is tuple:
        return _tuple_decoder(get_args(annotation))
    if is_dataclass(annotation):
        return _class_decoder(annotation)  # type: ignore[arg-type]
    raise LogError(f"{annotation} cannot be read back")


def _checked(annotation: type, value: Any) -> Any:
    if type(value) is not annotation:
        raise LogError(f"{value!r} must be {annotation.__name__}")
    return value


def _float_of(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise LogError(f"{value!r} must be a number")


def _tuple_decoder(arguments: tuple[Any, ...]) -> Decoder:
    if len(arguments) == 2 and arguments[1] is ...:
        item = decoder_of(arguments[0])
        return lambda v: tuple([item(i) for i in v])
    items = [decoder_of(a) for a in arguments]
    return lambda v: tuple([d(i) for d, i in zip(items, v, strict=True)])


def _class_decoder(cls: type) -> Decoder:
    known: dict[str, Decoder] = {}

    def decode_class(data: Any) -> Any:
        if not known:
            known.update({f.name: decoder_of(hints(cls)[f.name]) for f in fields(cls)})
        if not isinstance(data, Mapping):
            raise LogError(f"{data!r} must be an object")
        unknown = [k for k in data if k not in known]
        if unknown:
            raise LogError(f"{cls.__name__} has no field {unknown[0]!r}")
        return cls(**{name: known[name](value) for name, value in data.items()})

    return decode_class
