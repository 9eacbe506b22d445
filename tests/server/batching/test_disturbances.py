"""What a slow moment of the engine leaves behind: nothing, one second after its end. In virtual time.

A server that remembers a hung run, or a slow neighbour, refuses for ever what it could do again. `python -m
pytest -s` prints the table of goodput before, during and after each disturbance.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from support.engine import FakeEngine, batching, sample
from support.virtual_time import SimulatedLoop
from vistazo_server.batching.batch import Ran
from vistazo_server.batching.latency import LatencyModel
from vistazo_server.errors import DeadlineExceededError, OverloadedError


@dataclass(frozen=True)
class Machine:
    """An engine by its table, and the callers who use it."""

    name: str
    fixed: float
    """Seconds of a run of any size, and for each sample."""
    per_sample: float
    max_batch_size: int
    callers: int
    deadline: float
    """Seconds that each caller gives its request."""
    others: int = 0
    """Callers with ten times as long."""

    @property
    def watched(self) -> float:
        """Seconds that are looked at before and after a disturbance: dozens of full batches."""
        return 80 * self.seconds(self.max_batch_size) if self.per_sample else 2.0

    @property
    def sizes(self) -> list[int]:
        return [size for size in (1, 2, 4, 8, 16) if size <= self.max_batch_size]

    def seconds(self, samples: int) -> float:
        return self.fixed + self.per_sample * samples


MACHINES = [
    Machine("gpu", 0.010, 0.0, 16, callers=32, deadline=0.4),
    Machine("gpu, hardly time to spare", 0.010, 0.0, 16, callers=24, deadline=0.06),
    Machine("gpu, mixed deadlines", 0.010, 0.0, 16, callers=16, deadline=0.06, others=16),
    Machine("cpu", 0.002, 0.018, 8, callers=16, deadline=0.5),
    Machine("cpu, hardly time to spare", 0.002, 0.018, 8, callers=6, deadline=0.16),
]


@dataclass(frozen=True)
class Disturbance:
    """The engine takes `factor` times as long for `seconds`, or one run takes `hang` seconds."""

    name: str
    factor: float = 1.0
    seconds: float = 0.0
    hang: float = 0.0
    is_permanent: bool = False


DISTURBANCES = [
    Disturbance("a run hangs for 6 s", hang=6.0),
    Disturbance("8 times slower for 2 s", factor=8.0, seconds=2.0),
    Disturbance("4 times slower for 60 s", factor=4.0, seconds=60.0),
    Disturbance("twice as slow for good", factor=2.0, seconds=5.0, is_permanent=True),
    Disturbance("twice as fast for good", factor=0.5, seconds=5.0, is_permanent=True),
    Disturbance("8 times faster for half a second", factor=0.125, seconds=0.5),
]


class DisturbedEngine(FakeEngine):
    """Takes what the machine's table says, times a factor; a hang is one run's."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine
        self.factor = 1.0
        self.hang = 0.0

    async def run(self, take: Callable[[], list]) -> Ran:
        def took():
            samples = take()
            self.seconds = self.hang or self.machine.seconds(len(samples)) * self.factor
            if samples:
                self.hang = 0.0
            return samples

        return await super().run(took)

    def table(self, factor: float = 1.0) -> LatencyModel:
        model = LatencyModel()
        for size in self.machine.sizes:
            model.set(size, self.machine.seconds(size) * factor)
        return model


async def goodputs(machine: Machine, disturbance: Disturbance) -> dict[str, float]:
    """Return answers in time per second before, during and after the disturbance."""
    loop = asyncio.get_running_loop()
    engine = DisturbedEngine(machine)
    answered: Counter[int] = Counter()  # by tenths of a second

    async def call(batcher, value, patience):
        while True:
            due = loop.time() + patience
            try:
                await batcher.infer([sample(value)], deadline=due)
            except (OverloadedError, DeadlineExceededError):
                await asyncio.sleep(0.005)
            else:
                answered[int(loop.time() * 10)] += loop.time() <= due

    def between(start: float, end: float) -> float:
        return sum(count for tenth, count in answered.items() if start <= tenth / 10 < end) / (end - start)

    began = loop.time()
    async with batching(
        engine, max_batch_size=machine.max_batch_size, queue_limit=512, latency=engine.table()
    ) as batcher:
        patiences = [machine.deadline] * machine.callers + [10 * machine.deadline] * machine.others
        tasks = [
            asyncio.create_task(call(batcher, value, patience)) for value, patience in enumerate(patiences)
        ]
        await asyncio.sleep(0.5 + machine.watched)
        start = loop.time()
        engine.factor, engine.hang = disturbance.factor, disturbance.hang
        await asyncio.sleep(disturbance.seconds or disturbance.hang)
        end = loop.time()
        if not disturbance.is_permanent:
            engine.factor = 1.0
        await asyncio.sleep(1 + machine.watched)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "before": between(began + 0.5, start),
        "during": between(start, end),
        "first second after": between(end, end + 1),
        "after": between(end + 1, end + 1 + machine.watched),
    }


def play(machine: Machine, disturbance: Disturbance) -> dict[str, float]:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(goodputs(machine, disturbance))


@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=lambda disturbance: disturbance.name)
@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_goodput_is_back_one_second_after_a_disturbance(machine, disturbance):
    goodput = play(machine, disturbance)
    figures = ", ".join(f"{when} {rate:.0f}/s" for when, rate in goodput.items())
    sys.stdout.write(f"\n{machine.name}: {disturbance.name}: {figures}\n")
    if disturbance.is_permanent:
        # What is lasting is the new normal: as good as for a batcher that was started with it.
        fresh = play(
            Machine(
                **(
                    vars(machine)
                    | {
                        "fixed": machine.fixed * disturbance.factor,
                        "per_sample": machine.per_sample * disturbance.factor,
                    }
                )
            ),
            Disturbance("none", seconds=1.0),
        )
        assert goodput["after"] >= 0.95 * fresh["after"]
    else:
        assert goodput["after"] >= 0.95 * goodput["before"]
