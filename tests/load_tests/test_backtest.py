"""The backtest: nothing seen ahead of its time, figures that follow by hand, the command on files and recordings."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from autoscaler.errors import ConfigError
from autoscaler.main import main
from autoscaler.record import encode
from autoscaler.testing import observation
from forecast.adapters import LEVELS
from load_tests.backtest import run_all
from load_tests.backtest_run import OURS, Told, a_day_ago, last_minute, names_of, origins, outcomes, told_by
from load_tests.backtest_score import groups_of, lost_cells, scores
from load_tests.backtest_series import MEAN_WORK, WorkSeries, work_series
from load_tests.backtest_views import markdown, page, tables, to_json
from load_tests.traces import load_trace

DAY_MINUTES = 1440
FEW = (OURS, "naive", "seasonal_naive")


def series_of(work: np.ndarray, test_from: int, name: str = "made") -> WorkSeries:
    return WorkSeries(
        name=name, start_at_seconds=1_760_400_000, time_zone="UTC", work=work, test_from=test_from, tuned=False
    )  # fmt: skip


def waves(minutes: int) -> np.ndarray:
    t = np.arange(minutes)
    return 20 + 8 * np.sin(2 * np.pi * t / DAY_MINUTES) + (t * 7919 % 101) / 50


@pytest.fixture(scope="module")
def played() -> tuple[WorkSeries, list[Told]]:
    series = series_of(waves(DAY_MINUTES + 360), DAY_MINUTES)
    return series, run_all([series], FEW, jobs=1)[0]


def test_outcomes_are_the_largest_minute_of_each_window() -> None:
    work = np.arange(200.0)
    series = series_of(work, 100)
    at = origins(series)
    assert (at >= 100).all()
    assert (np.diff(at) == 11).all()  # every minute of a ten-minute grid has its turn
    assert len(set(at % 10)) == min(10, at.size)
    found = outcomes(series, [(0, 60), (60, 120), (0, 300), (10, 70)])
    assert found[:, 0].tolist() == at.tolist()
    assert found[:, 1].tolist() == (at + 1).tolist()
    assert found[:, 2].tolist() == (at + 4).tolist()
    assert found[:, 3].tolist() == at.tolist()
    assert last_minute(series).tolist() == (at - 1).tolist()
    assert np.isnan(a_day_ago(series)).all()
    series.work[at[0]] = np.nan
    assert np.isnan(outcomes(series, [(0, 60)])[0, 0])
    assert outcomes(series, [(0, 300)])[0, 0] == at[0] + 4


def test_nothing_is_seen_ahead_of_its_time(played: tuple[WorkSeries, list[Told]]) -> None:
    series, told = played
    cut = int(origins(series)[6])
    later = series.work.copy()
    later[cut:] *= 40
    other = run_all([series_of(later, series.test_from)], FEW, jobs=1)[0]
    for one, two in zip(told, other, strict=True):
        assert np.array_equal(one.quantiles[:7], two.quantiles[:7], equal_nan=True), one.forecaster
        assert not np.array_equal(one.quantiles[8:], two.quantiles[8:], equal_nan=True), one.forecaster


def test_jobs_change_no_digit(played: tuple[WorkSeries, list[Told]]) -> None:
    pytest.importorskip("joblib")
    series, told = played
    short = series_of(waves(400), 300)
    one, two = run_all([short], FEW[1:], jobs=1)[0], run_all([short], FEW[1:], jobs=2)[0]
    for a, b in zip(one, two, strict=True):
        assert a.forecaster == b.forecaster
        assert np.array_equal(a.quantiles, b.quantiles, equal_nan=True)


def test_scores_follow_by_hand() -> None:
    series = series_of(waves(2 * DAY_MINUTES), DAY_MINUTES)
    actual = outcomes(series)
    perfect = Told(
        forecaster=OURS, quantiles=np.repeat(actual[:, :, None], len(LEVELS), axis=2), seconds_per_update=0.001,
        seconds_per_refit=0.0,
    )  # fmt: skip
    half = Told(forecaster="naive", quantiles=0.5 * perfect.quantiles, seconds_per_update=0.0, seconds_per_refit=0.0)
    found = scores(series, [perfect, half])
    one, two = found[0], found[1]
    assert one.wql == 0.0
    assert one.coverage == (1.0, 1.0, 1.0)
    assert one.mase_naive == 0.0
    assert one.milliseconds_per_update == 1.0
    known = np.isfinite(actual[:, 0])
    mean = actual[known, 0].mean()
    assert two.coverage == (0.0, 0.0, 0.0)
    assert two.wql == pytest.approx(2 * np.mean([q * 0.5 for q in LEVELS]))
    assert two.pinball[1] == pytest.approx(0.9 * 0.5)
    error = np.abs(0.5 * actual[known, 0]).mean()
    assert two.mase_naive == pytest.approx(error / np.abs(actual[:, 0] - last_minute(series))[known].mean())
    assert two.mase_seasonal == pytest.approx(error / np.abs(actual[:, 0] - a_day_ago(series)[:, 0])[known].mean())
    assert mean > 0


def test_coverage_of_the_right_cells_is_called_lost() -> None:
    series = series_of(waves(7 * DAY_MINUTES), DAY_MINUTES)
    actual = outcomes(series)
    low = np.repeat(0.9 * actual[:, :, None], len(LEVELS), axis=2)
    worse = Told(forecaster=OURS, quantiles=low, seconds_per_update=0.0, seconds_per_refit=0.0)
    exact = Told(forecaster="naive", quantiles=low / 0.9, seconds_per_update=0.0, seconds_per_refit=0.0)
    lost = lost_cells(scores(series, [worse, exact]))
    assert {one.what for one in lost} >= {"coverage at 0.9", "coverage at 0.99", "coverage at 0.95 in bursts"}
    assert any("loss over that of naive" in one.what for one in lost)


def test_origins_that_one_cannot_answer_count_for_none_and_a_silent_one_spoils_nobody() -> None:
    series = series_of(waves(2 * DAY_MINUTES), DAY_MINUTES)
    full = np.repeat(outcomes(series)[:, :, None], len(LEVELS), axis=2)
    some, silent = full.copy(), np.full_like(full, np.nan)
    some[:10] = np.nan
    told = [
        Told(forecaster=n, quantiles=q, seconds_per_update=0.0, seconds_per_refit=0.0)
        for n, q in ((OURS, full), ("naive", some), ("ets", silent))
    ]
    by = {(s.forecaster, s.window): s for s in scores(series, told)}
    window = (180, 240)
    assert by[OURS, window].origins == by["naive", window].origins == len(full) - 10
    assert by["ets", window].origins == 0
    assert by["ets", window].answered == 0.0
    assert math.isnan(by["ets", window].wql)


def test_bursts_and_shifts_are_known_at_the_origin() -> None:
    work = np.full(3 * DAY_MINUTES, 10.0)
    jump = 2 * DAY_MINUTES
    work[jump:] = 40.0
    series = series_of(work, DAY_MINUTES)
    found, at = groups_of(series), origins(series)
    assert 1 <= found.burst.sum() <= 2
    assert ((jump < at[found.burst]) & (at[found.burst] < jump + 20)).all()
    assert found.shift[at <= jump].sum() == 0
    assert 6 <= found.shift.sum() <= 12
    assert found.hour[0] == (series.start_at_seconds // 3600 + int(at[0]) // 60) % 24


def test_series_of_shipped_traces_keep_counts_and_gaps() -> None:
    trace = load_trace("builtin:rate_servegen_mmid_c66")
    series = work_series("builtin:rate_servegen_mmid_c66")
    assert series.test_from == 7 * DAY_MINUTES
    assert series.tuned
    hour = series.work[600:610]
    scale = MEAN_WORK / (np.nansum(trace.requests[: 7 * 144]) / np.isfinite(trace.requests[: 7 * 144]).sum() / 10)
    assert hour.sum() == pytest.approx(trace.requests[60] * scale, rel=1e-6)
    assert np.isnan(series.work).mean() == pytest.approx(trace.missing.mean(), abs=1e-3)
    assert np.nanmean(series.work[: series.test_from]) == pytest.approx(MEAN_WORK)
    assert np.array_equal(series.work, work_series("builtin:rate_servegen_mmid_c66").work, equal_nan=True)
    assert not np.array_equal(series.work, work_series("builtin:rate_servegen_mmid_c66", 1).work, equal_nan=True)
    minutes = work_series("builtin:rate_worldcup98_groupstage")
    assert minutes.test_from == 7 * DAY_MINUTES
    short = work_series("builtin:llm_azure2023_conv")
    assert short.test_from == short.work.size // 2
    assert not short.tuned


def test_a_cut_keeps_the_clock() -> None:
    series = series_of(np.arange(5.0 * DAY_MINUTES), 3 * DAY_MINUTES)
    part = series.cut(warm_days=1, test_days=0.5)
    assert part.test_from == DAY_MINUTES
    assert part.work[0] == 2 * DAY_MINUTES
    assert part.start_at_seconds == series.start_at_seconds + 2 * 86_400
    assert part.work.size == 1.5 * DAY_MINUTES


def test_a_recording_is_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = 1_760_400_000
    path = tmp_path / "chat.jsonl"
    seen = [
        observation("chat", start + 60 * i, window_seconds=60, replicas=2, requests_per_second=5 + (i % 7))
        for i in range(1, 240)
    ]
    path.write_text("".join(encode(o) + "\n" for o in seen))
    series = work_series(str(path))
    assert series.name == "chat"
    assert np.isfinite(series.work).mean() > 0.95
    assert series.work.max() / np.nanmin(series.work) == pytest.approx(11 / 5, rel=0.05)
    command = ["backtest", str(path), "--forecasters", "naive", "--jobs", "1", "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert {s["forecaster"] for s in told["scores"]} == {OURS, "naive"}


def test_views_agree(played: tuple[WorkSeries, list[Told]]) -> None:
    series, told = played
    found = scores(series, told)
    lost = lost_cells(found)
    body = page([series], [told], found, lost, []).decode()
    data = json.loads(body.split('type="application/json">')[1].split("</script>")[0])
    assert data["traces"][0]["name"] == "made"
    assert set(data["traces"][0]["fans"]) == set(FEW)
    assert len(data["traces"][0]["fans"][OURS][0]) == 4
    assert "http://" not in body.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in body
    titles = [title for title, _ in tables(found, [])]
    assert [t["title"] for t in data["tables"]] == titles
    assert markdown(tables(found, [])[0][1]).splitlines()[1].startswith("|---|--:")
    assert len(to_json(found, lost, [])["scores"]) == len(found)
    json.dumps(to_json(found, lost, []), allow_nan=False)


def test_the_command_on_a_file_writes_table_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.csv"
    rows = "\n".join(f"{60 * i},{int(w * 60)}" for i, w in enumerate(waves(800)))
    path.write_text(f"t_s,requests\n{rows}\n")
    command = ["backtest", str(path), "--quick", "--forecasters", "naive,seasonal_naive", "--jobs", "1"]
    assert main([*command, "--html", str(tmp_path / "out" / "page.html")]) == 0
    out = capsys.readouterr().out
    for word in ("mine.csv", OURS, "seasonal_naive", "Weighted quantile loss", "mean", "ost"):
        assert word in out
    assert (tmp_path / "out" / "page.html").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--forecasters", "oracle"], "--forecasters"),
        (["--jobs", "0"], "--jobs"),
        (["--seed", "-1"], "--seed"),
        (["--test-days", "0"], "--test-days"),
        (["--startup-factor", "0"], "--startup-factor"),
        (["builtin:nothing"], "unknown"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    trace = [] if arguments[0].startswith("builtin") else ["builtin:rate_nab_elb"]
    assert main(["backtest", *trace, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_names() -> None:
    assert names_of("naive, ets,naive") == (OURS, "naive", "ets")
    assert names_of(None)[0] == OURS
    with pytest.raises(ConfigError, match="must be one of"):
        names_of("x")


def test_told_by_keeps_the_order_of_names() -> None:
    series = series_of(waves(300), 200)
    assert [t.forecaster for t in told_by(["naive", OURS], series)] == ["naive", OURS]


@pytest.mark.slow
def test_decisions_compare_at_equal_attainment() -> None:
    from load_tests.backtest_decisions import HEADROOMS, REACTIVE, decisions

    found = decisions("builtin:rate_servegen_mmid_c66", [OURS, "naive"], hours=1.0)
    reactive = [d for d in found if d.forecaster == REACTIVE]
    assert [d.headroom for d in reactive] == list(HEADROOMS)
    assert all(d.ratio is None or d.ratio == pytest.approx(1.0, abs=0.2) for d in reactive)
    assert reactive[0].gpu_hours < reactive[-1].gpu_hours
    assert {d.forecaster for d in found} == {REACTIVE, OURS, "naive"}
    assert all(d.gpu_hours > 0 and 0 <= d.attained_fraction <= 1 for d in found)
    assert decisions("builtin:rate_nab_elb", [OURS]) == []
