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
EXPECTED_ARRAY = "a uint8 array of shape (height, width), or (height, width, channels) with 1 to 4 channels"

# A longer text than any path is an image that somebody encoded.
_LONGEST_PATH = 4096
_LONGEST_NAME = 200


def is_one_image(value: object) -> TypeGuard[ImageInput]:
    """Return whether `value` stands for one image, good or bad, rather than for a collection of them."""
    if isinstance(value, str | os.PathLike | bytes | bytearray | memoryview) or _is_array(value):
        return True
    # An open file iterates over lines, which are no images; encode_image says what to pass instead.
    return not isinstance(value, Iterable) or hasattr(value, "read")


def image_name(value: object) -> str:
    """Return what messages call this image: its path, or nothing."""
    if not isinstance(value, str | os.PathLike):
        return ""
    # Paths may hold what cannot be printed, such as bytes that are no UTF-8.
    name = printable_path(os.fspath(value))
    return name if len(name) <= _LONGEST_PATH else f"{name[:_LONGEST_NAME]}…"


def printable_path(path: str | bytes) -> str:
    """Return `path` as it can be printed anywhere that text can."""
    return one_line(os.fsencode(path).decode("utf-8", "replace"))


def encode_image(value: object, *, max_bytes: int) -> pb.Image:
    """Return `value` as the message to send, or raise InvalidImageError: what was expected, what came."""
    image = read_image(value, max_bytes=max_bytes)
    message = pb.Image(encoded=image) if isinstance(image, bytes) else array_message(image)
    _check_size(message.ByteSize(), max_bytes, image_name(value))
    return message


def read_image(value: object, *, max_bytes: int) -> "bytes | NDArray[np.uint8]":
    """Return the bytes of a file, or pixels as height × width × channels, or raise InvalidImageError.

    Of a path no more than `max_bytes` + 1 are read.
    """
    if isinstance(value, str | os.PathLike):
        return _read(value, max_bytes)
    if isinstance(value, bytes | bytearray | memoryview):
        if not (encoded := bytes(value)):
            raise InvalidImageError("expected the bytes of an image file, got 0 bytes")
        return encoded
    if _is_array(value):
        return _checked_pixels(value)
    if _is_pil(value):
        return _checked_pixels(_pil_pixels(value))
    raise InvalidImageError(f"expected {EXPECTED_IMAGE}, got {_type_name(value)}")


def take_image(value: object) -> "str | os.PathLike[str] | bytes | NDArray[np.uint8]":
    """Return what `read_image` reads later and somewhere else: a path, or what nobody else can change.

    Raises InvalidImageError for what is no image.
    """
    if isinstance(value, str | os.PathLike):
        return value
    image = read_image(value, max_bytes=0)
    # What was made of a PIL image is nobody else's already.
    return image.copy() if _is_array(value) and not isinstance(image, bytes) else image


def held_bytes(source: object) -> int:
    """Return what it takes of memory to keep what `take_image` makes, or has made, of an image."""
    if isinstance(source, bytes | bytearray | memoryview):
        return len(source)
    if _is_pil(source):
        return 4 * source.width * source.height
    return source.nbytes if _is_array(source) else 0


