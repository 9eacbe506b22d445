"""How an image becomes the input of an imported graph: what the graph says of it, and what must be told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vistazo_export.errors import UndecidedError
from vistazo_export.foreign.interface import OnnxInterface, TensorInfo
from vistazo_proto.manifest_pb2 import Input

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
    open_layout: str = ""
    """One of LAYOUTS, where neither the user nor the graph says any; empty: it is asked for."""


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


def says_layout(tensor: TensorInfo) -> bool:
    """Say whether the sizes of an image input tell, or rule out, where its channels are."""
    return tensor.shape is not None and not tensor.shape[1] is tensor.shape[3] is None


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
    if options.open_layout and not says_layout(tensor):
        return options.open_layout
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
