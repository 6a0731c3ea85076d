"""What the core asks of the world and of models: one page of small Protocols.

Async ports belong to the shell; sync ports are pure: same arguments, same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from autoscaler.facts import Facts
from autoscaler.types import Capacity, Forecast, Lengths, Observation, Reason, Replicas


class MetricsSource(Protocol):
    """Where Observations come from."""

    async def observe(self, at_seconds: int, replicas: Replicas) -> Observation:
        """The pool now.  A failed scrape is an Observation with None fields, not an exception."""

    async def backfill(self, since_seconds: int, until_seconds: int) -> Sequence[Observation]:
        """The recorded past, oldest first; empty where there is none."""


class Target(Protocol):
    """What is scaled."""

    async def replicas(self) -> Replicas:
        """Counts now.  Raises TargetError when they cannot be read: the tick is then skipped."""

    async def scale(self, replicas: int) -> None:
        """Ask for `replicas`.  Raises TargetConflict when somebody else wrote in between."""


class Preloader(Protocol):
    """Who brings weights nearer ahead of need."""

    async def ensure(self, replicas: int) -> None:
        """Have so many replicas preloaded (asleep, or with weights on the node)."""


class Clock(Protocol):
    """The only source of time in the shell."""

    def now_seconds(self) -> int:
        """Whole Unix seconds."""

    async def sleep_until(self, at_seconds: int) -> None:
        """Return at that instant, or at once if it has passed."""


class Forecaster(Protocol):
    """Guesses the work.  `history` and `beliefs` are the forecaster's own frozen values; both print as JSON."""

    history_type: type
    beliefs_type: type

    def start(self) -> tuple[Any, Any]:
        """Empty (history, beliefs)."""

    def observe(self, history: Any, at_seconds: int, window_seconds: int, work: float | None) -> Any:
        """`history` with one more sample: mean work in Erlangs over the window that ends at `at_seconds`; None = gap."""

    def forecast(
        self, history: Any, beliefs: Any, at_seconds: int, windows: Sequence[tuple[int, int]]
    ) -> Forecast | None:
        """Quantiles of the maximum work in each (start, end) window ahead; None, or ForecastError, if it cannot tell."""

    def refit(self, history: Any, beliefs: Any) -> Any:
        """Better beliefs, slowly (periods, profiles).

        A forecaster that needs them while it observes has, besides, a pure `adopt(history, beliefs)` that gives the history
        which knows them; it is called when the outcome of a refit is taken up.

        One that forecasts tenants apart has `observe_tenants(history, at_seconds, window_seconds, work, tenants)` that takes
        the work of each in Erlangs; it is called instead of `observe` where demand is told by tenant.
        """


class CapacityModel(Protocol):
    """Knows what one replica carries.  `beliefs` are the model's own frozen value."""

    beliefs_type: type

    def start(self) -> Any:
        """Beliefs before any data: the prior."""

    def capacity(self, beliefs: Any, lengths: Lengths, replicas: int) -> Capacity:
        """The Capacity at the present lengths of requests and size of the pool."""

    def observe(self, beliefs: Any, observation: Observation, lengths: Lengths, work: float | None) -> Any:
        """`beliefs` after one more Observation, in which `work` Erlangs arrived (None: not known)."""

    def refit(self, beliefs: Any, observations: Sequence[Observation]) -> Any:
        """Better beliefs, slowly; `observations` are the last ones."""

    def adopt(self, beliefs: Any, refitted: Any) -> Any:
        """What `refit` made of older beliefs, with what `observe` learned meanwhile."""


class Policy(Protocol):
    """Chooses a number.  A custom policy is this one method."""

    def recommend(self, facts: Facts) -> Reason | int | None:
        """So many replicas (with a Reason, if it wants to be understood), or None: no opinion."""
