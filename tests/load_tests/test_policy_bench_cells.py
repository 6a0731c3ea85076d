"""Cells: what determines them, that they are pure whatever runs them, and that finished ones are kept."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_world import STEP, step

from autoscaler.errors import ConfigError
from load_tests import policy_bench_cells, policy_bench_run
from load_tests.campaign import play, prepare
from load_tests.peers import HpaSettings, PeerFacts, Static, StaticSettings
from load_tests.policy_bench_cache import Cache
from load_tests.policy_bench_cells import (
    Cell,
    CellResult,
    is_ours,
    key,
    run_cell,
    runs_on,
    scored_spans,
    source_hash,
    surges,
)
from load_tests.policy_bench_grid import Capacity, peers
from load_tests.policy_bench_run import batches, run_batch, run_cells
from load_tests.run import metrics
from load_tests.scenario import PoolPolicy, scenario_from


def numbers(results: list[CellResult]) -> list[tuple[object, ...]]:
    """All but the time it took."""
    return [(r.days, r.gpu_hours, r.arrived, r.violated) for r in results]


def cells() -> list[Cell]:
    scenario = step()
    policies = [PoolPolicy(), HpaSettings(target=5.0), HpaSettings(target=20.0), StaticSettings(replicas=2)]
    return [Cell(scenario=scenario, policy=p, seed=seed) for seed in (0, 1) for p in policies]


def test_a_cell_counts_what_a_run_counts() -> None:
    for policy in (HpaSettings(target=5.0), StaticSettings(replicas=1), PoolPolicy()):
        scenario = step(score_from_seconds=60.0)
        known = metrics(play(prepare(scenario, 3), policy))
        result = run_cell(Cell(scenario=scenario, policy=policy, seed=3))
        assert result.days == (0,)
        assert (sum(result.arrived), sum(result.violated)) == (known.requests, known.violated)
        assert sum(result.gpu_hours) == pytest.approx(known.gpu_hours, rel=1e-12)


def test_days_are_those_of_the_trace_and_gaps_are_left_out() -> None:
    scenario = step(window={"start_seconds": 86_000, "duration_seconds": 1000}, score_from_seconds=100.0)
    setup = replace(prepare(scenario, 0).setup, gaps=((350.0, 420.0), (900.0, 1000.0)))
    assert list(scored_spans(scenario, setup)) == [(0, [(100.0, 350.0)]), (1, [(420.0, 900.0)])]


def test_two_days_add_up_to_the_whole() -> None:
    scenario = step(window={"start_seconds": 86_200, "duration_seconds": 400})
    whole = step()
    policy = HpaSettings(target=5.0)
    split = run_cell(Cell(scenario=scenario, policy=policy, seed=0))
    assert split.days == (0, 1)
    known = metrics(play(prepare(scenario, 0), policy))
    assert sum(split.violated) == known.violated
    assert sum(split.gpu_hours) == pytest.approx(known.gpu_hours, rel=1e-12)
    assert len(run_cell(Cell(scenario=whole, policy=policy, seed=0)).days) == 1


def test_the_key_changes_with_everything_that_counts_and_with_nothing_else(tmp_path: Path) -> None:
    cell = Cell(scenario=step(), policy=HpaSettings(target=5.0), seed=0)
    same = [
        replace(cell, scenario=step(name="another name")),
        replace(cell, scenario=step(seeds=[4, 5])),
        replace(cell, scenario=step(policies=[{"kind": "kpa"}])),
        replace(cell, policy=HpaSettings(target=5.0, name="label")),
    ]
    other = [
        replace(cell, seed=1),
        replace(cell, engine="fluid"),
        replace(cell, policy=HpaSettings(target=5.5)),
        replace(cell, policy=StaticSettings(replicas=5)),
        replace(cell, scenario=step(slo={"ttft_seconds": 2.0})),
        replace(cell, scenario=step(window={"duration_seconds": 401})),
        replace(cell, scenario=step(startup={"profile": "warm_node_remote"})),
    ]
    assert {key(c) for c in same} == {key(cell)}
    keys = {key(c) for c in other}
    assert len(keys) == len(other)
    assert key(cell) not in keys


def test_the_key_follows_the_bytes_of_a_trace_and_not_its_place(tmp_path: Path) -> None:
    rows = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i}.0,100,20\n" for i in range(300))

    def told(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        data = {**STEP, "traffic": {"kind": "trace", "trace": name}, "window": {"duration_seconds": 200}}
        return key(Cell(scenario=scenario_from(data, tmp_path), policy=StaticSettings(replicas=1), seed=0))

    assert told("a.csv", rows) == told("b.csv", rows)
    assert told("a.csv", rows) != told("c.csv", rows.replace("5.0,100", "5.0,101"))


def test_the_source_that_decides_counts_and_that_which_shows_does_not(tmp_path: Path) -> None:
    package = tmp_path / "load_tests"
    package.mkdir()
    (package / "kernel.py").write_text("a = 1\n")
    (package / "report_data.py").write_text("a = 1\n")
    first = source_hash((package,))
    (package / "report_data.py").write_text("a = 2\n")
    assert source_hash((package,)) == first
    (package / "kernel.py").write_text("a = 2\n")
    assert source_hash((package,)) != first


def test_a_change_of_our_policies_leaves_what_others_came_to(tmp_path: Path) -> None:
    package = tmp_path / "autoscaler"
    package.mkdir()
    (package / "step.py").write_text("a = 1\n")
    (package / "units.py").write_text("a = 1\n")
    first = source_hash((package,), ours=False)
    (package / "step.py").write_text("a = 2\n")
    assert source_hash((package,), ours=False) == first
    (package / "units.py").write_text("a = 2\n")
    assert source_hash((package,), ours=False) != first


def test_a_surge_is_a_minute_that_nobody_could_have_started_replicas_for() -> None:
    """Ten a minute for two hours, then forty: at a start-up of two minutes, forty is new for three minutes."""
    per_minute = np.array([10] * 120 + [40] * 30 + [14] * 30)
    arrival = np.concatenate([60.0 * m + np.linspace(0, 59, n) for m, n in enumerate(per_minute)])
    inside = surges(arrival, 60.0 * len(per_minute), 120.0)
    minutes = set((arrival[inside] // 60).astype(int).tolist())
    assert minutes == {120, 121, 122}
    assert set((arrival[surges(arrival, 60.0 * len(per_minute), 600.0)] // 60).astype(int).tolist()) == set(
        range(120, 131)
    )
    assert not surges(arrival[:100], 600.0, 120.0).any()


def test_requests_in_surges_are_counted_apart() -> None:
    result = run_cell(Cell(scenario=step(), policy=StaticSettings(replicas=1), seed=0))
    assert len(result.surged) == len(result.days) == len(result.surged_violated)
    assert all(late <= some for late, some in zip(result.surged_violated, result.surged, strict=True))
    assert CellResult.from_json(result.to_json()) == result


def called(cell: Cell) -> set[str]:
    """Files of this project whose functions are called while a cell runs."""
    root = Path(policy_bench_cells.__file__).parents[1]
    found: set[str] = set()

    def note(frame: Any, event: str, _argument: Any) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    policy_bench_cells._KEPT.clear()  # the traffic is prepared under the same eyes
    sys.setprofile(note)
    try:
        run_cell(cell)
    finally:
        sys.setprofile(None)
    return {Path(f).relative_to(root).as_posix() for f in found if Path(f).is_relative_to(root)}


def test_nobody_else_runs_our_decision_core() -> None:
    """What the key of a peer's cell leaves out is never called for it; ours does call it."""
    known = peers(Capacity(requests_per_second=5.0, mean_prompt_tokens=300.0, mean_output_tokens=60.0))
    run_cell(Cell(scenario=step(), policy=StaticSettings(replicas=1), seed=0))  # compiled and imported
    for policy in known:
        files = called(Cell(scenario=step(), policy=policy, seed=0))
        assert not {f for f in files if is_ours(f)}, policy
        assert any(f.startswith("load_tests/peers") for f in files)
    assert {f for f in called(Cell(scenario=step(), policy=PoolPolicy(), seed=0)) if is_ours(f)}


