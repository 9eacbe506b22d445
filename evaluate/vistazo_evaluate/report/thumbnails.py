"""Images as a viewer shows them, upright and on white, small enough to lie in a page."""

import base64
import io
from pathlib import Path
from typing import Final

from PIL import Image

from vistazo_preprocessing.errors import ImageError
from vistazo_preprocessing.picture import WHITE
from vistazo_preprocessing.reading import reading

LONGEST_SIDE: Final = 128
_QUALITY: Final = 85

# What the server takes by default. Decoding one image more than that is not worth a thumbnail.
_MOST_PIXELS: Final = 65_000_000
# Of a file that somebody named so.
_MOST_BYTES: Final = 128 << 20


def thumbnail(path: Path) -> str | None:
    """Return the image as a data URI, a JPEG of at most 128 pixels a side; None when it cannot be shown."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        with reading(path.read_bytes()) as image:
            pixels = image.width * image.height
            if pixels > _MOST_PIXELS:
                return None
            picture = image.load(pixels=pixels)
            shown = picture.rows(0, picture.size[1], mode="RGB", background=WHITE)
    except (OSError, ValueError, ImageError):
        return None
    encoded = io.BytesIO()
    _small(shown).save(encoded, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def _small(image: Image.Image) -> Image.Image:
    times = LONGEST_SIDE // max(image.size)
    if times > 1:
        # Tiny ones keep their pixels: JPEG would blur them into one another.
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image
