"""PreprocessPool: who gets a thread and who is refused, in virtual time; at the end, on real threads."""

import asyncio
import gc
import math
import random
import threading
import weakref
from concurrent.futures import Executor
from dataclasses import dataclass

import pytest

from support.engine import now
from vistazo_preprocessing.preprocessor import Large
from vistazo_server.errors import (
    DeadlineExceededError,
    DeadlineUnreachableError,
    DrainingError,
    InferenceError,
    InvalidImageError,
    QueueFullError,
    ServingError,
)
from vistazo_server.inference.preprocess_pool import (
    LARGE_PIXELS,
    OUTLIER,
    STRETCH,
    PreprocessPool,
    RecentRate,
)

virtual_time = pytest.mark.looptime

MEGA = 1_000_000
NO_BUDGET = 1_000_000 * MEGA
BYTES = 4
"""Of memory, that each pixel of a test takes."""


@dataclass(frozen=True)
class Picture:
    """An image of a test: takes `seconds` of a thread."""

    name: str
    seconds: float = 1.0
    pixels: int = 1000
    header_seconds: float = 0.0
    file: int = 9
    error: BaseException | None = None

    @property
    def is_large(self) -> bool:
        return self.pixels > LARGE_PIXELS


def large(name, *, megapixels=10, seconds=1.0, **rest):
    return Picture(name, seconds, int(megapixels * MEGA), **rest)


def decode(picture, at_most):
    """The work: what a Preprocessor does of an image."""
    if picture.pixels > at_most:
        return Large(picture.pixels, bytes=picture.pixels * BYTES, file_bytes=picture.file)
    if picture.error is not None:
        raise picture.error
    return picture.name


class FakeThreads(Executor):
    """Threads in the loop's time. Keeps which pictures were decoded, when, and fails beyond its bounds."""

    def __init__(self, threads, *, pixels_at_once=NO_BUDGET):
        self.decoded = []
        """In the order in which they began."""
        self.began = {}
        self.busy = []
        self.closed = False
        self._threads = threads
        self._pixels = pixels_at_once

    def submit(self, work, image, at_most, lane):
        picture = image.image
        is_header = picture.pixels > at_most
        if not is_header:
            self.decoded.append(picture.name)
            self.began[picture.name] = now()
        self.busy.append((picture, is_header))
        self._check()
        seconds = picture.header_seconds if is_header else picture.seconds
        ended = (self._end, picture, is_header, work, image, at_most, lane)
        loop = asyncio.get_running_loop()
        if seconds:
            loop.call_later(seconds, *ended)
        else:
            loop.call_soon(*ended)  # in order, which timers of the same moment are not

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.closed = True

    def _end(self, picture, is_header, work, *rest):
        self.busy.remove((picture, is_header))
        work(*rest)

    def _check(self):
        in_large = [picture.pixels for picture, is_header in self.busy if picture.is_large and not is_header]
        assert len(self.busy) <= self._threads + 1
        assert len(in_large) <= self._threads
        assert len(self.busy) - len(in_large) <= self._threads
        assert len(in_large) <= 1 or sum(in_large) <= self._pixels


def pool_of(threads=1, *, limit=1000, pixels_at_once=NO_BUDGET):
    return PreprocessPool(
        threads=threads,
        limit=limit,
        memory=pixels_at_once * BYTES,
        clock=asyncio.get_running_loop().time,
        executor=FakeThreads(threads, pixels_at_once=pixels_at_once),
    )


def begun(pool):
    return pool._executor.decoded


async def ask(pool, *pictures, deadline=math.inf):
    """Begin a request, and return its task once it waits."""
    task = asyncio.create_task(pool.map(decode, pictures, deadline=deadline))
    await asyncio.sleep(0)
    return task


async def measured(pool, picture):
    """Let the pool take the time of a picture, on its own."""
    await pool.map(decode, [picture])


def named(letter, count, make=Picture, **rest):
    return [make(f"{letter}{number}", **rest) for number in range(1, count + 1)]


# Rule 1: fair between requests.


@virtual_time
async def test_a_request_of_one_image_waits_for_one_image_of_each_other_request():
    pool = pool_of()
    many = await ask(pool, *named("a", 60))
    other = await ask(pool, *named("b", 3))
    one = await ask(pool, Picture("c"))

    assert await one == ["c"]
    assert begun(pool)[:4] == ["a1", "a2", "b1", "c"]
    assert now() == 4.0
    assert await other == ["b1", "b2", "b3"]
    assert await many == [f"a{number}" for number in range(1, 61)]
    assert pool.pending == 0


