"""What an export leaves in the repository, and what it never leaves there."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import Result
from google.protobuf import json_format
from PIL import Image
from safetensors.torch import save_file

from vistazo_export.errors import ParityError, RepositoryError
from vistazo_export.exporter import ExportRequest, export_model
from vistazo_export.networks import digits, zoo
from vistazo_export.networks.lenet import LeNet
from vistazo_export.presets.preset import to_pixels
from vistazo_export.presets.torchvision_import import torchvision_models
from vistazo_export.progress import Progress
from vistazo_export.publishing import repository as repo
from vistazo_proto.manifest_pb2 import ModelManifest, Output, Preprocessing
from vistazo_proto.manifest_pb2 import Weights as WeightsRecord

# What the fixture `exported` holds.
NETWORKS = ("lenet", "nin", "squeezenet1_1")
MAX_BATCH_SIZE = 5


def manifest_of(folder: Path) -> ModelManifest:
    return json_format.Parse((folder / "manifest.json").read_text(), ModelManifest())


def everything_in(folder: Path) -> dict[str, bytes]:
    """Each file below `folder`, hidden ones too, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_is_the_one_that_the_manifest_promises(exported: Path, name: str):
    folder = exported / name / "1"
    manifest = manifest_of(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()

    size = manifest.input
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape == ["batch", size.height, size.width, size.channels]
    assert (logits.name, logits.type) == ("logits", "tensor(float)")
    assert logits.shape == ["batch", len(manifest.labels)]
    for batch in (1, 2, 3, MAX_BATCH_SIZE):
        pixels = np.zeros((batch, size.height, size.width, size.channels), np.uint8)
        assert session.run(None, {"images": pixels})[0].shape == (batch, manifest.output.classes)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_manifest_says_what_was_made_and_how_well_it_agrees(exported: Path, name: str):
    folder = exported / name / "1"
    manifest = manifest_of(folder)
    model = (folder / "model.onnx").read_bytes()

    assert (manifest.format, manifest.name, manifest.architecture) == (1, name, name)
    assert (manifest.precision, manifest.max_batch_size) == ("fp32", MAX_BATCH_SIZE)
    assert manifest.output.kind == Output.LOGITS
    assert manifest.model_sha256 == hashlib.sha256(model).hexdigest()
    assert manifest.model_bytes == len(model)
    assert list(manifest.parity.batch_sizes) == [1, 2, 3, MAX_BATCH_SIZE]
    assert manifest.parity.images >= 10
    assert 0 < manifest.parity.max_rel_logit_diff <= manifest.parity.tolerance == 1e-4
    assert manifest.parity.top1_agreement == 1
    assert manifest.made_with["torch"].startswith("2.13.")


def test_preprocessing_and_labels_are_those_of_the_weights(exported: Path):
    manifest = manifest_of(exported / "squeezenet1_1" / "1")
    weights = torchvision_models().SqueezeNet1_1_Weights.DEFAULT

    assert list(manifest.labels) == weights.meta["categories"]
    assert manifest.preprocessing == Preprocessing(
        resize_mode=Preprocessing.SHORTEST_EDGE,
        resize_size=256,
        crop_height=224,
        crop_width=224,
        interpolation="bilinear",
        mean=weights.transforms().mean,
        std=weights.transforms().std,
    )


def test_the_manifest_shows_every_field_under_its_proto_name(exported: Path):
    fields = json.loads((exported / "lenet" / "1" / "manifest.json").read_text())

    assert fields.keys() == {field.name for field in ModelManifest.DESCRIPTOR.fields}
    assert fields["weights"]["url"] == ""


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_holds_nothing_of_training_nor_of_the_machine_it_was_made_on(exported: Path, name: str):
    model = onnx.load(exported / name / "1" / "model.onnx")

    assert "Dropout" not in {node.op_type for node in model.graph.node}
    assert not model.metadata_props
    assert not any(node.metadata_props for node in model.graph.node)
    assert str(Path(torch.__file__).parent).encode() not in model.SerializeToString()


def test_another_user_can_read_the_repository(exported: Path):
    for path in (exported / "lenet").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_triton_finds_its_configuration_beside_the_versions(exported: Path):
    assert (exported / "lenet" / "config.pbtxt").read_text() == (
        'name: "lenet"\n'
        'platform: "onnxruntime_onnx"\n'
        f"max_batch_size: {MAX_BATCH_SIZE}\n"
        'input [ { name: "images" data_type: TYPE_UINT8 dims: [ 32, 32, 1 ] } ]\n'
        'output [ { name: "logits" data_type: TYPE_FP32 dims: [ 10 ] } ]\n'
    )


def test_nothing_hidden_stays_behind(exported: Path):
    assert sorted(path.name for path in exported.iterdir()) == sorted(NETWORKS)


def test_lenet_reads_at_least_97_percent_of_digits_it_has_never_seen(exported: Path):
    session = onnxruntime.InferenceSession(
        exported / "lenet" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    unseen = digits.held_out()
    preset = zoo.resolve("lenet").preset
    pixels = np.stack([to_pixels(Image.fromarray(image), preset) for image in unseen.images])
    answers = session.run(None, {"images": pixels})[0].argmax(axis=1)

    assert len(unseen.labels) == 450
    assert (answers == unseen.labels).mean() >= 0.97


def test_held_out_digits_are_stratified_and_not_among_those_trained_on():
    seen, unseen = digits.training(), digits.held_out()

    assert len(seen.labels) + len(unseen.labels) == 1797
    assert np.bincount(unseen.labels).min() >= 43
    assert not {image.tobytes() for image in seen.images} & {image.tobytes() for image in unseen.images}


def test_exporting_the_same_again_changes_nothing_and_is_quick(repository: Path):
    before = everything_in(repository)
    request = ExportRequest("lenet", repository, max_batch_size=MAX_BATCH_SIZE)
    started = time.monotonic()
    again = export_model(request)
    took = time.monotonic() - started
    forced = export_model(replace(request, force=True))

    assert (again.version, again.published) == (1, False)
    assert took < 1
    assert (forced.version, forced.published) == (1, False)
    assert everything_in(repository) == before


def test_a_change_becomes_the_next_version_and_the_old_one_stays(repository: Path):
    before = everything_in(repository / "lenet" / "1")
    changed = export_model(ExportRequest("lenet", repository, weights="untrained", max_batch_size=7))

    assert (changed.version, changed.published) == (2, True)
    assert everything_in(repository / "lenet" / "1") == before
    assert manifest_of(repository / "lenet" / "2").weights.source == WeightsRecord.UNTRAINED
    assert "max_batch_size: 7\n" in (repository / "lenet" / "config.pbtxt").read_text()


def test_a_largest_batch_of_one_is_enough(tmp_path: Path):
    exported = export_model(ExportRequest("lenet", tmp_path, max_batch_size=1))

    assert list(exported.manifest.parity.batch_sizes) == [1]


def test_a_damaged_version_is_exported_anew_beside_it(repository: Path):
    (repository / "lenet" / "1" / "model.onnx").write_bytes(b"damaged")

    assert export_model(ExportRequest("lenet", repository, max_batch_size=MAX_BATCH_SIZE)).version == 2


def test_a_network_that_fails_parity_is_not_published(repository: Path, monkeypatch: pytest.MonkeyPatch):
    before = everything_in(repository)
    right = zoo.resolve("lenet")
    wrong = replace(right, preset=replace(right.preset, mean=(0.3,)))
    monkeypatch.setattr(zoo, "resolve", lambda *_, **__: wrong)

    with pytest.raises(ParityError, match="ONNX Runtime and torch differ by"):
        export_model(ExportRequest("lenet", repository))
    assert everything_in(repository) == before


EXPORT_THAT_STOPS = """
import sys, time
from pathlib import Path
from vistazo_export import exporter
from vistazo_export.cli import export_command

def measure_parity(*_):
    print("comparing", flush=True)
    time.sleep(60)

exporter.measure_parity = measure_parity
export_command(["lenet", "--weights", "untrained", "--models", sys.argv[1]])
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_export_that_is_killed_leaves_what_was_there(repository: Path, ending: signal.Signals):
    before = everything_in(repository)
    command = [sys.executable, "-c", EXPORT_THAT_STOPS, str(repository)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "comparing\n"
        staging = list(repository.glob(f"{repo.STAGING_PREFIX}*"))
        process.send_signal(ending)
    visible = {name: text for name, text in everything_in(repository).items() if name[0] != "."}

    assert len(staging) == 1
    assert process.returncode != 0
    assert visible == before
    if ending == signal.SIGKILL:
        assert staging[0].exists()
        with repo.staging(repository, "lenet"):
            assert not staging[0].exists()
    assert everything_in(repository) == before


def test_an_export_that_is_still_running_keeps_its_staging_folder(tmp_path: Path):
    with repo.staging(tmp_path, "first") as first, repo.staging(tmp_path, "second") as second:
        assert first.folder.is_dir()
        assert second.folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_two_exports_of_the_same_at_once_publish_one_version(tmp_path: Path):
    request = ExportRequest("lenet", tmp_path, max_batch_size=2)
    others = []

    def stage(text: str) -> None:
        # The other begins and ends while this one compares, long after it looked at what is there.
        if text == "comparing":
            others.append(export_model(request))

    this = export_model(request, Progress(stage=stage))

    (other,) = others
    assert (other.version, other.published) == (1, True)
    assert (this.version, this.published) == (1, False)
    assert everything_in(tmp_path).keys() == {
        "lenet/config.pbtxt",
        "lenet/1/model.onnx",
        "lenet/1/manifest.json",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to be two users")
def test_what_another_users_export_left_is_in_nobodys_way():
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder)
        shared.chmod(0o1777)
        left = shared / f"{repo.STAGING_PREFIX}of-root"
        left.mkdir(mode=0o700)
        os.seteuid(65534)
        try:
            with repo.staging(shared, "mine") as staged:
                (staged.version / repo.MODEL_FILE).write_bytes(b"model")
                (staged.folder / repo.CONFIG_FILE).write_text("config")
                assert repo.publish(staged, shared) == 1
        finally:
            os.seteuid(0)

        assert left.is_dir()
        assert repo.model_versions(shared / "mine") == [1]


def test_no_version_is_published_above_the_largest_that_servers_have(tmp_path: Path):
    (tmp_path / "full" / str(repo.MOST_VERSION)).mkdir(parents=True)
    (tmp_path / "full" / str(repo.MOST_VERSION + 1)).mkdir()
    with (
        repo.staging(tmp_path, "full") as staged,
        pytest.raises(RepositoryError, match="no version is higher"),
    ):
        repo.publish(staged, tmp_path)

    assert repo.model_versions(tmp_path / "full") == [repo.MOST_VERSION]


def test_two_exports_of_one_name_become_two_versions(tmp_path: Path):
    with repo.staging(tmp_path, "twin") as first, repo.staging(tmp_path, "twin") as second:
        for staged in (first, second):
            (staged.version / repo.MODEL_FILE).write_bytes(b"model")
            (staged.folder / repo.CONFIG_FILE).write_text("config")
        versions = [repo.publish(first, tmp_path), repo.publish(second, tmp_path)]

    assert versions == [1, 2]
    assert repo.model_versions(tmp_path / "twin") == [1, 2]


def test_a_checkpoint_of_ones_own_is_exported_with_its_labels(tmp_path: Path, vistazo: Callable[..., Result]):
    torch.manual_seed(3)
    shapes = LeNet(3)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in shapes.state_dict().items()}}, tmp_path / "own.pth"
    )
    save_file(shapes.state_dict(), tmp_path / "own.safetensors")
    labels = tmp_path / "labels.txt"
    labels.write_text("circle\nsquare\nstar\n")
    models = tmp_path / "models"
    arguments = (
        "export",
        "lenet",
        "--models",
        models,
        "--name",
        "shapes",
        "--labels",
        tmp_path / "labels.txt",
    )
    pickled = vistazo(*arguments, "--weights", tmp_path / "own.pth")
    plain = vistazo(*arguments, "--weights", tmp_path / "own.safetensors")

    assert (pickled.exit_code, plain.exit_code) == (0, 0)
    manifest = manifest_of(models / "shapes" / "1")
    assert list(manifest.labels) == ["circle", "square", "star"]
    assert manifest.weights.source == WeightsRecord.CHECKPOINT
    assert manifest.weights.name == "own.pth"
    assert manifest.weights.sha256 == hashlib.sha256((tmp_path / "own.pth").read_bytes()).hexdigest()
    models_made = [models / "shapes" / version / "model.onnx" for version in ("1", "2")]
    assert models_made[0].read_bytes() == models_made[1].read_bytes()

    without = vistazo("verify", models)
    assert without.exit_code == 0
    assert without.stdout.count("skipped: weights file needed") == 2
    both = ("--weights", tmp_path / "own.pth", "--weights", tmp_path / "own.safetensors")
    assert "skipped" not in vistazo("verify", models, *both).stdout


def test_one_failure_does_not_stop_the_others(tmp_path: Path, vistazo: Callable[..., Result]):
    result = vistazo("export", "resnet81", "nin", "lenet", "--models", tmp_path / "models", "--max-batch", 2)

    assert result.exit_code == 1
    assert (tmp_path / "models" / "lenet" / "1" / "model.onnx").is_file()
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert (
        errors[0] == "Error: resnet81: unknown network 'resnet81': " + errors[0].partition("'resnet81': ")[2]
    )
    assert errors[1].startswith("Error: nin: nin has no published torch weights; other ways: --weights FILE")
    assert len(errors) == 2
    assert "LeNet_Weights.DIGITS" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        ((), 2, "Missing argument 'MODEL...'"),
        (("lenet", "--precision", "int4"), 2, "'int4' is not"),
        (("lenet", "--max-batch", "0"), 2, "0 is not in the range"),
        (("lenet", "nin", "--weights", "own.pth"), 2, "go with a single MODEL"),
        (("lenet", "--name", "../escape"), 1, "'../escape' is no model name"),
        (("lenet", "--labels", "gone.txt"), 1, "cannot read the labels file gone.txt"),
        (("lenet", "--weights", "gone.pth"), 1, "no weights file gone.pth"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    tmp_path: Path, vistazo: Callable[..., Result], arguments: tuple[str, ...], status: int, complaint: str
):
    result = vistazo("export", *arguments, "--models", tmp_path / "models")

    assert result.exit_code == status
    assert len([line for line in result.stderr.splitlines() if complaint in line]) == 1
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.mkdir(mode=0o555)])
def test_a_repository_that_cannot_be_written_is_told_in_one_line(
    tmp_path: Path, vistazo: Callable[..., Result], make: Callable[[Path], object]
):
    folder = tmp_path / "models"
    make(folder)
    if os.access(folder, os.W_OK) and folder.is_dir():
        pytest.skip("this user may write everywhere")
    result = vistazo("export", "lenet", "--models", folder)

    assert result.exit_code == 1
    assert f"Error: lenet: cannot write to {folder}: " in result.stderr
