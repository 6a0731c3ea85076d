"""Streams of requests out of recorded traces: cut, thinned, turned around, added up; never multiplied or stretched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoscaler.errors import ConfigError
from load_tests import arrivals as spread
from load_tests import draws
from load_tests.arrivals import DEFAULT_CV, Floats, Ints, Rows
from load_tests.histories import History, binned
from load_tests.scenario import Scenario
from load_tests.shapes import DAY
from load_tests.trace_formats import RequestRows
from load_tests.traces import RateTrace, RequestTrace, Trace, instant_of, load_trace
from load_tests.traffic_parts import Part, Streams, draw_lengths, refuse_too_many, spread_arrivals
from load_tests.traffic_settings import TraceLengths, TraceTraffic

UNKNOWN_ORIGIN = "2025-01-06T00:00:00+00:00"  # a Monday


def trace_streams(scenario: Scenario, traffic: TraceTraffic, seed: int) -> Streams:
    """Every copy of every trace of a scenario, cut to its window."""
    names = (traffic.trace, *traffic.superpose)
    traces = [load_trace(name) for name in names]
    start, end = _window(scenario, min(t.end_seconds for t in traces))
    parts = []
    for number, trace in enumerate(traces):
        for copy in range(traffic.rotated_copies):
            shift = copy * _copy_shift(trace, traffic)
            words = draws.key(seed, "traffic", number, copy)
            part = _rate_part if isinstance(trace, RateTrace) else _request_part
            parts.append(part(trace, scenario, traffic, words, shift, start, end, number))  # type: ignore[arg-type]
    facts = traces[0].facts
    origin = instant_of(scenario.origin, "origin") if scenario.origin else facts.origin_at_seconds
    at = (instant_of(UNKNOWN_ORIGIN, "origin") if origin is None else origin) + math.floor(start)
    return Streams(
        parts=parts,
        origin_at_seconds=at,
        time_zone=scenario.time_zone or facts.time_zone,
        duration_seconds=end - start,
        labels=_labels(traces),
        notes=_notes(traces, traffic),
        blocks=_blocks(traces, traffic),
    )


def _window(scenario: Scenario, span: float) -> tuple[float, float]:
    start, duration = scenario.window.start_seconds, scenario.window.duration_seconds
    if start >= span:
        raise ConfigError("window.start_seconds", f"{start:g} must be < {span:g}, the end of the trace")
    if duration is None:
        return start, span
    if start + duration > span + 1e-6:
        raise ConfigError(
            "window.duration_seconds", f"{duration:g} must be <= {span - start:g}, to the end of the trace"
        )
    return start, start + duration


def _span(trace: Trace) -> float:
    return trace.end_seconds - (float(trace.t_seconds[0]) if isinstance(trace, RateTrace) else 0.0)


def _blocks(traces: Sequence[Trace], traffic: TraceTraffic) -> RequestRows | None:
    """Rows with prompt blocks: of a single trace whose lengths are kept, because ids of two traces mean different things."""
    first = traces[0]
    if len(traces) > 1 or not isinstance(first, RequestTrace) or not isinstance(traffic.lengths, TraceLengths):
        return None
    return None if first.rows.block_ids is None else first.rows


def _copy_shift(trace: Trace, traffic: TraceTraffic) -> float:
    """Seconds from one copy of a trace to the next."""
    shift = traffic.copy_shift_seconds
    if shift is None:
        return _span(trace) / traffic.rotated_copies
    least = trace.interval_seconds if isinstance(trace, RateTrace) else 0.0
    if not least <= shift < _span(trace):
        allowed = f"in [{least:g}, {_span(trace):g}), from an interval to the span of {trace.name}"
        raise ConfigError("traffic.copy_shift_seconds", f"{shift:g} must be {allowed}")
    return shift


def _labels(traces: Sequence[Trace]) -> tuple[str, ...]:
    """Names of tenants: the trace's own where there is one trace with labels, else the traces."""
    first = traces[0]
    if len(traces) == 1 and isinstance(first, RequestTrace) and first.rows.labels:
        return first.rows.labels
    return tuple(t.name for t in traces)


def _notes(traces: Sequence[Trace], traffic: TraceTraffic) -> tuple[str, ...]:
    notes = []
    if traffic.rotated_copies > 1:
        n = traffic.rotated_copies
        shift = f"1/{n} of its span" if traffic.copy_shift_seconds is None else f"{traffic.copy_shift_seconds:g} s"
        notes.append(
            f"{n} copies of the trace are added up, each {shift} after the last and wrapped around at the end."
        )
    if len(traces) > 1:
        notes.append(f"{len(traces)} traces are added up, second 0 on second 0: {', '.join(t.name for t in traces)}.")
    if traffic.thin_fraction < 1:
        notes.append(f"Each request is kept with probability {traffic.thin_fraction:g}.")
    if any(not t.facts.origin_published for t in traces):
        notes.append("The date is a choice: the source publishes the hour of the day only.")
    if any(t.facts.shape for t in traces):
        notes.append("The series counts something else than LLM requests; only its shape is used.")
    named = any(isinstance(t, RequestTrace) and t.rows.block_ids is not None for t in traces)
    if named and _blocks(traces, traffic) is None:
        notes.append("The names of prompt blocks are left out: no prefix is found in a cache.")
    dropped = sum(t.rows.dropped for t in traces if isinstance(t, RequestTrace))
    if dropped:
        notes.append(f"{dropped} rows without an answer are left out.")
    return tuple(notes)


