"""Every emulated autoscaler runs twenty simulated minutes of a rise and a fall: in bounds, up and down, the same twice."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_world import requests, setup, theirs

from load_tests import peers as p
from load_tests.campaign import contestants_of, prepare
from load_tests.contestants import Moment, PeerContestant
from load_tests.histories import History
from load_tests.need import feasible_requests_per_second
from load_tests.peers import Peer, PeerFacts, PeerSettings, Recommendation, View, peer_of, without_traps
from load_tests.scenario import scenario_from
from load_tests.simulator import Setup, simulate

LOW, HIGH, PEAK = 1, 12, 250.0  # one replica carries about 50 requests/s

PEERS: dict[str, PeerSettings] = {
    "hpa running and waiting": p.HpaSettings(target=20),
    "hpa requests": p.HpaSettings(signal="requests_per_second", target=40),
    "hpa work": p.HpaWorkSettings(),
    "kpa": p.KpaSettings(),
    "keda slo": p.KedaSloSettings(),
    "keda tokens": p.KedaTokenSettings(),
    "wva v1": p.WvaV1Settings(),
    "wva v2": p.WvaV2Settings(),
    "dynamo constant": p.DynamoSettings(predictor="constant"),
    "dynamo arima": without_traps(p.DynamoSettings(predictor="arima")),
    "dynamo kalman": p.DynamoSettings(predictor="kalman"),
    "dynamo load": p.DynamoSettings(mode="load"),
    "dynamo load by use": p.DynamoSettings(mode="load", load_target="latency"),
    "dynamo both": p.DynamoSettings(mode="both", predictor="constant"),
    "aibrix apa": p.AibrixSettings(signal="running_requests", target=20),
    "aibrix kpa": without_traps(p.AibrixSettings(algorithm="kpa", signal="running_requests", target=20)),
    "ahpa": p.AhpaSettings(),
    "ray serve": p.RayServeSettings(headroom=0.1, spec=replace(p.RayServeSettings().spec, downscale_delay_seconds=120)),
    "lcp": p.LcpSettings(),
}


class Watched:
    """A peer whose answers are kept, with the instants of its ticks."""

    def __init__(self, peer: Peer) -> None:
        self.peer, self.name = peer, peer.name
        self.answers: list[tuple[float, Recommendation]] = []
        self.interval_seconds, self.uses_rates = peer.interval_seconds, peer.uses_rates

    def decide(self, view: View) -> Recommendation:
        answer = self.peer.decide(view)
        self.answers.append((view.at_seconds, answer))
        return answer


@cache
def _world() -> tuple[Setup, PeerFacts]:
    world = setup(requests=requests(peak_per_second=PEAK), initial=(2,))
    rate = feasible_requests_per_second(
        world.pools[0], world.requests.prompt_tokens[:5000], world.requests.output_tokens[:5000], world.slo, replicas=2
    )
    quiet = np.full(1440, 0.1 * PEAK * 60)
    past = History(
        t_seconds=60.0 * np.arange(-1440, 0),
        interval_seconds=60.0,
        requests=quiet,
        prompt_tokens=480 * quiet,
        output_tokens=107 * quiet,
    )
    facts = PeerFacts.of(
        world.pools[0],
        world.requests,
        world.slo,
        startup_seconds=world.startup.median_seconds,
        requests_per_second=rate,
        history=past,
    )
    return world, facts


def _watched(settings: PeerSettings) -> Watched:
    return Watched(peer_of(settings, min_replicas=LOW, max_replicas=HIGH, facts=_world()[1]))


@pytest.mark.parametrize("settings", PEERS.values(), ids=PEERS)
def test_it_follows_the_load_within_its_bounds(settings: PeerSettings) -> None:
    peer = _watched(settings)
    run = simulate(_world()[0], [theirs(peer)])
    numbers = [answer.replicas for _, answer in peer.answers]
    assert all(LOW <= n <= HIGH for n in numbers)
    steps = [b - a for a, b in zip([2, *numbers], numbers, strict=False)]
    assert max(steps) > 0 > min(steps)
    assert max(numbers) > 2  # two were there at the start
    changed = [answer for (_, answer), step in zip(peer.answers, steps, strict=True) if step]
    assert all(answer.reasons[-1].after == answer.replicas for answer in changed)
    assert len(run.events) == len(changed)


@pytest.mark.parametrize("name", ["keda slo", "dynamo both", "aibrix apa", "lcp"])
def test_the_same_twice(name: str) -> None:
    first, second = _watched(PEERS[name]), _watched(PEERS[name])
    simulate(_world()[0], [theirs(first)])
    simulate(_world()[0], [theirs(second)])
    assert first.answers == second.answers


# KPA goes on deciding from the readings of its window for a while, and its panic ends.
REMEMBERING = ("kpa",)


@pytest.mark.parametrize("name", [n for n in PEERS if n not in REMEMBERING])
def test_it_survives_an_outage_of_its_signals(name: str) -> None:
    """Five dark minutes in the rise: the trapless peer keeps what it had, at least."""
    peer = _watched(without_traps(PEERS[name]))

    class Dark(PeerContestant):
        def decide(self, at_seconds: float, moment: Moment) -> Any:
            return super().decide(at_seconds, moment._replace(measured=not 300 <= at_seconds < 600))

    simulate(_world()[0], [Dark(peer)])
    before = next(answer.replicas for at, answer in reversed(peer.answers) if at < 300)
    during = [answer.replicas for at, answer in peer.answers if 300 <= at < 600]
    assert during
    assert before <= min(during) <= max(during) <= HIGH


def test_a_scenario_tells_its_peers_what_they_need() -> None:
    scenario = scenario_from(
        {
            "version": 1, "name": "all", "window": {"duration_seconds": 60}, "history_days": 1,
            "traffic": {"kind": "shape", "shape": {"kind": "constant", "requests_per_second": 2.0}},
            "policies": [{"kind": kind} for kind in (
                "static_peak", "hpa_work", "keda_llmd_slo", "keda_llmd_tokens", "wva_v1", "wva_v2", "dynamo", "aibrix",
                "ahpa", "ray_serve", "lcp",
            )],
        },
        folder=Path(__file__).parent,
    )  # fmt: skip
    prepared = prepare(scenario, 0)
    names = []
    for policy in scenario.policies:
        (contestant,) = contestants_of(prepared, policy)
        run = simulate(prepared.setup, [contestant])
        assert run.policy == contestant.name
        names.append(run.policy)
    assert len(set(names)) == 11
