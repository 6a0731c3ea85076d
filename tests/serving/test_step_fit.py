"""Learning the step law from windows: by hand, and from a simulated replica whose law is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from calibration_world import recorded

from autoscaler.types import Histogram
from serving.calibrate import GENERIC
from serving.capacity import laws_of
from serving.closed_forms import Law, Mix, itl_rate
from serving.profiles import profile
from serving.step_fit import Row, fit, fit_linear, floored_tokens, rows_of, scaled_to, seconds_of, solve

H100 = "llama-3.1-8b_bf16_h100_tp1"


def row(
    steps: float, prefill: float, decode: float, context: float, law: Law, histogram: Histogram | None = None
) -> Row:
    made = Row(
        at_seconds=0, seconds=1.0, steps=steps, prefill=prefill, decode=decode, context=context, pairs=0.0,
        running=decode / steps, step_tokens=histogram,
    )  # fmt: skip
    return replace(made, seconds=seconds_of(law, made))


def test_exact_windows_give_the_law_back_whatever_the_prior_says() -> None:
    truth = Law(a=0.02, b=3e-5, c=2e-4, d=5e-8)
    windows = [
        row(1000.0, p, n, k, truth)
        for p, n, k in [(0.0, 8e3, 4e6), (2e5, 8e3, 4e6), (1e5, 64e3, 2e7), (5e5, 64e3, 9e7), (1e4, 2e5, 9e7)]
    ] * 100
    wrong = Law(a=0.01, b=9e-5, c=4e-4, d=1e-8)
    found = fit_linear(windows, wrong, 1.0)
    assert found.law.a == pytest.approx(truth.a, rel=0.01)
    assert found.law.b == pytest.approx(truth.b, rel=0.03)
    assert found.law.c == pytest.approx(truth.c, rel=0.02)
    assert found.law.d == pytest.approx(truth.d, rel=0.05)
    assert min(found.told) > 0.9


def test_one_point_of_load_tells_nothing_apart_and_the_prior_keeps_its_shape() -> None:
    truth = Law(a=0.02, b=3e-5, c=2e-4, d=5e-8)
    windows = [row(1000.0, 1e5, 3e4, 1e7, truth)] * 50
    prior = Law(a=0.01, b=3e-5, c=4e-4, d=5e-8)
    found = fit_linear(windows, prior, 0.3)
    assert seconds_of(found.law, windows[0]) == pytest.approx(windows[0].seconds, rel=0.01)
    assert sum(found.told) < 1.01  # one equation tells one number
    assert found.law.a / prior.a < truth.a / prior.a


def test_wrong_windows_do_not_bend_the_law() -> None:
    truth = Law(a=0.02, b=3e-5, c=2e-4, d=0.0)
    windows = [row(1000.0, 1e4 * (k % 7), 1e4 * (1 + k % 5), 0.0, truth) for k in range(70)]
    spoilt = [replace(w, seconds=3.0 * w.seconds) if k % 10 == 0 else w for k, w in enumerate(windows)]
    found = fit_linear(spoilt, truth, 1.0)
    assert found.law.a == pytest.approx(truth.a, rel=0.05)
    assert found.law.c == pytest.approx(truth.c, rel=0.05)


def test_coefficients_are_never_negative() -> None:
    falling = [row(1000.0, 0.0, n, 0.0, Law(a=0.02, b=0.0, c=0.0, d=0.0)) for n in (1e4, 2e4, 4e4)] * 5
    shrinking = [replace(w, seconds=w.seconds * 2e4 / (w.decode + 1e4)) for w in falling]
    found = fit_linear(shrinking, Law(a=0.02, b=1e-5, c=1e-4, d=1e-8), 1.0).law
    assert min(found.a, found.b, found.c, found.d) >= 0.0


def test_floored_tokens_by_hand() -> None:
    histogram = Histogram(upper_bounds=(1.0, 8.0, 16.0, 64.0), counts=(0.0, 4.0, 0.0, 2.0, 1.0), sum=200.0)
    window = Row(
        at_seconds=0, seconds=1.0, steps=7.0, prefill=150.0, decode=50.0, context=0.0, pairs=0.0, running=4.0,
        step_tokens=histogram,
    )  # fmt: skip
    assert floored_tokens(window, 0.0) == 200.0
    # Four steps of 1 to 8 tokens, 4.5 on average, are lifted to 8.
    assert floored_tokens(window, 8.0) == pytest.approx(200.0 + 4 * 3.5)
    # A third of the two steps in (16, 64] is below 32, at 24 on average.
    assert floored_tokens(window, 32.0) == pytest.approx(200.0 + 4 * 27.5 + 2 * (16 / 48) * 8.0)
    without = replace(window, step_tokens=None)
    assert floored_tokens(without, 16.0) == 200.0
    assert floored_tokens(without, 64.0) == 7 * 64.0


def test_solve_knows_a_singular_system() -> None:
    assert solve([[2.0, 0.0], [0.0, 4.0]], [2.0, 2.0]) == [1.0, 0.5]
    assert solve([[1.0, 1.0], [0.0, 0.0]], [1.0, 1.0]) is None


@pytest.mark.parametrize("name", [H100, "llama-3.1-70b_bf16_a100_tp4", "llama-3.1-8b_bf16_l40s_tp1"])
def test_a_simulated_replica_tells_its_law(name: str) -> None:
    """The rate within the SLO, from a fit with the profile as prior at half the speed, and with none."""
    known = profile(name)
    truth = laws_of(known)[1]
    rows, _ = rows_of(recorded(name, 0.2, 0.7))
    assert len(rows) > 60
    mix = Mix(prompt=600.0, output=200.0, prompt_cv=0.6, output_cv=0.6)
    wanted = itl_rate(truth, mix, 0.05)
    twice = Law(a=2 * truth.a, b=2 * truth.b, c=2 * truth.c, d=2 * truth.d, e=truth.e, floor=truth.floor)
    own, generic = fit(rows, twice, 1.0).law, fit(rows, scaled_to(GENERIC, rows), 1.0).law
    assert itl_rate(own, mix, 0.05) == pytest.approx(wanted, rel=0.05)
    assert itl_rate(generic, mix, 0.05) == pytest.approx(wanted, rel=0.1)


def test_windows_that_say_nothing_are_left_out_with_a_reason() -> None:
    observations = recorded(H100, 0.2, 0.7, seconds=300)
    rows, skipped = rows_of(observations)
    assert skipped == ""
    idle = [replace(o, load=replace(o.load, running_requests=1.0)) if o.load is not None else o for o in observations]
    assert rows_of(idle)[0] == []
    assert "idle at times" in rows_of(idle)[1]
    blind = [replace(o, load=None) if k % 2 else o for k, o in enumerate(observations)]
    assert rows_of(blind) == ([], f"{len(blind) - 1} windows were not measured")
    growing = [
        replace(o, replicas=replace(o.replicas, ready=1 + k // 15)) for k, o in enumerate(observations)
    ]  # the count of replicas that answer does not grow with it
    assert "lacked a replica's answer" in rows_of(growing)[1]
    assert all(math.isfinite(r.seconds) and r.seconds >= 10.0 for r in rows)


def test_the_law_is_additive_over_replicas() -> None:
    truth = laws_of(profile(H100))[1]
    rows, _ = rows_of(recorded(H100, 0.2, 0.7, replicas=4, seconds=900))
    found = fit(rows, truth, 0.3)
    mix = Mix(prompt=600.0, output=200.0, prompt_cv=0.6, output_cv=0.6)
    assert itl_rate(found.law, mix, 0.05) == pytest.approx(itl_rate(truth, mix, 0.05), rel=0.05)


def test_kv_in_use_stands_in_for_lengths_where_there_are_none() -> None:
    known = profile(H100)
    truth = laws_of(known)[1]
    observations = [
        replace(o, demand=replace(o.demand, prompt_lengths=None, output_lengths=None)) if o.demand else o
        for o in recorded(H100, 0.2, 0.7)
    ]
    assert rows_of(observations)[0] == []
    rows, _ = rows_of(observations, known.kv_capacity_tokens)
    mix = Mix(prompt=600.0, output=200.0, prompt_cv=0.6, output_cv=0.6)
    assert itl_rate(fit(rows, truth, 0.3).law, mix, 0.05) == pytest.approx(itl_rate(truth, mix, 0.05), rel=0.06)
