"""What was sent in place of an image: its name, and what to do about it."""

import base64
import binascii
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from vistazo_preprocessing.errors import ImageError

CONVERT: Final = "convert it to JPEG or PNG"
NO_IMAGE: Final = "send the image file itself"
UNPACK: Final = "unpack it, and send the images in it"

_LOOKED_AT: Final = 4096
"""Bytes in which a text says what it is."""
_MOST_LOST: Final = 3
"""Bytes of it that may be no UTF-8: a character that is cut, or a letter of another encoding."""


class _Kind(NamedTuple):
    name: str
    advice: str


_IMAGES: Final = (
    (b"II*\0", "a TIFF image, or a camera's raw file"),
    (b"MM\0*", "a TIFF image, or a camera's raw file"),
    (b"8BPS", "a Photoshop file"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"II+\0", "a TIFF image"),
    (b"MM\0+", "a TIFF image"),
    (b"IIU\0", "a camera's raw file"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"\0\0\x01\0", "an icon (ICO)"),
    (b"\0\0\x02\0", "a cursor (CUR)"),
    (b"icns", "an icon (ICNS)"),
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "an HDR image"),
    (b"qoif", "a QOI image"),
    (b"gimp xcf", "a GIMP file"),
    (b"SIMPLE  =", "a FITS image"),
    (b"DDS ", "a DDS texture"),
)

_OTHERS: Final = (
    (b"\x1f\x8b", _Kind("gzip-compressed data", UNPACK)),
    (b"PK\x03\x04", _Kind("a zip archive (or an Office document, or an .npz)", UNPACK)),
    (b"PK\x05\x06", _Kind("an empty zip archive", NO_IMAGE)),
    (b"7z\xbc\xaf\x27\x1c", _Kind("a 7z archive", UNPACK)),
    (b"Rar!", _Kind("a RAR archive", UNPACK)),
    (b"BZh", _Kind("bzip2-compressed data", UNPACK)),
    (b"\xfd7zXZ\0", _Kind("xz-compressed data", UNPACK)),
    (b"\x28\xb5\x2f\xfd", _Kind("zstd-compressed data", UNPACK)),
    (b"\x93NUMPY", _Kind("a NumPy array (.npy)", "send its pixels raw, or as PNG")),
    (b"\x89HDF\r\n", _Kind("an HDF5 file", NO_IMAGE)),
    (b"\0\x05\x16\x07", _Kind("what macOS keeps beside a file (AppleDouble)", "send the file beside it")),
    (b"\0\0\0\1Bud1", _Kind("a .DS_Store file", NO_IMAGE)),
    (b"\x7fELF", _Kind("a program", NO_IMAGE)),
    (b"\xd0\xcf\x11\xe0", _Kind("an old Office document, or a Thumbs.db", NO_IMAGE)),
    (b"\x1a\x45\xdf\xa3", _Kind("a video (Matroska, WebM)", "send one of its frames as JPEG or PNG")),
    (b"RIFF", _Kind("a RIFF file that is no WebP, such as AVI or WAV", NO_IMAGE)),
    (b"OggS", _Kind("an Ogg file", NO_IMAGE)),
    (b"\x89PNG", _Kind("a PNG whose first bytes are changed, as by a transfer as text", "send it as binary")),
    (b"\xc2\x89PNG", _Kind("a PNG that was read as text", "read the file as binary")),
    (b"\xef\xbf\xbdPNG", _Kind("a PNG that was read as text", "read the file as binary")),
    (b"\xef\xbf\xbd\xef\xbf\xbd", _Kind("binary data that was read as text", "read the file as binary")),
    (b"\xc3\xbf\xc3\x98", _Kind("a JPEG that was read as text", "read the file as binary")),
)

_HEIF: Final = tuple(b"heic heix hevc hevx heim heis hevm hevs mif1 msf1 heif".split())
_AVIF: Final = (b"avif", b"avis")
_PICTURES: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"RIFF", "WebP"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
)

_TEXTS: Final = (
    ("version https://git-lfs", _Kind("a pointer of Git LFS", "fetch the file with `git lfs pull`")),
    ("HTTP/", _Kind("an HTTP response with its headers", "send its body alone")),
    ("--", _Kind("text, perhaps a multipart form", "send the file in it")),
)

