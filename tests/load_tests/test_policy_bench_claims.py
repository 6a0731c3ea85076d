"""Claims: what is searched, how days and seeds are joined, and that a row that is missed is told as missed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench_world import step

from autoscaler.errors import ConfigError
from load_tests.policy_bench import bench_policy
from load_tests.policy_bench_cells import Cell, CellResult
from load_tests.policy_bench_claims import Row, Searched, by_day, claim_rows, near_best, run_row, search
from load_tests.policy_bench_claims_table import attained, lines, shipped, to_json
from load_tests.policy_bench_claims_table import near_best as held_near
from load_tests.policy_bench_grid import Capacity, Stretch, grid
from load_tests.scenario import PoolPolicy
from load_tests.shapes import DAY

CAPACITY = Capacity(requests_per_second=5.0, mean_prompt_tokens=300.0, mean_output_tokens=60.0)


def row(trace: str = "somewhere", start: str = "start 10 s", **changes: Any) -> Row:
    known = grid()
    line = next(one for one in known.startups if one.name == start)
    claims = replace(known.claims, **changes)
    return Row(trace=trace, line=line, scenario=step(), capacity=CAPACITY, first_day=7, claims=claims)


class World:
    """Answers without a simulation: a cost per headroom for each law, and violations that fall tenfold per headroom doubled."""

    def __init__(self, ours: float, violated: float, **base: float) -> None:
        self.ours, self.violated, self.base, self.ran = ours, violated, base, list[Cell]()

    def __call__(self, cells: Sequence[Cell]) -> list[CellResult | None]:
        self.ran += cells
        return [self.result(cell) for cell in cells]

    def result(self, cell: Cell) -> CellResult | None:
        first = round((cell.scenario.window.start_seconds + cell.scenario.score_from_seconds) / DAY)
        count = round(cell.scenario.window.duration_seconds / DAY)  # type: ignore[operator]
        days = tuple(range(first, first + max(1, count)))
        if isinstance(cell.policy, PoolPolicy):
            cost, share = self.ours, self.violated
        else:
            kind = cell.policy.kind  # type: ignore[union-attr]
            headroom = cell.policy.headroom  # type: ignore[union-attr]
            cost, share = self.base.get(kind, 1000.0) * headroom**0.5, 0.02 * headroom**-2.0
        return CellResult(
            days=days,
            gpu_hours=(cost,) * len(days),
            arrived=(100_000,) * len(days),
            violated=(round(100_000 * min(1.0, share)),) * len(days),
            wall_seconds=1.0,
            surged=(1000,) * len(days),
            surged_violated=(100,) * len(days),
        )


@pytest.fixture(autouse=True)
def whole_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches begin on their day: without the hour before it."""

    def exact(self: Row, one: Stretch) -> Any:
        window = replace(
            self.scenario.window,
            start_seconds=(self.first_day + one.first_day) * DAY,
            duration_seconds=one.days * DAY,
        )
        return replace(self.scenario, window=window, score_from_seconds=0.0)

    monkeypatch.setattr(Row, "stretch", exact)


def test_the_stretches_of_the_grid_cover_seven_days_under_two_seeds_each_and_five_in_all() -> None:
    claims = grid().claims
    whole = claims.stretches[0]
    days = [day for one in claims.stretches[1:] for day in range(one.first_day, one.first_day + one.days)]
    assert (whole.first_day, whole.days) == (0, 7)
    assert set(days) == set(range(7))
    assert len({one.seed for one in claims.stretches}) >= 5
    assert claims.screen > 0


def test_a_day_is_the_mean_of_its_seeds() -> None:
    one = CellResult(days=(7, 8), gpu_hours=(10.0, 20.0), arrived=(100, 200), violated=(1, 2), wall_seconds=1.0)
    other = CellResult(
        days=(8,),
        gpu_hours=(30.0,),
        arrived=(220,),
        violated=(6,),
        wall_seconds=1.0,
        surged=(10,),
        surged_violated=(4,),
    )
    assert by_day([one, other]).tolist() == [[10.0, 100.0, 1.0, 0.0, 0.0], [25.0, 210.0, 4.0, 5.0, 2.0]]


def test_a_search_ends_between_neighbours_that_enclose_what_is_wanted() -> None:
    here, world = row(), World(ours=1.0, violated=0.01)
    peer = here.contenders()[2]
    found = search(world, here, peer, here.claims.stretches[:1], [0], [0.01, 0.002])
    for wanted in (0.01, 0.002):
        ends = found.ends(wanted)
        assert abs(ends[0] - ends[1]) == 1
    # 2 % at a headroom of 1 and a tenth of it at 3.2: half of it at the root of 2.
    assert found.cost(0.01) == pytest.approx(7 * 1000 * 2**0.25, rel=0.01)
    assert found.cost(1e-9) is None


