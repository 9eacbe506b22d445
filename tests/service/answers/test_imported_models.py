"""Classifiers made elsewhere, imported, and served to people: the graph's own answers, whatever its shape."""

import asyncio
import json
from asyncio import to_thread
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from PIL import Image

from support.foreign import CLASSES, SIDE, classifier
from support.images import file
from support.onnx_zoo import LIGHT
from support.serving import encoded, probabilities, raw, serving, softmax
from vistazo_export.checks.sample_images import sample_images
from vistazo_export.importer import ImportRequest, import_model
from vistazo_export.presets.preset import Preset, to_pixels
from vistazo_preprocessing.spec import ResizeMode
from vistazo_proto import classification_pb2 as pb

MEAN, STD = (0.48, 0.46, 0.41), (0.23, 0.22, 0.225)
PRESET = Preset(
    height=SIDE,
    width=SIDE,
    channels=3,
    resize_mode=ResizeMode.SHORTEST_EDGE,
    resize_size=10,
    interpolation=Image.Resampling.BICUBIC,
    mean=MEAN,
    std=STD,
)
LABELS = ("ant", "bee", "cat", "dog", "elk")

TYPES = {"UINT8": TensorProto.UINT8, "FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16}
NUMPY = {"UINT8": np.uint8, "FP32": np.float32, "FP16": np.float16}


@dataclass(frozen=True)
class Photograph:
    """A picture, and what a caller sends of it."""

    picture: Image.Image
    sent: pb.Image


@pytest.fixture(scope="module")
def photographs() -> list[Photograph]:
    """Seven of them; made outside the tests' event loops, which that would hold."""
    return [Photograph(picture, encoded(file(picture))) for picture in sample_images(3)[:7]]


def import_graph(
    graph: onnx.ModelProto | Path, folder: Path, *, dtype: str = "FP32", changes: dict | None = None
) -> Path:
    """Import a graph, or the file of one, as the model "foreign"; return the repository.

    `changes` are of the fields of its preprocessing.
    """
    source = folder / "foreign.onnx"
    if isinstance(graph, Path):
        source = graph
    else:
        source.write_bytes(graph.SerializeToString())
    fields = {"resize_mode": "SHORTEST_EDGE", "resize_size": 10, "interpolation": "bicubic"}
    if dtype != "UINT8":
        fields |= {"mean": MEAN, "std": STD}
    fields |= changes or {}
    (folder / "preprocess.json").write_text(json.dumps(fields))
    (folder / "labels.txt").write_text("\n".join(LABELS))
    request = ImportRequest(
        source,
        "foreign",
        folder / "models",
        preprocess=str(folder / "preprocess.json"),
        labels=str(folder / "labels.txt"),
    )
    import_model(request)
    return folder / "models"


def prepared(image, *, layout: str = "NCHW", dtype: str = "FP32") -> np.ndarray:
    """Return an image as a batch of one for the graph, by the formula in the manifest's comments."""
    values = to_pixels(image, PRESET)
    if dtype != "UINT8":
        scaled = values.astype(np.float32) / np.float32(255)
        values = (scaled - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    if layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values[np.newaxis]).astype(NUMPY[dtype])


def scores(models: Path, batch: np.ndarray, name: str = "foreign") -> np.ndarray:
    """Return what ONNX Runtime says of a batch, run directly."""
    path = models / name / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: batch})
    return answer.reshape(-1).astype(np.float64)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", TYPES)
async def test_an_image_gets_the_graphs_own_answer(tmp_path: Path, photographs, layout: str, dtype: str):
    models = await to_thread(
        import_graph, classifier(layout=layout, dtype=TYPES[dtype]), tmp_path, dtype=dtype
    )
    photographs = photographs[:4]
    async with serving(models) as server:
        response = await server.classify(*(one.sent for one in photographs), top_k=CLASSES)

    assert len(response.results) == 4
    for photograph, result in zip(photographs, response.results, strict=True):
        expected = softmax(
            *await to_thread(scores, models, prepared(photograph.picture, layout=layout, dtype=dtype))
        )
        # A graph of float16 inputs computes in float32 here, on values of 11 bits.
        assert probabilities(result) == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-4)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", TYPES)
