"""PNG files: only what pixels depend on goes on to the decoder, checked by its checksums.

A PNG can carry text, profiles, dates and previews, of any size once unpacked. They are skipped, not unpacked:
they can be as large or as broken as they like. What pixels depend on is refused when its checksum is wrong.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from PIL import Image, ImageFile

from vistazo_preprocessing.effort import BoundedFile, Effort
from vistazo_preprocessing.errors import ImageError, broken
from vistazo_preprocessing.formats.header import Header
from vistazo_preprocessing.formats.orientation import upright_turn
from vistazo_preprocessing.picture import ColourKey, Picture

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

_END: Final = b"\0\0\0\0IEND\xae\x42\x60\x82"
_NAME: Final = re.compile(rb"[A-Za-z]{4}")
_GREY, _COLOUR, _PALETTE = 0, 2, 3

# Of Pillow's image, by depth and colour type. All others are of four.
_PIXEL_BYTES: Final = {(1, 0): 1, (2, 0): 1, (4, 0): 1, (8, 0): 1, (16, 0): 2} | {
    (depth, _PALETTE): 1 for depth in (1, 2, 4, 8)
}

# Chunks that no pixel depends on. A damaged chunk of another name may have been one that pixels do depend on.
_KNOWN: Final = frozenset(
    b"tEXt zTXt iTXt iCCP eXIf gAMA cHRM sRGB sBIT bKGD hIST pHYs sPLT tIME cICP mDCV mDCv cLLI cLLi oFFs "
    b"pCAL sCAL sTER dSIG gIFg gIFx gIFt fRAc iDOT acTL fcTL fdAT".split()
)

# Of a text that may tell the orientation.
_MOST_TEXT: Final = 1 << 20
_EXIF_TEXT: Final = b"Raw profile type exif"
_XMP_TEXT: Final = b"XML:com.adobe.xmp"


class _Chunk(NamedTuple):
    name: bytes
    begin: int
    """Of its length, in the file."""
    data: memoryview
    checksum: int

    @property
    def is_whole(self) -> bool:
        return zlib.crc32(self.data, zlib.crc32(self.name)) == self.checksum


class _Frames:
    """How many pictures there are: an animation says so before its first data (APNG)."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._controls = 0

    def read(self, chunk: _Chunk) -> None:
        if chunk.name == b"acTL" and len(chunk.data) >= 8 and chunk.is_whole:
            self._counts.append(int.from_bytes(chunk.data[:4]))
        self._controls += chunk.name == b"fcTL"

    def check_still(self) -> None:
        """Raise ImageError when there is more than one."""
        # What contradicts itself is a still image with something beside it, as viewers have it.
        if len(self._counts) == 1 and 0 < self._counts[0] <= 1 << 31:
            # Without a control the picture that old viewers show is none of the animation's.
            frames = self._counts[0] + (self._controls == 0)
            if frames > 1:
                raise ImageError(f"expected a still image, got an animation of {frames} frames")


class _Metadata:
    """What may tell the orientation; the first of each counts."""

    def __init__(self) -> None:
        self.exif = b""
        self.xmp = b""
        self._exif_text = b""

    def read(self, chunk: _Chunk) -> None:
        if chunk.name == b"eXIf" and not self.exif and chunk.is_whole:
            self.exif = bytes(chunk.data)
        elif chunk.name in (b"tEXt", b"zTXt") and not self._exif_text:
            self._exif_text = _text(chunk, _EXIF_TEXT)
        elif chunk.name == b"iTXt" and not self.xmp:
            self.xmp = _text(chunk, _XMP_TEXT)

    def turn(self) -> Image.Transpose | None:
        return upright_turn(self.exif or _raw_profile(self._exif_text), self.xmp)


