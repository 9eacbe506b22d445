"""int8 and fp16 variants: what they are, what they keep, and when they are refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import Result
from google.protobuf import json_format
from PIL import Image

from support.exports import Exports
from vistazo_export.checks import parity
from vistazo_export.checks.sample_images import sample_images
from vistazo_export.conversion import calibration
from vistazo_export.conversion.half import write_fp16
from vistazo_export.errors import CalibrationError, GraphError, ParityError
from vistazo_export.exporter import ExportRequest, export_model
from vistazo_export.networks import digits, zoo
from vistazo_export.presets.preset import to_pixels
from vistazo_proto.manifest_pb2 import ModelManifest

MAX_BATCH_SIZE = 5
NETWORKS = {"lenet": "pretrained", "squeezenet1_1": "untrained"}
VARIANTS = [f"{network}-{precision}" for network in NETWORKS for precision in ("int8", "fp16")]

EditManifest = Callable[[Callable[[dict], object]], None]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory, exports: Exports) -> Path:
    """A repository with all of VARIANTS. Not to be changed: take `lenet_int8` for that."""
    folder = tmp_path_factory.mktemp("variants") / "models"
    photographs = tmp_path_factory.mktemp("photographs")
    for number, image in enumerate(sample_images(3)[:6]):
        image.resize((300, 260)).save(photographs / f"{number}.png")
    for name in VARIANTS:
        architecture, precision = name.split("-")
        request = ExportRequest(
            architecture,
            folder,
            weights=NETWORKS[architecture],
            precision=precision,
            calibration=photographs if precision == "int8" and architecture != "lenet" else None,
            max_batch_size=MAX_BATCH_SIZE,
        )
        exports.put(request)
    return folder


@pytest.fixture
def lenet_int8(variants: Path, tmp_path: Path) -> Path:
    """A repository of one's own, with lenet-int8 in it."""
    folder = tmp_path / "models"
    shutil.copytree(variants / "lenet-int8", folder / "lenet-int8")
    return folder


def manifest_of(model: Path) -> ModelManifest:
    return json_format.Parse((model / "1" / "manifest.json").read_text(), ModelManifest())


def session_of(model: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])


def operators_of(graph: onnx.GraphProto) -> set[str]:
    return {node.op_type for node in graph.node}


def accuracy_on_unseen_digits(model: Path) -> float:
    unseen = digits.held_out()
    preset = zoo.resolve("lenet").preset
    pixels = np.stack([to_pixels(Image.fromarray(image), preset) for image in unseen.images])
    answers = session_of(model).run(None, {"images": pixels})[0].argmax(axis=1)
    return float((answers == unseen.labels).mean())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_takes_the_same_images_and_gives_float_logits_in_any_batch(variants: Path, name: str):
    manifest = manifest_of(variants / name)
    session = session_of(variants / name)
    (images,), (logits,) = session.get_inputs(), session.get_outputs()

    assert (images.name, images.type, images.shape[0]) == ("images", "tensor(uint8)", "batch")
    assert (logits.name, logits.type, logits.shape[0]) == ("logits", "tensor(float)", "batch")
    for batch in (1, 2, 3, MAX_BATCH_SIZE):
        pixels = np.zeros((batch, *images.shape[1:]), np.uint8)
        assert session.run(None, {"images": pixels})[0].shape == (batch, manifest.output.classes)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_manifest_of_a_variant_names_its_network_and_its_precision(variants: Path, name: str):
    manifest = manifest_of(variants / name)

    assert (manifest.name, f"{manifest.architecture}-{manifest.precision}") == (name, name)
    assert list(manifest.parity.batch_sizes) == [1, 2, 3, MAX_BATCH_SIZE]
    assert manifest.parity.tolerance == (0 if manifest.precision == "int8" else 1e-2)
    assert ("calibration" in manifest.made_with) == (manifest.precision == "int8")


@pytest.mark.parametrize("network", NETWORKS)
def test_int8_has_signed_weights_per_channel_and_unsigned_activations(variants: Path, network: str):
    graph = onnx.load(variants / f"{network}-int8" / "1" / "model.onnx").graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantized = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    weights = [
        (tensors[node.input[0]], tensors[node.input[1]])
        for node in graph.node
        if node.op_type == "DequantizeLinear" and tensors.get(node.input[0], np.empty(0)).dtype == np.int8
    ]

    assert quantized
    assert all(tensors[node.input[2]].dtype == np.uint8 for node in quantized)
    assert sum(node.op_type in {"Conv", "Gemm"} for node in graph.node) == len(weights)
    for weight, scales in weights:
        assert scales.shape == (weight.shape[0],)
        assert np.abs(weight.astype(int)).max() <= 64


