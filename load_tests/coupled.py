"""Contestants of pools that are joined: whoever is asked first looks for all, and one call decides for all."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoscaler.embed import Pool
from autoscaler.types import Observation
from load_tests.contestants import STALE_AFTER_SECONDS, Answer, Moment, PoolContestant


class CoupledContestant(PoolContestant):
    """One of several pools that decide in one call; `joined` are all of them, in the order of the plant's pools."""

    joined: Sequence[CoupledContestant] = ()
    _made: tuple[float, Answer] | None = None

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """Observe and step: all of them, the first time that one is asked at an instant."""
        if self._made is None or self._made[0] != at_seconds:
            seen = [one.look(at_seconds, moment) for one in self.joined]
            made = Pool.step_together([one.pool for one in self.joined], seen)
            for one, decision in zip(self.joined, made, strict=True):
                step = one.pool.last_step
                if one._log is not None and step is not None:
                    one._log.append(step, one.pool.memory)
                one._refit(decision.at_seconds)
                one._made = at_seconds, Answer(decision.replicas, decision.reasons)
        assert self._made is not None
        return self._made[1]

    def look(self, at_seconds: float, moment: Moment) -> Observation:
        """What a scraper sees of this pool now."""
        fleet, index = self._fleet, self._index
        return self._scraper.observe(
            self._origin + math.floor(at_seconds),
            self.interval_seconds,
            self._life.counts(self._origin),
            lambda: (fleet.gauges(index), fleet.counters(index)),
            measured=moment.measured and moment.stale_seconds < STALE_AFTER_SECONDS,
            empty=moment.empty,
        )
