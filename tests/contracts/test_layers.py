"""The house keeps its layers, its surface and its lightness."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import autoscaler

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("autoscaler", "forecast", "serving", "metrics_adapter", "load_tests")


def test_layers_hold() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_surface_is_sorted_and_every_name_is_there() -> None:
    assert list(autoscaler.__all__) == sorted(autoscaler.__all__)
    for name in autoscaler.__all__:
        assert getattr(autoscaler, name).__name__ == name


def test_importing_needs_the_standard_library_only_and_little_of_it() -> None:
    code = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name[0] != '_' and name.split('.')[0] not in sys.stdlib_module_names | {'autoscaler', 'forecast', 'serving'}:
            raise ImportError(f'{name} is not in the standard library')
sys.meta_path.insert(0, Nothing())
import autoscaler
light = sorted(m for m in sys.modules if m.split('.')[0] in ('autoscaler', 'forecast', 'serving', 'asyncio', 'numpy'))
assert light == ['autoscaler'], light
from autoscaler import Demand, Latency, Load, Observation, Pool, Replicas
pool = Pool.from_config({'name': 'p', 'replica': {'profile': 'llama-3.1-8b_bf16_h100_tp1'}})
for at in range(10, 3000, 10):
    pool.step(Observation(pool='p', at_seconds=at, window_seconds=10, replicas=Replicas(desired=1, ready=1),
                          demand=Demand(requests=100, prompt_tokens=1e5, output_tokens=2e4, finished_requests=100)))
pool.refit()
assert pool.last_step.decision.replicas >= 1
assert not [m for m in sys.modules if m.split('.')[0] in ('numpy', 'numba', 'yaml', 'rich')]
print('fine')
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "fine\n", done.stderr


def test_the_only_ceiling_is_in_units() -> None:
    """A ceiling of a float quotient orders phantom GPUs: replica counts go through `units.replicas_for`."""
    rounding = re.compile(r"\bceil\b")
    for room in ("autoscaler", "metrics_adapter"):
        for path in (ROOT / room).rglob("*.py"):
            if path.name == "units.py" or "laws" in path.parts:  # laws of peers round as their originals do
                continue
            names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
            assert not any(rounding.search(name) for name in names), path


def test_every_module_says_what_it_is_for() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_the_command_is_installed() -> None:
    found = [e for e in entry_points(group="console_scripts") if e.name == "autoscaler"]
    assert [e.value for e in found] == ["autoscaler.main:main"]
