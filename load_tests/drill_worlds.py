"""The worlds in which drills take place: a load that rises, and one thing that goes wrong meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from load_tests.scenario import Scenario, scenario_from

LENGTH_SECONDS = 5400.0
AT_SECONDS = 1800.0  # when the drill begins: a third of the rise is over
FOR_SECONDS = 600.0  # about a tenth of the run
_TARGET = 0.99


def ramp_world(name: str = "rising load", faults: tuple[Mapping[str, Any], ...] = (), **changes: Any) -> Scenario:
    """Need rises from one and a half to seven replicas within the hour after the first ten minutes."""
    shape = {"kind": "ramp", "requests_per_second": 3.0, "factor": 5.0, "at_seconds": 600.0, "over_seconds": 3600.0}
    return _world(name, {"kind": "shape", "shape": shape}, faults, **changes)


def mix_world(name: str, factor: float) -> Scenario:
    """Prompts become `factor` times as long while the rate stays."""
    shape = {"kind": "prompt_shift", "requests_per_second": 8.0, "factor": factor, "at_seconds": AT_SECONDS}
    return _world(name, {"kind": "shape", "shape": shape}, ())


def morning_world(name: str, hours: float) -> Scenario:
    """The morning of a train day with a strong daily curve, after three days of history."""
    traffic = {"kind": "trace", "trace": "builtin:rate_servegen_mmid_c66", "thin_fraction": 0.33}
    window = {"start_seconds": 3 * 86_400 + 5 * 3600, "duration_seconds": hours * 3600}
    return _world(name, traffic, (), window=window, history_days=3.0)


def _world(name: str, traffic: Mapping[str, Any], faults: tuple[Mapping[str, Any], ...], **changes: Any) -> Scenario:
    base: dict[str, Any] = {
        "version": 1,
        "name": name,
        "traffic": traffic,
        "window": {"duration_seconds": LENGTH_SECONDS},
        "replica": {"profile": "llama-3.1-70b_bf16_a100_tp4"},
        "startup": {"profile": "warm_node_local"},
        "slo": {"ttft_seconds": 2.0, "itl_seconds": 0.08, "attainment_fraction": _TARGET},
        "interval_seconds": 15,
        "limits": {"min_replicas": 1, "max_replicas": 40},
        "score_from_seconds": 600.0,
        "faults": list(faults),
    }
    return scenario_from({**base, **changes}, Path("."))
