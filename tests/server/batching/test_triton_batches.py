"""How batches are composed: the tests of Triton's dynamic batcher, on ours, in virtual time.

Ported from qa/L0_batcher/batcher_test.py of triton-inference-server/server; each test names the function that
it comes from and what differs. What differs everywhere: Triton's preferred batch sizes are here the largest
size, a request larger than a batch is split instead of refused, and the delayed scheduler
(TRITONSERVER_DELAY_SCHEDULER=N) is here N arrivals in one turn of the loop, or arrivals while the engine is
busy. Where Triton bounds a time from both sides, ours is exact.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from support.engine import FakeEngine, ask, batching, now, until_queued, values, when_done
from vistazo_server.batching.batcher import DynamicBatcher
from vistazo_server.batching.device import COMPANY_SECONDS, DeviceScheduler

pytestmark = pytest.mark.looptime

QUEUE_DELAY = 10.0
"""Seconds, as in Triton's tests: long beside everything else."""


class CountingObserver:
    """Counts executions and inferences, as Triton's statistics call batches and samples."""

    def __init__(self) -> None:
        self.executions = 0
        self.inferences = 0

    def batch_ran(self, *, batch_size: int, seconds: float) -> None:
        del seconds
        self.executions += 1
        self.inferences += batch_size


def sizes(engine: FakeEngine) -> dict[int, int]:
    """Return how many batches of each size were run."""
    return dict(Counter(map(len, engine.batches)))


@asynccontextmanager
async def two_models(
    engine: FakeEngine, max_batch_size: int, other_max_batch_size: int
) -> AsyncIterator[tuple[DynamicBatcher, DynamicBatcher]]:
    """Hold the batchers of two models on one device; what Triton's tests do with two input shapes."""
    clock = asyncio.get_running_loop().time
    async with DeviceScheduler(clock=clock) as device:
        options = {"device": device, "queue_limit": 100, "queue_delay": QUEUE_DELAY, "clock": clock}
        async with (
            DynamicBatcher(engine.run, max_batch_size=max_batch_size, **options) as one,
            DynamicBatcher(engine.run, max_batch_size=other_max_batch_size, **options) as other,
        ):
            yield one, other


async def test_a_request_that_is_a_whole_batch_does_not_wait_for_company():
    """test_static_batch_preferred: two requests, one after the other, each answered at once."""
    engine, observer = FakeEngine(), CountingObserver()
    async with batching(engine, max_batch_size=6, queue_delay=QUEUE_DELAY, observer=observer) as batcher:
        answers = [await ask(batcher, *range(6)), await ask(batcher, *range(6, 12))]

    assert engine.began == [0.0, 1.0]
    assert [answer.queue_seconds for answer in answers] == [0.0, 0.0]
    assert (observer.executions, observer.inferences) == (2, 12)


async def test_a_request_of_several_samples_that_are_no_whole_batch_waits_for_company():
    """test_static_batch_not_preferred: three samples sit out the queue delay, and no longer."""
    engine, observer = FakeEngine(), CountingObserver()
    async with batching(engine, max_batch_size=6, queue_delay=QUEUE_DELAY, observer=observer) as batcher:
        answer = await ask(batcher, 0, 1, 2)

    assert engine.batches == [[0, 1, 2]]
    assert answer.queue_seconds == pytest.approx(QUEUE_DELAY)
    assert (observer.executions, observer.inferences) == (1, 3)


async def test_a_request_larger_than_a_batch_leaves_at_once_and_its_rest_within_the_delay():
    """test_static_batch_gt_max_preferred: a whole batch of it does not wait.

    Differs: seven samples are still a batch for Triton, whose largest size is 8; here the seventh is a rest,
    and the delay counts from its arrival, not from the run before.
    """
    engine = FakeEngine()
    async with batching(engine, max_batch_size=6, queue_delay=QUEUE_DELAY) as batcher:
        answer = await ask(batcher, *range(7))

    assert engine.batches == [[0, 1, 2, 3, 4, 5], [6]]
    assert engine.began == [0.0, pytest.approx(QUEUE_DELAY)]
    assert values(answer) == [1000 + value for value in range(7)]


