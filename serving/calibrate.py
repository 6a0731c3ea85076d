"""A replica profile out of recorded observations: ``autoscaler calibrate RECORDING``.

Says how good it is on windows left out of the fit, and on loads busier than any it saw; refuses what the data cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median, pstdev
from typing import Any

from autoscaler.errors import ConfigError
from autoscaler.schema import build
from autoscaler.types import Observation
from serving.capacity import GENERIC_LAW, laws_of
from serving.closed_forms import Law
from serving.profiles import HostTerms, Profile, Stage, StartupProfile
from serving.step_fit import ROW_SECONDS, Fit, Row, fit, fit_linear, rows_of, scaled_to, seconds_of

LEAST_ROWS = 10
FOLDS = 5
# Busy and quiet windows must differ by this factor in requests running, or fixed and growing parts of a step look alike.
LOAD_RATIO = 2.0
PRIOR_SPREAD, GENERIC_SPREAD = 0.3, 1.0
GENERIC = replace(GENERIC_LAW, floor=64.0)
TOLD = 0.5  # a coefficient of which the data tell less is the prior's
SHARE = 0.03  # of the step time, below which a coefficient is not worth a word
LEAST_STARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """Relative errors of step time: mean absolute and its 95 % quantile, in percent; `bias_percent` is signed."""

    windows: int
    mape_percent: float
    p95_percent: float
    bias_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The profile and how far to trust it.

    `held_out`: each fifth of the time predicted by a fit on the rest.  `busier`: the busier half by a fit on the quieter
    one, or None where there are too few.  `from_prior`: coefficients that the data do not tell and that matter.
    """

    profile: Profile
    rows: int
    skipped: str
    running: tuple[float, float]
    told: tuple[tuple[str, float, float], ...]
    held_out: Error
    busier: Error | None
    from_prior: tuple[str, ...]


def calibrate(
    observations: Sequence[Observation], prior: Profile | None = None, replica: dict[str, Any] | None = None
) -> Calibration:
    """A profile that fits `observations`, held by `prior`, with the fields of `replica` instead of the prior's.

    Raises ConfigError where the windows are too few, or of one load only and there is no prior.
    """
    given = dict(replica or {})
    capacity = given.get("kv_capacity_tokens") or (prior.kv_capacity_tokens if prior else None)
    rows, skipped = rows_of(observations, capacity)
    if len(rows) < LEAST_ROWS:
        why = f" ({skipped})" if skipped else ""
        raise ConfigError(
            "recording", f"{len(rows)} usable windows of {ROW_SECONDS:g} s must be {LEAST_ROWS} or more{why}"
        )
    low, high = _quantile([r.running for r in rows], 0.1), _quantile([r.running for r in rows], 0.9)
    if prior is None and high < LOAD_RATIO * low:
        raise ConfigError(
            "recording",
            f"one load only, {low:.1f} to {high:.1f} requests running on a replica: a (per step) cannot be told from b "
            f"and c (per token); it must span a factor of {LOAD_RATIO:g}, or --prior must name a profile for the rest",
        )
    fits = _Fits.of(rows, prior)
    chosen = _chosen(prior, given, fits, rows)
    return Calibration(
        profile=chosen,
        rows=len(rows),
        skipped=skipped,
        running=(low, high),
        told=_shares(fits.floor, rows),
        held_out=_held_out(rows, prior, fits.floor.law.floor),
        busier=_busier(rows, prior, fits.floor.law.floor),
        from_prior=_from_prior(fits.floor, rows),
    )


@dataclass(frozen=True, slots=True)
class _Fits:
    floor: Fit
    linear: Fit

    @classmethod
    def of(cls, rows: Sequence[Row], prior: Profile | None) -> _Fits:
        if prior is not None:
            line, roof = laws_of(prior)
            return cls(fit(rows, roof, PRIOR_SPREAD), fit_linear(rows, line, PRIOR_SPREAD))
        return cls(
            fit(rows, scaled_to(GENERIC, rows), GENERIC_SPREAD),
            fit_linear(rows, scaled_to(GENERIC_LAW, rows), GENERIC_SPREAD),
        )


def _predictor(rows: Sequence[Row], prior: Profile | None, floor: float) -> Law:
    if prior is not None:
        return fit(rows, laws_of(prior)[1], PRIOR_SPREAD, floor).law
    return fit(rows, scaled_to(GENERIC, rows), GENERIC_SPREAD, floor).law


def _error(pairs: Iterable[tuple[Law, Row]]) -> Error:
    errors = [seconds_of(law, row) / row.seconds - 1.0 for law, row in pairs]
    sizes = [abs(e) for e in errors]
    return Error(
        windows=len(errors),
        mape_percent=100.0 * fmean(sizes),
        p95_percent=100.0 * _quantile(sizes, 0.95),
        bias_percent=100.0 * fmean(errors),
    )


def _held_out(rows: Sequence[Row], prior: Profile | None, floor: float) -> Error:
    pairs: list[tuple[Law, Row]] = []
    for k in range(FOLDS):
        first, last = k * len(rows) // FOLDS, (k + 1) * len(rows) // FOLDS
        law = _predictor([*rows[:first], *rows[last:]], prior, floor)
        pairs += [(law, row) for row in rows[first:last]]
    return _error(pairs)


