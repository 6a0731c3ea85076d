"""What peers see of a simulated pool, and the facts that some are given."""

from __future__ import annotations

import numpy as np
import pytest

from autoscaler.settings import Slo
from load_tests.fleet import Fleet, PoolModel, ReplicaModel, Requests
from load_tests.peers import PeerFacts
from load_tests.plant_view import PlantView

MODEL = ReplicaModel(a=0.01, b=1e-5, c=1e-4, d=1e-9, e=0.0, kv_capacity_tokens=200_000)
POOL = PoolModel(name="chat", replica=MODEL)


def _requests(rate: float, seconds: float) -> Requests:
    count = int(rate * seconds)
    return Requests(
        arrival_seconds=np.arange(1, count + 1) / rate,
        prompt_tokens=np.full(count, 100, dtype=np.int64),
        output_tokens=np.full(count, 50, dtype=np.int64),
    )


def test_histograms_are_those_of_the_window() -> None:
    fleet = Fleet([POOL], _requests(10.0, 300.0))
    fleet.add(0)
    view = PlantView(fleet, 0)
    for at in range(0, 121, 10):
        fleet.advance(float(at))
        view.tick(desired=1, starting=0)
        if at == 0:
            assert view.histogram("ttft", 60) is None  # one sample is no window
    lengths = view.histogram("output_lengths", 60)
    ttft = view.histogram("ttft", 60)
    assert lengths is not None
    assert ttft is not None
    assert lengths.mean == 50.0
    assert lengths.total == pytest.approx(600, abs=20)  # what finished in the last minute, not since the start
    q = ttft.quantile(0.9)
    assert q is not None
    assert 0.0 < q < 0.1
    view.tick(desired=1, starting=0, scraped=False)
    assert view.histogram("ttft", 60) is None
    assert view.held_prompt_tokens is None


def test_prompt_tokens_at_the_door_are_seen() -> None:
    fleet = Fleet([POOL], _requests(2.0, 30.0))
    fleet.advance(10.0)
    view = PlantView(fleet, 0).tick(desired=1, starting=1)
    assert view.held_requests == 20
    assert view.held_prompt_tokens == 2000


def test_facts_weigh_requests_as_the_plant_does() -> None:
    requests = Requests(
        arrival_seconds=np.arange(3.0),
        prompt_tokens=np.array([100, 200, 600], dtype=np.int64),
        output_tokens=np.array([10, 50, 30], dtype=np.int64),
    )
    facts = PeerFacts.of(POOL, requests, Slo(), startup_seconds=30.0, requests_per_second=4.0)
    assert facts.replicas(12.0, facts.mean_prompt_tokens, facts.mean_output_tokens) == pytest.approx(3.0)
    # Output tokens cost 1e-4 + 1e-5 + 5.5e-5 s and what their context adds, prompt tokens 1e-5 s.
    assert facts.seconds_per_prompt_token == pytest.approx(1e-5)
    assert facts.seconds_per_output_token == pytest.approx(1.65e-4, rel=0.01)
    longer = facts.replicas(12.0, facts.mean_prompt_tokens, 2 * facts.mean_output_tokens)
    assert longer == pytest.approx(3.0 * (1e-5 * 300 + 2 * 1.65e-4 * 30) / (1e-5 * 300 + 1.65e-4 * 30), rel=0.01)
    nothing = PeerFacts.of(POOL, _requests(1.0, 0.0), Slo(), startup_seconds=30.0, requests_per_second=0.0)
    assert nothing.replicas(5.0, 10.0, 10.0) is None
