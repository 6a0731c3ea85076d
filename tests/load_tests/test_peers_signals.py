"""Each emulated autoscaler on hand-made views: its signals, its traps kept and mended, its knob."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from peer_story import Story, arriving, facts, history, samples

from autoscaler.errors import ConfigError
from autoscaler.schema import build
from load_tests import peers as p
from load_tests.peers import PeerSettings, peer_of, with_headroom, without_traps

Make = Callable[..., Story]


def _run(settings: PeerSettings, make: Make, *, until: int, known: Any = None, start: int = 4) -> list[int]:
    """Decisions when every number is there at once; `make` gets the instant and the replicas."""
    peer, replicas, seen = peer_of(settings, facts=known or facts()), start, []
    for at in range(0, until + 1, peer.interval_seconds):
        replicas = peer.decide(make(at_seconds=float(at), desired=replicas, ready=replicas)).replicas
        seen.append(replicas)
    return seen


def _late(seconds: float) -> Make:
    return lambda **k: Story(**k, histograms={"ttft": samples(seconds), "tpot": samples(0.01)})


def test_keda_slo_follows_the_latency() -> None:
    assert _run(p.KedaSloSettings(), _late(0.5), until=60) == [4] * 5  # between 0.4 and 0.55 of the SLO
    # 4 + ceil(4 (0.9999/0.55 - 1)) = 8 at once, which is the HPA's limit too: +100 % or +4.
    assert _run(p.KedaSloSettings(), _late(1.0), until=0) == [8]
    # A quarter of the SLO is 4 - floor(4*0.375) = 3 and so on down, after the HPA's 300 s.
    down = _run(p.KedaSloSettings(), _late(0.25), until=315)
    assert down[:20] == [4] * 20
    assert down[-1] < 4


def test_keda_slo_takes_an_outage_for_idleness_unless_mended() -> None:
    def dark(**k: Any) -> Story:
        return Story(**k, scraped=False)

    assert _run(p.KedaSloSettings(), dark, until=330)[-1] == 1
    assert _run(without_traps(p.KedaSloSettings()), dark, until=330) == [4] * 23


def test_keda_tokens_at_the_replicas_and_at_the_door() -> None:
    # A full step of 8192 tokens takes 0.8392 s: 9762 tokens/s, 14,643 in 1.5 s.
    view = Story(gauges={"waiting_prompt_tokens": [30_000, 0, 0, 0], "kv_tokens": [0, 0, 0, 0]}, held_tokens=50_000)
    peer = peer_of(p.KedaTokenSettings(), facts=facts())
    assert peer.decide(view).replicas == 6  # 80,000 / 14,643 = 5.46
    turned = peer_of(with_headroom(p.KedaTokenSettings(), 1.4), facts=facts())
    assert turned.decide(view).replicas == 8
    full = Story(gauges={"waiting_prompt_tokens": [0] * 4, "kv_tokens": [95_000] * 4})
    assert peer_of(p.KedaTokenSettings(), facts=facts()).decide(full).replicas == 5  # 3.8 / 0.8 = 4.75
    # One on its way is taken off what is asked for beyond 5: 80,000 tokens need 6.
    guarded = Story(desired=5, ready=4, starting=1, gauges=view.gauges, held_tokens=50_000)
    assert peer_of(p.KedaTokenSettings(), facts=facts()).decide(guarded).replicas == 5


def test_keda_tokens_take_an_outage_for_idleness_unless_mended() -> None:
    def dark(**k: Any) -> Story:
        return Story(**k, scraped=False)

    assert _run(p.KedaTokenSettings(), dark, until=330)[-1] == 1
    assert _run(without_traps(p.KedaTokenSettings()), dark, until=330)[-1] == 4


def _published(settings: PeerSettings, view: Story) -> float:
    """What it publishes, before the HPA acts on it."""
    return peer_of(settings, facts=facts()).decide(view).reasons[0].after


def _saturated(**k: Any) -> Story:
    n = k["ready"]
    return Story(**k, gauges={"kv_tokens": [90_000] * n, "waiting": [6] * n})


def test_wva_v1_adds_one_after_the_window_of_the_hpa() -> None:
    seen = _run(p.WvaV1Settings(), _saturated, until=495)
    assert seen == [4] * 16 + [5] * 17 + [6]  # 240 s, and 15 s until V1 sees that the HPA acted
    idle = _run(p.WvaV1Settings(), lambda **k: Story(**k), until=240)
    assert idle == [4] * 16 + [3]


def test_wva_v1_is_stuck_at_ten_by_the_tolerance_of_the_hpa() -> None:
    """11 of 10 is 1.1, within 10 %: the HPA does not act, and V1 waits for it."""
    assert _run(p.WvaV1Settings(), _saturated, until=1200, start=9)[-1] == 10
    assert _run(without_traps(p.WvaV1Settings()), _saturated, until=1200, start=9)[-1] == 13


def test_wva_v1_decides_nothing_while_one_starts_unless_mended() -> None:
    view = Story(desired=5, ready=4, starting=1, gauges={"kv_tokens": [79_000] * 4, "waiting": [4] * 4})
    assert _published(p.WvaV1Settings(), view) == 5
    # Mended: the fifth counts as idle; spare (4*0.01 + 0.8)/5 = 0.17 is enough, (4*1 + 5)/5 = 1.8 waiting is not.
    assert _published(without_traps(p.WvaV1Settings()), view) == 6


def test_wva_v2_counts_tokens_in_use_and_waiting() -> None:
    # 80,000 a replica; (4*70,000 + 4*2*1000)/0.85 = 338,824 against 320,000.
    view = Story(gauges={"kv_tokens": [70_000] * 4, "waiting": [2] * 4}, **arriving(10.0))
    assert _published(p.WvaV2Settings(), view) == 5
    assert (
        _published(with_headroom(p.WvaV2Settings(), 1.25), view) == 6
    )  # 288,000/0.68 = 423,529: 103,529 short, 2 more


def test_wva_holds_in_an_outage() -> None:
    def then_dark(**k: Any) -> Story:
        n = k["ready"]
        gauges = {"kv_tokens": [70_000] * n, "waiting": [2] * n}
        return Story(**k, **arriving(10.0), gauges=gauges, scraped=k["at_seconds"] < 15)

    assert _run(p.WvaV2Settings(), then_dark, until=600)[-1] == 5  # what it published last


def test_dynamo_sizes_for_what_it_forecasts() -> None:
    # Batches of 27 keep ITL 0.02 + 0.0011 b within 50 ms: 27/(100*0.0497) = 5.43 requests/s an engine.
    busy = lambda **k: Story(**k, **arriving(20.0))  # noqa: E731 - one line is clearer
    assert _run(p.DynamoSettings(predictor="constant"), busy, until=360) == [4, 4, 4]
    assert _run(p.DynamoSettings(predictor="constant"), busy, until=360, start=1) == [1, 4, 4]
    assert _run(with_headroom(p.DynamoSettings(predictor="constant"), 1.25), busy, until=180)[-1] == 5
    for predictor in ("arima", "kalman"):
        seen = _run(p.DynamoSettings(predictor=predictor), busy, until=1800)  # type: ignore[arg-type]
        assert seen == [4] * 11


def test_dynamo_takes_a_failed_query_for_no_demand_unless_mended() -> None:
    def then_dark(**k: Any) -> Story:
        return Story(**k, **arriving(20.0), scraped=k["at_seconds"] < 900)

    settings = p.DynamoSettings(predictor="constant")
    assert _run(settings, then_dark, until=900) == [4] * 5 + [1]
    assert _run(without_traps(settings), then_dark, until=900) == [4] * 6


def test_dynamo_load_rule_and_its_wait_for_starting_replicas() -> None:
    late = {"waiting_prompt_tokens": [20_000] * 4, "kv_tokens": [10_000] * 4, "running": [10.0] * 4}
    settings = p.DynamoSettings(mode="load")
    assert peer_of(settings, facts=facts()).decide(Story(gauges=late, **arriving(1.0))).replicas == 5
    starting = Story(desired=5, starting=1, gauges=late, **arriving(1.0))
    assert peer_of(settings, facts=facts()).decide(starting).replicas == 5
    assert peer_of(without_traps(settings), facts=facts()).decide(starting).replicas == 6
    idle = Story(gauges={"waiting_prompt_tokens": [0] * 4, "kv_tokens": [0] * 4, "running": [0] * 4}, **arriving(0.0))
    assert peer_of(settings, facts=facts()).decide(idle).replicas == 3
    full = {"waiting_prompt_tokens": [0] * 4, "kv_tokens": [50_000] * 4, "running": [9] * 4}
    by_latency = p.DynamoSettings(mode="load", load_target="latency")
    assert peer_of(by_latency, facts=facts()).decide(Story(gauges=full)).replicas == 5  # 0.5 > 0.4
    by_throughput = p.DynamoSettings(mode="load", load_target="throughput")
    assert peer_of(by_throughput, facts=facts()).decide(Story(gauges=full)).replicas == 3  # 0.5 < 0.6, 0.67 after
    assert peer_of(with_headroom(by_throughput, 1.6), facts=facts()).decide(Story(gauges=full)).replicas == 4


def test_dynamo_both_keeps_the_forecast_as_a_floor() -> None:
    def idle(**k: Any) -> Story:
        view = Story(**k, **arriving(20.0))
        view.rates["engine_steps"] = 400.0  # 50 prompt tokens a step
        return view

    seen = _run(p.DynamoSettings(mode="both", predictor="constant"), idle, until=185)
    assert seen[2] == 1  # the load rule alone takes one every 5 s
    assert seen[-1] == 4


def test_dynamo_prophet_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prophet", None)
    with pytest.raises(ConfigError, match=r"policies\[0\]\.predictor: 'prophet' must be constant, arima or kalman"):
        build(p.DynamoSettings, {"predictor": "prophet"}, "policies[0]")


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_dynamo_prophet_follows_a_line() -> None:
    pytest.importorskip("prophet", reason="Prophet is not installed: pip install 'replicast[peers]'")

    def rising(**k: Any) -> Story:
        return Story(**k, **arriving(1.0 + k["at_seconds"] / 180))

    settings = p.DynamoSettings(predictor="prophet", most_change=None)
    seen = _run(settings, rising, until=180 * 30)
    constant = _run(p.DynamoSettings(predictor="constant", most_change=None), rising, until=180 * 30)
    assert seen[-1] in (constant[-1], constant[-1] + 1)
    assert seen[4] == constant[4]  # fewer than five points: the last value


def _pods(share: float) -> Make:
    return lambda **k: Story(**k, gauges={"kv_tokens": [share * 100_000] * k["ready"]})


def test_aibrix_apa_and_the_kpa_that_takes_a_mean_for_a_total() -> None:
    assert _run(p.AibrixSettings(), _pods(0.7), until=0) == [6]  # 4*1.4 = 5.6
    assert _run(p.AibrixSettings(), _pods(0.52), until=0) == [4]
    assert _run(with_headroom(p.AibrixSettings(), 1.25), _pods(0.52), until=0) == [6]  # 4*1.3 = 5.2
    kpa = p.AibrixSettings(algorithm="kpa")
    assert _run(kpa, _pods(0.75), until=0, start=10) == [5]  # ceil(1.5) = 2, but at least half
    assert _run(without_traps(kpa), _pods(0.75), until=0, start=10) == [15]
    waiting = p.AibrixSettings(signal="waiting_requests", target=2)
    assert _run(waiting, lambda **k: Story(**k, gauges={"waiting": [3.0] * k["ready"]}), until=0) == [6]


def test_aibrix_lets_one_dip_through_unless_mended() -> None:
    def dip(**k: Any) -> Story:
        share = 0.1 if k["at_seconds"] == 600 else 0.5
        return Story(**k, gauges={"kv_tokens": [share * 100_000] * k["ready"]})

    quick = {"spec": {"stable_window_seconds": 1, "panic_window_seconds": 1}, "kind": "aibrix"}
    shipped = build(p.AibrixSettings, quick)
    assert min(_run(shipped, dip, until=900)) == 2
    assert min(_run(without_traps(shipped), dip, until=900)) == 4


def test_aibrix_does_not_count_starting_pods_unless_mended() -> None:
    view = Story(desired=8, ready=4, starting=4, gauges={"kv_tokens": [100_000] * 4})
    assert peer_of(p.AibrixSettings(), facts=facts()).decide(view).replicas == 16
    assert peer_of(without_traps(p.AibrixSettings()), facts=facts()).decide(view).replicas == 8


def test_aibrix_holds_without_answers_and_is_stuck_at_zero() -> None:
    assert peer_of(p.AibrixSettings(), facts=facts()).decide(Story(scraped=False)).replicas == 4
    none = Story(desired=0, ready=0, held=50)
    assert peer_of(p.AibrixSettings(min_replicas=0), facts=facts()).decide(none).replicas == 0


def test_ray_serve_waits_for_its_delays_and_sees_what_is_held() -> None:
    busy = lambda **k: Story(**k, gauges={"outstanding": [4.0] * k["ready"]}, held=4)  # noqa: E731
    assert _run(p.RayServeSettings(), busy, until=30) == [4, 4, 4, 10]  # (16 + 4)/2
    assert _run(with_headroom(p.RayServeSettings(), 1.5), busy, until=30)[-1] == 15
    quiet = _run(p.RayServeSettings(), lambda **k: Story(**k), until=600)
    assert quiet == [4] * 60 + [1]
    woken = Story(desired=0, ready=0, held=9)
    assert peer_of(p.RayServeSettings(min_replicas=0)).decide(woken).replicas == 1


def test_ray_serve_drops_stale_handles_unless_mended() -> None:
    def then_dark(**k: Any) -> Story:
        return Story(**k, gauges={"outstanding": [2.0] * k["ready"]}, scraped=k["at_seconds"] < 100)

    assert _run(p.RayServeSettings(), then_dark, until=720)[-1] == 1
    assert _run(without_traps(p.RayServeSettings()), then_dark, until=720)[-1] == 4


def test_static_peak_is_the_largest_minute_of_the_past() -> None:
    known = facts(history([60, 1200, 300]))  # 20/s of 4/s a replica: 5, at 0.8 use 6.25
    assert peer_of(p.StaticPeakSettings(), facts=known).decide(Story()).replicas == 7
    assert peer_of(with_headroom(p.StaticPeakSettings(), 2.0), facts=known).decide(Story()).replicas == 13
    assert peer_of(p.StaticPeakSettings(), facts=facts()).decide(Story(desired=3)).replicas == 3


def test_hpa_on_work() -> None:
    busy = Story(**arriving(20.0))  # 5 replicas' worth, 7.14 at 0.7
    assert peer_of(p.HpaWorkSettings(), facts=facts()).decide(busy).replicas == 8
    long = Story(**arriving(20.0, output_tokens=200.0))  # 0.1 + 0.2 s instead of 0.2 s: half as much again
    assert peer_of(p.HpaWorkSettings(), facts=facts()).decide(long).replicas == 11
    assert peer_of(p.HpaWorkSettings(), facts=facts()).decide(Story(scraped=False)).replicas == 4
    joined = facts(requests_per_second=0.0)
    assert peer_of(p.HpaWorkSettings(), facts=joined).decide(busy).replicas == 4


def test_ahpa_orders_for_the_same_time_of_past_days() -> None:
    day = [240.0] * 1440  # 4/s, one replica's worth
    day[60:70] = [2400.0] * 10  # ten times as much from 1:00 to 1:10
    peer, seen = peer_of(p.AhpaSettings(), facts=facts(history(day * 3))), {}
    for minute in range(90):
        view = Story(at_seconds=60.0 * minute, desired=2, ready=2, **arriving(4.0))
        seen[minute] = peer.decide(view).replicas
    assert seen[40] == 2  # 1/0.8
    # A start-up of 2 min and a minute more ahead, the mean of 5 minutes: at 58 that has four of the ten, 8.2/0.8.
    assert seen[58] == 11
    assert seen[59] == seen[65] == 13
    assert seen[80] == 2
    now = peer_of(p.AhpaSettings(), facts=facts(history(day * 3))).decide(Story(at_seconds=60.0, **arriving(20.0)))
    assert now.replicas == 7  # more than all days: 5/0.8
    dark = peer_of(p.AhpaSettings(), facts=facts(history(day * 3))).decide(Story(desired=9, scraped=False))
    assert dark.replicas == 9


def test_lcp_stays_until_idling_has_cost_a_start() -> None:
    def falls(**k: Any) -> Story:
        return Story(**k, **arriving(12.0 if k["at_seconds"] < 300 else 4.0))

    seen = _run(p.LcpSettings(), falls, until=600, start=1)
    assert seen[:2] == [1, 3]  # one bin of violations (200 of 300) is less than two starts (240), two are more
    at = next(i for i, n in enumerate(seen) if i and n < 3)
    assert 10 * at == pytest.approx(300 + 120, abs=20)  # a start takes 120 s
    assert seen[-1] == 1
    assert peer_of(p.LcpSettings(), facts=facts()).decide(Story(scraped=False)).replicas == 4


EVERY: list[PeerSettings] = [
    p.StaticSettings(replicas=3), p.StaticPeakSettings(), p.HpaSettings(), p.HpaWorkSettings(), p.KpaSettings(),
    p.KedaSloSettings(), p.KedaTokenSettings(), p.WvaV1Settings(), p.WvaV2Settings(), p.DynamoSettings(),
    p.AibrixSettings(), p.AhpaSettings(), p.RayServeSettings(), p.LcpSettings(),
]  # fmt: skip


@pytest.mark.parametrize("settings", EVERY, ids=lambda s: s.kind)
def test_the_knob_and_the_traps_are_turned_the_same_way_everywhere(settings: PeerSettings) -> None:
    turned = with_headroom(settings, 1.5)
    assert turned != settings
    assert type(turned) is type(settings)
    if isinstance(turned, p.StaticSettings):
        assert turned.replicas == 5
    else:
        assert turned.headroom == 1.5
    mended = without_traps(settings)
    assert (mended == settings) == (not hasattr(settings, "traps"))
    with pytest.raises(ConfigError, match=r"headroom|replicas"):
        build(type(settings), {"kind": settings.kind, "headroom": 0, "replicas": -1})


def test_what_is_shipped_has_a_name_of_its_own_and_every_law_is_in_it() -> None:
    names = [peer_of(settings).name for settings in p.SHIPPED]
    assert len(set(names)) == len(names)
    every = {type(s) for s in EVERY} - {p.StaticSettings}
    assert {type(s) for s in p.SHIPPED} == every
    assert all(settings == type(settings)(**_algorithm(settings)) for settings in p.SHIPPED)


def _algorithm(settings: PeerSettings) -> dict[str, Any]:
    """What may differ from the defaults."""
    return {n: getattr(settings, n) for n in ("mode", "predictor", "load_target", "algorithm") if hasattr(settings, n)}


def test_those_that_need_facts_say_so() -> None:
    peer = peer_of(p.KedaSloSettings())
    assert peer.name == "keda llm-d slo"
    with pytest.raises(ValueError, match="keda llm-d slo must be given facts"):
        peer.decide(Story())
