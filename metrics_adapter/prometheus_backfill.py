"""Weeks of history out of a Prometheus server, in parts that it and we can hold.

The server adds up the replicas (weeks of every replica's buckets would be thousands of times as much): each step's counts
come as one pseudo-replica, which is read and assembled as a live one would be.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace

from autoscaler.errors import ConfigError, SourceError
from autoscaler.settings import Slo
from autoscaler.types import Demand, Observation, Replicas
from metrics_adapter import prometheus_queries as queries
from metrics_adapter.assembly import assemble
from metrics_adapter.engines import CONCEPTS, Engine
from metrics_adapter.prometheus_api import Answer, AnswerTooLarge, PrometheusApi
from metrics_adapter.reading import Buckets, EngineReader, Reading
from metrics_adapter.text import Sample

Progress = Callable[[int, int], None]

# Prometheus refuses more points of a series at a time than 11 000.
FIRST_POINTS, MOST_POINTS = 720, 10_000
QUESTIONS_AT_A_TIME = 4


async def history(
    pool: str,
    api: PrometheusApi,
    engine: Engine,
    since_seconds: int,
    until_seconds: int,
    slo: Slo | None,
    progress: Progress | None,
) -> AsyncIterator[list[Observation]]:
    """The Observations of each part, oldest first, at multiples of the step in (since, until].

    A part that is too large is asked for again in halves, and parts grow while all is well.  Raises SourceError.
    """
    step = api.settings.backfill_step_seconds
    if until_seconds <= since_seconds:
        raise ConfigError("backfill", f"until {until_seconds} must be later than since {since_seconds}")
    first, last = (since_seconds // step + 1) * step, until_seconds // step * step
    points, at, before = FIRST_POINTS, first, None
    while at <= last:
        end = min(last, at + (points - 1) * step)
        try:
            counts, answers = await _part(api, engine, at, end)
        except AnswerTooLarge:
            if points <= 1:
                raise
            points = max(1, points // 4)
            continue
        part, before = _observations(pool, api, engine, counts, answers, slo, before)
        yield part
        if progress is not None:
            progress(end - first + step, last - first + step)
        at, points = end + step, min(MOST_POINTS, points * 2)


async def _part(api: PrometheusApi, engine: Engine, start: int, end: int) -> tuple[Answer, list[tuple[str, Answer]]]:
    """How many replicas reported, and each sample name's answer, at the steps from `start` to `end`."""
    step, gate = api.settings.backfill_step_seconds, asyncio.Semaphore(QUESTIONS_AT_A_TIME)

    async def ask(query: str) -> Answer:
        async with gate:
            return await api.range(query, start, end, step)

    named = list(queries.history(api.settings, engine))
    try:
        async with asyncio.TaskGroup() as group:
            reporting = group.create_task(ask(queries.reporting(api.settings, engine)))
            tasks = [group.create_task(ask(query)) for _, query in named]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return reporting.result(), [(name, task.result()) for (name, _), task in zip(named, tasks, strict=True)]


def _observations(
    pool: str,
    api: PrometheusApi,
    engine: Engine,
    counts: Answer,
    answers: Sequence[tuple[str, Answer]],
    slo: Slo | None,
    before: Reading | None,
) -> tuple[list[Observation], Reading | None]:
    """One Observation per step of which anything is known, and the last step's reading."""
    step = api.settings.backfill_step_seconds
    replicas = {int(t): int(v) for s in counts.series for t, v in zip(s.at_seconds, s.values, strict=True)}
    samples: dict[int, list[Sample]] = {at: [] for at in sorted(replicas)}
    for name, answer in answers:
        for points in answer.series:
            for t, value in zip(points.at_seconds, points.values, strict=True):
                if int(t) in samples:
                    samples[int(t)].append((name, points.labels, value))
    reader = EngineReader(engine, api.settings.model)
    found = []
    for at, mine in samples.items():
        now = reader.read_samples(ascending(mine), float(at))
        then = zero(now, before, step)
        size = Replicas(desired=replicas[at], ready=replicas[at])
        seen = assemble(
            pool, {"all": then}, {"all": now}, at_seconds=at, window_seconds=step, replicas=size, slo=slo
        )  # fmt: skip
        load = None if seen.load is None else replace(seen.load, replicas_reporting=replicas[at])
        # One sample in a step shows what there is and not what came.
        demand = None if seen.demand == Demand() else seen.demand
        found.append(replace(seen, load=load, demand=demand))
        before = now
    return found, before


def zero(now: Reading, before: Reading | None, step_seconds: int) -> Reading:
    """The start of a step whose counts are already differences: counters at 0, the queue as it was a step ago.

    Where there is a gap before it, the queue is taken as it is at the step's end.
    """
    at = now.at_seconds - step_seconds
    earlier: Mapping[str, float] = before.values if before is not None and before.at_seconds == at else now.values
    values = {k: 0.0 if CONCEPTS[k][0] == "counter" else earlier.get(k, v) for k, v in now.values.items()}
    # A start instant that moves would make every step a restart, whose counts are the same differences.
    values.pop("started_at_seconds", None)
    none = {k: Buckets(b.upper_bounds, (0.0,) * len(b.counts), 0.0) for k, b in now.histograms.items()}
    return Reading(at_seconds=at, values=values, histograms=none)


def ascending(samples: Sequence[Sample]) -> list[Sample]:
    """Samples with cumulative buckets that do not fall: the server extrapolates each bucket on its own."""
    out: list[Sample] = []
    ladders: dict[tuple[str, tuple[tuple[str, str], ...]], list[tuple[float, Sample]]] = {}
    for sample in samples:
        name, labels, _ = sample
        if not name.endswith("_bucket") or "le" not in labels:
            out.append(sample)
            continue
        key = (name, tuple(sorted((k, v) for k, v in labels.items() if k != "le")))
        ladders.setdefault(key, []).append((_bound(labels["le"]), sample))
    for ladder in ladders.values():
        highest = 0.0
        for _, (name, labels, value) in sorted(ladder, key=lambda pair: pair[0]):
            highest = max(highest, value)
            out.append((name, labels, highest))
    return out


def _bound(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SourceError(f"a bucket's bound is {text[:40]!r}, must be a number") from None
