"""`vistazo import` finds out what a graph says, asks for what it does not, and publishes only what runs."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import Result
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper

from support.foreign import CLASSES, SIDE, classifier, model_of, with_node
from vistazo_export.importer import ImportRequest, import_model
from vistazo_export.presets.torchvision_import import torchvision_models
from vistazo_export.progress import Progress
from vistazo_proto.manifest_pb2 import ModelManifest, Output, Preprocessing
from vistazo_proto.manifest_pb2 import Weights as WeightsRecord

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

Import = Callable[..., Result]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def import_graph(tmp_path: Path, models: Path, vistazo: Callable[..., Result]) -> Import:
    """Write a graph to a file and run `vistazo import` on it, as the model "foreign"."""

    def run(graph: onnx.ModelProto | bytes, *options: object, preprocess: object = "imagenet") -> Result:
        path = tmp_path / "foreign.onnx"
        path.write_bytes(graph if isinstance(graph, bytes) else graph.SerializeToString())
        choice = ["--preprocess", preprocess] if preprocess else []
        return vistazo("import", path, "--name", "foreign", "--models", models, *choice, *options)

    return run


def manifest_of(models: Path, version: int = 1, name: str = "foreign") -> ModelManifest:
    text = (models / name / str(version) / "manifest.json").read_text()
    return json_format.Parse(text, ModelManifest())


def refused(result: Result, models: Path) -> str:
    """Return the one line in which an import was refused, having left nothing in the repository."""
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert not models.exists() or list(models.iterdir()) == []
    return errors[0].removeprefix("Error: foreign: ")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("dtype", "name"),
    [(TensorProto.UINT8, "UINT8"), (TensorProto.FLOAT, "FP32"), (TensorProto.FLOAT16, "FP16")],
)
def test_names_layout_and_type_are_read_from_the_graph(
    import_graph: Import, models: Path, layout: str, dtype: int, name: str
):
    graph = classifier(layout=layout, dtype=dtype, size=(6, 6))
    result = import_graph(graph)
    manifest = manifest_of(models)

    assert result.exit_code == 0, result.stderr
    record = manifest.input
    assert (record.tensor, record.layout, record.dtype) == ("pixels", layout, name)
    assert (record.height, record.width, record.channels) == (6, 6, 3)
    assert (manifest.output.tensor, manifest.output.classes) == ("scores", CLASSES)


def test_the_file_is_copied_byte_for_byte_and_described(import_graph: Import, models: Path):
    graph = classifier()
    import_graph(graph)
    content = graph.SerializeToString()
    manifest = manifest_of(models)

    assert (models / "foreign" / "1" / "model.onnx").read_bytes() == content
    assert manifest.model_sha256 == hashlib.sha256(content).hexdigest()
    assert manifest.model_bytes == len(content)
    assert manifest.weights == WeightsRecord(
        source=WeightsRecord.IMPORTED, name="foreign.onnx", sha256=manifest.model_sha256
    )
    assert (manifest.format, manifest.name, manifest.opset, manifest.precision) == (1, "foreign", 18, "fp32")
    assert manifest.max_batch_size == 32
    assert manifest.made_with["producer"] == "elsewhere 3.1"
    assert not manifest.HasField("parity")


def test_two_imports_of_the_same_at_once_publish_one_version(tmp_path: Path, models: Path):
    path = tmp_path / "foreign.onnx"
    path.write_bytes(classifier().SerializeToString())
    request = ImportRequest(path, "foreign", models, preprocess="none")
    others = []

    def stage(text: str) -> None:
        # The other begins and ends while this one runs.
        if text == "running":
            others.append(import_model(request))

    this = import_model(request, Progress(stage=stage))

    (other,) = others
    assert (other.version, other.published) == (1, True)
    assert (this.version, this.published) == (1, False)
    assert not (models / "foreign/2").exists()


def test_triton_is_left_to_read_the_graph_itself(import_graph: Import, models: Path):
    import_graph(classifier())

    assert (models / "foreign" / "config.pbtxt").read_text() == (
        'name: "foreign"\nplatform: "onnxruntime_onnx"\n'
    )


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ("", Output.LOGITS),
        ("LogSoftmax", Output.LOGITS),
        ("Softmax", Output.PROBABILITIES),
        ("normalised exponentials", Output.PROBABILITIES),
    ],
)
def test_logits_and_probabilities_are_told_apart(import_graph: Import, models: Path, ending: str, kind: int):
    import_graph(classifier(ending=ending))

    assert manifest_of(models).output.kind == kind


def test_imagenet_is_what_torchvision_does(import_graph: Import, models: Path):
    import_graph(classifier(size=(299, 299)))

    assert manifest_of(models).preprocessing == Preprocessing(
        resize_mode=Preprocessing.SHORTEST_EDGE,
        resize_size=342,
        crop_height=299,
        crop_width=299,
        interpolation="bilinear",
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
    )


def test_the_mean_of_a_graph_that_takes_bytes_is_its_own(import_graph: Import, models: Path):
    import_graph(classifier(dtype=TensorProto.UINT8))
    preprocessing = manifest_of(models).preprocessing

    assert preprocessing.resize_size == 9
    assert not preprocessing.mean
    assert not preprocessing.std


def test_how_images_are_prepared_must_be_said(import_graph: Import, models: Path):
    assert "say --preprocess imagenet, --preprocess FILE, or --preprocess none" in refused(
        import_graph(classifier(), preprocess=""), models
    )


FILE = {
    "resize_mode": "stretch",
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_file_says_it_in_the_manifests_words(
    import_graph: Import, models: Path, tmp_path: Path, suffix: str
):
    file = tmp_path / f"preprocess{suffix}"
    toml = "\n".join(f"{key} = {json.dumps(value)}" for key, value in FILE.items())
    file.write_text(json.dumps(FILE) if suffix == ".json" else toml)
    result = import_graph(classifier(size=(4, 6)), preprocess=file)

    assert result.exit_code == 0, result.stderr
    assert manifest_of(models).preprocessing == Preprocessing(
        resize_mode=Preprocessing.STRETCH,
        crop_height=4,
        crop_width=6,
        interpolation="bicubic",
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"resize": 256}, "unknown fields: resize; known are resize_mode"),
        ({"resize_mode": "squash"}, "resize_mode"),
        ({"resize_mode": None}, "resize_mode must be SHORTEST_EDGE, STRETCH, COVER, FIT or NO_RESIZE"),
        ({"resize_mode": "SHORTEST_EDGE"}, "resize_size, the pixels of the shorter edge, is missing"),
        ({"resize_size": 256}, "resize_size goes with SHORTEST_EDGE only"),
        ({"crop_height": 7}, "crop_height and crop_width are 7×8, the graph takes 8×8"),
        (
            {"interpolation": "quadratic"},
            "must be one of nearest, bilinear, bicubic, lanczos, box, hamming, not 'quadratic'",
        ),
        ({"mean": [123.7, 116.3, 103.5]}, "divide those of 0 to 255 by 255"),
        ({"mean": [0.5]}, "mean and std need 3 values each, a channel, not 1 and 3"),
        ({"mean": "red"}, "mean"),
        ({"std": [1, 1, 0]}, "std must be above 0"),
        ({"std": None}, "mean and std need 3 values each, a channel, not 3 and 0"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(
    import_graph: Import, models: Path, tmp_path: Path, change: dict, complaint: str
):
    file = tmp_path / "preprocess.json"
    file.write_text(json.dumps({k: v for k, v in (FILE | change).items() if v is not None}))

    assert complaint in refused(import_graph(classifier(), preprocess=file), models)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("p.toml", b"resize_mode: STRETCH", "is not TOML"),
        ("p.json", b"{", "is not JSON"),
        ("p.json", b"[1]", "is no table of fields"),
        ("p.toml", b"\xff", "is not UTF-8"),
        ("imagenett", None, "--preprocess takes imagenet, none, weights of torchvision"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    import_graph: Import, models: Path, tmp_path: Path, name: str, content: bytes | None, complaint: str
):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)

    assert complaint in refused(import_graph(classifier(), preprocess=file), models)


def test_means_for_a_graph_that_normalises_itself_are_refused(
    import_graph: Import, models: Path, tmp_path: Path
):
    file = tmp_path / "preprocess.json"
    file.write_text(json.dumps(FILE))

    assert "pixels is UINT8: the graph normalises itself" in refused(
        import_graph(classifier(dtype=TensorProto.UINT8), preprocess=file), models
    )


def test_grey_and_oblong_graphs_need_a_file(import_graph: Import, models: Path):
    grey = classifier(channels=1, weights=1)
    assert "is for colour, the graph takes 1 channel" in refused(import_graph(grey), models)
    oblong = classifier(size=(4, 8))
    assert "is for square images, the graph takes 4×8" in refused(import_graph(oblong), models)


def test_a_grey_graph_is_imported_and_run_on_grey_images(import_graph: Import, models: Path, tmp_path: Path):
    file = tmp_path / "preprocess.json"
    file.write_text(json.dumps(FILE | {"mean": [0.3], "std": [0.2]}))
    result = import_graph(classifier(channels=1, weights=1), preprocess=file)

    assert result.exit_code == 0, result.stderr
    assert manifest_of(models).input.channels == 1


def test_channels_that_could_be_at_either_end_are_asked_about(import_graph: Import, models: Path):
    graph = classifier(size=(SIDE, 3))
    file_says = ("--layout", "NCHW")

    assert "pixels (FP32 ?×3×8×3) are is not clear: say --layout NCHW or NHWC" in refused(
        import_graph(graph), models
    )
    assert "is for square images" in refused(import_graph(graph, *file_says), models)


def test_open_sizes_are_asked_about_one_by_one(import_graph: Import, models: Path):
    graph = classifier(channels="c", size=("h", "w"))

    assert "say --layout" in refused(import_graph(graph), models)
    assert "takes any height: say --size HEIGHTxWIDTH" in refused(
        import_graph(graph, "--layout", "NCHW"), models
    )
    assert import_graph(graph, "--layout", "NCHW", "--size", "16").exit_code == 0
    record = manifest_of(models).input
    assert (record.height, record.width, record.channels) == (16, 16, 3)


def test_a_file_answers_for_size_and_channels(import_graph: Import, models: Path, tmp_path: Path):
    file = tmp_path / "preprocess.json"
    file.write_text(json.dumps(FILE | {"crop_height": 10, "crop_width": 12}))
    result = import_graph(classifier(channels="c", size=("h", "w")), "--layout", "NCHW", preprocess=file)

    assert result.exit_code == 0, result.stderr
    record = manifest_of(models).input
    assert (record.height, record.width, record.channels) == (10, 12, 3)


def test_grey_or_colour_is_asked_about(import_graph: Import, models: Path, tmp_path: Path):
    file = tmp_path / "preprocess.json"
    file.write_text(json.dumps({"resize_mode": "STRETCH", "interpolation": "nearest"}))
    graph = classifier(dtype=TensorProto.UINT8, channels="c")

    assert "does not say grey or colour: say --channels 1 or 3" in refused(
        import_graph(graph, "--layout", "NCHW", preprocess=file), models
    )
    assert import_graph(graph, "--layout", "NCHW", "--channels", "3", preprocess=file).exit_code == 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--layout", "NHWC"), "--layout NHWC cannot be: it gives pixels (FP32 ?×3×8×8) 8 channels"),
        (("--size", "9"), "--size with a height of 9 cannot be"),
        (("--channels", "1"), "--channels 1 cannot be"),
        (("--output", "probabilities"), "the graph has no output 'probabilities'; it has scores"),
    ],
)
def test_what_the_graph_contradicts_is_refused(
    import_graph: Import, models: Path, options: tuple[str, ...], complaint: str
):
    assert complaint in refused(import_graph(classifier(), *options), models)


@pytest.mark.parametrize("size", ["x", "0", "8x8x8", "-1", "8x", "٣"])
def test_a_size_that_is_none_is_a_usage_error(import_graph: Import, size: str):
    result = import_graph(classifier(), "--size", size)

    assert result.exit_code == 2
    assert "is not such as 224 or 224x320" in result.stderr


def test_a_batch_of_one_is_served_one_by_one(import_graph: Import, models: Path):
    import_graph(classifier(batch=1))

    assert manifest_of(models).max_batch_size == 1


def test_a_batch_fixed_at_another_size_is_filled_up(import_graph: Import, models: Path):
    result = import_graph(classifier(batch=4, ending="Softmax"))

    assert result.exit_code == 0, result.stderr
    assert manifest_of(models).max_batch_size == 4
    assert manifest_of(models).output.kind == Output.PROBABILITIES


def test_a_graph_of_tensors_may_have_no_batch(
    import_graph: Import, models: Path, vistazo: Callable[..., Result]
):
    shape = [4, 2]
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "negative",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    result = import_graph(model_of(graph), preprocess="none")

    assert result.exit_code == 0, result.stderr
    assert manifest_of(models).max_batch_size == 1
    assert vistazo("verify", models).exit_code == 0


def test_a_batch_that_is_dynamic_only_in_name_is_found(
    import_graph: Import, models: Path, vistazo: Callable[..., Result]
):
    graph = classifier()
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1, CLASSES]), "one"))
    graph.graph.node[-1].output[0] = "any"
    graph.graph.node.append(helper.make_node("Reshape", ["any", "one"], ["scores"]))

    result = import_graph(graph)
    warned = [
        line for line in result.stderr.splitlines() if line.startswith("Warning: foreign: its samples run")
    ]
    manifest = manifest_of(models)
    assert result.exit_code == 0
    assert len(warned) == 1
    assert "run one by one, not in batches: ONNX Runtime cannot run the graph at batch 2" in warned[0]
    assert manifest.max_batch_size == 1
    assert manifest.one_by_one.startswith("ONNX Runtime cannot run the graph at batch 2: ")
    assert vistazo("verify", models).exit_code == 0


def feeling() -> onnx.ModelProto:
    """Return a classifier that takes half the batch's mean from each sample's scores."""
    graph = classifier()
    graph.graph.node[-1].output[0] = "own"
    graph.graph.initializer.append(numpy_helper.from_array(np.array([0]), "over_the_batch"))
    graph.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["own", "over_the_batch"], ["common"]),
            helper.make_node("Sub", ["own", "common"], ["apart"]),
            helper.make_node("Add", ["apart", "own"], ["scores"]),
        ]
    )

    return graph


def test_samples_that_feel_their_neighbours_run_one_by_one(
    import_graph: Import, models: Path, vistazo: Callable[..., Result]
):
    result = import_graph(feeling(), "--max-batch", "8")
    reason = "ReduceMean over axis 0 is over the batch"

    assert result.exit_code == 0
    assert f"Warning: foreign: its samples run one by one, not in batches: {reason}" in result.stderr
    assert (manifest_of(models).max_batch_size, manifest_of(models).one_by_one) == (1, reason)
    assert vistazo("verify", models).exit_code == 0
    assert "unchanged" in import_graph(feeling(), "--max-batch", "8").stdout


@pytest.mark.parametrize("says", [{}, {"one_by_one": ""}, {"one_by_one": "its maker says so"}])
def test_a_manifest_that_promises_batches_of_samples_that_feel_each_other_fails_verification(
    import_graph: Import, models: Path, vistazo: Callable[..., Result], says: dict[str, str]
):
    import_graph(feeling())
    path = models / "foreign" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["one_by_one"]
    path.write_text(json.dumps(manifest | {"max_batch_size": 8} | says))

    result = vistazo("verify", models)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 1
    assert (
        "Error: foreign version 1: batches of 8 are promised, but samples must run one by one: "
        "ReduceMean over axis 0 is over the batch; --max-batch 1 makes it so"
    ) in errors
    assert len(errors) == 1 + bool(says.get("one_by_one"))


def test_what_only_a_trial_shows_runs_one_by_one(import_graph: Import, models: Path):
    graph = classifier()
    graph.graph.node[-1].output[0] = "own"
    constants = {"flat": [1, -1], "one": [1]}
    for name, values in constants.items():
        graph.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    graph.graph.node.extend(
        [
            # Beyond what photographs, normalised, ever reach.
            helper.make_node("Reshape", ["own", "flat"], ["row"]),
            helper.make_node("TopK", ["row", "one"], ["most", "place"]),
            helper.make_node("Reshape", ["most", "one"], ["largest"]),
            helper.make_node("Constant", [], ["usual"], value_float=500.0),
            helper.make_node("Max", ["largest", "usual"], ["level"]),
            helper.make_node("Sub", ["level", "usual"], ["beyond"]),
            helper.make_node("Add", ["own", "beyond"], ["scores"]),
        ]
    )
    result = import_graph(graph)

    assert result.exit_code == 0, result.stderr
    assert "its samples run one by one" in result.stderr
    assert "a sample's answer depends on the others in its batch" in manifest_of(models).one_by_one


def test_answers_left_to_chance_are_found(import_graph: Import, models: Path):
    graph = classifier()
    graph.graph.node[-1].output[0] = "sure"
    graph.graph.node.extend(
        [
            helper.make_node("RandomUniformLike", ["sure"], ["chance"]),
            helper.make_node("Add", ["sure", "chance"], ["scores"]),
        ]
    )

    assert "differs from run to run" in refused(import_graph(graph, "--max-batch", "1"), models)


def test_scores_that_are_no_numbers_are_found(import_graph: Import, models: Path):
    graph = classifier()
    graph.graph.node[-1].output[0] = "number"
    graph.graph.node.append(helper.make_node("Div", ["number", "nothing"], ["scores"]))
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))

    assert "some values of the output scores are not finite numbers" in refused(import_graph(graph), models)


def test_which_output_scores_is_asked_about(import_graph: Import, models: Path):
    graph = with_node(classifier(), helper.make_node("Neg", ["means"], ["features"]), ["batch", 3])

    assert "say --output NAME of scores (FP32 ?×5), features (FP32 ?×3)" in refused(
        import_graph(graph), models
    )
    assert import_graph(graph, "--output", "features").exit_code == 0
    assert (manifest_of(models).output.tensor, manifest_of(models).output.classes) == ("features", 3)


def test_the_number_of_labels_tells_which_output_scores(import_graph: Import, models: Path, tmp_path: Path):
    graph = with_node(classifier(), helper.make_node("Neg", ["means"], ["features"]), ["batch", 3])
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    import_graph(graph, "--labels", tmp_path / "labels.txt")

    assert manifest_of(models).output.tensor == "scores"
    assert list(manifest_of(models).labels) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("ones", [[2, 3], [1], [1, 2], [1, 3]])
def test_scores_among_dimensions_of_one_are_scores(import_graph: Import, models: Path, ones: list[int]):
    shape: list[int | str] = ["batch", CLASSES]
    for axis in ones:
        shape.insert(axis, 1)
    graph = classifier(ending="Softmax", score="row")
    graph.graph.initializer.append(numpy_helper.from_array(np.array(ones), "ones"))
    graph.graph.node.append(helper.make_node("Unsqueeze", ["row", "ones"], ["scores"]))
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape))
    result = import_graph(graph)

    assert result.exit_code == 0, result.stderr
    assert manifest_of(models).output.classes == CLASSES


def test_a_graph_that_scores_nothing_is_told(import_graph: Import, models: Path):
    graph = classifier()
    graph.graph.node.append(helper.make_node("Relu", ["float"], ["image"]))
    del graph.graph.output[:]
    graph.graph.output.append(
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    )

    assert "no output is a row of class scores for each sample" in refused(import_graph(graph), models)


def test_as_many_labels_as_classes_are_needed(import_graph: Import, models: Path, tmp_path: Path):
    (tmp_path / "labels.txt").write_text("a\nb\n")

    assert "there are 2 labels, but the output scores (FP32 ?×5) scores 5 classes" in refused(
        import_graph(classifier(), "--labels", tmp_path / "labels.txt"), models
    )
    assert "there are 1000 labels" in refused(import_graph(classifier(), "--labels", "imagenet"), models)


def test_without_labels_classes_are_called_by_number(import_graph: Import, models: Path):
    result = import_graph(classifier())

    assert "Warning: foreign: without --labels its classes are called by number, 0 to 4" in result.stderr
    assert list(manifest_of(models).labels) == ["0", "1", "2", "3", "4"]


def external(graph: onnx.ModelProto, folder: Path, location: str = "weights.data") -> Path:
    """Save `graph` with its weights, but not its axes, in another file, and return its path."""
    path = folder / "big.onnx"
    onnx.save(
        graph, path, save_as_external_data=True, all_tensors_to_one_file=True, location=location,
        size_threshold=64,
    )  # fmt: skip
    return path


def test_weights_in_other_files_come_along(tmp_path: Path, models: Path, vistazo: Callable[..., Result]):
    graph = classifier()
    path = external(classifier(), tmp_path)
    result = vistazo("import", path, "--name", "big", "--models", models, "--preprocess", "imagenet")
    manifest = manifest_of(models, name="big")
    folder = models / "big" / "1"
    data = (folder / "weights.data").read_bytes()

    assert result.exit_code == 0, result.stderr
    assert data == (tmp_path / "weights.data").read_bytes()
    (file,) = manifest.external_files
    assert (file.path, file.bytes) == ("weights.data", len(data))
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    images = np.random.default_rng(0).random((3, 3, SIDE, SIDE), np.float32)
    answers = [
        onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"pixels": images})
        for source in (graph.SerializeToString(), folder / "model.onnx")
    ]
    assert np.array_equal(answers[0][0], answers[1][0])
    for written in (models / "big").rglob("*"):
        assert written.stat().st_mode & 0o777 == (0o755 if written.is_dir() else 0o644)


def test_a_file_of_weights_that_was_forgotten_is_named(
    tmp_path: Path, models: Path, vistazo: Callable[..., Result]
):
    path = external(classifier(), tmp_path)
    (tmp_path / "weights.data").unlink()
    result = vistazo("import", path, "--name", "foreign", "--models", models, "--preprocess", "imagenet")

    assert refused(result, models) == "big.onnx has weights in weights.data, which is not beside it"


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret", "manifest.json", ""])
def test_weights_outside_the_folder_are_not_followed(import_graph: Import, models: Path, location: str):
    graph = classifier()
    (tensor,) = (tensor for tensor in graph.graph.initializer if tensor.name == "weights")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)

    assert "foreign.onnx looks for weights" in refused(import_graph(graph), models)


def test_a_half_precision_graph_is_one(import_graph: Import, models: Path):
    result = import_graph(classifier(dtype=TensorProto.FLOAT16, half=True, ending="Softmax"))
    manifest = manifest_of(models)

    assert result.exit_code == 0, result.stderr
    assert (manifest.precision, manifest.input.dtype) == ("fp16", "FP16")
    assert manifest.output.kind == Output.PROBABILITIES


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not ONNX",
        b"\x00" * 1000,
        classifier().SerializeToString()[:-40],
        classifier().SerializeToString().replace(b"MatMul", b"MatNul"),
        onnx.ModelProto().SerializeToString(),
    ],
    ids=["empty", "text", "zeros", "truncated", "unknown operator", "no graph"],
)
def test_what_is_no_sound_onnx_is_one_line(import_graph: Import, models: Path, content: bytes):
    line = refused(import_graph(content), models)

    assert line.startswith(
        ("foreign.onnx is not", "model.onnx is not valid ONNX: No Op registered for MatNul")
    )


def test_a_file_that_is_not_there_and_a_name_that_cannot_be_are_told(
    tmp_path: Path, models: Path, vistazo: Callable[..., Result], import_graph: Import
):
    for source in (tmp_path, tmp_path / "nowhere.onnx"):
        missing = vistazo("import", source, "--name", "foreign", "--models", models, "--preprocess", "none")
        assert refused(missing, models).startswith(f"no ONNX file {source}")
    path = tmp_path / "ok.onnx"
    path.write_bytes(classifier().SerializeToString())
    named = vistazo("import", path, "--name", "../foreign", "--models", models, "--preprocess", "none")
    assert "'../foreign' is no model name" in named.stderr
    assert not models.exists()


def test_each_import_is_the_next_version_and_the_same_again_is_none(import_graph: Import, models: Path):
    assert import_graph(classifier()).exit_code == 0
    again = import_graph(classifier())
    assert "unchanged" in again.stdout
    assert import_graph(classifier(ending="Softmax")).exit_code == 0
    assert import_graph(classifier(ending="Softmax"), "--force").exit_code == 0

    assert sorted(entry.name for entry in (models / "foreign").iterdir()) == ["1", "2", "3", "config.pbtxt"]
    kinds = [manifest_of(models, version).output.kind for version in (1, 2, 3)]
    assert kinds == [Output.LOGITS, Output.PROBABILITIES, Output.PROBABILITIES]


def test_a_failed_import_leaves_the_versions_that_are_there(import_graph: Import, models: Path):
    import_graph(classifier())
    before = sorted(models.rglob("*"))
    result = import_graph(b"not ONNX")

    assert result.exit_code == 1
    assert sorted(models.rglob("*")) == before


def two_inputs() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        "sums",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "ab"],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 4])],
    )
    return model_of(graph)


def test_a_graph_that_takes_no_images_is_imported_for_open_inference(import_graph: Import, models: Path):
    assert "the graph must be fed one input to take images, its are: a (FP32 ?×4), b" in refused(
        import_graph(two_inputs()), models
    )
    result = import_graph(two_inputs(), preprocess="none")
    manifest = manifest_of(models)

    assert result.exit_code == 0, result.stderr
    assert not manifest.HasField("input")
    assert not manifest.HasField("preprocessing")
    assert not manifest.HasField("output")
    assert manifest.max_batch_size == 32


def test_a_graph_without_preprocessing_may_have_labels(import_graph: Import, models: Path, tmp_path: Path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    result = import_graph(two_inputs(), "--labels", tmp_path / "labels.txt", preprocess="none")
    manifest = manifest_of(models)

    assert result.exit_code == 0, result.stderr
    assert (manifest.output.tensor, list(manifest.labels)) == ("sum", ["a", "b", "c", "d"])


def test_options_of_images_contradict_a_graph_that_takes_none(import_graph: Import, models: Path):
    assert "are of images, --preprocess none takes none" in refused(
        import_graph(classifier(), "--layout", "NCHW", preprocess="none"), models
    )


@pytest.mark.parametrize(
    ("dtype", "shape", "complaint"),
    [
        (TensorProto.INT64, ["n", 3, 8, 8], "is not UINT8 or FP32 or FP16, so no image"),
        (TensorProto.FLOAT, ["n", 64], "has not the 4 dimensions of images"),
        (TensorProto.FLOAT, ["n", 4, 8, 8], "has neither 1 nor 3 channels, so no image"),
    ],
)
def test_an_input_that_is_no_image_is_named(
    import_graph: Import, models: Path, dtype: int, shape: list, complaint: str
):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "same",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
    )

    line = refused(import_graph(model_of(graph)), models)
    assert complaint in line
    assert line.endswith("--preprocess none serves it over Open Inference only")


def test_a_graph_whose_sizes_are_open_is_loaded_though_not_run(import_graph: Import, models: Path):
    result = import_graph(classifier(size=("h", "w")), preprocess="none")

    assert result.exit_code == 0, result.stderr
    assert "loaded but not run" in result.stderr


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "resnet50", "densenet121", "inception_v1"])
def test_the_onnx_packages_models_are_imported_and_verified(
    models: Path, vistazo: Callable[..., Result], name: str
):
    path = LIGHT / f"light_{name}.onnx"
    imported = vistazo(
        "import", path, "--name", name, "--models", models, "--preprocess", "imagenet", "--labels", "imagenet"
    )
    verified = vistazo("verify", models)
    manifest = manifest_of(models, name=name)

    assert imported.exit_code == 0, imported.stderr
    assert verified.exit_code == 0, verified.stderr
    assert (manifest.input.layout, manifest.input.dtype, manifest.max_batch_size) == ("NCHW", "FP32", 1)
    # densenet121 ends before its softmax, and its scores are N×1000×1×1.
    assert manifest.output.kind == (Output.LOGITS if name == "densenet121" else Output.PROBABILITIES)
    categories = torchvision_models().ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert list(manifest.labels) == categories


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda m: m["input"].update(layout="NHWC"),
            "the graph's input is pixels (FP32 ?×3×8×8), the manifest",
        ),
        (lambda m: m["input"].update(dtype="FP16"), "the graph's input is"),
        (lambda m: m["input"].update(tensor="images"), "the graph's input is"),
        (lambda m: m["output"].update(tensor="logits"), "the graph has no output 'logits'"),
        (lambda m: m["output"].update(kind="PROBABILITIES"), "is no probabilities"),
        (lambda m: (m["output"].update(classes=4), m["labels"].pop()), "4 labels, but the output"),
        (lambda m: m.update(opset=17), "the graph has opset 18, the manifest says 17"),
        (lambda m: m.pop("preprocessing"), "only one of input and preprocessing"),
        (lambda m: m.update(precision="int3"), "precision 'int3' cannot be verified"),
        (lambda m: m.update(max_batch_size=0), "max_batch_size 0 is not in 1 to 1024"),
    ],
)
def test_verify_finds_a_manifest_that_does_not_match(
    import_graph: Import, models: Path, vistazo: Callable[..., Result], change: Callable, complaint: str
):
    import_graph(classifier())
    path = models / "foreign" / "1" / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    result = vistazo("verify", models)

    assert result.exit_code == 1
    assert complaint in result.stderr


def test_verify_finds_changed_weights_outside_the_file(
    tmp_path: Path, models: Path, vistazo: Callable[..., Result]
):
    path = external(classifier(), tmp_path)
    vistazo("import", path, "--name", "big", "--models", models, "--preprocess", "imagenet")
    data = models / "big" / "1" / "weights.data"
    assert vistazo("verify", models).exit_code == 0
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    assert "weights.data is not the file of weights that was imported" in vistazo("verify", models).stderr
    data.unlink()
    assert "weights.data, which holds weights, is missing" in vistazo("verify", models).stderr
