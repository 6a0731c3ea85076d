"""The rows of our own /metrics as data: name, type, one sentence, and how to read it from a pool's last Step.

`docs/series.md` is this table printed by `markdown`.  Names, units and types follow Prometheus' conventions, as
``promtool check metrics`` knows them: base units, counters end in ``_total``, no label ``quantile`` on a gauge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metrics_adapter.exposition_reads import (
    Read,
    attained,
    bound_of,
    burn,
    counted,
    decided_by,
    decided_tiers,
    feasible,
    forecast,
    forecast_window,
    groups,
    latency,
    missing,
    name_of,
    next_ready,
    of_settings,
    of_step,
    one,
    proposals,
    rate_of,
    reasons,
    recommended,
    replicas,
    startup,
    tiers,
    total_of,
    unknown_seconds,
    utilization,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric family.  `labels` are those besides ``pool``, each with what its values are."""

    name: str
    type: Literal["gauge", "counter"]
    help: str
    read: Read
    labels: tuple[tuple[str, str], ...] = ()


def _gauge(name: str, help_: str, read: Read, **labels: str) -> Series:
    return Series(name=f"autoscaler_{name}", type="gauge", help=help_, read=read, labels=tuple(labels.items()))


def _counter(name: str, help_: str, read: Read, **labels: str) -> Series:
    return Series(name=f"autoscaler_{name}_total", type="counter", help=help_, read=read, labels=tuple(labels.items()))


STAGE = "ready, starting, draining, sleeping or unhealthy"
LEVEL = "a quantile, such as 0.95"
RULE = "a policy or a limit, as `explain` names it"
BOUND = "lower or upper: a latency limit inside a bucket leaves two bounds"
SIGNAL = "demand, load or latency"
BURN = "300, 3600 or 21600"

FACTS = (
    _gauge("step_timestamp_seconds", "Unix time of the last step.", lambda v: one(v.last_at_seconds)),
    _gauge(
        "step_age_seconds", "Seconds since the last step; stays when the step is stale.", lambda v: one(v.age_seconds)
    ),
    _gauge("step_fresh", "1 while the last step is fresh enough to act on, else 0.", lambda v: one(v.step is not None)),
    _gauge(
        "observation_window_seconds",
        "Time that the last observation's counts cover.",
        of_step("observation.window_seconds"),
    ),
    _gauge("signal_missing", "1 while a group of signals was not measured in the last step.", missing, signal=SIGNAL),
    _gauge(
        "unknown_seconds",
        "Seconds for which something that the pool expects has not been measured; 0 if nothing.",
        unknown_seconds,
    ),
    _gauge("replicas_asked", "Replicas that the platform was last asked for.", of_step("observation.replicas.desired")),
    _gauge("replicas", "Replicas that exist, by stage of life.", replicas, stage=STAGE),
    _gauge("group_ready_replicas", "Ready replicas of a placement group.", groups, group="the group's name"),
    _gauge("tier_replicas", "Replicas powered down but not off.", tiers, tier="the tier's name"),
    _gauge("spare_replicas", "Replicas that the platform could give besides.", of_step("observation.spare_replicas")),
    _gauge(
        "next_replica_ready_seconds",
        "Seconds from the last step until the next starting replica is expected to be ready.",
        next_ready,
    ),
    _gauge(
        "reporting_replicas",
        "Replicas whose metrics are in the last observation.",
        of_step("observation.load.replicas_reporting"),
    ),
    _gauge("demand_requests_per_second", "Requests that arrived at the door.", rate_of("observation.demand.requests")),
    _gauge(
        "demand_prompt_tokens_per_second",
        "Prompt tokens that arrived with them.",
        rate_of("observation.demand.prompt_tokens"),
    ),
    _gauge(
        "demand_cached_prompt_tokens_per_second",
        "Prompt tokens found in a prefix cache.",
        rate_of("observation.demand.cached_prompt_tokens"),
    ),
    _gauge("demand_output_tokens_per_second", "Output tokens generated.", rate_of("observation.demand.output_tokens")),
    _gauge(
        "demand_rejected_requests_per_second", "Requests turned away.", rate_of("observation.demand.rejected_requests")
    ),
    _gauge("demand_failed_requests_per_second", "Requests that failed.", rate_of("observation.demand.failed_requests")),
    _gauge(
        "demand_arrival_gap_cv",
        "Coefficient of variation of the gaps between arrivals; 1 is Poisson.",
        of_step("observation.demand.arrival_gap_cv"),
    ),
    _gauge("mean_prompt_tokens", "Prompt length that decisions assume.", of_step("state.mean_prompt_tokens")),
    _gauge("mean_output_tokens", "Output length that decisions assume.", of_step("state.mean_output_tokens")),
    _gauge("load_running_requests", "Requests in the engines' batches.", of_step("observation.load.running_requests")),
    _gauge("load_waiting_requests", "Requests in the engines' queues.", of_step("observation.load.waiting_requests")),
    _gauge(
        "load_waiting_prompt_tokens",
        "Prompt tokens in the engines' queues.",
        of_step("observation.load.waiting_prompt_tokens"),
    ),
    _gauge(
        "load_kv_cache_fraction",
        "Share of the KV cache in use, mean over replicas.",
        of_step("observation.load.kv_cache_fraction"),
    ),
    _gauge(
        "load_gpu_utilization_fraction",
        "GPU utilisation, mean over replicas.",
        of_step("observation.load.gpu_utilization_fraction"),
    ),
    _gauge("load_engine_steps_per_second", "Engine steps, all replicas.", rate_of("observation.load.engine_steps")),
    _gauge(
        "load_preemptions_per_second",
        "Running requests that lost their KV blocks.",
        rate_of("observation.load.preemptions"),
    ),
    _gauge("ttft_seconds", "Time to first token over the last window.", latency("ttft"), level=LEVEL),
    _gauge("itl_seconds", "Inter-token latency over the last window.", latency("itl"), level=LEVEL),
    _gauge("e2e_seconds", "Arrival to last token over the last window.", latency("e2e"), level=LEVEL),
)

