"""Finished cells on disk: one small file each, under a name that hashes everything that determines it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from load_tests.policy_bench_cells import CellResult

DEFAULT = "replicast/policy_bench"


def default_directory() -> Path:
    """Below the user's cache directory ($XDG_CACHE_HOME, else ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / DEFAULT


class Cache:
    """Results by key.  A file that is damaged counts as none; a file appears whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, key: str) -> Path:
        """Where the result of a key is kept."""
        return self.directory / key[:2] / f"{key}.json"

    def get(self, key: str) -> CellResult | None:
        """The result of a key; None if there is none that can be read."""
        try:
            data = json.loads(self.path(key).read_text(encoding="utf-8"))
            return CellResult.from_json(data["result"]) if data["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, result: CellResult) -> None:
        """Keep a result."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump({"key": key, "result": result.to_json()}, out)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
