"""`make demo-hpa` as a person runs it: the story comes out, and nothing is left, on Ctrl-C neither."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo-hpa"


def left() -> list[str]:
    """Processes whose command line names a folder of the demo."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "/demo-hpa-" in words:
            found.append(words)
    return found


def test_a_flash_crowd_is_followed_and_forgotten():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sizes = [int(n) for n in re.findall(r"^llama-8b .* (\d+) +\d+m?\d*s?$", done.stdout, re.M)]
    assert max(sizes) >= 3
    [[last, failed]] = re.findall(r"^# 1 -> \d+ -> (\d+) replicas; \d+ requests, (\d+) failed", done.stdout, re.M)
    assert (last, failed) == ("1", "0"), done.stdout
    assert "http://127.0.0.1:" in done.stdout
    assert left() == []


def test_ctrl_c_leaves_nothing():
    with subprocess.Popen([sys.executable, str(SCRIPT)], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "requests per second" in line:
                break
        assert left()
        running.send_signal(signal.SIGINT)
        assert "Everything is gone again." in running.stdout.read()
        assert running.wait(30) == 130
    time.sleep(0.5)
    assert left() == []
    assert not list(Path(tempfile.gettempdir()).glob("demo-hpa-*/plane"))
