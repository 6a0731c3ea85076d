"""What the HTML report embeds: small, exact where it matters, and nothing that a view could not have seen.

Replica counts are kept exactly, as their changes.  Other columns are folded into buckets by their least and largest
values, so that no peak is lost, and written as 16-bit codes.  Reasons share their sentences' words and inputs' names.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from autoscaler.types import Reason
from autoscaler.views import number, reason_text
from load_tests.report_summary import Group, Row, Spread, setting_text, summarize
from load_tests.run import Event, Floats, Ints, Run

Json = dict[str, object]

# Codes of a 16-bit column: 0..LARGEST are values, then the two that are none.
LARGEST, NEVER, UNKNOWN = 65000, 65534, 65535

_BYTES_PER_BUCKET = 30  # about eleven columns of a policy at 2.7 bytes
_SERIES_SHARE, _EVENT_SHARE, _STEP_SHARE = 0.55, 0.3, 0.15
_NUMBER = re.compile(r"\d[\d.,]*\d|\d")


@dataclass(slots=True)
class Pool:
    """Things said once and pointed at: equal entries share an index."""

    entries: list[object] = field(default_factory=list)
    _index: dict[str, int] = field(default_factory=dict)

    def add(self, entry: object) -> int:
        """The index of `entry`."""
        key = json.dumps(entry)
        if key not in self._index:
            self._index[key] = len(self.entries)
            self.entries.append(entry)
        return self._index[key]


@dataclass(slots=True)
class Shared:
    """The pools of one report."""

    columns: Pool = field(default_factory=Pool)
    words: Pool = field(default_factory=Pool)
    shapes: Pool = field(default_factory=Pool)
    causes: Pool = field(default_factory=Pool)


def payload(runs: Sequence[Run], title: str, budget_bytes: int) -> Json:
    """Everything the page shows, of about `budget_bytes` at most."""
    shared, groups = Shared(), summarize(runs)
    each = budget_bytes / max(1, sum(len(group.rows) for group in groups))
    made = [_group(group, shared, each) for group in groups]
    return {
        "version": 1,
        "title": title,
        "groups": made,
        "columns": shared.columns.entries,
        "words": shared.words.entries,
        "shapes": shared.shapes.entries,
        "causes": shared.causes.entries,
    }


def _group(group: Group, shared: Shared, budget: float) -> Json:
    run = group.first
    return {
        "scenario": group.scenario,
        "pool": group.pool,
        "setting": setting_text(group),
        "about": [list(pair) for pair in run.about],
        "slo": {"ttft": run.slo.ttft_seconds, "itl": run.slo.itl_seconds, "attainment": run.slo.attainment_fraction},
        "gpus": run.gpus_per_replica,
        "origin": run.origin_at_seconds,
        "score_from": run.score_from_seconds,
        "end": run.end_seconds,
        "policies": [_policy(row, shared, budget) for row in group.rows],
    }


def _policy(row: Row, shared: Shared, budget: float) -> Json:
    run = row.runs[0]
    events, left_out = _events(run, shared, budget * _EVENT_SHARE)
    return {
        "name": row.policy,
        "seeds": [r.seed for r in row.runs],
        "met": row.met,
        "numbers": {name: _spread(spread) for name, spread in row.spreads.items()},
        "series": _series(run, shared, budget),
        "events": events,
        "reasons_left_out": left_out,
    }


def _spread(spread: Spread) -> list[float | str | None]:
    """[mean, low, high]; the word "never" stands for infinity, which JSON lacks."""
    return [
        None if v is None else "never" if math.isinf(v) else float(f"{v:.8g}")
        for v in (spread.mean, spread.low, spread.high)
    ]


def _grid(run: Run) -> Ints | None:
    """Rows of the timeline that stand for each instant of an even grid; None where the rows already are the grid."""
    at = run.timeline.at_seconds
    even = at[0] + run.interval_seconds * np.arange(len(at)) if len(at) else at
    if np.allclose(at, even, rtol=0, atol=1e-3 * run.interval_seconds):
        return None
    grid = np.arange(at[0], at[-1] + run.interval_seconds / 2, run.interval_seconds)
    return np.searchsorted(at, grid + 1e-6, side="right") - 1


def _series(run: Run, shared: Shared, budget: float) -> Json:
    rows, timeline = _grid(run), run.timeline

    def column(name: str) -> Floats:
        values: Floats = getattr(timeline, name).astype(np.float64)
        return values if rows is None else values[rows]

    n = len(timeline.at_seconds) if rows is None else len(rows)
    size = max(1, math.ceil(n * _BYTES_PER_BUCKET / (budget * _SERIES_SHARE)))
    folded: dict[str, Floats] = {
        "arrivals": _fold(column("arrivals_per_second"), size, "mean"),
        "arrivals_high": _fold(column("arrivals_per_second"), size, "max"),
        "need_low": _fold(column("need"), size, "min"),
        "need_high": _fold(column("need"), size, "max"),
        "forecast_low": _fold(column("forecast_low"), size, "min"),
        "forecast_high": _fold(column("forecast_high"), size, "max"),
        "ttft_low": _fold(column("ttft_p95_seconds"), size, "min"),
        "ttft_high": _fold(column("ttft_p95_seconds"), size, "max"),
        "violated": _fold(column("violated"), size, "sum"),
        "running": _fold(column("running"), size, "mean"),
        "waiting": _fold(column("waiting"), size, "max"),
    }
    most = max(200, int(budget * _STEP_SHARE / 3 / 6))
    return {
        "start": float(timeline.at_seconds[0]) if n else 0.0,
        "interval": run.interval_seconds,
        "rows": n,
        "bucket": size,
        "steps": {name: _changes(column(name), most) for name in ("desired", "ready", "starting", "draining")},
        "columns": {name: shared.columns.add(encode(values)) for name, values in folded.items()},
    }


def _fold(values: Floats, size: int, how: str) -> Floats:
    """`values` in buckets of `size`, by "min", "max", "mean" or "sum" of what is known; NaN where nothing is."""
    if size == 1 or not len(values):
        return values
    padded = np.full(math.ceil(len(values) / size) * size, np.nan)
    padded[: len(values)] = values
    table = padded.reshape(-1, size)
    if how in ("min", "max"):
        return np.asarray((np.fmin if how == "min" else np.fmax).reduce(table, axis=1), dtype=np.float64)
    known = (~np.isnan(table)).sum(axis=1)
    total = np.nansum(table, axis=1)
    scale = np.ones(len(known)) if how == "sum" else np.maximum(known, 1)
    return np.where(known > 0, total / scale, np.nan)


def encode(values: Floats) -> Json:
    """A column as 16-bit codes between its least and largest finite value, on a log scale where that spans decades."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    log = low > 0 and high > 100 * low
    a, b = (math.log(low), math.log(high)) if log else (low, high)
    codes = np.full(len(values), UNKNOWN, dtype="<u2")
    codes[np.isposinf(values)] = NEVER
    where = np.isfinite(values)
    place = np.log(values[where]) if log else values[where]
    codes[where] = np.rint((place - a) / (b - a) * LARGEST) if b > a else 0
    return {"low": low, "high": high, "log": log, "codes": base64.b64encode(codes.tobytes()).decode()}


