"""How an image becomes the input of an imported graph: what the graph says of it, and what must be told."""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from vistazo_export.errors import PresetError, UndecidedError
from vistazo_export.foreign.interface import OnnxInterface, TensorInfo
from vistazo_export.networks.preset import RESAMPLING
from vistazo_proto.manifest_pb2 import Input, Preprocessing

IMAGENET = "imagenet"
NONE = "none"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The centre crop's share of the resized shorter edge in torchvision's presets: 224 of 256, 299 of 342.
IMAGENET_CROP = 0.875

LAYOUTS = ("NCHW", "NHWC")
DTYPES = ("UINT8", "FP32", "FP16")
CHANNELS = (1, 3)

SERVE_TENSORS = "--preprocess none serves it over Open Inference only"


@dataclass(frozen=True)
class ImageOptions:
    """What the user says of the image input, where the graph does not; empty or None: nothing."""

    layout: str = ""
    """One of LAYOUTS."""
    size: tuple[int, int] | None = None
    """Height and width, in pixels."""
    channels: int | None = None
    """One of CHANNELS."""


def image_tensor(interface: OnnxInterface) -> TensorInfo:
    """Return the graph's input if an image can be fed to it.

    Raises UndecidedError where it needs more inputs, or one of another type or rank.
    """
    if len(interface.inputs) != 1:
        names = ", ".join(map(str, interface.inputs)) or "none"
        raise UndecidedError(
            f"the graph must be fed one input to take images, its are: {names}; {SERVE_TENSORS}"
        )
    (tensor,) = interface.inputs
    if tensor.dtype not in DTYPES:
        raise UndecidedError(f"the input {tensor} is not {' or '.join(DTYPES)}, so no image; {SERVE_TENSORS}")
    if tensor.shape is not None and len(tensor.shape) != 4:
        raise UndecidedError(f"the input {tensor} has not the 4 dimensions of images; {SERVE_TENSORS}")
    return tensor


def image_input(tensor: TensorInfo, options: ImageOptions, preprocessing: Mapping[str, Any]) -> Input:
    """Return the manifest's record of the image input `tensor`.

    What its shape leaves open is taken from `options`, then from the fields of `preprocessing` that the
    user wrote. Raises UndecidedError, naming the option, where that is not enough or contradicts.
    """
    layout = _layout(tensor, options)
    _, *rest = tensor.shape or (None,) * 4
    channels, height, width = rest if layout == "NCHW" else (rest[2], rest[0], rest[1])
    return Input(
        tensor=tensor.name,
        layout=layout,
        dtype=tensor.dtype,
        channels=_channels(tensor, channels, options, preprocessing.get("mean")),
        height=_edge("height", tensor, height, options.size and options.size[0], preprocessing),
        width=_edge("width", tensor, width, options.size and options.size[1], preprocessing),
    )


def read_preprocessing(choice: str) -> dict[str, Any] | None:
    """Return the fields that `choice` sets: "imagenet" sets none here, "none" gives None, else a file's.

    The file is TOML or JSON; its keys are the fields of the manifest's Preprocessing. Raises PresetError
    where it cannot be read or has other keys.
    """
    if choice == NONE:
        return None
    if choice == IMAGENET:
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    path = Path(choice)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PresetError(
            f"cannot read the preprocessing file {choice}: {error.strerror}; "
            f"--preprocess takes {IMAGENET}, {NONE} or a file"
        ) from error
    except UnicodeDecodeError as error:
        raise PresetError(f"the preprocessing file {choice} is not UTF-8 text") from error
    try:
        fields = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise PresetError(f"the preprocessing file {choice} is not {kind}: {error}") from error
    if not isinstance(fields, dict):
        raise PresetError(f"the preprocessing file {choice} is no table of fields")
    known = [field.name for field in Preprocessing.DESCRIPTOR.fields]
    if unknown := sorted(fields.keys() - set(known)):
        raise PresetError(
            f"the preprocessing file {choice} has unknown fields: {', '.join(unknown)}; "
            f"known are {', '.join(known)}"
        )
    return fields


def preprocessing_for(choice: str, fields: Mapping[str, Any], image: Input) -> Preprocessing:
    """Return the manifest's preprocessing for the input `image`: that of `choice`, with its `fields`.

    Raises PresetError where they are incomplete or do not go with the input.
    """
    if choice == IMAGENET:
        return _imagenet(image)
    fields = {"crop_height": image.height, "crop_width": image.width} | dict(fields)
    mode = fields.get("resize_mode")
    if isinstance(mode, str):
        fields["resize_mode"] = mode.upper()
    try:
        preprocessing = json_format.ParseDict(fields, Preprocessing())
    except json_format.ParseError as error:
        raise PresetError(f"the preprocessing file {choice}: {' '.join(str(error).split())}") from error
    for complaint in _complaints(preprocessing, image):
        raise PresetError(f"the preprocessing file {choice}: {complaint}")
    return preprocessing


