"""Top-k and its order; the rest of the classifier is seen through the server in tests/integration."""

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vistazo_server.classifier import top_classes
from vistazo_server.errors import QueueFullError
from vistazo_server.image_inputs import PreprocessPool


def test_the_largest_come_first():
    assert top_classes(np.array([[0.1, 3.0, -2.0, 1.0], [4.0, 3.0, 2.0, 1.0]]), 3).tolist() == [
        [1, 3, 0],
        [0, 1, 2],
    ]


def test_equal_values_come_by_lower_index():
    assert top_classes(np.array([[1.0, 2.0, 2.0, 1.0, 2.0]]), 4).tolist() == [[1, 2, 4, 0]]


@given(
    rows=arrays.arrays(
        np.float32,
        # Few classes and many are sorted in two ways.
        st.tuples(st.integers(1, 3), st.integers(1, 30) | st.integers(60, 90)),
        elements=st.integers(-5, 5).map(float),
    ),
    data=st.data(),
)
def test_top_k_is_the_head_of_the_full_order(rows, data):
    k = data.draw(st.integers(1, rows.shape[1]))

    for row, best in zip(rows, top_classes(rows, k).tolist(), strict=True):
        full_order = sorted(range(len(row)), key=lambda index: (-row[index], index))
        assert best == full_order[:k]


async def test_the_pool_refuses_what_would_wait_too_long():
    release = threading.Event()
    pool = PreprocessPool(threads=1, limit=2)
    try:
        working = asyncio.create_task(pool.map(lambda value: release.wait(10) and value, [1, 2]))
        while pool.pending < 2:
            await asyncio.sleep(0)
        with pytest.raises(
            QueueFullError, match="2 images wait to be decoded, 1 more would pass the limit of 2"
        ):
            await pool.map(str, [3])
        release.set()

        assert await working == [1, 2]
        assert pool.pending == 0
    finally:
        release.set()
        pool.close()


async def test_the_pool_returns_what_one_image_raised_beside_the_results_of_the_others():
    pool = PreprocessPool(threads=2, limit=9)
    try:
        results = await pool.map(lambda value: 6 // value, [1, 0, 2])
    finally:
        pool.close()

    assert (results[0], results[2]) == (6, 3)
    assert isinstance(results[1], ZeroDivisionError)
