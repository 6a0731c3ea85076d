"""The embedding API is a promise: this file is what other programs rely on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoscaler import (
    ConfigError,
    Decision,
    Demand,
    Histogram,
    Latency,
    Load,
    Observation,
    Pool,
    Reason,
    Replicas,
    Step,
)

SECTION = {
    "name": "llama-8b",
    "target": {"kind": "deployment", "namespace": "llm", "name": "llama-8b", "gpus_per_replica": 1},
    "source": {
        "kind": "prometheus", "url": "http://prometheus:9090", "engine": "vllm", "window_seconds": 60,
        "stale_after_seconds": 45,
    },
    "slo": {"ttft_seconds": 1.0, "itl_seconds": 0.05, "attainment_fraction": 0.99},
    "strategy": "auto",
    "limits": {"min_replicas": 0, "max_replicas": 24, "schedule": [
        {"start": "0 8 * * mon-fri", "end": "0 18 * * mon-fri", "time_zone": "Europe/Paris", "min_replicas": 2}]},
    "preload": {"kind": "none"},
}  # fmt: skip


def seen(at_seconds: int, requests: float = 100.0, desired: int = 2) -> Observation:
    return Observation(
        pool="llama-8b",
        at_seconds=at_seconds,
        window_seconds=10,
        replicas=Replicas(desired=desired, ready=desired),
        demand=Demand(requests=requests, prompt_tokens=requests * 1000, output_tokens=requests * 200),
        load=Load(running_requests=40, waiting_requests=0, kv_cache_fraction=0.2, replicas_reporting=desired),
        latency=Latency(ttft=Histogram(upper_bounds=(0.1, 1.0), counts=(90.0, 10.0, 0.0)), served_requests=100),
    )


def test_the_page_in_the_design_works_as_written() -> None:
    pool = Pool.from_config(SECTION)
    pool.backfill([seen(1_000_000 + 10 * i) for i in range(30)])
    decision = pool.step(seen(1_000_300))
    assert isinstance(decision, Decision)
    assert isinstance(decision.replicas, int)
    assert all(isinstance(reason, Reason) for reason in decision.reasons)
    assert decision.reasons
    assert isinstance(pool.last_step, Step)
    line = pool.last_step.to_json()
    assert json.loads(line)["decision"]["replicas"] == decision.replicas
    assert json.loads(line)["type"] == "step"
    assert "\n" not in line


def test_a_pool_from_a_file_by_name(tmp_path: Path) -> None:
    config = {"version": 1, "interval_seconds": 15, "pools": [SECTION, {"name": "other"}]}
    path = tmp_path / "pools.json"
    path.write_text(json.dumps(config))
    assert Pool.from_file(path, "llama-8b").settings.limits.max_replicas == 24
    assert Pool.from_file(str(path), "other").settings.interval_seconds == 15
    with pytest.raises(ConfigError, match="pools: 'third' must be one of llama-8b, other"):
        Pool.from_file(path, "third")
    with pytest.raises(ConfigError, match="pools: None must be one of"):
        Pool.from_file(path)


def test_toml_and_yaml_files_say_the_same(tmp_path: Path) -> None:
    toml = tmp_path / "pools.toml"
    toml.write_text('version = 1\n[[pools]]\nname = "a"\n[pools.slo]\nttft_seconds = 2\n')
    yaml = tmp_path / "pools.yaml"
    yaml.write_text("version: 1\npools:\n  - name: a\n    slo: {ttft_seconds: 2}\n")
    assert Pool.from_file(toml).settings == Pool.from_file(yaml).settings


def test_snapshot_and_restore_carry_everything() -> None:
    pool = Pool.from_config(SECTION)
    for i in range(50):
        pool.step(seen(1_000_000 + 10 * i, requests=100 + i))
    pool.refit()
    twin = Pool.from_config(SECTION)
    twin.restore(pool.snapshot())
    assert twin.snapshot() == pool.snapshot()
    assert twin.step(seen(1_000_500)) == pool.step(seen(1_000_500))
    assert twin.last_step is not None
    assert pool.last_step is not None
    assert twin.last_step.to_json() == pool.last_step.to_json()


def test_a_snapshot_of_another_pool_is_refused() -> None:
    other = Pool.from_config({"name": "other"})
    with pytest.raises(ConfigError, match="snapshot.pool: 'llama-8b' must be 'other'"):
        other.restore(Pool.from_config(SECTION).snapshot())


def test_the_wrong_key_is_named_with_its_path() -> None:
    with pytest.raises(ConfigError, match="limits.max_replica: unknown key; did you mean max_replicas?"):
        Pool.from_config({"name": "p", "limits": {"max_replica": 3}})


def test_own_models_may_be_given() -> None:
    from autoscaler.testing import FixedCapacity, NoForecast

    pool = Pool.from_config(
        SECTION, forecaster=NoForecast(), capacity_model=FixedCapacity(requests_per_second=4, startup_seconds=9)
    )
    assert pool.step(seen(1_000_000)).replicas == 3  # 10 requests/s at 0.95 of 4/s each
