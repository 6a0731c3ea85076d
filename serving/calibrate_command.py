"""The command ``autoscaler calibrate``: reads recordings, prints what was learned, writes profiles."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from autoscaler.errors import ConfigError
from autoscaler.log import observations_of
from serving.calibrate import Calibration, Error, calibrate, startup_profile_of, startups
from serving.profiles import Profile, load_profile, profile, profile_ids

NEED = "id, layers, weights_gb, kv_bytes_per_token, kv_capacity_tokens, max_num_seqs, max_num_batched_tokens"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("recording", type=Path, nargs="+", help="step log, its directory, or recorded observations")
    parser.add_argument("--pool", help="only this pool, where the recording has several")
    parser.add_argument("--prior", help="profile (id or file) for what the data do not tell, and for sizes")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help=f"field of the profile: {NEED}"
    )
    parser.add_argument("--out", type=Path, help="write the profile here (.toml or .json; default: print TOML)")
    parser.add_argument("--startup", type=Path, help="write a start-up profile here, if three starts or more were seen")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Calibrate; the exit code."""
    prior = _prior(arguments.prior)
    given = dict(_assigned(text) for text in arguments.set)
    recorded = [o for path in arguments.recording for o in observations_of(path)]
    pools = sorted({o.pool for o in recorded})
    if arguments.pool is not None:
        if arguments.pool not in pools:
            raise ConfigError(
                "--pool", f"{arguments.pool!r} must be one of {', '.join(pools) or 'none: nothing is recorded'}"
            )
        recorded = [o for o in recorded if o.pool == arguments.pool]
    elif len(pools) > 1:
        raise ConfigError("--pool", f"must name one of {', '.join(pools)}: each is calibrated apart")
    seconds, lost = startups(recorded)
    born = startup_profile_of(seconds) if arguments.startup is not None else None
    learned = calibrate(recorded, prior, given)
    text = toml(asdict(learned.profile))
    if arguments.json:
        print(json.dumps({**asdict(learned), "startup_seconds": seconds}))
    else:
        print(_told(learned), file=sys.stderr)
        if seconds or lost:
            print(f"starts: {len(seconds)} seen from order to ready, {lost} ended otherwise", file=sys.stderr)
    if arguments.out is not None:
        _write(arguments.out, asdict(learned.profile))
    elif not arguments.json:
        print(text, end="")
    if born is not None:
        _write(arguments.startup, asdict(born))
    return 0


def _prior(name: str | None) -> Profile | None:
    if name is None or name in profile_ids():
        return None if name is None else profile(name)
    return load_profile(name) if Path(name).suffix else profile(name)


def _assigned(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    allowed = [f.name for f in fields(Profile) if f.name not in ("linear", "roofline", "host")]
    if not equals or name not in allowed:
        raise ConfigError("--set", f"{text!r} must be NAME=VALUE with a NAME among {', '.join(allowed)}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _told(learned: Calibration) -> str:
    low, high = learned.running
    lines = [
        f"{learned.rows} windows used, {low:.1f} to {high:.1f} requests running on a replica",
        f"held-out windows: {_error(learned.held_out)}",
    ]
    if learned.skipped:
        lines.insert(1, f"left out: {learned.skipped}")
    if learned.busier is not None:
        lines.append(f"the busier half, predicted from the quieter: {_error(learned.busier)}")
    law = learned.profile.roofline
    values = {"a": law.a, "b": law.b, "c": law.c, "d": law.d}
    lines.append(f"step law, floor {law.floor_tokens:g} tokens:")
    for name, told, share in learned.told:
        said = f"{100 * told:.0f} % told by the data, {100 * share:.0f} % of the step time"
        lines.append(f"  {name} {values[name]:.3g} s: {said}")
    if learned.from_prior:
        lines.append(f"from the prior, not from the data: {', '.join(learned.from_prior)}")
    return "\n".join(lines)


def _error(error: Error) -> str:
    return (
        f"step time off by {error.mape_percent:.1f} % on average, {error.p95_percent:.1f} % at the 95 % quantile, "
        f"bias {error.bias_percent:+.1f} % ({error.windows} windows)"
    )


def _write(path: Path, data: Mapping[str, Any]) -> None:
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json"):
        raise ConfigError(str(path), f"the ending {suffix!r} must be one of .toml, .json")
    shown = _shown(data)
    path.write_text(toml(data) if suffix == ".toml" else json.dumps(shown, indent=2) + "\n", encoding="utf-8")


def _shown(value: Any) -> Any:
    """Without what is None or empty."""
    if isinstance(value, Mapping):
        return {k: _shown(v) for k, v in value.items() if v is not None and v != ""}
    return [_shown(v) for v in value] if isinstance(value, list | tuple) else value


def toml(data: Mapping[str, Any]) -> str:
    """Flat fields, then tables, then arrays of tables; what is None or empty is left out."""
    shown = _shown(data)
    flat = {k: v for k, v in shown.items() if not _nested(v)}
    lines = [f"{k} = {json.dumps(v)}" for k, v in flat.items()]
    for key, value in shown.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *(f"{k} = {json.dumps(v)}" for k, v in value.items())]
        elif _nested(value):
            for row in value:
                lines += ["", f"[[{key}]]", *(f"{k} = {json.dumps(v)}" for k, v in row.items())]
    return "\n".join(lines) + "\n"


def _nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))
