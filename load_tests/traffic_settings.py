"""The settings of a scenario's traffic: a recorded trace or a made-up shape, its arrivals, lengths and window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoscaler.schema import setting
from load_tests.arrivals import Arrivals
from load_tests.shapes import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLengths:
    """Lengths of a trace: recorded ones where it has them, else lognormal around its interval means."""

    kind: Literal["trace"] = "trace"
    prompt_sigma: float | None = setting(
        None, "Spread of log prompt length; None: the trace's, else 0.6.", low=0, high=3
    )
    output_sigma: float | None = setting(
        None, "Spread of log output length; None: the trace's, else 0.6.", low=0, high=3
    )
    correlation: float = setting(0.0, "Correlation of log prompt and log output length.", low=-1, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LognormalLengths:
    """Lognormal lengths with given means."""

    kind: Literal["lognormal"] = "lognormal"
    prompt_tokens: float = setting(1000.0, "Mean prompt length in tokens.", low=1, high=131_072)
    output_tokens: float = setting(200.0, "Mean output length in tokens.", low=1, high=131_072)
    prompt_sigma: float = setting(0.6, "Spread of log prompt length; 0 makes all equal.", low=0, high=3)
    output_sigma: float = setting(0.6, "Spread of log output length; 0 makes all equal.", low=0, high=3)
    correlation: float = setting(0.0, "Correlation of log prompt and log output length.", low=-1, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLengths:
    """Pairs drawn from a request-level trace, prompt and output kept together."""

    kind: Literal["pairs"] = "pairs"
    file: str = setting(doc="A request-level trace: builtin:NAME or a file.")
    scaled: bool = setting(True, "True: scaled to the interval means of the traffic, where it has them.")


Lengths = TraceLengths | LognormalLengths | PairLengths


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceTraffic:
    """A recorded trace.  It is scaled by thinning and by adding other streams only: counts are never multiplied."""

    kind: Literal["trace"] = "trace"
    trace: str = setting(doc="builtin:NAME or a file.")
    superpose: tuple[str, ...] = setting((), "Further traces, added up with second 0 on second 0: other clients.")
    rotated_copies: int = setting(
        1, "Copies of each trace, each shifted and wrapped around at the end; more than 1 is marked.", low=1, high=1000
    )
    copy_shift_seconds: float | None = setting(
        None,
        "Shift from copy to copy: short ones keep the trace's trend, None, its span over the number of copies, evens it out.",
        above=0,
    )
    thin_fraction: float = setting(1.0, "Probability with which each request is kept; 1 keeps all.", above=0, high=1)
    arrivals: Arrivals = setting(
        factory=Arrivals, doc="How counts become arrivals; recorded arrivals stay as they are."
    )
    lengths: Lengths = setting(factory=TraceLengths, doc="Prompt and output lengths.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeTraffic:
    """A shape that is made up."""

    kind: Literal["shape"] = "shape"
    shape: Shape = setting(doc="The shape, by its kind.")
    arrivals: Arrivals = setting(factory=Arrivals, doc="How the rate becomes arrivals.")
    lengths: LognormalLengths | PairLengths = setting(factory=LognormalLengths, doc="Prompt and output lengths.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The part that is simulated; second 0 of the simulation is its start."""

    start_seconds: float = setting(0.0, "Start, in seconds of the trace.", low=0, high=1e9)
    duration_seconds: float | None = setting(
        None, "Length; None is to the end of the trace, a day for a shape.", above=0
    )
