"""Contestants of pools that are joined: whoever is asked first looks for all, and one call decides for all."""

from __future__ import annotations

from collections.abc import Sequence

from autoscaler.embed import Pool
from load_tests.contestants import Answer, Moment, PoolContestant


class CoupledContestant(PoolContestant):
    """One of several pools that decide in one call; `joined` are all of them, in the order of the plant's pools."""

    joined: Sequence[CoupledContestant] = ()
    _made: tuple[float, Answer] | None = None

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """Observe and step: all of them, the first time that one is asked at an instant."""
        if self._made is None or self._made[0] != at_seconds:
            seen = [one.look(at_seconds, moment) for one in self.joined]
            Pool.step_together([one.pool for one in self.joined], seen)
            for one in self.joined:
                decision = one.stepped().decision
                one._made = at_seconds, Answer(decision.replicas, decision.reasons)
        assert self._made is not None
        return self._made[1]
