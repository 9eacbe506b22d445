"""Which way up a photograph is, as its metadata say. What is wrong with them is no reason to refuse it."""

import re
import struct
from typing import Final

from PIL import Image

_ORIENTATION: Final = 0x0112
_INTEGERS: Final = {3: "H", 4: "I", 8: "h", 9: "i"}
"""Types of EXIF that hold an integer, and how struct reads it."""
_ENTRY_BYTES: Final = 12

_PREFIX: Final = b"Exif\0\0"
_XMP_ORIENTATION: Final = re.compile(rb'tiff:Orientation(?:=["\']|>)\s*([1-8])\b')

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


def upright_turn(exif: bytes, xmp: bytes) -> Image.Transpose | None:
    """Return what turns the image upright, by its EXIF or else its XMP; None: nothing has to be done.

    Empty bytes: it has none. Bytes that are neither are as good as none.
    """
    orientation = _in_exif(exif)
    if orientation is None:
        found = _XMP_ORIENTATION.search(xmp)
        orientation = int(found[1]) if found else None
    return None if orientation is None else _UPRIGHT.get(orientation)


def _in_exif(exif: bytes) -> int | None:
    # Only the one tag is read, so that no other that is garbled is in its way.
    while exif.startswith(_PREFIX):
        exif = exif[len(_PREFIX) :]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, at)
        for number in range(entries):
            where = at + 2 + number * _ENTRY_BYTES
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, where)
            if tag == _ORIENTATION and kind in _INTEGERS and count == 1:
                return int(struct.unpack_from(f"{order}{_INTEGERS[kind]}", exif, where + 8)[0])
    except struct.error:
        return None
    return None
