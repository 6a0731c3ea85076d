"""How close the fluid twin is to the plant: policies at several levels on train days, cost and attainment side by side.

Policies that oscillate amplify any difference, so each row also says how far the plant is from itself when only its
start-ups and routing are drawn anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from load_tests.bench import BenchRow
from load_tests.campaign import Prepared, contestants_of, prepare
from load_tests.fluid import fluid_run
from load_tests.oracle import attainment_of
from load_tests.peers import StaticSettings
from load_tests.policy_bench_cases import Case
from load_tests.policy_bench_cells import Own
from load_tests.policy_bench_grid import default_cases, quick_cases
from load_tests.scenario import Policy
from load_tests.simulator import Setup, simulate

# The start-ups of the shipped comparison that are looked at, by name.
STARTUP = "start 2 min"
COST_GOAL, ATTAINMENT_GOAL = 0.05, 0.005
POLICIES = ("static peak", "hpa work", "hpa tokens_per_second", "hpa running_and_waiting_requests", "auto")
# What misses so much is no candidate for any target: its backlogs are far from where policies are compared.
_OF_INTEREST = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One policy on one trace: the plant, the twin, and the plant with other draws of start-ups and routing."""

    trace: str
    policy: str
    attainment: tuple[float, float, float]
    gpu_hours: tuple[float, float, float]
    seconds: tuple[float, float]

    @property
    def cost_error(self) -> float:
        """Relative difference of the twin's cost."""
        return self.gpu_hours[1] / self.gpu_hours[0] - 1.0

    @property
    def attainment_error(self) -> float:
        """Difference of the twin's attainment."""
        return self.attainment[1] - self.attainment[0]


def cases(*, quick: bool) -> list[Case]:
    """Every trace of the shipped comparison at its size there."""
    return quick_cases()[:1] if quick else [c for c in default_cases() if c.family == STARTUP]


def compare(prepared: Prepared, policy: Policy) -> Agreement:
    """One policy in the plant, in the twin, and in the plant with other draws."""
    setup: Setup = prepared.setup
    if isinstance(policy, StaticSettings):
        setup = replace(setup, initial=(policy.replicas,))
    plant = simulate(setup, contestants_of(prepared, policy))
    twin = fluid_run(setup, contestants_of(prepared, policy))
    other = simulate(replace(setup, seed=setup.seed + 1), contestants_of(prepared, policy))
    hours = [run.replica_seconds.paid * run.gpus_per_replica / 3600 for run in (plant, other)]
    return Agreement(
        trace=prepared.scenario.name,
        policy=plant.policy,
        attainment=(attainment_of(plant) or 0.0, twin.attainment_fraction or 0.0, attainment_of(other) or 0.0),
        gpu_hours=(hours[0], twin.gpu_hours, hours[1]),
        seconds=(plant.wall_seconds, twin.wall_seconds),
    )


def rows(quick: bool) -> Iterable[BenchRow]:
    """Per trace and policy: the twin's errors in cost and attainment beside the plant's own scatter."""
    found: list[Agreement] = []
    for case in cases(quick=quick):
        # The last train day, or the hour of those that have no days.
        trace, prepared = case.name.split(",")[0], prepare((case.train or case.test)[0], 0)
        for policy in (c.at(None if c.tunes_itself else 1.0) for c in case.contenders if c.name in POLICIES):
            assert not isinstance(policy, Own)
            one = compare(prepared, policy)
            found.append(one)
            judged = one.attainment[0] >= _OF_INTEREST
            cost, points = 100 * one.cost_error, 100 * one.attainment_error
            yield BenchRow(
                name=f"{trace}, {one.policy} ({100 * one.attainment[0]:.2f} %): cost", value=abs(cost), unit="%",
                goal=100 * COST_GOAL if judged else None, baseline="plant, other draws",
                baseline_value=100 * abs(one.gpu_hours[2] / one.gpu_hours[0] - 1),
            )  # fmt: skip
            yield BenchRow(
                name=f"{trace}, {one.policy} ({100 * one.attainment[0]:.2f} %): attainment", value=abs(points),
                unit="points", goal=100 * ATTAINMENT_GOAL if judged else None, baseline="plant, other draws",
                baseline_value=100 * abs(one.attainment[2] - one.attainment[0]),
            )  # fmt: skip
    laws = [one for one in found if one.policy != "auto"]
    yield BenchRow(
        name="fixed fleets and HPA: time", value=sum(one.seconds[1] for one in laws), unit="s", baseline="plant",
        baseline_value=sum(one.seconds[0] for one in laws),
    )  # fmt: skip
