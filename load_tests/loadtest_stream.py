"""Reading a streamed answer right: which lines are tokens, when the first came, what lies between them.

Independent of who reads the socket: lines and instants go in, a `Reading` comes out.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

BINS_PER_E = 100.0  # a bin is 1 % wide


class Sketch:
    """Durations in bins 1 % wide: quantiles within half a per cent, and sketches of several processes add up."""

    def __init__(self, counts: Mapping[Any, float] | None = None) -> None:
        self.counts: dict[int, float] = defaultdict(float)
        for name, count in (counts or {}).items():
            self.counts[int(name)] += count

    def add(self, seconds: float, weight: float = 1.0) -> None:
        """Count a duration; none is shorter than a microsecond."""
        self.counts[math.floor(math.log(max(seconds, 1e-6)) * BINS_PER_E)] += weight

    def merge(self, other: Sketch) -> None:
        """Add another's counts."""
        for bin_number, count in other.counts.items():
            self.counts[bin_number] += count

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return float(sum(self.counts.values()))

    def quantile(self, q: float) -> float | None:
        """The duration that a share `q` does not exceed; None if empty."""
        left = q * self.total
        for bin_number in sorted(self.counts):
            left -= self.counts[bin_number]
            if left <= 1e-9:
                return math.exp((bin_number + 0.5) / BINS_PER_E)
        return None


@dataclass(slots=True)
class Reading:
    """One answer as it comes in.  Instants are the caller's; None: not yet.

    A token is an event with content: not the role of a chat, not usage, not a comment.  `gaps` are (seconds, tokens) from
    one event to the next; several tokens in an event share its gap.
    """

    first: float | None = None
    last: float | None = None
    done: bool = False
    events: int = 0
    counted: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reason: str | None = None
    error: str | None = None
    gaps: list[tuple[float, float]] = field(default_factory=list)
    _told: int = 0

    def feed(self, line: bytes, now: float) -> bool:
        """Take a line that came at `now`; True once nothing more will come."""
        if not line.startswith(b"data:"):
            return self.done
        payload = line[5:].strip()
        if payload == b"[DONE]":
            self.done = True
            return True
        try:
            event = json.loads(payload)
        except (ValueError, RecursionError):
            self.error = self.error or "an event is not JSON"
            return False
        if isinstance(event, dict):
            self._event(event, now)
        return False

    def _event(self, event: dict[str, Any], now: float) -> None:
        if "error" in event:
            error = event["error"]
            told = error if isinstance(error, dict) else {"message": error}
            self.error = f"error event {told.get('code', '')}: {str(told.get('message', ''))[:200]}"
            return
        tokens = self._usage(event.get("usage"))
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        self.reason = choice.get("finish_reason") or self.reason
        if not _has_content(choice):
            return
        new = max(1, (tokens or 0) - self._told) if tokens is not None else 1
        self._told = tokens if tokens is not None else self._told + 1
        if self.last is None:
            self.first = now
        else:
            self.gaps.append((now - self.last, float(new)))
        self.last = now
        self.events += 1
        self.counted += new

    def _usage(self, usage: Any) -> int | None:
        if not isinstance(usage, dict):
            return None
        prompt, tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(prompt, int) and prompt >= 0:
            self.prompt_tokens = prompt
        if not isinstance(tokens, int) or tokens < 0:
            return None
        self.output_tokens = tokens
        return tokens

    def into(self, sketch: Sketch) -> None:
        """Add the gaps between tokens; where events hold more tokens than could be told apart, they share them evenly."""
        scale = self.output_tokens / self.counted if self.output_tokens and self.counted else 1.0
        for seconds, tokens in self.gaps:
            sketch.add(seconds / (tokens * scale), tokens * scale)

    @property
    def longest_gap(self) -> float | None:
        """Longest silence between two events; None with fewer than two."""
        return max((seconds for seconds, _ in self.gaps), default=None)


def _has_content(choice: Mapping[str, Any]) -> bool:
    """Whether an event carries a token.

    An empty text counts where the answer goes on: half a character is a token too.  The role alone does not.
    """
    if "text" in choice:
        return bool(choice["text"]) or choice.get("finish_reason") is None
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return False
    if any(delta.get(k) for k in ("content", "reasoning_content", "reasoning", "tool_calls")):
        return True
    return "role" not in delta and choice.get("finish_reason") is None


def merged(parts: Iterable[Sketch]) -> Sketch:
    """The sum of several sketches."""
    whole = Sketch()
    for part in parts:
        whole.merge(part)
    return whole
