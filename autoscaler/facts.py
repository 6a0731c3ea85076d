"""What a policy may know when it chooses: one frozen view of the present, the beliefs and the recent past."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from autoscaler.signals import MAX_MASKED_FRACTION, SIGNALS, window_mean
from autoscaler.types import Capacity, Demand, Forecast, Observation, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`recent` holds the last Observations, oldest first, the present one included.  `current` is the number asked for.

    `unknown`: declared signal groups that are missing now, so that nothing may be lowered.  `headroom`: the factor on work
    that the measured attainment asks for.
    """

    observation: Observation
    recent: tuple[Observation, ...]
    state: State
    current: int
    forecast: Forecast | None = None
    capacity: Capacity | None = None
    unknown: tuple[str, ...] = ()
    headroom: float = 1.0
    # What `work` said: several ask for the same window, and each answer goes through the Observations in it.  The step's copy
    # with another headroom shares it.
    _works: dict[tuple[int, float], float | None] = field(init=False, default_factory=dict, repr=False, compare=False)

    def signal(self, name: str, window_seconds: int) -> float | None:
        """The mean of a signal of `SIGNALS` over the last `window_seconds`; None if unknown."""
        row = SIGNALS[name]
        return window_mean(self.recent, row.read, row.kind, window_seconds)

    def work(self, window_seconds: int, masked_fraction: float = MAX_MASKED_FRACTION) -> float | None:
        """Work that arrived per second, in Erlangs (replica-seconds per second), over the last `window_seconds`.

        None if more than `masked_fraction` of them is unknown.
        """
        capacity, asked = self.capacity, (window_seconds, masked_fraction)
        if capacity is None:
            return None
        if asked not in self._works:
            arrived = partial(work_in, capacity=capacity, state=self.state)
            self._works[asked] = window_mean(self.recent, arrived, "count", window_seconds, masked_fraction)
        return self._works[asked]

    def backlog(self) -> float | None:
        """Queued work in replica-seconds: waiting prompt tokens and the answers they will ask for.

        Sums over replicas of which some were silent are scaled up to all of them.
        """
        load, capacity = self.observation.load, self.capacity
        if load is None or capacity is None or load.waiting_requests is None:
            return None
        tokens = load.waiting_prompt_tokens
        if tokens is None:
            tokens = load.waiting_requests * (self.state.mean_prompt_tokens or 0.0)
        per_request = capacity.seconds_per_request + capacity.seconds_per_output_token * capacity.mean_output_tokens
        queued = capacity.seconds_per_prompt_token * tokens + load.waiting_requests * per_request
        ready, reporting = self.observation.replicas.ready, load.replicas_reporting
        return queued * ready / reporting if reporting and reporting < ready else queued

    def projected_backlog(self, queued: float, work: float, seconds: float) -> float:
        """The queue (replica-seconds) `seconds` from now, if `work` Erlangs go on arriving and nothing more is ordered.

        Replicas that are starting help from their expected ready time on; those without one, not within the horizon.
        """
        capacity, replicas = self.capacity, self.observation.replicas
        if capacity is None:
            return queued
        feasible = capacity.feasible(self.current)
        now, end = 0.0, seconds
        joins = sorted(at - self.observation.at_seconds for at in replicas.starting_ready_at_seconds)
        serving = replicas.ready
        for join in [*(min(max(0.0, j), end) for j in joins), end]:
            queued = max(0.0, queued + (work - serving * feasible) * (join - now))
            now, serving = join, serving + 1
        return queued


def work_in(observation: Observation, capacity: Capacity, state: State) -> float | None:
    """Replica-seconds of work that arrived: silent replicas, where replicas themselves count, are taken to get their part."""
    demand, ready = observation.demand, observation.replicas.ready
    work = work_of(demand, capacity, state)
    reporting = demand.replicas_reporting if demand is not None else None
    return work if work is None or not reporting or reporting >= ready else work * ready / reporting


def tenants_in(observation: Observation, capacity: Capacity, state: State, amount: float | None) -> dict[str, float]:
    """Each tenant's part of `amount` replica-seconds, by what it sent; empty where that is not known of all of them."""
    demand = observation.demand
    if amount is None or demand is None or not demand.tenants:
        return {}
    parts: dict[str, float] = {}
    for one in demand.tenants:
        work = work_of(Demand(requests=one.requests, prompt_tokens=one.prompt_tokens), capacity, state)
        if work is None:
            return {}
        parts[one.tenant] = parts.get(one.tenant, 0.0) + work
    total = sum(parts.values())
    # Cached prompt tokens are told of the pool alone; what no tenant is told to have sent stays nobody's.
    scale = min(1.0, amount / total) if total > 0.0 else 0.0
    return {name: work * scale for name, work in parts.items()}


def work_of(demand: Demand | None, capacity: Capacity, state: State) -> float | None:
    """Replica-seconds of work in `demand`: w_r*requests + w_p*(prompt - cached) + w_o*output.

    Output is counted at arrival: arriving requests times the mean length of finished ones, not the tokens delivered,
    which saturation would cap.  Prompt tokens that are not measured are taken at their mean length; None without both.
    """
    if demand is None or demand.requests is None:
        return None
    prompt = demand.prompt_tokens
    if prompt is None:
        if state.mean_prompt_tokens is None:
            return None
        prompt = demand.requests * state.mean_prompt_tokens
    uncached = max(0.0, prompt - (demand.cached_prompt_tokens or 0.0))
    return (
        demand.requests
        * (capacity.seconds_per_request + capacity.seconds_per_output_token * capacity.mean_output_tokens)
        + capacity.seconds_per_prompt_token * uncached
    )
