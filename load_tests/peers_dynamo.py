"""NVIDIA Dynamo's planner under test, for pools whose replicas do prefill and decode.

It is given the plant's true step law where the original fits one, and counts demand at the door, as Dynamo does since 1.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from autoscaler.errors import ConfigError
from autoscaler.laws import dynamo
from autoscaler.laws import dynamo_predict as predict
from autoscaler.schema import setting
from autoscaler.types import Reason
from load_tests.peers_view import Common, PeerFacts, Recommendation, Traps, View, plain, told

Predictor = Literal["constant", "arima", "kalman", "prophet"]
_ARIMA_CHOICE_POINTS = 80  # without the trap the order is chosen anew, at the latest after 4 h of 180-s points
_HABITS_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoSettings(Common):
    """Dynamo's planner."""

    kind: Literal["dynamo"] = "dynamo"
    mode: Literal["throughput", "load", "both"] = setting(
        "throughput",
        "throughput: forecast every 180 s; load: plus or minus one every 5 s; both: load above that floor.",
    )
    predictor: Predictor = setting("arima", "What forecasts the next interval; prophet needs its package.")
    load_target: Literal["sla", "throughput", "latency"] = setting(
        "sla", "What the load rule holds: the SLA, or the easy modes' thresholds of KV in use."
    )
    headroom: float = setting(
        1.0, "Divides the SLA, TTFT and ITL (in the easy modes the size of the KV cache).", above=0
    )
    traps: Traps = setting(
        "shipped",
        "shipped: a failed query is no demand, the load rule waits while a replica starts, ARIMA's order comes from the"
        " first five points; removed: unknown holds, starting replicas count as idle, the order is chosen again and again.",
    )
    throughput_interval_seconds: int = setting(180, "Seconds from one forecast to the next.", low=1, high=3600)
    load_interval_seconds: int = setting(5, "Seconds from one turn of the load rule to the next.", low=1, high=3600)
    down_sensitivity_fraction: float = setting(
        0.8, "Share of the SLA that may be used after a scale-down.", above=0, high=1
    )
    most_change: int | None = setting(8, "Most replicas that a forecast adds or removes at once; None: any.", low=1)
    prophet_points: int = setting(50, "Last points that Prophet sees.", low=5, high=10_000)
    kalman: predict.KalmanSpec = setting(factory=predict.KalmanSpec, doc="Knobs of the Kalman predictor.")

    def __post_init__(self) -> None:
        Common.__post_init__(self)
        if self.predictor == "prophet" and self.mode != "load":
            _prophet()


class _Predictor(Protocol):
    def add(self, value: float) -> None:
        """One more value."""

    def following(self) -> float:
        """The next one."""


class _Constant:
    def __init__(self) -> None:
        self._last = 0.0

    def add(self, value: float) -> None:
        self._last = value

    def following(self) -> float:
        return self._last


class _Kalman:
    def __init__(self, spec: predict.KalmanSpec) -> None:
        self._spec, self._state = spec, predict.KalmanState()

    def add(self, value: float) -> None:
        self._state = predict.kalman_add(self._spec, self._state, value)

    def following(self) -> float:
        return predict.kalman_next(self._spec, self._state)


class _Arima:
    def __init__(self, choose_every: int | None) -> None:
        self._every, self._state = choose_every, predict.ArimaState()

    def add(self, value: float) -> None:
        self._state = predict.arima_add(self._state, value)

    def following(self) -> float:
        value, self._state = predict.arima_next(self._state, choose_every=self._every)
        return value


