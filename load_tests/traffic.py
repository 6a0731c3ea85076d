"""A scenario's traffic made concrete: every request with its instant and lengths, the gaps, and the history before.

Second 0 is the start of the scenario's window.  The same scenario and seed give the same bytes; the same interval of a trace
gives the same requests whatever the window around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from autoscaler.errors import ConfigError
from load_tests import arrivals as spread
from load_tests.arrivals import Rows
from load_tests.fleet import Requests
from load_tests.histories import History, added
from load_tests.scenario import Scenario
from load_tests.trace_formats import RequestRows
from load_tests.traffic_parts import Streams
from load_tests.traffic_settings import ShapeTraffic
from load_tests.traffic_shapes import shape_streams
from load_tests.traffic_traces import trace_streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests of the window [0, end_seconds); `origin_at_seconds` is the Unix second of second 0.

    `gaps`: parts of the window in which nothing is known of the traffic and none is made up.  `tenants` name the numbers in
    `requests.tenant`.  `notes`: sentences for the report on how the traffic departs from its source.
    """

    requests: Requests
    origin_at_seconds: int
    time_zone: str
    start_seconds: float
    end_seconds: float
    gaps: tuple[tuple[float, float], ...]
    history: History
    tenants: tuple[str, ...]
    notes: tuple[str, ...]


def materialise(scenario: Scenario, seed: int) -> Traffic:
    """The requests of a scenario under a seed.

    Raises ConfigError for a file that cannot be used and for a window without requests, or with too many.
    """
    if isinstance(scenario.traffic, ShapeTraffic):
        return _joined(scenario, shape_streams(scenario, scenario.traffic, seed))
    return _joined(scenario, trace_streams(scenario, scenario.traffic, seed))


def _joined(scenario: Scenario, streams: Streams) -> Traffic:
    parts, duration = streams.parts, streams.duration_seconds
    rows = spread.merged([p.rows for p in parts])
    if rows.arrival_seconds.size == 0:
        raise ConfigError(
            "window", f"the {duration:g} s from {scenario.window.start_seconds:g} hold no request, must hold one"
        )
    if scenario.score_from_seconds >= duration:
        raise ConfigError(
            "score_from_seconds", f"{scenario.score_from_seconds:g} must be < {duration:g}, the window's length"
        )
    return Traffic(
        requests=Requests(
            arrival_seconds=rows.arrival_seconds,
            prompt_tokens=rows.prompt_tokens,
            output_tokens=rows.output_tokens,
            cached_prompt_tokens=rows.cached_prompt_tokens,
            tenant=rows.tenant,
            **_blocks(rows, streams.blocks),
        ),
        origin_at_seconds=streams.origin_at_seconds,
        time_zone=streams.time_zone,
        start_seconds=0.0,
        end_seconds=duration,
        gaps=_union([g for p in parts for g in p.gaps]),
        history=added([p.history for p in parts if p.history is not None]),
        tenants=streams.labels,
        notes=streams.notes,
    )


def _blocks(rows: Rows, source: RequestRows | None) -> dict[str, Any]:
    """Prompt blocks of the requests, gathered from the trace's."""
    if source is None or source.block_offsets is None or source.block_ids is None or rows.row is None:
        return {}
    begin, end = source.block_offsets[rows.row], source.block_offsets[rows.row + 1]
    offsets = np.concatenate([[0], np.cumsum(end - begin)]).astype(np.int64)
    index = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], end - begin)
    return {
        "block_hash_offsets": offsets,
        "block_hashes": source.block_ids[index],
        "prefix_block_tokens": source.block_tokens,
    }


def _union(gaps: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    out: list[tuple[float, float]] = []
    for a, b in sorted(gaps):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return tuple(out)
