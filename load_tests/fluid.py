"""The fluid twin of the plant, for search: the same contestants, starts and faults, many times as fast.

    result = fluid_run(setup, [contestant])
    result.attainment_fraction, result.gpu_hours, result.days

Requests of a second are a cohort and ready replicas are all alike (`fluid_kernel`).  It knows one pool without prefix blocks
or closed loops.  A claim is made with the plant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import numpy as np

from autoscaler.errors import ConfigError
from load_tests import draws
from load_tests import fluid_kernel as kernel
from load_tests import kernel_state as state
from load_tests.contestants import Contestant
from load_tests.fleet import Counters, Fleet, Gauges, HistogramCounts
from load_tests.fluid_cohorts import BIN_SECONDS, Cohorts, cohorts_of
from load_tests.fluid_kernel import Flow
from load_tests.kernel_state import Floats, Ints
from load_tests.simulator import Row, Setup, Simulation

_DAY_SECONDS = 86_400.0
# Routing evens arrivals out: with n replicas the variance of what comes to one is n^-x that of Poisson arrivals.  Measured in
# the plant on synthetic mixes.
_EVENING = {"round_robin": 0.95, "least_loaded": 0.65, "two_choices": 0.45}
_CHOICES = {"round_robin": 0.0, "least_loaded": 1.0, "two_choices": 1.0}  # whether a request avoids what is loaded
_HISTOGRAMS = (
    ("ttft", state.TTFT_AT, state.TTFT_BOUNDS, kernel.TTFT_SUM),
    ("itl", state.ITL_AT, state.ITL_BOUNDS, kernel.ITL_SUM),
    ("tpot", state.TPOT_AT, state.ITL_BOUNDS, kernel.TPOT_SUM),
    ("e2e", state.E2E_AT, state.E2E_BOUNDS, kernel.E2E_SUM),
    ("output_lengths", state.OUTPUT_AT, state.LENGTH_BOUNDS, kernel.OUTPUT_SUM),
    ("step_tokens", state.STEP_AT, state.STEP_BOUNDS, kernel.STEP_SUM),
)
_NO_TENANT = np.zeros(0, dtype=np.int64)
_NOBODY = np.zeros(0)


def check_fluid(setup: Setup) -> None:
    """Raise ConfigError for a world that the twin does not know."""
    requests = setup.requests
    if len(setup.pools) != 1:
        raise ConfigError("prefill_decode", "must be None in the fluid twin, which knows one pool: use the plant")
    if requests.follows is not None or requests.block_hashes is not None:
        raise ConfigError("traffic", "closed loops and prefix blocks must be simulated in the plant, not in the twin")


@dataclass(slots=True)
class _Leaving:
    """A replica that drains: the bin before which its requests came, and how many of how many replicas' worth it had."""

    replica: int
    bin: int
    requests: float
    held: float


