"""DynamicBatcher in virtual time: nothing sleeps, every moment is exact."""

import asyncio
import dataclasses
import itertools
import math
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from support.engine import FakeEngine, ask, batching, now, sample, until_queued, values, when_done
from vistazo_server.batching.admission import CONFIRMED_RUNS, CONFIRMED_SECONDS, TRIAL_FACTOR
from vistazo_server.batching.batch import Answer
from vistazo_server.batching.batcher import DynamicBatcher
from vistazo_server.batching.device import (
    COMPANY_SECONDS,
    GATHER_SECONDS,
    IDLE_TURN_SECONDS,
    TURNS_IN_COMPANY,
    DeviceScheduler,
    Run,
)
from vistazo_server.batching.latency import LatencyModel
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


@asynccontextmanager
async def two_models(
    engine: FakeEngine, *, slow: float = 1.0, fast: float = 1.0
) -> AsyncIterator[tuple[DynamicBatcher, DynamicBatcher]]:
    """Hold two batchers on one device, with batches of one; a run takes so many seconds by their tables."""
    clock = asyncio.get_running_loop().time
    async with DeviceScheduler(clock=clock) as device:
        batchers = []
        for seconds in (slow, fast):
            latency = LatencyModel()
            latency.set(1, seconds)
            batchers.append(
                DynamicBatcher(
                    engine.run, device=device, max_batch_size=1, queue_limit=99, latency=latency, clock=clock
                )
            )
        async with batchers[0] as one, batchers[1] as other:
            yield one, other


async def test_what_another_model_has_to_do_later_refuses_nobody():
    """A backlog without deadlines of one model must not make promises of another look impossible."""
    engine = FakeEngine(seconds=1.0)
    async with two_models(engine) as (one, other):
        backlog = [ask(one, value) for value in range(20)]
        await until_queued(one, 18)
        # One runs and one is formed ahead; then it is the turn of what is due first.
        answer = await ask(other, 99, deadline=now() + 3.5)
        ended = now()
        await asyncio.gather(*backlog)

    assert values(answer) == [1099]
    assert ended == pytest.approx(3.0)
    assert engine.batches[2] == [99]


async def test_admission_counts_what_another_model_will_be_served_earlier():
    engine = FakeEngine(seconds=1.0)
    async with two_models(engine) as (one, other):
        tasks = [ask(one, value, deadline=now() + 4.9) for value in range(4)]
        await until_queued(one, 2)
        # 2 s of the runs in flight, 2 s of what is due before it, its own second, a tenth of the wait.
        with pytest.raises(DeadlineUnreachableError, match=r"predicted in 5\.400 s"):
            await other.infer([sample(5)], deadline=now() + 5.2)
        assert other.predicted_seconds(1) == pytest.approx(5.4)
        await asyncio.gather(*tasks)

    assert [5] not in engine.batches


async def test_a_newcomer_whose_answer_would_break_a_promise_is_refused():
    engine = FakeEngine(seconds=1.0)
    async with two_models(engine) as (one, other):
        # Promised, and just possible: the last of them ends at 4 s.
        promised = [ask(one, value, deadline=now() + 4.6) for value in range(4)]
        await until_queued(one, 2)
        with pytest.raises(DeadlineUnreachableError, match="would make others") as refused:
            await other.infer([sample(50)], deadline=now() + 3.5)
        answers = await asyncio.gather(*promised)
        # With nobody in the way the same request is let in.
        late = await ask(other, 51, deadline=now() + 3.5)

    assert refused.value.retry_after == pytest.approx(0.4)
    assert [values(answer) for answer in answers] == [[1000], [1001], [1002], [1003]]
    assert values(late) == [1051]
    assert [50] not in engine.batches


