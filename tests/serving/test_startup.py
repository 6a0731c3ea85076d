"""How long a start-up takes, before any was seen."""

from __future__ import annotations

import math
import random

import pytest

from autoscaler.errors import ConfigError
from autoscaler.settings import StartupSettings
from serving.profiles import profile, startup_ids
from serving.startup import LogNormal, startup_prior, startup_quantiles, summed

LLAMA_8B, LLAMA_70B = "llama-3.1-8b_bf16_h100_tp1", "llama-3.1-70b_bf16_h100_tp4"


@pytest.mark.parametrize(
    ("startup", "replica", "published"),
    [
        ("warm_node_remote", LLAMA_8B, 106),
        ("warm_node_remote", "qwen3-32b_bf16_h100_tp2", 324),
        ("warm_node_remote", LLAMA_70B, 633),
        ("warm_node_local", LLAMA_8B, 38),
        ("warm_node_local", LLAMA_70B, 132),
        ("cold_node_optimised", LLAMA_70B, 448),
    ],
)
def test_the_median_is_near_the_published_total(startup, replica, published):
    """A cold node's 240 s spread by sigma 0.35, so that the mean, and the log-normal's median, lie a little above."""
    prior = startup_prior(StartupSettings(profile=startup), profile(replica))
    assert prior.median_seconds == pytest.approx(published, rel=0.04)


def test_a_sum_of_stages_has_the_quantiles_of_drawn_ones():
    stages = [(240.0, 0.35), (125.0, 0.25), (62.0, 0.15), (10.0, 0.1)]
    total, rng = summed(stages), random.Random(11)
    drawn = sorted(sum(m * math.exp(s * rng.gauss(0, 1)) for m, s in stages) for _ in range(20_000))
    for q in (0.5, 0.9, 0.99):
        assert total.quantile(q) == pytest.approx(drawn[int(q * len(drawn))], rel=0.025)


def test_one_stage_is_itself_and_none_is_nothing():
    one = summed([(10.0, 0.3)])
    assert (one.median_seconds, one.sigma) == (pytest.approx(10.0), pytest.approx(0.3))
    assert summed([]).quantile(0.99) == 0.0


@pytest.mark.parametrize("name", startup_ids())
def test_quantiles_ascend_for_every_profile(name):
    pairs = startup_quantiles(StartupSettings(profile=name), profile(LLAMA_8B))
    assert [q for q, _ in pairs] == [0.5, 0.9, 0.95, 0.99]
    seconds = [s for _, s in pairs]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_a_person_who_knows_better_is_believed():
    pairs = dict(startup_quantiles(StartupSettings(median_seconds=200.0, sigma=0.0), profile(LLAMA_8B)))
    assert set(pairs.values()) == {200.0}
    spread = startup_prior(StartupSettings(median_seconds=200.0, sigma=0.35), None)
    assert spread == LogNormal(median_seconds=200.0, sigma=0.35)


def test_a_replica_of_unknown_size_has_a_wide_start():
    unknown, known = startup_prior(StartupSettings(), None), startup_prior(StartupSettings(), profile(LLAMA_8B))
    assert unknown.sigma >= 0.5 > known.sigma
    assert startup_prior(StartupSettings(median_seconds=90.0), None).sigma < 0.5


def test_an_unknown_startup_profile_lists_the_known_ones():
    with pytest.raises(ConfigError, match="warm_node_remote"):
        startup_quantiles(StartupSettings(profile="warm_node"), None)
