"""What is sent in place of an image is named for what it looks like, with what to do about it."""

import base64
import gzip
import io
import json
import random
import struct
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from support.images import animation, file
from support.tiny import tiny_model
from vistazo_preprocessing.formats.recognition import not_an_image

IMAGE = Image.new("RGB", (60, 40), (1, 2, 3))
JPEG, PNG = file(IMAGE, "JPEG"), file(IMAGE)


def boxes(*brands):
    content = b"".join([brands[0], b"\0\0\0\0", *brands[1:]])
    return struct.pack(">I4s", 8 + len(content), b"ftyp") + content + bytes(99)


def zipped():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("cat.jpg", JPEG)
    return archive.getvalue()


def saved(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


KINDS = {
    "HEIC": [
        boxes(b"heic", b"mif1"),
        boxes(b"mif1", b"heic"),
        boxes(b"heix", b"mif1"),
        boxes(b"msf1", b"hevc"),
    ],
    "AVIF": [boxes(b"avif", b"mif1"), boxes(b"mif1", b"avif"), boxes(b"avis", b"msf1")],
    "a video": [boxes(b"isom", b"mp41"), boxes(b"qt  "), b"\x1a\x45\xdf\xa3webm"],
    "a GIF image": [file(IMAGE, "GIF"), file(IMAGE, "GIF")[:30], b"GIF89a"],
    "an animated GIF": [animation("GIF", IMAGE, Image.new("RGB", (60, 40), "red"))],
    "TIFF": [file(IMAGE, "TIFF"), b"MM\0*" + bytes(9)],
    "a PDF document": [file(IMAGE, "PDF"), b"\n%PDF-1.7"],
    "SVG": [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?>\n<!-- drawn by hand -->\n<svg/>",
        "\ufeff<svg/>".encode(),
        "<?xml version='1.0'?><svg:svg/>".encode("utf-16"),
    ],
    "HTML": [
        b"<!DOCTYPE html><html></html>",
        b"\n <HTML><body>502</body>",
        b"<head><title>Login</title></head>",
    ],
    "XML": [b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"],
    "JSON": [b'{"error": "not found"}', b"[1, 2, 3]", b"{}", json.dumps([{"a": 1}], indent=1).encode()],
    "gzip": [gzip.compress(JPEG)],
    "a zip archive": [zipped()],
    "ONNX": [tiny_model().SerializeToString()],
    "NumPy": [saved(np.zeros((4, 4, 3), np.uint8))],
    "base64 text of a JPEG": [
        base64.b64encode(JPEG),
        base64.encodebytes(JPEG),
        base64.urlsafe_b64encode(JPEG),
        b'"' + base64.b64encode(JPEG) + b'"',
        base64.b64encode(JPEG).rstrip(b"="),
    ],
    "base64 text of a PNG": [base64.b64encode(PNG)],
    "base64 text;": [base64.b64encode(bytes(range(256)) * 9)],
    "a data URL": [b"data:image/png;base64," + base64.b64encode(PNG), b"DATA:,hello"],
    "hexadecimal": [JPEG.hex().encode()],
    "the text that Python prints for bytes": [repr(JPEG).encode()],
    "read as text": [JPEG.decode("utf-8", "replace").encode(), JPEG.decode("latin-1").encode()],
    "text, a file path": [
        b"/home/me/cat.jpg",
        b"cat.png\n",
        b"C:\\Users\\me\\cat.jpg",
        b"my cat.jpeg",
        b"./images",
    ],
    "text, a URL": [b"https://example.com/cat.jpg", b"s3://bucket/cat"],
    "Git LFS": [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"],
    "AppleDouble": [b"\0\x05\x16\x07\0\x02\0\0" + bytes(99)],
    "got 0 bytes: the file is empty": [b""],
    "white space": [b" \n\n"],
    "zeros": [bytes(99)],
    "of text;": [
        b"hello, world",
        "Größe".encode(),
        b"Words and more words of letters only " * 99,
        b"No image here",
    ],
    "something else": [random.Random(3).randbytes(999), b"BM\x00\x01\x02junk"],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, all_ in KINDS.items() for data in all_])
def test_it_is_named_in_one_line_with_what_to_do(name, data):
    message = str(not_an_image(data))

    # What is expected is said, too, and names formats.
    assert name in "got" + message.partition("got")[2]
    assert "; " in message or not data
    assert message.isprintable()


@pytest.mark.parametrize(
    "letters", [b"A", b"A ", b"/", b"a.", b"<", b"{", b"GIF89a,", b"\xff", b"A=\n", b"x\\x"]
)
def test_to_recognise_megabytes_takes_no_time(letters):
    data = letters * (30_000_000 // len(letters))
    began = time.thread_time()

    not_an_image(data)

    assert time.thread_time() - began < 0.2


def test_whatever_comes_is_named_without_an_error():
    chance = random.Random(5)
    for _ in range(3000):
        start = chance.choice([data for all_ in KINDS.values() for data in all_])[:300]
        assert str(not_an_image(start[: chance.randrange(300)] + chance.randbytes(chance.randrange(30))))
