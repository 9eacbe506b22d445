"""`--preprocess` of export and import, from the command to the graph."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import Result

from support.foreign import classifier
from vistazo_export.checks.sample_images import sample_images
from vistazo_export.networks import zoo
from vistazo_export.presets.preset import from_proto, to_pixels
from vistazo_export.publishing.manifest import read_manifest

Vistazo = Callable[..., Result]

SIZE = {"resize_mode": "SHORTEST_EDGE", "resize_size": 72, "crop_height": 64, "crop_width": 64}
CAFFE = SIZE | {
    "interpolation": "bilinear",
    "mean": [104, 117, 123],
    "std": [1, 1, 1],
    "value_range": 255,
    "channel_order": "BGR",
}
AS_THEY_ARE = SIZE | {"interpolation": "bicubic", "mean": [0, 0, 0], "std": [1, 1, 1]}
BORDER = {
    "pretrained_cfg": {
        "input_size": [3, 64, 96],
        "crop_mode": "border",
        "crop_pct": 0.95,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
    }
}
WAYS = {"caffe": CAFFE, "as they are": AS_THEY_ARE, "border": BORDER}


def notes(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if ": preprocessing: " in line]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("way", WAYS)
def test_the_graph_of_a_told_preprocessing_gives_the_networks_own_logits(
    tmp_path: Path, vistazo: Vistazo, way: str, precision: str
):
    (tmp_path / "told.json").write_text(json.dumps(WAYS[way]))
    models = tmp_path / "models"
    arguments = ["--weights", "untrained", "--preprocess", tmp_path / "told.json", "--max-batch", 2]
    done = vistazo(
        "export", "squeezenet1_1", *arguments, "--precision", precision, "--name", "told", "--models", models
    )
    assert done.exit_code == 0, done.stderr
    (note,) = notes(done)
    assert note.startswith("told: preprocessing: ")
    assert "told.json" in note

    manifest = read_manifest(models / "told" / "1" / "manifest.json")
    pixels = to_pixels(sample_images(3)[0], from_proto(manifest.preprocessing, 3))
    assert pixels.shape == (manifest.input.height, manifest.input.width, 3)
    session = onnxruntime.InferenceSession(
        models / "told" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"images": pixels[np.newaxis]})
    record = manifest.preprocessing
    values = pixels[:, :, ::-1] if record.channel_order == "BGR" else pixels
    values = values * ((record.value_range or 1) / 255)
    values = ((values - np.array(record.mean)) / np.array(record.std)).transpose(2, 0, 1)
    network = zoo.load(zoo.resolve("squeezenet1_1", "untrained")).module
    with torch.inference_mode():
        expected = network(torch.from_numpy(values[np.newaxis].astype(np.float32))).numpy()
    most = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.5}[precision]
    assert np.abs(logits - expected).max() <= most * np.abs(expected).max()

    assert vistazo("verify", models).exit_code == 0
    again = vistazo(
        "export", "squeezenet1_1", *arguments, "--precision", precision, "--name", "told", "--models", models
    )
    assert "unchanged" in again.stdout


def test_a_checkpoint_of_ones_own_is_told_what_was_assumed_for_it(tmp_path: Path, vistazo: Vistazo):
    own = tmp_path / "own.pth"
    torch.save(zoo.load(zoo.resolve("squeezenet1_1", "untrained")).module.state_dict(), own)
    arguments = ["export", "squeezenet1_1", "--weights", own, "--models", tmp_path / "models"]
    (note,) = notes(vistazo(*arguments))
    assert "shorter edge to 256 (bilinear), crop 224×224, RGB, mean 0.485 0.456 0.406" in note
    assert "assumed from SqueezeNet1_1_Weights.IMAGENET1K_V1" in note
    assert "--preprocess" in note

    done = vistazo(*arguments, "--preprocess", "ResNet50_Weights.IMAGENET1K_V2")
    assert "shorter edge to 232" in notes(done)[0]
    assert notes(done)[0].endswith("; from ResNet50_Weights.IMAGENET1K_V2")
    assert "exported" in done.stdout
    manifest = read_manifest(tmp_path / "models" / "squeezenet1_1" / "2" / "manifest.json")
    assert manifest.preprocessing.resize_size == 232


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ("none", "--preprocess none is for `vistazo import`"),
        ("nowhere.toml", "cannot read the preprocessing file"),
        ("ResNet50_Weights.V7", "torchvision has no weights"),
        ("imagenet", "is for colour"),
    ],
)
def test_what_lenet_cannot_take_is_refused(tmp_path: Path, vistazo: Vistazo, choice: str, complaint: str):
    done = vistazo("export", "lenet", "--preprocess", choice, "--models", tmp_path / "models")

    assert done.exit_code == 1
    assert complaint in done.stderr
    assert not list((tmp_path / "models").glob("*/*"))


@pytest.mark.parametrize("way", WAYS)
def test_an_import_says_what_it_wrote_and_from_where(tmp_path: Path, vistazo: Vistazo, way: str):
    (tmp_path / "told.json").write_text(json.dumps(WAYS[way]))
    graph = tmp_path / "foreign.onnx"
    graph.write_bytes(classifier(size=("height", "width")).SerializeToString())
    done = vistazo(
        "import",
        graph,
        "--name",
        "told",
        "--preprocess",
        tmp_path / "told.json",
        "--models",
        tmp_path / "models",
    )

    assert done.exit_code == 0, done.stderr
    (note,) = notes(done)
    assert "from told.json" in note
    assert {"caffe": "BGR, mean 104 117 123", "as they are": "0 to 1", "border": "fit into 67×101"}[
        way
    ] in note
    assert vistazo("verify", tmp_path / "models").exit_code == 0