@virtual_time
async def test_a_large_image_waits_for_one_of_each_other_request():
    pool = pool_of()
    many = await ask(pool, *named("a", 20, large))
    one = await ask(pool, large("b"))

    assert await one == ["b"]
    assert begun(pool)[:3] == ["a1", "a2", "b"]
    await many


@virtual_time
async def test_results_are_in_the_order_of_the_images_whenever_they_came():
    pool = pool_of(threads=3)
    pictures = [Picture("a", 3.0), large("b", seconds=2.0), Picture("c", 1.0), large("d", seconds=0.5)]

    assert await pool.map(decode, pictures) == ["a", "b", "c", "d"]


# Rule 2: small and large images.


@virtual_time
@pytest.mark.parametrize("threads", [1, 2, 4])
async def test_large_images_leave_a_thread_to_the_small(threads):
    pool = pool_of(threads)
    flood = await ask(pool, *named("a", 10 * threads, large))
    await asyncio.sleep(0.5)
    assert len(begun(pool)) == threads

    assert await (await ask(pool, Picture("b", 0.1))) == ["b"]
    assert now() == 0.6
    await flood


@virtual_time
@pytest.mark.parametrize("threads", [1, 2, 4])
async def test_small_images_leave_a_thread_to_the_large(threads):
    pool = pool_of(threads)
    flood = await ask(pool, *named("a", 10 * threads))
    await asyncio.sleep(0.5)
    assert len(begun(pool)) == threads

    # Its header takes its turn among the small ones, after one of the flood; then it has a thread.
    assert await (await ask(pool, large("b"))) == ["b"]
    assert now() == (3.0 if threads == 1 else 2.0)
    await flood


@virtual_time
async def test_the_memory_of_large_images_in_work_stays_within_the_budget():
    pool = pool_of(threads=4, pixels_at_once=50 * MEGA)
    images = [large(f"a{number}", megapixels=number) for number in (20, 30, 10, 40, 2, 3, 4)]

    await pool.map(decode, images)

    began = pool._executor.began
    assert (began["a20"], began["a30"]) == (0.0, 0.0)
    assert (began["a10"], began["a40"]) == (1.0, 1.0)
    assert (began["a2"], began["a3"], began["a4"]) == (2.0, 2.0, 2.0)


@virtual_time
async def test_smaller_images_do_not_overtake_one_that_waits_for_the_budget():
    pool = pool_of(threads=2, pixels_at_once=50 * MEGA)
    small_ones = await ask(pool, *named("a", 50, large, megapixels=10))
    one = await ask(pool, large("b", megapixels=49))

    await one
    assert now() <= 3.0
    await small_ones


@virtual_time
async def test_an_image_that_alone_is_larger_than_the_budget_is_decoded_alone():
    pool = pool_of(threads=2, pixels_at_once=50 * MEGA)
    before = await ask(pool, large("a", megapixels=10))
    huge = await ask(pool, large("b", megapixels=80))
    after = await ask(pool, large("c", megapixels=10))

    await asyncio.gather(before, huge, after)
    assert pool._executor.began == {"a": 0.0, "b": 1.0, "c": 2.0}


# Rule 3: part of admission.


@virtual_time
async def test_while_a_thread_is_free_nothing_is_predicted():
    pool = pool_of(threads=2)
    await measured(pool, Picture("a", seconds=100.0))
    busy = await ask(pool, Picture("b"))

    assert pool.ready_in(1) == pool.ready_in(200) == 0.0
    await busy


@virtual_time
async def test_what_is_predicted_for_a_newcomer_is_what_it_takes_and_half_of_the_wait_more():
    pool = pool_of(threads=1)
    await measured(pool, Picture("a", seconds=2.0))
    flood = await ask(pool, *named("b", 60, seconds=2.0))
    other = await ask(pool, *named("c", 2, seconds=2.0))
    await asyncio.sleep(0.5)

    # What is in work, and as many of each other as it has itself.
    for images, wait in ((1, 1.5 + 4), (2, 1.5 + 8), (5, 1.5 + 14)):
        assert pool.ready_in(images) == pytest.approx(STRETCH * wait + 2.0 * images)
    began = now()
    newcomer = await ask(pool, *named("d", 5, seconds=2.0))
    await newcomer
    assert now() - began == pytest.approx(1.5 + 24)
    await asyncio.gather(flood, other)


