"""DynamicBatcher in virtual time: nothing sleeps, every moment is exact."""

import asyncio
import dataclasses
import itertools
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from support.engine import FakeEngine, ask, batching, now, sample, until_queued, values
from vistazo_server.batcher import Answer, DynamicBatcher
from vistazo_server.device import (
    COMPANY_SECONDS,
    IDLE_TURN_SECONDS,
    IDLE_TURNS,
    LOAD_SECONDS,
    SATURATED_SECONDS,
    DeviceScheduler,
    Run,
)
from vistazo_server.errors import (
    DeadlineExceededError,
    DeadlineUnreachableError,
    DrainingError,
    InferenceError,
    QueueFullError,
)

pytestmark = pytest.mark.looptime


async def test_an_idle_engine_runs_a_lone_request_at_once():
    engine = FakeEngine()
    async with batching(engine) as batcher:
        answer = await ask(batcher, 7)

    assert values(answer) == [1007]
    assert engine.began == [0.0]
    assert answer.queue_seconds == 0.0
    assert answer.compute_seconds == pytest.approx(1.0)
    assert answer.batch_size == 1


async def test_arrivals_during_a_run_leave_together():
    engine = FakeEngine()
    async with batching(engine) as batcher:
        first = ask(batcher, 0)
        await asyncio.sleep(0.5)
        rest = [ask(batcher, value) for value in (1, 2, 3)]
        answers = await asyncio.gather(first, *rest)

    assert engine.batches == [[0], [1, 2, 3]]
    assert [values(answer) for answer in answers] == [[1000], [1001], [1002], [1003]]
    assert [answer.batch_size for answer in answers] == [1, 3, 3, 3]
    assert answers[1].queue_seconds == pytest.approx(0.5)


async def test_a_batch_never_exceeds_the_maximum_and_keeps_the_order_of_arrival():
    engine = FakeEngine()
    async with batching(engine, max_batch_size=4) as batcher:
        await asyncio.gather(*(ask(batcher, value) for value in range(10)))

    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_batch_size_counts_samples_not_requests():
    engine = FakeEngine()
    async with batching(engine, max_batch_size=4) as batcher:
        await asyncio.gather(ask(batcher, 0, 1, 2), ask(batcher, 3, 4, 5))

    assert engine.batches == [[0, 1, 2, 3], [4, 5]]


async def test_a_request_larger_than_a_batch_is_split_and_put_together_again():
    engine = FakeEngine()
    async with batching(engine, max_batch_size=4) as batcher:
        answer = await ask(batcher, *range(10))

    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert values(answer) == [1000 + value for value in range(10)]
    assert answer.compute_seconds == pytest.approx(3.0)
    assert answer.batch_size == 4


async def test_with_a_queue_delay_a_lone_request_leaves_when_the_delay_is_over():
    engine = FakeEngine()
    async with batching(engine, queue_delay=0.25) as batcher:
        await ask(batcher, 0)

    assert engine.began == [pytest.approx(0.25)]


async def test_a_full_batch_does_not_wait_for_the_queue_delay():
    engine = FakeEngine()
    async with batching(engine, max_batch_size=2, queue_delay=5.0) as batcher:
        first = ask(batcher, 0)
        await asyncio.sleep(0.1)
        await asyncio.gather(first, ask(batcher, 1))

    assert engine.batches == [[0, 1]]
    assert engine.began == [pytest.approx(0.1)]


async def test_the_queue_delay_ends_early_for_a_deadline():
    engine = FakeEngine(seconds=1.0)
    async with batching(engine, queue_delay=5.0, latency=engine.latency()) as batcher:
        await ask(batcher, 0, deadline=3.0)

    # The run takes 1 s and a quarter of that is kept as slack.
    assert engine.began == [pytest.approx(1.75)]


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    engine = FakeEngine()
    async with batching(engine, max_batch_size=2, queue_limit=4, latency=engine.latency()) as batcher:
        running = ask(batcher, 0)
        await asyncio.sleep(0.5)
        waiting = [ask(batcher, value) for value in range(1, 5)]
        await until_queued(batcher, 4)
        with pytest.raises(QueueFullError) as refused:
            await batcher.infer([sample(9)])
        await asyncio.gather(running, *waiting)

    # The running batch has 0.5 s to go, then one sample must leave, which takes a run of 1 s.
    assert refused.value.retry_after == pytest.approx(1.5)
    assert [9] not in engine.batches


