"""Drills: a rule fails where it should, worlds differ in the fault alone, and a restart is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_world import ours, setup, theirs

from autoscaler.embed import Pool
from autoscaler.errors import ForecastError
from load_tests import drills
from load_tests.bench import BENCHES
from load_tests.campaign import contestants_of
from load_tests.drill_contestants import Broken, Restarted, with_forecaster
from load_tests.drill_worlds import AT_SECONDS, FOR_SECONDS, ramp_world
from load_tests.drills import Drill, Hall
from load_tests.peers import HpaSettings, Kpa, KpaSettings, StaticSettings
from load_tests.run import Run
from load_tests.scenario import PoolPolicy
from load_tests.simulator import simulate


@pytest.fixture(scope="module")
def hall() -> Hall:
    return Hall()


@pytest.fixture(scope="module")
def normal(hall: Hall) -> Run:
    return hall.run(ramp_world(), HpaSettings())


def asked(run: Run, start: float, end: float, change: int) -> Run:
    """The run as if so many more had been asked for in [start, end)."""
    line = run.timeline
    rows = (line.at_seconds >= start) & (line.at_seconds < end)
    return replace(run, timeline=replace(line, desired=line.desired + change * rows))


END = AT_SECONDS + FOR_SECONDS


@pytest.mark.parametrize(
    ("rule", "start", "end", "bad", "good"),
    [
        (drills.never_below, AT_SECONDS + 60, AT_SECONDS + 120, -2, 3),
        (drills.back_to_normal, END, END + 120, -2, 2),
        (drills.not_moved, AT_SECONDS + 15, AT_SECONDS + 60, 2, 1),
        (drills.not_moved, AT_SECONDS + 15, AT_SECONDS + 60, -2, -1),
        (drills.no_storm, AT_SECONDS, 5400, 2, 1),
        (drills.same_decisions, AT_SECONDS, AT_SECONDS + 15, 1, 0),
    ],
)
def test_a_rule_fails_where_it_should_and_nowhere_else(normal, rule, start, end, bad, good):
    def passed(run: Run) -> bool:
        _, value, _, op, goal = rule(run, normal)
        return value <= goal if op == "<=" else value >= goal

    # A flat line, so that what is asked for at the edges does not hide the change.
    flat = replace(normal, timeline=replace(normal.timeline, desired=np.full_like(normal.timeline.desired, 5)))
    normal = flat
    assert passed(flat)
    assert not passed(asked(flat, start, end, bad))
    assert passed(asked(flat, start, end, good))


def test_the_promise_is_judged_once_the_fault_had_time(hall):
    few, many = (hall.run(ramp_world(), StaticSettings(replicas=n)) for n in (3, 12))
    _, missed, _, _, goal = drills.holds_again(few, few)
    assert missed > goal
    _, missed, _, _, goal = drills.holds_again(many, many)
    assert missed <= goal


def test_a_world_and_its_drill_share_the_traffic(hall):
    drill = next(d for d in drills.drills() if d.name.startswith("start-up"))
    assert hall.prepared(drill.normal).setup.requests is hall.prepared(drill.faulty).setup.requests
    assert hall.prepared(drill.normal).setup.faults == ()
    assert len(hall.prepared(drill.faulty).setup.faults) == 1


def test_drill_names_differ_and_the_bench_is_listed():
    names = [drill.name for drill in drills.drills()]
    assert len(set(names)) == len(names) >= 12
    assert all(drill.rules for drill in drills.drills())
    assert "drills" in BENCHES


@pytest.mark.parametrize("name", ["scrape outage of 10 min", "a fifth of replicas die"])
def test_a_drill_yields_a_figure_per_rule(hall, name):
    drill = next(d for d in drills.drills() if d.name == name)
    figures = list(hall.figures(drill, HpaSettings()))
    assert len(figures) == len(drill.rules)
    assert {f.policy for f in figures} == {"hpa running_and_waiting_requests"}
    assert figures[0].passed


def test_an_outage_shows_in_the_run(hall):
    drill = next(d for d in drills.drills() if d.name == "no nodes for 20 min")
    short = hall.run(drill.faulty, HpaSettings())
    rows = (short.timeline.at_seconds > AT_SECONDS + 300) & (short.timeline.at_seconds < AT_SECONDS + 1200)
    assert (np.diff(short.timeline.ready[rows]) <= 0).all()
    assert [e.note for e in short.events if e.kind == "fault"] == ["no nodes for new replicas", "nodes again"]


def test_a_restart_of_ours_is_not_seen_and_one_that_forgets_is():
    # While the load falls: who forgets what was kept gives replicas back at once.
    world, at = setup(), 900.0
    through = simulate(world, [ours()])
    restarted = simulate(world, [Restarted(ours, at)])
    assert restarted.timeline.desired.tolist() == through.timeline.desired.tolist()
    assert restarted.events == through.events

    class Forgetful(Restarted):
        def decide(self, at_seconds, moment):
            kept = Pool.restore
            Pool.restore = lambda self, snapshot: None
            try:
                return super().decide(at_seconds, moment)
            finally:
                Pool.restore = kept

    forgot = simulate(world, [Forgetful(ours, at)])
    assert forgot.events != through.events


def test_a_restarted_peer_begins_with_nothing():
    made = []

    def make():
        made.append(theirs(Kpa(KpaSettings())))
        return made[-1]

    simulate(setup(), [Restarted(make, 600.0)])
    assert len(made) == 2
    assert made[0].peer is not made[1].peer


def test_a_broken_forecaster_spoils_forecasts_only(hall):
    prepared = hall.prepared(ramp_world())
    contestant = with_forecaster(prepared, PoolPolicy(), "x10")
    real = contestants_of(prepared, PoolPolicy())[0].pool.autoscaler.forecaster
    broken = contestant.pool.autoscaler.forecaster
    assert isinstance(broken, Broken)
    history, beliefs = real.start()
    at = 1_700_000_000
    for tick in range(4 * 240):
        history = real.observe(history, at + 15 * tick, 15, 3.0)
    windows = ((60, 300),)
    told = real.forecast(history, beliefs, at + 15 * 960, windows)
    spoilt = broken.forecast(history, beliefs, at + 15 * 960, windows)
    assert told is not None
    assert spoilt is not None
    np.testing.assert_allclose(spoilt.values, 10 * np.array(told.values))
    with pytest.raises(ForecastError, match="dead"):
        Broken(real, "raises").forecast(history, beliefs, at, windows)


def test_figures_compare_with_the_right_sign():
    made = drills.Figure(drill="d", policy="p", what="w", value=1.0, unit="", op="<=", goal=1.0)
    assert made.passed
    assert not replace(made, value=1.1).passed
    assert replace(made, op=">=", value=1.1).passed
    assert isinstance(drills.drills()[0], Drill)
