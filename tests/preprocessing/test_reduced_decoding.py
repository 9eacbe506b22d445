"""JPEGs decoded at a fraction of their size: which, what comes of them, and what they count as."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vistazo_preprocessing.effort import Effort
from vistazo_preprocessing.errors import ImageError
from vistazo_preprocessing.formats.jpeg import read_jpeg
from vistazo_preprocessing.geometry import centre_crop, ratio_size, shortest_edge_size
from vistazo_preprocessing.preprocessor import Large, Preprocessor
from vistazo_preprocessing.spec import JpegDecoding, PreprocessSpec, ResizeMode

SIDE = 8
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
MODES = [
    (ResizeMode.SHORTEST_EDGE, {"resize_size": 9}),
    (ResizeMode.STRETCH, {"resize_height": 9, "resize_width": 11}),
    (ResizeMode.COVER, {"resize_height": 8, "resize_width": 10}),
    (ResizeMode.FIT, {"resize_height": 8, "resize_width": 10}),
]


def spec(mode=ResizeMode.SHORTEST_EDGE, *, decoding=JpegDecoding.REDUCED, channels=3, **rest):
    rest = {"resize_size": SIDE if mode is ResizeMode.SHORTEST_EDGE else 0, **rest}
    return PreprocessSpec(
        height=SIDE,
        width=SIDE,
        channels=channels,
        resize_mode=mode,
        interpolation=Image.Resampling.BILINEAR,
        jpeg_decoding=decoding,
        **rest,
    )


def prepare(encoded, wanted, **limits):
    return Preprocessor(wanted, max_pixels=10_000_000, **limits).model_input(encoded)


def exactly(encoded, wanted):
    return prepare(encoded, replace(wanted, jpeg_decoding=JpegDecoding.EXACT))


def picture(width, height, mode="RGB"):
    """A smooth picture in which every shift and turn shows."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(255, 0, height))
    pixels = np.stack([across, down, (across + down) / 2], axis=2)
    image = Image.fromarray(pixels.round().astype(np.uint8))
    return image if mode == "RGB" else image.convert(mode)


