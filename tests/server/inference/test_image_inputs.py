"""ImageInputs: what a request asks of admission and of the pool, and what it gets back."""

import asyncio
import math

import numpy as np
import pytest
from PIL import Image

from support.images import file
from support.tiny import plain
from vistazo_preprocessing.preprocessor import Preprocessor
from vistazo_preprocessing.spec import PreprocessSpec, ResizeMode
from vistazo_server.errors import (
    DeadlineExceededError,
    DeadlineUnreachableError,
    InferenceError,
    InvalidImageError,
)
from vistazo_server.inference.image_inputs import ImageInputs

SIDE = 8
PHOTO = file(plain(1, 2, 3, height=20, width=30))


class Admission:
    """Keeps what it was asked, and raises `error`."""

    def __init__(self, error=None):
        self.asked = []
        self._error = error

    def __call__(self, samples, deadline, *, ready_in):
        self.asked.append((samples, deadline, ready_in))
        if self._error is not None:
            raise self._error


class FakePool:
    """Does the work at once; predicts 0.25 s for each image."""

    def __init__(self, error=None):
        self.asked = []
        self._error = error

    def ready_in(self, images):
        return 0.25 * images

    async def map(self, work, images, *, deadline):
        self.asked.append((len(images), deadline))
        await asyncio.sleep(0)
        if self._error is not None:
            raise self._error
        results = []
        for image in images:
            try:
                results.append(work(image, math.inf))
            except InvalidImageError as error:
                results.append(error)
        return results


def inputs_of(pool, *, admission=None):
    spec = PreprocessSpec(
        height=SIDE,
        width=SIDE,
        channels=3,
        resize_mode=ResizeMode.SHORTEST_EDGE,
        resize_size=SIDE,
        interpolation=Image.Resampling.BILINEAR,
    )
    failures = []
    made = ImageInputs(
        Preprocessor(spec, max_pixels=1_000_000),
        pool=pool,
        check_admission=admission or Admission(),
        on_failure=lambda: failures.append("bad"),
    )
    return made, failures


async def test_admission_is_asked_with_the_time_at_which_the_images_will_be_ready():
    pool, admission = FakePool(), Admission()
    inputs, _ = inputs_of(pool, admission=admission)

    await inputs.prepare([PHOTO, PHOTO, PHOTO], 70.0)

    assert admission.asked == [(3, 70.0, 0.75)]
    assert pool.asked == [(3, 70.0)]


async def test_what_admission_refuses_is_not_decoded():
    pool = FakePool()
    refusal = DeadlineUnreachableError("late", retry_after=1.0)
    inputs, _ = inputs_of(pool, admission=Admission(refusal))

    with pytest.raises(DeadlineUnreachableError):
        await inputs.prepare([PHOTO], 70.0)
    assert pool.asked == []


async def test_what_the_request_itself_got_wrong_is_neither_counted_by_admission_nor_decoded():
    pool, admission = FakePool(), Admission()
    inputs, failures = inputs_of(pool, admission=admission)
    wrong = InvalidImageError("raw.channels: expected 1 or 3, got 0")

    prepared = await inputs.prepare(
        [wrong, PHOTO, b"no image", wrong, plain(7, 7, 7, height=9, width=9)], 70.0
    )

    assert admission.asked == [(3, 70.0, 0.75)]
    assert [isinstance(sample, InvalidImageError) for sample in prepared] == [True, False, True, True, False]
    assert (prepared[0], prepared[3]) == (wrong, wrong)
    np.testing.assert_array_equal(prepared[4], plain(7, 7, 7, height=SIDE, width=SIDE))
    assert len(failures) == 3


async def test_a_request_of_wrong_images_alone_asks_nobody():
    pool, admission = FakePool(), Admission()
    inputs, failures = inputs_of(pool, admission=admission)
    wrong = InvalidImageError("raw: no")

    assert await inputs.prepare([wrong], 70.0) == [wrong]
    assert (admission.asked, pool.asked, failures) == ([], [], ["bad"])


async def test_what_ends_the_wait_for_the_pool_ends_the_request():
    inputs, _ = inputs_of(FakePool(DeadlineExceededError("late")))

    with pytest.raises(DeadlineExceededError):
        await inputs.prepare([PHOTO], 70.0)


async def test_an_image_that_the_server_failed_on_fails_the_request():
    class Broken(FakePool):
        async def map(self, work, images, *, deadline):
            return [InferenceError("an image could not be prepared"), np.zeros((SIDE, SIDE, 3), np.uint8)]

    inputs, failures = inputs_of(Broken())

    with pytest.raises(InferenceError):
        await inputs.prepare([PHOTO, PHOTO], 70.0)
    assert failures == []


@pytest.mark.parametrize(
    ("shapes", "is_inline"),
    [
        ([(7, 7, 3)], True),
        ([(7, 7, 3)] * 4, True),
        ([(7, 7, 3)] * 400, False),
        ([(200, 200, 3)], False),
        ([(1, 500, 3)], False),  # a strip grows when its shorter edge does
        ([(500, 1, 3)], False),
    ],
)
async def test_pixels_that_are_few_are_resized_without_a_change_of_thread(shapes, is_inline):
    pool = FakePool()
    images = [np.full(shape, 7, dtype=np.uint8) for shape in shapes]
    source, *_ = inputs_of(pool)
    prepared = await source.prepare(images, math.inf)

    assert (pool.asked == []) is is_inline
    assert [sample.shape for sample in prepared] == [(SIDE, SIDE, 3)] * len(shapes)