async def test_a_request_larger_than_the_queue_limit_may_enter_an_empty_queue():
    engine = FakeEngine()
    async with batching(engine, queue_limit=2) as batcher:
        answer = await ask(batcher, *range(5))

    assert values(answer) == [1000, 1001, 1002, 1003, 1004]


async def test_a_request_whose_predicted_finish_is_late_is_refused_at_the_door():
    engine = FakeEngine(seconds=1.0)
    async with batching(engine, max_batch_size=1, latency=engine.latency((1,))) as batcher:
        running = ask(batcher, 0)
        await asyncio.sleep(0.25)
        waiting = ask(batcher, 1)
        await until_queued(batcher, 1)
        # 0.75 s of the running batch, 1 s for who waits, 1 s for itself, and a tenth of the wait: 3.175.
        with pytest.raises(DeadlineUnreachableError) as refused:
            await batcher.infer([sample(2)], deadline=3.1)
        accepted = ask(batcher, 3, deadline=3.2)
        await asyncio.gather(running, waiting, accepted)

    assert refused.value.retry_after == pytest.approx(0.075)
    assert engine.batches == [[0], [1], [3]]


async def test_a_passed_deadline_is_refused_as_such():
    engine = FakeEngine()
    async with batching(engine) as batcher:
        await asyncio.sleep(1.0)
        with pytest.raises(DeadlineExceededError):
            await batcher.infer([sample(0)], deadline=0.5)

    assert engine.batches == []


async def test_expiry_does_not_wait_for_the_running_batch():
    engine = FakeEngine(seconds=10.0)
    async with batching(engine) as batcher:  # no latency known: everything is admitted
        running = ask(batcher, 0)
        await asyncio.sleep(1.0)
        with pytest.raises(DeadlineExceededError):
            await batcher.infer([sample(1)], deadline=2.0)
        expired_at = now()
        await running

    assert expired_at == pytest.approx(2.0)
    assert engine.batches == [[0]]


async def test_who_can_no_longer_make_it_is_dropped_before_the_run():
    engine = FakeEngine(seconds=1.0)
    async with batching(engine, max_batch_size=1, latency=engine.latency((1,))) as batcher:
        running = ask(batcher, 0)
        await asyncio.sleep(0.1)
        doomed = ask(batcher, 1, deadline=2.2)
        engine.seconds = 1.0
        await until_queued(batcher, 1)
        # The running batch turns out to take longer than predicted.
        batcher.latency.set(1, 1.3)
        fine = ask(batcher, 2, deadline=9.0)
        with pytest.raises(DeadlineExceededError, match="dropped before its run"):
            await doomed
        await asyncio.gather(running, fine)

    assert engine.batches == [[0], [2]]


async def test_a_batch_does_not_grow_past_what_its_tightest_member_allows():
    engine = FakeEngine(seconds=0.0, seconds_per_sample=1.0)
    async with batching(engine, max_batch_size=4, latency=engine.latency((1, 2, 3, 4))) as batcher:
        running = ask(batcher, 0)
        await asyncio.sleep(0.5)
        tight = ask(batcher, 1, deadline=3.2)
        relaxed = [ask(batcher, value, deadline=99.0) for value in (2, 3)]
        await asyncio.gather(running, tight, *relaxed)

    assert engine.batches == [[0], [1, 2], [3]]


