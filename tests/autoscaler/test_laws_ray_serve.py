"""Ray Serve's law against vectors worked out by hand, and decision by decision against the real policy."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from autoscaler.laws import ray_serve
from autoscaler.schema import build

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "ray_serve.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["stories"], ids=lambda c: c["why"])
def test_a_story(case: dict[str, Any]) -> None:
    spec, state, target = build(ray_serve.RaySpec, case["spec"]), ray_serve.RayState(), case["start"]
    changes = []
    for second in range(case["until"] + 1):
        load = next(level for since, level in reversed(case["loads"]) if second >= since)
        new, state = ray_serve.decide(spec, state, at_seconds=second, ongoing=load, running=target, target=target)
        if new != target:
            changes.append([second, new])
        target = new
    assert changes == case["changes"]


def test_starting_replicas_do_not_count_and_the_target_stays_without_any() -> None:
    spec, state = ray_serve.RaySpec(upscale_delay_seconds=0), ray_serve.RayState()
    found, state = ray_serve.decide(spec, state, at_seconds=0, ongoing=12, running=2, target=6)
    assert found == 6
    assert ray_serve.decide(spec, state, at_seconds=1, ongoing=0, running=0, target=6) == (6, state)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_decisions_are_those_of_the_real_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'replicast[peers]'")
    policy = _real_policy(monkeypatch)
    rng, count = random.Random(5), 0
    for _ in range(60):
        spec = ray_serve.RaySpec(
            target_ongoing_requests=rng.choice([0.3, 1, 2, 7, 20]),
            upscaling_factor=rng.choice([1.0, 0.5, 1.7]),
            downscaling_factor=rng.choice([1.0, 0.4]),
            upscale_delay_seconds=rng.choice([0.0, 3.3, 30.0]),
            downscale_delay_seconds=rng.choice([0.0, 60.0, 600.0]),
            downscale_to_zero_delay_seconds=rng.choice([None, 45.0]),
        )
        real: dict[str, Any] = {}
        state, target, running, now, load = ray_serve.RayState(), 1, 1, 1000.0, rng.uniform(0, 100)
        for _ in range(200):
            now += rng.choice([0.1, 1.0, 10.0])
            if rng.random() < 0.1:
                load = rng.choice([0.0, rng.uniform(0, 200), float(rng.randint(0, 60))])
            theirs, real = policy(spec, real, now, load, running, target)
            ours, state = ray_serve.decide(spec, state, at_seconds=now, ongoing=load, running=running, target=target)
            assert ours == theirs
            count += 1
            target = min(max(ours, 0), 50)
            if rng.random() < 0.5:
                running = target if rng.random() < 0.8 else max(0, running + (target > running) - (target < running))
    assert count == 12_000


def _real_policy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray's own policy as a function of our spec, its state, and the facts of a tick."""
    from ray.serve import autoscaling_policy
    from ray.serve._private.common import DeploymentID
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

    decide = autoscaling_policy._apply_autoscaling_config(autoscaling_policy._core_replica_queue_length_policy)

    class Clock:
        now = 0.0

        def time(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(autoscaling_policy, "time", clock)

    def policy(
        spec: ray_serve.RaySpec, state: dict[str, Any], now: float, load: float, running: int, target: int
    ) -> tuple[int, dict[str, Any]]:
        clock.now = now
        config = AutoscalingConfig(
            min_replicas=0,
            max_replicas=50,
            target_ongoing_requests=spec.target_ongoing_requests,
            upscaling_factor=spec.upscaling_factor,
            downscaling_factor=spec.downscaling_factor,
            upscale_delay_s=spec.upscale_delay_seconds,
            downscale_delay_s=spec.downscale_delay_seconds,
            downscale_to_zero_delay_s=spec.downscale_to_zero_delay_seconds,
        )
        context = AutoscalingContext(
            deployment_id=DeploymentID("d", "a"), deployment_name="d", app_name="a", current_num_replicas=running,
            target_num_replicas=target, running_replicas=[], total_num_requests=load, total_queued_requests=None,
            aggregated_metrics={}, raw_metrics={}, capacity_adjusted_min_replicas=0, capacity_adjusted_max_replicas=50,
            policy_state=state, last_scale_up_time=None, last_scale_down_time=None, current_time=now, config=config,
        )  # fmt: skip
        return decide(context)  # type: ignore[no-any-return]

    return policy
