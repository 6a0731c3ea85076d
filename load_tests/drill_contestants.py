"""Contestants to whom something happens that no plant can do to them: a restart, a forecaster that has gone wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from autoscaler.embed import Pool, autoscaler_for, windows_for
from autoscaler.errors import ForecastError
from autoscaler.types import Forecast
from forecast.seasonal import Seasonal
from load_tests.campaign import Prepared
from load_tests.contestants import Answer, Contestant, Moment, PoolContestant
from load_tests.fleet import Fleet
from load_tests.life import Life
from load_tests.scenario import PoolPolicy, policy_settings
from serving.capacity import PriorCapacity

Fault = Literal["raises", "NaN", "x0.1", "x10"]


class Restarted:
    """A contestant that is killed and started again at `at_seconds`.

    A pool of this library gets its snapshot back, and the scraper's last counters, which its shell keeps.  A peer begins with
    what its original keeps: nothing.
    """

    def __init__(self, make: Callable[[], Contestant], at_seconds: float) -> None:
        self._make, self._at, self._done = make, at_seconds, False
        self._inner = make()
        self.name, self.interval_seconds = self._inner.name, self._inner.interval_seconds

    def begin(self, fleet: Fleet, pool: int, life: Life, origin_at_seconds: int) -> None:
        """Begin."""
        self._world = (fleet, pool, life, origin_at_seconds)
        self._inner.begin(*self._world)

    def decide(self, at_seconds: float, moment: Moment) -> Answer:
        """One tick, of the new one from the restart on."""
        if not self._done and at_seconds >= self._at:
            self._done, old, new = True, self._inner, self._make()
            new.begin(*self._world)
            if isinstance(old, PoolContestant) and isinstance(new, PoolContestant):
                new.pool.restore(old.pool.snapshot())
                new.take_over(old)
            self._inner = new
        return self._inner.decide(at_seconds, moment)

    def end(self) -> None:
        """The simulation is over."""
        self._inner.end()


class Broken:
    """A forecaster whose forecasts are wrong from the start; everything else is the real one's."""

    def __init__(self, real: Seasonal, fault: Fault) -> None:
        self._real, self._fault = real, fault
        self.history_type, self.beliefs_type = real.history_type, real.beliefs_type

    def start(self) -> tuple[Any, Any]:
        """Empty (history, beliefs)."""
        return self._real.start()

    def observe(self, history: Any, at_seconds: int, window_seconds: int, work: float | None) -> Any:
        """One more sample."""
        return self._real.observe(history, at_seconds, window_seconds, work)

    def refit(self, history: Any, beliefs: Any) -> Any:
        """Better beliefs."""
        return self._real.refit(history, beliefs)

    def forecast(
        self, history: Any, beliefs: Any, at_seconds: int, windows: Sequence[tuple[int, int]]
    ) -> Forecast | None:
        """The real forecast, spoilt."""
        if self._fault == "raises":
            raise ForecastError("the forecaster is dead")
        told = self._real.forecast(history, beliefs, at_seconds, windows)
        if told is None:
            return None
        factor = {"NaN": math.nan, "x0.1": 0.1, "x10": 10.0}[self._fault]
        return replace(told, values=tuple(tuple(value * factor for value in row) for row in told.values))


def with_forecaster(prepared: Prepared, policy: PoolPolicy, fault: Fault) -> PoolContestant:
    """This project's policy with a broken forecaster."""
    scenario, pool = prepared.scenario, prepared.setup.pools[0]
    settings = replace(policy_settings(scenario, policy, pool.name), limits=scenario.limits)
    capacity = PriorCapacity(settings.replica, settings.startup, settings.slo)
    broken = Broken(Seasonal(windows_for(settings, capacity), settings.interval_seconds), fault)
    return PoolContestant(
        f"{policy.name}, forecaster {fault}",
        Pool(autoscaler_for(settings, forecaster=broken)),
        scenario.slo,
        pool.replica.kv_capacity_tokens,
        history=prepared.history(),
    )
