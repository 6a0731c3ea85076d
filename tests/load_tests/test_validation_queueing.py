"""The plant where it is a textbook queue."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from load_tests import draws
from load_tests.fleet import Fleet, PoolModel, Requests
from load_tests.queueing import deterministic_queue, linear_model, processor_sharing, time_per_token
from load_tests.validation import LINEAR, seed_mean_error


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_mean_wait_of_one_seat_and_a_constant_step_is_that_of_md1(load: float) -> None:
    assert abs(seed_mean_error(deterministic_queue, load=load, requests=200_000)) < 0.01


def test_each_wait_of_one_seat_is_that_of_lindleys_recursion() -> None:
    arrivals = np.cumsum(draws.exponentials(draws.key(3, "lindley"), 5000)) * 0.11
    service = np.full(5000, 10)
    fleet = Fleet(
        [PoolModel(name="one", replica=linear_model(a=0.01, seats=1))],
        Requests(arrival_seconds=arrivals, prompt_tokens=np.ones(5000, dtype=np.int64), output_tokens=service),
    )
    fleet.add(0)
    fleet.advance(math.inf)
    free, ends = 0.0, []
    for arrival in arrivals:
        free = max(float(arrival), free) + 0.1
        ends.append(free)
    assert np.abs(fleet.outcome().finish_seconds - ends).max() < 1e-9


@pytest.mark.parametrize("lengths", ["fixed", "geometric"])
@pytest.mark.parametrize("load", [0.6, 0.8])
def test_steps_in_proportion_to_the_batch_are_processor_sharing(
    lengths: Literal["fixed", "geometric"], load: float
) -> None:
    assert abs(seed_mean_error(processor_sharing, load=load, requests=100_000, lengths=lengths)) < 0.03


@pytest.mark.parametrize("load", [0.1, 0.3, 0.5, 0.7, 0.86])
def test_time_per_token_of_a_linear_law_is_that_of_an_empty_step_over_the_idle_share(load: float) -> None:
    error = seed_mean_error(time_per_token, load=load, requests=50_000, model=LINEAR)
    assert 0.0 < error < 0.025  # the formula leaves out the request's own share of its steps, so it is low
