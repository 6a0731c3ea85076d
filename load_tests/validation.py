"""How far the simulated replica is from theory and from measured engines, as rows for ``autoscaler bench validate``.

Goals: mean wait of M/D/1 within 1 %, processor sharing within 3 %, TPOT of a linear law within 2.5 %; mean absolute TPOT
error at most 6 % on 109 measured runs and at most 7 % on models left out of the fit of the host terms.  The time to first
token has no goal: it stands beside, as measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from load_tests.bench import BenchRow
from load_tests.law_fit import fit_host
from load_tests.measured import Errors, MeasuredRun, comparable_runs, profile_errors
from load_tests.moe_fit import FAMILY, contradicted, groups, held_out_errors
from load_tests.queueing import deterministic_queue, linear_model, processor_sharing, time_per_token

QWEN, LLAMA = "qwen3-32b_bf16", "llama-3.1-70b_fp8"
SEEDS = 10
# The linear law of an 8B model on an H100, with decode tokens priced like prefill tokens.
LINEAR = linear_model(a=6.05e-3, b=1.61e-5, c=0.0, d=4.17e-8)


def seed_mean_error(case: Callable[..., tuple[float, float]], seeds: int = SEEDS, **settings: object) -> float:
    """Relative error of simulated against expected, mean over seeds 0, 1, ...; positive is too slow."""
    pairs = [case(seed=seed, **settings) for seed in range(seeds)]
    return float(np.mean([simulated / expected - 1.0 for simulated, expected in pairs]))


def queueing_rows(requests: int = 400_000) -> Iterator[BenchRow]:
    """The plant where it is a textbook queue; `requests` per seed."""
    for load in (0.5, 0.8):
        error = seed_mean_error(deterministic_queue, load=load, requests=requests)
        yield _percent(f"M/D/1 mean wait, load {load:g}, mean of {SEEDS} seeds", abs(error), 1.0)
    for lengths in ("fixed", "geometric"):
        for load in (0.6, 0.8):
            error = seed_mean_error(processor_sharing, load=load, requests=requests // 2, lengths=lengths)
            yield _percent(f"processor sharing mean time, {lengths} lengths, load {load:g}", abs(error), 3.0)
    for load in (0.1, 0.5, 0.86):
        error = seed_mean_error(time_per_token, load=load, requests=requests // 4, model=LINEAR)
        yield _percent(f"TPOT of a linear law, load {load:g}", abs(error), 2.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFit:
    """Host terms fitted on the runs of some models, and the errors with them on runs of the others."""

    per_step_seconds: float
    per_sequence_seconds: float
    own: Errors
    others: Errors


def dense_runs() -> tuple[MeasuredRun, ...]:
    """The measured runs of dense models that are compared: not saturated, with a profile."""
    return comparable_runs(QWEN, LLAMA)


@cache
def host_fit(fitted: str, tested: str) -> HostFit:
    """Host terms fitted on the runs of one family of profiles and tested on those of another."""
    training = comparable_runs(fitted)
    host = fit_host(training)
    return HostFit(
        per_step_seconds=host[0],
        per_sequence_seconds=host[1],
        own=profile_errors(training, host),
        others=profile_errors(comparable_runs(tested), host),
    )


def measured_rows() -> Iterator[BenchRow]:
    """The plant against measured runs of dense models."""
    own = profile_errors(dense_runs())
    bare = profile_errors(dense_runs(), host=(0.0, 0.0))
    yield _percent(
        f"TPOT error, {len(own.tpot)} measured vLLM runs", own.tpot_mape, 6.0, ("without host terms", bare.tpot_mape)
    )
    yield _percent("TPOT bias, the same runs", own.tpot_bias, None, ("without host terms", bare.tpot_bias))
    for fitted, tested in ((QWEN, LLAMA), (LLAMA, QWEN)):
        fit = host_fit(fitted, tested)
        names = f"fitted on {fitted.split('_')[0]}, tested on {tested.split('_')[0]}"
        baseline = ("on the models of the fit", fit.own.tpot_mape)
        yield _percent(f"TPOT error, host terms {names}", fit.others.tpot_mape, 7.0, baseline)
    for family in (QWEN, LLAMA):
        found = profile_errors(comparable_runs(family))
        baseline = ("median bias", found.ttft_median_bias)
        yield _percent(f"TTFT error, {family.split('_')[0]}", found.ttft_mape, None, baseline)


def moe_rows(refit: bool = True) -> Iterator[BenchRow]:
    """The mixture-of-experts profiles against their runs, and with `refit` fitted again without some of them."""
    runs = tuple(run for group in groups().values() for run in group)
    odd, own = contradicted(runs), profile_errors(runs)
    kept = float(np.abs(own.tpot[[run not in odd for run in runs]]).mean())
    baseline = (f"without {len(odd)} runs that contradict others", kept)
    yield _percent(f"TPOT error, {FAMILY}, {len(runs)} measured runs, all in the fit", own.tpot_mape, None, baseline)
    if refit:
        left_out = held_out_errors()
        name = f"{FAMILY}, {len(left_out.tpot)} runs left out of the fit"
        yield _percent(f"TPOT error, {name}", left_out.tpot_mape)
        yield _percent(f"TTFT error, {name}", left_out.ttft_mape)


def rows(quick: bool = False) -> Iterator[BenchRow]:
    """Every row of the bench, as it is measured (about 20 s; `quick` simulates fewer requests and fits less)."""
    yield from queueing_rows(100_000 if quick else 400_000)
    yield from measured_rows()
    yield from moe_rows(refit=not quick)


def _percent(
    name: str, fraction: float, goal: float | None = None, baseline: tuple[str, float] | None = None
) -> BenchRow:
    label, value = baseline or (None, None)
    shown = None if value is None else 100.0 * value
    return BenchRow(name=name, value=100.0 * fraction, unit="%", goal=goal, baseline=label, baseline_value=shown)
