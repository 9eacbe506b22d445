"""Preprocessor: an image of any size and format → the array that the model takes, uint8 H×W×C as a rule.

Equal to torchvision's classification preset (`weights.transforms()`, before its normalisation), to timm's
transform and to transformers' processors with Pillow, to the bit: the same Pillow resize with the same
rounding, then the same centre crop. Where an image says more
than torchvision's usual `Image.open(f).convert("RGB")` looks at, this is what happens:

- EXIF orientation is applied: the image is classified upright, as a viewer shows it.
- Transparency of every kind is laid on a background, white unless the spec names another, as a viewer
  shows it; `convert("RGB")` would show the colour that happens to be below it, often black.
- 16-bit grey is scaled to 8 bits; `convert` would clip nearly all of it to white.
- Animations are refused.

Where the spec says so, a JPEG much larger than needed is decoded at a fraction of its size, which saves most
of the time. The rest is the same: the size that it is resized to follows from that of all its pixels.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vistazo_preprocessing.errors import ImageError
from vistazo_preprocessing.geometry import centre_crop, crop_origin, ratio_size, shortest_edge_size
from vistazo_preprocessing.picture import WHITE, Picture
from vistazo_preprocessing.reading import EncodedImage, reading
from vistazo_preprocessing.spec import JpegDecoding, Layout, PreprocessSpec, ResizeMode

_MODE: Final = {1: "L", 3: "RGB"}

# At which a JPEG can be decoded, 1/8 first, and how many times its new size it must have then.
_REDUCTIONS: Final = (8, 4, 2)
_REDUCED_LEAST: Final = 2

# How a small image can become one of more pixels than the model takes.
_GROWING: Final = (ResizeMode.SHORTEST_EDGE, ResizeMode.COVER)

# A picture is turned and laid on its background in strips of about so many pixels, or each step would take as
# much memory again as all of it.
_STRIP_PIXELS: Final = 1 << 18
# Of each pixel of a strip: as stored, turned, on its background, and what comes between.
_STRIP_BYTES: Final = 24
# Of a pixel in Pillow.
_PIXEL_BYTES: Final = {1: 1, 3: 4}


Size = tuple[int, int]
"""Width and height, upright, in pixels."""


@dataclass(frozen=True, slots=True)
class Large:
    """An image that was looked at and not decoded: it may be used, and has many pixels."""

    pixels: int
    """Of the image, or of what it is resized to, whichever has more. A JPEG that is decoded at a fraction of
    its size counts as many as would be as much work."""
    bytes: int
    """Most memory that decoding and resizing it takes."""
    file_bytes: int
    """As it was sent."""


class Decoded(NamedTuple):
    """A decoded image, and what it is to become."""

    picture: Picture
    size: Size
    """That it is to be resized to."""


class Preprocessor:
    """Turns images into model input. Holds no state of a call: any thread may use it."""

    def __init__(self, spec: PreprocessSpec, *, max_pixels: int, max_bytes: float = math.inf) -> None:
        self._spec = spec
        self._max_pixels = max_pixels
        self._max_bytes = max_bytes
        self._background = spec.background * 3 if len(spec.background) == 1 else spec.background or WHITE
        self.takes_pixels = spec.layout is Layout.NHWC and spec.dtype == "uint8" and not spec.bgr
        """Whether decoded pixels of the right size are the model's input as they are."""
        # (value / 255 * range - mean) / std, as one product and one sum a channel, in single precision.
        self._scale = np.array([spec.value_range / (255 * std) for std in spec.std], dtype=np.float32)
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

        An image of more than `at_most` pixels, as Large counts them, is not decoded and not resized: Large
        is returned. Raises ImageError.
        """
        pixels = self.decode(image, at_most) if isinstance(image, bytes) else self.fit(image, at_most)
        return pixels if self.takes_pixels or isinstance(pixels, Large) else self._arranged(pixels)

    def _arranged(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Return uint8 H×W×C pixels in the model's layout and dtype."""
        spec = self._spec
        values: NDArray[Any] = pixels[:, :, ::-1] if spec.bgr else pixels
        if spec.dtype != "uint8":
            values = (values * self._scale + self._shift).astype(spec.dtype, copy=False)
        if spec.layout is Layout.NCHW:
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values)

    def decode(self, encoded: bytes, at_most: float = math.inf) -> NDArray[np.uint8] | Large:
        """Return the pixels, uint8 H×W×C of the model's size, of an encoded JPEG, PNG, WebP or BMP file.

        Large when there would be more than `at_most` to work on. Raises ImageError: not such a file,
        truncated, animated, more pixels than allowed, or made to take long.
        """
        with reading(encoded) as image:
            decoded = self._decoded(image, len(encoded), at_most)
            return decoded if isinstance(decoded, Large) else self.finish(decoded)

    def load(self, encoded: bytes) -> Decoded:
        """Return an encoded file decoded, as far as `decode` does it first. Raises ImageError."""
        with reading(encoded) as image:
            decoded = self._decoded(image, len(encoded), math.inf)
        # Nothing is larger than infinity.
        return cast("Decoded", decoded)

    def finish(self, decoded: Decoded) -> NDArray[np.uint8]:
        """Return the pixels of a decoded image, resized and cropped: what `decode` does then."""
        return self._fit(decoded.picture, decoded.size)

    def _decoded(self, image: EncodedImage, file_bytes: int, at_most: float) -> Decoded | Large:
        size = (image.width, image.height)
        resized = self._resized_size(*size)
        whole = self._checked_pixels(size, resized)
        reduction = self._reduction(size, resized)
        if reduction > 1:
            image.reduce(reduction)
        size = (image.width, image.height)
        memory = self._checked_memory(size, resized, image.decode_bytes, image.mode)
        work = max(image.work, _most_pixels(size, resized))
        if work > at_most:
            return Large(work, memory, file_bytes)
        return Decoded(image.load(pixels=whole), resized)

    def fit(self, pixels: NDArray[np.uint8], at_most: float = math.inf) -> NDArray[np.uint8] | Large:
        """Return decoded pixels, uint8 H×W×C, in the model's size.

        C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha, not premultiplied). Pixels of exactly
        the model's shape are returned as they are, not copied. Large when there would be more than `at_most`
        to work on. Raises ImageError: more pixels than allowed.
        """
        if pixels.shape == self.shape:
            return pixels
        height, width, channels = pixels.shape
        resized = self._resized_size(width, height)
        count = self._checked_pixels((width, height), resized)
        memory = self._checked_memory((width, height), resized, 4 * width * height, "")
        if count > at_most:
            return Large(count, memory, pixels.nbytes)
        return self._fit(Picture(Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)), resized)

    def _reduction(self, size: Size, resized: Size) -> int:
        """Return 2, 4 or 8 where a JPEG of `size` is to be decoded at 1/2, 1/4 or 1/8 of it, else 1."""
        if self._spec.jpeg_decoding is JpegDecoding.REDUCED:
            for scale in _REDUCTIONS:
                least = _REDUCED_LEAST * scale
                if size[0] >= least * resized[0] and size[1] >= least * resized[1]:
                    return scale
        return 1

    def _checked_pixels(self, size: Size, resized: Size) -> int:
        """Return how many pixels an image of this size has: itself, half resized or resized, the most.

        Raises ImageError when that is more than allowed.
        """
        self._check_pixels(*size)
        # A strip of one pixel by a million passes as small and grows here.
        if self._spec.resize_mode in _GROWING:
            self._check_pixels(*resized, after="after resizing, ")
        # The width is resized before the height.
        self._check_pixels(resized[0], size[1], after="half resized, ")
        return _most_pixels(size, resized)

    def _checked_memory(self, size: Size, resized: Size, decode_bytes: int, mode: str) -> int:
        """Return the most memory that an image of this size, as it is decoded, takes with its resizing.

        Raises ImageError when that is more than there is for all images.
        """
        (width, height), (resized_width, resized_height) = size, resized
        pixels = resized_width * (height + resized_height)
        if mode != _MODE[self._spec.channels]:
            pixels += width * height
        strip = max(width, height, _STRIP_PIXELS) * _STRIP_BYTES
        memory = decode_bytes + pixels * _PIXEL_BYTES[self._spec.channels] + strip
        if memory > self._max_bytes:
            raise ImageError(
                f"expected an image that takes at most {self._max_bytes / 2**20:.0f} MiB to decode, got "
                f"{width}×{height} pixels that take {memory / 2**20:.0f} MiB; "
                "the server's --decode-memory-mb can allow more"
            )
        return memory

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that an image of this size has between resizing and cropping."""
        spec = self._spec
        if spec.resize_mode is ResizeMode.SHORTEST_EDGE:
            return shortest_edge_size(width, height, spec.resize_size)
        if spec.resize_mode is ResizeMode.STRETCH:
            return (spec.resize_width or spec.width, spec.resize_height or spec.height)
        if spec.resize_mode is ResizeMode.NO_RESIZE:
            return (width, height)
        cover = spec.resize_mode is ResizeMode.COVER
        return ratio_size(width, height, spec.resize_width, spec.resize_height, cover=cover)

    def _check_pixels(self, width: int, height: int, *, after: str = "") -> None:
        if width * height > self._max_pixels:
            raise ImageError(
                f"expected at most {self._max_pixels / 1e6:g} megapixels, got {after}{width}×{height} "
                f"({width * height / 1e6:.1f} megapixels)"
            )

    def _fit(self, picture: Picture, size: Size) -> NDArray[np.uint8]:
        """Return the picture's pixels, resized to `size` and cropped."""
        spec = self._spec
        if picture.box is not None and self._is_cut_alone(size):
            cropped = self._resized_cut(picture, picture.box, size)
        else:
            cropped = centre_crop(
                self._resized(picture, size),
                spec.width,
                spec.height,
                fill=spec.pad_color,
                down=spec.crop_rounds_down,
            )
        # A copy: the array must outlive the image, and be writable for whoever batches in place.
        return np.array(cropped, dtype=np.uint8).reshape(self.shape)

    def _is_cut_alone(self, size: Size) -> bool:
        """Return whether what the crop leaves can be resized alone: nothing is padded, and it is a filter."""
        spec = self._spec
        is_filter = spec.interpolation is not Image.Resampling.NEAREST
        return is_filter and size[0] >= spec.width and size[1] >= spec.height

    def _resized_cut(
        self, picture: Picture, box: tuple[float, float, float, float], size: Size
    ) -> Image.Image:
        """Return what the crop leaves of a reduced picture that is resized to `size`, and resize no more.

        It saves two fifths of the resizing. Pillow rounds a part's edges to single precision, so a value may
        differ by 1 from that of the whole: too much for what is to be exact, far less than reducing does.
        """
        spec = self._spec
        left, top = crop_origin(size, spec.width, spec.height, down=spec.crop_rounds_down)
        across, down = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]
        x, y = box[0] + left * across, box[1] + top * down
        part = (x, y, x + spec.width * across, y + spec.height * down)
        return self._shown(picture).resize((spec.width, spec.height), spec.interpolation, box=part)

    def _resized(self, picture: Picture, size: Size) -> Image.Image:
        image = self._shown(picture)
        # Pillow's bilinear and bicubic widen their support when they shrink: antialias is always on.
        return image if image.size == size else image.resize(size, self._spec.interpolation, box=picture.box)

    def _shown(self, picture: Picture) -> Image.Image:
        """Return the picture in the model's mode."""
        mode = _MODE[self._spec.channels]
        if picture.mode == mode:
            return picture.image
        width, height = picture.size
        step = max(_STRIP_PIXELS // width, 1)
        if step >= height:
            return picture.rows(0, height, mode=mode, background=self._background)
        shown = Image.new(mode, picture.size)
        for top in range(0, height, step):
            strip = picture.rows(top, min(top + step, height), mode=mode, background=self._background)
            shown.paste(strip, (0, top))
        return shown


def _most_pixels(size: Size, resized: Size) -> int:
    """Return the pixels of an image as it is, half resized or resized, whichever are the most."""
    return max(size[0] * size[1], resized[0] * size[1], resized[0] * resized[1])