async def test_a_cancelled_request_leaves_the_queue_at_once():
    engine = FakeEngine()
    async with batching(engine, queue_limit=2) as batcher:
        running = ask(batcher, 0)
        await asyncio.sleep(0.5)
        leaver, stayer = ask(batcher, 1), ask(batcher, 2)
        await until_queued(batcher, 2)
        leaver.cancel()
        await until_queued(batcher, 1)
        newcomer = ask(batcher, 3)  # there is room again
        await asyncio.gather(running, stayer, newcomer)

    assert engine.batches == [[0], [2, 3]]


async def test_batch_mates_of_a_cancelled_request_get_their_answers():
    engine = FakeEngine()
    async with batching(engine) as batcher:
        tasks = [ask(batcher, value) for value in range(3)]
        await asyncio.sleep(0.5)
        tasks[1].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert engine.batches == [[0, 1, 2]]
    assert values(answers[0]) == [1000]
    assert isinstance(answers[1], asyncio.CancelledError)
    assert values(answers[2]) == [1002]


async def test_the_members_of_a_failed_batch_are_retried_alone_and_only_the_guilty_fails():
    engine = FakeEngine()
    engine.poison = {1}
    async with batching(engine) as batcher:
        answers = await asyncio.gather(*(ask(batcher, value) for value in range(3)), return_exceptions=True)

    assert engine.batches == [[0, 1, 2], [0], [1], [2]]
    assert values(answers[0]) == [1000]
    assert isinstance(answers[1], InferenceError)
    assert "poison" not in str(answers[1])  # what the engine said is for the log
    assert values(answers[2]) == [1002]


async def test_an_engine_that_returns_too_few_rows_fails_the_batch_instead_of_stranding_somebody():
    engine = FakeEngine()

    async def forgetful(take):
        ran = await engine.run(take)
        return dataclasses.replace(ran, rows=ran.rows[:1])

    clock = asyncio.get_running_loop().time
    async with (
        DeviceScheduler(clock=clock) as device,
        DynamicBatcher(forgetful, device=device, max_batch_size=4, queue_limit=9, clock=clock) as batcher,
    ):
        alone_is_fine = await asyncio.gather(ask(batcher, 0), ask(batcher, 1))
        with pytest.raises(InferenceError):
            await ask(batcher, 2, 3)

    assert [values(answer) for answer in alone_is_fine] == [[1000], [1001]]


async def test_closing_finishes_what_was_admitted_and_refuses_the_rest():
    engine = FakeEngine()
    async with batching(engine, max_batch_size=1) as batcher:
        admitted = [ask(batcher, value) for value in range(3)]
        await until_queued(batcher, 3)
    with pytest.raises(DrainingError):
        await batcher.infer([sample(9)])

    assert [values(await task) for task in admitted] == [[1000], [1001], [1002]]
    assert batcher.in_flight == batcher.queued_samples == 0


async def test_closing_does_not_sit_out_the_queue_delay():
    engine = FakeEngine()
    async with batching(engine, queue_delay=60.0) as batcher:
        task = ask(batcher, 0)
        await until_queued(batcher, 1)
    assert now() < 2.0
    assert values(await task) == [1000]


async def test_a_shared_device_serves_the_earliest_deadline_first():
    engine = FakeEngine(seconds=1.0)
    clock = asyncio.get_running_loop().time
    device = DeviceScheduler(clock=clock)
    async with device:
        options = {"device": device, "max_batch_size": 1, "queue_limit": 9, "clock": clock}
        async with (
            DynamicBatcher(engine.run, **options) as patient,
            DynamicBatcher(engine.run, **options) as urgent,
        ):
            first = ask(patient, 0)
            await asyncio.sleep(0.5)
            later = [ask(patient, 1, deadline=90.0), ask(patient, 2, deadline=91.0)]
            sooner = [ask(urgent, 11, deadline=50.0), ask(urgent, 12, deadline=90.5)]
            await asyncio.gather(first, *later, *sooner)

    assert engine.batches == [[0], [11], [1], [12], [2]]