class FluidFleet:
    """The interface of `fleet.Fleet` for one pool.  `observed` False: histograms stay empty."""

    def __init__(self, setup: Setup, *, observed: bool = True) -> None:
        check_fluid(setup)
        self._cohorts = cohorts_of(setup)
        self._flow = _flow(self._cohorts, setup, observed)
        self._noise = np.uint64(draws.key(setup.seed, "fluid gauges"))
        self._ready: dict[int, None] = {}
        self._leaving: list[_Leaving] = []
        self._gone: dict[int, float] = {}
        self._births = 0

    @property
    def now_seconds(self) -> float:
        """The instant up to which everything has happened: a whole second."""
        return self._now

    _now = 0.0

    def advance(self, until_seconds: float) -> None:
        """Let every second happen that ends by `until_seconds`."""
        if not until_seconds >= self._now:
            raise ValueError(f"until_seconds {until_seconds!r} must be a number >= now_seconds {self._now!r}")
        kernel.advance(self._flow, float(until_seconds))
        self._now = float(until_seconds)
        if self._leaving:
            self._drained()

    def add(self, pool: int, capacity_factor: float = 1.0) -> int:
        """A replica that is ready now; returns its id.  All replicas have the factor of the newest."""
        replica = self._births
        self._births += 1
        kernel.split(self._flow)
        self._flow.now[kernel.FACTOR] = capacity_factor
        self._ready[replica] = None
        self._flow.now[kernel.READY] = len(self._ready)
        return replica

    def drain(self, replica_id: int) -> None:
        """No new requests for this replica; it is gone when its share of what is in flight has ended."""
        if replica_id not in self._ready:
            return
        # The least loaded is taken, which has none of a backlog.
        now, bins = self._flow.now, int(self._flow.at[kernel.HEAD])
        open_requests = kernel.in_flight(self._flow, bins)
        held = open_requests / max(1.0, now[kernel.READY] + now[kernel.LEAVING])
        del self._ready[replica_id]
        now[kernel.READY] = len(self._ready)
        self._leaving.append(_Leaving(replica_id, bins, open_requests, held))
        self._drained()

    def kill(self, replica_id: int) -> None:
        """The replica fails now, and with it its share of what is in flight."""
        now = self._flow.now
        held = now[kernel.READY] + now[kernel.LEAVING]
        if replica_id in self._ready:
            del self._ready[replica_id]
            kernel.lose(self._flow, 1.0 / held)
            now[kernel.READY] = len(self._ready)
            self._gone[replica_id] = self._now
            return
        for leaving in [x for x in self._leaving if x.replica == replica_id]:
            self._leaving.remove(leaving)
            self._gone[replica_id] = self._now

    def gone_at(self, replica_id: int) -> float | None:
        """Instant at which the replica was gone; None while it lives."""
        return self._gone.get(replica_id)

    def set_capacity_factor(self, replica_id: int, factor: float) -> None:
        """Steps that start from now on take 1 / `factor` as long, on all replicas."""
        self._flow.now[kernel.FACTOR] = factor

    def gauges(self, pool: int) -> Gauges:
        """State of the pool now: every ready replica shows the mean."""
        now = self._flow.now.tolist()
        ready, leaving = len(self._ready), len(self._leaving)
        held = ready == 0
        each = max(1e-9, now[kernel.READY] + now[kernel.LEAVING])
        running = self._at_an_instant(now) / each
        context = running * kernel.context(self._flow) / max(1e-9, now[kernel.RUNNING])
        begun = now[kernel.PREFILLING] / max(1, ready)
        queued = 0.0 if held else (now[kernel.QUEUED] + now[kernel.QUEUEING]) / ready
        tokens = 0.0 if held else now[kernel.QUEUED_TOKENS] / ready
        block = self._flow.law[kernel.KV_BLOCK]
        columns = np.empty((5, ready))
        columns.T[:] = (running + begun, queued, context + running * (block - 1) / 2, tokens, running + begun + queued)
        drained = np.full(leaving, running) if leaving else _NOBODY
        return Gauges(
            ids=np.fromiter(self._ready, dtype=np.int64, count=ready),
            running=cast(Ints, columns[0]),
            waiting=cast(Ints, columns[1]),
            kv_tokens=cast(Ints, columns[2]),
            waiting_prompt_tokens=cast(Ints, columns[3]),
            outstanding=cast(Ints, columns[4]),
            held_requests=round(now[kernel.QUEUED]) if held else 0,
            held_prompt_tokens=round(now[kernel.QUEUED_TOKENS]) if held else 0,
            draining_ids=np.array([x.replica for x in self._leaving], dtype=np.int64) if leaving else _NO_TENANT,
            draining_running=cast(Ints, drained),
            draining_outstanding=cast(Ints, drained),
        )

    def _at_an_instant(self, now: list[float]) -> float:
        """Decoding requests now: the last second's mean, and the scatter that the mean has lost.

        Of requests that come at random and stay d seconds, the mean over T seconds has the share 1 - T / 3 d of an
        instant's variance where d >= T, else (d / T)(1 - d / 3 T).
        """
        mean = now[kernel.MEAN_RUNNING]
        rate = now[kernel.COUNT_RATE] * now[kernel.READY] / max(1e-9, now[kernel.FACTOR])
        if mean <= 0.0 or rate <= 0.0:
            return mean
        stay = mean / rate / BIN_SECONDS
        kept = 1.0 - 1.0 / (3.0 * stay) if stay >= 1.0 else stay * (1.0 - stay / 3.0)
        drawn = float(draws.normal_at(self._noise, int(self._now)))
        return max(0.0, mean + math.sqrt(mean * (1.0 - kept)) * drawn)

    def totals(self) -> tuple[float, float]:
        """(running, waiting) requests of the pool."""
        now = self._flow.now.tolist()
        return now[kernel.MEAN_RUNNING] + now[kernel.PREFILLING], now[kernel.QUEUED] + now[kernel.QUEUEING]

    def counters(self, pool: int) -> Counters:
        """Cumulative counters and histograms, up to now, in whole numbers."""
        counts = self._flow.counts.tolist()
        row = self._flow.histograms.astype(np.int64)
        values: dict[str, Any] = {
            name: HistogramCounts(bounds, row[at : at + len(bounds) + 1], counts[total])
            for name, at, bounds, total in _HISTOGRAMS
        }
        finished = counts[kernel.FINISHED]
        lengths = (finished * self._cohorts.prompt_lengths).astype(np.int64)
        return Counters(
            arrivals=int(counts[kernel.ARRIVALS]),
            arrived_prompt_tokens=int(counts[kernel.ARRIVED_TOKENS]),
            prefilled_prompt_tokens=int(counts[kernel.PREFILLED]),
            cached_prompt_tokens=int(counts[kernel.CACHED]),
            computed_tokens=int(counts[kernel.COMPUTED]),
            output_tokens=int(counts[kernel.OUTPUTS]),
            finished=int(finished),
            failed=int(counts[kernel.FAILURES]),
            handed_over=0,
            engine_steps=int(counts[kernel.STEPS]),
            preemptions=0,
            busy_seconds=counts[kernel.BUSY],
            decode_seconds=counts[kernel.DECODE_SECONDS],
            prompt_lengths=HistogramCounts(state.LENGTH_BOUNDS, lengths, finished * self._cohorts.mean_prompt),
            arrivals_by_tenant=_NO_TENANT,
            **values,
        )

    def per_second(self) -> tuple[Floats, Floats]:
        """(requests, violated) by the second of arrival; what has not ended by now is violated."""
        flow = self._flow
        violated = flow.violated.copy()
        kernel.count_open(flow, violated)
        return flow.arrivals, violated

    def _drained(self) -> None:
        """Who has nothing left is gone; the others count as the share that they still hold."""
        left, share = [], 0.0
        for leaving in self._leaving:
            remaining = kernel.in_flight(self._flow, leaving.bin)
            part = remaining / leaving.requests if leaving.requests > 0 else 0.0
            if leaving.held * part < 0.5:
                self._gone[leaving.replica] = self._now
                continue
            left.append(leaving)
            share += part
        self._leaving = left
        self._flow.now[kernel.LEAVING] = share


