"""Pools that share something: a ratio, a quota.  Ten requests per second a replica, no forecast."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_pools import plain_autoscaler

from autoscaler import Pool, step_group
from autoscaler.coupling import Member, ratio, spares
from autoscaler.errors import ConfigError
from autoscaler.log import StepLog, verify
from autoscaler.schema import build
from autoscaler.settings import PoolSettings
from autoscaler.testing import FixedCapacity, NoForecast, observation
from autoscaler.types import Capacity, Demand, Lengths, Observation, Replicas, Step
from autoscaler.views import reason_text


def turn(pools: dict[str, dict[str, Any]], seen: dict[str, dict[str, Any]], at: int = 10) -> dict[str, Step]:
    deciders = [plain_autoscaler(**{**section, "name": name}) for name, section in pools.items()]
    looks = []
    for name, look in seen.items():
        spare = look.pop("spare_replicas", None)
        here = observation(name, at, **look)
        looks.append(Observation(**{f: getattr(here, f) for f in here.__slots__} | {"spare_replicas": spare}))
    steps = step_group(deciders, [d.start() for d in deciders], looks)
    return {step.decision.pool: step for step, _ in steps}


PREFILL = {"limits": {"max_replicas": 50, "ratio": {"to": "decode", "replicas_per_replica": 0.5}}}


@pytest.mark.parametrize(
    ("prefill", "decode", "both"),
    [(9.0, 95.0, (5, 10)), (38.0, 9.0, (4, 7)), (19.0, 38.0, (2, 4)), (0.0, 0.0, (1, 1))],
)
def test_the_larger_side_wins_and_both_are_ordered_in_one_tick(
    prefill: float, decode: float, both: tuple[int, int]
) -> None:
    seen: dict[str, dict[str, Any]] = {
        "prefill": {"replicas": 1, "requests_per_second": prefill},
        "decode": {"replicas": 1, "requests_per_second": decode},
    }
    steps = turn({"prefill": PREFILL, "decode": {}}, seen)
    assert (steps["prefill"].decision.replicas, steps["decode"].decision.replicas) == both


def test_the_ratio_says_what_it_followed() -> None:
    steps = turn(
        {"prefill": PREFILL, "decode": {}},
        {"prefill": {"requests_per_second": 9.0}, "decode": {"requests_per_second": 95.0}},
    )
    reason = steps["prefill"].decision.reasons[-1]
    assert (reason.rule, reason.before, reason.after) == ("ratio", 1, 5)
    assert reason_text(reason) == "pool decode has 10, and 0.5 are wanted here for each there"


def test_a_side_at_its_maximum_pulls_no_further() -> None:
    seen: dict[str, dict[str, Any]] = {"prefill": {"requests_per_second": 9.0}, "decode": {"requests_per_second": 95.0}}
    narrow = {"limits": {"max_replicas": 3, "ratio": {"to": "prefill", "replicas_per_replica": 2.0}}}
    steps = turn({"prefill": {}, "decode": narrow}, seen)
    assert (steps["prefill"].decision.replicas, steps["decode"].decision.replicas) == (2, 3)


def test_embedded_pools_decide_together() -> None:
    pools = [
        Pool(plain_autoscaler(**{**section, "name": name})) for name, section in (("prefill", PREFILL), ("decode", {}))
    ]
    looks = [observation(p.settings.name, 10, requests_per_second=r) for p, r in zip(pools, (9.0, 95.0), strict=True)]
    assert [d.replicas for d in Pool.step_together(pools, looks)] == [5, 10]
    assert pools[0].last_step is not None
    assert pools[0].last_step.decision.replicas == 5
    with pytest.raises(ConfigError, match="observation.pool"):
        Pool.step_together(pools, [observation(n, 20) for n in ("decode", "prefill")])
    assert pools[0].last_step.decision.at_seconds == 10


def test_a_pool_alone_has_no_ratio_to_keep() -> None:
    pool = Pool(plain_autoscaler(**PREFILL))
    assert pool.step(observation("p", 10, requests_per_second=9.0)).replicas == 1


def test_a_group_of_uncoupled_pools_decides_as_each_alone() -> None:
    pools: dict[str, dict[str, Any]] = {"a": {}, "b": {"limits": {"max_replicas": 3}}}
    seen: dict[str, dict[str, Any]] = {"a": {"requests_per_second": 55.0}, "b": {"requests_per_second": 95.0}}
    together = turn(pools, {k: dict(v) for k, v in seen.items()})
    for name in pools:
        alone = plain_autoscaler(**{**pools[name], "name": name})
        step, _ = alone.step(alone.start(), observation(name, 10, **seen[name]))
        assert together[name].to_json() == step.to_json()


def test_a_pool_that_has_decided_at_this_instant_keeps_its_step() -> None:
    deciders = [plain_autoscaler(name=n) for n in ("a", "b")]
    looks = [observation(n, 10, requests_per_second=30.0) for n in ("a", "b")]
    first, memory = deciders[0].step(deciders[0].start(), looks[0])
    steps = step_group(deciders, [memory, deciders[1].start()], looks)
    assert steps[0] == (first, memory)
    assert steps[1][0].decision.replicas == 4


def member(name: str, wanted: int, desired: int = 0, spare: int | None = None, **section: Any) -> Member:
    settings = build(PoolSettings, {"name": name, **section})
    look = Observation(
        pool=name, at_seconds=0, window_seconds=10, replicas=Replicas(desired=desired, ready=desired),
        spare_replicas=spare,
    )  # fmt: skip
    return Member(settings=settings, observation=look, wanted=wanted)


def shared(gpus: float | None = None, size: float = 1.0) -> dict[str, Any]:
    quota = {"name": "h100"} if gpus is None else {"name": "h100", "gpus": gpus}
    return {"limits": {"quota": quota}, "target": {"name": "x", "gpus_per_replica": size}}


def test_what_a_quota_has_is_split_by_need() -> None:
    assert spares([member("a", 9, 3, spare=4, **shared()), member("b", 5, 3, spare=4, **shared())]) == [3, 1]
    assert spares([member("a", 9, 3, **shared(10)), member("b", 5, 3, **shared(10))]) == [3, 1]
    # Replicas of two GPUs each: six free GPUs are three replicas.
    assert spares([member("a", 9, 3, **shared(18, 2)), member("b", 5, 3, **shared(18, 2))]) == [2, 1]
    # Fractions: a replica of half a GPU.
    assert spares([member("a", 9, 0, **shared(2, 0.5))]) == [4]


def test_who_has_nothing_comes_first() -> None:
    assert spares([member("a", 30, 3, spare=1, **shared()), member("b", 1, 0, spare=1, **shared())]) == [0, 1]


def test_what_suffices_is_given_and_other_pools_are_left_alone() -> None:
    found = spares([member("a", 4, 3, **shared(10)), member("b", 4, 3, **shared(10)), member("c", 9, 3, spare=2)])
    assert found[2] == 2
    assert found[:2] == [1, 1]
    assert spares([member("a", 9, 3, **shared())]) == [None]


def test_a_shared_quota_in_a_step() -> None:
    pools = {n: {"limits": {"max_replicas": 50, "quota": {"name": "q", "gpus": 8}}} for n in ("a", "b")}
    seen: dict[str, dict[str, Any]] = {
        "a": {"replicas": 2, "requests_per_second": 76.0},
        "b": {"replicas": 2, "requests_per_second": 38.0},
    }
    steps = turn(pools, seen)
    assert {n: s.decision.replicas for n, s in steps.items()} == {"a": 5, "b": 3}
    assert steps["a"].decision.reasons[-1].rule == "spare"


@given(
    wants=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.sampled_from([0.5, 1.0, 4.0])), min_size=1, max_size=5),
    gpus=st.integers(1, 60),
)  # fmt: skip
def test_a_quota_is_never_exceeded_nor_left_over(wants: list[tuple[int, int, float]], gpus: int) -> None:
    members = [member(f"p{i}", w, d, **shared(float(gpus), s)) for i, (w, d, s) in enumerate(wants)]
    granted = [g for g in spares(members) if g is not None]
    growth = [max(0, w - d) for w, d, _ in wants]
    ordered = [min(g, more) for g, more in zip(granted, growth, strict=True)]
    free = max(0.0, gpus - math.fsum(d * s for _, d, s in wants))
    used = math.fsum(n * s for n, (_, _, s) in zip(ordered, wants, strict=True))
    assert used <= free + 1e-9
    assert all(n == more or s > free - used - 1e-9 for n, more, (_, _, s) in zip(ordered, growth, wants, strict=True))


@given(prefill=st.integers(0, 40), decode=st.integers(0, 40), share=st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0]))
def test_the_ratio_only_raises_and_settles_at_once(prefill: int, decode: int, share: float) -> None:
    limits = {"limits": {"ratio": {"to": "d", "replicas_per_replica": share}}}

    def settled(p: int, d: int) -> tuple[int, int]:
        found = ratio([member("p", p, **limits), member("d", d)])
        return found[0].after if found[0] else p, found[1].after if found[1] else d

    p, d = settled(prefill, decode)
    assert p >= prefill
    assert d >= decode
    assert p == prefill or d == decode or p < prefill + share  # one more where shares round up
    assert p >= share * d - 1e-9
    assert settled(p, d) == (p, d)


def test_each_role_counts_its_part_of_a_request() -> None:
    class Weighted(FixedCapacity):
        def capacity(self, beliefs: Any, lengths: Lengths, replicas: int) -> Capacity:
            return Capacity(
                seconds_per_request=0.0, seconds_per_prompt_token=0.0001, seconds_per_output_token=0.001,
                feasible_load=((1, 1.0),), startup_seconds=((0.9, 60.0),),
                mean_output_tokens=lengths.mean_output_tokens or 0.0,
            )  # fmt: skip

    def work(role: str) -> float | None:
        pool = Pool.from_config(
            {"name": "p", "role": role}, forecaster=NoForecast(), capacity_model=Weighted(requests_per_second=1.0)
        )
        counts = Demand(requests=100, prompt_tokens=100_000, output_tokens=30_000, finished_requests=100)
        pool.step(
            Observation(
                pool="p", at_seconds=10, window_seconds=10, replicas=Replicas(desired=1, ready=1), demand=counts
            )
        )
        assert pool.last_step is not None
        return pool.last_step.work

    assert work("all") == pytest.approx(1.0 + 3.0)
    assert work("prefill") == pytest.approx(1.0)
    assert work("decode") == pytest.approx(3.0)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"limits.ratio.to: is missing"):
        build(PoolSettings, {"name": "p", "limits": {"ratio": {"replicas_per_replica": 1}}})
    with pytest.raises(ConfigError, match=r"limits.quota.gpus: 0.0 must be > 0"):
        build(PoolSettings, {"name": "p", "limits": {"quota": {"name": "h100", "gpus": 0}}})


def test_the_log_of_a_coupled_pool_replays_alone(tmp_path: Path) -> None:
    limits = {"max_replicas": 50, "quota": {"name": "q", "gpus": 6}}
    sections: dict[str, dict[str, Any]] = {
        "prefill": {"limits": {**limits, "ratio": {"to": "decode", "replicas_per_replica": 0.5}}},
        "decode": {"limits": limits},
    }
    pools = [Pool(plain_autoscaler(**{**section, "name": name})) for name, section in sections.items()]
    logs = [StepLog(tmp_path / p.settings.name, p.autoscaler, p.memory) for p in pools]
    rules: set[str] = set()
    numbers = [1, 1]
    for i, rate in enumerate((9.0, 30.0, 60.0, 95.0, 95.0, 40.0, 20.0)):
        looks = [
            observation(p.settings.name, 10 + 10 * i, replicas=n, requests_per_second=r)
            for p, n, r in zip(pools, numbers, (9.0, rate), strict=True)
        ]
        made = Pool.step_together(pools, looks)
        numbers = [d.replicas for d in made]
        rules |= {r.rule for d in made for r in d.reasons}
        for pool, log in zip(pools, logs, strict=True):
            assert pool.last_step is not None
            log.append(pool.last_step, pool.memory)
    for log in logs:
        log.close()
    assert {"ratio", "spare"} <= rules
    for pool in pools:
        assert verify(pool.autoscaler, tmp_path / pool.settings.name) == 7
