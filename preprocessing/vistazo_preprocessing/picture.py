"""Picture: a decoded image as a viewer shows it: upright, and without transparency, on a background."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITE: Final = (255, 255, 255)

_SIDEWAYS: Final = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
)
"""These make rows of columns."""
_FROM_THE_END: Final = (
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_90,
    Image.Transpose.TRANSVERSE,
)
"""These make the first row of the last row or column."""
_FROM_THE_RIGHT: Final = (
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
)
"""These make the first column of the last column or row."""

_WITH_ALPHA: Final = ("RGBA", "LA", "PA")


_Side = TypeVar("_Side", int, float)


def upright_size(width: _Side, height: _Side, turn: Image.Transpose | None) -> tuple[_Side, _Side]:
    """Return the width and height of a stored image when `turn` has turned it upright."""
    return (height, width) if turn in _SIDEWAYS else (width, height)


@dataclass(frozen=True, slots=True)
class ColourKey:
    """The one colour of a PNG that is transparent (tRNS of grey and true colour)."""

    values: tuple[int, ...]
    """One for each channel, in the range of the stored samples."""
    low: Image.Image | None = None
    """Of 16-bit colour, whose upper halves are the image: the lower halves."""

    def opaque(self, image: Image.Image, low: Image.Image | None) -> Image.Image:
        """Return a mask: 0 where `image` has the colour, 255 elsewhere."""
        stored: NDArray[np.uint16] = np.asarray(image).astype(np.uint16)
        if low is not None:
            stored = (stored << 8) | np.asarray(low)
        differs = stored != np.array(self.values, dtype=np.uint16)
        if differs.ndim == 3:
            differs = differs.any(axis=2)
        return Image.fromarray(differs.astype(np.uint8) * np.uint8(255))


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image, as it is stored, and what makes of it what a viewer shows."""

    image: Image.Image
    turn: Image.Transpose | None = None
    """What turns it upright."""
    key: ColourKey | None = None
    is_opaque: bool = False
    """Whether what seems to be its alpha is none."""
    extent: tuple[float, float] | None = None
    """Width and height of what is shown, as stored, where the last column and row are shown in part; None:
    all of the image is."""
    size: tuple[int, int] = field(init=False)
    """Width and height, upright."""

    def __post_init__(self) -> None:
        width, height = self.image.size
        object.__setattr__(self, "size", upright_size(width, height, self.turn))

    @property
    def mode(self) -> str:
        """Pillow's mode of the image where it is shown as it is stored; else empty."""
        is_plain = self.turn is None and self.key is None and self.image.mode in ("L", "RGB")
        return self.image.mode if is_plain else ""

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """Left, top, right and bottom, upright, of what is shown; None: all of the image is."""
        if self.extent is None:
            return None
        across, down = upright_size(*self.extent, self.turn)
        width, height = self.size
        left = width - across if self.turn in _FROM_THE_RIGHT else 0
        top = height - down if self.turn in _FROM_THE_END else 0
        return (left, top, left + across, top + down)

    def rows(self, top: int, bottom: int, *, mode: str, background: Sequence[int]) -> Image.Image:
        """Return some rows of the upright image in `mode`, L or RGB, laid on `background` (RGB)."""
        box = self._box(top, bottom)
        strip = self._part(self.image, box)
        if self.key is not None:
            low = None if self.key.low is None else self._part(self.key.low, box)
            return _laid(in_mode(strip, "RGB"), self.key.opaque(strip, low), mode, background)
        if strip.mode == "PA" or (strip.mode == "P" and "transparency" in strip.info):
            strip = strip.convert("RGBA")
        if strip.mode in _WITH_ALPHA and not self.is_opaque:
            return _laid(strip, strip, mode, background)
        return in_mode(strip, mode)

    def _box(self, top: int, bottom: int) -> tuple[int, int, int, int]:
        """Return where in the stored image the rows of the upright image are."""
        width, height = self.image.size
        end = self.size[1]
        if self.turn in _FROM_THE_END:
            top, bottom = end - bottom, end - top
        return (top, 0, bottom, height) if self.turn in _SIDEWAYS else (0, top, width, bottom)

    def _part(self, image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        strip = image if box == (0, 0, *image.size) else image.crop(box)
        return strip if self.turn is None else strip.transpose(self.turn)


def _laid(image: Image.Image, alpha: Image.Image, mode: str, background: Sequence[int]) -> Image.Image:
    """Return the image on the background: (colour × alpha + background × (255 - alpha)) / 255, rounded.

    Pillow's paste is that to the bit. It is done in colour, and grey is made of the result.
    """
    laid = Image.new("RGB", image.size, tuple(background))
    laid.paste(image, (0, 0), alpha)
    return laid if mode == "RGB" else laid.convert(mode)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in `mode`, L or RGB, whatever its transparency."""
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        # 16-bit grey PNGs opened as I in older Pillow; 65535 is white there.
        image = Image.fromarray((np.asarray(image).clip(0, 65535).astype(np.uint32) >> 8).astype(np.uint8))
    return image.convert(mode)