def _request_part(
    trace: RequestTrace, scenario: Scenario, traffic: TraceTraffic, key: int, shift: float, start: float, end: float, number: int
) -> Part:  # fmt: skip
    own = trace.rows
    several = bool(traffic.superpose) or own.tenant is None
    tenant = np.full(own.arrival_seconds.size, number, np.int32) if several else own.tenant
    rows = Rows(
        arrival_seconds=own.arrival_seconds,
        prompt_tokens=own.prompt_tokens,
        output_tokens=own.output_tokens,
        tenant=np.asarray(tenant),
        cached_prompt_tokens=own.cached_prompt_tokens,
        row=None if own.block_ids is None else np.arange(own.arrival_seconds.size),
    )
    rows = spread.thinned(draws.key(key, "thin"), rows, traffic.thin_fraction)
    if shift:
        rows = spread.rotated(rows, shift, trace.end_seconds)
    if not isinstance(traffic.lengths, TraceLengths):
        n = rows.arrival_seconds.size
        nothing = np.full(n, np.nan)
        prompt, output = draw_lengths(traffic.lengths, draws.key(key, "lengths"), nothing, nothing, 0, trace)
        rows = Rows(
            arrival_seconds=rows.arrival_seconds, prompt_tokens=prompt, output_tokens=output, tenant=rows.tenant
        )
    before = rows.where(rows.arrival_seconds < start)
    inside = rows.where((rows.arrival_seconds >= start) & (rows.arrival_seconds < end))
    return Part(
        replace(inside, arrival_seconds=inside.arrival_seconds - start),
        binned(before, start, _look_back(scenario, start)),
        [],
    )


def _look_back(scenario: Scenario, start: float) -> float:
    """Seconds of history wanted, at most what there is before the window."""
    return start if scenario.history_days is None else min(start, scenario.history_days * DAY)


class _Rates(NamedTuple):
    """A rate trace after thinning and rotation: counts (0 where missing), token means, burstiness."""

    t: Floats
    counts: Ints
    prompt: Floats
    output: Floats
    cv: Floats
    missing: NDArray[np.bool_]


def _rates(trace: RateTrace, traffic: TraceTraffic, key: int, shift: float) -> _Rates:
    counts = np.nan_to_num(trace.requests).astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        prompt, output = trace.prompt_tokens / trace.requests, trace.output_tokens / trace.requests
    own = traffic.arrivals.cv
    default = trace.facts.iat_cv or DEFAULT_CV
    known = np.isfinite(trace.iat_cv) & (trace.iat_cv > 0)
    cv = np.where(known, trace.iat_cv, default) if own is None else np.full(counts.size, own)
    cv = np.clip(cv, 0.1, 30.0)
    if traffic.thin_fraction < 1:
        counts = draws.binomials(draws.key(key, "thin"), counts, traffic.thin_fraction)
        cv = spread.thinned_cv(cv, traffic.thin_fraction)
    turn = round(shift / trace.interval_seconds)
    return _Rates(
        t=trace.t_seconds,
        counts=np.roll(counts, turn),
        prompt=np.roll(prompt, turn),
        output=np.roll(output, turn),
        cv=np.roll(cv, turn),
        missing=np.roll(trace.missing, turn),
    )


def _rate_part(
    trace: RateTrace, scenario: Scenario, traffic: TraceTraffic, key: int, shift: float, start: float, end: float, number: int
) -> Part:  # fmt: skip
    rates, step = _rates(trace, traffic, key, shift), trace.interval_seconds
    inside = np.flatnonzero((rates.t + step > start) & (rates.t < end))
    first, last = int(inside[0]), int(inside[-1]) + 1
    counts = rates.counts[first:last]
    refuse_too_many(float(counts.sum()))
    lean = spread.slopes(np.where(rates.missing, np.nan, rates.counts.astype(np.float64)))[first:last]
    at = spread_arrivals(
        traffic.arrivals, True, draws.key(key, "arrivals"), counts.astype(np.float64), rates.cv[first:last], lean, first
    )
    which = np.minimum(at.astype(np.int64), last - first - 1)
    start_number = int(rates.counts[:first].sum())
    means = rates.prompt[first:last][which], rates.output[first:last][which]
    prompt, output = draw_lengths(traffic.lengths, draws.key(key, "lengths"), *means, start_number, trace)
    seconds = rates.t[first] + at * step - start
    keep = (seconds >= 0) & (seconds < end - start)
    rows = Rows(
        arrival_seconds=seconds[keep],
        prompt_tokens=prompt[keep],
        output_tokens=output[keep],
        tenant=np.full(int(keep.sum()), number, np.int32),
    )
    return Part(rows, _rate_history(rates, step, scenario, start), _runs(rates, step, start, end))


def _rate_history(rates: _Rates, step: float, scenario: Scenario, start: float) -> History:
    look_back = _look_back(scenario, start)
    past = (rates.t + step <= start + 1e-6) & (rates.t >= start - look_back - 1e-6)
    counts = np.where(rates.missing, np.nan, rates.counts.astype(np.float64))[past]

    def tokens(means: Floats) -> Floats:
        return np.where(counts == 0, 0.0, counts * means[past])

    return History(
        t_seconds=rates.t[past] - start,
        interval_seconds=step,
        requests=counts,
        prompt_tokens=tokens(rates.prompt),
        output_tokens=tokens(rates.output),
    )


def _runs(rates: _Rates, step: float, start: float, end: float) -> list[tuple[float, float]]:
    """Missing intervals inside the window, joined."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], rates.missing, [False]]).astype(np.int8)))
    spans = [(float(rates.t[a]), float(rates.t[b - 1] + step)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return [(max(a, start) - start, min(b, end) - start) for a, b in spans if a < end and b > start]
