"""A Ray Serve application under load, scaled by a pool of ours: prints the largest number of replicas that ran, and the last.

Run as a program, for a Ray cluster of one machine is a dozen processes.
"""

from __future__ import annotations

import asyncio
import time

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from metrics_adapter.ray_serve import Counted

POOL = {
    "name": "chat", "interval_seconds": 2, "keep_seconds": 4, "limits": {"max_replicas": 3},
    "replica": {"feasible_requests_per_second": 4.0, "mean_prompt_tokens": 100, "mean_output_tokens": 20},
}  # fmt: skip


@serve.deployment(
    num_replicas="auto",
    ray_actor_options={"num_cpus": 0.1},
    max_ongoing_requests=100,
    autoscaling_config=AutoscalingConfig(
        min_replicas=1, max_replicas=3, upscale_delay_s=0, downscale_delay_s=0, look_back_period_s=2,
        metrics_interval_s=0.5,
        policy=AutoscalingPolicy(
            policy_function="metrics_adapter.ray_serve:PoolPolicy", policy_kwargs={"pool": POOL}
        ),
    ),
)  # fmt: skip
class Chat(Counted):
    """Answers after a fifth of a second, and counts."""

    async def __call__(self) -> str:
        self.arrived(prompt_tokens=100)
        await asyncio.sleep(0.2)
        self.finished(output_tokens=20)
        return "ok"


def running() -> int:
    return serve.status().applications["chat"].deployments["Chat"].replica_states.get("RUNNING", 0)


async def walk(handle: object) -> tuple[int, int]:
    most, end = 1, time.monotonic() + 60.0
    while time.monotonic() < end and most < 2:
        pending = [handle.remote() for _ in range(8)]  # type: ignore[attr-defined]
        await asyncio.gather(asyncio.sleep(0.5), *pending)
        most = max(most, running())
    end, last = time.monotonic() + 120.0, most
    while time.monotonic() < end and last > 1:  # and without load
        await asyncio.sleep(1.0)
        last = running()
    return most, last


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        most, last = asyncio.run(walk(serve.run(Chat.bind(), name="chat", route_prefix=None)))
        print(f"most {most} last {last}", flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()
