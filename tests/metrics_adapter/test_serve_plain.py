"""The second port: what the probes say when, and what a process tells of itself."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from served import Served, served

from autoscaler.schema import build
from autoscaler.settings import PoolSettings
from metrics_adapter.board import Board
from metrics_adapter.external_metrics import external_metrics
from metrics_adapter.external_metrics_values import metrics_of
from metrics_adapter.serve_plain import Life, plain_application
from metrics_adapter.wva import Variants

CHAT = build(PoolSettings, {"name": "chat"})


class Loop:
    """As much of a runner as the probes look at."""

    def __init__(self, turned: float, interval_seconds: int = 10) -> None:
        self.pools, self.turned, self.interval_seconds = [CHAT], turned, interval_seconds


def get(server: Served, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{server.port}{path}") as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_probes_say_when_a_loop_stands_still_and_when_nobody_should_ask():
    life = Life()
    with served(plain_application(Board([CHAT]), life)) as server:
        assert get(server, "/readyz") == (503, "starting or stopping\n")
        life.ready = True
        assert get(server, "/readyz")[0] == 200, "also while every pool is stale"
        loops: list[Any] = [Loop(time.monotonic() - 200.0)]
        life.runners = loops
        assert get(server, "/livez")[0] == 200
        loops[:] = [Loop(float("inf")), Loop(time.monotonic() - 301.0)]
        assert get(server, "/livez") == (500, "these pools' loops stand still: chat\n")
        loops[:] = [Loop(time.monotonic() - 301.0, interval_seconds=60)]
        assert get(server, "/healthz")[0] == 200


def test_it_tells_who_leads_and_what_was_answered():
    life = Life(leads=lambda: True)
    board = Board([CHAT])
    with served(external_metrics(metrics_of(board), outer=[life.counting()])) as api:
        for path in ("/apis/external.metrics.k8s.io/v1beta1", "/readyz", "/apis/nothing"):
            get(api, path)
        for _ in range(2):
            get(api, "/apis/external.metrics.k8s.io/v1beta1/namespaces/a/desired_replicas")
    with served(plain_application(board, life)) as server:
        found = {
            (sample.name, sample.labels.get("code")): sample.value
            for family in text_string_to_metric_families(get(server, "/metrics")[1])
            for sample in family.samples
            if "answers" in sample.name or "leads" in sample.name
        }
    name = "autoscaler_external_metrics_answers_total"
    assert found == {("autoscaler_leads", None): 1.0, (name, "200"): 1.0, (name, "404"): 1.0, (name, "503"): 2.0}
    assert Life().text() == ""


def test_without_a_target_the_watch_of_hpas_has_nothing_to_do_and_goes_on():
    async def story() -> None:
        cluster: Any = None
        watch = asyncio.create_task(Variants(Board([CHAT])).follow(cluster))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not watch.done(), "its end would end the process"
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    asyncio.run(story())
