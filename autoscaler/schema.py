"""Settings out of plain mappings: one validator for config, scenarios and profiles, and the JSON Schema it implies.

A settings class is a frozen dataclass whose fields are made by `setting`: default, sentence, range.  `build` checks names,
types and ranges and raises `ConfigError` with the full path; checks across fields belong into ``__post_init__``.
Standard library only, so that an embedded pool says the same sentences as the command line.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from autoscaler.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Bounds of a number (or of every number in a list); `above` and `below` are exclusive."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """True inside the bounds."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def text(self) -> str:
        """The bounds for a person, such as ``in [0, 1]`` or ``> 0``."""
        lower = f"[{self.low:g}" if self.low is not None else f"({self.above:g}" if self.above is not None else ""
        upper = f"{self.high:g}]" if self.high is not None else f"{self.below:g})" if self.below is not None else ""
        if lower and upper:
            return f"in {lower}, {upper}"
        if lower:
            return f">= {lower[1:]}" if lower[0] == "[" else f"> {lower[1:]}"
        if upper:
            return f"<= {upper[:-1]}" if upper[-1] == "]" else f"< {upper[:-1]}"
        return ""


def setting(
    default: Any = MISSING,
    doc: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    factory: Any = MISSING,
) -> Any:
    """A dataclass field with a sentence (unit, why this default, how to turn it off) and a range."""
    metadata = {"doc": " ".join(doc.split()), "range": Range(low=low, high=high, above=above, below=below)}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@cache
def hints(cls: Any) -> dict[str, Any]:
    """Resolved annotations of a dataclass."""
    return get_type_hints(cls)


def is_union(annotation: Any) -> bool:
    """True for ``X | Y`` and ``Union[X, Y]``."""
    return get_origin(annotation) in (Union, types.UnionType)


def build(cls: type[T], data: object, path: str = "") -> T:
    """An instance of the settings class `cls` out of a mapping; ConfigError names the field, the value and the range."""
    if not isinstance(data, Mapping):
        raise ConfigError(path, f"{_shown(data)} must be a mapping with keys among {', '.join(_names(cls))}")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    types_of: dict[str, Any] = hints(cls)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"allowed are {', '.join(_names(cls))}"
            raise ConfigError(_join(path, str(name)), f"unknown key; {hint}")
        here = _join(path, name)
        values[name] = _value(types_of[name], value, here)
        _check_range(known[name], values[name], here)
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(_join(path, name), f"is missing: {f.metadata.get('doc') or 'a value is needed'}")
    try:
        return cls(**values)
    except ConfigError as error:
        raise error.under(path) from None


def _value(annotation: Any, value: Any, path: str) -> Any:
    if annotation is Any or annotation is object:
        return value
    if is_union(annotation):
        return _union(get_args(annotation), value, path)
    origin = get_origin(annotation)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(annotation)):
            return value
        raise ConfigError(path, f"{_shown(value)} must be one of {', '.join(map(str, get_args(annotation)))}")
    if origin is tuple:
        return _tuple(get_args(annotation), value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(path, f"{_shown(value)} must be a mapping")
        of = get_args(annotation)[1]
        return {str(k): _value(of, v, _join(path, str(k))) for k, v in value.items()}
    if isinstance(annotation, type) and is_dataclass(annotation):
        return value if isinstance(value, annotation) else build(annotation, value, path)
    return _scalar(annotation, value, path)


def _scalar(annotation: Any, value: Any, path: str) -> Any:
    if annotation is bool and isinstance(value, bool):
        return value
    if annotation is str and isinstance(value, str):
        return value
    if annotation is int and isinstance(value, int | float) and not isinstance(value, bool) and value == whole(value):
        return int(value)
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool) and _fits_float(value):
        return float(value)
    word = {bool: "true or false", str: "text", int: "a whole number", float: "a finite number"}.get(annotation, "")
    raise ConfigError(path, f"{_shown(value)} must be {word or annotation}")


def whole(value: float) -> int | None:
    """The whole number below 2**63 in size that `value` is, or None if it is not one."""
    return int(value) if abs(value) < 2**63 and value == int(value) else None


def _fits_float(value: float) -> bool:
    """False for infinity, NaN and whole numbers that no float can hold."""
    return abs(value) <= sys.float_info.max


