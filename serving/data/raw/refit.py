"""Refit the step-time laws of ../profiles.toml from step_components.csv.gz; needs numpy and scipy.

Usage: ``python refit.py`` prints one line per profile; ``python refit.py --check`` exits 1 if a coefficient of profiles.toml
differs by more than its rounding.

One engine step carries P prefill tokens and N decode sequences whose contexts sum to K tokens; A = sum over prefill chunks
of p*(k + p/2), k = context before a chunk of p tokens.
    linear    t = a + b*P + c*N + d*K + e*A
    roofline  t = a + max(b*floor_tokens, b*(P+N)) + c*N + d*K + e*A
Both are fitted by non-negative least squares on relative error.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

HERE = Path(__file__).resolve().parent
Array = NDArray[np.float64]
Table = dict[tuple[int, int], float]

# Pure decode, pure prefill, mixed with P <= 2048, mixed with more: shares of the weight.
CLASS_WEIGHTS = np.array([0.40, 0.15, 0.35, 0.10])


def load() -> dict[str, dict[str, Table]]:
    """Seconds by profile, component and its two arguments."""
    out: dict[str, dict[str, Table]] = defaultdict(lambda: defaultdict(dict))
    with gzip.open(HERE / "step_components.csv.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            out[row["profile"]][row["component"]][int(row["x1"]), int(row["x2"])] = float(row["ms"]) / 1e3
    return out


def samples(parts: dict[str, Table], kv_capacity_tokens: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """Rows (P, N, K, A), their step seconds and their class, over every step that fits the KV cache."""
    mixed, decode = parts["linear_mixed"], parts["linear_decode"]
    prefill_attention, decode_attention = parts["prefill_attention"], parts["decode_attention"]
    contexts = sorted({k for _, k in prefill_attention if k <= 8192})
    depths = sorted({c for _, c in decode_attention if c <= 16384})
    rows, seconds, classes = [], [], []
    for p, n in itertools.product([0, *sorted({p for p, _ in mixed})], sorted({n for _, n in mixed} | {0})):
        base = mixed.get((p, n)) if p else decode.get((0, n))
        if base is None or p == 1 or p + n > 8704 or p + n == 0:
            continue
        for k, c in itertools.product(contexts if p else [0], depths if n else [0]):
            pre = prefill_attention.get((p, k)) if p else 0.0
            dec = decode_attention.get((n, c)) if n else 0.0
            if n * c > kv_capacity_tokens or pre is None or dec is None:
                continue
            rows.append((p, n, n * c, p * (k + p / 2)))
            seconds.append(base + pre + dec)
            classes.append(0 if p == 0 else 1 if n == 0 else 2 if p <= 2048 else 3)
    return np.array(rows, float), np.array(seconds), np.array(classes)


def fit(parts: dict[str, Table], kv_capacity_tokens: int) -> dict[str, dict[str, float]]:
    """Coefficients and mean absolute percentage error of both laws."""
    x, y, classes = samples(parts, kv_capacity_tokens)
    share = CLASS_WEIGHTS / np.maximum(np.bincount(classes, minlength=4), 1)
    weight = np.sqrt(share[classes] * len(y))
    p, n, context, pairs = x.T
    one = np.ones_like(y)

    def solve(matrix: Array) -> tuple[float, Array]:
        coefficients = nnls(matrix * (weight / y)[:, None], weight)[0]
        return float(((((matrix @ coefficients) - y) / y * weight) ** 2).sum()), coefficients

    def law(matrix: Array, coefficients: Array) -> dict[str, float]:
        error = float(np.abs((matrix @ coefficients - y) / y).mean() * 100)
        return {**dict(zip("abcde", map(float, coefficients), strict=True)), "mape_percent": error}

    plain = np.c_[one, p, n, context, pairs]
    knees = np.unique(np.round(np.geomspace(16, 1024, 60)))
    trials = [(t, np.c_[one, np.maximum(t, p + n), n, context, pairs]) for t in knees]
    knee, matrix = min(trials, key=lambda trial: solve(trial[1])[0])
    roofline = {**law(matrix, solve(matrix)[1]), "floor_tokens": float(knee)}
    return {"linear": law(plain, solve(plain)[1]), "roofline": roofline}


def differences(fitted: dict[str, dict[str, float]], row: dict[str, Any]) -> list[str]:
    """Coefficients that differ from the row's by more than four digits of rounding."""
    return [
        f"{row['id']} {law}.{name}: fitted {value:.4g}, written {row[law][name]:.4g}"
        for law, values in fitted.items()
        for name, value in values.items()
        if abs(value - row[law][name]) > (0.051 if name == "mape_percent" else 6e-4 * abs(value) + 1e-15)
    ]


def main() -> int:
    """Print every fit; with --check, compare with the file."""
    rows = {r["id"]: r for r in tomllib.loads((HERE.parent / "profiles.toml").read_text(encoding="utf-8"))["profiles"]}
    wrong: list[str] = []
    for name, parts in load().items():
        fitted = fit(parts, rows[name]["kv_capacity_tokens"])
        wrong += differences(fitted, rows[name])
        print(name, {law: {k: f"{v:.4g}" for k, v in values.items()} for law, values in fitted.items()})
    if "--check" in sys.argv:
        print("\n".join(wrong) or "every coefficient of profiles.toml is reproduced")
        return 1 if wrong else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
