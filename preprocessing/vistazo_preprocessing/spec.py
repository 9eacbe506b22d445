"""PreprocessSpec: how an image becomes what a network takes, in plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from PIL import Image

INTERPOLATIONS: Final[Mapping[str, Image.Resampling]] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
"""Those that have a name in manifests and in the API. Pillow antialiases all but "nearest"."""


class ResizeMode(Enum):
    """How an image gets to the crop's size."""

    SHORTEST_EDGE = "shortest_edge"
    STRETCH = "stretch"
    COVER = "cover"
    FIT = "fit"
    NO_RESIZE = "no_resize"


class Layout(Enum):
    """The order of the dimensions of the model's input, its batch dimension included."""

    NHWC = "NHWC"
    NCHW = "NCHW"


class JpegDecoding(Enum):
    """How a JPEG becomes pixels."""

    EXACT = "exact"
    """All its pixels are decoded."""
    REDUCED = "reduced"
    """At 1/2, 1/4 or 1/8 of its size, as long as that is at least twice the size that it is resized to."""


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """What the manifest says about the model's input."""

    height: int
    """Pixels, of the crop and of the input."""
    width: int
    channels: int
    """1 (grey) or 3 (red, green, blue)."""
    resize_mode: ResizeMode
    resize_size: int
    """Pixels of the shorter edge, with SHORTEST_EDGE; 0 with the others."""
    interpolation: Image.Resampling
    layout: Layout = Layout.NHWC
    dtype: str = "uint8"
    """uint8: the graph normalises. float32 or float16: the server does, by `mean` and `std`."""
    mean: tuple[float, ...] = ()
    """One for each channel, in the order that the network takes."""
    std: tuple[float, ...] = ()
    resize_height: int = 0
    """Pixels, with STRETCH, COVER and FIT; with STRETCH 0 is the crop's."""
    resize_width: int = 0
    bgr: bool = False
    """Whether the channels become blue, green, red."""
    value_range: int = 1
    """What a white pixel is before `mean` and `std`: 1 or 255."""
    pad_color: tuple[int, ...] = ()
    """One for each channel, in RGB, 0 to 255: what pads a small image; empty is black."""
    background: tuple[int, ...] = ()
    """What transparency is laid on: red, green and blue, or one number of grey, 0 to 255; empty is white."""
    crop_rounds_down: bool = False
    """Whether half a pixel beside the crop is rounded down, as transformers does, or to the even side."""
    jpeg_decoding: JpegDecoding = JpegDecoding.EXACT
    """Chosen where it is served, and not by the manifest."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape of one sample of the model's input, in its layout."""
        if self.layout is Layout.NCHW:
            return (self.channels, self.height, self.width)
        return (self.height, self.width, self.channels)
