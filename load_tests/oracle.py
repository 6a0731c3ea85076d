"""The clairvoyant: what somebody pays who knows every arrival and every start beforehand.

A dynamic programme finds paths of replica counts; each is replayed in the plant as an ordered schedule, and the cheapest
that attains its target there is called the oracle.  The programme sees a fluid, so its need is scaled by powers of 1.01,
and its share of given-up requests is varied, until the plant agrees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from load_tests.kernel_state import Floats, Ints
from load_tests.need import Need, feasible_requests_per_second, weights
from load_tests.oracle_dp import best_path, path_cost, path_violated
from load_tests.oracle_schedule import Schedule
from load_tests.run import Run, judge, metrics, scored
from load_tests.simulator import Setup, simulate

BIN_SECONDS = 10.0
_PENALTIES = 24
_HALVINGS = 14
_LARGEST_STEP = 128  # the need is scaled by at most 1.01 to this power


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """What a path is judged by.

    `need`: replicas that each bin's work needs; `arrivals`: requests per bin; ``carried[i]``: replicas' worth of need that
    ``low + i`` replicas carry; `high`: most replicas; `start_seconds`, `drain_seconds`: how long a start
    and a removal hold a replica.
    """

    seconds: float = BIN_SECONDS
    need: Floats
    arrivals: Floats
    carried: Floats
    low: int
    high: int = 100_000
    start_seconds: float
    drain_seconds: float

    def path(self, penalty: float) -> Path:
        """The cheapest path at a penalty in replica-seconds per violated request."""
        counts = best_path(
            self.need, self.arrivals, self.carried, low=self.low, bin_seconds=self.seconds,
            start_seconds=self.start_seconds, drain_seconds=self.drain_seconds, penalty=penalty,
        )  # fmt: skip
        return self.judged(counts, penalty)

    def judged(self, counts: Ints, penalty: float = math.nan) -> Path:
        """Any path with what the programme thinks of it."""
        violated = path_violated(counts, self.need, self.arrivals, self.carried, low=self.low)
        cost = path_cost(
            counts, bin_seconds=self.seconds, start_seconds=self.start_seconds, drain_seconds=self.drain_seconds
        )
        return Path(counts, penalty, cost, 1.0 - violated / max(1e-300, float(self.arrivals.sum())))

    def scaled(self, factor: float) -> Bins:
        """The same with so many times the need, and counts enough for it, up to `high`."""
        need = self.need * factor
        top = self.low + len(self.carried) - 1
        each = float(self.carried[-1]) / max(1, top)
        enough = min(self.high, math.ceil(1.02 * float(need.max(initial=0.0)) / max(1e-9, each)) + 2)
        more = np.arange(top + 1, enough + 1)
        return replace(self, need=need, carried=np.concatenate([self.carried, each * more]))


@dataclass(frozen=True, slots=True)
class Path:
    """Replicas per bin, the penalty that led to them, their replica-seconds and attainment as the programme sees them."""

    counts: Ints
    penalty: float
    cost_seconds: float
    attainment_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One path that was replayed in the plant."""

    need_factor: float
    given_up_share: float
    attainment_fraction: float
    gpu_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """The cheapest run that attains the target in the plant, and all that were tried.

    `policy` is "clairvoyant", or the name of a policy that was cheaper than every replayed path.
    """

    policy: str
    attainment_fraction: float
    gpu_hours: float
    run: Run
    trials: tuple[Trial, ...]


def sweep(bins: Bins) -> list[Path]:
    """Cheapest paths over 24 geometric penalties and an infinite one, dearest attainment last."""
    per_request = max(1e-6, float(bins.need.sum()) * bins.seconds / max(1.0, float(bins.arrivals.sum())))
    penalties = [*np.geomspace(0.3 * per_request, 3e4 * per_request, _PENALTIES).tolist(), math.inf]
    return [bins.path(penalty) for penalty in penalties]


def cheapest(bins: Bins, attainment_fraction: float) -> Path:
    """The cheapest path of the sweep that attains, refined between the penalties that bracket it.

    Where even the largest count cannot attain, the path that violates least.
    """
    paths = sweep(bins)
    enough = [p.attainment_fraction >= attainment_fraction - 1e-12 for p in paths]
    if not any(enough):
        return max(paths, key=lambda p: (p.attainment_fraction, -p.cost_seconds))
    best = min((p for p, ok in zip(paths, enough, strict=True) if ok), key=lambda p: p.cost_seconds)
    first = enough.index(True)
    if first == 0 or math.isinf(paths[first].penalty):
        return best
    low, high = math.log(paths[first - 1].penalty), math.log(paths[first].penalty)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        path = bins.path(math.exp(middle))
        if path.attainment_fraction >= attainment_fraction - 1e-12:
            high, best = middle, min(best, path, key=lambda p: p.cost_seconds)
        else:
            low = middle
    return best


