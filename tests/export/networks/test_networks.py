"""Where networks come from: names, labels, presets, seeded weights, the torchvision trap."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vistazo_export.errors import LabelsError, UnknownNetworkError, WeightsError, WeightsUnavailableError
from vistazo_export.networks import zoo
from vistazo_export.networks.nin import NetworkInNetwork


def test_every_network_has_labels_and_a_preset_that_can_be_served():
    names = zoo.network_names()

    assert {*zoo.OWN_NETWORKS, "alexnet", "vgg16", "resnet18", "mobilenet_v3_large"} <= set(names)
    for name in names:
        recipe = zoo.resolve(name)
        assert len(recipe.labels) == (10 if name == "lenet" else 1000)
        assert recipe.preset.channels == (1 if name == "lenet" else 3)


def test_only_classification_networks_are_offered():
    assert not [name for name in zoo.network_names() if "rcnn" in name or "deeplab" in name or "r3d" in name]


def test_an_unknown_network_brings_the_closest_names_to_mind():
    with pytest.raises(UnknownNetworkError, match="did you mean resnet18"):
        zoo.resolve("ResNet-18")


def test_published_weights_can_be_chosen_by_their_full_name():
    recipe = zoo.resolve("resnet50", "ResNet50_Weights.IMAGENET1K_V1")

    assert recipe.weights.source == "pretrained"
    assert recipe.weights.url.endswith("resnet50-0676ba61.pth")


def test_weights_that_are_neither_a_choice_nor_a_file_are_refused():
    with pytest.raises(WeightsError, match=r"no weights file nowhere\.pth"):
        zoo.resolve("lenet", "nowhere.pth")


def test_pretrained_weights_cannot_take_another_number_of_labels():
    with pytest.raises(LabelsError, match="10 classes, but 2 labels"):
        zoo.resolve("lenet", labels=["cat", "dog"])


def test_nin_says_that_its_weights_were_never_published_for_torch():
    with pytest.raises(WeightsUnavailableError, match="nin has no published torch weights"):
        zoo.load(zoo.resolve("nin"))


def test_nin_pools_to_six_by_six_as_in_the_paper_and_averages():
    features = NetworkInNetwork().eval().features(torch.zeros(1, 3, 224, 224))

    assert features.shape == (1, 1024, 6, 6)


def test_untrained_weights_are_the_same_each_time_and_leave_the_random_state_alone():
    recipe = zoo.resolve("squeezenet1_1", "untrained")
    torch.manual_seed(1)
    first = zoo.load(recipe).module.state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    expected = torch.rand(1)
    second = zoo.load(recipe).module.state_dict()

    assert drawn == expected
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("architecture", [*zoo.OWN_NETWORKS, "resnet18", "alexnet", "mobilenet_v3_small"])
def test_labels_of_ones_own_set_the_number_of_classes(architecture: str):
    network = zoo.load(zoo.resolve(architecture, "untrained", ["cat", "dog", "bird"]))
    preset = network.recipe.preset
    with torch.inference_mode():
        logits = network.module(torch.zeros(2, preset.channels, preset.height, preset.width))

    assert logits.shape == (2, 3)
    assert not network.module.training


FAKE_TORCHVISION = """
import torch
try:
    torch.ops.torchvision.nms
    torch.ops.torchvision.qnms
except (AttributeError, RuntimeError):
    raise RuntimeError("{error}")
from . import models
"""


@pytest.mark.parametrize(
    ("error", "works"),
    [("operator torchvision::nms does not exist", True), ("CUDA driver is on fire", False)],
)
def test_missing_compiled_operators_are_declared_and_no_other_error_is_hidden(
    tmp_path: Path, error: str, works: bool
):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(FAKE_TORCHVISION.format(error=error))
    (package / "models.py").write_text("found = True\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from vistazo_export.presets.torchvision_import import torchvision_models\n"
        "assert torchvision_models().found"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode == 0) is works, done.stderr
    if not works:
        assert "CUDA driver is on fire" in done.stderr


def test_the_commands_import_without_torch():
    program = (
        "import sys, vistazo_export.cli\n"
        "heavy = {'torch', 'torchvision', 'onnx', 'onnxruntime', 'skimage', 'sklearn', 'PIL', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