def _flow(cohorts: Cohorts, setup: Setup, observed: bool) -> Flow:
    """The arrays of a twin without replicas."""
    pool, bins = setup.pools[0], len(cohorts.arrivals)
    law = pool.replica
    values = np.zeros(kernel.LAW)
    values[kernel.FIXED] = law.a + law.step_overhead_seconds
    values[kernel.PER_TOKEN], values[kernel.FLOOR] = law.b, law.floor_tokens
    values[kernel.PER_SEQUENCE] = law.c + law.sequence_overhead_seconds
    values[kernel.PER_CONTEXT], values[kernel.INGRESS] = law.d, law.request_overhead_seconds
    values[kernel.TTFT_LIMIT], values[kernel.ITL_LIMIT] = setup.slo.ttft_seconds, setup.slo.itl_seconds
    values[kernel.SEATS], values[kernel.BATCH_TOKENS] = law.max_num_seqs, law.max_num_batched_tokens
    values[kernel.KV_CAPACITY], values[kernel.KV_BLOCK] = law.kv_capacity_tokens, law.kv_block_tokens
    values[kernel.EVENING], values[kernel.CHOICES] = _EVENING[pool.routing], _CHOICES[pool.routing]
    values[kernel.BIN], values[kernel.OBSERVED] = BIN_SECONDS, observed
    now = np.zeros(kernel.NOW)
    now[kernel.STEP_SECONDS] = now[kernel.FACTOR] = now[kernel.HEAD_LEFT] = now[kernel.FRESH_LEFT] = 1.0
    return Flow(
        law=values,
        arrivals=cohorts.arrivals,
        prompt_tokens=cohorts.prompt_tokens,
        fresh_tokens=cohorts.fresh_tokens,
        prefill_seconds=cohorts.prefill_seconds,
        prefill_squares=cohorts.prefill_squares,
        longer=cohorts.longer,
        residual=cohorts.residual,
        shares=cohorts.shares,
        outputs=cohorts.outputs,
        begun_clock=np.zeros(bins),
        pending=np.zeros(bins),
        begun_seconds=np.zeros(bins),
        late=np.zeros(bins),
        weight=np.ones(bins),
        violated=np.zeros(bins),
        done=np.zeros(bins, dtype=np.int64),
        ends=np.zeros((2, len(cohorts.outputs)), dtype=np.int64),
        at=np.zeros(kernel.PLACES, dtype=np.int64),
        now=now,
        counts=np.zeros(kernel.COUNTS),
        histograms=np.zeros(kernel.places()),
    )


