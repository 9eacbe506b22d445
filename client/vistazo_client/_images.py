"""One image of the caller's ⇄ one image on the wire: a path, bytes, PIL image or numpy array.

Nothing here is public but the type `ImageInput`.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, Union

from vistazo_client.errors import InvalidImageError, one_line
from vistazo_proto import classification_pb2 as pb

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

# Named as strings: the client works without Pillow, and a command that only asks for the health should
# not wait for numpy.
ImageInput: TypeAlias = Union[
    str, os.PathLike[str], bytes, bytearray, memoryview, "NDArray[np.uint8]", "PIL.Image.Image"
]
"""A path; a whole JPEG, PNG, WebP or BMP file as bytes; pixels as an array; or a PIL image."""

# What one image needs on the wire beside its own bytes: field tags, lengths, the model's name.
MESSAGE_OVERHEAD_BYTES = 4096

EXPECTED_IMAGE = "a path, the bytes of an image file, a PIL image or a numpy array"
EXPECTED_ARRAY = "a uint8 array of shape (height, width), (height, width, 1) or (height, width, 3)"


def is_one_image(value: object) -> TypeGuard[ImageInput]:
    """Return whether `value` stands for one image, good or bad, rather than for a collection of them."""
    if isinstance(value, str | os.PathLike | bytes | bytearray | memoryview) or _is_array(value):
        return True
    # An open file iterates over lines, which are no images; encode_image says what to pass instead.
    return not isinstance(value, Iterable) or hasattr(value, "read")


def image_name(value: object) -> str:
    """Return what messages call this image: its path, or nothing."""
    # Paths may hold what cannot be printed, such as bytes that are no UTF-8.
    return printable_path(os.fspath(value)) if isinstance(value, str | os.PathLike) else ""


def printable_path(path: str | bytes) -> str:
    """Return `path` as it can be printed anywhere that text can."""
    return one_line(os.fsencode(path).decode("utf-8", "replace"))


def encode_image(value: object, *, max_bytes: int) -> pb.Image:
    """Return `value` as the message to send, or raise InvalidImageError: what was expected, what came."""
    if isinstance(value, str | os.PathLike):
        message = pb.Image(encoded=_read(value, max_bytes))
    elif isinstance(value, bytes | bytearray | memoryview):
        message = pb.Image(encoded=bytes(value))
        if not message.encoded:
            raise InvalidImageError("expected the bytes of an image file, got 0 bytes")
    elif _is_array(value):
        message = _encode_array(value)
    elif _is_pil(value):
        message = _encode_array(_pil_pixels(value))
    else:
        raise InvalidImageError(f"expected {EXPECTED_IMAGE}, got {_type_name(value)}")
    _check_size(message.ByteSize(), max_bytes, image_name(value))
    return message


def _read(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Return the content of the file at `path`; reads no more than can be sent."""
    name = image_name(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise InvalidImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise InvalidImageError(f"{name}: expected an image file, got a folder") from None
    # ValueError: a path with a null character.
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidImageError(f"{name}: cannot be read ({reason})") from error
    if not content:
        raise InvalidImageError(f"{name}: expected an image file, got an empty one")
    return content


def _check_size(size: int, max_bytes: int, name: str) -> None:
    if size > max_bytes:
        prefix = f"{name}: " if name else ""
        raise InvalidImageError(
            f"{prefix}expected an image of at most {max_bytes / 2**20:.1f} MiB, "
            "the largest that one message may hold, got a larger one"
        )


def _encode_array(pixels: "NDArray[Any]") -> pb.Image:
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1] if pixels.ndim == 3 else 0
    if pixels.dtype != "uint8" or channels not in {1, 3} or pixels.size == 0:
        hint = "; for several images pass a list of arrays" if pixels.ndim == 4 else ""
        raise InvalidImageError(f"expected {EXPECTED_ARRAY}, got {pixels.dtype} {pixels.shape}{hint}")
    height, width = pixels.shape[:2]
    # tobytes() writes rows in order whatever the strides are.
    return pb.Image(raw=pb.RawPixels(data=pixels.tobytes(), height=height, width=width, channels=channels))


def _is_array(value: object) -> TypeGuard["NDArray[Any]"]:
    """Return whether `value` is a numpy array, without importing numpy for it."""
    # No one has an array without having imported this module.
    module = sys.modules.get("numpy")
    return isinstance(value, getattr(module, "ndarray", ()))


def _is_pil(value: object) -> TypeGuard["PIL.Image.Image"]:
    """Return whether `value` is a PIL image, without importing Pillow for it."""
    # No one has a PIL image without having imported this module.
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def _pil_pixels(image: "PIL.Image.Image") -> "NDArray[np.uint8]":
    """Return the image's pixels as they stand in memory: grey stays grey, all else becomes RGB.

    No EXIF orientation is applied, and transparency is dropped.
    """
    import numpy as np  # noqa: PLC0415  only here, see ImageInput

    try:
        if image.mode in {"1", "L"}:
            return np.asarray(image.convert("L"))
        if image.mode.startswith("I;16"):
            # The upper 8 of 16 bits, as the server takes them from a file.
            return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        if image.mode in {"I", "F"}:
            raise InvalidImageError(
                f"expected a PIL image of 8 or 16 bits per channel, got mode {image.mode}, "
                "whose range is not known; scale it to 0–255 and convert it to mode L"
            )
        if image.mode in {"P", "PA"}:
            # Straight to RGB, Pillow warns of palettes with transparency.
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))
    # Pillow opens files lazily: a broken one fails here, with any of these.
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InvalidImageError(f"the PIL image cannot be decoded: {one_line(str(error))}") from error


def _type_name(value: object) -> str:
    kind = type(value)
    if hasattr(value, "read"):
        return f"an open file ({kind.__name__}); pass its path or what read() returns"
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