class _Png:
    """The parts of a PNG file that matter."""

    def __init__(self, encoded: bytes, effort: Effort) -> None:
        self._encoded = encoded
        self._effort = effort
        self._metadata = _Metadata()
        self._palette = b""
        self._transparency = b""
        self._chunks = self._read(len(SIGNATURE))
        header = next(self._chunks, None)
        if header is not None and header.name == b"CgBI":
            raise broken("Apple's tools for apps have changed the PNG (CgBI); send the original")
        if header is None or header.name != b"IHDR" or len(header.data) < 13 or not header.is_whole:
            raise broken("the header of the PNG (IHDR) is damaged")
        self._ihdr = bytes(header.data)
        self.width, self.height, self._depth, self._type = struct.unpack_from(">IIBB", self._ihdr)
        self._pixels = [self._up_to_pixels(), *self._rest_of_pixels()]
        self._turn = self._metadata.turn()

    def _read(self, at: int) -> Iterator[_Chunk]:
        """Yield the chunks from `at` on that are all there."""
        view, end = memoryview(self._encoded), len(self._encoded)
        while at + 12 <= end:
            self._effort.step()
            length = int.from_bytes(view[at : at + 4])
            name, data = bytes(view[at + 4 : at + 8]), at + 8
            if data + length + 4 > end or not _NAME.fullmatch(name):
                return
            checksum = int.from_bytes(view[data + length : data + length + 4])
            yield _Chunk(name, at, view[data : data + length], checksum)
            at = data + length + 4

    def _up_to_pixels(self) -> _Chunk:
        """Return the first chunk of pixels, and take note of what stands before it."""
        frames = _Frames()
        for chunk in self._chunks:
            if chunk.name == b"IDAT":
                frames.check_still()
                if self._type == _PALETTE and not self._palette:
                    raise broken("the PNG has no palette (PLTE)")
                return chunk
            if chunk.name == b"PLTE" and self._type == _PALETTE:
                self._palette = bytes(_whole(chunk))
            elif chunk.name == b"tRNS" and self._type in (_GREY, _COLOUR, _PALETTE):
                self._transparency = self._transparency or self._usable_transparency(bytes(_whole(chunk)))
            elif chunk.name in (b"PLTE", b"tRNS"):
                pass  # a suggestion, or what this type cannot have
            else:
                _check_unknown(chunk)
                frames.read(chunk)
                self._metadata.read(chunk)
        # An animation may hold its frames alone.
        frames.check_still()
        raise broken("the file is truncated or damaged before its pixels (IDAT)")

    def _rest_of_pixels(self) -> list[_Chunk]:
        """Return the chunks of pixels that follow the first, and take note of what stands behind them."""
        pixels, ended = [], False
        for chunk in self._chunks:
            if chunk.name == b"IDAT" and not ended:
                pixels.append(chunk)
                continue
            ended = True
            if chunk.name == b"IEND":
                break
            self._metadata.read(chunk)
        return pixels

    def _usable_transparency(self, data: bytes) -> bytes:
        """Return what tRNS says, or nothing where its length is wrong: viewers then show all as opaque."""
        if self._type == _PALETTE:
            return data if len(data) <= len(self._palette) // 3 else b""
        return data if len(data) == (2 if self._type == _GREY else 6) else b""

    @property
    def _has_low_halves(self) -> bool:
        """Whether the transparent colour has 16-bit channels, of which Pillow keeps the upper halves."""
        return self._depth == 16 and self._type == _COLOUR and bool(self._transparency)

    def header(self) -> Header:
        pixel = _PIXEL_BYTES.get((self._depth, self._type), 4) * (1 + self._has_low_halves)
        is_plain = self._turn is None and not self._transparency and self._depth >= 8
        grey = "L" if self._depth == 8 else ""
        mode = {_GREY: grey, _COLOUR: "RGB"}.get(self._type, "") if is_plain else ""
        decode_bytes = self.width * self.height * pixel + len(self._encoded)
        return Header(self.width, self.height, decode_bytes, mode, self.load, self._turn)

    def load(self) -> Picture:
        parts = [SIGNATURE, *_written(b"IHDR", self._ihdr)]
        if self._type == _PALETTE:
            parts += _written(b"PLTE", self._palette)
            if self._transparency:
                parts += _written(b"tRNS", self._transparency)
        # Pillow reads no checksum of the pixels.
        pixels = [_whole(chunk) for chunk in self._pixels]
        begin = struct.pack(">I4s", sum(len(part) for part in pixels), b"IDAT")
        clean = b"".join([*parts, begin, *pixels, b"\0\0\0\0", _END])
        image = self._opened(clean)
        image.load()
        return Picture(image, self._turn, self._key(clean))

    def _opened(self, clean: bytes) -> ImageFile.ImageFile:
        return Image.open(BoundedFile(clean, self._effort), formats=("PNG",))

    def _key(self, clean: bytes) -> ColourKey | None:
        if self._type == _PALETTE or not self._transparency:
            return None
        samples = struct.unpack(f">{len(self._transparency) // 2}H", self._transparency)
        most = (1 << self._depth) - 1
        values = tuple(sample & most for sample in samples)
        if self._depth < 8:
            # Pillow scales these to 8 bits; of one bit it makes true and false.
            values = tuple(value * (1 if most == 1 else 255 // most) for value in values)
        if not self._has_low_halves:
            return ColourKey(values)
        low = self._opened(clean)
        # As little-endian numbers, the lower halves are the upper ones.
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        low.load()
        return ColourKey(values, low)


def read_png(encoded: bytes, effort: Effort) -> Header:
    """Return what the chunks before the pixels say. Raises ImageError."""
    return _Png(encoded, effort).header()


def _whole(chunk: _Chunk) -> memoryview:
    if not chunk.is_whole:
        raise broken(f"the checksum of its {chunk.name.decode()} chunk is wrong")
    return chunk.data


def _check_unknown(chunk: _Chunk) -> None:
    """Raise ImageError for a damaged chunk that pixels may depend on."""
    # The case of its letters: not critical, and nobody's standard.
    is_private = chunk.name[:1].islower() and chunk.name[1:2].islower()
    # One damaged letter makes a private chunk of the transparency.
    is_transparency = zlib.crc32(chunk.data, zlib.crc32(b"tRNS")) == chunk.checksum
    if chunk.name not in _KNOWN and (is_transparency or not is_private):
        _whole(chunk)


def _written(name: bytes, data: bytes) -> tuple[bytes, ...]:
    checksum = zlib.crc32(data, zlib.crc32(name))
    return (struct.pack(">I4s", len(data), name), data, struct.pack(">I", checksum))


def _text(chunk: _Chunk, keyword: bytes) -> bytes:
    """Return the first megabyte of a text chunk of this keyword; empty: it is of another, or damaged."""
    if bytes(chunk.data[: len(keyword) + 1]) != keyword + b"\0" or not chunk.is_whole:
        return b""
    rest = bytes(chunk.data[len(keyword) + 1 :])
    if chunk.name == b"tEXt":
        return rest[:_MOST_TEXT]
    if chunk.name == b"zTXt":
        return _unpacked(rest[1:])
    compressed, rest = rest[:1] == b"\1", rest[2:]
    text = rest.split(b"\0", 2)[-1]
    return _unpacked(text) if compressed else text[:_MOST_TEXT]


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MOST_TEXT)
    except zlib.error:
        return b""


def _raw_profile(text: bytes) -> bytes:
    """Return the EXIF block that ImageMagick writes as hexadecimal text, below three other lines."""
    digits = b"".join(text.split(b"\n")[3:])
    try:
        return bytes.fromhex(digits[: len(digits) & ~1].decode("ascii"))
    except ValueError:
        return b""
