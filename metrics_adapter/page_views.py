"""What the page shows of a pool: views of its last Steps as plain JSON, and nothing that they do not hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoscaler.settings import PoolSettings
from autoscaler.types import Capacity, Forecast, Histogram, Observation, Reason, Replicas, Step
from autoscaler.views import instant, number, reason_text
from metrics_adapter.exposition_reads import BURN_WINDOWS

COLUMNS = (
    "at", "work", "desired", "ready", "starting", "wanted", "from", "to", "low", "high",
    "served", "bad_low", "bad_high", "ttft", "itl", "requests", "waiting",
)  # fmt: skip
BAND = (0.5, 0.95)  # quantiles of the forecast band
BESIDES = ("draining", "sleeping", "unhealthy")  # stages of life that most pools seldom show
MOST_CHANGES = 50
MOST_STARTS = 30
MOST_RUNNING = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The birth of one replica: when it was ordered, and when it was seen ready (None: it is still on its way)."""

    ordered_at_seconds: int
    ready_at_seconds: int | None = None
    from_zero: bool = False


def row(step: Step, before: Step | None) -> list[float | None]:
    """One Step as a row of `COLUMNS`: instants in Unix seconds, work in Erlangs, latencies in seconds."""
    seen = step.observation
    elapsed = seen.window_seconds if before is None else seen.at_seconds - before.observation.at_seconds
    share = min(1.0, elapsed / seen.window_seconds)  # windows that overlap count what they share once
    start, end, low, high = band(step.forecast)
    latency, demand, load = seen.latency, seen.demand, seen.load
    served = None if latency is None else latency.served_requests
    bad = None if latency is None or served is None else latency.violated_requests
    requests = None if demand is None or demand.requests is None else demand.requests / seen.window_seconds
    return [
        float(seen.at_seconds), short(step.work), seen.replicas.desired, seen.replicas.ready, seen.replicas.starting,
        step.decision.replicas, start, end, short(low), short(high),
        short(None if bad is None or served is None else served * share),
        short(None if bad is None else bad[0] * share), short(None if bad is None else bad[1] * share),
        short(quantile(seen, "ttft")), short(quantile(seen, "itl")), short(requests),
        None if load is None else short(load.waiting_requests),
    ]  # fmt: skip


def rows(steps: Sequence[Step], after_seconds: int = -1) -> list[list[float | None]]:
    """The rows of the Steps later than `after_seconds`."""
    before = (None, *steps)
    return [row(s, b) for b, s in zip(before, steps, strict=False) if s.observation.at_seconds > after_seconds]


def band(forecast: Forecast | None) -> tuple[int | None, int | None, float | None, float | None]:
    """(start, end, low, high) of the nearest window ahead: Unix seconds, and the quantiles of `BAND`."""
    if forecast is None or not forecast.windows or not set(BAND) <= set(forecast.levels):
        return None, None, None, None
    start, end = forecast.windows[0]
    at = forecast.at_seconds
    return at + start, at + end, forecast.value(0, BAND[0]), forecast.value(0, BAND[1])


def quantile(seen: Observation, name: str) -> float | None:
    """The 95 % quantile of a latency over the window, in seconds; None where nobody was served."""
    latency = seen.latency
    if latency is None:
        return None
    histogram: Histogram | None = getattr(latency, name)
    if histogram is not None:
        return histogram.quantile(0.95)
    given: float | None = getattr(latency, f"{name}_p95_seconds")
    return given


def changes(steps: Sequence[Step], after_seconds: int = -1) -> list[dict[str, Any]]:
    """The last decisions that changed the number, newest first, each with its reasons in words."""
    found = [s for s in steps if s.decision.replicas != s.observation.replicas.desired]
    later = [s for s in found[-MOST_CHANGES:] if s.observation.at_seconds > after_seconds]
    return [told(s) for s in reversed(later)]


def told(step: Step) -> dict[str, Any]:
    """A decision: the number, the counts it was made on, each stage with its sentence, and who else had an opinion."""
    counts, decision = step.observation.replicas, step.decision
    others = [r for r in step.proposals if r not in decision.reasons]
    return {
        "at": step.observation.at_seconds,
        "before": counts.desired,
        "after": decision.replicas,
        "ready": counts.ready,
        "starting": counts.starting,
        "reasons": [_reason(r) for r in decision.reasons],
        "others": [_reason(r) for r in others],
        "besides": [[stage, count] for stage in BESIDES if (count := getattr(counts, stage))],
        "split": [[c.name, c.replicas] for c in (*decision.groups, *decision.tiers)],
        "closed_loop": step.closed_loop,
    }


def _reason(reason: Reason) -> dict[str, Any]:
    inputs = [[name, value if isinstance(value, str) else finite(value)] for name, value in reason.inputs]
    return {
        "rule": reason.rule,
        "before": reason.before,
        "after": reason.after,
        "text": reason_text(reason),
        "inputs": inputs,
    }


def starts(steps: Sequence[Step]) -> list[Start]:
    """The births that these Steps saw begin, newest first: orders and joins are matched in turn, the oldest order first.

    A birth that was under way before the first Step has no known order and is left out.
    """
    done: list[Start] = []
    orders: list[Start | None] = []
    before: Step | None = None
    for step in steps:
        now = step.observation.replicas
        if before is None:
            orders = [None] * underway(now)
        else:
            _match(before, step, orders, done)
        before = step
    running = [s for s in orders if s is not None]
    newest = sorted((*done, *running), key=lambda s: s.ordered_at_seconds, reverse=True)
    return newest[:MOST_STARTS]


