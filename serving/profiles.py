"""Step-time profiles of engine replicas and the stages of their start-up: shipped data, or a file of the user's.

Shipped data lie in ``serving/data`` (see its README for sources and licences).  Standard library only; YAML files of the
user's need the extra.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from autoscaler.config import load_mapping
from autoscaler.errors import ConfigError
from autoscaler.schema import build, setting
from autoscaler.settings import ReplicaSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLaw:
    """Step time ``t = a + b*P + c*N + d*K + e*A`` in seconds: P prefill tokens, N decode sequences with K tokens of context,
    A prefill attention pairs.  The closed form for planning."""

    a: float = setting(doc="Seconds per step.", low=0)
    b: float = setting(doc="Seconds per prefill token.", low=0)
    c: float = setting(doc="Seconds per decode sequence.", low=0)
    d: float = setting(doc="Seconds per token of decode context.", low=0)
    e: float = setting(0.0, "Seconds per prefill attention pair; 0 ignores attention to earlier chunks.", low=0)
    r2: float | None = setting(None, "Share of variance explained by the fit.", high=1)
    mape_percent: float | None = setting(None, "Mean absolute percentage error of the fit.", low=0)
    decode_mape_percent: float | None = setting(None, "The same over pure decode steps.", low=0)

    def seconds(self, prefill: float, sequences: float, context: float, pairs: float) -> float:
        """GPU time of one step, without host terms."""
        return self.a + self.b * prefill + self.c * sequences + self.d * context + self.e * pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineLaw:
    """Step time ``t = a + max(b*floor_tokens, b*(P + N)) + c*N + d*K + e*A``: weights are read anyway.  The plant's law."""

    a: float = setting(doc="Seconds per step.", low=0)
    b: float = setting(doc="Seconds per token of the batch, prefill and decode alike.", low=0)
    floor_tokens: float = setting(0.0, "Tokens below which a step is bound by reading weights; 0 is no floor.", low=0)
    c: float = setting(doc="Seconds per decode sequence.", low=0)
    d: float = setting(doc="Seconds per token of decode context.", low=0)
    e: float = setting(0.0, "Seconds per prefill attention pair; 0 ignores attention to earlier chunks.", low=0)
    r2: float | None = setting(None, "Share of variance explained by the fit.", high=1)
    mape_percent: float | None = setting(None, "Mean absolute percentage error of the fit.", low=0)
    p95_ape_percent: float | None = setting(None, "95 % quantile of the absolute percentage error.", low=0)
    decode_mape_percent: float | None = setting(None, "Mean absolute percentage error over pure decode steps.", low=0)
    prefill_mape_percent: float | None = setting(None, "The same over pure prefill steps.", low=0)

    def seconds(self, prefill: float, sequences: float, context: float, pairs: float) -> float:
        """GPU time of one step, without host terms."""
        tokens = max(self.floor_tokens, prefill + sequences)
        return self.a + self.b * tokens + self.c * sequences + self.d * context + self.e * pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTerms:
    """Time of the host around GPU steps; the defaults were fitted on 109 measured vLLM runs."""

    per_step_seconds: float = setting(1.2e-4, "Added to every step; 0 turns it off.", low=0)
    per_sequence_seconds: float = setting(5.5e-5, "Added to a step per running sequence; 0 turns it off.", low=0)
    per_request_seconds: float = setting(0.0156, "Before a request can be scheduled; 0 turns it off.", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedRange:
    """What the coefficients were fitted on; outside they extrapolate."""

    samples: int = setting(doc="Number of points.", low=1)
    step_seconds: tuple[float, float] | None = setting(None, "Shortest and longest step.", low=0)
    prefill_tokens: tuple[int, int] | None = setting(None, "Range of P.", low=0)
    decode_sequences: tuple[int, int] | None = setting(None, "Range of N.", low=0)
    chunk_context_tokens: tuple[int, int] | None = setting(None, "Range of the context before a chunk.", low=0)
    decode_context_tokens: tuple[int, int] | None = setting(None, "Range of a sequence's context.", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCheck:
    """How far runs of a real engine are from a simulation by this profile."""

    runs: int = setting(doc="Number of measured runs.", low=1)
    concurrency: tuple[int, int] = setting(doc="Lowest and highest concurrency.", low=1)
    tpot_mape_percent: float = setting(doc="Mean absolute error of the time per output token.", low=0)
    tpot_bias_percent: float = setting(doc="Mean signed error of the same; negative is too fast.")
    ttft_median_bias_percent: float | None = setting(None, "Median signed error of the time to first token.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One replica of a model on a kind of GPU: both step laws, memory, engine defaults."""

    id: str = setting(doc="Name of the profile: model_precision_gpu_tpN.")
    model: str = setting("", "Model, for people.")
    gpu: str = setting("", "GPU, for people.")
    tensor_parallel: int = setting(1, "GPUs of one replica.", low=1, high=1024)
    precision: str = setting("", "Weights and KV precision, for people.")
    engine: str = setting("", "Engine and version that was measured, for people.")
    quality: str = setting("", "How good the numbers are, for people.")
    layers: int = setting(doc="Transformer layers; start-up stages depend on it.", low=1)
    weights_gb: float = setting(doc="Size of the weights of the whole model in GB = 1e9 bytes.", above=0)
    kv_bytes_per_token: int = setting(doc="Bytes of KV cache per token, all ranks together.", low=1)
    kv_capacity_tokens: int = setting(doc="KV cache of a replica in tokens, as the engine prints it.", low=1)
    max_num_seqs: int = setting(256, "Seats of the engine (vLLM --max-num-seqs).", low=1)
    max_num_batched_tokens: int = setting(8192, "Token budget of a step (vLLM --max-num-batched-tokens).", low=1)
    kv_block_tokens: int = setting(16, "Tokens per KV block.", low=1)
    linear: LinearLaw = setting(doc="The law for planning.")
    roofline: RooflineLaw = setting(doc="The law of the simulated replica.")
    host: HostTerms = setting(factory=HostTerms, doc="Time of the host around GPU steps.")
    fitted_range: FittedRange | None = setting(None, "What the coefficients were fitted on.")
    measured_check: MeasuredCheck | None = setting(None, "Comparison with runs of a real engine.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a start-up; its time is a sum over the size of the model, the weights and the image."""

    name: str = setting("", "Name of the stage.")
    fixed_seconds: float = setting(0.0, "Seconds at any size.", low=0)
    seconds_per_weights_gb: float = setting(0.0, "Seconds per GB of weights.", low=0)
    seconds_per_layer: float = setting(0.0, "Seconds per layer.", low=0)
    seconds_per_image_gb: float = setting(0.0, "Seconds per GB of container image.", low=0)
    from_store: bool = setting(False, "True: reads the weights from the profile's storage tier, whose rate is shared.")
    of_node: bool = setting(False, "True: done once per new node, for every replica on it.")
    sigma: float = setting(0.0, "Standard deviation of log seconds around the value; 0 is no spread.", low=0, high=3)
    note: str = setting("", "Where the value comes from.")
    sources: tuple[int, ...] = setting((), "Numbers of the sources in the README of the data.", low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A place where weights are read from."""

    gb_per_second: float = setting(doc="Rate of one reader, all ranks together, in GB/s.", above=0)
    note: str = setting("", "Where the value comes from.")
    sources: tuple[int, ...] = setting((), "Numbers of the sources in the README of the data.", low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """A stage at a replica's size: median `seconds`, spread `sigma` of log seconds.

    `weights_gb` is 0 but for a stage that reads from the store, whose seconds are those of a reader that is alone.
    """

    name: str
    seconds: float
    sigma: float
    of_node: bool
    weights_gb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupProfile:
    """From order to ready, as stages one after the other."""

    id: str = setting(doc="Name of the profile.")
    stages: tuple[Stage, ...] = setting(doc="Stages in order.")
    store_gb_per_second: float | None = setting(
        None, "Rate of one reader of weights in GB/s; None if no stage reads from a store.", above=0
    )
    note: str = setting("", "What the profile stands for.")

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("stages", "() must name at least one stage")
        if self.store_gb_per_second is None and any(s.from_store for s in self.stages):
            raise ConfigError("store_gb_per_second", "None must be a rate > 0, because a stage reads from the store")

    def stage_seconds(self, *, weights_gb: float, layers: int, image_gb: float = 10.0) -> tuple[StageSeconds, ...]:
        """Every stage at a replica's size; `image_gb` counts only where the profile pulls an image."""
        return tuple(self._sized(stage, weights_gb, layers, image_gb) for stage in self.stages)

    def _sized(self, stage: Stage, weights_gb: float, layers: int, image_gb: float) -> StageSeconds:
        seconds = stage.fixed_seconds + stage.seconds_per_weights_gb * weights_gb
        seconds += stage.seconds_per_layer * layers + stage.seconds_per_image_gb * image_gb
        if stage.from_store and self.store_gb_per_second is not None:
            seconds += weights_gb / self.store_gb_per_second
        return StageSeconds(
            name=stage.name, seconds=seconds, sigma=stage.sigma, of_node=stage.of_node,
            weights_gb=weights_gb if stage.from_store else 0.0,
        )  # fmt: skip

    def total_seconds(self, *, weights_gb: float, layers: int, image_gb: float = 10.0) -> float:
        """Sum of the stages' values for a reader that is alone."""
        return sum(s.seconds for s in self.stage_seconds(weights_gb=weights_gb, layers=layers, image_gb=image_gb))


def profile_ids() -> tuple[str, ...]:
    """Ids of the shipped profiles."""
    return tuple(_shipped())


def profile(name: str) -> Profile:
    """The shipped profile `name`; ConfigError lists the ids and says which is close."""
    return _named(_shipped(), name, "profile")


def replica_of(settings: ReplicaSettings) -> Profile | None:
    """The profile that a pool's settings name, or whose law they hold; None: nothing is known of the replica."""
    if settings.profile is not None:
        return profile(settings.profile)
    law = settings.law
    if law is None or settings.kv_capacity_tokens is None or settings.layers is None or settings.weights_gb is None:
        return None
    more: dict[str, Any] = {
        name: value
        for name in ("max_num_seqs", "max_num_batched_tokens")
        if (value := getattr(settings, name)) is not None
    }
    return Profile(
        id="own",
        layers=settings.layers,
        weights_gb=settings.weights_gb,
        kv_bytes_per_token=1,  # for the simulated fleet alone
        kv_capacity_tokens=settings.kv_capacity_tokens,
        linear=LinearLaw(a=law.a, b=law.b, c=law.b + law.c, d=law.d, e=law.e),
        roofline=RooflineLaw(a=law.a, b=law.b, c=law.c, d=law.d, e=law.e, floor_tokens=law.floor_tokens),
        host=HostTerms(per_step_seconds=0.0, per_sequence_seconds=0.0),
        **more,
    )


def startup_ids() -> tuple[str, ...]:
    """Ids of the shipped start-up profiles."""
    return tuple(_shipped_startups())


def startup_profile(name: str) -> StartupProfile:
    """The shipped start-up profile `name`; ConfigError lists the ids and says which is close."""
    return _named(_shipped_startups(), name, "profile")


def tiers() -> dict[str, Tier]:
    """The shipped storage tiers by name."""
    return {name: build(Tier, row, f"tiers.{name}") for name, row in _toml("startup.toml")["tiers"].items()}


def load_profile(path: str | Path, *, choose: str | None = None) -> Profile:
    """A profile from the user's TOML, JSON or YAML: one profile's fields, or ``profiles: [...]`` as in the shipped file.

    `choose` picks one by id where the file holds several.
    """
    data = load_mapping(Path(path))
    if "profiles" not in data:
        return build(Profile, data, str(path))
    rows = {p.id: p for p in _profiles_of(data, str(path))}
    if choose is None and len(rows) == 1:
        return next(iter(rows.values()))
    return _named(rows, choose or "", f"{path}: profiles")


def load_startup(path: str | Path) -> StartupProfile:
    """A start-up profile from the user's TOML, JSON or YAML: the fields of StartupProfile, stages as a list."""
    return build(StartupProfile, load_mapping(Path(path)), str(path))


def _named(rows: Mapping[str, T], name: str, field: str) -> T:
    if name in rows:
        return rows[name]
    close = get_close_matches(name, rows, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(field, f"{name!r} is unknown; {hint}it must be one of {', '.join(rows)}")


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((files("serving") / "data" / name).read_text(encoding="utf-8"))


@cache
def _shipped() -> dict[str, Profile]:
    names = sorted(f.name for f in (files("serving") / "data").iterdir() if f.name.startswith("profiles"))
    return {p.id: p for name in names if name.endswith(".toml") for p in _profiles_of(_toml(name), name)}


def _profiles_of(data: Mapping[str, Any], path: str) -> list[Profile]:
    """Rows of a file ``version, host, profiles``; the file's host terms hold for rows that say nothing."""
    unknown = sorted(set(data) - {"version", "host", "profiles"})
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]}", "unknown key; allowed are version, host, profiles")
    if data.get("version", 1) != 1:
        raise ConfigError(f"{path}: version", f"{data['version']!r} must be 1")
    host = build(HostTerms, data.get("host", {}), f"{path}: host")
    rows = data["profiles"]
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{path}: profiles", f"{rows!r} must be a list of at least one profile")
    built = [build(Profile, row, f"{path}: profiles[{i}]") for i, row in enumerate(rows)]
    return [p if "host" in row else replace(p, host=host) for p, row in zip(built, rows, strict=True)]


@cache
def _shipped_startups() -> dict[str, StartupProfile]:
    data = _toml("startup.toml")
    stages = {name: build(Stage, {"name": name, **row}, f"stages.{name}") for name, row in data["stages"].items()}
    return {
        name: StartupProfile(
            id=name,
            stages=tuple(stages[s] for s in row["stages"]),
            store_gb_per_second=tiers()[row["tier"]].gb_per_second if "tier" in row else None,
            note=row.get("note", ""),
        )
        for name, row in data["profiles"].items()
    }
