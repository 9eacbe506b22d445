"""BMP files."""

from typing import Final

from PIL import Image, UnidentifiedImageError

from vistazo_preprocessing.effort import BoundedFile, Effort
from vistazo_preprocessing.errors import broken
from vistazo_preprocessing.formats.header import Header
from vistazo_preprocessing.picture import Picture

SIGNATURE: Final = b"BM"


def read_bmp(encoded: bytes, effort: Effort) -> Header | None:
    """Return what the header says; None: two letters were all that it has of a BMP."""
    try:
        image = Image.open(BoundedFile(encoded, effort), formats=("BMP",))
    except UnidentifiedImageError:
        return None
    if min(image.size) < 1:
        raise broken("it has no pixels")
    width, height = image.size

    def load() -> Picture:
        image.load()
        # Programs leave 0 in the fourth byte, and mean nothing by it: viewers show such a file.
        nothing_shows = image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)
        return Picture(image, is_opaque=nothing_shows)

    pixel = 1 if image.mode in ("1", "L", "P") else 4
    return Header(width, height, width * height * pixel, image.mode, load)
