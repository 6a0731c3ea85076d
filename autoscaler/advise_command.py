"""The command ``autoscaler advise LOG``: what a pool has cost and kept of its promise, and what `auto` would have.

The log's work is replayed hour by hour in the fluid model of `autoscaler.portfolio`, each hour decided by what was the cheapest
on those before it.  So what an observer has seen for some days says what acting on it would bring.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from math import inf, isfinite
from pathlib import Path

from autoscaler.errors import ConfigError
from autoscaler.log import settings_of, steps_of
from autoscaler.portfolio import LEAST_SECONDS, Recorded, replayed, shipped
from autoscaler.settings import PoolSettings
from autoscaler.types import Choice, Observation, Step, Variant

PART_SECONDS = 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Replica-hours paid (ready and starting), and the share of requests in time; None where that was not measured."""

    replica_hours: float
    attained_fraction: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What was, and what would have been: as `auto` goes along, with the shipped numbers, and the best in hindsight."""

    pool: str
    days: float
    target_fraction: float
    measured: Outcome
    auto: Outcome
    fixed: Outcome
    hindsight: Outcome
    chosen: Variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("log", type=Path, help="directory of a pool's log, or one segment")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the advice; the exit code."""
    found = advice(settings_of(arguments.log), steps_of(arguments.log))
    if found is None:
        raise ConfigError("log", f"{arguments.log} must hold {LEAST_SECONDS / 3600:g} hours of steps with known work")
    print(json.dumps(asdict(found)) if arguments.json else told(found))
    return 0


def advice(settings: PoolSettings, steps: Iterable[Step]) -> Advice | None:
    """What the steps of a pool come to; None below six hours of known work."""
    cell = max(1, settings.interval_seconds)
    choice: Choice | None = None
    paid, late, hours = 0.0, 0.0, 0
    seen = _Seen()
    for part in _parts(steps):
        for step in part:
            seen.add(step.observation)
        capacity = next((s.capacity for s in reversed(part) if s.capacity is not None), None)
        if capacity is None:
            continue
        before = choice
        recorded = _recorded(part, cell, None if choice is None else choice.at_seconds)
        choice = replayed(choice, settings, capacity, recorded, memory_seconds=inf)
        hours += 1
        variant = before.chosen if before is not None else shipped(settings, capacity)
        now, then = _found(choice, variant), _found(before, variant)
        paid, late = paid + now[0] - then[0], late + now[1] - then[1]
    if choice is None or choice.seconds < LEAST_SECONDS or not choice.arrived:
        return None
    first = choice.replayed[0].variant

    def outcome(replica_seconds: float, late: float) -> Outcome:
        return Outcome(replica_hours=replica_seconds / 3600.0, attained_fraction=1.0 - late / choice.arrived)

    return Advice(
        pool=settings.name,
        days=choice.seconds / 86_400.0,
        target_fraction=settings.slo.attainment_fraction,
        measured=seen.outcome(),
        auto=outcome(paid, late),
        fixed=outcome(*_found(choice, first)),
        hindsight=outcome(*_found(choice, choice.chosen)),
        chosen=choice.chosen,
    )


def _parts(steps: Iterable[Step]) -> Iterator[list[Step]]:
    part: list[Step] = []
    for step in steps:
        if part and step.observation.at_seconds // PART_SECONDS != part[0].observation.at_seconds // PART_SECONDS:
            yield part
            part = []
        part.append(step)
    if part:
        yield part


def _recorded(part: list[Step], cell: int, since: int | None) -> Recorded:
    """The work of the steps in equal cells, from `since` on; what no step tells was not measured."""
    start = since if since is not None else part[0].observation.at_seconds - cell
    values: list[float | None] = [None] * max(0, (part[-1].observation.at_seconds - start) // cell)
    for step in part:
        index = (step.observation.at_seconds - start - 1) // cell
        if 0 <= index < len(values):
            values[index] = step.work
    return Recorded(start_seconds=start, cell_seconds=cell, values=values)


def _found(choice: Choice | None, variant: Variant) -> tuple[float, float]:
    """(replica-seconds, late work) of a variant so far."""
    found = next((r for r in choice.replayed if r.variant == variant), None) if choice is not None else None
    return (found.replica_seconds, found.late) if found is not None else (0.0, 0.0)


class _Seen:
    """What was measured."""

    def __init__(self) -> None:
        self.paid = self.served = self.violated = 0.0

    def add(self, now: Observation) -> None:
        self.paid += (now.replicas.ready + now.replicas.starting) * now.window_seconds
        latency = now.latency
        if latency is not None and latency.served_requests and latency.violated_requests is not None:
            low, high = latency.violated_requests
            self.served += latency.served_requests
            self.violated += 0.5 * (low + high) if isfinite(high) else low

    def outcome(self) -> Outcome:
        attained = 1.0 - self.violated / self.served if self.served else None
        return Outcome(replica_hours=self.paid / 3600.0, attained_fraction=attained)


def told(found: Advice) -> str:
    """The advice in a few lines."""

    def line(name: str, outcome: Outcome) -> str:
        attained = "not measured" if outcome.attained_fraction is None else f"{100 * outcome.attained_fraction:.2f} %"
        return f"  {name:<34}{outcome.replica_hours:>12.1f} replica-hours   {attained} in time"

    chosen = found.chosen
    return "\n".join(
        (
            f"{found.pool}: {found.days:.1f} days of known work, {100 * found.target_fraction:g} % promised",
            line("as it was (measured)", found.measured),
            line("auto, hour by hour (replayed)", found.auto),
            line("the shipped numbers (replayed)", found.fixed),
            line("best in hindsight (replayed)", found.hindsight),
            f"  now: {100 * chosen.utilization_fraction:g} % of the feasible load, work of {chosen.window_seconds} s, kept for"
            f" {chosen.keep_seconds} s",
            "  Replayed in a fluid model: no single requests, no forecast, starts and capacity as believed at the time.",
        )
    )
