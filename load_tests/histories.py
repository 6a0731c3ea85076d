"""What arrived before a window: counts per interval for policies to look back on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoscaler.errors import ConfigError
from load_tests.arrivals import Floats, Rows

MINUTE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What arrived before the window, per interval: instants < 0, NaN unknown, token sums too where lengths are not known."""

    t_seconds: Floats
    interval_seconds: float
    requests: Floats
    prompt_tokens: Floats
    output_tokens: Floats


def binned(rows: Rows, start: float, look_back: float) -> History:
    """Whole minutes of single requests before `start`, over at most `look_back` seconds."""
    bins = int(look_back // MINUTE)
    index = np.floor((rows.arrival_seconds - start) / MINUTE).astype(np.int64) + bins
    keep = index >= 0

    def total(weights: NDArray[np.int64] | None) -> Floats:
        sums = np.bincount(index[keep], weights=None if weights is None else weights[keep], minlength=bins)
        return sums.astype(np.float64)

    t = MINUTE * np.arange(-bins, 0).astype(np.float64)
    return History(
        t_seconds=t,
        interval_seconds=MINUTE,
        requests=total(None),
        prompt_tokens=total(rows.prompt_tokens),
        output_tokens=total(rows.output_tokens),
    )


def added(histories: Sequence[History]) -> History:
    """Histories of several streams added up on the coarsest grid among them; unknown in one is unknown in the sum."""
    if len(histories) == 1:
        return histories[0]
    step = max(h.interval_seconds for h in histories)
    coarse = [_coarser(h, step) for h in histories]
    n = min(h.t_seconds.size for h in coarse)

    def total(name: str) -> Floats:
        columns = [getattr(h, name)[getattr(h, name).size - n :] for h in coarse]
        out: Floats = np.sum(columns, axis=0)
        return out

    return History(
        t_seconds=coarse[0].t_seconds[coarse[0].t_seconds.size - n :],
        interval_seconds=step,
        requests=total("requests"),
        prompt_tokens=total("prompt_tokens"),
        output_tokens=total("output_tokens"),
    )


def _coarser(history: History, step: float) -> History:
    """Sums over `step` seconds, counted back from the window."""
    k = round(step / history.interval_seconds)
    if abs(k * history.interval_seconds - step) > 1e-6:
        raise ConfigError(
            "traffic.superpose",
            f"intervals of {history.interval_seconds:g} s and {step:g} s must be multiples of each other",
        )
    n = history.t_seconds.size // k
    skip = history.t_seconds.size - n * k

    def sums(values: Floats) -> Floats:
        out: Floats = values[skip:].reshape(n, k).sum(axis=1)
        return out

    return History(
        t_seconds=history.t_seconds[skip::k],
        interval_seconds=step,
        requests=sums(history.requests),
        prompt_tokens=sums(history.prompt_tokens),
        output_tokens=sums(history.output_tokens),
    )
