"""The policies: each turns Facts into one number of replicas, or has no opinion.

The largest recommendation wins; limits follow.  All are pure and need no state but the window of Observations in Facts.
A policy made by hand is a settings object of `autoscaler.settings`; `Work`, `InFlight` and `Ahead` are what the
strategies are made of (docs: how it decides).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoscaler import cron
from autoscaler.facts import Facts
from autoscaler.ports import Policy
from autoscaler.settings import (
    BacklogSettings,
    CronSettings,
    PolicySettings,
    PredictiveSettings,
    SaturationSettings,
    TargetTrackingSettings,
    WorkSettings,
)
from autoscaler.signals import SIGNALS
from autoscaler.trust import trusted
from autoscaler.types import Reason
from autoscaler.units import replicas_for

# So much of a window may be unknown just after a gap, to raise on the rest.
AFTER_GAP_FRACTION = 0.5
LONGEST_DRAIN_SECONDS = 300.0
LEAST_RETURN = 0.1  # of the work that one replica carries
# A crowd is seen in the newest seconds alone as far as chance cannot have made it: so many deviations of the count less.
NEWS_SECONDS, NEWS_DEVIATIONS = 15, 2.0


def _reason(rule: str, facts: Facts, after: int, **inputs: float | str | None) -> Reason:
    kept = tuple((n, v if isinstance(v, str) else float(v)) for n, v in inputs.items() if v is not None)
    return Reason(rule=rule, before=facts.current, after=after, inputs=kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetTracking:
    """Kubernetes' rule on any signal: as many replicas as bring it to its target (reference: HPA v2).

    A signal of the pool is divided by the target per replica; a signal per replica scales the ready count by its ratio
    to the target, silent replicas counting as at the target on the way down and, with the starting ones, as idle on the
    way up.  Inside the tolerance, or when the correction turns the direction, nothing changes.
    """

    settings: TargetTrackingSettings

    def recommend(self, facts: Facts) -> Reason | None:
        s = self.settings
        value = facts.signal(s.signal, s.window_seconds)
        if value is None:
            return None
        ratio: float | None
        if SIGNALS[s.signal].spread == "pool":
            ratio = value / (s.target * facts.current) if facts.current else None
            wanted = replicas_for(value / s.target)
        else:
            found = self._by_replica(facts, value / s.target)
            if found is None:
                return None
            ratio, wanted = found
        if ratio is not None and 1 - s.tolerance_fraction <= ratio <= 1 + s.tolerance_fraction:
            wanted = facts.current
        return _reason(f"target:{s.signal}", facts, wanted, value=value, target=s.target, ratio=ratio)

    @staticmethod
    def _by_replica(facts: Facts, ratio: float) -> tuple[float, int] | None:
        """(corrected ratio, replicas): starting replicas count as idle on the way up, as silent ones do."""
        replicas, load = facts.observation.replicas, facts.observation.load
        ready, answered = replicas.ready, None if load is None else load.replicas_reporting
        reporting = ready if answered is None else min(ready, answered)
        if reporting <= 0:
            return None
        if ratio > 1:
            total, counted = ratio * reporting, ready + replicas.starting
        else:
            total, counted = ratio * reporting + (ready - reporting), ready
        corrected, wanted = total / counted, replicas_for(total)
        turned = corrected < 1 or wanted < facts.current if ratio > 1 else wanted > facts.current
        return (1.0, facts.current) if turned else (corrected, wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """As many replicas as carry what arrives and drain what will be queued when a replica ordered now is ready."""

    settings: BacklogSettings

    def recommend(self, facts: Facts) -> Reason | None:
        queued, capacity = facts.backlog(), facts.capacity
        if queued is None or capacity is None:
            return None
        work = facts.work(60)
        ahead = queued if work is None else facts.projected_backlog(queued, work, capacity.startup(0.9))
        wanted = capacity.replicas((work or 0.0) + ahead / self.settings.drain_seconds)
        feasible = capacity.feasible(wanted)
        if work is None:  # the queue alone may raise, but says nothing about what may be given up
            wanted = max(wanted, facts.current)
        return _reason(
            "backlog", facts, wanted, queued_seconds=queued, queued_when_ready_seconds=ahead,
            drain_seconds=self.settings.drain_seconds, work=work, feasible_load=feasible,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """As many replicas as bring KV use and the queue per replica below their marks."""

    settings: SaturationSettings

    def recommend(self, facts: Facts) -> Reason | None:
        s, ready = self.settings, facts.observation.replicas.ready
        kv = facts.signal("kv_cache_fraction", s.window_seconds)
        waiting = facts.signal("waiting_requests", s.window_seconds)
        if not ready or (kv is None and waiting is None):
            return None
        by_kv = replicas_for(ready * kv / s.kv_cache_fraction) if kv is not None else 0
        by_queue = replicas_for(waiting / s.waiting_requests_per_replica) if waiting is not None else 0
        return _reason(
            "saturation", facts, max(by_kv, by_queue), kv_cache_fraction=kv, waiting_requests=waiting, ready=ready
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """The largest `min_replicas` of the schedule entries that are active now."""

    settings: CronSettings

    def recommend(self, facts: Facts) -> Reason | None:
        at = facts.observation.at_seconds
        floors = [e.min_replicas for e in self.settings.schedule if e.min_replicas is not None and cron.active(e, at)]
        return _reason("schedule", facts, max(floors), bound=max(floors)) if floors else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """Carry a quantile of the work forecast for the moment when a replica ordered now would be ready.

    Less than a small part of a replica's work is the chance of a single request, not a return of the load: it asks for none.
    """

    settings: PredictiveSettings = PredictiveSettings()
    trusted_only: bool = False

    def recommend(self, facts: Facts) -> Reason | None:
        forecast, capacity = facts.forecast, facts.capacity
        if forecast is None or capacity is None or self.settings.quantile not in forecast.levels:
            return None
        at, quantile = facts.observation.at_seconds, self.settings.quantile
        if self.trusted_only and not trusted(forecast, quantile, facts.state.trust, at):
            return None
        value = forecast.value(0, self.settings.quantile)
        work = value * facts.headroom
        wanted = capacity.replicas(work) if work >= LEAST_RETURN * capacity.feasible(1) else 0
        feasible = capacity.feasible(wanted)
        start, end = forecast.windows[0]
        return _reason(
            "predictive", facts, wanted, quantile=self.settings.quantile, work=value,
            feasible_load=feasible, start_seconds=start, end_seconds=end, expert=forecast.expert, headroom=facts.headroom,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Carry the work that arrives at `utilization_fraction` of what replicas can, and drain the queue meanwhile.

    replicas = (headroom * work / utilization + backlog / drain seconds) / feasible load of so many.  Work is the mean of the
    window, or what surely came in the newest seconds (`news`) if that is more.  With no replica ready the newest Observation
    alone counts if it says more: a wake does not wait for an average.  Just after a gap half a window is enough to raise on;
    nothing is given up on it.
    """

    settings: WorkSettings = WorkSettings()

    def recommend(self, facts: Facts) -> Reason | None:
        s, capacity = self.settings, facts.capacity
        work, newest, window = facts.work(s.window_seconds), facts.work(1), s.window_seconds
        after_gap = work is None
        if after_gap:
            work = facts.work(s.window_seconds, AFTER_GAP_FRACTION)
        asleep = facts.observation.replicas.ready == 0
        if asleep and newest is not None:
            work = max(work or 0.0, newest)
        surely, deviations = news(facts), None
        if surely is not None and work is not None and surely > work:
            work, window, deviations = surely, NEWS_SECONDS, NEWS_DEVIATIONS
        if work is None or capacity is None:
            return None
        queued = facts.backlog()
        drain = s.drain_seconds if asleep or queued is None else drain_seconds(queued, work, s.drain_seconds)
        wanted = capacity.replicas(facts.headroom * work / s.utilization_fraction + (queued or 0.0) / drain)
        if after_gap and not asleep:
            wanted = max(wanted, facts.current)
        feasible = capacity.feasible(wanted)
        return _reason(
            "wake" if asleep and facts.current == 0 and wanted else "reactive", facts, wanted, work=work,
            queued_seconds=queued, feasible_load=feasible, utilization_fraction=s.utilization_fraction,
            window_seconds=window, deviations=deviations, drain_seconds=drain, headroom=facts.headroom,
        )  # fmt: skip


