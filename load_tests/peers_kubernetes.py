"""A fixed fleet, Kubernetes' HPA and Knative's KPA under test, each on its native signals."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from autoscaler.errors import ConfigError
from autoscaler.laws import hpa, kpa
from autoscaler.schema import setting
from autoscaler.types import Reason
from load_tests.peers_view import Gauge, Recommendation, View, plain

HpaSignal = Literal[
    "running_and_waiting_requests",
    "waiting_requests",
    "tokens_per_second",
    "output_tokens_per_second",
    "requests_per_second",
]
_POD_GAUGES: dict[str, tuple[Gauge, ...]] = {
    "running_and_waiting_requests": ("running", "waiting"),
    "waiting_requests": ("waiting",),
}
# Engines count prompt tokens when they are prefilled; requests are counted by the gateway when they arrive.
_COUNTERS: dict[str, tuple[str, ...]] = {
    "tokens_per_second": ("prefilled_prompt_tokens", "output_tokens"),
    "output_tokens_per_second": ("output_tokens",),
    "requests_per_second": ("arrivals",),
}
_DEFAULT_TARGETS = {"running_and_waiting_requests": 20.0, "waiting_requests": 5.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSettings:
    """A fixed fleet."""

    kind: Literal["static"] = "static"
    name: str | None = setting(None, "Name in the report; None: static N.")
    replicas: int = setting(doc="Number of replicas, at all times.", low=0, high=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class HpaSettings:
    """Kubernetes' HPA v2 on one signal, with the API's default behaviour."""

    kind: Literal["hpa"] = "hpa"
    name: str | None = setting(None, "Name in the report; None: hpa and the signal.")
    signal: HpaSignal = setting(
        "running_and_waiting_requests",
        "Requests running and waiting, or waiting, per pod (a Pods metric); or tokens or requests per second of the"
        " whole pool (an External metric).",
    )
    target: float | None = setting(
        None,
        "Target per replica (AverageValue).  No default ships with Kubernetes: None is 20 requests running and waiting"
        " (between the 10 and 40 that users set) or 5 waiting; a rate depends on the model and must be given.",
        above=0,
    )
    headroom: float = setting(1.0, "Divides the target.", above=0)
    window_seconds: int = setting(60, "Seconds over which a rate is taken.", low=1, high=3600)
    interval_seconds: int = setting(15, "Seconds from one sync to the next.", low=1, high=3600)
    spec: hpa.HpaSpec = setting(
        factory=hpa.HpaSpec, doc="Bounds and behaviour; the scenario's limits narrow the bounds."
    )

    def __post_init__(self) -> None:
        if self.target is None and self.signal not in _DEFAULT_TARGETS:
            raise ConfigError(
                "target", f"None must be a number > 0 for the signal {self.signal}: it depends on the model"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class KpaSettings:
    """Knative's KPA on concurrency, with its shipped defaults."""

    kind: Literal["kpa"] = "kpa"
    name: str | None = setting(None, "Name in the report; None: kpa.")
    headroom: float = setting(1.0, "Divides the container's concurrency target.", above=0)
    interval_seconds: int = setting(2, "Seconds from one tick to the next.", low=1, high=60)
    spec: kpa.KpaSpec = setting(factory=kpa.KpaSpec, doc="Knobs and bounds; the scenario's limits narrow the bounds.")


class Static:
    """So many replicas, always."""

    interval_seconds = 60
    uses_rates = False

    def __init__(self, settings: StaticSettings) -> None:
        self.settings = settings
        self.name = settings.name or f"static {settings.replicas}"

    def decide(self, view: View) -> Recommendation:
        wanted = self.settings.replicas
        return Recommendation(wanted, (Reason(rule="static", before=view.desired, after=wanted),))


