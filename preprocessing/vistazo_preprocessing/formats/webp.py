"""WebP files: only what pixels depend on goes on to the decoder."""

import struct
from collections.abc import Iterator
from typing import Final

from PIL import Image

from vistazo_preprocessing.effort import BoundedFile, Effort
from vistazo_preprocessing.errors import ImageError, broken
from vistazo_preprocessing.formats.header import Header
from vistazo_preprocessing.formats.orientation import upright_turn
from vistazo_preprocessing.picture import Picture

_PIXELS: Final = (b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF")
_STILL: Final = (b"VP8 ", b"VP8L")
_FLAG_ALPHA, _FLAG_ANIMATION = 0x10, 0x02

# Of each pixel: two canvases of the decoder, what it hands over, and Pillow's image. Lossless takes one more.
_LOSSY_BYTES: Final = 16
_LOSSLESS_BYTES: Final = 4


def is_webp(encoded: bytes) -> bool:
    """Return whether these bytes begin as a WebP file does."""
    return encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP"


class _WebP:
    """The parts of a WebP file that matter."""

    def __init__(self, encoded: bytes, effort: Effort) -> None:
        self.kept: list[bytes] = []
        """The chunks that pixels depend on."""
        self.canvas: tuple[int, int] | None = None
        self.flags = 0
        self.exif = b""
        self.xmp = b""
        for number, (name, begin, end) in enumerate(_chunks(encoded, effort)):
            if number == 0 and name == b"VP8X":
                self._read_extended(encoded[begin:end])
            elif name in _PIXELS:
                # Once the picture is there, what follows is none of it.
                if not self._has(*_STILL):
                    self.kept.append(encoded[begin - 8 : end])
                    self.canvas = self.canvas or _size(name, encoded[begin : begin + 10])
                if number == 0:
                    break  # the simple form is this chunk alone
            elif name == b"EXIF":
                self.exif = self.exif or encoded[begin:end]
            elif name == b"XMP ":
                self.xmp = self.xmp or encoded[begin:end]

    def _read_extended(self, data: bytes) -> None:
        if len(data) >= 10:
            self.flags, self.canvas = data[0], (_number(data[4:7]) + 1, _number(data[7:10]) + 1)

    def _has(self, *names: bytes) -> bool:
        return any(chunk[:4] in names for chunk in self.kept)

    def size(self) -> tuple[int, int]:
        """Return width and height. Raises ImageError when it is no still image, or not all there."""
        frames = sum(chunk[:4] == b"ANMF" for chunk in self.kept)
        if frames > 1:
            raise ImageError(f"expected a still image, got an animation of {frames} frames")
        if self.canvas is None or not self._has(*_STILL, b"ANMF"):
            raise broken("the file is truncated or damaged before its pixels")
        return self.canvas

    def pixel_bytes(self) -> int:
        return _LOSSY_BYTES + self._has(b"VP8L", b"ANMF") * _LOSSLESS_BYTES

    def is_opaque(self) -> bool:
        """Return whether it says that it has no alpha."""
        return not self.flags & _FLAG_ALPHA and not self._has(b"VP8L", b"ANMF")

    def clean(self, size: tuple[int, int]) -> bytes:
        """Return the file without what no pixel depends on."""
        parts = self.kept
        if self.flags or len(parts) > 1:
            flags = self.flags & (_FLAG_ALPHA | _FLAG_ANIMATION)
            dimensions = b"".join((side - 1).to_bytes(3, "little") for side in size)
            parts = [struct.pack("<4sIB3x", b"VP8X", 10, flags) + dimensions, *parts]
        padded = [piece for part in parts for piece in (part, b"\0" * (len(part) % 2))]
        return b"".join([struct.pack("<4sI4s", b"RIFF", 4 + sum(map(len, padded)), b"WEBP"), *padded])


def read_webp(encoded: bytes, effort: Effort) -> Header:
    """Return what the chunks of the file say. Raises ImageError."""
    file = _WebP(encoded, effort)
    size = file.size()
    turn = upright_turn(file.exif, file.xmp)

    def load() -> Picture:
        image = Image.open(BoundedFile(file.clean(size), effort), formats=("WEBP",))
        if image.size != size:
            raise broken("its size is not clear")
        image.load()
        return Picture(image, turn)

    mode = "RGB" if turn is None and file.is_opaque() else ""
    decode_bytes = size[0] * size[1] * file.pixel_bytes() + 3 * len(encoded)
    return Header(*size, decode_bytes, mode, load, turn)


def _chunks(encoded: bytes, effort: Effort) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks that are all there: name, and where their data begin and end."""
    at = 12
    while at + 8 <= len(encoded):
        effort.step()
        name, length = encoded[at : at + 4], int.from_bytes(encoded[at + 4 : at + 8], "little")
        begin, end = at + 8, at + 8 + length
        if end > len(encoded):
            if name in _PIXELS:
                raise broken("the file is truncated")
            return
        yield name, begin, end
        at = end + length % 2


def _size(name: bytes, data: bytes) -> tuple[int, int] | None:
    if name == b"VP8 " and data[3:6] == b"\x9d\x01\x2a" and len(data) == 10:
        return _number(data[6:8]) & 0x3FFF, _number(data[8:10]) & 0x3FFF
    if name == b"VP8L" and data[:1] == b"\x2f" and len(data) >= 5:
        bits = _number(data[1:5])
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    return None


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