@pytest.mark.parametrize("network", NETWORKS)
def test_int8_computes_every_layer_in_integers_once_loaded(variants: Path, tmp_path: Path, network: str):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(variants / f"{network}-int8" / "1" / "model.onnx", options)
    loaded = operators_of(onnx.load(tmp_path / "loaded.onnx").graph)

    assert "QLinearConv" in loaded
    assert not loaded & {"Conv", "Gemm", "MatMul", "Relu", "FusedConv"}


def test_int8_does_not_round_the_logits_to_256_steps(variants: Path):
    pixels = np.stack([to_pixels(image, zoo.resolve("lenet").preset) for image in sample_images(1)])
    logits = session_of(variants / "lenet-int8").run(None, {"images": pixels})[0]

    assert len(np.unique(logits)) > 256


def test_int8_reads_unseen_digits_within_a_point_of_fp32(variants: Path, exported: Path):
    full, small = (accuracy_on_unseen_digits(m) for m in (exported / "lenet", variants / "lenet-int8"))

    assert full - small <= 0.01


@pytest.mark.parametrize("network", NETWORKS)
def test_fp16_computes_in_half_the_bytes_and_normalises_in_float(
    variants: Path, exported: Path, network: str
):
    path = variants / f"{network}-fp16" / "1" / "model.onnx"
    graph = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    weighted = [node for node in graph.node if node.op_type in {"Conv", "Gemm"}]
    normalising = [node for node in graph.node if node.op_type in {"Sub", "Div"}]

    assert all(types[name] == onnx.TensorProto.FLOAT16 for node in weighted for name in node.input[1:])
    assert all(types[node.input[1]] == onnx.TensorProto.FLOAT for node in normalising)
    assert path.stat().st_size < 0.6 * (exported / network / "1" / "model.onnx").stat().st_size


def test_fp16_makes_half_of_zeros_that_have_no_type(exported: Path, tmp_path: Path):
    model = onnx.load(exported / "lenet" / "1" / "model.onnx")
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 10]), "shape"))
    model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["shape"], ["zeros"], name="zeros"))
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "zeros"], ["logits"], name="add"))
    onnx.save(model, tmp_path / "zeros.onnx")
    write_fp16(tmp_path / "zeros.onnx", tmp_path / "half.onnx")

    onnx.checker.check_model(tmp_path / "half.onnx", full_check=True)


def test_fp16_refuses_a_weight_that_it_cannot_hold(exported: Path, tmp_path: Path):
    model = onnx.load(exported / "lenet" / "1" / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "network.features.0.weight")
    values = onnx.numpy_helper.to_array(weight) * 1e6
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "large.onnx")

    with pytest.raises(GraphError, match=r"network\.features\.0\.weight holds .*, too large for fp16"):
        write_fp16(tmp_path / "large.onnx", tmp_path / "half.onnx")


def test_without_a_folder_the_output_and_the_manifest_name_the_default_calibration(
    lenet_int8: Path, vistazo: Callable[..., Result]
):
    result = vistazo(
        "export", "lenet", "--precision", "int8", "--models", lenet_int8, "--max-batch", MAX_BATCH_SIZE
    )
    said = manifest_of(lenet_int8 / "lenet-int8").made_with["calibration"]

    assert result.exit_code == 0
    assert "unchanged" in result.stdout
    assert said.startswith("1347 training digits (default), sha256 ")
    assert f"lenet-int8: calibrated on {said}\n" in result.stdout


def test_photographs_by_default_are_not_the_views_that_parity_looks_at():
    views = calibration.calibration_set(None, 3)
    preset = zoo.resolve("squeezenet1_1").preset
    compared = {pixels.tobytes() for pixels in parity.sample_pixels(preset)}
    shown = [pixels for batch in views.batches(preset) for pixels in batch]

    assert views.summary.startswith("70 views of 14 sample photographs (default), sha256 ")
    assert len(shown) == 70
    assert not compared & {pixels.tobytes() for pixels in shown}


def test_the_same_again_changes_nothing_and_other_calibration_makes_the_next_version(
    lenet_int8: Path, tmp_path: Path
):
    request = ExportRequest("lenet", lenet_int8, precision="int8", max_batch_size=MAX_BATCH_SIZE)
    folder = tmp_path / "images"
    for number, image in enumerate(digits.training().images[:20]):
        (folder / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(number % 2) / f"{number}.png")
    (folder / "notes.txt").write_text("no image")

    assert not export_model(request).published
    assert not export_model(replace(request, force=True)).published
    other = export_model(replace(request, calibration=folder))
    assert (other.version, other.published) == (2, True)
    assert other.manifest.made_with["calibration"].startswith("20 images of a folder, sha256 ")
    (folder / "0" / "0.png").rename(folder / "renamed.png")
    assert not export_model(replace(request, calibration=folder)).published
    (folder / "renamed.png").unlink()
    assert export_model(replace(request, calibration=folder)).version == 3


