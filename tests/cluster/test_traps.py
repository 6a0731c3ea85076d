"""What an HPA does with a wanted count, seen on the real controller: each trap, and then what we publish instead.

docs/traps.md tells of it; its table is what these tests saw.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cluster_adapter import Adapter, Failure
from cluster_api import Namespace, Object, condition
from cluster_objects import PASS_THROUGH, hpa, pool
from cluster_plane import ControlPlane
from cluster_programs import wait_for

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]

# As a plain HPA behaves, but without the five minutes that it waits before it goes down.
IMPATIENT: Object = {"scaleDown": {"stabilizationWindowSeconds": 0}}


def settle(adapter: Adapter, namespace: Namespace, name: str, replicas: int) -> None:
    """Bring a Deployment with its HPA to a number, by publishing it."""
    adapter.publish(namespace.name, replicas)
    namespace.apply(pool(name, replicas=replicas))
    namespace.wait_ready(name, replicas)


def test_the_table_tells_of_this_version(plane: ControlPlane):
    assert plane.version().removeprefix("v") in (ROOT / "docs" / "traps.md").read_text()


def test_what_avoids_the_traps_is_what_the_manifests_have():
    [shipped] = yaml.safe_load_all((ROOT / "manifests" / "overlays" / "hpa" / "hpa.yaml").read_text())
    ours = hpa("x", selector={"pool": shipped["metadata"]["name"]})["spec"]
    assert (shipped["spec"]["behavior"], shipped["spec"]["metrics"]) == (ours["behavior"], ours["metrics"])


def test_a_target_value_runs_away(adapter: Adapter, namespace: Namespace):
    adapter.publish(namespace.name, 3)
    namespace.apply(pool("chat", replicas=2))
    namespace.wait_ready("chat", 2)
    before = namespace.deployment("chat")
    namespace.apply(hpa("chat", value="1", high=60))
    # 6, 18, 54 where all pods of a step are ready at the next look; on a busy machine it looks in between.
    path = namespace.sizes(before, until=60)
    assert (path[0], path[-1]) == (6, 60)
    assert path == sorted(path)
    # And one is no way back: the ratio is then 1.
    adapter.publish(namespace.name, 1)
    adapter.wait_asked(namespace.name)
    assert namespace.wanted("chat") == 60


@pytest.mark.parametrize(
    ("behavior", "path"), [(None, [4, 8, 12]), (IMPATIENT, [6, 12])], ids=["no behavior", "default policies"]
)
def test_other_policies_only_slow_the_run_down(
    adapter: Adapter, namespace: Namespace, behavior: Object | None, path: list[int]
):
    adapter.publish(namespace.name, 3)
    namespace.apply(pool("chat", replicas=2))
    namespace.wait_ready("chat", 2)
    before = namespace.deployment("chat")
    namespace.apply(hpa("chat", value="1", high=12, behavior=behavior))
    seen = namespace.sizes(before, until=12)
    assert (seen[0], seen[-1]) == (path[0], 12)
    assert len(seen) >= len(path)


def test_a_target_value_removes_replicas_that_load(adapter: Adapter, namespace: Namespace):
    adapter.publish(namespace.name, 5)
    namespace.apply(pool("chat", replicas=5, startup_seconds=600), hpa("chat", value="1"))
    namespace.wait_wanted("chat", 1)


def test_an_average_of_one_is_the_number(adapter: Adapter, namespace: Namespace):
    settle(adapter, namespace, "chat", 2)
    namespace.apply(hpa("chat"))
    before = namespace.deployment("chat")
    adapter.publish(namespace.name, 3)
    assert namespace.sizes(before, until=3) == [3]
    adapter.wait_asked(namespace.name)
    assert namespace.wanted("chat") == 3
    adapter.publish(namespace.name, 1)
    namespace.wait_wanted("chat", 1)


def test_an_average_of_one_keeps_replicas_that_load(adapter: Adapter, namespace: Namespace):
    adapter.publish(namespace.name, 5)
    namespace.apply(pool("chat", replicas=5, startup_seconds=600), hpa("chat"))
    adapter.wait_asked(namespace.name)
    assert (namespace.wanted("chat"), namespace.ready("chat")) == (5, 0)


def test_a_tenth_is_swallowed_by_default(adapter: Adapter, namespace: Namespace):
    settle(adapter, namespace, "chat", 20)
    namespace.apply(hpa("chat", behavior=IMPATIENT))
    for wanted in (18, 19, 21, 22):
        adapter.publish(namespace.name, wanted)
        adapter.wait_asked(namespace.name)
        assert namespace.wanted("chat") == 20
    for wanted in (23, 20):
        adapter.publish(namespace.name, wanted)
        namespace.wait_ready("chat", wanted)
    adapter.publish(namespace.name, 17)
    namespace.wait_wanted("chat", 17)


@pytest.mark.parametrize("step", [9, 11])
def test_a_tenth_of_ten_is_one(adapter: Adapter, namespace: Namespace, step: int):
    settle(adapter, namespace, "chat", 10)
    namespace.apply(hpa("chat", behavior=IMPATIENT))
    adapter.publish(namespace.name, step)
    adapter.wait_asked(namespace.name)
    assert namespace.wanted("chat") == 10


def test_with_a_tolerance_of_zero_each_step_of_one_at_twenty_is_taken(adapter: Adapter, namespace: Namespace):
    settle(adapter, namespace, "chat", 20)
    namespace.apply(hpa("chat"))
    for wanted in (21, 22, 21, 20, 19, 18):
        adapter.publish(namespace.name, wanted)
        namespace.wait_wanted("chat", wanted)
        namespace.wait_ready("chat", wanted)


def roll(namespace: Namespace, name: str) -> None:
    """Begin a rollout whose new pod does not become ready."""
    change = {"template": {"metadata": {"annotations": {"startup/seconds": "600s", "startup/longest-seconds": "600s"}}}}
    namespace.api.patch(namespace.path("apps/v1", "Deployment", name), {"spec": change})
    wait_for("the surge", lambda: namespace.deployment(name)["status"].get("replicas") == 11)


@pytest.mark.parametrize(("behavior", "size"), [(IMPATIENT, 11), (PASS_THROUGH, 10)])
def test_a_rollout_surge_is_taken_for_the_size(adapter: Adapter, namespace: Namespace, behavior: Object, size: int):
    adapter.publish(namespace.name, 10)
    namespace.apply(pool("chat", replicas=10, surge=1))
    namespace.wait_ready("chat", 10)
    namespace.apply(hpa("chat", behavior=behavior))
    adapter.wait_asked(namespace.name)
    roll(namespace, "chat")
    adapter.wait_asked(namespace.name)
    assert namespace.wanted("chat") == size


def test_five_minutes_of_its_own_come_on_top(adapter: Adapter, namespace: Namespace):
    settle(adapter, namespace, "chat", 6)
    namespace.apply(hpa("chat", behavior=None))
    adapter.publish(namespace.name, 2)
    adapter.wait_asked(namespace.name, 5)
    assert namespace.wanted("chat") == 6
    namespace.apply(hpa("chat"))
    namespace.wait_wanted("chat", 2)


def test_items_are_added_up_and_no_item_is_an_error(adapter: Adapter, namespace: Namespace):
    settle(adapter, namespace, "chat", 2)
    namespace.apply(hpa("chat"))
    adapter.publish(namespace.name, [3, 4])
    namespace.wait_wanted("chat", 7)
    adapter.publish(namespace.name, [])
    adapter.wait_asked(namespace.name)
    state = condition(namespace.hpa("chat"), "ScalingActive")
    assert (state["status"], state["reason"]) == ("False", "FailedGetExternalMetric")
    assert namespace.wanted("chat") == 7


def test_from_zero_straight_to_the_number_and_back(adapter: Adapter, namespace: Namespace):
    adapter.publish(namespace.name, 0)
    namespace.apply(pool("chat"), hpa("chat", low=0))
    namespace.wait_ready("chat", 0)
    before = namespace.deployment("chat")
    adapter.publish(namespace.name, 7)
    assert namespace.sizes(before, until=7) == [7]
    namespace.wait_ready("chat", 7)
    before = namespace.deployment("chat")
    adapter.publish(namespace.name, 0)
    assert namespace.sizes(before, until=0) == [0]


@pytest.mark.parametrize("code", [503, 404, 500, 401])
def test_any_refusal_holds_and_its_sentence_is_read(adapter: Adapter, namespace: Namespace, code: int):
    settle(adapter, namespace, "chat", 4)
    namespace.apply(hpa("chat", low=0))
    adapter.wait_asked(namespace.name)
    sentence = "pool chat: the last step is 94 s old, and none older than 45 s is shown"
    adapter.publish(namespace.name, Failure(code, sentence))
    adapter.wait_asked(namespace.name)
    assert namespace.wanted("chat") == 4
    told = namespace.describe("hpa", "chat")
    assert sentence in told, told
