"""How large batches are chosen, and how a load is given up; the engine itself is seen through the server in
tests/service."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from support.cpu_model import cpu_model
from support.serving import until
from support.tiny import SIDE, tiny_model, write_model
from vistazo_server.batching.batch import Ran
from vistazo_server.engine.batch_limit import BatchLimit, batch_buckets, knee
from vistazo_server.engine.onnx_model import INLINE_SECONDS, OnnxModel
from vistazo_server.errors import ModelLoadError


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


async def runs_on(model: OnnxModel, samples: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of the thread that runs a batch of so many samples."""
    ran_on = []

    def run_samples(batch: Sequence[Any]) -> Ran:
        ran_on.append(threading.current_thread().name)
        return OnnxModel._run_samples(model, batch)

    monkeypatch.setattr(model, "_run_samples", run_samples)
    ran = await model.run(lambda: [np.zeros((SIDE, SIDE, 3), dtype=np.uint8)] * samples)

    assert len(ran.rows) == samples
    return ran_on[0]


async def test_a_short_run_is_made_on_the_event_loop_and_a_long_one_on_the_engines_thread(
    tmp_path, monkeypatch
):
    folder = write_model(tmp_path, model=tiny_model())
    with cpu_model(folder, "tiny", batch_limit=BatchLimit(ceiling=8, is_fixed=True)) as model:
        await model.load()
        model.latency.set(1, 0.5 * INLINE_SECONDS)
        model.latency.set(8, 2 * INLINE_SECONDS)

        assert await runs_on(model, 1, monkeypatch) == "MainThread"
        assert (await runs_on(model, 8, monkeypatch)).startswith("engine")
        await model.close()


async def test_several_instances_run_on_their_threads(tmp_path, monkeypatch):
    folder = write_model(tmp_path, model=tiny_model())
    limit = BatchLimit(ceiling=8, is_fixed=True)
    with cpu_model(folder, "tiny", batch_limit=limit, instances=2) as model:
        await model.load()

        assert (await runs_on(model, 1, monkeypatch)).startswith("engine")
        await model.close()
