"""The table, the JSON and the file: what they say of runs made by hand.  What the page looks like: tests/browser."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from autoscaler.settings import Slo
from autoscaler.types import Reason
from load_tests import report_page
from load_tests.report import attainment_text, print_table, to_json, write_report
from load_tests.report_data import LARGEST, NEVER, UNKNOWN, encode, payload
from load_tests.report_summary import seeds_text, summarize
from load_tests.run import Event, ReplicaSeconds, Run, Timeline


def made(policy: str, *, late: int = 0, hours: float = 10.0, seed: int = 0, rows: int = 12, **changes: object) -> Run:
    """A run of 100 requests, `late` of which take 5 s to their first token, on one GPU for `hours`."""
    n, at = 100, 10.0 * np.arange(rows)
    arrival = np.linspace(0, 10 * rows - 1, n)
    first = arrival + np.where(np.arange(n) < late, 5.0, 0.25)
    whole = {name: np.ones(rows, dtype=np.int64) for name in ("desired", "ready", "starting", "draining", "violated")}
    columns = {name: whole.get(name, np.ones(rows)) for name in Timeline.__dataclass_fields__}
    run = Run(
        policy=policy, pool="pool", scenario="steady", seed=seed, slo=Slo(), gpus_per_replica=1, interval_seconds=10.0,
        score_from_seconds=0.0, end_seconds=10.0 * rows, arrival_seconds=arrival, prompt_tokens=np.full(n, 10),
        output_tokens=np.full(n, 11), first_token_seconds=first, finish_seconds=first + 0.2,
        status=np.zeros(n, dtype=np.int64), timeline=Timeline(**{**columns, "at_seconds": at}), events=(),
        replica_seconds=ReplicaSeconds(ready=3600 * hours), starts=2, about=(("trace", "made by hand"),),
    )  # fmt: skip
    return replace(run, **changes)


def printed(runs: list[Run], width: int = 80, terminal: bool = False) -> str:
    out = io.StringIO()
    print_table(runs, Console(file=out, width=width, force_terminal=terminal, color_system=None))
    return out.getvalue()


def line_of(text: str, policy: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(policy))


def test_every_policy_has_its_row_and_losers_are_not_hidden():
    text = printed([made("good"), made("late", late=7, hours=5.0)])
    assert "yes" in line_of(text, "good")
    assert "100.00%" in line_of(text, "good")
    assert "no" in line_of(text, "late")
    assert "93.00%" in line_of(text, "late")


def test_the_setting_is_said():
    said = " ".join(printed([made("p", seed=3)]).split())
    for words in ("99 % of requests", "TTFT <= 1s", "mean ITL <= 50 ms", "steady", "seed 3", "Trace: made by hand"):
        assert words in said


def test_the_star_is_for_those_that_kept_the_slo():
    text = printed([made("dear", hours=20.0), made("cheap", hours=10.0), made("broken", late=50, hours=1.0)])
    assert "10.0*" in line_of(text, "cheap")
    assert "20.0 " in line_of(text, "dear")
    assert "1.00 " in line_of(text, "broken")
    assert "*" not in line_of(text, "broken")


def test_one_policy_alone_wins_nothing():
    assert "*" not in printed([made("alone")])
    assert "*" not in printed([made("alone"), made("broken", late=50)])


def test_a_terminal_of_80_columns_shows_every_column():
    text = printed([made("reactive"), made("static", late=2)], terminal=True)
    assert max(map(len, text.splitlines())) <= 80
    assert "starts" in text
    assert "…" not in text


def test_requests_that_never_came_are_said_to_never_come():
    run = made("mine")
    gone = np.arange(100) < 10
    first = np.where(gone, np.inf, run.first_token_seconds)
    run = replace(run, first_token_seconds=first, finish_seconds=np.where(gone, np.inf, run.finish_seconds))
    run = replace(run, status=np.where(gone, 2, 0))
    assert line_of(printed([run]), "mine").split()[3:6] == ["0.25", "never", "never"]
    mean = to_json([run])["groups"][0]["policies"][0]["mean"]
    assert mean["ttft_p95_seconds"] is None
    assert "ttft_p95_seconds" in mean["never"]
    json.dumps(to_json([run]), allow_nan=False)


def test_seeds_are_taken_together_with_their_range():
    runs = [made("p", late=0, seed=0), made("p", late=4, seed=1), made("q", late=0, seed=0)]
    row = summarize(runs)[0].rows[0]
    spread = row.spreads["attainment_fraction"]
    assert (spread.mean, spread.low, spread.high) == pytest.approx((0.98, 0.96, 1.0))
    assert (row.met, row.met_seeds) == (False, 1)
    text = printed(runs, width=200)
    assert "1/2" in text
    assert "96.00%-100.00%" in text


def test_scenarios_and_pools_are_not_mixed():
    groups = summarize([made("p"), made("p", scenario="burst"), made("p", pool="other"), made("q")])
    assert [(g.scenario, g.pool, [r.policy for r in g.rows]) for g in groups] == [
        ("steady", "pool", ["p", "q"]),
        ("burst", "pool", ["p"]),
        ("steady", "other", ["p"]),
    ]


def test_unknown_is_null():
    run = made("mine")
    run = replace(run, timeline=replace(run.timeline, need=np.full(12, np.nan)))
    assert to_json([run])["groups"][0]["policies"][0]["mean"]["over_fraction"] is None
    assert "?" in line_of(printed([run]), "mine")


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(1.0, "100.00%"), (0.99999, "99.999%"), (0.5, "50.00%"), (0.999999, "99.9999%"), (1 - 1e-9, "<100%")],
)
def test_attainment_is_never_rounded_up_to_everything(fraction, text):
    assert attainment_text(fraction) == text


@pytest.mark.parametrize(
    ("seeds", "text"), [([3], "seed 3"), ([0, 1, 2, 3], "seeds 0-3"), ([7, 1, 2], "seeds 1, 2, 7")]
)
def test_seeds_text(seeds, text):
    assert seeds_text(seeds) == text


def decode(column: dict) -> np.ndarray:
    codes = np.frombuffer(base64.b64decode(column["codes"]), dtype="<u2")
    low, high = column["low"], column["high"]
    a, b = (math.log(low), math.log(high)) if column["log"] else (low, high)
    values = a + (b - a) * codes / LARGEST
    values = np.exp(values) if column["log"] else values
    return np.where(codes == UNKNOWN, np.nan, np.where(codes == NEVER, np.inf, values))


@pytest.mark.parametrize("values", [[0, 1, 2.5, np.nan, np.inf, 4], [1e-3, 0.5, 300, np.inf], [7, 7], [np.nan], []])
def test_columns_survive_their_coding(values):
    values = np.array(values, dtype=float)
    np.testing.assert_allclose(decode(encode(values)), values, rtol=2e-4, atol=1e-4)


def page_data(path: Path) -> dict:
    return json.loads(re.search(r'type="application/json">(.*?)</script>', path.read_text(), re.S).group(1))


def test_replica_counts_are_kept_exactly(tmp_path):
    rng = np.random.Generator(np.random.Philox(1))
    ready = np.repeat(rng.integers(0, 50, 40), 3)
    run = made("p", rows=120)
    run = replace(run, timeline=replace(run.timeline, ready=ready))
    series = page_data(write_report([run], tmp_path / "r.html", title="t"))["groups"][0]["policies"][0]["series"]
    at, values = np.cumsum(series["steps"]["ready"]["rows"]), series["steps"]["ready"]["values"]
    assert np.array(values)[np.searchsorted(at, np.arange(120), side="right") - 1].tolist() == ready.tolist()


def test_folding_keeps_every_peak():
    run = made("p", rows=50_000)
    waiting = np.zeros(50_000)
    waiting[31_234] = 977
    data = payload([replace(run, timeline=replace(run.timeline, waiting=waiting))], "t", 60_000)
    series = data["groups"][0]["policies"][0]["series"]
    column = decode(data["columns"][series["columns"]["waiting"]])
    assert series["bucket"] > 10
    assert column[31_234 // series["bucket"]] == pytest.approx(977)
    assert (column > 1).sum() == 1


def test_reasons_come_back_word_by_word():
    inputs = (("work", 3.25), ("queued_seconds", 0.0), ("feasible_load", 0.8), ("utilization_fraction", 0.8),
              ("window_seconds", 60.0), ("drain_seconds", 30.0))  # fmt: skip
    first = Reason(rule="reactive", before=4, after=6, inputs=inputs)
    second = Reason(rule="a rule of 2031", before=6, after=5, inputs=(("note", "as ordered"), ("share_fraction", 0.5)))
    events = (Event(at_seconds=30.0, before=4, after=5, reasons=(first, second)),)
    data = payload([made("p", events=events)], "t", 1_000_000)
    [[at, before, after, kind, _, reasons]] = data["groups"][0]["policies"][0]["events"]
    assert (at, before, after, kind) == (30.0, 4, 5, "")
    told = []
    for cause, _, _ in reasons:
        shape, words, numbers, values = data["causes"][cause]
        rule, names = data["shapes"][shape]
        text = data["words"][words]
        for value in numbers:
            text = text.replace("\u241f", value, 1)
        told.append((rule, text, dict(zip(names, values, strict=True))))
    assert told[0][0] == "reactive"
    assert told[0][1].startswith("work arrives at 3.25 replica-seconds per second (mean of 1m)")
    # Nobody wrote a sentence for this rule: its inputs speak.
    assert told[1] == ("a rule of 2031", "", {"note": "as ordered", "share_fraction": 0.5})


def test_the_largest_changes_keep_their_reasons_when_there_are_too_many():
    def event(i: int) -> Event:
        reason = Reason(rule="reactive", before=1, after=2, inputs=(("work", i + 0.123), ("note", f"number {i}")))
        return Event(at_seconds=float(i), before=1, after=40 if i == 4321 else 2, reasons=(reason,))

    policy = payload([made("p", events=tuple(map(event, range(5000))))], "t", 100_000)["groups"][0]["policies"][0]
    assert len(policy["events"]) == 5000
    assert policy["events"][4321][5] is not None
    left_out = sum(e[5] is None for e in policy["events"])
    assert 0 < left_out == policy["reasons_left_out"] < 5000


def test_what_a_user_named_cannot_leave_its_place(tmp_path):
    evil = "</script><script>alert(1)</script>/*DATA*/<!--TITLE-->"
    path = write_report([made(evil, scenario=evil)], tmp_path / "r.html", title=evil)
    text = path.read_text()
    assert "<script>alert" not in text
    data = page_data(path)
    assert (data["title"], data["groups"][0]["policies"][0]["name"]) == (evil, evil)


def test_the_page_asks_nobody_for_anything(tmp_path):
    text = write_report([made("p")], tmp_path / "r.html", title="t").read_text()
    assert "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)|@import|url\(|fetch\(|XMLHttpRequest""", text)


def test_a_report_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "r.html"
    write_report([made("p")], path, title="first")
    before = path.read_bytes()

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(report_page.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_report([made("p")], path, title="second")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "r.html", title="t")
    assert not list(tmp_path.iterdir())


def test_uneven_ticks_are_put_on_the_grid():
    run = made("p", rows=4)
    timeline = replace(run.timeline, at_seconds=np.array([0.0, 10.0, 13.0, 30.0]), ready=np.array([1, 2, 3, 4]))
    series = payload([replace(run, timeline=timeline)], "t", 10**6)["groups"][0]["policies"][0]["series"]
    assert series["rows"] == 4
    assert series["steps"]["ready"]["values"] == [1, 2, 3, 4]
    assert series["steps"]["ready"]["rows"] == [0, 1, 1, 1]


def test_the_band_is_drawn_in_arrivals():
    run = made("p")
    timeline = replace(run.timeline, forecast_low=np.full(12, 9.0))
    data = payload([replace(run, timeline=timeline)], "t", 10**6)
    column = data["groups"][0]["policies"][0]["series"]["columns"]["forecast_low"]
    assert decode(data["columns"][column]).tolist() == pytest.approx([9.0] * 12)
