"""Means over equal cells of time, kept in persistent chunks: appending shares all but the last chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CHUNK = 64  # cells per chunk: an append copies at most so many values, and now and then one pointer per chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Values of the cells number `first`, `first + 1`, ... without holes; None = masked (not measured, never zero).

    `keep`: at least so many of the newest cells stay; older ones leave a chunk at a time.
    """

    keep: int
    first: int = 0
    chunks: tuple[tuple[float | None, ...], ...] = ()
    tail: tuple[float | None, ...] = ()

    @property
    def stop(self) -> int:
        """Number of the cell after the last one."""
        return self.first + CHUNK * len(self.chunks) + len(self.tail)

    def extended(self, values: Sequence[float | None]) -> Cells:
        """These cells and `values` behind them.

        >>> Cells(keep=3).extended([1.0, None]).extended([2.0]).between(0, 9)
        (1.0, None, 2.0)
        """
        first, chunks, tail = self.first, self.chunks, (*self.tail, *values)
        if len(tail) < CHUNK:
            return Cells(keep=self.keep, first=first, chunks=chunks, tail=tail)
        whole = len(tail) // CHUNK
        chunks += tuple(tail[i * CHUNK : (i + 1) * CHUNK] for i in range(whole))
        tail = tail[whole * CHUNK :]
        spare = (CHUNK * len(chunks) + len(tail) - self.keep) // CHUNK
        if spare > 0:
            first, chunks = first + spare * CHUNK, chunks[spare:]
        return Cells(keep=self.keep, first=first, chunks=chunks, tail=tail)

    def between(self, start: int, stop: int) -> tuple[float | None, ...]:
        """The kept ones of the cells number `start` to `stop` - 1."""
        full = CHUNK * len(self.chunks)
        low, high = max(start - self.first, 0), min(stop - self.first, full + len(self.tail))
        if high <= low:
            return ()
        if low >= full:
            return self.tail[low - full : high - full]
        i, j = low // CHUNK, (high - 1) // CHUNK
        if i == j:
            return self.chunks[i][low - i * CHUNK : high - i * CHUNK]
        parts = list(self.chunks[i][low - i * CHUNK :])
        for chunk in self.chunks[i + 1 : j]:
            parts += chunk
        parts += (self.tail if j == len(self.chunks) else self.chunks[j])[: high - j * CHUNK]
        return tuple(parts)

    def last(self) -> float | None:
        """The newest value; None if there is none or it is masked."""
        if self.tail:
            return self.tail[-1]
        return self.chunks[-1][-1] if self.chunks else None


def mean_known(values: Sequence[float | None], least_fraction: float = 0.8) -> float | None:
    """Mean of the known values; None (masked) if fewer than `least_fraction` of them are known."""
    known = [v for v in values if v is not None]
    if not known or len(known) < least_fraction * len(values):
        return None
    return sum(known) / len(known)


def largest_known(values: Sequence[float | None], least_fraction: float = 0.0) -> float | None:
    """Largest of the known values; None if none, or fewer than `least_fraction` of them, are known."""
    known = [v for v in values if v is not None]
    if not known or len(known) < least_fraction * len(values):
        return None
    return max(known)
