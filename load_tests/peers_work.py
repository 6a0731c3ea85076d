"""Yardsticks that size by work: the static peak, HPA on work, an AHPA-like law, lazy capacity provisioning.

Work is what arrives, in replicas: requests, prompt tokens and the mean output length of finished requests, weighed by what a
replica of the plant carries within the SLO (`PeerFacts`).  No shipped autoscaler is told that much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from autoscaler.laws import ahpa, hpa, lcp, static
from autoscaler.schema import setting
from autoscaler.types import Reason
from load_tests.histories import History
from load_tests.peers_view import Common, PeerFacts, Recommendation, View, told

_LENGTHS_SECONDS = 600.0
_DAY_MINUTES = 1440


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticPeakSettings(Common):
    """A fixed fleet for the largest minute of the days before the run."""

    kind: Literal["static_peak"] = "static_peak"
    headroom: float = setting(1.0, "Divides the use that is aimed at.", above=0)
    use: float = setting(0.8, "Use of a replica at that peak.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HpaWorkSettings(Common):
    """HPA's window on work: up at once, down to the largest of 300 s, without tolerance and rates."""

    kind: Literal["hpa_work"] = "hpa_work"
    headroom: float = setting(1.0, "Divides the use that is aimed at.", above=0)
    use: float = setting(0.7, "Use of a replica that is aimed at; 0.7 is what users set.", above=0)
    window_seconds: int = setting(60, "Seconds over which work is averaged.", low=1, high=3600)
    down_window_seconds: int = setting(300, "Seconds that proposals must agree on the way down.", low=0, high=3600)
    interval_seconds: int = setting(15, "Seconds from one sync to the next.", low=1, high=3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class AhpaSettings(Common):
    """The larger of what past days needed at this time and of what is needed now, every minute."""

    kind: Literal["ahpa"] = "ahpa"
    headroom: float = setting(1.0, "Divides both uses that are aimed at.", above=0)
    ahead_seconds: float = setting(60.0, "Seconds beyond a start-up that past days are looked at.", low=0, high=86_400)
    spec: ahpa.AhpaSpec = setting(factory=ahpa.AhpaSpec, doc="Uses, days and windows.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LcpSettings(Common):
    """Lazy capacity provisioning on bins of 10 s, without a forecast."""

    kind: Literal["lcp"] = "lcp"
    headroom: float = setting(1.0, "Multiplies the price of a violated request.", above=0)
    violation_cost: float = setting(
        10.0, "Price of a violated request, in multiples of what a request takes of a replica.", above=0
    )
    interval_seconds: int = setting(10, "Length of a bin in seconds.", low=1, high=3600)


def work(view: View, facts: PeerFacts, window_seconds: float) -> float | None:
    """Replicas that what arrived over the window needs; None if that is not known."""
    requests = view.rate("arrivals", window_seconds)
    prompts = view.rate("arrived_prompt_tokens", window_seconds)
    if requests is None or prompts is None:
        return None
    if requests <= 0:
        return 0.0
    outputs = view.histogram("output_lengths", _LENGTHS_SECONDS)
    mean_output = outputs.mean if outputs is not None else None
    return facts.replicas(
        requests, prompts / requests, facts.mean_output_tokens if mean_output is None else mean_output
    )


def work_of(history: History, facts: PeerFacts) -> list[float | None]:
    """Replicas that each interval of the past needed; None where it is not known."""
    out: list[float | None] = []
    columns = (history.requests.tolist(), history.prompt_tokens.tolist(), history.output_tokens.tolist())
    for requests, prompts, outputs in zip(*columns, strict=True):
        if math.isnan(requests):
            out.append(None)
            continue
        known = requests > 0
        prompt = facts.mean_prompt_tokens if math.isnan(prompts) or not known else prompts / requests
        output = facts.mean_output_tokens if math.isnan(outputs) or not known else outputs / requests
        out.append(facts.replicas(requests / history.interval_seconds, prompt, output))
    return out


def _hold(rule: str, view: View) -> Recommendation:
    return Recommendation(view.desired, (Reason(rule=f"{rule}:unknown", before=view.desired, after=view.desired),))


class StaticPeak:
    """One number, from the history.  Without one nothing changes."""

    interval_seconds = 60
    uses_rates = False

    def __init__(self, settings: StaticPeakSettings, facts: PeerFacts | None) -> None:
        self.settings, self._facts, self.name = settings, facts, settings.name or "static peak"
        self._number: int | None = None

    def decide(self, view: View) -> Recommendation:
        if self._number is None:
            facts = told(self._facts, self.name)
            if facts.history is not None:
                use = self.settings.use / self.settings.headroom
                self._number = static.peak(work_of(facts.history, facts), use=use)
        if self._number is None:
            return _hold("static_peak", view)
        after = self.settings.bounded(self._number)
        return Recommendation(after, (Reason(rule="static_peak", before=view.desired, after=after),))


class HpaWork:
    """The controller's sync on work, as an External metric."""

    uses_rates = True

    def __init__(self, settings: HpaWorkSettings, facts: PeerFacts | None) -> None:
        self.settings, self.interval_seconds, self._facts = settings, settings.interval_seconds, facts
        self.name = settings.name or "hpa work"
        self._use = settings.use / settings.headroom
        any_number = (hpa.ScalingPolicy(type="Pods", value=1_000_000),)
        self._spec = hpa.HpaSpec(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            scale_up=hpa.ScalingRules(policies=any_number, tolerance=0.0),
            scale_down=hpa.ScalingRules(
                policies=any_number, tolerance=0.0, stabilization_window_seconds=settings.down_window_seconds
            ),
        )
        self._state: hpa.HpaState | None = None

    def decide(self, view: View) -> Recommendation:
        amount = work(view, told(self._facts, self.name), self.settings.window_seconds)
        pods = view.ready + view.starting
        proposal = hpa.external_average(self._spec, total=amount, target=self._use, replicas=pods)
        state = self._state or hpa.start(at_seconds=view.at_seconds, current=view.desired)
        after, self._state = hpa.sync(
            self._spec, state, at_seconds=view.at_seconds, current=view.desired, proposals=(proposal,)
        )
        if amount is None or proposal is None:
            return Recommendation(after, (Reason(rule="hpa_work:unknown", before=view.desired, after=after),))
        inputs = (("value", amount), ("target", self._use))
        reason = Reason(rule="hpa_work", before=view.desired, after=proposal, inputs=inputs)
        if after == proposal:
            return Recommendation(after, (reason,))
        return Recommendation(after, (reason, Reason(rule="hpa:behavior", before=proposal, after=after)))


class Ahpa:
    """Work per minute, of the past and of the run so far."""

    interval_seconds = 60
    uses_rates = True

    def __init__(self, settings: AhpaSettings, facts: PeerFacts | None) -> None:
        self.settings, self._facts, self.name = settings, facts, settings.name or "ahpa-like"
        self._minutes: list[float | None] | None = None
        self._offset = 0  # where minute 0 of the run is

    def decide(self, view: View) -> Recommendation:
        s, facts = self.settings, told(self._facts, self.name)
        minutes, spec = self._remembered(facts), s.spec
        last = math.floor(view.at_seconds / 60) - 1
        amount = work(view, facts, 60.0)
        if amount is not None:
            minutes.extend([None] * (self._offset + last + 1 - len(minutes)))
            minutes[self._offset + last] = amount
        ahead = math.ceil((facts.startup_seconds + s.ahead_seconds) / 60)
        past = ahpa.proactive(spec, [self._day(minutes, last + 1, k, ahead) for k in range(1, spec.days + 1)])
        now = ahpa.reactive(spec, minutes[max(0, self._offset) :])
        scaled = (
            None if past is None else past * s.headroom,
            None if now is None or amount is None else now * s.headroom,
        )
        wanted = ahpa.wanted(spec, proactive=scaled[0], reactive=scaled[1])
        if wanted is None or amount is None:
            # Past days may add to what is there, but without a present nothing goes.
            wanted = max(view.desired, wanted or 0)
        after = s.bounded(wanted)
        inputs = tuple((k, v) for k, v in (("proactive", past), ("reactive", now)) if v is not None)
        return Recommendation(after, (Reason(rule="ahpa", before=view.desired, after=after, inputs=inputs),))

    def _day(self, minutes: list[float | None], minute: int, days_ago: int, ahead: int) -> list[float | None]:
        """The window that many days ago, wide enough for means around its minutes."""
        half = self.settings.spec.smooth_minutes // 2
        at = self._offset + minute - days_ago * _DAY_MINUTES
        return minutes[max(0, at - half) : max(0, at + ahead + 1 + half)]

    def _remembered(self, facts: PeerFacts) -> list[float | None]:
        if self._minutes is None:
            self._minutes = []
            if facts.history is not None:
                per = max(1, round(facts.history.interval_seconds / 60))
                self._minutes = [value for value in work_of(facts.history, facts) for _ in range(per)]
            self._offset = len(self._minutes)
        return self._minutes


class Lcp:
    """One bin per tick.  A bin that is not known is left out."""

    uses_rates = True

    def __init__(self, settings: LcpSettings, facts: PeerFacts | None) -> None:
        self.settings, self.interval_seconds, self._facts = settings, settings.interval_seconds, facts
        self.name = settings.name or "lcp"
        self._state: lcp.LcpState | None = None

    def decide(self, view: View) -> Recommendation:
        s, facts = self.settings, told(self._facts, self.name)
        amount, requests = work(view, facts, s.interval_seconds), view.rate("arrivals", s.interval_seconds)
        if amount is None or requests is None or facts.requests_per_second <= 0:
            return _hold("lcp", view)
        state = self._state or lcp.start(replicas=view.desired, start_cost=facts.startup_seconds)
        price = s.violation_cost * s.headroom / facts.requests_per_second
        number, self._state = lcp.step(
            state,
            need=amount,
            bin_cost=float(s.interval_seconds),
            start_cost=facts.startup_seconds,
            violation_cost=price * requests * s.interval_seconds,
            most=s.max_replicas,
        )
        after = s.bounded(number)
        inputs = (("value", amount), ("price", price))
        return Recommendation(after, (Reason(rule="lcp", before=view.desired, after=after, inputs=inputs),))
