"""The defaults that claims were measured with: written down before test days are run, and compared ever after.

python -m load_tests.policy_bench_frozen            what differs from the file
python -m load_tests.policy_bench_frozen --write    freeze this tree's; commit the file, then run `bench policy --claims`
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import autoscaler
from autoscaler import settings
from load_tests.policy_bench_cells import is_ours

FILE = Path(str(files("load_tests") / "data" / "frozen_defaults.json"))
ADVICE = (
    "Defaults were changed since the claims of docs/results.md were measured. Choose on train days only; then"
    " `python -m load_tests.policy_bench_frozen --write`, commit the file, run `autoscaler bench policy --claims`, write the run"
    " into load_tests/test_runs.md and its tables into docs/results.md."
)
# How a pool is run and written down, not what it decides.
_HOSTS = ("LogSettings", "FileSettings", "TargetSettings", "PrometheusSettings", "ScrapeSettings")


def defaults() -> dict[str, Any]:
    """Every default of the settings that decide, by class and field."""
    return dict(sorted(_defaults()))


def _defaults() -> Iterator[tuple[str, Any]]:
    for name, kind in vars(settings).items():
        if (
            not (isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == settings.__name__)
            or name in _HOSTS
        ):
            continue
        for one in fields(kind):
            if one.default is not MISSING:
                yield f"{name}.{one.name}", _plain(one.default)
            elif one.default_factory is not MISSING:
                yield f"{name}.{one.name}", _plain(one.default_factory())


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value))


def sources() -> dict[str, str]:
    """Hash of each file of the decision core: constants that are no settings are in there."""
    found = {}
    for package in ("autoscaler", "forecast", "serving"):
        root = Path(str(files(package)))
        for path in sorted(root.rglob("*.py")):
            name = f"{package}/{path.relative_to(root).as_posix()}"
            if is_ours(name):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


def frozen() -> dict[str, Any]:
    """The file."""
    known: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return known


def differences(known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A sentence per default that is not what it was, is new or is gone."""
    told = []
    for name in sorted({*known, *now}):
        if name not in now:
            told.append(f"{name} is gone; it was {known[name]!r}")
        elif name not in known:
            told.append(f"{name} = {now[name]!r} is new")
        elif known[name] != now[name]:
            told.append(f"{name} = {now[name]!r} was {known[name]!r}")
    return told


def main(arguments: Sequence[str]) -> int:
    """Write the file, or say what differs from it: 1 where a default does."""
    if list(arguments) == ["--write"]:
        told = {"version": autoscaler.__version__, "commit": _commit(), "defaults": defaults(), "sources": sources()}
        FILE.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        print(f"{FILE}: {len(told['defaults'])} defaults, {len(told['sources'])} files")
        return 0
    known = frozen()
    changed = differences(known["defaults"], defaults())
    files_changed = differences(known["sources"], sources())
    print("\n".join(changed) or f"The defaults are those frozen at {known['commit']}.")
    print(f"{len(files_changed)} files of the decision core differ from those that ran.")
    if changed:
        print(ADVICE)
    return int(bool(changed))


def _commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=FILE.parent, capture_output=True, text=True, check=False, timeout=30
    )
    return asked.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