class FluidSimulation(Simulation):
    """A simulation in the twin: the same contestants, lives of replicas and faults."""

    def __init__(self, setup: Setup, contestants: Sequence[Contestant], *, observed: bool = True) -> None:
        self.flow = FluidFleet(setup, observed=observed)
        super().__init__(setup, contestants, fleet=cast(Fleet, self.flow))

    def _row(self, at: float) -> Row:
        life = self.lives[0]
        running, waiting = self.flow.totals()
        return Row(at, life.desired, len(life.serving), life.starting, life.draining, running, waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class FluidDays:
    """Per day of the scored window: requests, violated ones, and paid replica-seconds."""

    requests: Floats
    violated: Floats
    replica_seconds: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class FluidResult:
    """What one policy did in the twin."""

    policy: str
    attainment_fraction: float | None
    gpu_hours: float
    starts: int
    days: FluidDays
    wall_seconds: float


def fluid_run(setup: Setup, contestants: Sequence[Contestant], *, observed: bool = True) -> FluidResult:
    """One setup under its contestant in the twin.

    `observed` False: histograms stay empty, for contestants that read none.  Raises ConfigError for a world that only the
    plant knows.
    """
    begun = perf_counter()
    simulation = FluidSimulation(setup, contestants, observed=observed)
    simulation.run()
    start, end = setup.score_from_seconds, setup.end_seconds
    days = max(1, math.ceil((end - start) / _DAY_SECONDS))
    edges = np.minimum(start + _DAY_SECONDS * np.arange(days + 1), end)
    life = simulation.lives[0]
    spans = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    paid = np.array([life.paid(a, b).paid for a, b in spans])
    seconds, open_violated = simulation.flow.per_second()
    places = (edges / BIN_SECONDS).astype(np.int64)[:-1]
    stop = math.ceil(end / BIN_SECONDS)
    requests = np.add.reduceat(seconds[:stop], places)
    violated = np.add.reduceat(open_violated[:stop], places)
    total = float(requests.sum())
    return FluidResult(
        policy=contestants[0].name,
        attainment_fraction=1.0 - float(violated.sum()) / total if total else None,
        gpu_hours=float(paid.sum()) * setup.gpus_per_replica / 3600,
        starts=life.starts(start, end),
        days=FluidDays(requests=requests, violated=violated, replica_seconds=paid),
        wall_seconds=perf_counter() - begun,
    )
