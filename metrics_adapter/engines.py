"""What engines call things: a table per engine, as data in ``data/engines/*.toml``, and the reader of such tables.

A table maps concepts (what an Observation is made of) to series.  Names that changed between versions are alternatives:
the first one that a page has counts.  A user's table is a TOML, YAML or JSON file of the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from autoscaler.config import load_mapping, parse_mapping
from autoscaler.errors import ConfigError, MetricMissing
from autoscaler.schema import build, setting

Kind = Literal["gauge", "counter", "histogram"]

# What a table may name.  Counters and histograms are cumulative since the process started.
CONCEPTS: dict[str, tuple[Kind, str]] = {
    "running": ("gauge", "requests in the running batch; of a gateway, in flight"),
    "waiting": ("gauge", "requests that wait, all of them"),
    "waiting_deferred": (
        "gauge",
        "of those, the ones that more replicas would not help (adapters, KV transfer, grammar)",
    ),
    "waiting_prompt_tokens": ("gauge", "prompt tokens of waiting requests"),
    "kv_usage": ("gauge", "fraction of the KV cache in use, 0 to 1"),
    "kv_capacity_tokens": ("gauge", "size of the KV cache in tokens"),
    "awake": ("gauge", "1 while it serves, 0 asleep or paused"),
    "started_at_seconds": ("gauge", "start of the process, in Unix seconds"),
    "arrivals": ("counter", "requests counted on arrival"),
    "first_tokens": ("counter", "requests whose first token came out, where no ttft histogram counts them"),
    "prompt_tokens": ("counter", "prompt tokens of requests, cached ones included, counted with the first token"),
    "cached_prompt_tokens": ("counter", "prompt tokens that were found in a cache"),
    "output_tokens": ("counter", "output tokens made"),
    "finished": ("counter", "requests answered to the end"),
    "failed": ("counter", "requests that ended in an error or were aborted by the engine"),
    "rejected": ("counter", "requests turned away at a limit"),
    "preemptions": ("counter", "running requests that lost their KV blocks"),
    "engine_steps": ("counter", "steps of the engine, where no step_tokens histogram counts them"),
    "ttft": ("histogram", "seconds from arrival to first token"),
    "tpot": ("histogram", "seconds between tokens, mean of a request"),
    "itl": ("histogram", "seconds between tokens, each gap"),
    "e2e": ("histogram", "seconds from arrival to end"),
    "queue": ("histogram", "seconds queued"),
    "prefill": ("histogram", "seconds from first scheduled to first token"),
    "step_tokens": ("histogram", "tokens in an engine step"),
    "prompt_length": ("histogram", "prompt tokens of a request"),
    "output_length": ("histogram", "output tokens of a request"),
}

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One concept's series."""

    series: tuple[str, ...] = setting(
        doc="Names of the series as a page has them, newest first: the first that is there counts. A counter's _total"
        " belongs to its name; a histogram's _bucket, _sum and _count do not."
    )
    plus: tuple[tuple[str, ...], ...] = setting((), "Further series that are added, each with its own alternatives.")
    where: dict[str, tuple[str, ...]] = field(
        default_factory=dict, metadata={"doc": "Only samples whose label has one of these values."}
    )
    unless: dict[str, tuple[str, ...]] = field(
        default_factory=dict, metadata={"doc": "No samples whose label has one of these values."}
    )
    merge: Literal["sum", "mean", "min", "max"] = setting(
        "sum", "How samples of one replica become one value, such as those of several data-parallel engines."
    )
    scale: float = setting(1.0, "Factor to the concept's unit: 0.001 for milliseconds.", above=0)
    label: str | None = setting(None, "Label whose number is taken instead of the value, as info series have it.")
    at_finish: bool = setting(
        False, "True: this engine counts it when a request ends. For ttft, prompt_tokens and cached_prompt_tokens."
    )
    required: bool = setting(False, "True: a replica whose page lacks it does not count as reporting.")

    def __post_init__(self) -> None:
        if not self.series or not all(names and all(names) for names in (self.series, *self.plus)):
            raise ConfigError("series", f"{self.series!r} must hold at least one name, and none that is empty")

    @property
    def terms(self) -> tuple[Names, ...]:
        """The series that are added up, each as its alternatives."""
        return (self.series, *self.plus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The table of one engine."""

    name: str = setting(doc="Name of the engine, as `engine` in a pool's source has it.")
    about: str = setting("", "Which software and versions the table is for, and where the names come from.")
    model_label: str | None = setting(None, "Label that names the model, where one server has several.")
    rows: dict[str, Row] = setting(doc="Concept by concept; see CONCEPTS.")

    def __post_init__(self) -> None:
        for concept, row in self.rows.items():
            if concept not in CONCEPTS:
                raise ConfigError(f"rows.{concept}", f"unknown concept, must be one of {', '.join(CONCEPTS)}")
            if row.label is not None and CONCEPTS[concept][0] == "histogram":
                raise ConfigError(f"rows.{concept}.label", "must be left out of a histogram")
            if row.merge != "sum" and CONCEPTS[concept][0] != "gauge":
                raise ConfigError(
                    f"rows.{concept}.merge", f"{row.merge!r} must be sum: only gauges are merged otherwise"
                )

    @property
    def at_finish(self) -> frozenset[str]:
        """Concepts that are counted when a request ends."""
        return frozenset(concept for concept, row in self.rows.items() if row.at_finish)

    def sample_names(self) -> frozenset[str]:
        """Every sample name that the table reads, histograms with their endings."""
        found: set[str] = set()
        for concept, row in self.rows.items():
            for name in (name for names in row.terms for name in names):
                if CONCEPTS[concept][0] == "histogram":
                    found |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
                else:
                    found.add(name)
        return frozenset(found)

    def missing(self, concept: str, where: str) -> MetricMissing:
        """The error that says which series is missing at `where`, and which row wants it."""
        names = " or ".join(name for name in self.rows[concept].series)
        return MetricMissing(
            f"{where}: no series {names}, which the row {concept!r} of the engine table {self.name!r} reads"
            f" ({CONCEPTS[concept][1]}); is the engine another one?"
        )


def known_engines() -> tuple[str, ...]:
    """Names of the shipped tables."""
    return tuple(
        sorted(f.name[:-5] for f in files("metrics_adapter").joinpath("data/engines").iterdir() if _is(f.name))
    )


def _is(name: str) -> bool:
    return name.endswith(".toml")


@cache
def _shipped(name: str) -> Engine:
    path = files("metrics_adapter").joinpath("data/engines", f"{name}.toml")
    return build(Engine, parse_mapping(path.read_text(encoding="utf-8"), Path(f"{name}.toml")), f"engine {name}")


def load_engine(choice: str | Mapping[str, object]) -> Engine:
    """The table of an engine: a shipped one by name, ``{"file": PATH}``, or a table itself.

    ``{"base": NAME, "rows": {...}}``, in a file too, changes some rows of a shipped one.  Raises ConfigError with a sentence.
    """
    if isinstance(choice, str):
        if choice not in known_engines():
            raise ConfigError(
                "engine",
                f"{choice!r} must be one of {', '.join(known_engines())}, or {{file: ...}} with a table of yours",
            )
        return _shipped(choice)
    if not isinstance(choice, Mapping):
        raise ConfigError("engine", f"{choice!r} must be the name of an engine, or {{file: ...}} with a table of yours")
    if "file" in choice:
        if set(choice) != {"file"} or not isinstance(choice["file"], str):
            raise ConfigError("engine.file", "must be a path, and stand alone")
        path = Path(choice["file"])
        return _table(load_mapping(path), str(path))
    return _table(choice, "engine")


def _table(data: Mapping[str, object], path: str) -> Engine:
    if "base" not in data:
        return build(Engine, data, path)
    base = data["base"]
    if not isinstance(base, str) or base not in known_engines():
        raise ConfigError(f"{path}.base", f"{base!r} must be one of {', '.join(known_engines())}")
    rest = {"name": base, "rows": {}, **{k: v for k, v in data.items() if k != "base"}}
    changed = build(Engine, rest, path)
    return replace(changed, rows={**_shipped(base).rows, **changed.rows})
