"""Header: what an image file says of itself before any pixel is decoded."""

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

from vistazo_preprocessing.picture import Picture


class Header(NamedTuple):
    """A still image whose header was read, and no pixel yet."""

    width: int
    """As stored: an orientation may turn it on its side."""
    height: int
    decode_bytes: int
    """Most memory that decoding takes, the result and a copy of the file included."""
    mode: str
    """Pillow's of the result; empty: more is to be done than to decode it, such as to turn it."""
    load: Callable[[], Picture]
    """Decodes it. Raises ImageError, and what Pillow does."""
    turn: Image.Transpose | None = None
    """What turns it upright."""
    reduced: "Callable[[int], Reduced] | None" = None
    """Returns how it is decoded at 1/2, 1/4 or 1/8 of its size; None: it cannot be."""


class Reduced(NamedTuple):
    """How an image is decoded at a fraction of its size. Each edge is rounded up."""

    decode_bytes: int
    """Most memory that it takes, the result and a copy of the file included."""
    work: int
    """What it costs of CPU time: as much as so many pixels of an image that is decoded whole."""
    load: Callable[[], Picture]
    """Decodes it. Raises ImageError, and what Pillow does."""
