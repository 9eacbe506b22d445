"""Preprocessor: what each kind of image becomes. Equality with torchvision is in tests/service."""

import io
import math
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from support.images import png_chunk
from vistazo_preprocessing.effort import HEADER_SECONDS
from vistazo_preprocessing.errors import ImageError
from vistazo_preprocessing.formats.jpeg import MOST_SCANS
from vistazo_preprocessing.preprocessor import Preprocessor
from vistazo_preprocessing.spec import Layout, PreprocessSpec, ResizeMode


def preprocessor(
    *, side=8, resize=None, channels=3, mode=ResizeMode.SHORTEST_EDGE, max_pixels=1_000_000, **rest
):
    spec = PreprocessSpec(
        height=side,
        width=side,
        channels=channels,
        resize_mode=mode,
        resize_size=resize or side,
        interpolation=Image.Resampling.BILINEAR,
        **rest,
    )
    return Preprocessor(spec, max_pixels=max_pixels)


def encode(image, image_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def bomb_of(width, height):
    """A PNG whose header claims so many pixels, with none behind it: to decode it fails."""
    bomb = bytearray(encode(Image.new("1", (8, 8))))
    bomb[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    return bytes(bomb)


@pytest.fixture
def gradient():
    """40×30 pixels whose left is dark and whose top is red: every flip and turn shows."""
    across = np.linspace(0, 255, 40, dtype=np.uint8)
    down = np.linspace(255, 0, 30, dtype=np.uint8)
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[:, :, 1] = across
    pixels[:, :, 0] = down[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_give_the_same_pixels(gradient, image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}

    result = preprocessor().decode(encode(gradient, image_format, **options))

    assert result.shape == (8, 8, 3)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, preprocessor().fit(np.asarray(gradient)))


def test_pixels_of_the_models_own_shape_pass_untouched():
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)

    assert preprocessor().fit(pixels) is pixels


def test_the_shorter_edge_is_resized_and_the_centre_cropped(gradient):
    result = preprocessor(side=10, resize=30).decode(encode(gradient))

    np.testing.assert_array_equal(result, np.asarray(gradient)[10:20, 15:25])


def test_stretching_keeps_the_edges_of_the_image(gradient):
    result = preprocessor(mode=ResizeMode.STRETCH).decode(encode(gradient))

    np.testing.assert_array_equal(result, np.asarray(gradient.resize((8, 8), Image.Resampling.BILINEAR)))


def test_an_image_smaller_than_the_crop_is_padded_with_zeros():
    result = preprocessor(side=8, resize=4).fit(np.full((4, 4, 3), 255, dtype=np.uint8))

    assert result[2:6, 2:6].min() == 255
    assert result.sum() == 255 * 4 * 4 * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_shown_upright(gradient, orientation):
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = gradient.transpose(turns[orientation]) if orientation > 1 else gradient
    exif = Image.Exif()
    exif[0x0112] = orientation

    result = preprocessor().decode(encode(stored, exif=exif))

    np.testing.assert_array_equal(result, preprocessor().decode(encode(gradient)))


@pytest.mark.parametrize(
    ("channels", "colour", "expected"), [(1, (255, 0, 0), [76]), (3, (10, 20, 30), [10, 20, 30])]
)
def test_colour_is_converted_to_the_models_channels(channels, colour, expected):
    result = preprocessor(channels=channels).decode(encode(Image.new("RGB", (8, 8), colour)))

    assert result.shape == (8, 8, channels)
    assert result[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (8, 8), 90), [90, 90, 90]),
        (Image.new("LA", (8, 8), (90, 255)), [90, 90, 90]),
        (Image.new("1", (8, 8), 1), [255, 255, 255]),
        (Image.new("RGBA", (8, 8), (1, 2, 3, 0)), [255, 255, 255]),
        (Image.fromarray(np.full((8, 8), 0x80FF, dtype=np.uint16)), [0x80, 0x80, 0x80]),
    ],
    ids=["grey", "grey with alpha", "bilevel", "transparent", "16-bit grey"],
)
def test_every_png_mode_becomes_rgb(image, expected):
    result = preprocessor().decode(encode(image))

    assert result[4, 4].tolist() == expected


def test_cmyk_jpegs_become_rgb():
    result = preprocessor().decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))

    assert result[4, 4, 0] > 200
    assert result[4, 4, 1] < 50


PNG_CHUNKS_BEGIN = 33
"""Where in a PNG other chunks than the header may stand."""

SMALL_PNG = encode(Image.new("RGB", (8, 8)))
SMALL_JPEG = encode(Image.new("RGB", (8, 8)), "JPEG")
PROGRESSIVE = encode(Image.effect_noise((64, 64), 50), "JPEG", progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]


