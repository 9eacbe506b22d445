"""DynamicBatcher against what must hold for any load: hypothesis picks models, arrivals, sizes, deadlines,
cancellations, failures, and how the engine's times change; time is virtual."""

import asyncio
import math
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.engine import FakeEngine, sample
from support.examples import examples
from support.virtual_time import SimulatedLoop
from vistazo_server.batching.batch import Answer, Ran
from vistazo_server.batching.batcher import DynamicBatcher
from vistazo_server.batching.device import DeviceScheduler
from vistazo_server.errors import (
    DeadlineExceededError,
    InferenceError,
    OverloadedError,
    ServingError,
    without_frames,
)

MAX_BATCH_SIZE = 4
QUEUE_LIMIT = 8


@dataclass(frozen=True)
class Arrival:
    after: float
    """Seconds since the arrival before."""
    model: int
    samples: int
    patience: float
    """Deadline, seconds after the arrival."""
    decoding: float
    """Seconds between the door, where admission is asked first, and the queue."""
    cancel_after: float | None


@dataclass(frozen=True)
class Play:
    """One run of the property."""

    arrivals: list[Arrival]
    seconds: float
    """Of a run, and for each sample: a GPU has the one, a CPU the other."""
    seconds_per_sample: float
    factors: list[float]
    """By how much runs take longer than the table says, one after the other and again from the start."""
    knows_latency: bool
    queue_delay: float
    poisoned: set[int]
    fails_in_parts: bool
    """Whether the engine tells which rows failed, or that the run did."""


class ChangingEngine(FakeEngine):
    """Its times change from run to run, and its errors have causes and frames of their own."""

    def __init__(self, play: Play) -> None:
        super().__init__()
        self._play = play
        self._runs = 0
        self.poison = set() if play.fails_in_parts else play.poisoned

    async def run(self, take):
        play = self._play

        def took():
            samples = take()
            factor = play.factors[self._runs % len(play.factors)]
            self.seconds = (play.seconds + play.seconds_per_sample * len(samples)) * factor
            self._runs += bool(samples)
            return samples

        ran = await super().run(took)
        if not play.fails_in_parts:
            return ran
        rows = [self._failure(row) if int(row[0]) - 1000 in play.poisoned else row for row in ran.rows]
        return Ran(rows, ran.began, ran.seconds, has_failures=any(isinstance(row, Exception) for row in rows))

    @staticmethod
    def _failure(row):
        try:
            return {}[int(row[0])]
        except KeyError as error:
            failure = RuntimeError("the run of this row failed")
            failure.__cause__ = error
            return failure


moments = st.floats(0, 3, allow_nan=False).map(lambda second: round(second, 3))
plays = st.builds(
    Play,
    arrivals=st.lists(
        st.builds(
            Arrival,
            after=moments,
            model=st.integers(0, 2),
            samples=st.integers(1, 11),
            patience=st.one_of(st.just(math.inf), st.floats(0.001, 12).map(lambda second: round(second, 3))),
            decoding=st.just(0.0) | moments,
            cancel_after=st.none() | moments,
        ),
        min_size=1,
        max_size=25,
    ),
    seconds=st.floats(0.01, 2).map(lambda second: round(second, 3)),
    seconds_per_sample=st.sampled_from([0.0, 0.0, 0.1]),
    factors=st.lists(st.sampled_from([0.1, 0.5, 1.0, 1.0, 1.0, 2.0, 8.0, 100.0]), min_size=1, max_size=6),
    knows_latency=st.booleans(),
    queue_delay=st.sampled_from([0.0, 0.0, 0.5]),
    poisoned=st.sets(st.integers(0, 40), max_size=3),
    fails_in_parts=st.booleans(),
)


@settings(max_examples=examples(400), deadline=None)
@given(play=plays)
def test_every_request_ends_exactly_once_with_its_own_rows_or_an_honest_error(play):
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(_play(play))


@dataclass
class _Told:
    """What became of the requests."""

    outcomes: dict[int, list[object]] = field(default_factory=dict)
    """By the value of its first sample."""
    deadlines: dict[int, float] = field(default_factory=dict)
    """By sample."""


