"""`vistazo export timm:NAME` and `vistazo export package.module:function`."""

import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import Result

from vistazo_export.checks.sample_images import sample_images
from vistazo_export.errors import LabelsError, UnknownNetworkError
from vistazo_export.networks import zoo
from vistazo_export.presets.preset import from_proto, to_pixels
from vistazo_export.presets.torchvision_import import torchvision_models
from vistazo_export.publishing.manifest import read_manifest
from vistazo_proto.manifest_pb2 import Output, Preprocessing
from vistazo_proto.manifest_pb2 import Weights as WeightsRecord

Vistazo = Callable[..., Result]

torchvision_models()

OWN = """
import torch
from torch import nn

CHANNELS = {channels}

def small():
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(CHANNELS, 4, 3), nn.ReLU(), *pooled, nn.Linear(4, 3))

def doubled():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()
        def forward(self, images):
            return self.inner(images) * {factor}
    return Doubled()

def tags():
    return nn.Sequential(small(), nn.Sigmoid())

def chosen():
    return nn.Sequential(small(), nn.Softmax(dim=1))

def many():
    class Many(nn.Module):
        def forward(self, images):
            return {{"logits": images.mean((2, 3))}}
    return Many()

def text():
    return "no module"

def broken():
    raise RuntimeError("out of luck")
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[..., str]:
    """Write a module of one's own where the command runs; return its name, another for each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\n")
    count = iter(range(9))

    def write(factor: int = 2, channels: int = 3) -> str:
        name = f"own_{abs(hash(request.node.name))}_{next(count)}"
        (tmp_path / f"{name}.py").write_text(OWN.format(factor=factor, channels=channels))
        return name

    return write


def first_logits(models: Path, name: str, image, version: int = 1) -> np.ndarray:
    """Return what the exported graph says of the pixels that its manifest makes of an image."""
    folder = models / name / str(version)
    manifest = read_manifest(folder / "manifest.json")
    pixels = to_pixels(image, from_proto(manifest.preprocessing, manifest.input.channels))
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels[np.newaxis]})[0]


MORE_FAMILIES = (
    "test_vit",
    "test_convnext",
    "mobilenetv3_small_050",
    "test_efficientnet",
    "test_byobnet",
    "test_nfnet",
    "test_coatnet",
)
FAMILIES = (
    "resnet10t",
    *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_FAMILIES),
)
"""Small ones, a family each."""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_timms_answers_as_timm_does(tmp_path: Path, models: Path, vistazo: Vistazo, name: str):
    timm = import_module("timm")
    labels = [f"class {index}" for index in range(7)]
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    torch.manual_seed(3)
    network = timm.create_model(name, num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "own.pth")
    done = vistazo(
        "export", f"timm:{name}", "--weights", tmp_path / "own.pth", "--labels", tmp_path / "labels.txt",
        "--models", models, "--max-batch", 2,
    )  # fmt: skip

    assert done.exit_code == 0, done.stderr
    manifest = read_manifest(models / f"timm-{name}" / "1" / "manifest.json")
    assert list(manifest.labels) == labels
    assert re.search(f"assumed from timm[/ ]{name}", done.stderr)
    data = timm.data.resolve_data_config(model=network)
    image = sample_images(3)[0]
    with torch.inference_mode():
        expected = network(timm.data.create_transform(**data)(image)[None]).numpy()
    found = first_logits(models, f"timm-{name}", image)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert vistazo("verify", models, "--weights", tmp_path / "own.pth").exit_code == 0


def test_timms_own_preprocessing_and_labels_come_with_a_network():
    vit = zoo.resolve("timm:vit_base_patch16_224", "untrained")
    assert vit.architecture == "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert (len(vit.labels), vit.labels[0]) == (1000, "tench")
    assert vit.preset.mean == (0.5, 0.5, 0.5)
    assert (vit.preset.resize_size, vit.preset.height) == (248, 224)

    tagged = zoo.resolve("timm:resnet50.a1_in1k")
    assert (tagged.weights.source, tagged.weights.name) == ("pretrained", "timm/resnet50.a1_in1k")
    assert tagged.weights.url == "https://huggingface.co/timm/resnet50.a1_in1k"

    larger = zoo.resolve("timm:resnet50.fb_swsl_ig1b_ft_in1k", "untrained")
    assert larger.preset.resize_size == 256

    of_22k = zoo.resolve("timm:convnext_tiny.fb_in22k", "untrained")
    assert len(of_22k.labels) == 21841


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("timm:resnet81", "did you mean timm:resnet"),
        ("timm:resnet50.no_such_tag", "timm has no weights 'no_such_tag' of resnet50"),
        ("timm:resnet99999.x", "timm .* has no network"),
    ],
)
def test_what_timm_does_not_have_is_told(name: str, complaint: str):
    with pytest.raises(UnknownNetworkError, match=complaint):
        zoo.resolve(name)


