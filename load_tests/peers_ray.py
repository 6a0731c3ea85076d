"""Ray Serve's autoscaler under test, on ongoing requests: at the replicas, and held at the door as its handles hold them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from autoscaler.laws import ray_serve
from autoscaler.schema import setting
from autoscaler.types import Reason
from load_tests.peers_view import Common, PeerFacts, Recommendation, Traps, View, plain

# A handle that has not reported for two intervals of 10 s is dropped.
_STALE_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayServeSettings(Common):
    """Ray Serve's default autoscaling policy."""

    kind: Literal["ray_serve"] = "ray_serve"
    headroom: float = setting(1.0, "Divides the target of ongoing requests.", above=0)
    traps: Traps = setting(
        "shipped",
        "shipped: handles that do not report are dropped and read as 0; removed: nothing happens without them.",
    )
    interval_seconds: int = setting(10, "Seconds from one report of the handles to the next.", low=1, high=3600)
    spec: ray_serve.RaySpec = setting(factory=ray_serve.RaySpec, doc="Target, factors, delays and look-back.")


class RayServe:
    """The controller's loop at the pace of its handles' reports."""

    uses_rates = False

    def __init__(self, settings: RayServeSettings, facts: PeerFacts | None) -> None:
        self.settings, self.interval_seconds = settings, settings.interval_seconds
        self.name = settings.name or "ray serve"
        spec = settings.spec
        self._spec = replace(spec, target_ongoing_requests=spec.target_ongoing_requests / settings.headroom)
        self._state = ray_serve.RayState()
        self._samples: list[tuple[float, float]] = []

    def decide(self, view: View) -> Recommendation:
        at, current = view.at_seconds, view.desired
        outstanding, held = view.per_replica("outstanding"), view.held_requests
        if outstanding is not None and held is not None:
            self._samples.append((at, float(sum(plain(outstanding)) + held)))
        elif self.settings.traps == "removed":
            return Recommendation(current, (Reason(rule="ray_serve:unknown", before=current, after=current),))
        ongoing = self._ongoing(at)
        wanted, self._state = ray_serve.decide(
            self._spec, self._state, at_seconds=at, ongoing=ongoing, running=view.ready, target=current
        )
        after = self.settings.bounded(wanted)
        inputs = (("value", ongoing), ("target", self._spec.target_ongoing_requests), ("ready", view.ready))
        return Recommendation(after, (Reason(rule="ray_serve", before=current, after=after, inputs=inputs),))

    def _ongoing(self, at: float) -> float:
        """Mean over the look-back; 0 once the reports are stale."""
        look_back = max(self._spec.look_back_seconds, self.interval_seconds)
        self._samples = [s for s in self._samples if at - s[0] < look_back]
        if not self._samples or at - self._samples[-1][0] >= _STALE_SECONDS:
            return 0.0
        return math.fsum(value for _, value in self._samples) / len(self._samples)