def test_finished_cells_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, asked = Cache(tmp_path / "cache"), cells()
    first = run_cells(asked[:5], cache=cache)
    ran: list[Cell] = []

    def counting(cell: Cell) -> CellResult:
        ran.append(cell)
        return run_cell(cell)

    monkeypatch.setattr(policy_bench_run, "run_cell", counting)
    again = run_cells(asked, cache=cache)
    assert len(ran) == len(asked) - 5
    assert again[:5] == first
    assert numbers(again) == numbers(run_cells(asked))


def test_what_was_finished_before_a_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache")
    monkeypatch.setattr(policy_bench_run, "BATCH", 1)

    def failing(cell: Cell) -> CellResult:
        if isinstance(cell.policy, StaticSettings):
            raise RuntimeError("no more")
        return run_cell(cell)

    monkeypatch.setattr(policy_bench_run, "run_cell", failing)
    with pytest.raises(RuntimeError, match="no more"):
        run_cells(cells(), cache=cache)
    assert [cache.get(key(c)) is not None for c in cells()[:4]] == [True, True, True, False]


@pytest.mark.parametrize("damage", ["", "{", '{"key": 1, "result": {}}', "[]", "null"])
def test_a_damaged_file_counts_as_none(tmp_path: Path, damage: str) -> None:
    cache, cell = Cache(tmp_path), cells()[1]
    (result,) = run_cells([cell], cache=cache)
    assert cache.get(key(cell)) == result
    cache.path(key(cell)).write_text(damage)
    assert cache.get(key(cell)) is None
    assert numbers(run_cells([cell], cache=cache)) == numbers([result])
    assert not list(tmp_path.rglob("*.part"))


