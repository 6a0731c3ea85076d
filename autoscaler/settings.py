"""What a person may set.  Each class is its own section of the config: a field's sentence says unit, default and why.

The defaults are the product: a pool that states nothing but its SLO must already be good.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from autoscaler import cron
from autoscaler.errors import ConfigError
from autoscaler.schema import setting
from autoscaler.scrape_settings import ScrapeSettings
from autoscaler.signals import SIGNALS
from autoscaler.source_settings import PrometheusSettings

# The quantiles that every forecast gives.
QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """The promise: `attainment_fraction` of arrived requests meet both limits."""

    ttft_seconds: float = setting(
        1.0, "Longest time to first token, in seconds; 1 s reads as prompt in a chat.", above=0
    )
    itl_seconds: float = setting(
        0.05, "Largest mean inter-token latency of a request, in seconds; 50 ms is faster than people read.", above=0
    )
    attainment_fraction: float = setting(
        0.99, "Share of arrived requests that must meet both limits.", above=0, below=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How fast one direction may go: the larger of two allowances per period; both None means no limit."""

    stabilization_seconds: int = setting(
        0, "Seconds that every recommendation must agree before acting; 0, the default, is off.", low=0, high=86400
    )
    max_replicas_per_period: int | None = setting(None, "Replicas per period; None is no limit.", low=1)
    max_fraction_per_period: float | None = setting(
        None, "Fraction of the replicas at the period's start (1.0 doubles); None is no limit.", above=0
    )
    period_seconds: int = setting(60, "Length of the period in seconds.", low=1, high=86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleEntry:
    """Bounds that hold between a start and an end, both cron expressions in a time zone."""

    start: str = setting(doc="Cron expression (minute hour day month weekday) of the instants at which it begins.")
    end: str = setting(doc="Cron expression of the instants at which it ends.")
    time_zone: str = setting("UTC", "IANA time zone of both expressions.")
    min_replicas: int | None = setting(None, "Lower bound while active; None leaves the pool's.", low=0)
    max_replicas: int | None = setting(None, "Upper bound while active; None leaves the pool's.", low=0)

    def __post_init__(self) -> None:
        if self.min_replicas is None and self.max_replicas is None:
            raise ConfigError("min_replicas", "an entry must set min_replicas, max_replicas or both")
        if self.min_replicas is not None and self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ConfigError("max_replicas", f"{self.max_replicas} is below min_replicas {self.min_replicas}")
        cron.check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioSettings:
    """So many replicas of this pool for each of another's; the larger side wins, and both are ordered in one tick."""

    to: str = setting(doc="Name of the other pool, decided in the same call (prefill and decode).")
    replicas_per_replica: float = setting(
        doc="Replicas of this pool per replica of the other: 0.5 is one prefill for two decode replicas.",
        above=0,
        high=1000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaSettings:
    """GPUs that this pool shares with others: when they do not suffice, new replicas are split by need."""

    name: str = setting(doc="Name of the quota; pools that name the same one share it.")
    gpus: float | None = setting(
        None, "GPUs in it; None believes the platform's count of spare replicas alone.", above=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotSettings:
    """How far a pool with spot groups relies on them."""

    on_demand_fraction: float = setting(
        0.3, "Share of the replicas needed that is never spot: the loss of a zone may take all spot; 1 uses none.",
        low=0, high=1,
    )  # fmt: skip
    interruption_fraction: float = setting(
        0.05,
        "Chance that a spot replica is taken away within one start-up time: a first guess, worth 100 replicas for as long;"
        " what is seen to be taken counts beside it.",
        low=0, below=1,
    )  # fmt: skip
    margin_sigmas: float = setting(
        2.0, "Standard deviations of losses to stand ready for: 2 suffice in 98 of 100 cases; 0 covers the mean.",
        low=0, high=6,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How few, how many, how fast.  Limits only narrow what policies recommend."""

    min_replicas: int = setting(1, "Lower bound; 0 allows scaling to zero.", low=0, high=100000)
    max_replicas: int = setting(100, "Upper bound; it holds even when nothing is known.", low=0, high=100000)
    tolerance_fraction: float = setting(
        0.0,
        "Leave the number alone while it is off by no more than this fraction; 0, the default, is off.",
        low=0,
        below=1,
    )
    scale_up: Rate = setting(factory=Rate, doc="Limits of the way up; none by default: late capacity breaks the SLO.")
    scale_down: Rate = setting(factory=Rate, doc="Limits of the way down; none by default: the keep window does this.")
    schedule: tuple[ScheduleEntry, ...] = setting((), "Bounds by time of day.")
    ratio: RatioSettings | None = setting(None, "Ratio to another pool that is decided with this one; None, off.")
    spot: SpotSettings = setting(factory=SpotSettings, doc="How far spot groups are relied on, where there are any.")
    quota: QuotaSettings | None = setting(
        None, "GPU quota shared with other pools; None: what is spare is this pool's."
    )

    def __post_init__(self) -> None:
        if self.max_replicas < self.min_replicas:
            raise ConfigError("max_replicas", f"{self.max_replicas} is below min_replicas {self.min_replicas}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetTrackingSettings:
    """As many replicas as bring a signal to its target (the rule of Kubernetes' HPA)."""

    kind: Literal["target_tracking"] = "target_tracking"
    signal: str = setting(doc=f"One of {', '.join(SIGNALS)}.")
    target: float = setting(
        doc="Wanted value, in the signal's unit: per replica for sums, as it is for means.", above=0
    )
    window_seconds: int = setting(60, "Seconds over which the signal is averaged.", low=1, high=3600)
    tolerance_fraction: float = setting(
        0.1, "Do nothing while the ratio is within 1 +- this; 0 is off.", low=0, below=1
    )

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise ConfigError("signal", f"{self.signal!r} must be one of {', '.join(SIGNALS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogSettings:
    """As many replicas as carry what arrives and drain the queue in time."""

    kind: Literal["backlog"] = "backlog"
    drain_seconds: float = setting(30.0, "Seconds in which queued work shall be gone.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SaturationSettings:
    """As many replicas as bring KV use and queue per replica below their marks."""

    kind: Literal["saturation"] = "saturation"
    kv_cache_fraction: float = setting(0.8, "KV use that replicas should not exceed on average.", above=0, high=1)
    waiting_requests_per_replica: float = setting(5.0, "Waiting requests per replica that are tolerated.", above=0)
    window_seconds: int = setting(30, "Seconds over which both are averaged.", low=1, high=3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class CronSettings:
    """The largest min_replicas of the active entries."""

    kind: Literal["cron"] = "cron"
    schedule: tuple[ScheduleEntry, ...] = setting(doc="Entries, each with min_replicas.")

    def __post_init__(self) -> None:
        for i, entry in enumerate(self.schedule):
            if entry.min_replicas is None:
                raise ConfigError(f"schedule[{i}].min_replicas", "is missing: a cron policy only asks for a minimum")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictiveSettings:
    """A quantile of the work forecast for the moment when a replica ordered now would be ready."""

    kind: Literal["predictive"] = "predictive"
    quantile: float = setting(0.95, "Quantile of the maximum work in the window ahead; higher is safer and dearer.")

    def __post_init__(self) -> None:
        if self.quantile not in QUANTILES:
            raise ConfigError("quantile", f"{self.quantile!r} must be one of {', '.join(map(str, QUANTILES))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkSettings:
    """As many replicas as carry the arriving work at a utilization, and drain the queue meanwhile."""

    kind: Literal["work"] = "work"
    utilization_fraction: float = setting(0.95, "Share of the SLO-feasible load to plan for.", above=0, high=2)
    window_seconds: int = setting(
        60,
        "Seconds over which arriving work is averaged; the newest 15 s count where they surely say more.",
        low=1,
        high=3600,
    )
    drain_seconds: float = setting(
        30.0,
        "Seconds in which queued work shall be gone; for a long queue no more than as many replicas again are asked, or"
        " what clears it in 300 s.",
        above=0,
    )


PolicySettings = (
    TargetTrackingSettings | BacklogSettings | SaturationSettings | CronSettings | PredictiveSettings | WorkSettings
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LawSettings:
    """How long an engine step takes, host time included: ``a + b max(floor, tokens) + c sequences + d context + e pairs``.

    Tokens are those of the step, of prompts and answers; sequences, context (tokens) of those that decode; pairs of prompt
    tokens that attend to each other.
    """

    a: float = setting(doc="Seconds per step.", above=0)
    b: float = setting(doc="Seconds per token of the step.", above=0)
    c: float = setting(doc="Seconds per decoding sequence.", low=0)
    d: float = setting(doc="Seconds per token of context.", above=0)
    e: float = setting(0.0, "Seconds per pair of prompt tokens; 0 ignores them.", low=0)
    floor_tokens: float = setting(0.0, "Tokens below which a step is no shorter; 0 is no floor.", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """What is believed of one replica before anything was measured."""

    profile: str | None = setting(
        None,
        "Id of a shipped profile (model_precision_gpu_tpN), or in a config file the path of a calibrated one, whose numbers"
        " are then put in its place; None starts from a cautious generic replica.",
    )
    law: LawSettings | None = setting(
        None, "Step law of a replica of your own, as `autoscaler calibrate` finds it, instead of a profile."
    )
    layers: int | None = setting(None, "Transformer layers of its model, which stages of a start-up go by.", low=1)
    weights_gb: float | None = setting(None, "Size of its model's weights in GB, which they go by too.", above=0)
    max_num_seqs: int | None = setting(
        None, "Seats of the engine (vLLM --max-num-seqs); None takes the profile's.", low=1
    )
    max_num_batched_tokens: int | None = setting(
        None, "Token budget of an engine step (vLLM --max-num-batched-tokens); None takes the profile's.", low=1
    )
    kv_capacity_tokens: int | None = setting(
        None, "KV cache in tokens, as the engine prints it; None: the profile's.", low=1
    )
    routing: Literal["round_robin", "least_loaded", "two_choices"] = setting(
        "least_loaded", "How requests are spread over replicas: in turn, to the least loaded, to the better of two."
    )
    mean_prompt_tokens: float = setting(1000.0, "Prompt length assumed until measured, in tokens.", above=0)
    mean_output_tokens: float = setting(200.0, "Output length assumed until measured, in tokens.", above=0)
    feasible_requests_per_second: float | None = setting(
        None,
        "Requests/s that one replica carries within the SLO, as your load test of the mean lengths above measured it;"
        " None works it out from the profile, with caution.",
        above=0,
    )

    def __post_init__(self) -> None:
        if self.law is None:
            return
        if self.profile is not None:
            raise ConfigError("law", "must be left out where profile names one")
        for name in ("kv_capacity_tokens", "layers", "weights_gb"):
            if getattr(self, name) is None:
                raise ConfigError(name, "is missing: it must be given with a law")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupSettings:
    """What is believed of a replica's birth before any was seen."""

    profile: str = setting("warm_node_remote", "Id of a shipped start-up profile, which sums stages for the replica.")
    median_seconds: float | None = setting(
        None, "Order to ready, in seconds, if known; None takes the profile's.", above=0, high=86400
    )
    sigma: float | None = setting(None, "Standard deviation of log seconds; None takes the profile's.", low=0, high=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """What is scaled.  Read by the hosts that scale it; an embedded pool leaves that to its host."""

    kind: Literal["deployment", "statefulset", "inference_service", "leader_worker_set", "processes"] = "deployment"
    namespace: str = setting("default", "Namespace of the object.")
    name: str = setting(doc="Name of the object.")
    gpus_per_replica: float = setting(1.0, "GPUs that one replica holds; fractions are allowed.", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSettings:
    """A state between live and off that an idle replica may be in: asleep, or with its weights at hand."""

    name: str = setting(doc="Name, such as sleep_l1, sleep_l2 or weights_local.")
    cost_fraction: float = setting(
        doc="What it costs, as a fraction of a live replica: 1 if nobody else can use the GPU, else its share of memory.",
        low=0, high=1,
    )  # fmt: skip
    wake_seconds: float = setting(doc="From the order to ready, in seconds (0.9-quantile).", above=0, high=86400)

    def __post_init__(self) -> None:
        if self.name in ("", "live", "off"):
            raise ConfigError("name", f"{self.name!r} must be a name other than live and off, which every pool has")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreloadSettings:
    """Who brings weights nearer ahead of need, and which states an idle pool with min_replicas 0 may power down to."""

    kind: Literal["none"] = "none"
    tiers: tuple[TierSettings, ...] = setting(
        (), "States between live and off, chosen by how long the pool is idle; empty: off after the keep window."
    )
    return_seconds: float = setting(
        5.0,
        "How long who comes back after an idle time may wait for a replica, in seconds; the TTFT limit where that is longer."
        " 0 prices every second beyond the TTFT limit, and then few short idle times are slept through.",
        low=0,
        high=86400,
    )
    late_cost: float = setting(
        50.0,
        "What a second that returning requests wait longer than that is worth, in replica-seconds: with 50 and starts of two"
        " minutes a sleeping replica is kept for a day; 0 counts GPUs alone.",
        low=0,
    )

    def __post_init__(self) -> None:
        names = [t.name for t in self.tiers]
        if len(set(names)) < len(names):
            raise ConfigError("tiers", f"{', '.join(names)} must be different names")


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskSettings:
    """How the strategies steer on the measured attainment: a headroom factor on the work, moved by every turn."""

    gain: float = setting(
        0.005,
        "Move of the factor's logarithm in 30 s in which everybody is late, four times as much on the first day; 0 turns it"
        " off.  Ten times as much oscillates.",
        low=0,
        high=0.1,
    )
    min_headroom: float = setting(0.6, "Least factor: below, capacity itself is believed wrongly.", above=0, high=1)
    surge_factor: float = setting(
        1.5,
        "Nothing is learned upwards from more than so many times the work of a start-up time ago; 1000 pays for any surge.",
        low=1,
        high=1000,
    )
    max_headroom: float = setting(3.0, "Largest factor: beyond, violations have another cause.", low=1, high=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSettings:
    """Something known ahead that changes the work: a launch, a holiday, a sale."""

    name: str = setting(doc="Name of the event.")
    start: str = setting(
        doc="When it begins: a cron expression (minute hour day month weekday), or once: an RFC 3339 instant."
    )
    end: str = setting(doc="When it ends, in the same form as `start`.")
    time_zone: str = setting("UTC", "IANA time zone of cron expressions; an instant has its own offset.")
    factor: float = setting(
        doc="Work during it over the work without it: 3.0 is three times as much, 0.3 a quiet holiday.",
        above=0,
        high=100,
    )

    def __post_init__(self) -> None:
        if not self.once:
            cron.check(self)
            return
        instants = [_instant(self.start, "start"), _instant(self.end, "end")]
        if instants[1] <= instants[0]:
            raise ConfigError("end", f"{self.end!r} must be after start {self.start!r}")

    @property
    def once(self) -> bool:
        """Whether it is given by two instants, not by cron expressions."""
        return "T" in self.start and len(self.start.split()) == 1


def _instant(text: str, field: str) -> float:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise ConfigError(field, f"{text!r} must be an instant with an offset, such as 2027-03-01T09:00:00+01:00")
    return at.timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """One pool: its promise, its bounds, and (where wanted by hand) its policies."""

    name: str = setting(doc="Name of the pool: the `pool` of its Observations.")
    slo: Slo = setting(factory=Slo, doc="The promise to hold.")
    role: Literal["all", "prefill", "decode"] = setting(
        "all",
        "What its replicas do: all of a request; prefill, the prompt and its first token; decode, the other tokens. Only"
        " that part of a request is their work.",
    )
    strategy: Literal["observer", "reactive", "predictive", "auto"] = setting(
        "auto",
        "observer acts on nothing and says what auto would do; reactive follows what arrives; predictive also follows"
        " the forecast; auto lets the forecast act once it has earned trust.",
    )
    policies: tuple[PolicySettings, ...] = setting(
        (), "Policies by hand, the largest recommendation wins; empty, the default, lets `strategy` decide."
    )
    risk: RiskSettings = setting(factory=RiskSettings, doc="Steering on the attainment.")
    adapt: bool = setting(
        False,
        "Let the strategies average work over as long and keep replicas as long as would have been the cheapest lately"
        " (`autoscaler advise` tells it anyway).",
    )
    limits: Limits = setting(factory=Limits, doc="Bounds and rates.")
    replica: ReplicaSettings = setting(factory=ReplicaSettings, doc="Prior of one replica.")
    startup: StartupSettings = setting(factory=StartupSettings, doc="Prior of a start-up.")
    target: TargetSettings | None = setting(None, "What is scaled, for the hosts that scale it.")
    source: PrometheusSettings | ScrapeSettings | None = setting(
        None, "Where Observations come from, for the hosts that fetch them."
    )
    preload: PreloadSettings = setting(factory=PreloadSettings, doc="Who brings weights nearer ahead of need.")
    interval_seconds: int = setting(10, "Seconds from one decision to the next.", low=1, high=3600)
    keep_seconds: int | None = setting(
        None,
        "Keep a replica that was wanted within so many seconds; None is the longer of the start-up time and 300 s,"
        " 0 is off.",
        low=0,
        high=86400,
    )
    events: tuple[EventSettings, ...] = setting(
        (), "Events known ahead (launches, holidays): forecasts of their time are multiplied by their factor."
    )
    expects: tuple[Literal["demand", "load", "latency"], ...] = setting(
        (),
        "Signals that this pool's source delivers: one that is missing makes the tick unknown, and nothing is lowered."
        " Empty: those that have been seen.",
    )

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name in (".", ".."):
            raise ConfigError("name", f"{self.name!r} must be a non-empty name without '/'")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """Where Steps are written."""

    path: str = setting("steps.jsonl", "Directory or first file of the step log; one log per pool is kept there.")
    segment_bytes: int = setting(
        8_000_000,
        "A segment rotates beyond this size: some thousand steps, which a restart decides again within seconds.",
        low=10_000,
    )
    keep_bytes: int | None = setting(
        200_000_000,
        "Bytes of segments that `serve` keeps of each pool, about a week; the oldest go first; None keeps all.",
        low=1_000_000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSettings:
    """A whole config file."""

    version: Literal[1] = setting(doc="Version of the file's form: 1.")
    interval_seconds: int | None = setting(None, "Default of every pool's interval_seconds.", low=1, high=3600)
    log: LogSettings = setting(factory=LogSettings, doc="The step log.")
    pools: tuple[PoolSettings, ...] = setting(doc="One entry per pool.")

    def __post_init__(self) -> None:
        if not self.pools:
            raise ConfigError("pools", "must name at least one pool")
        names = [p.name for p in self.pools]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError("pools", f"the name {name!r} is used twice; names must differ")
