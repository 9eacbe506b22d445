"""`vistazo verify` passes what is right and names what is not."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import helper, numpy_helper

from vistazo_export.networks.download import sha256_of
from vistazo_export.verify import _recorded_recipe
from vistazo_proto.manifest_pb2 import ModelManifest, Weights

EditManifest = Callable[[Callable[[dict], object]], None]


def test_what_was_exported_passes(exported: Path, vistazo: Callable[..., Result]):
    result = vistazo("verify", exported)

    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("passed") == 3
    assert result.stdout.count("relative") == 3
    assert "skipped" not in result.stdout


def failures(result: Result) -> list[str]:
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    return [line for line in result.stderr.splitlines() if line.startswith("Error: ")]


def test_a_flipped_byte_is_found(repository: Path, vistazo: Callable[..., Result]):
    model = repository / "lenet" / "1" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1000] ^= 1
    model.write_bytes(content)
    (failure,) = failures(vistazo("verify", repository))

    assert failure.startswith("Error: lenet version 1: model.onnx is not the file that was checked at export")


def test_a_truncated_and_a_missing_model_are_told_apart(repository: Path, vistazo: Callable[..., Result]):
    model = repository / "lenet" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    assert "bytes, the manifest says" in failures(vistazo("verify", repository))[0]
    model.unlink()
    assert failures(vistazo("verify", repository)) == ["Error: lenet version 1: model.onnx is missing"]


def test_a_model_in_a_folder_of_another_name_is_found(repository: Path, vistazo: Callable[..., Result]):
    (repository / "lenet").rename(repository / "digits")
    (failure,) = failures(vistazo("verify", repository))

    assert failure == "Error: digits version 1: the manifest is of 'lenet', the folder is 'digits'"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m["labels"].pop(), "the manifest has 9 labels for 10 classes"),
        (lambda m: m["preprocessing"].update(mean=[0.5]), "mean [0.5] for [0.305]"),
        (lambda m: m["preprocessing"].update(interpolation="bicubic"), "interpolation bicubic for bilinear"),
        (
            lambda m: m["input"].update(tensor="pixels"),
            "input is images, the manifest says pixels",
        ),
        (lambda m: m["input"].update(channels=3), "is N×32×32×1, the manifest says N×32×32×3"),
        (
            lambda m: (m["output"].update(classes=11), m["labels"].append("ten")),
            "is N×10, the manifest says N×11",
        ),
        (lambda m: m.update(opset=17), "the graph has opset 20, the manifest says 17"),
        (
            lambda m: (m.update(architecture="nin"), m["weights"].update(source="UNTRAINED", name="seed 0")),
            "the manifest's input is not that of nin",
        ),
        (lambda m: m.update(max_batch_size=0), "max_batch_size 0 is not in 1 to 1024"),
        (lambda m: m["weights"].update(source="SOURCE_UNSPECIFIED"), "does not say where the weights come"),
        (lambda m: m.update(format=2), "manifest.json has format 2; this Vistazo reads 1"),
        (lambda m: m.update(colour="blue"), "manifest.json is no manifest"),
        (lambda m: m.update(architecture="lenet6"), "unknown network 'lenet6'"),
        (lambda m: m.update(precision="int3"), "precision 'int3' cannot be verified"),
        (
            lambda m: m["weights"].update(name="LeNet_Weights.OLD"),
            "lenet has no published weights named",
        ),
        (lambda m: m["weights"].update(sha256="0" * 64), "the weights are not those of the export"),
        (
            lambda m: m["weights"].update(source="UNTRAINED", name="seed 1"),
            "ONNX Runtime and torch differ",
        ),
    ],
)
def test_a_manifest_that_does_not_match_is_found(
    repository: Path,
    vistazo: Callable[..., Result],
    edit_manifest: EditManifest,
    change: Callable[[dict], object],
    complaint: str,
):
    edit_manifest(change)

    assert any(complaint in failure for failure in failures(vistazo("verify", repository)))


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_manifest_that_cannot_be_read_is_one_line(
    repository: Path, vistazo: Callable[..., Result], content: str
):
    (repository / "lenet" / "1" / "manifest.json").write_text(content)

    assert len(failures(vistazo("verify", repository))) == 1


def test_a_graph_left_in_training_mode_is_found(
    repository: Path, vistazo: Callable[..., Result], edit_manifest: EditManifest
):
    path = repository / "lenet" / "1" / "model.onnx"
    model = onnx.load(path)
    last = model.graph.node[-1]
    last.output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Dropout", ["before"], ["logits"]))
    onnx.save(model, path)
    resign(path, edit_manifest)

    assert "exported in training mode: it holds Dropout" in failures(vistazo("verify", repository))[0]


def test_a_file_that_is_no_onnx_is_found(
    repository: Path, vistazo: Callable[..., Result], edit_manifest: EditManifest
):
    path = repository / "lenet" / "1" / "model.onnx"
    path.write_bytes(b"not ONNX")
    resign(path, edit_manifest)

    assert "model.onnx is not valid ONNX" in failures(vistazo("verify", repository))[0]


def resign(model: Path, edit_manifest: EditManifest) -> None:
    """Make the manifest vouch for whatever model.onnx is now."""
    content = model.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    edit_manifest(lambda manifest: manifest.update(model_sha256=digest, model_bytes=len(content)))


def test_a_stale_triton_configuration_is_found(repository: Path, vistazo: Callable[..., Result]):
    (repository / "lenet" / "config.pbtxt").write_text("max_batch_size: 1")
    assert "config.pbtxt does not go with the manifest" in failures(vistazo("verify", repository))[0]
    (repository / "lenet" / "config.pbtxt").unlink()
    assert "config.pbtxt is missing" in failures(vistazo("verify", repository))[0]


def test_only_the_models_named_are_verified(exported: Path, repository: Path, vistazo: Callable[..., Result]):
    shutil.copytree(exported / "nin", repository / "broken")

    assert vistazo("verify", repository, "lenet").exit_code == 0


def test_a_model_that_is_not_there_and_an_empty_repository_are_told(
    repository: Path, tmp_path: Path, vistazo: Callable[..., Result]
):
    missing = vistazo("verify", repository, "resnet18")
    assert missing.exit_code == 1
    assert missing.stderr.startswith("Error: no model resnet18 in ")
    (tmp_path / "empty").mkdir()
    assert vistazo("verify", tmp_path / "empty").stderr.startswith("Error: no models in ")
    assert vistazo("verify", tmp_path / "gone").exit_code == 2


def test_a_stray_folder_is_warned_of_and_the_others_are_verified(
    repository: Path, vistazo: Callable[..., Result]
):
    (repository / "notes").mkdir()
    (repository / "padded/01").mkdir(parents=True)
    (repository / "lenet/v2").mkdir()
    (repository / "lost+found").mkdir()

    done = vistazo("verify", repository)

    assert done.exit_code == 0
    assert "passed" in done.stdout
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    assert warnings == [
        f"Warning: {repository}/lenet: v2 is no version, such as 1",
        f"Warning: no model notes in {repository}: it has no folder with a version number",
        f"Warning: no model padded in {repository}: it has no folder with a version number, and 01 is none",
    ]


def test_a_path_to_one_model_says_what_to_verify(repository: Path, vistazo: Callable[..., Result]):
    done = vistazo("verify", repository / "lenet")

    assert done.exit_code == 1
    assert (
        done.stderr
        == f"Error: {repository}/lenet is one model itself: say vistazo verify {repository} lenet\n"
    )


def test_a_repository_of_strays_alone_is_no_success(tmp_path: Path, vistazo: Callable[..., Result]):
    (tmp_path / "padded/01").mkdir(parents=True)

    done = vistazo("verify", tmp_path)

    assert done.exit_code == 1
    assert done.stderr.startswith(
        f"Error: no model padded in {tmp_path}: it has no folder with a version number"
    )


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [({}, "true"), ({"transform_input": "false"}, "false"), ({"transform_input": "true"}, "true")],
)
@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3"])
def test_a_checkpoint_from_before_transform_input_was_asked_for_is_built_as_it_was(
    tmp_path: Path, architecture: str, recorded: dict[str, str], expected: str
):
    file = tmp_path / "own.pth"
    file.write_bytes(b"weights")
    manifest = ModelManifest(
        architecture=architecture,
        precision="fp32",
        labels=["a", "b"],
        weights=Weights(source=Weights.CHECKPOINT, name=file.name, sha256=sha256_of(file), builder=recorded),
    )

    recipe = _recorded_recipe(manifest, [file])

    assert dict(recipe.weights.options.builder) == {"transform_input": expected}


def test_an_export_whose_samples_feel_each_other_fails(repository: Path, vistazo: Callable[..., Result]):
    path = repository / "lenet" / "1" / "model.onnx"
    model = onnx.load(path)
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["own" if name == output.name else name for name in node.output]
    # The brightest image of the batch, beyond what photographs are, added to the logits of all.
    constants = {"pixels": [1, 2, 3], "flat": [1, -1], "last": [1]}
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    model.graph.node.extend(
        [
            helper.make_node("Cast", [model.graph.input[0].name], ["float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float", "pixels"], ["brightness"], keepdims=0),
            helper.make_node("Reshape", ["brightness", "flat"], ["row"]),
            helper.make_node("ReduceMax", ["row", "last"], ["brightest"]),
            helper.make_node("Constant", [], ["white"], value_float=250.0),
            helper.make_node("Max", ["brightest", "white"], ["level"]),
            helper.make_node("Sub", ["level", "white"], ["beyond"]),
            helper.make_node("Add", ["own", "beyond"], [output.name]),
        ]
    )
    path.write_bytes(model.SerializeToString())
    manifest = repository / "lenet" / "1" / "manifest.json"
    said = json.loads(manifest.read_text()) | {
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "model_bytes": path.stat().st_size,
    }
    manifest.write_text(json.dumps(said))

    result = vistazo("verify", repository)
    reason = "a sample's answer depends on the others in its batch"
    assert any(f"samples must run one by one: {reason}" in failure for failure in failures(result))
