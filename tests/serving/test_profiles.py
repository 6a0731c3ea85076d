"""Shipped profiles and start-ups are what their sources say, and a wrong file gets one sentence."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, fields
from importlib.resources import files

import pytest

from autoscaler.errors import ConfigError
from serving.profiles import (
    HostTerms,
    Profile,
    Stage,
    StartupProfile,
    load_profile,
    load_startup,
    profile,
    profile_ids,
    startup_ids,
    startup_profile,
    tiers,
)


def test_coefficients_follow_from_the_raw_table() -> None:
    refit = files("serving") / "data" / "raw" / "refit.py"
    done = subprocess.run([sys.executable, str(refit), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


# layers, KV heads, head dimension, bytes per KV element: from the models' published configurations.
SHAPES = {
    "llama-3.1-8b_bf16": (32, 8, 128, 2),
    "qwen2.5-7b_bf16": (28, 4, 128, 2),
    "qwen3-32b_bf16": (64, 8, 128, 2),
    "codellama-34b_bf16": (48, 8, 128, 2),
    "llama-3.1-70b_bf16": (80, 8, 128, 2),
    "llama-2-70b_bf16": (80, 8, 128, 2),
    "qwen2.5-72b_bf16": (80, 8, 128, 2),
    "llama-3.1-70b_fp8": (80, 8, 128, 1),
}
HBM_GIB = {"h100": 79.1, "a100": 79.2, "h200": 139.8, "l40s": 44.4}
DENSE = [name for name in profile_ids() if name.rsplit("_", 2)[0] in SHAPES]


@pytest.mark.parametrize("name", DENSE)
def test_memory_follows_from_the_models_shape(name: str) -> None:
    row, (layers, heads, dim, size) = profile(name), SHAPES[name.rsplit("_", 2)[0]]
    gpu, tp = name.split("_")[2], row.tensor_parallel
    assert row.layers == layers
    assert row.kv_bytes_per_token == 2 * layers * heads * dim * size
    free = (0.9 * HBM_GIB[gpu] - 2.5) * 2**30 * tp - row.weights_gb * 1e9
    assert math.isclose(row.kv_capacity_tokens, free / row.kv_bytes_per_token, rel_tol=2e-3)  # weights are rounded


def test_all_sixteen_dense_profiles_are_there() -> None:
    assert len(DENSE) == 16
    assert profile("llama-3.1-70b_bf16_a100_tp4").max_num_batched_tokens == 2048
    assert profile("llama-3.1-8b_bf16_h100_tp1").max_num_batched_tokens == 8192


def test_the_laws_price_a_step() -> None:
    row = profile("llama-3.1-8b_bf16_h100_tp1")
    assert row.roofline.seconds(0, 32, 32_000, 0) == pytest.approx(
        0.003396 + 1.874e-5 * 176 + 4.018e-6 * 32 + 4.229e-8 * 32_000
    )
    assert row.roofline.seconds(8192, 0, 0, 8192**2 / 2) == pytest.approx(
        0.003396 + 1.874e-5 * 8192 + 8.831e-10 * 8192**2 / 2
    )
    assert row.linear.seconds(100, 2, 3000, 5000) == pytest.approx(
        0.006047 + 1.614e-5 * 100 + 1.443e-5 * 2 + 4.174e-8 * 3000 + 9.864e-10 * 5000
    )
    assert row.host == HostTerms(per_step_seconds=1.2e-4, per_sequence_seconds=5.5e-5, per_request_seconds=0.0156)


SIZES = ((16.1, 32), (65.5, 64), (141.1, 80))


@pytest.mark.parametrize(
    ("name", "totals"),
    [
        ("cold_node_remote", (471, 689, 998)),
        ("cold_node_optimised", (397, 421, 448)),
        ("warm_node_remote", (106, 324, 633)),
        ("warm_node_local", (38, 78, 132)),
        ("snapshot", (10, 10, 10)),
        ("sleep_l2", (4, 16, 35)),
    ],
)
def test_start_ups_add_up_to_the_published_totals(name: str, totals: tuple[int, ...]) -> None:
    got = [round(startup_profile(name).total_seconds(weights_gb=w, layers=layers)) for w, layers in SIZES]
    assert tuple(got) == totals


def test_start_up_stages_carry_what_a_simulator_needs() -> None:
    cold = startup_profile("cold_node_remote").stage_seconds(weights_gb=141.1, layers=80, image_gb=20.0)
    by_name = {s.name: s for s in cold}
    assert [s.name for s in cold if s.of_node] == ["node_provision", "image_pull_extract"]
    assert by_name["image_pull_extract"].seconds == 250.0
    assert by_name["weights_load"].weights_gb == 141.1
    assert by_name["weights_load"].seconds == pytest.approx(141.1 / 0.26)
    assert sum(s.weights_gb for s in cold) == 141.1
    assert tiers()["parallel_streamer"].gb_per_second == 5.0


def test_an_unknown_id_lists_the_known_ones_and_a_close_match() -> None:
    with pytest.raises(
        ConfigError, match=r"^profile: 'llama-3.1-8b_h100' is unknown; did you mean llama-3.1-8b_bf16_h100"
    ) as e:
        profile("llama-3.1-8b_h100")
    assert all(name in str(e.value) for name in profile_ids())
    with pytest.raises(ConfigError, match="did you mean cold_node_remote"):
        startup_profile("cold_node")
    assert "warm_node_local" in startup_ids()


def plain(row: Profile | StartupProfile) -> dict[str, object]:
    """What a user's file holds: fields as plain values, unknown ones left out."""
    return json.loads(json.dumps({k: v for k, v in asdict(row).items() if v is not None}, default=list))  # type: ignore[no-any-return]


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_users_file_gives_the_same_profile_back(tmp_path, suffix: str) -> None:  # type: ignore[no-untyped-def]
    import yaml

    row = profile("qwen3-32b_bf16_h100_tp2")
    path = tmp_path / f"mine{suffix}"
    text = json.dumps(plain(row)) if suffix == ".json" else yaml.safe_dump(plain(row))
    path.write_text(text, encoding="utf-8")
    assert load_profile(path) == row
    several = tmp_path / "several.json"
    other = {**plain(row), "id": "other", "weights_gb": 1.0}
    other.pop("host")
    several.write_text(json.dumps({"host": {"per_step_seconds": 0}, "profiles": [plain(row), other]}), encoding="utf-8")
    assert load_profile(several, choose="qwen3-32b_bf16_h100_tp2") == row
    assert load_profile(several, choose="other").host.per_step_seconds == 0
    with pytest.raises(ConfigError, match="must be one of qwen3-32b_bf16_h100_tp2, other"):
        load_profile(several)


def test_a_users_start_up_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.toml"
    path.write_text(
        'id = "mine"\nstore_gb_per_second = 2.0\n[[stages]]\nname = "load"\nfrom_store = true\n[[stages]]\nfixed_seconds = 5\n',
        encoding="utf-8",
    )
    assert load_startup(path).total_seconds(weights_gb=10, layers=1) == 10.0
    path.write_text('id = "mine"\n[[stages]]\nfrom_store = true\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine.toml.store_gb_per_second: None must be a rate > 0"):
        load_startup(path)
    with pytest.raises(ConfigError, match="must name at least one stage"):
        StartupProfile(id="none", stages=())


def test_a_wrong_value_names_the_field_and_its_range(tmp_path) -> None:  # type: ignore[no-untyped-def]
    row = plain(profile("qwen3-32b_bf16_h100_tp2"))
    path = tmp_path / "p.json"
    path.write_text(json.dumps({**row, "linear": {**row["linear"], "d": -1.0}}), encoding="utf-8")  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"p\.json\.linear\.d: -1\.0 must be >= 0$"):
        load_profile(path)


def test_every_setting_is_explained() -> None:
    for cls in (Profile, Stage, StartupProfile, HostTerms):
        assert all(f.metadata["doc"] for f in fields(cls))
