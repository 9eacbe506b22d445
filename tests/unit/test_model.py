"""How large batches are chosen; the engine itself is seen through the server in tests/integration."""

import pytest

from vistazo_server.model import batch_buckets, knee


@pytest.mark.parametrize(
    ("maximum", "sizes"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12]), (3, [1, 2, 3])]
)
def test_the_buckets_are_the_powers_of_two_and_the_maximum(maximum, sizes):
    assert batch_buckets(maximum) == sizes


def test_where_batching_gains_nothing_the_knee_is_one():
    assert knee({1: 0.100, 2: 0.198, 4: 0.395}) == 1


def test_the_knee_is_the_smallest_size_near_the_best_throughput():
    assert knee({1: 0.010, 2: 0.012, 4: 0.016, 8: 0.031, 16: 0.061}) == 4


def test_a_larger_batch_that_is_slower_is_not_chosen():
    assert knee({1: 0.010, 2: 0.015, 4: 0.060}) == 2
