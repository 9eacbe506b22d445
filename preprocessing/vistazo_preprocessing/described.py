"""Described: what a manifest, or a server, says of a model's preprocessing → a PreprocessSpec.

Both say it in protobuf messages of their own, which have the fields of `Described` in common. This package
knows no protobuf: any object with those fields will do.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from vistazo_preprocessing.spec import INTERPOLATIONS, PreprocessSpec, ResizeMode

RESIZE_MODES: Final[Mapping[int, ResizeMode]] = {
    1: ResizeMode.SHORTEST_EDGE,
    2: ResizeMode.STRETCH,
    3: ResizeMode.COVER,
    4: ResizeMode.FIT,
    5: ResizeMode.NO_RESIZE,
}
"""By their numbers in both messages."""

HALF_TO_EVEN: Final = 0
DOWN: Final = 1
"""The numbers of how half a pixel beside the crop is rounded."""


class Described(Protocol):
    """The fields that both messages have in common; enumerations are numbers, as protobuf has them."""

    @property
    def resize_mode(self) -> int: ...  # noqa: D102  as the messages say
    @property
    def resize_size(self) -> int: ...  # noqa: D102
    @property
    def resize_height(self) -> int: ...  # noqa: D102
    @property
    def resize_width(self) -> int: ...  # noqa: D102
    @property
    def interpolation(self) -> str: ...  # noqa: D102
    @property
    def pad_color(self) -> Iterable[int]: ...  # noqa: D102
    @property
    def background(self) -> Iterable[int]: ...  # noqa: D102
    @property
    def crop_rounding(self) -> int: ...  # noqa: D102


class UnknownPreprocessingError(ValueError):
    """It names something that this version does not know; the message is one line."""


def read_spec(described: Described, *, height: int, width: int, channels: int) -> PreprocessSpec:
    """Return how images become uint8 pixels of this size, as described.

    Raises UnknownPreprocessingError for a mode, an interpolation or a rounding that has no meaning here;
    sizes and colours are taken as they are.
    """
    mode, interpolation = described.resize_mode, described.interpolation
    if mode not in RESIZE_MODES or interpolation not in INTERPOLATIONS:
        raise UnknownPreprocessingError(
            f"unknown preprocessing: resize_mode {mode}, interpolation {interpolation!r}"
        )
    if described.crop_rounding not in (HALF_TO_EVEN, DOWN):
        raise UnknownPreprocessingError(f"unknown preprocessing: crop_rounding {described.crop_rounding}")
    return PreprocessSpec(
        height=height,
        width=width,
        channels=channels,
        resize_mode=RESIZE_MODES[mode],
        resize_size=described.resize_size,
        interpolation=INTERPOLATIONS[interpolation],
        resize_height=described.resize_height,
        resize_width=described.resize_width,
        pad_color=tuple(described.pad_color),
        background=tuple(described.background),
        crop_rounds_down=described.crop_rounding == DOWN,
    )
