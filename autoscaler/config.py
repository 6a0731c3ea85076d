"""Config files: JSON and TOML with the standard library, YAML with the extra.  Calendars of events may be files of their own."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoscaler.errors import ConfigError
from autoscaler.schema import build
from autoscaler.settings import EventSettings, FileSettings, PoolSettings

CALENDAR_COLUMNS = ("name", "start", "end", "factor", "time_zone")


def load_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a JSON, TOML or YAML file holds; ConfigError names the file and what is wrong with it."""
    data = parse_mapping(_text(path), path)
    if not isinstance(data, dict):
        raise ConfigError(str(path), f"must hold a mapping, not {type(data).__name__}")
    return data


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8 text: {error.reason} at byte {error.start}") from None


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
    """A whole config file, checked.  `events` of a pool may be the path of a calendar, from the folder of the file."""
    data = _with_defaults(load_mapping(path))
    pools = data.get("pools")
    if isinstance(pools, list):
        data = {
            **data,
            "pools": [_with_profile(_with_calendar(p, i, path.parent), i, path.parent) for i, p in enumerate(pools)],
        }
    return build(FileSettings, data)


def _with_profile(pool: Any, index: int, folder: Path) -> Any:
    """A pool's section with the numbers of a calibrated profile where its path stood: a log must be replayed alone."""
    replica = pool.get("replica") if isinstance(pool, dict) else None
    named = replica.get("profile") if isinstance(replica, dict) else None
    if (
        not isinstance(replica, dict)
        or not isinstance(named, str)
        or Path(named).suffix.lower() not in (".toml", ".json", ".yaml", ".yml")
    ):
        return pool
    where = f"pools[{index}].replica.profile"
    try:
        numbers = profile_numbers(load_mapping(folder / named))
    except ConfigError as error:
        raise ConfigError(where, str(error)) from None
    own = {name: value for name, value in replica.items() if name != "profile"}
    return {**pool, "replica": {**numbers, **own}}


def profile_numbers(data: Mapping[str, Any]) -> dict[str, Any]:
    """The section `replica` that says what a calibrated profile's file does: its law with host time, limits and sizes."""
    rows = data.get("profiles", [data])
    if not isinstance(rows, list) or len(rows) != 1 or not isinstance(rows[0], Mapping):
        raise ConfigError("profiles", "must hold exactly one profile")
    row = {"host": data.get("host"), **rows[0]}
    law, host = row.get("roofline"), row.get("host")
    if not isinstance(law, Mapping) or not isinstance(host, Mapping):
        raise ConfigError("roofline", "and host must be tables, as `autoscaler calibrate --out` writes them")
    numbers = {
        name: _number(law, "roofline", name) for name in ("a", "b", "c", "d", "e", "floor_tokens") if name in law
    }
    numbers["a"] = numbers.get("a", 0.0) + _number(host, "host", "per_step_seconds")
    numbers["c"] = numbers.get("c", 0.0) + _number(host, "host", "per_sequence_seconds")
    limits = ("kv_capacity_tokens", "max_num_seqs", "max_num_batched_tokens", "layers", "weights_gb")
    return {"law": numbers, **{name: row[name] for name in limits if name in row}}


def _number(table: Mapping[str, Any], where: str, name: str) -> float:
    value = table.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}.{name}", f"{value!r} must be a number")
    return float(value)


def load_calendar(path: Path) -> list[dict[str, Any]]:
    """The events of a file, each checked: CSV with a heading, or a JSON, TOML or YAML file with a list `events`."""
    text = _text(path)
    if path.suffix.lower() == ".csv":
        rows: Any = _calendar_rows(text, path)
    else:
        data = parse_mapping(text, path)
        rows = data.get("events") if isinstance(data, dict) else data
        if not isinstance(rows, list):
            raise ConfigError(f"{path}: events", "must be a list of events")
    for i, row in enumerate(rows):
        build(EventSettings, row, f"{path}: events[{i}]")
    return list(rows)


def _calendar_rows(text: str, path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV calendar; an empty cell is a setting left out, a line that begins with # none at all."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    reader = csv.DictReader(lines, skipinitialspace=True)
    unknown = [name for name in reader.fieldnames or () if name not in CALENDAR_COLUMNS]
    if unknown or not reader.fieldnames:
        raise ConfigError(f"{path}: heading", f"must name columns of {', '.join(CALENDAR_COLUMNS)}, not {unknown!r}")
    rows = []
    for i, cells in enumerate(reader):
        if None in cells or None in cells.values():
            raise ConfigError(f"{path}: events[{i}]", f"must have {len(reader.fieldnames)} cells, as the heading has")
        row: dict[str, Any] = {name: cell.strip() for name, cell in cells.items() if cell.strip()}
        try:
            row.update({"factor": float(row["factor"])} if "factor" in row else {})
        except ValueError:
            raise ConfigError(f"{path}: events[{i}].factor", f"{row['factor']!r} must be a number") from None
        rows.append(row)
    return rows


def _with_calendar(pool: Any, number: int, folder: Path) -> Any:
    if not isinstance(pool, dict) or not isinstance(pool.get("events"), str):
        return pool
    if not pool["events"]:
        raise ConfigError(f"pools[{number}].events", "must be a list of events, or the path of a calendar")
    return {**pool, "events": load_calendar(folder / pool["events"])}


def _with_defaults(data: dict[str, Any]) -> dict[str, Any]:
    interval, pools = data.get("interval_seconds"), data.get("pools")
    if interval is None or not isinstance(pools, list):
        return data
    return {**data, "pools": [{"interval_seconds": interval, **p} if isinstance(p, dict) else p for p in pools]}
