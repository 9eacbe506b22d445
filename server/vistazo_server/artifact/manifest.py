"""Reading a model's manifest.json: the one place of the server that knows ModelManifest."""

import math
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final, Self

from google.protobuf import json_format

from vistazo_preprocessing.described import RESIZE_MODES, read_spec
from vistazo_preprocessing.spec import INTERPOLATIONS, JpegDecoding, Layout, PreprocessSpec
from vistazo_proto import manifest_pb2
from vistazo_server.artifact.model_formats import MODEL_FILE
from vistazo_server.artifact.triton_config import is_inside
from vistazo_server.errors import ModelLoadError, one_line

FORMAT: Final = 1
"""Newest manifest format that this server understands."""

_KEEPING_RATIO: Final = (manifest_pb2.Preprocessing.COVER, manifest_pb2.Preprocessing.FIT)
_CROP_ROUNDINGS: Final = (manifest_pb2.Preprocessing.HALF_TO_EVEN, manifest_pb2.Preprocessing.DOWN)
_CHANNEL_ORDERS: Final = ("", "RGB", "BGR")
_VALUE_RANGES: Final = (0, 1, 255)
_LAYOUTS: Final = {layout.value: layout for layout in Layout}
_DTYPES: Final = {"UINT8": "uint8", "FP32": "float32", "FP16": "float16"}
_WEIGHTS: Final = {
    manifest_pb2.Weights.PRETRAINED: "pretrained",
    manifest_pb2.Weights.CHECKPOINT: "checkpoint",
    manifest_pb2.Weights.UNTRAINED: "untrained",
    manifest_pb2.Weights.IMPORTED: "imported",
}


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What makes a model one that classifies images."""

    preprocess: PreprocessSpec
    input_tensor: str
    """The graph's one input."""


class ScoreKind(Enum):
    """What scores are, and so how probabilities are made of them."""

    LOGITS = "logits"
    """Of classes that exclude each other, before softmax."""
    PROBABILITIES = "probabilities"
    """Of classes that exclude each other; they sum to 1."""
    INDEPENDENT = "independent"
    """Each the probability of its own class."""
    INDEPENDENT_LOGITS = "independent logits"
    """Each of its own class, before the sigmoid."""


@dataclass(frozen=True, slots=True)
class ScoresSpec:
    """The output that scores the classes."""

    tensor: str
    kind: ScoreKind
    is_binary: bool = False
    """It is one score a sample, that of the second of two classes; its kind is an independent one."""


_SCORE_KINDS: Final = {
    manifest_pb2.Output.LOGITS: ScoreKind.LOGITS,
    manifest_pb2.Output.PROBABILITIES: ScoreKind.PROBABILITIES,
    manifest_pb2.Output.INDEPENDENT: ScoreKind.INDEPENDENT,
    manifest_pb2.Output.INDEPENDENT_LOGITS: ScoreKind.INDEPENDENT_LOGITS,
}
_INDEPENDENT: Final = (ScoreKind.INDEPENDENT, ScoreKind.INDEPENDENT_LOGITS)


