"""The arithmetic on what was recorded."""

import math

import numpy as np
import pytest

from vistazo_bench.measuring.records import (
    NO_PUSHBACK,
    Recording,
    percentile,
    steady_rate,
    summarize_closed,
    summarize_open,
)

OK, REFUSED, LATE = 0, 8, 4


def recording(rows, *, window=(0.0, 10.0), dropped=0):
    """Rows of (arrived, latency, status, pushback_ms, lag)."""
    columns = list(zip(*rows, strict=True))
    return Recording(
        arrived=np.array(columns[0], dtype=np.float64),
        latency=np.array(columns[1], dtype=np.float64),
        status=np.array(columns[2], dtype=np.int32),
        pushback_ms=np.array(columns[3], dtype=np.int32),
        lag=np.array(columns[4], dtype=np.float64),
        window=window,
        dropped=dropped,
        samples=(),
    )


def test_percentiles_are_values_that_were_measured():
    values = np.arange(1.0, 101.0)
    assert [percentile(values, q) for q in (50, 90, 99, 100)] == [50, 90, 99, 100]
    assert percentile(np.array([3.0]), 99) == 3
    assert math.isnan(percentile(np.array([]), 50))


def test_goodput_counts_only_what_was_answered_in_time():
    summary = summarize_open(
        recording(
            [
                (1.0, 0.1, OK, NO_PUSHBACK, 0.0),
                (2.0, 0.5, OK, NO_PUSHBACK, 0.0),
                (3.0, 0.6, OK, NO_PUSHBACK, 0.0),
                (4.0, 0.002, REFUSED, 150, 0.0),
                (5.0, 0.004, REFUSED, NO_PUSHBACK, 0.0),
                (6.0, 0.5, LATE, NO_PUSHBACK, 0.0),
            ]
        ),
        images_per_request=4,
        deadline=0.5,
    )
    assert (summary.requests, summary.answered, summary.refused) == (6, 3, 2)
    assert summary.throughput == pytest.approx(3 * 4 / 10)
    assert summary.goodput == pytest.approx(2 * 4 / 10)
    assert summary.in_time_share == pytest.approx(2 / 6)
    assert summary.pushback_share == 0.5
    assert summary.refusal_p50_seconds == 0.002
    assert summary.p50_seconds == 0.5
    assert summary.p99_of_all_seconds == math.inf
    assert summary.errors == {"RESOURCE_EXHAUSTED": 2, "DEADLINE_EXCEEDED": 1}


def test_an_open_loop_counts_by_arrival_and_a_closed_loop_by_end():
    rows = [
        (0.5, 1.0, OK, NO_PUSHBACK, 0.0),
        (1.5, 1.0, OK, NO_PUSHBACK, 0.0),
        (9.5, 1.0, OK, NO_PUSHBACK, 0.0),
    ]
    inside = recording(rows, window=(1.0, 10.0))
    assert summarize_open(inside, images_per_request=1, deadline=None).requests == 2
    assert summarize_closed(inside, images_per_request=1).requests == 2


def test_arrivals_never_sent_are_not_in_time_and_are_the_generators_fault():
    rows = [(1.0, 0.1, OK, NO_PUSHBACK, 0.0), (2.0, 0.1, OK, NO_PUSHBACK, 0.05)]
    summary = summarize_open(recording(rows, dropped=2), images_per_request=1, deadline=1.0)
    assert summary.in_time_share == 0.5
    assert summary.behind_share == 0.75


def test_nothing_recorded_is_not_a_crash():
    empty = Recording(*(np.empty(0) for _ in range(5)), window=(0.0, 1.0), dropped=0, samples=())
    for summary in (
        summarize_closed(empty, images_per_request=1),
        summarize_open(empty, images_per_request=1, deadline=1.0),
    ):
        assert summary.throughput == 0
        assert math.isnan(summary.p50_seconds)


@pytest.mark.parametrize("offset", [0.0, 0.13, 0.4, 0.77])
def test_a_window_that_cuts_batches_does_not_change_the_rate(offset):
    # Batches of 8 every second: 8 a second wherever the window begins. Counting would give 24 to 32 in 3.5 s.
    ended = np.sort(np.concatenate([np.arange(20.0) + 0.001 * member for member in range(8)]))
    assert steady_rate(ended, 2 + offset, 5.5 + offset, pause_within=2.0) == pytest.approx(8, rel=0.01)


def test_a_steady_stream_has_the_rate_of_its_count():
    ended = np.arange(0.0, 10.0, 0.01)
    assert steady_rate(ended, 1.0, 9.0, pause_within=0.05) == pytest.approx(100, rel=0.01)


def test_a_single_answer_is_counted():
    assert steady_rate(np.array([1.5]), 1.0, 2.0, pause_within=0.1) == 1
