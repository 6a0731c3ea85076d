"""Label selectors as the Kubernetes API takes them in a query: ``pool=chat,level in (0.95,0.99),!canary``.

Requirements are joined by commas and all must hold.  `k=v`, `k==v`, `k in (a,b)`, `k>1` and `k<1` need the label;
`k!=v` and `k notin (a,b)` hold without it too.  An empty selector selects all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from autoscaler.errors import AutoscalerError

MOST_CHARACTERS = 4096
_SPECIAL = "=!(),<>"
_TOKEN = re.compile(r"\s*(==|!=|[=!(),<>]|[^\s=!(),<>]+)")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

Operator = Literal["in", "notin", "exists", "absent", ">", "<"]


class SelectorError(AutoscalerError):
    """A selector that is none; its text is one sentence."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether `labels` meet it."""
        value = labels.get(self.key)
        if self.operator == "exists":
            return value is not None
        if self.operator == "absent":
            return value is None
        if self.operator == "notin":
            return value is None or value not in self.values
        if value is None:
            return False
        if self.operator == "in":
            return value in self.values
        try:
            number, bound = int(value), int(self.values[0])
        except ValueError:
            return False
        return number > bound if self.operator == ">" else number < bound


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements that must all hold."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether all hold for `labels`."""
        return all(r.holds(labels) for r in self.requirements)

    def may_match(self, labels: Mapping[str, str]) -> bool:
        """Whether those about the keys of `labels` hold: other labels are not known yet."""
        return all(r.holds(labels) for r in self.requirements if r.key in labels)


@lru_cache(maxsize=1024)
def parse(text: str) -> Selector:
    """The selector that `text` spells.  Raises SelectorError."""
    if len(text) > MOST_CHARACTERS:
        raise SelectorError(f"labelSelector: {len(text)} characters must be at most {MOST_CHARACTERS}")
    return _Parser(text).selector()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _TOKEN.findall(text)
        self._at = 0

    def selector(self) -> Selector:
        found: list[Requirement] = []
        if self._peek() is None:
            return Selector()
        while True:
            found.append(self._requirement())
            if self._peek() is None:
                return Selector(tuple(found))
            self._expect(",")

    def _requirement(self) -> Requirement:
        if self._peek() == "!":
            self._next()
            return Requirement(self._key(), "absent")
        key = self._key()
        operator = self._peek()
        if operator is None or operator == ",":
            return Requirement(key, "exists")
        self._next()
        if operator in ("=", "=="):
            return Requirement(key, "in", (self._value(),))
        if operator == "!=":
            return Requirement(key, "notin", (self._value(),))
        if operator == "in" or operator == "notin":
            return Requirement(key, "in" if operator == "in" else "notin", self._set())
        if operator == ">" or operator == "<":
            value = self._value()
            if not re.fullmatch(r"[-+]?\d{1,18}", value):
                raise self._error(f"{value!r} after {operator} must be a whole number")
            return Requirement(key, ">" if operator == ">" else "<", (value,))
        raise self._error(f"{operator!r} after {key!r} must be one of =, ==, !=, in, notin, >, <")

    def _set(self) -> tuple[str, ...]:
        self._expect("(")
        values = [self._value()]
        while self._peek() == ",":
            self._next()
            values.append(self._value())
        self._expect(")")
        return tuple(values)

    def _key(self) -> str:
        key = self._next()
        prefix, slash, name = (key or "").rpartition("/")
        good = key is not None and _NAME.fullmatch(name)
        if not good or (slash and (len(prefix) > 253 or not _PREFIX.fullmatch(prefix))):
            raise self._error(f"{key or 'the end'!r} must be the name of a label")
        assert key is not None
        return key

    def _value(self) -> str:
        """A label's value, which may be empty."""
        value = self._peek()
        if value is None or value in _SPECIAL:
            return ""
        self._next()
        if not _NAME.fullmatch(value):
            raise self._error(
                f"{value!r} must be the value of a label: at most 63 of letters, digits, '-', '_' and '.'"
            )
        return str(value)

    def _peek(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _next(self) -> str | None:
        token = self._peek()
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        found = self._next()
        if found != token:
            raise self._error(f"{found or 'the end'!r} must be {token!r}")

    def _error(self, sentence: str) -> SelectorError:
        return SelectorError(f"labelSelector {self._text!r}: {sentence}")
