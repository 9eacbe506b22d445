"""Image files of every kind, made in memory."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EXIF_ORIENTATION = 0x0112

# What a camera stores for each EXIF orientation: the upright picture turned by the inverse of what a viewer
# does with it.
AS_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def picture(pixels: NDArray[Any] | Image.Image) -> Image.Image:
    """Return pixels as a Pillow image."""
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)


def file(pixels: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an image as the bytes of a file; `options` are Pillow's for that format."""
    buffer = io.BytesIO()
    picture(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(pixels: NDArray[Any] | Image.Image, orientation: int, kind: str = "PNG", **options: Any) -> bytes:
    """Return a file that stores an image turned, with the EXIF orientation that turns it upright again."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    upright, turn = picture(pixels), AS_STORED[orientation]
    return file(upright if turn is None else upright.transpose(turn), kind, exif=exif, **options)


def animation(kind: str, *frames: Image.Image) -> bytes:
    """Return an animated GIF, WebP or PNG."""
    return file(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, loop=0)


def png_chunk(name: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG of a hundred bytes whose header says `width` × `height`."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            png_chunk(b"IDAT", zlib.compress(bytes(16))),
            png_chunk(b"IEND", b""),
        ]
    )


def interlaced_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return an Adam7-interlaced PNG of uint8 H×W×3 pixels. Pillow reads these but does not write them."""
    height, width, _ = pixels.shape
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = bytearray()
    for left, top, across, down in passes:
        part = pixels[top::down, left::across]
        if part.size:
            for row in part:
                rows += b"\0" + row.tobytes()
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)),
            png_chunk(b"IDAT", zlib.compress(bytes(rows))),
            png_chunk(b"IEND", b""),
        ]
    )
