"""A pool as a Ray Serve policy: through Ray's own classes, and in a real Serve application."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metrics_adapter.ray_serve import COUNTERS, Counted, PoolPolicy

ROOT = Path(__file__).resolve().parents[2]
POOL: dict[str, Any] = {
    "name": "chat", "keep_seconds": 0, "limits": {"min_replicas": 0, "max_replicas": 50},
    "replica": {"feasible_requests_per_second": 10.0, "mean_prompt_tokens": 100, "mean_output_tokens": 20},
}  # fmt: skip


def sample(value: float) -> list[SimpleNamespace]:
    return [SimpleNamespace(timestamp=0.0, value=0.0), SimpleNamespace(timestamp=1.0, value=value)]


def context(
    at: float, ready: int, counts: dict[str, Counted], target: int | None = None, queued: float | None = 0.0, total: float = 0.0
) -> SimpleNamespace:  # fmt: skip
    raw = {name: {r: sample(c.record_autoscaling_stats()[name]) for r, c in counts.items()} for name in COUNTERS}
    return SimpleNamespace(
        current_time=at, current_num_replicas=ready, target_num_replicas=ready if target is None else target,
        total_num_requests=total, total_queued_requests=queued, raw_metrics=raw if counts else {},
    )  # fmt: skip


def served(counted: Counted, requests: int) -> None:
    for _ in range(requests):
        counted.arrived(100)
        counted.finished(20)


def test_what_replicas_count_is_the_demand() -> None:
    policy, one, two = PoolPolicy(POOL), Counted(), Counted()
    assert policy(context(1000.0, 2, {"a": one, "b": two}))[0] == 2  # nothing to compare with yet
    served(one, 150)
    served(two, 150)
    assert policy(context(1010.0, 2, {"a": one, "b": two}))[0] == 4  # 30/s at 0.95 of 10/s each
    step = policy.pool.last_step
    assert step is not None
    assert step.observation.demand is not None
    assert (step.observation.demand.requests, step.observation.demand.prompt_tokens) == (300.0, 30_000.0)


def test_between_two_instants_it_repeats_itself() -> None:
    policy, one = PoolPolicy(POOL), Counted()
    policy(context(1000.0, 1, {"a": one}))
    served(one, 300)
    assert policy(context(1009.9, 1, {"a": one}))[0] == 1
    assert policy(context(1010.0, 1, {"a": one}))[0] == 4
    served(one, 3000)
    assert policy(context(1011.0, 1, {"a": one}, target=4))[0] == 4


def test_a_queue_before_the_replicas_has_arrived_too() -> None:
    policy, one = PoolPolicy(POOL), Counted()
    policy(context(1000.0, 1, {"a": one}))
    served(one, 90)
    policy(context(1010.0, 1, {"a": one}, queued=210.0, total=220.0))
    step = policy.pool.last_step
    assert step is not None
    demand, load = step.observation.demand, step.observation.load
    assert demand is not None
    assert load is not None
    assert (demand.requests, demand.prompt_tokens) == (300.0, 30_000.0)
    assert (load.running_requests, load.waiting_requests) == (10.0, 210.0)


def test_a_replica_that_restarts_or_leaves_takes_nothing_away() -> None:
    policy, one, two = PoolPolicy(POOL), Counted(), Counted()
    served(one, 500)
    served(two, 500)
    policy(context(1000.0, 2, {"a": one, "b": two}))
    fresh = Counted()
    served(fresh, 30)
    policy(context(1010.0, 2, {"a": fresh}))
    step = policy.pool.last_step
    assert step is not None
    assert step.observation.demand is not None
    assert step.observation.demand.requests == 30.0
    assert step.observation.demand.replicas_reporting == 1


def test_where_nobody_counts_the_demand_is_not_known() -> None:
    policy, one = PoolPolicy(POOL), Counted()
    policy(context(1000.0, 1, {"a": one}))
    served(one, 300)
    assert policy(context(1010.0, 1, {"a": one}))[0] == 4
    assert policy(context(1020.0, 4, {}))[0] == 4
    step = policy.pool.last_step
    assert step is not None
    assert step.observation.demand is None


@pytest.mark.peers
def test_ray_calls_it_as_a_policy_of_its_own_config() -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'replicast[peers]'")
    from ray.serve._private.autoscaling_state import _resolve_policy_callable
    from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
    from ray.serve.autoscaling_policy import _apply_autoscaling_config
    from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

    config = AutoscalingConfig(
        min_replicas=0, max_replicas=50, upscale_delay_s=0, downscale_delay_s=0,
        policy=AutoscalingPolicy(policy_function="metrics_adapter.ray_serve:PoolPolicy", policy_kwargs={"pool": POOL}),
    )  # fmt: skip
    decide = _apply_autoscaling_config(_resolve_policy_callable(config.policy))
    here = DeploymentID("Chat", "chat")
    replica, counted = ReplicaID("one", here), Counted()

    def tick(at: float, target: int, state: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        stats = counted.record_autoscaling_stats()
        raw = {name: {replica: [TimeStampedValue(at - 1.0, stats[name])]} for name in COUNTERS}
        seen = AutoscalingContext(
            deployment_id=here, deployment_name="Chat", app_name="chat", current_num_replicas=1,
            target_num_replicas=target, running_replicas=[replica], total_num_requests=lambda: 12.0,
            total_queued_requests=lambda: 2.0, aggregated_metrics=dict, raw_metrics=lambda: raw,
            capacity_adjusted_min_replicas=0, capacity_adjusted_max_replicas=50, policy_state=state,
            last_scale_up_time=None, last_scale_down_time=None, current_time=at, config=config,
        )  # fmt: skip
        return decide(seen)  # type: ignore[no-any-return]

    wanted, state = tick(1000.0, 1, {})
    assert wanted == 1
    served(counted, 300)
    wanted, state = tick(1010.0, wanted, state)
    assert wanted == 4
    for tenth in range(1, 99):
        assert tick(1010.0 + tenth / 10.0, wanted, state)[0] == 4


@pytest.mark.peers
@pytest.mark.slow
def test_it_scales_a_real_serve_application() -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'replicast[peers]'")
    told = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "ray_application.py")],
        capture_output=True, text=True, timeout=400, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip
    said = [line.split() for line in told.stdout.splitlines() if line.startswith("most ")]
    assert said, told.stderr[-2000:]
    assert int(said[0][1]) >= 2
    assert int(said[0][3]) == 1
