"""Reading image files that strangers send: what may be opened, and how much work a file may make."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from PIL import Image, UnidentifiedImageError

from vistazo_preprocessing.effort import Effort
from vistazo_preprocessing.errors import ImageError, broken
from vistazo_preprocessing.formats import jpeg, png
from vistazo_preprocessing.formats.bmp import SIGNATURE as BMP_SIGNATURE
from vistazo_preprocessing.formats.bmp import read_bmp
from vistazo_preprocessing.formats.header import Header
from vistazo_preprocessing.formats.recognition import not_an_image
from vistazo_preprocessing.formats.webp import is_webp, read_webp
from vistazo_preprocessing.picture import Picture, upright_size

# Every format more is a decoder more that strangers' bytes reach.

# Pillow's own limit is one number for the whole process and only warns; the Preprocessor checks each
# image against its own, from the header, before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
# Pillow loads its decoders with the first image that needs one; nobody's image shall wait for that.
Image.init()

MOST_CHARACTERS: Final = 200
"""Of what Pillow says of a broken file, in a message."""


class EncodedImage:
    """A still image whose header was read, and no pixel yet."""

    def __init__(self, header: Header, effort: Effort) -> None:
        self._effort = effort
        self._header = header
        self._load = header.load
        self.width, self.height = upright_size(header.width, header.height, header.turn)
        """Of what is decoded, upright."""
        self.decode_bytes = header.decode_bytes
        """Most memory that decoding takes."""
        self.mode: Final = header.mode
        """Pillow's of what is shown, where decoding is all that it takes; else empty."""
        self.work = self.width * self.height
        """What decoding costs of CPU time, in pixels of an image that is decoded whole."""

    def reduce(self, scale: int) -> None:
        """Decode at 1/`scale` (2, 4 or 8) of the size, where the format and the file allow that."""
        if self._header.reduced is None:
            return
        reduced = self._header.reduced(scale)
        self._load, self.decode_bytes, self.work = reduced.load, reduced.decode_bytes, reduced.work
        self.width, self.height = -(-self.width // scale), -(-self.height // scale)

    def load(self, *, pixels: int) -> Picture:
        """Return the image as a viewer shows it. It may take as long as so many pixels take."""
        self._effort.allow(pixels=pixels)
        return self._load()


@contextmanager
def reading(encoded: bytes) -> Iterator[EncodedImage]:
    """Hold an encoded JPEG, PNG, WebP or BMP file, open.

    Raises ImageError, from what is done inside, too: not such a file, truncated, animated, or made to take
    long.
    """
    try:
        effort = Effort()
        header = _header(encoded, effort)
        if min(header.width, header.height) < 1:
            raise broken(f"it says that it has {header.width}×{header.height} pixels")
        yield EncodedImage(header, effort)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise broken("its header is damaged, or of a kind that is not read") from None
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
        AssertionError,
    ) as error:
        told = " ".join(str(error).split())[:MOST_CHARACTERS] or type(error).__name__
        raise broken(told) from error


def _header(encoded: bytes, effort: Effort) -> Header:
    if encoded.startswith(jpeg.SIGNATURE):
        return jpeg.read_jpeg(encoded, effort)
    if encoded.startswith(png.SIGNATURE):
        return png.read_png(encoded, effort)
    if is_webp(encoded):
        return read_webp(encoded, effort)
    header = read_bmp(encoded, effort) if encoded.startswith(BMP_SIGNATURE) else None
    if header is None:
        raise not_an_image(encoded)
    return header
