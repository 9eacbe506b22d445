"""Files that are damaged, or huge, where no pixel depends on it are answered; where one does they are not."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from support.images import file, png_chunk, turned
from vistazo_preprocessing.errors import ImageError
from vistazo_preprocessing.preprocessor import Preprocessor
from vistazo_preprocessing.spec import PreprocessSpec, ResizeMode

PIXELS = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
PNG, JPEG, WEBP = file(PIXELS), file(PIXELS, "JPEG"), file(PIXELS, "WEBP")
PALETTE = file(Image.fromarray(PIXELS).quantize(16), transparency=bytes(range(16)))
PNG_HEAD, BEHIND_PNG = 33, len(PNG) - 12
HUGE = zlib.compress(b"scanner log line\n" * 300_000)


def preprocessed(data):
    spec = PreprocessSpec(
        height=40,
        width=50,
        channels=3,
        resize_mode=ResizeMode.NO_RESIZE,
        resize_size=0,
        interpolation=Image.Resampling.BILINEAR,
    )
    return Preprocessor(spec, max_pixels=1_000_000).decode(data)


def wrong_checksum(chunk):
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


CHUNKS = {
    "iCCP of 5 MB": png_chunk(b"iCCP", b"p\0\0" + HUGE),
    "zTXt of 5 MB": png_chunk(b"zTXt", b"Comment\0\0" + HUGE),
    "iTXt of 5 MB": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + HUGE),
    "many texts": png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000))) * 200,
    "iCCP of an unknown method": png_chunk(b"iCCP", b"p\0\7junk"),
    "iCCP that is no profile": png_chunk(b"iCCP", b"p\0\0junk"),
    "zTXt without a keyword": png_chunk(b"zTXt", b""),
    "zTXt of an unknown method": png_chunk(b"zTXt", b"k\0\7junk"),
    "EXIF as hexadecimal text that is none": png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n9\nxyz"),
    "short gAMA": png_chunk(b"gAMA", b"\0"),
    "short cHRM": png_chunk(b"cHRM", b"\0"),
    "short pHYs": png_chunk(b"pHYs", b"\0"),
    "empty sRGB": png_chunk(b"sRGB", b""),
    "eXIf that is no EXIF": png_chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
    "a palette that nobody needs": wrong_checksum(png_chunk(b"PLTE", bytes(9))),
    "frames of an animation that is none": png_chunk(b"acTL", bytes(8)) + png_chunk(b"fcTL", b"\1"),
    **{
        f"damaged {name.decode()}": wrong_checksum(png_chunk(name, data))
        for name, data in {
            b"tEXt": b"Comment\0hello",
            b"zTXt": b"Comment\0\0" + HUGE[:1000],
            b"iTXt": b"Comment\0\0\0\0\0hello",
            b"eXIf": b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0",
            b"iCCP": b"p\0\0" + zlib.compress(b"profile"),
            b"tIME": bytes(7),
            b"gAMA": bytes(4),
            b"pHYs": bytes(9),
            b"sRGB": b"\0",
            b"bKGD": bytes(6),
            b"acTL": struct.pack(">II", 7, 0),
            b"prVt": b"a program's own",
        }.items()
    },
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("at", [PNG_HEAD, BEHIND_PNG])
def test_a_png_is_answered_whatever_is_wrong_with_a_chunk_that_no_pixel_depends_on(name, at):
    np.testing.assert_array_equal(preprocessed(PNG[:at] + CHUNKS[name] + PNG[at:]), PIXELS)


def chunk_at(png, name):
    """Where the checksum of a chunk is."""
    begin = png.index(name) - 4
    return begin + 8 + int.from_bytes(png[begin : begin + 4])


@pytest.mark.parametrize(
    ("png", "name"),
    [(PNG, b"IHDR"), (PNG, b"IDAT"), (PALETTE, b"PLTE"), (PALETTE, b"tRNS"), (PALETTE, b"IDAT")],
)
def test_a_png_is_refused_when_what_pixels_depend_on_is_damaged(png, name):
    at = chunk_at(png, name)

    for position in (at, at - 1):
        with pytest.raises(ImageError, match=rf"cannot be decoded: .*{name.decode()}"):
            preprocessed(png[:position] + bytes([png[position] ^ 4]) + png[position + 1 :])


@pytest.mark.parametrize("name", [b"tRNS", b"PLTE", b"IDAT"])
def test_a_png_is_refused_when_the_name_of_what_pixels_depend_on_is_damaged(name):
    at = PALETTE.index(name)
    for letter in range(4):
        for other in (*b"QZ", PALETTE[at + letter] ^ 0x20):
            damaged = PALETTE[: at + letter] + bytes([other]) + PALETTE[at + letter + 1 :]
            if PALETTE[at + letter] != other:
                with pytest.raises(ImageError, match="cannot be decoded"):
                    preprocessed(damaged)


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP, PALETTE], ids=["PNG", "JPEG", "WebP", "palette"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8, 0.95])
def test_a_file_without_its_end_is_refused(data, share):
    with pytest.raises(ImageError, match="cannot be decoded"):
        preprocessed(data[: int(len(data) * share)])


def segment(marker, data):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


SEGMENTS = {
    "EXIF that is none": segment(0xE1, b"Exif\0\0nothing"),
    "EXIF that points outside": segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "EXIF with more entries than it has": segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    "an empty APP1": segment(0xE1, b""),
    "XMP that is no text": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe\0"),
    "a profile that ends in its number": segment(0xE2, b"ICC_PROFILE\0"),
    "a part of a profile without the others": segment(0xE2, b"ICC_PROFILE\0\2\7junk"),
    "a list of pictures that is none": segment(0xE2, b"MPF\0II*\0junk"),
    "a list of pictures that are not there": segment(
        0xE2, b"MPF\0MM\0*\0\0\0\x08\0\1\xb0\1\0\4\0\0\0\1\0\0\0\x09\0\0\0\0"
    ),
    "Photoshop's resources, cut": segment(0xED, b"Photoshop 3.0\08BIM\x03\xed"),
    "a short Adobe": segment(0xEE, b"Adobe"),
    "a short JFIF": segment(0xE0, b"JFIF\0\1"),
    "a comment that is no text": segment(0xFE, b"\xff\xd8\xff\xe0\0"),
    "fill bytes": b"\xff" * 99,
    "junk between its segments": b"junk",
}


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("behind", [b"", bytes(999), b"\xff\xd8\xff\xe0junk", b"<html>"])
def test_a_jpeg_is_answered_whatever_is_wrong_with_a_segment_that_no_pixel_depends_on(name, behind):
    # Behind the JFIF, which comes first.
    at = 20

    np.testing.assert_array_equal(
        preprocessed(JPEG[:at] + SEGMENTS[name] + JPEG[at:] + behind), preprocessed(JPEG)
    )


@pytest.mark.parametrize("marker", [0xC0, 0xDB])
def test_a_jpeg_without_a_table_that_its_pixels_need_is_refused(marker):
    at = JPEG.index(b"\xff" + bytes([marker]))
    end = at + 2 + int.from_bytes(JPEG[at + 2 : at + 4])

    with pytest.raises(ImageError, match="cannot be decoded"):
        preprocessed(JPEG[:at] + JPEG[end:].replace(b"\xff" + bytes([marker]), b"\xff\xe9"))


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize(
    "broken",
    [
        lambda data: data + b"junk behind it",
        lambda data: data.replace(b"EXIF", b"EXIX"),
        lambda data: data.replace(b"ICCP", b"ICCX"),
        lambda data: data[: data.index(b"EXIF") + 11],
        lambda data: data.replace(b"EXIF", b"VP8 "),
        lambda data: data[: data.index(b"EXIF") + 4] + b"\xff\xff\xff\x7f" + data[data.index(b"EXIF") + 8 :],
    ],
    ids=["junk", "unknown chunk", "no profile", "cut EXIF", "a second picture", "a length beyond its end"],
)
def test_a_webp_is_answered_whatever_is_wrong_beside_its_picture(broken, alpha, lossless):
    image = Image.fromarray(PIXELS)
    if alpha:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    options = {"lossless": lossless, "exact": True}
    data = file(image, "WEBP", exif=b"Exif\0\0MM\0*junk", icc_profile=b"profile", **options)

    np.testing.assert_array_equal(preprocessed(broken(data)), preprocessed(file(image, "WEBP", **options)))


def orientation_as_text(orientation):
    """EXIF as ImageMagick writes it into a PNG."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    block = exif.tobytes()
    return b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(block):8}\n{block.hex()}\n".encode())


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "data",
    [
        turned(PIXELS[::-1, ::-1], 1),
        PNG[:PNG_HEAD] + png_chunk(b"zTXt", orientation_as_text(3)) + PNG[PNG_HEAD:],
        PNG[:BEHIND_PNG] + png_chunk(b"zTXt", orientation_as_text(3)) + PNG[BEHIND_PNG:],
        PNG[:PNG_HEAD] + png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP) + PNG[PNG_HEAD:],
        PNG[:PNG_HEAD]
        + png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP + bytes(3_000_000)))
        + PNG[PNG_HEAD:],
        PNG[:BEHIND_PNG]
        + png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\3\0\0\0\0\0\0")
        + PNG[BEHIND_PNG:],
    ],
    ids=["as stored", "EXIF as text", "EXIF as text at the end", "XMP", "XMP of 3 MB", "EXIF at the end"],
)
def test_the_orientation_is_found_wherever_a_png_has_it(data):
    np.testing.assert_array_equal(preprocessed(data), PIXELS[::-1, ::-1])


@pytest.mark.parametrize("name", [0x0001, 0x010F, 0x0113])
def test_a_garbled_entry_of_the_exif_does_not_hide_the_orientation(name):
    entries = sorted([(0x0112, 3, 1, b"\0\3\0\0"), (name, 5, 1 << 30, b"\xff\xff\xff\xff")])
    block = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2)
    block += b"".join(struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries)

    result = preprocessed(JPEG[:20] + segment(0xE1, block) + JPEG[20:])

    np.testing.assert_array_equal(result, preprocessed(JPEG)[::-1, ::-1])