def noise(width, height, mode="RGB"):
    """A picture of which every pixel counts: another way to decode it gives other values."""
    values = np.random.default_rng(width * height).integers(100, 160, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def assert_alike(result, expected):
    """A part that is resized alone may differ by 1 from that part of the whole."""
    assert result.shape == expected.shape
    assert np.abs(result.astype(int) - expected).max() <= 1


def jpeg(image, *, orientation=1, **options):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(file, "JPEG", quality=90, exif=exif, **options)
    return file.getvalue()


def resized_size(width, height, wanted):
    if wanted.resize_mode is ResizeMode.SHORTEST_EDGE:
        return shortest_edge_size(width, height, wanted.resize_size)
    to_width, to_height = wanted.resize_width, wanted.resize_height
    if wanted.resize_mode is ResizeMode.STRETCH:
        return to_width, to_height
    return ratio_size(width, height, to_width, to_height, cover=wanted.resize_mode is ResizeMode.COVER)


def reference(encoded, wanted):
    """What Pillow alone makes of an upright JPEG, and at which scale."""
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        size = resized_size(width, height, wanted)
        ratio = min(width / size[0], height / size[1])
        scale = next((scale for scale in (8, 4, 2) if ratio >= 2 * scale), 1)
        image.draft(None, (width // scale, height // scale))
        decoded = image.convert("L" if wanted.channels == 1 else "RGB")
    assert decoded.size == (-(-width // scale), -(-height // scale))
    resized = decoded.resize(size, Image.Resampling.BILINEAR, box=(0, 0, width / scale, height / scale))
    return np.asarray(centre_crop(resized, SIDE, SIDE)).reshape(SIDE, SIDE, -1), scale


@pytest.mark.parametrize(("mode", "sizes"), MODES, ids=[mode.value for mode, _ in MODES])
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    colours=st.sampled_from(["L", "RGB", "CMYK"]),
    channels=st.sampled_from([1, 3]),
    progressive=st.booleans(),
    subsampling=st.sampled_from(SUBSAMPLINGS),
    restart=st.sampled_from([0, 1, 3]),
)
def test_the_pixels_are_those_of_the_scale_that_leaves_twice_the_new_size(
    mode, sizes, width, height, colours, channels, progressive, subsampling, restart
):
    options = {} if colours == "L" else {"subsampling": subsampling}
    encoded = jpeg(
        noise(width, height, colours), progressive=progressive, restart_marker_blocks=restart, **options
    )
    wanted = spec(mode, channels=channels, **sizes)
    expected, _ = reference(encoded, wanted)

    assert_alike(prepare(encoded, wanted), expected)


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [
        (32, 31, 1),
        (32, 32, 2),
        (63, 64, 2),
        (64, 64, 4),
        (127, 128, 4),
        (128, 128, 8),
        (5000, 128, 8),
        (5000, 31, 1),
    ],
)
def test_the_scale_changes_where_both_edges_are_twice_the_new_size(width, height, scale):
    encoded = jpeg(noise(width, height))
    expected, chosen = reference(encoded, spec())

    assert chosen == scale
    assert_alike(prepare(encoded, spec()), expected)
    assert np.array_equal(expected, exactly(encoded, spec())) == (scale == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(129, 145), (150, 137), (71, 66)])
def test_nothing_shifts_whichever_way_up_it_is_stored_and_however_odd_its_size(width, height, orientation):
    """A size of 129 becomes 17 at 1/8, the last in part: counted in full, it would shift by 7 pixels."""
    image = picture(width, height)
    stored = image.transpose(TURNS[orientation]) if orientation > 1 else image
    back = {6: 8, 8: 6}.get(orientation, orientation)
    encoded = jpeg(stored, orientation=back, subsampling="4:4:4")

    result = prepare(encoded, spec())

    assert not np.array_equal(result, exactly(encoded, spec())), "it was not reduced"
    assert np.abs(result.astype(int) - exactly(encoded, spec())).max() <= 3


def test_the_edges_are_compared_upright():
    """Stored lying, 2 to 1; upright, its height is the long edge, as is that of the new size."""
    wanted = spec(ResizeMode.STRETCH, resize_width=8, resize_height=16)
    lying = picture(256, 128)

    standing = prepare(jpeg(lying, orientation=6), wanted)

    assert not np.array_equal(standing, exactly(jpeg(lying, orientation=6), wanted))
    # 256×128 to 8×16: the height allows 1/4.
    assert_alike(prepare(jpeg(noise(256, 128)), wanted), reference(jpeg(noise(256, 128)), wanted)[0])
    large = Preprocessor(wanted, max_pixels=100_000).model_input(jpeg(lying, orientation=6), 1)
    assert large.pixels == 32 * 16 + 256 * 128 // 5


@pytest.mark.parametrize(
    ("interpolation", "resize"),
    [(Image.Resampling.NEAREST, 9), (Image.Resampling.BICUBIC, 5), (Image.Resampling.LANCZOS, SIDE)],
    ids=["nearest", "padded", "all of it"],
)
def test_what_is_not_resized_in_part_is_the_same_to_the_bit(interpolation, resize):
    encoded = jpeg(noise(150, 150))
    wanted = replace(spec(), interpolation=interpolation, resize_size=resize)
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft(None, (150 // 8, 150 // 8))
        resized = image.resize((resize, resize), interpolation, box=(0, 0, 150 / 8, 150 / 8))

    np.testing.assert_array_equal(prepare(encoded, wanted), np.asarray(centre_crop(resized, SIDE, SIDE)))


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "BMP"])
def test_other_formats_and_pixels_are_untouched(image_format):
    image = noise(128, 128)
    file = io.BytesIO()
    image.save(file, image_format)

    np.testing.assert_array_equal(prepare(file.getvalue(), spec()), exactly(file.getvalue(), spec()))
    np.testing.assert_array_equal(prepare(np.asarray(image), spec()), exactly(np.asarray(image), spec()))


def test_what_is_not_resized_is_not_reduced():
    encoded = jpeg(noise(128, 128))
    wanted = spec(ResizeMode.NO_RESIZE)

    np.testing.assert_array_equal(prepare(encoded, wanted), exactly(encoded, wanted))


def lossless_grey(width, height):
    """A grey JPEG without a DCT (SOF3): every sample is what is predicted, which one bit says."""

    def segment(marker, content):
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content

    frame = bytes([8]) + height.to_bytes(2) + width.to_bytes(2) + bytes([1, 1, 0x11, 0])
    tables = segment(0xC3, frame) + segment(0xC4, bytes([0, 1, *[0] * 15, 0]))
    scan = segment(0xDA, bytes([1, 1, 0, 1, 0, 0])) + bytes(-(-width * height // 8))
    return b"\xff\xd8" + tables + scan + b"\xff\xd9"


def test_a_jpeg_without_a_dct_is_decoded_whole():
    encoded = lossless_grey(128, 128)
    with Image.open(io.BytesIO(encoded)) as image:
        try:
            image.load()
        except OSError:
            pytest.skip("this Pillow decodes none")

    assert (prepare(encoded, spec()) == 128).all()


def test_a_truncated_jpeg_is_refused_as_ever():
    encoded = jpeg(noise(128, 128))

    with pytest.raises(ImageError, match="truncated"):
        prepare(encoded[: len(encoded) // 2], spec())


def test_the_limit_of_pixels_is_that_of_the_whole_image():
    with pytest.raises(ImageError, match=r"at most 0\.016 megapixels, got 128×128"):
        Preprocessor(spec(), max_pixels=16_000).model_input(jpeg(noise(128, 128)))


def test_it_counts_as_the_work_that_is_left():
    made = Preprocessor(spec(), max_pixels=100_000)
    encoded = jpeg(noise(128, 256))
    work = 16 * 32 + 128 * 256 // 5

    large = made.model_input(encoded, work - 1)

    assert (large.pixels, large.file_bytes) == (work, len(encoded))
    assert made.model_input(encoded, work).shape == (SIDE, SIDE, 3)
    # All coefficients of a progressive one are read before the first pixel.
    assert made.model_input(jpeg(noise(128, 256), progressive=True), 1).pixels == 16 * 32 + 128 * 256


@pytest.mark.parametrize("progressive", [False, True])
def test_its_memory_is_what_it_takes_and_counts_as_that(progressive):
    encoded = jpeg(noise(1024, 1024), progressive=progressive, subsampling="4:2:0")
    header = read_jpeg(encoded, Effort())
    saved = header.decode_bytes - header.reduced(8).decode_bytes
    exact, reduced = (
        Preprocessor(spec(decoding=decoding), max_pixels=2_000_000).model_input(encoded, 1)
        for decoding in (JpegDecoding.EXACT, JpegDecoding.REDUCED)
    )

    # The result is smaller; the coefficients of a progressive one, 2 bytes each, are all there.
    assert saved == 4 * (1024 * 1024 - 128 * 128)
    assert (header.reduced(8).decode_bytes > 2 * 1.5 * 1024 * 1024) == progressive
    assert isinstance(exact, Large)
    assert isinstance(reduced, Large)
    assert exact.bytes - reduced.bytes >= saved


def test_a_smaller_budget_of_memory_lets_it_pass():
    encoded = jpeg(noise(2048, 2048))
    needed = Preprocessor(spec(), max_pixels=5_000_000).model_input(encoded, 1).bytes

    assert prepare(encoded, spec(), max_bytes=needed).shape == (SIDE, SIDE, 3)
    with pytest.raises(ImageError, match="MiB to decode"):
        prepare(encoded, spec(decoding=JpegDecoding.EXACT), max_bytes=needed)
