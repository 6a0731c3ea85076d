"""Our own /metrics: a view of the last Step of each pool, and counters over the Steps that passed.

    exposition = Exposition()
    exposition.add_pool(settings)
    exposition.update(step, counts=loop.counts, refits=memory.beliefs.refits)      # after every turn
    exposition.text(now_seconds)                                                    # answers GET /metrics

What is unknown has no sample.  A Step older than `stale_after_seconds` loses its gauges, so that nobody acts on an old
number; its counters and its age stay.  Each label has a bounded number of values: counters put the rest under ``other``,
gauges leave it out and say how much.  The rows are `exposition_series.SERIES`, in Prometheus'
text format 0.0.4.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import autoscaler
from autoscaler.errors import ConfigError
from autoscaler.loop import Counts
from autoscaler.settings import PoolSettings
from autoscaler.types import Step
from metrics_adapter.exposition_reads import BURN_WINDOWS, STAGES, Labels, Sample, View
from metrics_adapter.exposition_series import BUILD, DROPPED, SERIES, Series

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_VALUES = 32  # of one series of one pool: rules, experts, groups that a user names


@dataclass(slots=True)
class Burn:
    """Served and violated requests over a sliding window."""

    seconds: int
    rows: deque[tuple[int, float, float, float]] = field(default_factory=deque)

    def add(self, at_seconds: int, served: float, low: float, high: float) -> None:
        """Take one Step's counts and forget what has left the window."""
        self.rows.append((at_seconds, served, low, high))
        while self.rows[0][0] <= at_seconds - self.seconds:
            self.rows.popleft()

    def fractions(self, at_seconds: int) -> tuple[float, float] | None:
        """Bounds of the share of served requests that violated the SLO; None where none was served."""
        rows = [r for r in self.rows if r[0] > at_seconds - self.seconds]
        served = math.fsum(r[1] for r in rows)
        if served <= 0.0:
            return None
        return math.fsum(r[2] for r in rows) / served, min(1.0, math.fsum(r[3] for r in rows) / served)


@dataclass(slots=True)
class _Pool:
    """One pool's settings, last Step and sums."""

    settings: PoolSettings
    stale_after_seconds: int | None = None
    step: Step | None = None
    counts: Counts | None = None
    refits: int | None = None
    sums: dict[tuple[str, Labels], float] = field(default_factory=dict)
    burns: tuple[Burn, ...] = field(default_factory=lambda: tuple(Burn(s) for s in BURN_WINDOWS))

    def add(self, name: str, amount: float | None, share: float = 1.0, **labels: str) -> None:
        """Add a share of an amount to a counter; an unknown amount adds nothing and makes no series."""
        if amount is not None:
            key = (name, tuple(labels.items()))
            self.sums[key] = self.sums.get(key, 0.0) + amount * share

    def take(self, step: Step) -> None:
        """The sums with one more Step; the same Step again, or an earlier one, adds nothing."""
        last = self.step
        seen = step.observation
        if last is not None and seen.at_seconds <= last.observation.at_seconds:
            return
        elapsed = seen.window_seconds if last is None else seen.at_seconds - last.observation.at_seconds
        self.step = step
        self._take_choice(step)
        self._take_time(step, elapsed)
        for group in ("demand", "load", "latency"):
            self.add("unmeasured_steps", float(getattr(seen, group) is None), signal=group)
        # Windows that overlap count what they share once.
        share = min(1.0, elapsed / seen.window_seconds)
        demand, latency = seen.demand, seen.latency
        if demand is not None:
            for name in (
                "requests", "prompt_tokens", "cached_prompt_tokens", "output_tokens", "finished_requests",
                "rejected_requests", "failed_requests",
            ):  # fmt: skip
                self.add(name, getattr(demand, name), share)
        if latency is not None and latency.served_requests is not None:
            self.add("served_requests", latency.served_requests, share)
            if latency.violated_requests is not None:
                low, high = latency.violated_requests
                self.add("violated_requests", low, share, bound="lower")
                self.add("violated_requests", high, share, bound="upper")
                for burn in self.burns:
                    burn.add(seen.at_seconds, latency.served_requests * share, low * share, high * share)

    def _take_choice(self, step: Step) -> None:
        decided, desired = step.decision.replicas, step.observation.replicas.desired
        direction = "up" if decided > desired else "down" if decided < desired else "hold"
        for name in ("up", "down", "hold"):
            self.add("steps", float(name == direction), direction=name)
        if step.decision.reasons:
            rule = step.decision.reasons[-1].rule
            known = [k for k in self.sums if k[0] == "decided_by"]
            new = ("decided_by", (("rule", rule),)) not in self.sums
            self.add("decided_by", 1.0, rule="other" if new and len(known) >= MOST_VALUES - 1 else rule)

    def _take_time(self, step: Step, elapsed: int) -> None:
        gpus = self.settings.target.gpus_per_replica if self.settings.target is not None else 1.0
        for stage in STAGES:
            spent = float(getattr(step.observation.replicas, stage)) * elapsed
            self.add("replica_seconds", spent, stage=stage)
            self.add("gpu_seconds", spent * gpus, stage=stage)

    def view(self, now_seconds: float, stale_after_seconds: int) -> View:
        """What the series read: the Step only while it is fresh."""
        step = self.step
        if self.stale_after_seconds is not None:
            stale_after_seconds = self.stale_after_seconds
        age = None if step is None else max(0.0, now_seconds - step.observation.at_seconds)
        fresh = step if age is not None and age <= stale_after_seconds else None
        at = step.observation.at_seconds if step is not None else 0
        return View(
            settings=self.settings,
            step=fresh,
            last_at_seconds=None if step is None else at,
            age_seconds=age,
            counts=self.counts,
            refits=self.refits,
            sums=self.sums,
            violated=tuple(burn.fractions(at) for burn in self.burns),
        )


