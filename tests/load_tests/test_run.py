"""Metrics of a run against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from autoscaler.settings import Slo
from load_tests.run import Event, ReplicaSeconds, Run, Timeline, by_arrival, judge, metrics, nearest_rank, scored

INF, NAN = math.inf, math.nan


def timeline(**columns: list[float]) -> Timeline:
    n = len(next(iter(columns.values())))
    whole = ("desired", "ready", "starting", "draining", "violated")
    rows = {"at_seconds": np.arange(n) * 10.0}
    for name in Timeline.__dataclass_fields__:
        if name in columns:
            rows[name] = np.array(columns[name], dtype=np.int64 if name in whole else np.float64)
        else:
            rows.setdefault(name, np.zeros(n, dtype=np.int64) if name in whole else np.full(n, NAN))
    return Timeline(**rows)


def run_of(
    requests: list[tuple[float, float, float, int, int]], *, rows: Timeline | None = None, end: float = 100.0, **changes
) -> Run:
    """A run of (arrival, first token, finish, output tokens, status) requests, 100 prompt tokens each."""
    columns = list(zip(*requests, strict=True)) if requests else [[]] * 5
    made = Run(
        policy="p", pool="pool", scenario="s", seed=0,
        slo=Slo(ttft_seconds=1.0, itl_seconds=0.1, attainment_fraction=0.5),
        gpus_per_replica=2, interval_seconds=10.0, score_from_seconds=0.0, end_seconds=end,
        arrival_seconds=np.array(columns[0], dtype=float), prompt_tokens=np.full(len(requests), 100),
        output_tokens=np.array(columns[3], dtype=np.int64), first_token_seconds=np.array(columns[1], dtype=float),
        finish_seconds=np.array(columns[2], dtype=float), status=np.array(columns[4], dtype=np.int64),
        timeline=rows or timeline(ready=[1]), events=(),
        replica_seconds=ReplicaSeconds(starting=600, ready=3000, draining=0, sleeping=0), starts=3,
    )  # fmt: skip
    return replace(made, **changes)


REQUESTS = [
    (0.0, 0.5, 1.5, 11, 0),  # in time: TTFT 0.5 s, mean ITL 0.1 s, exactly at the limit
    (1.0, 2.5, 2.6, 2, 0),  # late
    (2.0, 2.2, 4.2, 11, 0),  # slow: mean ITL 0.2 s
    (3.0, 3.1, 3.1, 1, 0),  # one token: no ITL to violate
    (4.0, 4.1, INF, 50, 1),  # failed after its first token
    (5.0, INF, INF, 50, 2),  # never came
]


def test_each_way_to_violate_is_told_apart():
    judged = judge(run_of(REQUESTS))
    assert judged.violated.tolist() == [False, True, True, False, True, True]
    assert judged.late.tolist() == [False, True, False, False, False, True]
    assert judged.slow.tolist() == [False, False, True, False, False, False]
    assert judged.failed.tolist() == [False, False, False, False, True, False]
    assert judged.unfinished.tolist() == [False, False, False, False, False, True]


def test_counts_attainment_and_budget():
    m = metrics(run_of(REQUESTS))
    assert (m.requests, m.violated, m.violated_ttft, m.violated_itl, m.failed, m.unfinished) == (6, 4, 2, 1, 1, 1)
    assert m.attainment_fraction == pytest.approx(2 / 6)
    assert m.error_budget_used == pytest.approx((4 / 6) / 0.5)
    assert m.met is False
    # tokens: 111, 102, 111, 101, 150, 150 of which the first and fourth are within
    assert m.attainment_by_tokens_fraction == pytest.approx((111 + 101) / 725)


def test_an_answer_recorded_as_finished_though_it_failed_still_violates():
    judged = judge(run_of([(0.0, 0.1, 0.2, 2, 1)]))
    assert judged.violated.tolist() == [True]
    assert math.isinf(judged.e2e_seconds[0])


def test_exactly_the_promised_share_is_enough():
    assert metrics(run_of([REQUESTS[0], REQUESTS[1]])).met is True


def test_quantiles_count_requests_that_never_got_there():
    m = metrics(run_of(REQUESTS))
    # TTFT sorted: 0.1, 0.1, 0.2, 0.5, 1.5, inf
    assert m.ttft_p50_seconds == pytest.approx(0.2)
    assert m.ttft_p95_seconds == INF
    # mean ITL sorted: 0.1, 0.1, 0.2, inf, inf; the one-token answer has none
    assert m.itl_p50_seconds == pytest.approx(0.2)
    # E2E sorted: 0.1, 1.5, 1.6, 2.2, inf, inf
    assert m.e2e_p50_seconds == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("q", "value"), [(0.0, 1.0), (0.25, 1.0), (0.26, 2.0), (0.5, 2.0), (0.75, 3.0), (0.76, INF), (1.0, INF)]
)
def test_nearest_rank(q, value):
    assert nearest_rank(np.array([3.0, INF, 1.0, 2.0]), q) == value
    assert nearest_rank(np.array([]), q) is None


def test_only_arrivals_of_the_scored_window_count():
    run = run_of(REQUESTS, score_from_seconds=1.0, end=3.0)
    assert scored(run).tolist() == [False, True, True, False, False, False]
    assert metrics(run).requests == 2


def test_loading_draining_and_sleeping_are_paid():
    m = metrics(run_of(REQUESTS, replica_seconds=ReplicaSeconds(600, 3000, 900, 1800)))
    assert m.gpu_hours == pytest.approx(6300 * 2 / 3600)
    assert (m.starting_gpu_hours, m.ready_gpu_hours) == pytest.approx((600 / 1800, 3000 / 1800))
    assert (m.draining_gpu_hours, m.sleeping_gpu_hours) == pytest.approx((0.5, 1.0))
    assert m.goodput_per_gpu_hour == pytest.approx(2 / 3.5)


def test_elasticity_against_whole_replicas():
    rows = timeline(ready=[2, 2, 4, 4, 3], need=[1.5, 2.5, 2.5, 4.0, NAN], starting=[0, 2, 0, 1, 9])
    m = metrics(run_of(REQUESTS, rows=rows, end=50.0, replica_seconds=ReplicaSeconds(ready=150.0)))
    # whole need 2, 3, 3, 4: over 0, 0, 1/3, 0; under 0, 1/3, 0, 0
    assert m.over_fraction == pytest.approx(1 / 12)
    assert m.under_fraction == pytest.approx(1 / 12)
    assert (m.over_time_fraction, m.under_time_fraction) == (0.25, 0.25)
    # work known on 4 of 5 ticks: 10.5 * 10 s of need over 0.8 * 150 s paid
    assert m.busy_fraction == pytest.approx(105 / 120)
    assert m.max_starting == 9


def test_a_rounding_error_is_not_a_replica():
    m = metrics(run_of(REQUESTS, rows=timeline(ready=[29], need=[7 * (29 / 7)])))
    assert m.under_fraction == 0


def test_instability_is_moving_against_the_need():
    rows = timeline(ready=[2, 3, 2, 2, 3], need=[2.0, 1.0, 3.0, 4.0, 5.0])
    assert metrics(run_of(REQUESTS, rows=rows)).instability_fraction == pytest.approx(2 / 4)


def test_unknown_need_stays_unknown():
    m = metrics(run_of(REQUESTS, rows=timeline(ready=[1, 2])))
    assert (m.over_fraction, m.under_fraction, m.busy_fraction, m.instability_fraction) == (None,) * 4


def test_nothing_arrived_nothing_judged():
    m = metrics(run_of([]))
    assert m.requests == 0
    assert (m.attainment_fraction, m.ttft_p95_seconds, m.met, m.longest_breach_seconds) == (None,) * 4
    assert m.gpu_hours == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("p95", "longest"),
    [
        ([0.5] * 12, 0.0),
        ([0.5, 2, 2] + [0.5] * 9, 20.0),  # two bad ticks, then calm
        ([0.5, 2, 0.5, 0.5, 2] + [0.5] * 7, 40.0),  # calm too short in between: one breach
        ([2] + [0.5] * 7 + [2, 2] + [0.5] * 2, 40.0),  # not calm for 60 s before the end: counted to the end
        ([2] + [NAN] * 7 + [0.5] * 4, 10.0),
    ],
)
def test_longest_breach(p95, longest):
    rows = timeline(ttft_p95_seconds=p95, ready=[1] * 12)
    assert metrics(run_of(REQUESTS, rows=rows, end=120.0)).longest_breach_seconds == pytest.approx(longest)


def test_worst_hour():
    requests = [(t, t + 0.1, t + 0.2, 2, 0) for t in (0.0, 10.0, 3600.0)] + [(3700.0, 3709.0, 3709.1, 2, 0)]
    assert metrics(run_of(requests, end=7200.0)).attainment_worst_hours_fraction == pytest.approx(0.5)


def test_decisions_and_starts_per_day():
    events = (Event(at_seconds=10, before=1, after=2), Event(at_seconds=20, before=2, after=2, kind="fault"))
    m = metrics(run_of(REQUESTS, events=events, end=43200.0))
    assert (m.decisions, m.starts, m.starts_per_day) == (1, 3, 6.0)


def test_rows_by_arrival():
    rate, p95, violated = by_arrival(
        np.array([0.0, 10.0, 20.0]), 10.0, np.array([0.0, 9.0, 25.0, 31.0]), np.array([0.1, 0.4, INF, 1.0]),
        np.array([False, True, True, True]),
    )  # fmt: skip
    assert rate.tolist() == [0.2, 0.0, 0.1]
    np.testing.assert_array_equal(p95, [0.4, NAN, INF])
    assert violated.tolist() == [1, 0, 1]


def test_columns_must_be_equally_long():
    with pytest.raises(ValueError, match="equally long"):
        replace(timeline(ready=[1, 2]), need=np.zeros(3))