async def test_admission_counts_the_backlog_of_the_other_models_on_the_device():
    engine = FakeEngine(seconds=1.0)
    clock = asyncio.get_running_loop().time
    device = DeviceScheduler(clock=clock)
    async with device:
        options = {"device": device, "max_batch_size": 1, "queue_limit": 9, "clock": clock}
        async with (
            DynamicBatcher(engine.run, latency=engine.latency((1,)), **options) as one,
            DynamicBatcher(engine.run, latency=engine.latency((1,)), **options) as other,
        ):
            tasks = [ask(one, value) for value in range(3)]
            await until_queued(one, 2)
            predicted = other.predicted_seconds(1)
            with pytest.raises(DeadlineUnreachableError):
                await other.infer([sample(5)], deadline=3.9)
            await asyncio.gather(*tasks)

    assert predicted == pytest.approx(4.0 + 0.3)  # a tenth of the wait on top


async def test_a_queue_that_breaks_does_not_stop_the_device_for_the_others(caplog):
    class BrokenQueue:
        """Ready once, and then raises."""

        asked = False
        queued_samples = 1

        def ready_at(self):
            return math.inf if self.asked else -math.inf

        def earliest_deadline(self):
            return -math.inf

        def backlog(self):
            return 0.0

        def has_full_batch(self):
            return False

        def next_run(self, *, begins_at):
            self.asked = True
            return Run(seconds=1.0, work=self.break_down())

        async def break_down(self):
            raise RuntimeError("a bug")

    engine = FakeEngine()
    clock = asyncio.get_running_loop().time
    device = DeviceScheduler(clock=clock)
    async with batching(engine, device=device) as batcher:
        broken = BrokenQueue()
        device.register(broken)
        answer = await ask(batcher, 1)
        device.unregister(broken)

    assert broken.asked
    assert values(answer) == [1001]


async def test_a_full_batch_is_formed_ahead_and_follows_without_a_gap():
    engine = FakeEngine()
    async with batching(engine, max_batch_size=2, latency=engine.latency()) as batcher:
        tasks = [ask(batcher, 0)]
        await asyncio.sleep(0.5)
        tasks += [ask(batcher, value) for value in (1, 2, 3)]
        await until_queued(batcher, 1)  # 1 and 2 are a full batch; 3 may still find company
        await asyncio.sleep(0.1)
        tasks.append(ask(batcher, 4))
        await asyncio.gather(*tasks)

    assert engine.batches == [[0], [1, 2], [3, 4]]
    assert engine.began == [pytest.approx(moment) for moment in (0.0, 1.0, 2.0)]


async def test_the_next_batch_begins_before_the_last_ones_answers_are_handed_out():
    """To encode and send answers takes the event loop milliseconds, in which the engine would idle."""
    engine = FakeEngine()
    begun_by_the_answer = []

    async def caller(batcher):
        await ask(batcher, 0)
        begun_by_the_answer.append(len(engine.began))

    async with batching(engine, latency=engine.latency()) as batcher:
        first = asyncio.create_task(caller(batcher))
        await asyncio.sleep(0.5)
        second = ask(batcher, 1)
        await asyncio.gather(first, second)

    assert begun_by_the_answer == [2]


async def test_who_leaves_a_batch_that_was_formed_ahead_costs_no_run():
    engine = FakeEngine()
    async with batching(engine, max_batch_size=2) as batcher:
        running = ask(batcher, 0)
        await asyncio.sleep(0.5)
        leaver, stayer = ask(batcher, 1), ask(batcher, 2)
        await asyncio.sleep(0.1)
        assert batcher.queued_samples == 0
        leaver.cancel()
        await asyncio.gather(running, stayer)
        for size in (1, 2):
            batcher.latency.set(size, 0.0)  # admits what will then be late
        gone = [ask(batcher, 3)]
        await asyncio.sleep(0.5)
        gone += [ask(batcher, 4, deadline=now() + 0.1), ask(batcher, 5, deadline=now() + 0.1)]
        results = await asyncio.gather(*gone, return_exceptions=True)

    assert engine.batches == [[0], [2], [3]]
    assert [type(result) for result in results[1:]] == [DeadlineExceededError] * 2


