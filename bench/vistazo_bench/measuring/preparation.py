"""How a server prepares images for a model, as it says itself, and what that costs here."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from vistazo_bench.errors import BenchError
from vistazo_client._channel import MAX_MESSAGE_BYTES, open_channel
from vistazo_client.errors import error_from_rpc
from vistazo_client.results import ModelInfo
from vistazo_preprocessing.described import UnknownPreprocessingError, read_spec
from vistazo_preprocessing.preprocessor import Preprocessor
from vistazo_preprocessing.spec import JpegDecoding, PreprocessSpec
from vistazo_proto import classification_pb2 as pb

GET_MODEL_METHOD: Final = "/vistazo.v1.ClassificationService/GetModel"
ANSWER_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Preparing:
    """How images become the pixels of a model."""

    spec: PreprocessSpec
    id: str
    """By which requests name it."""


def ask_preparing(address: str, model: ModelInfo) -> Preparing:
    """Return how the server says that it prepares images for a model. Raises BenchError when it does not."""
    with open_channel(address, MAX_MESSAGE_BYTES) as channel:
        untyped: Any = channel  # its stubs want serializers
        call = untyped.unary_unary(GET_MODEL_METHOD)
        request = pb.GetModelRequest(name=model.name, version=model.version)
        try:
            told = pb.Model.FromString(call(request.SerializeToString(), timeout=ANSWER_SECONDS))
        except grpc.RpcError as error:
            raise error_from_rpc(error, address=address, timeout=ANSWER_SECONDS) from error
    if not told.preprocessing.resize_mode:
        raise BenchError(f"the server at {address} does not say how it prepares images for {model.name}")
    size = {"height": told.input_height, "width": told.input_width, "channels": told.input_channels}
    try:
        spec = read_spec(told.preprocessing, **size)
    except UnknownPreprocessingError as error:
        raise BenchError(
            f"how the server prepares images for {model.name} is not known here: {error}"
        ) from None
    reduced = told.preprocessing.jpeg_decoding == pb.Preprocessing.REDUCED
    decoding = JpegDecoding.REDUCED if reduced else JpegDecoding.EXACT
    return Preparing(replace(spec, jpeg_decoding=decoding), told.preprocessing.id)


def prepare(files: Sequence[bytes], preparing: Preparing) -> NDArray[np.uint8]:
    """Return the pixels of each file, N × H × W × C, as the server would make them."""
    preprocessor = Preprocessor(preparing.spec, max_pixels=sys.maxsize)
    return np.stack([preprocessor.finish(preprocessor.load(file)) for file in files])


@dataclass(frozen=True, slots=True)
class PreparationCost:
    """What preparing an image takes of one thread, in seconds of CPU."""

    decode_seconds: float
    resize_seconds: float
    """To resize, crop, and lay transparency on its background."""
    decoded: tuple[int, int]
    """Width and height as decoded, of the first: smaller than the image where decoding was reduced."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.decode_seconds + self.resize_seconds


class Preparation:
    """Prepares images in one thread as the server does; made for a Worker of its own."""

    def __init__(self, spec: PreprocessSpec) -> None:
        self._preprocessor = Preprocessor(spec, max_pixels=sys.maxsize)

    def cost(self, files: Sequence[bytes], seconds: float) -> PreparationCost:
        """Return what one image takes on average, over at least `seconds` and each file once."""
        first = self._preprocessor.load(files[0])
        self._preprocessor.finish(first)
        clock = time.thread_time
        count, decoding, resizing = 0, 0.0, 0.0
        while count < len(files) or decoding + resizing < seconds:
            began = clock()
            decoded = self._preprocessor.load(files[count % len(files)])
            half = clock()
            self._preprocessor.finish(decoded)
            decoding, resizing, count = decoding + half - began, resizing + clock() - half, count + 1
        return PreparationCost(decoding / count, resizing / count, first.picture.size)

    def close(self) -> None:
        """Do nothing; there is nothing to free."""
