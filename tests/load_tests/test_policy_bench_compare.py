"""From cells to claims: three columns, equal attainment or nothing, Holm over a family, and plain words for losing rows."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_world import STEP, step
from rich.console import Console

from autoscaler.errors import ConfigError
from autoscaler.main import main
from load_tests import draws
from load_tests.peers import HpaSettings, StaticSettings, WvaV2Settings
from load_tests.policy_bench import compare_scenarios, run_cases
from load_tests.policy_bench_cases import Asked, Case, asked, case_of, cut, knobbed
from load_tests.policy_bench_cells import CellResult
from load_tests.policy_bench_compare import (
    Comparison,
    Line,
    Results,
    against,
    claim_of,
    compare,
    corrected,
    gather,
    outcome_of,
)
from load_tests.policy_bench_contenders import contender, geometric, turned
from load_tests.policy_bench_grid import default_cases, grid, quick_cases, shortened
from load_tests.policy_bench_html import page
from load_tests.policy_bench_markdown import hindsight, shipped
from load_tests.policy_bench_search import first_knobs, more_knobs
from load_tests.policy_bench_stats import Points, Ratio
from load_tests.policy_bench_tables import heading, print_comparisons, to_json
from load_tests.scenario import PoolPolicy, Scenario, scenario_from

DAYS = 10


def scenario(**changes: Any) -> Scenario:
    policies = [{"kind": "pool"}, {"kind": "hpa", "target": 20}, {"kind": "static", "replicas": 4, "name": "fixed"}]
    return step(policies=policies, **changes)


def case(**changes: Any) -> Case:
    made = case_of(scenario(), targets=(0.99,))
    return replace(made, train=made.test, family="all", **changes)


def invented(one: Asked, *, factor: float = 1.0, days: int = DAYS) -> CellResult:
    """Replicas by headroom: each doubling costs twice and violates a tenth; ours costs `factor` of the peers' line.

    Noise differs from policy to policy, and each day's requests are common.
    """
    words = draws.key(one.seed, one.contender, one.part)
    noise = 1 + 0.02 * draws.normals(words, days)
    arrived = [100_000 + 1000 * i for i in range(days)]
    headroom = one.knob or 1.0
    share, cost = 0.01 * headroom**-3.3219280948873626, 100.0 * headroom
    if one.target is not None:
        share, cost = 1 - one.target, 100.0 * factor
    return CellResult(
        days=tuple(range(7, 7 + days)),
        gpu_hours=tuple((cost * noise).tolist()),
        arrived=tuple(arrived),
        violated=tuple(round(share * n) for n in arrived),
        wall_seconds=0.0,
    )


def compared(made: Case, **how: Any) -> list[Comparison]:
    wanted = list(asked(made))
    return compare(gather(made, wanted, [invented(one, **how) for one in wanted]))


def line_of(comparison: Comparison, name: str) -> Line:
    return next(line for line in comparison.lines if line.contender == name)


def test_the_cells_of_a_case_are_shipped_and_all_knobs_and_ours_once_per_target() -> None:
    made = case(targets=(0.95, 0.99))
    wanted = list(asked(made))
    ours = [a for a in wanted if a.contender == "auto"]
    assert [(a.part, a.target, a.cell.scenario.slo.attainment_fraction) for a in ours] == [
        ("test", 0.95, 0.95), ("test", 0.99, 0.99),
    ]  # fmt: skip
    hpa = [a for a in wanted if a.contender.startswith("hpa")]
    assert sum(a.part == "test" and a.knob is None for a in hpa) == 1
    assert sum(a.part == "test" and a.knob is not None for a in hpa) == 16
    assert sum(a.part == "train" for a in hpa) == 16
    assert {a.cell.scenario.slo.attainment_fraction for a in hpa} == {scenario().slo.attainment_fraction}


def test_three_columns_at_equal_attainment() -> None:
    (made,) = compared(case(), factor=0.9)
    hpa = line_of(made, "hpa running_and_waiting_requests")
    assert made.place == 0.99
    assert made.days == DAYS
    assert hpa.shipped is not None
    assert hpa.shipped.attainment_fraction == pytest.approx(0.99, abs=1e-5)
    assert hpa.shipped_against is not None
    assert hpa.shipped_against.verdict == "ratio"
    assert hpa.tuned is not None
    assert hpa.tuned.knob == pytest.approx(geometric(0.25, 32.0, 16)[5])  # the first above 1
    assert hpa.hindsight_gpu_hours == pytest.approx(1000.0, rel=0.02)
    assert hpa.ratio is not None
    assert hpa.ratio.value == pytest.approx(0.9, rel=0.02)
    assert hpa.ratio.interval == "bootstrap"


def test_what_ours_realised_is_the_place_where_the_target_is_missed() -> None:
    made = case()
    wanted = list(asked(made))
    results = [
        replace(r, violated=tuple(5 * v for v in r.violated)) if a.contender == "auto" else r
        for a in wanted
        for r in [invented(a)]
    ]
    (found,) = compare(gather(made, wanted, results))
    assert found.place == pytest.approx(0.95, abs=1e-6)
    hpa = line_of(found, "hpa running_and_waiting_requests")
    # A peer that attains 95 % needs 5 ** -(1 / 3.32) of the replicas.
    assert hpa.hindsight_gpu_hours == pytest.approx(1000 * 5 ** (-1 / 3.3219280948873626), rel=0.03)
    assert hpa.target_gpu_hours == pytest.approx(1000, rel=0.02)
    assert hpa.shipped_against is not None
    assert hpa.shipped_against.verdict in ("not comparable", "dearer and worse")


def test_what_is_paid_for_the_promise_counts_attaining_more_against_us() -> None:
    made = case()
    wanted = list(asked(made))

    def found(violations: float, cost: float) -> Comparison:
        results = [
            replace(
                r,
                violated=tuple(round(violations * v) for v in r.violated),
                gpu_hours=tuple(cost * h for h in r.gpu_hours),
            )
            if a.contender == "auto"
            else r
            for a in wanted
            for r in [invented(a)]
        ]
        return compare(gather(made, wanted, results))[0]

    more = found(0.1, 1.5)
    assert more.over_cheapest == pytest.approx(1.5, rel=0.03)
    hpa = line_of(more, "hpa running_and_waiting_requests")
    assert hpa.ratio is not None
    assert hpa.ratio.value == pytest.approx(0.75, rel=0.03)  # at the attainment that we reached it takes twice as much
    assert found(2.0, 1.5).over_cheapest is None


def test_nothing_is_tuned_on_test_days() -> None:
    made = replace(case(), train=())
    (found,) = compared(made)
    assert line_of(found, "hpa running_and_waiting_requests").tuned is None
    # And the knob is the train days', even where the test days would have liked another.
    wanted = list(asked(case()))
    results = [
        replace(r, violated=tuple(0 for _ in r.violated)) if a.part == "train" else r
        for a in wanted
        for r in [invented(a)]
    ]
    (found,) = compare(gather(case(), wanted, results))
    tuned = line_of(found, "hpa running_and_waiting_requests").tuned
    assert tuned is not None
    assert tuned.knob == 0.25
    assert tuned.attainment_fraction < 0.2


def test_claims_are_corrected_over_the_cases_of_a_family_only() -> None:
    cases = [case(name=f"trace {i}") for i in range(3)]
    first = [c for made in cases for c in compared(made, factor=0.97)]
    apart = corrected([replace(c, case=replace(c.case, family=c.case.name)) for c in first])
    together = corrected(first)
    for a, b in zip(apart, together, strict=True):
        for one, other in zip(a.lines, b.lines, strict=True):
            assert one.ratio is not None
            assert one.holm_p == one.ratio.p
            assert other.holm_p is not None
            assert other.holm_p >= (one.holm_p or 0)
    assert any(line.holm_p > (line.ratio.p or 0) for c in together for line in c.lines if line.holm_p and line.ratio)


def test_a_loss_is_said_as_plainly_as_a_win() -> None:
    won, lost = corrected(compared(case(), factor=0.8)), corrected(compared(case(), factor=1.25))
    told = {}
    for name, found in (("won", won), ("lost", lost)):
        out = io.StringIO()
        print_comparisons(found, Console(file=out, width=200))
        told[name] = out.getvalue()
    assert "ours cheaper" in told["won"]
    assert "OURS DEARER" in told["lost"]
    assert {line.claim for line in won[0].lines} == {"cheaper"}
    assert {line.claim for line in lost[0].lines} == {"dearer"}


def test_each_of_our_policies_is_compared() -> None:
    policies = [{"kind": "pool"}, {"kind": "pool", "name": "mine"}, {"kind": "hpa", "target": 20}]
    made = replace(case_of(step(policies=policies), targets=(0.95, 0.99)), family="all")
    found = corrected(compared(made))
    assert [(c.reference, c.target) for c in found] == [("auto", 0.95), ("auto", 0.99), ("mine", 0.95), ("mine", 0.99)]
    for comparison in found:
        (other,) = {"auto", "mine"} - {comparison.reference}
        line = line_of(comparison, other)
        assert line.ratio is None
        assert line.shipped_against is not None
        assert line.shipped_against.verdict == "ratio"


def searched(made: Case, results: dict[tuple[str, str, float | None], CellResult]) -> tuple[Results, int]:
    """The case after a bracket search among invented results, and how many knobs that took."""
    had: list[Asked] = []
    wanted = list(asked(made, first_knobs(made)))
    while wanted:
        had += wanted
        assert len({(a.contender, a.part, a.knob, a.target) for a in had}) == len(had), "a knob was run twice"
        found = gather(made, had, [results[a.contender, a.part, a.knob] for a in had])
        wanted = list(knobbed(made, more_knobs(found)))
    return found, sum(a.knob is not None for a in had)


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("wanted", [0.9, 0.99, 0.9997])
def test_a_bracket_search_reads_what_all_knobs_would_say(noise: float, wanted: float) -> None:
    made = case(targets=(wanted,), search="bracket")
    results = {}
    for a in asked(made):
        one = invented(a)
        rough = 1 + noise * draws.normals(draws.key(7, a.contender, a.part, str(a.knob)), DAYS)
        results[a.contender, a.part, a.knob] = replace(one, gpu_hours=tuple((np.array(one.gpu_hours) * rough).tolist()))
    few, count = searched(made, results)
    every, full = searched(replace(made, search="all"), results)
    assert full == 2 * 2 * 16
    assert count < 0.75 * full
    for short, whole in zip(compare(few)[0].lines, compare(every)[0].lines, strict=True):
        assert short.tuned == whole.tuned
        assert short.target_gpu_hours == pytest.approx(whole.target_gpu_hours, rel=1e-12)
        assert short.hindsight_gpu_hours == pytest.approx(whole.hindsight_gpu_hours, rel=1e-12)


def test_a_bracket_search_runs_on_the_test_days_what_the_train_days_chose() -> None:
    made = case(targets=(0.99,), search="bracket")
    results = {
        (a.contender, a.part, a.knob): replace(r, violated=tuple(8 * v for v in r.violated)) if a.part == "train" else r
        for a in asked(made)
        for r in [invented(a)]
    }
    few, _ = searched(made, results)
    every, _ = searched(replace(made, search="all"), results)
    assert [line.tuned for line in compare(few)[0].lines] == [line.tuned for line in compare(every)[0].lines]
    assert all(line.tuned is not None for line in compare(few)[0].lines)


def test_a_searched_comparison_is_the_full_one_in_the_plant() -> None:
    made = case_of(scenario(), targets=(0.9,))
    made = replace(made, train=made.test, family="all")
    (whole,), (few,) = run_cases([made])[0], run_cases([replace(made, search="bracket")])[0]
    assert few.ours == whole.ours
    for a, b in zip(few.lines, whole.lines, strict=True):
        assert a.shipped == b.shipped
        assert (a.target_gpu_hours is None) == (b.target_gpu_hours is None)


def test_where_no_knob_is_turned_peers_are_told_as_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    made = case_of(scenario(), targets=(0.9,), oracle=True)
    made = replace(made, train=(), contenders=tuple(replace(c, knobs=()) for c in made.contenders))
    comparisons, found = run_cases([made])
    print_comparisons(comparisons)
    printed, rows = capsys.readouterr().out, "\n".join(shipped(to_json(comparisons, found)))
    assert len(comparisons[0].lines) == 2
    for line in comparisons[0].lines:
        assert line.shipped is not None
        assert (line.tuned, line.hindsight_gpu_hours, line.ratio) == (None, None, None)
        assert line.contender in printed
        assert line.contender in rows


def test_few_days_claim_nothing() -> None:
    (found,) = corrected(compared(case(), factor=0.5, days=3))
    assert {line.claim for line in found.lines} == {"range only"}


@pytest.mark.parametrize(
    ("ours", "other", "verdict"),
    [
        ((100, 0.99), (120, 0.9905), "ratio"),
        ((100, 0.99), (120, 0.98), "cheaper and better"),
        ((100, 0.99), (80, 0.999), "dearer and worse"),
        ((100, 0.99), (80, 0.95), "not comparable"),
        ((100, 0.99), (120, 0.999), "not comparable"),
    ],
)
def test_without_equal_attainment_there_is_no_ratio(
    ours: tuple[float, float], other: tuple[float, float], verdict: str
) -> None:
    a, b = (outcome_of(_points(cost, attained)) for cost, attained in (ours, other))
    found = against(a, b, 0.01)
    assert found is not None
    assert found.verdict == verdict
    assert (found.ratio is not None) == (verdict == "ratio")


def _points(cost: float, attained: float) -> Points:
    one = np.array([[1e6]])
    return Points(cost=np.array([[[float(cost)]]]), violated=(1 - attained) * one[None], arrived=one)


def test_a_claim_needs_the_interval_and_the_corrected_p() -> None:
    base = Ratio(value=0.9, low=0.85, high=0.95, p=0.001, interval="bootstrap")
    assert claim_of(base, 0.01) == "cheaper"
    assert claim_of(base, 0.06) == "no difference shown"
    assert claim_of(replace(base, high=1.01), 0.01) == "no difference shown"
    assert claim_of(replace(base, value=1.1, low=1.05, high=1.2), 0.01) == "dearer"
    assert claim_of(Ratio(value=None, missed="above"), None) == "not reached"


def test_headroom_turns_each_peer_and_mends_its_traps() -> None:
    assert turned(HpaSettings(target=20.0), 2.0) == HpaSettings(target=20.0, headroom=2.0)
    assert turned(HpaSettings(headroom=1.5), 2.0) == HpaSettings(headroom=3.0)
    assert turned(StaticSettings(replicas=5), 1.5) == StaticSettings(replicas=8)
    assert turned(WvaV2Settings(), 2.0) == WvaV2Settings(headroom=2.0, traps="removed")
    knobs = contender(HpaSettings(signal="requests_per_second", target=1.0)).knobs
    assert len(knobs) == 16
    assert np.allclose(np.diff(np.log(knobs)), np.log(16) / 15, rtol=1e-3)
    assert contender(PoolPolicy()).knobs == ()
    with pytest.raises(ValueError, match="no knob"):
        turned(PoolPolicy(), 2.0)


def test_two_policies_of_one_name_are_refused() -> None:
    policies = [{"kind": "hpa", "target": 10}, {"kind": "hpa", "target": 20}]
    with pytest.raises(ConfigError, match="one policy only"):
        case_of(step(policies=policies))


def test_windows_are_split_where_training_ends(tmp_path: Path) -> None:
    trace = {"kind": "trace", "trace": "builtin:rate_servegen_mmid_c66"}
    data = {**STEP, "traffic": trace, "policies": [{"kind": "pool"}, {"kind": "kpa"}]}

    def days(window: dict[str, float]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        made = case_of(scenario_from({**data, "window": window}, tmp_path))

        def spans(part: tuple[Scenario, ...]) -> list[tuple[float, float]]:
            return [
                (
                    (w.start_seconds + s.score_from_seconds) / 86400,
                    (w.start_seconds + (w.duration_seconds or 0)) / 86400,
                )
                for s in part
                for w in [s.window]
            ]

        return spans(made.train), spans(made.test)

    train, test = days({"start_seconds": 5 * 86400.0, "duration_seconds": 4 * 86400.0})
    assert train == [(pytest.approx(5), pytest.approx(7))]
    assert test == [(pytest.approx(7), pytest.approx(9))]
    assert days({"start_seconds": 8 * 86400.0, "duration_seconds": 86400.0}) == (
        [],
        [(pytest.approx(8), pytest.approx(9))],
    )
    assert days({"start_seconds": 0.0, "duration_seconds": 86400.0})[0] == []
    whole = days({})
    assert whole[0] == [(pytest.approx(3600 / 86400), pytest.approx(7))]
    assert whole[1] == [(pytest.approx(7), pytest.approx(14))]


def test_ones_own_trace_is_split_in_half_and_a_short_one_is_not(tmp_path: Path) -> None:
    for count, split in ((4, 2), (1, None)):
        rows = "".join(f"{600 * i},{50 + i % 7}\n" for i in range(144 * count))
        (tmp_path / "own.csv").write_text("t_s,requests\n" + rows)
        traffic = {"kind": "trace", "trace": "own.csv", "lengths": {"kind": "lognormal"}}
        data = {**STEP, "traffic": traffic, "window": {}, "policies": [{"kind": "pool"}, {"kind": "kpa"}]}
        made = case_of(scenario_from(data, tmp_path))
        if split is None:
            assert made.train == ()
            assert "No part to tune on" in made.notes[0]
        else:
            start = made.test[0].window.start_seconds + made.test[0].score_from_seconds
            assert start == pytest.approx(split * 86400)


def test_a_part_is_begun_an_hour_before_it_is_scored() -> None:
    trace = scenario_from({**STEP, "traffic": {"kind": "trace", "trace": "builtin:rate_servegen_mmid_c66"}}, Path())
    made = cut(trace, 86_400.0, 3 * 86_400.0)
    assert made.window.start_seconds == 82_800
    assert made.score_from_seconds == 3600
    assert made.window.duration_seconds == 2 * 86_400 + 3600
    first = cut(trace, 0.0, 86_400.0)
    assert (first.window.start_seconds, first.score_from_seconds) == (0.0, 3600.0)


def test_one_policy_alone_is_no_comparison() -> None:
    with pytest.raises(ConfigError, match="at least two"):
        case_of(step(policies=[{"kind": "pool"}]))


def test_the_shipped_grid_is_what_the_data_rules_allow() -> None:
    from load_tests.traces import load_trace

    for made in default_cases():
        facts = load_trace(made.scenario.traffic.trace).facts  # type: ignore[union-attr]
        assert len({c.name for c in made.contenders}) == len(made.contenders) > 8
        for part in made.train:
            end = part.window.start_seconds + (part.window.duration_seconds or 0)
            assert end <= facts.train_days * 86_400
        for part in made.test:
            assert part.window.start_seconds + part.score_from_seconds >= facts.train_days * 86_400
        if not facts.train_days:
            assert made.train == ()
    known = grid()
    assert not {t for size in (known.quick, known.default, known.full) for t in size.traces} & set(known.left_out)


def test_quick_is_hours_and_says_so() -> None:
    for made in quick_cases():
        for part in (*made.train, *made.test):
            assert (part.window.duration_seconds or 0) <= 5 * 3600
        assert any("no result" in note for note in made.notes)
        assert all(len(c.knobs) <= 8 for c in made.contenders)


def test_a_real_comparison_from_scenario_to_table_json_and_page(tmp_path: Path) -> None:
    made = [shortened(case_of(scenario(), targets=(0.95,)))]
    comparisons, found = run_cases(made)
    told = to_json(comparisons, found)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    (one,) = told["cases"]
    hpa = next(c for c in one["contenders"] if c["name"].startswith("hpa"))
    assert len(hpa["test"]) == 8
    assert any(p["frontier"] for p in hpa["test"])
    more = [p["gpu_hours"] for p in sorted(hpa["test"], key=lambda p: p["knob"])]
    assert more[-1] > more[0]
    text = page(told).decode()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "/*DATA*/" not in text
    assert compare_scenarios(scenario(), knobs=2)[0].case.name == "short step"


@pytest.mark.parametrize(("hours", "whose"), [(500.0, "clairvoyant"), (5000.0, "hpa running_and_waiting_requests")])
def test_a_policy_that_beats_the_programme_becomes_the_oracle_and_is_said(hours: float, whose: str) -> None:
    made = case(oracle=True)
    wanted = list(asked(made))
    results = [
        replace(r, gpu_hours=tuple(hours / DAYS for _ in r.gpu_hours)) if a.contender == "clairvoyant" else r
        for a in wanted
        for r in [invented(a, factor=1.3)]
    ]
    (found,) = compare(gather(made, wanted, results))
    assert found.oracle_policy in (whose, "fixed" if whose != "clairvoyant" else whose)
    assert found.oracle is not None
    assert found.oracle.attainment_fraction >= 0.99
    everybody = [line.target_gpu_hours for line in found.lines] + [found.ours.gpu_hours if found.ours else None]
    assert all(found.oracle.gpu_hours <= cost * 1.15 for cost in everybody if cost is not None)
    assert ("found it" in heading(found)) == (whose != "clairvoyant")


@pytest.mark.parametrize(("bound", "holds"), [(100.0, True), (5000.0, False)])
def test_a_bound_that_somebody_beats_is_none_and_is_said(bound: float, holds: bool) -> None:
    made = case(oracle=True)
    wanted = list(asked(made))
    results = [
        CellResult(days=(7,), gpu_hours=(bound,), arrived=(0,), violated=(0,), wall_seconds=0.0)
        if a.contender == "lower bound"
        else invented(a, factor=1.3)
        for a in wanted
    ]
    (found,) = compare(gather(made, wanted, results))
    assert found.bound_gpu_hours == bound
    assert found.holds is holds
    assert ("NO BOUND" in heading(found)) == (not holds)


def test_bound_clairvoyant_and_policies_are_in_order_in_the_plant() -> None:
    made = case_of(scenario(), targets=(0.9,), oracle=True)
    (found,) = run_cases([made])[0]
    assert found.oracle is not None
    assert found.bound_gpu_hours is not None
    assert 0 < found.bound_gpu_hours <= found.oracle.gpu_hours
    outcomes = [found.ours, *(line.shipped for line in found.lines)]
    attained = [o.gpu_hours for o in outcomes if o is not None and o.attainment_fraction >= 0.9]
    assert attained
    assert all(found.oracle.gpu_hours <= cost for cost in attained)


def test_tables_for_a_page_of_text_say_what_the_comparison_says() -> None:
    made = case(name="rate_first, start")
    wanted = list(asked(made))
    found = gather(made, wanted, [invented(one, factor=1.2) for one in wanted])
    told = to_json(corrected(compare(found)), [found])
    told["cases"][0]["targets"][0]["oracle"] = {"gpu_hours": 800.0, "attainment_fraction": 0.99, "knob": None}
    lines = list(shipped(told))
    assert "| first |" in lines[2]
    ours = next(line for line in lines if line.startswith("| auto |"))
    (comparison,) = compare(found)
    assert comparison.ours is not None
    assert f"{comparison.ours.gpu_hours / 800:.2f} (99.0)" in ours
    assert any(line.startswith("| *clairvoyant, GPU-hours* | 800") for line in lines)
    (ratio,) = [line for line in hindsight(told) if line.startswith("| fixed |")]
    assert float(ratio.split("|")[2]) == pytest.approx(1.2, rel=0.03)


def test_the_command_compares_a_scenario_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policies = [{"kind": "pool"}, {"kind": "hpa", "target": 20}]
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**STEP, "policies": policies}))
    call = ["bench", "policy", str(path), "--quick", "--jobs", "1", "--cache", str(tmp_path / "cache")]
    assert main([*call, "--html", str(tmp_path / "deep" / "out.html")]) == 0
    out = capsys.readouterr().out
    assert "short step" in out
    assert (tmp_path / "deep" / "out.html").stat().st_size > 10_000
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.json")}
    assert kept
    assert main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cases"][0]["references"] == ["auto"]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.json")} == kept


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["policy", "--jobs", "0"], "--jobs"),
        (["policy", "--quick", "--full"], "--full"),
        (["sim", "--jobs", "2"], "--jobs"),
        (["sim", "some.yaml"], "scenario"),
        (["policy", "builtin:nothing"], "scenario"),
        (["policies"], "policy"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert sentence in told
