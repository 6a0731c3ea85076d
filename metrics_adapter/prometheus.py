"""Observations out of a server that speaks Prometheus' query API.

    async with PrometheusSource("chat", settings, slo=slo) as source:
        observation = await source.observe(at_seconds, replicas)
        past = await source.backfill(since_seconds, until_seconds)

A look asks for the engine's series, replica by replica, at the instant and a window before, and for when each replica was
last scraped.  What comes back is read and assembled as a page that we scraped ourselves would be.  Rates are formed over
`window_seconds`; counts are those rates over the time since the last look, so they can be added up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from autoscaler.errors import MetricMissing, SourceError, SourceUnavailable
from autoscaler.settings import Slo
from autoscaler.source_settings import GAUGES, LATENCIES, RATES, PrometheusSettings
from autoscaler.types import Demand, Latency, Load, Observation, Replicas
from metrics_adapter import prometheus_queries as queries
from metrics_adapter.assembly import assemble
from metrics_adapter.engines import CONCEPTS, Engine, load_engine
from metrics_adapter.prometheus_api import Answer, PrometheusApi
from metrics_adapter.prometheus_backfill import Progress, history
from metrics_adapter.reading import Buckets, EngineReader, Reading

# Labels of the target that a server puts on every series: they tell no two series of one page apart.
TARGET_LABELS = ("instance", "job", "endpoint", "service", "container", "prometheus", "prometheus_replica", "receive")
# Looks that are remembered, so that the window's start need not be asked for again.
MOST_LOOKS = 8
# After so long a gap the counts of the whole gap say nothing of now.
LONGEST_GAP_SECONDS = 3600

DEMAND = (
    "requests", "prompt_tokens", "cached_prompt_tokens", "output_tokens", "finished_requests", "rejected_requests",
    "failed_requests",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """What a server had at one instant: fresh readings by replica, and the ages of those that are stale."""

    readings: Mapping[str, Reading]
    stale: Mapping[str, float]
    seen: int


class PrometheusSource:
    """A MetricsSource.  Raises SourceError where nothing can be known; single silent replicas are in `problems`."""

    def __init__(self, pool: str, settings: PrometheusSettings, *, slo: Slo | None = None) -> None:
        self.pool, self.settings, self.slo = pool, settings, slo
        self.engine: Engine | None = None if settings.engine == "none" else load_engine(settings.engine)
        self.api = PrometheusApi(settings)
        self.problems: dict[str, str] = {}
        self.readings: Mapping[str, Reading] = {}
        self._looks: dict[int, Look] = {}
        self._last_at: int | None = None
        self._last_window = settings.window_seconds

    async def __aenter__(self) -> PrometheusSource:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give back the connections."""
        await self.api.close()

    async def observe(self, at_seconds: int, replicas: Replicas) -> Observation:
        """The pool at `at_seconds`.  Raises SourceError where the server gives nothing fresh for replicas that are ready."""
        since = at_seconds - self._last_at if self._last_at is not None else self.settings.window_seconds
        if since <= 0:
            since = self._last_window
        elif since > LONGEST_GAP_SECONDS:
            since = self.settings.window_seconds
        start = at_seconds - max(self.settings.window_seconds, since)
        texts = [query for _, query in sorted(self.settings.queries.items())]
        wanted = [] if self.engine is None else [at for at in (at_seconds, start) if at not in self._looks]
        own = await self.api.instant(texts, at_seconds) if texts else []
        try:
            for at in wanted:
                self._looks[at] = await self._look(at)
            observation = self._assembled(at_seconds, start, since, replicas)
        finally:
            self._looks = dict(sorted(self._looks.items())[-MOST_LOOKS:])
        values = {n: _single(n, a) for n, a in zip(sorted(self.settings.queries), own, strict=True)}
        observation = with_values(observation, values)
        self._last_at, self._last_window = at_seconds, since
        return observation

    async def knocked(self) -> bool:
        """Never: a store that scrapes now and then knows nothing sooner than it tells anyway."""
        return False

    async def backfill(
        self, since_seconds: int, until_seconds: int, *, progress: Progress | None = None
    ) -> Sequence[Observation]:
        """The recorded past, oldest first, at `backfill_step_seconds`; times of which nothing is known are left out.

        `progress` is told (seconds done, seconds in all) after each part.  Raises SourceError.
        """
        if self.engine is None:
            raise SourceError("source.engine: none has no history: name the engine, or leave out the back-fill")
        found: list[Observation] = []
        async for part in history(self.pool, self.api, self.engine, since_seconds, until_seconds, self.slo, progress):
            found += part
        return found

    async def _look(self, at_seconds: int) -> Look:
        assert self.engine is not None
        asked = [queries.everything(self.settings, self.engine), queries.sampled_at(self.settings, self.engine)]
        values, sampled = await self.api.instant(asked, at_seconds)
        return await asyncio.to_thread(look_of, values, sampled, self.engine, self.settings, at_seconds)

    def _assembled(self, at: int, start: int, since: int, replicas: Replicas) -> Observation:
        if self.engine is None:
            return Observation(pool=self.pool, at_seconds=at, window_seconds=since, replicas=replicas)
        after, before = self._looks[at], self._looks[start]
        self.problems = {n: f"the newest sample is {age:.0f} s old" for n, age in sorted(after.stale.items())}
        self.readings = after.readings
        if not after.readings and replicas.ready > 0:
            # Nothing may be remembered of a look that failed: the server may have the samples a moment later.
            del self._looks[at]
            raise self._nothing(after)
        # A replica that was not scraped twice says nothing of what arrived: that is unknown, not zero.
        both = {
            n: paced(before.readings[n], now, since)
            for n, now in after.readings.items()
            if n in before.readings and now.at_seconds > before.readings[n].at_seconds
        }
        if not both and before.readings and after.readings:
            self.problems[self.settings.url] = (
                f"no replica was scraped twice within {at - start} s: set window_seconds higher"
            )
        return assemble(
            self.pool,
            {n: then for n, (then, _) in both.items()},
            {n: both[n][1] if n in both else now for n, now in after.readings.items()},
            at_seconds=at,
            window_seconds=since,
            replicas=replicas,
            slo=self.slo,
        )

    def _nothing(self, look: Look) -> SourceError:
        assert self.engine is not None
        where = self.settings.url
        if look.stale:
            youngest = min(look.stale.values())
            return SourceUnavailable(
                f"{where}: the newest sample of {len(look.stale)} replicas is {youngest:.0f} s old, over"
                f" stale_after_seconds, {self.settings.stale_after_seconds}"
            )
        names = " or ".join(queries.anchors(self.engine))
        chosen = queries.matchers(self.settings.selector)
        return MetricMissing(
            f"{where}: no series {names} of the engine table {self.engine.name!r}"
            f"{f' under the selector {{{chosen}}}' if chosen else ''} with the label {self.settings.replica_label}"
        )


