"""Faults of replicas, of signals, of clients and of other writers: what each does, and that it does no more."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from small_world import ours, requests, setup, theirs

from autoscaler.errors import ConfigError
from load_tests.births import Births, StartupModel
from load_tests.contestants import Moment, PeerContestant
from load_tests.fault_plan import FaultPlan
from load_tests.faults import (
    CapacityChange,
    CounterReset,
    EmptyAnswer,
    EngineStuck,
    NewVersion,
    Retries,
    SecondWriter,
    SilentReplicas,
    StaleSamples,
    StartHangs,
    ZoneLost,
)
from load_tests.fleet import Fleet, PoolModel, ReplicaModel, Requests
from load_tests.fluid import FluidSimulation
from load_tests.life import Life
from load_tests.peers import Hpa, HpaSettings, Kpa, KpaSettings, StaticSettings, peer_of
from load_tests.plant_view import PlantView
from load_tests.retries import LOOK_SECONDS
from load_tests.run import Run
from load_tests.signals import Seen
from load_tests.simulator import Simulation, simulate
from serving.profiles import StageSeconds

AT, LONG = 300.0, 120.0


def stage(seconds: float) -> StageSeconds:
    return StageSeconds(name=f"{seconds:g}", seconds=seconds, sigma=0.0, of_node=False, weights_gb=0.0)


def static(replicas: int) -> PeerContestant:
    return theirs(peer_of(StaticSettings(replicas=replicas)))


def world(*faults, replicas: int = 4, **changes) -> Run:
    return simulate(setup(faults=faults, initial=(replicas,), **changes), [static(replicas)])


class Looking(PeerContestant):
    """A fixed number that writes down what it is shown at every tick."""

    def __init__(self, replicas: int, read) -> None:
        super().__init__(peer_of(StaticSettings(replicas=replicas)))
        self.read, self.seen = read, {}
        self.interval_seconds = 15

    def begin(self, fleet, pool, life, origin_at_seconds) -> None:
        super().begin(fleet, pool, life, origin_at_seconds)
        self._view = PlantView(fleet, pool)

    def decide(self, at_seconds, moment):
        answer = super().decide(at_seconds, moment)
        self.seen[at_seconds] = self.read(self._view)
        return answer


def shown(read, *faults, replicas: int = 4) -> dict:
    looking = Looking(replicas, read)
    simulate(setup(faults=faults, initial=(replicas,)), [looking])
    return looking.seen


def running(view) -> list[float] | None:
    column = view.per_replica("running")
    return None if column is None else column.tolist()


def test_signal_faults_leave_the_plant_alone():
    plain = world()
    for fault in (
        EmptyAnswer(at_seconds=AT),
        StaleSamples(at_seconds=AT),
        SilentReplicas(at_seconds=AT),
        CounterReset(at_seconds=AT),
    ):
        faulty = world(fault)
        np.testing.assert_array_equal(faulty.finish_seconds, plain.finish_seconds)
        assert any(event.kind == "fault" for event in faulty.events)


def test_half_of_the_replicas_are_silent_for_a_while_and_the_door_is_not():
    fault = SilentReplicas(at_seconds=AT, for_seconds=LONG)
    plain, half = shown(running), shown(running, fault)
    assert half[AT + 15] == plain[AT + 15][::2]
    assert half[AT - 15] == plain[AT - 15]
    assert half[AT + LONG] == plain[AT + LONG]
    door = lambda view: (view.rate("arrivals", 15), view.rate("output_tokens", 15), view.ready)  # noqa: E731
    plain, half = shown(door), shown(door, fault)
    blind = shown(door, replace(fault, door=False))
    assert half[AT + 30][0] == plain[AT + 30][0]
    assert half[AT + 30][1] == pytest.approx(plain[AT + 30][1] / 2)
    assert half[AT + 30][2] == 4
    assert blind[AT + 30][0] == pytest.approx(plain[AT + 30][0] / 2)
    # What was not seen is never made up for.
    assert blind[AT + LONG + 15][0] == pytest.approx(plain[AT + LONG + 15][0])


def test_an_empty_answer_is_neither_zero_nor_silence():
    read = lambda view: (running(view), view.rate("arrivals", 15), view.held_requests, view.ready)  # noqa: E731
    seen = shown(read, EmptyAnswer(at_seconds=AT, for_seconds=LONG))
    assert seen[AT] == ([], None, 0, 4)
    assert len(seen[AT + LONG][0]) == 4
    observations = []
    contestant = ours()
    step = contestant.pool.step
    contestant.pool.step = lambda o: observations.append(o) or step(o)
    simulate(setup(faults=(EmptyAnswer(at_seconds=AT, for_seconds=LONG),)), [contestant])
    inside = [o for o in observations if AT <= o.at_seconds - 1_700_000_000 < AT + LONG]
    assert inside
    assert all(o.demand.requests is None and o.load.running_requests is None for o in inside)
    assert all(o.load.replicas_reporting == 0 for o in inside)


def test_stale_samples_are_repeated_until_they_are_too_old():
    fault = StaleSamples(at_seconds=AT, for_seconds=600.0)
    plain, stale = shown(running), shown(running, fault)
    assert stale[AT + 15] == stale[AT + 285] == plain[AT] != plain[AT + 285]
    assert stale[AT + 300] is None
    assert stale[AT + 600] == plain[AT + 600]
    rates = shown(lambda view: view.rate("arrivals", 60), fault)
    assert rates[AT + 30] is not None
    assert rates[AT + 120] is None
    # No rate reaches back over what was not seen.
    plain = shown(lambda view: view.rate("arrivals", 15))
    assert rates[AT + 600] is None
    assert rates[AT + 615] == pytest.approx(plain[AT + 615])
    contestant, measured = ours(), {}
    step = contestant.pool.step
    contestant.pool.step = lambda o: measured.update({o.at_seconds - 1_700_000_000: o.demand is not None}) or step(o)
    simulate(setup(faults=(fault,)), [contestant])
    assert measured[AT + 40]
    assert not measured[AT + 50]
    assert measured[AT + 600]


def test_a_reset_takes_from_peers_what_came_before_it_in_the_window():
    rate = lambda view: view.rate("arrivals", 15)  # noqa: E731
    plain, reset = shown(rate), shown(rate, CounterReset(at_seconds=AT + 5, replicas="all"))
    assert reset[AT + 15] == pytest.approx(plain[AT + 15] * 10 / 15)
    assert reset[AT + 30] == pytest.approx(plain[AT + 30])


def test_a_stuck_engine_repeats_its_gauges_and_ends_nothing_until_it_is_killed():
    fault = EngineStuck(at_seconds=AT, for_seconds=LONG)
    seen = shown(lambda view: (running(view)[0], view.per_replica("outstanding").tolist()[0]), fault)
    assert len({seen[AT + 15 * i][0] for i in range(1, 8)}) == 1
    assert seen[AT + 105][1] > seen[AT + 15][1]
    run = world(fault)
    assert (run.status == 1).sum() > 0
    failed = run.finish_seconds[run.status == 1]
    assert np.isinf(failed).all()
    assert run.timeline.ready[run.timeline.at_seconds == AT + LONG - 10] == 4
    assert run.timeline.ready[run.timeline.at_seconds == AT + LONG] == 3
    assert run.timeline.ready[-1] == 4


def test_a_stuck_engine_that_drains_is_killed_too():
    simulation = Simulation(setup(faults=(EngineStuck(at_seconds=AT, for_seconds=LONG),), initial=(3,)), [static(3)])
    life = simulation.lives[0]
    simulation.run()
    assert life.lost == [AT + LONG]
    assert life.stuck == ()


def test_the_next_start_hangs_for_ever():
    model = StartupModel(stages=(stage(10.0), stage(20.0)))
    births = Births(model, "pool", 1)
    births.hangs = 1
    births.order(0.0)
    births.order(0.0)
    assert births.ended(1e6) == [(30.0, 1, False)]
    assert births.next_ready_seconds() == math.inf
    assert births.starting == (0,)
    births.cancel(0)
    assert births.starting == ()
    run = simulate(setup(faults=(StartHangs(at_seconds=0.0),), initial=(1,)), [static(3)])
    assert run.timeline.ready[-1] == 2
    assert run.timeline.starting[-1] == 1


def test_a_lost_zone_takes_its_share_and_others_have_no_node_for_a_while():
    run = world(ZoneLost(fraction=0.5, at_seconds=AT, for_seconds=LONG))
    ready = dict(zip(run.timeline.at_seconds.tolist(), run.timeline.ready.tolist(), strict=True))
    assert ready[AT - 10] == 4
    assert ready[AT] == ready[AT + LONG] == 2
    assert run.timeline.ready[-1] == 4
    assert run.starts == 2


def test_a_new_version_is_as_slow_as_its_law_from_one_step_to_the_next():
    """Every term twice as long is half the capacity, host terms aside."""
    law = ReplicaModel(
        a=0.01, b=1e-5, c=1e-5, d=1e-9, e=0.0, kv_capacity_tokens=100_000, step_overhead_seconds=0.0,
        sequence_overhead_seconds=0.0,
    )  # fmt: skip
    traffic = requests(300.0, 5.0)

    def finished(change) -> np.ndarray:
        fleet = Fleet([PoolModel(name="p", replica=law)], traffic)
        fleet.add(0)
        fleet.add(0)
        fleet.advance(100.0)
        change(fleet)
        fleet.advance(math.inf)
        return fleet.outcome().finish_seconds

    def half(fleet: Fleet) -> None:
        for replica in (0, 1):
            fleet.set_capacity_factor(replica, 0.5)

    np.testing.assert_allclose(finished(lambda f: f.change_law(0, 2.0, 2.0, 2.0)), finished(half))
    np.testing.assert_array_equal(finished(lambda f: f.change_law(0, 1.0, 1.0, 1.0)), finished(lambda f: None))
    assert world(NewVersion(at_seconds=AT, token_factor=3.0)).finish_seconds.sum() > world().finish_seconds.sum()


def test_somebody_else_writes_again_and_again():
    run = world(SecondWriter(replicas=2, every_seconds=60.0, at_seconds=AT, for_seconds=180.0))
    notes = [e.at_seconds for e in run.events if e.note == "somebody else asks for 2"]
    assert notes == [AT, AT + 60, AT + 120]
    assert [e.after for e in run.events if e.kind == "decision" and e.at_seconds >= AT] == [4, 4, 4]


def crowded(*faults) -> Run:
    return world(Retries(timeout_seconds=5.0, most=2), *faults, replicas=2)


def test_patient_clients_send_nothing_again():
    plain = world()
    run = world(Retries())
    assert len(run.arrival_seconds) == len(plain.arrival_seconds)
    np.testing.assert_array_equal(run.finish_seconds, plain.finish_seconds)
    np.testing.assert_array_equal(run.prompt_tokens, plain.prompt_tokens)


def test_who_gets_no_first_token_sends_the_same_again_so_many_times_and_no_more():
    slow = CapacityChange(factor=0.2, at_seconds=AT, for_seconds=LONG)
    without, run = world(slow, replicas=2), crowded(slow)
    more = len(run.arrival_seconds) - len(without.arrival_seconds)
    assert more > 100
    assert (np.diff(run.arrival_seconds) >= 0).all()
    wait = run.first_token_seconds - run.arrival_seconds
    late = wait > 5.0 + LOOK_SECONDS
    assert more <= late.sum() <= 3 * more
    assert not (wait[(run.arrival_seconds < AT - 10)] > 5.0).any()
    lengths, counts = np.unique(np.stack([run.prompt_tokens, run.output_tokens]), axis=1, return_counts=True)
    before = np.unique(np.stack([without.prompt_tokens, without.output_tokens]), axis=1, return_counts=True)
    np.testing.assert_array_equal(lengths, before[0])
    assert (counts <= 3 * before[1]).all()


def test_the_door_says_how_many_were_given_up():
    failed = shown(
        lambda view: view.rate("failed", 15),
        Retries(timeout_seconds=5.0),
        CapacityChange(factor=0.1, at_seconds=AT, for_seconds=LONG),
        replicas=2,
    )
    assert failed[AT - 15] == 0
    assert failed[AT + 60] > 1


def test_retries_are_refused_where_they_cannot_be_simulated():
    with pytest.raises(ConfigError, match="request by request"):
        FluidSimulation(setup(faults=(Retries(),)), [static(1)])
    two = np.ones(2, dtype=np.int64)
    loop = Requests(
        arrival_seconds=np.zeros(2), prompt_tokens=two, output_tokens=two, follows=np.array([-1, 0], dtype=np.int64)
    )
    with pytest.raises(ConfigError, match="closed loop"):
        simulate(setup(faults=(Retries(),), requests=loop), [static(1)])


def test_a_held_request_cannot_arrive_in_the_past():
    two = np.ones(2, dtype=np.int64)
    model = PoolModel(name="p", replica=ReplicaModel(a=0.1, b=0.0, c=0.0, d=0.0, e=0.0, kv_capacity_tokens=100))
    loop = Requests(
        arrival_seconds=np.zeros(2), prompt_tokens=two, output_tokens=two * 3, follows=np.array([-1, 0], dtype=np.int64)
    )
    fleet = Fleet([model], loop)
    fleet.add(0)
    fleet.hold()
    fleet.advance(5.0)
    assert fleet.first_tokens([0, 1]).tolist()[1] == math.inf
    with pytest.raises(ValueError, match="at_seconds"):
        fleet.release(1, 0, 4.0)
    fleet.release(1, 0, 6.0)
    fleet.advance(math.inf)
    assert fleet.outcome().finish_seconds[1] == pytest.approx(6.0 + fleet.outcome().finish_seconds[0])


def test_without_signal_faults_nobody_stands_between_fleet_and_contestant():
    simulation = Simulation(setup(initial=(1,)), [static(1)])
    assert not isinstance(simulation.contestants[0]._view._fleet, Seen)
    assert FaultPlan(()).alters_signals is False
    assert Moment() == Moment(measured=True, empty=False, stale_seconds=0.0)
    plan = FaultPlan((StaleSamples(at_seconds=AT, for_seconds=LONG),))
    assert [plan.stale_seconds(t) for t in (AT - 1, AT + 30, AT + LONG)] == [0.0, 30.0, 0.0]


@pytest.mark.parametrize("peer", [Hpa(HpaSettings()), Kpa(KpaSettings())])
def test_silent_pods_are_no_empty_pods(peer):
    """The originals count pods without a reading as like the rest, or do nothing."""
    steady = setup(faults=(SilentReplicas(at_seconds=600.0, for_seconds=120.0),))
    plain, silent = (simulate(world, [theirs(type(peer)(peer.settings))]) for world in (setup(), steady))
    rows = (plain.timeline.at_seconds >= 600) & (plain.timeline.at_seconds < 720)
    assert (silent.timeline.desired[rows] >= 0.7 * plain.timeline.desired[rows]).all()


def test_a_life_gives_up_its_oldest_starts():
    fleet = Fleet([PoolModel(name="p", replica=setup().pools[0].replica)], requests(60.0))
    model = StartupModel(stages=(stage(20.0),))
    life = Life(fleet, 0, Births(model, "p", 1), initial=1)
    life.scale(0.0, 4)
    life.give_up(5.0, 2)
    assert life.lost == [5.0, 5.0]
    assert life.starting == 3
    assert life.births.ordered == 5
