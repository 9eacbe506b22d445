"""Callers that cancel: Triton's tests of them, on our batcher, in virtual time.

Ported from qa/ of triton-inference-server/server; each test names the file and function that it comes from
and what differs. What differs everywhere: the caller is a task on the batcher's own loop; that gRPC's
cancellation cancels that task is tested in tests/service. Triton's environment delays, which bring a
cancellation to a certain step, are here moments of virtual time.
"""

import asyncio

import pytest

from support.engine import FakeEngine, ask, batching, now, sample, until_queued, values, when_done
from vistazo_server.batching.batcher import Answer
from vistazo_server.batching.device import COMPANY_SECONDS
from vistazo_server.errors import DeadlineExceededError, DrainingError, InferenceError

pytestmark = pytest.mark.looptime


async def test_a_queued_request_that_is_cancelled_is_told_while_both_slots_are_taken():
    """L0_request_cancellation/scheduler_test.py, test_dynamic_batch_scheduler_request_cancellation.

    Both slots (a batch that runs, one behind it) are full, the third request is cancelled at 4 s of 10 s.
    """
    engine = FakeEngine(seconds=10.0)
    async with batching(engine, max_batch_size=2) as batcher:
        holders = [ask(batcher, 0, 1)]
        await asyncio.sleep(2.0)
        holders.append(ask(batcher, 2, 3))
        queued = ask(batcher, 4)
        await until_queued(batcher, 1)
        await asyncio.sleep(2.0)
        cancelled_at = when_done(queued)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        assert (batcher.queued_samples, batcher.in_flight) == (0, 2)
        answers = await asyncio.gather(*holders)

    assert await cancelled_at == pytest.approx(4.0)
    assert engine.batches == [[0, 1], [2, 3]]
    assert [values(answer) for answer in answers] == [[1000, 1001], [1002, 1003]]


async def test_a_cancelled_request_that_was_next_costs_no_run_and_leaves_no_gap():
    """L0_request_cancellation/scheduler_test.py, test_no_batcher_queued_request_cancellation.

    Without batches, the request that is next is cancelled: one execution less. Differs: Triton's waits in the
    rate limiter for an instance; ours is formed ahead, and who is behind it takes its place.
    """
    engine = FakeEngine()
    async with batching(engine, max_batch_size=1) as batcher:
        holder = ask(batcher, 0)
        await asyncio.sleep(0.25)
        next_one, behind = ask(batcher, 1), ask(batcher, 2)
        await until_queued(batcher, 1)
        await asyncio.sleep(0.25)
        cancelled_at = when_done(next_one)
        next_one.cancel()
        answers = await asyncio.gather(holder, behind)

    assert await cancelled_at == pytest.approx(0.5)
    assert engine.batches == [[0], [2]]
    assert engine.began == [0.0, pytest.approx(1.0)]
    assert [values(answer) for answer in answers] == [[1000], [1002]]


async def test_a_cancelled_request_is_not_run_and_the_same_one_sent_again_is():
    """L0_request_cancellation/scheduler_test.py, test_no_batcher_cancelled_request_is_not_executed_or_cached.

    Differs: there is no response cache; what must not be kept is the cancelled request itself.
    """
    engine = FakeEngine()
    async with batching(engine, max_batch_size=1) as batcher:
        holders = [ask(batcher, 10), ask(batcher, 11)]
        await until_queued(batcher, 0)
        await asyncio.sleep(0.5)
        cancelled = ask(batcher, 2)
        await until_queued(batcher, 1)
        cancelled.cancel()
        await asyncio.gather(*holders)
        assert engine.batches == [[10], [11]]
        answer = await ask(batcher, 2)

    assert cancelled.cancelled()
    assert values(answer) == [1002]
    assert engine.batches == [[10], [11], [2]]


async def test_a_cancelled_member_of_a_failed_batch_is_not_tried_again():
    """L0_request_cancellation/scheduler_test.py, test_no_batcher_cancelled_request_is_not_executed_or_cached.

    Differs: it was executed once, in a batch that failed; what is spared is the second run that its
    batch-mates get. Triton does not retry.
    """
    engine = FakeEngine()
    engine.poison = {1}
    async with batching(engine) as batcher:
        calls = [ask(batcher, value) for value in range(3)]
        await asyncio.sleep(0.5)
        calls[0].cancel()
        cancelled, guilty, innocent = await asyncio.gather(*calls, return_exceptions=True)

    assert engine.batches == [[0, 1, 2], [1], [2]]
    assert isinstance(cancelled, asyncio.CancelledError)
    assert isinstance(guilty, InferenceError)
    assert values(innocent) == [1002]