_MARKUP: Final = re.compile(r"<\s*(\?xml|!doctype|!--|[a-z][\w:.-]*)", re.IGNORECASE)
_HTML: Final = re.compile(r"<\s*(!doctype\s+html|html|head|body|title|h1|center)\b", re.IGNORECASE)
_SVG: Final = re.compile(r"<\s*(\w+:)?svg\b|<!doctype\s+svg", re.IGNORECASE)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_HEXADECIMAL: Final = re.compile(r"\s*(?:0x)?(ffd8ff|89504e47|52494646|424d)[0-9a-f\s]*", re.IGNORECASE)
_PYTHON_BYTES: Final = re.compile(r"""b(["']).*\\x""", re.DOTALL)
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]{1,9}://\S+", re.IGNORECASE)
_IMAGE_NAME: Final = re.compile(r"[^\s/\\]\.(jpe?g|png|webp|bmp|gif|tiff?|hei[cf]|avif)$", re.IGNORECASE)
_NOT_IN_A_PATH: Final = re.compile(r"[\n\r<>{}|\"*?]")


def not_an_image(data: bytes) -> ImageError:
    """Return what to say of bytes that no decoder of ours begins with: what they look like, what to do."""
    if not data:
        return ImageError("expected an encoded image, got 0 bytes: the file is empty, or was not read")
    kind = _binary(data) or _text(data) or _Kind("something else", NO_IMAGE)
    return ImageError(
        f"expected a JPEG, PNG, WebP or BMP file, got {len(data)} bytes of {kind.name}; {kind.advice}"
    )


def _binary(data: bytes) -> _Kind | None:
    if data[4:8] == b"ftyp":
        return _boxes(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    for prefix, name in _IMAGES:
        if data.startswith(prefix):
            return _Kind(name, CONVERT)
    for prefix, kind in _OTHERS:
        if data.startswith(prefix):
            return kind
    return next((kind for looks_like, kind in _SHAPES if looks_like(data)), None)


def _boxes(data: bytes) -> _Kind:
    """Return the kind of a file of ISO boxes, by its brands."""
    length = min(int.from_bytes(data[:4]), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, length - 3, 4))]
    if any(brand in _AVIF for brand in brands):
        return _Kind("an AVIF image", CONVERT)
    if any(brand in _HEIF for brand in brands):
        return _Kind("a HEIC image (HEIF), as iPhones take them", CONVERT)
    if brands[0] == b"crx ":
        return _Kind("a camera's raw file", CONVERT)
    return _Kind("a video (MP4, MOV)", "send one of its frames as JPEG or PNG")


def _gif(data: bytes) -> _Kind:
    if _gif_pictures(data) < 2:
        return _Kind("a GIF image", CONVERT)
    return _Kind("an animated GIF", "send one of its frames as JPEG or PNG")


