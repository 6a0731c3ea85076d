"""The `peers.View` of one pool of a simulated fleet: gauges of the tick, counters remembered for rates and histograms."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from autoscaler.types import Histogram
from load_tests import scrape
from load_tests.fleet import Counters, Fleet, Gauges
from load_tests.peers_view import Gauge, Series


class PlantView:
    """Call `tick` once per decision; then it is a View.

    `keep_seconds` bounds the windows that rates and histograms may ask for.  `rates` False: counters are not read, and
    rates and histograms are unknown.
    """

    def __init__(self, fleet: Fleet, pool: int, *, keep_seconds: float = 3600.0, rates: bool = True) -> None:
        self._fleet, self._pool, self._keep, self._rates = fleet, pool, keep_seconds, rates
        self._times: list[float] = []
        self._rows: list[Counters] = []
        self._gauges: Gauges | None = None
        self._series, self._broken = True, False
        self.at_seconds, self.desired, self.ready, self.starting = 0.0, 0, 0, 0

    def tick(
        self,
        *,
        desired: int,
        starting: int,
        ready: int | None = None,
        scraped: bool = True,
        empty: bool = False,
        fresh: bool = True,
    ) -> PlantView:
        """Look at the fleet now.

        `ready`: where the platform knows of more than answer.  `scraped` False: the scrape fails, and gauges and rates are
        unknown this time.  `empty`: there is no series, so no rate of one.  `fresh` False: no counter has a new sample.
        """
        gauges = self._fleet.gauges(self._pool)
        self.at_seconds, self.desired = self._fleet.now_seconds, desired
        self.ready, self.starting = len(gauges.ids) if ready is None else ready, starting
        self._gauges, self._series = gauges if scraped else None, not empty
        if self._rates:
            counters = self._fleet.counters(self._pool)
            if empty or not fresh:
                self._broken = True
            elif scraped:
                if self._broken:  # what came meanwhile is not in these counters: no rate reaches back over it
                    self._times, self._rows, self._broken = [], [], False
                self._remember(counters)
        return self

    @property
    def held_requests(self) -> int | None:
        """Requests held at the door because no replica is ready."""
        return None if self._gauges is None else self._gauges.held_requests

    @property
    def held_prompt_tokens(self) -> int | None:
        """Prompt tokens of the requests that are held at the door."""
        return None if self._gauges is None else self._gauges.held_prompt_tokens

    def per_replica(self, gauge: Gauge) -> Sequence[float] | None:
        """One reading per ready replica."""
        return None if self._gauges is None else getattr(self._gauges, gauge)

    def rate(self, counter: str, window_seconds: float) -> float | None:
        """Increase per second since the newest sample that is at least a window old, or since the first sample."""
        then = self._then(window_seconds)
        if then is None:
            return None
        increase: float = getattr(self._rows[-1], counter) - getattr(self._rows[then], counter)
        return increase / (self._times[-1] - self._times[then])

    def histogram(self, series: Series, window_seconds: float) -> Histogram | None:
        """What came in since the newest sample that is at least a window old, or since the first sample."""
        then = self._then(window_seconds)
        if then is None:
            return None
        return scrape.histogram(getattr(self._rows[-1], series), getattr(self._rows[then], series))

    def _then(self, window_seconds: float) -> int | None:
        """Index of the sample that a window starts from; None without a scrape now and one before."""
        if self._gauges is None or not self._series or len(self._times) < 2:
            return None
        then = max(0, bisect_right(self._times, self.at_seconds - window_seconds) - 1)
        return then if then < len(self._times) - 1 else None

    def _remember(self, counters: Counters) -> None:
        if self._times and self._times[-1] == self.at_seconds:
            self._rows[-1] = counters
            return
        self._times.append(self.at_seconds)
        self._rows.append(counters)
        if len(self._times) > 64 and self._times[0] < self.at_seconds - 2 * self._keep:
            old = bisect_right(self._times, self.at_seconds - self._keep) - 1
            del self._times[:old], self._rows[:old]
