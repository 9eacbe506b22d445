"""How large batches are chosen, and how a load is given up; the engine itself is seen through the server in
tests/integration."""

import asyncio

import pytest

from support.cpu_model import cpu_model
from support.serving import until
from support.tiny import tiny_model, write_model
from vistazo_server.errors import ModelLoadError
from vistazo_server.model import BatchLimit, batch_buckets, knee


@pytest.mark.parametrize(
    ("maximum", "sizes"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12]), (3, [1, 2, 3])]
)
def test_the_buckets_are_the_powers_of_two_and_the_maximum(maximum, sizes):
    assert batch_buckets(maximum) == sizes


def test_where_batching_gains_nothing_the_knee_is_one():
    assert knee({1: 0.100, 2: 0.200, 4: 0.400}) == 1


def test_the_knee_is_the_smallest_size_near_the_best_throughput():
    assert knee({1: 0.100, 2: 0.120, 4: 0.160, 8: 0.320, 16: 0.640}) == 4


def test_each_run_costs_a_little_beyond_its_time():
    """ResNet18 on two cores: no size is faster by the table, and yet one by one is not the way."""
    assert knee({1: 0.0188, 2: 0.0376, 4: 0.0752, 8: 0.1504, 16: 0.3008}) == 4


def test_a_long_run_has_to_be_clearly_faster():
    """ResNet18's 16 and 32 by a noisy warm-up, and VGG16's 4, which really is faster."""
    assert knee({4: 0.0680, 8: 0.1340, 16: 0.2680, 32: 0.5400}) == 8
    assert knee({1: 0.1585, 2: 0.2935, 4: 0.5725}) == 4


def test_a_larger_batch_that_is_slower_is_not_chosen():
    assert knee({1: 0.010, 2: 0.015, 4: 0.060}) == 2


TABLE = {1: 0.100, 2: 0.150, 4: 0.279, 8: 0.550}


def test_a_size_that_was_asked_for_is_taken():
    assert BatchLimit(ceiling=6, is_fixed=True, slo=0.001).choose(TABLE) == 6


def test_without_an_objective_the_knee_is_taken():
    assert BatchLimit(ceiling=8, is_fixed=False).choose(TABLE) == knee(TABLE) == 4


@pytest.mark.parametrize(("slo", "size"), [(2.0, 8), (0.6, 4), (0.31, 2), (0.01, 1)])
def test_with_an_objective_the_largest_batch_that_takes_half_of_it_is_taken(slo, size):
    assert BatchLimit(ceiling=8, is_fixed=False, slo=slo).choose(TABLE) == size


@pytest.fixture
def heavy(tmp_path):
    """A model whose warm-up takes seconds: its largest batch first, then four smaller ones, each four
    times."""
    folder = write_model(tmp_path, model=tiny_model(cost=100))
    with cpu_model(folder, "tiny", batch_limit=BatchLimit(ceiling=16, is_fixed=True)) as model:
        yield model


async def test_a_load_that_is_given_up_while_it_warms_up_ends_at_its_next_run(heavy):
    """L0_lifecycle test_shutdown_while_loading: the process waits for its threads when it ends."""
    loading = asyncio.create_task(heavy.load())
    await until(lambda: len(heavy.latency.table()) > 0)
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    await heavy.close()
    await asyncio.get_running_loop().shutdown_default_executor()

    assert loading.cancelled()
    assert 1 not in heavy.latency.table()


async def test_a_load_that_is_given_up_before_it_warms_up_runs_nothing(heavy):
    await heavy.close()
    with pytest.raises(ModelLoadError, match="fails at batch 16: the model is not loaded"):
        await heavy.load()

    assert heavy.latency.table() == {}
