"""Settings of a fake engine: vLLM's own flag names where vLLM has the flag."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from autoscaler.errors import ConfigError
from autoscaler.schema import setting
from load_tests.fake_engine_scheduler import fitting_context
from serving.profiles import Profile, load_profile, profile, startup_profile

FILE_ENDINGS = (".toml", ".json", ".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeEngineSettings:
    """One fake replica."""

    profile: str = setting("llama-3.1-8b_bf16_h100_tp1", "Id of a shipped replica profile, or a file.")
    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", low=0, high=65535)
    served_model_name: str = setting("", "Model name in answers and labels; empty takes the profile's.")
    startup_seconds: float = setting(0.0, "Seconds until the port opens; 0 opens it at once.", low=0, high=86400)
    startup_profile: str = setting(
        "", "Shipped start-up profile whose median says how long the port stays closed; empty: startup_seconds does."
    )
    max_num_seqs: int | None = setting(None, "Seats; None takes the profile's.", low=1, high=100_000)
    max_num_batched_tokens: int | None = setting(None, "Token budget of a step; None takes the profile's.", low=1)
    num_gpu_blocks_override: int | None = setting(None, "Blocks of the KV cache; None takes the profile's size.", low=2)
    block_size: int | None = setting(None, "Tokens per KV block; None takes the profile's.", low=1, high=4096)
    max_model_len: int | None = setting(
        None, "Longest prompt plus output in tokens; None takes what the KV cache holds, at most 131072.", low=1
    )
    enable_prefix_caching: bool = setting(True, "True: prompt blocks seen before are not computed again.")
    scheduling_policy: Literal["fcfs", "priority"] = setting("fcfs", "Queue order: arrival, or priority and arrival.")
    max_num_queued_reqs: int | None = setting(None, "Waiting requests above which new ones get 503; None: all.", low=0)
    max_num_queued_tokens: int | None = setting(
        None, "Waiting prompt tokens above which new ones get 503; None: all.", low=0
    )
    late_rejection_fraction: float = setting(
        0.185,
        "Share of the rejections that come as an error event inside HTTP 200; 10 of 54 were measured on vLLM 0.32.",
        low=0,
        high=1,
    )
    shutdown_timeout: float = setting(
        0.0, "Seconds that SIGTERM gives open requests to end; 0 kills them at once.", low=0, high=86400
    )
    teardown_seconds: float = setting(
        8.0, "Seconds from the last stream of a drain to the closed port; 8 were measured.", low=0, high=3600
    )
    dev_mode: bool = setting(False, "True: the routes of VLLM_SERVER_DEV_MODE=1 (sleep, wake_up, pause, resume).")
    enable_server_load_tracking: bool = setting(False, "True: /load counts; false: it says 0.")
    wake_seconds: float | None = setting(
        None, "Seconds of a wake-up; None takes the shipped sleep profiles at the replica's size.", low=0, high=3600
    )
    mean_output_tokens: float = setting(
        200.0, "Mean tokens after which an answer stops by itself, where ignore_eos does not forbid it.", low=1
    )
    seed: int = setting(0, "Seed of what is drawn: natural lengths and which rejections come late.", low=0)
    speed: float = setting(
        1.0, "Everything that the profile times runs so many times as fast; latencies shrink alike.", above=0, high=1000
    )

    def replica(self) -> Profile:
        """The profile with what these settings change."""
        named = self.profile
        base = load_profile(named) if Path(named).suffix.lower() in FILE_ENDINGS else profile(named)
        block = self.block_size or base.kv_block_tokens
        capacity = base.kv_capacity_tokens
        if self.num_gpu_blocks_override is not None:
            capacity = self.num_gpu_blocks_override * block
        if capacity < 2 * block:
            raise ConfigError("block_size", f"{block} must be at most half of the KV cache, {capacity} tokens")
        return replace(
            base,
            max_num_seqs=self.max_num_seqs or base.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens or base.max_num_batched_tokens,
            kv_capacity_tokens=capacity,
            kv_block_tokens=block,
        )

    def model_len(self, replica: Profile) -> int:
        """Longest prompt plus output; ConfigError where the KV cache cannot hold it, as vLLM refuses to start."""
        most = fitting_context(replica)
        if self.max_model_len is None:
            return most
        capacity = replica.kv_capacity_tokens
        if self.max_model_len > capacity:
            raise ConfigError(
                "max_model_len", f"{self.max_model_len} must be <= {capacity}, the tokens of the KV cache"
            )
        return self.max_model_len

    def closed_seconds(self, replica: Profile) -> float:
        """How long the port stays closed, at this speed."""
        if not self.startup_profile:
            return self.startup_seconds / self.speed
        born = startup_profile(self.startup_profile)
        return born.total_seconds(weights_gb=replica.weights_gb, layers=replica.layers) / self.speed

    def waking_seconds(self, replica: Profile, level: int) -> float:
        """How long a wake-up from a sleep level takes, at this speed."""
        if level == 0:
            return 0.0
        if self.wake_seconds is not None:
            return self.wake_seconds / self.speed
        woken = startup_profile("sleep_l1" if level == 1 else "sleep_l2")
        return woken.total_seconds(weights_gb=replica.weights_gb, layers=replica.layers) / self.speed