async def test_a_promise_that_cannot_be_kept_in_any_case_refuses_nobody():
    engine = FakeEngine(seconds=1.0)
    async with two_models(engine) as (one, other):
        tasks = [ask(one, value, deadline=now() + 4.6) for value in range(4)]
        await until_queued(one, 2)
        one.latency.set(1, 1.5)  # the last would end at 5 s by what is known now
        answer = await ask(other, 50, deadline=now() + 4.0)
        await asyncio.gather(*tasks, return_exceptions=True)

    assert values(answer) == [1050]


async def test_a_queue_that_breaks_does_not_stop_the_device_for_the_others(caplog):
    class BrokenQueue:
        """Ready once, and then raises."""

        asked = False
        queued_samples = 1
        expected_samples = 0

        def ready_at(self):
            return math.inf if self.asked else -math.inf

        def earliest_deadline(self):
            return -math.inf

        def backlog(self):
            return 0.0

        def plan(self):
            return []

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


async def refusals(batcher: DynamicBatcher, *, times: int, seconds: float) -> int:
    """Ask again and again, each time with so many seconds; return how many were refused at once."""
    refused = 0
    for value in range(times):
        try:
            await batcher.infer([sample(value)], deadline=now() + seconds)
        except DeadlineUnreachableError:
            refused += 1
        except DeadlineExceededError:
            pass
    return refused


async def test_what_nobody_has_confirmed_is_tried_once_and_then_believed():
    """The table may come from a warm-up beside a busy server; or it is right, and then one run shows it."""
    wrong, right = FakeEngine(seconds=0.010), FakeEngine(seconds=0.060)
    table = LatencyModel()
    table.set(1, 0.060)
    async with batching(wrong, max_batch_size=1, latency=table) as batcher:
        assert await refusals(batcher, times=50, seconds=0.040) == 0
    async with batching(right, max_batch_size=1, latency=right.latency((1,))) as batcher:
        assert await refusals(batcher, times=50, seconds=0.040) == 49

    assert len(wrong.batches) == 50
    assert len(right.batches) == 1


async def test_what_is_tried_in_vain_takes_a_sixth_of_the_device_at_most():
    engine = FakeEngine(seconds=1.0)
    async with batching(engine, max_batch_size=1, latency=engine.latency((1,))) as batcher:
        while now() < 60.0:
            await refusals(batcher, times=1, seconds=0.9)
            await asyncio.sleep(0.05)

    assert 8 <= len(engine.batches) <= 60 / (1 + CONFIRMED_RUNS) + 1


async def test_what_is_out_of_all_proportion_is_not_tried():
    engine = FakeEngine(seconds=1.0)
    async with batching(engine, max_batch_size=1, latency=engine.latency((1,))) as batcher:
        assert await refusals(batcher, times=20, seconds=0.9 / TRIAL_FACTOR) == 20

    assert engine.batches == []


async def test_a_trial_rides_alone_and_takes_no_promise_of_others_along():
    engine = FakeEngine(seconds=0.0, seconds_per_sample=0.1)
    async with batching(engine, latency=engine.latency()) as batcher:
        await asyncio.sleep(CONFIRMED_SECONDS)
        trial = ask(batcher, 1, deadline=now() + 0.09)
        mates = [ask(batcher, value, deadline=now() + 2.0) for value in (2, 3)]
        results = await asyncio.gather(trial, *mates, return_exceptions=True)

    assert engine.batches[0] == [1]
    assert isinstance(results[0], DeadlineExceededError)
    assert [values(answer) for answer in results[1:]] == [[1002], [1003]]


async def test_a_hung_run_promises_nothing_to_those_behind_it():
    engine = FakeEngine(seconds=6.0)
    table = LatencyModel()
    table.set(1, 0.010)
    async with batching(engine, max_batch_size=1, latency=table) as batcher:
        hung = ask(batcher, 0)
        await asyncio.sleep(0.5)
        with pytest.raises(DeadlineUnreachableError):
            await batcher.infer([sample(1)], deadline=now() + 0.4)
        await hung


