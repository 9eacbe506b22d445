"""The queue's bound, its timeouts and its gauge: Triton's tests of them, on ours, in virtual time.

Ported from qa/ of triton-inference-server/server; each test names the file and function that it comes from
and what differs. What differs everywhere: Triton's timeout for the queue is here the request's deadline,
which covers the answer too, and a full batch that is formed ahead of its run no longer counts as queued.
"""

import asyncio
import math

import pytest
from prometheus_client import CollectorRegistry

from support.engine import FakeEngine, ask, batching, now, until_queued, values, when_done
from vistazo_server.batching.batcher import Answer, DynamicBatcher
from vistazo_server.errors import DeadlineExceededError, QueueFullError
from vistazo_server.telemetry.metrics import Metrics, ModelMetrics

pytestmark = pytest.mark.looptime


class Scrape:
    """The metrics of one model, read as Prometheus would."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.model = ModelMetrics(Metrics(self._registry), "lenet", "1")

    def watch(self, batcher: DynamicBatcher) -> None:
        self.model.watch_queue(
            limit=batcher.queue_limit,
            samples=lambda: batcher.queued_samples,
            in_flight=lambda: batcher.in_flight,
            predicted_wait=lambda: batcher.predicted_seconds(1),
        )

    def value(self, name: str) -> float | None:
        return self._registry.get_sample_value(name, {"model": "lenet", "version": "1"})

    @property
    def pending(self) -> float | None:
        return self.value("vistazo_inference_queue_samples")

    @property
    def executions(self) -> float | None:
        return self.value("vistazo_inference_batches_total")

    @property
    def inferences(self) -> float | None:
        return self.value("vistazo_inference_samples_total")


async def test_just_those_past_the_limit_are_refused_and_at_once():
    """L0_model_queue/model_queue_test.py, test_max_queue_size.

    A batch of eight runs, ten requests come, eight may wait: two are refused. Differs: the refused are the
    last two, and are told while the batch is running; Triton's test counts them only.
    """
    engine = FakeEngine()
    async with batching(engine, max_batch_size=8, queue_limit=8) as batcher:
        running = ask(batcher, *range(100, 108))
        await asyncio.sleep(0.5)
        excess = [ask(batcher, value) for value in range(10)]
        moments = [when_done(task) for task in excess]
        results = await asyncio.gather(*excess, return_exceptions=True)
        await running

    assert [isinstance(result, QueueFullError) for result in results] == [False] * 8 + [True] * 2
    assert [await moment for moment in moments[-2:]] == [0.5, 0.5]
    assert engine.batches[1:] == [list(range(8))]


async def test_the_limit_is_of_samples_and_a_small_request_still_enters_where_a_large_one_did_not():
    """L0_model_queue/model_queue_test.py, test_max_queue_size, with requests of more than one sample.

    Differs: Triton's limit is of requests, whatever their size.
    """
    engine = FakeEngine()
    async with batching(engine, max_batch_size=8, queue_limit=8) as batcher:
        calls = [ask(batcher, 100)]
        await asyncio.sleep(0.5)
        calls.append(ask(batcher, *range(6)))
        await until_queued(batcher, 6)
        with pytest.raises(QueueFullError, match="6 samples wait, 3 more would pass the limit of 8"):
            await ask(batcher, 6, 7, 8)
        calls.append(ask(batcher, 6, 7))
        await asyncio.gather(*calls)

    assert engine.batches == [[100], list(range(8))]


async def test_who_timed_out_in_the_queue_does_not_ride_with_those_who_came_later():
    """L0_model_queue/model_queue_test.py, test_policy_reject.

    One sample times out after 0.1 s; four come at 0.2 s and leave together without it. Differs: the engine is
    busy, for an idle one would end the first one's queue delay early enough to keep its deadline.
    """
    engine = FakeEngine()
    async with batching(engine, max_batch_size=4) as batcher:
        calls = [ask(batcher, 100)]
        await until_queued(batcher, 0)
        await asyncio.sleep(0.01)
        early = ask(batcher, 0, deadline=now() + 0.1)
        rejected_at = when_done(early)
        await asyncio.sleep(0.2)
        calls += [ask(batcher, 1, 2), ask(batcher, 3, 4)]
        answers = await asyncio.gather(*calls)

    assert isinstance(early.exception(), DeadlineExceededError)
    assert await rejected_at == pytest.approx(0.11)
    assert engine.batches == [[100], [1, 2, 3, 4]]
    assert [answer.batch_size for answer in answers] == [1, 4, 4]


async def test_each_request_times_out_at_its_own_moment_whatever_the_order_of_arrival():
    """L0_model_queue/model_queue_test.py, test_timeout_override.

    Differs: there is no timeout of the queue to override, each request brings its deadline; so the later one
    may be due first. That an untimed request beside them goes on waiting is Triton's last case.
    """
    engine = FakeEngine(seconds=10.0)
    async with batching(engine, max_batch_size=8) as batcher:
        running = ask(batcher, 100)
        await asyncio.sleep(0.5)
        patient = ask(batcher, 0)
        timed = [ask(batcher, value, deadline=due) for value, due in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0))]
        moments = [when_done(task) for task in timed]
        results = await asyncio.gather(*timed, return_exceptions=True)
        waiting = batcher.queued_samples
        await asyncio.gather(running, patient)

    assert {type(result) for result in results} == {DeadlineExceededError}
    assert [await moment for moment in moments] == [pytest.approx(due) for due in (3.0, 1.0, 2.0, 2.0)]
    assert waiting == 1
    assert engine.batches == [[100], [0]]


async def test_a_timeout_that_the_queue_ends_is_said_so_to_the_caller():
    """L0_batcher/queue_timeout_test.py, test_default_queue_policy_timeout_prompt_response.

    The status and the message that the caller gets, while the device is busy. Differs: Triton says
    UNAVAILABLE, "Request timeout expired".
    """
    engine = FakeEngine(seconds=10.0)
    async with batching(engine) as batcher:
        running = ask(batcher, 0)
        await asyncio.sleep(2.0)
        with pytest.raises(DeadlineExceededError) as expired:
            await ask(batcher, 1, deadline=now() + 3.0)
        moment = now()
        await running

    assert expired.value.code.name == "DEADLINE_EXCEEDED"
    assert str(expired.value) == "the deadline passed after 3.000 s, in the queue"
    assert moment == pytest.approx(5.0)


async def test_who_timed_out_makes_room_before_the_running_batch_ends():
    """L0_batcher/queue_timeout_test.py, test_default_queue_policy_timeout_prompt_response, and its queue.

    Differs: Triton's test looks at the answer only, ours at the room that it leaves in a full queue.
    """
    engine = FakeEngine(seconds=10.0)
    async with batching(engine, queue_limit=2) as batcher:
        calls = [ask(batcher, 0)]
        await asyncio.sleep(2.0)
        expiring = ask(batcher, 1, 2, deadline=4.0)
        await asyncio.sleep(1.0)
        with pytest.raises(QueueFullError):
            await ask(batcher, 3, 4)
        await asyncio.wait([expiring])
        assert batcher.queued_samples == 0
        assert batcher.in_flight == 1
        calls.append(ask(batcher, 3, 4))
        await asyncio.gather(*calls)

    assert isinstance(expiring.exception(), DeadlineExceededError)
    assert engine.batches == [[0], [3, 4]]


async def test_the_gauge_of_a_model_without_batches_goes_down_by_one_with_each_run():
    """L0_metrics/metrics_queue_size_test.py, test_default_scheduler: ten requests, ten executions.

    Differs: 8 wait at first where Triton says 9, for the next run is formed ahead.
    """
    engine, scrape = FakeEngine(seconds=2.0), Scrape()
    async with batching(engine, max_batch_size=1, observer=scrape.model) as batcher:
        scrape.watch(batcher)
        assert scrape.pending == 0
        calls = [ask(batcher, value) for value in range(10)]
        seen = []
        for _ in range(10):
            await asyncio.sleep(1.0)
            seen.append(scrape.pending)
            await asyncio.sleep(1.0)
        await asyncio.gather(*calls)

    assert seen == [8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert (scrape.executions, scrape.inferences) == (10, 10)


async def test_the_gauge_goes_down_by_whole_batches():
    """L0_metrics/metrics_queue_size_test.py, test_dynamic_batch_scheduler: ten requests, batches of four.

    Triton's gauge steps 6, 2, 0. Differs: the four that are formed ahead do not count, so ours steps 2, 2, 0:
    the last two wait for company until the device is free.
    """
    engine, scrape = FakeEngine(seconds=2.0), Scrape()
    async with batching(engine, max_batch_size=4, queue_delay=0.5, observer=scrape.model) as batcher:
        scrape.watch(batcher)
        calls = [ask(batcher, value) for value in range(10)]
        await until_queued(batcher, 10)
        seen = [scrape.pending]
        for _ in range(3):
            await asyncio.sleep(1.0)
            seen.append(scrape.pending)
            await asyncio.sleep(1.0)
        await asyncio.gather(*calls)

    assert seen == [10, 2, 2, 0]
    assert (scrape.executions, scrape.inferences) == (math.ceil(10 / 4), 10)
    assert scrape.value("vistazo_inference_in_flight_requests") == 0


async def test_the_gauge_never_passes_the_limit_and_the_answered_and_the_refused_are_all():
    """L0_metrics/metrics_queue_size_test.py, test_fail_max_queue_size: the limit and a batch of four.

    Differs: beside the batch that runs, one is formed ahead, so four more are taken in.
    """
    engine, scrape = FakeEngine(seconds=2.0), Scrape()
    async with batching(
        engine, max_batch_size=4, queue_limit=4, queue_delay=0.5, observer=scrape.model
    ) as batcher:
        scrape.watch(batcher)
        calls = [ask(batcher, value) for value in range(4)]
        await asyncio.sleep(0.1)
        calls += [ask(batcher, value) for value in range(4, 8)]
        await asyncio.sleep(0.1)
        calls += [ask(batcher, value) for value in range(8, 14)]
        seen = []
        for _ in range(3):
            await asyncio.sleep(1.0)
            seen.append(scrape.pending)
            await asyncio.sleep(1.0)
        results = await asyncio.gather(*calls, return_exceptions=True)

    answered = [result for result in results if isinstance(result, Answer)]
    refused = [result for result in results if isinstance(result, QueueFullError)]
    assert seen == [4, 0, 0]
    assert scrape.value("vistazo_inference_queue_limit") == 4
    assert (len(answered), len(refused)) == (12, 2)
    assert (scrape.executions, scrape.inferences) == (3, 12)


async def test_a_timeout_shorter_than_the_run_ends_at_its_moment_and_the_next_request_is_served():
    """L0_client_timeout/client_infer_timeout_test.py, test_grpc_infer.

    The model takes 3 s: a timeout of 0.2 s fails, and then one of 10 s passes. Differs: nothing is known of
    the model's time, or the first would be refused at the door; its run is not broken off, and it is told
    that its time did not go by in the queue.
    """
    engine = FakeEngine(seconds=3.0)
    async with batching(engine) as batcher:
        hasty = ask(batcher, 0, deadline=0.2)
        hasty_done = when_done(hasty)
        await asyncio.wait([hasty])
        answer = await ask(batcher, 1, deadline=now() + 10.0)

    assert isinstance(hasty.exception(), DeadlineExceededError)
    assert str(hasty.exception()) == "the deadline passed after 0.200 s, while its batch ran"
    assert await hasty_done == pytest.approx(0.2)
    assert values(answer) == [1001]
    assert engine.batches == [[0], [1]]
    assert engine.began == [0.0, pytest.approx(3.0)]


async def test_a_timeout_during_the_run_is_of_one_member_and_not_of_its_batch():
    """L0_client_timeout/client_infer_timeout_test.py, test_grpc_async_infer.

    Timeouts of 2 s and of 10 s against a run of 3 s. Differs: both ride in one batch.
    """
    engine = FakeEngine(seconds=3.0)
    async with batching(engine) as batcher:
        calls = [ask(batcher, 0, deadline=2.0), ask(batcher, 1, deadline=10.0)]
        moments = [when_done(task) for task in calls]
        hasty, patient = await asyncio.gather(*calls, return_exceptions=True)

    assert engine.batches == [[0, 1]]
    assert isinstance(hasty, DeadlineExceededError)
    assert isinstance(patient, Answer)
    assert values(patient) == [1001]
    assert [await moment for moment in moments] == [pytest.approx(2.0), pytest.approx(3.0)]


async def test_one_timeout_covers_all_batches_of_a_request_and_what_has_not_begun_is_spared():
    """L0_client_timeout/client_infer_timeout_test.py, test_grpc_stream_infer.

    There the timeout is of a stream, here of a request that is split over three batches: it passes during the
    second, and the third is not run.
    """
    engine = FakeEngine()
    async with batching(engine, max_batch_size=4) as batcher:
        long = ask(batcher, *range(10), deadline=1.5)
        long_done = when_done(long)
        await asyncio.wait([long])
        answer = await ask(batcher, 20, deadline=now() + 10.0)

    assert isinstance(long.exception(), DeadlineExceededError)
    assert await long_done == pytest.approx(1.5)
    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [20]]
    assert engine.began[-1] == pytest.approx(2.0)
    assert values(answer) == [1020]
