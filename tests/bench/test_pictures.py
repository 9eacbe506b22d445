"""A user's own file is sent as it is, and beside it the same picture in files of its kind."""

import asyncio
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from support.images import file
from support.serving import serving
from support.tiny import SIDE, write_model
from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.payload import make_payload
from vistazo_bench.measuring.pictures import jpeg_files, own_files
from vistazo_bench.measuring.preparation import Preparation, Preparing, ask_preparing, prepare
from vistazo_client import ModelInfo, ModelState
from vistazo_client.cli.worker import Worker
from vistazo_preprocessing.preprocessor import Preprocessor
from vistazo_preprocessing.spec import JpegDecoding, PreprocessSpec, ResizeMode
from vistazo_proto import classification_pb2 as pb

PIXELS = np.random.default_rng(1).integers(0, 256, (90, 121, 3), dtype=np.uint8)
MODEL = ModelInfo("net", "3", ModelState.READY, input_height=8, input_width=8, input_channels=3)
PREPARING = Preparing(
    PreprocessSpec(8, 8, 3, ResizeMode.SHORTEST_EDGE, 10, Image.Resampling.BILINEAR), "the id"
)


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.fixture
def own(tmp_path):
    def write(data, name="own.jpg"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 77, "subsampling": "4:2:2", "progressive": True}),
        ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 60}),
        ("BMP", {}),
    ],
)
def test_a_file_is_sent_as_it_is_and_with_three_others_of_its_kind(own, kind, options):
    exif = Image.Exif()
    exif[0x0112] = 6
    original = file(PIXELS, kind, **options, **({} if kind == "BMP" else {"exif": exif}))
    pictures = own_files(own(original))

    assert pictures.files[0] == original
    assert len(set(pictures.files)) == 4
    for one in pictures.files:
        image = opened(one)
        assert (image.format, image.size, image.mode) == (kind, (121, 90), "RGB")
        assert image.getexif().get(0x0112) == (None if kind == "BMP" else 6)
        assert 0.8 < len(one) / len(original) < 1.25
    if kind == "JPEG":
        first, *others = map(opened, pictures.files)
        for other in others:
            assert other.quantization == first.quantization
            assert JpegImagePlugin.get_sampling(other) == JpegImagePlugin.get_sampling(first)
            assert other.info.get("progressive") == first.info.get("progressive")
    if options.get("lossless") or kind in ("PNG", "BMP"):
        np.testing.assert_array_equal(np.asarray(opened(pictures.files[1])), PIXELS[:, ::-1])


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.new("L", (30, 20), 77), "JPEG"),
        (Image.new("CMYK", (30, 20), (9, 99, 199, 0)), "JPEG"),
        (Image.new("RGBA", (30, 20), (1, 2, 3, 4)), "PNG"),
        (Image.new("P", (30, 20), 3), "PNG"),
        (Image.new("1", (30, 20), 1), "PNG"),
        (Image.fromarray(np.full((20, 30), 999, dtype=np.uint16)), "PNG"),
    ],
    ids=["grey JPEG", "CMYK JPEG", "RGBA", "palette", "bilevel", "16 bits"],
)
def test_every_mode_keeps_its_mode(own, image, kind):
    pictures = own_files(own(file(image, kind)))

    assert {opened(one).mode for one in pictures.files} == {image.mode}


def test_what_no_server_takes_is_refused_before_it_is_sent(own):
    with pytest.raises(BenchError, match="expected a JPEG, PNG, WebP or BMP file, got GIF"):
        own_files(own(file(PIXELS, "GIF")))
    with pytest.raises(BenchError, match="cannot read the image"):
        own_files(own(b"\xff\xd8\xff nothing"))
    with pytest.raises(BenchError, match="cannot read the image"):
        own_files(own(file(PIXELS, "JPEG")[:900]))
    with pytest.raises(BenchError, match="got 10 bytes of text"):
        own_files(own(b"only text\n"))


def test_jpeg_files_of_any_size_are_made_of_the_photograph():
    pictures = jpeg_files(None, (300, 401))

    assert len(set(pictures.files)) == 4
    assert {opened(one).size for one in pictures.files} == {(300, 401)}
    assert "JPEG 300×401 of " in pictures.source


def test_requests_carry_the_file(own):
    original = file(PIXELS, "PNG")
    made = make_payload(MODEL, kind="file", image=own(original, "own.png"))
    requests = [pb.ClassifyRequest.FromString(request) for request in made.requests]

    assert requests[0].images[0].encoded == original
    assert [request.images[0].encoded for request in requests] == list(made.encoded)
    assert made.source == "own.png as it is (PNG 121×90), and mirrored or turned"


@pytest.mark.parametrize("size", [None, (200, 160)])
@pytest.mark.parametrize("decoding", list(JpegDecoding))
def test_local_requests_carry_what_the_server_would_have_made_of_the_files(own, size, decoding):
    preparing = Preparing(replace(PREPARING.spec, jpeg_decoding=decoding), "the id")
    path = own(file(PIXELS, "JPEG"))
    made = make_payload(MODEL, kind="local", image=path, size=size, preparing=preparing)
    files = own_files(path).files if size is None else jpeg_files(path, size).files
    server = Preprocessor(preparing.spec, max_pixels=1_000_000)

    for request, sent in zip(map(pb.ClassifyRequest.FromString, made.requests), files, strict=True):
        raw = request.images[0].raw
        assert request.prepared_as == "the id"
        assert (raw.height, raw.width, raw.channels) == (8, 8, 3)
        assert raw.data == server.model_input(sent).tobytes()
    assert made.encoded == ()
    assert "prepared beforehand from" in made.source


def test_what_preparing_costs_is_told_in_its_parts():
    files = [file(PIXELS, "JPEG"), file(PIXELS, "PNG")]
    spec = replace(PREPARING.spec, jpeg_decoding=JpegDecoding.REDUCED)
    with Worker(Preparation, spec) as preparation:
        cost = preparation.call(Preparation.cost, files, 0.0)

    assert cost.decode_seconds > 0
    assert cost.resize_seconds > 0
    assert cost.decoded == (31, 23)
    assert prepare(files, PREPARING).shape == (2, 8, 8, 3)


async def test_a_server_is_asked_how_it_prepares(tmp_path):
    write_model(tmp_path / "models")
    model = ModelInfo("tiny", "1", ModelState.READY)
    async with serving(tmp_path / "models", jpeg_decoding="reduced") as server:
        told = await asyncio.to_thread(ask_preparing, server.address, model)

    assert told.id
    assert told.spec == PreprocessSpec(
        SIDE,
        SIDE,
        3,
        ResizeMode.SHORTEST_EDGE,
        SIDE,
        Image.Resampling.BILINEAR,
        jpeg_decoding=JpegDecoding.REDUCED,
    )
