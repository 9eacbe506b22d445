"""ImageInputs: images as callers send them → samples of one model, on threads that all models share."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from vistazo_preprocessing.errors import ImageError
from vistazo_preprocessing.preprocessor import Large, Preprocessor
from vistazo_server.engine.tensors import Array
from vistazo_server.errors import InvalidImageError, OverloadedError, ServingError, without_frames
from vistazo_server.inference.preprocess_pool import PreprocessPool
from vistazo_server.telemetry import tracing

EncodedOrPixels = bytes | NDArray[np.uint8]
"""An encoded file, or uint8 H×W×C pixels."""

ImageInput = EncodedOrPixels | InvalidImageError
"""An encoded file, uint8 H×W×C pixels, or why the decoder of the request could not get either."""


TINY_VALUES: Final = 16_384
"""Pixels of so many values, before and after resizing together, are resized in at most 50 µs; to hand them to
a thread and back costs the server more than that."""

LONGEST_TINY: Final = 4
"""Sides' ratio up to which pixels can be tiny: a strip grows when its shorter edge does."""


NO_MEMORY_SECONDS: Final = 1.0
"""In which there may be memory again, where there was none for an image."""


class CheckAdmission(Protocol):
    """Whether the batcher would take a request."""

    def __call__(self, samples: int, deadline: float, *, ready_in: float) -> None:
        """Raise ServingError when so many samples, ready in so many seconds, would be refused now."""


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

        The deadline is in time.monotonic's seconds. Raises what admission raises, and what the pool does.
        """
        usable = [image for image in images if not isinstance(image, InvalidImageError)]
        made = iter(await self._made(usable, deadline) if usable else ())
        prepared: list[Array | InvalidImageError] = []
        for image in images:
            sample = image if isinstance(image, InvalidImageError) else next(made)
            if isinstance(sample, InvalidImageError):
                self._on_failure()
            elif isinstance(sample, ServingError):
                raise sample
            prepared.append(sample)
        return prepared

    async def _made(self, images: Sequence[EncodedOrPixels], deadline: float) -> list[Array | ServingError]:
        if self._are_tiny(images):
            return [self._resized(image) for image in images]
        # Before the images are decoded: under overload the CPU is for those that will be answered.
        self._check_admission(len(images), deadline, ready_in=self._pool.ready_in(len(images)))
        began = time.perf_counter()
        try:
            return await self._pool.map(self._model_input, images, deadline=deadline)
        finally:
            tracing.stage("preprocess", began, clock=time.perf_counter, images=len(images))

    def _are_tiny(self, images: Sequence[EncodedOrPixels]) -> bool:
        """Return whether the images are pixels, and so few that a change of thread would take longer."""
        values = len(images) * math.prod(self._preprocessor.shape)
        for image in images:
            if values > TINY_VALUES or not isinstance(image, np.ndarray):
                return False
            height, width, _ = image.shape
            if max(height, width) > LONGEST_TINY * min(height, width):
                return False
            values += image.size
        return values <= TINY_VALUES

    def _model_input(self, image: EncodedOrPixels, at_most: float = math.inf) -> Array | Large:
        """Return what the preprocessor makes of an image. Raises InvalidImageError."""
        try:
            return self._preprocessor.model_input(image, at_most)
        except ImageError as error:
            raise InvalidImageError(str(error)) from None
        except MemoryError:
            raise OverloadedError(
                "there is no memory left to decode the image", retry_after=NO_MEMORY_SECONDS
            ) from None

    def _resized(self, image: EncodedOrPixels) -> Array | ServingError:
        try:
            return cast("Array", self._model_input(image))
        except ServingError as error:
            return without_frames(error)
