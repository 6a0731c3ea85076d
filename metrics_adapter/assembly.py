"""Readings of a pool's replicas at two instants, and what its door and its GPUs say, into one Observation.

Pure, and the same for replicas that we scrape and for those that a store of metrics scraped.  Counts are changes of
counters, replica by replica: a replica without an earlier reading gives gauges and no counts, one that restarted gives all
that it counted since, one that was silent meanwhile gives its share of the window, one that vanished gives nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from autoscaler.settings import Slo
from autoscaler.types import Demand, Histogram, Latency, Load, Observation, Replicas
from metrics_adapter.changes import Change, change_of
from metrics_adapter.door import DoorCounts
from metrics_adapter.gpu import GpuState
from metrics_adapter.reading import Buckets, Reading, merged, per_bucket


def assemble(
    pool: str,
    before: Mapping[str, Reading],
    after: Mapping[str, Reading],
    *,
    at_seconds: int,
    window_seconds: int,
    replicas: Replicas,
    slo: Slo | None = None,
    door: DoorCounts | None = None,
    gpus: Mapping[str, GpuState] | None = None,
    unready: Collection[str] = (),
    silent: int = 0,
    spare_replicas: int | None = None,
) -> Observation:
    """The Observation of `pool` out of readings by replica at the window's two ends.

    `after` holds the replicas that answered now, `before` the last readings of the same names.  `door`: what passed the door
    within the window (`DoorCounts.since`).  `gpus` of this pool's replicas, by the same names: one that is broken makes its
    replica unhealthy.  `unready`: replicas that answer but get no requests (starting, draining); what they did counts,
    what they hold does not.  `silent`: replicas that answered before and should have answered now; as many of the ready
    ones, and as many as are stuck, are told of by nobody, however many others answer.
    """
    broken = {name for name, gpu in (gpus or {}).items() if gpu.unhealthy}
    if broken:
        lost = min(replicas.ready, len(broken.difference(unready)))
        replicas = replace(replicas, ready=replicas.ready - lost, unhealthy=replicas.unhealthy + lost)
    changes = {n: change_of(before.get(n), now, window_seconds) for n, now in sorted(after.items())}
    reporting = [c for n, c in changes.items() if c.reports and n not in broken and n not in unready]
    known = [c for c in changes.values() if c.known]
    stuck = sum(c.frozen for n, c in changes.items() if n not in broken and n not in unready)
    count = min(len(reporting), max(0, replicas.ready - silent - stuck))
    counted = _demand(known) if known else None
    if counted is not None and door is None and 0 < count < replicas.ready:
        counted = replace(counted, replicas_reporting=count)
    return Observation(
        pool=pool,
        at_seconds=at_seconds,
        window_seconds=window_seconds,
        replicas=replicas,
        demand=_at_the_door(counted, door),
        load=_load(reporting, known, replicas, count, door, gpus),
        latency=_latency(known, slo) if known else None,
        spare_replicas=spare_replicas,
    )


def _sum(changes: Iterable[Change], concept: str) -> float | None:
    """Changes of a counter over the replicas that have it, each by its share of the window; None where none has it."""
    found = [c.counts[concept] * c.share for c in changes if concept in c.counts]
    return math.fsum(found) if found else None


def _gauge(changes: Iterable[Change], concept: str) -> list[float]:
    return [c.now.values[concept] for c in changes if concept in c.now.values]


def _histogram(changes: Iterable[Change], concept: str) -> Histogram | None:
    return histogram_of(merged(_shared(c.histograms[concept], c.share) for c in changes if concept in c.histograms))


def _shared(buckets: Buckets, share: float) -> Buckets:
    if share == 1.0:
        return buckets
    total = None if buckets.sum is None else buckets.sum * share
    return Buckets(buckets.upper_bounds, tuple(c * share for c in buckets.counts), total)


def histogram_of(buckets: Buckets | None) -> Histogram | None:
    """Counts per bucket, as Observations have them."""
    if buckets is None:
        return None
    return Histogram(upper_bounds=buckets.upper_bounds, counts=per_bucket(buckets.counts), sum=buckets.sum)


def _arrivals(change: Change) -> float | None:
    """Requests that arrived at one replica: counted on arrival, or what came out or is held now and was not held before.

    First tokens and the growth of the queue, as clients that hang up in mid-answer are in no count of finished requests; or
    else the ends and the growth of all that is held.  Never the ends alone: those are capped by the capacity there is.
    """
    counts = change.counts
    if "arrivals" in counts:
        return counts["arrivals"]
    out = _first_tokens(change)
    if out is not None and "waiting" in counts:
        return max(0.0, out + counts["waiting"] + counts.get("rejected", 0.0))
    if "finished" in counts and "running" in counts:
        held = counts["running"] + counts.get("waiting", 0.0)
        return max(0.0, counts["finished"] + counts.get("failed", 0.0) + held + counts.get("rejected", 0.0))
    return None


def _first_tokens(change: Change) -> float | None:
    """Requests whose first token came out; None where the engine tells of first tokens only at a request's end."""
    if "ttft" in change.histograms and "ttft" not in change.now.at_finish:
        return change.histograms["ttft"].total
    return change.counts.get("first_tokens")


def _told(change: Change, tokens: str) -> float | None:
    """Requests whose prompt tokens were counted in `tokens`."""
    if tokens in change.now.at_finish:
        ended = change.counts.get("finished")
        return None if ended is None else ended + change.counts.get("failed", 0.0)
    first = _first_tokens(change)
    return first if first is not None else change.counts.get("arrivals")


