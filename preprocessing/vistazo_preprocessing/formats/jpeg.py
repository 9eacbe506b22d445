"""JPEG files: only what pixels depend on goes on to the decoder.

Photographs carry EXIF, colour profiles, XMP, previews and second pictures, and programs break them in many
ways. Nothing of it but the orientation counts here, so none of it can be in the way.
"""

import re
from typing import Final

from PIL import Image

from vistazo_preprocessing.effort import BoundedFile, Effort
from vistazo_preprocessing.errors import ImageError, broken
from vistazo_preprocessing.formats.header import Header, Reduced
from vistazo_preprocessing.formats.orientation import upright_turn
from vistazo_preprocessing.picture import Picture

SIGNATURE: Final = b"\xff\xd8\xff"

# Scans of a progressive JPEG. A photograph has some ten. Each goes over all pixels again, for a dozen bytes
# of the file: a megabyte could take minutes.
MOST_SCANS: Final = 100
# What a JPEG may have of other segments beside its scans.
_MOST_SEGMENTS: Final = 10_000
# Not those that stand inside a scan: a stuffed byte, a restart, a fill byte.
_MARKER: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_SCAN: Final = b"\xff\xda"
_END: Final = b"\xff\xd9"
_WITHOUT_LENGTH: Final = (b"\xff\x01", b"\xff\xd8")

_FILL: Final = re.compile(rb"\xff+")
_STANDALONE: Final = (0x00, 0x01, *range(0xD0, 0xD8))
_SOI, _EOI, _SOS, _APP0, _APP1, _ADOBE, _COMMENT = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xFE
_FRAMES: Final = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_PROGRESSIVE: Final = (0xC2, 0xC6, 0xCA, 0xCE)
_LOSSLESS: Final = (0xC3, 0xC7, 0xCB, 0xCF)
_EXIF: Final = b"Exif\0\0"
_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"

# Of each coefficient that the decoder keeps, where it cannot go through the file once.
_COEFFICIENT_BYTES: Final = 2
# What reading the coefficients of a pixel takes, as a share of decoding it whole and resizing it: measured
# with photographs of 12 megapixels.
_COEFFICIENTS_WORK: Final = 0.2