@dataclass(frozen=True, slots=True)
class ExternalFile:
    """A file beside model.onnx that holds some of its weights."""

    path: str
    """Relative to the version's folder."""
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as its manifest describes it, in plain values."""

    name: str
    image: ImageSpec | None
    """None: the model takes tensors only."""
    scores: ScoresSpec | None
    """None: not known, of a model that takes tensors only."""
    labels: tuple[str, ...]
    """One for each class, in index order; empty: not known."""
    weights: str
    """pretrained, checkpoint, untrained or imported."""
    precision: str
    """Empty: not known."""
    max_batch_size: int
    """0: not known."""
    model_sha256: str
    external_files: tuple[ExternalFile, ...] = ()
    one_by_one: str | None = None
    """Why samples must not share a batch; empty: they may. None: nobody has tried."""
    model_file: str = MODEL_FILE
    """Relative to the version's folder."""
    output_labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Of a model without a manifest: outputs, each with labels for its classes in index order."""

    def decoding_jpegs(self, decoding: JpegDecoding) -> Self:
        """Return the model with its JPEGs decoded so, which no manifest says."""
        if self.image is None:
            return self
        preprocess = replace(self.image.preprocess, jpeg_decoding=decoding)
        return replace(self, image=replace(self.image, preprocess=preprocess))


def spec_without_manifest(
    name: str,
    *,
    model_sha256: str,
    model_file: str = MODEL_FILE,
    max_batch_size: int = 0,
    output_labels: tuple[tuple[str, tuple[str, ...]], ...] = (),
) -> ModelSpec:
    """Return what is known of a model whose folder has no manifest."""
    return ModelSpec(
        name,
        image=None,
        scores=None,
        labels=(),
        weights="imported",
        precision="",
        max_batch_size=max_batch_size,
        model_sha256=model_sha256,
        model_file=model_file,
        output_labels=output_labels,
    )


def read_manifest(path: Path, *, name: str) -> ModelSpec:
    """Return the manifest at `path`, which should be of the model `name`.

    Raises ModelLoadError when it is missing, unreadable, of a newer format, or contradicts itself.
    """
    try:
        manifest = json_format.Parse(path.read_text(encoding="utf-8"), manifest_pb2.ModelManifest())
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, json_format.ParseError) as error:
        raise ModelLoadError(f"{path} cannot be read: {one_line(error, characters=200)}") from None
    for wrong in _contradictions(manifest, name):
        raise ModelLoadError(f"{path}: {wrong}")
    return ModelSpec(
        name=manifest.name,
        image=_image_spec(manifest) if _takes_images(manifest) else None,
        scores=_scores_spec(manifest.output) if manifest.HasField("output") else None,
        labels=tuple(manifest.labels),
        weights=_WEIGHTS[manifest.weights.source],
        precision=manifest.precision,
        max_batch_size=manifest.max_batch_size,
        model_sha256=manifest.model_sha256,
        external_files=tuple(
            ExternalFile(file.path, file.bytes, file.sha256) for file in manifest.external_files
        ),
        one_by_one=manifest.one_by_one if manifest.HasField("one_by_one") else None,
    )


def _takes_images(manifest: manifest_pb2.ModelManifest) -> bool:
    return all(manifest.HasField(part) for part in ("input", "preprocessing", "output"))


def _image_spec(manifest: manifest_pb2.ModelManifest) -> ImageSpec:
    source, preprocessing = manifest.input, manifest.preprocessing
    # With UINT8 the graph normalises, whatever the manifest tells of it.
    by_server = source.dtype != "UINT8"
    # And whoever normalises has ordered the channels before.
    ordered_by_graph = not by_server and len(preprocessing.mean) > 0
    return ImageSpec(
        preprocess=replace(
            read_spec(preprocessing, height=source.height, width=source.width, channels=source.channels),
            layout=_LAYOUTS[source.layout],
            dtype=_DTYPES[source.dtype],
            mean=tuple(preprocessing.mean) if by_server else (),
            std=tuple(preprocessing.std) if by_server else (),
            bgr=preprocessing.channel_order == "BGR" and not ordered_by_graph,
            value_range=preprocessing.value_range or 1,
        ),
        input_tensor=source.tensor,
    )


def _scores_spec(output: manifest_pb2.Output) -> ScoresSpec:
    return ScoresSpec(output.tensor, _SCORE_KINDS[output.kind], output.binary)


def _contradictions(manifest: manifest_pb2.ModelManifest, name: str) -> list[str]:
    """Return what is wrong with the manifest, each as what was expected and what came."""
    if manifest.format != FORMAT:
        return [f"format: expected {FORMAT}, got {manifest.format}; a newer server may read it"]
    checks = {
        f"name: expected {name!r}, the folder's, got {manifest.name!r}": manifest.name == name,
        f"weights.source: {manifest.weights.source} is not known": manifest.weights.source in _WEIGHTS,
        f"max_batch_size: expected at least 1, got {manifest.max_batch_size}": manifest.max_batch_size > 0,
        "model_sha256: expected 64 hexadecimal digits": len(manifest.model_sha256) == 64,
    }
    for file in manifest.external_files:
        checks[f"external_files: {file.path!r} is not a path inside the version's folder"] = is_inside(
            file.path
        )
    if _takes_images(manifest):
        checks |= _image_checks(manifest)
    if manifest.HasField("output"):
        checks |= _output_checks(manifest)
    return [wrong for wrong, fine in checks.items() if not fine]


def _image_checks(manifest: manifest_pb2.ModelManifest) -> dict[str, bool]:
    """Return what could be wrong with an image model, and whether it is fine."""
    source, preprocessing = manifest.input, manifest.preprocessing
    shortest_edge = preprocessing.resize_mode == manifest_pb2.Preprocessing.SHORTEST_EDGE
    by_server = source.dtype != "UINT8"
    return {
        f"input.layout: expected one of {', '.join(_LAYOUTS)}, got {source.layout!r}": (
            source.layout in _LAYOUTS
        ),
        f"input.dtype: expected one of {', '.join(_DTYPES)}, got {source.dtype!r}": source.dtype in _DTYPES,
        f"input.channels: expected 1 or 3, got {source.channels}": source.channels in (1, 3),
        f"input: expected a height and width of at least 1, got {source.height}×{source.width}": (
            source.height > 0 and source.width > 0
        ),
        "preprocessing: the crop's size differs from the input's": (
            (preprocessing.crop_height, preprocessing.crop_width) == (source.height, source.width)
        ),
        f"preprocessing.resize_mode: {preprocessing.resize_mode} is not known": (
            preprocessing.resize_mode in RESIZE_MODES
        ),
        "preprocessing.resize_size: expected at least 1, got 0": (
            not shortest_edge or preprocessing.resize_size > 0
        ),
        "preprocessing.resize_height and resize_width: expected at least 1": (
            preprocessing.resize_mode not in _KEEPING_RATIO
            or min(preprocessing.resize_height, preprocessing.resize_width) > 0
        ),
        f"preprocessing.channel_order: expected RGB or BGR, got {preprocessing.channel_order!r}": (
            preprocessing.channel_order in _CHANNEL_ORDERS
        ),
        "preprocessing.channel_order: BGR is of 3 channels": (
            preprocessing.channel_order != "BGR" or source.channels == 3
        ),
        f"preprocessing.value_range: expected 1 or 255, got {preprocessing.value_range}": (
            preprocessing.value_range in _VALUE_RANGES
        ),
        f"preprocessing.pad_color: expected {source.channels} numbers of 0 to 255": (
            len(preprocessing.pad_color) in {0, source.channels}
            and all(value <= 255 for value in preprocessing.pad_color)
        ),
        "preprocessing.background: expected 3 numbers of 0 to 255 (red, green, blue) or 1 (grey), got "
        f"{list(preprocessing.background)}": (
            len(preprocessing.background) in {0, 1, 3}
            and all(value <= 255 for value in preprocessing.background)
        ),
        f"preprocessing.crop_rounding: {preprocessing.crop_rounding} is not known": (
            preprocessing.crop_rounding in _CROP_ROUNDINGS
        ),
        f"preprocessing.interpolation: expected one of {', '.join(INTERPOLATIONS)}, "
        f"got {preprocessing.interpolation!r}": preprocessing.interpolation in INTERPOLATIONS,
        f"preprocessing: expected a mean and std for each of {source.channels} channels, since the server "
        f"normalises {source.dtype}, got {len(preprocessing.mean)} and {len(preprocessing.std)}": (
            not by_server or len(preprocessing.mean) == len(preprocessing.std) == source.channels
        ),
        "preprocessing.std: expected numbers above 0": (
            not by_server or all(std > 0 and math.isfinite(std) for std in preprocessing.std)
        ),
    }


def _output_checks(manifest: manifest_pb2.ModelManifest) -> dict[str, bool]:
    """Return what could be wrong with the output that scores the classes, and whether it is fine."""
    output = manifest.output
    return {
        f"output.kind: {output.kind} is not known": output.kind in _SCORE_KINDS,
        f"labels: expected {output.classes}, one a class, got {len(manifest.labels)}": (
            len(manifest.labels) == output.classes > 0
        ),
        f"output.binary: expected 2 classes and an independent kind, got {output.classes} and "
        f"{_SCORE_KINDS.get(output.kind, ScoreKind.LOGITS).value}": (
            not output.binary or (output.classes == 2 and _SCORE_KINDS.get(output.kind) in _INDEPENDENT)
        ),
    }
