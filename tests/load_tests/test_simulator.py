"""The whole loop on a simulated fleet: what is decided happens, what happens is paid, and what is seen is true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_world import PROFILE, ours, requests, setup, theirs

from autoscaler.log import verify
from autoscaler.types import Observation
from load_tests.births import Births, StartupModel
from load_tests.fault_plan import FaultPlan
from load_tests.faults import CapacityChange, CounterReset, NodeShortage, ReplicaFailure, ScrapeGap, StartupSlower
from load_tests.fleet import Fleet, Requests
from load_tests.life import Life
from load_tests.need import Need
from load_tests.peers import HpaSettings, StaticSettings, peer_of
from load_tests.run import Run, judge, metrics
from load_tests.scenario import Startup, startup_of
from load_tests.simulator import simulate
from serving.profiles import profile


def same(a: Run, b: Run) -> bool:
    arrays = ("first_token_seconds", "finish_seconds", "status")
    return (
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)
        and a.events == b.events
        and a.replica_seconds == b.replica_seconds
        and np.array_equal(a.timeline.desired, b.timeline.desired)
    )


def test_same_seed_same_bytes_and_another_seed_another_run() -> None:
    first, again = simulate(setup(), [ours()]), simulate(setup(), [ours()])
    assert same(first, again)
    assert not same(first, simulate(setup(seed=2), [ours()]))


def test_stepping_every_step_gives_the_same_decisions() -> None:
    short = setup(requests=requests(300.0, 40.0), end_seconds=300.0)
    fast, slow = simulate(short, [ours()]), simulate(replace(short, every_step=True), [ours()])
    assert fast.timeline.desired.tolist() == slow.timeline.desired.tolist()
    np.testing.assert_allclose(fast.first_token_seconds, slow.first_token_seconds, rtol=0, atol=1e-9)
    np.testing.assert_allclose(fast.finish_seconds, slow.finish_seconds, rtol=0, atol=1e-9)


def test_our_pool_follows_the_ramp_and_its_log_replays(tmp_path: Path) -> None:
    contestant = ours(log=tmp_path / "pool")
    run = simulate(setup(), [contestant])
    assert verify(contestant.pool.autoscaler, tmp_path / "pool") == 119
    assert run.timeline.desired.max() >= 3
    found = metrics(run)
    assert found.attainment_fraction is not None
    assert found.attainment_fraction > 0.9
    assert all(event.reasons for event in run.events)
    assert [e.before for e in run.events][1:] == [e.after for e in run.events][:-1]


def test_a_static_fleet_costs_its_size() -> None:
    run = simulate(setup(initial=(3,), score_from_seconds=200.0), [theirs(peer_of(StaticSettings(replicas=3)))])
    assert run.replica_seconds.paid == pytest.approx(3 * 1000.0)
    assert run.replica_seconds.starting == 0
    assert run.starts == 0
    assert run.events == ()


def test_starting_and_draining_are_paid() -> None:
    run = simulate(setup(), [theirs(peer_of(HpaSettings(target=10.0), max_replicas=20))])
    paid = run.replica_seconds
    assert paid.starting > 0
    assert paid.draining > 0
    rows = run.timeline
    counted = float((rows.ready + rows.starting + rows.draining).sum()) * run.interval_seconds
    assert paid.paid == pytest.approx(counted, rel=0.1)


def test_two_policies_see_the_same_kth_start() -> None:
    world = setup()

    def first_wait(run: Run) -> float:
        ordered = next(e.at_seconds for e in run.events if e.after > e.before)
        rows = run.timeline
        ready = rows.at_seconds[(rows.at_seconds > ordered) & (rows.ready > 1)][0]
        return float(ready - ordered)

    mine = simulate(replace(world, interval_seconds=1), [ours()])
    hpa = simulate(replace(world, interval_seconds=1), [theirs(peer_of(HpaSettings(target=10.0), max_replicas=20))])
    assert abs(first_wait(mine) - first_wait(hpa)) <= 1.0


def watched(**world: object) -> tuple[Run, list[Observation]]:
    contestant = ours()
    seen: list[Observation] = []
    step = contestant.pool.step

    def spy(observation: Observation) -> object:
        seen.append(observation)
        return step(observation)

    contestant.pool.step = spy  # type: ignore[method-assign, assignment]
    return simulate(setup(**world), [contestant]), seen


def test_what_a_scraper_sees_adds_up_to_what_happened() -> None:
    run, seen = watched()
    last = seen[-1].at_seconds - 1_700_000_000
    arrived = run.arrival_seconds <= last
    demands = [o.demand for o in seen]
    assert sum(d.requests for d in demands if d and d.requests) == arrived.sum()
    assert sum(d.prompt_tokens for d in demands if d and d.prompt_tokens) == run.prompt_tokens[arrived].sum()
    finished = run.finish_seconds <= last
    assert sum(d.finished_requests for d in demands if d and d.finished_requests) == finished.sum()
    # The bounds on violations hold the truth, as far as requests have come to an end.
    low = sum(o.latency.violated_requests[0] for o in seen if o.latency and o.latency.violated_requests)
    high = sum(o.latency.violated_requests[1] for o in seen if o.latency and o.latency.violated_requests)
    judged = judge(run)
    late = int((judged.late & (run.first_token_seconds <= last)).sum())
    slow = int((judged.slow & finished).sum())
    assert low <= late + slow
    assert high >= int(((judged.late & (run.first_token_seconds <= last)) | (judged.slow & finished)).sum())


def test_nothing_is_lowered_while_the_scrape_is_out() -> None:
    gap = ScrapeGap(at_seconds=700.0, for_seconds=300.0)  # load falls all the while
    run, seen = watched(faults=(gap,))
    blind = [o for o in seen if o.demand is None]
    assert len(blind) == 30
    lowered = [e for e in run.events if e.kind == "decision" and e.after < e.before and 700 <= e.at_seconds < 1000]
    assert lowered == []
    assert [e.note for e in run.events if e.kind == "fault"] == ["metrics are not answered", "metrics are back"]


def test_dead_replicas_are_replaced_by_the_platform() -> None:
    run = simulate(
        setup(initial=(4,), faults=(ReplicaFailure(at_seconds=300.0, count=2),)),
        [theirs(peer_of(StaticSettings(replicas=4)))],
    )
    ready = run.timeline.ready
    assert ready[29] == 4
    assert ready[31] == 2
    assert ready[-1] == 4
    assert run.starts == 2
    assert (run.status == 1).sum() > 0


def test_slower_starts_and_slower_replicas_are_slower() -> None:
    plain = simulate(setup(), [ours()])
    late = simulate(setup(faults=(StartupSlower(factor=3.0),)), [ours()])
    weak = simulate(setup(faults=(CapacityChange(factor=0.5),)), [ours()])
    assert late.replica_seconds.starting > 2 * plain.replica_seconds.starting
    assert metrics(weak).itl_p50_seconds > 1.3 * metrics(plain).itl_p50_seconds  # type: ignore[operator]


def test_no_node_no_replica_until_nodes_are_back() -> None:
    shortage = NodeShortage(at_seconds=1.0, for_seconds=799.0)
    run = simulate(setup(faults=(shortage,)), [ours()])
    rows = run.timeline
    assert rows.ready[rows.at_seconds < 800].max() == 1
    assert rows.ready[rows.at_seconds > 900].max() > 1


def test_a_counter_reset_takes_part_of_one_window() -> None:
    plan = FaultPlan((CounterReset(at_seconds=103.0, replicas="all"), CounterReset(at_seconds=205.0, replicas="one")))
    assert plan.kept_fraction(100.0, 10.0, 4) == 1.0
    assert plan.kept_fraction(110.0, 10.0, 4) == pytest.approx(0.7)
    assert plan.kept_fraction(210.0, 10.0, 4) == pytest.approx(1 - 0.25 * 0.5)
    assert plan.kept_fraction(120.0, 10.0, 4) == 1.0


def test_need_is_what_a_static_fleet_needs() -> None:
    """A fleet one above the largest need attains the SLO on steady traffic, and one of 70 % of it does not."""
    world = setup()
    steady = world.requests
    need = Need(world.pools[0], steady, world.slo)
    peak = float(need.between(np.arange(0.0, 1200.0, 60.0), np.arange(60.0, 1260.0, 60.0)).max())
    above, below = int(peak) + 2, max(1, int(0.7 * peak))

    def attained(n: int) -> float:
        found = metrics(simulate(replace(world, initial=(n,)), [theirs(peer_of(StaticSettings(replicas=n)))]))
        assert found.attainment_fraction is not None
        return found.attainment_fraction

    assert attained(above) >= 0.99
    assert attained(below) < 0.99


def test_a_removed_replica_is_the_least_loaded_and_its_requests_finish() -> None:
    world = setup(initial=(3,))
    fleet = Fleet(world.pools, world.requests)
    life = Life(fleet, 0, Births(world.startup, "pool", 1), initial=3)
    fleet.advance(60.0)
    gauges = fleet.gauges(0)
    load = dict(zip(gauges.ids.tolist(), gauges.outstanding.tolist(), strict=True))
    life.scale(60.0, 2)
    (removed,) = set(load) - set(life.serving)
    assert load[removed] == min(load.values())
    assert life.draining == 1
    fleet.advance(120.0)
    life.happen(120.0)
    assert life.draining == 0
    assert (fleet.outcome().status == 1).sum() == 0


def test_the_youngest_start_is_given_up_first() -> None:
    world = setup()
    fleet = Fleet(world.pools, world.requests)
    births = Births(world.startup, "pool", 1)
    life = Life(fleet, 0, births, initial=1)
    life.scale(0.0, 3)
    fleet.advance(5.0)
    life.scale(5.0, 4)
    assert births.starting == (0, 1, 2)
    life.scale(5.0, 3)
    assert births.starting == (0, 1)
    counts = life.counts(1000)
    assert (counts.desired, counts.ready, counts.starting) == (3, 1, 2)
    assert all(at > 1005 for at in counts.starting_ready_at_seconds)


def test_replicas_sleep_are_paid_for_and_wake_before_any_is_born() -> None:
    known = profile(PROFILE)
    wake = StartupModel.of(startup_of(Startup(profile="sleep_l1")), weights_gb=known.weights_gb, layers=known.layers)
    ramp = requests(1200.0, 80.0)
    twice = Requests(
        arrival_seconds=np.concatenate([ramp.arrival_seconds, ramp.arrival_seconds + 1200.0]),
        prompt_tokens=np.tile(ramp.prompt_tokens, 2),
        output_tokens=np.tile(ramp.output_tokens, 2),
    )
    world = setup(requests=twice, end_seconds=2400.0)
    plain = simulate(world, [ours(keep_seconds=0)])
    asleep = simulate(replace(world, wake=wake, sleepers=2), [ours(keep_seconds=0)])
    assert plain.replica_seconds.sleeping == 0
    assert asleep.replica_seconds.sleeping > 300
    assert asleep.replica_seconds.starting < 0.8 * plain.replica_seconds.starting  # a wake takes 1.4 s, a birth 38 s
    assert (asleep.status == 1).sum() == 0
    second = asleep.arrival_seconds > 1200.0

    def late(run: Run) -> int:
        return int((judge(run).late & second).sum())

    assert late(asleep) <= late(plain)


def test_no_more_sleep_than_may_and_the_rest_go() -> None:
    world = setup(initial=(5,))
    fleet = Fleet(world.pools, world.requests)
    life = Life(
        fleet, 0, Births(world.startup, "pool", 1), initial=5, wakes=Births(world.startup, "pool wakes", 1), sleepers=2
    )
    fleet.advance(30.0)
    life.scale(30.0, 1)
    fleet.advance(200.0)
    life.happen(200.0)
    assert (life.sleeping, life.draining, len(life.serving)) == (2, 0, 1)
    assert life.counts(0).sleeping == 2
    life.scale(200.0, 4)
    assert life.sleeping == 0
    assert [len(source.starting) for source in life.sources] == [1, 2]
    paid = life.paid(0.0, 200.0)
    assert paid.sleeping > 0
    assert paid.paid < 5 * 200.0
