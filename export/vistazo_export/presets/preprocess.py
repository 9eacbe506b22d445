"""What `--preprocess` takes, read into one description: the manifest's fields, and where they came from.

Start with `read_preprocess`.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from vistazo_export.errors import PresetError
from vistazo_export.presets.complaints import complaints
from vistazo_export.presets.hub_processor import is_hub_processor, processor_fields
from vistazo_export.presets.preset import preset_of, to_proto
from vistazo_export.presets.timm_config import config_fields, is_timm_config
from vistazo_export.presets.torchvision_import import torchvision_models
from vistazo_proto.manifest_pb2 import Input, Preprocessing

IMAGENET = "imagenet"
NONE = "none"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The centre crop's share of the resized shorter edge in torchvision's presets: 224 of 256, 299 of 342.
IMAGENET_CROP = 0.875

# How the full name of torchvision's weights goes on behind the network's.
WEIGHTS = "_Weights."


@dataclass(frozen=True)
class Described:
    """A way to prepare images, as far as its source tells."""

    fields: Mapping[str, Any]
    """Of the manifest's Preprocessing; the crop may be missing."""
    origin: str
    """What it was read from, as the manifest may say it: no folders."""
    is_usual: bool = False
    """Whether it is "imagenet": sizes follow from the input's."""
    is_of_graph: bool = True
    """Whether mean and std were written for this very graph, so that one that takes bytes contradicts."""


def read_preprocess(choice: str) -> Described:
    """Return what `choice` describes: "imagenet", the full name of torchvision weights, or a file.

    The file is TOML or JSON with the manifest's fields, a timm model's config.json, or a Hugging Face
    preprocessor_config.json. Raises PresetError.
    """
    if choice == IMAGENET:
        return Described(
            {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}, IMAGENET, is_usual=True, is_of_graph=False
        )
    if WEIGHTS in choice and not Path(choice).exists():
        return Described(_published_fields(choice), choice, is_of_graph=False)
    path = Path(choice)
    content = _table(path, choice)
    if is_timm_config(content):
        return Described(config_fields(content, choice), f"{path.name}, timm's", is_of_graph=False)
    if is_hub_processor(content):
        fields, kind = processor_fields(content, choice)
        return Described(fields, f"{path.name}, {kind}", is_of_graph=False)
    if "architectures" in content or "id2label" in content:
        raise PresetError(
            f"{choice} describes a model and not its preprocessing; give the preprocessor_config.json "
            "beside it"
        )
    known = [field.name for field in Preprocessing.DESCRIPTOR.fields]
    if unknown := sorted(content.keys() - set(known)):
        raise PresetError(
            f"the preprocessing file {choice} has unknown fields: {', '.join(unknown)}; "
            f"known are {', '.join(known)}"
        )
    return Described(content, path.name)


def preprocessing_for(described: Described, image: Input) -> Preprocessing:
    """Return the manifest's preprocessing for the input `image`.

    Raises PresetError where what is described is incomplete or does not go with the input.
    """
    if described.is_usual:
        fields = _usual(image)
    else:
        fields = {"crop_height": image.height, "crop_width": image.width} | dict(described.fields)
    for name in ("resize_mode", "channel_order", "crop_rounding"):
        if isinstance(fields.get(name), str):
            fields[name] = fields[name].upper()
    if image.dtype == "UINT8" and not described.is_of_graph:
        # The graph normalises itself, whatever others do.
        fields = {name: value for name, value in fields.items() if name not in _OF_FLOATS}
    try:
        preprocessing = json_format.ParseDict(fields, Preprocessing())
    except json_format.ParseError as error:
        raise PresetError(f"the preprocessing {described.origin}: {' '.join(str(error).split())}") from error
    # Kept as ever where they say nothing new, so that an export again is the same.
    if preprocessing.value_range == 1:
        preprocessing.value_range = 0
    if preprocessing.channel_order == "RGB":
        preprocessing.channel_order = ""
    for complaint in complaints(preprocessing, image):
        raise PresetError(f"the preprocessing {described.origin}: {complaint}")
    return preprocessing