class _Prophet:
    """The package itself, fitted anew to the last points at each turn, as the original does."""

    def __init__(self, points: int, interval_seconds: int) -> None:
        self._points, self._every = points, interval_seconds
        self._values: list[float] = []

    def add(self, value: float) -> None:
        if self._values or value != 0.0:
            self._values = [*self._values, value][-self._points :]

    def following(self) -> float:
        if len(self._values) < 5:
            return self._values[-1] if self._values else 0.0
        import pandas

        instants = pandas.to_datetime("2024-01-01") + pandas.to_timedelta(
            [i * self._every for i in range(len(self._values) + 1)], unit="s"
        )
        model = _prophet()()
        model.fit(pandas.DataFrame({"ds": instants[:-1], "y": self._values}))
        found = model.predict(pandas.DataFrame({"ds": instants[-1:]}))
        return max(0.0, float(found["yhat"].iloc[0]))


def _prophet() -> type:
    try:
        from prophet import Prophet
    except ImportError:
        raise ConfigError(
            "predictor", "'prophet' must be constant, arima or kalman: the package prophet is not installed"
        ) from None
    found: type = Prophet
    return found


class Dynamo:
    """The planner's two rules and its forecasts of the number of requests and of their lengths."""

    uses_rates = True

    def __init__(self, settings: DynamoSettings, facts: PeerFacts | None) -> None:
        s = self.settings = settings
        self.interval_seconds = s.throughput_interval_seconds if s.mode == "throughput" else s.load_interval_seconds
        detail = s.predictor if s.mode == "throughput" else s.load_target if s.mode == "load" else f"both {s.predictor}"
        self._facts, self.name = facts, s.name or f"dynamo {detail}"
        self._requests, self._prompts, self._outputs = (self._predictor() for _ in range(3))
        self._due = float(s.throughput_interval_seconds)
        self._floor = 0
        self._lengths = (0.0, 0.0)

    def _predictor(self) -> _Predictor:
        s = self.settings
        if s.predictor == "constant":
            return _Constant()
        if s.predictor == "kalman":
            return _Kalman(s.kalman)
        if s.predictor == "arima":
            return _Arima(None if s.traps == "shipped" else _ARIMA_CHOICE_POINTS)
        return _Prophet(s.prophet_points, s.throughput_interval_seconds)

    def decide(self, view: View) -> Recommendation:
        s, current = self.settings, view.desired
        wanted, reasons = current, []
        if s.mode != "load" and view.at_seconds >= self._due:
            self._due = view.at_seconds + s.throughput_interval_seconds
            found = self._by_throughput(view)
            if found is not None and s.mode == "throughput":
                wanted = found
            elif found is not None:
                self._floor = found
            number = current if found is None else found
            rule = "dynamo:unknown" if found is None else "dynamo:throughput"
            reasons.append(Reason(rule=rule, before=current, after=number))
        if s.mode != "throughput":
            by_load = self._by_load(view)
            if by_load is not None:
                wanted = max(by_load, self._floor)
            reasons.append(
                Reason(rule="dynamo:hold" if by_load is None else "dynamo:load", before=current, after=wanted)
            )
        after = s.bounded(wanted)
        if not reasons:
            reasons.append(Reason(rule="dynamo:hold", before=current, after=after))
        return Recommendation(after, tuple(reasons))

    def _promise(self) -> dynamo.Promise:
        slo, s = told(self._facts, self.name).slo, self.settings
        return dynamo.Promise(
            ttft_seconds=slo.ttft_seconds / s.headroom,
            itl_seconds=slo.itl_seconds / s.headroom,
            down_sensitivity=s.down_sensitivity_fraction,
        )

    def _law(self) -> dynamo.EngineLaw:
        model = told(self._facts, self.name).replica
        return dynamo.EngineLaw(
            a=model.a, b=model.b, floor_tokens=model.floor_tokens, c=model.c, d=model.d, e=model.e,
            step_overhead_seconds=model.step_overhead_seconds,
            sequence_overhead_seconds=model.sequence_overhead_seconds,
            max_num_batched_tokens=model.max_num_batched_tokens,
            max_num_seqs=model.max_num_seqs,
            max_kv_tokens=model.kv_capacity_tokens,
        )  # fmt: skip

    def _by_throughput(self, view: View) -> int | None:
        """Replicas for the forecast; None if nothing can be said."""
        s, window = self.settings, float(self.settings.throughput_interval_seconds)
        requests, prompts = view.rate("arrivals", window), view.rate("arrived_prompt_tokens", window)
        outputs = view.histogram("output_lengths", window)
        if requests is None or prompts is None or outputs is None:
            if s.traps == "removed":
                return None
            requests, prompts = 0.0, 0.0
        mean_output = outputs.mean if outputs is not None else None
        if requests > 0:
            self._lengths = (prompts / requests, self._lengths[1])
        if mean_output is not None:
            self._lengths = (self._lengths[0], mean_output)
        self._requests.add(requests * window)
        self._prompts.add(self._lengths[0])
        self._outputs.add(self._lengths[1])
        rate = dynamo.engine_rate(
            self._law(),
            self._promise(),
            prompt_tokens=self._prompts.following(),
            output_tokens=self._outputs.following(),
            hit=_hit(view, window),
        )
        if rate is None or rate.requests_per_second <= 0:
            return None
        return dynamo.throughput_replicas(
            max(0.0, self._requests.following()) / window,
            rate.requests_per_second,
            replicas=view.desired,
            least=max(1, s.min_replicas),
            most_change=s.most_change,
        )

    def _by_load(self, view: View) -> int | None:
        """Replicas by the load rule; None while it holds."""
        s, columns = self.settings, [view.per_replica(g) for g in ("waiting_prompt_tokens", "kv_tokens", "running")]
        if view.ready == 0 or (view.starting and s.traps == "shipped"):
            return None
        known = [plain(c) for c in columns if c is not None]
        if len(known) < 3:
            return None
        engines = [dynamo.Engine(*row) for row in zip(*known, strict=True)]
        if view.starting:
            engines = _spread(engines, view.starting)
        law, least = self._law(), max(1, s.min_replicas)
        if s.load_target != "sla":
            shrunk = replace(law, max_kv_tokens=max(1, round(law.max_kv_tokens / s.headroom)))
            return dynamo.load_by_use(shrunk, s.load_target, engines, least=least)
        habits = _habits(view, engines)
        return None if habits is None else dynamo.load_by_sla(law, self._promise(), habits, engines, least=least)