async def test_a_cancelled_request_that_was_split_takes_its_waiting_parts_with_it():
    """L0_request_cancellation/scheduler_test.py, test_ensemble_scheduler_request_cancellation.

    Differs: there are no ensembles; the children are the parts of a request that is larger than a batch. One
    runs, one is formed ahead, one waits: only the first is run.
    """
    engine = FakeEngine()
    async with batching(engine, max_batch_size=4) as batcher:
        large = ask(batcher, *range(10))
        await asyncio.sleep(0.5)
        assert batcher.queued_samples == 2
        large.cancel()
        small = await ask(batcher, 20)

    assert large.cancelled()
    assert engine.batches == [[0, 1, 2, 3], [20]]
    assert engine.began == [0.0, pytest.approx(1.0)]
    assert values(small) == [1020]


async def test_all_requests_of_a_caller_that_goes_away_are_cancelled_together():
    """L0_request_cancellation/scheduler_test.py, test_scheduler_streaming_request_cancellation.

    Thirty-two requests on one stream, which is cancelled during the first run. Differs: there are no
    sequences, so they are in batches of four and none depends on another; all end, where Triton's client sees
    one error for the stream.
    """
    engine = FakeEngine(seconds=10.0)
    async with batching(engine, max_batch_size=4) as batcher:
        stream = asyncio.gather(*(ask(batcher, value) for value in range(32)))
        await asyncio.sleep(2.0)
        assert batcher.queued_samples == 32 - 2 * 4
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream
        assert now() == pytest.approx(2.0)
        assert (batcher.queued_samples, batcher.in_flight) == (0, 0)
        answer = await ask(batcher, 99)

    assert engine.batches == [[0, 1, 2, 3], [99]]
    # The run ends 8 s later; those who rode together before are given a moment to come back.
    assert answer.queue_seconds == pytest.approx(8.0, abs=2 * COMPANY_SECONDS)


async def test_a_caller_that_cancels_during_its_run_does_not_wait_for_the_end_of_it():
    """L0_request_cancellation/grpc_cancellation_test.py, test_aio_grpc_async_infer.

    A run of 10 s, cancelled at 2 s. The run itself is not broken off: the next begins after it.
    """
    engine = FakeEngine(seconds=10.0)
    async with batching(engine) as batcher:
        running = ask(batcher, 0)
        await asyncio.sleep(2.0)
        cancelled_at = when_done(running)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        following = await ask(batcher, 1)

    assert await cancelled_at == pytest.approx(2.0)
    assert engine.began == [0.0, pytest.approx(10.0)]
    assert values(following) == [1001]


async def test_a_request_that_is_cancelled_before_its_first_step_leaves_no_trace():
    """L0_request_cancellation/grpc_cancellation_test.py, test_grpc_async_infer_cancellation_at_step_start.

    Differs: Triton looks for a new request handler in its log, ours at what is left behind.
    """
    engine = FakeEngine()
    async with batching(engine) as batcher:
        stillborn = ask(batcher, 0)
        stillborn.cancel()
        answer = await ask(batcher, 1)

    assert stillborn.cancelled()
    assert answer.batch_size == 1
    assert engine.batches == [[1]]


async def test_a_request_that_is_cancelled_as_soon_as_it_is_queued_does_not_start_a_run():
    """L0_request_cancellation/grpc_cancellation_test.py, test_grpc_async_infer_cancellation_at_step_start.

    One step later: it woke an idle device, which finds nobody when it looks.
    """
    engine = FakeEngine()
    async with batching(engine) as batcher:
        hasty = ask(batcher, 0)
        await until_queued(batcher, 1)
        hasty.cancel()
        await asyncio.sleep(0.5)
        answer = await ask(batcher, 1)

    assert hasty.cancelled()
    assert engine.batches == [[1]]
    assert engine.began == [pytest.approx(0.5)]
    assert values(answer) == [1001]


