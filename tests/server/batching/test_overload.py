"""What becomes of more load than the engine can do: Poisson arrivals with deadlines, in virtual time.

Servers collapse here when they run what is already late, or promise what they cannot keep. The seeds are
fixed, so every run is the same.
"""

import asyncio
import math
import random
from collections import Counter

import pytest

from support.engine import FakeEngine, batching, sample
from support.virtual_time import SimulatedLoop
from vistazo_server.batching.batcher import DynamicBatcher
from vistazo_server.batching.latency import LatencyModel
from vistazo_server.errors import DeadlineExceededError, DeadlineUnreachableError

# ResNet18 on two cores, roughly: 20 ms for one image, 146 ms for eight.
RUN_SECONDS = 0.002
SAMPLE_SECONDS = 0.018
MAX_BATCH_SIZE = 8
CAPACITY = MAX_BATCH_SIZE / (RUN_SECONDS + MAX_BATCH_SIZE * SAMPLE_SECONDS)
SPELL = 30.0


class JitteryEngine(FakeEngine):
    """Its runs vary by the share `jitter` (one standard deviation), and drift by as much."""

    def __init__(self, *, jitter: float) -> None:
        super().__init__()
        self._jitter = jitter
        self._random = random.Random(1)
        self._drift = 1.0

    async def run(self, take):
        def took():
            samples = take()
            self._drift = 0.9 * self._drift + 0.1 + self._random.gauss(0, 0.4 * self._jitter)
            noise = max(self._drift, 0.7) * math.exp(self._random.gauss(0, self._jitter))
            self.seconds = (RUN_SECONDS + SAMPLE_SECONDS * len(samples)) * noise
            return samples

        return await super().run(took)


def measured() -> LatencyModel:
    model = LatencyModel()
    for size in (1, 2, 4, 8):
        model.set(size, RUN_SECONDS + SAMPLE_SECONDS * size)
    return model


async def spell_of_load(*, load: float, deadline: float, jitter: float) -> tuple[Counter[str], JitteryEngine]:
    """Return how requests of one sample ended that came at `load` times the capacity."""
    loop = asyncio.get_running_loop()
    engine = JitteryEngine(jitter=jitter)
    ends: Counter[str] = Counter()
    arrivals = random.Random(2)

    async def ask(batcher: DynamicBatcher, value: int) -> None:
        due = loop.time() + deadline
        try:
            await batcher.infer([sample(value)], deadline=due)
        except DeadlineUnreachableError:
            ends["refused"] += 1
        except DeadlineExceededError:
            ends["expired"] += 1
        else:
            ends["in time" if loop.time() <= due else "late"] += 1

    async with (
        batching(engine, max_batch_size=MAX_BATCH_SIZE, queue_limit=512, latency=measured()) as batcher,
        asyncio.TaskGroup() as callers,
    ):
        value = 0
        while loop.time() < SPELL:
            await asyncio.sleep(arrivals.expovariate(CAPACITY * load))
            callers.create_task(ask(batcher, value))
            value += 1
    return ends, engine


def play(**options: float) -> tuple[Counter[str], JitteryEngine]:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(spell_of_load(**options))


@pytest.mark.parametrize("load", [1.2, 2.0, 4.0])
@pytest.mark.parametrize(("jitter", "least_goodput"), [(0.0, 0.97), (0.05, 0.97), (0.1, 0.95)])
def test_goodput_stays_at_capacity_however_much_arrives(load, jitter, least_goodput):
    ends, engine = play(load=load, deadline=0.5, jitter=jitter)

    assert ends["in time"] / SPELL >= least_goodput * CAPACITY
    assert ends["late"] == 0
    assert ends["refused"] > 0
    # What was admitted is answered: who cannot make it is told at the door, not after a wait.
    assert ends["expired"] <= 0.02 * ends["in time"]
    # Batches that are made small to keep promises would cost throughput on other networks.
    assert sum(map(len, engine.batches)) / len(engine.batches) >= 0.8 * MAX_BATCH_SIZE


def test_where_runs_vary_by_a_third_batches_are_kept_small_enough_to_keep_promises():
    # Filled up to what is only just in time by the estimate, they gave 0.77 of the capacity.
    ends, _ = play(load=2.0, deadline=0.5, jitter=0.3)

    assert ends["in time"] / SPELL >= 0.82 * CAPACITY
    assert ends["expired"] <= 0.02 * ends["in time"]


@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_below_capacity_nearly_everybody_is_answered_in_time(jitter):
    ends, _ = play(load=0.8, deadline=0.5, jitter=jitter)

    assert ends["in time"] >= 0.99 * sum(ends.values())


def test_a_deadline_that_only_a_small_batch_can_meet_is_met_where_the_load_is_small():
    # A full batch takes 146 ms: who assumed one would refuse all of these.
    ends, _ = play(load=0.1, deadline=0.1, jitter=0.0)

    assert ends["in time"] >= 0.95 * sum(ends.values())
