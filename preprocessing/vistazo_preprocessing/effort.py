"""Effort: how much work an image of strangers may make: its pixels, and the CPU time of reading it."""

import io
import time
from typing import Final

from vistazo_preprocessing.errors import ImageError

MAX_PIXELS: Final = 65_000_000
"""Of the largest image that is decoded, unless somebody chooses another limit: lets pass what phones of up to
64 megapixels take."""

# CPU time that a thread may spend on what a file holds beside its pixels; a photograph's takes a millisecond.
# A small file can hold millions of empty chunks.
HEADER_SECONDS: Final = 0.05
# And on each pixel: ten times what a progressive JPEG takes, the slowest.
PIXEL_SECONDS: Final = 500e-9
# The clock is looked at once in so many steps: a look takes a microsecond, and a step of what is made to take
# long some milliseconds at most.
_STEPS_BETWEEN_LOOKS: Final = 32


class Effort:
    """The CPU time that a file may take of the thread that reads it: a header's, until more is allowed."""

    def __init__(self) -> None:
        self._steps = 0
        self._began = 0.0
        self._seconds = HEADER_SECONDS

    def allow(self, *, pixels: int) -> None:
        """Allow the time that a header and so many pixels take."""
        self._seconds = HEADER_SECONDS + pixels * PIXEL_SECONDS

    def step(self) -> None:
        """Take one step, such as a read or a chunk. Raises ImageError when there were too many."""
        self._steps += 1
        if self._steps % _STEPS_BETWEEN_LOOKS == 0:
            now = time.thread_time()
            self._began = self._began or now
            if now - self._began > self._seconds:
                raise ImageError("the image takes longer to read than one of its size may")


class BoundedFile(io.BytesIO):
    """The bytes of an image, for as long as reading them takes no more CPU time than such a file needs."""

    def __init__(self, encoded: bytes, effort: Effort) -> None:
        super().__init__(encoded)
        self._effort = effort

    def read(self, size: int | None = -1, /) -> bytes:  # noqa: D102  io documents it
        self._effort.step()
        return super().read(size)
