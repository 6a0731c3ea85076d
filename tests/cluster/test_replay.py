"""A recorded trace through the whole chain, fifteen times as fast, against the simulator's prediction."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path as File

import pytest
from cluster_api import Namespace
from cluster_objects import pool
from cluster_plane import ControlPlane
from cluster_replay import (
    HPA_SYNC_SECONDS,
    Path,
    World,
    contestant_of,
    played,
    simulated,
    startup,
    with_startup,
)

from load_tests.campaign import policy_settings, prepare
from load_tests.scenario import PoolPolicy, load_scenario
from load_tests.traffic_settings import Window

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

START_SECONDS, SPREAD_SECONDS = 90.0, 20.0
TRACE_SECONDS = 2100.0
POLICY = os.environ.get("AUTOSCALER_REPLAY_POLICY", "auto, load-tested")


def test_the_chain_does_what_the_simulator_says(
    plane: ControlPlane, namespace: Namespace, external_metrics: None, tmp_path: File
):
    factor = HPA_SYNC_SECONDS / plane.hpa_sync_seconds
    scenario = load_scenario("builtin:azure_conv")
    scenario = replace(scenario, window=Window(start_seconds=0, duration_seconds=TRACE_SECONDS), initial_replicas=8)
    prepared = prepare(scenario, 0)
    setup = with_startup(prepared.setup, startup(START_SECONDS, SPREAD_SECONDS))
    policy = next(p for p in scenario.policies if isinstance(p, PoolPolicy) and p.name == POLICY)
    settings = policy_settings(scenario, policy, "pool")
    settings = replace(settings, limits=scenario.limits)
    expected = simulated(setup, contestant_of(settings, prepared))

    first, last = (START_SECONDS - SPREAD_SECONDS) / factor, (START_SECONDS + SPREAD_SECONDS) / factor
    namespace.apply(
        pool("pool", replicas=setup.initial[0], startup_seconds=first, startup_longest_seconds=last, gpus=1)
    )
    namespace.wait_ready("pool", setup.initial[0], seconds=60)
    pair = plane.serving.issue(tmp_path, "replay", hosts=(f"replay.{namespace.name}.svc",))
    world = World(setup, settings, namespace, "pool", START_SECONDS)
    limits = (scenario.limits.min_replicas, scenario.limits.max_replicas)
    seen = asyncio.run(played(plane, world, pair, factor, service_namespace=namespace.name, hpa_limits=limits))

    cost = seen.gpu_seconds / expected.gpu_seconds - 1
    path = seen.difference(expected)
    print(
        f"all times scaled by {factor:g}; GPU-seconds {seen.gpu_seconds:.0f}, simulated {expected.gpu_seconds:.0f} "
        f"({cost:+.1%}); ready replicas {path:.1%} apart"
    )
    if picture := os.environ.get("AUTOSCALER_REPLAY_PICTURE"):
        draw(seen, expected, factor, File(picture))
    assert abs(cost) <= 0.05
    assert path <= 0.05


def draw(seen: Path, expected: Path, factor: float, file: File) -> None:
    """Both paths in one picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.6), layout="constrained")
    for path, colour, name in ((expected, "#999999", "simulator"), (seen, "#1f6feb", "real HPA and pods")):
        for steps, style, what in ((path.wanted, ":", "wanted"), (path.ready, "-", "ready")):
            at, replicas = zip(*[*steps, (path.end_seconds, steps[-1][1])], strict=True)
            axes.step([t / 60 for t in at], replicas, style, where="post", color=colour, label=f"{name}: {what}")
    axes.set_xlabel(f"minutes of the trace (all times scaled by {factor:g})")
    axes.set_ylabel("replicas")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, ncols=2)
    figure.savefig(file, dpi=110)
