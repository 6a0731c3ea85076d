"""The five nouns: Observation, Forecast, Capacity, Decision, Step; and what they are made of.

Every type is frozen and keyword-only.  Units live in the names.  ``None`` means *not measured*, never zero: a field that
may be None defaults to None.  Instants are whole Unix seconds (`at_seconds`); counts are counts since the previous
Observation of the pool, over `Observation.window_seconds`; rates are views of them.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from autoscaler.errors import ConfigError
from autoscaler.units import replicas_for

# Above this share of failed and rejected requests, what arrives depends on what was answered.
CLOSED_LOOP_FRACTION = 0.05


def _finite(owner: str, low: float = 0.0, high: float = math.inf, **fields: float | None) -> None:
    """Refuse NaN, infinity and values outside [low, high]; None passes."""
    for name, value in fields.items():
        if value is None or (low <= value <= high and value != math.inf):
            continue
        bound = f"a finite number >= {low:g}" if high == math.inf else f"a number in [{low:g}, {high:g}]"
        raise ConfigError(f"{owner}.{name}", f"{value!r} must be {bound}, or None if it was not measured")


LEAST_SAMPLES = 1e-9  # parts of a sample come from rates; less is nothing that a mean could be taken of


@lru_cache(maxsize=256)  # every Observation has the same ones
def _ascend(bounds: tuple[float, ...]) -> bool:
    return all(a < b for a, b in pairwise(bounds)) and all(map(math.isfinite, bounds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts per bucket over the window, as a Prometheus histogram gives them after differencing.

    `upper_bounds` ascend and are finite; one more bucket up to infinity is implied, so `counts` has one entry more.
    `counts` are per bucket, not cumulative.  `sum` is the sum of the samples, where known.
    """

    upper_bounds: tuple[float, ...]
    counts: tuple[float, ...]
    sum: float | None = None

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.upper_bounds) + 1:
            raise ConfigError(
                "histogram.counts",
                f"{len(self.counts)} entries must be {len(self.upper_bounds) + 1}, one more than upper_bounds",
            )
        if not _ascend(self.upper_bounds):
            raise ConfigError("histogram.upper_bounds", f"{self.upper_bounds!r} must be finite and ascending")
        if not (min(self.counts) >= 0 and math.isfinite(sum(self.counts))):
            raise ConfigError("histogram.counts", f"{self.counts!r} must be finite numbers >= 0")

    @property
    def total(self) -> float:
        """Number of samples."""
        return math.fsum(self.counts)

    @property
    def mean(self) -> float | None:
        """Mean of the samples; None without samples or without their sum."""
        total = self.total
        return None if self.sum is None or total < LEAST_SAMPLES else self.sum / total

    def quantile(self, q: float) -> float | None:
        """The q-quantile, linear inside a bucket as Prometheus' ``histogram_quantile``; None without samples.

        Beyond the last finite bound the answer is that bound.
        """
        total = self.total
        if total <= 0:
            return None
        rank, below, lower = q * total, 0.0, 0.0
        for upper, count in zip(self.upper_bounds, self.counts, strict=False):
            if count > 0 and below + count >= rank:
                return lower + (upper - lower) * max(0.0, rank - below) / count
            below, lower = below + count, upper
        return self.upper_bounds[-1] if self.upper_bounds else None

    def above(self, limit: float) -> tuple[float, float]:
        """[lower, upper] bound on the number of samples above `limit`: the bucket that holds `limit` is undecided."""
        index = bisect_right(self.upper_bounds, limit)
        certain = math.fsum(self.counts[index + 1 :])
        on_edge = index > 0 and self.upper_bounds[index - 1] == limit
        if on_edge:
            certain = math.fsum(self.counts[index:])
            return certain, certain
        return certain, certain + self.counts[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A number of replicas under a name: of a tier (``sleep_l1``) or of a placement group (``spot-eu``)."""

    name: str
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """How many replicas the platform has, by stage of life.  `desired` is what was last asked for.

    `starting_ready_at_seconds`: when each starting replica is expected to be ready, where known.  `unhealthy` replicas
    exist and are paid for but carry nothing.  `tiers`: replicas powered down but not off, by tier.
    `oldest_start_at_seconds`: when the start that has been in flight longest began, where the platform tells.
    """

    desired: int
    ready: int
    starting: int = 0
    draining: int = 0
    sleeping: int = 0
    unhealthy: int = 0
    starting_ready_at_seconds: tuple[int, ...] = ()
    tiers: tuple[Count, ...] = ()
    oldest_start_at_seconds: int | None = None

    def __post_init__(self) -> None:
        _finite(
            "replicas", desired=self.desired, ready=self.ready, starting=self.starting, draining=self.draining,
            sleeping=self.sleeping, unhealthy=self.unhealthy,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantDemand:
    """One tenant's share of the Demand."""

    tenant: str
    requests: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What arrived at the door of the pool since the previous Observation: counts, at arrival, never at completion.

    `requests` arrived and `prompt_tokens` came with them (`cached_prompt_tokens` of these were prefix-cache hits).
    `output_tokens` were generated meanwhile, and `output_lengths` holds the lengths of the requests that finished:
    the output that arriving requests will ask for is `requests` times the mean finished length.
    `replicas_reporting`: where replicas themselves counted this and some were silent, how many were not.
    """

    requests: float | None = None
    prompt_tokens: float | None = None
    cached_prompt_tokens: float | None = None
    output_tokens: float | None = None
    finished_requests: float | None = None
    rejected_requests: float | None = None
    failed_requests: float | None = None
    prompt_lengths: Histogram | None = None
    output_lengths: Histogram | None = None
    arrival_gap_cv: float | None = None
    tenants: tuple[TenantDemand, ...] = ()
    replicas_reporting: int | None = None

    def __post_init__(self) -> None:
        _finite(
            "demand", requests=self.requests, prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens, output_tokens=self.output_tokens,
            finished_requests=self.finished_requests, rejected_requests=self.rejected_requests,
            failed_requests=self.failed_requests, arrival_gap_cv=self.arrival_gap_cv,
        )  # fmt: skip

    @property
    def closed_loop(self) -> bool:
        """Whether so many requests fail or are refused that their clients' retries are part of the demand."""
        lost = (self.failed_requests or 0.0) + (self.rejected_requests or 0.0)
        return lost > CLOSED_LOOP_FRACTION * (self.requests or 0.0)

    @classmethod
    def from_rates(
        cls,
        *,
        window_seconds: float,
        requests_per_second: float | None = None,
        prompt_tokens_per_second: float | None = None,
        cached_prompt_tokens_per_second: float | None = None,
        output_tokens_per_second: float | None = None,
    ) -> Demand:
        """Counts out of rates, for a host that only has rates (all per second, over the last `window_seconds`)."""

        def count(rate: float | None) -> float | None:
            return None if rate is None else rate * window_seconds

        return cls(
            requests=count(requests_per_second),
            prompt_tokens=count(prompt_tokens_per_second),
            cached_prompt_tokens=count(cached_prompt_tokens_per_second),
            output_tokens=count(output_tokens_per_second),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the engines hold at the instant of the Observation, summed over the reporting replicas.

    `kv_cache_fraction` and `gpu_utilization_fraction` are means over replicas; `engine_steps` and `preemptions` are
    counts over the window; `step_tokens` are tokens per engine step over the window.
    """

    running_requests: float | None = None
    waiting_requests: float | None = None
    waiting_prompt_tokens: float | None = None
    kv_cache_fraction: float | None = None
    gpu_utilization_fraction: float | None = None
    engine_steps: float | None = None
    preemptions: float | None = None
    replicas_reporting: int | None = None
    step_tokens: Histogram | None = None

    def __post_init__(self) -> None:
        _finite(
            "load", running_requests=self.running_requests, waiting_requests=self.waiting_requests,
            waiting_prompt_tokens=self.waiting_prompt_tokens, engine_steps=self.engine_steps,
            preemptions=self.preemptions, replicas_reporting=self.replicas_reporting,
        )  # fmt: skip
        _finite(
            "load", 0.0, 1.0, kv_cache_fraction=self.kv_cache_fraction,
            gpu_utilization_fraction=self.gpu_utilization_fraction,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Latencies over the window.  Histograms where the engine gives them; quantiles where that is all there is.

    `itl` holds per-request mean inter-token latencies (time per output token) where the engine has them.
    `violated_requests` is [lower, upper] out of `served_requests`, because bucket edges and marginal histograms do not
    give the joint count.
    """

    ttft: Histogram | None = None
    itl: Histogram | None = None
    e2e: Histogram | None = None
    ttft_p95_seconds: float | None = None
    ttft_p99_seconds: float | None = None
    itl_p95_seconds: float | None = None
    e2e_p95_seconds: float | None = None
    served_requests: float | None = None
    violated_requests: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _finite(
            "latency", ttft_p95_seconds=self.ttft_p95_seconds, ttft_p99_seconds=self.ttft_p99_seconds,
            itl_p95_seconds=self.itl_p95_seconds, e2e_p95_seconds=self.e2e_p95_seconds,
            served_requests=self.served_requests,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Replicas of one placement group: its price, whether it is spot, and how many more, and in all, it could have.

    The price is of a whole replica, whatever number or fraction of GPUs that is.
    """

    name: str
    replicas: Replicas
    price_per_replica_hour: float | None = None
    spot: bool = False
    spare_replicas: int | None = None
    max_replicas: int | None = None

    def __post_init__(self) -> None:
        _finite(
            "groups", price_per_replica_hour=self.price_per_replica_hour, spare_replicas=self.spare_replicas,
            max_replicas=self.max_replicas,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClass:
    """Requests that may wait up to `deadline_seconds`: what of them arrived, and what still waits.

    None of it is in the Observation's own `demand` and `load`, which are of the requests that must not wait.
    """

    name: str
    deadline_seconds: float
    demand: Demand | None = None
    waiting_requests: float | None = None
    waiting_prompt_tokens: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.deadline_seconds < math.inf:
            raise ConfigError("classes.deadline_seconds", f"{self.deadline_seconds!r} must be a finite number > 0")
        _finite(
            "classes", waiting_requests=self.waiting_requests, waiting_prompt_tokens=self.waiting_prompt_tokens
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """All that is known about one pool at one instant.

    `window_seconds` is the time that the counts cover: since the previous Observation of the pool.  `demand`, `load` or
    `latency` is None when it could not be measured (a failed scrape is an Observation too).  `spare_replicas`: how many
    more the platform or the quota could give now.
    """

    pool: str
    at_seconds: int
    window_seconds: int
    replicas: Replicas
    demand: Demand | None = None
    load: Load | None = None
    latency: Latency | None = None
    spare_replicas: int | None = None
    groups: tuple[Group, ...] = ()
    classes: tuple[RequestClass, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.at_seconds, int) or isinstance(self.at_seconds, bool):
            raise ConfigError("observation.at_seconds", f"{self.at_seconds!r} must be a whole number of Unix seconds")
        if self.window_seconds <= 0:
            raise ConfigError("observation.window_seconds", f"{self.window_seconds!r} must be >= 1")
        _finite("observation", spare_replicas=self.spare_replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Quantiles of the *maximum* work rate (Erlangs, replica-seconds per second) inside windows of the future.

    `windows`: (start_seconds, end_seconds) relative to `at_seconds`.  `values`: shape (len(windows), len(levels)); rows
    ascend with the level.  `expert` names what carried most of the weight.  `matured`: forecasts of the first window whose
    outcome is known by now; `coverage`: the share of them, over about a day, that stayed below the 0.95 quantile.
    """

    at_seconds: int
    levels: tuple[float, ...]
    windows: tuple[tuple[int, int], ...]
    values: tuple[tuple[float, ...], ...]
    expert: str = ""
    matured: int = 0
    coverage: float | None = None

    def value(self, window: int, level: float) -> float:
        """The quantile at one of `levels` of the `window`-th window."""
        return self.values[window][self.levels.index(level)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths of requests as decisions know them: means in tokens, and coefficients of variation (0: all alike)."""

    mean_prompt_tokens: float | None = None
    mean_output_tokens: float | None = None
    prompt_cv: float | None = None
    output_cv: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one replica is believed to carry, and how long its birth takes.

    Weights turn Demand into work: replica-seconds per request, per uncached prompt token and per output token.
    `feasible_load`: the work in Erlangs that one replica carries within the SLO, for pools of so many replicas, as
    ascending pairs (replicas, Erlangs each).  `startup_seconds`: ascending pairs (quantile, seconds).
    `mean_output_tokens`: the length that arriving requests are expected to ask for.
    """

    seconds_per_request: float
    seconds_per_prompt_token: float
    seconds_per_output_token: float
    feasible_load: tuple[tuple[int, float], ...]
    startup_seconds: tuple[tuple[float, float], ...]
    mean_output_tokens: float
    source: str = "prior"

    def feasible(self, replicas: int) -> float:
        """Erlangs that each of `replicas` carries within the SLO; linear in 1/sqrt(n) between the known sizes."""
        known = self.feasible_load
        n = max(1, replicas)
        at = bisect_left(known, (n,))
        if at == 0 or at == len(known):
            return known[max(0, at - 1)][1]
        (n0, load0), (n1, load1) = known[at - 1], known[at]
        share = (1 / math.sqrt(n0) - 1 / math.sqrt(n)) / (1 / math.sqrt(n0) - 1 / math.sqrt(n1))
        return load0 + (load1 - load0) * share

    def replicas(self, load: float) -> int:
        """The least number of replicas that carry `load` Erlangs together, each what one of so many carries."""
        if load <= 0.0:
            return 0
        largest, each = self.feasible_load[-1]
        n = max(1, replicas_for(load / each))
        while (needed := replicas_for(load / self.feasible(n))) > n and n < largest:
            n += 1
        return max(n, needed)

    def startup(self, quantile: float) -> float:
        """Start-up time in seconds at the least known quantile not below `quantile` (the largest known one beyond)."""
        for known, seconds in self.startup_seconds:
            if known >= quantile - 1e-12:
                return seconds
        return self.startup_seconds[-1][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One stage that set or changed the number: `before` -> `after`, and the numbers (or code words) it used."""

    rule: str
    before: int
    after: int
    inputs: tuple[tuple[str, float | str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How many replicas the pool should have, always a whole number, and why.

    `preload`: replicas of `tiers` that are to be brought to a faster tier ahead of an expected return.  `groups` splits
    `replicas` by placement group; `tiers` says where replicas that are powered down, but not off, should be.
    """

    pool: str
    at_seconds: int
    replicas: int
    preload: int = 0
    reasons: tuple[Reason, ...] = ()
    groups: tuple[Count, ...] = ()
    tiers: tuple[Count, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Decayed moments of lengths out of histograms: mean and mean square per request, in tokens.

    `weight`: requests behind them; `seconds`: time that their histograms covered, decayed alike.
    """

    mean: float
    square: float
    weight: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Idle times of a pool that may power down: since when it is idle, how many replicas it had, and its last gaps (s).

    `brief`: the last of those shorter than the slowest wake, which are not among `gaps`; `brief_share`: the share that are.
    """

    since_seconds: int | None = None
    replicas: int = 1
    gaps: tuple[int, ...] = ()
    brief: tuple[int, ...] = ()
    brief_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """Latencies around a limit: the bounds of its bucket, in seconds, and decayed counts of requests above each."""

    lower_seconds: float
    upper_seconds: float
    above_lower: float
    above_upper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """What steers on the attainment: the logarithm of the headroom factor on work, and what it is moved by.

    `served` requests in `seconds`, `late` of them, all decayed over a day; `first`, `pace`: first tokens and paces around
    their limits; `busy`: the largest share of the feasible load lately; `bound`: what set the last number instead of the
    work (``most``, ``least``, or empty).  `past`: (instant, Erlangs) of the last start-up time; `surge_at_seconds`: when
    there was last much more work than a start-up time before.
    """

    log_headroom: float = 0.0
    served: float = 0.0
    seconds: float = 0.0
    first: Tail | None = None
    pace: Tail | None = None
    busy: float = 0.0
    bound: str = ""
    past: tuple[tuple[int, float], ...] = ()
    surge_at_seconds: int | None = None
    late: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A quantile that was forecast for a window (instants in seconds), and the most work that came in it so far."""

    start_seconds: int
    end_seconds: int
    value: float
    most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Forecasts whose windows have not passed, how far too high those before were, and until when none is believed."""

    told: tuple[Told, ...] = ()
    told_at_seconds: int | None = None
    excess: float = 0.0
    distrusted_until_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the decision itself must remember between steps; small, and written with every Step.

    `recommended`: (at_seconds, replicas) pairs, descending in replicas, for windows that look for the largest;
    `recommended_low`: ascending, for those that look for the least.  `scaled`: (at_seconds, from, to) changes for the rate
    limits.  `seen`: signal groups that this pool has ever reported.  `prompt_weight`, `output_weight`: decayed numbers of
    requests behind the mean lengths.  `prompt_moments`, `output_moments`: None before a histogram was seen.
    `overdue_at_seconds`: when the starts in flight are overdue.  `replaced`: replicas of `desired` that stand for sick ones.
    `margin`: those that are more than are needed, because spot may be taken away or replicas move between groups.
    `idle`: of a pool with tiers to power down to.
    `risk`: the headroom that the measured attainment asks for; `trust`: whether forecasts have earned that they act.
    `mean_total_work`: Erlangs of interactive and deferrable requests together, where there are such classes.
    `dead`: replicas that were ready, went without being asked to, and have not come again.
    `spot_taken`: spot replicas taken away, in `spot_starts` replicas times start-up times; both fade over a week.
    """

    at_seconds: int | None = None
    desired: int | None = None
    recommended: tuple[tuple[int, int], ...] = ()
    recommended_low: tuple[tuple[int, int], ...] = ()
    scaled: tuple[tuple[int, int, int], ...] = ()
    seen: tuple[str, ...] = ()
    unknown_since_seconds: int | None = None
    mean_prompt_tokens: float | None = None
    mean_output_tokens: float | None = None
    prompt_weight: float = 0.0
    output_weight: float = 0.0
    prompt_moments: Moments | None = None
    output_moments: Moments | None = None
    overdue_at_seconds: int | None = None
    replaced: int = 0
    mean_total_work: float | None = None
    margin: int = 0
    idle: Idle | None = None
    risk: Risk = Risk()
    trust: Trust = Trust()
    dead: int = 0
    spot_taken: float = 0.0
    spot_starts: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One turn of the loop: facts, beliefs, choice.  One Step is one log line.

    `work`: replica-seconds of work per second that arrived since the last Observation.  `closed_loop`: much of it failed, so
    that what arrives depends on what was answered.  `proposals`: what every policy with an opinion recommended, binding
    or not.
    """

    observation: Observation
    forecast: Forecast | None = None
    capacity: Capacity | None = None
    work: float | None = None
    closed_loop: bool = False
    proposals: tuple[Reason, ...] = ()
    state: State
    decision: Decision

    def to_json(self) -> str:
        """The canonical log line of this Step (without a line end)."""
        from autoscaler.record import encode_line  # record is a layer above; a view asks for it when it is needed

        return encode_line("step", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way of deciding reactively: share of the feasible load planned for, window of the work, and how long is kept."""

    utilization_fraction: float
    window_seconds: int
    keep_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A variant on the work that came: its replicas and queue (replica-seconds) now, and what it has cost and broken.

    `wanted`: (instant, replicas) that its keep window still remembers.  `replica_seconds` paid and `late` work in
    replica-seconds fade over some days.  `ready` -1: not begun.
    """

    variant: Variant
    ready: int = -1
    starting_ready_at_seconds: tuple[float, ...] = ()
    queued_seconds: float = 0.0
    wanted: tuple[tuple[int, int], ...] = ()
    replica_seconds: float = 0.0
    late: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which variant decides, and what is known of all: the end of what was replayed, and faded work and seconds of it."""

    at_seconds: int
    chosen: Variant
    arrived: float
    seconds: float
    replayed: tuple[Replayed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beliefs:
    """What the models believe, each in a value of its own: slowly replaced by `refit`, capacity also taught by each step.

    `choice`: the way of deciding that would have been the cheapest lately; None before anything was replayed.
    """

    forecast: object
    capacity: object
    refits: int = 0
    choice: Choice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the shell carries between steps: history (the forecaster's), beliefs, state, the last Observations."""

    pool: str
    history: object
    beliefs: Beliefs
    state: State
    recent: tuple[Observation, ...] = ()
    last_step: Step | None = field(default=None, compare=False)
