"""A scenario: one file that says what arrives, on what it runs, what is promised, who decides, and what goes wrong.

`simulate`, `bench` and later tools read the same file.  Paths in it are relative to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal, TypeVar

from autoscaler.config import load_mapping, pool_settings
from autoscaler.errors import ConfigError
from autoscaler.schema import build, setting
from autoscaler.settings import Limits, PoolSettings, Slo
from load_tests.faults import Fault
from load_tests.fleet import ReplicaModel
from load_tests.peers import PeerSettings
from load_tests.traces import BUILTIN, builtin_names, instant_of, zone_of
from load_tests.traffic_settings import PairLengths, ShapeTraffic, TraceTraffic, Window
from serving.profiles import Profile, StartupProfile, load_profile, load_startup, profile, startup_profile, tiers

T = TypeVar("T")

FILE_ENDINGS = (".toml", ".json", ".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One replica: a profile, and what differs from it."""

    profile: str = setting("llama-3.1-8b_bf16_h100_tp1", "Id of a shipped profile, or a file.")
    max_num_seqs: int | None = setting(None, "Seats; None is the profile's.", low=1)
    max_num_batched_tokens: int | None = setting(None, "Token budget of a step; None is the profile's.", low=1)
    kv_capacity_tokens: int | None = setting(None, "KV cache in tokens; None is the profile's.", low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """Removed replicas that sleep instead of going: their GPUs stay held, and they are woken before any is born."""

    profile: str = setting("sleep_l1", "How a sleeping replica starts: sleep_l1, sleep_l2, snapshot, or a file.")
    replicas: int = setting(doc="Most replicas that sleep at a time.", low=1, high=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """How replicas start."""

    profile: str = setting("warm_node_remote", "Id of a shipped start-up profile, or a file.")
    tier: str | None = setting(None, "Storage tier that weights are read from; None is the profile's.")
    store_gb_per_second: float | None = setting(
        None, "Rate of the whole store in GB/s, shared by all that start; None is without limit.", above=0
    )
    image_gb: float = setting(10.0, "Size of the container image in GB, for profiles that pull one.", low=0, high=1000)
    factor: float = setting(1.0, "Every stage takes so many times as long.", above=0, high=100)
    failure_fraction: float = setting(0.0, "Share of starts that never become ready.", low=0, high=1)
    replicas_per_node: int = setting(1, "Replicas that share a new node, and its stages.", low=1, high=64)
    sleep: Sleep | None = setting(None, "Replicas that sleep instead of going; None: all go.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPolicy:
    """This project's policy."""

    kind: Literal["pool"] = "pool"
    name: str = setting("auto", "Name in the report.")
    config: dict[str, Any] = setting(factory=dict, doc="The pool's config, without name and slo.")


Policy = PoolPolicy | PeerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillDecode:
    """Two pools: the scenario's replicas do prefill, others decode; KV goes over a link.

    Our pools decide in one call and may share a ratio (`limits.ratio`) or a quota; other policies act on each alone.
    """

    decode_replica: Replica = setting(factory=Replica, doc="A replica of the decode pool.")
    decode_limits: Limits = setting(factory=Limits, doc="Bounds of the decode pool.")
    transfer_gb_per_second: float | None = setting(25.0, "Rate of one KV transfer in GB/s; None is at once.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What arrives, on what it runs, what is promised, who decides, what goes wrong."""

    version: Literal[1] = setting(doc="Version of the file's form: 1.")
    name: str = setting(doc="Name in reports.")
    traffic: TraceTraffic | ShapeTraffic = setting(doc="What arrives.")
    window: Window = setting(factory=Window, doc="The part that is simulated.")
    history_days: float | None = setting(
        None,
        "Days before the window that policies may look back on; None is all the trace has, none for a shape.",
        low=0,
        high=400,
    )
    origin: str | None = setting(None, "Instant of second 0 of the trace or shape, RFC 3339; None is the trace's.")
    time_zone: str | None = setting(None, "IANA zone of the users' day; None is the trace's, UTC for a shape.")
    replica: Replica = setting(factory=Replica, doc="A replica.")
    startup: Startup = setting(factory=Startup, doc="How replicas start.")
    slo: Slo = setting(factory=Slo, doc="The promise.")
    interval_seconds: int = setting(
        10, "Seconds from one decision of this project's policies to the next.", low=1, high=3600
    )
    seeds: tuple[int, ...] = setting((0,), "Seeds of arrivals, lengths, start-ups and routing; one run each.", low=0)
    limits: Limits = setting(factory=Limits, doc="Bounds and rates for every policy.")
    initial_replicas: int | None = setting(
        None, "Replicas that are ready at the start; None: as many as the first minutes need.", low=0, high=100_000
    )
    gpus_per_replica: int | None = setting(
        None, "GPUs that a replica is charged; None is the profile's.", low=1, high=1024
    )
    routing: Literal["round_robin", "least_loaded", "two_choices"] = setting("least_loaded", "How requests are routed.")
    drain: bool = setting(True, "True: a removed replica finishes what it has, and is paid until then.")
    score_from_seconds: float = setting(0.0, "Requests that arrive earlier are served but not scored.", low=0)
    policies: tuple[Policy, ...] = setting(factory=lambda: (PoolPolicy(),), doc="Who decides, one run each.")
    faults: tuple[Fault, ...] = setting((), "What goes wrong.")
    prefill_decode: PrefillDecode | None = setting(None, "Two pools joined by a KV transfer; None is one pool.")

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ConfigError("name", f"{self.name!r} must not be empty")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("seeds", f"{self.seeds!r} must be at least one seed, and all different")
        if not self.policies:
            raise ConfigError("policies", "() must name at least one policy")
        duration = self.window.duration_seconds
        if duration is not None and self.score_from_seconds >= duration:
            raise ConfigError(
                "score_from_seconds", f"{self.score_from_seconds:g} must be < window.duration_seconds, {duration:g}"
            )
        if self.origin is not None:
            instant_of(self.origin, "origin")
        if self.time_zone is not None:
            zone_of(self.time_zone, "time_zone")


def _from_file(load: Callable[[str], T], path: str) -> T:
    try:
        return load(path)
    except ConfigError as error:
        raise ConfigError("profile", str(error)) from None


def replica_profile(replica: Replica) -> Profile:
    """The profile of a replica with what differs from it."""
    named = replica.profile
    base = _from_file(load_profile, named) if named.lower().endswith(FILE_ENDINGS) else profile(named)
    changes = {
        name: value
        for name in ("max_num_seqs", "max_num_batched_tokens", "kv_capacity_tokens")
        if (value := getattr(replica, name)) is not None
    }
    return replace(base, **changes)


def replica_model(profile: Profile) -> ReplicaModel:
    """The simulated replica of a profile."""
    law, host = profile.roofline, profile.host
    return ReplicaModel(
        a=law.a, b=law.b, floor_tokens=law.floor_tokens, c=law.c, d=law.d, e=law.e,
        step_overhead_seconds=host.per_step_seconds,
        sequence_overhead_seconds=host.per_sequence_seconds,
        request_overhead_seconds=host.per_request_seconds,
        max_num_seqs=profile.max_num_seqs,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        kv_capacity_tokens=profile.kv_capacity_tokens,
        kv_block_tokens=profile.kv_block_tokens,
        kv_bytes_per_token=profile.kv_bytes_per_token,
    )  # fmt: skip


def startup_of(startup: Startup) -> StartupProfile:
    """The start-up profile, with its storage tier changed where the scenario says so.  `factor` is not applied."""
    named = startup.profile
    base = _from_file(load_startup, named) if named.lower().endswith(FILE_ENDINGS) else startup_profile(named)
    if startup.tier is None:
        return base
    known = tiers()
    if startup.tier not in known:
        raise ConfigError("tier", f"{startup.tier!r} must be one of {', '.join(known)}")
    return replace(base, store_gb_per_second=known[startup.tier].gb_per_second)


def policy_settings(scenario: Scenario, policy: PoolPolicy, pool: str = "pool") -> PoolSettings:
    """Settings of a pool under this project's policy: the scenario's SLO, bounds, replica and start-up under its config."""
    shipped = not scenario.replica.profile.lower().endswith(FILE_ENDINGS)
    replica = {k: v for k, v in asdict(scenario.replica).items() if v is not None and (k != "profile" or shipped)}
    started = not scenario.startup.profile.lower().endswith(FILE_ENDINGS)
    defaults: dict[str, Any] = {
        "limits": scenario.limits,
        "interval_seconds": scenario.interval_seconds,
        "replica": {**replica, "routing": scenario.routing},
        "startup": {"profile": scenario.startup.profile} if started else {},
    }
    for reserved in ("name", "slo"):
        if reserved in policy.config:
            raise ConfigError(
                f"config.{reserved}", f"is the scenario's to say: remove it from the policy {policy.name}"
            )
    return pool_settings({**policy.config, "name": pool, "slo": scenario.slo}, defaults, "config")


def builtin_scenarios() -> tuple[str, ...]:
    """Names of the shipped scenarios."""
    return tuple(sorted(f.name[:-5] for f in (files("load_tests") / "scenarios").iterdir() if f.name.endswith(".yaml")))


def load_scenario(source: str | Path) -> Scenario:
    """A shipped scenario (``builtin:NAME``) or a file, checked; ConfigError names the field, the value and the range."""
    text = str(source)
    if not text.startswith(BUILTIN):
        return scenario_from(load_mapping(Path(source)), Path(source).parent)
    name = text[len(BUILTIN) :]
    if name not in builtin_scenarios():
        close = get_close_matches(name, builtin_scenarios(), n=1)
        hint = f"did you mean {BUILTIN}{close[0]}? " if close else ""
        raise ConfigError("scenario", f"{text!r} is unknown; {hint}it must be one of {', '.join(builtin_scenarios())}")
    with as_file(files("load_tests") / "scenarios" / f"{name}.yaml") as path:
        return scenario_from(load_mapping(path), path.parent)


def scenario_from(data: Mapping[str, Any], folder: Path) -> Scenario:
    """A scenario out of a mapping whose paths are relative to `folder`, with everything it names looked up."""
    scenario = build(Scenario, _with_folder(data, folder))
    _check_names(scenario)
    return scenario


_PATHS = (
    ("traffic", "trace"),
    ("traffic", "superpose"),
    ("traffic", "lengths", "file"),
    ("replica", "profile"),
    ("startup", "profile"),
    ("startup", "sleep", "profile"),
    ("prefill_decode", "decode_replica", "profile"),
)


def _with_folder(data: Any, folder: Path, names: tuple[tuple[str, ...], ...] = _PATHS) -> Any:
    """The mapping with its relative paths joined to `folder`; anything of a wrong type is left to `build`."""
    if not isinstance(data, Mapping):
        return data
    out = dict(data)
    for name in {n[0] for n in names if n[0] in out}:
        rest = tuple(n[1:] for n in names if n[0] == name)
        value = out[name]
        if rest != ((),):
            out[name] = _with_folder(value, folder, rest)
        elif isinstance(value, list):
            out[name] = [_joined(item, folder, name) for item in value]
        else:
            out[name] = _joined(value, folder, name)
    return out


def _joined(value: Any, folder: Path, name: str) -> Any:
    is_path = isinstance(value, str) and not value.startswith(BUILTIN)
    if is_path and "\0" in value:
        raise ConfigError(name, f"{value!r} must be a path, without NUL")
    if is_path and (name != "profile" or value.lower().endswith(FILE_ENDINGS)):
        return str(folder / value)
    return value


def _check_names(scenario: Scenario) -> None:
    """Look up every profile, tier, shipped trace and policy that is named, so that errors come before a run."""
    _under("replica", replica_profile, scenario.replica)
    if scenario.prefill_decode is not None:
        _under("prefill_decode.decode_replica", replica_profile, scenario.prefill_decode.decode_replica)
    _under("startup", startup_of, scenario.startup)
    if scenario.startup.sleep is not None:
        _under("startup.sleep", startup_of, Startup(profile=scenario.startup.sleep.profile))
    traffic = scenario.traffic
    named = [("traffic.lengths.file", traffic.lengths.file)] if isinstance(traffic.lengths, PairLengths) else []
    if isinstance(traffic, TraceTraffic):
        named += [
            ("traffic.trace", traffic.trace),
            *((f"traffic.superpose[{i}]", t) for i, t in enumerate(traffic.superpose)),
        ]
    for field, trace in named:
        if trace.startswith(BUILTIN) and trace[len(BUILTIN) :] not in builtin_names():
            raise ConfigError(field, f"{trace!r} must be a file or builtin: and one of {', '.join(builtin_names())}")
    for i, policy in enumerate(scenario.policies):
        if isinstance(policy, PoolPolicy):
            _under(f"policies[{i}]", lambda p: policy_settings(scenario, p), policy)


def _under(prefix: str, check: Any, value: Any) -> None:
    try:
        check(value)
    except ConfigError as error:
        raise error.under(prefix) from None