def _read(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Return the content of the file at `path`; reads no more than can be sent."""
    name = image_name(path)
    if isinstance(path, str):
        _check_is_path(path)
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


def _check_is_path(text: str) -> None:
    """Raise InvalidImageError for a text that is no path, but the image itself or where to fetch it."""
    begin = text[: _LONGEST_NAME // 4]
    shown = one_line(begin) + ("…" if len(text) > len(begin) else "")
    if text[:5].lower() == "data:":
        raise InvalidImageError(
            f"expected {EXPECTED_IMAGE}, got a data URL ({shown}); pass the bytes that are behind its comma, "
            "decoded from base64"
        )
    if text.lower().startswith(("http://", "https://")):
        raise InvalidImageError(
            f"expected {EXPECTED_IMAGE}, got a URL ({shown}); fetch it, and pass the bytes that come"
        )
    if len(text) > _LONGEST_PATH:
        raise InvalidImageError(
            f"expected {EXPECTED_IMAGE}, got a text of {len(text)} characters ({shown}); if it is base64, "
            "decode it and pass the bytes"
        )


def _check_size(size: int, max_bytes: int, name: str) -> None:
    if size > max_bytes:
        prefix = f"{name}: " if name else ""
        raise InvalidImageError(
            f"{prefix}expected an image of at most {max_bytes / 2**20:.1f} MiB, "
            "the largest that one message may hold, got a larger one"
        )


def array_message(pixels: "NDArray[np.uint8]") -> pb.Image:
    """Return pixels, height × width × channels, as a message."""
    height, width, channels = pixels.shape
    # tobytes() writes rows in order whatever the strides are.
    return pb.Image(raw=pb.RawPixels(data=pixels.tobytes(), height=height, width=width, channels=channels))


def _checked_pixels(pixels: "NDArray[Any]") -> "NDArray[np.uint8]":
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1] if pixels.ndim == 3 else 0
    # With alpha, 2 or 4 channels: the server lays them on the background that the model's manifest names.
    if pixels.dtype != "uint8" or channels not in {1, 2, 3, 4} or pixels.size == 0:
        hint = "; for several images pass a list of arrays" if pixels.ndim == 4 else ""
        raise InvalidImageError(f"expected {EXPECTED_ARRAY}, got {pixels.dtype} {pixels.shape}{hint}")
    checked: NDArray[np.uint8] = pixels.reshape(*pixels.shape[:2], channels)
    return checked


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
    """Return the image's pixels as they stand in memory: grey, grey and alpha, RGB, or RGB and alpha.

    No EXIF orientation is applied. Transparency of any kind becomes alpha that is not premultiplied.
    """
    import numpy as np  # noqa: PLC0415  only here, see ImageInput

    try:
        if image.mode in {"I", "F"}:
            raise InvalidImageError(
                f"expected a PIL image of 8 or 16 bits per channel, got mode {image.mode}, "
                "whose range is not known; scale it to 0–255 and convert it to mode L"
            )
        if image.mode in {"La", "RGBa"}:
            return _not_premultiplied(np.asarray(image))
        if image.mode in {"LA", "RGBA"}:
            return np.asarray(image)
        transparent = image.info.get("transparency")
        if image.mode == "PA" or (image.mode == "P" and transparent is not None):
            return np.asarray(image.convert("RGBA"))
        stored = np.asarray(image)
        if image.mode.startswith("I;16"):
            # The upper 8 of 16 bits, as the server takes them from a file.
            pixels = (stored.astype(np.uint16) >> 8).astype(np.uint8)
        else:
            pixels = np.asarray(image.convert("L" if image.mode in {"1", "L"} else "RGB"))
        if transparent is None or image.mode not in {"1", "L", "RGB", "I;16"}:
            return pixels
        return _with_transparent_colour(pixels, stored, transparent)
    # Pillow opens files lazily: a broken one fails here, with any of these.
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InvalidImageError(f"the PIL image cannot be decoded: {one_line(str(error))}") from error


def _not_premultiplied(pixels: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """Return the pixels with their colours divided by their alpha, rounded."""
    import numpy as np  # noqa: PLC0415  only here, see ImageInput

    alpha = pixels[..., -1:].astype(np.uint32)
    colours = (255 * pixels[..., :-1].astype(np.uint32) + alpha // 2) // np.maximum(alpha, 1)
    return np.concatenate([colours.clip(max=255).astype(np.uint8), pixels[..., -1:]], axis=-1)


def _with_transparent_colour(
    pixels: "NDArray[np.uint8]", stored: "NDArray[Any]", colour: int | tuple[int, ...]
) -> "NDArray[np.uint8]":
    """Return the pixels with an alpha that is 0 where they are stored as `colour`, which a PNG names."""
    import numpy as np  # noqa: PLC0415  only here, see ImageInput

    values = np.atleast_1d(np.asarray(colour))
    if stored.dtype == np.bool_:
        values = values != 0
    elif stored.dtype == np.uint8 and values.max() > 255:
        # Of a file with 16-bit channels: Pillow keeps the upper 8 bits of the pixels, and all of the colour.
        values = values >> 8
    is_colour = (stored.reshape(*stored.shape[:2], -1) == values).all(axis=-1)
    alpha = np.where(is_colour, 0, 255).astype(np.uint8)
    return np.dstack([pixels, alpha])


def _type_name(value: object) -> str:
    kind = type(value)
    if hasattr(value, "read"):
        return f"an open file ({kind.__name__}); pass its path or what read() returns"
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
