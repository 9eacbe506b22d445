"""What a user says of a weights file that the file does not tell itself."""

import ast
from dataclasses import dataclass

from vistazo_export.errors import WeightsError

IMAGE_SIZE = "image_size"
"""The builder's option of vision transformers."""
LARGEST_SIDE = 4096


@dataclass(frozen=True)
class CheckpointOptions:
    """What a user says of a weights file that it does not tell itself."""

    state_dict_key: str = ""
    """Which of several state dicts to take; empty: the one that fits."""
    ignore_keys: tuple[str, ...] = ()
    """Patterns, as of a shell, of keys that play no part in inference."""
    builder: tuple[tuple[str, str], ...] = ()
    """Options of the network's builder, such as ("transform_input", "false")."""


NOTHING_SAID = CheckpointOptions()


def image_size(options: CheckpointOptions) -> int:
    """Return the side of the images that a vision transformer is built for; 0: as published."""
    size = value_of(dict(options.builder).get(IMAGE_SIZE, "0"))
    if type(size) is not int or not 0 <= size <= LARGEST_SIDE:
        raise WeightsError(f"--builder {IMAGE_SIZE}={size} is no side of an image in pixels")
    return size


def value_of(text: str) -> object:
    """Return a builder option as Python has it: true, false, none, a number, a tuple, else text."""
    words: dict[str, object] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value
