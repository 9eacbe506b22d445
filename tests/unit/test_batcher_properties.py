"""DynamicBatcher against what must hold for any load: hypothesis picks arrivals, sizes, deadlines,
cancellations and failures; time is virtual."""

import asyncio
import math
from dataclasses import dataclass

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.engine import FakeEngine, batching, sample
from vistazo_server.batcher import Answer
from vistazo_server.errors import DeadlineExceededError, InferenceError, OverloadedError, ServingError

MAX_BATCH_SIZE = 4
QUEUE_LIMIT = 8


@dataclass(frozen=True)
class Arrival:
    after: float
    """Seconds since the arrival before."""
    samples: int
    patience: float
    """Deadline, seconds after the arrival."""
    cancel_after: float | None


moments = st.floats(0, 3, allow_nan=False).map(lambda second: round(second, 3))
arrivals = st.lists(
    st.builds(
        Arrival,
        after=moments,
        samples=st.integers(1, 11),
        patience=st.one_of(st.just(math.inf), st.floats(0.001, 12).map(lambda second: round(second, 3))),
        cancel_after=st.none() | moments,
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(
    arrivals=arrivals,
    seconds=st.floats(0.01, 2).map(lambda second: round(second, 3)),
    knows_latency=st.booleans(),
    queue_delay=st.sampled_from([0.0, 0.5]),
    poisoned=st.sets(st.integers(0, 40), max_size=3),
)
def test_every_request_ends_exactly_once_with_its_own_rows_or_an_honest_error(
    arrivals, seconds, knows_latency, queue_delay, poisoned
):
    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        runner.run(_play(arrivals, seconds, knows_latency, queue_delay, poisoned))


async def _play(arrivals, seconds, knows_latency, queue_delay, poisoned):
    loop = asyncio.get_running_loop()
    engine = FakeEngine(seconds=seconds)
    engine.poison = set(poisoned)
    outcomes: dict[int, list[object]] = {}
    deadlines: dict[int, float] = {}
    async with batching(
        engine,
        max_batch_size=MAX_BATCH_SIZE,
        queue_limit=QUEUE_LIMIT,
        queue_delay=queue_delay,
        latency=engine.latency() if knows_latency else None,
    ) as batcher:

        async def call(first: int, arrival: Arrival) -> None:
            deadline = loop.time() + arrival.patience
            for value in range(first, first + arrival.samples):
                deadlines[value] = deadline
            try:
                ask = batcher.infer(
                    [sample(value) for value in range(first, first + arrival.samples)], deadline=deadline
                )
                async with asyncio.timeout(arrival.cancel_after):
                    outcome: object = await ask
            except (ServingError, TimeoutError) as error:
                outcome = error
            outcomes.setdefault(first, []).append(outcome)
            if isinstance(outcome, OverloadedError):
                assert outcome.retry_after is not None
                assert outcome.retry_after > 0
            # More than the limit only ever wait as one request that found the queue empty.
            assert batcher.queued_samples <= QUEUE_LIMIT or len(batcher._queue) == 1

        first, calls = 0, []
        for arrival in arrivals:
            await asyncio.sleep(arrival.after)
            calls.append((first, arrival, asyncio.create_task(call(first, arrival))))
            first += arrival.samples
        await asyncio.gather(*(task for _, _, task in calls))

        # Nothing is left behind.
        assert batcher.queued_samples == 0
        assert batcher.in_flight == 0

    # Nobody was lost or answered twice.
    assert {first: len(ends) for first, ends in outcomes.items()} == {first: 1 for first, _, _ in calls}
    for first, arrival, _ in calls:
        outcome = outcomes[first][0]
        own = set(range(first, first + arrival.samples))
        if isinstance(outcome, Answer):
            assert [int(row[0]) for row in outcome.rows] == [1000 + value for value in sorted(own)]
            assert not own & engine.poison
        elif isinstance(outcome, InferenceError):
            assert own & engine.poison  # strangers of a poisoned request never fail
        else:
            assert isinstance(outcome, OverloadedError | DeadlineExceededError | TimeoutError)
    for batch, began in zip(engine.batches, engine.began, strict=True):
        assert len(batch) <= MAX_BATCH_SIZE
        # A failed batch is repeated member by member, later than planned: only first runs are bound.
        if not any(set(batch) & set(other) for other in engine.batches if other is not batch):
            assert all(began <= deadlines[value] for value in batch)
    ran = [value for batch in engine.batches for value in batch]
    assert all(ran.count(value) <= (2 if engine.poison else 1) for value in ran)


def test_the_fake_engine_fails_on_poison():
    engine = FakeEngine()
    engine.poison = {3}
    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner, pytest.raises(RuntimeError):
        runner.run(engine.run(lambda: [sample(3)]))
