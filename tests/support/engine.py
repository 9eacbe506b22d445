"""A fake engine in virtual time, a batcher on it, and calls of the batcher."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
from numpy.typing import NDArray

from vistazo_server.batching.batch import Answer, Ran
from vistazo_server.batching.batcher import BatchObserver, DynamicBatcher
from vistazo_server.batching.device import DeviceScheduler
from vistazo_server.batching.latency import LatencyModel


class FakeEngine:
    """Runs one batch at a time (or `instances`), in order; each row is its sample plus 1000, so that a row
    that reached the wrong caller shows.

    A run takes `seconds` (and `seconds_per_sample` for each sample) of the loop's time. A batch with a
    sample in `poison` fails. Keeps what it was asked: `batches` of sample values, and when each began.
    """

    def __init__(self, *, seconds: float = 1.0, seconds_per_sample: float = 0.0, instances: int = 1) -> None:
        self.seconds = seconds
        self.seconds_per_sample = seconds_per_sample
        self.poison: set[int] = set()
        self.batches: list[list[int]] = []
        self.began: list[float] = []
        self._turn = asyncio.Semaphore(instances)

    async def run(self, take: Callable[[], Sequence[NDArray[np.int64]]]) -> Ran:
        loop = asyncio.get_running_loop()
        async with self._turn:
            began = loop.time()
            samples = take()
            if not samples:
                return Ran(rows=(), began=began, seconds=0.0)
            values = [int(sample[0]) for sample in samples]
            self.batches.append(values)
            self.began.append(began)
            await asyncio.sleep(self.seconds + self.seconds_per_sample * len(samples))
        if self.poison & set(values):
            raise RuntimeError("the engine broke on a poisoned sample")
        return Ran(rows=[sample + 1000 for sample in samples], began=began, seconds=loop.time() - began)

    def latency(self, sizes: Sequence[int] = (1, 2, 4, 8)) -> LatencyModel:
        """Return a model that knows this engine's times."""
        model = LatencyModel()
        for size in sizes:
            model.set(size, self.seconds + self.seconds_per_sample * size)
        return model


def sample(value: int) -> NDArray[np.int64]:
    """Return a sample that carries `value`."""
    return np.array([value])


@asynccontextmanager
async def batching(
    engine: FakeEngine,
    *,
    max_batch_size: int = 4,
    queue_limit: int = 100,
    queue_delay: float = 0.0,
    latency: LatencyModel | None = None,
    device: DeviceScheduler | None = None,
    observer: BatchObserver | None = None,
) -> AsyncIterator[DynamicBatcher]:
    """Hold a batcher on `engine`, in the event loop's own time."""
    clock = asyncio.get_running_loop().time
    async with (
        device or DeviceScheduler(clock=clock) as scheduler,
        DynamicBatcher(
            engine.run,
            device=scheduler,
            max_batch_size=max_batch_size,
            queue_limit=queue_limit,
            queue_delay=queue_delay,
            latency=latency,
            observer=observer,
            clock=clock,
        ) as batcher,
    ):
        yield batcher


def now() -> float:
    """Return the loop's time, which is the batcher's."""
    return asyncio.get_running_loop().time()


def ask(batcher: DynamicBatcher, *values: int, deadline: float = math.inf) -> asyncio.Task[Answer]:
    """Begin a request of one sample for each of `values`."""
    return asyncio.create_task(batcher.infer([sample(value) for value in values], deadline=deadline))


def values(answer: Answer) -> list[int]:
    """Return what the rows of `answer` carry: its samples' values plus 1000."""
    return [int(row[0]) for row in answer.rows]


async def until_queued(batcher: DynamicBatcher, samples: int) -> None:
    """Wait until just `samples` samples wait for a batch."""
    while batcher.queued_samples != samples:
        await asyncio.sleep(0)


def when_done(task: asyncio.Task[Answer]) -> asyncio.Future[float]:
    """Return the moment at which `task` will have ended, however it ends; call it before that."""
    loop = asyncio.get_running_loop()
    moment: asyncio.Future[float] = loop.create_future()
    task.add_done_callback(lambda _: moment.set_result(loop.time()))
    return moment
