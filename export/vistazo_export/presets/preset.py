"""Presets: how an image becomes a network's input, as one description for the manifest, torch and Pillow.

The pixels made here go to the ONNX graph in every parity check, while torch gets the output of the
original transforms. They agree only if the preset was read rightly and the graph normalises rightly.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vistazo_export.errors import PresetError
from vistazo_preprocessing.described import UnknownPreprocessingError, read_spec
from vistazo_preprocessing.preprocessor import Preprocessor
from vistazo_preprocessing.spec import INTERPOLATIONS, Layout, PreprocessSpec, ResizeMode
from vistazo_proto.manifest_pb2 import Input, Preprocessing

DTYPES = {"UINT8": "uint8", "FP32": "float32", "FP16": "float16"}

Preset = PreprocessSpec
"""Of a network that an export makes a graph of: mean, std and order are what the graph does to RGB pixels."""


@runtime_checkable
class ClassificationTransforms(Protocol):
    """What torchvision's `ImageClassification` preset tells about itself."""

    crop_size: Sequence[int]
    resize_size: Sequence[int]
    interpolation: object
    mean: Sequence[float]
    std: Sequence[float]


def preset_of(transforms: object) -> Preset:
    """Return the preset of a torchvision classification `transforms()` object.

    Raises PresetError where it is of another kind, or interpolates in another way.
    """
    if not isinstance(transforms, ClassificationTransforms):
        kind = type(transforms).__name__
        raise PresetError(f"unsupported preprocessing: {kind} is no classification preset")
    crop, resize = list(transforms.crop_size), list(transforms.resize_size)
    if len(crop) not in {1, 2} or len(resize) not in {1, 2}:
        raise PresetError(f"unsupported preprocessing: resize {resize}, crop {crop}")
    interpolation = str(getattr(transforms.interpolation, "value", transforms.interpolation))
    if interpolation not in INTERPOLATIONS:
        raise PresetError(
            f"unsupported preprocessing: interpolation {interpolation}, "
            f"not one of {', '.join(INTERPOLATIONS)}"
        )
    if len(transforms.mean) not in {1, 3} or len(transforms.mean) != len(transforms.std):
        raise PresetError(f"unsupported preprocessing: mean {transforms.mean}, std {transforms.std}")
    # A pair (h, w) for the resize stretches the image, even where h equals w.
    edge = len(resize) == 1
    return Preset(
        height=crop[0],
        width=crop[-1],
        channels=len(transforms.mean),
        resize_mode=ResizeMode.SHORTEST_EDGE if edge else ResizeMode.STRETCH,
        resize_size=resize[0] if edge else 0,
        resize_height=0 if edge else resize[0],
        resize_width=0 if edge else resize[-1],
        interpolation=INTERPOLATIONS[interpolation],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def to_proto(preset: Preset) -> Preprocessing:
    """Return the manifest's record of a preset; what is as ever stays unset."""
    return Preprocessing(
        resize_mode=preset.resize_mode.name,
        resize_size=preset.resize_size,
        resize_height=preset.resize_height,
        resize_width=preset.resize_width,
        crop_height=preset.height,
        crop_width=preset.width,
        interpolation=preset.interpolation.name.lower(),
        mean=preset.mean,
        std=preset.std,
        channel_order="BGR" if preset.bgr else "",
        value_range=0 if preset.value_range == 1 else preset.value_range,
        pad_color=preset.pad_color,
        background=preset.background,
        crop_rounding=Preprocessing.DOWN if preset.crop_rounds_down else Preprocessing.HALF_TO_EVEN,
    )


def from_proto(preprocessing: Preprocessing, channels: int) -> Preset:
    """Return what a manifest's record says.

    Raises PresetError where this Vistazo does not know what it names.
    """
    try:
        spec = read_spec(
            preprocessing,
            height=preprocessing.crop_height,
            width=preprocessing.crop_width,
            channels=channels,
        )
    except UnknownPreprocessingError as error:
        raise PresetError(str(error)) from None
    return replace(
        spec,
        mean=tuple(preprocessing.mean),
        std=tuple(preprocessing.std),
        bgr=preprocessing.channel_order == "BGR",
        value_range=preprocessing.value_range or 1,
    )


def input_spec(source: Input, preprocessing: Preprocessing) -> PreprocessSpec:
    """Return what the server makes for an imported graph's input, as the manifest's comments have it."""
    preset = from_proto(preprocessing, source.channels)
    return replace(preset, layout=Layout(source.layout), dtype=DTYPES[source.dtype])


def to_pixels(image: Image.Image, preset: Preset) -> npt.NDArray[np.uint8]:
    """Return `image` as an exported graph takes it: uint8, height × width × channels, in RGB."""
    return prepared(image, replace(preset, layout=Layout.NHWC, dtype="uint8", bgr=False))


def to_input(image: Image.Image, preset: Preset) -> Tensor:
    """Return `image` as the network inside an exported graph takes it: float, channels × height × width."""
    return torch.from_numpy(prepared(image, replace(preset, layout=Layout.NCHW, dtype="float32")))


def prepared(image: Image.Image, spec: PreprocessSpec) -> npt.NDArray[np.uint8]:
    """Return `image`, of any size and mode, as `spec` has it."""
    pixels = np.asarray(image.convert("L" if spec.channels == 1 else "RGB"))
    pixels = pixels.reshape(image.height, image.width, spec.channels)
    # Whoever exports has chosen the images; it is strangers' that are limited.
    made: npt.NDArray[np.uint8] = np.asarray(Preprocessor(spec, max_pixels=sys.maxsize).model_input(pixels))
    return made
