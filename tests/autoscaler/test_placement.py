"""Cheapest groups first, a floor on demand, spot with a margin: worked numbers and what always holds."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_pools import plain_pool

from autoscaler.errors import ConfigError
from autoscaler.placement import learned, place, spot_replicas, taken
from autoscaler.schema import build
from autoscaler.settings import PoolSettings, SpotSettings
from autoscaler.testing import observation
from autoscaler.types import Group, Observation, Reason, Replicas, State
from autoscaler.views import paragraph, reason_text

FIRM = SpotSettings(on_demand_fraction=0.5, interruption_fraction=0.05, margin_sigmas=2.0)
MANY = 1000


def group(
    name: str, price: float | None, *, spot: bool = False, ready: int = 0, spare: int | None = None, most: int | None = None
) -> Group:  # fmt: skip
    return Group(
        name=name, replicas=Replicas(desired=ready, ready=ready), price_per_replica_hour=price, spot=spot,
        spare_replicas=spare, max_replicas=most,
    )  # fmt: skip


def placed(
    groups: list[Group], wanted: int, spot: SpotSettings = FIRM, most: int = MANY
) -> tuple[dict[str, int], Reason | None]:
    counts, why = place(groups, wanted, most, spot)
    return {c.name: c.replicas for c in counts}, why


def test_cheapest_first_as_far_as_there_is_room() -> None:
    groups = [group("eu", 3.0), group("us", 2.0, spare=4), group("asia", 2.5, most=3), group("unpriced", None)]
    assert placed(groups, 9)[0] == {"eu": 2, "us": 4, "asia": 3, "unpriced": 0}


def test_half_on_demand_and_spot_with_its_margin() -> None:
    counts, why = placed([group("firm", 4.0), group("spot", 1.0, spot=True)], 20)
    assert counts == {"firm": 10, "spot": spot_replicas(10, FIRM)}
    assert counts["spot"] == 13
    assert why is not None
    assert reason_text(why) == (
        "10 on demand and 13 on spot, 3 of them for what may be taken away (5% within a start-up time)"
    )


def test_spot_that_is_dearer_with_its_margin_is_not_used() -> None:
    assert placed([group("firm", 1.2), group("spot", 1.0, spot=True)], 20)[0] == {"firm": 20, "spot": 0}
    assert placed([group("firm", 1.4), group("spot", 1.0, spot=True)], 20)[0]["spot"] == 13


def test_spot_without_room_leaves_the_rest_on_demand_and_the_other_way_round() -> None:
    counts, _ = placed([group("firm", 4.0), group("spot", 1.0, spot=True, spare=6)], 20)
    assert counts == {"firm": 16, "spot": 6}  # six of which four survive
    counts, _ = placed([group("firm", 4.0, spare=8), group("spot", 1.0, spot=True)], 20)
    assert counts == {"firm": 8, "spot": spot_replicas(12, FIRM)}
    counts, _ = placed([group("firm", 1.0, spare=8), group("spot", 4.0, spot=True)], 20)
    assert counts == {"firm": 8, "spot": spot_replicas(12, FIRM)}


def test_what_no_group_has_room_for_is_asked_for_and_said() -> None:
    assert placed([group("firm", 1.0, spare=3)], 5) == ({"firm": 3}, None)
    pool = plain_pool()
    pool.step(replace(observation("p", 10, requests_per_second=38.0), groups=(group("firm", 1.0, ready=1, spare=2),)))
    assert pool.last_step is not None
    assert pool.last_step.decision.replicas == 4
    assert "They go to firm 3, at 3 an hour. No group has room for 1 more." in paragraph(pool.last_step)


def test_a_move_keeps_the_old_until_the_new_are_ready() -> None:
    old, new = group("old", 3.0, ready=4), group("new", 2.0)
    assert placed([old, new], 4)[0] == {"old": 4, "new": 4}
    assert placed([old, replace(new, replicas=Replicas(desired=4, ready=3))], 4)[0] == {"old": 1, "new": 4}
    assert placed([old, replace(new, replicas=Replicas(desired=4, ready=4))], 4)[0] == {"old": 0, "new": 4}
    # Fewer are needed: that many, and no move is waited for that nobody needs.
    assert placed([replace(old, replicas=Replicas(desired=9, ready=9)), new], 4)[0] == {"old": 4, "new": 4}
    assert placed([old, new], 4, most=4)[0] == {"old": 4, "new": 0}


def test_equal_prices_move_nothing() -> None:
    assert placed([group("a", 2.0, ready=1), group("b", 2.0, ready=3)], 4)[0] == {"a": 1, "b": 3}
    assert placed([group("a", 2.0, ready=1), group("b", 2.0, ready=3)], 6)[0] == {"a": 1, "b": 5}
    assert placed([group("a", 2.0, ready=1, spare=3), group("b", 2.0, ready=3, spare=0)], 4)[0] == {"a": 1, "b": 3}


@given(needed=st.integers(1, 60), p=st.floats(0.0, 0.3))
def test_the_margin_is_the_least_that_survives_by_two_deviations(needed: int, p: float) -> None:
    spot = SpotSettings(interruption_fraction=p, margin_sigmas=2.0)
    n = spot_replicas(needed, spot)

    def left(count: int) -> float:
        return (1 - p) * count - 2.0 * math.sqrt(count * p * (1 - p))

    assert left(n) >= needed - 1e-6
    assert left(n - 1) < needed + 1e-6


def test_the_margin_holds_in_chance_too() -> None:
    for needed, p in itertools.product((5, 20, 50), (0.02, 0.05, 0.2)):
        n = spot_replicas(needed, SpotSettings(interruption_fraction=p, margin_sigmas=2.0))
        enough = sum(math.comb(n, k) * (1 - p) ** k * p ** (n - k) for k in range(needed, n + 1))
        assert enough >= 0.965, (needed, p, n)


@given(
    wanted=st.integers(0, 30),
    most=st.integers(0, 40),
    groups=st.lists(
        st.tuples(st.sampled_from([None, 1.0, 2.0, 3.0]), st.booleans(), st.integers(0, 9), st.none() | st.integers(0, 9)),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
def test_rooms_and_the_maximum_hold(
    wanted: int, most: int, groups: list[tuple[float | None, bool, int, int | None]]
) -> None:
    wanted = min(wanted, most)
    listed = [group(f"g{i}", p, spot=s, ready=r, spare=free) for i, (p, s, r, free) in enumerate(groups)]
    counts, why = placed(listed, wanted, most=most)
    total = sum(counts.values())
    assert total <= most
    assert max(total, wanted) == (why.after if why else wanted)
    for g in listed:
        assert counts[g.name] >= 0
        assert g.spare_replicas is None or counts[g.name] <= g.replicas.ready + g.spare_replicas


def test_a_step_with_groups() -> None:
    pool = plain_pool(limits={"max_replicas": 50, "spot": {"on_demand_fraction": 0.5}}, keep_seconds=0)

    def seen(at: int, firm: int, spot: int, rate: float) -> Observation:
        groups = (group("firm", 4.0, ready=firm), group("spot", 1.0, spot=True, ready=spot))
        return replace(observation("p", at, replicas=firm + spot, requests_per_second=rate), groups=groups)

    decision = pool.step(seen(10, 4, 0, 76.0))
    assert {c.name: c.replicas for c in decision.groups} == {"firm": 4, "spot": 6}
    assert (decision.replicas, [r.rule for r in decision.reasons]) == (10, ["reactive", "groups"])
    for at in range(20, 200, 10):  # the margin is no need of its own
        assert pool.step(seen(at, 4, 6, 76.0)).replicas == 10
    blind = pool.step(replace(seen(200, 4, 6, 76.0), demand=None, load=None))
    assert blind.replicas == 10
    fewer = [pool.step(seen(210 + 10 * i, 4, 6, 19.0)) for i in range(8)][-1]
    assert {c.name: c.replicas for c in fewer.groups} == {"firm": 1, "spot": spot_replicas(1, FIRM)}


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"limits.spot.interruption_fraction: 1.0 must be in \[0, 1\)"):
        build(PoolSettings, {"name": "p", "limits": {"spot": {"interruption_fraction": 1.0}}})
    with pytest.raises(ConfigError, match="groups.price_per_replica_hour"):
        group("a", -1.0)


def test_the_margin_follows_what_is_taken_away() -> None:
    def story(taken_every: int) -> tuple[float, dict[str, int]]:
        pool = plain_pool(limits={"max_replicas": 50, "spot": {"on_demand_fraction": 0.5}}, keep_seconds=0)
        spot = ready = 6
        for turn in range(1, 1001):
            ready = spot - 1 if turn % taken_every == 0 else spot
            groups = (
                group("firm", 4.0, ready=5),
                replace(group("spot", 1.0, spot=True, ready=spot), replicas=Replicas(desired=spot, ready=ready)),
            )
            seen = observation("p", 10 * turn, replicas=5 + spot, ready=5 + ready, requests_per_second=80.0)
            decision = pool.step(replace(seen, groups=groups))
        reason = next(r for r in decision.reasons if r.rule == "groups")
        return dict(reason.inputs)["interruption_fraction"], {c.name: c.replicas for c in decision.groups}

    calm, few = story(taken_every=10_000)
    wild, many = story(taken_every=20)  # one of six in 200 s, at starts of a minute: 5 % in each
    busy, most = story(taken_every=5)
    assert calm < 0.01 < 0.04 < wild < 0.06 < 0.15 < busy < 0.22
    assert few["spot"] < many["spot"] < most["spot"]
    assert few["firm"] == many["firm"] == most["firm"] == 5


def test_who_is_asked_to_go_was_not_taken() -> None:
    def told(at: int, desired: int, ready: int, draining: int = 0) -> Observation:
        counts = Replicas(desired=desired, ready=ready, draining=draining)
        spot = Group(name="s", replicas=counts, spot=True)
        firm = Group(name="f", replicas=Replicas(desired=9, ready=9 - at % 7))
        return replace(observation("p", at, replicas=desired, ready=ready), groups=(firm, spot))

    story = [told(0, 4, 4), told(60, 3, 3), told(120, 3, 2, draining=1), told(180, 3, 1, draining=1), told(240, 3, 3)]
    state, before = State(), None
    for now in story:
        lost, starts = taken(state, before, now, 60.0)
        state, before = State(spot_taken=lost, spot_starts=starts), now
    assert state.spot_taken == pytest.approx(1.0, abs=0.01)
    assert state.spot_starts == pytest.approx(4 + 3 + 2 + 1, abs=0.01)
    assert learned(FIRM, State()) is FIRM
