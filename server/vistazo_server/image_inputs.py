"""ImageInputs: images as callers send them → samples of one model, on threads that all models share."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from vistazo_server import tracing
from vistazo_server.errors import InvalidImageError, QueueFullError
from vistazo_server.preprocess import Preprocessor
from vistazo_server.tensors import Array

ImageInput = bytes | NDArray[np.uint8] | InvalidImageError
"""An encoded file, uint8 H×W×C pixels, or why the decoder of the request could not get either."""

CheckAdmission = Callable[[int, float], None]
"""Raises ServingError when so many samples with this deadline would be refused now."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class PreprocessPool:
    """Threads that decode and resize images, shared by all models, with a bound on what waits for them."""

    def __init__(self, *, threads: int, limit: int) -> None:
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="preprocess")
        self._threads = threads
        self._limit = limit
        self._pending = 0

    @property
    def pending(self) -> int:
        """Images that wait or are being worked on."""
        return self._pending

    async def map(self, work: Callable[[_In], _Out], images: Sequence[_In]) -> list[_Out | BaseException]:
        """Return `work(image)`, or what it raised, for each image. Raises QueueFullError."""
        if self._pending and self._pending + len(images) > self._limit:
            raise QueueFullError(
                f"{self._pending} images wait to be decoded, {len(images)} more would pass the limit of "
                f"{self._limit}",
                retry_after=0.005 * self._pending / self._threads,  # a photograph takes about 5 ms
            )
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._executor, work, image) for image in images]
        for future in futures:
            self._pending += 1
            future.add_done_callback(self._done)
        return await asyncio.gather(*futures, return_exceptions=True)

    def close(self) -> None:
        """End the threads; what has not begun is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _done(self, _: object) -> None:
        self._pending -= 1


class ImageInputs:
    """Makes the samples of one model. `on_failure` is told of each image that cannot be used."""

    def __init__(
        self,
        preprocessor: Preprocessor,
        *,
        pool: PreprocessPool,
        check_admission: CheckAdmission,
        on_failure: Callable[[], None],
    ) -> None:
        self._preprocessor = preprocessor
        # No image has no shape.
        self._shape = preprocessor.shape if preprocessor.takes_pixels else None
        self._pool = pool
        self._check_admission = check_admission
        self._on_failure = on_failure

    def need_nothing(self, images: Sequence[ImageInput]) -> TypeGuard[Sequence[NDArray[np.uint8]]]:
        """Return whether the images are samples as they are."""
        shape = self._shape
        for image in images:  # noqa: SIM110  most requests are of one image, and all() costs more than that
            if not isinstance(image, np.ndarray) or image.shape != shape:
                return False
        return True

    async def prepare(
        self, images: Sequence[ImageInput], deadline: float
    ) -> Sequence[Array | InvalidImageError]:
        """Return the sample of each image, or why there is none.

        The deadline is in time.monotonic's seconds. Raises what admission raises, and QueueFullError.
        """
        # Before the images are decoded: under overload the CPU is for those that will be answered.
        self._check_admission(len(images), deadline)
        prepared: list[Array | InvalidImageError] = []
        began = time.perf_counter()
        try:
            results = await self._pool.map(self._sample, images)
        finally:
            tracing.stage("preprocess", began, clock=time.perf_counter, images=len(images))
        for result in results:
            if isinstance(result, InvalidImageError):
                self._on_failure()
                prepared.append(result)
            elif isinstance(result, BaseException):
                raise result
            else:
                prepared.append(result)
        return prepared

    def _sample(self, image: ImageInput) -> Array:
        if isinstance(image, InvalidImageError):
            raise image
        return self._preprocessor.model_input(image)
