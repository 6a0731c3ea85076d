"""One cell of a comparison: one policy at one knob on one scenario under one seed, and the small result it comes to.

A cell is a pure function of its inputs.  `key` hashes everything that determines its result: the scenario and the bytes of
every file it names, the policy's settings, the seed, the engine, and the source, versions and machine type that run it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import platform
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

import autoscaler
from load_tests.campaign import Prepared, contestants_of, peer_facts, prepare
from load_tests.contestants import Contestant, PeerContestant
from load_tests.kernel_state import Floats
from load_tests.peers import Peer, PeerFacts, StaticSettings
from load_tests.run import Judged, ReplicaSeconds, Run, Timeline, judge
from load_tests.scenario import Policy, PoolPolicy, Scenario
from load_tests.shapes import DAY
from load_tests.simulator import Setup, Simulation
from load_tests.traces import BUILTIN

Engine = Literal["plant", "fluid"]
Spans = list[tuple[float, float]]

# Packages whose source decides what a cell comes to, and the modules among them that only show results or start runs.
_PACKAGES = ("autoscaler", "forecast", "serving", "load_tests")
_SHOWS = (
    "report", "bench", "policy_bench", "demo", "drills", "drill", "main", "validation", "measured", "closed_loop",
    "backtest", "fake_engine", "locustfile", "loadtest", "calibrate",
)  # fmt: skip
_DECIDES = ("policy_bench_cells.py",)

# What of the decision core is run for everybody.  Its other files are this project's policies': a change there changes no
# digit of anybody else's.  Settings and errors declare and compute nothing: their values are in the scenario.
_CORE = ("autoscaler/", "forecast/", "serving/")
_EVERYBODYS = (
    "autoscaler/laws/", "autoscaler/types.py", "autoscaler/units.py", "serving/profiles.py", "serving/startup.py",
    "serving/data/",
)  # fmt: skip

# A surge: a minute whose arrivals are above so many times the busiest minute of the hour that ended a start-up time ago.
# Who does not know the future holds no replicas for it.
SURGE_GROWTH, _SURGE_PAST_MINUTES = 1.5, 60

# Nobody looks at a timeline: a row a day is enough.  Policies decide at their own intervals.
_NO_ROWS = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleSettings:
    """Not a policy: the cheapest replayed path of a clairvoyant that attains."""

    kind: Literal["oracle"] = "oracle"
    attainment_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundSettings:
    """Not a policy: what nobody can do without.  Its result is one row, on the first scored day, and counts no requests."""

    kind: Literal["bound"] = "bound"
    attainment_fraction: float


@runtime_checkable
class Own(Protocol):
    """A policy from outside, as a frozen dataclass of its settings; `headroom` 2 asks for about twice the replicas of 1.

    It is known by its settings and by its source: a class whose file cannot be read is run anew in every process.
    """

    @property
    def name(self) -> str:
        """Name in the tables."""

    @property
    def headroom(self) -> float:
        """The one knob; 1 as shipped."""

    def peer(self, facts: PeerFacts) -> Peer:
        """A new decision maker; `facts` are what peers may be told of the plant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is run: `scenario` has its window and history; its own seeds and policies are not looked at."""

    scenario: Scenario
    policy: Policy | Own | OracleSettings | BoundSettings
    seed: int
    engine: Engine = "plant"

    @property
    def world(self) -> tuple[str, int, str]:
        """Cells with the same one meet the same prepared traffic."""
        return _world(self.scenario), self.seed, self.engine


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """Per scored day of the trace (number of the day since its second 0): cost in GPU-hours, requests, violations.

    `surged`, `surged_violated`: those of them that arrived in surges; empty where that was not counted.
    """

    days: tuple[int, ...]
    gpu_hours: tuple[float, ...]
    arrived: tuple[int, ...]
    violated: tuple[int, ...]
    wall_seconds: float
    surged: tuple[int, ...] = ()
    surged_violated: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data; every float comes back the same."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CellResult:
        """Out of `to_json`.  Raises KeyError, TypeError or ValueError for anything else."""
        result = cls(
            days=tuple(int(v) for v in data["days"]),
            gpu_hours=tuple(float(v) for v in data["gpu_hours"]),
            arrived=tuple(int(v) for v in data["arrived"]),
            violated=tuple(int(v) for v in data["violated"]),
            wall_seconds=float(data["wall_seconds"]),
            surged=tuple(int(v) for v in data.get("surged", ())),
            surged_violated=tuple(int(v) for v in data.get("surged_violated", ())),
        )
        columns = (result.days, result.gpu_hours, result.arrived, result.violated)
        counted = (result.surged, result.surged_violated) if result.surged else ()
        if len({len(column) for column in (*columns, *counted)}) > 1:
            raise ValueError("columns of a result must be equally long")
        return result


def run_cell(cell: Cell) -> CellResult:
    """Run one cell.  Raises ConfigError for files that cannot be used."""
    prepared = _prepared(cell.world, lambda: prepare(cell.scenario, cell.seed))
    begun = perf_counter()
    if isinstance(cell.policy, OracleSettings):
        return _clairvoyant(cell, cell.policy, prepared, begun)
    if isinstance(cell.policy, BoundSettings):
        return _bound(cell, cell.policy, prepared, begun)
    return _played(cell, cell.policy, prepared, begun)


def scored_spans(scenario: Scenario, setup: Setup) -> Iterator[tuple[int, Spans]]:
    """(day, spans) in seconds of the run: each day's part that is scored, without the gaps of the trace."""
    start, end = setup.score_from_seconds, setup.end_seconds
    offset = scenario.window.start_seconds
    for day in range(math.floor((start + offset) / DAY), math.ceil((end + offset) / DAY)):
        spans = [(max(start, day * DAY - offset), min(end, (day + 1) * DAY - offset))]
        for gap_start, gap_end in setup.gaps:
            spans = [
                part for a, b in spans for part in ((a, min(b, gap_start)), (max(a, gap_end), b)) if part[1] > part[0]
            ]
        if spans:
            yield day, spans


