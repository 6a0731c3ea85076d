"""The series of llm-d's workload variant autoscaler, so that what KServe and llm-d make for it follows us unmodified.

    variants = Variants(board)
    task = asyncio.create_task(variants.follow(cluster))      # which HPAs there are, and what they do with a number
    metrics |= variants.metrics()                             # as external metrics
    text += variants.text()                                   # as series for Prometheus

A variant is an HPA (or the HPA of a ScaledObject) on what a pool scales; `variant_name` is its name.  A Step that is too
old drops the series and is an error of the external metric.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from autoscaler.errors import ConfigError
from autoscaler.types import Step
from metrics_adapter.board import Board, Stale
from metrics_adapter.external_metrics_values import Candidate, Item, Labels, Metric, milli_of, value_form
from serving.kubernetes import Kubernetes
from serving.kubernetes_objects import ExternalMetric, Hpa
from serving.targets import object_kind, scaled_object_of

DESIRED, CURRENT, RATIO = "wva_desired_replicas", "wva_current_replicas", "wva_desired_ratio"
HELP = {
    DESIRED: "Replicas that the variant should have.",
    CURRENT: "Replicas that the variant has, ready or not.",
    RATIO: "Desired over current replicas; the desired ones where there are none.",
}
ACCELERATOR = "inference.optimization/acceleratorName"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """An HPA that follows a pool."""

    pool: str
    name: str
    hpa: Hpa

    @property
    def labels(self) -> Labels:
        """As the original has them."""
        accelerator = self.hpa.labels.get(ACCELERATOR) or "unknown"
        return (("variant_name", self.name), ("namespace", self.hpa.namespace), ("accelerator_type", accelerator))


class Variants:
    """The variants of a board's pools.  `controller_instance`: a further label, for several controllers in one cluster."""

    def __init__(self, board: Board, *, controller_instance: str | None = None) -> None:
        self.board = board
        self._more: Labels = () if controller_instance is None else (("controller_instance", controller_instance),)
        self._hpas: dict[str, Mapping[tuple[str, str], Hpa]] = {}
        self._targets: dict[tuple[str, str, str], str] = {}
        for name, pool in board.pools.items():
            if pool.target is not None and pool.target.kind != "processes":
                kind, object_name = scaled_object_of(pool.target)
                key = (pool.target.namespace, object_kind(kind), object_name)
                if key in self._targets:
                    both = f"{self._targets[key]} and {name}"
                    raise ConfigError("pools", f"{both} scale {'/'.join(key)}: must be one pool, as one HPA follows it")
                self._targets[key] = name

    async def follow(self, cluster: Kubernetes) -> None:
        """Watch the HPAs in the pools' namespaces, for ever."""
        namespaces = sorted({namespace for namespace, _, _ in self._targets})
        async with asyncio.TaskGroup() as tasks:
            for namespace in namespaces:
                tasks.create_task(self._watch(cluster, namespace))
            await asyncio.Event().wait()  # also where no pool has a target, and so nothing is watched

    async def _watch(self, cluster: Kubernetes, namespace: str) -> None:
        async with aclosing(cluster.watch_hpas(namespace)) as changes:
            async for hpas in changes:
                self.put(namespace, hpas)

    def put(self, namespace: str, hpas: Mapping[tuple[str, str], Hpa]) -> None:
        """Take the HPAs that a namespace has now."""
        self._hpas[namespace] = hpas

    def __iter__(self) -> Iterator[Variant]:
        for hpas in self._hpas.values():
            for hpa in hpas.values():
                pool = self._targets.get((hpa.namespace, hpa.target_kind, hpa.target_name))
                if pool is not None:
                    yield Variant(pool=pool, name=hpa.scaled_object or hpa.name, hpa=hpa)

    def metrics(self) -> dict[str, Metric]:
        """As external metrics, each in the form that its HPA's target makes our number of."""
        readers: dict[str, Reader] = {DESIRED: _desired_milli, CURRENT: _current_milli, RATIO: _ratio_milli}
        return {name: partial(self._candidates, reader) for name, reader in readers.items()}

    def _candidates(self, reader: Reader, namespace: str) -> Iterable[Candidate]:
        for variant in self:
            if variant.hpa.namespace == namespace:
                # Charts that are written for Prometheus' names select by the one it makes of `namespace`.
                labels = (*variant.labels, *self._more, ("exported_namespace", namespace))
                yield Candidate(name=variant.name, labels=labels, read=partial(self._read, variant, labels, reader))

    def _read(self, variant: Variant, labels: Labels, reader: Reader) -> Iterable[Item]:
        step = self.board.fresh(variant.pool)
        milli = reader(variant, step)
        if milli is not None:
            yield Item(labels=labels, milli=milli, at_seconds=step.decision.at_seconds)

    def text(self) -> str:
        """The series in Prometheus' text format; those of a Step that is too old are left out."""
        rows: dict[str, list[str]] = {name: [] for name in HELP}
        for variant in sorted(self, key=lambda v: (v.hpa.namespace, v.name)):
            try:
                step = self.board.fresh(variant.pool)
            except Stale:
                continue
            labels = ",".join(f'{k}="{_escaped(v)}"' for k, v in (*variant.labels, *self._more))
            wanted, current = step.decision.replicas, current_replicas(step)
            for name, value in ((DESIRED, wanted), (CURRENT, current), (RATIO, ratio(wanted, current))):
                rows[name].append(f"{name}{{{labels}}} {value}")
        lines = []
        for name, found in rows.items():
            if found:
                lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge", *found]
        return "".join(f"{line}\n" for line in lines)


Reader = Callable[[Variant, Step], int | None]


def current_replicas(step: Step) -> int:
    """Replicas that are there, ready or not."""
    counts = step.observation.replicas
    return counts.ready + counts.starting + counts.unhealthy


def ratio(wanted: int, current: int) -> float:
    """Desired over current, as the original counts it."""
    return float(wanted) if current == 0 else wanted / current


def _current_milli(variant: Variant, step: Step) -> int:
    return 1000 * current_replicas(step)


def _ratio_milli(variant: Variant, step: Step) -> int | None:
    return milli_of(ratio(step.decision.replicas, current_replicas(step)))


def _desired_milli(variant: Variant, step: Step) -> int:
    """In the form by which this HPA lands on the wanted count."""
    asks = next((m for m in variant.hpa.external if m.name == DESIRED), ExternalMetric(name=DESIRED))
    target = milli_of_quantity(asks.target)
    if asks.target_type != "Value":
        return step.decision.replicas * target
    return behind_value(step, variant.hpa.desired_replicas) * target // 1000


def behind_value(step: Step, hpa_desired: int | None) -> int:
    """What to publish, in thousandths of the target, behind a target of type ``Value``, which multiplies by ready pods.

    An HPA that has landed is told 1, which holds however many pods turn ready; one at zero takes the number as it is; one on
    its way needs `value_form`.  `hpa_desired`: what it last computed, newer than the Step.
    """
    wanted, counts = step.decision.replicas, step.observation.replicas
    if wanted > 0 and wanted in (counts.desired, hpa_desired):
        return 1000
    return 1000 * wanted if counts.desired == 0 else value_form(wanted, counts.ready)


def milli_of_quantity(text: str) -> int:
    """Thousandths of a Quantity as HPAs have them: ``1``, ``1500m``, ``2.5``, ``2k``; 1000 for what is none."""
    units = {"m": 1.0, "k": 1e6, "M": 1e9}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1000.0)
    try:
        return max(1, round(float(number) * unit))
    except (ValueError, OverflowError):
        return 1000


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