def _tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ConfigError(path, f"{_shown(value)} must be a list")
    if len(arguments) == 2 and arguments[1] is ...:
        return tuple(_value(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise ConfigError(path, f"{_shown(value)} must be a list of {len(arguments)} entries")
    return tuple(_value(a, item, f"{path}[{i}]") for i, (a, item) in enumerate(zip(arguments, value, strict=True)))


def _union(members: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None:
        if type(None) in members:
            return None
        raise ConfigError(path, "is empty: a value is needed")
    rest = [m for m in members if m is not type(None)]
    classes = [m for m in rest if is_dataclass(m)]
    if isinstance(value, Mapping) and classes:
        return _by_kind(classes, value, path)
    if type(value) in classes:
        return value
    error: ConfigError | None = None
    for member in rest:
        try:
            return _value(member, value, path)
        except ConfigError as refused:
            error = error or refused
    assert error is not None
    raise error


def _by_kind(classes: list[Any], value: Mapping[Any, Any], path: str) -> Any:
    if len(classes) == 1:
        return build(classes[0], value, path)
    kinds = {kind_of(c): c for c in classes}
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        said = "is missing;" if kind is None else _shown(kind)
        raise ConfigError(_join(path, "kind"), f"{said} must be one of {', '.join(kinds)}")
    return build(kinds[kind], value, path)


def kind_of(cls: type) -> str:
    """The one `kind` that a settings class answers to."""
    return str(get_args(hints(cls)["kind"])[0])


def _check_range(f: Field[Any], value: Any, path: str) -> None:
    bounds: Range | None = f.metadata.get("range")
    if bounds is None:
        return
    items = value if isinstance(value, tuple) else (value,)
    for item in items:
        if isinstance(item, int | float) and not isinstance(item, bool) and not bounds.holds(item):
            raise ConfigError(path, f"{_shown(item)} must be {bounds.text()}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _names(cls: type) -> list[str]:
    return [f.name for f in fields(cls)]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a settings class: the same names, types, ranges and sentences as `build`."""
    definitions: dict[str, Any] = {}
    root = _object_schema(cls, definitions)
    root = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": cls.__name__, **root}
    if definitions:
        root["$defs"] = dict(sorted(definitions.items()))
    return root


def _object_schema(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties, required = {}, []
    for f in fields(cls):
        schema = _type_schema(hints(cls)[f.name], definitions)
        _add_range(schema, f.metadata.get("range"))
        if f.metadata.get("doc"):
            schema["description"] = f.metadata["doc"]
        if f.default is MISSING and f.default_factory is MISSING:
            required.append(f.name)
        elif f.default is not MISSING and isinstance(f.default, str | int | float | bool | None):
            schema["default"] = f.default
        properties[f.name] = schema
    result = {"type": "object", "additionalProperties": False, "properties": properties}
    if required:
        result["required"] = required
    doc = (cls.__doc__ or "").strip().split("\n\n")[0]
    return {**result, "description": " ".join(doc.split())} if doc else result


def _add_range(schema: dict[str, Any], bounds: Range | None) -> None:
    if bounds is None:
        return
    for target in (schema, schema.get("items"), *schema.get("anyOf", ())):
        if isinstance(target, dict) and target.get("type") in ("integer", "number"):
            words = {"minimum": bounds.low, "maximum": bounds.high}
            words |= {"exclusiveMinimum": bounds.above, "exclusiveMaximum": bounds.below}
            target |= {word: limit for word, limit in words.items() if limit is not None}


def _type_schema(annotation: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    simple = {bool: "boolean", str: "string", int: "integer", float: "number", type(None): "null"}
    if annotation in simple:
        return {"type": simple[annotation]}
    if is_union(annotation):
        return {"anyOf": [_type_schema(m, definitions) for m in get_args(annotation)]}
    origin = get_origin(annotation)
    if origin is Literal:
        return {"enum": list(get_args(annotation))}
    if origin is tuple:
        arguments = get_args(annotation)
        if len(arguments) == 2 and arguments[1] is ...:
            return {"type": "array", "items": _type_schema(arguments[0], definitions)}
        items = [_type_schema(a, definitions) for a in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(get_args(annotation)[1], definitions)}
    if isinstance(annotation, type) and is_dataclass(annotation):
        name = annotation.__name__
        if name not in definitions:
            definitions[name] = {}
            definitions[name] = _object_schema(annotation, definitions)
        return {"$ref": f"#/$defs/{name}"}
    return {}