def with_chunks(chunks, *, at=PNG_CHUNKS_BEGIN):
    return SMALL_PNG[:at] + chunks + SMALL_PNG[at:]


def unpacking_to_a_megabyte(name, head):
    return png_chunk(name, head + zlib.compress(bytes(900_000)))


def with_scans(count, *, before=b""):
    """The progressive JPEG with so many scans: its own, and the last again and again."""
    own = PROGRESSIVE.count(b"\xff\xda")
    return PROGRESSIVE[:-2] + before + LAST_SCAN * (count - own) + PROGRESSIVE[-2:]


# Each is a file of a few megabytes at most that Pillow reads for seconds.
@pytest.mark.parametrize(
    "make",
    [
        lambda: with_chunks(png_chunk(b"abCd", b"") * 1_000_000),
        lambda: with_chunks(png_chunk(b"abCd", b"") * 1_000_000, at=len(SMALL_PNG) - 12),
        lambda: SMALL_JPEG[:2] + b"\xff\xe7\0\2" * 3_000_000 + SMALL_JPEG[2:],
    ],
    ids=["chunks", "chunks at the end", "segments"],
)
def test_a_file_that_is_made_to_take_long_is_given_up(make):
    began = time.thread_time()
    encoded = make()
    made_in = time.thread_time() - began

    with pytest.raises(ImageError, match="takes longer to read than one of its size may"):
        preprocessor().model_input(encoded)
    # In CPU time, which a busy machine does not stretch: a tenth of a second, and what was going on then.
    assert time.thread_time() - began - made_in < 10 * HEADER_SECONDS


# Each is a file that Pillow reads for seconds, for the sake of what no pixel depends on.
@pytest.mark.parametrize(
    "make",
    [
        lambda: with_chunks(unpacking_to_a_megabyte(b"iCCP", b"k\0\0") * 3000),
        lambda: with_chunks(unpacking_to_a_megabyte(b"iCCP", b"k\0\0") * 3000, at=len(SMALL_PNG) - 12),
        lambda: with_chunks(unpacking_to_a_megabyte(b"zTXt", b"Raw profile type exif\0\0") * 3000),
        lambda: SMALL_JPEG[:2] + b"\xff" * 12_000_000 + SMALL_JPEG[2:],
    ],
    ids=["profiles", "profiles at the end", "EXIF as text", "fill bytes"],
)
def test_what_would_take_long_to_unpack_is_skipped(make):
    encoded = make()
    began = time.thread_time()

    assert preprocessor().model_input(encoded).shape == (8, 8, 3)
    assert time.thread_time() - began < 10 * HEADER_SECONDS


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"\xff\x01",  # a marker without a length, in front of what would be one
        b"\xff\xff\xff",  # fill bytes
        b"\xff\xe7\0\0",  # a segment of a wrong length
        b"\xff\xe7\0\4\xff\xd9",  # what ends the picture, inside a segment
        b"\xff\xe7\0\2" * 20_000,
    ],
    ids=["scans", "no length", "fill", "wrong length", "end in a segment", "segments"],
)
def test_a_jpeg_of_more_scans_than_any_photograph_has_is_refused(before):
    for at_most in (1, math.inf):
        with pytest.raises(ImageError, match="expected a JPEG of at most 100 scans, got one of more"):
            preprocessor().model_input(with_scans(50_000, before=before), at_most)


def test_a_jpeg_of_as_many_scans_as_may_be_is_answered():
    result = preprocessor().decode(with_scans(MOST_SCANS)).astype(int)

    # Each scan too many refines what was final already.
    np.testing.assert_allclose(result, preprocessor().decode(PROGRESSIVE).astype(int), atol=5)
    with pytest.raises(ImageError, match="100 scans"):
        preprocessor().decode(with_scans(MOST_SCANS + 1))


def test_what_only_looks_like_scans_is_none():
    look_alikes = b"\xff\xda" * 30_000
    comment = b"\xff\xfe" + (len(look_alikes) + 2).to_bytes(2, "big") + look_alikes
    expected = preprocessor().decode(PROGRESSIVE)

    # In a comment, as in a preview or a profile; and behind the picture, where phones put films.
    for encoded in (PROGRESSIVE[:2] + comment + PROGRESSIVE[2:], PROGRESSIVE + look_alikes):
        np.testing.assert_array_equal(preprocessor().decode(encoded), expected)


