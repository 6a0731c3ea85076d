"""Start-ups: stage totals, the shared store's figures, and that policies see the same k-th start."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from load_tests.births import Births, StartupModel
from serving.profiles import StageSeconds, startup_profile

SIZES = {"8b": (16.1, 32), "32b": (65.5, 64), "70b": (141.0, 80)}


def model(profile: str, size: str = "8b", *, spread: bool = True, **options: float) -> StartupModel:
    weights, layers = SIZES[size]
    made = StartupModel.of(startup_profile(profile), weights_gb=weights, layers=layers, **options)  # type: ignore[arg-type]
    return made if spread else replace(made, stages=tuple(replace(s, sigma=0.0) for s in made.stages))


def readers(count: int, gigabytes: float, client: float, store: float) -> list[float]:
    """Reading times of `count` replicas that begin at once."""
    stage = StageSeconds(name="weights", seconds=gigabytes / client, sigma=0.0, of_node=False, weights_gb=gigabytes)
    births = Births(StartupModel(stages=(stage,), store_gb_per_second=store), "pool", 0)
    for _ in range(count):
        births.order(0.0)
    return [at for at, _ in births.ready(math.inf)]


@pytest.mark.parametrize(
    ("profile", "totals"),
    [
        ("cold_node_remote", (471, 689, 998)),
        ("cold_node_optimised", (397, 421, 448)),
        ("warm_node_remote", (106, 324, 633)),
        ("warm_node_local", (38, 78, 132)),
    ],
)
def test_stage_totals(profile: str, totals: tuple[int, ...]) -> None:
    for size, expected in zip(SIZES, totals, strict=True):
        made = model(profile, size, spread=False)
        births = Births(made, "pool", 0)
        births.order(100.0)
        [(at, ordinal)] = births.ready(math.inf)
        assert ordinal == 0
        assert at - 100.0 == pytest.approx(made.median_seconds, abs=1e-9)
        assert at - 100.0 == pytest.approx(expected, abs=1.5)


def test_the_spread_is_around_the_total() -> None:
    made = model("warm_node_remote")
    births = Births(made, "pool", 3)
    for _ in range(400):
        births.order(0.0)
    lengths = [at for at, _ in births.ready(math.inf)]
    assert median(lengths) == pytest.approx(106, rel=0.03)
    assert min(lengths) < 95
    assert max(lengths) > 120


@pytest.mark.parametrize(
    ("count", "gigabytes", "client", "store", "seconds"),
    [
        (1, 16.1, 0.26, 5, 62),
        (10, 16.1, 0.26, 5, 62),
        (50, 16.1, 0.26, 5, 161),
        (1, 141, 5, 5, 28),
        (10, 141, 5, 5, 282),
    ],
)
def test_shared_bandwidth(count: int, gigabytes: float, client: float, store: float, seconds: float) -> None:
    times = readers(count, gigabytes, client, store)
    assert len(times) == count
    assert max(times) - min(times) < 1e-6
    assert times[0] == pytest.approx(seconds, abs=0.5)


def test_a_late_reader_slows_the_first_and_is_slowed() -> None:
    # 10 GB at 1 GB/s from a store of 1 GB/s: alone for 4 s (6 GB left), then half speed each.
    stage = StageSeconds(name="weights", seconds=10.0, sigma=0.0, of_node=False, weights_gb=10.0)
    births = Births(StartupModel(stages=(stage,), store_gb_per_second=1.0), "pool", 0)
    births.order(0.0)
    assert births.next_ready_seconds() == 10.0
    births.order(4.0)
    assert births.next_ready_seconds() == 16.0
    assert births.ready(16.0) == [(16.0, 0)]
    assert births.starting == (1,)
    assert births.ready(30.0) == [(20.0, 1)]  # 6 GB by 16 s, the last 4 alone
    assert births.next_ready_seconds() == math.inf


def test_cancel_frees_the_store() -> None:
    stage = StageSeconds(name="weights", seconds=10.0, sigma=0.0, of_node=False, weights_gb=10.0)
    births = Births(StartupModel(stages=(stage,), store_gb_per_second=1.0), "pool", 0)
    first, second = births.order(0.0), births.order(0.0)
    births.cancel(second, 4.0)
    assert births.starting == (first,)
    assert births.ready(math.inf) == [(12.0, first)]
    with pytest.raises(ValueError, match="start 0 is not in flight"):
        births.cancel(first)


def test_the_kth_start_is_the_same_for_two_policies() -> None:
    def lengths(order_at: list[float], pool: str = "pool", seed: int = 7) -> list[float]:
        births = Births(model("warm_node_remote"), pool, seed)
        begun = {births.order(at): at for at in order_at}
        return [at - begun[k] for at, k in sorted(births.ready(math.inf), key=lambda pair: pair[1])]

    early, late = lengths([0.0, 10.0, 20.0]), lengths([500.0, 500.0, 9000.0])
    assert early == pytest.approx(late, abs=1e-6)
    assert len(set(early)) == 3
    assert lengths([0.0, 10.0, 20.0], seed=8) != pytest.approx(early)
    assert lengths([0.0, 10.0, 20.0], pool="other") != pytest.approx(early)


def test_factor_stretches_starts_ordered_from_then_on() -> None:
    def one(factor: float) -> float:
        births = Births(model("cold_node_remote"), "pool", 1)
        births.factor = factor
        births.order(0.0)
        return births.next_ready_seconds()

    assert one(3.0) == pytest.approx(3 * one(1.0))


def test_failures() -> None:
    births = Births(model("warm_node_local"), "pool", 5, failure_fraction=0.1)
    for _ in range(500):
        births.order(0.0)
    ended = births.ended(math.inf)
    failed = [k for _, k, bad in ended if bad]
    assert len(ended) == 500
    assert 30 <= len(failed) <= 70
    assert births.starting == ()
    again = Births(model("warm_node_local"), "pool", 5, failure_fraction=0.1)
    for _ in range(500):
        again.order(0.0)
    assert [k for _, k in again.ready(math.inf)] == [k for _, k, bad in ended if not bad]


def test_a_shortage_makes_starts_wait() -> None:
    made = model("warm_node_local", spread=False)
    births = Births(made, "pool", 0)
    births.shortage(0.0, True)
    waiting = births.order(5.0)
    assert births.starting == (waiting,)
    assert births.next_ready_seconds() == math.inf
    assert births.expected_ready_seconds(waiting, 50.0) == pytest.approx(50.0 + made.median_seconds)
    births.shortage(100.0, False)
    assert births.next_ready_seconds() == pytest.approx(100.0 + made.median_seconds)


def test_replicas_on_one_node_share_its_stages() -> None:
    births = Births(model("cold_node_optimised", replicas_per_node=2), "pool", 2)
    alone = Births(model("cold_node_optimised", replicas_per_node=1), "pool", 2)
    for at in (0.0, 60.0, 60.0):
        births.order(at)
        alone.order(at)
    nodes = {k: births._births[k].before[2] for k in range(3)}
    assert nodes[0] == nodes[1] != nodes[2]
    assert alone._births[1].before[2] != alone._births[0].before[2]


def test_what_a_controller_could_expect() -> None:
    made = model("warm_node_remote", spread=False)  # container 5 s, bootstrap 10.2 s, weights 61.9 s, ...
    births = Births(made, "pool", 0, factor=2.0)
    births.order(0.0)
    assert births.expected_ready_seconds(0) == pytest.approx(made.median_seconds)
    # The container took twice as long as its median: from 5 s on it is expected to end now.
    assert births.expected_ready_seconds(0, 8.0) == pytest.approx(made.median_seconds + 3.0)
    # It ended at 10 s; the bootstrap's median is left.
    assert births.expected_ready_seconds(0, 11.0) == pytest.approx(made.median_seconds + 5.0)
    [(end, _)] = births.ready(math.inf)
    assert end == pytest.approx(2 * made.median_seconds)


@settings(max_examples=60)
@given(
    waits=st.lists(st.floats(0, 200), min_size=1, max_size=20),
    ticks=st.lists(st.floats(0.1, 50), max_size=30),
    seed=st.integers(0, 99),
)
def test_asking_often_changes_nothing(waits: list[float], ticks: list[float], seed: int) -> None:
    made = model("cold_node_optimised", "70b", store_gb_per_second=6.0)
    quiet, asked = Births(made, "pool", seed), Births(made, "pool", seed)
    now, heard = 0.0, []
    for i, wait in enumerate(waits):
        if i < len(ticks):
            middle = now + wait * min(1.0, ticks[i] / 50)
            asked.next_ready_seconds()
            heard += asked.ended(middle)
        now += wait
        quiet.order(now)
        asked.order(now)
        for ordinal in asked.starting:
            assert asked.expected_ready_seconds(ordinal) >= now
    heard += asked.ended(math.inf)
    assert sorted(heard) == heard
    assert heard == quiet.ended(math.inf)
    assert [k for _, k, _ in sorted(heard, key=lambda e: e[1])] == list(range(len(waits)))


@settings(max_examples=40)
@given(starts=st.lists(st.floats(0, 30), min_size=1, max_size=8), client=st.floats(0.5, 5), store=st.floats(0.5, 8))
def test_the_store_against_small_steps(starts: list[float], client: float, store: float) -> None:
    stage = StageSeconds(name="weights", seconds=20 / client, sigma=0.0, of_node=False, weights_gb=20.0)
    births = Births(StartupModel(stages=(stage,), store_gb_per_second=store), "pool", 0)
    begun = sorted(starts)
    for at in begun:
        births.order(at)
    exact = {k: at for at, k in births.ready(math.inf)}
    step, now = 0.01, 0.0
    left = dict.fromkeys(range(len(begun)), 20.0)
    ends: dict[int, float] = {}
    while len(ends) < len(begun):
        active = [k for k, at in enumerate(begun) if at <= now and k not in ends]
        for k in active:
            left[k] -= step * min(client, store / len(active))
            if left[k] <= 0:
                ends[k] = now + step
        now += step
    for k, end in ends.items():
        assert exact[k] == pytest.approx(end, abs=0.3)


def test_time_does_not_run_back() -> None:
    births = Births(model("warm_node_local"), "pool", 0)
    births.order(10.0)
    with pytest.raises(ValueError, match=r"9.0 s is before 10.0 s"):
        births.order(9.0)
