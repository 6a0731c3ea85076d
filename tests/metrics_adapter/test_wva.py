"""The series that KServe and llm-d read: labels, forms by the HPA's target, and what happens to them when a Step is old."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import Any

import pytest
from fake_kubernetes import FakeKubernetes
from steps import step

from autoscaler import Pool
from autoscaler.errors import ConfigError
from metrics_adapter.board import Board, Stale
from metrics_adapter.external_metrics_selector import parse
from metrics_adapter.external_metrics_values import Ambiguous, Item, NoSuchItem, pick
from metrics_adapter.wva import Variants, behind_value, milli_of_quantity
from serving.kubernetes import HPA, Kubernetes
from serving.kubernetes_access import Plain
from serving.kubernetes_objects import ExternalMetric, Hpa

AT = 1_000_000


class World:
    def __init__(self, **options: Any) -> None:
        self.now = float(AT)
        targets = {"chat": ("llm", "chat-kserve"), "code": ("llm", "code"), "away": ("other", "chat-kserve")}
        pools = [
            Pool.from_config({"name": n, "target": {"namespace": ns, "name": o}}).settings
            for n, (ns, o) in targets.items()
        ]
        self.board = Board([*pools, Pool.from_config({"name": "free"}).settings], now=lambda: self.now)
        self.variants = Variants(self.board, **options)
        self.hpas: dict[tuple[str, str], Hpa] = {}

    def hpa(self, name: str, target: str, kind: str = "AverageValue", at: str = "1", **more: Any) -> None:
        metric = ExternalMetric(name="wva_desired_replicas", labels={"variant_name": name}, target_type=kind, target=at)
        self.hpas["llm", name] = Hpa(
            namespace="llm", name=name, target_kind="Deployment", target_name=target, external=(metric,), **more
        )
        self.variants.put("llm", self.hpas)

    def wants(self, pool: str, wanted: int, **seen: Any) -> None:
        self.board.post(step(pool, int(self.now), wanted, **seen))

    def read(self, selector: str, metric: str = "wva_desired_replicas", namespace: str = "llm") -> Item:
        return pick(metric, self.variants.metrics()[metric](namespace), parse(selector))


def test_an_hpa_is_answered_by_the_type_of_its_target() -> None:
    w = World()
    w.hpa("chat-kserve-hpa", "chat-kserve", "Value")
    w.hpa("code-hpa", "code")
    w.wants("chat", 3, current=2, ready=2)
    w.wants("code", 3, current=2, ready=2)
    assert w.read("variant_name=chat-kserve-hpa").milli == 1499  # 1.499 times 2 ready is 3
    assert w.read("variant_name=code-hpa,exported_namespace=llm").milli == 3000
    assert dict(w.read("variant_name=code-hpa").labels) == {
        "variant_name": "code-hpa", "namespace": "llm", "exported_namespace": "llm", "accelerator_type": "unknown"
    }  # fmt: skip
    assert w.read("variant_name=code-hpa", "wva_current_replicas").milli == 2000
    assert w.read("variant_name=code-hpa", "wva_desired_ratio").milli == 1500


def test_a_selector_that_names_none_or_two_is_refused() -> None:
    w = World()
    w.hpa("a", "chat-kserve")
    w.hpa("b", "code")
    w.wants("chat", 1)
    w.wants("code", 1)
    with pytest.raises(Ambiguous):
        w.read("namespace=llm")
    with pytest.raises(NoSuchItem):
        w.read("variant_name=c")
    with pytest.raises(NoSuchItem):
        w.read("variant_name=a", namespace="other")  # another team's


def test_a_step_that_is_too_old_is_an_error_and_drops_the_series() -> None:
    w = World()
    w.hpa("a", "chat-kserve")
    with pytest.raises(Stale):
        w.read("variant_name=a")
    assert w.variants.text() == ""
    w.wants("chat", 2)
    assert "wva_desired_replicas" in w.variants.text()
    w.now += 46
    with pytest.raises(Stale):
        w.read("variant_name=a")
    assert w.variants.text() == ""


def test_the_series_have_the_original_s_names_and_labels() -> None:
    w = World(controller_instance="eu")
    w.hpa("a", "chat-kserve", labels={"inference.optimization/acceleratorName": 'H"100'})
    w.hpa("keda-hpa-b", "code", scaled_object="b")
    w.hpa("stranger", "somebody-else")
    w.wants("chat", 3, current=0)
    w.wants("code", 1, current=4)
    series = [line for line in w.variants.text().splitlines() if not line.startswith("#")]
    a = 'variant_name="a",namespace="llm",accelerator_type="H\\"100",controller_instance="eu"'
    b = 'variant_name="b",namespace="llm",accelerator_type="unknown",controller_instance="eu"'
    assert series == [
        f"wva_desired_replicas{{{a}}} 3",
        f"wva_desired_replicas{{{b}}} 1",
        f"wva_current_replicas{{{a}}} 0",
        f"wva_current_replicas{{{b}}} 4",
        f"wva_desired_ratio{{{a}}} 3.0",
        f"wva_desired_ratio{{{b}}} 0.25",
    ]


def test_one_object_is_one_pool_s() -> None:
    pools = [Pool.from_config({"name": n, "target": {"name": "x"}}).settings for n in ("a", "b")]
    with pytest.raises(ConfigError, match="a and b scale default/Deployment/x"):
        Variants(Board(pools))


def value_hpa(published: int, spec: int, ready: int) -> int:
    """What an HPA with `Value: 1` and no behaviour makes of a published number, as its source reads."""
    if spec == 0:
        return math.ceil(published / 1000)
    usage = published / 1000
    return spec if abs(1.0 - usage) <= 0.1 else math.ceil(usage * ready)


def test_behind_a_value_target_an_hpa_lands_on_the_wanted_count_and_stays_there_as_pods_turn_ready() -> None:
    """From any size with all pods ready to any that is beyond its tolerance; then whatever turns ready, whenever."""
    for spec in (*range(40), 173):
        for wanted in (*range(40), 100, 300):
            start = step("p", AT, wanted, current=spec, ready=spec)
            landed = value_hpa(behind_value(start, None), spec, spec)
            near = spec > 0 and wanted > 0 and abs(1 - wanted / spec) <= 0.1 + 1 / spec
            assert landed == wanted or (near and landed == spec), (spec, wanted, landed)
            if landed != wanted:
                continue
            for ready in range(min(spec, wanted), wanted + 1):  # before our next Step, and after it
                early = value_hpa(behind_value(start, wanted), wanted, max(1, ready)) if wanted else 0
                late = step("p", AT, wanted, current=wanted, ready=ready)
                assert early == wanted
                assert value_hpa(behind_value(late, None), wanted, ready) == wanted


def test_without_a_ready_pod_a_value_target_holds() -> None:
    loading = step("p", AT, 5, current=2, ready=0)
    assert value_hpa(behind_value(loading, None), 2, 0) == 2


@pytest.mark.parametrize(
    ("text", "milli"),
    [("1", 1000), ("1500m", 1500), ("2.5", 2500), ("2k", 2_000_000), ("", 1000), ("x", 1000), ("0", 1)],
)
def test_quantities_of_targets(text: str, milli: int) -> None:
    assert milli_of_quantity(text) == milli


def test_another_target_than_one_is_reckoned_with() -> None:
    w = World()
    w.hpa("half", "code", at="500m")
    w.hpa("two", "chat-kserve", "Value", at="2")
    w.wants("code", 6, current=3, ready=3)
    w.wants("chat", 6, current=3, ready=3)
    assert w.read("variant_name=half").milli == 3000  # ceil(3 / 0.5)
    assert math.ceil(w.read("variant_name=two").milli / 2000 * 3) == 6


def test_hpas_are_followed_as_they_come_and_go() -> None:
    async def run() -> None:
        w = World()
        async with FakeKubernetes() as server, Kubernetes(Plain(server.url)) as cluster:
            task = asyncio.create_task(w.variants.follow(cluster))
            ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "code"}
            metric = {"metric": {"name": "wva_desired_replicas"}, "target": {"type": "Value", "value": "1"}}
            spec = {"scaleTargetRef": ref, "metrics": [{"type": "External", "external": metric}]}
            server.put(HPA.path("llm", "h"), {"spec": spec})
            server.put(HPA.path("elsewhere", "h"), {"spec": spec})
            while not list(w.variants):
                await asyncio.sleep(0.01)
            (found,) = w.variants
            assert (found.pool, found.name, found.hpa.external[0].target_type) == ("code", "h", "Value")
            server.delete(HPA.path("llm", "h"))
            while list(w.variants):
                await asyncio.sleep(0.01)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(asyncio.wait_for(run(), 20))