BELIEFS = (
    _gauge("work_erlangs", "Work that arrived: replica-seconds per second.", of_step("work")),
    _gauge(
        "forecast_work_erlangs",
        "Quantile of the maximum work inside a window ahead.",
        forecast,
        window="0 is the nearest",
        level=LEVEL,
    ),
    _gauge(
        "forecast_window_start_seconds",
        "Start of a forecast window, from the last step.",
        forecast_window(0),
        window="0 is the nearest",
    ),
    _gauge(
        "forecast_window_end_seconds",
        "End of a forecast window, from the last step.",
        forecast_window(1),
        window="0 is the nearest",
    ),
    _gauge(
        "forecast_expert_info",
        "1 under the expert that carries most of the forecast.",
        name_of("forecast.expert", "expert"),
        expert="name of an expert",
    ),
    _gauge("forecast_matured", "Forecasts whose outcome is known by now.", of_step("forecast.matured")),
    _gauge(
        "forecast_coverage_fraction",
        "Share of them that stayed below the 0.95 quantile, over about a day.",
        of_step("forecast.coverage"),
    ),
    _gauge(
        "capacity_seconds_per_request",
        "Replica-seconds that a request costs besides its tokens.",
        of_step("capacity.seconds_per_request"),
    ),
    _gauge(
        "capacity_seconds_per_prompt_token",
        "Replica-seconds that an uncached prompt token costs.",
        of_step("capacity.seconds_per_prompt_token"),
    ),
    _gauge(
        "capacity_seconds_per_output_token",
        "Replica-seconds that an output token costs.",
        of_step("capacity.seconds_per_output_token"),
    ),
    _gauge(
        "capacity_mean_output_tokens",
        "Output length that arriving requests are expected to ask for.",
        of_step("capacity.mean_output_tokens"),
    ),
    _gauge(
        "capacity_feasible_erlangs",
        "Work that each replica of a pool of the present size carries within the SLO.",
        feasible,
    ),
    _gauge(
        "capacity_source_info",
        "1 under where the capacity belief comes from.",
        name_of("capacity.source", "source"),
        source="prior, learned, ...",
    ),
    _gauge("utilization_ratio", "Arriving work over what the ready replicas carry within the SLO.", utilization),
    _gauge("startup_seconds", "Order to ready, as believed.", startup, level=LEVEL),
    _counter("refits", "Times that slow beliefs were learned anew.", lambda v: one(v.refits)),
)