def news(facts: Facts) -> float | None:
    """Erlangs that surely arrive now: the work of the newest seconds less what chance adds to a count; None if not known.

    n requests that come independently scatter by sqrt(n), so a pool of few requests waits for its average, and one of
    many sees a crowd within a turn.
    """
    work, rate = facts.work(NEWS_SECONDS), facts.signal("requests_per_second", NEWS_SECONDS)
    if work is None or not rate:
        return None
    count = rate * max(NEWS_SECONDS, facts.observation.window_seconds)
    return max(0.0, work * (1.0 - NEWS_DEVIATIONS / math.sqrt(count)))


def drain_seconds(queued: float, work: float, quickest: float) -> float:
    """Seconds in which a queue of so many replica-seconds shall be gone, beside `work` Erlangs that go on arriving.

    A replica that is ordered for a queue is paid for minutes.  A short queue is worth it; a long one, as after an hour
    without nodes, is late already: as many replicas again as the arrivals take are enough, unless that takes too long.
    """
    if queued <= quickest * work:
        return quickest
    longest = max(quickest, LONGEST_DRAIN_SECONDS)
    return min(longest, queued / work) if work > 0.0 else longest


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """Never fewer replicas than hold what is running now: its KV cache, and each answer's pace within the ITL limit.

    At the slowest pace that the SLO allows, B running answers take B * seconds_per_output_token / itl_seconds Erlangs, which
    survivors must carry.  That asks for no more than there are: answers end before a new replica is ready.  Nor are there
    ever none while anything runs or waits.  Just after a gap in the demand nobody else has an opinion, and a floor says
    nothing about what may be given up.
    """

    kv_cache_fraction: float = 0.9
    window_seconds: int = WorkSettings().window_seconds
    itl_seconds: float | None = None

    def recommend(self, facts: Facts) -> Reason | None:
        load, ready = facts.observation.load, facts.observation.replicas.ready
        if load is None or not ready:
            return None
        kv, held = load.kv_cache_fraction, (load.running_requests or 0.0) + (load.waiting_requests or 0.0)
        by_kv = replicas_for(ready * kv / self.kv_cache_fraction) if kv is not None else 0
        decoding = self._decoding(facts)
        by_pace = min(facts.capacity.replicas(decoding), facts.current) if facts.capacity and decoding else 0
        wanted = max(by_kv, by_pace, 1 if held > 0 else 0)
        if 0 < wanted < facts.current and "demand" in facts.state.seen and facts.work(self.window_seconds) is None:
            wanted = facts.current
        if not wanted:
            return None
        return _reason("in_flight", facts, wanted, kv_cache_fraction=kv, requests=held, decoding=decoding)

    def _decoding(self, facts: Facts) -> float | None:
        """Erlangs that the running answers take at the slowest pace allowed, silent replicas' like the others'."""
        load, capacity = facts.observation.load, facts.capacity
        if load is None or capacity is None or load.running_requests is None or self.itl_seconds is None:
            return None
        ready, reporting = facts.observation.replicas.ready, load.replicas_reporting
        share = ready / reporting if reporting and reporting < ready else 1.0
        return load.running_requests * share * capacity.seconds_per_output_token / self.itl_seconds


_POLICIES: dict[type, type] = {
    TargetTrackingSettings: TargetTracking,
    BacklogSettings: Backlog,
    SaturationSettings: Saturation,
    CronSettings: Cron,
    PredictiveSettings: Ahead,
    WorkSettings: Work,
}


def policy_of(settings: PolicySettings) -> Policy:
    """The policy that a settings object asks for."""
    policy: Policy = _POLICIES[type(settings)](settings=settings)
    return policy