async def test_the_queue_delay_counts_from_the_oldest_and_takes_the_younger_along():
    """test_multi_batch_not_preferred: one sample, and three a second later, leave as one batch of four."""
    engine, observer = FakeEngine(), CountingObserver()
    async with batching(engine, max_batch_size=6, queue_delay=QUEUE_DELAY, observer=observer) as batcher:
        first = ask(batcher, 0)
        await asyncio.sleep(1.0)
        second = ask(batcher, 1, 2, 3)
        answers = await asyncio.gather(first, second)

    assert sizes(engine) == {4: 1}
    assert [answer.queue_seconds for answer in answers] == [pytest.approx(10.0), pytest.approx(9.0)]
    assert (observer.executions, observer.inferences) == (1, 4)


@pytest.mark.parametrize(
    ("second", "max_batch_size", "gap"),
    [
        pytest.param(7, 8, 1.0, id="test_multi_batch_gt_max_preferred"),
        pytest.param(4, 6, 1.0, id="test_multi_batch_sum_gt_max_preferred"),
        pytest.param(4, 6, 0.0, id="test_multi_batch_delayed_sum_gt_max_preferred"),
    ],
)
async def test_the_second_request_that_overfills_a_batch_sends_the_first_off(second, max_batch_size, gap):
    """Three Triton tests, by parameter: the first is answered at once when the second overfills the batch.

    Differs: Triton sends the first off alone and keeps the second whole; ours fills the batch up with what
    fits of the second, and the rest of it waits for company until its own delay is over. As many executions.
    """
    engine = FakeEngine()
    async with batching(engine, max_batch_size=max_batch_size, queue_delay=QUEUE_DELAY) as batcher:
        first = ask(batcher, 0, 1, 2)
        first_done = when_done(first)
        await asyncio.sleep(gap)
        large = ask(batcher, *range(3, 3 + second))
        large_done = when_done(large)
        await asyncio.gather(first, large)

    rest = 3 + second - max_batch_size
    assert sizes(engine) == {max_batch_size: 1, rest: 1}
    assert await first_done == pytest.approx(gap + engine.seconds)
    assert await large_done == pytest.approx(gap + QUEUE_DELAY + engine.seconds)
    assert values(large.result()) == [1003 + value for value in range(second)]


async def test_a_delay_that_passes_while_the_engine_is_busy_does_not_close_the_batch():
    """test_multi_batch_delayed_use_max_batch: who comes after the delay is over still fills the batch."""
    engine = FakeEngine(seconds=12.0)
    async with batching(engine, max_batch_size=8, queue_delay=QUEUE_DELAY) as batcher:
        running = ask(batcher, *range(100, 108))
        await asyncio.sleep(0.5)
        waiting = [ask(batcher, 0, 1, 2), ask(batcher, 3, 4, 5, 6)]
        await asyncio.sleep(11.0)  # their delay was over a second ago
        late = ask(batcher, 7)
        answers = await asyncio.gather(running, *waiting, late)

    assert engine.batches[1:] == [list(range(8))]
    assert engine.began == [0.0, pytest.approx(12.0)]
    assert answers[-1].queue_seconds == pytest.approx(0.5)


async def test_what_does_not_fit_the_full_batch_waits_for_company_of_its_own():
    """test_multi_batch_use_best_preferred: two leave at once, and the third after a delay of its own."""
    engine = FakeEngine()
    async with batching(engine, max_batch_size=2, queue_delay=QUEUE_DELAY) as batcher:
        pair = [ask(batcher, 0), ask(batcher, 1)]
        await asyncio.sleep(1.0)
        await asyncio.gather(*pair, ask(batcher, 2))

    assert engine.batches == [[0, 1], [2]]
    assert engine.began == [0.0, pytest.approx(1.0 + QUEUE_DELAY)]


