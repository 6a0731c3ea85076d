"""Prometheus' text format, read fast: only the series that are wanted, and those by their place in a table.

From one scrape to the next only values change.  So `TextReader` remembers what stands before the value of each line, and
parses a line only when it has not seen its like.  Timestamps and exemplars are passed over.  A page that is cut short, that
says one series twice or that has no number where one is wanted is refused as a whole: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from autoscaler.errors import SourceError

Sample = tuple[str, Mapping[str, str], float]
Series = tuple[str, tuple[tuple[str, str], ...]]  # name, and labels in the order of their names

# What the reader remembers at most, and how many of the series that are read one page may have.
MOST_KEYS = 20_000
MOST_SERIES = 20_000
MOST_NUMBERS = 20_000
# Labels that change from page to page pile up: beyond so many times the largest page, and so many, it starts anew.
SPARE_PAGES, SPARE_SERIES = 4, 1000

_NAME = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(rb'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*')
_VALUE = re.compile(rb"[ \t]+([^ \t\r]+)(?:[ \t]+-?[0-9]+(?:\.[0-9]+)?)?[ \t\r]*(?:#[ \t].*)?$", re.DOTALL)
_NUMBER = re.compile(
    rb"[+-]?(?:[0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+(?:e[+-]?[0-9]+)?|inf|infinity|nan)\r?", re.IGNORECASE
)
_ESCAPED = re.compile(r"\\(.)")
_MEANT = {"n": "\n", "\\": "\\", '"': '"'}


class PageError(SourceError):
    """A page that is not metrics, or not a whole page of them."""


class TextReader:
    """Reads pages that look alike.  `series` holds what was found so far, and `read` gives the values in that order.

    `wanted`: sample names (``x_bucket``, not ``x``).  Memory is bounded by MOST_KEYS and MOST_SERIES.
    """

    def __init__(self, wanted: Collection[str]) -> None:
        self._wanted = frozenset(name.encode() for name in wanted)
        self.series: list[Series] = []
        self._index: dict[Series, int] = {}
        self._slots: dict[bytes, int] = {}
        self._numbers: dict[bytes, float] = {}
        self._largest = 0

    def read(self, page: bytes) -> list[float | None]:
        """Values of `series` on this page; None for one that is not there.  Raises PageError with a sentence."""
        if page and not page.endswith(b"\n"):
            raise PageError("the page is cut short: its last line has no end")
        self._make_room()
        values: list[float | None] = [None] * len(self.series)
        slots, numbers = self._slots, self._numbers
        for line in page.split(b"\n"):
            key, _, token = line.rpartition(b" ")
            slot = slots.get(key)
            if slot is None:
                slot, token = self._learn(line, key)
                if slot >= len(values):
                    values.append(None)
            if slot >= 0:
                if values[slot] is not None:
                    raise PageError(f"the page says {_shown(line)} twice")
                value = numbers.get(token)
                values[slot] = self._new_number(token, line) if value is None else value
        if len(values) > self._largest:
            self._largest = max(self._largest, len(values) - values.count(None))
        return values

    def _make_room(self) -> None:
        if len(self.series) > min(MOST_SERIES // 2, SPARE_SERIES + SPARE_PAGES * self._largest):
            # Whoever holds `series` must look at it again.
            self.series, self._index, self._slots, self._largest = [], {}, {}, 0
        elif len(self._slots) > MOST_KEYS:
            self._slots = {}
        if len(self._numbers) > MOST_NUMBERS:
            self._numbers = {}

    def _new_number(self, token: bytes, line: bytes) -> float:
        """Most values of a page are on it several times, or were on the last one."""
        value = _number(token) if _NUMBER.fullmatch(token) else _number(_parsed(line)[2], line)
        self._numbers[token] = value
        return value

    def _learn(self, line: bytes, key: bytes) -> tuple[int, bytes]:
        """(place of the line's series or -1, the text of its value); remembered if the value is all that follows `key`."""
        name = _NAME.match(line)
        if name is None:
            _passed_over(line)
        if name is None or name.group() not in self._wanted:
            if key and len(self._slots) <= 2 * MOST_KEYS:
                self._slots[key] = -1
            return -1, b""
        parsed, labels, token = _parsed(line)
        series = (parsed, labels)
        slot = self._index.get(series)
        if slot is None:
            if len(self.series) >= MOST_SERIES:
                raise PageError(f"the page has more than {MOST_SERIES} of the series that are read")
            slot = self._index[series] = len(self.series)
            self.series.append(series)
        if key and line == key + b" " + token:
            self._slots[key] = slot
        return slot, token


def samples(page: bytes, wanted: Collection[str] | None = None) -> Iterator[Sample]:
    """The samples of a page, in its order: those named in `wanted`, or all.  Raises PageError with a sentence."""
    if page and not page.endswith(b"\n"):
        raise PageError("the page is cut short: its last line has no end")
    names = None if wanted is None else frozenset(name.encode() for name in wanted)
    for line in page.split(b"\n"):
        name = _NAME.match(line)
        if name is None:
            _passed_over(line)
        elif names is None or name.group() in names:
            parsed, labels, token = _parsed(line)
            yield parsed, dict(labels), _number(token, line)


def _passed_over(line: bytes) -> None:
    """Refuse what is neither a comment, nor blank, nor a series with a quoted name."""
    if line[:1] not in (b"", b"#", b"{") and line.strip(b" \t\r"):
        raise PageError(f"the line {_shown(line)} is no metric: this is not a page of metrics")


def _parsed(line: bytes) -> tuple[str, tuple[tuple[str, str], ...], bytes]:
    """(name, labels by name, text of the value) of a line."""
    name = _NAME.match(line)
    if name is None:
        raise PageError(f"the line {_shown(line)} is no metric: this is not a page of metrics")
    at = name.end()
    while line[at : at + 1] in (b" ", b"\t"):
        at += 1
    labels: dict[str, str] = {}
    at = _labels(line, at + 1, labels) if line[at : at + 1] == b"{" else name.end()
    value = _VALUE.match(line, at)
    if value is None:
        raise PageError(f"the line {_shown(line)} has no value")
    return name.group().decode(), tuple(sorted(labels.items())), value.group(1)


def _labels(line: bytes, at: int, labels: dict[str, str]) -> int:
    """Put the labels that begin at `at` into `labels`; the place after the closing brace."""
    while True:
        label = _LABEL.match(line, at)
        if label is None:
            break
        key = label.group(1).decode()
        if key in labels:
            raise PageError(f"the line {_shown(line)} has the label {key} twice")
        try:
            text = label.group(2).decode()
        except UnicodeDecodeError:
            raise PageError(f"the line {_shown(line)} is not UTF-8 text") from None
        labels[key] = _ESCAPED.sub(lambda m: _MEANT.get(m.group(1), m.group(0)), text) if "\\" in text else text
        at = label.end()
        if line[at : at + 1] != b",":
            break
        at += 1
    while line[at : at + 1] in (b" ", b"\t"):
        at += 1
    if line[at : at + 1] != b"}":
        raise PageError(f"the line {_shown(line)} has labels that do not end")
    return at + 1


def _number(token: bytes, line: bytes = b"") -> float:
    # Python takes 1_000 and \v1 for numbers; the format does not.
    if _NUMBER.fullmatch(token) is None:
        raise PageError(f"the line {_shown(line)} has no number for a value")
    return float(token)


def _shown(line: bytes) -> str:
    text = line[:100].decode(errors="replace")
    return repr(text if len(line) <= 100 else text + "...")
