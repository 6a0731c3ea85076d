"""An autoscaler for LLM inference: holds the SLO at the lowest GPU cost, and says why.

The names below are the library's surface; `Pool` is the embedding API.  Importing this package is light: it needs the
standard library only, and each name is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoscaler.embed import Pool
    from autoscaler.errors import (
        AutoscalerError,
        ConfigError,
        ForecastError,
        LogError,
        MetricMissing,
        ReplayMismatch,
        SourceError,
        SourceUnavailable,
        TargetConflict,
        TargetError,
        TargetNotFound,
    )
    from autoscaler.facts import Facts
    from autoscaler.step import Autoscaler, step_group
    from autoscaler.types import (
        Capacity,
        Count,
        Decision,
        Demand,
        Forecast,
        Group,
        Histogram,
        Latency,
        Load,
        Memory,
        Observation,
        Reason,
        Replicas,
        RequestClass,
        State,
        Step,
        TenantDemand,
    )

__version__ = "0.1.0"

_HOME = {
    "Pool": "embed",
    "Facts": "facts",
    **dict.fromkeys(("Autoscaler", "step_group"), "step"),
    **dict.fromkeys(
        (
            "AutoscalerError", "ConfigError", "ForecastError", "LogError", "MetricMissing", "ReplayMismatch",
            "SourceError", "SourceUnavailable", "TargetConflict", "TargetError", "TargetNotFound",
        ),
        "errors",
    ),
    **dict.fromkeys(
        (
            "Capacity", "Count", "Decision", "Demand", "Forecast", "Group", "Histogram", "Latency", "Load", "Memory",
            "Observation", "Reason", "Replicas", "RequestClass", "State", "Step", "TenantDemand",
        ),
        "types",
    ),
}  # fmt: skip

__all__ = [
    "Autoscaler",
    "AutoscalerError",
    "Capacity",
    "ConfigError",
    "Count",
    "Decision",
    "Demand",
    "Facts",
    "Forecast",
    "ForecastError",
    "Group",
    "Histogram",
    "Latency",
    "Load",
    "LogError",
    "Memory",
    "MetricMissing",
    "Observation",
    "Pool",
    "Reason",
    "ReplayMismatch",
    "Replicas",
    "RequestClass",
    "SourceError",
    "SourceUnavailable",
    "State",
    "Step",
    "TargetConflict",
    "TargetError",
    "TargetNotFound",
    "TenantDemand",
    "step_group",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