def test_what_is_dearer_than_the_best_by_far_is_searched_no_further() -> None:
    here, world = row(), World(ours=1.0, violated=0.01)
    peer = here.contenders()[2]
    found = search(world, here, peer, here.claims.stretches[:1], [0], [0.01], dearest=100.0)
    assert len(found.found) == 1
    assert found.cost(0.01) is None


def test_two_peers_are_run_on_all_days_and_a_third_only_beside_the_best() -> None:
    def kept(third: float) -> list[str]:
        here = row(near=1.03)
        costs = {"a": 100.0, "b": 109.0, "c": third, "d": third + 1, "e": 500.0}

        class Known(Searched):
            def cost(self, share: float) -> float | None:
                return costs[self.contender.name]

        some = here.contenders()[:1] * 5
        made = {name: Known(contender=replace(c, name=name)) for name, c in zip(costs, some, strict=True)}
        return [one.contender.name for one in near_best(here, made)]

    assert kept(120.0) == ["a", "b"]
    assert kept(110.0) == ["a", "b"]
    assert kept(102.5) == ["a", "c"]  # d is at 103.5
    assert kept(101.0) == ["a", "c", "d"]


def test_a_row_that_misses_says_so_and_one_that_holds_does_too() -> None:
    here = row(rows=())
    dear = run_row(World(ours=1500.0, violated=0.01, lcp=900.0), here, {})
    cheap = run_row(World(ours=900.0, violated=0.01, lcp=900.0), here, {})
    off = run_row(World(ours=900.0, violated=0.02, lcp=900.0), here, {})
    assert dear is not None
    assert cheap is not None
    assert off is not None
    assert (held_near(dear), held_near(cheap)) == (False, True)
    assert (attained(cheap)[2], attained(off)[2]) == (True, False)
    name, found = dear.best() or ("", None)
    assert name == "lcp"
    assert found is not None
    assert found.value == pytest.approx(1500 / (900 * 2**0.25), rel=0.01)
    text = "\n".join(lines([dear, off]))
    told = {line.split(" | ")[0]: line for line in text.splitlines()}
    assert "somewhere (1.399)" in told["| GPU-hours <= 1.03 of the best peer in hindsight, start 10 s"]
    assert "somewhere, 10 s (98.0" in told["| attained 99.00 ± 0.2 %, starts to 180 s, need >= 5"]
    plain = json.loads(json.dumps(to_json([dear, off])))
    assert [(one["attained_held"], one["near_best"]) for one in plain] == [(True, False), (False, True)]


def test_small_pools_and_long_starts_are_held_outside_surges() -> None:
    small = run_row(World(ours=900.0, violated=0.0025), row("rate_nab_nyctaxi"), {})
    slow = run_row(World(ours=900.0, violated=0.03), row(start="start 600 s"), {})
    assert small is not None
    assert slow is not None
    assert attained(small) == (False, pytest.approx(1 - 150 / 99_000), True)
    assert attained(slow) == (False, pytest.approx(1 - 2900 / 99_000), False)
    assert small.outside_surges[1] == pytest.approx(0.01)


def test_a_peer_as_shipped_that_misses_the_target_is_no_goal() -> None:
    result = run_row(World(ours=700.0, violated=0.01, lcp=900.0), row(), {})
    assert result is not None
    told = {name: held for name, _, _, held in shipped(result)}
    assert set(told.values()) == {None}  # all violate 2 % as shipped


def test_a_row_without_ours_is_none() -> None:
    assert run_row(lambda cells: [None] * len(cells), row(), {}) is None


def test_rows_follow_the_grid_and_a_rehearsal_lies_in_the_train_days(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    known = grid()
    short = replace(known, claims=replace(known.claims, rows=known.claims.rows[1:2]))
    tested, trained = list(claim_rows(short)), list(claim_rows(short, train=True))
    assert [one.line.name for one in tested] == list(known.claims.rows[1].startups)
    assert [one.first_day for one in tested] == [14, 14]
    assert [one.first_day for one in trained] == [7, 7]
    window = tested[0].stretch(known.claims.stretches[2]).window
    assert (window.start_seconds, window.duration_seconds) == (16 * DAY - 3600, 2 * DAY + 3600)
    medians = np.array([one.scenario.startup.factor for one in tested])
    assert (medians > 0).all()


def test_claims_take_no_other_choice() -> None:
    with pytest.raises(ConfigError, match="--claims"):
        bench_policy([], claims=True, quick=True)
