"""The mixture-of-experts profiles: fitted to measured runs of gpt-oss-120b, and tested on runs left out of the fit.

``python -m load_tests.moe_fit`` prints ``serving/data/profiles_moe.toml``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from load_tests.fleet import ReplicaModel
from load_tests.law_fit import fit_roofline
from load_tests.measured import Errors, MeasuredRun, errors, measured_runs
from serving.profiles import HostTerms

FAMILY = "gpt-oss-120b_mxfp4"
LEFT_OUT = (8, 32)  # concurrencies that the tested fit has not seen, between those that it has

# The model: 36 layers, every other one attends to all tokens, the others to the last 128; 64 heads, 8 of them for KV.
LAYERS, FULL_LAYERS, HEADS, KV_HEADS, HEAD_DIM = 36, 18, 64, 8, 64
WEIGHTS_GB = 65.3
KV_BYTES_PER_TOKEN = 2 * LAYERS * KV_HEADS * HEAD_DIM * 2
GPU_NAMES = {"h100": "NVIDIA H100 SXM 80GB", "h200": "NVIDIA H200 SXM 141GB"}
HBM_GIB = {"h100": 79.1, "h200": 139.8}  # as the CUDA runtime reports it
HBM_BYTES_PER_SECOND = {"h100": 3.35e12, "h200": 4.8e12}
ATTENTION_FLOPS_PER_SECOND = 5e14  # about half of the dense bf16 peak


def groups() -> dict[str, list[MeasuredRun]]:
    """Measured runs of the model that are not saturated, by profile id."""
    by_id: dict[str, list[MeasuredRun]] = {}
    for run in measured_runs():
        if run.profile_id.startswith(FAMILY) and not run.saturated:
            by_id.setdefault(run.profile_id, []).append(run)
    return dict(sorted(by_id.items()))


def base_model(gpu: str, tensor_parallel: int) -> ReplicaModel:
    """What is computed, not fitted: KV capacity, and attention by bandwidth (d) and arithmetic (e) of the full layers."""
    free = 0.9 * HBM_GIB[gpu] * 2**30 * tensor_parallel - WEIGHTS_GB * 1e9 - 2.5 * 2**30 * tensor_parallel
    full_kv_bytes = KV_BYTES_PER_TOKEN * FULL_LAYERS / LAYERS
    host = HostTerms()
    return ReplicaModel(
        a=1e-3,
        b=1e-5,
        c=0.0,
        d=full_kv_bytes / (HBM_BYTES_PER_SECOND[gpu] * tensor_parallel),
        e=4 * HEADS * HEAD_DIM * FULL_LAYERS / (ATTENTION_FLOPS_PER_SECOND * tensor_parallel),
        step_overhead_seconds=host.per_step_seconds,
        sequence_overhead_seconds=host.per_sequence_seconds,
        request_overhead_seconds=host.per_request_seconds,
        kv_capacity_tokens=int(free / KV_BYTES_PER_TOKEN),
    )


def contradicted(runs: Iterable[MeasuredRun]) -> frozenset[MeasuredRun]:
    """Runs with a longer TPOT than the same setting has at twice the concurrency, or on half of the GPUs."""

    def setting(run: MeasuredRun, clients: int, gpus: int) -> tuple[str | int, ...]:
        return run.gpu, gpus, clients, run.prompt_tokens, run.output_tokens

    known = {setting(run, run.concurrency, run.tensor_parallel): run for run in runs}
    slower = set()
    for run in known.values():
        busier = known.get(setting(run, 2 * run.concurrency, run.tensor_parallel))
        smaller = known.get(setting(run, run.concurrency, run.tensor_parallel // 2))
        if any(other is not None and run.tpot_seconds > other.tpot_seconds for other in (busier, smaller)):
            slower.add(run)
    return frozenset(slower)


def fit(runs: list[MeasuredRun], floors: Iterable[float] | None = None) -> ReplicaModel:
    """The replica that best explains `runs`, all of one GPU and tensor parallelism; coefficients to four digits."""
    base = base_model(runs[0].gpu, runs[0].tensor_parallel)
    best = fit_roofline(runs, base)[0] if floors is None else fit_roofline(runs, base, tuple(floors))[0]
    a, b, c, d, e = (float(f"{getattr(best, name):.4g}") for name in "abcde")
    return replace(best, a=a, b=b, c=c, d=d, e=e)


def held_out_errors() -> Errors:
    """Errors on the runs at the concurrencies left out, each by a fit to the others of its GPU and tensor parallelism."""
    found = []
    for runs in groups().values():
        tested = [run for run in runs if run.concurrency in LEFT_OUT]
        model = fit([run for run in runs if run.concurrency not in LEFT_OUT])
        found.append(errors(tested, [model] * len(tested)))
    return Errors(tpot=np.concatenate([e.tpot for e in found]), ttft=np.concatenate([e.ttft for e in found]))


def _quality(runs: list[MeasuredRun], own: Errors, odd: frozenset[MeasuredRun]) -> str:
    tested = [run for run in runs if run.concurrency in LEFT_OUT]
    trained = fit([run for run in runs if run.concurrency not in LEFT_OUT])
    held_out = errors(tested, [trained] * len(tested))
    text = (
        f"fair: fitted to {len(runs)} closed-loop runs, not to kernels; TPOT error {100 * own.tpot_mape:.1f} % there, "
        f"{100 * held_out.tpot_mape:.1f} % at concurrencies left out, worst run {100 * np.abs(own.tpot).max():.0f} %"
    )
    kept = np.array([run not in odd for run in runs])
    if not kept.all():
        text += f"; {100 * np.abs(own.tpot[kept]).mean():.1f} % without {(~kept).sum()} runs that contradict others"
    return text


def toml_row(profile_id: str, runs: list[MeasuredRun], odd: frozenset[MeasuredRun]) -> str:
    """One row of the profile file, with its errors; `odd` are runs that contradict others."""
    model, linear = fit(runs), fit(runs, floors=(0.0,))
    own, straight = errors(runs, [model] * len(runs)), errors(runs, [linear] * len(runs))
    slope = float(f"{linear.b + linear.c:.4g}")
    return f"""[[profiles]]
