"""Traces say what their files say: every form is read, gaps stay unknown, and a wrong row is named."""
# ruff: noqa: E501  sentences are compared whole

from __future__ import annotations

import gzip
import json
from importlib.resources import files

import numpy as np
import pytest

from autoscaler.errors import ConfigError
from load_tests.traces import RateTrace, RequestTrace, builtin_names, load_trace

# name: (rows, mean requests per second) as published beside the files
PUBLISHED = {
    "llm_azure2023_conv": (19_366, 5.53),
    "llm_azure2023_code_part1": (5_740, 3.21),
    "rate_servegen_msmall_total": (2_016, 1_174),
    "rate_servegen_msmall_c5": (2_016, 351),
    "rate_servegen_msmall_c31": (2_016, 18.87),
    "rate_servegen_msmall_c13": (2_016, 6.35),
    "rate_servegen_mmid_c66": (2_016, 44.57),
    "rate_servegen_mmid_c49": (2_016, 4.75),
    "rate_servegen_mmid_c52": (2_016, 4.18),
    "rate_servegen_mmid_c44": (2_016, 2.32),
    "rate_servegen_mmid_c22": (2_016, 5.29),
    "rate_servegen_mmimage_total": (144, 9.47),
    "rate_worldcup98_may": (40_320, 28.23),
    "rate_worldcup98_groupstage": (20_160, 433),
    "rate_nasa1995_july": (39_692, 0.79),
    "rate_nab_elb": (4_032, 0.21),
    "rate_nab_tweets_amzn": (15_831, 0.18),
    "rate_nab_nyctaxi": (10_320, 8.41),
}