def _imagenet(image: Input) -> Preprocessing:
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
    in_graph = image.dtype == "UINT8"
    return Preprocessing(
        resize_mode=Preprocessing.SHORTEST_EDGE,
        resize_size=round(image.height / IMAGENET_CROP),
        crop_height=image.height,
        crop_width=image.width,
        interpolation="bilinear",
        mean=() if in_graph else IMAGENET_MEAN,
        std=() if in_graph else IMAGENET_STD,
    )


def _complaints(preprocessing: Preprocessing, image: Input) -> list[str]:
    """Return what is wrong, each as what was expected and what came."""
    crop = (preprocessing.crop_height, preprocessing.crop_width)
    edge = preprocessing.resize_mode == Preprocessing.SHORTEST_EDGE
    checks = {
        "resize_mode must be SHORTEST_EDGE or STRETCH": preprocessing.resize_mode
        != Preprocessing.RESIZE_MODE_UNSPECIFIED,
        "resize_size, the pixels of the shorter edge, is missing": not edge or preprocessing.resize_size > 0,
        "resize_size goes with SHORTEST_EDGE only": edge or preprocessing.resize_size == 0,
        f"crop_height and crop_width are {crop[0]}×{crop[1]}, the graph takes {image.height}×{image.width}": (
            crop == (image.height, image.width)
        ),
        f"interpolation must be one of {', '.join(RESAMPLING)}, not {preprocessing.interpolation!r}": (
            preprocessing.interpolation in RESAMPLING
        ),
    }
    complaints = [complaint for complaint, fine in checks.items() if not fine]
    return complaints or _normalisation_complaints(preprocessing.mean, preprocessing.std, image)


def _normalisation_complaints(mean: Sequence[float], std: Sequence[float], image: Input) -> list[str]:
    if image.dtype == "UINT8":
        if not mean and not std:
            return []
        return [f"mean and std are for floats, but {image.tensor} is UINT8: the graph normalises itself"]
    if len(mean) != image.channels or len(std) != image.channels:
        return [f"mean and std need {image.channels} values each, a channel, not {len(mean)} and {len(std)}"]
    if not all(0 <= value <= 1 for value in mean):
        return [f"mean is of values in 0 to 1, not {list(mean)}; divide those of 0 to 255 by 255"]
    if not all(value > 0 and math.isfinite(value) for value in std):
        return [f"std must be above 0, not {list(std)}"]
    return []


def _layout(tensor: TensorInfo, options: ImageOptions) -> str:
    """Return where the channels are: second or last, as the only dimension that can be one says."""
    shape = tensor.shape or (None,) * 4
    possible = [
        layout for layout, size in zip(LAYOUTS, (shape[1], shape[3]), strict=True) if size in CHANNELS
    ]
    if options.layout:
        size = shape[LAYOUTS.index(options.layout) * 2 + 1]
        if size is not None and size not in CHANNELS:
            raise UndecidedError(f"--layout {options.layout} cannot be: it gives {tensor} {size} channels")
        return options.layout
    if len(possible) == 1:
        return possible[0]
    if all(size is not None for size in (shape[1], shape[3])) and not possible:
        raise UndecidedError(f"the input {tensor} has neither 1 nor 3 channels, so no image; {SERVE_TENSORS}")
    raise UndecidedError(
        f"where the channels of the input {tensor} are is not clear: say --layout NCHW or NHWC"
    )


def _channels(tensor: TensorInfo, size: int | None, options: ImageOptions, mean: object) -> int:
    if size is not None:
        if options.channels not in {None, size}:
            raise UndecidedError(f"--channels {options.channels} cannot be: the input is {tensor}")
        return size
    if options.channels is not None:
        return options.channels
    if isinstance(mean, Sequence) and len(mean) in CHANNELS:
        return len(mean)
    raise UndecidedError(f"the input {tensor} does not say grey or colour: say --channels 1 or 3")


def _edge(
    edge: str, tensor: TensorInfo, fixed: int | None, option: int | None, preprocessing: Mapping[str, Any]
) -> int:
    """Return the height or width of the input, in pixels."""
    if fixed is not None:
        if option not in {None, fixed}:
            raise UndecidedError(f"--size with a {edge} of {option} cannot be: the input is {tensor}")
        return fixed
    if option is not None:
        return option
    written = preprocessing.get(f"crop_{edge}")
    if isinstance(written, int) and written > 0:
        return written
    raise UndecidedError(f"the input {tensor} takes any {edge}: say --size HEIGHTxWIDTH")
