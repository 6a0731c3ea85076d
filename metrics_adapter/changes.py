"""What one replica did between two readings of it: changes of counters, restarts, silence, sleep, and engines that are stuck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metrics_adapter.engines import CONCEPTS
from metrics_adapter.reading import Buckets, Reading

# An engine that holds requests makes steps; with no counter moved for so long it is stuck, or paused.
FROZEN_AFTER_SECONDS = 5.0
# A replica whose last reading is older than so many windows was silent: its counts are spread over the time they took.
LONGEST_WINDOWS = 1.5
# Start instants that differ by less are the same: some are rounded.
SAME_START_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one replica did between two readings: `now`, changes of counters and histograms, and whether it can be believed.

    `frozen`: it holds requests, and nothing of it moved.  `asleep`: it says so.  `share`: what part of the time since its
    last reading the window is.
    """

    now: Reading
    counts: Mapping[str, float]
    histograms: Mapping[str, Buckets]
    known: bool
    frozen: bool = False
    asleep: bool = False
    share: float = 1.0

    @property
    def reports(self) -> bool:
        """True where its gauges hold now."""
        return not self.frozen and not self.asleep


def change_of(then: Reading | None, now: Reading, window_seconds: float) -> Change:
    """What a replica did between two readings of it; `then` None: it is new."""
    asleep = now.values.get("awake", 1.0) == 0.0
    if then is None:
        return _of_new(now, window_seconds, asleep)
    gap = now.at_seconds - then.at_seconds
    share = min(1.0, window_seconds / gap) if gap > LONGEST_WINDOWS * window_seconds else 1.0
    if _restarted(then, now):
        return _all_since_start(now, asleep, share)
    counts = {
        k: v - then.values[k]
        for k, v in now.values.items()
        if k in then.values and (CONCEPTS[k][0] == "counter" or k in ("waiting", "running"))
    }
    counts = {k: v for k, v in counts.items() if v >= 0.0 or k in ("waiting", "running")}
    histograms = {}
    for concept, buckets in now.histograms.items():
        change = _difference(buckets, then.histograms.get(concept))
        if change is not None:
            histograms[concept] = change
    frozen = gap >= FROZEN_AFTER_SECONDS and not asleep and _frozen(then, now)
    return Change(now=now, counts=counts, histograms=histograms, known=True, frozen=frozen, asleep=asleep, share=share)


def _of_new(now: Reading, window_seconds: float, asleep: bool) -> Change:
    """A replica's first reading: counts only if its process is no older than the window, as nobody knows what was before."""
    started = now.values.get("started_at_seconds")
    if started is not None and now.at_seconds - window_seconds < started <= now.at_seconds + SAME_START_SECONDS:
        return _all_since_start(now, asleep, 1.0)
    return Change(now=now, counts={}, histograms={}, known=False, asleep=asleep)


def _all_since_start(now: Reading, asleep: bool, share: float) -> Change:
    counts = {k: v for k, v in now.values.items() if CONCEPTS[k][0] == "counter"}
    counts |= {"waiting": now.values.get("waiting", 0.0), "running": now.values.get("running", 0.0)}
    return Change(now=now, counts=counts, histograms=now.histograms, known=True, asleep=asleep, share=share)


def _restarted(then: Reading, now: Reading) -> bool:
    """True for another process.  Its start tells; without it, a counter that fell."""
    before, after = then.values.get("started_at_seconds"), now.values.get("started_at_seconds")
    if before is not None and after is not None:
        return after > before + SAME_START_SECONDS
    fell = any(CONCEPTS[k][0] == "counter" and v < then.values.get(k, 0.0) for k, v in now.values.items())
    return fell or any(k in then.histograms and b.total < then.histograms[k].total for k, b in now.histograms.items())


def _difference(now: Buckets, then: Buckets | None) -> Buckets | None:
    """Samples between two readings; None where a bucket fell, or the buckets are others."""
    if then is None or then.upper_bounds != now.upper_bounds:
        return None
    counts = tuple(b - a for a, b in zip(then.counts, now.counts, strict=True))
    if any(b < a for a, b in zip((0.0, *counts), counts, strict=False)):
        return None
    total = None if now.sum is None or then.sum is None else max(0.0, now.sum - then.sum)
    return Buckets(now.upper_bounds, counts, total)


def _frozen(then: Reading, now: Reading) -> bool:
    held = now.values.get("running", 0.0) + now.values.get("waiting", 0.0)
    return held > 0.0 and dict(then.values) == dict(now.values) and dict(then.histograms) == dict(now.histograms)
