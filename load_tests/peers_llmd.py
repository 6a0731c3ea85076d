"""llm-d's autoscalers under test: the KEDA laws on latency and on tokens, WVA V1 and V2.

All four publish a number that an HPA acts on (External metric, AverageValue 1), with its tolerance and behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autoscaler.laws import hpa, keda_llmd, wva
from autoscaler.schema import setting
from autoscaler.types import Reason
from load_tests.peers_view import Common, PeerFacts, Recommendation, Traps, View, plain, told

_WVA_BEHAVIOR = hpa.ScalingRules(
    stabilization_window_seconds=240, policies=(hpa.ScalingPolicy(type="Pods", value=10, period_seconds=150),)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KedaSloSettings(Common):
    """llm-d's KEDA law on P90 latency against the SLO, under the HPA's default behaviour."""

    kind: Literal["keda_llmd_slo"] = "keda_llmd_slo"
    headroom: float = setting(1.0, "Divides both thresholds, 0.55 and 0.40 of the SLO.", above=0)
    traps: Traps = setting(
        "shipped", "shipped: no latency data is 0, no load; removed: it is unknown, and nothing happens."
    )
    interval_seconds: int = setting(15, "Seconds from one sync of the HPA to the next.", low=1, high=3600)
    latency_window_seconds: int = setting(60, "Seconds of the latency quantiles.", low=1, high=3600)
    spec: keda_llmd.SloSpec = setting(factory=keda_llmd.SloSpec, doc="Thresholds and window of the law.")


@dataclass(frozen=True, slots=True, kw_only=True)
class KedaTokenSettings(Common):
    """llm-d's KEDA law on queued tokens and KV in use, under the HPA's default behaviour."""

    kind: Literal["keda_llmd_tokens"] = "keda_llmd_tokens"
    headroom: float = setting(1.0, "Divides the 1.5 s in which what waits is to be prefilled.", above=0)
    traps: Traps = setting(
        "shipped", "shipped: a failed query is 0 tokens; removed: it is unknown, and nothing happens."
    )
    interval_seconds: int = setting(15, "Seconds from one sync of the HPA to the next.", low=1, high=3600)
    prefill_tokens_per_second: float | None = setting(
        None, "Calibrated prefill rate of one replica in tokens/s; None: that of a full step of the plant.", above=0
    )
    drain_seconds: float = setting(1.5, "Seconds in which what waits is to be prefilled.", above=0)
    kv_target_fraction: float = setting(0.8, "Share of the KV cache to aim at.", above=0, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class WvaV1Settings(Common):
    """WVA V1, on shares of KV in use and queue lengths, behind an HPA that is stabilized for 240 s both ways."""

    kind: Literal["wva_v1"] = "wva_v1"
    headroom: float = setting(1.0, "Divides all four thresholds: 0.80 and 0.1 of KV, 5 and 3 waiting.", above=0)
    traps: Traps = setting(
        "shipped",
        "shipped: nothing is decided while replicas start or the HPA has not acted, and the HPA's tolerance swallows one"
        " replica more from 10 on; removed: starting replicas count as idle, and the HPA has no tolerance.",
    )
    interval_seconds: int = setting(15, "Seconds from one sync of the HPA to the next.", low=1, high=3600)
    engine_interval_seconds: int = setting(30, "Seconds from one analysis to the next.", low=1, high=3600)
    spec: wva.V1Spec = setting(factory=wva.V1Spec, doc="Thresholds.")


@dataclass(frozen=True, slots=True, kw_only=True)
class WvaV2Settings(Common):
    """WVA V2, on tokens in use and waiting, behind an HPA that is stabilized for 240 s both ways."""

    kind: Literal["wva_v2"] = "wva_v2"
    headroom: float = setting(1.0, "Divides both thresholds, 0.85 and 0.70.", above=0)
    traps: Traps = setting("shipped", "shipped: the HPA's tolerance of 10 %; removed: none.")
    interval_seconds: int = setting(15, "Seconds from one sync of the HPA to the next.", low=1, high=3600)
    engine_interval_seconds: int = setting(30, "Seconds from one analysis to the next.", low=1, high=3600)
    lengths_window_seconds: int = setting(300, "Seconds over which lengths are averaged.", low=1, high=3600)
    spec: wva.V2Spec = setting(factory=wva.V2Spec, doc="Thresholds.")


class _Published:
    """An HPA that acts on a published number of replicas."""

    def __init__(self, settings: Common, rules: hpa.ScalingRules | None = None, *, tolerance: bool = True) -> None:
        spec = hpa.HpaSpec(min_replicas=settings.min_replicas, max_replicas=settings.max_replicas)
        up, down = (rules or spec.scale_up), (rules or spec.scale_down)
        if not tolerance:
            up, down = replace(up, tolerance=0.0), replace(down, tolerance=0.0)
        self._spec = replace(spec, scale_up=up, scale_down=down)
        self._state: hpa.HpaState | None = None

    def act(self, view: View, number: int | None, reason: Reason) -> Recommendation:
        """One sync on the number; None is a failed metric, and nothing happens."""
        pods = view.ready + view.starting
        proposal = hpa.external_average(self._spec, total=number, target=1.0, replicas=pods)
        state = self._state or hpa.start(at_seconds=view.at_seconds, current=view.desired)
        found, self._state = hpa.sync(
            self._spec, state, at_seconds=view.at_seconds, current=view.desired, proposals=(proposal,)
        )
        if number is None:
            return Recommendation(found, (replace(reason, rule="hpa:unknown", after=found),))
        if found == number:
            return Recommendation(found, (reason,))
        return Recommendation(found, (reason, Reason(rule="hpa:behavior", before=number, after=found)))


class KedaSlo:
    """Latency quantiles of the last minute, every sync."""

    uses_rates = True

    def __init__(self, settings: KedaSloSettings, facts: PeerFacts | None) -> None:
        self.settings, self.interval_seconds, self._facts = settings, settings.interval_seconds, facts
        self.name = settings.name or "keda llm-d slo"
        spec, h = settings.spec, settings.headroom
        self._spec = replace(spec, up_threshold=spec.up_threshold / h, down_threshold=spec.down_threshold / h)
        self._samples: keda_llmd.Samples = ()
        self._hpa = _Published(settings)

    def decide(self, view: View) -> Recommendation:
        slo, window = told(self._facts, self.name).slo, self.settings.latency_window_seconds
        ttft, tpot = view.histogram("ttft", window), view.histogram("tpot", window)
        share = keda_llmd.share_of_slo(
            ttft.quantile(0.9) if ttft is not None else None,
            tpot.quantile(0.9) if tpot is not None else None,
            ttft_slo_seconds=slo.ttft_seconds,
            tpot_slo_seconds=slo.itl_seconds,
        )
        self._samples = keda_llmd.remember(self._spec, self._samples, at_seconds=view.at_seconds, share=share)
        signal = keda_llmd.signal(self._samples, nan_is_zero=self.settings.traps == "shipped")
        pods = view.ready + view.starting
        demand = keda_llmd.slo_demand(self._spec, signal=signal, replicas=pods, ready=view.ready)
        inputs: tuple[tuple[str, float | str], ...] = (("ready", view.ready), ("up_threshold", self._spec.up_threshold))
        inputs += () if signal is None else (("value", signal),)
        after = view.desired if demand is None else demand
        return self._hpa.act(
            view, demand, Reason(rule="keda_llmd:slo", before=view.desired, after=after, inputs=inputs)
        )


class KedaTokens:
    """Tokens that wait, at the replicas and at the door, and KV in use."""

    uses_rates = False

    def __init__(self, settings: KedaTokenSettings, facts: PeerFacts | None) -> None:
        self.settings, self.interval_seconds, self._facts = settings, settings.interval_seconds, facts
        self.name = settings.name or "keda llm-d tokens"
        self._hpa = _Published(settings)

    def decide(self, view: View) -> Recommendation:
        model, s = told(self._facts, self.name).replica, self.settings
        rate = s.prefill_tokens_per_second or full_step_tokens_per_second(told(self._facts, self.name))
        spec = keda_llmd.TokenSpec(
            prefill_tokens_per_second=rate,
            drain_seconds=s.drain_seconds / s.headroom,
            kv_target_fraction=s.kv_target_fraction,
        )
        waiting, kv, held = (
            view.per_replica("waiting_prompt_tokens"),
            view.per_replica("kv_tokens"),
            view.held_prompt_tokens,
        )
        demand, queued = None, 0.0
        if waiting is not None and kv is not None and held is not None:
            queued = sum(plain(waiting)) + held
            shares = [tokens / model.kv_capacity_tokens for tokens in plain(kv)]
            demand = keda_llmd.token_demand(spec, queued_tokens=queued, kv_fractions=shares)
        elif s.traps == "shipped":
            demand = 0
        if demand is not None:
            demand = keda_llmd.guarded(demand, replicas=view.ready + view.starting, pending=view.starting)
        after = view.desired if demand is None else demand
        inputs: tuple[tuple[str, float | str], ...] = (("queued_tokens", queued), ("ready", view.ready))
        return self._hpa.act(
            view, demand, Reason(rule="keda_llmd:tokens", before=view.desired, after=after, inputs=inputs)
        )


def full_step_tokens_per_second(facts: PeerFacts) -> float:
    """Prompt tokens per second of one replica whose steps are full of prefill and nothing else."""
    model, tokens = facts.replica, facts.replica.max_num_batched_tokens
    work = model.a + max(model.b * model.floor_tokens, model.b * tokens) + model.step_overhead_seconds
    work += model.e * tokens * facts.mean_prompt_tokens / 2
    return tokens / work


class _Wva:
    """What both analyzers share: an engine every 30 s, a number that stands until the next, an HPA."""

    uses_rates = True

    def __init__(self, settings: WvaV1Settings | WvaV2Settings, facts: PeerFacts | None) -> None:
        self.interval_seconds, self._facts = settings.interval_seconds, facts
        self._every = settings.engine_interval_seconds
        self._hpa = _Published(settings, _WVA_BEHAVIOR, tolerance=settings.traps == "shipped")
        self._published: int | None = None
        self._due = -float("inf")

    def _analyse(self, view: View, kv: Sequence[float], waiting: Sequence[float]) -> int:
        raise NotImplementedError

    def decide(self, view: View) -> Recommendation:
        current = view.ready + view.starting
        if view.at_seconds >= self._due:
            self._due = view.at_seconds + self._every
            kv, waiting = view.per_replica("kv_tokens"), view.per_replica("waiting")
            if current == 0:
                self._published = 1 if view.held_requests else 0
            elif kv is not None and waiting is not None:
                self._published = self._analyse(view, plain(kv), plain(waiting))
        number = self._published
        after = view.desired if number is None else number
        inputs: tuple[tuple[str, float | str], ...] = (("ready", view.ready), ("starting", view.starting))
        return self._hpa.act(view, number, Reason(rule=self.rule, before=view.desired, after=after, inputs=inputs))

    rule = "wva"


class WvaV1(_Wva):
    """Shares of KV and queue lengths."""

    rule = "wva:v1"
    uses_rates = False

    def __init__(self, settings: WvaV1Settings, facts: PeerFacts | None) -> None:
        super().__init__(settings, facts)
        self.settings, self.name = settings, settings.name or "wva v1"
        spec, h = settings.spec, settings.headroom
        self._spec = wva.V1Spec(
            kv_threshold_fraction=min(1.0, spec.kv_threshold_fraction / h),
            queue_threshold=spec.queue_threshold / h,
            kv_spare_fraction=min(1.0, spec.kv_spare_fraction / h),
            queue_spare=spec.queue_spare / h,
        )

    def _analyse(self, view: View, kv: Sequence[float], waiting: Sequence[float]) -> int:
        capacity = told(self._facts, self.name).replica.kv_capacity_tokens
        return wva.v1(
            self._spec,
            kv_fractions=[tokens / capacity for tokens in kv],
            waiting=waiting,
            current=view.ready + view.starting,
            published=self._published or 0,
            blocked_by_transition=self.settings.traps == "shipped",
        )


class WvaV2(_Wva):
    """Tokens in use and waiting, against what a replica was seen to hold."""

    rule = "wva:v2"

    def __init__(self, settings: WvaV2Settings, facts: PeerFacts | None) -> None:
        super().__init__(settings, facts)
        self.settings, self.name = settings, settings.name or "wva v2"
        spec, h = settings.spec, settings.headroom
        self._spec = replace(spec, up_threshold=spec.up_threshold / h, down_boundary=spec.down_boundary / h)
        self._state = wva.V2State()

    def _analyse(self, view: View, kv: Sequence[float], waiting: Sequence[float]) -> int:
        model = told(self._facts, self.name).replica
        window = self.settings.lengths_window_seconds
        prompts, outputs = view.histogram("prompt_lengths", window), view.histogram("output_lengths", window)
        number, self._state = wva.v2(
            self._spec,
            self._state,
            engine=wva.EngineLimits(
                kv_capacity_tokens=model.kv_capacity_tokens,
                max_num_batched_tokens=model.max_num_batched_tokens,
                max_num_seqs=model.max_num_seqs,
            ),
            readings=[wva.Reading(*pair) for pair in zip(kv, waiting, strict=True)],
            ready=view.ready,
            pending=view.starting,
            mean_prompt_tokens=(prompts.mean if prompts is not None else None) or 0.0,
            mean_output_tokens=(outputs.mean if outputs is not None else None) or 0.0,
            queued_upstream=view.held_requests or 0,
        )
        return number
