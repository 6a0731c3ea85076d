"""From a scenario to runs: who starts with what, what is looked back on, and two pools joined by a link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoscaler.errors import ConfigError
from autoscaler.log import verify
from load_tests.campaign import chosen, observations_of, play, policy_name, prepare, run_all
from load_tests.run import metrics
from load_tests.scenario import Scenario, scenario_from


def scenario(**changes: Any) -> Scenario:
    data: dict[str, Any] = {
        "version": 1,
        "name": "small",
        "traffic": {
            "kind": "shape",
            "shape": {"kind": "step", "requests_per_second": 15, "factor": 3, "at_seconds": 200},
            "lengths": {"kind": "lognormal", "prompt_tokens": 600, "output_tokens": 80},
        },
        "window": {"duration_seconds": 600},
        "startup": {"profile": "warm_node_local"},
        "limits": {"max_replicas": 12},
        "policies": [{"kind": "pool"}, {"kind": "hpa"}, {"kind": "static", "replicas": 5}],
    }
    return scenario_from({**data, **changes}, Path())


def test_all_start_alike_but_a_fixed_fleet_is_there_from_the_start() -> None:
    prepared = prepare(scenario(), 0)
    ours, hpa, static = (play(prepared, p) for p in prepared.scenario.policies)
    assert ours.timeline.ready[0] == hpa.timeline.ready[0] == prepared.setup.initial[0]
    assert static.timeline.ready[0] == 5
    assert static.starts == 0
    assert static.events == ()


def test_policies_under_one_seed_see_the_same_requests() -> None:
    runs = run_all([scenario(seeds=[3, 4])])
    assert [r.seed for r in runs] == [3, 3, 3, 4, 4, 4]
    assert np.array_equal(runs[0].arrival_seconds, runs[2].arrival_seconds)
    assert not np.array_equal(runs[0].arrival_seconds[:50], runs[3].arrival_seconds[:50])


def test_a_rate_trace_is_looked_back_on() -> None:
    day = scenario(
        traffic={"kind": "trace", "trace": "builtin:rate_servegen_mmid_c66", "thin_fraction": 0.02},
        window={"start_seconds": 3 * 86400, "duration_seconds": 1800},
        history_days=2,
        policies=[{"kind": "pool"}],
    )
    prepared = prepare(day, 0)
    past = list(observations_of(prepared.traffic.history, prepared.setup))
    assert len(past) == 2 * 144
    assert past[-1].at_seconds <= prepared.setup.origin_at_seconds
    assert all(o.window_seconds == 600 for o in past)
    measured = [o.demand.requests for o in past if o.demand is not None]
    assert sum(r for r in measured if r is not None) > 1000
    run = play(prepared, day.policies[0])
    assert np.isfinite(run.timeline.forecast_high).any()
    assert metrics(run).requests > 0


def test_prefill_and_decode_scale_together_and_their_logs_replay(tmp_path: Path) -> None:
    split = scenario(
        prefill_decode={"transfer_gb_per_second": 10, "decode_limits": {"max_replicas": 12}},
        limits={"max_replicas": 12, "ratio": {"to": "decode", "replicas_per_replica": 1}},
    )
    prepared = prepare(split, 0)
    run = play(prepared, split.policies[0], log=tmp_path)
    asked = {pool: [(e.at_seconds, e.after) for e in run.events if e.note == pool] for pool in ("prefill", "decode")}
    assert asked["prefill"] == asked["decode"] != []
    assert "ratio" in {r.rule for e in run.events for r in e.reasons}
    assert np.isnan(run.timeline.need).all()
    found = metrics(run)
    assert found.busy_fraction is None
    assert found.attainment_fraction is not None
    assert found.attainment_fraction > 0.8
    from autoscaler.embed import autoscaler_for
    from autoscaler.log import settings_of

    for pool in ("prefill", "decode"):
        log = tmp_path / "small" / "seed0" / "auto" / pool
        assert verify(autoscaler_for(settings_of(log)), log) == 59


def test_policies_are_chosen_by_name() -> None:
    names = [policy_name(p) for p in scenario().policies]
    assert names == ["auto", "hpa running_and_waiting_requests", "static 5"]
    assert [policy_name(p) for p in chosen(scenario(), ["static 5"])] == ["static 5"]
    with pytest.raises(ConfigError, match="--policy: 'static 6' must be one of auto, hpa"):
        chosen(scenario(), ["static 6"])
