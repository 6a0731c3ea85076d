"""The worlds in which drills take place: a load that rises, and one thing that goes wrong meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from load_tests.campaign import Prepared
from load_tests.need import feasible_requests_per_second
from load_tests.scenario import Scenario, scenario_from

LENGTH_SECONDS = 5400.0
AT_SECONDS = 1800.0  # when the drill begins: a third of the rise is over
FOR_SECONDS = 600.0  # about a tenth of the run
END_SECONDS = AT_SECONDS + FOR_SECONDS
QUOTA_SECONDS = 3600.0
FULL_SECONDS = 1800.0  # how long the load asks for more than the maximum
MOST = 4  # that maximum
CALM_RATE, CROWD_FACTOR = 4.0, 4.0
SET_BACK_SECONDS = 3600.0
NIGHT_SECONDS = 6 * 3600.0
NIGHT_RATE, MORNING_RATE = 0.2, 10.0  # an idle replica, and three and a half
SETTLED_SECONDS = 1800.0  # a start, the queue's five minutes, the five that replicas are kept, and as much again
DAY_SECONDS = 86_400.0
_TARGET = 0.99

# A version that made prefill and decode dearer and steps cheaper, as a change of kernels does; and one that is just slower.
NEW_VERSION = {"step_factor": 0.9, "token_factor": 1.6, "context_factor": 1.0}
SLOWER = 0.7

Faults = tuple[Mapping[str, Any], ...]


def ramp_world(name: str = "rising load", faults: Faults = (), *, length: float = LENGTH_SECONDS) -> Scenario:
    """Need rises from one replica to five and a half within the hour after the first ten minutes."""
    shape = {"kind": "ramp", "requests_per_second": 3.0, "factor": 5.0, "at_seconds": 600.0, "over_seconds": 3600.0}
    return _world(name, shape, faults, length=length)


def day_world(name: str, faults: Faults = ()) -> Scenario:
    """Need rises from one replica to three within two hours, and stays for a day."""
    shape = {"kind": "ramp", "requests_per_second": 3.0, "factor": 3.0, "at_seconds": 600.0, "over_seconds": 7200.0}
    return _world(name, shape, faults, length=AT_SECONDS + DAY_SECONDS)


def mix_world(name: str, kind: str, factor: float, *, rate: float = 8.0, length: float = LENGTH_SECONDS) -> Scenario:
    """Prompts (`prompt_shift`) or answers (`long_outputs`) become `factor` times as long while the rate stays."""
    shape = {"kind": kind, "requests_per_second": rate, "factor": factor, "at_seconds": AT_SECONDS}
    return _world(name, shape, (), length=length)


def crowd_world(name: str, max_replicas: int) -> Scenario:
    """For half an hour the load is four times what it was, which is more than `MOST` replicas carry."""
    until = AT_SECONDS + FULL_SECONDS
    shape = {
        "kind": "step",
        "requests_per_second": 4.0,
        "factor": 2.5,
        "at_seconds": AT_SECONDS,
        "until_seconds": until,
    }
    return _world(name, shape, (), length=until + 3600.0, max_replicas=max_replicas)


def night_world(name: str, night_rate: float) -> Scenario:
    """A night at `night_rate`, and at its end the load of the morning within a second."""
    shape = {
        "kind": "step",
        "requests_per_second": MORNING_RATE,
        "factor": night_rate / MORNING_RATE,
        "at_seconds": 0.0,
        "until_seconds": NIGHT_SECONDS,
    }
    return _world(name, shape, (), length=NIGHT_SECONDS + SETTLED_SECONDS + 3600.0)


def morning_world(name: str, hours: float) -> Scenario:
    """The morning (or day) of a train day with a strong daily curve, after three days of history."""
    traffic = {"kind": "trace", "trace": "builtin:rate_servegen_mmid_c66", "thin_fraction": 0.33}
    window = {"start_seconds": 3 * 86_400 + 5 * 3600, "duration_seconds": hours * 3600}
    return _scenario(name, traffic, (), window=window, history_days=3.0)


def carried_fraction(prepared: Prepared, change: str) -> float:
    """What a replica carries within the SLO after a change of its speed ("slower", "version"), over that before."""
    pool, requests, slo = prepared.setup.pools[0], prepared.setup.requests, prepared.setup.slo
    law = pool.replica
    terms = ("a", "b", "c", "d", "e", "step_overhead_seconds", "sequence_overhead_seconds")
    if change == "slower":
        factors = dict.fromkeys(terms, 1.0 / SLOWER)
    else:
        per_token, per_context = NEW_VERSION["token_factor"], NEW_VERSION["context_factor"]
        factors = {
            "a": NEW_VERSION["step_factor"],
            **dict.fromkeys("bc", per_token),
            **dict.fromkeys("de", per_context),
        }
    changes: dict[str, Any] = {name: factor * getattr(law, name) for name, factor in factors.items()}
    lengths = requests.prompt_tokens, requests.output_tokens
    before = feasible_requests_per_second(pool, *lengths, slo)
    return feasible_requests_per_second(replace(pool, replica=replace(law, **changes)), *lengths, slo) / before


def _world(name: str, shape: Mapping[str, Any], faults: Faults, *, length: float, max_replicas: int = 40) -> Scenario:
    limits = {"min_replicas": 1, "max_replicas": max_replicas}
    traffic = {"kind": "shape", "shape": shape}
    return _scenario(name, traffic, faults, window={"duration_seconds": length}, limits=limits)


def _scenario(name: str, traffic: Mapping[str, Any], faults: Faults, **changes: Any) -> Scenario:
    base: dict[str, Any] = {
        "version": 1,
        "name": name,
        "traffic": traffic,
        "replica": {"profile": "llama-3.1-70b_bf16_a100_tp4"},
        "startup": {"profile": "warm_node_local"},
        "slo": {"ttft_seconds": 2.0, "itl_seconds": 0.08, "attainment_fraction": _TARGET},
        "interval_seconds": 15,
        "limits": {"min_replicas": 1, "max_replicas": 40},
        "score_from_seconds": 600.0,
        "faults": list(faults),
    }
    return scenario_from({**base, **changes}, Path("."))
