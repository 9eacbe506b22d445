"""Recipe: how one model's images are prepared, as its server tells it.

Needs Pillow. Nothing here is public.
"""

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.unknown_fields import UnknownFieldSet

from vistazo_client._images import array_message, image_name, read_image
from vistazo_client.errors import InvalidImageError, one_line
from vistazo_preprocessing.described import UnknownPreprocessingError, read_spec
from vistazo_preprocessing.effort import MAX_PIXELS
from vistazo_preprocessing.errors import ImageError
from vistazo_preprocessing.preprocessor import Large, Preprocessor
from vistazo_preprocessing.spec import JpegDecoding, PreprocessSpec
from vistazo_proto import classification_pb2 as pb

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What the largest image that may be decoded takes as a file that does not compress. Nothing of it is sent.
MAX_FILE_BYTES: Final = 4 * MAX_PIXELS

# Of an image with more pixels it is asked how much memory it takes, before it is decoded.
LARGE_PIXELS: Final = 1_000_000

_JPEG_DECODING: Final = {
    pb.Preprocessing.EXACT: JpegDecoding.EXACT,
    pb.Preprocessing.REDUCED: JpegDecoding.REDUCED,
}

Hold = Callable[[int], AbstractContextManager[None]]
"""Waits until so many bytes may be used, and holds them."""


class NotToldError(Exception):
    """The server does not say how this model's images are prepared, or not so that it can be done here."""


class Recipe:
    """How one model's images are prepared. Any thread may use it."""

    def __init__(self, spec: PreprocessSpec, recipe_id: str) -> None:
        self._preprocessor = Preprocessor(spec, max_pixels=MAX_PIXELS)
        self.id = recipe_id
        """For ClassifyRequest.prepared_as."""

    def prepare(
        self, source: "str | os.PathLike[str] | bytes | NDArray[Any]", hold: Hold
    ) -> pb.Image | InvalidImageError:
        """Return the pixels that the server would make of an image, or its error, in the server's words."""
        name = image_name(source)
        try:
            return array_message(self._pixels(read_image(source, max_bytes=MAX_FILE_BYTES), hold))
        except InvalidImageError as error:
            reason = str(error)
        except ImageError as error:
            reason = f"{name}: {error}" if name else str(error)
        # As on the server, what one image does to a decoder is no other image's affair.
        except (ArithmeticError, AttributeError, LookupError, TypeError, RuntimeError) as error:
            told = f"the image cannot be decoded: {str(error) or type(error).__name__}"
            reason = f"{name}: {told}" if name else told
        # Made here, it holds no frame, and so no image.
        return InvalidImageError(one_line(reason))

    def _pixels(self, image: "bytes | NDArray[Any]", hold: Hold) -> "NDArray[Any]":
        if isinstance(image, bytes) and len(image) > MAX_FILE_BYTES:
            raise ImageError(f"expected a file of at most {MAX_FILE_BYTES / 2**20:.0f} MiB, got a larger one")
        made = self._preprocessor.model_input(image, LARGE_PIXELS)
        if isinstance(made, Large):
            with hold(made.bytes):
                made = self._preprocessor.model_input(image)
        # Without a number to exceed there is nothing Large.
        assert not isinstance(made, Large)  # noqa: S101  for mypy
        return made


def read_recipe(model: pb.Model, *, max_bytes: int) -> Recipe:
    """Return how the images of a model are prepared, if their pixels are at most `max_bytes`.

    Raises NotToldError, which says why it is not known, or of no use.
    """
    if not model.HasField("preprocessing"):
        if not model.input_height:
            raise NotToldError("the model takes tensors only")
        raise NotToldError("it does not say how it prepares images; it may be older")
    told = model.preprocessing
    # What an older client leaves out could be what makes other pixels.
    if len(UnknownFieldSet(told)) or told.jpeg_decoding not in _JPEG_DECODING or not told.id:
        raise NotToldError("it prepares images in a way that this client does not know; it may be newer")
    try:
        spec = read_spec(
            told, height=model.input_height, width=model.input_width, channels=model.input_channels
        )
    except UnknownPreprocessingError as error:
        raise NotToldError(f"this client does not know how it prepares images ({error})") from None
    if math.prod(spec.input_shape) > max_bytes:
        raise NotToldError("the pixels that the model takes are more than one message may hold")
    return Recipe(replace(spec, jpeg_decoding=_JPEG_DECODING[told.jpeg_decoding]), told.id)