def _demand(known: list[Change]) -> Demand | None:
    arrived = [a * c.share for c in known if (a := _arrivals(c)) is not None]
    requests = math.fsum(arrived) if arrived else None
    return Demand(
        requests=requests,
        prompt_tokens=_arrived_tokens(known, "prompt_tokens", requests),
        cached_prompt_tokens=_arrived_tokens(known, "cached_prompt_tokens", requests),
        output_tokens=_sum(known, "output_tokens"),
        finished_requests=_sum(known, "finished"),
        rejected_requests=_sum(known, "rejected"),
        failed_requests=_sum(known, "failed"),
        prompt_lengths=_histogram(known, "prompt_length"),
        output_lengths=_histogram(known, "output_length"),
    )


def _arrived_tokens(known: list[Change], concept: str, requests: float | None) -> float | None:
    """Prompt tokens of the requests that arrived, out of those that were counted later: the same tokens per request.

    With none counted the length is not known; with none arrived there are no tokens.
    """
    tokens = _sum(known, concept)
    if tokens is None or requests is None:
        return tokens
    told = math.fsum(t * c.share for c in known if concept in c.counts and (t := _told(c, concept)) is not None)
    if told > 0.0:
        return tokens * requests / told
    return 0.0 if requests == 0.0 else None


def _at_the_door(counted: Demand | None, door: DoorCounts | None) -> Demand | None:
    """Engines' counts under those of a door, which sees what engines cannot."""
    if door is None:
        return counted
    base = counted or Demand()
    ratio = None if not base.requests else door.requests / base.requests

    def at_door(tokens: float | None) -> float | None:
        if door.requests == 0.0:
            return 0.0
        return None if tokens is None or ratio is None else tokens * ratio

    cached = at_door(base.cached_prompt_tokens)
    prompt = door.prompt_tokens if door.prompt_tokens is not None else at_door(base.prompt_tokens)
    return replace(
        base,
        requests=door.requests,
        prompt_tokens=prompt,
        cached_prompt_tokens=cached if cached is None or prompt is None else min(cached, prompt),
        finished_requests=base.finished_requests if base.finished_requests is not None else door.finished,
        rejected_requests=door.rejected if door.rejected is not None else base.rejected_requests,
        failed_requests=door.failed if door.failed is not None else base.failed_requests,
        arrival_gap_cv=door.arrival_gap_cv,
    )


def _load(
    reporting: list[Change],
    known: list[Change],
    replicas: Replicas,
    count: int,
    door: DoorCounts | None,
    gpus: Mapping[str, GpuState] | None,
) -> Load | None:
    held = door.waiting if door is not None else None
    if not reporting:
        if replicas.ready > 0:
            return Load(replicas_reporting=0)
        return None if held is None else Load(waiting_requests=held, replicas_reporting=0)
    running, waiting = _gauge(reporting, "running"), _gauge(reporting, "waiting")
    tokens, usage = _gauge(reporting, "waiting_prompt_tokens"), _gauge(reporting, "kv_usage")
    busy = [g.utilization_fraction for g in (gpus or {}).values() if g.utilization_fraction is not None]
    steps = _histogram(known, "step_tokens")
    waits = [*waiting, held] if held is not None else waiting
    return Load(
        running_requests=math.fsum(running) if running else None,
        waiting_requests=math.fsum(waits) if waits else None,
        waiting_prompt_tokens=math.fsum(tokens) if len(tokens) == len(reporting) else None,
        kv_cache_fraction=min(1.0, math.fsum(usage) / len(usage)) if usage else None,
        gpu_utilization_fraction=math.fsum(busy) / len(busy) if busy else None,
        engine_steps=steps.total if steps is not None else _sum(known, "engine_steps"),
        preemptions=_sum(known, "preemptions"),
        replicas_reporting=count,
        step_tokens=steps,
    )


def _latency(known: list[Change], slo: Slo | None) -> Latency | None:
    ttft, tpot = _histogram(known, "ttft"), _histogram(known, "tpot")
    gaps = _histogram(known, "itl")
    served = _sum(known, "finished")
    e2e = _histogram(known, "e2e")
    if ttft is None and tpot is None and gaps is None and e2e is None and served is None:
        return None
    return Latency(
        ttft=ttft,
        itl=tpot if tpot is not None else gaps,
        e2e=e2e,
        served_requests=served,
        violated_requests=None if slo is None else _violated(slo, ttft, tpot, gaps, served),
    )


def _violated(
    slo: Slo, ttft: Histogram | None, tpot: Histogram | None, gaps: Histogram | None, served: float | None
) -> tuple[float, float] | None:
    """[lower, upper] number of requests outside the SLO; None where TTFT or the pace is not known at all.

    Marginal histograms do not say whether the late requests are the slow ones.  Where an engine has each gap between tokens
    alone, a slow request has at least one gap over the limit, and no more can be said.
    """
    if ttft is None:
        return None
    late = ttft.above(slo.ttft_seconds)
    if tpot is not None:
        slow = tpot.above(slo.itl_seconds)
    elif gaps is not None and served is not None:
        slow = (0.0, min(gaps.above(slo.itl_seconds)[1], max(served, ttft.total)))
    else:
        return None
    return max(late[0], slow[0]), late[1] + slow[1]
