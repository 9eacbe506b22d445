"""Manifests: what is written beside model.onnx, and how an existing one is read."""

from importlib.metadata import version
from pathlib import Path

from google.protobuf import json_format

from vistazo_export.errors import RepositoryError
from vistazo_export.networks.zoo import Recipe
from vistazo_export.presets.preset import to_proto
from vistazo_proto.manifest_pb2 import Input, ModelManifest, Output
from vistazo_proto.manifest_pb2 import Weights as WeightsRecord

FORMAT = 1
"""The manifest format that this package writes, and the newest that it reads."""

INPUT_TENSOR = "images"
OUTPUT_TENSOR = "logits"

MADE_WITH = ("vistazo", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime")
"""Packages whose versions shape the artifact or its parity figures."""

CALIBRATION = "calibration"
"""The entry of made_with that says which images an int8 model was calibrated on."""

PREPROCESS = "preprocess"
"""The entry of made_with that says what --preprocess named, where it did."""

SOURCES = {
    "pretrained": WeightsRecord.PRETRAINED,
    "checkpoint": WeightsRecord.CHECKPOINT,
    "untrained": WeightsRecord.UNTRAINED,
}

# Known only once the graph is made.
MEASURED_FIELDS = ("opset", "parity", "model_sha256", "model_bytes", "one_by_one")


def plan_manifest(
    recipe: Recipe,
    *,
    name: str,
    precision: str,
    max_batch_size: int,
    calibration: str = "",
    kind: "Output.Kind" = Output.LOGITS,
) -> ModelManifest:
    """Return the manifest of an export that has not happened yet: all but MEASURED_FIELDS.

    `calibration` says with what an int8 model is calibrated, `kind` what the scores are.
    """
    made_with = {package: version(package) for package in MADE_WITH}
    if calibration:
        made_with[CALIBRATION] = calibration
    if recipe.preset_is_told:
        made_with[PREPROCESS] = recipe.preset_from
    return ModelManifest(
        format=FORMAT,
        name=name,
        architecture=recipe.architecture,
        input=Input(
            tensor=INPUT_TENSOR,
            height=recipe.preset.height,
            width=recipe.preset.width,
            channels=recipe.preset.channels,
            layout="NHWC",
            dtype="UINT8",
        ),
        preprocessing=to_proto(recipe.preset),
        output=Output(tensor=OUTPUT_TENSOR, kind=kind, classes=len(recipe.labels)),
        labels=recipe.labels,
        weights=WeightsRecord(
            source=SOURCES[recipe.weights.source],
            name=recipe.weights.name,
            url=recipe.weights.url,
            sha256=recipe.weights.sha256,
            state_dict_key=recipe.weights.options.state_dict_key,
            ignored_keys=recipe.weights.options.ignore_keys,
            builder=dict(recipe.weights.options.builder),
        ),
        precision=precision,
        max_batch_size=max_batch_size,
        made_with=made_with,
    )


def describes(existing: ModelManifest, plan: ModelManifest) -> bool:
    """Say whether `existing` is what `plan` would become."""
    reduced = ModelManifest()
    reduced.CopyFrom(existing)
    for field in MEASURED_FIELDS:
        reduced.ClearField(field)
    if not plan.weights.sha256:
        # Published weights are known by name and URL until they are downloaded.
        reduced.weights.sha256 = ""
    return reduced == plan


def read_manifest(path: Path) -> ModelManifest:
    """Return the manifest in the JSON file at `path`, or raise RepositoryError."""
    try:
        manifest = json_format.Parse(path.read_text(encoding="utf-8"), ModelManifest())
    except FileNotFoundError:
        raise RepositoryError(f"{path.name} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path.name} cannot be read: {error}") from error
    except json_format.ParseError as error:
        raise RepositoryError(f"{path.name} is no manifest: {' '.join(str(error).split())}") from error
    if not 1 <= manifest.format <= FORMAT:
        raise RepositoryError(f"{path.name} has format {manifest.format}; this Vistazo reads {FORMAT}")
    return manifest


def write_manifest(path: Path, manifest: ModelManifest) -> None:
    """Write `manifest` as JSON to `path`, with the .proto's field names and every field present."""
    text = json_format.MessageToJson(
        manifest, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    path.write_text(text + "\n", encoding="utf-8")


def triton_config(manifest: ModelManifest) -> str:
    """Return the config.pbtxt with which Triton serves the same model folder.

    Of an imported graph Triton reads inputs, outputs and whether it batches itself: a largest batch would be
    an error where the graph fixes it.
    """
    if manifest.weights.source == WeightsRecord.IMPORTED:
        return f'name: "{manifest.name}"\nplatform: "onnxruntime_onnx"\n'
    size = manifest.input
    return (
        f'name: "{manifest.name}"\n'
        'platform: "onnxruntime_onnx"\n'
        f"max_batch_size: {manifest.max_batch_size}\n"
        f'input [ {{ name: "{size.tensor}" data_type: TYPE_{size.dtype} '
        f"dims: [ {size.height}, {size.width}, {size.channels} ] }} ]\n"
        f'output [ {{ name: "{manifest.output.tensor}" data_type: TYPE_FP32 '
        f"dims: [ {manifest.output.classes} ] }} ]\n"
    )