def _busier(rows: Sequence[Row], prior: Profile | None, floor: float) -> Error | None:
    if len(rows) < 2 * LEAST_ROWS:
        return None
    ordered = sorted(rows, key=lambda r: r.running)
    half = len(ordered) // 2
    law = _predictor(ordered[:half], prior, floor)
    return _error((law, row) for row in ordered[half:])


def _shares(found: Fit, rows: Sequence[Row]) -> tuple[tuple[str, float, float], ...]:
    """(coefficient, share of it that the data told, share of the step time) of a, b, c, d of the roofline law."""
    law, none = found.law, Law(a=0.0, b=0.0, c=0.0, d=0.0)
    parts = {
        "a": replace(none, a=law.a),
        "b": replace(none, b=law.b, c=law.b, floor=law.floor),
        "c": replace(none, c=law.c - law.b),
        "d": replace(none, d=law.d),
    }
    total = sum(r.seconds for r in rows)
    seconds = {name: sum(seconds_of(law, r) for r in rows) / total for name, law in parts.items()}
    return tuple((name, told, seconds[name]) for name, told in zip("abcd", found.told, strict=True))


def _from_prior(found: Fit, rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(name for name, told, share in _shares(found, rows) if told < TOLD and share > SHARE)


def _chosen(prior: Profile | None, given: dict[str, Any], fits: _Fits, rows: Sequence[Row]) -> Profile:
    roof, line = fits.floor.law, fits.linear.law
    roofline, linear = _in_sample(roof, rows), _in_sample(line, rows)
    kept = _from_prior(fits.floor, rows)
    named = f", {', '.join(kept)} by {prior.id if prior else 'a generic shape'}" if kept else ""
    fields: dict[str, Any] = {} if prior is None else {
        name: getattr(prior, name)
        for name in (
            "model", "gpu", "tensor_parallel", "precision", "engine", "layers", "weights_gb", "kv_bytes_per_token",
            "kv_capacity_tokens", "max_num_seqs", "max_num_batched_tokens", "kv_block_tokens",
        )
    }  # fmt: skip
    fields |= {"id": f"{prior.id}_calibrated" if prior else "calibrated", **given}
    fields |= {
        "quality": f"calibrated on {len(rows)} windows{named}",
        "fitted_range": {
            "samples": len(rows),
            "step_seconds": [min(r.seconds / r.steps for r in rows), max(r.seconds / r.steps for r in rows)],
        },
        # Host time per step and per sequence is in a and c: the windows cannot tell it from the GPU's.
        "host": {
            "per_step_seconds": 0.0,
            "per_sequence_seconds": 0.0,
            "per_request_seconds": (prior.host if prior else HostTerms()).per_request_seconds,
        },
        "linear": {"a": line.a, "b": line.b, "c": line.c, "d": line.d, "e": line.e, "mape_percent": linear},
        "roofline": {
            "a": roof.a, "b": roof.b, "floor_tokens": roof.floor, "c": max(0.0, roof.c - roof.b), "d": roof.d,
            "e": roof.e, "mape_percent": roofline,
        },
    }  # fmt: skip
    return build(Profile, _rounded(fields), "--set")


def _in_sample(law: Law, rows: Sequence[Row]) -> float:
    return _error((law, row) for row in rows).mape_percent


def _rounded(value: Any) -> Any:
    """Four digits are more than the windows tell."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def startups(observations: Sequence[Observation]) -> tuple[list[float], int]:
    """(seconds from order to ready of starts that ended well, starts that ended otherwise), first ordered first ready.

    Both ends are known to a window; the middle of it is taken.  A start that is not over at the end is in neither.
    """
    seconds: list[float] = []
    waiting: list[float] = []
    lost = 0
    for before, now in pairwise(observations):
        was, is_ = before.replicas, now.replicas
        middle = now.at_seconds - now.window_seconds / 2.0
        born = max(0, is_.ready - was.ready)
        begun = is_.starting - was.starting + born
        if begun > 0:
            waiting += [middle] * begun
        for _ in range(min(born, len(waiting))):
            seconds.append(max(1.0, middle - waiting.pop(0)))
        while len(waiting) > is_.starting:
            waiting.pop()
            lost += 1
    return seconds, lost


def startup_profile_of(seconds: Sequence[float]) -> StartupProfile:
    """One stage, from order to ready, log-normal.  Raises ConfigError for fewer than three starts."""
    if len(seconds) < LEAST_STARTS:
        raise ConfigError("recording", f"{len(seconds)} starts from order to ready must be {LEAST_STARTS} or more")
    logs = [math.log(s) for s in seconds]
    stage = Stage(
        name="order_to_ready", fixed_seconds=round(median(seconds), 1), sigma=round(min(3.0, pstdev(logs)), 3),
        note=f"median of {len(seconds)} starts seen, {min(seconds):.0f} to {max(seconds):.0f} s",
    )  # fmt: skip
    return StartupProfile(id="calibrated", stages=(stage,), note="as it was seen; the windows do not tell its stages")