CHOICE = (
    _gauge("decision_replicas", "Replicas that the pool should have.", of_step("decision.replicas")),
    _gauge(
        "decision_recommended_replicas",
        "The same; for a pool that only observes, what would have been asked for.",
        recommended,
    ),
    _gauge(
        "decision_tier_replicas",
        "Replicas that should be powered down to a tier, by tier of the pool's settings; off is what is in none.",
        decided_tiers,
        tier="the tier's name",
    ),
    _gauge(
        "decision_preload_replicas",
        "Of these, replicas brought to a faster tier ahead of an expected return.",
        of_step("decision.preload"),
    ),
    _gauge("decision_rule_info", "1 under the rule that set the number.", decided_by, rule=RULE),
    _gauge("decision_reason_replicas", "The number after each stage of the decision.", reasons, rule=RULE),
    _gauge("decision_proposed_replicas", "What each policy with an opinion recommended.", proposals, rule=RULE),
    _gauge("min_replicas", "Lower bound in force.", bound_of("min_replicas")),
    _gauge("max_replicas", "Upper bound in force.", bound_of("max_replicas")),
    _counter("steps", "Steps, by what they did to the number.", total_of("steps"), direction="up, down or hold"),
    _counter("decided_by", "Steps, by the rule that set the number.", total_of("decided_by"), rule=RULE),
)

PROMISE = (
    _gauge("slo_ttft_seconds", "Longest time to first token that is promised.", of_settings("slo.ttft_seconds")),
    _gauge("slo_itl_seconds", "Largest mean inter-token latency that is promised.", of_settings("slo.itl_seconds")),
    _gauge(
        "slo_attainment_goal_fraction",
        "Share of requests for which both are promised.",
        of_settings("slo.attainment_fraction"),
    ),
    _gauge(
        "slo_attained_fraction",
        "Share of served requests that met both, over the window.",
        attained,
        window_seconds=BURN,
        bound=BOUND,
    ),
    _gauge(
        "slo_burn_ratio",
        "Violations over those that the goal allows; above 1 the error budget burns too fast.",
        burn,
        window_seconds=BURN,
        bound=BOUND,
    ),
    _counter("served_requests", "Requests served, as the latency histograms count them.", total_of("served_requests")),
    _counter("violated_requests", "Served requests that violated the SLO.", total_of("violated_requests"), bound=BOUND),
)

SUMS = (
    _counter("demand_requests", "Requests that arrived.", total_of("requests")),
    _counter("demand_prompt_tokens", "Prompt tokens that arrived.", total_of("prompt_tokens")),
    _counter("demand_cached_prompt_tokens", "Prompt tokens found in a prefix cache.", total_of("cached_prompt_tokens")),
    _counter("demand_output_tokens", "Output tokens generated.", total_of("output_tokens")),
    _counter("demand_finished_requests", "Requests finished.", total_of("finished_requests")),
    _counter("demand_rejected_requests", "Requests turned away.", total_of("rejected_requests")),
    _counter("demand_failed_requests", "Requests that failed.", total_of("failed_requests")),
    _counter(
        "replica_seconds", "Time that replicas existed, by stage of life.", total_of("replica_seconds"), stage=STAGE
    ),
    _counter(
        "gpu_seconds",
        "The same times the GPUs of a replica: GPU-hours are this over 3600.",
        total_of("gpu_seconds"),
        stage=STAGE,
    ),
)

TROUBLE = (
    _counter(
        "unmeasured_steps",
        "Steps in which a group of signals was not measured.",
        total_of("unmeasured_steps"),
        signal=SIGNAL,
    ),
    _counter("ticks", "Turns of the loop.", counted("ticks")),
    _counter(
        "skipped_ticks",
        "Turns without a step: the target could not be read, or the clock went back.",
        counted("skipped_ticks"),
    ),
    _counter("source_errors", "Turns in which the source failed.", counted("source_errors")),
    _counter("target_errors", "Turns in which the target could not be scaled.", counted("target_errors")),
    _counter("scale_conflicts", "Turns in which somebody else scaled the target meanwhile.", counted("conflicts")),
)

PARTS = (
    ("Facts", FACTS),
    ("Beliefs", BELIEFS),
    ("Choice", CHOICE),
    ("Promise", PROMISE),
    ("Sums", SUMS),
    ("Trouble", TROUBLE),
)
SERIES: tuple[Series, ...] = tuple(series for _, rows in PARTS for series in rows)

BUILD = _gauge("build_info", "1 under the version of this program.", lambda v: (), version="its version")
DROPPED = _gauge("dropped_samples", "Samples left out now because a label has too many values.", lambda v: ())


def markdown() -> str:
    """The tables of docs/series.md."""
    lines: list[str] = []
    for title, rows in (*PARTS, ("Itself", (BUILD, DROPPED))):
        lines += [f"## {title}", "", "| series | type | labels | meaning |", "|---|---|---|---|"]
        for row in rows:
            labels = "<br>".join(f"`{name}`: {what}" for name, what in row.labels)
            lines.append(f"| `{row.name}` | {row.type} | {labels} | {row.help} |")
        lines.append("")
    return "\n".join(lines)