async def test_a_network_of_bgr_bytes_less_their_mean_gets_its_own_answer(
    tmp_path: Path, photographs, layout: str, dtype: str
):
    mean = [104, 117, 123]
    changes = {"channel_order": "BGR"}
    if dtype != "UINT8":
        changes |= {"value_range": 255, "mean": mean, "std": [1, 1, 1]}
    graph = classifier(layout=layout, dtype=TYPES[dtype])
    models = await to_thread(import_graph, graph, tmp_path, dtype=dtype, changes=changes)
    pixels = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    async with serving(models) as server:
        response = await server.classify(*(one.sent for one in photographs[:3]), raw(pixels), top_k=CLASSES)

    pictures = [await to_thread(to_pixels, one.picture, PRESET) for one in photographs[:3]]
    assert len(response.results) == 4
    for rgb, result in zip([*pictures, pixels], response.results, strict=True):
        values = rgb[:, :, ::-1] if dtype == "UINT8" else rgb[:, :, ::-1].astype(np.float32) - mean
        values = values.transpose(2, 0, 1) if layout == "NCHW" else values
        batch = np.ascontiguousarray(values[np.newaxis]).astype(NUMPY[dtype])
        expected = softmax(*await to_thread(scores, models, batch))
        assert probabilities(result) == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-4)


async def test_probabilities_are_not_softmaxed_again(tmp_path: Path, photographs):
    models = await to_thread(import_graph, classifier(ending="Softmax"), tmp_path)
    photograph = photographs[0]
    async with serving(models) as server:
        response = await server.classify(photograph.sent, top_k=CLASSES)

    expected = await to_thread(scores, models, prepared(photograph.picture))
    assert expected.sum() == pytest.approx(1)
    assert probabilities(response.results[0]) == pytest.approx(
        dict(zip(LABELS, expected, strict=True)), abs=1e-5
    )


async def test_raw_pixels_are_normalised_as_files_are(tmp_path: Path):
    models = await to_thread(import_graph, classifier(), tmp_path)
    pixels = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    async with serving(models) as server:
        response = await server.classify(raw(pixels), top_k=CLASSES)

    values = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    expected = softmax(
        *await to_thread(scores, models, values.transpose(2, 0, 1)[np.newaxis].astype(np.float32))
    )
    assert probabilities(response.results[0]) == pytest.approx(
        dict(zip(LABELS, expected, strict=True)), abs=1e-5
    )


@pytest.mark.parametrize("batch", [1, 4])
async def test_a_fixed_batch_serves_any_number_of_callers(tmp_path: Path, photographs, batch: int):
    models = await to_thread(import_graph, classifier(batch=batch), tmp_path)
    async with serving(models) as server:
        together = await server.classify(*(one.sent for one in photographs), top_k=CLASSES)
        apart = await asyncio.gather(*(server.classify(one.sent, top_k=CLASSES) for one in photographs))

    for at, photograph in enumerate(photographs):
        # The graph takes no other batch: the image fills it up.
        full = np.repeat(prepared(photograph.picture), batch, axis=0)
        expected = dict(zip(LABELS, softmax(*(await to_thread(scores, models, full))[:CLASSES]), strict=True))
        assert probabilities(together.results[at]) == pytest.approx(expected, abs=1e-5)
        assert probabilities(apart[at].results[0]) == pytest.approx(expected, abs=1e-5)


async def test_weights_in_another_file_are_served(tmp_path: Path, photographs):
    path = tmp_path / "outside.onnx"
    onnx.save(classifier(), path, save_as_external_data=True, location="outside.data", size_threshold=64)
    models = await to_thread(import_graph, path, tmp_path)
    photograph = photographs[0]
    async with serving(models) as server:
        response = await server.classify(photograph.sent, top_k=CLASSES)

    expected = softmax(*await to_thread(scores, models, prepared(photograph.picture)))
    assert probabilities(response.results[0]) == pytest.approx(
        dict(zip(LABELS, expected, strict=True)), abs=1e-5
    )


async def test_weights_in_another_file_that_changed_are_not_served(tmp_path: Path):
    path = tmp_path / "outside.onnx"
    onnx.save(classifier(), path, save_as_external_data=True, location="outside.data", size_threshold=64)
    models = await to_thread(import_graph, path, tmp_path)
    data = models / "foreign" / "1" / "outside.data"
    data.write_bytes(bytes([*data.read_bytes()[:-1], 7]))
    sound = ImportRequest(LIGHT / "light_squeezenet.onnx", "sound", models, preprocess="none")
    await to_thread(import_model, sound)
    async with serving(models) as server:
        assert await server.health_of("foreign") == "NOT_SERVING"
        assert await server.health_of("sound") == "SERVING"


async def test_scores_with_dimensions_of_one_behind_are_classes(tmp_path: Path, photographs):
    squeezenet = ImportRequest(
        LIGHT / "light_squeezenet.onnx",
        "squeezenet",
        tmp_path / "models",
        preprocess="imagenet",
        labels="imagenet",
    )
    await to_thread(import_model, squeezenet)
    async with serving(tmp_path / "models") as server:
        response = await server.classify(photographs[0].sent, top_k=1000)

    assert sum(probabilities(response.results[0]).values()) == pytest.approx(1, abs=1e-3)
    assert len(response.results[0].predictions.predictions) == 1000