async def test_a_newcomer_that_is_due_earlier_ends_the_queue_delay():
    engine = FakeEngine(seconds=0.005)
    async with batching(engine, max_batch_size=8, queue_delay=2.0, latency=engine.latency()) as batcher:
        first = ask(batcher, 1, deadline=now() + 30.0)
        await asyncio.sleep(0.1)
        second = await ask(batcher, 2, deadline=now() + 0.3)
        await first

    assert engine.batches == [[1, 2]]
    assert values(second) == [1002]
    assert engine.began[0] < 0.4


@pytest.mark.parametrize(
    "deadlines", [(30.0, 9.0, 0.3), (30.0, 0.3, 9.0), (0.3, 9.0, 30.0), (9.0, 0.3, 0.31)]
)
async def test_the_queue_delay_ends_for_the_earliest_deadline_in_whatever_order_they_come(deadlines):
    engine = FakeEngine(seconds=0.005)
    async with batching(engine, max_batch_size=8, queue_delay=5.0, latency=engine.latency()) as batcher:
        tasks = []
        for value, deadline in enumerate(deadlines):
            tasks.append(ask(batcher, value, deadline=deadline))
            await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)

    assert engine.batches == [[0, 1, 2]]


async def test_what_a_caller_is_told_of_a_failure_carries_nothing_of_the_engine():
    engine = FakeEngine()
    engine.poison = {1}
    async with batching(engine) as batcher:
        answers = await asyncio.gather(*(ask(batcher, value) for value in range(3)), return_exceptions=True)

    failure = answers[1]
    assert isinstance(failure, InferenceError)
    assert failure.__cause__ is None
    assert failure.__context__ is None
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(failure.__traceback__)]
    assert "_run" not in frames
    assert "_retry_one_by_one" not in frames


async def test_where_only_some_rows_failed_the_others_do_not_wait_for_the_retries():
    engine = FakeEngine()

    async def some_fail(take):
        ran = await engine.run(take)
        rows = [ValueError("a shape it cannot run") if int(row[0]) == 1001 else row for row in ran.rows]
        return dataclasses.replace(
            ran, rows=rows, has_failures=any(isinstance(row, Exception) for row in rows)
        )

    clock = asyncio.get_running_loop().time
    async with (
        DeviceScheduler(clock=clock) as device,
        DynamicBatcher(some_fail, device=device, max_batch_size=4, queue_limit=9, clock=clock) as batcher,
    ):
        tasks = [ask(batcher, value) for value in range(3)]
        moments = [when_done(task) for task in tasks]
        answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert engine.batches == [[0, 1, 2], [1]]
    assert [await moment for moment in moments] == [1.0, 2.0, 1.0]
    assert values(answers[0]) == [1000]
    assert isinstance(answers[1], InferenceError)
    assert answers[1].__cause__ is answers[1].__context__ is None


async def test_scheduling_that_ends_by_a_bug_is_said():
    class BrokenQueue:
        queued_samples = 0

        def ready_at(self):
            raise RuntimeError("a bug")

    failed = asyncio.Event()
    async with DeviceScheduler(clock=asyncio.get_running_loop().time, on_failure=failed.set) as device:
        device.register(BrokenQueue())
        async with asyncio.timeout(1):
            await failed.wait()

    quiet = asyncio.Event()
    async with DeviceScheduler(clock=asyncio.get_running_loop().time, on_failure=quiet.set):
        await asyncio.sleep(0.1)
    assert not quiet.is_set()


async def call_again_and_again(batcher: DynamicBatcher, *, times: int, think: float) -> list[Answer]:
    """A caller that sends its next request `think` seconds after the answer to the last."""
    answers = []
    for value in range(times):
        answers.append(await batcher.infer([sample(value)]))
        await asyncio.sleep(think)
    return answers


async def test_callers_that_come_back_within_a_moment_of_one_another_come_to_ride_together():
    """On a GPU, where a batch takes no longer than one sample."""
    engine = FakeEngine(seconds=0.020)
    async with batching(engine, max_batch_size=8, latency=engine.latency()) as batcher:
        # Without a wait the first of them to come back would ride alone for ever, and all others after it.
        callers = [call_again_and_again(batcher, times=50, think=0.0005 + 0.0001 * at) for at in range(4)]
        await asyncio.gather(*callers)

    late = engine.batches[-20:-4]
    assert sum(map(len, late)) / len(late) > 3.5


