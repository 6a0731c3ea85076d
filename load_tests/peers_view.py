"""What an emulated autoscaler sees and answers: the `View` of one pool, the facts it was given, a recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from autoscaler.errors import ConfigError
from autoscaler.schema import setting
from autoscaler.settings import Slo
from autoscaler.types import Histogram, Reason
from load_tests.fleet import PoolModel, ReplicaModel, Requests
from load_tests.histories import History
from load_tests.need import weights

Gauge = Literal["running", "waiting", "kv_tokens", "waiting_prompt_tokens", "outstanding"]
Series = Literal["ttft", "itl", "tpot", "e2e", "prompt_lengths", "output_lengths", "step_tokens"]
Traps = Literal["shipped", "removed"]


class View(Protocol):
    """What a peer may see of one pool at one tick.  None: the scrape failed."""

    @property
    def at_seconds(self) -> float:
        """The instant of the tick, relative to the start of the run."""

    @property
    def desired(self) -> int:
        """The number last asked for."""

    @property
    def ready(self) -> int:
        """Replicas that serve."""

    @property
    def starting(self) -> int:
        """Replicas on their way."""

    @property
    def held_requests(self) -> int | None:
        """Requests held at the door because no replica is ready."""

    @property
    def held_prompt_tokens(self) -> int | None:
        """Prompt tokens of the requests that are held at the door."""

    def per_replica(self, gauge: Gauge) -> Sequence[float] | None:
        """One reading per ready replica."""

    def rate(self, counter: str, window_seconds: float) -> float | None:
        """Increase per second of a cumulative counter of the pool (a field of `fleet.Counters`) over the last window."""

    def histogram(self, series: Series, window_seconds: float) -> Histogram | None:
        """What a cumulative histogram of the pool (a field of `fleet.Counters`) took in over the last window."""


class Recommendation(NamedTuple):
    """A number of replicas and the stages that led to it."""

    replicas: int
    reasons: tuple[Reason, ...]


class Peer(Protocol):
    """One autoscaler with its own memory; `decide` is called every `interval_seconds`.

    `uses_rates` False: it never asks for `View.rate` or `View.histogram`, so that counters need not be read every tick.
    """

    name: str
    interval_seconds: int
    uses_rates: bool

    def decide(self, view: View) -> Recommendation:
        """How many replicas it asks for now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What the settings of every emulated autoscaler have; each says what its `headroom` scales."""

    name: str | None = setting(None, "Name in the report; None: its kind, and what tells it from others of its kind.")
    min_replicas: int = setting(1, "Lower bound; the scenario's limits narrow it.", low=0, high=100_000)
    max_replicas: int = setting(100_000, "Upper bound; the scenario's limits narrow it.", low=1, high=100_000)

    def __post_init__(self) -> None:
        if self.max_replicas < self.min_replicas:
            raise ConfigError("max_replicas", f"{self.max_replicas} is below min_replicas {self.min_replicas}")

    def bounded(self, replicas: int) -> int:
        """`replicas` within the bounds."""
        return min(max(replicas, self.min_replicas), self.max_replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFacts:
    """What some peers are told beforehand: the true step law, the promise, and what one replica carries.

    `requests_per_second` is what one replica carries within the SLO, of requests with the mean lengths given here (0: not
    known, as in joined pools).  A request weighs `seconds_per_prompt_token * prompt + seconds_per_output_token * output`.
    `startup_seconds` is the median.  `history` is what arrived before the run.
    """

    slo: Slo
    replica: ReplicaModel
    startup_seconds: float
    requests_per_second: float
    mean_prompt_tokens: float
    mean_output_tokens: float
    seconds_per_prompt_token: float
    seconds_per_output_token: float
    history: History | None = None

    @classmethod
    def of(
        cls,
        pool: PoolModel,
        requests: Requests,
        slo: Slo,
        *,
        startup_seconds: float,
        requests_per_second: float,
        history: History | None = None,
    ) -> PeerFacts:
        """The facts of a pool under a traffic; the weight of a token is the mean over its requests.

        The prompt's own tokens carry its prefill, the output's all that decoding costs.
        """
        prompt = float(requests.prompt_tokens.mean()) if len(requests) else 1.0
        output = float(requests.output_tokens.mean()) if len(requests) else 1.0
        law, work = pool.replica, 0.0
        if len(requests):
            work = float(weights(pool, requests.prompt_tokens, requests.output_tokens).mean())
        per_prompt = law.b
        if len(requests):
            squares = float((requests.prompt_tokens.astype(float) ** 2).mean())
            per_prompt += law.e * squares / 2 / prompt
        return cls(
            slo=slo,
            replica=law,
            startup_seconds=startup_seconds,
            requests_per_second=requests_per_second,
            mean_prompt_tokens=prompt,
            mean_output_tokens=output,
            seconds_per_prompt_token=per_prompt,
            seconds_per_output_token=max(0.0, work - per_prompt * prompt) / output,
            history=history,
        )

    def replicas(self, requests_per_second: float, prompt_tokens: float, output_tokens: float) -> float | None:
        """Replicas that a rate of requests with these mean lengths needs, as a fraction; None if it is not known."""
        carried = self.requests_per_second * self._weight(self.mean_prompt_tokens, self.mean_output_tokens)
        return requests_per_second * self._weight(prompt_tokens, output_tokens) / carried if carried > 0 else None

    def _weight(self, prompt_tokens: float, output_tokens: float) -> float:
        return self.seconds_per_prompt_token * prompt_tokens + self.seconds_per_output_token * output_tokens


def plain(column: Any) -> Sequence[float]:
    """A column as Python numbers, which are faster one by one than numpy's."""
    return column.tolist() if hasattr(column, "tolist") else column  # type: ignore[no-any-return]


def told(facts: PeerFacts | None, name: str) -> PeerFacts:
    """The facts, for a peer that cannot do without."""
    if facts is None:
        raise ValueError(f"{name} must be given facts: peer_of(settings, facts=...)")
    return facts
