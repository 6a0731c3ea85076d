"""Faults in force: when each begins and ends, what it does to the replicas, and what it does to the signals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autoscaler.units import replicas_for
from load_tests.faults import (
    CapacityChange,
    CounterReset,
    Fault,
    NanScrape,
    NodeShortage,
    ReplicaFailure,
    ScrapeGap,
    StartsFail,
    StartupSlower,
)
from load_tests.life import Life

Action = Callable[[Life, float], None]


class FaultPlan:
    """The faults of one simulation, in time order; each acts on every pool."""

    def __init__(self, faults: Sequence[Fault], gaps: Sequence[tuple[float, float]] = ()) -> None:
        outages = [f for f in faults if isinstance(f, ScrapeGap | NanScrape)]
        self._gaps = [*gaps, *((f.at_seconds, f.at_seconds + f.for_seconds) for f in outages)]
        self._resets = [f for f in faults if isinstance(f, CounterReset)]
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
        return not any(start <= at_seconds < end for start, end in self._gaps)

    def kept_fraction(self, at_seconds: float, window_seconds: float, replicas: int) -> float:
        """Share of a window's counts that is left after the resets in it: a counter that fell is read as a restart."""
        kept = 1.0
        for reset in self._resets:
            since = at_seconds - reset.at_seconds
            if 0 <= since < window_seconds:
                share = 1.0 if reset.replicas == "all" else 1.0 / max(1, replicas)
                kept -= share * (1.0 - since / window_seconds)
        return max(0.0, kept)


def _nothing(life: Life, at: float) -> None:
    """Signals are affected, replicas are not."""


def _window(fault: StartupSlower | StartsFail | CapacityChange) -> tuple[float, float]:
    return fault.at_seconds, math.inf if fault.for_seconds is None else fault.at_seconds + fault.for_seconds


def _entries(fault: Fault) -> list[tuple[float, str, Action]]:
    """(instant, sentence, action) of a fault's begin and end."""
    if isinstance(fault, ScrapeGap | NanScrape):
        word = "metrics are not answered" if isinstance(fault, ScrapeGap) else "metrics are NaN"
        return [
            (fault.at_seconds, word, _nothing),
            (fault.at_seconds + fault.for_seconds, "metrics are back", _nothing),
        ]
    if isinstance(fault, CounterReset):
        return [(fault.at_seconds, f"counters of {fault.replicas} restart", _nothing)]
    if isinstance(fault, ReplicaFailure):
        return [(fault.at_seconds, "replicas die", _killing(fault))]
    if isinstance(fault, NodeShortage):
        return [
            (fault.at_seconds, "no nodes for new replicas", lambda life, at: life.births.shortage(at, True)),
            (fault.at_seconds + fault.for_seconds, "nodes again", lambda life, at: life.births.shortage(at, False)),
        ]
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
