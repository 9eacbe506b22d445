"""What may be passed as an image, how it is sent, and what is said of anything else."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vistazo_client import Client, InvalidImageError

GREY = np.arange(6, dtype=np.uint8).reshape(2, 3)
COLOUR = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


def sent(server):
    return server.service.requests[-1].images[0]


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(b"a cat")
    return path


@pytest.mark.parametrize("form", [Path, str], ids=["Path", "str"])
def test_a_path_is_sent_as_the_files_bytes(client, server, cat, form):
    result = client.classify(form(cat))

    assert sent(server).encoded == b"a cat"
    assert result.top.label == "a cat"


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_bytes_are_sent_as_they_are(client, server, form):
    client.classify(form(b"a cat"))

    assert sent(server).encoded == b"a cat"


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (GREY, (2, 3, 1)),
        (GREY[:, :, None], (2, 3, 1)),
        (COLOUR, (2, 3, 3)),
        (COLOUR[:, ::-1], (2, 3, 3)),
        (np.asfortranarray(COLOUR), (2, 3, 3)),
        (COLOUR.transpose(1, 0, 2), (3, 2, 3)),
        (COLOUR[:, :, :2], (2, 3, 2)),
        (np.dstack([COLOUR, GREY]), (2, 3, 4)),
        (np.dstack([COLOUR, GREY])[::-1], (2, 3, 4)),
    ],
    ids=[
        *("grey", "grey with channel", "colour", "mirrored view", "column order", "transposed view"),
        *("grey and alpha", "colour and alpha", "colour and alpha, a view"),
    ],
)
def test_an_array_is_sent_as_pixels_row_by_row(client, server, array, shape):
    client.classify(array)

    raw = sent(server).raw
    assert (raw.height, raw.width, raw.channels) == shape
    assert raw.data == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (COLOUR.astype(np.float32), "got float32 (2, 3, 3)"),
        (COLOUR.astype(np.int64), "got int64 (2, 3, 3)"),
        (np.zeros((2, 2, 5), np.uint8), "got uint8 (2, 2, 5)"),
        (np.zeros((2, 2, 0), np.uint8), "got uint8 (2, 2, 0)"),
        (np.zeros((5, 2, 2, 3), np.uint8), "got uint8 (5, 2, 2, 3); for several images pass a list"),
        (np.zeros((0, 2, 3), np.uint8), "got uint8 (0, 2, 3)"),
        (np.zeros(3, np.uint8), "got uint8 (3,)"),
        (np.array(None), "got object ()"),
    ],
)
def test_any_other_array_is_refused_with_its_dtype_and_shape(client, server, array, said):
    with pytest.raises(InvalidImageError) as refusal:
        client.classify(array)

    assert "expected a uint8 array of shape (height, width)" in str(refusal.value)
    assert said in str(refusal.value)
    assert server.service.requests == []


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("RGB", 3), ("RGBA", 4), ("LA", 2), ("P", 3), ("CMYK", 3), ("YCbCr", 3), ("HSV", 3)],
)
def test_a_pil_image_is_sent_as_grey_or_rgb_pixels_with_its_alpha(client, server, mode, channels):
    image = Image.fromarray(COLOUR).convert(mode)
    client.classify(image)

    raw = sent(server).raw
    assert (raw.height, raw.width, raw.channels) == (2, 3, channels)
    assert raw.data == image.convert({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]).tobytes()


def pixels_of(server):
    raw = sent(server).raw
    return np.frombuffer(raw.data, np.uint8).reshape(raw.height, raw.width, raw.channels)


@pytest.mark.parametrize("transparency", [bytes(range(256)), 3, b"\0"])
def test_a_pil_palette_with_transparency_is_sent_with_alpha(client, server, transparency):
    image = Image.fromarray(COLOUR).convert("P")
    indexes = np.asarray(image)
    image.info["transparency"] = transparency
    client.classify(image)

    alphas = np.full(256, 255, np.uint8)
    if isinstance(transparency, int):
        alphas[transparency] = 0
    else:
        alphas[: len(transparency)] = list(transparency)
    np.testing.assert_array_equal(pixels_of(server)[..., 3], alphas[indexes])
    colours = np.asarray(Image.fromarray(COLOUR).convert("P").convert("RGB"))
    np.testing.assert_array_equal(pixels_of(server)[..., :3], colours)


@pytest.mark.parametrize(
    ("image", "transparency", "expected"),
    [
        (Image.fromarray(GREY), 4, [[0, 1, 2], [3, 4, 5]]),
        (Image.fromarray(GREY.astype(np.uint16) * 257), 4 * 257, [[0, 1, 2], [3, 4, 5]]),
        (Image.fromarray(GREY == 4), 255, [[0, 0, 0], [0, 255, 0]]),
    ],
    ids=["L", "I;16", "1"],
)
def test_a_pil_image_with_a_transparent_grey_is_sent_with_alpha(
    client, server, image, transparency, expected
):
    image.info["transparency"] = transparency
    client.classify(image)

    np.testing.assert_array_equal(pixels_of(server)[..., 0], expected)
    np.testing.assert_array_equal(pixels_of(server)[..., 1], np.where(GREY == 4, 0, 255))


@pytest.mark.parametrize("factor", [1, 257])
def test_a_pil_image_with_a_transparent_colour_is_sent_with_alpha(client, server, factor):
    image = Image.fromarray(COLOUR)
    # Of a PNG with 16 bits a channel Pillow keeps the colour as it was.
    image.info["transparency"] = tuple(factor * int(value) for value in COLOUR[1, 2])
    client.classify(image)

    np.testing.assert_array_equal(pixels_of(server)[..., :3], COLOUR)
    np.testing.assert_array_equal(pixels_of(server)[..., 3], [[255, 255, 255], [255, 255, 0]])


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_colours_are_sent_as_they_were(client, server, mode):
    alpha, colour = np.meshgrid(np.arange(256), np.arange(256))
    multiplied = np.minimum(colour, alpha)
    bands = [multiplied] * (3 if mode == "RGBa" else 1)
    stored = np.dstack([*bands, alpha]).astype(np.uint8)
    client.classify(Image.frombytes(mode, (256, 256), stored.tobytes()))

    sent_pixels = pixels_of(server).astype(int)
    # Laid on black they are again what they were.
    np.testing.assert_array_equal(sent_pixels[..., -1], alpha)
    laid = (sent_pixels[..., 0] * alpha + 127) // 255
    np.testing.assert_array_equal(laid, multiplied)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data:image/png;base64,iVBORw0KGgo" + "A" * 9000, "got a data URL (data:image/png;base64,iVBORw0"),
        ("https://example.com/cat.jpg", "got a URL (https://example.com/cat.jpg); fetch it"),
        ("/9j/4AAQ" * 9000, "got a text of 72000 characters (/9j/4AAQ/9j"),
    ],
)
def test_a_text_that_is_no_path_is_named_for_what_it_is(client, server, text, said):
    with pytest.raises(InvalidImageError) as refusal:
        client.classify(text)

    assert said in str(refusal.value)
    assert len(str(refusal.value)) < 400
    assert server.service.requests == []


def test_a_16_bit_pil_image_is_scaled_to_8_bits(client, server):
    client.classify(Image.fromarray(np.array([[0, 256, 65535]], np.uint16)))

    assert list(sent(server).raw.data) == [0, 1, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_pil_image_of_unknown_range_is_refused(client, mode):
    with pytest.raises(InvalidImageError, match=f"got mode {mode}"):
        client.classify(Image.new(mode, (2, 2)))


def test_a_pil_image_of_a_truncated_file_is_refused(client):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG")
    lazy = Image.open(io.BytesIO(file.getvalue()[:-200]))

    with pytest.raises(InvalidImageError, match=r"cannot be decoded: .*truncated"):
        client.classify(lazy)


def test_a_pil_image_is_taken_as_it_stands_in_memory_whatever_its_exif_says(client, server):
    image = Image.fromarray(COLOUR)
    image.getexif()[0x0112] = 6
    client.classify(image)

    assert sent(server).raw.data == COLOUR.tobytes()


def test_a_missing_file_is_named(client, tmp_path):
    with pytest.raises(InvalidImageError, match=r"nope\.jpg: no such file$"):
        client.classify(tmp_path / "nope.jpg")


def test_a_folder_is_named(client, tmp_path):
    with pytest.raises(InvalidImageError, match=f"{tmp_path.name}: expected an image file, got a folder"):
        client.classify(tmp_path)


def test_an_empty_file_is_named(client, tmp_path):
    (tmp_path / "empty.png").touch()

    with pytest.raises(InvalidImageError, match=r"empty\.png: expected an image file, got an empty one"):
        client.classify(tmp_path / "empty.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(client, cat):
    cat.chmod(0)

    with pytest.raises(InvalidImageError, match=r"cat\.jpg: cannot be read \(Permission denied\)"):
        client.classify(cat)


def test_a_path_that_cannot_be_one_is_refused(client):
    with pytest.raises(InvalidImageError, match="cannot be read"):
        client.classify("a\0b.jpg")


def test_no_bytes_are_refused(client):
    with pytest.raises(InvalidImageError, match="got 0 bytes"):
        client.classify(b"")


def test_an_open_file_is_refused_with_what_to_pass_instead(client, cat):
    with cat.open("rb") as file, pytest.raises(InvalidImageError, match="pass its path"):
        client.classify(file)


@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), (3, "int"), (object(), "object")])
def test_anything_else_is_refused_with_its_type(client, value, kind):
    with pytest.raises(InvalidImageError, match=f"expected a path, .* or a numpy array, got {kind}$"):
        client.classify(value)


def test_an_image_over_the_message_limit_is_refused_before_it_is_sent(server, tmp_path):
    (tmp_path / "huge.bmp").write_bytes(bytes(200_000))
    with Client(server.address, max_message_bytes=100_000) as client:
        with pytest.raises(InvalidImageError, match=r"huge\.bmp: expected an image of at most 0\.1 MiB"):
            client.classify(tmp_path / "huge.bmp")
        with pytest.raises(InvalidImageError, match=r"^expected an image of at most"):
            client.classify(np.zeros((400, 400, 3), np.uint8))

    assert server.service.requests == []


def test_an_endless_file_is_not_read_to_its_end(client):
    with pytest.raises(InvalidImageError, match=r"/dev/zero: expected an image of at most 64\.0 MiB"):
        client.classify("/dev/zero")


def test_the_client_does_not_import_pillow():
    code = "import sys, vistazo_client; sys.exit('PIL' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