def animation(image_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return encode(frames[0], image_format, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "got 0 bytes"),
        (b"this is text named .jpg", "expected a JPEG, PNG, WebP or BMP file, got 23 bytes"),
        (encode(Image.new("RGB", (8, 8)), "GIF"), "expected a JPEG, PNG, WebP or BMP"),
        (animation("PNG"), "animation of 2 frames"),
        (animation("WEBP"), "animation of 2 frames"),
        (encode(Image.effect_noise((200, 200), 50), "JPEG")[:3000], "cannot be decoded: .*truncated"),
        (encode(Image.effect_noise((200, 200), 50), "PNG")[:3000], "cannot be decoded"),
        (encode(Image.new("RGB", (1200, 1000))), r"at most 1 megapixels, got 1200×1000 \(1.2"),
        (encode(Image.new("RGB", (1, 200_000))), "after resizing, 8×1600000"),
    ],
    ids=["empty", "text", "gif", "apng", "webp", "cut jpeg", "cut png", "too large", "long strip"],
)
def test_what_cannot_be_used_is_refused_with_the_reason(encoded, message):
    with pytest.raises(ImageError, match=message):
        preprocessor().decode(encoded)


def test_a_bomb_is_refused_before_a_pixel_is_decoded():
    with pytest.raises(ImageError, match=r"60000×60000 \(3600.0 megapixels\)"):
        preprocessor().decode(bomb_of(60_000, 60_000))


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
def test_the_models_input_is_in_its_layout_and_dtype(gradient, layout, dtype):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    by_server = dtype != "uint8"
    made = preprocessor(layout=layout, dtype=dtype, mean=mean * by_server, std=std * by_server)
    pixels = made.decode(encode(gradient))
    # What torchvision's ToTensor and Normalize make of it, in double precision.
    expected = (pixels / 255 - np.array(mean)) / np.array(std) if by_server else pixels

    for sample in (made.model_input(encode(gradient)), made.model_input(np.asarray(gradient))):
        assert (sample.dtype, sample.flags.c_contiguous) == (np.dtype(dtype), True)
        in_order = sample.transpose(1, 2, 0) if layout is Layout.NCHW else sample
        np.testing.assert_allclose(in_order, expected, atol=2e-3 if dtype == "float16" else 1e-6)
    assert made.takes_pixels == (layout is Layout.NHWC and dtype == "uint8")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "WEBP"])
def test_an_image_of_more_pixels_than_asked_for_at_once_is_told_as_large(image_format):
    made = preprocessor()
    image = encode(Image.new("RGB", (40, 30)), image_format)

    assert made.model_input(image, 1199).pixels == 1200
    np.testing.assert_array_equal(made.model_input(image, 1200), made.model_input(image))


def test_a_large_image_is_told_by_its_header_before_a_pixel_is_decoded():
    assert preprocessor().model_input(bomb_of(900, 1000), 10_000).pixels == 900_000


def test_raw_pixels_are_large_by_their_size():
    made = preprocessor()

    assert made.model_input(np.zeros((30, 40, 3), dtype=np.uint8), 1199).pixels == 1200
    assert made.model_input(np.zeros((30, 40, 1), dtype=np.uint8), 1200).shape == (8, 8, 3)
    # These need no work.
    assert made.model_input(np.zeros((8, 8, 3), dtype=np.uint8), 1).shape == (8, 8, 3)


@pytest.mark.parametrize(("width", "height"), [(1, 10_000), (10_000, 1)])
@pytest.mark.parametrize("is_raw", [False, True])
def test_a_strip_is_as_large_as_what_it_grows_to(width, height, is_raw):
    strip = Image.new("RGB", (width, height))
    image = np.asarray(strip) if is_raw else encode(strip)

    assert preprocessor(side=8).model_input(image, 600_000).pixels == 8 * 80_000
    # Stretched, it has grown when its width is resized and its height is not yet.
    stretched = preprocessor(side=8, mode=ResizeMode.STRETCH)
    assert stretched.model_input(image, max(8 * height, 10_000)).shape == (8, 8, 3)
    assert stretched.model_input(image, 9999).pixels == max(8 * height, 10_000)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "got 0 bytes"),
        (b"this is text named .jpg", "got 23 bytes of text; send the image file itself"),
        (animation("PNG"), "animation of 2 frames"),
        (bomb_of(60_000, 60_000), "at most 1 megapixels, got 60000×60000"),
        (bomb_of(1, 200_000), "after resizing, 8×1600000"),
        (bomb_of(200_000, 1), "after resizing, 1600000×8"),
    ],
    ids=["empty", "text", "apng", "too large", "long strip", "wide strip"],
)
def test_what_its_header_shows_to_be_unusable_is_refused_and_not_put_off_as_large(encoded, message):
    with pytest.raises(ImageError, match=message):
        preprocessor().model_input(encoded, 1)
