"""What the series of our own /metrics read of a pool: its last Step, its settings, and sums over the Steps that passed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from autoscaler.loop import Counts
from autoscaler.settings import PoolSettings
from autoscaler.types import Histogram, Step

Labels = tuple[tuple[str, str], ...]
Sample = tuple[Labels, float]
Read = Callable[["View"], Iterable[Sample]]

STAGES = ("ready", "starting", "draining", "sleeping", "unhealthy")
BURN_WINDOWS = (300, 3600, 21600)  # as the usual multi-window burn-rate alerts take them: 5 min, 1 h, 6 h
LATENCY_LEVELS = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a series may read of one pool: `step` is None while there is none or it is stale.

    `violated`: bounds of the share of served requests that violated the SLO, per window of `BURN_WINDOWS`.
    """

    settings: PoolSettings
    step: Step | None = None
    last_at_seconds: int | None = None
    age_seconds: float | None = None
    counts: Counts | None = None
    refits: int | None = None
    sums: Mapping[tuple[str, Labels], float] = field(default_factory=dict)
    violated: tuple[tuple[float, float] | None, ...] = ()


def one(value: float | None, **labels: str) -> list[Sample]:
    return [] if value is None else [(tuple(labels.items()), float(value))]


def attribute(value: object, path: str) -> float | None:
    """The number at the end of a path of attributes; None where one of them is None."""
    for name in path.split("."):
        value = getattr(value, name)
        if value is None:
            return None
    assert isinstance(value, int | float)
    return float(value)


def of_step(path: str) -> Read:
    return lambda v: one(None if v.step is None else attribute(v.step, path))


def rate_of(path: str) -> Read:
    """A count of the Observation over its window, per second."""

    def read(view: View) -> list[Sample]:
        count = None if view.step is None else attribute(view.step, path)
        seconds = 1 if view.step is None else view.step.observation.window_seconds
        return one(None if count is None else count / seconds)

    return read


def total_of(name: str) -> Read:
    return lambda v: [(labels, value) for (of, labels), value in v.sums.items() if of == name]


def counted(name: str) -> Read:
    return lambda v: one(None if v.counts is None else getattr(v.counts, name))


def of_settings(path: str) -> Read:
    return lambda v: one(attribute(v.settings, path))


def replicas(view: View) -> list[Sample]:
    if view.step is None:
        return []
    seen = view.step.observation.replicas
    return [s for stage in STAGES for s in one(getattr(seen, stage), stage=stage)]


def latency(name: str) -> Read:
    """Quantiles of a histogram of the window; where there is none, those that the source gave."""

    def read(view: View) -> list[Sample]:
        latency = None if view.step is None else view.step.observation.latency
        if latency is None:
            return []
        histogram: Histogram | None = getattr(latency, name)
        if histogram is not None:
            return [s for q in LATENCY_LEVELS for s in one(histogram.quantile(q), level=f"{q:g}")]
        given = {q: getattr(latency, f"{name}_p{int(100 * q)}_seconds", None) for q in LATENCY_LEVELS}
        return [s for q, value in given.items() for s in one(value, level=f"{q:g}")]

    return read


def forecast(view: View) -> list[Sample]:
    forecast = None if view.step is None else view.step.forecast
    if forecast is None:
        return []
    return [
        ((("window", str(i)), ("level", f"{level:g}")), value)
        for i, row in enumerate(forecast.values)
        for level, value in zip(forecast.levels, row, strict=True)
    ]


def forecast_window(end: int) -> Read:
    def read(view: View) -> list[Sample]:
        forecast = None if view.step is None else view.step.forecast
        windows = () if forecast is None else forecast.windows
        return [((("window", str(i)),), float(w[end])) for i, w in enumerate(windows)]

    return read


def feasible(view: View) -> list[Sample]:
    if view.step is None or view.step.capacity is None:
        return []
    return one(view.step.capacity.feasible(view.step.observation.replicas.ready))


def utilization(view: View) -> list[Sample]:
    step = view.step
    if step is None or step.capacity is None or step.work is None or step.observation.replicas.ready <= 0:
        return []
    ready = step.observation.replicas.ready
    carried = ready * step.capacity.feasible(ready)
    return one(step.work / carried if carried > 0.0 else None)


