"""Drills: a rule fails where it should, worlds differ in the fault alone, and a restart is one."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from small_world import ours, setup, theirs

from autoscaler.embed import Pool, autoscaler_for
from autoscaler.errors import ConfigError, ForecastError, TargetConflict
from autoscaler.settings import Limits
from load_tests import drill_list, drill_tables, drills
from load_tests import drill_rules as rules
from load_tests.bench import BENCHES
from load_tests.campaign import contestants_of
from load_tests.drill_contestants import Broken, InLoop, Restarted, Watched, with_forecaster, with_scaled_forecast
from load_tests.drill_list import Drill
from load_tests.drill_rules import Belief, Trial
from load_tests.drill_worlds import (
    AT_SECONDS,
    CALM_RATE,
    CROWD_FACTOR,
    END_SECONDS,
    MOST,
    NEW_VERSION,
    SET_BACK_SECONDS,
    SLOWER,
    carried_fraction,
    ramp_world,
)
from load_tests.drills import Hall
from load_tests.faults import CapacityChange, Retries
from load_tests.peers import AhpaSettings, DynamoSettings, HpaSettings, Kpa, KpaSettings, StaticSettings
from load_tests.run import Event
from load_tests.scenario import PoolPolicy
from load_tests.simulator import simulate


@pytest.fixture(scope="module")
def hall() -> Hall:
    return Hall()


@pytest.fixture(scope="module")
def flat(hall: Hall) -> Trial:
    """A line at five, so that what is asked for at the edges does not hide a change."""
    trial = hall.trial(ramp_world(), HpaSettings())
    line = trial.run.timeline
    desired = np.full_like(line.desired, 5)
    return replace(trial, run=replace(trial.run, timeline=replace(line, desired=desired), events=()))


def asked(trial: Trial, start: float, end: float, change: int) -> Trial:
    """The trial as if so many more had been asked for in [start, end)."""
    line = trial.run.timeline
    rows = (line.at_seconds >= start) & (line.at_seconds < end)
    return replace(trial, run=replace(trial.run, timeline=replace(line, desired=line.desired + change * rows)))


def holds(found: rules.Found | None) -> bool:
    assert found is not None
    return found.value <= found.goal if found.op == "<=" else found.value >= found.goal


@pytest.mark.parametrize(
    ("rule", "start", "end", "bad", "good"),
    [
        (rules.never_below, AT_SECONDS + 60, AT_SECONDS + 120, -2, 3),
        (rules.back_to_normal, END_SECONDS, END_SECONDS + 120, -2, 2),
        (rules.not_moved, AT_SECONDS + 15, AT_SECONDS + 60, 2, 1),
        (rules.not_moved, AT_SECONDS + 15, AT_SECONDS + 60, -2, -1),
        (rules.no_storm(), AT_SECONDS, 5400, 2, 1),
        (rules.no_storm(3600.0), 3600.0, 5400, 2, 1),
        (rules.replaced, AT_SECONDS, AT_SECONDS + 60, -1, 1),
        (rules.stays_at_most, AT_SECONDS + 700, AT_SECONDS + 760, MOST - 7, MOST - 5),
        (rules.same_decisions, AT_SECONDS, AT_SECONDS + 15, 1, 0),
        (rules.as_normal, AT_SECONDS + 3000, AT_SECONDS + 3015, -2, -1),
        (rules.never_falls(AT_SECONDS, 300.0), AT_SECONDS + 100, AT_SECONDS + 130, -1, 0),
    ],
)
def test_a_rule_fails_where_it_should_and_nowhere_else(flat, rule, start, end, bad, good):
    assert holds(rule(flat, flat))
    assert not holds(rule(asked(flat, start, end, bad), flat))
    assert holds(rule(asked(flat, start, end, good), flat))


def test_a_storm_before_the_cause_has_ended_is_none_afterwards(flat):
    assert holds(rules.no_storm(3600.0)(asked(flat, AT_SECONDS, 3600.0, 9), flat))


def test_a_number_that_rises_has_not_fallen_and_what_is_given_back_later_is_not_judged(flat):
    rule = rules.never_falls(AT_SECONDS, 300.0)
    assert holds(rule(asked(flat, AT_SECONDS + 100, AT_SECONDS + 300, 4), flat))
    assert not holds(rule(asked(flat, AT_SECONDS + 100, AT_SECONDS + 200, 4), flat))


def test_a_start_that_hangs_is_to_be_found_by_twice_the_slowest_start(flat):
    normal = replace(flat, born=((0.0, 100.0), (1900.0, 2000.0)))
    hung = replace(flat, orders=np.array([1000.0, 1900.0]), beliefs=(belief(1890.0, overdue=True), belief(2000.0)))
    assert not holds(rules.hang_found(hung, normal))
    assert holds(rules.hang_found(replace(hung, beliefs=(belief(2100.0, overdue=True),)), normal))
    assert not holds(rules.hang_found(replace(hung, beliefs=(belief(2101.0, overdue=True),)), normal))
    assert rules.hang_found(flat, normal) is None


def test_orders_count_from_the_fault_on_and_what_failed_may_be_ordered_again(flat):
    before = replace(flat, orders=np.array([100.0, 2000.0]), lost=np.array([]))
    twice = replace(before, orders=np.array([100.0, 2000.0, 2001.0, 2002.0]))
    assert rules.few_orders(before, before).value == 0
    assert not holds(rules.few_orders(twice, before))
    assert holds(rules.few_orders(replace(twice, lost=np.array([1900.0])), before))
    assert not holds(rules.few_orders(replace(twice, lost=np.array([1000.0])), before))


def belief(at: float, **changes) -> Belief:
    known = Belief(
        at_seconds=at, startup_seconds=100.0, requests_per_second=2.0, work=1.0, failed_fraction=0.0, closed_loop=False
    )
    return known._replace(**changes)


def test_a_belief_in_start_up_is_judged_once_three_slow_ones_are_up(flat):
    born = ((1000.0, 1100.0), (1900.0, 2200.0), (2000.0, 2300.0), (2100.0, 2400.0), (2500.0, 3500.0))
    slow = replace(flat, born=born, beliefs=(belief(2300.0), belief(2415.0, startup_seconds=280.0)))
    assert rules.startup_follows(slow, flat).value == pytest.approx(280 / 300)
    assert holds(rules.startup_follows(slow, flat))
    assert not holds(rules.startup_follows(replace(slow, beliefs=(belief(2415.0),)), flat))
    assert rules.startup_follows(replace(slow, born=born[:3]), flat) is None
    assert rules.startup_follows(replace(slow, beliefs=()), flat) is None


def test_a_belief_in_capacity_is_judged_by_its_change(flat):
    rule = rules.fit_follows(lambda trial: 0.5)
    at = AT_SECONDS + 600.0
    stuck = replace(flat, beliefs=(belief(0.0), belief(at)))
    assert rule(stuck, flat).value == pytest.approx(100.0)
    followed = replace(flat, beliefs=(belief(0.0), belief(at, requests_per_second=1.05)))
    assert holds(rule(followed, flat))
    assert rule(replace(flat, beliefs=()), flat) is None


def test_work_is_judged_against_what_arrived(hall, flat):
    trial = hall.trial(ramp_world(), PoolPolicy())
    assert rules.work_follows(1.0)(trial, trial).value < 5.0
    late = [b._replace(work=b.work and b.work * 1.3) if b.at_seconds > AT_SECONDS else b for b in trial.beliefs]
    assert 25.0 < rules.work_follows(1.0)(replace(trial, beliefs=tuple(late)), trial).value < 36.0
    assert rules.work_follows(1.0)(replace(flat, beliefs=()), flat) is None


def test_the_promise_is_judged_once_the_fault_had_time_and_over_a_day_from_its_first_minute(hall):
    few, many = (hall.trial(ramp_world(), StaticSettings(replicas=n)) for n in (3, 12))
    # A fixed fleet here starts with what the first minutes need, and is whole after a start-up.
    for rule in (rules.holds_again, rules.day_holds):
        assert not holds(rule(few, few))
        assert holds(rule(many, many))
    run = many.run
    inside = (run.arrival_seconds >= AT_SECONDS) & (run.arrival_seconds < AT_SECONDS + 300)
    slow = replace(run, first_token_seconds=np.where(inside, run.arrival_seconds + 60, run.first_token_seconds))
    assert holds(rules.holds_again(replace(many, run=slow), many))
    assert not holds(rules.day_holds(replace(many, run=slow), many))


@pytest.mark.parametrize(("late", "back"), [(0.0, 0.0), (200.0, 210.0), (600.0, 600.0)])
def test_being_back_is_a_minute_within_the_slo(flat, late, back):
    line = flat.run.timeline
    p95 = np.where((line.at_seconds >= AT_SECONDS) & (line.at_seconds < AT_SECONDS + late), 9.0, 1.0)
    p95[line.at_seconds == AT_SECONDS + 15] = 1.0  # a good tick is no good minute
    trial = replace(flat, run=replace(flat.run, timeline=replace(line, ttft_p95_seconds=p95)))
    found = rules.back_within(AT_SECONDS)(trial, flat)
    assert found.value == back
    assert holds(found) == (back < 432.0)
    never = replace(flat, run=replace(flat.run, timeline=replace(line, ttft_p95_seconds=np.full_like(p95, np.inf))))
    assert rules.back_within(AT_SECONDS)(never, flat).value == flat.run.end_seconds - AT_SECONDS


def test_ticks_with_failures_are_to_be_marked(flat):
    failing = belief(10.0, failed_fraction=0.2)
    assert rules.marked(replace(flat, beliefs=(belief(0.0),)), flat) is None
    some = replace(flat, beliefs=(failing, failing._replace(closed_loop=True), belief(0.0, failed_fraction=0.04)))
    assert rules.marked(some, flat).value == 50.0
    assert holds(rules.marked(replace(flat, beliefs=(failing._replace(closed_loop=True),)), flat))


def test_log_lines_are_compared_byte_for_byte(flat):
    lines = replace(flat, lines=("a", "b", "c"))
    assert holds(rules.same_lines(lines, lines))
    assert rules.same_lines(replace(lines, lines=("a", "b", "d")), lines).value == 1
    assert rules.same_lines(flat, replace(flat, lines=())) is None


def test_a_fight_is_an_answer_to_his_number_again_and_again(flat):
    his = [Event(at_seconds=AT_SECONDS + 60 * i, before=0, after=0, kind="fault", note="his") for i in range(10)]
    answers = [Event(at_seconds=e.at_seconds + 15, before=2, after=5) for e in his]

    def fought(answered: int) -> Trial:
        events = sorted([*his, *answers[:answered]], key=lambda e: e.at_seconds)
        return replace(flat, run=replace(flat.run, events=tuple(events)))

    assert [rules.no_fight(fought(n), flat).value for n in (0, 1, 10)] == [0, 1, 10]
    assert holds(rules.no_fight(fought(1), flat))
    assert not holds(rules.no_fight(fought(2), flat))
    assert rules.reported(flat, flat) is None
    assert not holds(rules.reported(replace(flat, conflicts=0), flat))
    assert holds(rules.reported(replace(flat, conflicts=1), flat))


def test_a_world_and_its_drill_share_the_traffic(hall):
    drill = next(d for d in drill_list.drills() if d.name.startswith("start-up"))
    assert hall.prepared(drill.normal).setup.requests is hall.prepared(drill.faulty).setup.requests
    assert hall.prepared(drill.normal).setup.faults == ()
    assert len(hall.prepared(drill.faulty).setup.faults) == 1
    crowd = next(d for d in drill_list.drills() if "max_replicas" in d.name)
    least, most = (hall.prepared(world).scenario.limits.max_replicas for world in (crowd.faulty, crowd.normal))
    assert (least, most) == (MOST, 40)
    carried = hall.prepared(crowd.faulty).need.requests_per_second
    assert CALM_RATE / carried < MOST < CALM_RATE * CROWD_FACTOR / carried


@pytest.mark.parametrize("quick", [True, False])
def test_drill_names_differ_and_every_line_of_the_protocol_has_one(quick):
    names = [(drill.name, drill.normal is None) for drill in drill_list.drills(quick)]
    assert len(set(names)) == len(names) >= 22
    assert all(drill.rules for drill in drill_list.drills(quick))
    worlds = [drill.faulty.name for drill in drill_list.drills(quick)]
    assert len(set(worlds)) == len(worlds)
    kinds = {fault.kind for drill in drill_list.drills(quick) for fault in drill.faulty.faults}
    assert kinds == {
        "scrape_gap", "nan_scrape", "empty_answer", "silent_replicas", "stale_samples", "counter_reset", "engine_stuck",
        "startup_slower", "starts_fail", "start_hangs", "capacity", "new_version", "replica_failure", "zone_lost",
        "node_shortage", "retries", "second_writer",
    }  # fmt: skip
    assert "drills" in BENCHES


def test_the_full_drills_judge_a_day():
    days = [d for d in drill_list.drills(False) if d.rules == (rules.day_holds,)]
    assert len(days) == 4
    assert all(d.faulty.window.duration_seconds == AT_SECONDS + 86_400 for d in days)


@pytest.mark.parametrize(
    ("name", "figures"), [("scrape outage of 10 min", 2), ("a fifth of replicas die", 2), ("capacity -30 %", 1)]
)
def test_a_drill_yields_a_figure_per_rule_that_applies(hall, name, figures):
    drill = next(d for d in drill_list.drills() if d.name == name)
    found = list(hall.figures(drill, HpaSettings()))
    assert len(found) == figures
    assert {f.policy for f in found} == {"hpa running_and_waiting_requests"}
    assert {f.drill for f in found} == {name}


def test_a_changed_replica_carries_less_by_what_the_plant_says(hall):
    prepared = hall.prepared(ramp_world())
    slower, version = carried_fraction(prepared, "slower"), carried_fraction(prepared, "version")
    assert 0.3 < slower < SLOWER  # slower steps miss an ITL that is tight at a lower load already
    assert slower < version < 1.0
    assert NEW_VERSION["token_factor"] > 1.0


def test_no_quota_shows_in_the_run(hall):
    drill = next(d for d in drill_list.drills() if d.name == "no quota for an hour")
    short = hall.run(drill.faulty, HpaSettings())
    rows = (short.timeline.at_seconds > AT_SECONDS + 300) & (short.timeline.at_seconds < AT_SECONDS + 3600)
    assert (np.diff(short.timeline.ready[rows]) <= 0).all()
    assert [e.note for e in short.events if e.kind == "fault"] == ["no nodes for new replicas", "nodes again"]


def test_a_restart_of_ours_is_not_seen_and_one_that_forgets_is():
    # While the load falls: who forgets what was kept gives replicas back at once.
    world, at = setup(), 900.0
    through = Watched(ours(), lines=True)
    whole = simulate(world, [through])
    again = Watched(Restarted(ours, at), lines=True)
    restarted = simulate(world, [again])
    assert restarted.timeline.desired.tolist() == whole.timeline.desired.tolist()
    assert restarted.events == whole.events
    assert again.lines == through.lines
    assert len(again.lines) == len(again.beliefs) == 119

    class Forgetful(Restarted):
        def decide(self, at_seconds, moment):
            kept = Pool.restore
            Pool.restore = lambda self, snapshot: None
            try:
                return super().decide(at_seconds, moment)
            finally:
                Pool.restore = kept

    forgetful = Watched(Forgetful(ours, at), lines=True)
    forgot = simulate(world, [forgetful])
    assert forgot.events != whole.events
    assert forgetful.lines != through.lines


def test_a_restarted_peer_begins_with_nothing():
    made = []

    def make():
        made.append(theirs(Kpa(KpaSettings())))
        return made[-1]

    watched = Watched(Restarted(make, 600.0), lines=True)
    simulate(setup(), [watched])
    assert len(made) == 2
    assert made[0].peer is not made[1].peer
    assert watched.lines == []
    assert watched.conflicts is None


def test_a_pool_in_its_shell_decides_as_without_and_tells_of_conflicts(hall):
    prepared = hall.prepared(ramp_world())
    alone = hall.run(ramp_world(), PoolPolicy())
    shell = Watched(InLoop(prepared, PoolPolicy()))
    run = simulate(prepared.setup, [shell])
    assert run.timeline.desired.tolist() == alone.timeline.desired.tolist()
    assert shell.conflicts == 0
    assert any(r.rule == "reactive" for e in run.events for r in e.reasons)

    behind = InLoop(prepared, PoolPolicy(), set_back_at_seconds=AT_SECONDS, set_back_seconds=SET_BACK_SECONDS)
    lines = Watched(behind, lines=True)
    assert len(simulate(prepared.setup, [lines]).timeline.desired) == len(run.timeline.desired)
    seen = [json.loads(line)["observation"] for line in lines.lines]
    assert {one["window_seconds"] for one in seen} == {15}
    at = [one["at_seconds"] for one in seen]
    assert {b - a for a, b in itertools.pairwise(at)} == {15, 14}  # a tenth of what passes is given back

    class Contested(InLoop):
        async def scale(self, replicas):
            raise TargetConflict("somebody else wrote")

    contested = Watched(Contested(prepared, PoolPolicy()))
    run = simulate(prepared.setup, [contested])
    assert contested.conflicts > 0
    assert len(set(run.timeline.desired.tolist())) == 1


def test_what_is_watched_is_what_the_pool_believes():
    faults = (Retries(timeout_seconds=1.0), CapacityChange(factor=0.1, at_seconds=300.0, for_seconds=60.0))
    watched = Watched(ours())
    run = simulate(setup(faults=faults), [watched])
    assert [b.at_seconds for b in watched.beliefs] == run.timeline.at_seconds[1:].tolist()
    assert all(b.startup_seconds > 0 for b in watched.beliefs)
    assert max(b.failed_fraction for b in watched.beliefs) > 0.05
    assert not any(b.closed_loop for b in watched.beliefs if not b.failed_fraction)


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


def test_the_floor_is_what_the_reactive_rules_ask_for_at_the_same_sight(hall):
    prepared = hall.prepared(ramp_world())
    contestant = with_forecaster(prepared, PoolPolicy(config={"risk": {"gain": 0.0}}), "raises")
    simulate(prepared.setup, [contestant])
    assert contestant.below == 0
    few = with_forecaster(prepared, PoolPolicy(config={"risk": {"gain": 0.0}}), "raises")
    few._reactive = Pool(autoscaler_for(replace(few.pool.settings, limits=Limits(min_replicas=9, max_replicas=9))))
    simulate(prepared.setup, [few])
    assert few.below < 0


def test_a_peer_s_forecast_is_scaled_and_nothing_else_of_it(hall):
    prepared = hall.prepared(ramp_world())

    def spoilt(policy, factor):
        return simulate(prepared.setup, [with_scaled_forecast(prepared, policy, factor)]).timeline.desired

    kalman = DynamoSettings(predictor="kalman")
    plain = hall.run(ramp_world(), kalman).timeline.desired
    np.testing.assert_array_equal(spoilt(kalman, 1.0), plain)
    assert spoilt(kalman, 10.0).mean() > 2 * plain.mean()
    # A world without past days: what has none has no forecast to spoil.
    ahpa = hall.run(ramp_world(), AhpaSettings()).timeline.desired
    for factor in (0.0, 1.0, 10.0):
        np.testing.assert_array_equal(spoilt(AhpaSettings(), factor), ahpa)


def test_figures_compare_with_the_right_sign():
    made = drills.Figure(
        group="starts", drill="d", policy="p", what="w", value=1.0, unit="", op="<=", goal=1.0
    )  # fmt: skip
    assert made.passed
    assert not replace(made, value=1.1).passed
    assert replace(made, op=">=", value=1.1).passed
    assert isinstance(drill_list.drills()[0], Drill)


def bench_row(name: str, value: float, op: str = "<=", goal: float = 1.0) -> dict[str, object]:
    holds = value <= goal if op == "<=" else value >= goal
    return {"name": name, "value": value, "unit": "replicas", "op": op, "goal": goal, "holds": holds}


def test_the_tables_are_of_the_figures_in_the_file(tmp_path, capsys):
    told = [
        bench_row("half silent, and no door that counts, hpa: short", 2.0),
        bench_row("half silent, and no door that counts, hpa work: short", 0.0),
        bench_row("a fifth of replicas die, hpa: fall, at most", -1.0, ">=", 0.0),
        bench_row("forecaster x10, hpa work: dearer", 10.25),
        bench_row("rules missed by hpa", 2.0, goal=0.0),
        bench_row("rules missed by hpa work", 1.0, goal=0.0),
    ]
    file = tmp_path / "drills.json"
    file.write_text(json.dumps({"rows": told}))
    assert drill_tables.main([str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| missed, of | signals lost | forecasters | losses and limits | all |"
    assert lines[2] == "| hpa | 1 of 1 |  | 1 of 1 | 2 of 2 |"
    assert lines[3] == "| hpa work | 0 of 1 | 1 of 1 |  | 1 of 2 |"
    assert "|  | **half silent, and no door that counts**: short ≤ 1 replicas |" in lines
    assert "| hpa | **2** |" in lines
    assert "| hpa work | 0 |" in lines
    assert "| hpa | **-1** |" in lines
    assert "| hpa work | **10.2** |" in lines
    file.write_text("{}")
    assert drill_tables.main([str(file)]) == 2
    assert "must be the output of bench drills --json" in capsys.readouterr().err
    assert drill_tables.main([]) == 2
    assert drill_tables.main([str(tmp_path / "nowhere")]) == 2
    with pytest.raises(ConfigError):
        drill_tables.cells_of('{"rows": [{"name": "x"}]}')


def test_rows_come_in_the_order_of_the_drills_and_count_what_each_policy_missed(monkeypatch):
    def figures(policy, quick):
        own = isinstance(policy, PoolPolicy)
        name = "auto" if own else f"peer {policy.name or type(policy).__name__}"
        made = drills.Figure(
            group="starts", drill="first", policy=name, what="w", value=float(own), unit="", op="<=", goal=0.0
        )
        return [made, replace(made, drill="ours", value=0.0), made] if own else [made]

    monkeypatch.setattr(drills, "figures_of", figures)
    rows = list(drills.rows(quick=True))
    drilled = [row.name.split(",")[0] for row in rows if not row.name.startswith("rules missed")]
    assert drilled == ["first", "first", "first", "first", "ours"]
    missed = {row.name: row.value for row in rows if row.name.startswith("rules missed")}
    assert missed["rules missed by auto"] == 2
    assert sum(missed.values()) == 2
