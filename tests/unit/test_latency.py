"""LatencyModel: measured where it can be, interpolated where it must be."""

import pytest

from vistazo_server.latency import EWMA_WEIGHT, LEAST_MARGIN, MOST_MARGIN, LatencyModel


@pytest.fixture
def model():
    model = LatencyModel()
    model.set(8, 0.080)
    model.set(1, 0.020)
    model.set(2, 0.030)
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
    model.observe(1, 0.120)

    assert model.seconds(1) == pytest.approx(0.020 + EWMA_WEIGHT * 0.100)


def test_the_first_observation_of_a_new_size_starts_from_the_interpolation(model):
    model.observe(5, 0.155)

    assert model.seconds(5) == pytest.approx(0.055 + EWMA_WEIGHT * 0.100)


def test_a_lasting_change_is_learned(model):
    for _ in range(100):
        model.observe(1, 0.5)

    assert model.seconds(1) == pytest.approx(0.5, rel=0.01)


def test_the_table_is_in_order_of_batch_size(model):
    assert list(model.table().items()) == [(1, 0.020), (2, 0.030), (8, 0.080)]


def test_runs_that_come_as_predicted_leave_the_least_margin(model):
    for _ in range(50):
        model.observe(1, 0.020)

    assert model.margin == LEAST_MARGIN


def test_runs_that_vary_widen_the_margin_up_to_a_bound(model):
    for _ in range(50):
        model.observe(1, 0.010)
        model.observe(1, 0.060)

    assert model.margin == MOST_MARGIN


def test_the_fastest_run_is_remembered(model):
    for seconds in (0.5, 0.015, 0.5):
        model.observe(1, seconds)

    assert model.fastest(1) == 0.015
    assert model.fastest(2) == 0.030
