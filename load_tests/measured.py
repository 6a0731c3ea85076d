"""Runs of a real engine that were measured in a closed loop, and the same runs on a simulated replica.

Data and origin: ``load_tests/data/measured``.  All times in seconds, lengths in tokens.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from load_tests.closed_loop import closed_loop_requests, run_closed_loop
from load_tests.fleet import ReplicaModel
from serving.profiles import HostTerms, Profile, RooflineLaw, profile, profile_ids

Floats = NDArray[np.float64]

# How the streams of a run are driven (the InferenceMAX client): ten requests each, lengths from 0.8 to 1 of the nominal.
ROUNDS = 10
LEAST_FRACTION = 0.8
# Runs whose mean TTFT is longer were saturated: their TTFT says how long the run was, not how fast the engine is.
SATURATED_TTFT_SECONDS = 2.5
CONCURRENCIES = (4, 128)

_GPUS = {"h100_sxm": "h100", "h200_sxm": "h200"}
_MODELS = {
    ("Qwen/Qwen3-32B", ""): "qwen3-32b_bf16",
    ("meta-llama/Llama-3.1-70B", "fp8"): "llama-3.1-70b_fp8",
    ("openai/gpt-oss-120b", "fp4"): "gpt-oss-120b_mxfp4",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """One setting that was measured: `concurrency` streams, nominal lengths, mean TTFT and TPOT in seconds.

    `profile_id` is the profile that describes this replica, whether or not it exists; "" for a model that has none.
    """

    profile_id: str
    model: str
    gpu: str
    precision: str
    engine: str
    tensor_parallel: int
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    ttft_seconds: float
    tpot_seconds: float

    @property
    def saturated(self) -> bool:
        """Whether the run is left out of comparisons: overloaded, or outside the concurrencies that are compared."""
        low, high = CONCURRENCIES
        return self.ttft_seconds >= SATURATED_TTFT_SECONDS or not low <= self.concurrency <= high


@cache
def measured_runs() -> tuple[MeasuredRun, ...]:
    """Every run of the file, in its order; a run that the file repeats comes once."""
    path = files("load_tests") / "data" / "measured" / "measured_e2e_vllm.csv.gz"
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    return tuple(dict.fromkeys(_run(row) for row in csv.DictReader(text.splitlines())))


def _run(row: dict[str, str]) -> MeasuredRun:
    model, gpu, tp = row["model_path"], _GPUS[row["system"]], int(float(row["tp_size"]))
    family = _MODELS.get((model, row["precision"]), "")
    return MeasuredRun(
        profile_id=f"{family}_{gpu}_tp{tp}" if family else "",
        model=model,
        gpu=gpu,
        precision=row["precision"],
        engine=row["backend_version"],
        tensor_parallel=tp,
        prompt_tokens=int(row["isl"]),
        output_tokens=int(row["osl"]),
        concurrency=int(float(row["concurrency"])),
        # the source prints some numbers twice with other last digits
        ttft_seconds=float(f"{float(row['ttft_ms']) / 1e3:.9g}"),
        tpot_seconds=float(f"{float(row['tpot_ms']) / 1e3:.9g}"),
    )


def comparable_runs(*models: str) -> tuple[MeasuredRun, ...]:
    """Runs that are not saturated and whose replica has a shipped profile; `models` are starts of profile ids."""
    known = frozenset(profile_ids())
    chosen = [run for run in measured_runs() if not run.saturated and run.profile_id in known]
    return tuple(run for run in chosen if run.profile_id.startswith(models or ("",)))


def replica_model(row: Profile, law: RooflineLaw | None = None, host: HostTerms | None = None) -> ReplicaModel:
    """The simulated replica of a profile, with another law or other host terms where given."""
    roof, terms = law or row.roofline, host or row.host
    return ReplicaModel(
        a=roof.a,
        b=roof.b,
        floor_tokens=roof.floor_tokens,
        c=roof.c,
        d=roof.d,
        e=roof.e,
        step_overhead_seconds=terms.per_step_seconds,
        sequence_overhead_seconds=terms.per_sequence_seconds,
        request_overhead_seconds=terms.per_request_seconds,
        max_num_seqs=row.max_num_seqs,
        max_num_batched_tokens=row.max_num_batched_tokens,
        kv_capacity_tokens=row.kv_capacity_tokens,
        kv_block_tokens=row.kv_block_tokens,
        kv_bytes_per_token=row.kv_bytes_per_token,
    )


def simulate_run(run: MeasuredRun, replica: ReplicaModel, seed: int = 0) -> tuple[float, float]:
    """(mean TPOT, mean TTFT) in seconds of `run` on a simulated replica; NaN if a request did not end."""
    requests = closed_loop_requests(
        clients=run.concurrency,
        rounds=ROUNDS,
        prompt_tokens=run.prompt_tokens,
        output_tokens=run.output_tokens,
        least_fraction=LEAST_FRACTION,
        seed=seed,
    )
    done = run_closed_loop(replica, requests)
    if not np.isfinite(done.finish_seconds).all():
        return math.nan, math.nan
    tpot = (done.finish_seconds - done.first_token_seconds) / np.maximum(done.output_tokens - 1, 1)
    return float(tpot.mean()), float((done.first_token_seconds - done.arrival_seconds).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Relative errors of simulated runs, (simulated - measured) / measured, one entry per run."""

    tpot: Floats
    ttft: Floats

    @property
    def tpot_mape(self) -> float:
        """Mean absolute error of the time per output token, as a fraction."""
        return float(np.abs(self.tpot).mean())

    @property
    def tpot_bias(self) -> float:
        """Mean signed error of the time per output token; negative is too fast."""
        return float(self.tpot.mean())

    @property
    def ttft_mape(self) -> float:
        """Mean absolute error of the time to first token."""
        return float(np.abs(self.ttft).mean())

    @property
    def ttft_median_bias(self) -> float:
        """Median signed error of the time to first token."""
        return float(np.median(self.ttft))


def errors(runs: Sequence[MeasuredRun], replicas: Sequence[ReplicaModel], seed: int = 0) -> Errors:
    """Errors of `runs`, each on its own replica model."""
    simulated = np.array([simulate_run(run, replica, seed) for run, replica in zip(runs, replicas, strict=True)])
    measured = np.array([(run.tpot_seconds, run.ttft_seconds) for run in runs])
    relative = simulated / measured - 1.0
    return Errors(tpot=relative[:, 0], ttft=relative[:, 1])


def profile_errors(runs: Sequence[MeasuredRun], host: tuple[float, float] | None = None, seed: int = 0) -> Errors:
    """Errors of the shipped profiles of `runs`; `host` replaces their (seconds per step, seconds per sequence)."""
    return errors(runs, [_shipped(run, host) for run in runs], seed)


def _shipped(run: MeasuredRun, host: tuple[float, float] | None) -> ReplicaModel:
    row = profile(run.profile_id)
    if host is None:
        return replica_model(row)
    return replica_model(row, host=replace(row.host, per_step_seconds=host[0], per_sequence_seconds=host[1]))
