"""One turn of the loop, pure: (memory, observation) -> (step, memory).  Same input, same bytes.

The order: what is unknown, what the lengths are, what a replica carries, how much work arrives, what is coming; then the
policies recommend, the largest wins, and limits say how fast we may get there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from autoscaler import limits as bound
from autoscaler.copies import replace
from autoscaler.coupling import Member, ratio, spares
from autoscaler.deferrable import Ballast, with_classes
from autoscaler.errors import ConfigError, ForecastError
from autoscaler.facts import Facts, tenants_in, work_in
from autoscaler.health import healthy, missed, overdue_at, replaced, short
from autoscaler.lengths import lengths_of, with_lengths
from autoscaler.placement import Placed, learned, place, taken
from autoscaler.policy import Ahead, InFlight, Work, policy_of
from autoscaler.portfolio import WINDOWS, Recorded, replayed
from autoscaler.ports import CapacityModel, Forecaster, Policy
from autoscaler.risk import steered
from autoscaler.settings import PoolSettings, WorkSettings
from autoscaler.tiers import PowerPlan, plan, powered_down, states_of, with_gap
from autoscaler.trust import witnessed
from autoscaler.types import (
    Beliefs,
    Capacity,
    Choice,
    Decision,
    Forecast,
    Lengths,
    Memory,
    Observation,
    Reason,
    State,
    Step,
)

# Below this share of ready replicas that report, their sums say nothing.
LEAST_REPORTING_FRACTION = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaler:
    """All that decides for one pool.  It holds settings and models and no state: what changes is in the Memory.

    `policies`: what recommends.  `recent_seconds`: how far back in Observations a policy may look.  `steers`: whether the
    measured attainment moves a headroom on the work; an observer, and policies by hand, have none to set.
    """

    settings: PoolSettings
    forecaster: Forecaster
    capacity_model: CapacityModel
    policies: tuple[Policy, ...]
    recent_seconds: int
    steers: bool = False

    @classmethod
    def of(
        cls,
        settings: PoolSettings,
        forecaster: Forecaster,
        capacity_model: CapacityModel,
        policies: Sequence[Policy] = (),
    ) -> Autoscaler:
        """The autoscaler that `settings` ask for; `policies` are the caller's own, beside the configured ones."""
        chosen = tuple(policy_of(s) for s in settings.policies) + tuple(policies)
        steers = not chosen and settings.strategy != "observer"
        if not chosen:
            chosen = (Work(), InFlight(itl_seconds=settings.slo.itl_seconds))
            if settings.strategy != "reactive":
                chosen += (Ahead(trusted_only=settings.strategy in ("auto", "observer")),)
        windows = [getattr(s, "window_seconds", 60) for s in settings.policies]
        return cls(
            settings=settings,
            forecaster=forecaster,
            capacity_model=capacity_model,
            policies=(*chosen, Ballast()),
            recent_seconds=max([*windows, *(WINDOWS if steers and settings.adapt else ()), 120])
            + settings.interval_seconds,
            steers=steers,
        )

    def start(self) -> Memory:
        """The Memory of a pool of which nothing is known yet."""
        history, forecast = self.forecaster.start()
        beliefs = Beliefs(forecast=forecast, capacity=self.capacity_model.start())
        return Memory(pool=self.settings.name, history=history, beliefs=beliefs, state=State())

    def backfill(self, memory: Memory, observations: Sequence[Observation]) -> Memory:
        """`memory` with recorded Observations, oldest first, taken as history; nothing is decided on them."""
        for observation in observations:
            self._check(memory, observation)
            memory = self._learn(memory, observation)[0]
        return memory

    def step(self, memory: Memory, observation: Observation, shared: Sequence[Reason] = ()) -> tuple[Step, Memory]:
        """Decide.  The instant of the last Step again gives the last Step; an earlier one is an error.

        `shared`: reasons of a recorded Step of which `ratio` and `spare` say what came of the other pools of its group.
        """
        ratios = [r for r in shared if r.rule == "ratio"]
        granted = [v for r in shared if r.rule == "spare" for n, v in r.inputs if n == "spare_replicas"]
        if not ratios and not granted:
            return step_group((self,), (memory,), (observation,))[0]
        turn = self.begin(memory, observation)
        for reason in ratios:
            turn = turn.then(replace(reason, before=turn.wanted))
        return self.end(self.sized(turn), int(granted[0]) if granted else observation.spare_replicas)

    def begin(self, memory: Memory, observation: Observation) -> Turn:
        """The step as far as this pool is alone: what it would have in replicas that carry."""
        self._check(memory, observation)
        learned, capacity, work, missing = self._learn(memory, observation)
        facts = self._steered(self._facts(learned, capacity, missing), work)
        policies = self._chosen(memory.beliefs.choice)
        proposals = tuple(r for r in (self._recommend(p, facts) for p in policies) if r is not None)
        power = self._power(facts)
        state, reasons = self._wanted(facts, proposals, power, memory.beliefs.choice)
        return Turn(
            autoscaler=self, learned=learned, facts=facts, work=work, proposals=proposals, state=state,
            reasons=reasons, power=power,
        )  # fmt: skip

    def sized(self, turn: Turn) -> Turn:
        """The turn in replicas to ask for: one more for each that carries nothing."""
        return turn.then(bound.sick(self.settings.limits, turn.facts, turn.wanted)[1])

    def end(self, turn: Turn, spare_replicas: int | None) -> tuple[Step, Memory]:
        """The Step: what is left of the number when no more than `spare_replicas` can be had, inside the bounds."""
        s, facts, observation = self.settings, turn.facts, turn.facts.observation
        at, desired = observation.at_seconds, observation.replicas.desired
        turn = turn.then(bound.spare(spare_replicas, desired, turn.wanted)[1])
        turn = turn.then(bound.bounds(s.limits, at, turn.wanted)[1])
        groups: Placed = ()
        margin = 0
        if observation.groups:
            most = bound.bounds_at(s.limits, at)[1]
            held = min(desired, most) if facts.unknown else 0  # a margin that falls away is not known to be in vain
            groups, why = place(observation.groups, turn.wanted, most, learned(s.limits.spot, turn.state), held)
            margin = 0 if why is None or s.strategy == "observer" else max(0, why.after - why.before)
            turn = turn.then(why)
        turn = turn.then(bound.observer(s.strategy, desired, turn.wanted)[1])
        extra = replaced(turn.reasons)
        scaled = bound.remember_change(s.limits, facts.state, at, facts.current, turn.wanted - extra - margin)
        risk = replace(turn.state.risk, bound=bound_by(turn.reasons))
        state = replace(turn.state, scaled=scaled, desired=turn.wanted, replaced=extra, margin=margin, risk=risk)
        power = turn.power if turn.wanted == 0 else None
        step = Step(
            observation=observation,
            forecast=facts.forecast,
            capacity=facts.capacity,
            work=turn.work,
            closed_loop=observation.demand is not None and observation.demand.closed_loop,
            proposals=turn.proposals,
            state=state,
            decision=Decision(
                pool=s.name,
                at_seconds=at,
                replicas=turn.wanted,
                reasons=turn.reasons,
                groups=groups if s.strategy != "observer" else (),
                preload=power.preload if power else 0,
                tiers=power.tiers if power else (),
            ),
        )
        return step, replace(turn.learned, state=state, last_step=step)

    def refit(self, memory: Memory) -> Beliefs:
        """Better beliefs, slowly and purely; `adopt` merges them into the Memory of the moment."""
        return Beliefs(
            forecast=self.forecaster.refit(memory.history, memory.beliefs.forecast),
            capacity=self.capacity_model.refit(memory.beliefs.capacity, memory.recent),
            refits=memory.beliefs.refits + 1,
            choice=self._replayed(memory),
        )

    def _replayed(self, memory: Memory) -> Choice | None:
        """The choice with what came since replayed; as it was where nobody acts on it, or nothing new can be told of."""
        choice, tell = memory.beliefs.choice, getattr(self.forecaster, "recorded", None)
        if tell is None or not self._adapts:
            return choice
        recorded = tell(memory.history, None if choice is None else choice.at_seconds - max(WINDOWS))
        if recorded is None:
            return choice
        start, cell, values = recorded
        current = max(1, memory.state.desired or 1)
        capacity = self.capacity_model.capacity(memory.beliefs.capacity, lengths_of(memory.state), current)
        return replayed(
            choice, self.settings, capacity, Recorded(start_seconds=start, cell_seconds=cell, values=values)
        )

    def adopt(self, memory: Memory, beliefs: Beliefs) -> Memory:
        """`memory` with the outcome of a refit; steps may have been made since it was begun."""
        capacity = self.capacity_model.adopt(memory.beliefs.capacity, beliefs.capacity)
        taught = getattr(self.forecaster, "adopt", None)  # of those that need their beliefs while they observe
        history = memory.history if taught is None else taught(memory.history, beliefs.forecast)
        return replace(memory, history=history, beliefs=replace(beliefs, capacity=capacity))

    def _check(self, memory: Memory, observation: Observation) -> None:
        if observation.pool != memory.pool:
            raise ConfigError(
                "observation.pool", f"{observation.pool!r} must be {memory.pool!r}, the pool of this memory"
            )
        last = memory.state.at_seconds
        if last is not None and observation.at_seconds <= last:
            raise ConfigError(
                "observation.at_seconds",
                f"{observation.at_seconds} must be later than {last}, the instant of the last Observation",
            )

    def _learn(
        self, memory: Memory, observation: Observation
    ) -> tuple[Memory, Capacity, float | None, tuple[str, ...]]:
        """The Memory that knows `observation`, what replicas carry, the work per second that arrived, and what is unknown."""
        at = observation.at_seconds
        missing = unknown_groups(self.settings, memory.state, observation)
        state = with_lengths(_with_seen(memory.state, observation), observation, memory.recent)
        current = observation.replicas.desired
        lengths = of_role(lengths_of(state), self.settings.role)
        capacity = part_of(
            self.capacity_model.capacity(memory.beliefs.capacity, lengths, max(1, current)), self.settings.role
        )
        amount = None if "demand" in missing else work_in(observation, capacity, state)
        work = None if amount is None else amount / observation.window_seconds
        history = self._remembered(memory, observation, work, tenants_in(observation, capacity, state, amount))
        since = None if not missing else (memory.state.unknown_since_seconds or at)
        last = memory.recent[-1] if memory.recent else None
        before = None if last is None else last.replicas
        late = overdue_at(memory.state, before, observation, capacity.startup(0.99))
        dead = missed(memory.state, before, observation.replicas)
        state = replace(state, at_seconds=at, unknown_since_seconds=since, overdue_at_seconds=late, dead=dead)
        if observation.groups:
            lost, starts = taken(memory.state, last, observation, capacity.startup(0.9))
            state = replace(state, spot_taken=lost, spot_starts=starts)
        state = with_classes(state, observation, capacity, work)
        if self.settings.preload.tiers:
            powers = states_of(self.settings.preload, capacity, self.settings.slo.ttft_seconds)
            state = replace(state, idle=with_gap(state.idle, observation, powers))
        kept = tuple([o for o in memory.recent if at - o.at_seconds < self.recent_seconds])
        # This Observation teaches the next step: more demand must not make replicas look stronger in the same one.
        taught = self.capacity_model.observe(memory.beliefs.capacity, observation, lengths, work)
        beliefs = replace(memory.beliefs, capacity=taught)
        learned = replace(memory, history=history, beliefs=beliefs, state=state, recent=(*kept, observation))
        return learned, capacity, work, missing

    def _facts(self, learned: Memory, capacity: Capacity, missing: tuple[str, ...]) -> Facts:
        """What policies may know."""
        observation = learned.recent[-1]
        return Facts(
            observation=observation,
            recent=learned.recent,
            state=learned.state,
            current=healthy(learned.state, observation),
            forecast=self._forecast(learned, capacity, observation.at_seconds),
            capacity=capacity,
            unknown=missing,
        )

    def _remembered(
        self, memory: Memory, observation: Observation, work: float | None, tenants: dict[str, float]
    ) -> Any:
        """The forecaster's history with `work` per second; `tenants`: replica-seconds of each, where they are told."""
        at, seconds = observation.at_seconds, observation.window_seconds
        apart = getattr(self.forecaster, "observe_tenants", None) if tenants and work is not None else None
        if apart is None:
            return self.forecaster.observe(memory.history, at, seconds, work)
        return apart(memory.history, at, seconds, work, {name: part / seconds for name, part in tenants.items()})

    def _forecast(self, memory: Memory, capacity: Capacity, at: int) -> Forecast | None:
        """What is coming; None where the forecaster says that it cannot tell, or tells what is no number."""
        try:
            forecast = self.forecaster.forecast(
                memory.history, memory.beliefs.forecast, at, forecast_windows(self.settings, capacity)
            )
        except ForecastError:  # reactive policies still speak
            return None
        if forecast is None or not all(map(math.isfinite, chain.from_iterable(forecast.values))):
            return None
        return forecast

    def _steered(self, facts: Facts, work: float | None) -> Facts:
        """`facts` with the headroom that the measured attainment asks for, and what outcomes say of past forecasts."""
        s, seen, capacity = self.settings, facts.observation, facts.capacity
        if not self.steers or capacity is None:
            return facts
        carried = seen.replicas.ready * capacity.feasible(max(1, seen.replicas.ready))
        load = work / carried if work is not None and carried > 0.0 else None
        minute = facts.work(60)
        risk = steered(
            facts.state.risk, s.risk, s.slo, seen, load=load, unknown=bool(facts.unknown), work=minute,
            lead_seconds=capacity.startup(0.9), short=short(facts.state, seen, facts.current),
        )  # fmt: skip
        trust = facts.state.trust
        if s.strategy != "reactive":
            trust = witnessed(
                trust, seen.at_seconds, facts.forecast, Ahead().settings.quantile, work=minute,
                least=0.5 * capacity.feasible(1),
            )  # fmt: skip
        state = replace(facts.state, risk=risk, trust=trust)
        return replace(facts, state=state, headroom=math.exp(risk.log_headroom))

    @property
    def _adapts(self) -> bool:
        return self.steers and self.settings.adapt

    def _chosen(self, choice: Choice | None) -> tuple[Policy, ...]:
        """The policies, with the reactive rule as it would have been the cheapest lately."""
        if choice is None or not self._adapts:
            return self.policies
        return (Work(settings=WorkSettings(window_seconds=choice.chosen.window_seconds)), *self.policies[1:])

    @staticmethod
    def _recommend(policy: Policy, facts: Facts) -> Reason | None:
        answer = policy.recommend(facts)
        if answer is None or isinstance(answer, Reason):
            return answer
        return Reason(rule=f"policy:{type(policy).__name__}", before=facts.current, after=answer)

    def _power(self, facts: Facts) -> PowerPlan | None:
        """What an idle pool should be in; None for one that is not idle or has nothing to power down to."""
        if not self.settings.preload.tiers or facts.capacity is None:
            return None
        powers = states_of(self.settings.preload, facts.capacity, self.settings.slo.ttft_seconds)
        return plan(facts.state.idle, powers, facts.observation.at_seconds)

    def _wanted(
        self, facts: Facts, proposals: tuple[Reason, ...], power: PowerPlan | None, choice: Choice | None
    ) -> tuple[State, tuple[Reason, ...]]:
        """(state, reasons): the largest proposal, and the limits on how fast, in replicas that carry."""
        s, at, current = self.settings, facts.observation.at_seconds, facts.current
        desired = facts.observation.replicas.desired
        keep_seconds = choice.chosen.keep_seconds if choice and self._adapts else keep_window(s, facts.capacity)
        best = max(proposals, key=lambda r: r.after, default=None)
        if best is None:
            best = Reason(rule="hold", before=current, after=current)
        wanted, reasons = best.after, [best if current == desired else replace(best, before=desired)]
        # Work that may wait keeps nothing: it is not late when a replica has to come again.
        urgent = max((r.after for r in proposals if r.rule != "deferrable"), default=wanted)
        recommended, low = bound.remember(s.limits, facts.state, at, urgent, keep_seconds)
        state = replace(facts.state, recommended=recommended, recommended_low=low)
        stages: tuple[Callable[[int], tuple[int, Reason | None]], ...] = (
            lambda n: powered_down(power, proposals, n),
            lambda n: bound.keep(state, at, current, n, keep_seconds, power),
            lambda n: bound.unknown(facts, n),
            lambda n: bound.tolerance(s.limits, current, n),
            lambda n: bound.stabilization(s.limits, state, at, current, n),
            lambda n: bound.rate(s.limits, state, at, current, n),
        )
        for stage in stages:
            wanted, reason = stage(wanted)
            if reason is not None:
                reasons.append(reason)
        return state, tuple(reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One pool in the middle of its step."""

    autoscaler: Autoscaler
    learned: Memory
    facts: Facts
    work: float | None
    proposals: tuple[Reason, ...]
    state: State
    reasons: tuple[Reason, ...]
    power: PowerPlan | None = None

    @property
    def wanted(self) -> int:
        """The number that it has come to."""
        return self.reasons[-1].after

    def then(self, reason: Reason | None) -> Turn:
        """The turn after a stage, which changed the number if it has a Reason."""
        return self if reason is None else replace(self, reasons=(*self.reasons, reason))

    @property
    def member(self) -> Member:
        """What pools that share something see of it: it asks for no more than its maximum."""
        settings, observation = self.autoscaler.settings, self.facts.observation
        if settings.limits.quota is None and settings.limits.ratio is None:
            return Member(settings=settings, observation=observation, wanted=self.wanted)
        most = bound.bounds_at(settings.limits, observation.at_seconds)[1]
        return Member(settings=settings, observation=observation, wanted=min(self.wanted, most))


def bound_by(reasons: Sequence[Reason]) -> str:
    """What set the number instead of the work: ``most`` (no more may be had), ``least`` (no fewer are kept), or neither."""
    for reason in reversed(reasons):
        if reason.rule in ("bounds", "spare", "rate", "ratio"):
            return "most" if reason.after < reason.before else "least"
    return "" if reasons[0].rule in ("reactive", "predictive", "wake") else "least"


def of_role(lengths: Lengths, role: str) -> Lengths:
    """What replicas of a role see of a request: a prefill pool makes one token of the answer."""
    return replace(lengths, mean_output_tokens=1.0, output_cv=0.0) if role == "prefill" else lengths


def part_of(capacity: Capacity, role: str) -> Capacity:
    """Capacity that counts only a role's part of a request as work: the prompt, or the answer."""
    if role == "prefill":
        return replace(capacity, seconds_per_output_token=0.0)
    return replace(capacity, seconds_per_prompt_token=0.0) if role == "decode" else capacity


def keep_window(settings: PoolSettings, capacity: Capacity | None) -> int:
    """How long a replica that was wanted is kept, in seconds: its start-up time, but at least 300 s, unless set."""
    if settings.keep_seconds is not None:
        return settings.keep_seconds
    return max(300, round(capacity.startup(0.9)) if capacity is not None else 0)


def forecast_windows(settings: PoolSettings, capacity: Capacity) -> tuple[tuple[int, int], ...]:
    """What decisions ask the forecaster, in seconds ahead: when a replica ordered now is ready, and while one is kept."""
    ahead = round(capacity.startup(0.9))
    return (ahead, ahead + 60), (0, max(60, keep_window(settings, capacity)))


def step_group(
    autoscalers: Sequence[Autoscaler], memories: Sequence[Memory], observations: Sequence[Observation]
) -> list[tuple[Step, Memory]]:
    """Decide for pools that share something (a ratio, a quota) in one call; a single step is the group of one.

    A pool whose last Step was at the same instant keeps it.
    """
    done: dict[int, tuple[Step, Memory]] = {}
    turns: dict[int, Turn] = {}
    for i, (autoscaler, memory, observation) in enumerate(zip(autoscalers, memories, observations, strict=True)):
        last = memory.last_step
        if last is not None and last.observation.at_seconds == observation.at_seconds:
            done[i] = last, memory
        else:
            turns[i] = autoscaler.begin(memory, observation)
    coupled = ratio([turn.member for turn in turns.values()]) if len(turns) > 1 else [None] * len(turns)
    for (i, turn), reason in zip(list(turns.items()), coupled, strict=True):
        raised = reason is not None and reason.after > turn.wanted
        turns[i] = turn.autoscaler.sized(turn.then(reason if raised else None))
    shares = spares([turn.member for turn in turns.values()])
    for (i, turn), share in zip(turns.items(), shares, strict=True):
        done[i] = turn.autoscaler.end(turn, share)
    return [done[i] for i in range(len(done))]


def unknown_groups(settings: PoolSettings, state: State, observation: Observation) -> tuple[str, ...]:
    """The declared signal groups that this Observation does not measure: nothing may be lowered without them.

    Declared are those the settings name, or else those this pool has ever reported, latency excepted: it may be silent
    when nobody asks.  While no replica is ready none can report load, and demand at the door suffices.
    """
    declared: tuple[str, ...] = settings.expects or tuple(g for g in state.seen if g != "latency")
    measured = _measured(observation)
    ready = observation.replicas.ready
    return tuple(g for g in declared if g not in measured and not (g == "load" and ready == 0))


def _measured(observation: Observation) -> tuple[str, ...]:
    demand, load, latency = observation.demand, observation.load, observation.latency
    found = []
    if demand is not None and (demand.requests is not None or demand.prompt_tokens is not None):
        idle_but_held = demand.requests == 0 and load is not None and (load.replicas_reporting == 0)
        if not (idle_but_held and observation.replicas.ready > 0):
            found.append("demand")
    if load is not None and (load.running_requests is not None or load.waiting_requests is not None):
        ready, reporting = observation.replicas.ready, load.replicas_reporting
        if reporting is None or reporting >= LEAST_REPORTING_FRACTION * ready:
            found.append("load")
    if latency is not None:
        found.append("latency")
    return tuple(found)


def _with_seen(state: State, observation: Observation) -> State:
    new = tuple(g for g in _measured(observation) if g not in state.seen)
    return replace(state, seen=tuple(sorted((*state.seen, *new)))) if new else state
