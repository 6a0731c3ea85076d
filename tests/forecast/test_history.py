"""The memory of work: a minute's story at a time."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.errors import ForecastError
from forecast.cells import CHUNK, Cells
from forecast.history import DAY, FIVE_KEPT, History, fine_seconds

T0 = 1_700_000_000


def fed(samples, interval=10, begin=T0):
    history = History.empty(interval)
    for i, work in enumerate(samples):
        history = history.observed(begin + (i + 1) * interval, interval, work)
    return history


def test_a_regular_loop_closes_one_fine_cell_per_tick():
    history = fed([float(i) for i in range(12)])
    assert history.fine.between(history.fine.stop - 12, history.fine.stop) == tuple(float(i) for i in range(12))
    assert history.rolling.last() == pytest.approx((6 + 7 + 8 + 9 + 10 + 11) / 6)


def test_minutes_and_five_minutes_follow_from_fine_cells():
    history = fed([float(i // 6) for i in range(6 * 20)], begin=T0 - T0 % 300)
    assert history.minute.between(history.minute.stop - 20, history.minute.stop) == tuple(float(i) for i in range(20))
    assert history.five_mean.between(history.five_mean.stop - 4, history.five_mean.stop) == (2.0, 7.0, 12.0, 17.0)
    assert history.five_peak.between(history.five_peak.stop - 4, history.five_peak.stop) == (4.0, 9.0, 14.0, 19.0)


def test_a_gap_masks_and_is_never_zero():
    history = fed([2.0] * 30 + [None] * 30 + [2.0] * 30, begin=T0 - T0 % 300)
    assert history.five_mean.between(history.five_mean.stop - 3, history.five_mean.stop) == (2.0, None, 2.0)
    assert history.five_peak.between(history.five_peak.stop - 3, history.five_peak.stop) == (2.0, None, 2.0)
    assert history.known_seconds == 600


def test_a_minute_survives_a_gap_of_a_fifth_but_not_of_a_third():
    assert fed([3.0, 3.0, None, 3.0, 3.0, 3.0]).rolling.last() == 3.0
    assert fed([3.0, 3.0, None, None, 3.0, 3.0]).rolling.last() is None


def test_ticks_that_failed_to_come_are_a_gap_too():
    history = fed([1.0] * 6).observed(T0 + 360, 10, 5.0)
    values = history.fine.between(history.fine.stop - 30, history.fine.stop)
    assert values == (None,) * 29 + (5.0,)


def test_irregular_samples_are_weighted_by_time():
    history = History.empty(10).observed(T0, 10, 1.0).observed(T0 + 4, 4, 10.0).observed(T0 + 10, 6, 20.0)
    assert history.fine.last() == pytest.approx((4 * 10 + 6 * 20) / 10)


def test_a_window_that_overlaps_the_last_sample_counts_once():
    history = fed([1.0] * 6)
    assert history.observed(T0 + 70, 3600, 4.0).fine.last() == 4.0
    assert history.observed(T0 + 70, 3600, 4.0).known_seconds == 70


def test_a_long_window_fills_every_cell_it_covers():
    history = History.empty(10).observed(T0 - T0 % 600 + 600, 600, 7.0)
    assert history.fine.between(history.fine.stop - 60, history.fine.stop) == (7.0,) * 60
    assert history.five_peak.last() == 7.0


def test_the_same_instant_changes_nothing_and_an_earlier_one_is_an_error():
    history = fed([1.0] * 6)
    assert history.observed(T0 + 60, 10, 99.0) is history
    with pytest.raises(ForecastError, match="must not be before"):
        history.observed(T0 + 59, 10, 1.0)


def test_after_more_than_it_remembers_it_begins_anew():
    history = fed([1.0] * 60).observed(T0 + 600 + FIVE_KEPT + 1, 10, 2.0)
    assert history.fine.last() == 2.0
    assert history.known_seconds == 10


def test_the_past_is_found_again_in_minutes_and_then_in_five_minutes():
    begin = T0 - T0 % 300
    history = History.empty(60)
    for i in range(3 * 1440):
        history = history.observed(begin + (i + 1) * 60, 60, float(i))
    now = begin + 3 * DAY
    assert history.past_peak(now - DAY, now - DAY + 60) == 2 * 1440
    hour = now - 3 * DAY + 3600
    assert history.past_peak(hour, hour + 60) == pytest.approx(60)  # a minute, between means of five
    assert history.past_peak(hour, hour + 300) == 64.0  # the peak of five minutes
    assert history.level_before(now - DAY) == pytest.approx(2 * 1440 - 8)
    assert history.level_before(hour) == pytest.approx(60 - 8)
    assert history.level_before(hour + 120) == pytest.approx(62 - 8)
    assert history.past_peak(now - 5 * DAY, now - 5 * DAY + 60) is None


def test_peaks_between_two_instants():
    history = fed([1.0] * 12 + [7.0] * 6 + [1.0] * 12)
    assert history.peak_between(T0 + 120, T0 + 180) == 7.0
    assert history.peak_between(T0 + 60, T0 + 120) == 1.0
    assert history.peak_between(T0 - 7200, T0) is None


@pytest.mark.parametrize(
    ("interval", "cell"), [(1, 10), (5, 10), (10, 10), (15, 15), (30, 30), (45, 30), (60, 60), (600, 60)]
)
def test_fine_cells_divide_a_minute(interval, cell):
    assert fine_seconds(interval) == cell


@given(st.lists(st.lists(st.floats(0, 9) | st.none(), max_size=150), max_size=6), st.integers(1, 300))
def test_cells_are_a_list_that_forgets(batches, keep):
    cells, everything = Cells(keep=keep), []
    for batch in batches:
        cells = cells.extended(batch)
        everything += batch
    assert cells.stop == len(everything)
    assert cells.stop - cells.first >= min(keep, len(everything))
    assert cells.stop - cells.first < keep + 2 * CHUNK
    for start, stop in ((0, cells.stop), (cells.stop - 70, cells.stop - 3), (cells.first + 1, cells.first + 66)):
        assert cells.between(start, stop) == tuple(everything[max(start, cells.first) : max(stop, 0)])


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400), st.floats(0, 100) | st.none()), max_size=60))
def test_irregular_time_never_invents_work(samples):
    history, at = History.empty(10), T0
    for gap, window, work in samples:
        at += gap
        history = history.observed(at, window, work)
    values = [v for v in history.fine.between(history.fine.first, history.fine.stop) if v is not None]
    given_values = [w for _, _, w in samples if w is not None]
    assert all(min(given_values) - 1e-3 <= v <= max(given_values) + 1e-3 for v in values)
    assert history.rolling.stop == history.fine.stop
    assert history.minute.stop == history.fine.stop // 6
    assert history.five_mean.stop == history.five_peak.stop == history.minute.stop // 5


def test_appending_shares_all_but_the_newest_chunk():
    history = fed([1.0] * 700)
    later = history.observed(history.at_seconds + 10, 10, 2.0)
    assert all(a is b for a, b in zip(later.fine.chunks, history.fine.chunks, strict=False))
    assert len(later.fine.tail) < CHUNK


def test_two_weeks_fit_in_a_megabyte():
    history, seen, total = fed([1.0 + (i % 997) / 7 for i in range(14 * 8640)]), set(), 0
    stack = [c for cells in (history.fine, history.rolling, history.minute, history.five_mean, history.five_peak)
             for c in (*cells.chunks, cells.tail)]  # fmt: skip
    while stack:
        item = stack.pop()
        if id(item) not in seen:
            seen.add(id(item))
            total += sys.getsizeof(item)
            stack += item if isinstance(item, tuple) else []
    assert total < 1_000_000
