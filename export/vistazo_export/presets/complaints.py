"""What can be wrong with a description of preprocessing, each as what was expected and what came."""

import math
from collections.abc import Sequence

from vistazo_preprocessing.described import RESIZE_MODES
from vistazo_preprocessing.spec import INTERPOLATIONS
from vistazo_proto.manifest_pb2 import Input, Preprocessing

CHANNEL_ORDERS = ("", "RGB", "BGR")
VALUE_RANGES = (0, 1, 255)

# Deviations of photographs are some 0.2 of values in 0 to 1, and 1 leaves the values as they are.
MOST_STD = 1.0


def complaints(preprocessing: Preprocessing, image: Input) -> list[str]:
    """Return what is wrong with a preprocessing for the input `image`; empty: nothing."""
    mode = preprocessing.resize_mode
    crop = (preprocessing.crop_height, preprocessing.crop_width)
    edge = mode == Preprocessing.SHORTEST_EDGE
    edges = (preprocessing.resize_height, preprocessing.resize_width)
    of_edges = mode in {Preprocessing.STRETCH, Preprocessing.COVER, Preprocessing.FIT}
    checks = {
        "resize_mode must be SHORTEST_EDGE, STRETCH, COVER, FIT or NO_RESIZE": mode in RESIZE_MODES,
        "resize_size, the pixels of the shorter edge, is missing": not edge or preprocessing.resize_size > 0,
        "resize_size goes with SHORTEST_EDGE only": edge or preprocessing.resize_size == 0,
        "resize_height and resize_width go with STRETCH, COVER and FIT only": of_edges or edges == (0, 0),
        "resize_height and resize_width go together": (edges[0] > 0) == (edges[1] > 0),
        "COVER and FIT need resize_height and resize_width": (
            mode not in {Preprocessing.COVER, Preprocessing.FIT} or min(edges) > 0
        ),
        f"crop_height and crop_width are {crop[0]}×{crop[1]}, the graph takes {image.height}×{image.width}": (
            crop == (image.height, image.width)
        ),
        f"interpolation must be one of {', '.join(INTERPOLATIONS)}, not {preprocessing.interpolation!r}": (
            preprocessing.interpolation in INTERPOLATIONS
        ),
        f"channel_order must be RGB or BGR, not {preprocessing.channel_order!r}": (
            preprocessing.channel_order in CHANNEL_ORDERS
        ),
        f"channel_order BGR is for 3 channels, not {image.channels}": (
            preprocessing.channel_order != "BGR" or image.channels == 3
        ),
        f"value_range must be 1 or 255, not {preprocessing.value_range}": (
            preprocessing.value_range in VALUE_RANGES
        ),
        f"pad_color must be {image.channels} numbers of 0 to 255, not {list(preprocessing.pad_color)}": (
            len(preprocessing.pad_color) in {0, image.channels}
            and all(value <= 255 for value in preprocessing.pad_color)
        ),
        f"background must be 3 numbers of 0 to 255, or 1 of grey, not {list(preprocessing.background)}": (
            len(preprocessing.background) in {0, 1, 3}
            and all(value <= 255 for value in preprocessing.background)
        ),
    }
    wrong = [complaint for complaint, fine in checks.items() if not fine]
    return wrong or _of_normalisation(preprocessing, image)


def _of_normalisation(preprocessing: Preprocessing, image: Input) -> list[str]:
    mean, std = list(preprocessing.mean), list(preprocessing.std)
    if image.dtype == "UINT8":
        if not mean and not std:
            return []
        return [f"mean and std are for floats, but {image.tensor} is UINT8: the graph normalises itself"]
    if len(mean) != image.channels or len(std) != image.channels:
        return [f"mean and std need {image.channels} values each, a channel, not {len(mean)} and {len(std)}"]
    if not all(value > 0 and math.isfinite(value) for value in std):
        return [f"std must be above 0, not {std}"]
    if (preprocessing.value_range or 1) == 1:
        return _of_one(mean, std)
    return _of_bytes(mean, std)


def _of_one(mean: Sequence[float], std: Sequence[float]) -> list[str]:
    """Return what is wrong with mean and std of values in 0 to 1."""
    if not all(0 <= value <= 1 for value in mean):
        return [
            f"mean is of values in 0 to 1, not {list(mean)}; divide those of 0 to 255 by 255, "
            "or say value_range = 255"
        ]
    if max(std) > MOST_STD:
        return [
            f"std is of values in 0 to 1, not {list(std)}, which would leave next to nothing of an image; "
            "divide those of 0 to 255 by 255, or say value_range = 255"
        ]
    return []


def _of_bytes(mean: Sequence[float], std: Sequence[float]) -> list[str]:
    """Return what is wrong with mean and std of values in 0 to 255."""
    if not all(0 <= value <= 255 for value in mean) or max(std) > 255:
        return [f"with value_range 255 mean and std are of values in 0 to 255, not {list(mean)}, {list(std)}"]
    # A mean of 0 and a std of 1 leave the bytes as they are.
    if 0 < max(mean) <= 1 or max(std) < 1:
        return [
            f"with value_range 255 mean and std are of values in 0 to 255, and {list(mean)}, {list(std)} "
            "look like those of values in 0 to 1: say value_range = 1, or do_rescale of transformers"
        ]
    return []