def _changes(values: Floats, most: int) -> Json:
    """A step column as its changes: row numbers (as differences) and the values from there on.

    With more than `most` changes rows are folded by their largest value until there are fewer.
    """
    size = 1
    while True:
        folded = _fold(values, size, "max")
        at = np.flatnonzero(np.diff(folded, prepend=np.nan) != 0) if len(folded) else np.zeros(0, dtype=np.int64)
        if len(at) <= most:
            break
        size *= 2
    return {"size": size, "rows": np.diff(at, prepend=0).tolist(), "values": folded[at].astype(np.int64).tolist()}


def _events(run: Run, shared: Shared, budget: float) -> tuple[list[list[object]], int]:
    """Events as [at, before, after, kind, note, reasons], and how many had to leave their reasons out.

    The largest changes keep theirs.
    """
    order = sorted(range(len(run.events)), key=lambda i: -abs(run.events[i].after - run.events[i].before))
    made: dict[int, list[object]] = {}
    left_out, spent = 0, 0.0
    for i in order:
        event = run.events[i]
        known = len(shared.causes.entries)
        fits = spent <= budget
        reasons = [_reason(reason, shared) for reason in event.reasons] if fits else None
        left_out += not fits and bool(event.reasons)
        made[i] = _event(event, reasons)
        spent += 20 + 12 * len(event.reasons) + sum(len(json.dumps(c)) for c in shared.causes.entries[known:])
    return [made[i] for i in range(len(run.events))], left_out


def _event(event: Event, reasons: list[list[int]] | None) -> list[object]:
    kind = "" if event.kind == "decision" else event.kind
    return [round(event.at_seconds, 3), event.before, event.after, kind, event.note, reasons]


def _reason(reason: Reason, shared: Shared) -> list[int]:
    """[cause, before, after]; a cause is [rule and names, sentence, numbers of the sentence, inputs]."""
    shape = shared.shapes.add([reason.rule, [name for name, _ in reason.inputs]])
    text = reason_text(reason)
    if text == listed(reason):  # the page shows the inputs as a table; saying them twice helps nobody
        text = ""
    sentence = shared.words.add(_NUMBER.sub("\u241f", text))
    inputs = [value if isinstance(value, str) else _short(value) for _, value in reason.inputs]
    cause = shared.causes.add([shape, sentence, _NUMBER.findall(text), inputs])
    return [cause, reason.before, reason.after]


def listed(reason: Reason) -> str:
    """What the prose of a rule that nobody wrote a sentence for comes down to: its inputs, one after the other."""
    return ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in reason.inputs)


def _short(value: float) -> float | int | str:
    if not math.isfinite(value):
        return str(value)
    rounded = float(f"{value:.4g}") if abs(value) < 10_000 else round(value)
    return int(rounded) if rounded == int(rounded) else rounded