def bins_of(
    setup: Setup, need: Need, *, seconds: float = BIN_SECONDS, smooth_seconds: float | None = None,
    low: int = 0, high: int = 100_000, drain_seconds: float | None = None,
) -> Bins:  # fmt: skip
    """Bins of a setup: work over what one of eight replicas carries within the SLO, and what larger fleets carry by pooling.

    `smooth_seconds` evens the need out over so long: work in flight is spread over its requests' decoding.
    `drain_seconds` None: a request of mean length at the slowest pace that is promised.
    """
    pool, requests = setup.pools[0], setup.requests
    count = max(1, math.ceil(setup.end_seconds / seconds))
    index = np.minimum((requests.arrival_seconds // seconds).astype(np.int64), count - 1)
    each = weights(pool, requests.prompt_tokens, requests.output_tokens)
    per_replica = need.requests_per_second * float(each.mean())
    replicas = np.bincount(index, weights=each, minlength=count) / seconds / per_replica
    if smooth_seconds is not None and smooth_seconds > seconds:
        half = round(smooth_seconds / seconds / 2)
        total = np.concatenate([[0.0], np.cumsum(replicas)])
        left, right = np.maximum(0, np.arange(count) - half), np.minimum(count, np.arange(count) + half + 1)
        replicas = (total[right] - total[left]) / (right - left)
    top = min(high, max(low + 1, math.ceil(1.02 * float(replicas.max())) + 2))
    mean_output = float(requests.output_tokens.mean())
    return Bins(
        seconds=seconds,
        need=replicas,
        arrivals=np.bincount(index, minlength=count).astype(float),
        carried=carried(setup, need, np.arange(low, top + 1)),
        low=low,
        high=high,
        start_seconds=setup.startup.median_seconds * setup.startup_factor,
        drain_seconds=mean_output * setup.slo.itl_seconds if drain_seconds is None else drain_seconds,
    )


def carried(setup: Setup, need: Need, replicas: Ints) -> Floats:
    """Replicas' worth of need that so many replicas carry: fewer carry less each, more share bursts."""
    pool, requests = setup.pools[0], setup.requests
    sizes = [1, 2, 4, 8, 16, 32]
    each = [
        feasible_requests_per_second(pool, requests.prompt_tokens, requests.output_tokens, setup.slo, replicas=n)
        for n in sizes
    ]
    relative = np.maximum.accumulate(np.array(each)) / max(1e-12, need.requests_per_second)
    logs = np.log(np.maximum(1, replicas))
    return np.maximum.accumulate(replicas * np.interp(logs, np.log(sizes), relative))


def find_oracle(
    setup: Setup, need: Need, attainment_fraction: float, *, low: int = 0, high: int = 100_000,
    given_up: tuple[float, ...] = (1.0, 0.5, 0.2, 0.0), smooth_seconds: tuple[float, ...] = (10.0, 60.0),
) -> Oracle | None:  # fmt: skip
    """The cheapest replayed path that attains; None where none does.

    `given_up`: shares of the error budget that the programme may spend itself; the rest is left to the plant's queues.
    """
    trials: list[Trial] = []
    best: Run | None = None
    for smooth in smooth_seconds:
        bins = bins_of(setup, need, smooth_seconds=smooth, low=low, high=high)
        for share in given_up:
            for trial, run in _tried(setup, bins, attainment_fraction, share):
                trials.append(trial)
                if trial.attainment_fraction >= attainment_fraction and (best is None or _cost(run) < _cost(best)):
                    best = run
    return None if best is None else _oracle(best, tuple(trials))


def better_of(oracle: Oracle | None, attainment_fraction: float, runs: Iterable[Run]) -> Oracle | None:
    """The oracle, or the cheapest of `runs` that attains and costs less: what a policy reaches, a clairvoyant can."""
    for run in runs:
        attained = attainment_of(run)
        if (
            attained is not None
            and attained >= attainment_fraction
            and (oracle is None or _cost(run) < oracle.gpu_hours)
        ):
            oracle = _oracle(run, oracle.trials if oracle is not None else ())
    return oracle


def attainment_of(run: Run) -> float | None:
    """Attainment over the scored window."""
    inside = scored(run)
    return 1.0 - float(judge(run).violated[inside].mean()) if inside.any() else None


def replay(setup: Setup, counts: Ints, bin_seconds: float, *, name: str = "clairvoyant") -> Run:
    """A path in the plant."""
    schedule = Schedule(counts, bin_seconds, setup, name=name)
    return simulate(replace(setup, initial=(schedule.initial,)), [schedule])


def _tried(setup: Setup, bins: Bins, attainment_fraction: float, share: float) -> Iterator[tuple[Trial, Run]]:
    """Replays at powers of 1.01: outwards from 1 until the target is bracketed, then the least power that attains."""
    target = 1.0 - share * (1.0 - attainment_fraction)

    def attempt(power: int) -> tuple[Trial, Run]:
        path = cheapest(bins.scaled(1.01**power), target)
        run = replay(setup, path.counts, bins.seconds)
        trial = Trial(
            need_factor=1.01**power,
            given_up_share=share,
            attainment_fraction=attainment_of(run) or 0.0,
            gpu_hours=_cost(run),
        )
        return trial, run

    power, step = 0, 4
    made = attempt(power)
    yield made
    attains = made[0].attainment_fraction >= attainment_fraction
    low, high = (-math.inf, power) if attains else (power, math.inf)
    while math.isinf(low) or math.isinf(high) or high - low > 1:
        if math.isinf(low) or math.isinf(high):
            power = power - step if math.isinf(low) else power + step
            step *= 2
            if abs(power) > _LARGEST_STEP:
                return
        else:
            power = int(low + high) // 2
        made = attempt(power)
        yield made
        if made[0].attainment_fraction >= attainment_fraction:
            high = power
        else:
            low = power


def _cost(run: Run) -> float:
    return run.replica_seconds.paid * run.gpus_per_replica / 3600


def _oracle(run: Run, trials: tuple[Trial, ...]) -> Oracle:
    found = metrics(run)
    assert found.attainment_fraction is not None
    return Oracle(
        policy=run.policy,
        attainment_fraction=found.attainment_fraction,
        gpu_hours=found.gpu_hours,
        run=run,
        trials=trials,
    )
