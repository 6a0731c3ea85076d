"""Tenants: who is followed, what their sum knows, and that nothing is made of what was not told."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from autoscaler.embed import Pool
from autoscaler.record import decode, encode
from autoscaler.testing import observation
from autoscaler.types import TenantDemand
from forecast.experts import EXPERTS
from forecast.learned import SeasonalHistory
from forecast.seasonal import Seasonal
from forecast.tenants import MOST, REST, followed, split, told

T0 = 1_760_400_000 // 86_400 * 86_400
WINDOWS = ((600, 660),)
PLACE = [name for name, _ in EXPERTS].index("tenants")


def test_the_largest_are_followed_and_a_small_difference_changes_nobody():
    shares = (("a", 5.0), ("b", 4.0), ("c", 3.0), ("d", 2.9), ("e", 0.1))
    assert followed(shares, ()) == ("a", "b", "c", REST)
    assert followed((("a", 5.0), ("b", 4.0), ("d", 3.1), ("c", 3.0)), ("a", "b", "c")) == ("a", "b", "c", REST)
    assert followed((("a", 5.0), ("d", 4.6), ("b", 4.0), ("c", 3.0)), ("a", "b", "c")) == ("a", "b", "d", REST)
    assert followed((("a", 99.0), ("b", 1.0)), ("b",)) == ("a", REST)
    assert followed((), ()) == ()
    many = {f"t{i:03}": 1.0 for i in range(500)}
    assert len(told((), many, 60)) == 16
    assert len(followed(told((), {"x": 3.0, "y": 2.0, "z": 1.0, "w": 1.0}, 60), ())) == MOST + 1


def test_the_rest_is_what_is_left_and_never_negative():
    assert split(10.0, {"a": 6.0, "c": 1.0}, ("a", "b", REST)) == [6.0, 0.0, 4.0]
    assert split(5.0, {"a": 6.0}, ("a", REST)) == [5.0, 0.0]


def crowd(minute, rng):
    """Tenant a: on for 25 minutes, off for 25; b: steady, noisy; ten small ones."""
    a = 30.0 if minute // 25 % 2 else 2.0
    return {"a": a * rng.uniform(0.97, 1.03), "b": 20.0 * rng.uniform(0.8, 1.2), **{f"s{i}": 0.2 for i in range(10)}}


def played(minutes, *, tell=True, blind=()):
    forecaster = Seasonal(WINDOWS, 60)
    rng, (history, beliefs) = random.Random(5), forecaster.start()
    for i in range(minutes):
        work = crowd(i, rng)
        total = None if i in blind else sum(work.values())
        given = work if tell and i not in blind else {}
        history = forecaster.observe_tenants(history, T0 + 60 * (i + 1), 60, total, given)
    return forecaster, history, beliefs


def test_parts_add_up_and_are_an_expert_that_is_scored():
    forecaster, history, beliefs = played(400)
    assert [part.name for part in history.parts] == ["a", "b", REST]
    minute = history.past.minute.last()
    assert sum(part.history.past.minute.last() for part in history.parts) == pytest.approx(minute, rel=1e-4)
    assert history.tracks[0].experts[PLACE].matured > 100
    guess = history.tracks[0].pending[-1].guesses[PLACE]
    assert guess is not None
    at = T0 + 60 * 400
    assert forecaster.forecast(history, beliefs, at, WINDOWS) == forecaster.forecast(history, beliefs, at, WINDOWS)
    assert decode(SeasonalHistory, json.loads(encode(history))) == history


def test_without_tenants_there_is_none_and_a_blind_hour_is_a_gap_for_all():
    _, history, _ = played(60, tell=False)
    assert history.parts == ()
    assert history.tracks[0].experts[PLACE].matured == 0
    _, history, _ = played(200, blind=range(120, 180))
    known = [part.history.past.known_seconds for part in history.parts]
    assert known == [history.past.known_seconds] * 3


def test_a_total_without_its_tenants_leaves_them_unknown_not_zero():
    forecaster, history, beliefs = played(200)
    for i in range(200, 230):
        history = forecaster.observe(history, T0 + 60 * (i + 1), 60, 40.0)
    assert all(part.history.past.minute.last() is None for part in history.parts)
    assert forecaster.forecast(history, beliefs, T0 + 60 * 230, WINDOWS) is not None


def test_a_step_tells_the_forecaster_who_sent_the_work():
    pool = Pool.from_config({"name": "chat", "replica": {"feasible_requests_per_second": 5.0}})
    for i in range(30):
        seen = observation("chat", T0 + 60 * (i + 1), window_seconds=60, replicas=3, requests_per_second=10.0)
        shares = (TenantDemand(tenant="a", requests=450.0), TenantDemand(tenant="b", requests=120.0))
        pool.step(replace(seen, demand=replace(seen.demand, tenants=shares)))
    history = pool.memory.history
    assert [part.name for part in history.parts] == ["a", "b", REST]
    means = [part.history.mean for part in history.parts]
    assert means[:2] == pytest.approx([0.75 * history.mean, 0.2 * history.mean], rel=0.05)
    assert sum(means) == pytest.approx(history.mean, rel=0.01)
