"""Reading a model's manifest.json: the one place of the server that knows ModelManifest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf import json_format
from PIL import Image

from vistazo_proto import manifest_pb2
from vistazo_server.errors import ModelLoadError, one_line
from vistazo_server.preprocess import PreprocessSpec, ResizeMode

FORMAT: Final = 1
"""Newest manifest format that this server understands."""

_RESIZE_MODES: Final = {
    manifest_pb2.Preprocessing.SHORTEST_EDGE: ResizeMode.SHORTEST_EDGE,
    manifest_pb2.Preprocessing.STRETCH: ResizeMode.STRETCH,
}
_INTERPOLATIONS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_WEIGHTS: Final = {
    manifest_pb2.Weights.PRETRAINED: "pretrained",
    manifest_pb2.Weights.CHECKPOINT: "checkpoint",
    manifest_pb2.Weights.UNTRAINED: "untrained",
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as its manifest describes it, in plain values."""

    name: str
    preprocess: PreprocessSpec
    input_tensor: str
    output_tensor: str
    output_is_logits: bool
    """False: the output already sums to 1."""
    labels: tuple[str, ...]
    """One for each class, in index order."""
    weights: str
    """pretrained, checkpoint or untrained."""
    precision: str
    max_batch_size: int
    model_sha256: str


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
        preprocess=PreprocessSpec(
            height=manifest.input.height,
            width=manifest.input.width,
            channels=manifest.input.channels,
            resize_mode=_RESIZE_MODES[manifest.preprocessing.resize_mode],
            resize_size=manifest.preprocessing.resize_size,
            interpolation=_INTERPOLATIONS[manifest.preprocessing.interpolation],
        ),
        input_tensor=manifest.input.tensor,
        output_tensor=manifest.output.tensor,
        output_is_logits=manifest.output.kind == manifest_pb2.Output.LOGITS,
        labels=tuple(manifest.labels),
        weights=_WEIGHTS[manifest.weights.source],
        precision=manifest.precision,
        max_batch_size=manifest.max_batch_size,
        model_sha256=manifest.model_sha256,
    )


def _contradictions(manifest: manifest_pb2.ModelManifest, name: str) -> list[str]:
    """Return what is wrong with the manifest, each as what was expected and what came."""
    source, preprocessing, output = manifest.input, manifest.preprocessing, manifest.output
    if manifest.format != FORMAT:
        return [f"format: expected {FORMAT}, got {manifest.format}; a newer server may read it"]
    shortest_edge = preprocessing.resize_mode == manifest_pb2.Preprocessing.SHORTEST_EDGE
    checks = {
        f"name: expected {name!r}, the folder's, got {manifest.name!r}": manifest.name == name,
        f"input.layout: expected 'NHWC', got {source.layout!r}": source.layout == "NHWC",
        f"input.dtype: expected 'UINT8', got {source.dtype!r}": source.dtype == "UINT8",
        f"input.channels: expected 1 or 3, got {source.channels}": source.channels in (1, 3),
        f"input: expected a height and width of at least 1, got {source.height}×{source.width}": (
            source.height > 0 and source.width > 0
        ),
        "preprocessing: the crop's size differs from the input's": (
            (preprocessing.crop_height, preprocessing.crop_width) == (source.height, source.width)
        ),
        f"preprocessing.resize_mode: {preprocessing.resize_mode} is not known": (
            preprocessing.resize_mode in _RESIZE_MODES
        ),
        "preprocessing.resize_size: expected at least 1, got 0": (
            not shortest_edge or preprocessing.resize_size > 0
        ),
        f"preprocessing.interpolation: expected one of {', '.join(_INTERPOLATIONS)}, "
        f"got {preprocessing.interpolation!r}": preprocessing.interpolation in _INTERPOLATIONS,
        f"output.kind: {output.kind} is not known": (
            output.kind in (manifest_pb2.Output.LOGITS, manifest_pb2.Output.PROBABILITIES)
        ),
        f"labels: expected {output.classes}, one a class, got {len(manifest.labels)}": (
            len(manifest.labels) == output.classes > 0
        ),
        f"weights.source: {manifest.weights.source} is not known": manifest.weights.source in _WEIGHTS,
        f"max_batch_size: expected at least 1, got {manifest.max_batch_size}": manifest.max_batch_size > 0,
        "model_sha256: expected 64 hexadecimal digits": len(manifest.model_sha256) == 64,
    }
    return [wrong for wrong, fine in checks.items() if not fine]
