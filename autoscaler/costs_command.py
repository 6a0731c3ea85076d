"""The command ``autoscaler costs LOG``: what the replicas of a pool were there for, in replica-hours, by its own Steps.

Every number that was asked for is taken apart into terms that sum to it (`parts`): the work itself at what a replica is
believed to carry, then what each rule that decides put on top, or gave back, in the order in which they are applied.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from autoscaler.log import steps_of
from autoscaler.types import Capacity, Step

# What a decision of the strategies consists of, in this order; limits come after it, by their names.
TERMS = {
    "work": "the work of the last minute, at what replicas carry",
    "utilization": "held free of it for what comes within a minute",
    "headroom": "what the measured attainment asks for, or gives back",
    "queue": "to work off what waits",
    "forecast": "what is forecast beyond that",
    "rounding": "up to whole replicas",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("log", type=Path, help="directory of a pool's log, or one segment")
    parser.add_argument("--json", action="store_true", help="print replica-hours by part as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print where the replica-hours of the log went; the exit code."""
    found = costs(steps_of(arguments.log))
    print(json.dumps(found) if arguments.json else told(found))
    return 0


def costs(steps: Iterable[Step]) -> dict[str, Any]:
    """Replica-hours: what was asked for, by part; and how many of them were still starting.

    A number counts until the next Step; the last one for as long as the one before.
    """
    hours: dict[str, float] = {}
    total = starting = seconds = 0.0
    length = 0.0
    for step, after in pairwise(chain(steps, (None,))):
        assert step is not None
        if after is not None:
            length = float(after.observation.at_seconds - step.observation.at_seconds)
            starting += after.observation.replicas.starting * length / 3600.0
        for name, replicas in parts(step).items():
            hours[name] = hours.get(name, 0.0) + replicas * length / 3600.0
        total += step.decision.replicas * length / 3600.0
        seconds += length
    return {"hours": seconds / 3600.0, "replica_hours": total, "starting": starting, "parts": hours}


def parts(step: Step) -> dict[str, float]:
    """The number that was decided, in terms (replicas, some negative) that sum to it.

    Where another rule than those of the strategies set the number, it is that rule's as far as it is more than theirs.
    """
    found: dict[str, float] = {}
    chosen = step.decision.reasons[0] if step.decision.reasons else None
    if chosen is None:
        return {"unknown": float(step.decision.replicas)}
    ours = {r.rule: dict(r.inputs) for r in step.proposals if r.rule in ("reactive", "wake", "predictive")}
    reactive = ours.get("reactive") or ours.get("wake")
    if reactive is not None and step.capacity is not None:
        found = _wanted(reactive, ours.get("predictive"), step.capacity, chosen.after)
        least = max(r.after for r in step.proposals if r.rule in ours)
        found["rounding"] = least - sum(found.values())
    rest = chosen.after - sum(found.values())
    if abs(rest) > 1e-9:
        found[chosen.rule] = found.get(chosen.rule, 0.0) + rest
    for reason in step.decision.reasons[1:]:
        found[reason.rule] = found.get(reason.rule, 0.0) + reason.after - reason.before
    return found


def _wanted(
    reactive: dict[str, Any], predictive: dict[str, Any] | None, capacity: Capacity, replicas: int
) -> dict[str, float]:
    """The terms of the larger of both rules, in replicas that need not be whole."""
    feasible = capacity.feasible(max(1, replicas))
    work, headroom = float(reactive["work"]) / feasible, float(reactive.get("headroom", 1.0))
    free = work / float(reactive["utilization_fraction"]) - work
    queue = float(reactive.get("queued_seconds") or 0.0) / float(reactive["drain_seconds"]) / feasible
    found = {
        "work": work,
        "utilization": free,
        "headroom": (headroom - 1.0) * (work + free),
        "queue": queue,
    }
    if predictive is not None:
        ahead = float(predictive["work"]) * float(predictive.get("headroom", 1.0)) / feasible
        found["forecast"] = max(0.0, ahead - sum(found.values()))
    return found


def told(found: dict[str, Any]) -> str:
    """The parts for a person, those of a decision in their order, and what limits changed from the most on."""
    total = found["replica_hours"]
    if not total:
        return f"no replicas were asked for in {found['hours']:.1f} hours"
    known = found["parts"]
    others = sorted((name for name in known if name not in TERMS), key=lambda name: -abs(known[name]))
    rows = [f"{total:.1f} replica-hours in {found['hours']:.1f} hours, {found['starting']:.1f} of them starting"]
    for name in (*(n for n in TERMS if n in known), *others):
        share, text = 100.0 * known[name] / total, TERMS.get(name, "")
        rows.append(f"  {name:<16}{known[name]:>10.1f}{share:>8.1f} %  {text}".rstrip())
    return "\n".join(rows)