class _Frame:
    """What the header of the frame says."""

    def __init__(self, marker: int, segment: bytes) -> None:
        if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
            raise broken("the header of its frame is cut")
        self.is_progressive = marker in _PROGRESSIVE
        self.is_lossless = marker in _LOSSLESS
        self.height = int.from_bytes(segment[1:3])
        self.width = int.from_bytes(segment[3:5])
        self.components = segment[5]
        samplings = [segment[7 + 3 * index] for index in range(self.components)]
        areas = [(sampling >> 4) * (sampling & 15) for sampling in samplings]
        largest = max((s >> 4 for s in samplings), default=1) * max((s & 15 for s in samplings), default=1)
        self.samples_per_pixel = sum(areas) / max(largest, 1)

    def decode_bytes(self, *, at_once: bool, scale: int = 1) -> int:
        width, height = self.reduced_size(scale)
        result = width * height * (1 if self.components == 1 else 4)
        if self.is_progressive or not at_once:
            # All of them, however small the result is.
            result += int(self.width * self.height * _COEFFICIENT_BYTES * self.samples_per_pixel)
        return result

    def work(self, *, at_once: bool, scale: int) -> int:
        """Return what decoding at 1/`scale` costs, in pixels of an image that is decoded whole."""
        width, height = self.reduced_size(scale)
        share = _COEFFICIENTS_WORK if at_once and not self.is_progressive else 1
        return width * height + int(self.width * self.height * share)

    def reduced_size(self, scale: int) -> tuple[int, int]:
        """Return the width and height of the image decoded at 1/`scale`: libjpeg rounds up."""
        return -(-self.width // scale), -(-self.height // scale)


class _Segments:
    """What stands before the first scan."""

    def __init__(self) -> None:
        self.kept = [b"\xff\xd8"]
        """What pixels depend on, each with its marker."""
        self.exif = b""
        self.xmp = b""
        self.frame: _Frame | None = None

    def read(self, marker: int, segment: bytes) -> None:
        """Take note of a segment, which begins with its marker and length."""
        content = segment[4:]
        if marker == _APP1 and content.startswith(_EXIF):
            self.exif += content[len(_EXIF) :]
        elif marker == _APP1 and content.startswith(_XMP):
            self.xmp = self.xmp or content[len(_XMP) :]
        elif marker in _FRAMES:
            if self.frame is not None:
                raise broken("it has a second frame before its first scan")
            self.frame = _Frame(marker, content)
        if _matters(marker, content):
            self.kept.append(segment)


class _Jpeg:
    """The parts of a JPEG file that matter."""

    def __init__(self, encoded: bytes, effort: Effort) -> None:
        self._encoded = encoded
        self._effort = effort
        self._segments = _Segments()
        self._first_scan, behind = self._read_segments()
        if self._segments.frame is None:
            raise broken("it has no frame before its first scan")
        self._frame = frame = self._segments.frame
        self._size = (frame.width, frame.height)
        if frame.is_progressive and encoded.count(_SCAN, self._first_scan) > MOST_SCANS:
            _check_scans(encoded, self._first_scan)
        # A scan of one of several components: the others come later, and all are kept until then.
        self._at_once = encoded[behind + 2 : behind + 3] == bytes([frame.components])
        self._turn = upright_turn(self._segments.exif, self._segments.xmp)

    def _read_segments(self) -> tuple[int, int]:
        """Read what stands before the first scan. Return where that begins, and where its marker ends."""
        encoded, at = self._encoded, 2
        while True:
            self._effort.step()
            marker, begin = _next_marker(encoded, at)
            at = begin + 2
            if marker == _SOS:
                return begin, at
            if marker in _STANDALONE:
                continue
            # Of a length that is too short, libjpeg skips none, too, and looks for the next marker.
            at += max(int.from_bytes(encoded[at : at + 2]), 2)
            if at > len(encoded):
                raise broken("the file is truncated before its first scan")
            self._segments.read(marker, encoded[begin:at])

    def header(self) -> Header:
        """Return what was read."""
        return Header(
            *self._size,
            self._decode_bytes(),
            "" if self._turn else {1: "L", 3: "RGB"}.get(self._frame.components, ""),
            self._load,
            self._turn,
            # What has no DCT cannot be scaled by it.
            None if self._frame.is_lossless else self._reduced,
        )

    def _reduced(self, scale: int) -> Reduced:
        work = self._frame.work(at_once=self._at_once, scale=scale)
        return Reduced(self._decode_bytes(scale), work, lambda: self._load(scale))

    def _decode_bytes(self, scale: int = 1) -> int:
        return self._frame.decode_bytes(at_once=self._at_once, scale=scale) + len(self._encoded)

    def _load(self, scale: int = 1) -> Picture:
        clean = b"".join([*self._segments.kept, memoryview(self._encoded)[self._first_scan :]])
        image = Image.open(BoundedFile(clean, self._effort), formats=("JPEG",))
        if image.size != self._size:
            raise broken("its size is not clear")
        extent = None
        if scale > 1:
            width, height = self._size
            # It takes the largest scale at which no edge becomes smaller than asked for: rounded down, that
            # is this one. Its mode stays, as another would be made by the decoder, and not as ever.
            image.draft(image.mode, (width // scale, height // scale))
            if image.size != self._frame.reduced_size(scale):
                raise broken(f"it cannot be decoded at 1/{scale} of its size")
            # The last column and row may stand for less than `scale` pixels.
            extent = (width / scale, height / scale)
        image.load()
        return Picture(image, self._turn, extent=extent)


def read_jpeg(encoded: bytes, effort: Effort) -> Header:
    """Return what the segments before the first scan say. Raises ImageError."""
    return _Jpeg(encoded, effort).header()


def _next_marker(encoded: bytes, at: int) -> tuple[int, int]:
    """Return the next marker from `at` on, and where it begins."""
    # What is no marker is skipped, as libjpeg does.
    filled = _FILL.search(encoded, at)
    if filled is None or filled.end() + 3 > len(encoded):
        raise broken("the file is truncated before its first scan")
    marker = encoded[filled.end()]
    if marker in (_SOI, _EOI):
        raise broken("its segments are damaged")
    return marker, filled.end() - 1


def _matters(marker: int, segment: bytes) -> bool:
    """Return whether a pixel can depend on a segment before the first scan."""
    # The two that tell libjpeg the colour space, if they are long enough for it.
    if marker == _APP0:
        return segment.startswith(b"JFIF\0") and len(segment) >= 14
    if marker == _ADOBE:
        return segment.startswith(b"Adobe") and len(segment) >= 12
    return not (_APP0 <= marker <= 0xEF or marker == _COMMENT)


def _check_scans(jpeg: bytes, at: int) -> None:
    """Raise ImageError when the picture whose first scan begins at `at` has more scans than MOST_SCANS."""
    scans = 0
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER.search(jpeg, at)
        if marker is None or marker[0] == _END:
            return
        scans += marker[0] == _SCAN
        if scans > MOST_SCANS:
            break
        at = marker.end()
        if marker[0] not in _WITHOUT_LENGTH:
            at += int.from_bytes(jpeg[at : at + 2])
    raise ImageError(f"expected a JPEG of at most {MOST_SCANS} scans, got one of more")
