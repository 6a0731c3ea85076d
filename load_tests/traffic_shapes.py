"""Streams of requests out of made-up shapes."""

from __future__ import annotations

import math
from datetime import datetime

import numpy as np

from autoscaler.errors import ConfigError
from load_tests import arrivals as spread
from load_tests import draws
from load_tests.arrivals import DEFAULT_CV, Floats, Ints, Rows
from load_tests.histories import MINUTE, History
from load_tests.scenario import Scenario
from load_tests.shapes import DAY, Clock, Stream
from load_tests.traces import RequestTrace, instant_of, load_trace, zone_of
from load_tests.traffic_parts import Part, Streams, draw_lengths, refuse_too_many, spread_arrivals
from load_tests.traffic_settings import LognormalLengths, PairLengths, ShapeTraffic

SHAPE_ORIGIN = "2025-01-06T00:00:00+00:00"  # a Monday


def shape_streams(scenario: Scenario, traffic: ShapeTraffic, seed: int) -> Streams:
    """Every tenant of a shape over the window."""
    start = scenario.window.start_seconds
    duration = scenario.window.duration_seconds or DAY
    origin = instant_of(scenario.origin or SHAPE_ORIGIN, "origin") + math.floor(start)
    zone = scenario.time_zone or "UTC"
    local = datetime.fromtimestamp(origin, zone_of(zone, "time_zone"))
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    clock = Clock(day_seconds=(local - midnight).total_seconds() - start, weekday=local.weekday())
    width = 1.0 if duration <= 2 * DAY else 10.0
    middles = start + width * (np.arange(math.ceil(duration / width)).astype(np.float64) + 0.5)
    parts = []
    streams = traffic.shape.streams(middles, clock, draws.key(seed, "shape"))
    past = _shape_history(scenario, traffic, clock, seed)
    for number, stream in enumerate(streams):
        key = draws.key(seed, "traffic", number)
        parts.append(Part(_stream_rows(traffic, stream, key, width, duration, number), None if number else past, []))
    labels = tuple(f"tenant {i}" for i in range(len(streams)))
    return Streams(
        parts=parts, origin_at_seconds=origin, time_zone=zone, duration_seconds=duration, labels=labels, notes=()
    )  # fmt: skip


def _stream_rows(traffic: ShapeTraffic, stream: Stream, key: int, width: float, duration: float, number: int) -> Rows:
    means = stream.rates * width
    refuse_too_many(float(means.sum()))
    cv = np.full(means.size, traffic.arrivals.cv or DEFAULT_CV)
    flat = np.zeros(means.size)
    at = (
        spread_arrivals(traffic.arrivals, False, draws.key(key, "arrivals"), means, cv, flat, 0)
        if means.any()
        else np.zeros(0)
    )
    which = np.minimum(at.astype(np.int64), means.size - 1)
    factors = stream.prompt_factors[which], stream.output_factors[which]
    prompt, output = _shape_lengths(traffic, draws.key(key, "lengths"), *factors)
    keep = at * width < duration
    return Rows(
        arrival_seconds=at[keep] * width,
        prompt_tokens=prompt[keep],
        output_tokens=output[keep],
        tenant=np.full(int(keep.sum()), number, np.int32),
    )


def _mean_lengths(traffic: ShapeTraffic) -> tuple[float, float]:
    lengths = traffic.lengths
    if isinstance(lengths, LognormalLengths):
        return lengths.prompt_tokens, lengths.output_tokens
    pairs = load_trace(lengths.file)
    if not isinstance(pairs, RequestTrace):
        raise ConfigError("traffic.lengths.file", f"{lengths.file!r} must be a request-level trace")
    return float(pairs.rows.prompt_tokens.mean()), float(pairs.rows.output_tokens.mean())


def _shape_lengths(traffic: ShapeTraffic, key: int, prompt: Floats, output: Floats) -> tuple[Ints, Ints]:
    lengths, (p, o) = traffic.lengths, _mean_lengths(traffic)
    if isinstance(lengths, PairLengths):
        return draw_lengths(lengths, key, p * prompt, o * output, 0, None)
    return spread.lognormal_pairs(
        key, p * prompt, o * output, prompt_sigma=lengths.prompt_sigma, output_sigma=lengths.output_sigma,
        correlation=lengths.correlation,
    )  # fmt: skip


def _shape_history(scenario: Scenario, traffic: ShapeTraffic, clock: Clock, seed: int) -> History:
    """Poisson counts per minute of the shape before the window."""
    bins = int((scenario.history_days or 0.0) * DAY // MINUTE)
    t = MINUTE * np.arange(-bins, 0).astype(np.float64)
    start, (p, o) = scenario.window.start_seconds, _mean_lengths(traffic)
    streams = traffic.shape.streams(t + start + 0.5 * MINUTE, clock, draws.key(seed, "shape"))
    counts = [
        draws.poissons(draws.key(seed, "history", i), s.rates * MINUTE).astype(np.float64)
        for i, s in enumerate(streams)
    ]
    return History(
        t_seconds=t,
        interval_seconds=MINUTE,
        requests=np.sum(counts, axis=0),
        prompt_tokens=np.sum([c * p * s.prompt_factors for c, s in zip(counts, streams, strict=True)], axis=0),
        output_tokens=np.sum([c * o * s.output_factors for c, s in zip(counts, streams, strict=True)], axis=0),
    )
