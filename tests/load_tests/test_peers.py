"""The peers on hand-made views and on a small simulated fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from autoscaler.errors import ConfigError
from autoscaler.schema import build, json_schema
from load_tests.fleet import Fleet, PoolModel, ReplicaModel, Requests
from load_tests.peers import (
    Hpa,
    HpaSettings,
    Kpa,
    KpaSettings,
    Peer,
    PeerSettings,
    Static,
    StaticSettings,
    View,
    peer_of,
)
from load_tests.plant_view import PlantView


@dataclass
class Story:
    """A view whose facts a test writes down."""

    at_seconds: float = 0.0
    desired: int = 4
    ready: int = 4
    starting: int = 0
    held_requests: int | None = 0
    gauges: dict[str, Sequence[float] | None] = field(default_factory=dict)
    rates: dict[str, float | None] = field(default_factory=dict)

    def per_replica(self, gauge: str) -> Sequence[float] | None:
        return self.gauges.get(gauge, [0.0] * self.ready)

    def rate(self, counter: str, window_seconds: float) -> float | None:
        assert window_seconds == 60
        return self.rates.get(counter)


def load(*running: float, waiting: float = 0.0) -> dict[str, Sequence[float] | None]:
    return {"running": list(running), "waiting": [waiting] * len(running)}


def test_hpa_on_running_and_waiting() -> None:
    peer = Hpa(HpaSettings(target=20))
    replicas, reasons = peer.decide(Story(gauges=load(25, 25, 25, 25, waiting=5)))
    assert replicas == 6  # 30 per pod, 1.5 times the target
    assert reasons[0].rule == "hpa:running_and_waiting_requests"
    assert dict(reasons[0].inputs) == {"value": 30.0, "target": 20.0, "ready": 4}


def test_hpa_counts_starting_pods_as_idle_on_the_way_up() -> None:
    story = Story(desired=6, starting=2, gauges=load(30, 30, 30, 30))
    assert Hpa(HpaSettings(target=20)).decide(story).replicas == 6  # 120 / 6 = 20: on target
    assert Hpa(HpaSettings(target=20)).decide(Story(desired=4, gauges=load(30, 30, 30, 30))).replicas == 6


def test_hpa_waits_for_the_window_on_the_way_down_and_says_so() -> None:
    peer = Hpa(HpaSettings(target=20))
    assert peer.decide(Story(gauges=load(20, 20, 20, 20))).replicas == 4
    replicas, reasons = peer.decide(Story(at_seconds=15, gauges=load(2, 2, 2, 2)))
    assert replicas == 4
    assert [(r.rule, r.before, r.after) for r in reasons] == [
        ("hpa:running_and_waiting_requests", 4, 1),
        ("hpa:behavior", 1, 4),
    ]
    assert peer.decide(Story(at_seconds=300, gauges=load(2, 2, 2, 2))).replicas == 1


@pytest.mark.parametrize("gauges", [{"running": None, "waiting": None}, {"running": [], "waiting": []}])
def test_hpa_does_nothing_without_readings(gauges: dict[str, Sequence[float] | None]) -> None:
    replicas, reasons = Hpa(HpaSettings()).decide(Story(gauges=gauges))
    assert replicas == 4
    assert reasons[0].rule == "hpa:unknown"


def test_hpa_on_tokens_counts_what_engines_did() -> None:
    peer = Hpa(HpaSettings(signal="tokens_per_second", target=5000))
    story = Story(rates={"prefilled_prompt_tokens": 30_000.0, "output_tokens": 6_000.0})
    assert peer.decide(story).replicas == 8  # 7.2, rounded up
    # Starting pods are part of status.replicas: 36 000 over 7 pods of 5 000 is 1.03, within tolerance.
    assert peer.decide(Story(desired=7, starting=3, rates=story.rates)).replicas == 7
    assert peer.decide(Story(rates={"output_tokens": 6_000.0})).replicas == 4


def test_hpa_on_requests_per_second() -> None:
    peer = Hpa(HpaSettings(signal="requests_per_second", target=2))
    assert peer.decide(Story(rates={"arrivals": 11.0})).replicas == 6
    assert peer.uses_rates
    assert not Hpa(HpaSettings()).uses_rates


def test_a_rate_needs_a_target() -> None:
    with pytest.raises(ConfigError, match=r"policies\[1\]\.target: None must be a number > 0 for the signal tokens"):
        build(HpaSettings, {"kind": "hpa", "signal": "tokens_per_second"}, "policies[1]")
    assert Hpa(HpaSettings()).target == 20
    assert Hpa(HpaSettings(signal="waiting_requests")).target == 5


def test_kpa_panics_and_sees_held_requests() -> None:
    peer = Kpa(KpaSettings())
    for at in range(0, 60, 2):
        assert peer.decide(Story(at_seconds=at, desired=1, ready=1, gauges=load(50))).replicas == 1
    replicas, reasons = peer.decide(Story(at_seconds=60, desired=1, ready=1, gauges=load(600)))
    assert replicas == 4  # panic window: 4 s at 50, 2 s at 600 = 233 -> 4 >= 2 * 1
    assert dict(reasons[0].inputs)["mode"] == "panic"
    woken = Kpa(build(KpaSettings, {"kind": "kpa", "spec": {"min_replicas": 0}}))
    assert woken.decide(Story(desired=0, ready=0)).replicas == 0
    assert woken.decide(Story(at_seconds=2, desired=0, ready=0, held_requests=150)).replicas == 3


def test_kpa_holds_what_it_does_not_know() -> None:
    peer = Kpa(KpaSettings())
    for at in range(0, 80, 2):
        peer.decide(Story(at_seconds=at, desired=4, ready=4, gauges=load(70, 70, 70, 70)))
    blind = [
        peer.decide(Story(at_seconds=at, gauges={"running": None, "waiting": None}, held_requests=None)).replicas
        for at in range(80, 180, 2)
    ]
    assert blind[:29] == [4] * 29  # the window's mean stays that of the readings it has
    assert blind[29] == 2  # a reading exactly one window old: the original's mean is 0 at that one tick
    assert blind[30:] == [4] * 20  # no data: nothing happens


def test_static_and_names() -> None:
    peers: list[Peer] = [
        Static(StaticSettings(replicas=7)),
        Hpa(HpaSettings()),
        Hpa(HpaSettings(name="tuned", target=3)),
        Kpa(KpaSettings()),
    ]
    assert [p.name for p in peers] == ["static 7", "hpa running_and_waiting_requests", "tuned", "kpa"]
    assert [p.interval_seconds for p in peers] == [60, 15, 15, 2]
    view: View = Story()
    assert peers[0].decide(view).replicas == 7


def test_limits_of_the_scenario_narrow_the_bounds() -> None:
    wide = peer_of(HpaSettings(target=1), min_replicas=2, max_replicas=6)
    assert wide.decide(Story(gauges=load(9, 9, 9, 9))).replicas == 6
    kpa = peer_of(KpaSettings(), min_replicas=3, max_replicas=50)
    assert kpa.decide(Story(desired=3, ready=3)).replicas == 3
    with pytest.raises(ConfigError, match=r"spec\.max_replicas: 100 is below min_replicas 200"):
        peer_of(KpaSettings(), min_replicas=200)


@pytest.mark.parametrize("settings", [StaticSettings, HpaSettings, KpaSettings])
def test_every_setting_explains_itself(settings: type) -> None:
    schema = json_schema(settings)
    assert all(p.get("description") for name, p in schema["properties"].items() if name != "kind")


LAW = {"a": 0.01, "b": 1e-5, "floor_tokens": 0.0, "c": 1e-4, "d": 1e-9, "e": 0.0, "kv_capacity_tokens": 200_000}


def _fleet(rate: float, seconds: float) -> Fleet:
    count = int(rate * seconds)
    arrivals = np.arange(1, count + 1) / rate
    requests = Requests(
        arrival_seconds=arrivals,
        prompt_tokens=np.full(count, 100, dtype=np.int64),
        output_tokens=np.full(count, 50, dtype=np.int64),
    )
    return Fleet([PoolModel(name="chat", replica=ReplicaModel(**LAW))], requests)  # type: ignore[arg-type]


def test_a_view_of_the_plant() -> None:
    fleet = _fleet(rate=10.0, seconds=200.0)
    view = PlantView(fleet, 0)
    fleet.advance(5.0)
    view.tick(desired=2, starting=2)
    assert (view.held_requests, view.ready, view.starting) == (50, 0, 2)
    assert view.rate("arrivals", 60) is None  # one sample is no rate
    fleet.add(0), fleet.add(0)
    for at in range(15, 165, 15):
        fleet.advance(float(at))
        view.tick(desired=2, starting=0)
    running = view.per_replica("running")
    assert running is not None
    assert len(running) == view.ready == 2
    assert view.rate("arrivals", 60) == pytest.approx(10.0)
    assert view.rate("output_tokens", 60) == pytest.approx(500.0, rel=0.05)
    assert view.rate("prefilled_prompt_tokens", 60) == pytest.approx(1000.0, rel=0.05)
    view.tick(desired=2, starting=0, scraped=False)
    assert view.per_replica("running") is None
    assert view.held_requests is None
    assert view.rate("arrivals", 60) is None


@pytest.mark.parametrize(
    "settings", [HpaSettings(target=5), HpaSettings(signal="requests_per_second", target=5), KpaSettings()]
)
def test_a_peer_drives_the_plant(settings: PeerSettings) -> None:
    fleet, peer = _fleet(rate=20.0, seconds=300.0), peer_of(settings, max_replicas=8)
    view = PlantView(fleet, 0, rates=peer.uses_rates)
    ids, desired, at = [fleet.add(0)], 1, 0
    while at < 300:
        at += peer.interval_seconds
        fleet.advance(float(at))
        desired = peer.decide(view.tick(desired=desired, starting=0)).replicas
        while len(ids) < desired:
            ids.append(fleet.add(0))
        while len(ids) > desired:
            fleet.drain(ids.pop())
        assert 1 <= desired <= 8
    if isinstance(settings, HpaSettings):
        assert desired > 1