def test_of_a_large_folder_an_even_sample_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "MOST_IMAGES", 4)
    for number in range(10):
        Image.new("L", (4, 4), number * 20).save(tmp_path / f"{number}.bmp")
    taken = calibration.calibration_set(tmp_path, 1)

    assert taken.summary.startswith("4 of 10 images of a folder, sha256 ")
    assert [image.getpixel((0, 0)) for image in taken.images()] == [0, 40, 100, 140]


def test_a_damaged_image_below_the_folder_is_named(tmp_path: Path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    taken = calibration.calibration_set(tmp_path, 3)

    with pytest.raises(CalibrationError, match=r"cannot read the calibration image .*broken\.jpg: "):
        list(taken.batches(zoo.resolve("squeezenet1_1").preset))


def _empty(folder: Path) -> None:
    folder.mkdir()


def _no_image(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")


def _damaged(folder: Path) -> None:
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:40])


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder: None, "no calibration folder"),
        (_empty, "no images in the calibration folder"),
        (_no_image, "no images in the calibration folder"),
        (_damaged, "cannot read the calibration image"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_in_one_line(
    tmp_path: Path, vistazo: Callable[..., Result], make: Callable[[Path], None], complaint: str
):
    make(tmp_path / "images")
    result = vistazo(
        "export",
        "lenet",
        "--precision",
        "int8",
        "--calibration",
        tmp_path / "images",
        "--models",
        tmp_path / "models",
    )

    assert result.exit_code == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert error.startswith(f"Error: lenet-int8: {complaint}")
    assert not list(tmp_path.glob("models/*"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_calibration_images_go_with_int8_alone(
    tmp_path: Path, vistazo: Callable[..., Result], precision: str
):
    result = vistazo("export", "lenet", "--precision", precision, "--calibration", tmp_path)

    assert result.exit_code == 2
    assert "--calibration goes with --precision int8" in result.stderr


@pytest.mark.parametrize(
    ("bounds", "complaint"),
    [
        ({"noise": 1e-6}, "int8 broke the model: its rounding adds .* noise to the logits"),
        ({"agreement": 1.1}, "int8 broke the model: torch's top class for only .* of 40 images"),
    ],
)
def test_an_int8_model_that_lost_too_much_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: dict[str, float], complaint: str
):
    monkeypatch.setitem(parity.BOUNDS, "int8", replace(parity.BOUNDS["int8"], **bounds))

    with pytest.raises(ParityError, match=complaint):
        export_model(ExportRequest("lenet", tmp_path / "models", precision="int8", max_batch_size=2))
    assert not list((tmp_path / "models").iterdir())


def test_noise_is_the_share_of_what_tells_the_classes_apart():
    reference = np.array([[1.0, -1.0], [3.0, 1.0]], np.float32)

    assert parity._noise(reference + 5, reference) == 0
    assert parity._noise(reference * 0, reference) == pytest.approx(1)
    assert parity._noise(reference * 1.5, reference) == pytest.approx(0.5)


def test_untrained_weights_are_not_held_to_agreement_and_it_is_said(
    tmp_path: Path, vistazo: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(parity.BOUNDS, "int8", replace(parity.BOUNDS["int8"], agreement=1.1))
    arguments = ("--precision", "int8", "--weights", "untrained", "--models", tmp_path, "--max-batch", 2)
    result = vistazo("export", "lenet", *arguments)

    assert result.exit_code == 0
    assert "untrained logits are all but equal" in result.stderr


def test_variants_pass_verification(variants: Path, vistazo: Callable[..., Result]):
    result = vistazo("verify", variants)

    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("passed") == len(VARIANTS)
    assert "lenet-int8: calibrated on 1347 training digits (default)" in result.stdout


def test_damage_to_an_int8_model_is_found(lenet_int8: Path, vistazo: Callable[..., Result]):
    model = lenet_int8 / "lenet-int8" / "1" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1000] ^= 1
    model.write_bytes(content)
    result = vistazo("verify", lenet_int8)

    assert result.exit_code == 1
    assert "model.onnx is not the file that was checked at export" in result.stderr


def test_an_int8_model_of_other_weights_is_found(lenet_int8: Path, vistazo: Callable[..., Result]):
    manifest = lenet_int8 / "lenet-int8" / "1" / "manifest.json"
    changed = manifest.read_text().replace('"PRETRAINED"', '"UNTRAINED"')
    manifest.write_text(changed.replace('"LeNet_Weights.DIGITS"', '"seed 0"'))
    result = vistazo("verify", lenet_int8)

    assert result.exit_code == 1
    assert "int8 broke the model" in result.stderr