def _match(before: Step, step: Step, orders: list[Start | None], done: list[Start]) -> None:
    then, now = before.observation.replicas, step.observation.replicas
    for _ in range(min(len(orders), max(0, now.ready - then.ready))):
        order = orders.pop(0)
        if order is not None:
            at = step.observation.at_seconds
            done.append(
                Start(ordered_at_seconds=order.ordered_at_seconds, ready_at_seconds=at, from_zero=order.from_zero)
            )
    coming = underway(now)
    while len(orders) > coming:  # the youngest are given up first; a start that failed is the oldest one
        orders.pop(-1 if now.desired < then.desired else 0)
    while len(orders) < coming:
        asleep = then.ready == 0 and then.starting == 0
        orders.append(Start(ordered_at_seconds=before.observation.at_seconds, from_zero=asleep))


def underway(replicas: Replicas) -> int:
    """Starts under way, also where the platform only tells how many were asked for."""
    return max(replicas.starting, min(MOST_RUNNING, replicas.desired - replicas.ready - replicas.unhealthy), 0)


def start_json(start: Start) -> dict[str, Any]:
    ready = start.ready_at_seconds
    seconds = None if ready is None else ready - start.ordered_at_seconds
    return {"ordered": start.ordered_at_seconds, "ready": ready, "seconds": seconds, "from_zero": start.from_zero}


def burn(settings: PoolSettings, violated: Sequence[tuple[float, float] | None]) -> list[dict[str, Any]]:
    """Per window: bounds of the share of requests within the SLO, and of violations over those that the goal allows."""
    allowed = 1.0 - settings.slo.attainment_fraction
    out = []
    for seconds, bounds in zip(BURN_WINDOWS, violated, strict=False):
        known = None if bounds is None else [short(bounds[0] / allowed), short(bounds[1] / allowed)]
        kept = None if bounds is None else [1.0 - bounds[1], 1.0 - bounds[0]]
        out.append({"seconds": seconds, "burn": known, "attained": kept})
    return out


def beliefs(step: Step) -> list[tuple[str, str, str]]:
    """What is believed, as (what, value, where from): capacity, length of requests, births, forecast, risk."""
    return [*_capacity(step), *_forecast(step), *_risk(step)]


def _capacity(step: Step) -> list[tuple[str, str, str]]:
    capacity, counts = step.capacity, step.observation.replicas
    if capacity is None:
        return [("One replica carries", "unknown", "nothing is believed of a replica yet")]
    load = capacity.feasible(max(1, counts.ready))
    rate = _requests_per_second(capacity, load, step)
    about = "" if rate is None else f", about {number(rate)} requests/s"
    pairs = [(q, s) for q, s in capacity.startup_seconds if q in (0.5, 0.9, 0.95, 0.99)]
    births = ", ".join(f"{q:.0%} within {number(round(s, 1))} s" for q, s in pairs)
    prompt, output = step.state.mean_prompt_tokens, capacity.mean_output_tokens
    return [
        ("One replica carries", f"{number(load)} Erlangs within the SLO{about}", f"source: {capacity.source}"),
        ("A request brings", f"{number(prompt)} prompt and {number(output)} output tokens", "means of what was seen"),
        ("A start takes", births or "unknown", "order to ready"),
    ]


def _requests_per_second(capacity: Capacity, load: float, step: Step) -> float | None:
    """Requests of mean lengths that `load` Erlangs are; None where prompts were never measured."""
    prompt = step.state.mean_prompt_tokens
    if prompt is None:
        return None
    each = (
        capacity.seconds_per_request
        + capacity.seconds_per_prompt_token * prompt
        + capacity.seconds_per_output_token * capacity.mean_output_tokens
    )
    return load / each if each > 0.0 else None


def _forecast(step: Step) -> list[tuple[str, str, str]]:
    forecast = step.forecast
    if forecast is None:
        return [("Forecast", "none", "nothing is forecast: what arrives decides")]
    known = "unknown" if forecast.coverage is None else f"{forecast.coverage:.1%}"
    matured = (
        f"{number(forecast.matured)} forecasts have matured, {known} of about a day stayed below the 95 % quantile"
    )
    lines = [("Trust in the forecast", _trust(step), matured)]
    for (start, end), values in zip(forecast.windows, forecast.values, strict=True):
        table = dict(zip(forecast.levels, values, strict=True))
        shown = ", ".join(f"{number(table[q])} ({q:.0%})" for q in (0.5, 0.95, 0.99) if q in table)
        window = f"Most work {number(start)} to {number(end)} s ahead"
        lines.append((window, f"{shown} Erlangs", f"expert: {forecast.expert}" if forecast.expert else ""))
    return lines


def _trust(step: Step) -> str:
    """Whether the forecast has a say in the number, and what keeps it from one."""
    if any(r.rule == "predictive" for r in step.proposals):
        return "it has a say"
    until = step.state.trust.distrusted_until_seconds
    if until is not None and step.observation.at_seconds < until:
        return f"distrusted until {instant(until)}: answers of late were many times too high"
    return "it has no say"


def _risk(step: Step) -> list[tuple[str, str, str]]:
    """The factor on the work that is planned for, which measured violations move."""
    factor = math.exp(step.state.risk.log_headroom)
    return [("Headroom", f"× {number(factor)} on the work", "moved until the measured attainment is the one promised")]


def finite(value: float | None) -> float | None:
    """The value; None where JSON has no word for it."""
    return None if value is None or not math.isfinite(value) else value


def short(value: float | None) -> float | None:
    """Five digits are more than anybody sees."""
    known = finite(value)
    return None if known is None else float(f"{known:.5g}")