class Exposition:
    """The collector of one process: any number of pools up to `most_pools`."""

    def __init__(self, *, stale_after_seconds: int = 120, most_pools: int = 1000) -> None:
        self.stale_after_seconds, self.most_pools = stale_after_seconds, most_pools
        self._pools: dict[str, _Pool] = {}

    def add_pool(self, settings: PoolSettings, *, stale_after_seconds: int | None = None) -> None:
        """Show a pool from now on, with a limit of its own where given.  Raises ConfigError beyond `most_pools`."""
        if settings.name not in self._pools and len(self._pools) >= self.most_pools:
            raise ConfigError("pools", f"{len(self._pools) + 1} pools must be at most {self.most_pools}")
        self._pools[settings.name] = _Pool(settings, stale_after_seconds)

    def remove_pool(self, name: str) -> None:
        """Show it no more."""
        self._pools.pop(name, None)

    def update(self, step: Step, *, counts: Counts | None = None, refits: int | None = None) -> None:
        """Take the Step that its pool just made; ConfigError if the pool was not added."""
        name = step.decision.pool
        if name not in self._pools:
            raise ConfigError("pool", f"{name!r} must be one of {', '.join(self._pools) or 'none'}")
        self._pools[name].take(step)
        self.note(name, counts=counts, refits=refits)

    def note(self, pool: str, *, counts: Counts | None = None, refits: int | None = None) -> None:
        """Take what the loop counted, also after a turn without a Step."""
        known = self._pools[pool]
        known.counts = counts if counts is not None else known.counts
        known.refits = refits if refits is not None else known.refits

    def view(self, pool: str, now_seconds: float) -> View:
        """What the series of one pool read; KeyError if it was not added."""
        return self._pools[pool].view(now_seconds, self.stale_after_seconds)

    def text(self, now_seconds: float) -> str:
        """The page: every series that has a sample, with its HELP and TYPE."""
        views = {name: pool.view(now_seconds, self.stale_after_seconds) for name, pool in sorted(self._pools.items())}
        lines = _family(BUILD, [((("version", autoscaler.__version__),), 1.0)])
        dropped = dict.fromkeys(views, 0)
        for series in SERIES:
            samples: list[Sample] = []
            for name, view in views.items():
                mine = list(series.read(view))
                dropped[name] += max(0, len(mine) - MOST_VALUES)
                samples += [((("pool", name), *labels), value) for labels, value in mine[:MOST_VALUES]]
            lines += _family(series, samples)
        lines += _family(DROPPED, [((("pool", name),), float(count)) for name, count in dropped.items()])
        return "\n".join(lines) + "\n"


def _family(series: Series, samples: Iterable[Sample]) -> list[str]:
    lines = [_line(series.name, labels, value) for labels, value in samples if math.isfinite(value)]
    if not lines:
        return []
    return [f"# HELP {series.name} {_escaped(series.help)}", f"# TYPE {series.name} {series.type}", *lines]


def _line(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{k}="{_escaped(v, quoted=True)}"' for k, v in labels)
    number = repr(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))
    return f"{name}{{{inner}}} {number}" if inner else f"{name} {number}"


def _escaped(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text
