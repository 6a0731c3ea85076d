"""What a load test is worth: its records judged as a simulation is, and whether the run may be believed at all.

A run that fails a gate is invalid, which says nothing about the server.  Requests that were open or not sent at the end
count as violated.  Latencies run from the intended start; those from the actual start are told beside them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from load_tests.kernel_state import Floats
from load_tests.loadtest_plan import Plan
from load_tests.loadtest_stream import Sketch, merged
from load_tests.run import DONE, FAILED, UNFINISHED, ReplicaSeconds, Run, Timeline, judge, nearest_rank, scored

LATENESS_SECONDS = 0.02  # and at most so much of the TTFT limit:
LATENESS_OF_TTFT = 0.02
SENT_FRACTION = 0.999
CPU_FRACTION = 0.8
CLIENT_ERRORS_OF_BUDGET = 0.1  # client errors may use up a tenth of the error budget

Quantiles = dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One condition for believing a run; `value` None: not known, which does not hold."""

    name: str
    value: float | None
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the condition is met."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        shown = "unknown" if self.value is None else f"{self.value:.4g}"
        return f"{self.name} {shown}, must be {'>=' if self.at_least else '<='} {self.limit:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A judged load test.  Latencies in seconds of the scenario's time; lateness in seconds of the wall's.

    `requests`, `violated` and what else counts requests are of those that arrive after the warm-up; `planned` and `sent` of
    all.  `met` is None where nothing was judged.  `itl` is over tokens, `tpot` over requests.
    """

    scenario: str
    seed: int
    host: str
    model: str
    speed: float
    planned: int
    sent: int
    requests: int
    violated: int
    violated_ttft: int
    violated_itl: int
    failed: int
    client_errors: int
    unfinished: int
    attainment_fraction: float | None
    attainment_wanted_fraction: float
    met: bool | None
    ttft_seconds: Quantiles
    ttft_from_actual_start_seconds: Quantiles
    itl_seconds: Quantiles
    tpot_seconds: Quantiles
    e2e_seconds: Quantiles
    lateness_seconds: Quantiles
    output_tokens_per_second: float
    errors: dict[str, int]
    gates: tuple[Gate, ...]
    notes: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """Whether the run may be believed."""
        return all(gate.holds for gate in self.gates)

    @property
    def exit_code(self) -> int:
        """0 the SLO is met, 1 it is missed, 3 the run is invalid."""
        return 3 if not self.valid else 0 if self.met else 1

    def data(self) -> dict[str, Any]:
        """As JSON takes it: no infinity, which is told as null with the share that never got there in `violated`."""
        gates = [{**asdict(g), "holds": g.holds} for g in self.gates]
        told = {**asdict(self), "gates": gates, "valid": self.valid}
        return {k: _finite(v) for k, v in told.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(slots=True)
class Records:
    """Columns of the records, by request; times in the scenario's seconds, inf where something never came."""

    sent: Floats
    first: Floats
    last: Floats
    output_tokens: Floats
    status: Floats
    client: Floats
    errors: Counter[str]


def read_records(folder: Path, plan: Plan) -> Records:
    """The records of all processes; a request without one was not sent, and is unfinished."""
    n, speed = len(plan), plan.sending.speed
    columns = Records(
        sent=np.full(n, np.inf),
        first=np.full(n, np.inf),
        last=np.full(n, np.inf),
        output_tokens=plan.output_tokens.astype(float),
        status=np.full(n, float(UNFINISHED)),
        client=np.zeros(n),
        errors=Counter(),
    )
    for path in sorted(folder.glob("records.*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                told = json.loads(line)
            except ValueError:  # a process that was killed in the middle of a line
                continue
            i = told["i"]
            for name in ("sent", "first", "last"):
                if told[name] is not None:
                    getattr(columns, name)[i] = told[name] * speed
            if told["output_tokens"] is not None:
                columns.output_tokens[i] = told["output_tokens"]
            columns.status[i] = {"done": DONE, "failed": FAILED}.get(told["status"], UNFINISHED)
            columns.client[i] = told["whose"] == "client"
            if told["status"] == "failed":
                columns.errors[str(told["error"])[:160]] += 1
    return columns


def run_of(plan: Plan, records: Records) -> Run:
    """The load test as the Run that a simulation of the same scenario would be; nothing is known of replicas."""
    nothing = np.zeros(0)
    none = np.zeros(0, dtype=np.int64)
    done = records.status == DONE
    return Run(
        policy="load test",
        pool=plan.sending.model,
        scenario=plan.scenario,
        seed=plan.seed,
        slo=plan.slo,
        gpus_per_replica=1,
        interval_seconds=10.0,
        score_from_seconds=plan.score_from_seconds,
        end_seconds=plan.duration_seconds,
        arrival_seconds=plan.arrival_seconds,
        prompt_tokens=plan.prompt_tokens,
        output_tokens=records.output_tokens.astype(np.int64),
        first_token_seconds=records.first,
        finish_seconds=np.where(done, records.last, np.inf),
        status=records.status.astype(np.int64),
        timeline=Timeline(
            at_seconds=nothing, desired=none, ready=none, starting=none, draining=none, need=nothing,
            arrivals_per_second=nothing, running=nothing, waiting=nothing, ttft_p95_seconds=nothing, violated=none,
            forecast_low=nothing, forecast_high=nothing,
        ),
        events=(),
        replica_seconds=ReplicaSeconds(),
        starts=0,
    )  # fmt: skip


def outcome_of(folder: Path) -> Outcome:
    """Judge the records in a plan's folder."""
    plan = Plan.load(folder)
    records = read_records(folder, plan)
    run = run_of(plan, records)
    judged, inside = judge(run), scored(run)
    summaries = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("summary.*.json"))]
    gaps = merged(Sketch(s["gaps"]) for s in summaries)
    speed = plan.sending.speed
    sent = np.isfinite(records.sent)
    lateness = (records.sent[sent] - plan.arrival_seconds[sent]) / speed
    n, violated = int(inside.sum()), int((judged.violated & inside).sum())
    client = int((records.client.astype(bool) & inside).sum())
    budget = 1 - plan.slo.attainment_fraction
    made = records.output_tokens[(records.status == DONE) & inside].sum()
    return Outcome(
        scenario=plan.scenario,
        seed=plan.seed,
        host=plan.sending.host,
        model=plan.sending.model,
        speed=speed,
        planned=len(plan),
        sent=int(sent.sum()),
        requests=n,
        violated=violated,
        violated_ttft=int((judged.late & inside).sum()),
        violated_itl=int((judged.slow & inside).sum()),
        failed=int((judged.failed & inside).sum()),
        client_errors=client,
        unfinished=int((judged.unfinished & inside).sum()),
        attainment_fraction=1 - violated / n if n else None,
        attainment_wanted_fraction=plan.slo.attainment_fraction,
        met=violated <= budget * n + 1e-9 if n else None,
        ttft_seconds=_quantiles(judged.ttft_seconds[inside]),
        ttft_from_actual_start_seconds=_quantiles(records.first[inside & sent] - records.sent[inside & sent]),
        itl_seconds={name: None if (x := gaps.quantile(q)) is None else x * speed for name, q in _QUANTILES},
        tpot_seconds=_quantiles(judged.itl_seconds[inside]),
        e2e_seconds=_quantiles(judged.e2e_seconds[inside]),
        lateness_seconds=_quantiles(lateness) | {"max": float(lateness.max()) if len(lateness) else None},
        output_tokens_per_second=float(made / (plan.duration_seconds - plan.score_from_seconds)),
        errors=dict(records.errors.most_common(10)),
        gates=_gates(plan, lateness, int(sent.sum()), client, n, summaries),
        notes=plan.notes,
    )


_QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


def _quantiles(values: Floats) -> Quantiles:
    known = values[~np.isnan(values)]
    return {name: nearest_rank(known, q) for name, q in _QUANTILES}


def _gates(
    plan: Plan, lateness: Floats, sent: int, client: int, judged: int, summaries: list[dict[str, Any]]
) -> tuple[Gate, ...]:
    wanted = summaries[0]["of"] if summaries else 0
    busy = max((s["cpu_fraction"] for s in summaries), default=None) if len(summaries) == wanted else None
    allowed = CLIENT_ERRORS_OF_BUDGET * (1 - plan.slo.attainment_fraction)
    late = min(LATENESS_SECONDS, LATENESS_OF_TTFT * plan.slo.ttft_seconds / plan.sending.speed)
    return (
        Gate(name="share of the arrivals sent", value=sent / len(plan), limit=SENT_FRACTION, at_least=True),
        Gate(name="dispatch lateness p99 in seconds", value=nearest_rank(lateness, 0.99), limit=late),
        Gate(name="CPU share of the busiest generator process", value=busy, limit=CPU_FRACTION),
        Gate(name="share of client errors", value=client / judged if judged else None, limit=allowed),
    )


def table(outcome: Outcome) -> str:
    """The outcome for a person."""
    o = outcome
    rows: list[tuple[str, Quantiles]] = [
        ("TTFT, from the intended start", o.ttft_seconds),
        ("TTFT, from the actual start", o.ttft_from_actual_start_seconds),
        ("ITL, over tokens", o.itl_seconds),
        ("TPOT, over requests", o.tpot_seconds),
        ("end to end, from the intended start", o.e2e_seconds),
        ("lateness of the dispatch", o.lateness_seconds),
    ]
    lines = [
        f"{o.scenario}, seed {o.seed}, on {o.host} ({o.model})",
        f"{'milliseconds':<38}{'p50':>10}{'p95':>10}{'p99':>10}",
    ]
    lines += [f"{name:<38}" + "".join(f"{_shown(values[q]):>10}" for q, _ in _QUANTILES) for name, values in rows]
    share = "unknown" if o.attainment_fraction is None else f"{100 * o.attainment_fraction:.3f} %"
    lines += [
        f"{o.sent} of {o.planned} requests sent, {o.requests} judged, {o.output_tokens_per_second:.1f} output tokens/s",
        f"violated {o.violated}: TTFT {o.violated_ttft}, ITL {o.violated_itl}, failed {o.failed}"
        f" ({o.client_errors} by the client), unfinished {o.unfinished}",
        *(f"  {count} x {error}" for error, count in o.errors.items()),
        f"attainment {share} of {100 * o.attainment_wanted_fraction:g} % wanted: {'met' if o.met else 'MISSED'}",
        *(f"note: {note}" for note in o.notes),
    ]
    broken = [gate for gate in o.gates if not gate.holds]
    lines += [f"INVALID: {gate}" for gate in broken]
    if broken:
        lines.append("An invalid run says nothing about the server: use more processes, or a quieter machine.")
    return "\n".join(lines)


def _shown(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return "never" if math.isinf(seconds) else f"{1000 * seconds:.1f}"