def _played(cell: Cell, policy: Policy | Own, prepared: Prepared, begun: float) -> CellResult:
    setup = replace(prepared.setup, interval_seconds=_NO_ROWS)
    if isinstance(policy, StaticSettings):  # a fixed fleet is there from the start
        setup = replace(setup, initial=(policy.replicas,) * len(setup.pools))
    simulation = ENGINES[cell.engine](setup, _contestants(prepared, policy))
    simulation.run()
    hours = setup.gpus_per_replica / 3600

    def paid(spans: Spans) -> float:
        return hours * math.fsum(life.paid(a, b).paid for life in simulation.lives for a, b in spans)

    days = list(scored_spans(cell.scenario, setup))
    spans = [some for _, some in days]
    if getattr(simulation, "flow", None) is not None:
        return _result(days, _flowed(simulation, spans), paid, begun)
    arrival, violated = setup.requests.arrival_seconds, _judged(simulation).violated
    counts = [_counted(arrival, violated, some) for some in spans]
    surged = surges(arrival, setup.end_seconds, setup.startup.median_seconds * setup.startup_factor)
    inside = [_counted(arrival[surged], violated[surged], some) for some in spans]
    return replace(
        _result(days, counts, paid, begun),
        surged=tuple(arrived for arrived, _ in inside),
        surged_violated=tuple(late for _, late in inside),
    )