async def test_a_short_run_is_not_kept_waiting_for_those_who_may_come_back():
    engine = FakeEngine(seconds=0.0003)
    async with batching(engine, max_batch_size=8, latency=engine.latency()) as batcher:
        await asyncio.gather(*(ask(batcher, value) for value in range(3)))
        answer = await ask(batcher, 9)

    assert engine.batches == [[0, 1, 2], [9]]
    assert answer.queue_seconds == 0.0


async def arrive(batcher: DynamicBatcher, values: Sequence[int], *, turns: int) -> list[asyncio.Task[Answer]]:
    """Begin a request for each value, `turns` turns of the loop apart."""
    tasks = []
    for value in values:
        tasks.append(ask(batcher, value))
        for _ in range(turns):
            await asyncio.sleep(0)
    return tasks


async def test_after_a_batch_with_company_those_who_come_within_a_few_turns_of_the_loop_ride_together():
    engine = FakeEngine()
    async with batching(engine, max_batch_size=4) as batcher:
        await asyncio.gather(ask(batcher, 98), ask(batcher, 99))
        await asyncio.gather(*await arrive(batcher, range(4), turns=TURNS_IN_COMPANY - 4))

    assert engine.batches[-1] == [0, 1, 2, 3]


async def test_nobody_waits_once_the_loop_has_nothing_else_to_do():
    engine = FakeEngine()
    async with batching(engine, max_batch_size=4) as batcher:
        first, second = await arrive(batcher, (0, 1), turns=TURNS_IN_COMPANY + 4)
        await asyncio.gather(first, second)

    assert engine.batches == [[0], [1]]
    assert first.result().queue_seconds == 0.0


class SlowTurns:
    """A clock by which each turn of the loop takes a while: it goes on at each look."""

    def __init__(self, seconds: float) -> None:
        self._looks = itertools.count()
        self._seconds = seconds

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + next(self._looks) * self._seconds


async def test_gathering_ends_when_time_is_up_however_busy_the_loop_is():
    engine, clock = FakeEngine(), SlowTurns(2 * IDLE_TURN_SECONDS)
    async with batching(engine, max_batch_size=4, device=DeviceScheduler(clock=clock)) as batcher:
        alone = ask(batcher, 0)
        began = clock()
        while not engine.batches:
            await asyncio.sleep(0)
        waited = clock() - began
        await alone

    assert 0.5 * GATHER_SECONDS <= waited <= 2 * GATHER_SECONDS


async def test_a_lone_caller_is_never_kept_waiting_for_company():
    engine = FakeEngine(seconds=0.001)
    async with batching(engine, max_batch_size=8) as batcher:
        answers = await call_again_and_again(batcher, times=2000, think=0.0)

    assert {answer.queue_seconds for answer in answers} == {0.0}


async def test_who_comes_back_without_its_company_waits_a_moment_once():
    engine = FakeEngine(seconds=0.010)
    async with batching(engine, max_batch_size=8, latency=engine.latency()) as batcher:
        first = ask(batcher, 0)
        await asyncio.sleep(0.005)
        await asyncio.gather(first, ask(batcher, 1), ask(batcher, 2))  # two of them rode together
        answers = await call_again_and_again(batcher, times=3, think=0.0)

    assert [answer.queue_seconds for answer in answers] == [pytest.approx(COMPANY_SECONDS), 0.0, 0.0]


async def test_a_request_without_time_to_spare_is_not_kept_waiting_for_company():
    engine = FakeEngine(seconds=0.001)
    async with batching(engine, max_batch_size=8, latency=engine.latency()) as batcher:
        for value in range(100):
            answer = await batcher.infer([sample(value)], deadline=now() + 0.0025)
            assert answer.queue_seconds == 0.0


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