@virtual_time
async def test_large_images_in_work_leave_the_small_fewer_threads_in_the_prediction():
    pool = pool_of(threads=2)
    large_ones = await ask(pool, *named("b", 2, large, seconds=50.0))
    await asyncio.sleep(10)  # what their headers took is forgotten
    await measured(pool, Picture("a"))
    small_ones = await ask(pool, *named("c", 10))

    assert pool.ready_in(1) == pytest.approx(STRETCH * 2 + 1)
    await small_ones
    await large_ones
    small_ones = await ask(pool, *named("d", 10))
    assert pool.ready_in(1) == pytest.approx(STRETCH * 3 / 2 + 1)
    await small_ones


@virtual_time
async def test_before_anything_was_measured_nothing_is_predicted():
    pool = pool_of()
    flood = await ask(pool, *named("a", 60))

    assert pool.ready_in(1) == 0.0
    await flood


@virtual_time
async def test_large_images_that_cannot_be_decoded_in_time_are_refused_once_their_headers_have_told():
    pool = pool_of(threads=2, pixels_at_once=50 * MEGA)
    await measured(pool, large("a", megapixels=49))

    late = await ask(pool, *named("b", 60, large, megapixels=49), deadline=now() + 20)
    with pytest.raises(
        DeadlineUnreachableError, match=r"decoded in 20\.500 s, the deadline is in 20\.0"
    ) as told:
        await late

    assert now() == 1.0
    assert begun(pool) == ["a", "b1"]
    assert told.value.retry_after == pytest.approx(0.5)
    in_time = await ask(pool, *named("c", 15, large, megapixels=49), deadline=now() + 20)
    assert len(await in_time) == 15


@virtual_time
async def test_the_wait_for_the_images_of_others_counts():
    pool = pool_of(threads=1)
    await measured(pool, large("a"))
    flood = await ask(pool, *named("b", 60, large))
    others = [await ask(pool, large(f"c{number}")) for number in range(10)]
    await asyncio.sleep(0.5)

    # Half of the one in work, one of each that waits; its own.
    needed = STRETCH * (0.5 + 11) + 1
    for seconds, is_refused in ((needed - 0.1, True), (needed + 0.1, False)):
        one = await ask(pool, large("d"), deadline=now() + seconds)
        await asyncio.sleep(0.01)
        assert one.done() is is_refused
        if is_refused:
            assert isinstance(one.exception(), DeadlineUnreachableError)
        else:
            assert await one == ["d"]
    await asyncio.gather(flood, *others)


@virtual_time
async def test_of_what_nothing_was_measured_the_first_is_tried_and_the_rest_given_up():
    pool = pool_of(threads=1)
    doomed = await ask(pool, *named("a", 60, large), deadline=now() + 20)

    with pytest.raises(DeadlineUnreachableError):
        await doomed

    assert now() == 1.0
    assert begun(pool) == ["a1"]


@virtual_time
async def test_a_request_that_is_nearly_done_is_not_given_up():
    pool = pool_of(threads=1)
    await measured(pool, large("a"))
    # The last but one takes longer than was thought: were the last like it, that would be late.
    pictures = [*named("b", 8, large), large("c", seconds=1.4), large("d")]

    assert len(await pool.map(decode, pictures, deadline=now() + 10.6)) == 10


@virtual_time
async def test_an_image_that_could_only_be_late_is_not_begun():
    pool = pool_of(threads=1)
    await measured(pool, large("a"))
    slower = await ask(pool, large("b", seconds=2.9), deadline=math.inf)
    late = await ask(pool, large("c"), deadline=now() + 3.0)

    with pytest.raises(DeadlineUnreachableError):
        await late
    assert begun(pool) == ["a", "b"]
    assert now() == pytest.approx(1.0 + 2.9)
    await slower


@virtual_time
async def test_a_slow_moment_refuses_no_large_image_of_an_idle_pool():
    pool = pool_of(threads=1)
    await measured(pool, large("a", seconds=100.0))

    for name in "bcd":
        assert await pool.map(decode, [large(name)], deadline=now() + 5.0) == [name]


@virtual_time
@pytest.mark.parametrize("factor", [8, 100])
async def test_a_slow_moment_is_forgotten_within_a_second_of_ordinary_traffic(factor):
    pool = pool_of(threads=1)
    for _ in range(20):
        await measured(pool, Picture("a", seconds=0.01))
    for _ in range(20):
        await measured(pool, Picture("b", seconds=0.01 * factor))
    for _ in range(100):
        await measured(pool, Picture("c", seconds=0.01))

    flood = await ask(pool, *named("d", 10, seconds=0.01))
    assert pool.ready_in(1) == pytest.approx(STRETCH * 0.02 + 0.01, rel=0.1 * factor / 8)
    await flood


