"""The command ``autoscaler capacity LOG``: what a pool believes of its replicas, what it saw of them, and how far off it is."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoscaler.embed import autoscaler_for
from autoscaler.errors import ConfigError
from autoscaler.lengths import lengths_of
from autoscaler.log import restore, settings_of
from autoscaler.types import Capacity, Memory
from autoscaler.views import number
from serving.capacity_learned import LearnedBeliefs, LearnedCapacity
from serving.capacity_violations import SIGMA


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("log", type=Path, help="directory of a pool's log, or one segment")
    parser.add_argument("--json", action="store_true", help="print the belief as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the belief at the end of the log; the exit code."""
    decider = autoscaler_for(settings_of(arguments.log))
    memory = restore(decider, arguments.log)
    model, beliefs = decider.capacity_model, memory.beliefs.capacity
    if not isinstance(model, LearnedCapacity) or not isinstance(beliefs, LearnedBeliefs):
        raise ConfigError("log", f"{arguments.log} must be of a pool whose replicas' capacity is learned")
    found = belief(model, beliefs, memory)
    print(json.dumps(found) if arguments.json else told(found))
    return 0


def belief(model: LearnedCapacity, beliefs: LearnedBeliefs, memory: Memory) -> dict[str, Any]:
    """The belief as plain data: None where nothing was measured."""
    seen = memory.recent[-1].replicas if memory.recent else None
    replicas = max(1, seen.ready) if seen is not None else 1
    capacity = model.capacity(beliefs, lengths_of(memory.state), replicas)
    steps, gain = beliefs.steps, beliefs.gain
    return {
        "pool": memory.pool,
        "at_seconds": memory.state.at_seconds,
        "source": capacity.source,
        "replicas": replicas,
        "requests_per_second_per_replica": _rate(capacity, memory, beliefs.cached or 0.0, replicas),
        "feasible_load_erlangs": capacity.feasible(replicas),
        "caution_fraction": model.caution(beliefs, replicas),
        "estimate_sigma": model.deviation(beliefs),
        "law_sigma": beliefs.law_sigma,
        "load_erlangs": gain.load,
        "law": asdict(model.law(beliefs)),
        "prior_law": asdict(model.shapes[0]),
        "windows": round(steps.weight, 1),
        "window_error_fraction": steps.sigma if steps.weight else None,
        "drifts": steps.drifts,
        "drift_at_seconds": steps.drift_at_seconds,
        "twin_factor": None if beliefs.twin is None else math.exp(beliefs.twin.log),
        "factor": math.exp(gain.log),
        "factor_sigma": math.sqrt(gain.variance),
        "factor_known_fraction": 1.0 - gain.variance / SIGMA**2,
        "late_requests": round(gain.late, 1),
        "expected_late_requests": round(gain.expected, 1),
        "cached_prompt_fraction": beliefs.cached,
        "starts_seen": beliefs.starts.seen,
        "starts_under_way": len(beliefs.starts.orders),
        "startup_seconds": {str(q): seconds for q, seconds in capacity.startup_seconds},
    }


def _rate(capacity: Capacity, memory: Memory, cached: float, replicas: int) -> float | None:
    prompt = memory.state.mean_prompt_tokens
    if prompt is None:
        return None
    work = capacity.seconds_per_request + capacity.seconds_per_prompt_token * prompt * (1.0 - cached)
    work += capacity.seconds_per_output_token * capacity.mean_output_tokens
    return capacity.feasible(replicas) / work if work > 0.0 else None


def told(b: dict[str, Any]) -> str:
    """The belief for a person."""
    rate = b["requests_per_second_per_replica"]
    each = "" if rate is None else f", {number(rate)} requests/s of the present lengths"
    law, prior = b["law"], b["prior_law"]
    rows = [
        f"pool {b['pool']}, {_instant(b['at_seconds'])}: {b['source']}",
        f"one of {b['replicas']} replicas carries {number(b['feasible_load_erlangs'])} Erlangs{each}",
        f"  that is {100 * b['caution_fraction']:.0f} % of the best estimate: the rest is caution, and shrinks with what is seen",
        f"  the estimate is good to {100 * b['estimate_sigma']:.1f} % (one standard deviation), of which the step law is"
        f" {100 * b['law_sigma']:.1f} %: laws that explain what was seen about as well",
        f"  now each is asked for {_or_unknown(b['load_erlangs'])} Erlangs",
        "",
        f"step law, from {b['windows']:g} windows"
        + ("" if b["window_error_fraction"] is None else f" (error of one: {100 * b['window_error_fraction']:.1f} %)"),
    ]
    units = {
        "a": "s per step",
        "b": "s per token",
        "c": "s per sequence",
        "d": "s per token of context",
        "e": "s per pair",
    }
    rows += [f"  {name}  {law[name]:.3e} {unit:<24} prior {prior[name]:.3e}" for name, unit in units.items()]
    rows.append(f"  floor {law['floor']:g} tokens per step, prior {prior['floor']:g}")
    if b["drifts"]:
        rows.append(
            f"  forgotten {b['drifts']} times, last {_instant(b['drift_at_seconds'])}: engines had become others"
        )
    low, high = (b["factor"] * math.exp(sign * b["factor_sigma"]) for sign in (-1.0, 1.0))
    starts = ", ".join(f"{float(q):.0%} {seconds:.0f} s" for q, seconds in b["startup_seconds"].items())
    rows += [
        "",
        f"factor on the closed forms, by the twin of the last refit: {_or_unknown(b['twin_factor'])}",
        f"factor on that, from latencies: {b['factor']:.3f} ({low:.3f} to {high:.3f})",
        f"  late lately {b['late_requests']:g}, expected {b['expected_late_requests']:g}",
        f"prompts found in the prefix cache: {_or_unknown(b['cached_prompt_fraction'])}",
        "",
        f"start-up: {starts} ({b['starts_seen']} seen, {b['starts_under_way']} under way)",
    ]
    return "\n".join(rows)


def _instant(at_seconds: int | None) -> str:
    return "before anything was seen" if at_seconds is None else datetime.fromtimestamp(at_seconds, UTC).isoformat()


def _or_unknown(value: float | None) -> str:
    return "unknown" if value is None else number(value)
