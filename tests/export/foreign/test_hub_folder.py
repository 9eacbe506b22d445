"""`vistazo import FOLDER` takes what the Hugging Face hub holds: the graph, its labels, its preprocessing."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import Result
from onnx import TensorProto

from support.foreign import classifier
from vistazo_export.publishing.manifest import read_manifest
from vistazo_proto.manifest_pb2 import ModelManifest, Output, Preprocessing

Vistazo = Callable[..., Result]

LABELS = ["ant", "bee", "cat", "dog", "elk"]
CONFIG = {
    "architectures": ["ViTForImageClassification"],
    "id2label": {str(index): label for index, label in enumerate(LABELS)},
    "problem_type": "single_label_classification",
}
VIT = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
CONVNEXT = VIT | {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 28}}
CLIP = VIT | {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 30}, "crop_size": 28}
TIMM = {
    "architecture": "resnet18",
    "label_names": LABELS,
    "pretrained_cfg": {"input_size": [3, 24, 24], "crop_pct": 0.875, "interpolation": "bilinear"},
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of the hub's layout."""

    def make(
        graph: onnx.ModelProto | None = None, at: str = "model.onnx", name: str = "insects", **files: object
    ) -> Path:
        made = tmp_path / name
        if at:
            (made / at).parent.mkdir(parents=True, exist_ok=True)
            (made / at).write_bytes((graph or open_graph()).SerializeToString())
        made.mkdir(exist_ok=True)
        for file, content in files.items():
            (made / f"{file}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return made

    return make


def open_graph(**options: object) -> onnx.ModelProto:
    """Return a graph as optimum writes them: every size left open."""
    return classifier(size=("height", "width"), channels="num_channels", **options)


def manifest_of(models: Path, name: str = "insects") -> ModelManifest:
    return read_manifest(models / name / "1" / "manifest.json")


@pytest.mark.parametrize("at", ["model.onnx", "onnx/model.onnx"])
def test_a_folder_of_the_hub_needs_no_option(models: Path, folder: Callable, vistazo: Vistazo, at: str):
    done = vistazo("import", folder(at=at, config=CONFIG, preprocessor_config=VIT), "--models", models)

    assert done.exit_code == 0, done.stderr
    manifest = manifest_of(models)
    assert list(manifest.labels) == LABELS
    assert manifest.output.kind == Output.LOGITS
    size = manifest.input
    assert (size.layout, size.channels, size.height, size.width) == ("NCHW", 3, 32, 32)
    assert manifest.preprocessing.resize_mode == Preprocessing.STRETCH
    assert list(manifest.preprocessing.mean) == [0.5, 0.5, 0.5]
    assert "preprocessor_config.json, ViTImageProcessor's" in done.stderr
    assert "layout NCHW, as on the hub; --layout says another" in done.stderr
    assert vistazo("verify", models).exit_code == 0


@pytest.mark.parametrize(
    ("files", "resize", "crop"),
    [
        ({"config": CONFIG, "preprocessor_config": CONVNEXT}, 32, 28),
        ({"config": CONFIG, "preprocessor_config": CLIP}, 30, 28),
        ({"config": CONFIG, "processor_config": {"image_processor": CLIP}}, 30, 28),
        ({"config": TIMM}, 27, 24),
    ],
    ids=["convnext", "clip", "clip's newer file", "timm"],
)
def test_each_librarys_files_are_read(
    models: Path, folder: Callable, vistazo: Vistazo, files: dict, resize: int, crop: int
):
    done = vistazo("import", folder(**files), "--models", models)

    assert done.exit_code == 0, done.stderr
    manifest = manifest_of(models)
    assert list(manifest.labels) == LABELS
    assert (manifest.preprocessing.resize_size, manifest.input.height) == (resize, crop)


def test_options_come_before_what_the_folder_says(
    tmp_path: Path, models: Path, folder: Callable, vistazo: Vistazo
):
    (tmp_path / "labels.txt").write_text("\n".join("vwxyz"))
    graph = open_graph(layout="NHWC", ending="Softmax")
    told = ["--name", "mine", "--labels", tmp_path / "labels.txt"]
    told += ["--preprocess", "imagenet", "--size", "16", "--layout", "NHWC"]
    made = folder(graph, config=CONFIG, preprocessor_config=VIT)
    done = vistazo("import", made, "--models", models, *told)

    assert done.exit_code == 0, done.stderr
    manifest = manifest_of(models, "mine")
    assert "".join(manifest.labels) == "vwxyz"
    assert (manifest.input.layout, manifest.input.height) == ("NHWC", 16)
    assert manifest.preprocessing.resize_size == 18
    assert manifest.output.kind == Output.PROBABILITIES
    assert "as on the hub" not in done.stderr


def test_a_graph_that_says_its_layout_and_takes_bytes_is_believed(
    models: Path, folder: Callable, vistazo: Vistazo
):
    graph = classifier(layout="NHWC", dtype=TensorProto.UINT8, size=(32, 32))
    done = vistazo("import", folder(graph, config=CONFIG, preprocessor_config=VIT), "--models", models)

    assert done.exit_code == 0, done.stderr
    manifest = manifest_of(models)
    assert (manifest.input.layout, manifest.input.dtype) == ("NHWC", "UINT8")
    assert not manifest.preprocessing.mean
    assert "normalised by the graph" in done.stderr


def test_labels_are_in_the_order_of_their_indexes(models: Path, folder: Callable, vistazo: Vistazo):
    shuffled = {str(index): f"class {index}" for index in (10, 2, 0, 9, 1, 8, 3, 7, 4, 6, 5)}
    made = folder(open_graph(classes=11), config=CONFIG | {"id2label": shuffled}, preprocessor_config=VIT)
    assert vistazo("import", made, "--models", models).exit_code == 0
    assert list(manifest_of(models).labels) == [f"class {index}" for index in range(11)]


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"at": "", "config": CONFIG, "preprocessor_config": VIT}, "neither model.onnx nor onnx/model.onnx"),
        ({"at": "onnx/model_fp16.onnx", "config": CONFIG}, "give one of its files: onnx/model_fp16.onnx"),
        ({"config": CONFIG}, "no preprocessor_config.json, so say --preprocess"),
        ({"config": "{", "preprocessor_config": VIT}, "config.json cannot be read"),
        ({"config": CONFIG | {"problem_type": "regression"}, "preprocessor_config": VIT}, "regression"),
        (
            {"config": CONFIG | {"id2label": {"1": "a", "2": "b"}}, "preprocessor_config": VIT},
            "does not number its 2 classes from 0",
        ),
        (
            {"config": CONFIG | {"id2label": {"0": "a", "1": "b"}}, "preprocessor_config": VIT},
            "there are 2 labels, but the output",
        ),
    ],
)
def test_a_folder_that_leaves_a_doubt_is_refused(
    models: Path, folder: Callable, vistazo: Vistazo, files: dict, complaint: str
):
    done = vistazo("import", folder(**files), "--models", models)

    assert done.exit_code == 1
    assert complaint in done.stderr
    assert not list(models.glob("*/*"))


