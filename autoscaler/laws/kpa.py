"""Knative's pod autoscaler (KPA): mean concurrency over a stable and a panic window.

One tick is `record` for each second that passed, then `scale`.  Source: Knative Serving's ``autoscaler.go`` (windows,
panic), ``bucketing.go`` (averages over one-second buckets) and ``scaler.go`` (bounds, scaling to zero).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

from autoscaler.errors import ConfigError
from autoscaler.schema import setting

_PRECISION = 1e6  # averages are cut to six digits, as the original does


@dataclass(frozen=True, slots=True, kw_only=True)
class KpaSpec:
    """Knative's knobs with its shipped defaults."""

    container_concurrency_target: float = setting(
        100.0, "Concurrent requests that one replica is meant to hold.", above=0
    )
    target_utilization_fraction: float = setting(0.7, "Share of that target to aim at.", above=0, high=1)
    stable_window_seconds: int = setting(60, "Seconds of the stable average.", low=6, high=3600)
    panic_window_fraction: float = setting(0.1, "Panic window as a share of the stable one.", low=0.01, high=1)
    panic_threshold: float = setting(
        2.0, "Panic when the panic window wants so many times the ready replicas.", above=1
    )
    max_scale_up_rate: float = setting(1000.0, "At most so many times the ready replicas.", above=1)
    max_scale_down_rate: float = setting(2.0, "At least the ready replicas divided by this.", above=1)
    scale_to_zero: bool = setting(True, "Whether the last replica may go (min_replicas must be 0 as well).")
    scale_to_zero_grace_seconds: int = setting(30, "Seconds that zero must have been wanted.", low=0, high=3600)
    min_replicas: int = setting(1, "Lower bound; 0 allows scaling to zero.", low=0, high=100_000)
    max_replicas: int = setting(100, "Upper bound.", low=1, high=100_000)

    def __post_init__(self) -> None:
        if self.max_replicas < self.min_replicas:
            raise ConfigError("max_replicas", f"{self.max_replicas} is below min_replicas {self.min_replicas}")

    @property
    def target(self) -> float:
        """Concurrency per replica that is aimed at."""
        return self.container_concurrency_target * self.target_utilization_fraction

    @property
    def panic_window_seconds(self) -> int:
        """Length of the panic window in whole buckets."""
        return max(1, math.ceil(self.stable_window_seconds * self.panic_window_fraction))


@dataclass(frozen=True, slots=True, kw_only=True)
class KpaState:
    """`buckets`: (second, concurrency) of the stable window, oldest first; `first_*`: where each average begins.

    `panic_since_seconds` moves on while the threshold is crossed; None in stable mode.  `most_in_panic`: the largest number
    asked for since panic began.  `zero_since_seconds`: since when zero has been wanted; `awake_since_seconds`: since when
    a replica has been ready.
    """

    buckets: tuple[tuple[int, float], ...] = ()
    first_stable: int = 0
    first_panic: int = 0
    panic_since_seconds: float | None = None
    most_in_panic: int = 0
    zero_since_seconds: float | None = None
    awake_since_seconds: float | None = None


def start(*, at_seconds: float, ready: int) -> KpaState:
    """The state of a controller that starts now: with more than one replica it begins in panic, for it has no history."""
    return KpaState(
        panic_since_seconds=at_seconds if ready > 1 else None,
        most_in_panic=ready,
        awake_since_seconds=at_seconds if ready > 0 else None,
    )


def record(spec: KpaSpec, state: KpaState, *, second: int, concurrency: float) -> KpaState:
    """The state with the fleet's concurrency (running, queued and held requests) of one more second."""
    if not state.buckets:
        return replace(state, buckets=((second, concurrency),), first_stable=second, first_panic=second)
    last = state.buckets[-1][0]
    if second < last:
        raise ValueError(f"second {second} is before {last}, the last one recorded")
    gap, old = second - last, 0
    kept, since = state.buckets, second - spec.stable_window_seconds
    if gap == 0:
        kept, concurrency = kept[:-1], kept[-1][1] + concurrency
    while old < len(kept) and kept[old][0] <= since:
        old += 1
    return KpaState(
        buckets=(*kept[old:], (second, concurrency)),
        first_stable=second if gap >= spec.stable_window_seconds else state.first_stable,
        first_panic=second if gap >= spec.panic_window_seconds else state.first_panic,
        panic_since_seconds=state.panic_since_seconds,
        most_in_panic=state.most_in_panic,
        zero_since_seconds=state.zero_since_seconds,
        awake_since_seconds=state.awake_since_seconds,
    )