def sentence(preprocessing: Preprocessing, *, normalises: str = "") -> str:
    """Return the preprocessing in one line, for whoever wonders what was written.

    `normalises` says who does it where there is no mean and std.
    """
    crop = f"{preprocessing.crop_height}×{preprocessing.crop_width}"
    edges = f"{preprocessing.resize_height}×{preprocessing.resize_width}"
    resize = {
        Preprocessing.SHORTEST_EDGE: f"shorter edge to {preprocessing.resize_size}",
        Preprocessing.STRETCH: f"stretched to {crop if edges == '0×0' else edges}",
        Preprocessing.COVER: f"resized to cover {edges}",
        Preprocessing.FIT: f"resized to fit into {edges}",
        Preprocessing.NO_RESIZE: "not resized",
    }[preprocessing.resize_mode]
    if preprocessing.resize_mode != Preprocessing.NO_RESIZE:
        resize += f" ({preprocessing.interpolation})"
    parts = [resize, f"crop {crop}", preprocessing.channel_order or "RGB"]
    if len(preprocessing.mean) == 1:
        parts[-1] = "grey"
    if preprocessing.pad_color:
        parts.append(f"padded with {_numbers(preprocessing.pad_color)}")
    if preprocessing.background:
        parts.append(f"transparency on {_numbers(preprocessing.background)}")
    if preprocessing.mean:
        parts.append(
            f"mean {_numbers(preprocessing.mean)} and std {_numbers(preprocessing.std)} "
            f"of values in 0 to {preprocessing.value_range or 1}"
        )
    elif normalises:
        parts.append(normalises)
    return ", ".join(parts)


# The graph's own affair where it takes bytes.
_OF_FLOATS = ("mean", "std", "value_range")


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _table(path: Path, choice: str) -> dict[str, Any]:
    """Return the content of a TOML or JSON file, or raise PresetError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PresetError(
            f"cannot read the preprocessing file {choice}: {error.strerror}; --preprocess takes {IMAGENET}, "
            f"{NONE}, weights of torchvision such as ResNet50_Weights.IMAGENET1K_V1, or a file"
        ) from error
    except UnicodeDecodeError as error:
        raise PresetError(f"the preprocessing file {choice} is not UTF-8 text") from error
    try:
        fields = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except ValueError as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise PresetError(f"the preprocessing file {choice} is not {kind}: {error}") from error
    if not isinstance(fields, dict):
        raise PresetError(f"the preprocessing file {choice} is no table of fields")
    return fields


def _published_fields(name: str) -> dict[str, Any]:
    """Return the fields of the preset of torchvision's weights of that name."""
    try:
        weights = torchvision_models().get_weight(name)
    except (AttributeError, KeyError, ValueError) as error:
        raise PresetError(
            f"torchvision has no weights {name!r}, nor is there such a file; a name is such as "
            "ResNet50_Weights.IMAGENET1K_V1"
        ) from error
    record = to_proto(preset_of(weights.transforms()))
    fields: dict[str, Any] = json_format.MessageToDict(record, preserving_proto_field_name=True)
    return fields


def _usual(image: Input) -> dict[str, Any]:
    if image.channels != 3:
        raise PresetError(
            f"--preprocess {IMAGENET} is for colour, the graph takes {image.channels} channel; "
            "write a FILE with its own mean and std"
        )
    if image.height != image.width:
        raise PresetError(
            f"--preprocess {IMAGENET} is for square images, the graph takes {image.height}×{image.width}; "
            "write a FILE that says how they are resized"
        )
    return {
        "resize_mode": "SHORTEST_EDGE",
        "resize_size": round(image.height / IMAGENET_CROP),
        "crop_height": image.height,
        "crop_width": image.width,
        "interpolation": "bilinear",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
