"""The Prometheus source over a store of pages: pace between scrapes, staleness, restarts, the user's own queries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_answers import Server, Store, page

from autoscaler.errors import ConfigError, MetricMissing, SourceError, SourceUnavailable
from autoscaler.schema import build, json_schema
from autoscaler.settings import PoolSettings, Slo
from autoscaler.source_settings import PrometheusSettings
from autoscaler.types import Observation, Replicas
from metrics_adapter.engines import known_engines, load_engine
from metrics_adapter.prometheus import PrometheusSource, paced
from metrics_adapter.prometheus_queries import anchors
from metrics_adapter.reading import Reading

START = 1_000_000
TWO = Replicas(desired=2, ready=2)


def store(rate: float = 2.0, scrape_seconds: int = 15, until: int = 400, **changes: Any) -> Store:
    """Two replicas, scraped out of step, each of which gives `rate` first tokens a second."""
    kept = Store()
    for replica, offset in (("a:8000", 3), ("b:8000", 11)):
        for t in range(offset, until, scrape_seconds):
            kept.scrape(replica, START + t, page(1000 + rate * t, **changes))
    return kept


def looks(kept: Store, *at: int, replicas: Replicas = TWO, **settings: Any) -> list[Observation]:
    """Observations at START + each of `at`."""

    async def look() -> list[Observation]:
        async with (
            Server(kept.answer) as url,
            PrometheusSource("chat", PrometheusSettings(url=url, **settings), slo=Slo(ttft_seconds=1.0)) as source,
        ):
            return [await source.observe(START + t, replicas) for t in at]

    return asyncio.run(look())


def test_counts_are_the_pace_between_scrapes_over_the_time_since_the_last_look():
    first, second, third = looks(store(), 200, 210, 240)
    assert [o.window_seconds for o in (first, second, third)] == [60, 10, 30]
    for seen in (first, second, third):
        assert seen.demand is not None
        assert seen.demand.requests == pytest.approx(2 * 2.0 * seen.window_seconds)
        assert seen.demand.prompt_tokens == pytest.approx(400.0 * seen.window_seconds)
        assert seen.latency is not None
        assert seen.latency.ttft is not None
        assert seen.latency.ttft.total == pytest.approx(4.0 * seen.window_seconds)
        assert seen.load is not None
        assert (seen.load.running_requests, seen.load.waiting_requests, seen.load.replicas_reporting) == (4, 2, 2)


def test_one_instant_for_all_queries_and_the_windows_start_only_once():
    kept = store()
    looks(kept, 200, 260)
    assert [float(a["time"]) - START for a in kept.asked] == [200, 200, 140, 140, 260, 260]


def test_late_first_tokens_become_violations():
    (seen,) = looks(store(late=500.0), 200)
    assert seen.latency is not None
    assert seen.latency.ttft is not None
    assert seen.latency.ttft.above(1.0) == (0.0, 0.0)  # all of the late ones are older than the window


def test_repeated_samples_of_a_silent_replica_are_not_taken_for_fresh():
    kept = store()
    kept.pages["b:8000"] = [(t, p) for t, p in kept.pages["b:8000"] if t < START + 250]
    (seen,) = looks(kept, 320)
    assert seen.load is not None
    assert seen.load.replicas_reporting == 1
    assert seen.demand is not None
    assert seen.demand.requests == pytest.approx(2.0 * 60)


def test_a_stuck_engine_repeats_its_gauges_under_fresh_timestamps_and_does_not_report():
    (seen,) = looks(store(rate=0.0), 200)
    assert seen.load is not None
    assert seen.load.replicas_reporting == 0
    assert seen.load.running_requests is None


@pytest.mark.parametrize("engine", known_engines())
def test_every_engine_has_an_anchor_that_its_table_reads(engine: str):
    table = load_engine(engine)
    assert set(anchors(table)) <= table.sample_names()


def test_all_silent_is_an_error_that_names_the_age():
    with pytest.raises(
        SourceUnavailable, match=r"newest sample of 2 replicas is 9\d s old, over stale_after_seconds, 45"
    ):
        looks(store(until=100), 190)


def test_a_look_after_an_outage_counts_what_arrived_meanwhile():
    async def story() -> list[Observation]:
        kept, broken = store(), False

        async def answer(request: Any) -> Any:
            if broken:
                request.transport.close()
            return await kept.answer(request)

        async with Server(answer) as url, PrometheusSource("chat", PrometheusSettings(url=url, retries=0)) as source:
            first = await source.observe(START + 150, TWO)
            broken = True
            with pytest.raises(SourceUnavailable):
                await source.observe(START + 160, TWO)
            broken = False
            return [first, await source.observe(START + 290, TWO)]

    _, after = asyncio.run(story())
    assert after.window_seconds == 140
    assert after.demand is not None
    assert after.demand.requests == pytest.approx(4.0 * 140)


def test_a_restart_counts_what_came_since_and_no_more():
    kept = Store()
    for t in range(0, 200, 10):
        restarted = t >= 150
        made = 3.0 * (t - 150) if restarted else 5000.0 + 3.0 * t
        kept.scrape("a:8000", START + t, page(made, started=START + 145.0 if restarted else 1000.0))
    seen = looks(kept, 180, 190, replicas=Replicas(desired=1, ready=1))
    for one in seen:
        assert one.demand is not None
        assert one.demand.requests is not None
        assert 0.0 < one.demand.requests <= 3.0 * one.window_seconds + 1


def test_one_scrape_in_the_window_is_unknown_and_not_zero():
    kept = store(scrape_seconds=50, until=300)
    (seen,) = looks(kept, 290, window_seconds=10, stale_after_seconds=60)
    assert seen.demand is None
    assert seen.load is not None
    assert seen.load.running_requests == 4


def test_no_series_names_table_series_and_selector():
    with pytest.raises(
        MetricMissing, match=r"no series vllm:num_requests_running of the engine table 'vllm' under the"
    ):
        looks(Store(), 200, selector='{namespace="llm"}')


def test_an_empty_pool_has_no_series_and_that_is_no_error():
    (seen,) = looks(Store(), 200, replicas=Replicas(desired=0, ready=0))
    assert (seen.demand, seen.load) == (None, None)


def test_targets_that_are_not_the_engine_are_no_replicas():
    kept = store()
    kept.scrape("node:9100", START + 195, "process_start_time_seconds 5\n")
    (seen,) = looks(kept, 200)
    assert seen.load is not None
    assert seen.load.replicas_reporting == 2


def test_a_replica_that_is_scraped_twice_is_refused():
    async def twice(request: Any) -> Any:
        form = await request.post()
        import json

        answer = json.loads((await store().answer(request)).body)
        if "timestamp" not in form["query"]:
            for one in list(answer["data"]["result"]):
                answer["data"]["result"].append({**one, "metric": {**one["metric"], "job": "again"}})
        from aiohttp import web

        return web.json_response(answer)

    async def look() -> None:
        async with Server(twice) as url, PrometheusSource("chat", PrometheusSettings(url=url)) as source:
            await source.observe(START + 200, TWO)

    with pytest.raises(SourceError, match="replica a:8000: the series .* comes twice; is it scraped twice"):
        asyncio.run(look())


def test_own_queries_take_the_place_of_the_engines():
    kept = store()
    kept.queries = {"my rate": 7.0, "my p95": 0.4}
    (seen,) = looks(
        kept, 200, queries={"requests_per_second": "my rate", "ttft_p95_seconds": "my p95", "waiting_requests": "no"}
    )
    assert seen.demand is not None
    assert seen.demand.requests == 7.0 * 60
    assert seen.demand.output_tokens == pytest.approx(40.0 * 60)
    assert seen.latency is not None
    assert seen.latency.ttft_p95_seconds == 0.4
    assert seen.load is not None
    assert seen.load.waiting_requests is None  # an empty answer is unknown
    assert seen.load.running_requests == 4


def test_own_queries_alone():
    kept = Store(queries={"rate": 3.0})
    (seen,) = looks(kept, 200, engine="none", queries={"requests_per_second": "rate"})
    assert seen.demand is not None
    assert seen.demand.requests == 180.0
    assert seen.load is None


@pytest.mark.parametrize(("value", "said"), [(-1.0, "finite number >= 0"), (float("inf"), "finite"), (1.5, "fraction")])
def test_own_queries_with_impossible_values_are_refused(value: float, said: str):
    kept = Store(queries={"q": value})
    with pytest.raises(SourceError, match=f"source.queries.kv_cache_fraction: gives .*{said}"):
        looks(kept, 200, engine="none", queries={"kv_cache_fraction": "q"})


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"url": "http://me:secret@prom:9090"}, "url: must not hold a name or a password"),
        ({"url": "prometheus:9090"}, "must be a URL such as"),
        ({"headers": {"Authorization": "x"}}, "headers.Authorization: must not hold a secret"),
        ({"queries": {"requests": "x"}}, "queries.requests: unknown name, must be one of requests_per_second"),
        ({"engine": "none"}, "queries: must hold at least one query where engine is none"),
        ({"auth": {"username": "me"}}, "auth.password_file: must be given with username"),
        (
            {"auth": {"username": "a", "password_file": "b", "bearer_token_file": "c"}},
            "auth.bearer_token_file: must be left",
        ),
        ({"auth": {"key_file": "k"}}, "auth.cert_file: is missing"),
        ({"replica_label": "a-b"}, "replica_label: 'a-b' must be the name of a label"),
        ({"window_seconds": 0}, "window_seconds: 0 must be in"),
    ],
)
def test_settings_refuse_in_one_sentence(section: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said) as error:
        build(PrometheusSettings, {"url": "http://prom:9090", **section})
    assert "secret@" not in str(error.value)


def test_the_pool_section_takes_it_and_the_schema_tells_it():
    section = {
        "name": "chat",
        "source": {"kind": "prometheus", "url": "http://prom:9090", "selector": 'pod=~"chat-.*"'},
    }
    assert isinstance(build(PoolSettings, section).source, PrometheusSettings)
    assert "PrometheusSettings" in json_schema(PoolSettings)["$defs"]


def test_an_unknown_engine_is_refused_by_name():
    with pytest.raises(ConfigError, match="'vlm' must be one of .*vllm"):
        PrometheusSource("chat", PrometheusSettings(url="http://prom:9090", engine="vlm"))


def test_a_pace_keeps_what_an_engine_counts_at_the_end_of_requests() -> None:
    late = frozenset({"prompt_tokens"})
    then = Reading(at_seconds=1.0, values={"prompt_tokens": 100.0}, at_finish=late)
    now = Reading(at_seconds=11.0, values={"prompt_tokens": 150.0}, at_finish=late)
    before, after = paced(then, now, 20.0)
    assert (before.at_finish, after.at_finish) == (late, late)
    assert after.values["prompt_tokens"] - before.values["prompt_tokens"] == 100.0
    assert after.at_seconds - before.at_seconds == 20.0
