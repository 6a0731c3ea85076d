"""What one policy did on one scenario, request by request and tick by tick, and what that is worth.

Seconds are relative to the start of the scenario's traffic.  A Run is plain data (numpy arrays, no simulator inside):
whoever has a world, simulated or real, can fill one.  `metrics` judges it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autoscaler.settings import Slo
from autoscaler.types import Reason
from autoscaler.units import replicas_for

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DONE, FAILED, UNFINISHED = 0, 1, 2

# A breach is over once the p95 TTFT has been within the SLO for so long.
CALM_SECONDS = 60.0

# Differences of instants carry rounding errors of about 1e-10 s after two weeks; they break no promise.
_SLACK_SECONDS = 1e-9


class ReplicaSeconds(NamedTuple):
    """Replica-seconds by stage of life, integrated exactly over the scored window.  All of them are paid for."""

    starting: float = 0.0
    ready: float = 0.0
    draining: float = 0.0
    sleeping: float = 0.0

    @property
    def paid(self) -> float:
        """Everything that held GPUs."""
        return self.starting + self.ready + self.draining + self.sleeping


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One row per tick, ascending: row i tells of [at_seconds[i], at_seconds[i] + interval).

    `desired`, `ready`, `starting`, `draining`: replicas at the tick, after its decision.  `running`, `waiting`: requests
    at the tick (waiting at the door included).  `arrivals_per_second`, `ttft_p95_seconds`, `violated`: of the requests
    that arrive inside the row (NaN without any).  `need`: replicas that the arriving work needs, unrounded (NaN
    unknown).  `forecast_low`, `forecast_high`: band of the arrivals forecast for this row, per second (NaN without).
    """

    at_seconds: Floats
    desired: Ints
    ready: Ints
    starting: Ints
    draining: Ints
    need: Floats
    arrivals_per_second: Floats
    running: Floats
    waiting: Floats
    ttft_p95_seconds: Floats
    violated: Ints
    forecast_low: Floats
    forecast_high: Floats

    def __post_init__(self) -> None:
        lengths = {f.name: len(getattr(self, f.name)) for f in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of a Timeline must be equally long, not {lengths}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A changed decision (`kind` "decision", with its reasons), or something that befell the pool ("fault", ...)."""

    at_seconds: float
    before: int
    after: int
    reasons: tuple[Reason, ...] = ()
    kind: str = "decision"
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One policy, one scenario, one seed.

    Request arrays have one entry per request that arrived, in order of arrival: `first_token_seconds` and
    `finish_seconds` are instants, inf where it never came; `status` is 0 done, 1 failed, 2 unfinished.  Requests that
    arrive in [score_from_seconds, end_seconds) are judged; `replica_seconds` and `starts` are of that window.  `about`
    describes the setting for people: pairs such as ("trace", "Azure 2023 conversation").  `origin_at_seconds`: the Unix
    instant of second 0, where there is one.  `wall_seconds`: what the simulation took.
    """

    policy: str
    pool: str
    scenario: str
    seed: int
    slo: Slo
    gpus_per_replica: int
    interval_seconds: float
    score_from_seconds: float
    end_seconds: float
    arrival_seconds: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    first_token_seconds: Floats
    finish_seconds: Floats
    status: Ints
    timeline: Timeline
    events: tuple[Event, ...]
    replica_seconds: ReplicaSeconds
    starts: int
    wall_seconds: float = 0.0
    about: tuple[tuple[str, str], ...] = ()
    origin_at_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What a Run is worth (evaluation: metrics).  None: unknown, or nothing to judge.

    A latency quantile is over all arrivals of the window and is inf where that share of them never got there.
    `over_fraction`, `under_fraction`: mean relative over- and under-provision of ready replicas against the least whole
    number that carries the need (relative to at least 1); `*_time_fraction` the share of ticks.  `gpu_hours` counts
    starting, ready, draining and sleeping replicas.  `longest_breach_seconds`: from the first tick whose p95 TTFT is
    above the SLO until it has been within for 60 s (to the end, if it never was).
    """

    requests: int
    violated: int
    violated_ttft: int
    violated_itl: int
    failed: int
    unfinished: int
    attainment_fraction: float | None
    attainment_by_tokens_fraction: float | None
    attainment_worst_hours_fraction: float | None
    error_budget_used: float | None
    met: bool | None
    ttft_p50_seconds: float | None
    ttft_p95_seconds: float | None
    ttft_p99_seconds: float | None
    itl_p50_seconds: float | None
    itl_p95_seconds: float | None
    itl_p99_seconds: float | None
    e2e_p50_seconds: float | None
    e2e_p95_seconds: float | None
    e2e_p99_seconds: float | None
    gpu_hours: float
    starting_gpu_hours: float
    ready_gpu_hours: float
    draining_gpu_hours: float
    sleeping_gpu_hours: float
    goodput_per_gpu_hour: float | None
    busy_fraction: float | None
    over_fraction: float | None
    under_fraction: float | None
    over_time_fraction: float | None
    under_time_fraction: float | None
    instability_fraction: float | None
    starts: int
    starts_per_day: float | None
    max_starting: int
    decisions: int
    longest_breach_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Per request, whether and how it violated the SLO (arrays in the order of the Run's requests)."""

    ttft_seconds: Floats
    itl_seconds: Floats
    e2e_seconds: Floats
    late: Bools
    slow: Bools
    failed: Bools
    unfinished: Bools
    violated: Bools


def judge(run: Run) -> Judged:
    """Each request of `run` against its SLO.

    Violated: TTFT above the limit, mean ITL (finish - first token) / (output - 1) above the limit, failed, or
    unfinished at the end.  The ITL of a one-token answer is NaN and violates nothing.
    """
    done = (run.status == DONE) & np.isfinite(run.finish_seconds)
    failed = run.status == FAILED
    ttft = run.first_token_seconds - run.arrival_seconds
    finish = np.where(done, run.finish_seconds, np.inf)
    several = run.output_tokens > 1
    started = np.isfinite(run.first_token_seconds)
    itl = np.full(len(ttft), np.nan)
    itl[several] = np.inf
    timed = several & started & done
    itl[timed] = (finish[timed] - run.first_token_seconds[timed]) / (run.output_tokens[timed] - 1)
    late = ttft > run.slo.ttft_seconds + _SLACK_SECONDS
    slow = done & (itl > run.slo.itl_seconds + _SLACK_SECONDS)
    return Judged(
        ttft_seconds=ttft,
        itl_seconds=itl,
        e2e_seconds=finish - run.arrival_seconds,
        late=late,
        slow=slow,
        failed=failed,
        unfinished=~done & ~failed,
        violated=late | slow | ~done,
    )


def scored(run: Run) -> Bools:
    """Which requests count: those that arrive in [score_from_seconds, end_seconds)."""
    return (run.arrival_seconds >= run.score_from_seconds) & (run.arrival_seconds < run.end_seconds)


def nearest_rank(values: Floats, q: float) -> float | None:
    """The least value that at least the share `q` of `values` does not exceed (inf sorts last); None if empty.

    No interpolation: between a number and "never" there is nothing.
    """
    if len(values) == 0:
        return None
    rank = min(len(values) - 1, max(0, math.ceil(q * len(values) - 1e-9) - 1))
    return float(np.partition(values, rank)[rank])


def by_arrival(
    at_seconds: Floats, interval_seconds: float, arrival_seconds: Floats, ttft_seconds: Floats, violated: Bools
) -> tuple[Floats, Floats, Ints]:
    """(arrivals_per_second, ttft_p95_seconds, violated) per row of a Timeline, by the row in which requests arrive."""
    n = len(at_seconds)
    edges = np.append(at_seconds, at_seconds[-1] + interval_seconds) if n else np.zeros(1)
    first = np.searchsorted(arrival_seconds, edges, side="left")
    counts = np.diff(first)
    p95 = np.full(n, np.nan)
    for i in np.flatnonzero(counts):
        p95[i] = nearest_rank(ttft_seconds[first[i] : first[i + 1]], 0.95)
    sums = np.concatenate(([0], np.cumsum(violated.astype(np.int64))))
    return counts / np.diff(edges), p95, sums[first[1:]] - sums[first[:-1]]


def metrics(run: Run) -> Metrics:
    """All metrics of `run` over its scored window."""
    judged, inside = judge(run), scored(run)
    n, violated = int(inside.sum()), int((judged.violated & inside).sum())
    budget = 1 - run.slo.attainment_fraction
    attainment = 1 - violated / n if n else None
    hours = run.gpus_per_replica / 3600
    gpu_hours = run.replica_seconds.paid * hours
    days = (run.end_seconds - run.score_from_seconds) / 86400
    rows = _scored_rows(run)
    return Metrics(
        requests=n,
        violated=violated,
        violated_ttft=int((judged.late & inside).sum()),
        violated_itl=int((judged.slow & inside).sum()),
        failed=int((judged.failed & inside).sum()),
        unfinished=int((judged.unfinished & inside).sum()),
        attainment_fraction=attainment,
        attainment_by_tokens_fraction=_by_tokens(run, judged, inside),
        attainment_worst_hours_fraction=_worst_hours(run, judged, inside),
        error_budget_used=(1 - attainment) / budget if attainment is not None else None,
        met=violated <= budget * n + 1e-9 if n else None,
        **_quantiles("ttft", judged.ttft_seconds[inside]),
        **_quantiles("itl", judged.itl_seconds[inside]),
        **_quantiles("e2e", judged.e2e_seconds[inside]),
        gpu_hours=gpu_hours,
        starting_gpu_hours=run.replica_seconds.starting * hours,
        ready_gpu_hours=run.replica_seconds.ready * hours,
        draining_gpu_hours=run.replica_seconds.draining * hours,
        sleeping_gpu_hours=run.replica_seconds.sleeping * hours,
        goodput_per_gpu_hour=(n - violated) / gpu_hours if gpu_hours > 0 else None,
        busy_fraction=_busy(run, rows),
        **_elasticity(run, rows),
        starts=run.starts,
        starts_per_day=run.starts / days if days > 0 else None,
        max_starting=int(run.timeline.starting[rows].max(initial=0)),
        decisions=sum(
            e.kind == "decision" and run.score_from_seconds <= e.at_seconds < run.end_seconds for e in run.events
        ),
        longest_breach_seconds=_longest_breach(run, rows),
    )


def _scored_rows(run: Run) -> Bools:
    at = run.timeline.at_seconds
    return (at >= run.score_from_seconds) & (at < run.end_seconds)


def _quantiles(name: str, values: Floats) -> dict[str, float | None]:
    known = values[~np.isnan(values)]
    return {f"{name}_p{round(100 * q)}_seconds": nearest_rank(known, q) for q in (0.5, 0.95, 0.99)}


def _by_tokens(run: Run, judged: Judged, inside: Bools) -> float | None:
    tokens = (run.prompt_tokens + run.output_tokens)[inside]
    total = int(tokens.sum())
    return 1 - int(tokens[judged.violated[inside]].sum()) / total if total else None


def _worst_hours(run: Run, judged: Judged, inside: Bools) -> float | None:
    """Attainment over the worst 1 % of the hours that saw requests, but at least one hour."""
    hour = ((run.arrival_seconds[inside] - run.score_from_seconds) // 3600).astype(np.int64)
    if not len(hour):
        return None
    arrived = np.bincount(hour)
    violated = np.bincount(hour, weights=judged.violated[inside].astype(np.float64))
    busy = np.flatnonzero(arrived)
    order = busy[np.argsort(-(violated[busy] / arrived[busy]), kind="stable")]
    worst = order[: max(1, round(0.01 * len(busy)))]
    return float(1 - violated[worst].sum() / arrived[worst].sum())


def _busy(run: Run, rows: Bools) -> float | None:
    """Work at the SLO-feasible load over what was paid, over the ticks whose need is known."""
    need = run.timeline.need[rows]
    known = ~np.isnan(need)
    paid = run.replica_seconds.paid * known.mean() if known.any() else 0.0
    return float(need[known].sum() * run.interval_seconds / paid) if paid > 0 else None


def _elasticity(run: Run, rows: Bools) -> dict[str, float | None]:
    """Over- and under-provision as in Herbst et al., "Elasticity in cloud computing" (2013), on whole replicas."""
    need, ready = run.timeline.need[rows], run.timeline.ready[rows]
    known = ~np.isnan(need)
    names = ("over_fraction", "under_fraction", "over_time_fraction", "under_time_fraction", "instability_fraction")
    if not known.any():
        return dict.fromkeys(names)
    whole = np.array([replicas_for(float(x)) for x in need[known]], dtype=np.int64)
    over, under = np.maximum(ready[known] - whole, 0), np.maximum(whole - ready[known], 0)
    scale = np.maximum(whole, 1)
    moves = np.diff(ready[known]) * np.sign(np.diff(need[known]))
    values = (
        float((over / scale).mean()),
        float((under / scale).mean()),
        float((over > 0).mean()),
        float((under > 0).mean()),
        float((moves < 0).mean()) if len(moves) else None,
    )
    return dict(zip(names, values, strict=True))


def _longest_breach(run: Run, rows: Bools) -> float | None:
    at, p95 = run.timeline.at_seconds[rows], run.timeline.ttft_p95_seconds[rows]
    if np.isnan(p95).all():
        return None
    longest, start, last_bad = 0.0, None, None
    for t, value in zip(at.tolist(), p95.tolist(), strict=True):
        if start is not None and last_bad is not None and t - last_bad > CALM_SECONDS:
            longest, start = max(longest, last_bad + run.interval_seconds - start), None
        if value > run.slo.ttft_seconds:
            start, last_bad = t if start is None else start, t
    if start is not None and last_bad is not None:
        calm = run.end_seconds - last_bad - run.interval_seconds >= CALM_SECONDS
        longest = max(longest, (last_bad + run.interval_seconds if calm else run.end_seconds) - start)
    return longest