def test_every_digit_survives_the_file(tmp_path: Path) -> None:
    result = CellResult(
        days=(3,), gpu_hours=(float(np.nextafter(0.1, 1)),), arrived=(7,), violated=(0,), wall_seconds=1.5
    )
    cache = Cache(tmp_path)
    cache.put("ab" * 32, result)
    assert cache.get("ab" * 32) == result
    assert CellResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_batches_hold_one_world_each_and_every_cell_once() -> None:
    todo = {key(c): c for c in cells()}
    made = list(batches(todo))
    assert sorted(name for batch in made for name, _ in batch) == sorted(todo)
    assert all(len({c.world for _, c in batch}) == 1 for batch in made)


def test_equal_cells_are_run_once_and_answered_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cells()[3]
    first, second = run_cells([cell, replace(cell, scenario=step(name="twin"))])
    assert first is second


def test_progress_is_told_up_to_the_end() -> None:
    told: list[tuple[str, float]] = []
    run_cells(cells()[2:4], progress=lambda what, share: told.append((what, share)))
    assert told[0][1] == 0.0
    assert told[-1] == ("2 of 2 runs, 0 known", 1.0)


@dataclass(frozen=True)
class Fixed:
    """A law from outside."""

    headroom: float = 1.0
    name: str = "fixed from outside"

    def peer(self, facts: PeerFacts) -> Static:
        return Static(StaticSettings(replicas=max(1, round(2 * self.headroom))))


def test_a_law_from_outside_is_run_and_known_by_its_settings_and_source() -> None:
    own = Cell(scenario=step(), policy=Fixed(), seed=0)
    same = run_cell(Cell(scenario=step(), policy=HpaSettings(target=1e9), seed=0))
    assert run_cell(own).arrived == same.arrived
    assert run_cell(own).gpu_hours[0] > same.gpu_hours[0]
    assert key(own) == key(replace(own, policy=Fixed(name="label")))
    assert key(own) != key(replace(own, policy=Fixed(headroom=2.0)))
    spelled: dict[str, Any] = {"Fixed": Fixed, "dataclass": dataclass}
    exec("@dataclass(frozen=True)\nclass Other(Fixed):\n    pass", spelled)
    assert key(replace(own, policy=spelled["Other"]())) not in (key(own), key(replace(own, policy=Fixed(headroom=2.0))))


def test_a_worker_with_other_source_is_refused() -> None:
    batch = [(key(c), c) for c in cells()[3:4]]
    assert len(run_batch(batch, runs_on(ours=True))) == 1
    with pytest.raises(ConfigError, match="differ in source"):
        run_batch(batch, {**runs_on(ours=True), "source": "another"})


def test_processes_give_the_same_digits() -> None:
    pytest.importorskip("joblib")
    assert numbers(run_cells(cells(), backend="loky", jobs=2)) == numbers(run_cells(cells()))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ray", "dask"])
@pytest.mark.filterwarnings("default")
def test_clusters_give_the_same_digits(backend: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray" if backend == "ray" else "distributed", reason=f"pip install 'replicast[{backend}]'")
    cache = Cache(tmp_path)
    assert numbers(run_cells(cells(), backend=backend, jobs=2, cache=cache)) == numbers(run_cells(cells()))
    assert all(cache.get(key(c)) for c in cells())


def test_the_fluid_twin_meets_the_same_requests_and_comes_near() -> None:
    for policy in (HpaSettings(target=5.0), StaticSettings(replicas=2)):
        plant, fluid = (run_cell(Cell(scenario=step(), policy=policy, seed=0, engine=e)) for e in ("plant", "fluid"))
        assert fluid.arrived == plant.arrived
        assert fluid.gpu_hours[0] == pytest.approx(plant.gpu_hours[0], rel=0.15)
        assert fluid.violated[0] / fluid.arrived[0] == pytest.approx(plant.violated[0] / plant.arrived[0], abs=0.1)


def test_the_engines_are_the_plant_and_its_twin() -> None:
    assert set(policy_bench_cells.ENGINES) == {"plant", "fluid"}
