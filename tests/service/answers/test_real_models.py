"""A real model on its whole way: exported from torch, served, and asked by the Python client."""

import asyncio
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from support.images import file
from support.serving import serving
from vistazo_client import Client, InvalidImageError

pytest.importorskip("torch", reason="torch is not installed; pip install 'vistazo[export]'")
if find_spec("sklearn") is None:
    pytest.skip("scikit-learn, which has the digits, is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def lenet_repository(tmp_path_factory: pytest.TempPathFactory, exports) -> Path:
    """A repository with lenet and its embedded weights."""
    from vistazo_export.exporter import ExportRequest

    repository = tmp_path_factory.mktemp("exported") / "models"
    exports.put(ExportRequest("lenet", repository, max_batch_size=16))
    return repository


@pytest.fixture(scope="module")
def digits():
    from vistazo_export.networks.digits import held_out

    return held_out()


async def test_held_out_digits_are_read_rightly_through_the_whole_path(lenet_repository, digits):
    images = [file(image) for image in digits.images]

    def ask(address: str):
        with Client(address) as client:
            return client.classify(images)

    async with serving(lenet_repository) as server:
        answers = await asyncio.to_thread(ask, server.address)

    assert len(answers) == len(digits.labels) >= 400
    right = [answer.top.label == str(label) for answer, label in zip(answers, digits.labels, strict=True)]
    assert np.mean(right) >= 0.97


async def test_files_arrays_and_pictures_of_a_digit_get_the_same_answer(lenet_repository, digits, tmp_path):
    from PIL import Image

    pixels = digits.images[0]
    path = tmp_path / "digit.png"
    path.write_bytes(file(pixels))

    def ask(address: str):
        with Client(address) as client:
            return client.classify([path, path.read_bytes(), pixels, Image.fromarray(pixels)], top_k=10)

    async with serving(lenet_repository) as server:
        answers = await asyncio.to_thread(ask, server.address)

    assert answers[0].top.label == str(digits.labels[0])
    assert len(answers[0].predictions) == 10
    assert sum(one.probability for one in answers[0].predictions) == pytest.approx(1, abs=1e-5)
    for answer in answers[1:]:
        assert [one.label for one in answer.predictions] == [one.label for one in answers[0].predictions]
        assert answer.top.probability == pytest.approx(answers[0].top.probability, abs=1e-5)


async def test_the_client_sees_where_the_weights_came_from(lenet_repository):
    async with serving(lenet_repository) as server:

        def ask():
            with Client(server.address) as client:
                return client.model("lenet")

        model = await asyncio.to_thread(ask)

    assert (model.weights, model.precision, model.ready) == ("pretrained", "fp32", True)
    assert model.labels == tuple("0123456789")


async def test_a_bad_file_among_digits_is_named_by_the_client(lenet_repository, digits, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.jpg"
    good.write_bytes(file(digits.images[0]))
    bad.write_text("This is a text.")

    def ask(address: str):
        with Client(address) as client:
            answers = client.classify([good, bad])
            with pytest.raises(InvalidImageError):
                answers[1].raise_for_error()
            return answers

    async with serving(lenet_repository) as server:
        answers = await asyncio.to_thread(ask, server.address)

    assert answers[0].top.label == str(digits.labels[0])
    assert "bad.jpg" in str(answers[1].error)
    assert "expected a JPEG, PNG, WebP or BMP file" in str(answers[1].error)