def look_of(values: Answer, sampled: Answer, engine: Engine, settings: PrometheusSettings, at_seconds: int) -> Look:
    """Readings by replica out of the answers to `everything` and `sampled_at`; a replica that lacks a required series is none.

    Raises SourceError where one replica comes twice.
    """
    by = settings.replica_label
    instants = {s.labels[by]: s.values[-1] for s in sampled.series if by in s.labels}
    samples: dict[str, list[tuple[str, Mapping[str, str], float]]] = {n: [] for n in instants}
    dropped = {"__name__", by, *TARGET_LABELS}
    for points in values.series:
        name = points.labels.get(by)
        if name in samples:
            labels = {k: v for k, v in points.labels.items() if k not in dropped}
            samples[name].append((points.labels.get("__name__", ""), labels, points.values[-1]))
    reader = EngineReader(engine, settings.model)
    fresh: dict[str, Reading] = {}
    stale: dict[str, float] = {}
    for name, mine in samples.items():
        age = at_seconds - instants[name]
        try:
            reading = reader.read_samples(mine, instants[name])
        except SourceError as error:
            raise SourceError(
                f"{settings.url}: replica {name}: {error}; is it scraped twice, or is {by!r} not the label that tells"
                " replicas apart (replica_label)?"
            ) from None
        if reading.missing(engine, name) is not None:
            continue
        if age > settings.stale_after_seconds:
            stale[name] = age
        else:
            fresh[name] = reading
    return Look(fresh, stale, len(samples))


