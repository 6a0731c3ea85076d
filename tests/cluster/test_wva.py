"""The WVA series as KServe's and llm-d's own HPAs read them, on the real controller: both land on our number, and stay."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from cluster_api import Namespace
from cluster_objects import hpa, pool
from cluster_programs import wait_for
from cluster_serve import Door, Serve

pytestmark = pytest.mark.cluster

# (what KServe writes, what llm-d's chart writes); both with the HPA's own default behaviour and tolerance.
KSERVE: dict[str, Any] = {"value": "1", "selector": {"variant_name": "chat"}}
LLMD: dict[str, Any] = {"average_value": "1", "selector": {"variant_name": "chat", "exported_namespace": ""}}


@pytest.mark.parametrize("form", ["kserve", "llm-d"])
def test_both_forms_land_on_our_number_while_pods_turn_ready_one_by_one(
    served: Serve, namespace: Namespace, door: Door, form: str, tmp_path: Path
) -> None:
    """Numbers are further apart than the tolerance of 10 %; pods take 0 to 6 s, which is several looks of the HPA."""
    asks = KSERVE if form == "kserve" else LLMD
    selector = {k: v or namespace.name for k, v in asks["selector"].items()}
    quick = {"scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 1000, "periodSeconds": 15}]},
             "scaleDown": {"stabilizationWindowSeconds": 0}}  # fmt: skip
    door.arrive(2)
    namespace.apply(pool("chat", replicas=2, startup_seconds=0.0, startup_longest_seconds=6.0))
    namespace.wait_ready("chat", 2)
    namespace.apply(hpa("chat", metric="wva_desired_replicas", behavior=quick, **{**asks, "selector": selector}))
    seen = []
    for replicas in (7, 12, 22, 9, 4, 1, 5):
        before = namespace.deployment("chat")
        door.arrive(replicas)
        seen.append(namespace.sizes(before, until=replicas, seconds=40))
        namespace.wait_ready("chat", replicas)
        namespace.hold("chat", replicas, seconds=3)
    print(f"\n{form}: sizes on the way {seen}")
    ours = decided(tmp_path / "steps")
    assert {size for sizes in seen for size in sizes} <= ours
    assert sum(len(sizes) for sizes in seen) <= 9  # on a busy machine a turn may be late, and count for two


def decided(steps: Path) -> set[int]:
    """Every number that was decided, as far as the HPA's least of 1 lets it through."""
    lines = [json.loads(line) for path in steps.rglob("*.jsonl") for line in path.read_text().splitlines()]
    return {max(1, line["decision"]["replicas"]) for line in lines if line["type"] == "step"}


def test_the_series_are_on_our_page_with_the_original_s_labels(served: Serve, namespace: Namespace, door: Door) -> None:
    door.arrive(3)
    namespace.apply(pool("chat", replicas=3))
    namespace.apply(hpa("chat", metric="wva_desired_replicas", **KSERVE))
    row = f'wva_desired_replicas{{variant_name="chat",namespace="{namespace.name}",accelerator_type="unknown"}} 3'

    def page() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{served.plain}/metrics", timeout=5) as answer:
            return row in answer.read().decode()

    wait_for("the series", page)