async def test_the_prediction_counts_a_batch_that_was_formed_ahead():
    engine = FakeEngine(seconds=1.0)
    async with batching(engine, max_batch_size=2, latency=engine.latency()) as batcher:
        tasks = [ask(batcher, 0)]
        await asyncio.sleep(0.25)
        tasks += [ask(batcher, 1), ask(batcher, 2)]
        await asyncio.sleep(0.1)
        assert batcher.queued_samples == 0
        predicted = batcher.predicted_seconds(1)
        await asyncio.gather(*tasks)

    assert predicted == pytest.approx(0.65 + 1.0 + 1.0 + 0.165)  # a tenth of the wait on top


async def test_a_free_engine_tries_what_its_fastest_run_could_do_however_slow_it_was_of_late():
    engine = FakeEngine(seconds=5.0)
    async with batching(engine, max_batch_size=1) as batcher:
        batcher.latency.set(1, 1.0)
        for value in range(30):  # a slow hour: the estimate goes up to nearly 5 s
            await ask(batcher, value)
        assert batcher.latency.seconds(1) > 4.0
        engine.seconds = 1.0
        answer = await ask(batcher, 99, deadline=now() + 2.0)

    assert values(answer) == [1099]


async def test_a_free_engine_still_refuses_what_it_never_could_do():
    engine = FakeEngine()
    async with batching(engine, latency=engine.latency()) as batcher:
        with pytest.raises(DeadlineUnreachableError):
            await batcher.infer([sample(0)], deadline=now() + 0.9)

    assert engine.batches == []


async def call_again_and_again(batcher: DynamicBatcher, *, times: int, think: float) -> list[Answer]:
    """A caller that sends its next request `think` seconds after the answer to the last."""
    answers = []
    for value in range(times):
        answers.append(await batcher.infer([sample(value)]))
        await asyncio.sleep(think)
    return answers


async def test_callers_that_come_back_within_a_moment_of_one_another_come_to_ride_together():
    engine = FakeEngine(seconds=0.0003)
    async with batching(engine, max_batch_size=8) as batcher:
        # Each run is over before the next caller is back: without a wait, each would ride alone for ever.
        callers = [call_again_and_again(batcher, times=200, think=0.004 + 0.00001 * at) for at in range(4)]
        await asyncio.gather(*callers)

    late = engine.batches[-40:]
    assert sum(map(len, late)) / len(late) > 2.5


async def test_a_lone_caller_is_hardly_ever_kept_waiting_for_company():
    engine = FakeEngine(seconds=0.001)
    async with batching(engine, max_batch_size=8) as batcher:
        answers = await call_again_and_again(batcher, times=2000, think=0.0)

    kept = [answer for answer in answers if answer.queue_seconds > 0]
    assert [answer.queue_seconds for answer in kept] == [pytest.approx(COMPANY_SECONDS)] * len(kept)
    assert 1 <= len(kept) <= 8  # 2,000 starts: 16, 32, … apart


async def test_a_request_without_time_to_spare_is_not_kept_waiting_for_company():
    engine = FakeEngine(seconds=0.001)
    async with batching(engine, max_batch_size=8, latency=engine.latency()) as batcher:
        for value in range(100):
            answer = await batcher.infer([sample(value)], deadline=now() + 0.0025)
            assert answer.queue_seconds == 0.0


@asynccontextmanager
async def on_a_busy_loop(
    engine: FakeEngine, *, max_batch_size: int, clock: Callable[[], float] | None = None
) -> AsyncIterator[DynamicBatcher]:
    """Hold a batcher whose event loop's thread has not had a pause for a while, by the device's clock."""
    clock = clock or asyncio.get_running_loop().time
    device = DeviceScheduler(clock=clock, cpu_clock=clock)
    async with batching(engine, max_batch_size=max_batch_size, device=device) as batcher:
        await batcher.infer([sample(99)])
        await asyncio.sleep(2 * LOAD_SECONDS)
        await batcher.infer([sample(99)])
        engine.batches.clear()
        yield batcher