def test_a_network_of_timms_without_labels_asks_for_them():
    with pytest.raises(LabelsError, match="say --labels FILE"):
        zoo.resolve("timm:vit_base_patch16_clip_224.laion2b", "untrained")


def test_weights_of_timms_that_cannot_be_had_name_the_other_ways(
    models: Path, vistazo: Vistazo, monkeypatch: pytest.MonkeyPatch
):
    timm = import_module("timm")

    def offline(*_, **__):
        raise OSError("the hub does not answer")

    monkeypatch.setattr(timm, "create_model", offline)
    done = vistazo("export", "timm:resnet10t", "--models", models)

    assert done.exit_code == 1
    assert "timm cannot get timm/resnet10t.c3_in1k: the hub does not answer" in done.stderr
    assert "other ways: --weights FILE, --weights untrained" in done.stderr


@pytest.mark.parametrize("function", ["small", "doubled"])
def test_a_function_of_ones_own_becomes_a_model(
    tmp_path: Path, models: Path, vistazo: Vistazo, own: Callable[..., str], function: str
):
    name = own()
    arguments = ["export", f"{name}:{function}", "--labels", tmp_path / "labels.txt", "--models", models]
    done = vistazo(*arguments, "--preprocess", "imagenet")

    assert done.exit_code == 0, done.stderr
    manifest = read_manifest(models / function / "1" / "manifest.json")
    assert list(manifest.labels) == ["ant", "bee", "cat"]
    assert (manifest.input.height, manifest.preprocessing.resize_size) == (224, 256)
    assert manifest.weights.source == WeightsRecord.CHECKPOINT
    assert manifest.weights.name == f"{name}:{function}"
    verified = vistazo("verify", models)
    assert verified.exit_code == 0, verified.stderr
    assert "which is not called" in verified.stdout
    assert "unchanged" in vistazo(*arguments, "--preprocess", "imagenet").stdout


def test_code_that_has_changed_becomes_a_new_version(
    tmp_path: Path, models: Path, vistazo: Vistazo, own: Callable[..., str]
):
    told = [
        "--labels",
        tmp_path / "labels.txt",
        "--models",
        models,
        "--preprocess",
        "imagenet",
        "--name",
        "own",
    ]
    assert vistazo("export", f"{own(factor=2)}:doubled", *told).exit_code == 0
    assert vistazo("export", f"{own(factor=5)}:doubled", *told).exit_code == 0
    first, second = (first_logits(models, "own", sample_images(3)[0], version) for version in (1, 2))
    np.testing.assert_allclose(second, first * 2.5, rtol=1e-4)


