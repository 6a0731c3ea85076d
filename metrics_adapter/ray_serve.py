"""A pool as the autoscaling policy of a Ray Serve deployment.

    @serve.deployment(autoscaling_config=AutoscalingConfig(
        min_replicas=1, max_replicas=8, upscale_delay_s=0, downscale_delay_s=0,
        policy=AutoscalingPolicy(policy_function="metrics_adapter.ray_serve:PoolPolicy",
                                 policy_kwargs={"pool": {"name": "chat", "limits": {"max_replicas": 8}}})))
    class Chat(Counted): ...

Ray knows how many requests run and wait.  What arrives it does not count, so replicas do: `Counted` holds the counters that
`record_autoscaling_stats` reports.  This module needs no ray: it reads an ``AutoscalingContext`` by its names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoscaler.embed import Pool
from autoscaler.types import Demand, Load, Observation, Replicas

MOST_GONE = 256  # replicas that do not answer, of which the counters are remembered
COUNTERS = ("requests", "prompt_tokens", "finished_requests", "output_tokens")


class Counted:
    """Counters of one replica, for a deployment class to inherit or to hold."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTERS, 0.0)

    def arrived(self, prompt_tokens: float) -> None:
        """A request came, with so many tokens of prompt."""
        self.counts["requests"] += 1.0
        self.counts["prompt_tokens"] += prompt_tokens

    def finished(self, output_tokens: float) -> None:
        """A request ended after so many tokens."""
        self.counts["finished_requests"] += 1.0
        self.counts["output_tokens"] += output_tokens

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray asks every replica for, some times a minute."""
        return dict(self.counts)


class PoolPolicy:
    """Ray calls it many times a second; it decides on every multiple of the pool's interval, and repeats itself between.

    `pool`: a pool's section of a config; or `path` (and `name`) of a config file.  Ray's own delays and factors come after
    it: set ``upscale_delay_s`` and ``downscale_delay_s`` to 0.  Raises ConfigError.
    """

    def __init__(self, pool: Mapping[str, Any] | None = None, path: str | None = None, name: str | None = None) -> None:
        self.pool = Pool.from_file(path, name) if path is not None else Pool.from_config(pool or {})
        self._counts: dict[str, dict[str, float]] = {}
        self._queued = 0.0
        self._at: int | None = None
        self._wanted: int | None = None

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """(replicas, state): `context` is a ``ray.serve.config.AutoscalingContext``."""
        interval = self.pool.settings.interval_seconds
        at = int(context.current_time) // interval * interval
        if self._at is None or at > self._at:
            decision = self.pool.step(self._seen(context, at, interval if self._at is None else at - self._at))
            self._at, self._wanted = at, decision.replicas
        assert self._wanted is not None
        return self._wanted, {}

    def _seen(self, context: Any, at_seconds: int, window_seconds: int) -> Observation:
        ready, asked = context.current_num_replicas, context.target_num_replicas
        queued = float(context.total_queued_requests or 0.0)
        counts = _by_replica(context.raw_metrics or {})
        return Observation(
            pool=self.pool.settings.name,
            at_seconds=at_seconds,
            window_seconds=window_seconds,
            replicas=Replicas(desired=asked, ready=ready, starting=max(0, asked - ready)),
            demand=self._demand(counts, queued, ready),
            load=Load(
                running_requests=max(0.0, float(context.total_num_requests) - queued),
                waiting_requests=queued,
            ),
        )

    def _demand(self, counts: dict[str, dict[str, float]], queued: float, ready: int) -> Demand | None:
        """What arrived since the last decision: what replicas counted, and the growth of the queue before them.

        None where no replica counts.  The first time there is nothing to compare with.
        """
        before = self._counts
        kept = {r: c for r, c in before.items() if r not in counts}
        self._counts = {**dict(list(kept.items())[-MOST_GONE:]), **counts}
        growth, self._queued = queued - self._queued, queued
        if not counts and ready > 0 or self._at is None:
            return None
        since = dict.fromkeys(COUNTERS, 0.0)
        for replica, now in counts.items():
            then = before.get(replica, {})
            for name in COUNTERS:
                old = then.get(name, 0.0)
                since[name] += now.get(name, 0.0) - (old if now.get(name, 0.0) >= old else 0.0)
        started, requests = since["requests"], max(0.0, since["requests"] + growth)
        return Demand(
            requests=requests,
            prompt_tokens=since["prompt_tokens"] * requests / started if started > 0 else None if requests else 0.0,
            output_tokens=since["output_tokens"],
            finished_requests=since["finished_requests"],
            replicas_reporting=len(counts) if 0 < len(counts) < ready else None,
        )


def _by_replica(raw_metrics: Mapping[str, Mapping[Any, Any]]) -> dict[str, dict[str, float]]:
    """The newest sample of each of our counters, by replica."""
    found: dict[str, dict[str, float]] = {}
    for name in COUNTERS:
        for replica, series in raw_metrics.get(name, {}).items():
            if series:
                found.setdefault(str(replica), {})[name] = float(series[-1].value)
    return found
