"""A load test as a plan: every request with its intended instant and lengths, and how to send it.

The plan is made from a scenario before anything is sent, so that arrivals never wait for answers, and it is the same for
every process: process w of n sends the requests i with i mod n = w, and the union is the trace.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoscaler.errors import ConfigError
from autoscaler.settings import Slo
from load_tests.kernel_state import Floats, Ints
from load_tests.scenario import Scenario
from load_tests.traffic import materialise

META, COLUMNS = "plan.json", "plan.npz"
# Headers reach the generator by this variable of the environment, as a JSON list of pairs.
HEADERS_VARIABLE = "LOADTEST_HEADERS"
# Ids that every tokenizer of a served model has, and that are ordinary tokens in the usual ones.
FIRST_ID, LAST_ID = 1000, 3999
_RING = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How requests are sent.  `speed` > 1 only where the server's own time runs as fast.

    `chunk_usage`: the server tells the tokens of each chunk.  Seconds are wall time.
    """

    host: str
    model: str
    api: str = "completions"
    chunk_usage: bool = False
    speed: float = 1.0
    grace_seconds: float = 60.0
    lead_seconds: float = 2.0
    idle_seconds: float = 300.0
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`arrival_seconds` are of the scenario's time, from 0; in the wall's time they are `/ sending.speed`."""

    scenario: str
    seed: int
    slo: Slo
    sending: Sending
    duration_seconds: float
    score_from_seconds: float
    arrival_seconds: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    block_offsets: Ints
    block_ids: Ints
    block_tokens: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.arrival_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Output tokens a second of wall time, on average over the busiest minute: the load on the generator."""
        if not len(self):
            return 0.0
        span = min(60.0, self.duration_seconds)
        minute = np.floor(self.arrival_seconds / span).astype(np.int64)
        return float(np.bincount(minute, weights=self.output_tokens).max() / span * self.sending.speed)

    def save(self, folder: Path) -> None:
        """Write the plan into a folder, without its headers."""
        folder.mkdir(parents=True, exist_ok=True)
        columns = {name: getattr(self, name) for name in _ARRAYS}
        np.savez(folder / COLUMNS, **columns)
        told = {k: v for k, v in asdict(self).items() if k not in _ARRAYS}
        del told["sending"]["headers"]  # they may hold a secret
        (folder / META).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan that `save` wrote; it has no headers."""
        told: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
        with np.load(folder / COLUMNS) as columns:
            arrays = {name: columns[name] for name in _ARRAYS}
        told["notes"] = tuple(told["notes"])
        return cls(slo=Slo(**told.pop("slo")), sending=Sending(**told.pop("sending")), **arrays, **told)


_ARRAYS = ("arrival_seconds", "prompt_tokens", "output_tokens", "block_offsets", "block_ids")


def plan_of(
    scenario: Scenario,
    seed: int,
    sending: Sending,
    *,
    window: tuple[float, float] | None = None,
    warm_up_seconds: float | None = None,
) -> Plan:
    """The requests of a scenario, or those that arrive in `window` (start, end) of it, from second 0 on.

    Cut windows hold the same requests as the whole.  `warm_up_seconds` None takes the scenario's `score_from_seconds`, or 0
    for a cut window.  Raises ConfigError for a window without requests.
    """
    traffic = materialise(scenario, seed)
    start, end = (0.0, traffic.end_seconds) if window is None else window
    if not 0.0 <= start < end:
        raise ConfigError("--window", f"{start:g}:{end:g} must be START:END with 0 <= START < END")
    end = min(end, traffic.end_seconds)
    requests = traffic.requests
    keep = np.flatnonzero((requests.arrival_seconds >= start) & (requests.arrival_seconds < end))
    if not len(keep):
        raise ConfigError("--window", f"{start:g}:{end:g} holds no request, must hold one")
    warm_up = warm_up_seconds
    if warm_up is None:
        warm_up = scenario.score_from_seconds if window is None else 0.0
    if not 0.0 <= warm_up < end - start:
        raise ConfigError("--warm-up", f"{warm_up:g} must be >= 0 and < {end - start:g}, the seconds that are sent")
    offsets, ids = _blocks(requests.block_hash_offsets, requests.block_hashes, keep)
    notes = list(traffic.notes)
    if requests.cached_prompt_tokens is not None and requests.cached_prompt_tokens.any():
        notes.append("prompts are sent without the prefix hits that the scenario supposes")
    return Plan(
        scenario=scenario.name,
        seed=seed,
        slo=scenario.slo,
        sending=sending,
        duration_seconds=end - start,
        score_from_seconds=warm_up,
        arrival_seconds=requests.arrival_seconds[keep] - start,
        prompt_tokens=requests.prompt_tokens[keep],
        output_tokens=requests.output_tokens[keep],
        block_offsets=offsets,
        block_ids=ids,
        block_tokens=requests.prefix_block_tokens,
        notes=tuple(notes),
    )


def _blocks(offsets: Ints | None, ids: Ints | None, keep: Ints) -> tuple[Ints, Ints]:
    if offsets is None or ids is None:
        return np.zeros(len(keep) + 1, dtype=np.int64), np.zeros(0, dtype=np.int64)
    counts = offsets[keep + 1] - offsets[keep]
    made = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    index = np.arange(made[-1]) + np.repeat(offsets[keep] - made[:-1], counts)
    return made, ids[index]


class Bodies:
    """JSON bodies of a plan's requests.  Prompts are made of token ids: exact lengths, and no prefix in common but the plan's.

    A chat needs text: a common word a token, near the wanted length; the server's usage tells what it was.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        ring = np.random.default_rng(plan.seed).integers(FIRST_ID, LAST_ID + 1, _RING)
        self._ring = [str(token) for token in ring.tolist()] * 2
        options: dict[str, bool] = {"include_usage": True}
        if plan.sending.chunk_usage:
            options["continuous_usage_stats"] = True
        fixed = {"model": plan.sending.model, "stream": True, "stream_options": options, "ignore_eos": True}
        self._fixed = json.dumps(fixed)[1:]

    def body(self, i: int) -> str:
        """The body of request `i`."""
        output = int(self.plan.output_tokens[i])
        n = int(self.plan.prompt_tokens[i])
        if self.plan.sending.api == "chat":
            prompt = f'"messages": [{{"role": "user", "content": "{self._words(i, n)}"}}]'
        else:
            prompt = f'"prompt": [{",".join(self.ids(i, n))}]'
        return f'{{{prompt}, "max_tokens": {output}, {self._fixed}'

    def ids(self, i: int, n: int) -> list[str]:
        """Token ids of a prompt of `n` tokens: the plan's blocks, then what no other request has."""
        plan, made = self.plan, list[str]()
        for block in plan.block_ids[plan.block_offsets[i] : plan.block_offsets[i + 1]].tolist():
            made += self._slice(int(block), plan.block_tokens)
        made = made[:n]
        span = LAST_ID - FIRST_ID + 1
        own = [str(FIRST_ID + i // span**power % span) for power in (0, 1)]
        made += own[: n - len(made)]
        return made + self._slice(2 * i + 1, n - len(made))

    def _slice(self, key: int, n: int) -> list[str]:
        made: list[str] = []
        while len(made) < n:
            at = (key * 0x9E3779B97F4A7C15 >> 24) % _RING
            made += self._ring[at : at + min(_RING, n - len(made))]
            key += 1
        return made

    def _words(self, i: int, n: int) -> str:
        words: Sequence[str] = (
            "time",
            "people",
            "way",
            "water",
            "long",
            "day",
            "part",
            "sound",
            "place",
            "year",
            "work",
            "name",
        )
        return " ".join(words[(i * 7 + k * (i % 11 + 1)) % len(words)] for k in range(n))
