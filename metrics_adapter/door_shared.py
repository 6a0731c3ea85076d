"""One door in several worker processes: each keeps its counts in a file of its own, and any of them tells the sum.

The files stay when a worker ends, so that sums never fall; what was in flight in a worker that died is nowhere any more.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

FIELDS = ("requests", "prompt_tokens", "rejected", "failed", "finished", "hung_up", "in_flight")
_ALL = struct.Struct(f"={len(FIELDS)}d")
_FLIGHT = FIELDS.index("in_flight")


class SharedCounts:
    """This process's file among those of `folder` (on this host, best in memory: /dev/shm) for a pool.

    A lock tells that its process lives.  Not for several hosts: scrape each.
    """

    def __init__(self, folder: Path, pool: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._prefix = folder, f"{quote(pool, safe='')}."
        self.process = os.getpid()
        handle, name = tempfile.mkstemp(prefix=self._prefix, suffix=".door", dir=folder)
        self.path = Path(name)
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.ftruncate(handle, _ALL.size)
        self._handle, self._memory = handle, mmap.mmap(handle, _ALL.size)

    def write(self, counts: Sequence[float]) -> None:
        """Publish this process's counts, in the order of FIELDS."""
        _ALL.pack_into(self._memory, 0, *counts)

    def total(self) -> tuple[float, ...]:
        """Sums over all processes, dead ones included, in the order of FIELDS."""
        sums = [0.0] * len(FIELDS)
        for path in self.folder.glob(f"{self._prefix}*.door"):
            counts = self._read(path)
            if counts is not None:
                sums = [a + b for a, b in zip(sums, counts, strict=True)]
        return tuple(sums)

    def _read(self, path: Path) -> list[float] | None:
        try:
            with path.open("rb") as file:
                data = file.read(_ALL.size)
                if len(data) < _ALL.size:  # made this very moment
                    return None
                counts = list(_ALL.unpack(data))
                if path != self.path and _abandoned(file.fileno()):
                    counts[_FLIGHT] = 0.0
        except FileNotFoundError:
            return None
        return counts

    def close(self) -> None:
        """Let the file go; its counts stay."""
        self._memory.close()
        os.close(self._handle)


def _abandoned(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
