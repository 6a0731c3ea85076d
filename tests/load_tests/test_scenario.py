"""A scenario file gives the same requests for the same seed, scaled without multiplying, with gaps and history kept apart."""
# ruff: noqa: E501  sentences are compared whole

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoscaler.errors import ConfigError
from load_tests.scenario import (
    PoolPolicy,
    Replica,
    Scenario,
    Startup,
    builtin_scenarios,
    load_scenario,
    policy_settings,
    replica_model,
    replica_profile,
    scenario_from,
    startup_of,
)
from load_tests.traces import RateTrace, load_trace
from load_tests.traffic import Traffic, materialise
from serving.profiles import profile

HERE = Path()
DAY = 86_400


def scenario(traffic: dict[str, Any], **more: Any) -> Scenario:
    return scenario_from({"version": 1, "name": "test", "traffic": traffic, **more}, HERE)


def trace(name: str, **more: Any) -> dict[str, Any]:
    return {"kind": "trace", "trace": f"builtin:{name}", **more}


def shape(
    kind: str, arrivals: dict[str, Any] | None = None, lengths: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    out: dict[str, Any] = {"kind": "shape", "shape": {"kind": kind, **more}, "arrivals": arrivals or {}}
    return {**out, "lengths": lengths} if lengths else out


def bytes_of(traffic: Traffic) -> bytes:
    r = traffic.requests
    return r.arrival_seconds.tobytes() + r.prompt_tokens.tobytes() + r.output_tokens.tobytes()


C66 = trace("rate_servegen_mmid_c66", thin_fraction=0.02)
HOUR = {"start_seconds": 8 * DAY, "duration_seconds": 3600}


@pytest.mark.parametrize(
    "built",
    [
        scenario(trace("llm_azure2023_conv", rotated_copies=2, thin_fraction=0.3)),
        scenario(C66, window=HOUR),
        scenario(shape("bursts", requests_per_second=2), window={"duration_seconds": 3600}),
        scenario(shape("diurnal", requests_per_second=2), window={"duration_seconds": 3600}, history_days=2),
    ],
)
def test_same_seed_same_bytes_other_seed_other_bytes(built: Scenario) -> None:
    first, again, other = materialise(built, 3), materialise(built, 3), materialise(built, 4)
    assert bytes_of(first) == bytes_of(again)
    assert bytes_of(first) != bytes_of(other)
    assert first.history.requests.tobytes() == again.history.requests.tobytes()


def test_a_request_trace_is_replayed_as_it_is() -> None:
    traffic = materialise(scenario(trace("llm_azure2023_conv")), 0)
    rows = load_trace("builtin:llm_azure2023_conv").rows  # type: ignore[union-attr]
    np.testing.assert_array_equal(traffic.requests.arrival_seconds, rows.arrival_seconds)
    np.testing.assert_array_equal(traffic.requests.prompt_tokens, rows.prompt_tokens)
    assert (traffic.end_seconds, traffic.origin_at_seconds) == (3502, 1700158546)
    assert traffic.history.requests.size == 0
    assert traffic.notes == ()


def test_a_window_of_a_request_trace_has_the_part_before_it_as_history() -> None:
    traffic = materialise(
        scenario(trace("llm_azure2023_conv"), window={"start_seconds": 1000, "duration_seconds": 500}), 0
    )
    rows = load_trace("builtin:llm_azure2023_conv").rows  # type: ignore[union-attr]
    at = rows.arrival_seconds
    inside = (at >= 1000) & (at < 1500)
    np.testing.assert_allclose(traffic.requests.arrival_seconds, at[inside] - 1000)
    history = traffic.history
    assert history.t_seconds.tolist() == [60.0 * k for k in range(-16, 0)]
    assert history.requests.sum() == ((at >= 40) & (at < 1000)).sum()
    assert history.prompt_tokens.sum() == rows.prompt_tokens[(at >= 40) & (at < 1000)].sum()
    assert traffic.origin_at_seconds == 1700158546 + 1000


def test_rotated_copies_add_up_and_are_marked() -> None:
    traffic = materialise(scenario(trace("llm_azure2023_conv", rotated_copies=3)), 0)
    assert traffic.requests.arrival_seconds.size == 3 * 19_366
    assert traffic.requests.prompt_tokens.sum() == 3 * load_trace("builtin:llm_azure2023_conv").rows.prompt_tokens.sum()  # type: ignore[union-attr]
    assert "3 copies of the trace are added up, each 1/3 of its span after the last" in traffic.notes[0]


def test_copies_a_little_apart_keep_the_trend() -> None:
    def peak(**more: Any) -> float:
        at = materialise(scenario(trace("llm_azure2023_conv", **more)), 0).requests.arrival_seconds
        counts = np.histogram(at, np.arange(0, 3481, 240))[0]
        return float(counts.max() / counts.mean())

    near, even = peak(rotated_copies=4, copy_shift_seconds=30), peak(rotated_copies=4)
    assert near > 0.95 * peak() > even + 0.1
    with pytest.raises(ConfigError, match=r"^traffic.copy_shift_seconds: 5 must be in \[600, 1.2096e\+06\)"):
        materialise(scenario({**C66, "rotated_copies": 2, "copy_shift_seconds": 5}, window=HOUR), 0)


def test_counts_of_a_rate_trace_are_kept_exactly_and_tokens_on_average() -> None:
    name = "rate_servegen_msmall_c31"
    traffic = materialise(scenario(trace(name), window={"start_seconds": 2 * DAY, "duration_seconds": DAY}), 0)
    source = load_trace(f"builtin:{name}")
    assert isinstance(source, RateTrace)
    day = slice(288, 432)
    counts = np.histogram(traffic.requests.arrival_seconds, np.arange(0, DAY + 1, 600))[0]
    np.testing.assert_array_equal(counts, source.requests[day])
    index = (traffic.requests.arrival_seconds // 600).astype(int)
    for drawn, written in (
        (traffic.requests.prompt_tokens, source.prompt_tokens),
        (traffic.requests.output_tokens, source.output_tokens),
    ):
        assert np.bincount(index, drawn).sum() == pytest.approx(written[day].sum(), rel=0.01)
        assert np.bincount(index, drawn) / written[day] == pytest.approx(np.ones(144), abs=0.15)
    assert traffic.history.requests.size == 288
    np.testing.assert_array_equal(traffic.history.requests, source.requests[:288])
    assert traffic.history.t_seconds[-1] == -600
    assert "The date is a choice" in traffic.notes[0]


def test_drawn_counts_differ_from_the_recorded_ones_where_they_are_wanted() -> None:
    built = scenario({**C66, "thin_fraction": 0.1, "arrivals": {"exact_counts": False}}, window=HOUR)
    n = [materialise(built, s).requests.arrival_seconds.size for s in range(3)]
    kept = [
        materialise(scenario({**C66, "thin_fraction": 0.1}, window=HOUR), s).requests.arrival_seconds.size
        for s in range(3)
    ]
    assert len({*n, *kept}) == 6
    assert np.mean(n) == pytest.approx(np.mean(kept), rel=0.05)


def test_thinning_keeps_a_binomial_share_in_window_and_history() -> None:
    traffic = materialise(scenario(C66, window=HOUR, history_days=7), 0)
    source = load_trace("builtin:rate_servegen_mmid_c66")
    assert isinstance(source, RateTrace)
    expected = source.requests[1152:1158].sum() * 0.02
    assert traffic.requests.arrival_seconds.size == pytest.approx(expected, abs=5 * np.sqrt(expected))
    past = source.requests[144:1152]
    assert traffic.history.requests.size == 1008
    np.testing.assert_array_equal(np.isnan(traffic.history.requests), np.isnan(past))
    assert np.nansum(traffic.history.requests) == pytest.approx(np.nansum(past) * 0.02, rel=0.02)
    assert "probability 0.02" in traffic.notes[0]


def test_another_window_around_the_same_interval_gives_the_same_requests() -> None:
    whole = materialise(scenario(C66, window={"start_seconds": 8 * DAY, "duration_seconds": 7200}), 1).requests
    part = materialise(scenario(C66, window={"start_seconds": 8 * DAY + 1800, "duration_seconds": 1800}), 1).requests
    inside = (whole.arrival_seconds >= 1800) & (whole.arrival_seconds < 3600)
    np.testing.assert_allclose(part.arrival_seconds, whole.arrival_seconds[inside] - 1800, atol=1e-6)
    np.testing.assert_array_equal(part.prompt_tokens, whole.prompt_tokens[inside])
    np.testing.assert_array_equal(part.output_tokens, whole.output_tokens[inside])


def test_gaps_are_reported_and_stay_empty() -> None:
    traffic = materialise(scenario(C66, window={"start_seconds": 3 * DAY, "duration_seconds": DAY}), 0)
    source = load_trace("builtin:rate_servegen_mmid_c66")
    assert isinstance(source, RateTrace)
    missing = source.missing[432:576]
    assert sum(b - a for a, b in traffic.gaps) == 600 * missing.sum() > 0
    at = traffic.requests.arrival_seconds
    assert not any(((at >= a) & (at < b)).any() for a, b in traffic.gaps)


def test_clients_are_added_up_with_a_tenant_each_and_their_histories_too() -> None:
    traffic = materialise(
        scenario(trace("rate_servegen_mmid_c52", superpose=["builtin:rate_servegen_mmid_c44"]), window={"start_seconds": 2 * DAY, "duration_seconds": DAY}), 0
    )  # fmt: skip
    both = [load_trace(f"builtin:rate_servegen_mmid_{c}") for c in ("c52", "c44")]
    assert traffic.tenants == ("rate_servegen_mmid_c52", "rate_servegen_mmid_c44")
    for number, source in enumerate(both):
        assert isinstance(source, RateTrace)
        assert (traffic.requests.tenant == number).sum() == source.requests[288:432].sum()
    np.testing.assert_array_equal(traffic.history.requests, both[0].requests[:288] + both[1].requests[:288])  # type: ignore[union-attr]
    assert (np.diff(traffic.requests.arrival_seconds) >= 0).all()


def test_prompt_blocks_follow_their_requests(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 1000 * k, "input_length": 1600, "output_length": 2, "hash_ids": [k, k + 1, k + 2][: k + 1]}
        for k in range(6)
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    traffic = {"kind": "trace", "trace": "m.jsonl", "rotated_copies": 2, "copy_shift_seconds": 2.5}
    built = scenario_from({"version": 1, "name": "x", "traffic": traffic, "window": {"start_seconds": 1}}, tmp_path)
    r = materialise(built, 0).requests
    assert r.prefix_block_tokens == 512
    assert r.block_hash_offsets is not None
    assert r.block_hashes is not None
    got = [r.block_hashes[a:b].tolist() for a, b in zip(r.block_hash_offsets, r.block_hash_offsets[1:], strict=False)]
    # Copies at k and at k + 2.5 modulo the span of 6 s, from second 1 on.
    order = sorted([(float(k), k) for k in range(6)] + [((k + 2.5) % 6, k) for k in range(6)])
    assert got == [lines[k]["hash_ids"] for at, k in order if at >= 1]
    several = {**traffic, "superpose": ["m.jsonl"]}
    mixed = materialise(scenario_from({"version": 1, "name": "x", "traffic": several}, tmp_path), 0)
    assert mixed.requests.block_hashes is None
    assert any("prompt blocks are left out" in note for note in mixed.notes)


def test_a_series_without_tokens_needs_lengths() -> None:
    window = {"duration_seconds": 3600}
    with pytest.raises(
        ConfigError, match=r"^traffic.lengths.kind: 'trace' must be lognormal or pairs, because rate_nasa"
    ):
        materialise(scenario(trace("rate_nasa1995_july"), window=window), 0)
    pairs = {"kind": "pairs", "file": "builtin:llm_azure2023_conv"}
    traffic = materialise(scenario(trace("rate_nasa1995_july", lengths=pairs), window=window), 0)
    rows = load_trace("builtin:llm_azure2023_conv").rows  # type: ignore[union-attr]
    known = set(zip(rows.prompt_tokens.tolist(), rows.output_tokens.tolist(), strict=True))
    drawn = set(zip(traffic.requests.prompt_tokens.tolist(), traffic.requests.output_tokens.tolist(), strict=True))
    assert len(drawn) > 1000
    assert drawn <= known
    assert "only its shape is used" in traffic.notes[0]


def test_a_shape_is_a_renewal_process_of_its_rate_with_history() -> None:
    lengths = {"kind": "lognormal", "prompt_tokens": 500, "output_tokens": 50}
    built = scenario(
        shape("step", requests_per_second=20, factor=3, at_seconds=600, lengths=lengths),
        window={"duration_seconds": 1200},
        history_days=0.1,
    )
    traffic = materialise(built, 0)
    before, after = np.histogram(traffic.requests.arrival_seconds, [0, 600, 1200])[0]
    assert before == pytest.approx(12_000, abs=5 * 1.1 * np.sqrt(12_000))
    assert after == pytest.approx(36_000, abs=5 * 1.1 * np.sqrt(36_000))
    assert traffic.requests.prompt_tokens.mean() == pytest.approx(500, rel=0.02)
    assert traffic.history.t_seconds.tolist() == [60.0 * k for k in range(-144, 0)]
    assert traffic.history.requests.mean() == pytest.approx(1200, rel=0.02)
    assert traffic.history.prompt_tokens.sum() == pytest.approx(500 * traffic.history.requests.sum())


def test_a_prompt_shift_changes_lengths_at_constant_rate() -> None:
    built = scenario(
        shape("prompt_shift", requests_per_second=20, factor=2, at_seconds=600), window={"duration_seconds": 1200}
    )
    r = materialise(built, 0).requests
    early = r.arrival_seconds < 600
    assert early.mean() == pytest.approx(0.5, abs=0.02)
    assert r.prompt_tokens[~early].mean() / r.prompt_tokens[early].mean() == pytest.approx(2, rel=0.04)
    assert r.output_tokens[~early].mean() / r.output_tokens[early].mean() == pytest.approx(1, rel=0.04)


def test_exact_counts_of_a_shape_are_its_integral() -> None:
    built = scenario(
        shape("constant", {"exact_counts": True}, requests_per_second=2.5), window={"duration_seconds": 1000}
    )
    assert materialise(built, 0).requests.arrival_seconds.size == 2500


@pytest.mark.parametrize("name", builtin_scenarios())
def test_shipped_scenarios_load_and_hold_no_gap(name: str) -> None:
    built = load_scenario(f"builtin:{name}")
    assert built.policies[0].kind == "pool"
    if name == "diurnal_day":
        start = built.window.start_seconds
        source = load_trace("builtin:rate_servegen_mmid_c66")
        assert isinstance(source, RateTrace)
        i = round(start / 600)
        assert start % DAY == 0
        assert not source.missing[i : i + 144].any()
        assert start >= 7 * DAY  # a week of history, and a day that nothing is tuned on


def test_paths_are_relative_to_the_scenario_file(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0.5,10,3\n1.5,11,4\n")
    row = profile("qwen3-32b_bf16_h100_tp2")
    plain = {
        "id": "mine", "layers": 64, "weights_gb": 65.5, "kv_bytes_per_token": 1, "kv_capacity_tokens": 5000,
        "linear": {k: getattr(row.linear, k) for k in "abcde"}, "roofline": {k: getattr(row.roofline, k) for k in "abcde"},
    }  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(plain))
    (tmp_path / "s.yaml").write_text(
        "version: 1\nname: x\ntraffic: {kind: trace, trace: mine.csv}\nreplica: {profile: mine.json, max_num_seqs: 7}\n"
    )
    built = load_scenario(tmp_path / "s.yaml")
    assert materialise(built, 0).requests.prompt_tokens.tolist() == [10, 11]
    model = replica_model(replica_profile(built.replica))
    assert (model.max_num_seqs, model.kv_capacity_tokens, model.a) == (7, 5000, row.roofline.a)


def test_replica_and_start_up_follow_their_profiles() -> None:
    row = profile("llama-3.1-70b_bf16_a100_tp4")
    model = replica_model(replica_profile(Replica(profile=row.id, kv_capacity_tokens=1000)))
    assert (model.b, model.floor_tokens, model.kv_capacity_tokens) == (row.roofline.b, row.roofline.floor_tokens, 1000)
    assert model.request_overhead_seconds == row.host.per_request_seconds
    assert startup_of(Startup(tier="parallel_streamer")).store_gb_per_second == 5.0
    with pytest.raises(ConfigError, match=r"^tier: 'usb' must be one of cross_region_object, "):
        startup_of(Startup(tier="usb"))


def test_a_pool_policy_takes_the_scenarios_slo_bounds_and_interval() -> None:
    built = scenario(
        shape("constant", requests_per_second=1),
        slo={"ttft_seconds": 3.0},
        limits={"max_replicas": 7},
        interval_seconds=15,
        policies=[{"kind": "pool", "name": "mine", "config": {"strategy": "reactive"}}],
    )
    policy = built.policies[0]
    assert isinstance(policy, PoolPolicy)
    settings = policy_settings(built, policy, "chat")
    assert (settings.name, settings.strategy, settings.interval_seconds) == ("chat", "reactive", 15)
    assert (settings.slo.ttft_seconds, settings.limits.max_replicas) == (3.0, 7)
    assert settings.replica.profile == built.replica.profile


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 2}, "version: 2 must be one of 1"),
        ({"seeds": [1, 1]}, "seeds: (1, 1) must be at least one seed, and all different"),
        ({"colour": "red"}, "colour: unknown key; allowed are version, name, traffic"),
        ({"policies": [{"kind": "hpb"}]}, "policies[0].kind: 'hpb' must be one of pool, static, static_peak, hpa, "),
        ({"policies": [{"kind": "static", "replicas": -1}]}, "policies[0].replicas: -1 must be in [0, 100000]"),
        ({"policies": [{"kind": "pool", "config": {"slo": {}}}]}, "policies[0].config.slo: is the scenario's to say"),
        ({"policies": [{"kind": "pool", "config": {"strategy": "best"}}]}, "policies[0].config.strategy: 'best' must be one of"),
        ({"replica": {"profile": "gpt-5"}}, "replica.profile: 'gpt-5' is unknown; it must be one of llama-3.1-8b"),
        ({"replica": {"profile": "gone.yaml"}}, "replica.profile: gone.yaml: cannot be read: No such file or directory"),
        ({"startup": {"tier": "usb"}}, "startup.tier: 'usb' must be one of"),
        ({"time_zone": "Mars/Base"}, "time_zone: 'Mars/Base' must be an IANA time zone"),
        ({"origin": "2025-01-06"}, "origin: '2025-01-06' must be an instant with an offset"),
        ({"faults": [{"kind": "replica_failure", "at_seconds": 5}]}, "faults[0].count: exactly one of count and fraction must be given"),
        ({"window": {"duration_seconds": 5}, "score_from_seconds": 6}, "score_from_seconds: 6 must be < window.duration_seconds, 5"),
        ({"traffic": trace("llm_azure")}, "traffic.trace: 'builtin:llm_azure' must be a file or builtin: and one of llm_azure2023_conv"),
    ],
)  # fmt: skip
def test_a_wrong_scenario_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    good = {"version": 1, "name": "test", "traffic": trace("llm_azure2023_conv")}
    with pytest.raises(ConfigError) as error:
        scenario_from({**good, **change}, HERE)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"window": {"start_seconds": 4000}}, "window.start_seconds: 4000 must be < 3502, the end of the trace"),
        (
            {"window": {"duration_seconds": 4000}},
            "window.duration_seconds: 4000 must be <= 3502, to the end of the trace",
        ),
        (
            {"window": {"start_seconds": 0.5, "duration_seconds": 1}},
            "window: the 1 s from 0.5 hold no request, must hold one",
        ),
        ({"score_from_seconds": 3600}, "score_from_seconds: 3600 must be < 3502, the window's length"),
    ],
)
def test_a_window_that_does_not_fit_is_one_sentence(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        materialise(scenario(trace("llm_azure2023_conv"), **more), 0)
    assert str(error.value) == sentence


def test_a_window_of_too_many_requests_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(
        ConfigError, match=r"^window.duration_seconds: 8.64e\+10 requests in the window must be <= 5e\+07"
    ):
        materialise(scenario(shape("constant", requests_per_second=1e6)), 0)
