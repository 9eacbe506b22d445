"""Transparent images are answered as their pictures on the background of the model's manifest."""

import numpy as np
import pytest
from PIL import Image

from support.images import file
from support.serving import encoded, probabilities, raw, serving
from support.tiny import tiny_manifest, tiny_model, write_model
from vistazo_client import AsyncClient

SIDE = 4
RGBA = np.random.default_rng(7).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
LA = np.ascontiguousarray(RGBA[:, :, 2:])


def laid(pixels: np.ndarray, background) -> np.ndarray:
    colours, alpha = pixels[..., :-1].astype(int), pixels[..., -1:].astype(int)
    exact = np.broadcast_to(colours, (SIDE, SIDE, 3)) * alpha + np.array(background) * (255 - alpha)
    return ((2 * exact + 255) // 510).astype(np.uint8)


@pytest.fixture(params=[(), (0,), (10, 200, 90)], ids=["white", "black", "green"])
def background(request):
    return request.param


@pytest.fixture
def on_background(tmp_path, background):
    model = tiny_model()
    manifest = tiny_manifest("tiny", model.SerializeToString())
    manifest.preprocessing.background.extend(background)
    write_model(tmp_path / "models", model=model, manifest=manifest)
    return tmp_path / "models"


async def test_files_arrays_and_pil_images_are_answered_alike(on_background, background):
    below = background * 3 if len(background) == 1 else background or (255, 255, 255)
    kinds = {
        "PNG": (file(RGBA), RGBA),
        "WebP": (file(RGBA, "WEBP", lossless=True, exact=True), RGBA),
        "array": (RGBA, RGBA),
        "PIL image": (Image.fromarray(RGBA), RGBA),
        "grey PNG": (file(LA), LA),
        "grey array": (LA, LA),
        "grey PIL image": (Image.fromarray(LA), LA),
        "lazy PIL image": (Image.open(path_of(on_background, file(RGBA))), RGBA),
    }
    async with serving(on_background) as server, AsyncClient(server.address) as client:
        answers = await client.classify([data for data, _ in kinds.values()], top_k=3)
        for name, answer, (_, pixels) in zip(kinds, answers, kinds.values(), strict=True):
            expected = (await server.classify(raw(laid(pixels, below)))).results[0]
            got = {each.label: each.probability for each in answer.predictions}
            assert got == probabilities(expected), name


def path_of(models, data):
    path = models.parent / "image.png"
    path.write_bytes(data)
    return path


async def test_premultiplied_pil_images_are_answered_as_they_look(models):
    image = Image.fromarray(RGBA).convert("RGBa")
    stored = np.frombuffer(image.tobytes(), np.uint8).reshape(SIDE, SIDE, 4).astype(int)
    # On white, premultiplied: the colour, and white where it does not cover.
    looks = stored[..., :3] + 255 - stored[..., 3:]
    async with serving(models) as server, AsyncClient(server.address) as client:
        answer = await client.classify(image)
        expected = (await server.classify(raw(looks.astype(np.uint8)))).results[0]

    got = {each.label: each.probability for each in answer.predictions}
    assert got == pytest.approx(probabilities(expected), abs=0.02)


async def test_raw_pixels_with_alpha_of_another_size_are_laid_first_and_then_resized(models):
    large = np.kron(RGBA, np.ones((5, 5, 1), np.uint8))
    on_white = np.kron(laid(RGBA, (255, 255, 255)), np.ones((5, 5, 1), np.uint8))
    async with serving(models) as server:
        answer = await server.classify(raw(large), encoded(file(large)), raw(on_white))

    first, second, third = map(probabilities, answer.results)
    assert first == second == third
