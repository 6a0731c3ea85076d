"""The main job, ready-made: two recorded LLM traces on a simulated fleet under our policy and well-known autoscalers."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

from load_tests.campaign import check_place, progress_bar, run_all, tell
from load_tests.scenario import load_scenario

SCENARIOS = ("builtin:azure_conv", "builtin:diurnal_day")


def demo(out: Path, *, as_json: bool = False) -> int:
    """Run both scenarios, print the tables, write the report and the step logs below `out`."""
    check_place(out, "--out")
    begun = perf_counter()
    if not as_json:
        print("Two recorded LLM traces, a simulated fleet of vLLM replicas, and who held the SLO at what GPU cost.")
        print("The first run on a machine compiles the simulator, which takes about half a minute.", flush=True)
    with progress_bar() as progress:
        runs = run_all([load_scenario(s) for s in SCENARIOS], log=out / "steps", progress=progress)
    tell(runs, html=out / "report.html", title="Replicast demo", as_json=as_json)
    if not as_json:
        log = next((out / "steps").glob("*/*/auto/pool"), None)
        if log is not None:
            print(f"Why:    autoscaler explain {log} --last 3", file=sys.stdout)
        print(f"Done in {perf_counter() - begun:.0f} s.")
    return 0
