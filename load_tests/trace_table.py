"""CSV text with its lines remembered: what a reader needs to name a wrong cell by file, line, column and allowed range."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoscaler.errors import ConfigError

Floats = NDArray[np.float64]

MAX_TEXT_BYTES = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A CSV file as text: columns by name, and the line each row came from."""

    name: str
    columns: dict[str, tuple[str, ...]]
    lines: tuple[int, ...]

    def error(self, row: int, column: str, allowed: str) -> ConfigError:
        """The sentence for a wrong cell."""
        value = self.columns[column][row]
        shown = value if len(value) <= 40 else value[:37] + "..."
        return ConfigError(f"{self.name}, line {self.lines[row]}, {column}", f"{shown!r} must be {allowed}")


def read_text(path: Path) -> str:
    """Text of a plain or gzip-compressed UTF-8 file, without a byte-order mark."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror or error}") from None
    if raw[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
                raw = file.read(MAX_TEXT_BYTES + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise ConfigError(str(path), f"is not a complete gzip file: {error}") from None
    if len(raw) > MAX_TEXT_BYTES:
        raise ConfigError(str(path), f"holds more than {MAX_TEXT_BYTES} bytes, the most that is read at once")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8 text: {error.reason} at byte {error.start}") from None


def parse_table(name: str, text: str) -> Table:
    """A CSV text with a header and at least one row."""
    rows, lines = [], []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [h.strip() for h in next(reader)]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ConfigError(
                    f"{name}, line {reader.line_num}", f"{len(row)} fields must be {len(header)}: {listed(header)}"
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise ConfigError(f"{name}, line {reader.line_num}", f"is not CSV: {error}") from None
    for column in header:
        if header.count(column) > 1:
            raise ConfigError(f"{name}, line 1, {short(column)}", "the column is there twice, must be there once")
    if not rows:
        raise ConfigError(name, "holds no rows, must hold at least one")
    return Table(name=name, columns=dict(zip(header, zip(*rows, strict=True), strict=True)), lines=tuple(lines))


def short(text: str) -> str:
    """At most 40 characters of a text."""
    return text if len(text) <= 40 else text[:37] + "..."


def listed(names: Iterable[str]) -> str:
    """Names with commas, at most 200 characters of them."""
    text = ", ".join(names)
    return text if len(text) <= 200 else text[:197] + "..."


def _float(text: str) -> float:
    return float(text) if text.strip() else math.nan


def numbers(
    table: Table, column: str, *, low: float, high: float, whole: bool = False, may_be_empty: bool = False
) -> Floats:
    """A column as numbers in [low, high]; NaN for empty cells where those are allowed."""
    cells = table.columns[column]
    allowed = f"a {'whole ' if whole else ''}number in [{low:g}, {high:g}]{' or empty' if may_be_empty else ''}"
    try:
        values = np.fromiter(map(_float, cells), dtype=np.float64, count=len(cells))
    except ValueError:
        raise table.error(next(i for i, c in enumerate(cells) if not _is_number(c)), column, allowed) from None
    good = (values >= low) & (values <= high)
    if whole:
        good &= values == np.floor(values)
    for row in np.flatnonzero(~good):
        if not may_be_empty or cells[row].strip():
            raise table.error(int(row), column, allowed)
    return values


def _is_number(cell: str) -> bool:
    try:
        _float(cell)
    except ValueError:
        return False
    return True
