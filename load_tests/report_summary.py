"""Runs side by side: grouped by what was asked of them, seeds of one policy taken together, the best marked.

A policy's number over several seeds is the mean, beside its range.  Losing policies are shown like the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby

from autoscaler.units import duration
from load_tests.run import Metrics, Run, metrics

Json = dict[str, object]

# Numbers of which less is better; attainment is a promise to keep, not a race to win.
LESS_IS_BETTER = (
    "ttft_p50_seconds", "ttft_p95_seconds", "ttft_p99_seconds", "itl_p50_seconds", "itl_p95_seconds", "itl_p99_seconds",
    "gpu_hours", "over_fraction", "under_fraction", "starts",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean, least and largest over seeds; inf where a share of requests never got there, None unknown in some seed."""

    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy of a group: its runs (one per seed), what they are worth, and the spread of each number.

    `met`: the mean attainment over seeds keeps the SLO; `met_seeds`: in how many it did.
    """

    policy: str
    runs: tuple[Run, ...]
    metrics: tuple[Metrics, ...]
    spreads: dict[str, Spread]
    met: bool | None
    met_seeds: int

    def mean(self, name: str) -> float | None:
        """The mean over seeds of one number of Metrics."""
        return self.spreads[name].mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Policies that were asked the same: one scenario, one pool."""

    scenario: str
    pool: str
    rows: tuple[Row, ...]

    @property
    def first(self) -> Run:
        """A run that speaks for the setting."""
        return self.rows[0].runs[0]

    def best(self, name: str) -> float | None:
        """The least mean of `name` among the policies that kept the SLO; None where fewer than two of them compete."""
        rivals = [row for row in self.rows if row.met]
        values = [v for row in rivals if (v := row.mean(name)) is not None and math.isfinite(v)]
        return min(values) if values and len(rivals) > 1 else None


def summarize(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order in which they first appear, and rows likewise."""
    groups: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        groups.setdefault((run.scenario, run.pool), {}).setdefault(run.policy, []).append(run)
    return [
        Group(scenario=scenario, pool=pool, rows=tuple(_row(policy, made) for policy, made in policies.items()))
        for (scenario, pool), policies in groups.items()
    ]


def _row(policy: str, runs: list[Run]) -> Row:
    judged = tuple(metrics(run) for run in runs)
    spreads = {f.name: _spread([getattr(m, f.name) for m in judged]) for f in fields(Metrics) if f.name != "met"}
    attained = spreads["attainment_fraction"].mean
    return Row(
        policy=policy,
        runs=tuple(runs),
        metrics=judged,
        spreads=spreads,
        met=None if attained is None else attained >= runs[0].slo.attainment_fraction - 1e-12,
        met_seeds=sum(m.met is True for m in judged),
    )


def _spread(values: list[float | None]) -> Spread:
    known = [float(v) for v in values if v is not None]
    if len(known) < len(values) or not known:
        return Spread(mean=None, low=None, high=None)
    return Spread(
        mean=math.fsum(known) / len(known) if max(known) < math.inf else math.inf, low=min(known), high=max(known)
    )


def seeds_text(seeds: Sequence[int]) -> str:
    """``seed 3``, ``seeds 0-4``, ``seeds 1, 7``."""
    known = sorted(set(seeds))
    runs = [[s for _, s in part] for _, part in groupby(enumerate(known), lambda pair: pair[1] - pair[0])]
    parts = [str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" if len(p) > 2 else f"{p[0]}, {p[1]}" for p in runs]
    return f"seed{'s' if len(known) > 1 else ''} {', '.join(parts)}"


def promise_text(run: Run) -> str:
    """The SLO as a sentence's part."""
    slo = run.slo
    return (
        f"{100 * slo.attainment_fraction:g} % of requests with TTFT <= {duration(slo.ttft_seconds)}"
        f" and mean ITL <= {1000 * slo.itl_seconds:g} ms"
    )


def setting_text(group: Group) -> str:
    """One paragraph: SLO, scenario, what `about` says, seeds, the scored window and its requests."""
    run = group.first
    seeds = [r.seed for row in group.rows for r in row.runs]
    said = "".join(f" {name.capitalize()}: {text}." for name, text in run.about)
    pool = "" if group.pool == "pool" else f" pool {group.pool},"
    requests = group.rows[0].spreads["requests"].mean or 0
    return (
        f"SLO: {promise_text(run)}. Scenario {group.scenario},{pool} {seeds_text(seeds)}.{said}"
        f" Scored from {duration(run.score_from_seconds)} to {duration(run.end_seconds)}: {requests:,.0f} requests"
        f"{' (mean of seeds)' if len(set(seeds)) > 1 else ''}; {run.gpus_per_replica} GPU per replica,"
        " loading and draining time is paid."
    )


def to_json(runs: Sequence[Run]) -> Json:
    """Everything of the table, for scripts.  null is unknown; numbers named in `never` are infinite."""
    return {
        "version": 1,
        "groups": [
            {
                "scenario": group.scenario,
                "pool": group.pool,
                "slo": {k: v for k, v in asdict(group.first.slo).items() if k != "kind"},
                "about": dict(group.first.about),
                "gpus_per_replica": group.first.gpus_per_replica,
                "score_from_seconds": group.first.score_from_seconds,
                "end_seconds": group.first.end_seconds,
                "policies": [_row_json(row) for row in group.rows],
            }
            for group in summarize(runs)
        ],
    }


def _row_json(row: Row) -> Json:
    return {
        "policy": row.policy,
        "met": row.met,
        "met_seeds": row.met_seeds,
        "mean": _finite({name: spread.mean for name, spread in row.spreads.items()}),
        "low": _finite({name: spread.low for name, spread in row.spreads.items()}),
        "high": _finite({name: spread.high for name, spread in row.spreads.items()}),
        "seeds": [
            {"seed": run.seed, "wall_seconds": run.wall_seconds, **_finite(asdict(judged))}
            for run, judged in zip(row.runs, row.metrics, strict=True)
        ],
    }


def _finite(values: dict[str, float | None]) -> Json:
    never = [name for name, value in values.items() if value is not None and math.isinf(value)]
    return {**{name: None if name in never else value for name, value in values.items()}, "never": never}
