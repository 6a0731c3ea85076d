"""Faults in force: when each begins and ends, what it does to the replicas, and what it does to the signals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autoscaler.units import replicas_for
from load_tests.faults import (
    CapacityChange,
    CounterReset,
    EmptyAnswer,
    EngineStuck,
    Fault,
    NanScrape,
    NewVersion,
    NodeShortage,
    ReplicaFailure,
    Retries,
    ScrapeGap,
    SecondWriter,
    SilentReplicas,
    StaleSamples,
    StartHangs,
    StartsFail,
    StartupSlower,
    ZoneLost,
)
from load_tests.life import Life

Action = Callable[[Life, float], None]
Window = tuple[float, float]


class FaultPlan:
    """The faults of one simulation, in time order; each acts on every pool."""

    def __init__(self, faults: Sequence[Fault], gaps: Sequence[tuple[float, float]] = ()) -> None:
        outages = [f for f in faults if isinstance(f, ScrapeGap | NanScrape)]
        self._gaps = [*gaps, *((f.at_seconds, f.at_seconds + f.for_seconds) for f in outages)]
        self._resets = [f for f in faults if isinstance(f, CounterReset)]
        self._empty = [_span(f) for f in faults if isinstance(f, EmptyAnswer)]
        self._stale = [_span(f) for f in faults if isinstance(f, StaleSamples)]
        self._silent = [(*_span(f), f) for f in faults if isinstance(f, SilentReplicas)]
        stuck = any(isinstance(f, EngineStuck) for f in faults)
        self.retries = next((f for f in faults if isinstance(f, Retries)), None)
        self.alters_signals = bool(
            self._resets or self._empty or self._stale or self._silent or stuck or self.retries is not None
        )
        timed = [entry for f in faults for entry in _entries(f)]
        self._timed = sorted(timed, key=lambda entry: entry[0])

    def next_seconds(self) -> float:
        """When something next begins or ends, or infinity."""
        return self._timed[0][0] if self._timed else math.inf

    def begin_and_end(self, at_seconds: float, lives: Sequence[Life]) -> list[str]:
        """Let what is due at `at_seconds` befall the pools; a sentence for each."""
        told = []
        while self._timed and self._timed[0][0] <= at_seconds:
            _, note, act = self._timed.pop(0)
            for life in lives:
                act(life, at_seconds)
            told.append(note)
        return told

    def measured(self, at_seconds: float) -> bool:
        """False while the source does not answer (a NaN is no answer either)."""
        return not _inside(self._gaps, at_seconds)

    def empty(self, at_seconds: float) -> bool:
        """True while the source answers without any series."""
        return _inside(self._empty, at_seconds)

    def stale_seconds(self, at_seconds: float) -> float:
        """Age of what the source repeats; 0 while its samples are new."""
        return max((at_seconds - start for start, end in self._stale if start <= at_seconds < end), default=0.0)

    def silent(self, at_seconds: float) -> SilentReplicas | None:
        """Whose replicas are not scraped, while there are such."""
        return next((fault for start, end, fault in self._silent if start <= at_seconds < end), None)

    def kept_fraction(self, at_seconds: float, window_seconds: float, replicas: int) -> float:
        """Share of a window's counts that is left after the resets in it: a counter that fell is read as a restart."""
        kept = 1.0
        for reset in self._resets:
            since = at_seconds - reset.at_seconds
            if 0 <= since < window_seconds:
                share = 1.0 if reset.replicas == "all" else 1.0 / max(1, replicas)
                kept -= share * (1.0 - since / window_seconds)
        return max(0.0, kept)


def _inside(windows: Sequence[Window], at_seconds: float) -> bool:
    return any(start <= at_seconds < end for start, end in windows)


def _span(fault: EmptyAnswer | StaleSamples | SilentReplicas) -> Window:
    return fault.at_seconds, fault.at_seconds + fault.for_seconds


def _nothing(life: Life, at: float) -> None:
    """Signals are affected, replicas are not."""


def _window(fault: StartupSlower | StartsFail | CapacityChange) -> tuple[float, float]:
    return fault.at_seconds, math.inf if fault.for_seconds is None else fault.at_seconds + fault.for_seconds


_SIGNALS = {
    "scrape_gap": "metrics are not answered",
    "nan_scrape": "metrics are NaN",
    "empty_answer": "metrics are answered without any series",
    "stale_samples": "metrics repeat old samples",
    "silent_replicas": "some replicas are not scraped",
}


