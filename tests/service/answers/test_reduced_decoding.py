"""`--jpeg-decoding`: for the server and for one model, and what a server says of it."""

import asyncio
import json

import numpy as np
from click.testing import CliRunner
from PIL import Image

from support.images import file
from support.serving import encoded, probabilities, raw, serving
from support.tiny import SIDE, write_model
from vistazo_client import AsyncClient
from vistazo_client.cli import main
from vistazo_preprocessing.preprocessor import Preprocessor
from vistazo_preprocessing.spec import JpegDecoding, PreprocessSpec, ResizeMode

PHOTOGRAPH = file(
    np.random.default_rng(3).integers(0, 256, (203, 301, 3), dtype=np.uint8), "JPEG", quality=80
)


def prepared(decoding):
    spec = PreprocessSpec(
        SIDE, SIDE, 3, ResizeMode.SHORTEST_EDGE, SIDE, Image.Resampling.BILINEAR, jpeg_decoding=decoding
    )
    return Preprocessor(spec, max_pixels=1_000_000).model_input(PHOTOGRAPH)


async def answers(server, model):
    """Return what the server makes of the file, and of it as prepared in both ways."""
    images = [encoded(PHOTOGRAPH), *(raw(prepared(decoding)) for decoding in JpegDecoding)]
    return [probabilities(result) for result in (await server.classify(*images, model=model)).results]


async def test_one_model_may_decode_otherwise_than_the_server(tmp_path):
    models, settings = tmp_path / "models", tmp_path / "settings.toml"
    for name in ("fast", "plain"):
        write_model(models, name)
    settings.write_text('[fast]\njpeg_decoding = "reduced"\n')

    async with serving(models, model_settings=settings) as server:
        fast, exact, reduced = await answers(server, "fast")
        assert fast == reduced != exact
        plain, exact, _ = await answers(server, "plain")
        assert plain == exact


async def test_a_server_says_how_it_decodes(tmp_path):
    models = tmp_path / "models"
    write_model(models)

    async with serving(models, jpeg_decoding="reduced") as server, AsyncClient(server.address) as client:
        told = await client.models()
        table, lines = [await listed(server, *options) for options in ((), ("--json",))]

    assert [model.jpeg_decoding for model in told] == ["reduced"]
    assert "tiny version 1 decodes large JPEGs at a fraction of their size" in table
    assert json.loads(lines)["jpeg_decoding"] == "reduced"


async def test_exact_is_the_default_and_is_no_news(tmp_path):
    models = tmp_path / "models"
    write_model(models)

    async with serving(models) as server:
        table, lines = [await listed(server, *options) for options in ((), ("--json",))]

    assert "JPEG" not in table
    assert json.loads(lines)["jpeg_decoding"] == "exact"


async def listed(server, *options):
    arguments = ["models", "--server", server.address, *options]
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout
