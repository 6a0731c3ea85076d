"""What external metrics there are, and the one item that a selector picks: views of a pool's last Step.

A metric is a function of a namespace that gives its candidates: labels that are known beforehand, and how to read the
items.  Only pools whose target lives in that namespace are candidates (those without a target: everywhere), since an HPA
asks in its own namespace and must not read another team's pool.

    desired_replicas    the wanted count, whole, for `AverageValue: "1"`
    desired_ratio       the same for a consumer with `Value: "1"`, see `value_form`
    signals             by the names that policies track them by: `autoscaler.signals.SIGNALS`, over the last observation
    beliefs, choice     gauges of our own /metrics, without their prefix ``autoscaler_``, with their labels
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from autoscaler.errors import AutoscalerError
from autoscaler.settings import PoolSettings
from autoscaler.signals import SIGNALS, Signal, window_mean
from autoscaler.types import Step
from metrics_adapter.board import Board
from metrics_adapter.exposition_reads import View
from metrics_adapter.exposition_series import SERIES, Series
from metrics_adapter.external_metrics_selector import Selector

MOST_MILLI = 2**63 - 1  # what a Quantity's reader holds
PREFIX = "autoscaler_"
# Gauges of /metrics that are no signal under another name already, and that a Step alone tells.
GAUGES = (
    "replicas", "ttft_seconds", "itl_seconds", "e2e_seconds", "work_erlangs", "forecast_work_erlangs",
    "capacity_feasible_erlangs", "utilization_ratio", "startup_seconds", "decision_recommended_replicas",
    "decision_proposed_replicas",
)  # fmt: skip
MOST_SELECTORS = 4096  # that are remembered of a metric
Labels = tuple[tuple[str, str], ...]


class Unmeasured(AutoscalerError):
    """The pool's last Step is fresh and lacks this number."""


class NoSuchItem(AutoscalerError):
    """Nothing here is what the selector asks for."""


class Ambiguous(AutoscalerError):
    """More than one item is what the selector asks for: HPA would add them up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One value as it goes on the wire: thousandths, its Step's instant, the time that it covers (None: an instant)."""

    labels: Labels
    milli: int
    at_seconds: int
    window_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What a selector may mean: `labels` are known beforehand, `read` gives items with these and further ones.

    `read` raises Stale or Unmeasured.  `name` is for a person.
    """

    name: str
    labels: Labels
    read: Callable[[], Iterable[Item]]
    known: dict[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", dict(self.labels))


Metric = Callable[[str], Iterable[Candidate]]
Reader = Callable[[PoolSettings, Step], Iterable[Item]]


class Fixed(tuple[Candidate, ...]):
    """Candidates that do not change: which of them a selector means is found once."""

    _meant: dict[Selector, tuple[Candidate, ...]]

    def meant(self, selector: Selector) -> tuple[Candidate, ...]:
        """Those that `selector` may mean."""
        if not hasattr(self, "_meant"):
            self._meant = {}
        found = self._meant.get(selector)
        if found is None:
            if len(self._meant) >= MOST_SELECTORS:
                self._meant.clear()
            found = self._meant[selector] = tuple(c for c in self if selector.may_match(c.known))
        return found


class _OfPools:
    """A metric of the board's pools."""

    def __init__(self, board: Board, reader: Reader) -> None:
        self._board, self._reader = board, reader
        self._namespaces = {s.target.namespace for s in board.pools.values() if s.target is not None}
        self._found: dict[str, Fixed] = {}

    def __call__(self, namespace: str) -> Fixed:
        # What is asked in any other namespace is not kept for each of them.
        key = namespace if namespace in self._namespaces else ""
        if key not in self._found:
            self._found[key] = Fixed(
                Candidate(name=name, labels=labels_of(settings), read=partial(self._read, settings))
                for name, settings in self._board.pools.items()
                if settings.target is None or settings.target.namespace == key
            )
        return self._found[key]

    def _read(self, settings: PoolSettings) -> Iterable[Item]:
        return self._reader(settings, self._board.fresh(settings.name))


def pick(metric: str, candidates: Iterable[Candidate], selector: Selector) -> Item:
    """The one item of `metric` that `selector` means.  Raises Stale, Unmeasured, NoSuchItem or Ambiguous."""
    there = candidates if isinstance(candidates, Fixed) else Fixed(candidates)
    meant = there.meant(selector)
    if not meant:
        names = ", ".join(sorted(c.name for c in there)) or "none"
        raise NoSuchItem(f"{metric}: the selector names nothing in this namespace, which has {names}")
    found: list[Item] = []
    others: list[Item] = []
    for candidate in meant:
        for item in candidate.read():
            (found if selector.matches(dict(item.labels)) else others).append(item)
            if len(found) > 1:
                raise Ambiguous(f"{metric}: the selector must name one item, and it names {_spell(found)}")
    if found:
        return found[0]
    there_is = f"one of them has {_spell(others[:1])}" if others else "there is none"
    raise NoSuchItem(f"{metric}: the selector names no item; {there_is}")


def _spell(items: Iterable[Item]) -> str:
    return " and ".join(",".join(f"{k}={v}" for k, v in item.labels) for item in items)


def quantity(milli: int) -> str:
    """``3`` or ``1500m``: whole where it can be, never an exponent."""
    return str(milli // 1000) if milli % 1000 == 0 else f"{milli}m"


def milli_of(value: float) -> int | None:
    """Thousandths; None for what must not leave this process: NaN, infinity, a negative, or more than fits."""
    return round(value * 1000.0) if 0.0 <= value * 1000.0 < MOST_MILLI else None


def value_form(wanted: int, ready: int) -> int:
    """What to publish, in thousandths, so that an HPA with `Value: "1"` lands on `wanted` replicas.

    It takes ceil(value * ready pods).  floor((1000 d - 1) / r) thousandths gives d for all d, r <= 300, where rounding, or
    floor(1000 d / r), fails for many pairs (d = 7, r = 25: 280m times 25 is 7.000000000000001).  With no pod ready 1000
    holds what there is.  Best effort: a pod that turns ready between our look and the HPA's overshoots.
    """
    if wanted <= 0:
        return 0
    return 1000 if ready <= 0 else (1000 * wanted - 1) // ready


def metrics_of(board: Board) -> dict[str, Metric]:
    """All metrics of the board's pools, by name."""
    found: dict[str, Metric] = {
        "desired_replicas": _OfPools(board, _desired),
        "desired_ratio": _OfPools(board, _ratio),
    }
    for name, signal in SIGNALS.items():
        found[name] = _OfPools(board, partial(_signal, name, signal))
    gauges = {series.name.removeprefix(PREFIX): series for series in SERIES}
    for name in GAUGES:
        found[name] = _OfPools(board, partial(_series, name, gauges[name]))
    return found


def labels_of(settings: PoolSettings) -> Labels:
    """The labels of every item of a pool."""
    return (("pool", settings.name),)


def _desired(settings: PoolSettings, step: Step) -> Iterable[Item]:
    yield _item(settings, step, 1000 * step.decision.replicas)


def _ratio(settings: PoolSettings, step: Step) -> Iterable[Item]:
    yield _item(settings, step, value_form(step.decision.replicas, step.observation.replicas.ready))


def _signal(name: str, signal: Signal, settings: PoolSettings, step: Step) -> Iterable[Item]:
    value = window_mean((step.observation,), signal.read, signal.kind, step.observation.window_seconds)
    milli = None if value is None else milli_of(value)
    if milli is None:
        raise _unmeasured(name, settings)
    yield _item(settings, step, milli)


def _series(name: str, series: Series, settings: PoolSettings, step: Step) -> Iterable[Item]:
    found = []
    for labels, value in series.read(View(settings=settings, step=step)):
        milli = milli_of(value)
        if milli is not None:
            found.append(_item(settings, step, milli, labels))
    if not found:
        raise _unmeasured(name, settings)
    return found


def _unmeasured(name: str, settings: PoolSettings) -> Unmeasured:
    return Unmeasured(f"pool {settings.name}: {name} is not known in the last step")


def _item(settings: PoolSettings, step: Step, milli: int, labels: Labels = ()) -> Item:
    return Item(
        labels=(*labels_of(settings), *labels),
        milli=milli,
        at_seconds=step.decision.at_seconds,
        window_seconds=step.observation.window_seconds,
    )