def surges(arrival: Floats, end_seconds: float, startup_seconds: float) -> npt.NDArray[np.bool_]:
    """Which requests arrive in a surge: more in their minute than `SURGE_GROWTH` times the most in any minute of the hour that
    ended a start-up time before it.  Nothing is a surge before there is such a past.
    """
    minutes = np.bincount((arrival // 60).astype(np.int64), minlength=math.ceil(end_seconds / 60))
    ago = math.ceil(startup_seconds / 60)
    grown = np.zeros(len(minutes), dtype=bool)
    for minute in range(ago + 1, len(minutes)):
        past = minutes[max(0, minute - ago - _SURGE_PAST_MINUTES) : minute - ago]
        grown[minute] = minutes[minute] > SURGE_GROWTH * past.max()
    return grown[(arrival // 60).astype(np.int64)]


def _contestants(prepared: Prepared, policy: Policy | Own) -> Sequence[Contestant]:
    if isinstance(policy, Own):
        return [PeerContestant(policy.peer(peer_facts(prepared, pool))) for pool in prepared.setup.pools]
    return contestants_of(prepared, policy)


def _flowed(simulation: Simulation, days: Sequence[Spans]) -> list[tuple[int, int]]:
    """(arrived, violated) in each day's spans.  The twin knows whole seconds and parts of requests: both are rounded."""
    flow: Any = simulation.flow  # type: ignore[attr-defined]
    arrival = simulation.setup.requests.arrival_seconds
    _, late = flow.per_second()
    total = np.concatenate([[0.0], np.cumsum(late)])
    counted = []
    for spans in days:
        edges = np.minimum(np.ceil(np.array(spans)).astype(np.int64), len(late))
        arrived = int(np.diff(np.searchsorted(arrival, np.array(spans)).reshape(-1, 2)).sum())
        counted.append((arrived, min(arrived, round(float((total[edges[:, 1]] - total[edges[:, 0]]).sum())))))
    return counted


def _clairvoyant(cell: Cell, settings: OracleSettings, prepared: Prepared, begun: float) -> CellResult:
    """The oracle's run, in the plant whatever the engine.  Its cost is exact; how it falls on days is read off its timeline."""
    from load_tests.oracle import find_oracle

    setup, limits = prepared.setup, cell.scenario.limits
    found = find_oracle(
        setup, prepared.need, settings.attainment_fraction,
        low=limits.min_replicas, high=limits.max_replicas, given_up=(0.5,), smooth_seconds=(60.0,),
    )  # fmt: skip
    if found is None:
        return CellResult(days=(), gpu_hours=(), arrived=(), violated=(), wall_seconds=perf_counter() - begun)
    line = found.run.timeline
    held = (line.ready + line.starting + line.draining).astype(float)
    held[line.at_seconds < setup.score_from_seconds] = 0.0
    scale = found.gpu_hours / max(1e-12, float(held.sum()))

    def paid(spans: Spans) -> float:
        return scale * math.fsum(float(held[(line.at_seconds >= a) & (line.at_seconds < b)].sum()) for a, b in spans)

    days = list(scored_spans(cell.scenario, setup))
    violated = judge(found.run).violated
    counts = [_counted(setup.requests.arrival_seconds, violated, spans) for _, spans in days]
    return _result(days, counts, paid, begun)


def _bound(cell: Cell, settings: BoundSettings, prepared: Prepared, begun: float) -> CellResult:
    from load_tests.oracle_bound import bound_gpu_hours

    setup, limits = prepared.setup, cell.scenario.limits
    days = list(scored_spans(cell.scenario, setup))
    spans = [span for _, some in days for span in some]
    low, high = limits.min_replicas, limits.max_replicas
    hours = bound_gpu_hours(setup, spans, settings.attainment_fraction, low=low, high=high) if spans else None
    found = () if hours is None else (hours,)
    none = tuple(0 for _ in found)
    return CellResult(
        days=tuple(day for day, _ in days)[: len(found)],
        gpu_hours=found,
        arrived=none,
        violated=none,
        wall_seconds=perf_counter() - begun,
    )


def _result(
    days: Sequence[tuple[int, Spans]],
    counts: Sequence[tuple[int, int]],
    paid: Callable[[Spans], float],
    begun: float,
) -> CellResult:
    return CellResult(
        days=tuple(day for day, _ in days),
        gpu_hours=tuple(paid(spans) for _, spans in days),
        arrived=tuple(arrived for arrived, _ in counts),
        violated=tuple(violated for _, violated in counts),
        wall_seconds=perf_counter() - begun,
    )


def _counted(arrival: Floats, violated: Any, spans: Spans) -> tuple[int, int]:
    edges = np.searchsorted(arrival, np.array(spans)).reshape(-1, 2)
    return int((edges[:, 1] - edges[:, 0]).sum()), sum(int(violated[a:b].sum()) for a, b in edges)


def _judged(simulation: Simulation) -> Judged:
    """Each request against the SLO, without a timeline: that costs as much as a simulation."""
    setup, out = simulation.setup, simulation.fleet.outcome()
    nothing, none = np.zeros(0), np.zeros(0, dtype=np.int64)
    timeline = Timeline(
        at_seconds=nothing, desired=none, ready=none, starting=none, draining=none, need=nothing,
        arrivals_per_second=nothing, running=nothing, waiting=nothing, ttft_p95_seconds=nothing, violated=none,
        forecast_low=nothing, forecast_high=nothing,
    )  # fmt: skip
    run = Run(
        policy="", pool="", scenario="", seed=setup.seed, slo=setup.slo, gpus_per_replica=1, interval_seconds=1.0,
        score_from_seconds=0.0, end_seconds=setup.end_seconds, arrival_seconds=setup.requests.arrival_seconds,
        prompt_tokens=setup.requests.prompt_tokens, output_tokens=setup.requests.output_tokens,
        first_token_seconds=out.first_token_seconds, finish_seconds=out.finish_seconds,
        status=out.status.astype(np.int64), timeline=timeline, events=(), replica_seconds=ReplicaSeconds(), starts=0,
    )  # fmt: skip
    return judge(run)


_KEPT: dict[tuple[str, int, str], Prepared] = {}


def _prepared(world: tuple[str, int, str], make: Callable[[], Prepared]) -> Prepared:
    """The traffic of the last world: its next cell, most likely in the same process, meets it again."""
    if world not in _KEPT:
        _KEPT.clear()
        _KEPT[world] = make()
    return _KEPT[world]


def _fluid(setup: Setup, contestants: Sequence[Contestant]) -> Simulation:
    """In the fluid twin.  Raises ConfigError for a world that the twin does not know."""
    from load_tests.fluid import FluidSimulation

    return FluidSimulation(setup, contestants)


ENGINES: dict[Engine, Callable[[Setup, Sequence[Contestant]], Simulation]] = {"plant": Simulation, "fluid": _fluid}


def key(cell: Cell) -> str:
    """Hash of everything that determines the cell's result: 64 hexadecimal digits."""
    policy: dict[str, Any] = {
        k: v for k, v in asdict(cast(Any, cell.policy)).items() if k != "name"
    }  # a name in reports
    if isinstance(cell.policy, Own):
        policy["source"] = _source_of(type(cell.policy))
    runs = runs_on(ours=isinstance(cell.policy, PoolPolicy | Own))
    told = json.dumps(
        {"world": _world(cell.scenario), "policy": policy, "seed": cell.seed, "engine": cell.engine, "runs": runs},
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(told.encode()).hexdigest()


@cache
def _source_of(law: type) -> str:
    """The class's name and its file's bytes; where there is no file, something that no other process says."""
    try:
        return f"{law.__qualname__} {_hash_of(Path(inspect.getfile(law)))}"
    except (TypeError, OSError):
        return f"{law.__qualname__} {uuid.uuid4()}"


@lru_cache(maxsize=4096)
def _world_of(scenario: Scenario) -> str:
    data = asdict(scenario)
    for name in ("name", "seeds", "policies"):
        del data[name]
    return hashlib.sha256(json.dumps(_by_content(data), sort_keys=True, default=str).encode()).hexdigest()


def _world(scenario: Scenario) -> str:
    return _world_of(replace(scenario, name="-", seeds=(0,), policies=(StaticSettings(replicas=1),)))


def _by_content(value: Any) -> Any:
    """A scenario's mapping with every file that it names replaced by the hash of its bytes."""
    if isinstance(value, dict):
        return {k: _by_content(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_by_content(v) for v in value]
    if isinstance(value, str):
        if value.startswith(BUILTIN):
            return _hash_of(Path(str(files("load_tests"))) / "data" / "traces" / f"{value[len(BUILTIN) :]}.csv.gz")
        if "/" in value or "." in value:
            path = Path(value)
            return _hash_of(path) if path.is_file() else value
    return value


def _hash_of(path: Path) -> str:
    stat = path.stat()
    return _hash_of_version(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _hash_of_version(path: Path, _modified: int, _size: int) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def runs_on(*, ours: bool) -> dict[str, str]:
    """What may change digits beside the inputs: source, versions, machine type.

    `ours` False: of policies that run nothing of this project's decision core.
    """
    import numba

    return {
        "version": autoscaler.__version__,
        "source": source_hash(ours=ours),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "machine": platform.machine(),
    }


def source_hash(roots: tuple[Path, ...] | None = None, *, ours: bool = True) -> str:
    """Hash of the source and data tables that decide: modules that only show results do not count."""
    hashed = hashlib.sha256()
    for root in roots or tuple(Path(str(files(package))) for package in _PACKAGES):
        for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".toml", ".csv") and _decides(p)):
            name = f"{root.name}/{path.relative_to(root).as_posix()}"
            if ours or not is_ours(name):
                hashed.update(f"{name}\0".encode())
                hashed.update(hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()


def is_ours(name: str) -> bool:
    """Whether a file, such as ``autoscaler/step.py``, is run by this project's policies only."""
    return name.startswith(_CORE) and not name.startswith(_EVERYBODYS)


def _decides(path: Path) -> bool:
    if path.name in _DECIDES:
        return True
    stem = path.stem
    return not any(stem == name or stem.startswith(f"{name}_") for name in _SHOWS)