id = "{profile_id}"
model = "openai/gpt-oss-120b"
gpu = "{GPU_NAMES[runs[0].gpu]}"
tensor_parallel = {runs[0].tensor_parallel}
precision = "mxfp4"
engine = "vLLM 0.18.0"
quality = "{_quality(runs, own, odd)}"
layers = {LAYERS}
weights_gb = {WEIGHTS_GB}
kv_bytes_per_token = {KV_BYTES_PER_TOKEN}
kv_capacity_tokens = {model.kv_capacity_tokens}
max_num_seqs = {model.max_num_seqs}
max_num_batched_tokens = {model.max_num_batched_tokens}
kv_block_tokens = {model.kv_block_tokens}
linear = {{ a = {linear.a:.4g}, b = {linear.b:.4g}, c = {slope:.4g}, d = {linear.d:.4g}, e = {linear.e:.4g}, \
mape_percent = {100 * straight.tpot_mape:.1f} }}
roofline = {{ a = {model.a:.4g}, b = {model.b:.4g}, floor_tokens = {model.floor_tokens:g}, c = {model.c:.4g}, \
d = {model.d:.4g}, e = {model.e:.4g}, mape_percent = {100 * own.tpot_mape:.1f} }}
measured_check = {{ runs = {len(runs)}, concurrency = [4, 64], tpot_mape_percent = {100 * own.tpot_mape:.1f}, \
tpot_bias_percent = {100 * own.tpot_bias:.1f}, ttft_median_bias_percent = {100 * own.ttft_median_bias:.0f} }}
"""


HEADER = """\
# Step-time profiles of a mixture-of-experts model (128 experts, 4 per token).  Units: seconds, tokens, GB = 1e9 bytes.
#
# Fitted to the mean TPOT and TTFT of 105 distinct closed-loop vLLM runs (1k/1k, 1k/8k, 8k/1k tokens; concurrency 4-64) by
# load_tests/moe_fit.py, which prints this file; the runs are in load_tests/data/measured.  d and e are computed from
# memory bandwidth and arithmetic, because contexts up to 9k tokens do not tell them apart.  KV capacity counts all
# layers; an engine that keeps only the window of the sliding-window layers holds about twice as many tokens.
#
# What the law lacks: a batch of T tokens reads 128 * (1 - (1 - 4/128)^T) experts, so decode time is concave in the batch,
# and this law is straight: 3 to 7 % too slow at 4 and 5 to 8 % at 64 sequences, up to 10 % too fast between (TP 1 to 4).
# Four runs on H100 contradict others (slower than at twice the concurrency or on half of the GPUs); they are in the errors.
version = 1

[host]
per_step_seconds = 1.2e-4
per_sequence_seconds = 5.5e-5
per_request_seconds = 0.0156
"""


def profile_file() -> str:
    """The text of ``serving/data/profiles_moe.toml``."""
    found = groups()
    odd = contradicted(run for runs in found.values() for run in runs)
    return "\n".join([HEADER, *(toml_row(name, runs, odd) for name, runs in found.items())])


if __name__ == "__main__":
    print(profile_file(), end="")