def startup(view: View) -> list[Sample]:
    capacity = None if view.step is None else view.step.capacity
    pairs = () if capacity is None else capacity.startup_seconds
    return [((("level", f"{q:g}"),), seconds) for q, seconds in pairs]


def next_ready(view: View) -> list[Sample]:
    if view.step is None:
        return []
    seen = view.step.observation
    ahead = [at - seen.at_seconds for at in seen.replicas.starting_ready_at_seconds if at >= seen.at_seconds]
    return one(min(ahead, default=None))


def name_of(path: str, label: str) -> Read:
    """1 under the text that a field holds; nothing where it is empty."""

    def read(view: View) -> list[Sample]:
        value: object = view.step
        for name in path.split("."):
            value = None if value is None else getattr(value, name)
        return one(1.0, **{label: str(value)}) if value else []

    return read


def reasons(view: View) -> list[Sample]:
    reasons = () if view.step is None else view.step.decision.reasons
    return [((("rule", rule),), float(after)) for rule, after in {r.rule: r.after for r in reasons}.items()]


def proposals(view: View) -> list[Sample]:
    proposals = () if view.step is None else view.step.proposals
    return [((("rule", rule),), float(after)) for rule, after in {r.rule: r.after for r in proposals}.items()]


def decided_by(view: View) -> list[Sample]:
    reasons = () if view.step is None else view.step.decision.reasons
    return one(1.0, rule=reasons[-1].rule) if reasons else []


def recommended(view: View) -> list[Sample]:
    """What would have been asked for: of an observing pool too."""
    if view.step is None:
        return []
    for reason in view.step.decision.reasons:
        if reason.rule == "observer":
            would = dict(reason.inputs).get("would_be")
            return one(would if isinstance(would, int | float) else None)
    return one(view.step.decision.replicas)


def bound_of(name: str) -> Read:
    """The bound in force: that of the decision where it had one (a schedule's), else the setting."""

    def read(view: View) -> list[Sample]:
        for reason in () if view.step is None else view.step.decision.reasons:
            value = dict(reason.inputs).get(name)
            if reason.rule == "bounds" and isinstance(value, int | float):
                return one(value)
        return one(getattr(view.settings.limits, name))

    return read


def missing(view: View) -> list[Sample]:
    if view.step is None:
        return []
    seen = view.step.observation
    return [s for g in ("demand", "load", "latency") for s in one(getattr(seen, g) is None, signal=g)]


def unknown_seconds(view: View) -> list[Sample]:
    if view.step is None:
        return []
    since = view.step.state.unknown_since_seconds
    return one(0 if since is None else view.step.observation.at_seconds - since)


def attained(view: View) -> list[Sample]:
    """Worst case first: the bucket that holds the limit leaves a lower and an upper bound."""
    out: list[Sample] = []
    for seconds, bounds in zip(BURN_WINDOWS, view.violated, strict=False):
        if bounds is not None and view.step is not None:
            out += one(1.0 - bounds[1], window_seconds=str(seconds), bound="lower")
            out += one(1.0 - bounds[0], window_seconds=str(seconds), bound="upper")
    return out


def burn(view: View) -> list[Sample]:
    allowed = 1.0 - view.settings.slo.attainment_fraction
    out: list[Sample] = []
    for seconds, bounds in zip(BURN_WINDOWS, view.violated, strict=False):
        if bounds is not None and view.step is not None:
            out += one(bounds[0] / allowed, window_seconds=str(seconds), bound="lower")
            out += one(bounds[1] / allowed, window_seconds=str(seconds), bound="upper")
    return out


def groups(view: View) -> list[Sample]:
    groups = () if view.step is None else view.step.observation.groups
    return [s for g in groups for s in one(g.replicas.ready, group=g.name)]


def tiers(view: View) -> list[Sample]:
    tiers = () if view.step is None else view.step.observation.replicas.tiers
    return [s for t in tiers for s in one(t.replicas, tier=t.name)]


def decided_tiers(view: View) -> list[Sample]:
    """What each tier of the settings should hold: 0 where the decision says nothing of it."""
    if view.step is None:
        return []
    wanted = {t.name: t.replicas for t in view.step.decision.tiers}
    return [s for t in view.settings.preload.tiers for s in one(wanted.get(t.name, 0), tier=t.name)]
