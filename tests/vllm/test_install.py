"""The script that installs vLLM: what it says where there is nothing.  It installs nothing here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "vllm-cpu"


def find(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--find"], capture_output=True, text=True, check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
    )  # fmt: skip


def test_finding_nothing_is_a_quiet_no(tmp_path: Path) -> None:
    found = find(tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (1, "", "")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_told_in_three_lines_and_a_half_install_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.write_text("#!/bin/sh\nexit 0\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    code = "import runpy,sys;g=runpy.run_path(sys.argv[1]);print(g['cache_folder']('cpu'));print(g['cache_folder']('cuda'))"
    told = subprocess.run(
        [sys.executable, "-c", code, str(SCRIPT)], capture_output=True, text=True, check=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    ).stdout.split()  # fmt: skip
    assert len(set(told)) == 2
    for device, folder in zip(("cpu", "cuda"), map(Path, told), strict=True):
        chosen = {"AUTOSCALER_VLLM_DEVICE": "cpu"} if device == "cpu" else {}
        folder.mkdir(parents=True)
        (folder / "installed").touch()
        assert find(tmp_path, **chosen).returncode == 1
        (folder / "tiny.made").touch()
        found = find(tmp_path, **chosen)
        lines = dict(line.split("=", 1) for line in found.stdout.splitlines())
        assert found.returncode == 0
        assert lines == {"PYTHON": f"{folder}/venv/bin/python", "MODEL": f"{folder}/tiny", "DEVICE": device}
