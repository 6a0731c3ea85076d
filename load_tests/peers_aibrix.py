"""AIBrix's APA and KPA under test, each on the mean of a gauge over the pods that answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoscaler.laws import aibrix
from autoscaler.schema import setting
from autoscaler.types import Reason
from load_tests.peers_view import Common, Gauge, PeerFacts, Recommendation, Traps, View, plain, told

AibrixSignal = Literal["kv_cache_fraction", "running_requests", "waiting_requests"]
_GAUGES: dict[str, Gauge] = {
    "kv_cache_fraction": "kv_tokens",
    "running_requests": "running",
    "waiting_requests": "waiting",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AibrixSettings(Common):
    """AIBrix's pod autoscaler."""

    kind: Literal["aibrix"] = "aibrix"
    algorithm: Literal["apa", "kpa"] = setting("apa", "apa: one window; kpa: a stable and a panic window.")
    headroom: float = setting(1.0, "Divides the target.", above=0)
    traps: Traps = setting(
        "shipped",
        "shipped: KPA takes the mean per pod for the total, the cooldown lets one dip through, starting pods do not count;"
        " removed: it multiplies by the pods, waits for the whole window to agree, and counts starting pods as idle.",
    )
    signal: AibrixSignal = setting("kv_cache_fraction", "Share of KV in use, or requests running or waiting, per pod.")
    target: float = setting(0.5, "Target per pod; 0.5 is that of the shipped samples for the share of KV.", above=0)
    interval_seconds: int = setting(10, "Seconds from one loop to the next.", low=1, high=3600)
    spec: aibrix.AibrixSpec = setting(factory=aibrix.AibrixSpec, doc="Tolerances, rates, windows and cooldowns.")


class Aibrix:
    """The controller's loop.  When no pod answers nothing happens; nor does anything at 0 pods."""

    uses_rates = False

    def __init__(self, settings: AibrixSettings, facts: PeerFacts | None) -> None:
        self.settings, self.interval_seconds, self._facts = settings, settings.interval_seconds, facts
        self.name = settings.name or f"aibrix {settings.algorithm}"
        self._target = settings.target / settings.headroom
        self._state = aibrix.AibrixState()

    def decide(self, view: View) -> Recommendation:
        s, current, rule = self.settings, view.desired, f"aibrix:{self.settings.algorithm}"
        if current == 0 or current != s.bounded(current):
            after = 0 if current == 0 else s.bounded(current)
            return Recommendation(after, (Reason(rule="aibrix:bounds", before=current, after=after),))
        value = self._per_pod(view)
        if value is None:
            return Recommendation(current, (Reason(rule="aibrix:unknown", before=current, after=current),))
        self._state = aibrix.record(s.spec, self._state, at_seconds=view.at_seconds, per_pod=value)
        stable, panic = aibrix.means(self._state) or (0.0, 0.0)
        if s.algorithm == "apa":
            raw = aibrix.apa(s.spec, per_pod=stable, target=self._target, current=current)
        else:
            raw = aibrix.kpa(s.spec, stable=stable, panic=panic, target=self._target, current=current)
        raw = s.bounded(raw)
        after, self._state = aibrix.stabilize(
            s.spec,
            self._state,
            at_seconds=view.at_seconds,
            recommendation=raw,
            current=current,
            inverted=s.traps == "shipped",
        )
        after = s.bounded(after)
        inputs = (("value", stable), ("target", self._target), ("ready", view.ready))
        reasons = [Reason(rule=rule, before=current, after=raw, inputs=inputs)]
        if after != raw:
            reasons.append(Reason(rule="aibrix:cooldown", before=raw, after=after))
        return Recommendation(after, tuple(reasons))

    def _per_pod(self, view: View) -> float | None:
        """The value that is recorded: the mean of the pods that answer, and without the traps what it was meant to be."""
        column = view.per_replica(_GAUGES[self.settings.signal])
        if column is None or len(column) == 0:
            return None
        values = plain(column)
        if self.settings.signal == "kv_cache_fraction":
            capacity = told(self._facts, self.name).replica.kv_capacity_tokens
            values = [tokens / capacity for tokens in values]
        total = sum(values)
        if self.settings.traps == "shipped":
            return total / len(values)
        return total if self.settings.algorithm == "kpa" else total / (len(values) + view.starting)