def test_a_single_hiccup_among_many_is_not_believed():
    rate = RecentRate()
    for number in range(100):
        rate.observe(0.01, 1, now=number * 0.01)
    rate.observe(10.0, 1, now=1.0)

    assert rate.seconds(1) == pytest.approx(0.01, rel=OUTLIER / 20)


def test_what_becomes_slower_for_good_is_believed_within_a_second():
    rate = RecentRate()
    for number in range(100):
        rate.observe(0.01, 1, now=number * 0.01)
    for number in range(10):
        rate.observe(1.0, 1, now=1.0 + number * 0.1)

    assert rate.seconds(1) == pytest.approx(1.0, rel=0.3)


@pytest.mark.parametrize("pause", [0.0, 1.0, 1e3, 1e9])
def test_a_rate_holds_over_any_pause_until_something_is_measured(pause):
    rate = RecentRate()
    rate.observe(3.0, 1.5e7, now=5.0)
    assert rate.seconds(1e6) == pytest.approx(0.2)

    rate.observe(1.0, 1e7, now=5.0 + pause)
    assert 0.1 * 0.999 <= rate.seconds(1e6) <= 0.2


# The bounds.


@virtual_time
async def test_more_images_than_may_wait_are_refused_with_a_time_that_was_measured():
    pool = pool_of(threads=2, limit=10)
    await measured(pool, Picture("a"))
    waiting = await ask(pool, *named("b", 9))

    with pytest.raises(
        QueueFullError, match="9 images wait to be decoded, 4 more would pass the limit of 10"
    ) as told:
        await pool.map(decode, named("c", 4))

    assert told.value.retry_after == pytest.approx(1.5)
    # They come free two at a time, each second.
    await asyncio.sleep(told.value.retry_after + 0.6)
    assert len(await pool.map(decode, named("c", 4))) == 4
    await waiting


@virtual_time
async def test_a_request_larger_than_the_limit_is_taken_when_nothing_waits():
    pool = pool_of(limit=3)

    assert len(await pool.map(decode, named("a", 7))) == 7
    assert len(await pool.map(decode, named("b", 7, large))) == 7


@virtual_time
async def test_a_flood_of_large_images_refuses_no_small_one():
    pool = pool_of(threads=2, limit=10)
    flood = [await ask(pool, *named("a", 5, large)) for _ in range(2)]
    await asyncio.sleep(0.1)

    for name in "bcd":
        assert await pool.map(decode, [Picture(name, 0.1)]) == [name]
    assert len(await asyncio.gather(*flood)) == 2


@virtual_time
async def test_more_bytes_of_large_images_than_may_wait_are_refused():
    pool = pool_of(threads=1, pixels_at_once=40 * MEGA)
    first = await ask(pool, large("a", file=30 * MEGA))
    await asyncio.sleep(0.1)
    # A quarter of the 160 MB for decoding: what is in work counts no more, and who is alone may wait.
    second = await ask(pool, large("b", file=60 * MEGA))
    await asyncio.sleep(0.1)

    third = await ask(pool, large("c", file=10))
    with pytest.raises(QueueFullError, match="that wait to be decoded would take 57 MiB, the limit is 38"):
        await third
    assert now() == pytest.approx(0.2)
    assert (await first, await second) == (["a"], ["b"])
    assert await pool.map(decode, [large("d", file=60 * MEGA)]) == ["d"]


@virtual_time
async def test_more_large_images_than_may_wait_are_refused():
    pool = pool_of(threads=1, limit=5)
    first = await ask(pool, *named("a", 5, large))
    await asyncio.sleep(0.1)
    second = await ask(pool, large("b"))
    await asyncio.sleep(0.1)
    third = await ask(pool, *named("c", 2, large))

    with pytest.raises(QueueFullError, match="5 large images wait to be decoded, which is the limit"):
        await third
    assert now() == pytest.approx(0.2)
    assert await second == ["b"]
    assert len(await first) == 5


# Rule 4: what nobody waits for.


