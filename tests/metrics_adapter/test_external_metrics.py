"""The external metrics API: its bodies field by field, read by a Kubernetes client, and every refusal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import kubernetes.client as k8s
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity
from served import Served, served

from autoscaler import Pool
from autoscaler.signals import SIGNALS
from autoscaler.testing import observation
from autoscaler.types import Forecast, Histogram, Latency, Step
from metrics_adapter.board import Board
from metrics_adapter.external_metrics import GROUP, external_metrics
from metrics_adapter.external_metrics_table import markdown
from metrics_adapter.external_metrics_values import metrics_of, milli_of, quantity, value_form
from metrics_adapter.wva import Variants

START = 1_767_225_600  # 2026-01-01T00:00:00Z
TTFT = Histogram(upper_bounds=(0.5, 1.0, 2.0), counts=(90.0, 5.0, 4.0, 1.0), sum=30.0)
ROOT = f"/apis/{GROUP}/v1beta1"


def step_of(name: str, namespace: str, at_seconds: int = START, **seen: Any) -> tuple[Pool, Step]:
    pool = Pool.from_config({"name": name, "target": {"name": name, "namespace": namespace}})
    made = observation(name, at_seconds, replicas=3, requests_per_second=4.0, waiting_requests=2.5)
    latency = Latency(ttft=TTFT, served_requests=100.0)
    pool.step(replace(made, latency=latency, **seen))
    assert pool.last_step is not None
    forecast = Forecast(
        at_seconds=at_seconds, levels=(0.5, 0.95), windows=((0, 60), (60, 120)), values=((1.0, 2.0), (1.5, math.nan))
    )
    return pool, replace(pool.last_step, forecast=forecast)


class Now:
    seconds = START + 5.0

    def __call__(self) -> float:
        return self.seconds


class World:
    def __init__(self) -> None:
        self.now = Now()
        chat, self.step = step_of("chat", "llm")
        code, code_step = step_of("code", "llm")
        other, other_step = step_of("other", "elsewhere")
        silent, _ = step_of("silent", "llm")
        self.board = Board([p.settings for p in (chat, code, other, silent)], now=self.now)
        for step in (self.step, code_step, other_step):
            self.board.post(step)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Served]:
    with served(external_metrics(metrics_of(world.board))) as found:
        yield found


@pytest.fixture
def client(server: Served) -> Iterator[k8s.ApiClient]:
    configuration = k8s.Configuration(host=f"http://127.0.0.1:{server.port}")
    configuration.retries = False
    with k8s.ApiClient(configuration) as client:
        yield client


def ask(client: k8s.ApiClient, metric: str, selector: str | None, namespace: str = "llm") -> dict[str, Any]:
    api = k8s.CustomObjectsApi(client)
    asked = {} if selector is None else {"label_selector": selector}
    found = api.list_namespaced_custom_object(GROUP, "v1beta1", namespace, metric, **asked)
    assert isinstance(found, dict)
    return found


def refused(client: k8s.ApiClient, metric: str, selector: str | None, namespace: str = "llm") -> dict[str, Any]:
    with pytest.raises(k8s.ApiException) as caught:
        ask(client, metric, selector, namespace)
    body = json.loads(caught.value.body)
    assert (body["kind"], body["apiVersion"], body["status"]) == ("Status", "v1", "Failure")
    assert body["code"] == caught.value.status
    assert isinstance(body, dict)
    return body


def get(server: Served, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    with urlopen(Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)) as answer:
        return answer.status, dict(answer.headers), answer.read()


def test_the_wanted_count_is_one_whole_number_of_the_steps_instant(client: k8s.ApiClient, world: World):
    assert ask(client, "desired_replicas", "pool=chat") == {
        "kind": "ExternalMetricValueList",
        "apiVersion": "external.metrics.k8s.io/v1beta1",
        "metadata": {},
        "items": [
            {
                "metricName": "desired_replicas",
                "metricLabels": {"pool": "chat"},
                "timestamp": "2026-01-01T00:00:00Z",
                "window": world.step.observation.window_seconds,
                "value": str(world.step.decision.replicas),
            }
        ],
    }


@pytest.mark.parametrize(
    ("metric", "selector", "value"),
    [
        ("requests_per_second", "pool=chat", 4.0),
        ("waiting_requests", "pool=chat", 2.5),
        ("ttft_p95_seconds", "pool=chat", 1.0),
        ("ttft_seconds", "pool=chat,level=0.95", 1.0),
        ("ttft_seconds", "pool in (chat),level notin (0.5,0.9,0.99)", 1.0),
        ("forecast_work_erlangs", "pool=chat,window=0,level=0.95", 2.0),
        ("forecast_work_erlangs", "pool=chat,window>0", 1.5),  # the other one is NaN
        ("replicas", "pool=chat,stage=ready", 3.0),
        ("desired_ratio", "pool=chat", None),
    ],
)
def test_signals_with_their_labels(
    client: k8s.ApiClient, world: World, metric: str, selector: str, value: float | None
):
    item = ask(client, metric, selector)["items"]
    assert len(item) == 1
    found = float(parse_quantity(item[0]["value"]))
    decided = world.step.decision.replicas
    expected = {"desired_ratio": value_form(decided, 3) / 1000}.get(metric, value)
    assert found == pytest.approx(expected, abs=0.0005)


@pytest.mark.parametrize(
    ("metric", "selector", "namespace", "code", "said"),
    [
        ("desired_replicas", "pool==chat,", "llm", 400, "must be the name of a label"),
        ("desired_replicas", "pool notin (silent)", "llm", 400, "must name one item, and it names pool=chat and pool=code"),
        ("ttft_seconds", "pool=chat", "llm", 400, "level=0.5 and pool=chat,level=0.9"),
        ("desired", "pool=chat", "llm", 404, "desired: no such metric"),
        ("desired_replicas", "pool=chta", "llm", 404, "this namespace, which has chat, code, silent"),
        ("desired_replicas", "pool=other", "llm", 404, "names nothing in this namespace"),
        ("desired_replicas", "pool=chat", "nowhere", 404, "which has none"),
        ("ttft_seconds", "pool=chat,level=0.42", "llm", 404, "one of them has pool=chat,level=0.5"),
        ("desired_replicas", "pool=silent", "llm", 503, "pool silent: not observed yet"),
        ("desired_replicas", None, "llm", 400, "must name one item"),
        ("gpu_utilization_fraction", "pool=chat", "llm", 503, "is not known in the last step"),
    ],
)  # fmt: skip
def test_refusals(client: k8s.ApiClient, metric: str, selector: str, namespace: str, code: int, said: str):
    body = refused(client, metric, selector, namespace)
    assert body["code"] == code
    assert said in body["message"]
    reasons = {400: "BadRequest", 404: "NotFound", 503: "ServiceUnavailable"}
    assert body["reason"] == reasons[code]


def test_a_single_pool_needs_no_selector(client: k8s.ApiClient):
    assert ask(client, "desired_replicas", None, "elsewhere")["items"][0]["metricLabels"] == {"pool": "other"}


def test_a_stale_step_is_refused_with_its_age_and_discovery_still_answers(
    client: k8s.ApiClient, server: Served, world: World
):
    world.now.seconds = START + 94.0
    try:
        body = refused(client, "desired_replicas", "pool=chat")
        assert (body["code"], body["message"]) == (503, "pool chat: last step is 94 s old, the limit is 45 s")
        assert get(server, ROOT)[0] == 200
        assert get(server, "/readyz")[0] == 200
    finally:
        world.now.seconds = START + 5.0


def test_discovery_as_a_kubernetes_client_reads_it(client: k8s.ApiClient, server: Served):
    group = client.deserialize(get(server, f"/apis/{GROUP}")[2].decode(), "V1APIGroup", "application/json")
    assert (group.name, group.preferred_version.group_version) == (GROUP, f"{GROUP}/v1beta1")
    assert group.versions[0].version == "v1beta1"
    listed = client.deserialize(get(server, ROOT)[2].decode(), "V1APIResourceList", "application/json")
    assert listed.group_version == f"{GROUP}/v1beta1"
    rows = {r.name: r for r in listed.resources}
    assert rows["desired_replicas"].kind == "ExternalMetricValueList"
    assert rows["desired_replicas"].namespaced
    assert rows["desired_replicas"].verbs == ["get"]
    assert {"ttft_seconds", "itl_seconds", "work_erlangs", *SIGNALS} <= set(rows)
    assert {"kv_cache_fraction", "gpu_utilization_fraction", "forecast_work_erlangs"} <= set(rows)
    assert not [n for n in rows if n.endswith(("_total", "_info"))]
    groups = client.deserialize(get(server, "/apis")[2].decode(), "V1APIGroupList", "application/json")
    assert [g.name for g in groups.groups] == [GROUP]


def test_every_listed_metric_answers_or_says_why_not(client: k8s.ApiClient, server: Served):
    names = [r["name"] for r in json.loads(get(server, ROOT)[2])["resources"]]
    for name in names:
        try:
            (item,) = ask(client, name, "pool=chat")["items"]
            outcome = item["value"].removesuffix("m")
        except k8s.ApiException as error:
            outcome = str(error.status)
        assert outcome.isdigit(), name
        assert outcome != "500", name


def test_a_client_that_prefers_protobuf_gets_json(server: Served):
    accept = "application/vnd.kubernetes.protobuf, */*"
    path = f"{ROOT}/namespaces/llm/desired_replicas?labelSelector=pool%3Dchat"
    _, headers, body = get(server, path, Accept=accept)
    assert headers["Content-Type"].startswith("application/json")
    assert json.loads(body)["items"][0]["metricLabels"] == {"pool": "chat"}


def test_openapi_has_tags_and_names_its_paths(server: Served):
    _, headers, body = get(server, "/openapi/v3")
    (where,) = json.loads(body)["paths"].values()
    document = json.loads(get(server, where["serverRelativeURL"])[2])
    assert list(document["paths"]) == [f"{ROOT}/namespaces/{{namespace}}/{{metric}}"]
    assert json.loads(get(server, "/openapi/v2")[2])["swagger"] == "2.0"
    with pytest.raises(Exception, match="304"):
        get(server, "/openapi/v3", **{"If-None-Match": headers["ETag"]})


def test_paths_and_methods_that_are_not_there_are_a_status(server: Served):
    for method, path, code in (("GET", "/nothing", 404), ("DELETE", ROOT, 405)):
        request = Request(f"http://127.0.0.1:{server.port}{path}", method=method)
        with pytest.raises(Exception, match=str(code)) as caught:
            urlopen(request)
        with caught.value as answer:  # type: ignore[attr-defined]
            assert json.loads(answer.read())["code"] == code


def test_the_group_is_configurable(world: World):
    with served(external_metrics(metrics_of(world.board), group="metrics.example.com")) as server:
        body = json.loads(get(server, "/apis/metrics.example.com/v1beta1/namespaces/elsewhere/desired_replicas")[2])
        assert body["apiVersion"] == "metrics.example.com/v1beta1"


def hpa_pods(value: str, ready: int) -> int:
    """An HPA's arithmetic with `Value: 1` outside of tolerance: milli of the quantity, float ratio, ceiling."""
    milli = float(parse_quantity(value)) * 1000
    return math.ceil(milli / 1000.0 * ready)


def test_the_value_form_lands_on_every_count_up_to_300():
    for ready in range(1, 301):
        for wanted in range(1, 301):
            assert hpa_pods(quantity(value_form(wanted, ready)), ready) == wanted
    assert value_form(3, 0) == 1000
    assert value_form(0, 3) == 0


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_number_leaves_with_an_exponent_a_sign_or_as_nan(value: float):
    milli = milli_of(value)
    if milli is None:
        assert not math.isfinite(value) or value < 0.0 or value > 9e15
    else:
        assert quantity(milli).removesuffix("m").isdigit()
        assert float(parse_quantity(quantity(milli))) == pytest.approx(value, rel=1e-9, abs=0.0005)


def test_the_table_in_the_docs_is_the_metrics_there_are(world: World):
    page = (Path(__file__).parents[2] / "docs" / "external-metrics.md").read_text()
    assert markdown() in page, "docs/external-metrics.md must hold what external_metrics_table.markdown() prints"
    there_are = {*metrics_of(world.board), *Variants(world.board).metrics()}
    assert {line.split("`")[1] for line in markdown().splitlines()[2:]} == there_are