@pytest.mark.parametrize(
    ("requests", "max_batch_size", "queue_delay", "expected"),
    [
        pytest.param(6, 6, QUEUE_DELAY, [6], id="test_multi_batch_use_biggest_preferred"),
        pytest.param(4, 4, 0.0, [4], id="test_preferred_batch_only_aligned"),
        pytest.param(5, 4, 0.0, [4, 1], id="test_preferred_batch_only_unaligned"),
        pytest.param(7, 6, 0.0, [6, 1], id="test_preferred_batch_only_use_biggest_preferred"),
        pytest.param(3, 4, 0.0, [3], id="test_preferred_batch_only_use_no_preferred_size"),
    ],
)
async def test_batches_are_as_large_as_what_waits_allows(requests, max_batch_size, queue_delay, expected):
    """Five Triton tests, by parameter: requests of one sample that all wait before the scheduler looks.

    Differs: batches follow one another with no more of a gap than those who come back are given, which Triton
    does not look at.
    """
    engine, observer = FakeEngine(), CountingObserver()
    async with batching(
        engine, max_batch_size=max_batch_size, queue_delay=queue_delay, observer=observer
    ) as batcher:
        await asyncio.gather(*(ask(batcher, value) for value in range(requests)))

    assert [len(batch) for batch in engine.batches] == expected
    assert engine.began == [pytest.approx(float(at), abs=2 * COMPANY_SECONDS) for at in range(len(expected))]
    assert (observer.executions, observer.inferences) == (len(expected), requests)


async def test_answers_come_in_the_order_of_the_requests():
    """test_multi_batch_preserve_ordering with preserve_ordering: twelve requests, three batches of four.

    Differs: Triton holds answers back to keep the order between a slow instance and a fast one. Ours has no
    such setting; on one instance a slow run, here the middle one, delays who comes after it and no more.
    """
    engine = FakeEngine()
    order: list[int] = []
    moments: list[float] = []

    async def call(batcher: DynamicBatcher, value: int) -> None:
        answer = await ask(batcher, value)
        order.extend(values(answer))
        moments.append(now())

    async with batching(engine, max_batch_size=4) as batcher:
        calls = [asyncio.create_task(call(batcher, value)) for value in range(12)]
        await asyncio.sleep(0.5)
        engine.seconds = 4.0
        await asyncio.sleep(1.0)
        engine.seconds = 1.0
        await asyncio.gather(*calls)

    assert sizes(engine) == {4: 3}
    assert order == [1000 + value for value in range(12)]
    assert moments == [pytest.approx(moment) for moment in [1.0] * 4 + [5.0] * 4 + [6.0] * 4]


async def test_on_two_instances_a_slow_run_does_not_hold_back_the_answers_of_the_others():
    """test_multi_batch_preserve_ordering without preserve_ordering (verify_timestamps.py).

    One instance takes four times as long; the two other batches are answered while it runs.
    """
    engine = FakeEngine(instances=2)
    device = DeviceScheduler(instances=2, clock=asyncio.get_running_loop().time)
    async with batching(engine, max_batch_size=4, device=device) as batcher:
        engine.seconds = 4.0
        slow = [ask(batcher, value) for value in range(4)]
        await asyncio.sleep(0.5)
        engine.seconds = 1.0
        fast = [ask(batcher, value) for value in range(4, 12)]
        moments = [when_done(task) for task in slow + fast]
        answers = await asyncio.gather(*slow, *fast)

    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [values(answer) for answer in answers] == [[1000 + value] for value in range(12)]
    assert [await moment for moment in moments] == [
        pytest.approx(at) for at in [4.0] * 4 + [1.5] * 4 + [2.5] * 4
    ]


