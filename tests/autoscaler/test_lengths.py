"""Lengths out of coarse histograms: moments near the truth, decayed, and believed after a while."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.lengths import LEAST_SECONDS, LENGTHS_HALF_LIFE_SECONDS, histogram_moments, lengths_of, with_lengths
from autoscaler.testing import observation
from autoscaler.types import Demand, Histogram, Lengths, State

BOUNDS = tuple(float(digit * 10**power) for power in range(5) for digit in (1, 2, 5))  # vLLM's


def histogram(values, bounds=BOUNDS, with_sum=True) -> Histogram:
    counts = [0.0] * (len(bounds) + 1)
    for value in values:
        counts[sum(value > b for b in bounds)] += 1
    return Histogram(upper_bounds=bounds, counts=tuple(counts), sum=float(sum(values)) if with_sum else None)


def cv_of(moments) -> float:
    mean, square = moments
    return math.sqrt(max(0.0, square / mean**2 - 1))


@pytest.mark.parametrize(
    ("mean", "cv"), [(1155, 1.0), (211, 0.8), (803, 0.4), (13.4, 0.5), (27, 1.0), (4000, 0.5), (410, 1.3)]
)
def test_the_spread_of_many_lengths_is_found(mean, cv):
    rng, square = random.Random(5), math.log1p(cv * cv)
    values = [max(1, round(mean * math.exp(math.sqrt(square) * rng.gauss(0, 1) - square / 2))) for _ in range(5000)]
    true = math.sqrt(sum(v * v for v in values) / len(values) / (sum(values) / len(values)) ** 2 - 1)
    found = histogram_moments(histogram(values))
    assert found[0] == pytest.approx(sum(values) / len(values), rel=1e-9)
    assert cv_of(found) == pytest.approx(true, abs=0.05)


@pytest.mark.parametrize("length", [1, 2, 14, 803, 1000, 1001])
def test_equal_lengths_are_read_as_equal(length):
    assert cv_of(histogram_moments(histogram([length] * 50))) == pytest.approx(0.0, abs=1e-6)


def test_without_a_sum_the_buckets_alone_speak():
    values = [100 + 10 * i for i in range(200)]
    found = histogram_moments(histogram(values, with_sum=False))
    assert found[0] == pytest.approx(sum(values) / len(values), rel=0.1)


def test_two_kinds_of_requests_are_told_from_one():
    found = histogram_moments(histogram([100] * 500 + [3000] * 500))
    assert cv_of(found) == pytest.approx(1450 / 1550, abs=0.1)


def test_no_samples_say_nothing():
    assert histogram_moments(Histogram(upper_bounds=BOUNDS, counts=(0.0,) * (len(BOUNDS) + 1), sum=0.0)) is None


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=60))
def test_the_mean_is_kept_and_squares_are_possible(values):
    mean, square = histogram_moments(histogram(values))
    assert mean == pytest.approx(sum(values) / len(values))
    assert square >= mean * mean * (1 - 1e-9)


def seen(state: State, values, seconds: int) -> State:
    lengths = histogram(values)
    demand = Demand(requests=len(values), prompt_tokens=sum(values), prompt_lengths=lengths, output_lengths=lengths)
    return with_lengths(state, replace(observation("p", 60), window_seconds=seconds, demand=demand))


def test_a_spread_is_believed_after_a_while_whatever_the_demand():
    for times in (1, 100):
        state = State()
        for _ in range(round(LEAST_SECONDS / 60)):
            assert lengths_of(state).prompt_cv is None
            state = seen(state, [500, 700, 900, 4000] * times, 60)
        state = seen(state, [500, 700, 900, 4000] * times, 60)
        told = lengths_of(state)
        assert told.prompt_cv == pytest.approx(told.output_cv)
        assert told.prompt_cv == pytest.approx(0.95, abs=0.12)


def test_more_of_the_same_demand_has_the_same_lengths():
    few, many = State(), State()
    for values in ([100, 3000], [800] * 3, [5, 90, 14_000], [250]) * 3:
        few, many = seen(few, values, 60), seen(many, values * 7, 60)
    assert lengths_of(many).prompt_cv == pytest.approx(lengths_of(few).prompt_cv, rel=1e-9)
    assert lengths_of(many).mean_prompt_tokens == pytest.approx(lengths_of(few).mean_prompt_tokens, rel=1e-9)


def test_a_change_is_half_learned_in_a_half_life():
    state = State()
    for _ in range(400):
        state = seen(state, [200] * 10, 60)
    for _ in range(round(LENGTHS_HALF_LIFE_SECONDS / 60)):
        state = seen(state, [200, 2000] * 5, 60)
    settled = math.sqrt((200**2 + 2000**2) / 2 / 1100**2 - 1)
    assert lengths_of(state).mean_prompt_tokens == pytest.approx((200 + 1100) / 2, rel=0.03)
    assert lengths_of(state).prompt_cv > settled  # two kinds of traffic are mixed


def answered(state: State, recent: list, mean: float, requests: int = 60, cv: float = 0.8) -> State:
    """One more Observation of answers with this mean, arriving as steadily as ever; `recent` gets it."""
    rng, square = random.Random(len(recent)), math.log1p(cv * cv)
    values = [max(1, round(mean * math.exp(math.sqrt(square) * rng.gauss(0, 1) - square / 2))) for _ in range(requests)]
    lengths = histogram(values)
    demand = Demand(requests=requests, prompt_tokens=sum(values), prompt_lengths=lengths, output_lengths=lengths)
    now = replace(observation("p", 60 + 10 * len(recent)), window_seconds=10, demand=demand)
    state = with_lengths(state, now, recent[-12:])
    recent.append(now)
    return state


def test_answers_twice_as_long_are_known_within_a_minute():
    state, recent = State(), []
    for _ in range(180):
        state = answered(state, recent, 200.0)
    assert state.mean_output_tokens == pytest.approx(200.0, rel=0.05)
    spread = lengths_of(state).output_cv
    for _ in range(6):
        state = answered(state, recent, 400.0)
    assert state.mean_output_tokens == pytest.approx(400.0, rel=0.1)
    assert state.mean_prompt_tokens == pytest.approx(400.0, rel=0.1)
    assert lengths_of(state).output_cv == pytest.approx(spread, rel=0.15)  # no mixture of two kinds


def test_answers_that_end_short_are_no_news_at_once_but_short_prompts_are():
    state, recent = State(), []
    for _ in range(180):
        state = answered(state, recent, 400.0)
    for _ in range(6):
        state = answered(state, recent, 200.0)
    assert state.mean_output_tokens > 380.0
    assert state.mean_prompt_tokens == pytest.approx(200.0, rel=0.1)


def test_chance_alone_makes_no_new_lengths():
    state, recent = State(), []
    for _ in range(2000):
        before = state.output_weight
        state = answered(state, recent, 300.0, requests=25, cv=1.5)
        assert state.output_weight > before * 0.9  # what is known was never thrown away


def test_nothing_seen_is_nothing_known():
    assert lengths_of(with_lengths(State(), replace(observation("p", 60), demand=None))) == Lengths()


def test_a_mean_of_next_to_nothing_is_not_known() -> None:
    assert Histogram(upper_bounds=(), counts=(5e-324,), sum=1.0).mean is None
    assert Histogram(upper_bounds=(), counts=(0.01,), sum=1.0).mean == 100.0