def paced(then: Reading, now: Reading, window_seconds: float) -> tuple[Reading, Reading]:
    """Both readings as if `window_seconds` lay between them, at the pace that was measured: counters begin at 0.

    Scrapes do not fall on our instants: between two looks lie a whole number of them.  Where a counter fell both stay as
    they are: what was counted since a restart has no pace.
    """
    gap = now.at_seconds - then.at_seconds
    started = then.values.get("started_at_seconds"), now.values.get("started_at_seconds")
    restarted = None not in started and started[0] != started[1]
    fell = any(_counts(k) and v < then.values.get(k, v) for k, v in now.values.items())
    if gap == window_seconds or restarted or fell:
        return then, now
    share = window_seconds / gap
    before, after = dict(then.values), dict(now.values)
    for concept, value in then.values.items():
        if concept not in now.values:
            continue
        if _counts(concept):
            before[concept], after[concept] = 0.0, (now.values[concept] - value) * share
        elif concept in ("running", "waiting"):
            before[concept] = now.values[concept] - (now.values[concept] - value) * share
    was, is_ = dict(then.histograms), dict(now.histograms)
    for concept, buckets in now.histograms.items():
        if concept in was and was[concept].upper_bounds == buckets.upper_bounds:
            was[concept], is_[concept] = _paced(was[concept], buckets, share)
    at = now.at_seconds
    return (
        replace(then, at_seconds=at - window_seconds, values=before, histograms=was),
        replace(now, values=after, histograms=is_),
    )


def _counts(concept: str) -> bool:
    return CONCEPTS[concept][0] == "counter"


def _paced(then: Buckets, now: Buckets, share: float) -> tuple[Buckets, Buckets]:
    changes = tuple((b - a) * share for a, b in zip(then.counts, now.counts, strict=True))
    if min(changes) < 0.0:
        return then, now
    known = then.sum is not None and now.sum is not None
    total = (now.sum - then.sum) * share if then.sum is not None and now.sum is not None else None
    zero = Buckets(then.upper_bounds, (0.0,) * len(changes), 0.0 if known else None)
    return zero, Buckets(now.upper_bounds, changes, total)


def _single(name: str, answer: Answer) -> float | None:
    """The one value of a user's query; None for an empty answer."""
    if len(answer.series) > 1:
        raise SourceError(
            f"source.queries.{name}: gives {len(answer.series)} series, must be one: add them up with sum()"
        )
    value = answer.series[0].values[-1] if answer.series else None
    if value is not None and not 0.0 <= value < float("inf"):
        raise SourceError(f"source.queries.{name}: gives {value!r}, must be a finite number >= 0")
    return value


def with_values(observation: Observation, values: Mapping[str, float | None]) -> Observation:
    """The Observation with what the user's queries gave in place of what the engine's series gave.

    An empty answer makes its field unknown: a user's query speaks for the field, not beside it.
    """
    seconds = observation.window_seconds
    demand: dict[str, Any] = {}
    load: dict[str, Any] = {}
    latency: dict[str, Any] = {}
    for name, value in values.items():
        plain = name.removesuffix("_per_second")
        if name in RATES:
            count = None if value is None else value * seconds
            (demand if plain in DEMAND else load)[plain] = count
        elif name == "arrival_gap_cv":
            demand[name] = value
        elif name in GAUGES:
            load[name] = int(value) if name == "replicas_reporting" and value is not None else value
        elif name in LATENCIES:
            latency[name] = value
    for name in ("kv_cache_fraction", "gpu_utilization_fraction"):
        if (load.get(name) or 0.0) > 1.0:
            raise SourceError(f"source.queries.{name}: gives {load[name]!r}, must be a fraction in [0, 1]")
    changes: dict[str, Any] = {}
    if demand:
        changes["demand"] = replace(observation.demand or Demand(), **demand)
    if load:
        changes["load"] = replace(observation.load or Load(), **load)
    if latency:
        changes["latency"] = replace(observation.latency or Latency(), **latency)
    return replace(observation, **changes)
