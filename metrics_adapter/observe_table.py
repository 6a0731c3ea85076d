"""What a person sees of Observations: one plain line each, or a table that refreshes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autoscaler.types import Histogram, Observation, Step
from autoscaler.views import instant, number, reason_text, replicas

if TYPE_CHECKING:
    from rich.table import Table

# Sentences about silent replicas that are shown; there may be a thousand.
MOST_PROBLEMS = 3


@dataclass(slots=True)
class Seen:
    """The last turn of a pool: what was seen, what was decided on it (if asked), and what went wrong."""

    pool: str
    observation: Observation | None = None
    step: Step | None = None
    error: str | None = None
    problems: Mapping[str, str] = field(default_factory=dict)


def rows(seen: Seen) -> list[tuple[str, str]]:
    """(what, value) of everything that is known; "unknown" where it is not."""
    o = seen.observation
    if o is None:
        return [("seen", seen.error or "nothing yet")]
    count = o.replicas
    table = [
        ("at", instant(o.at_seconds)),
        ("window", f"{o.window_seconds} s"),
        (
            "replicas",
            f"{count.ready} ready of {count.desired}" + (f", {count.unhealthy} unhealthy" if count.unhealthy else ""),
        ),
        *_demand(o),
        *_load(o),
        *_latency(o),
    ]
    table += decision(seen.step)
    return table + [("trouble", text) for text in troubles(seen)]


def _rate(count: float | None, seconds: int) -> str:
    return "unknown" if count is None else f"{number(count / seconds)}/s"


def _percent(fraction: float | None) -> str:
    return "unknown" if fraction is None else f"{fraction:.1%}"


def _demand(o: Observation) -> list[tuple[str, str]]:
    d, seconds = o.demand, o.window_seconds
    if d is None:
        return [("demand", "unknown")]
    found = [
        ("requests", _rate(d.requests, seconds)),
        ("prompt tokens", _rate(d.prompt_tokens, seconds)),
        ("output tokens", _rate(d.output_tokens, seconds)),
    ]
    if d.cached_prompt_tokens is not None and d.prompt_tokens:
        found.append(("cached prompt", _percent(d.cached_prompt_tokens / d.prompt_tokens)))
    for name, count in (("rejected", d.rejected_requests), ("failed", d.failed_requests)):
        if count:
            found.append((name, _rate(count, seconds)))
    return found


def _load(o: Observation) -> list[tuple[str, str]]:
    load = o.load
    if load is None:
        return [("load", "unknown")]
    found = [
        ("reporting", replicas(load.replicas_reporting) if load.replicas_reporting is not None else "unknown"),
        ("running", number(load.running_requests)),
        ("waiting", number(load.waiting_requests)),
        ("KV cache", _percent(load.kv_cache_fraction)),
    ]
    if load.gpu_utilization_fraction is not None:
        found.append(("GPU", _percent(load.gpu_utilization_fraction)))
    if load.preemptions:
        found.append(("preemptions", _rate(load.preemptions, o.window_seconds)))
    return found


def _latency(o: Observation) -> list[tuple[str, str]]:
    seen = o.latency
    if seen is None:
        return [("latency", "unknown")]
    found = [
        ("TTFT p50, p95", _quantiles(seen.ttft, seen.ttft_p95_seconds)),
        ("ITL p50, p95", _quantiles(seen.itl, seen.itl_p95_seconds)),
    ]
    if seen.violated_requests is not None and seen.served_requests:
        low, high = (min(1.0, v / seen.served_requests) for v in seen.violated_requests)
        found.append(("outside the SLO", _percent(low) if low == high else f"{low:.1%} to {high:.1%}"))
    return found


def _quantiles(histogram: Histogram | None, p95: float | None) -> str:
    if histogram is None:
        return f"unknown, {seconds(p95)}"
    return f"{seconds(histogram.quantile(0.5))}, {seconds(histogram.quantile(0.95))}"


def seconds(value: float | None) -> str:
    """``0.31 s``, ``42 ms``."""
    if value is None:
        return "unknown"
    return f"{number(value * 1000)} ms" if value < 0.1 else f"{number(value)} s"


def decision(step: Step | None) -> list[tuple[str, str]]:
    """The decision and the reason that set it."""
    if step is None:
        return []
    why = step.decision.reasons[-1] if step.decision.reasons else None
    found = [("decision", replicas(step.decision.replicas))]
    return found + ([("because", f"{why.rule}: {reason_text(why)}")] if why is not None else [])


def troubles(seen: Seen) -> list[str]:
    """What went wrong, in a few sentences."""
    found = [seen.error] if seen.error else []
    found += [f"{name}: {text}" for name, text in list(seen.problems.items())[:MOST_PROBLEMS]]
    more = len(seen.problems) - MOST_PROBLEMS
    return found + ([f"and {more} more"] if more > 0 else [])


def line(seen: Seen) -> str:
    """One turn on one line, for a pipe or a file."""
    skipped = ("at", "window", "trouble", "because")
    told = "; ".join(f"{name} {value}" for name, value in rows(seen) if name not in skipped)
    when = "" if seen.observation is None else f"{instant(seen.observation.at_seconds)}  "
    wrong = "".join(f"  [{text}]" for text in troubles(seen))
    return f"{when}{seen.pool}: {told}{wrong}"


def table(all_seen: Sequence[Seen]) -> Table:
    """A column per pool."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title="what the autoscaler sees", title_justify="left", expand=False)
    shown.add_column("")
    columns = []
    for seen in all_seen:
        shown.add_column(Text(seen.pool), overflow="fold", max_width=60)
        columns.append(_joined(rows(seen)))
    names: list[str] = []
    for column in columns:
        names += [name for name in column if name not in names]
    for name in names:
        # Text, not markup: what replicas say may hold brackets.
        shown.add_row(
            name, *(Text(column.get(name, ""), style=_style(name, column.get(name, ""))) for column in columns)
        )
    return shown


def _joined(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        found[name] = f"{found[name]}\n{value}" if name in found else value
    return found


def _style(name: str, value: str) -> str:
    if name == "trouble":
        return "red"
    if value.startswith("unknown"):
        return "yellow"
    return "bold" if name == "decision" else ""
