"""Preprocessing presets: read from a network's own transforms, applied to images with Pillow.

The pixels made here go to the ONNX graph in every parity check, while torch gets the output of the
original transforms. They agree only if the preset was read rightly and the graph normalises rightly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from vistazo_export.errors import PresetError
from vistazo_proto.manifest_pb2 import Preprocessing

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
"""Interpolations that a manifest can name. Pillow antialiases all but "nearest"."""


@runtime_checkable
class ClassificationTransforms(Protocol):
    """What torchvision's `ImageClassification` preset tells about itself."""

    crop_size: Sequence[int]
    resize_size: Sequence[int]
    interpolation: object
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class Preset:
    """How an image becomes a network's input: resize, centre crop, then (value / 255 - mean) / std."""

    crop_size: int
    """Height and width of the input, in pixels."""
    resize_size: int
    """Shorter edge before the crop, in pixels; 0 to stretch both edges to `crop_size` with no crop."""
    interpolation: str
    mean: tuple[float, ...]
    """Per channel, of values in 0 to 1; its length is the number of channels."""
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (red, green, blue)."""
        return len(self.mean)

    @property
    def pillow_mode(self) -> str:
        """The Pillow image mode with this many channels."""
        return "L" if self.channels == 1 else "RGB"

    def to_proto(self) -> Preprocessing:
        """Return the manifest's record of this preset."""
        return Preprocessing(
            resize_mode=Preprocessing.SHORTEST_EDGE if self.resize_size else Preprocessing.STRETCH,
            resize_size=self.resize_size,
            crop_height=self.crop_size,
            crop_width=self.crop_size,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )


def preset_of(transforms: object) -> Preset:
    """Return the preset of a torchvision classification `transforms()` object.

    Raises PresetError where it is of another kind, not square, or interpolates in another way.
    """
    if not isinstance(transforms, ClassificationTransforms):
        kind = type(transforms).__name__
        raise PresetError(f"unsupported preprocessing: {kind} is no classification preset")
    crop, resize = set(transforms.crop_size), set(transforms.resize_size)
    # A pair (h, w) for the resize would stretch the image, even where h equals w.
    if len(crop) != 1 or len(transforms.resize_size) != 1:
        raise PresetError(
            f"unsupported preprocessing: resize {transforms.resize_size}, crop {transforms.crop_size}; "
            "only a shorter edge and a square crop can be served"
        )
    interpolation = str(getattr(transforms.interpolation, "value", transforms.interpolation))
    if interpolation not in RESAMPLING:
        raise PresetError(
            f"unsupported preprocessing: interpolation {interpolation}, not one of {', '.join(RESAMPLING)}"
        )
    if len(transforms.mean) not in {1, 3} or len(transforms.mean) != len(transforms.std):
        raise PresetError(f"unsupported preprocessing: mean {transforms.mean}, std {transforms.std}")
    return Preset(
        crop_size=crop.pop(),
        resize_size=resize.pop(),
        interpolation=interpolation,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def to_pixels(image: Image.Image, preset: Preset) -> npt.NDArray[np.uint8]:
    """Return `image` as the graph takes it: uint8, height × width × channels."""
    size = preset.crop_size
    image = image.convert(preset.pillow_mode)
    resampling = RESAMPLING[preset.interpolation]
    if preset.resize_size:
        # torchvision's arithmetic: the longer edge is cut down to a whole pixel, the crop's corner is
        # rounded half to even, and an image smaller than the crop is padded with zeros.
        short, long = sorted(image.size)
        longer = int(preset.resize_size * long / short)
        wide = image.width > image.height
        resized = (longer, preset.resize_size) if wide else (preset.resize_size, longer)
        if resized != image.size:
            image = image.resize(resized, resampling)
        padded = (max(image.width, size), max(image.height, size))
        if padded != image.size:
            canvas = Image.new(image.mode, padded)
            canvas.paste(image, ((padded[0] - image.width) // 2, (padded[1] - image.height) // 2))
            image = canvas
        left = round((image.width - size) / 2)
        top = round((image.height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    else:
        image = image.resize((size, size), resampling)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, preset.channels)