@virtual_time
@pytest.mark.parametrize("make", [Picture, large])
async def test_a_request_ends_at_its_deadline_and_what_had_not_begun_is_never_begun(make):
    pool = pool_of()
    late = await ask(pool, *named("a", 60, make), deadline=2.5)
    # Beside it, somebody who waits behind it.
    one = await ask(pool, *named("b", 3, make))

    with pytest.raises((DeadlineExceededError, DeadlineUnreachableError)):
        await late
    assert now() <= 2.5
    assert len(await one) == 3
    assert [name for name in begun(pool) if name.startswith("a")] in (["a1"], ["a1", "a2"])
    assert pool.pending == 0


@virtual_time
async def test_a_request_whose_images_are_all_in_work_ends_at_its_deadline_too():
    pool = pool_of(threads=2)
    late = await ask(pool, Picture("a", 100.0), Picture("b", 100.0), deadline=0.1)

    with pytest.raises(DeadlineExceededError, match=r"passed after 0\.100 s, before its images were decoded"):
        await late
    assert now() == pytest.approx(0.1)
    # What is in work cannot be stopped; it is nobody's when it ends.
    assert pool.pending == 2
    await asyncio.sleep(100)
    assert pool.pending == 0


@virtual_time
@pytest.mark.parametrize("moment", [0.0, 0.005, 0.01, 0.5, 1.0, 1.5, 2.01, 3.5])
async def test_a_caller_may_go_at_any_moment_and_the_others_do_not_notice(moment):
    pool = pool_of(threads=1)
    mixed = [picture for number in range(5) for picture in (Picture(f"a{number}"), large(f"A{number}"))]
    gone = asyncio.create_task(pool.map(decode, mixed))
    other = asyncio.create_task(
        pool.map(decode, [Picture("b1"), large("B1", header_seconds=0.01), Picture("b2")])
    )
    await asyncio.sleep(moment)
    gone.cancel()
    begun_before = list(begun(pool))

    assert await other == ["b1", "B1", "b2"]
    assert gone.cancelled()
    await asyncio.sleep(2)
    assert pool.pending == 0
    after = begun(pool)[len(begun_before) :]
    assert not [name for name in after if name[0] in "aA"]


@virtual_time
async def test_the_pool_ends_with_work_waiting_and_tells_who_waits():
    pool = pool_of(threads=2, pixels_at_once=10 * MEGA)
    large_ones = await ask(pool, *named("c", 3, large))
    in_work = await ask(pool, Picture("a", seconds=5.0))
    header = await ask(pool, large("d", header_seconds=5.0))
    waiting = await ask(pool, *named("b", 3))
    await asyncio.sleep(1.5)
    assert begun(pool) == ["c1", "a", "c2"]
    assert (large("d", header_seconds=5.0), True) in pool._executor.busy
    pool.close()

    for task in (waiting, large_ones, header):
        with pytest.raises(DrainingError, match="the server is being closed"):
            await task
    with pytest.raises(DrainingError):
        await pool.map(decode, [Picture("e")])
    assert await in_work == ["a"]
    begun_then = list(begun(pool))
    await asyncio.sleep(20)
    assert begun(pool) == begun_then
    assert pool.pending == 0
    assert pool._executor.closed


# What goes wrong with an image.


@virtual_time
async def test_one_bad_image_fails_alone():
    pool = pool_of(threads=2)
    bad = InvalidImageError("no image")
    bad_large = InvalidImageError("half an image")

    results = await pool.map(
        decode, [Picture("a"), Picture("b", error=bad), large("c", error=bad_large), large("d")]
    )

    assert results == ["a", bad, bad_large, "d"]


@virtual_time
@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), MemoryError(), SystemExit(1), asyncio.CancelledError()]
)
async def test_an_error_that_nobody_expected_ends_the_wait_and_is_no_other_callers(error):
    pool = pool_of(threads=1)
    other = await ask(pool, *named("a", 3))
    crashed = await ask(pool, Picture("b", error=error), Picture("c"))

    first, second = await crashed
    assert isinstance(first, InferenceError)
    assert "the server's log has the reason" in str(first)
    assert second == "c"
    assert await other == ["a1", "a2", "a3"]


class Held:
    """What a weak reference can be made to."""


async def test_an_error_that_a_caller_keeps_holds_no_image_and_no_frame_of_the_thread():
    pool = PreprocessPool(threads=1, limit=9, memory=MEGA)
    held = Held()
    image = weakref.ref(held)

    def fail(image, at_most):
        try:
            int(b"broken inside")
        except ValueError as error:
            raise InvalidImageError("the image cannot be decoded") from error

    try:
        (error,) = await pool.map(fail, [held])
    finally:
        pool.close()

    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    del held
    gc.collect()
    assert image() is None