MULTI = CONFIG | {"problem_type": "multi_label_classification"}


@pytest.mark.parametrize(
    ("ending", "kind", "said"),
    [
        ("", Output.INDEPENDENT_LOGITS, "is taken before the sigmoid, since config.json says multi-label"),
        ("Sigmoid", Output.INDEPENDENT, "ends in Sigmoid"),
    ],
)
def test_a_multi_label_folder_needs_no_option(
    models: Path, folder: Callable, vistazo: Vistazo, ending: str, kind: int, said: str
):
    graph = open_graph(ending=ending)
    done = vistazo("import", folder(graph, config=MULTI, preprocessor_config=VIT), "--models", models)

    assert done.exit_code == 0, done.stderr
    assert manifest_of(models).output.kind == kind
    assert said in done.stderr
    assert vistazo("verify", models).exit_code == 0


def test_a_multi_label_folder_whose_graph_chooses_one_class_is_refused(
    models: Path, folder: Callable, vistazo: Vistazo
):
    made = folder(open_graph(ending="Softmax"), config=MULTI, preprocessor_config=VIT)
    done = vistazo("import", made, "--models", models)

    assert done.exit_code == 1
    assert (
        "classes that exclude each other, and config.json says multi-label; say --output-kind" in done.stderr
    )
    told = vistazo("import", made, "--models", models, "--output-kind", "probabilities")
    assert told.exit_code == 0, told.stderr


def test_a_multi_label_folder_may_be_served_by_its_tensors(models: Path, folder: Callable, vistazo: Vistazo):
    made = folder(classifier(), config=MULTI, preprocessor_config=VIT)
    done = vistazo("import", made, "--models", models, "--preprocess", "none")

    assert done.exit_code == 0, done.stderr
    assert not manifest_of(models).HasField("output")


def test_a_single_file_still_asks_for_its_name(folder: Callable, vistazo: Vistazo):
    done = vistazo("import", folder() / "model.onnx", "--preprocess", "imagenet")

    assert done.exit_code == 2
    assert "--name" in done.stderr