def _gif_pictures(data: bytes) -> int:
    """Return how many pictures a GIF has; no more than two are looked for."""
    at, pictures = 13 + _colours(data[10:11]), 0
    while pictures < 2 and at < len(data):
        block, at = data[at], at + 1
        if block == 0x2C:  # an image: its descriptor, its colours, the size of its codes
            pictures += 1
            at += 9 + _colours(data[at + 8 : at + 9]) + 1
        elif block == 0x21:  # an extension: its label
            at += 1
        else:
            break
        for _ in range(len(data) // 2):
            if at >= len(data):
                break
            size, at = data[at], at + 1 + data[at]
            if size == 0:
                break
    return pictures


def _colours(flags: bytes) -> int:
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _is_onnx(data: bytes) -> bool:
    """Return whether this begins as a ModelProto: its IR version, then its producer, graph or opset."""
    return len(data) > 4 and data[0] == 0x08 and 0 < data[1] < 0x20 and data[2] in (0x12, 0x1A, 0x3A, 0x42)


# What does not begin with a few bytes of its own.
_SHAPES: Final[tuple[tuple[Callable[[bytes], object], _Kind], ...]] = (
    (lambda data: b"%PDF-" in data[:1024], _Kind("a PDF document", "send its pages as JPEG or PNG")),
    (lambda data: data[128:132] == b"DICM", _Kind("a DICOM image", CONVERT)),
    (lambda data: data[257:262] == b"ustar", _Kind("a tar archive", UNPACK)),
    (lambda data: re.match(rb"P[1-7][\s#]", data), _Kind("a PNM image (PBM, PGM, PPM)", CONVERT)),
    (lambda data: re.match(rb"\x80[\x02-\x05]", data), _Kind("a Python pickle", NO_IMAGE)),
    (lambda data: data[5:10] == b'\0\0\0{"', _Kind("a safetensors file", NO_IMAGE)),
    (_is_onnx, _Kind("an ONNX model", NO_IMAGE)),
    (lambda data: not data.strip(b"\0"), _Kind("zeros", NO_IMAGE)),
)


def _text(data: bytes) -> _Kind | None:
    text = _decoded(data[:_LOOKED_AT])
    if text is None:
        return None
    if not text:
        return _Kind("white space", NO_IMAGE)
    return _markup(text) or _encoded_image(text) or _other_text(text, len(data))


def _decoded(head: bytes) -> str | None:
    """Return the beginning of a text; None: it is none."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head.decode("utf-16", "ignore")
        lost = 0
    else:
        text = head.decode("utf-8", "ignore").removeprefix("\ufeff")
        # What is cut in the middle of a character is a text as well.
        lost = len(head.removeprefix(b"\xef\xbb\xbf")) - len(text.encode())
    controls = any(character < " " and character not in "\t\n\r\f\x1b" for character in text)
    return None if controls or lost > _MOST_LOST else text.strip()


def _markup(text: str) -> _Kind | None:
    if not _MARKUP.match(text):
        return None
    if _SVG.search(text):
        return _Kind("an SVG drawing", "draw it, and send that as PNG")
    if _HTML.search(text):
        return _Kind("an HTML page, perhaps an error of a web server or proxy", "look at what was downloaded")
    return _Kind("XML", NO_IMAGE)


def _encoded_image(text: str) -> _Kind | None:
    if text[:5].lower() == "data:":
        return _Kind("a data URL", "send the bytes that are behind its comma, decoded from base64")
    if _HEXADECIMAL.fullmatch(text):
        return _Kind("an image as hexadecimal text", "send the decoded bytes")
    if _PYTHON_BYTES.match(text):
        return _Kind("the text that Python prints for bytes", "send the bytes themselves")
    lines = text.strip("\"'").split()
    letters = "".join(lines)
    if len(letters) < 16 or not _BASE64.fullmatch(letters):
        return None
    name = _inside(letters)
    # Words are of the same letters: base64 is one long line, or lines of one length.
    in_lines = len(lines[0]) >= 60 and all(len(line) == len(lines[0]) for line in lines[:-1])
    if name or in_lines:
        return _Kind(f"base64 text{name and f' of a {name}'}", "send the decoded bytes")
    return None


def _inside(letters: str) -> str:
    """Return the name of the image format that base64 text holds; empty: none that is known."""
    begin_letters = letters[:16].replace("-", "+").replace("_", "/")
    try:
        begin = base64.b64decode(begin_letters)
    except binascii.Error:
        return ""
    return next((name for prefix, name in _PICTURES if begin.startswith(prefix)), "")


def _other_text(text: str, size: int) -> _Kind:
    if (text[0] in "{[" and text[1:].lstrip()[:1] in tuple('"[{]}-0123456789tfn')) or text in ("{", "["):
        return _Kind("JSON", NO_IMAGE)
    for begin, kind in _TEXTS:
        if text.startswith(begin):
            return kind
    if size < _LOOKED_AT and _URL.fullmatch(text):
        return _Kind("text, a URL", "fetch it, and send what it names")
    if size < _LOOKED_AT and not _NOT_IN_A_PATH.search(text) and _is_path(text):
        return _Kind("text, a file path", "send the content of that file")
    return _Kind("text", NO_IMAGE)


def _is_path(text: str) -> bool:
    begins = text.startswith(("/", "~", "./", "../", "\\\\")) or text[1:3] in (":\\", ":/")
    return begins or bool(_IMAGE_NAME.search(text))
