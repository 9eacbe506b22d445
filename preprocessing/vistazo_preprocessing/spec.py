"""PreprocessSpec: how an image becomes what a network takes, in plain values."""

from dataclasses import dataclass
from enum import Enum

from PIL import Image


class ResizeMode(Enum):
    """How an image gets to the crop's size."""

    SHORTEST_EDGE = "shortest_edge"
    STRETCH = "stretch"


class Layout(Enum):
    """The order of the dimensions of the model's input, its batch dimension included."""

    NHWC = "NHWC"
    NCHW = "NCHW"


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
    """Pixels of the shorter edge, with SHORTEST_EDGE."""
    interpolation: Image.Resampling
    layout: Layout = Layout.NHWC
    dtype: str = "uint8"
    """uint8: the graph normalises. float32 or float16: the server does, by `mean` and `std`."""
    mean: tuple[float, ...] = ()
    """One for each channel, of values in 0 to 1."""
    std: tuple[float, ...] = ()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape of one sample of the model's input, in its layout."""
        if self.layout is Layout.NCHW:
            return (self.channels, self.height, self.width)
        return (self.height, self.width, self.channels)