class Hpa:
    """The controller's sync on one signal.  A failed scrape is a failed metric: nothing happens."""

    def __init__(self, settings: HpaSettings) -> None:
        self.settings, self.interval_seconds = settings, settings.interval_seconds
        self.uses_rates = settings.signal in _COUNTERS
        self.name = settings.name or f"hpa {settings.signal}"
        target = settings.target if settings.target is not None else _DEFAULT_TARGETS[settings.signal]
        self.target = target / settings.headroom
        self._state: hpa.HpaState | None = None
        self._rule = f"hpa:{settings.signal}"

    def decide(self, view: View) -> Recommendation:
        current = view.desired
        value, proposal = self._proposal(view, current)
        state = self._state or hpa.start(at_seconds=view.at_seconds, current=current)
        replicas, self._state = hpa.sync(
            self.settings.spec, state, at_seconds=view.at_seconds, current=current, proposals=(proposal,)
        )
        if proposal is None or value is None:
            return Recommendation(replicas, (Reason(rule="hpa:unknown", before=current, after=replicas),))
        inputs: tuple[tuple[str, float | str], ...] = (("value", value), ("target", self.target), ("ready", view.ready))
        reason = Reason(rule=self._rule, before=current, after=proposal, inputs=inputs)
        if replicas == proposal:
            return Recommendation(replicas, (reason,))
        return Recommendation(replicas, (reason, Reason(rule="hpa:behavior", before=proposal, after=replicas)))

    def _proposal(self, view: View, current: int) -> tuple[float | None, int | None]:
        """(value, proposal): the mean per pod that has a reading, or the pool's rate."""
        s, spec = self.settings, self.settings.spec
        gauges = _POD_GAUGES.get(s.signal)
        if gauges is None:
            rates = [view.rate(counter, s.window_seconds) for counter in _COUNTERS[s.signal]]
            total = None if any(r is None for r in rates) else math.fsum(r for r in rates if r is not None)
            pods = view.ready + view.starting
            return total, hpa.external_average(spec, total=total, target=self.target, replicas=pods)
        columns = [view.per_replica(gauge) for gauge in gauges]
        if any(column is None or len(column) == 0 for column in columns):
            return None, None
        values = plain(columns[0]) if len(columns) == 1 else [a + b for a, b in zip(*map(plain, columns), strict=True)]
        missing = view.starting + max(0, view.ready - len(values))
        proposal = hpa.pods(spec, values=values, target=self.target, current=current, missing=missing)
        return sum(values) / len(values), proposal


class Kpa:
    """The autoscaler's tick on mean concurrency: requests running, queued and held at the door.

    The original averages one sample a second; a tick's reading stands for the seconds since the last one.  Where nothing
    is ready and nothing is held, nobody reports: no data, which is not zero.  The mean of the pods that answer counts for
    all that are ready; where none does, there is no data.
    """

    uses_rates = False

    def __init__(self, settings: KpaSettings) -> None:
        self.settings, self.interval_seconds = settings, settings.interval_seconds
        self.name = settings.name or "kpa"
        target = settings.spec.container_concurrency_target / settings.headroom
        self._spec = replace(settings.spec, container_concurrency_target=target)
        self._state: kpa.KpaState | None = None
        self._last_second: int | None = None

    def decide(self, view: View) -> Recommendation:
        spec, at = self._spec, view.at_seconds
        state = self._state or kpa.start(at_seconds=at, ready=view.ready)
        concurrency = self._concurrency(view)
        second = math.floor(at)
        if concurrency is not None:
            first = (
                second if self._last_second is None else max(self._last_second + 1, second - self.interval_seconds + 1)
            )
            for one in range(first, second + 1):
                state = kpa.record(spec, state, second=one, concurrency=concurrency)
        self._last_second = second
        replicas, self._state = kpa.scale(spec, state, at_seconds=at, ready=view.ready, current=view.desired)
        mode = "stable" if self._state.panic_since_seconds is None else "panic"
        inputs: list[tuple[str, float | str]] = [("target", spec.target), ("ready", view.ready), ("mode", mode)]
        if concurrency is not None:
            inputs.append(("value", concurrency))
        return Recommendation(
            replicas, (Reason(rule="kpa", before=view.desired, after=replicas, inputs=tuple(inputs)),)
        )

    @staticmethod
    def _concurrency(view: View) -> float | None:
        running, waiting, held = view.per_replica("running"), view.per_replica("waiting"), view.held_requests
        if running is None or waiting is None or held is None or (view.ready == 0 and held == 0):
            return None
        if len(running) < view.ready:
            if not len(running):
                return None
            return (sum(plain(running)) + sum(plain(waiting))) * view.ready / len(running) + held
        return float(sum(plain(running)) + sum(plain(waiting)) + held)