def _spread(engines: Sequence[dynamo.Engine], starting: int) -> list[dynamo.Engine]:
    """The same load over the engines on their way as well."""
    share = len(engines) / (len(engines) + starting)
    scaled = [dynamo.Engine(*(share * value for value in engine)) for engine in engines]
    mean = dynamo.Engine(*(math.fsum(column) / len(scaled) for column in zip(*scaled, strict=True)))
    return scaled + [mean] * starting


def _hit(view: View, window: float) -> float:
    """Share of arrived prompt tokens that the prefix cache had; 0 if unknown."""
    cached, arrived = view.rate("cached_prompt_tokens", window), view.rate("arrived_prompt_tokens", window)
    return min(0.99, max(0.0, cached / arrived)) if cached is not None and arrived else 0.0


def _habits(view: View, engines: Sequence[dynamo.Engine]) -> dynamo.Habits | None:
    """What the original's moving averages over forward passes say; None before there is anything to average."""
    steps, prefilled = view.rate("engine_steps", _HABITS_SECONDS), view.rate("prefilled_prompt_tokens", _HABITS_SECONDS)
    requests, prompts = view.rate("arrivals", _HABITS_SECONDS), view.rate("arrived_prompt_tokens", _HABITS_SECONDS)
    if steps is None or prefilled is None or requests is None or prompts is None:
        return None
    running = math.fsum(e.running for e in engines)
    return dynamo.Habits(
        prompt_tokens=prompts / requests if requests > 0 else 0.0,
        decode_tokens=math.fsum(e.kv_tokens for e in engines) / running if running > 0 else 0.0,
        prefill_tokens_per_step=prefilled / steps if steps > 0 else 0.0,
        hit=_hit(view, _HABITS_SECONDS),
    )
