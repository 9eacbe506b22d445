"""LatencyModel: measured where it can be, interpolated where it must be, and nothing believed for ever."""

import pytest

from vistazo_server.batching.latency import (
    CLIP,
    LEAST_MARGIN,
    MOST_MARGIN,
    REMEMBERED_RUNS,
    WEIGHT,
    LatencyModel,
)

SIZES = (1, 2, 4, 8, 16)


@pytest.fixture
def model():
    model = LatencyModel()
    model.set(8, 0.080)
    model.set(1, 0.020)
    model.set(2, 0.030)
    return model


def gpu_like() -> LatencyModel:
    """Return a table of an engine that takes 10 ms for any size."""
    model = LatencyModel()
    for size in SIZES:
        model.set(size, 0.010)
    return model


def test_nothing_measured_predicts_nothing():
    assert LatencyModel().seconds(4) == 0.0


def test_a_measured_size_is_predicted_as_measured(model):
    assert model.seconds(2) == 0.030


def test_a_size_between_two_measured_ones_is_interpolated(model):
    assert model.seconds(5) == pytest.approx(0.055)


def test_a_size_beyond_the_largest_is_taken_in_proportion(model):
    assert model.seconds(16) == pytest.approx(0.160)


def test_no_samples_take_no_time(model):
    assert model.seconds(0) == 0.0


def test_an_observation_moves_the_estimate_by_its_weight(model):
    model.observe(1, 0.030)

    assert model.table()[2] == pytest.approx(0.030 * (1 + WEIGHT * 0.5))


def test_a_single_slow_run_is_clipped(model):
    model.observe(1, 1000.0)

    assert model.seconds(1) <= 0.020 * (1 + WEIGHT * (CLIP - 1)) ** 2 + 1e-9
    assert model.seconds(8) <= 0.080 * (1 + WEIGHT * (CLIP - 1)) + 1e-9


def test_a_lasting_change_is_believed_after_four_runs_for_every_size(model):
    for _ in range(REMEMBERED_RUNS // 2 + 1):
        model.observe(1, 0.100)

    assert model.seconds(1) == pytest.approx(0.100, rel=0.35)
    assert model.seconds(8) == pytest.approx(0.400, rel=0.2)


@pytest.mark.parametrize("factor", [0.1, 0.5, 2, 8, 100])
def test_a_lasting_change_is_learned_and_its_end_as_well(factor):
    model = gpu_like()
    for _ in range(100):
        model.observe(8, 0.010 * factor)
    assert model.seconds(8) == pytest.approx(0.010 * factor, rel=0.05)
    assert model.seconds(16) == pytest.approx(0.010 * factor, rel=0.3)
    for _ in range(REMEMBERED_RUNS):
        model.observe(8, 0.010)

    for size in SIZES:
        assert model.seconds(size) == pytest.approx(0.010, rel=0.3)


def test_a_hung_run_leaves_no_size_unusable():
    model = gpu_like()
    for _ in range(20):
        model.observe(16, 0.010)
    model.observe(16, 6.0)

    for size in SIZES:
        assert model.seconds(size) <= 0.0125


@pytest.mark.parametrize("wrong", SIZES[1:])
def test_an_entry_that_is_far_too_high_is_refuted_by_smaller_sizes(wrong):
    """Nobody would ever run it again, for what it says, and so never find out."""
    model = gpu_like()
    model.set(wrong, 6.0)
    smaller = SIZES[SIZES.index(wrong) - 1]
    model.observe(smaller, 0.010)

    assert model.seconds(wrong) <= 2 * 0.0105


def test_the_table_is_monotone_after_any_runs():
    model = gpu_like()
    for size, seconds in [(8, 0.001), (1, 0.2), (5, 0.01), (16, 0.0001), (3, 0.5), (2, 0.01)] * 5:
        model.observe(size, seconds)
        table = list(model.table().values())
        assert table == sorted(table)
        assert all(seconds > 0 for seconds in table)


def test_the_table_is_in_order_of_batch_size(model):
    assert list(model.table().items()) == [(1, 0.020), (2, 0.030), (8, 0.080)]


def test_who_reads_the_table_meanwhile_sees_it_whole(model):
    """The thread that serves the metrics reads it while a run is observed."""
    before = model.table()
    model.observe(5, 0.050)

    assert list(before) == [1, 2, 8]
    assert list(model.table()) == [1, 2, 5, 8]


def test_runs_that_come_as_predicted_leave_the_least_margin(model):
    for _ in range(50):
        model.observe(1, 0.020)

    assert model.margin == LEAST_MARGIN


def test_runs_that_vary_widen_the_margin_up_to_a_bound(model):
    for _ in range(50):
        model.observe(1, 0.010)
        model.observe(1, 0.060)

    assert model.margin == MOST_MARGIN


def test_at_best_a_run_takes_what_the_table_says_or_the_fastest_of_the_last_runs(model):
    for _ in range(50):
        model.observe(1, 0.2)
    assert model.least(1) <= 0.021
    model.observe(1, 0.010)

    assert model.least(1) == pytest.approx(0.010, rel=0.1)


def test_a_run_that_took_no_time_by_the_clock_does_not_spoil_the_estimate(model):
    for _ in range(20):
        model.observe(1, 0.0)
    for _ in range(100):
        model.observe(1, 0.020)

    assert model.seconds(1) == pytest.approx(0.020, rel=0.1)
