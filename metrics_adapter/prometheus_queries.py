"""The PromQL that a Prometheus source asks, as text: pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from autoscaler.source_settings import PrometheusSettings
from metrics_adapter.engines import CONCEPTS, Engine, Kind


def matchers(selector: str) -> str:
    """The user's label matchers, with or without braces around them."""
    return selector.strip().removeprefix("{").removesuffix("}").strip().strip(",")


def quoted(text: str) -> str:
    """A PromQL string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def series(settings: PrometheusSettings, *names: str) -> str:
    """The selector of the user's replicas' samples of these names."""
    if len(names) == 1:
        named = f"__name__={quoted(names[0])}"
    else:
        # Names are of letters, digits, _ and :, so only a user's table could hold anything to escape.
        named = f"__name__=~{quoted('|'.join(re.escape(n) for n in sorted(names)))}"
    own = matchers(settings.selector)
    return f"{{{named},{own}}}" if own else f"{{{named}}}"


def everything(settings: PrometheusSettings, engine: Engine) -> str:
    """All series of the engine's table, replica by replica."""
    return series(settings, *engine.sample_names())


def anchors(engine: Engine) -> tuple[str, ...]:
    """Sample names one of which every replica has: of the first required row, else of the first row."""
    concept, row = next(((c, r) for c, r in engine.rows.items() if r.required), None) or next(iter(engine.rows.items()))
    return tuple(f"{name}_count" if CONCEPTS[concept][0] == "histogram" else name for name in row.series)


def sampled_at(settings: PrometheusSettings, engine: Engine) -> str:
    """When each replica was last scraped: Prometheus repeats a sample for five minutes, but tells its true instant."""
    by = settings.replica_label
    parts = [f"max by ({by}) (timestamp({series(settings, name)}))" for name in anchors(engine)]
    return " or ".join(parts)


def kinds(engine: Engine) -> dict[str, Kind]:
    """The kind of every sample name that history needs: buckets and sums are counters; a count is the last bucket's."""
    found: dict[str, Kind] = {}
    for concept, row in engine.rows.items():
        kind = CONCEPTS[concept][0]
        if concept == "started_at_seconds":  # of no use for a sum over replicas
            continue
        for name in (name for names in row.terms for name in names):
            if kind == "histogram":
                found |= {f"{name}_bucket": "counter", f"{name}_sum": "counter"}
            else:
                found[name] = kind
    return found


def labels_read(engine: Engine) -> tuple[str, ...]:
    """Labels that the table looks at, besides ``le``."""
    found = {engine.model_label} if engine.model_label else set()
    for row in engine.rows.values():
        found |= {*row.where, *row.unless, *({row.label} if row.label else ())}
    return tuple(sorted(name for name in found if name))


def history(settings: PrometheusSettings, engine: Engine) -> Iterator[tuple[str, str]]:
    """(sample name, query) for each sample name: what the pool did within each step of the past, added up by the server.

    Range selectors see samples of the step alone, so a time when the server was down stays a gap.
    """
    step = f"[{settings.backfill_step_seconds}s]"
    by = ", ".join(("le", *labels_read(engine)))
    merge = {name: row.merge for row in engine.rows.values() for names in row.terms for name in names}
    for name, kind in sorted(kinds(engine).items()):
        selected = series(settings, name)
        if kind == "counter":
            yield name, f"sum by ({by}) (increase({selected}{step}))"
        else:
            how = {"mean": "avg", "sum": "sum", "min": "min", "max": "max"}[merge[name]]
            yield name, f"{how} by ({by}) (last_over_time({selected}{step}))"


def reporting(settings: PrometheusSettings, engine: Engine) -> str:
    """How many replicas were scraped within each step of the past."""
    by, step = settings.replica_label, f"[{settings.backfill_step_seconds}s]"
    parts = [f"count by ({by}) (last_over_time({series(settings, name)}{step}))" for name in anchors(engine)]
    return f"count({' or '.join(parts)})"
