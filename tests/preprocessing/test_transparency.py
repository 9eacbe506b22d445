"""Transparency of every kind is laid on a background, as a viewer shows it."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from support.images import file, png_chunk
from vistazo_preprocessing.preprocessor import Preprocessor
from vistazo_preprocessing.spec import PreprocessSpec, ResizeMode

WIDTH, HEIGHT = 16, 12
RANDOM = np.random.default_rng(11)
RGBA = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
RGBA[0, :4, 3] = (0, 1, 254, 255)
LA = np.ascontiguousarray(RGBA[:, :, 2:])
BACKGROUNDS = [(), (0,), (128,), (9, 100, 201)]


def made(data, *, channels=3, background=(), width=WIDTH, height=HEIGHT):
    spec = PreprocessSpec(
        height=height,
        width=width,
        channels=channels,
        resize_mode=ResizeMode.NO_RESIZE,
        resize_size=0,
        interpolation=Image.Resampling.BILINEAR,
        background=background,
    )
    return Preprocessor(spec, max_pixels=1_000_000).model_input(data)


def laid(colours, alpha, background=(), *, channels=3):
    """What alpha compositing in 8 bits gives, rounded to the nearest."""
    below = np.array(background * (3 // len(background)) if background else (255, 255, 255), dtype=np.int64)
    colours = np.broadcast_to(colours if colours.ndim == 3 else colours[:, :, None], (*alpha.shape, 3))
    exact = colours.astype(np.int64) * alpha[:, :, None] + below * (255 - alpha.astype(np.int64))[:, :, None]
    rgb = Image.fromarray(((2 * exact + 255) // 510).astype(np.uint8))
    return np.asarray(rgb if channels == 3 else rgb.convert("L")).reshape(*alpha.shape, channels)


def png(depth, colour, rows, *chunks, width=WIDTH, height=HEIGHT):
    """A PNG file as written by hand, which other programs than Pillow write, too."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "array"])
def test_alpha_in_colour_is_laid_on_the_background(kind, channels, background):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = RGBA if kind == "array" else file(RGBA, kind, **options)
    if kind == "BMP":
        data = bmp_with_alpha(RGBA)

    result = made(data, channels=channels, background=background)

    np.testing.assert_array_equal(result, laid(RGBA[..., :3], RGBA[..., 3], background, channels=channels))


def bmp_with_alpha(pixels):
    """A BMP with a mask for its alpha, bottom row first."""
    height, width, _ = pixels.shape
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 56, width, height, 1, 32, 3, height * width * 4, 0, 0, 0, 0) + masks
    body = np.ascontiguousarray(pixels[::-1, :, [2, 1, 0, 3]]).tobytes()
    return struct.pack("<2sIHHI", b"BM", 14 + len(header) + len(body), 0, 0, 14 + len(header)) + header + body


def test_a_bmp_whose_fourth_byte_is_always_0_is_opaque_as_viewers_have_it():
    pixels = RGBA.copy()
    pixels[..., 3] = 0

    np.testing.assert_array_equal(made(bmp_with_alpha(pixels)), pixels[..., :3])


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("is_file", [False, True])
def test_alpha_in_grey_is_laid_on_the_background(is_file, channels, background):
    result = made(file(LA) if is_file else LA, channels=channels, background=background)

    np.testing.assert_array_equal(result, laid(LA[..., 0], LA[..., 1], background, channels=channels))


@pytest.mark.parametrize("colour", [4, 6])
def test_alpha_of_16_bits_counts_by_its_upper_8(colour):
    samples = {4: 2, 6: 4}[colour]
    pixels = RANDOM.integers(0, 65536, (HEIGHT, WIDTH, samples)).astype(">u2")

    result = made(png(16, colour, [row.tobytes() for row in pixels]))

    high = (pixels >> 8).astype(np.uint8)
    np.testing.assert_array_equal(result, laid(high[..., :-1], high[..., -1]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alphas", [bytes([255, 0, 255]), bytes([10, 0, 200]), bytes([0, 0, 0]), bytes([9])])
def test_each_colour_of_a_palette_has_its_alpha(alphas, channels):
    indexes = RANDOM.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
    palette = bytes([200, 10, 30, 0, 0, 0, 255, 250, 1])
    data = png(8, 3, [r.tobytes() for r in indexes], png_chunk(b"PLTE", palette), png_chunk(b"tRNS", alphas))

    result = made(data, channels=channels, background=(9, 100, 201))

    colours = np.frombuffer(palette, np.uint8).reshape(3, 3)[indexes]
    alpha = np.frombuffer(alphas.ljust(3, b"\xff"), np.uint8)[indexes]
    np.testing.assert_array_equal(result, laid(colours, alpha, (9, 100, 201), channels=channels))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_grey_of_a_png_of_any_depth_is_laid_on_the_background(depth, channels):
    most = (1 << depth) - 1
    key = most // 2 if depth < 16 else 0x1234
    values = RANDOM.integers(0, most + 1, (HEIGHT, WIDTH))
    values[3:5] = key
    # The same upper half as the key's, and yet another grey.
    values[5] = key ^ 1
    packed = [pack(row, depth) for row in values]
    data = png(depth, 0, packed, png_chunk(b"tRNS", struct.pack(">H", key)))

    result = made(data, channels=channels, background=(77,))

    grey = values >> 8 if depth == 16 else values * 255 // most
    alpha = np.where(values == key, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(result, laid(grey.astype(np.uint8), alpha, (77,), channels=channels))


def pack(row, depth):
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = "".join(format(int(value), f"0{depth}b") for value in row)
    return bytes(int(bits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(bits), 8))


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png_is_compared_in_all_its_bits(depth):
    pixels = RANDOM.integers(0, 1 << depth, (HEIGHT, WIDTH, 3))
    key = np.array([1, 2, 3]) if depth == 8 else np.array([0x0102, 0x0304, 0x0506])
    pixels[2:4] = key
    pixels[4] = key ^ [0, 0, 1]
    rows = [row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in pixels]

    result = made(png(depth, 2, rows, png_chunk(b"tRNS", struct.pack(">HHH", *key))), background=(0, 255, 0))

    alpha = np.where((pixels == key).all(axis=2), 0, 255).astype(np.uint8)
    colours = (pixels >> (depth - 8)).astype(np.uint8)
    np.testing.assert_array_equal(result, laid(colours, alpha, (0, 255, 0)))


def test_a_transparency_of_a_wrong_length_is_none_as_viewers_have_it():
    rows = [row.tobytes() for row in RGBA[..., :3]]

    assert (made(png(8, 2, rows, png_chunk(b"tRNS", b"\0\1"))) == RGBA[..., :3]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_are_turned_upright_too_also_in_strips(mode, orientation, monkeypatch):
    image = Image.fromarray(RGBA).convert("LA" if mode == "LA" else "RGBA")
    if mode == "P":
        image = Image.fromarray(RGBA[..., :3]).quantize(9)
    options = {"transparency": bytes(range(0, 252, 28))} if mode == "P" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    side = {"width": HEIGHT, "height": WIDTH} if orientation > 4 else {}
    data = file(image, exif=exif, **options)
    whole = made(data, background=(1, 200, 3), **side)
    flat = Image.fromarray(made(file(image, **options), background=(1, 200, 3)))
    np.testing.assert_array_equal(whole, made(file(flat, exif=exif), **side))

    monkeypatch.setattr("vistazo_preprocessing.preprocessor._STRIP_PIXELS", 40)
    np.testing.assert_array_equal(made(data, background=(1, 200, 3), **side), whole)
