"""A calibrated profile in a pool's config: its numbers are put where its path stood, so that a log is replayed alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoscaler.config import load_config, pool_settings
from autoscaler.embed import Pool, autoscaler_for
from autoscaler.errors import ConfigError
from autoscaler.log import StepLog, verify
from autoscaler.testing import observation
from autoscaler.types import Lengths
from serving.capacity import laws_of
from serving.profiles import load_profile, replica_of

MINE = """
id = "mine"
layers = 32
weights_gb = 16.1
kv_bytes_per_token = 131072
kv_capacity_tokens = 400000
max_num_seqs = 128
linear = {a = 0.008, b = 2e-5, c = 8e-5, d = 5e-8}
roofline = {a = 0.006, b = 2e-5, c = 6e-5, d = 5e-8, floor_tokens = 80.0}
host = {per_step_seconds = 0.0001, per_sequence_seconds = 5e-5}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").write_text(MINE)
    file = {"version": 1, "pools": [{"name": "chat", "replica": {"profile": "mine.toml", "max_num_seqs": 64}}]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(file))
    return path


def test_its_law_is_the_files(config: Path) -> None:
    replica = load_config(config).pools[0].replica
    known = replica_of(replica)
    assert known is not None
    assert laws_of(known)[1] == laws_of(load_profile(config.parent / "mine.toml"))[1]
    assert replica.profile is None
    assert known.max_num_seqs == 64  # what the section says itself stands
    assert known.kv_capacity_tokens == 400_000
    assert known.weights_gb == 16.1
    prior = autoscaler_for(load_config(config).pools[0]).capacity_model
    told = prior.capacity(prior.start(), Lengths(), 4)
    assert told.source == "prior"


def test_its_log_is_replayed_without_the_file(config: Path, tmp_path: Path) -> None:
    pool = Pool(autoscaler_for(load_config(config).pools[0]))
    log = StepLog(tmp_path / "log", pool.autoscaler, pool.memory)
    for i in range(5):
        pool.step(observation("chat", 1_000_000 + 10 * i, requests_per_second=4.0))
        assert pool.last_step is not None
        log.append(pool.last_step, pool.memory)
    log.close()
    (config.parent / "mine.toml").unlink()
    header = json.loads((tmp_path / "log" / "000001.jsonl").read_text().splitlines()[0])
    again = autoscaler_for(pool_settings(header["pool"]))
    assert header["pool"]["replica"]["law"]["floor_tokens"] == 80.0
    assert verify(again, tmp_path / "log") == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (MINE.replace("host =", "hosts ="), "pools[0].replica.profile: roofline: and host must be tables"),
        (MINE.replace("a = 0.006", 'a = "quick"'), "pools[0].replica.profile: roofline.a: 'quick' must be a number"),
        (MINE.replace("layers = 32\n", ""), "layers: is missing"),
        (MINE.replace("b = 2e-5, c = 6e-5", "b = 0.0, c = 6e-5"), "law.b: 0.0 must be"),
    ],
)
def test_a_file_that_does_not_say_enough_is_a_sentence(config: Path, text: str, says: str) -> None:
    (config.parent / "mine.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(config)
    assert says in str(error.value)


def test_a_file_that_is_not_there_is_named(config: Path) -> None:
    (config.parent / "mine.toml").unlink()
    with pytest.raises(ConfigError, match=r"pools\[0\].replica.profile: .*mine.toml.*No such file"):
        load_config(config)


def test_a_law_beside_a_profile_is_refused() -> None:
    law = {"a": 0.006, "b": 2e-5, "c": 6e-5, "d": 5e-8}
    with pytest.raises(ConfigError, match="must be left out where profile names one"):
        pool_settings({"name": "chat", "replica": {"profile": "llama-3.1-8b_bf16_h100_tp1", "law": law}})