# All of it together, and on real threads.


@virtual_time
@pytest.mark.parametrize("seed", range(40))
async def test_whatever_comes_everybody_is_answered_or_told_by_the_deadline(seed):
    chance = random.Random(seed)
    threads = chance.choice((1, 2, 3))
    budget = chance.choice((15, 50, 1000)) * MEGA
    pool = pool_of(threads, limit=chance.choice((20, 200)), pixels_at_once=budget)
    answered = 0

    def picture(name):
        if chance.random() < 0.3:
            return large(name, megapixels=chance.choice((2, 12, 49)), seconds=chance.choice((0.05, 0.3, 3.0)))
        return Picture(name, seconds=chance.choice((0.002, 0.01, 0.05)))

    async def caller(number):
        nonlocal answered
        await asyncio.sleep(chance.uniform(0, 5))
        images = [picture(f"{number}.{index}") for index in range(chance.choice((1, 1, 1, 2, 10, 40)))]
        deadline = now() + chance.choice((0.01, 0.1, 1.0, 10.0, math.inf))
        request = asyncio.create_task(pool.map(decode, images, deadline=deadline))
        if chance.random() < 0.1:
            asyncio.get_running_loop().call_later(chance.choice((0, 0.01, 0.3)), request.cancel)
        try:
            assert await request == [image.name for image in images]
            answered += 1
        except (asyncio.CancelledError, ServingError):
            pass
        assert now() <= deadline + 1e-6

    await asyncio.gather(*(caller(number) for number in range(60)))
    assert answered > 5
    await asyncio.sleep(5)
    assert pool.pending == 0
    # And nothing is left over that refuses anybody.
    assert pool.ready_in(1) == 0.0
    assert await pool.map(decode, [Picture("last", 0.01), large("LAST")], deadline=now() + 2) == [
        "last",
        "LAST",
    ]


@virtual_time
@pytest.mark.parametrize("make", [Picture, large])
@pytest.mark.parametrize(("load", "spread"), [(1.2, 0.6), (2, 0.3), (2, 0.6), (4, 0.3)])
async def test_under_overload_nearly_all_that_can_be_decoded_is_decoded_in_time(make, load, spread):
    chance = random.Random(5)
    threads, seconds = 2, 0.02
    pool = pool_of(threads, pixels_at_once=50 * MEGA)
    per_second, lasts, answered, late = threads / seconds, 8.0, 0, 0

    async def caller():
        nonlocal answered, late
        deadline = now() + 10 * seconds
        takes = chance.lognormvariate(math.log(seconds) - spread**2 / 2, spread)
        try:
            # What ImageInputs and the batcher do before.
            if now() + pool.ready_in(1) <= deadline:
                await pool.map(decode, [make("a", seconds=takes)], deadline=deadline)
                answered += 1
        except DeadlineUnreachableError:
            pass
        except DeadlineExceededError:
            late += 1

    callers = []
    while now() < lasts:
        await asyncio.sleep(chance.expovariate(per_second * load))
        callers.append(asyncio.create_task(caller()))
    await asyncio.gather(*callers)

    assert answered >= 0.9 * per_second * lasts
    assert late <= 0.05 * answered


async def test_real_threads_work_at_once_and_refuse_what_would_wait_too_long():
    pool = PreprocessPool(threads=1, limit=2, memory=MEGA)
    release = threading.Event()
    at_work = threading.Semaphore(0)

    def work(image, at_most):
        if image == "large" and at_most == LARGE_PIXELS:
            return Large(2 * MEGA, bytes=2 * MEGA, file_bytes=9)
        at_work.release()
        assert release.wait(30)
        return image

    try:
        tasks = [asyncio.create_task(pool.map(work, [image])) for image in ("large", "small")]
        # One thread, and one more for the other kind.
        for _ in tasks:
            assert await asyncio.to_thread(at_work.acquire, timeout=30)
        assert pool.pending == 2
        tasks.append(asyncio.create_task(pool.map(work, ["waits"])))
        await asyncio.sleep(0)
        with pytest.raises(
            QueueFullError, match="2 images wait to be decoded, 1 more would pass the limit of 2"
        ):
            await pool.map(work, ["too many"])
        release.set()

        assert await asyncio.gather(*tasks) == [["large"], ["small"], ["waits"]]
        assert pool.pending == 0
    finally:
        release.set()
        pool.close()
