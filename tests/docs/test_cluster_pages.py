"""The objects and commands of the pages on Kubernetes are those that the manifests hold and the programs take.

tests/cluster applies the same objects to a real API server.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.main import parser
from metrics_adapter.serve_command import check

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/hpa.md", "docs/keda.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(language: str) -> list[str]:
    return [text for page in PAGES for tag, text in BLOCK.findall((ROOT / page).read_text()) if tag == language]


def shipped() -> list[dict[str, Any]]:
    files = (ROOT / "manifests").rglob("*.yaml")
    return [o for file in files for o in yaml.safe_load_all(file.read_text()) if isinstance(o, dict)]


@pytest.mark.parametrize("index", range(len(blocks("yaml"))))
def test_every_object_on_the_pages_is_one_of_the_manifests(index: int) -> None:
    found = yaml.safe_load(blocks("yaml")[index])
    if "pools" in found:  # a config: the shipped one, but for where its log is
        (base,) = [o for o in shipped() if o.get("pools") == found["pools"]]
        assert base["version"] == found["version"]
        return
    assert found in shipped()


def test_there_is_a_page_for_every_overlay() -> None:
    text = "".join((ROOT / page).read_text() for page in PAGES)
    for overlay in (ROOT / "manifests" / "overlays").iterdir():
        assert f"overlay `{overlay.name}`" in text


def test_what_is_applied_is_there() -> None:
    said = [word for text in blocks("console") for word in re.findall(r"-k (\S+)", text)]
    assert said
    for folder in said:
        assert (ROOT / folder / "kustomization.yaml").exists(), folder


def test_every_option_that_the_pages_and_the_manifests_name_is_one() -> None:
    text = "".join((ROOT / page).read_text() for page in PAGES)
    known = set(re.findall(r"--[a-z-]+", parser()._subparsers._group_actions[0].choices["serve"].format_help()))  # type: ignore[union-attr,index,call-overload]
    said = set(re.findall(r"`(--[a-z-]+)", text))
    assert said
    assert said <= known
    for o in shipped():
        for container in o.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            if container.get("args", [None])[0] == "serve":
                asked = parser().parse_args(container["args"])
                check(asked)
                assert asked.config == Path("/etc/autoscaler/config.yaml")


def test_commands_can_be_read_by_a_shell() -> None:
    for text in blocks("console"):
        for line in text.splitlines():
            assert shlex.split(line)[0] in ("kubectl",)
