"""Preprocessor: an image of any size and format → the array that the model takes, uint8 H×W×C as a rule.

Equal to torchvision's classification preset (`weights.transforms()`, before its normalisation) to the
bit: the same Pillow resize with the same rounding, then the same centre crop. Where an image says more
than torchvision's usual `Image.open(f).convert("RGB")` looks at, this is what happens:

- EXIF orientation is applied: the image is classified upright, as a viewer shows it.
- Transparency is dropped: the colour below it counts, as `convert("RGB")` has it.
- 16-bit grey is scaled to 8 bits; `convert` would clip nearly all of it to white.
- Animations are refused.
"""

import io
import math
import re
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vistazo_server.errors import InvalidImageError, one_line

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
_MODE: Final = {1: "L", 3: "RGB"}


class ResizeMode(Enum):
    """How an image gets to the crop's size."""

    SHORTEST_EDGE = "shortest_edge"
    STRETCH = "stretch"


class Layout(Enum):
    """The order of the dimensions of the model's input, its batch dimension included."""

    NHWC = "NHWC"
    NCHW = "NCHW"


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """What the manifest says about the model's input."""

    height: int
    """Pixels, of the crop and of the input."""
    width: int
    channels: int
    """1 (grey) or 3 (red, green, blue)."""
    resize_mode: ResizeMode
    resize_size: int
    """Pixels of the shorter edge, with SHORTEST_EDGE."""
    interpolation: Image.Resampling
    layout: Layout = Layout.NHWC
    dtype: str = "uint8"
    """uint8: the graph normalises. float32 or float16: the server does, by `mean` and `std`."""
    mean: tuple[float, ...] = ()
    """One for each channel, of values in 0 to 1."""
    std: tuple[float, ...] = ()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape of one sample of the model's input, in its layout."""
        if self.layout is Layout.NCHW:
            return (self.channels, self.height, self.width)
        return (self.height, self.width, self.channels)


@dataclass(frozen=True, slots=True)
class Large:
    """An image that was looked at and not decoded: it may be used, and has many pixels."""

    pixels: int
    """Of the image, or of what it is resized to, whichever has more."""


