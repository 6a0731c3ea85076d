"""Readers of traffic files: each row is checked, and a wrong one is named by file, line, column, value and allowed range.

    request-level CSV   ours (arrival_s, ...), Azure's original, BurstGPT's original
    request-level JSONL Mooncake's
    rate-level CSV      ours (t_s, requests, ...)

The form is told from the header; gzip from the first bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoscaler.errors import ConfigError
from load_tests.trace_table import Table, listed, numbers, parse_table, read_text, short

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_SECONDS = 1e9
MAX_TOKENS = 10_000_000
MAX_REQUESTS = 1e9
MAX_TOKEN_SUM = 1e15


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRows:
    """Single requests in order of arrival.  `origin_at_seconds`: Unix instant of second 0, None where the file has none.

    `labels` name the values of `tenant`.  Hash ids of prompt blocks come as rows `block_offsets[i]:block_offsets[i + 1]` of
    `block_ids`; `dropped` counts rows without an answer (failed requests) that were left out.
    """

    arrival_seconds: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    cached_prompt_tokens: Ints | None = None
    tenant: NDArray[np.int32] | None = None
    labels: tuple[str, ...] = ()
    block_ids: Ints | None = None
    block_offsets: Ints | None = None
    block_tokens: int = 0
    origin_at_seconds: float | None = None
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRows:
    """Counts per interval on an even grid; NaN is unknown.  `gap`: 1 where the file says so or has no row."""

    t_seconds: Floats
    interval_seconds: float
    requests: Floats
    prompt_tokens: Floats
    output_tokens: Floats
    iat_cv: Floats
    published_gap: NDArray[np.bool_]
    absent: NDArray[np.bool_]


def read_rows(path: Path) -> RequestRows | RateRows:
    """The rows of a traffic file of any known form."""
    text = read_text(path)
    if not text.strip():
        raise ConfigError(str(path), "is empty, must hold a header line and rows")
    if text.lstrip().startswith("{"):
        return _mooncake(path.name, text)
    table = parse_table(path.name, text)
    reader = _reader_of(table)
    return reader(table)


def _reader_of(table: Table) -> Callable[[Table], RequestRows | RateRows]:
    """The reader whose columns are there; else the sentence says what the likeliest form misses."""
    header = set(table.columns)
    best = max(_FORMS, key=lambda form: len(header & set(form.needed)) + (form.needed[0] in header))
    if not header & set(best.needed):
        forms = "; ".join(", ".join(form.needed) for form in _FORMS)
        raise ConfigError(
            f"{table.name}, line 1", f"{listed(sorted(header))!r} must be the columns of a known form: {forms}"
        )
    missing = [c for c in best.needed if c not in header]
    if missing:
        raise ConfigError(
            f"{table.name}, line 1", f"misses the column {missing[0]}; needed are {', '.join(best.needed)}"
        )
    unknown = sorted(header - set(best.needed) - set(best.optional)) if best.strict else []
    if unknown:
        known = ", ".join((*best.needed, *best.optional))
        raise ConfigError(f"{table.name}, line 1, {short(unknown[0])}", f"unknown column, allowed are {known}")
    return best.read


def _own_requests(table: Table) -> RequestRows:
    arrival = numbers(table, "arrival_s", low=0, high=MAX_SECONDS)
    falling = np.flatnonzero(np.diff(arrival) < 0)
    if falling.size:
        row = int(falling[0]) + 1
        raise table.error(row, "arrival_s", f">= the row before, {arrival[row - 1]:g}: rows are sorted by arrival")
    prompt = numbers(table, "prompt_tokens", low=1, high=MAX_TOKENS, whole=True)
    cached = None
    if "cached_prompt_tokens" in table.columns:
        cached = numbers(table, "cached_prompt_tokens", low=0, high=MAX_TOKENS, whole=True)
        over = np.flatnonzero(cached > prompt)
        if over.size:
            raise table.error(int(over[0]), "cached_prompt_tokens", f"<= prompt_tokens, {prompt[over[0]]:g}")
    labels, tenant = _labels(table.columns["tenant"]) if "tenant" in table.columns else ((), None)
    return RequestRows(
        arrival_seconds=arrival,
        prompt_tokens=prompt.astype(np.int64),
        output_tokens=numbers(table, "output_tokens", low=1, high=MAX_TOKENS, whole=True).astype(np.int64),
        cached_prompt_tokens=None if cached is None else cached.astype(np.int64),
        tenant=tenant,
        labels=labels,
    )


def _labels(cells: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    names = tuple(sorted(set(cells)))
    index = {name: i for i, name in enumerate(names)}
    return names, np.fromiter((index[c] for c in cells), dtype=np.int32, count=len(cells))


def _azure(table: Table) -> RequestRows:
    """AzurePublicDataset: TIMESTAMP, ContextTokens, GeneratedTokens; arrivals count from the first."""
    stamps = table.columns["TIMESTAMP"]
    at = np.empty(len(stamps))
    for row, stamp in enumerate(stamps):
        try:
            parsed = datetime.fromisoformat(stamp.strip())
            at[row] = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise table.error(row, "TIMESTAMP", "a date and time such as 2023-11-16 18:15:46.6805900") from None
    prompt = numbers(table, "ContextTokens", low=1, high=MAX_TOKENS, whole=True)
    output = numbers(table, "GeneratedTokens", low=1, high=MAX_TOKENS, whole=True)
    return _sorted(at, prompt, output, origin=float(at.min()), name=table.name)


def _burstgpt(table: Table) -> RequestRows:
    """BurstGPT: seconds, model, lengths; rows with no response tokens are failed requests and are left out."""
    at = numbers(table, "Timestamp", low=0, high=MAX_SECONDS)
    prompt = numbers(table, "Request tokens", low=0, high=MAX_TOKENS, whole=True)
    output = numbers(table, "Response tokens", low=0, high=MAX_TOKENS, whole=True)
    keep = (output > 0) & (prompt > 0)
    if not keep.any():
        raise ConfigError(table.name, "holds no row with response tokens, must hold at least one")
    labels, tenant = _labels([m for m, k in zip(table.columns["Model"], keep, strict=True) if k])
    return _sorted(
        at[keep], prompt[keep], output[keep], name=table.name, labels=labels, tenant=tenant, dropped=int((~keep).sum())
    )


def _sorted(
    at: Floats, prompt: Floats, output: Floats, *, name: str, origin: float | None = None, **more: Any
) -> RequestRows:
    """Rows of a foreign form by arrival, from second 0."""
    order = np.argsort(at, kind="stable")
    if at[order[-1]] - at[order[0]] > MAX_SECONDS:
        raise ConfigError(
            name, f"{at[order[-1]] - at[order[0]]:g} seconds from first to last must be <= {MAX_SECONDS:g}"
        )
    if more.get("tenant") is not None:
        more["tenant"] = more["tenant"][order]
    return RequestRows(
        arrival_seconds=at[order] - at[order[0]],
        prompt_tokens=prompt[order].astype(np.int64),
        output_tokens=output[order].astype(np.int64),
        origin_at_seconds=origin,
        **more,
    )


def _mooncake(name: str, text: str) -> RequestRows:
    """Mooncake JSONL: timestamp in ms, input_length, output_length, hash_ids of blocks of 512 tokens."""
    at, prompt, output, ids, offsets = [], [], [], [], [0]
    for line, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        try:
            data = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{name}, line {line}", f"is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise ConfigError(f"{name}, line {line}", "must be an object with timestamp, input_length, output_length")
        at.append(_json_number(name, line, data, "timestamp", 0, MAX_SECONDS * 1e3, whole=False) / 1e3)
        prompt.append(_json_number(name, line, data, "input_length", 1, MAX_TOKENS))
        output.append(_json_number(name, line, data, "output_length", 1, MAX_TOKENS))
        hashes = data.get("hash_ids", [])
        if not isinstance(hashes, list) or not all(type(h) is int and 0 <= h < 2**63 for h in hashes):
            raise ConfigError(f"{name}, line {line}, hash_ids", "must be a list of whole numbers in [0, 2**63)")
        ids.extend(hashes)
        offsets.append(len(ids))
    order = np.argsort(np.array(at), kind="stable")
    starts, ends = np.array(offsets[:-1])[order], np.array(offsets[1:])[order]
    flat = np.array(ids, dtype=np.int64)
    rows = _sorted(np.array(at), np.array(prompt), np.array(output), name=name)
    if not flat.size:
        return rows
    gathered = np.concatenate([flat[a:b] for a, b in zip(starts, ends, strict=True)])
    return RequestRows(
        arrival_seconds=rows.arrival_seconds,
        prompt_tokens=rows.prompt_tokens,
        output_tokens=rows.output_tokens,
        block_ids=gathered,
        block_offsets=np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64),
        block_tokens=512,
    )


def _json_number(
    name: str, line: int, data: dict[str, Any], key: str, low: float, high: float, whole: bool = True
) -> float:
    field = f"{name}, line {line}, {key}"
    if key not in data:
        raise ConfigError(field, f"is missing, must be a number in [{low:g}, {high:g}]")
    value = data[key]
    good = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not good or (whole and value != int(value)):
        shown = short(repr(value))
        raise ConfigError(field, f"{shown} must be a {'whole ' if whole else ''}number in [{low:g}, {high:g}]")
    return float(value)


def _rates(table: Table) -> RateRows:
    t = numbers(table, "t_s", low=0, high=MAX_SECONDS)
    if t.size < 2:
        raise ConfigError(table.name, "holds 1 row, must hold at least 2: the interval is the step from row to row")
    steps = np.diff(t)
    if (steps <= 0).any():
        row = int(np.flatnonzero(steps <= 0)[0]) + 1
        raise table.error(row, "t_s", f"> the row before, {t[row - 1]:g}")
    found, times = np.unique(np.round(steps, 6), return_counts=True)
    interval = float(found[np.argmax(times)])  # the commonest step, the shortest of several
    index = np.round((t - t[0]) / interval).astype(np.int64)
    off = np.flatnonzero(np.abs(t - t[0] - index * interval) > 1e-6 * interval)
    if off.size:
        raise table.error(int(off[0]), "t_s", f"{t[0]:g} plus a multiple of the interval, {interval:g} s")
    if index[-1] + 1 > 10 * t.size + 1000:
        row = int(np.argmax(steps)) + 1
        raise table.error(row, "t_s", f"near the row before, {t[row - 1]:g}: more than 9 in 10 intervals have no row")

    def spread(column: str, high: float, whole: bool) -> Floats:
        out = np.full(int(index[-1]) + 1, math.nan)
        if column in table.columns:
            out[index] = numbers(table, column, low=0, high=high, whole=whole, may_be_empty=True)
        return out

    absent = np.ones(int(index[-1]) + 1, dtype=np.bool_)
    absent[index] = False
    requests = spread("requests", MAX_REQUESTS, True)
    if not np.nansum(requests) > 0:
        raise ConfigError(f"{table.name}, requests", "every interval is zero or unknown, at least one must be above 0")
    return RateRows(
        t_seconds=t[0] + np.arange(absent.size) * interval,
        interval_seconds=interval,
        requests=requests,
        prompt_tokens=spread("prompt_tokens", MAX_TOKEN_SUM, False),
        output_tokens=spread("output_tokens", MAX_TOKEN_SUM, False),
        iat_cv=spread("iat_cv", 1000.0, False),
        published_gap=_flag(table, index, absent.size),
        absent=absent | np.isnan(requests),
    )


def _flag(table: Table, index: Ints, size: int) -> NDArray[np.bool_]:
    out = np.zeros(size, dtype=np.bool_)
    if "gap" in table.columns:
        values = numbers(table, "gap", low=0, high=1, whole=True, may_be_empty=True)
        out[index] = np.nan_to_num(values) > 0
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    needed: tuple[str, ...]
    read: Callable[[Table], RequestRows | RateRows]
    optional: tuple[str, ...] = ()
    strict: bool = True


_FORMS = (
    _Form(
        needed=("arrival_s", "prompt_tokens", "output_tokens"),
        optional=("cached_prompt_tokens", "tenant"),
        read=_own_requests,
    ),
    _Form(needed=("t_s", "requests"), optional=("prompt_tokens", "output_tokens", "iat_cv", "gap"), read=_rates),
    _Form(needed=("TIMESTAMP", "ContextTokens", "GeneratedTokens"), read=_azure, strict=False),
    _Form(needed=("Timestamp", "Model", "Request tokens", "Response tokens"), read=_burstgpt, strict=False),
)
