"""Every example in README and docs is run: Python blocks as they stand, YAML as scenario files, commands as commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from autoscaler.main import main, parser
from autoscaler.schema import build
from autoscaler.settings import FileSettings, PoolSettings
from autoscaler.testing import observation
from load_tests.scenario import scenario_from
from metrics_adapter.engines import load_engine
from metrics_adapter.sources import check_source

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(page: str, language: str) -> list[str]:
    return [text for tag, text in BLOCK.findall((ROOT / page).read_text()) if tag == language]


def all_blocks(language: str) -> list[tuple[str, int]]:
    return [(page, i) for page in PAGES for i in range(len(blocks(page, language)))]


@pytest.mark.parametrize(("page", "index"), all_blocks("python"))
def test_python_examples_run(page: str, index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks(page, "python")[index]
    monkeypatch.chdir(tmp_path)
    if "ten_minutes.yaml" in code:
        (tmp_path / "ten_minutes.yaml").write_text(blocks("docs/simulate.md", "yaml")[0])
    names: dict[str, object] = {}
    exec(compile(code, f"{page}[{index}]", "exec"), names)
    if "turn" in names:

        class Fleet:
            desired, ready, starting = 1, 1, 0

        class Counted:
            requests, prompt_tokens, running, waiting = 4000.0, 4_000_000.0, 50, 200

        assert names["turn"](1_760_000_000, Fleet(), Counted()) > 1  # type: ignore[operator]
    if "control" in names:
        control, workers = names["control"], names["workers"]
        try:
            assert [control(1_760_000_000 + 10 * i, 250, 0) for i in range(3)] == [3, 3, 3]  # type: ignore[operator]
            workers[0].kill()  # type: ignore[index]
            workers[0].wait()  # type: ignore[index]
            assert control(1_760_000_030, 250, 0) == 3 == len(workers)  # type: ignore[operator, arg-type]
        finally:
            for worker in workers:  # type: ignore[attr-defined]
                worker.kill()
                worker.wait()
    if "HalfTheQueue" in names:
        seen = observation("chat", 1_760_000_000, replicas=1, waiting_requests=120)
        assert names["pool"].step(seen).replicas == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(("page", "index"), all_blocks("yaml"))
def test_yaml_examples_are_what_they_look_like(page: str, index: int, tmp_path: Path) -> None:
    """A config, the source of a pool, an engine's table, or else a scenario."""
    import yaml

    data = yaml.safe_load(blocks(page, "yaml")[index])
    if "apiVersion" in data:
        return  # an object of Kubernetes: test_cluster_pages.py
    if "pools" in data:
        for pool in build(FileSettings, data).pools:
            check_source(pool)
    elif "source" in data:
        check_source(build(PoolSettings, {"name": "example", **data}))
    elif "rows" in data:
        assert set(data["rows"]) < set(load_engine(data).rows)
    else:
        assert scenario_from(data, tmp_path).policies


def test_the_scenario_of_the_page_runs_under_every_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("SCENARIO.yaml").write_text(blocks("docs/simulate.md", "yaml")[0])
    assert main(["simulate", "SCENARIO.yaml", "--seed", "0", "--html", "report.html", "--log", "steps"]) == 0
    out = capsys.readouterr().out
    for name in ("auto", "by hand", "hpa running_and_waiting_requests", "kpa", "static 4"):
        assert name in out
    assert Path("report.html").exists()
    assert main(["explain", "steps/ten-minutes/seed0/auto/pool", "--last", "3"]) == 0


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_the_pages_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    said = re.findall(r"^autoscaler [^\n]*", "\n".join(blocks(page, "")), re.M)
    for line in said:
        words = shlex.split(line.replace("[", "").replace("]", "").replace("...", ""), comments=True)[1:]
        known = {name for action in parser()._subparsers._group_actions for name in action.choices}  # type: ignore[union-attr]
        assert words[0] in known, line
    for word in re.findall(r"`make ([a-z-]+)`", text):
        assert f"\n{word}:" in (ROOT / "Makefile").read_text(), word


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            if not target.startswith("http"):
                assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