@pytest.mark.parametrize(
    ("queue_delay", "interval", "expected", "began"),
    [
        pytest.param(0.0, 0.001, [1, 11], [0.0, 0.1], id="test_max_queue_delay_only_default"),
        pytest.param(0.02, 0.001, [12], [0.02], id="test_max_queue_delay_only_non_default-in-time"),
        pytest.param(0.02, 0.003, [7, 5], [0.02, 0.12], id="test_max_queue_delay_only_non_default-late"),
    ],
)
async def test_the_queue_delay_alone_decides_how_many_executions(queue_delay, interval, expected, began):
    """test_max_queue_delay_only_default and _non_default: twelve requests, and no size to aim for.

    Differs: Triton accepts one or two executions with a delay, "depending upon the timing"; here the arrivals
    are timed, so each of the two is a test of its own.
    """
    engine = FakeEngine(seconds=0.1)
    async with batching(engine, max_batch_size=100, queue_delay=queue_delay) as batcher:
        calls = []
        for value in range(12):
            calls.append(ask(batcher, value))
            await asyncio.sleep(interval)
        await asyncio.gather(*calls)

    assert [len(batch) for batch in engine.batches] == expected
    assert engine.began == [pytest.approx(moment) for moment in began]


async def test_two_models_do_not_share_a_batch_though_together_they_would_fill_one():
    """test_multi_batch_different_shape: one sample of each, where two would be a batch.

    Differs: our batcher does not look at shapes (the runner keeps those of one model apart), so two models
    stand for them. For Triton the second shape ends the wait of the first at once; here each sits out its own
    delay.
    """
    engine = FakeEngine()
    async with two_models(engine, 2, 2) as (one, other):
        first = ask(one, 0)
        await asyncio.sleep(1.0)
        await asyncio.gather(first, ask(other, 10))

    assert engine.batches == [[0], [10]]
    assert engine.began == [pytest.approx(QUEUE_DELAY), pytest.approx(1.0 + QUEUE_DELAY)]


async def test_a_model_that_has_a_batch_does_not_take_the_other_along():
    """test_multi_batch_not_preferred_different_shape: 1 + 3 leave as four, the stranger waits its delay."""
    engine = FakeEngine()
    async with two_models(engine, 4, 4) as (one, other):
        full = [ask(one, 0), ask(one, 1, 2, 3)]
        await asyncio.sleep(1.0)
        stranger = ask(other, 10)
        answers = await asyncio.gather(*full, stranger)

    assert sizes(engine) == {4: 1, 1: 1}
    assert engine.began == [0.0, pytest.approx(1.0 + QUEUE_DELAY)]
    assert [answer.batch_size for answer in answers] == [4, 4, 1]


async def test_two_models_with_a_batch_each_both_go_at_once():
    """test_multi_batch_preferred_different_shape: 1 + 3 of one, a second later 1 + 5 of the other."""
    engine = FakeEngine()
    async with two_models(engine, 4, 6) as (one, other):
        calls = [ask(one, 0), ask(one, 1, 2, 3)]
        await asyncio.sleep(1.0)
        calls += [ask(other, 10), ask(other, 11, 12, 13, 14, 15)]
        await asyncio.gather(*calls)

    assert engine.batches == [[0, 1, 2, 3], [10, 11, 12, 13, 14, 15]]
    assert engine.began == [0.0, pytest.approx(1.0)]


async def test_two_models_that_queue_up_together_still_get_a_batch_each():
    """test_multi_batch_delayed_preferred_different_shape: the same four requests, all queued beforehand.

    Differs: they queue up behind a run of the first model instead of a delayed scheduler, and interleaved.
    """
    engine = FakeEngine()
    async with two_models(engine, 4, 6) as (one, other):
        calls = [ask(one, 90, 91, 92, 93)]
        await asyncio.sleep(0.5)
        calls += [ask(one, 0), ask(other, 10), ask(one, 1, 2, 3), ask(other, 11, 12, 13, 14, 15)]
        await until_queued(other, 6)
        await asyncio.gather(*calls)

    assert sorted(engine.batches[1:]) == [[0, 1, 2, 3], [10, 11, 12, 13, 14, 15]]
    assert engine.began == [pytest.approx(moment) for moment in (0.0, 1.0, 2.0)]
