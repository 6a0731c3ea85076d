"""What the pages tell people to type, typed: each command that looks at a running autoscaler, under the pages' own names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from cluster_api import Namespace, Object
from cluster_components import Keda
from cluster_objects import pool
from cluster_plane import ControlPlane
from cluster_programs import Program, wait_for
from cluster_serve import Door, Serve

pytestmark = pytest.mark.cluster

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("hpa.md", "keda.md")
POOL = "llama-8b"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


def objects(page: str) -> list[Object]:
    return [o for o in map(yaml.safe_load, blocks(page, "yaml")) if "apiVersion" in o]


def test_the_commands_of_the_page_answer(plane: ControlPlane, namespace: Namespace, tmp_path: Path):
    [hpa] = [o for o in objects("hpa.md") if "desired_replicas" in str(o) and "wva" not in str(o)]
    words = [line for text in blocks("hpa.md", "console") for line in text.splitlines() if "kubectl get" in line]
    words += [line for text in blocks("hpa.md", "console") for line in text.splitlines() if "kubectl describe" in line]
    assert len(words) == 4
    with Door() as door, Serve(plane, namespace, tmp_path, door, pool={"name": POOL}) as served:
        door.arrive(2)
        namespace.apply(pool(POOL, replicas=2), {**hpa, "metadata": {"name": POOL}})
        namespace.wait_ready(POOL, 2)
        wait_for("the number", lambda: served.metric(plane.api, namespace.name, pool=POOL) == "2")
        told = ""
        for line in words:
            here = line.replace("/llm/", f"/{namespace.name}/").replace("-n llm", f"-n {namespace.name}")
            told += plane.api.kubectl(*shlex.split(here)[1:])
    assert re.search(r"v1beta1\.external\.metrics\.k8s\.io +autoscaler-system/autoscaler +True", told)
    assert '"value":"2"' in told.replace(" ", "")
    assert '"kind":"APIResourceList"' in told.replace(" ", "")
    assert '"desired_replicas" (target average value)' in told


@pytest.mark.parametrize("page", PAGES)
def test_the_objects_of_the_page_are_taken(
    plane: ControlPlane, keda: Keda, kserve: Program, namespace: Namespace, page: str
):
    for found in objects(page):
        text = yaml.safe_dump({**found, "metadata": {**found["metadata"], "namespace": namespace.name}})
        told = plane.api.kubectl(
            "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text
        )
        assert "serverside-applied" in told
