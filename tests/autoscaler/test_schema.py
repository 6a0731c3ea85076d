"""One validator says, in one sentence, which field is wrong, what it is and what it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jsonschema
import pytest

from autoscaler.errors import ConfigError
from autoscaler.schema import build, json_schema, setting
from autoscaler.settings import FileSettings, PoolSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Red:
    kind: Literal["red"] = "red"
    warmth: float = setting(0.5, "How warm.", low=0, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blue:
    kind: Literal["blue"] = "blue"
    depth: int = setting(doc="How deep, in metres.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paint:
    name: str = setting(doc="Its name.")
    layers: tuple[Red | Blue, ...] = setting((), "Layers.")
    dry_seconds: int | None = setting(None, "Drying time.", low=1)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({}, "paint.name: is missing: Its name."),
        ({"name": 3}, "paint.name: 3 must be text"),
        ({"name": "a", "nam": "b"}, "paint.nam: unknown key; did you mean name?"),
        ({"name": "a", "colour": 1}, "paint.colour: unknown key; allowed are name, layers, dry_seconds"),
        ({"name": "a", "dry_seconds": 0}, "paint.dry_seconds: 0 must be >= 1"),
        ({"name": "a", "dry_seconds": 1.5}, "paint.dry_seconds: 1.5 must be a whole number"),
        ({"name": "a", "dry_seconds": True}, "paint.dry_seconds: True must be a whole number"),
        ({"name": "a", "layers": "red"}, "paint.layers: 'red' must be a list"),
        ({"name": "a", "layers": [{}]}, "paint.layers[0].kind: is missing; must be one of red, blue"),
        ({"name": "a", "layers": [{"kind": "green"}]}, "paint.layers[0].kind: 'green' must be one of red, blue"),
        ({"name": "a", "layers": [{"kind": "red", "warmth": 2}]}, "paint.layers[0].warmth: 2.0 must be in [0, 1]"),
        ({"name": "a", "layers": [{"kind": "red", "warmth": float("nan")}]},
         "paint.layers[0].warmth: nan must be a finite number"),
        ({"name": "a", "layers": [{"kind": "blue", "depth": 0}]}, "paint.layers[0].depth: 0 must be > 0"),
        ([], "paint: [] must be a mapping with keys among name, layers, dry_seconds"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_sentence(data: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Paint, data, "paint")
    assert str(caught.value) == sentence


def test_a_right_value_is_built() -> None:
    paint = build(
        Paint, {"name": "a", "layers": [{"kind": "blue", "depth": 2.0}, {"kind": "red"}], "dry_seconds": None}
    )
    assert paint == Paint(name="a", layers=(Blue(depth=2), Red(warmth=0.5)))


@pytest.mark.parametrize(
    "data",
    [
        {"name": "p"},
        {"name": "p", "limits": {"min_replicas": 0, "max_replicas": 7}, "strategy": "reactive"},
        {"name": "p", "slo": {"ttft_seconds": -1}},
        {"name": "p", "limits": {"min_replica": 0}},
        {"name": "p", "policies": [{"kind": "backlog"}]},
        {"name": "p", "policies": [{"kind": "backlogs"}]},
        {"name": 7},
        {},
    ],
)
def test_the_json_schema_and_the_validator_agree(data: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(json_schema(PoolSettings))
    try:
        build(PoolSettings, data)
        built = True
    except ConfigError:
        built = False
    assert validator.is_valid(data) == built


def test_the_schema_of_the_file_is_a_schema() -> None:
    schema = json_schema(FileSettings)
    jsonschema.Draft202012Validator.check_schema(schema)
    slo = schema["$defs"]["Slo"]["properties"]["attainment_fraction"]
    assert slo["exclusiveMaximum"] == 1
    assert slo["description"].startswith("Share of arrived requests")