class Preprocessor:
    """Turns images into model input. Holds no state of a call: any thread may use it."""

    def __init__(self, spec: PreprocessSpec, *, max_pixels: int) -> None:
        self._spec = spec
        self._max_pixels = max_pixels
        self.takes_pixels = spec.layout is Layout.NHWC and spec.dtype == "uint8"
        """Whether decoded pixels of the right size are the model's input as they are."""
        # (value / 255 - mean) / std, as one product and one sum for each channel, in single precision.
        self._scale = np.array([1 / (255 * std) for std in spec.std], dtype=np.float32)
        self._shift = np.array(
            [-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)], dtype=np.float32
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of decoded pixels that need no resizing."""
        return (self._spec.height, self._spec.width, self._spec.channels)

    def model_input(
        self, image: bytes | NDArray[np.uint8], at_most: float = math.inf
    ) -> NDArray[Any] | Large:
        """Return the model's input, in its layout and dtype, for an encoded file or uint8 H×W×C pixels.

        An image of more than `at_most` pixels is not decoded and not resized: Large is returned. Raises
        InvalidImageError.
        """
        pixels = self.decode(image, at_most) if isinstance(image, bytes) else self.fit(image, at_most)
        return pixels if self.takes_pixels or isinstance(pixels, Large) else self._arranged(pixels)

    def _arranged(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Return uint8 H×W×C pixels in the model's layout and dtype."""
        spec = self._spec
        values: NDArray[Any] = pixels
        if spec.dtype != "uint8":
            values = (pixels * self._scale + self._shift).astype(spec.dtype, copy=False)
        if spec.layout is Layout.NCHW:
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values)

    def decode(self, encoded: bytes, at_most: float = math.inf) -> NDArray[np.uint8] | Large:
        """Return the pixels, uint8 H×W×C of the model's size, of an encoded JPEG, PNG, WebP or BMP file.

        Large when there would be more than `at_most` to work on. Raises InvalidImageError: not such a file,
        truncated, animated, more pixels than allowed, or made to take long.
        """
        if not encoded:
            raise InvalidImageError("expected an encoded image, got 0 bytes")
        try:
            file = _BoundedFile(encoded)
            with Image.open(file, formats=FORMATS) as image:
                _check_still(image)
                pixels = self._checked_pixels(image.width, image.height)
                if image.info.get("progressive") and encoded.count(_SCAN) > MOST_SCANS:
                    _check_scans(encoded)
                if pixels > at_most:
                    return Large(pixels)
                file.allow(HEADER_SECONDS + pixels * _PIXEL_SECONDS)
                image.load()
                return self._fit(self._upright(image))
        except InvalidImageError:
            raise
        except UnidentifiedImageError:
            raise InvalidImageError(
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
            raise InvalidImageError(
                f"the image cannot be decoded: {one_line(error, characters=200)}"
            ) from error

    def fit(self, pixels: NDArray[np.uint8], at_most: float = math.inf) -> NDArray[np.uint8] | Large:
        """Return decoded pixels, uint8 H×W×C with 1 or 3 channels, in the model's size.

        Pixels of exactly that size are returned as they are, not copied. Large when there would be more than
        `at_most` to work on. Raises InvalidImageError: more pixels than allowed.
        """
        if pixels.shape == self.shape:
            return pixels
        height, width, channels = pixels.shape
        count = self._checked_pixels(width, height)
        if count > at_most:
            return Large(count)
        return self._fit(Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels))

    def _checked_pixels(self, width: int, height: int) -> int:
        """Return how many pixels an image of this size has, itself or resized, whichever is more.

        Raises InvalidImageError when that is more than allowed.
        """
        self._check_pixels(width, height)
        if self._spec.resize_mode is ResizeMode.STRETCH:
            return width * height
        # A strip of one pixel by a million passes as small and grows here.
        resized_width, resized_height = _shortest_edge_size(width, height, self._spec.resize_size)
        self._check_pixels(resized_width, resized_height, after="after resizing, ")
        return max(width * height, resized_width * resized_height)

    def _check_pixels(self, width: int, height: int, *, after: str = "") -> None:
        if width * height > self._max_pixels:
            raise InvalidImageError(
                f"expected at most {self._max_pixels / 1e6:g} megapixels, got {after}{width}×{height} "
                f"({width * height / 1e6:.1f} megapixels)"
            )

    @staticmethod
    def _upright(image: Image.Image) -> Image.Image:
        # Not ImageOps.exif_transpose: it also rewrites the EXIF, and fails on what cameras put there.
        try:
            orientation = image.getexif().get(_EXIF_ORIENTATION)
        except Exception:  # noqa: BLE001  Pillow's reader promises nothing for garbled EXIF; the pixels are fine
            return image
        transpose = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
        return image if transpose is None else image.transpose(transpose)

    def _fit(self, image: Image.Image) -> NDArray[np.uint8]:
        spec = self._spec
        image = _to_mode(image, _MODE[spec.channels])
        if spec.resize_mode is ResizeMode.STRETCH:
            size = (spec.width, spec.height)
        else:
            size = _shortest_edge_size(image.width, image.height, spec.resize_size)
        # Pillow's bilinear and bicubic widen their support when they shrink: antialias is always on.
        resized = image if image.size == size else image.resize(size, spec.interpolation)
        cropped = _centre_crop(resized, spec.width, spec.height)
        # A copy: the array must outlive the image, and be writable for whoever batches in place.
        return np.array(cropped, dtype=np.uint8).reshape(self.shape)


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
                raise InvalidImageError("the image takes longer to read than one of its size may")
        return super().read(size)


def _check_still(image: Image.Image) -> None:
    # Phones put a second picture (depth, HDR gain) behind the JPEG, which Pillow then calls MPO. The first
    # is the photograph.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames != 1:
        raise InvalidImageError(f"expected a still image, got an animation of {frames} frames")


def _check_scans(jpeg: bytes) -> None:
    """Raise InvalidImageError when the first picture of a JPEG file has more scans than MOST_SCANS."""
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
    raise InvalidImageError(f"expected a JPEG of at most {MOST_SCANS} scans, got one of more")


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        # 16-bit grey PNGs opened as I in older Pillow; 65535 is white there.
        image = Image.fromarray((np.asarray(image).clip(0, 65535).astype(np.uint32) >> 8).astype(np.uint8))
    return image.convert(mode)


def _shortest_edge_size(width: int, height: int, edge: int) -> tuple[int, int]:
    """Width and height after the shorter edge became `edge`.

    torchvision.transforms.functional._compute_resized_image_output_size: the longer edge is truncated.
    """
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(edge * long / short)
    return (edge, new_long) if width <= height else (new_long, edge)


def _centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Crop around the centre; pad with zeros what is smaller.

    torchvision.transforms.functional.center_crop: Python's round, half to even, of half the excess;
    padding is split with the larger half to the right and below.
    """
    if image.size == (width, height):
        return image
    if image.width < width or image.height < height:
        left = max((width - image.width) // 2, 0)
        top = max((height - image.height) // 2, 0)
        padded = Image.new(image.mode, (max(width, image.width), max(height, image.height)))
        padded.paste(image, (left, top))
        image = padded
    left = round((image.width - width) / 2.0)
    top = round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))