def test_all_eighteen_traces_are_shipped() -> None:
    assert set(builtin_names()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shipped_trace_has_its_published_size_and_rate(name: str) -> None:
    trace, (rows, rps) = load_trace(f"builtin:{name}"), PUBLISHED[name]
    if isinstance(trace, RequestTrace):
        assert trace.rows.arrival_seconds.size == rows
        assert rows / trace.rows.arrival_seconds[-1] == pytest.approx(rps, rel=2e-3)
        assert (np.diff(trace.rows.arrival_seconds) >= 0).all()
    else:
        assert trace.requests.size - 8 * (name == "rate_nab_elb") == rows  # eight intervals have no row in the source
        known = np.where(trace.missing, 0.0, trace.requests)
        # The published mean counts every row; the neighbours of gaps are unknown here.
        assert known.sum() / (rows * trace.interval_seconds) == pytest.approx(rps, rel=0.02, abs=0.005)


def test_gaps_and_one_neighbour_each_side_are_unknown() -> None:
    trace = load_trace("builtin:rate_servegen_mmid_c66")
    assert isinstance(trace, RateTrace)
    text = gzip.decompress((files("load_tests") / "data/traces/rate_servegen_mmid_c66.csv.gz").read_bytes()).decode()
    gap = {i for i, line in enumerate(text.splitlines()[1:]) if line.endswith(",1")}
    assert len(gap) == 84
    expected = {j for i in gap for j in (i - 1, i, i + 1) if 0 <= j < trace.missing.size}
    assert set(np.flatnonzero(trace.missing).tolist()) == expected
    assert np.isnan(trace.requests[trace.missing]).all()
    assert np.isnan(trace.prompt_tokens[trace.missing]).all()
    assert not np.isnan(trace.requests[~trace.missing]).any()


def test_intervals_without_a_row_and_empty_minutes_of_may_are_unknown() -> None:
    elb, may, july = (load_trace(f"builtin:rate_{n}") for n in ("nab_elb", "worldcup98_may", "nasa1995_july"))
    assert isinstance(elb, RateTrace)
    assert isinstance(may, RateTrace)
    assert isinstance(july, RateTrace)
    assert elb.missing.sum() == 8
    assert may.missing.sum() == 10
    assert july.missing.sum() == 0
    assert (july.requests == 0).sum() == 162  # quiet minutes are quiet, not unknown
    assert np.nanmax(may.requests) == 57_509  # the spike of day 8 is data


def test_a_cached_trace_cannot_be_written_to() -> None:
    trace = load_trace("builtin:llm_azure2023_conv")
    assert isinstance(trace, RequestTrace)
    with pytest.raises(ValueError, match="read-only"):
        trace.rows.arrival_seconds[0] = 1.0


def write(path, text: str, packed: bool = False):  # type: ignore[no-untyped-def]
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2225670,879,55
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,230,1317,API log
118,ChatGPT,417,0,417,Conversation log
118,ChatGPT,1360,218,1578,Conversation log
"""


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_azures_original_form(tmp_path, packed: bool, newline: str) -> None:  # type: ignore[no-untyped-def]
    trace = load_trace(write(tmp_path / "a.csv", "\ufeff" + AZURE.replace("\n", newline), packed))
    assert isinstance(trace, RequestTrace)
    np.testing.assert_allclose(trace.rows.arrival_seconds, [0.0, 4.314579, 4.541977], atol=2e-6)
    assert trace.rows.prompt_tokens.tolist() == [374, 396, 879]
    assert trace.rows.output_tokens.tolist() == [44, 109, 55]
    assert trace.facts.origin_at_seconds == 1700158546


def test_burstgpts_original_form_leaves_failed_requests_out(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = load_trace(write(tmp_path / "b.csv", BURST)).rows  # type: ignore[union-attr]
    assert rows.arrival_seconds.tolist() == [0, 40, 113]
    assert rows.output_tokens.tolist() == [18, 230, 218]
    assert rows.dropped == 1
    assert [rows.labels[t] for t in rows.tenant] == ["ChatGPT", "GPT-4", "ChatGPT"]  # type: ignore[union-attr]


def test_mooncakes_form_keeps_block_hashes_in_order_of_arrival(tmp_path) -> None:  # type: ignore[no-untyped-def]
    lines = [
        {"timestamp": 3000, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48]},
        {"timestamp": 0, "input_length": 6472, "output_length": 26, "hash_ids": [0, 1]},
        {"timestamp": 3000, "input_length": 10, "output_length": 1, "hash_ids": []},
    ]
    rows = load_trace(write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, lines)) + "\n")).rows  # type: ignore[union-attr]
    assert rows.arrival_seconds.tolist() == [0, 3, 3]
    assert rows.prompt_tokens.tolist() == [6472, 6955, 10]
    assert rows.block_ids.tolist() == [0, 1, 46, 47, 48]  # type: ignore[union-attr]
    assert rows.block_offsets.tolist() == [0, 2, 5, 5]  # type: ignore[union-attr]
    assert rows.block_tokens == 512


def test_our_forms(tmp_path) -> None:  # type: ignore[no-untyped-def]
    own = write(
        tmp_path / "o.csv",
        "prompt_tokens,arrival_s,output_tokens,cached_prompt_tokens,tenant\n5,0.5,7,2,x\n6,0.5,8,0,y\n",
    )
    rows = load_trace(own).rows  # type: ignore[union-attr]
    assert rows.cached_prompt_tokens.tolist() == [2, 0]  # type: ignore[union-attr]
    assert rows.tenant.tolist() == [0, 1]  # type: ignore[union-attr]
    rate = load_trace(
        write(tmp_path / "r.csv", "t_s,requests,prompt_tokens,gap\n0,4,40,0\n60,0,0,0\n120,,,0\n240,2,,0\n", True)
    )
    assert isinstance(rate, RateTrace)
    assert rate.interval_seconds == 60
    assert rate.missing.tolist() == [False, False, True, True, False]
    np.testing.assert_array_equal(rate.requests, [4, 0, np.nan, np.nan, 2])
    np.testing.assert_array_equal(rate.prompt_tokens, [40, 0, np.nan, np.nan, np.nan])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("arrival_s,prompt_tokens,output_tokens\n0,5,7\n1,-5,7\n", "f.csv, line 3, prompt_tokens: '-5' must be a whole number in [1, 1e+07]"),
        ("arrival_s,prompt_tokens,output_tokens\n0,5,7\n\n1,x,7\n", "f.csv, line 4, prompt_tokens: 'x' must be a whole number in [1, 1e+07]"),
        ("arrival_s,prompt_tokens,output_tokens\n0,5,\n", "f.csv, line 2, output_tokens: '' must be a whole number in [1, 1e+07]"),
        ("arrival_s,prompt_tokens,output_tokens\n0,nan,7\n", "f.csv, line 2, prompt_tokens: 'nan' must be a whole number in [1, 1e+07]"),
        ("arrival_s,prompt_tokens,output_tokens\n3,5,7\n1,5,7\n", "f.csv, line 3, arrival_s: '1' must be >= the row before, 3: rows are sorted by arrival"),
        ("arrival_s,prompt_tokens,output_tokens\n0,5\n", "f.csv, line 2: 2 fields must be 3: arrival_s, prompt_tokens, output_tokens"),
        ("arrival_s,prompt_tokens\n0,5\n", "f.csv, line 1: misses the column output_tokens; needed are arrival_s, prompt_tokens, output_tokens"),
        ("arrival_s,prompt_tokens,output_tokens,colour\n0,5,7,red\n", "f.csv, line 1, colour: unknown column, allowed are arrival_s, prompt_tokens, output_tokens, cached_prompt_tokens, tenant"),
        ("t_s,requests,requests\n0,5,5\n", "f.csv, line 1, requests: the column is there twice, must be there once"),
        ("t_s,requests\n0,5\n60,1.5\n", "f.csv, line 3, requests: '1.5' must be a whole number in [0, 1e+09] or empty"),
        ("t_s,requests\n0,5\n60,5\n100,5\n", "f.csv, line 3, t_s: '60' must be 0 plus a multiple of the interval, 40 s"),
        ("t_s,requests\n0,5\n", "f.csv: holds 1 row, must hold at least 2: the interval is the step from row to row"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,5,5\n", "f.csv, line 2, TIMESTAMP: 'yesterday' must be a date and time such as 2023-11-16 18:15:46.6805900"),
        ('{"timestamp": 0, "input_length": 5}\n', "f.csv, line 1, output_length: is missing, must be a number in [1, 1e+07]"),
        ("", "f.csv: is empty, must hold a header line and rows"),
        ("hello\n1\n", "f.csv, line 1: 'hello' must be the columns of a known form: arrival_s, prompt_tokens, output_tokens; t_s, requests; TIMESTAMP, ContextTokens, GeneratedTokens; Timestamp, Model, Request tokens, Response tokens"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_one_sentence(tmp_path, text: str, sentence: str) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path / "f.csv", text)
    with pytest.raises(ConfigError) as error:
        load_trace(path)
    said = str(error.value).replace(str(path), "f.csv")
    assert said == sentence


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean builtin:llm_azure2023_conv") as error:
        load_trace("builtin:azure2023_conv")
    assert all(name in str(error.value) for name in PUBLISHED)