async def arrive(batcher: DynamicBatcher, values: Sequence[int], *, turns: int) -> list[asyncio.Task[Answer]]:
    """Begin a request for each value, `turns` turns of the loop apart."""
    tasks = []
    for value in values:
        tasks.append(ask(batcher, value))
        for _ in range(turns):
            await asyncio.sleep(0)
    return tasks


async def test_on_a_busy_loop_those_who_come_within_a_few_turns_ride_together():
    engine = FakeEngine()
    async with on_a_busy_loop(engine, max_batch_size=4) as batcher:
        await asyncio.gather(*await arrive(batcher, range(8), turns=IDLE_TURNS - 4))

    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]


async def test_on_a_busy_loop_nobody_waits_once_it_has_nothing_else_to_do():
    engine = FakeEngine()
    async with on_a_busy_loop(engine, max_batch_size=4) as batcher:
        first, second = await arrive(batcher, (0, 1), turns=IDLE_TURNS + 4)
        await asyncio.gather(first, second)

    assert engine.batches == [[0], [1]]
    assert first.result().queue_seconds == 0.0


async def test_on_an_idle_loop_nobody_is_gathered():
    engine = FakeEngine()
    async with batching(engine, max_batch_size=4) as batcher:
        await asyncio.gather(*await arrive(batcher, range(2), turns=IDLE_TURNS - 4))

    assert engine.batches == [[0], [1]]


async def test_on_a_busy_loop_who_is_left_over_from_a_full_batch_finds_company_too():
    engine = FakeEngine()
    async with on_a_busy_loop(engine, max_batch_size=4) as batcher:
        tasks = [ask(batcher, value) for value in range(5)]
        await tasks[0]
        tasks += await arrive(batcher, range(5, 8), turns=1)
        await asyncio.gather(*tasks)

    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]


class SlowTurns:
    """A clock by which each turn of the loop takes a while: it goes on at each look."""

    def __init__(self, seconds: float) -> None:
        self._looks = itertools.count()
        self._seconds = seconds

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + next(self._looks) * self._seconds


async def test_gathering_ends_when_time_is_up_however_busy_the_loop_is():
    engine, clock = FakeEngine(), SlowTurns(2 * IDLE_TURN_SECONDS)
    async with on_a_busy_loop(engine, max_batch_size=4, clock=clock) as batcher:
        alone = ask(batcher, 0)
        began = clock()
        while not engine.batches:
            await asyncio.sleep(0)
        waited = clock() - began
        await alone

    assert 0.5 * SATURATED_SECONDS <= waited <= 2 * SATURATED_SECONDS


async def test_a_device_with_two_instances_runs_two_batches_at_once_and_forms_one_ahead():
    engine = FakeEngine(instances=2)
    device = DeviceScheduler(instances=2, clock=asyncio.get_running_loop().time)
    async with batching(engine, max_batch_size=2, latency=engine.latency(), device=device) as batcher:
        tasks = []
        for value in range(3):  # the first two find an idle instance each
            tasks.append(ask(batcher, value))
            await asyncio.sleep(0.1)
        assert batcher.queued_samples == 1
        tasks.append(ask(batcher, 3))
        await asyncio.sleep(0.1)
        assert batcher.queued_samples == 0  # a full batch, formed ahead
        predicted = batcher.predicted_seconds(1)
        answers = await asyncio.gather(*tasks)

    assert engine.batches == [[0], [1], [2, 3]]
    assert engine.began == [pytest.approx(moment) for moment in (0.0, 0.1, 1.0)]
    assert [values(answer) for answer in answers] == [[1000], [1001], [1002], [1003]]
    # 0.6 and 0.7 s of the running, 1 s formed ahead, on two instances; its own second; a tenth of the wait.
    assert predicted == pytest.approx(1.15 + 1.0 + 0.115)