def average(state: KpaState, *, at_seconds: float, window_seconds: int, first: int) -> float | None:
    """Mean over the window's buckets; a bucket inside without data is 0, one before `first` or after the last is left out.

    None if nothing was recorded within the window.
    """
    if not state.buckets:
        return None
    now, last = math.floor(at_seconds), state.buckets[-1][0]
    age = max(0, now - last)
    if age > window_seconds:
        return None
    if age == window_seconds:
        return 0.0
    since = last + age - window_seconds
    inside = state.buckets[bisect_right(state.buckets, (since, math.inf)) :]
    total = sum([value for _, value in reversed(inside)], 0.0)
    return math.floor(total / min(last - first + 1, window_seconds - age) * _PRECISION) / _PRECISION


def scale(spec: KpaSpec, state: KpaState, *, at_seconds: float, ready: int, current: int) -> tuple[int, KpaState]:
    """One tick: the wanted number of replicas, and what the autoscaler remembers.

    `ready` replicas serve now; `current` is the number last asked for, which stays where the law has nothing to say.
    """
    long, short = spec.stable_window_seconds, spec.panic_window_seconds
    stable = average(state, at_seconds=at_seconds, window_seconds=long, first=state.first_stable)
    if stable is None:
        return current, state
    panic = average(state, at_seconds=at_seconds, window_seconds=short, first=state.first_panic) or 0.0
    counted = max(1, ready)
    most, least = math.ceil(spec.max_scale_up_rate * counted), math.floor(counted / spec.max_scale_down_rate)
    by_panic = math.ceil(panic / spec.target)
    wanted = min(max(math.ceil(stable / spec.target), least), most)
    state = _panic(spec, state, at_seconds, over=by_panic / counted >= spec.panic_threshold)
    if state.panic_since_seconds is not None:
        wanted = max(wanted, min(max(by_panic, least), most), state.most_in_panic)
        if wanted != state.most_in_panic:
            state = replace(state, most_in_panic=wanted)
    awake = None if ready == 0 else at_seconds if state.awake_since_seconds is None else state.awake_since_seconds
    if awake != state.awake_since_seconds:
        state = replace(state, awake_since_seconds=awake)
    bounded = min(max(wanted, spec.min_replicas), spec.max_replicas)
    return _to_zero(spec, state, at_seconds, current, bounded)


def _panic(spec: KpaSpec, state: KpaState, at_seconds: float, *, over: bool) -> KpaState:
    if over:
        return replace(state, panic_since_seconds=at_seconds)
    since = state.panic_since_seconds
    if since is not None and since + spec.stable_window_seconds < at_seconds:
        return replace(state, panic_since_seconds=None, most_in_panic=0)
    return state


def _to_zero(spec: KpaSpec, state: KpaState, at_seconds: float, current: int, wanted: int) -> tuple[int, KpaState]:
    """The last replica goes after a stable window awake and a grace period in which zero was wanted.

    While the first replica is still starting nothing goes.  (The original gives that up after the progress deadline of
    ten minutes; here a start that fails is the plant's business.)
    """
    if wanted > 0 or current == 0:
        return wanted, state if state.zero_since_seconds is None else replace(state, zero_since_seconds=None)
    if not spec.scale_to_zero:
        return 1, state
    if state.awake_since_seconds is None:
        return current, state
    if at_seconds - state.awake_since_seconds < spec.stable_window_seconds:
        return 1, replace(state, zero_since_seconds=None)
    since = at_seconds if state.zero_since_seconds is None else state.zero_since_seconds
    going = at_seconds - since >= spec.scale_to_zero_grace_seconds
    return 0 if going else current, replace(state, zero_since_seconds=since)
