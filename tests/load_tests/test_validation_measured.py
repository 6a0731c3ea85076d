"""The plant against measured closed-loop runs of vLLM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoscaler.errors import ConfigError
from load_tests.closed_loop import closed_loop_requests, run_closed_loop
from load_tests.law_fit import fit_host, fit_roofline, nonnegative_least_squares
from load_tests.measured import (
    comparable_runs,
    errors,
    measured_runs,
    profile_errors,
    replica_model,
    simulate_run,
)
from load_tests.moe_fit import FAMILY, LEFT_OUT, contradicted, fit, groups, profile_file
from load_tests.queueing import linear_model
from load_tests.validation import LLAMA, QWEN, dense_runs, host_fit, measured_rows, moe_rows, queueing_rows
from serving.profiles import profile


def test_the_runs_that_are_compared_are_the_109_with_a_profile() -> None:
    by_profile = {run.profile_id: 0 for run in dense_runs()}
    for run in dense_runs():
        by_profile[run.profile_id] += 1
    assert by_profile == {
        f"{QWEN}_h100_tp2": 26,
        f"{QWEN}_h100_tp4": 30,
        f"{LLAMA}_h100_tp2": 12,
        f"{LLAMA}_h100_tp4": 15,
        f"{LLAMA}_h200_tp1": 12,
        f"{LLAMA}_h200_tp2": 14,
    }
    assert len(measured_runs()) == 333  # 363 lines, of which 30 repeat another


def test_tpot_is_within_six_percent_of_109_measured_runs() -> None:
    found = profile_errors(dense_runs())
    assert found.tpot_mape <= 0.06
    assert abs(found.tpot_bias) <= 0.02


@pytest.mark.parametrize(("fitted", "tested"), [(QWEN, LLAMA), (LLAMA, QWEN)])
def test_tpot_is_within_seven_percent_on_models_left_out_of_the_fit_of_the_host_terms(fitted: str, tested: str) -> None:
    found = host_fit(fitted, tested)
    assert found.own.tpot_mape <= 0.06
    assert found.others.tpot_mape <= 0.07


def test_host_terms_are_needed_to_explain_the_runs() -> None:
    assert profile_errors(dense_runs(), host=(0.0, 0.0)).tpot_mape > 1.4 * profile_errors(dense_runs()).tpot_mape


def test_ttft_errors_are_what_the_documents_say() -> None:
    """No goal, but a change of the plant that moves them should be noticed."""
    llama, qwen = (profile_errors(comparable_runs(family)) for family in (LLAMA, QWEN))
    assert -0.10 < llama.ttft_median_bias < 0.05
    assert -0.40 < qwen.ttft_median_bias < -0.25


def test_the_shipped_checks_of_the_profiles_are_those_of_this_simulation() -> None:
    for name in sorted({run.profile_id for run in dense_runs()}):
        check, found = profile(name).measured_check, profile_errors(comparable_runs(name))
        assert check is not None
        assert check.runs == len(found.tpot)
        assert 100 * found.tpot_mape == pytest.approx(check.tpot_mape_percent, abs=0.6)
        assert 100 * found.tpot_bias == pytest.approx(check.tpot_bias_percent, abs=1.0)


def test_the_expert_profiles_err_as_much_as_they_say() -> None:
    for name, runs in groups().items():
        check, found = profile(name).measured_check, profile_errors(runs)
        assert check is not None
        assert check.runs == len(runs) == 15
        assert 100 * found.tpot_mape == pytest.approx(check.tpot_mape_percent, abs=0.06)
        assert 100 * found.ttft_median_bias == pytest.approx(check.ttft_median_bias_percent or 0.0, abs=0.6)


def test_an_expert_profile_explains_concurrencies_that_its_fit_has_not_seen() -> None:
    runs = groups()[f"{FAMILY}_h200_tp2"]
    tested = [run for run in runs if run.concurrency in LEFT_OUT]
    model = fit([run for run in runs if run.concurrency not in LEFT_OUT])
    assert errors(tested, [model] * len(tested)).tpot_mape <= 0.08


@pytest.mark.slow
def test_the_expert_profiles_come_out_of_the_fit_again() -> None:
    from importlib.resources import files

    assert profile_file() == (files("serving") / "data" / "profiles_moe.toml").read_text(encoding="utf-8")


def test_a_run_slower_than_at_twice_the_concurrency_is_called_contradicted() -> None:
    run = groups()[f"{FAMILY}_h200_tp2"][0]
    slow = replace(run, tpot_seconds=0.02)
    busier = replace(run, concurrency=2 * run.concurrency, tpot_seconds=0.015)
    assert contradicted([slow, busier]) == {slow}
    assert contradicted([replace(slow, tpot_seconds=0.01), busier]) == frozenset()
    larger = replace(run, tensor_parallel=2 * run.tensor_parallel, tpot_seconds=0.03)
    assert contradicted([slow, larger]) == {larger}


def test_a_fit_finds_the_law_that_made_the_runs() -> None:
    base = replica_model(profile(f"{FAMILY}_h200_tp2"))
    truth = replace(base, a=4e-3, b=2.5e-5, c=6e-5, floor_tokens=0.0)
    template = [run for run in groups()[f"{FAMILY}_h200_tp2"] if run.concurrency in (4, 16, 64)]
    made = [
        replace(run, tpot_seconds=tpot, ttft_seconds=ttft)
        for run, (tpot, ttft) in ((run, simulate_run(run, truth)) for run in template)
    ]
    found, loss = fit_roofline(made, base, floors=(0.0, 64.0))
    assert (found.a, found.b, found.c) == pytest.approx((truth.a, truth.b, truth.c), rel=1e-3)
    assert found.floor_tokens == 0.0
    assert loss < 1e-8


def test_a_fit_finds_the_host_terms_that_made_the_runs() -> None:
    runs = comparable_runs(f"{QWEN}_h100_tp2")
    row = profile(runs[0].profile_id)
    truth = replica_model(row, host=replace(row.host, per_step_seconds=4e-4, per_sequence_seconds=3e-5))
    made = [replace(run, tpot_seconds=simulate_run(run, truth)[0]) for run in runs]
    assert fit_host(made) == pytest.approx((4e-4, 3e-5), rel=0.01)


def test_least_squares_keeps_coefficients_from_going_below_zero() -> None:
    matrix = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert nonnegative_least_squares(matrix, np.array([3.0, 5.0, 7.0])) == pytest.approx([1.0, 2.0])
    assert nonnegative_least_squares(matrix, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0])
    assert nonnegative_least_squares(matrix, np.array([-3.0, -2.0, -1.0])) == pytest.approx([0.0, 0.0])


def test_a_closed_loop_keeps_each_client_at_one_request() -> None:
    requests = closed_loop_requests(
        clients=7, rounds=5, prompt_tokens=100, output_tokens=50, least_fraction=0.5, think_seconds=0.25, seed=4
    )
    done = run_closed_loop(linear_model(a=0.01, c=1e-4), requests)
    assert (done.arrival_seconds[:7] == 0.0).all()
    assert done.arrival_seconds[7:] == pytest.approx(done.finish_seconds[:-7] + 0.25, abs=1e-12)
    assert requests.prompt_tokens.min() >= 50
    assert requests.prompt_tokens.max() <= 100
    assert len(set(requests.output_tokens.tolist())) > 5


def test_equal_requests_of_a_closed_loop_stay_equal() -> None:
    requests = closed_loop_requests(clients=3, rounds=2, prompt_tokens=10, output_tokens=4)
    assert requests.prompt_tokens.tolist() == [10] * 6
    assert requests.output_tokens.tolist() == [4] * 6


@pytest.mark.parametrize(
    ("field", "value"), [("clients", 0), ("rounds", 0), ("least_fraction", 0.0), ("least_fraction", 1.5)]
)
def test_a_closed_loop_that_makes_no_sense_is_refused(field: str, value: float) -> None:
    good: dict[str, float] = {"clients": 1, "rounds": 1, "least_fraction": 1.0}
    with pytest.raises(ConfigError, match=field):
        closed_loop_requests(prompt_tokens=10, output_tokens=4, **(good | {field: value}))  # type: ignore[arg-type]


def test_the_rows_of_the_bench_are_the_figures_of_these_tests() -> None:
    rows = [*queueing_rows(2000), *measured_rows(), *moe_rows(refit=False)]
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.unit == "%" and np.isfinite(row.value) for row in rows)
    by_goal = {goal: [row for row in rows if row.goal == goal] for goal in (1.0, 3.0, 2.5, 6.0, 7.0, None)}
    assert [len(found) for found in by_goal.values()] == [2, 4, 3, 1, 2, 4]
    (error,) = by_goal[6.0]
    assert error.value == pytest.approx(100 * profile_errors(dense_runs()).tpot_mape)
    assert error.holds is True
