"""A scenario of a few minutes for comparing policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from load_tests.scenario import Scenario, scenario_from

STEP: dict[str, Any] = {
    "version": 1,
    "name": "short step",
    "traffic": {
        "kind": "shape",
        "shape": {"kind": "step", "requests_per_second": 8, "factor": 3, "at_seconds": 120},
        "lengths": {"kind": "lognormal", "prompt_tokens": 300, "output_tokens": 60},
    },
    "window": {"duration_seconds": 400},
    "startup": {"profile": "warm_node_local"},
    "limits": {"min_replicas": 1, "max_replicas": 8},
}


def step(**changes: Any) -> Scenario:
    return scenario_from({**STEP, **changes}, Path())
