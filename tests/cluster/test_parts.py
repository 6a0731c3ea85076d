"""scripts/cluster-parts: programs that are installed are taken where they are whole and recent; else it says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "cluster-parts"
CORE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")


def install(folder: Path, version: str, programs: tuple[str, ...] = CORE) -> Path:
    """Programs that only know their version."""
    folder.mkdir()
    for program in programs:
        (folder / program).write_text(f"#!/bin/sh\necho Kubernetes v{version}\n")
        (folder / program).chmod(0o755)
    return folder


def run(cache: Path, *words: str, assets: Path | None = None, path: str = "") -> subprocess.CompletedProcess[str]:
    """The script with an empty cache, and nothing but `path` on PATH."""
    environment = {"XDG_CACHE_HOME": str(cache), "HOME": str(cache), "PATH": path or "/nowhere"}
    if assets is not None:
        environment["KUBEBUILDER_ASSETS"] = str(assets)
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", ["1.37.2", "1.38.0", "2.0.1"])
def test_installed_programs_are_taken(tmp_path: Path, version: str):
    assets = install(tmp_path / "assets", version)
    with_shell = f"{assets}{os.pathsep}/bin{os.pathsep}/usr/bin"
    for found in (
        run(tmp_path, "--find", "control-plane", assets=assets, path="/bin:/usr/bin"),
        run(tmp_path, "control-plane", path=with_shell),
    ):
        assert (found.returncode, found.stdout) == (0, f"control-plane={assets}\n")


@pytest.mark.parametrize(("version", "programs"), [("1.36.9", CORE), ("1.37.2", CORE[:-2])])
def test_what_is_old_or_not_whole_is_not(tmp_path: Path, version: str, programs: tuple[str, ...]):
    assets = install(tmp_path / "assets", version, programs)
    found = run(tmp_path, "--find", "control-plane", assets=assets, path="/bin:/usr/bin")
    assert (found.returncode, found.stdout) == (1, "")


def test_without_go_it_says_what_to_install(tmp_path: Path):
    found = run(tmp_path, "kwok")
    assert found.returncode == 1
    assert found.stderr == (
        "cluster-parts: no kwok here and no Go to build it: install Go 1.26 or later (https://go.dev/dl)\n"
    )


def test_an_unknown_part_is_refused(tmp_path: Path):
    found = run(tmp_path, "istio")
    assert found.returncode == 2
    assert "no part 'istio'" in found.stderr


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
def test_without_go_the_group_is_skipped_and_in_ci_fails(tmp_path: Path, ci: str, outcome: str):
    one = "tests/cluster/test_harness.py::test_who_may_enter"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": "/nowhere", "CI": ci}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cluster", one],
        cwd=SCRIPT.parents[1], env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome in done.stdout, done.stdout
    assert "install Go 1.26 or later" in done.stdout
