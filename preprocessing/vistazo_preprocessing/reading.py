"""Reading image files that strangers send: what may be opened, and how much work a file may make."""

import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from PIL import Image, UnidentifiedImageError

from vistazo_preprocessing.errors import ImageError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP")
"""What Pillow may open. Every format more is a decoder more that strangers' bytes reach."""

# Pillow's own limit is one number for the whole process and only warns; the Preprocessor checks each
# image against its own, from the header, before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
# Pillow loads its decoders with the first image that needs one; nobody's image shall wait for that.
Image.init()

# CPU time that a thread may spend on what a file holds beside its pixels; a photograph's takes a millisecond.
# A small file can hold millions of empty chunks, or text that unpacks to gigabytes.
HEADER_SECONDS: Final = 0.05
# And on each pixel: ten times what a progressive JPEG takes, the slowest.
_PIXEL_SECONDS: Final = 500e-9
# The clock is looked at once in so many reads: a look takes a microsecond, and a read of what is made to take
# long some milliseconds at most.
_READS_BETWEEN_LOOKS: Final = 32

# Scans of a progressive JPEG. A photograph has some ten. Each goes over all pixels again, for a dozen bytes
# of the file: a megabyte could take minutes.
MOST_SCANS: Final = 100
# What a JPEG may have of other segments beside its scans.
_MOST_SEGMENTS: Final = 10_000
# Not those that stand inside a scan: a stuffed byte, a restart, a fill byte.
_JPEG_MARKER: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_SCAN: Final = b"\xff\xda"
_END: Final = b"\xff\xd9"
_WITHOUT_LENGTH: Final = (b"\xff\x01", b"\xff\xd8")

_EXIF_ORIENTATION: Final = 0x0112
# What turns an image stored in this orientation upright (Exif 2.32, tag 0x0112).
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

MOST_CHARACTERS: Final = 200
"""Of what Pillow says of a broken file, in a message."""


class EncodedImage:
    """A still image whose header was read, and no pixel yet."""

    def __init__(self, file: "_BoundedFile", image: Image.Image) -> None:
        self._file = file
        self._image = image
        self.width: Final = image.width
        self.height: Final = image.height

    def load(self, *, pixels: int) -> Image.Image:
        """Return the image upright, as a viewer shows it. It may take as long as so many pixels take."""
        self._file.allow(HEADER_SECONDS + pixels * _PIXEL_SECONDS)
        self._image.load()
        return _upright(self._image)


@contextmanager
def reading(encoded: bytes) -> Iterator[EncodedImage]:
    """Hold an encoded JPEG, PNG, WebP or BMP file, open.

    Raises ImageError, from what is done inside, too: not such a file, truncated, animated, or made to take
    long.
    """
    if not encoded:
        raise ImageError("expected an encoded image, got 0 bytes")
    try:
        file = _BoundedFile(encoded)
        with Image.open(file, formats=FORMATS) as image:
            _check_still(image)
            if image.info.get("progressive") and encoded.count(_SCAN) > MOST_SCANS:
                _check_scans(encoded)
            yield EncodedImage(file, image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"expected a JPEG, PNG, WebP or BMP file, got {len(encoded)} bytes of something else"
        ) from None
    # Pillow's decoders raise these, and few promises, for files that are broken inside.
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
    ) as error:
        told = " ".join(str(error).split())[:MOST_CHARACTERS] or type(error).__name__
        raise ImageError(f"the image cannot be decoded: {told}") from error


class _BoundedFile(io.BytesIO):
    """The bytes of an image, for as long as reading them takes no more CPU time than such a file needs."""

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self._reads = 0
        self._began = 0.0
        self._seconds = HEADER_SECONDS

    def allow(self, seconds: float) -> None:
        """Allow so many seconds of CPU time in all."""
        self._seconds = seconds

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads % _READS_BETWEEN_LOOKS == 0:
            now = time.thread_time()
            self._began = self._began or now
            if now - self._began > self._seconds:
                raise ImageError("the image takes longer to read than one of its size may")
        return super().read(size)


def _check_still(image: Image.Image) -> None:
    # Phones put a second picture (depth, HDR gain) behind the JPEG, which Pillow then calls MPO. The first
    # is the photograph.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames != 1:
        raise ImageError(f"expected a still image, got an animation of {frames} frames")


def _check_scans(jpeg: bytes) -> None:
    """Raise ImageError when the first picture of a JPEG file has more scans than MOST_SCANS."""
    scans, at = 0, 2  # behind the mark of the start
    for _ in range(_MOST_SEGMENTS):
        marker = _JPEG_MARKER.search(jpeg, at)
        if marker is None or marker[0] == _END:
            return
        scans += marker[0] == _SCAN
        if scans > MOST_SCANS:
            break
        at = marker.end()
        if marker[0] not in _WITHOUT_LENGTH:
            at += int.from_bytes(jpeg[at : at + 2])
    raise ImageError(f"expected a JPEG of at most {MOST_SCANS} scans, got one of more")


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF, and fails on what cameras put there.
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # noqa: BLE001  Pillow's reader promises nothing for garbled EXIF; the pixels are fine
        return image
    transpose = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)
