"""`autoscaler replay`: decide again what was recorded, byte for byte, or ask what another config would have decided."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from autoscaler.config import load_config
from autoscaler.embed import autoscaler_for
from autoscaler.errors import ConfigError
from autoscaler.log import (
    fingerprint,
    first_difference,
    is_recording,
    read,
    read_observations,
    replay,
    segments,
    settings_of,
    verify,
)
from autoscaler.record import parse_line
from autoscaler.settings import PoolSettings

_SHOWN = 20

# What was decided, what is decided now, when, and where the two first differ.
Pair = tuple[int, int, int, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("log", type=Path, help="directory of a pool's log, one segment, or a recording (with --config)")
    parser.add_argument("--config", type=Path, help="what would this config have decided? (open loop)")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(arguments: argparse.Namespace) -> int:
    """The exit code; raises ReplayMismatch where a byte differs."""
    if is_recording(arguments.log):
        if arguments.config is None:
            raise ConfigError("--config", "must be given for a recording, which holds no decisions to repeat")
        return _tell(_on_recording(arguments.log, arguments.config), as_json=arguments.json)
    recorded = settings_of(arguments.log)
    if arguments.config is not None:
        return _tell(_on_log(arguments.log, _pool(arguments.config, recorded.name)), as_json=arguments.json)
    header = next(read(segments(arguments.log)[-1]))
    here, there = fingerprint(), header.data.get("fingerprint", {})
    odd = {k: (there.get(k), v) for k, v in here.items() if there.get(k) != v}
    if odd and not arguments.json:
        for name, (was, now) in odd.items():
            print(f"note: recorded with {name} {was}, replayed with {now}", file=sys.stderr)
    count = verify(autoscaler_for(recorded), arguments.log)
    if arguments.json:
        print(json.dumps({"steps": count, "identical": True, "fingerprint_differs": sorted(odd)}))
    else:
        print(f"{count} steps decided again, every byte the same")
    return 0


def _pool(config: Path, name: str) -> PoolSettings:
    pools = {p.name: p for p in load_config(config).pools}
    if name not in pools:
        raise ConfigError("pools", f"must hold {name!r}, the pool of this log")
    return pools[name]


def _on_log(log: Path, pool: PoolSettings) -> Iterator[Pair]:
    for line, step in replay(autoscaler_for(pool), log):
        was, now = line.data["decision"]["replicas"], step.decision.replicas
        where = ""
        if was != now:
            where, _, _ = first_difference(line.data["decision"], parse_line(step.to_json())["decision"])
        yield step.decision.at_seconds, was, now, where


def _on_recording(recording: Path, config: Path) -> Iterator[Pair]:
    """Beside what was asked for at that moment, by whoever decided then."""
    observations = read_observations(recording)
    autoscaler = autoscaler_for(_pool(config, observations[0].pool))
    memory = autoscaler.start()
    for observation in observations:
        step, memory = autoscaler.step(memory, observation)
        yield observation.at_seconds, observation.replicas.desired, step.decision.replicas, "replicas"


def _tell(pairs: Iterable[Pair], *, as_json: bool) -> int:
    differing: list[dict[str, Any]] = []
    count, added = 0, 0
    for at, was, now, where in pairs:
        count, added = count + 1, added + now - was
        if was != now:
            differing.append({"at_seconds": at, "was": was, "now": now, "first_difference": where})
    if as_json:
        print(json.dumps({"steps": count, "open_loop": True, "differing": differing}))
        return 0
    print("open loop: the recorded observations answer to the recorded decisions, not to these")
    for one in differing[:_SHOWN]:
        print(f"  {one['at_seconds']}  {one['was']} -> {one['now']}")
    more = f" (and {len(differing) - _SHOWN} more)" if len(differing) > _SHOWN else ""
    mean = added / count if count else 0.0
    print(f"{len(differing)} of {count} decisions differ{more}, by {mean:+.2f} replicas on average")
    return 0