async def _play(play: Play) -> None:
    loop = asyncio.get_running_loop()
    clock = loop.time
    engine = ChangingEngine(play)
    table = FakeEngine(seconds=play.seconds, seconds_per_sample=play.seconds_per_sample)
    told = _Told()
    async with AsyncExitStack() as stack:
        device = await stack.enter_async_context(DeviceScheduler(clock=clock))
        batchers = [
            await stack.enter_async_context(
                DynamicBatcher(
                    engine.run,
                    device=device,
                    max_batch_size=MAX_BATCH_SIZE,
                    queue_limit=QUEUE_LIMIT,
                    queue_delay=play.queue_delay,
                    latency=table.latency() if play.knows_latency else None,
                    clock=clock,
                )
            )
            for _ in range(3)
        ]

        async def ask(batcher: DynamicBatcher, first: int, arrival: Arrival, deadline: float) -> object:
            batcher.check_admission(arrival.samples, deadline, ready_in=arrival.decoding)
            await asyncio.sleep(arrival.decoding)
            return await batcher.infer(
                [sample(value) for value in range(first, first + arrival.samples)], deadline=deadline
            )

        async def call(first: int, arrival: Arrival) -> None:
            deadline = clock() + arrival.patience
            for value in range(first, first + arrival.samples):
                told.deadlines[value] = deadline
            batcher = batchers[arrival.model]
            try:
                async with asyncio.timeout(arrival.cancel_after):
                    outcome: object = await ask(batcher, first, arrival, deadline)
            except (ServingError, TimeoutError) as error:
                # As the door does, whatever else is going on.
                outcome = without_frames(error)
            ended = clock()
            told.outcomes.setdefault(first, []).append(outcome)
            assert ended <= deadline + arrival.decoding + 0.001
            if isinstance(outcome, OverloadedError):
                assert outcome.retry_after is not None
                assert 0 < outcome.retry_after < math.inf
            # More than the limit only ever wait as one request that found the queue empty.
            assert batcher.queued_samples <= QUEUE_LIMIT or len(batcher._queue) == 1

        first, calls = 0, []
        for arrival in play.arrivals:
            await asyncio.sleep(arrival.after)
            calls.append((first, arrival, asyncio.create_task(call(first, arrival))))
            first += arrival.samples
        await asyncio.gather(*(task for _, _, task in calls))

        # Nothing is left behind.
        for batcher in batchers:
            assert batcher.queued_samples == 0
            assert batcher.in_flight == 0
            assert batcher.earliest_deadline() == math.inf
            assert list(batcher.plan()) == []

    _check(play, engine, calls, told)


def _check(play: Play, engine: ChangingEngine, calls: list, told: _Told) -> None:
    # Nobody was lost or answered twice.
    assert {first: len(ends) for first, ends in told.outcomes.items()} == {first: 1 for first, _, _ in calls}
    for first, arrival, _ in calls:
        outcome = told.outcomes[first][0]
        own = set(range(first, first + arrival.samples))
        if isinstance(outcome, Answer):
            assert [int(row[0]) for row in outcome.rows] == [1000 + value for value in sorted(own)]
            assert not own & play.poisoned
        elif isinstance(outcome, InferenceError):
            assert own & play.poisoned  # strangers of a poisoned request never fail
        else:
            assert isinstance(outcome, OverloadedError | DeadlineExceededError | TimeoutError)
        if isinstance(outcome, BaseException):
            assert outcome.__cause__ is outcome.__context__ is outcome.__traceback__ is None
    for batch, began in zip(engine.batches, engine.began, strict=True):
        assert len(batch) <= MAX_BATCH_SIZE
        # A failed batch is repeated member by member, later than planned: only first runs are bound.
        if not any(set(batch) & set(other) for other in engine.batches if other is not batch):
            assert all(began <= told.deadlines[value] for value in batch)
    ran = [value for batch in engine.batches for value in batch]
    assert all(ran.count(value) <= (2 if play.poisoned else 1) for value in ran)


@settings(max_examples=examples(100), deadline=None)
@given(
    cancel_at=st.integers(0, 60),
    who=st.integers(0, 5),
    poisoned=st.sets(st.integers(0, 5), max_size=2),
    max_batch_size=st.integers(1, 6),
)
def test_a_cancellation_at_any_turn_of_the_loop_costs_nobody_else_anything(
    cancel_at, who, poisoned, max_batch_size
):
    """Not by the clock but by turns: so it meets every await of the way."""

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        engine = FakeEngine(seconds=0.0)
        engine.poison = set(poisoned)
        async with (
            DeviceScheduler(clock=clock) as device,
            DynamicBatcher(
                engine.run, device=device, max_batch_size=max_batch_size, queue_limit=99, clock=clock
            ) as batcher,
        ):
            tasks = [asyncio.create_task(batcher.infer([sample(value)], deadline=5.0)) for value in range(6)]
            for _ in range(cancel_at):
                await asyncio.sleep(0)
            tasks[who].cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert (batcher.queued_samples, batcher.in_flight) == (0, 0)
        for value, end in enumerate(ends):
            if value == who and isinstance(end, asyncio.CancelledError):
                continue
            assert isinstance(end, InferenceError if value in poisoned else Answer)
            if isinstance(end, Answer):
                assert int(end.rows[0][0]) == 1000 + value

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(main())


def test_the_fake_engine_fails_on_poison():
    engine = FakeEngine()
    engine.poison = {3}
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner, pytest.raises(RuntimeError):
        runner.run(engine.run(lambda: [sample(3)]))