def _entries(fault: Fault) -> list[tuple[float, str, Action]]:
    """(instant, sentence, action) of a fault's begin and end."""
    if isinstance(fault, Retries):
        return []
    if isinstance(fault, ScrapeGap | NanScrape | EmptyAnswer | StaleSamples | SilentReplicas):
        return [
            (fault.at_seconds, _SIGNALS[fault.kind], _nothing),
            (fault.at_seconds + fault.for_seconds, "metrics are back", _nothing),
        ]
    if isinstance(fault, CounterReset):
        return [(fault.at_seconds, f"counters of {fault.replicas} restart", _nothing)]
    if isinstance(fault, ReplicaFailure):
        return [(fault.at_seconds, "replicas die", _killing(fault))]
    if isinstance(fault, EngineStuck):
        count, end = fault.count, fault.at_seconds + fault.for_seconds
        return [
            (fault.at_seconds, "an engine is stuck", lambda life, at: life.stick(at, count)),
            (end, "the stuck engine is killed", lambda life, at: life.kill_stuck(at)),
        ]
    if isinstance(fault, SecondWriter):
        return _writing(fault)
    if isinstance(fault, NodeShortage):
        return [(fault.at_seconds, "no nodes for new replicas", _short(True)), _nodes_again(fault)]
    if isinstance(fault, ZoneLost):
        return [(fault.at_seconds, "a zone is lost", _losing(fault)), _nodes_again(fault)]
    return _changes(fault)


def _changes(
    fault: StartupSlower | StartsFail | StartHangs | CapacityChange | NewVersion,
) -> list[tuple[float, str, Action]]:
    if isinstance(fault, StartHangs):
        return [(fault.at_seconds, "the next start hangs", _hanging(fault.count))]
    if isinstance(fault, NewVersion):
        factors = fault.step_factor, fault.token_factor, fault.context_factor
        return [(fault.at_seconds, "engines are of a new version", lambda life, at: life.change_law(*factors))]
    begin, end = _window(fault)
    if isinstance(fault, StartupSlower):
        start = (begin, f"starts take {fault.factor:g} times as long", _slower(fault.factor))
        stop = (end, "starts take their time again", _slower(1.0 / fault.factor))
    elif isinstance(fault, StartsFail):
        start = (begin, f"{fault.fraction:.0%} of starts fail", _failing(fault.fraction))
        stop = (end, "starts succeed again", _failing(0.0))
    else:
        factor = fault.factor
        start = (begin, f"capacity is {factor:.0%}", lambda life, at: life.slow_down(factor))
        stop = (end, "capacity is normal", lambda life, at: life.slow_down(1.0))
    return [start] if end == math.inf else [start, stop]


def _writing(fault: SecondWriter) -> list[tuple[float, str, Action]]:
    def act(life: Life, at: float) -> None:
        life.scale(at, fault.replicas)

    count = math.ceil(fault.for_seconds / fault.every_seconds)
    note = f"somebody else asks for {fault.replicas}"
    return [(fault.at_seconds + i * fault.every_seconds, note, act) for i in range(count)]


def _short(on: bool) -> Action:
    def act(life: Life, at: float) -> None:
        life.births.shortage(at, on)

    return act


def _nodes_again(fault: NodeShortage | ZoneLost) -> tuple[float, str, Action]:
    return fault.at_seconds + fault.for_seconds, "nodes again", _short(False)


def _losing(fault: ZoneLost) -> Action:
    def act(life: Life, at: float) -> None:
        life.births.shortage(at, True)
        life.give_up(at, replicas_for(life.starting * fault.fraction))
        life.kill(at, replicas_for(len(life.serving) * fault.fraction))

    return act


def _hanging(count: int) -> Action:
    def act(life: Life, at: float) -> None:
        for source in life.sources:
            source.hangs += count

    return act


def _slower(factor: float) -> Action:
    def act(life: Life, at: float) -> None:
        for source in life.sources:
            source.factor *= factor

    return act


def _failing(fraction: float) -> Action:
    def act(life: Life, at: float) -> None:
        for source in life.sources:
            source.failure_fraction = fraction

    return act


def _killing(fault: ReplicaFailure) -> Action:
    def act(life: Life, at: float) -> None:
        count = fault.count if fault.count is not None else replicas_for(len(life.serving) * (fault.fraction or 0.0))
        life.kill(at, count)

    return act