def test_a_function_with_a_file_of_weights_and_grey_images_that_are_not_square(
    tmp_path: Path, models: Path, vistazo: Vistazo, own: Callable[..., str]
):
    torch.manual_seed(11)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(4, 3),
    )  # fmt: skip
    torch.save(network.state_dict(), tmp_path / "own.pth")
    fields = {"resize_mode": "STRETCH", "crop_height": 20, "crop_width": 32, "interpolation": "bilinear"}
    (tmp_path / "told.json").write_text(json.dumps(fields | {"mean": [128], "std": [64], "value_range": 255}))
    done = vistazo(
        "export", f"{own(channels=1)}:small", "--labels", tmp_path / "labels.txt", "--models", models,
        "--preprocess", tmp_path / "told.json", "--weights", tmp_path / "own.pth",
    )  # fmt: skip

    assert done.exit_code == 0, done.stderr
    manifest = read_manifest(models / "small" / "1" / "manifest.json")
    assert (manifest.input.height, manifest.input.width, manifest.input.channels) == (20, 32, 1)
    assert manifest.preprocessing.resize_mode == Preprocessing.STRETCH
    image = sample_images(1)[0]
    values = (np.asarray(image.resize((32, 20), 2), np.float32) - 128) / 64
    with torch.inference_mode():
        expected = network(torch.from_numpy(values[None, None])).numpy()
    found = first_logits(models, "small", image)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("function", "options", "complaint"),
    [
        ("small", {"--preprocess": "imagenet"}, "say --labels FILE"),
        ("small", {"--labels": "labels.txt"}, "say --preprocess imagenet"),
        ("nothing", {"--labels": "labels.txt", "--preprocess": "imagenet"}, "AttributeError"),
        (
            "text",
            {"--labels": "labels.txt", "--preprocess": "imagenet"},
            "gives a str, not a torch.nn.Module",
        ),
        ("broken", {"--labels": "labels.txt", "--preprocess": "imagenet"}, "RuntimeError: out of luck"),
        ("many", {"--labels": "labels.txt", "--preprocess": "imagenet"}, "answers with a dict"),
        (
            "small",
            {"--labels": "four.txt", "--preprocess": "imagenet"},
            "2×3 numbers, and there are 4 labels",
        ),
        ("small", {"--labels": "labels.txt", "--preprocess": "open.toml"}, "say crop_height and crop_width"),
    ],
)
def test_a_function_that_leaves_a_doubt_is_refused(
    tmp_path: Path,
    models: Path,
    vistazo: Vistazo,
    own: Callable[..., str],
    function: str,
    options: dict,
    complaint: str,
):
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "open.toml").write_text('resize_mode = "STRETCH"\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n')
    flat = [part for option in options.items() for part in option]
    done = vistazo("export", f"{own()}:{function}", "--models", models, *flat)

    assert done.exit_code == 1
    assert complaint in done.stderr
    assert not list(models.glob("*/*"))


def test_a_module_that_is_not_there_is_one_line(tmp_path: Path, models: Path, vistazo: Vistazo, own):
    own()
    told = ["--labels", "labels.txt", "--preprocess", "imagenet", "--models", models]
    done = vistazo("export", "nowhere.at_all:make", *told)

    assert done.exit_code == 1
    assert "nowhere.at_all:make: ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize(
    ("function", "said", "kind"),
    [
        ("small", "", Output.LOGITS),
        ("small", "independent-logits", Output.INDEPENDENT_LOGITS),
        ("tags", "", Output.INDEPENDENT),
        ("chosen", "", Output.PROBABILITIES),
    ],
)
def test_a_network_of_ones_own_may_end_in_probabilities(
    own: Callable[..., str], models: Path, vistazo: Vistazo, function: str, said: str, kind: int
):
    options = ("--output-kind", said) if said else ()
    arguments = (
        f"{own()}:{function}",
        "--labels",
        "labels.txt",
        "--preprocess",
        "imagenet",
        "--models",
        models,
    )
    first = vistazo("export", *arguments, *options)

    assert first.exit_code == 0, first.stderr
    assert read_manifest(models / function / "1" / "manifest.json").output.kind == kind
    assert ("multi-label" in first.stderr) == (function == "tags")
    assert vistazo("verify", models).exit_code == 0


def test_a_kind_that_the_scores_cannot_be_is_refused(own: Callable[..., str], models: Path, vistazo: Vistazo):
    done = vistazo(
        "export", f"{own()}:tags", "--labels", "labels.txt", "--preprocess", "imagenet",
        "--models", models, "--output-kind", "probabilities",
    )  # fmt: skip

    assert done.exit_code == 1
    assert "the output logits is no probabilities" in done.stderr


def test_another_kind_of_the_same_weights_is_another_version(tmp_path: Path, models: Path, vistazo: Vistazo):
    labels = tmp_path / "labels.txt"
    labels.write_text("ant\nbee\ncat\n")
    arguments = ("export", "lenet", "--weights", "untrained", "--labels", labels, "--models", models)
    for options in ((), ("--output-kind", "independent-logits"), ("--output-kind", "independent-logits")):
        assert vistazo(*arguments, *options).exit_code == 0

    kinds = [read_manifest(path).output.kind for path in sorted(models.glob("lenet/*/manifest.json"))]
    assert kinds == [Output.LOGITS, Output.INDEPENDENT_LOGITS]