async def test_a_cancellation_at_the_very_moment_the_run_ends_leaves_the_others_their_answers():
    """L0_request_cancellation/grpc_cancellation_test.py,
    test_grpc_async_infer_response_complete_during_cancellation.

    The cancellation comes first, and is dealt with after the response is complete. Differs: it is the answers
    of the batch-mates that must survive; Triton's request is alone.
    """
    engine = FakeEngine()
    async with batching(engine) as batcher:
        loop = asyncio.get_running_loop()
        calls = [ask(batcher, value) for value in range(3)]
        loop.call_at(1.0, calls[1].cancel)  # set before the run's own timer, and so called before it
        first, cancelled, last = await asyncio.gather(*calls, return_exceptions=True)
        assert now() == pytest.approx(1.0)
        assert batcher.in_flight == 0

    assert engine.batches == [[0, 1, 2]]
    assert values(first) == [1000]
    assert isinstance(cancelled, asyncio.CancelledError)
    assert values(last) == [1002]


async def test_a_cancellation_between_the_answer_and_its_caller_leaves_the_others_theirs():
    """L0_request_cancellation/grpc_cancellation_test.py, test_grpc_async_infer_cancellation_before_finish_0.

    The response is complete and not yet taken when the cancellation comes: the first of the batch wakes up
    and cancels the second, whose rows are there.
    """
    engine = FakeEngine()
    async with batching(engine) as batcher:

        async def call_and_cancel_the_second() -> Answer:
            answer = await batcher.infer([sample(0)])
            # Both were answered in one turn of the loop, and this caller is the first to be woken.
            second.cancel()
            return answer

        calls = [asyncio.create_task(call_and_cancel_the_second())]
        second = ask(batcher, 1)
        calls += [second, ask(batcher, 2)]
        first, cancelled, last = await asyncio.gather(*calls, return_exceptions=True)
        assert (batcher.queued_samples, batcher.in_flight) == (0, 0)
        again = await ask(batcher, 1)

    assert engine.batches == [[0, 1, 2], [1]]
    assert values(first) == [1000]
    assert isinstance(cancelled, asyncio.CancelledError)
    assert values(last) == [1002]
    assert values(again) == [1001]


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("answered", id="test_simple_infer"),
        pytest.param("cancelled", id="test_simple_infer_cancellation"),
        pytest.param("timed out", id="test_simple_infer_timeout"),
        pytest.param("failed", id="test_simple_infer_error_status"),
        pytest.param("closed", id="test_simple_infer_shutdownserver"),
    ],
)
async def test_nothing_is_left_of_ten_requests_however_they_end(ending):
    """L0_grpc_state_cleanup/cleanup_test.py, five tests by parameter: as many states are released as made.

    Differs: the states are the batcher's requests and the tasks on the loop; the error is the
    engine's, not the protocol's; closing finishes what was admitted, where Triton's shutdown fails it.
    """
    engine = FakeEngine()
    tasks_before = asyncio.all_tasks()
    async with batching(engine, max_batch_size=4) as batcher:
        due = 1.5 if ending == "timed out" else 1000.0
        calls = [ask(batcher, value, deadline=due) for value in range(10)]
        await asyncio.sleep(0.5)
        if ending == "cancelled":
            for task in calls:
                task.cancel()
        elif ending == "failed":
            engine.poison = set(range(10))
        if ending != "closed":
            await asyncio.wait(calls)
            assert (batcher.queued_samples, batcher.in_flight) == (0, 0)
    results = await asyncio.gather(*calls, return_exceptions=True)
    with pytest.raises(DrainingError):
        await ask(batcher, 99)

    expected = {
        "answered": [1000 + value for value in range(10)],
        "cancelled": [asyncio.CancelledError] * 10,
        # The first batch was answered; the second ran when time was up.
        "timed out": [*range(1000, 1004), *[DeadlineExceededError] * 6],
        "failed": [InferenceError] * 10,
        "closed": [1000 + value for value in range(10)],
    }
    ended = [type(each) if isinstance(each, BaseException) else values(each)[0] for each in results]
    assert ended == expected[ending]
    assert (batcher.queued_samples, batcher.in_flight) == (0, 0)
    assert asyncio.all_tasks() == tasks_before
