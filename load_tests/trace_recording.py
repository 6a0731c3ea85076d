"""What pools were seen to ask for, as a trace: recordings of ``autoscaler observe`` and step logs.

Observations come at uneven instants and with gaps; a trace has an even grid.  Each Observation's counts are spread evenly
over its window, an overlap with the one before counts once, and an interval that is not wholly covered is unknown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoscaler.errors import ConfigError
from autoscaler.log import read_observations
from autoscaler.types import Observation
from load_tests.trace_formats import Floats, RateRows

# Of an interval, what may lack: looks that were a second late.
COVERED_FRACTION = 0.95
MOST_INTERVALS = 10_000_000
FIELDS = ("requests", "prompt_tokens", "output_tokens")


def is_recording(path: Path) -> bool:
    """True for a folder of segments and for a file whose first line is a typed JSON line, as no trace has it."""
    try:
        if path.is_dir():
            return any(path.glob("*.jsonl"))
        with path.open("rb") as file:
            return file.read(9) == b'{"type":"'
    except OSError:
        return False


def recorded_rows(path: Path) -> tuple[RateRows, int]:
    """The rows, and the Unix instant of second 0.  Raises ConfigError where no demand was recorded."""
    seen = [o for o in read_observations(path) if o.demand is not None and o.demand.requests is not None]
    if not seen or not any(o.demand.requests for o in seen if o.demand is not None):
        raise ConfigError(path.name, "holds no demand above 0, must hold at least one observation with it")
    interval = _commonest([b.at_seconds - a.at_seconds for a, b in zip(seen, seen[1:], strict=False)], seen)
    origin = (seen[0].at_seconds - seen[0].window_seconds) // interval * interval
    size = math.ceil((seen[-1].at_seconds - origin) / interval)
    if size > MOST_INTERVALS:
        raise ConfigError(path.name, f"spans {size} intervals of {interval} s, must span at most {MOST_INTERVALS}")
    amounts = {name: np.zeros(size) for name in FIELDS}
    lacks = {name: np.zeros(size, dtype=np.bool_) for name in FIELDS}
    covered, end = np.zeros(size), float(origin)
    for o in seen:
        start = max(end, float(o.at_seconds - o.window_seconds))
        for cell, seconds in _cells(start - origin, float(o.at_seconds) - origin, interval):
            covered[cell] += seconds
            for name in FIELDS:
                count = getattr(o.demand, name)
                if count is None:
                    lacks[name][cell] = True
                else:
                    amounts[name][cell] += count * seconds / o.window_seconds
        end = float(o.at_seconds)
    absent = covered < COVERED_FRACTION * interval
    known = {name: np.where(absent | lacks[name], np.nan, amounts[name]) for name in FIELDS}
    requests = _whole(known["requests"])
    for name in ("prompt_tokens", "output_tokens"):
        known[name] = np.where(requests == 0, 0.0, known[name])
    rows = RateRows(
        t_seconds=np.arange(size, dtype=np.float64) * interval,
        interval_seconds=float(interval),
        requests=requests,
        prompt_tokens=known["prompt_tokens"],
        output_tokens=known["output_tokens"],
        iat_cv=np.full(size, math.nan),
        published_gap=np.zeros(size, dtype=np.bool_),
        absent=absent,
    )
    return rows, origin


def _commonest(steps: Sequence[int], seen: Sequence[Observation]) -> int:
    """The step that most looks have, the shortest of several."""
    found = Counter(steps or [seen[0].window_seconds])
    return max(1, min(found, key=lambda step: (-found[step], step)))


def _cells(start: float, end: float, interval: int) -> list[tuple[int, float]]:
    """(cell, seconds in it) of the span from `start` to `end`, both from second 0."""
    found = []
    while start < end - 1e-9:
        cell = int(start // interval)
        until = min(end, float((cell + 1) * interval))
        found.append((cell, until - start))
        start = until
    return found


def _whole(requests: Floats) -> Floats:
    """Whole requests per interval whose sums stay those of the fractions; NaN stays."""
    total = np.round(np.cumsum(np.nan_to_num(requests)))
    out = np.diff(total, prepend=0.0)
    return np.where(np.isnan(requests), np.nan, out)
