"""Config files: JSON and TOML with the standard library, YAML with the extra."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoscaler.errors import ConfigError
from autoscaler.schema import build
from autoscaler.settings import FileSettings, PoolSettings


def load_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a JSON, TOML or YAML file holds; ConfigError names the file and what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8 text: {error.reason} at byte {error.start}") from None
    data = parse_mapping(text, path)
    if not isinstance(data, dict):
        raise ConfigError(str(path), f"must hold a mapping, not {type(data).__name__}")
    return data


def parse_mapping(text: str, path: Path) -> Any:
    """Parsed text, by the ending of `path`: .json, .toml, and YAML for .yaml and .yml."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            return json.loads(text)
        if suffix == ".toml":
            return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), f"is not {suffix[1:].upper()}: {error}") from None
    if suffix in (".yaml", ".yml"):
        return _yaml(text, path)
    raise ConfigError(str(path), f"the ending {suffix!r} must be one of .json, .toml, .yaml, .yml")


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError(str(path), "reading YAML needs the extra: pip install 'replicast[yaml]'") from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = " ".join(str(error).split())
        raise ConfigError(str(path), f"is not YAML: {first}") from None


def pool_settings(data: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, path: str = "") -> PoolSettings:
    """One pool's section, with the file's defaults under it."""
    if isinstance(data, Mapping):
        data = {**(defaults or {}), **data}
    return build(PoolSettings, data, path)


def load_config(path: Path) -> FileSettings:
    """A whole config file, checked."""
    data = load_mapping(path)
    return build(FileSettings, _with_defaults(data))


def _with_defaults(data: dict[str, Any]) -> dict[str, Any]:
    interval, pools = data.get("interval_seconds"), data.get("pools")
    if interval is None or not isinstance(pools, list):
        return data
    return {**data, "pools": [{"interval_seconds": interval, **p} if isinstance(p, dict) else p for p in pools]}
