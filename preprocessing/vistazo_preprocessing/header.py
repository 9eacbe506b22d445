"""Header: what an image file says of itself before any pixel is decoded."""

from collections.abc import Callable
from typing import NamedTuple

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
