"""Protobuf ⇄ plain values for ClassificationService: every check of a request, and nothing else."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from vistazo_proto import classification_pb2 as pb
from vistazo_server.catalog import CatalogEntry, ModelState
from vistazo_server.classifier import Classified, ImageInput, Prediction
from vistazo_server.errors import InvalidImageError, InvalidRequestError, ServingError

_STATES = {
    ModelState.LOADING: pb.LOADING,
    ModelState.READY: pb.READY,
    ModelState.FAILED: pb.FAILED,
    ModelState.UNLOADING: pb.UNLOADING,
    # In no catalog, so in no answer; an entry that leaves it meanwhile was unloading.
    ModelState.UNAVAILABLE: pb.UNLOADING,
}


@dataclass(frozen=True, slots=True)
class ClassifyCommand:
    """A ClassifyRequest in plain values."""

    model: str
    """Empty: the only one served."""
    version: str
    """Empty: the highest that is ready."""
    images: list[ImageInput]
    top_k: int | None


def decode_request(request: pb.ClassifyRequest, *, max_images: int) -> ClassifyCommand:
    """Return what `request` asks for. An image that cannot be used becomes its own error.

    Raises InvalidRequestError when the request as a whole is wrong.
    """
    if not request.images:
        raise InvalidRequestError("images: expected at least 1, got none")
    if len(request.images) > max_images:
        raise InvalidRequestError(f"images: expected at most {max_images}, got {len(request.images)}")
    return ClassifyCommand(
        model=request.model,
        version=request.version,
        images=[_decode_image(image) for image in request.images],
        top_k=request.top_k if request.HasField("top_k") else None,
    )


def _decode_image(image: pb.Image) -> ImageInput:
    source = image.WhichOneof("source")
    if source == "encoded":
        return image.encoded
    if source == "raw":
        return _decode_pixels(image.raw)
    return InvalidImageError("expected encoded bytes or raw pixels, got neither")


def _decode_pixels(raw: pb.RawPixels) -> NDArray[np.uint8] | InvalidImageError:
    if raw.height == 0 or raw.width == 0:
        return InvalidImageError(
            f"raw: expected a height and width of at least 1, got {raw.height}×{raw.width}"
        )
    if raw.channels not in (1, 3):
        return InvalidImageError(f"raw.channels: expected 1 or 3, got {raw.channels}")
    data = raw.data
    expected = raw.height * raw.width * raw.channels
    if len(data) != expected:
        return InvalidImageError(
            f"raw.data: expected {expected} bytes for {raw.height}×{raw.width}×{raw.channels}, "
            f"got {len(data)}"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(raw.height, raw.width, raw.channels)


def encode_response(model: str, version: str, classified: Classified) -> pb.ClassifyResponse:
    """Return the answer as a message."""
    return pb.ClassifyResponse(
        model=model,
        version=version,
        results=[
            pb.ImageResult(error=encode_error(result))
            if isinstance(result, InvalidImageError)
            else pb.ImageResult(predictions=_encode_predictions(result))
            for result in classified.results
        ],
        batch_size=classified.batch_size,
        timing=pb.Timing(
            queue_seconds=classified.queue_seconds,
            preprocess_seconds=classified.preprocess_seconds,
            compute_seconds=classified.compute_seconds,
        ),
    )


def _encode_predictions(predictions: Iterable[Prediction]) -> pb.Predictions:
    return pb.Predictions(
        predictions=[
            pb.Prediction(index=one.index, label=one.label, probability=one.probability)
            for one in predictions
        ]
    )


def encode_error(error: ServingError) -> pb.ImageError:
    """Return the error of one image, or of one request of a stream."""
    return pb.ImageError(code=status_number(error.code), message=str(error))


def status_number(code: grpc.StatusCode) -> int:
    """Return the number of a status code on the wire, such as 3 for INVALID_ARGUMENT."""
    number: int = code.value[0]
    return number


def encode_model(entry: CatalogEntry) -> pb.Model:
    """Return one model of the repository as a message."""
    message = pb.Model(
        name=entry.name,
        version=entry.version,
        state=_STATES[entry.state],
        reason=entry.reason,
        device=entry.device,
    )
    if entry.spec is not None:
        spec = entry.spec
        message.input_height = spec.preprocess.height
        message.input_width = spec.preprocess.width
        message.input_channels = spec.preprocess.channels
        message.labels.extend(spec.labels)
        message.weights = spec.weights
        message.precision = spec.precision
        message.max_batch_size = entry.max_batch_size
    for size, seconds in entry.latencies().items():
        message.latencies.add(batch_size=size, seconds=seconds)
    return message


def encode_stream_error(request_id: str, error: ServingError) -> pb.ClassifyStreamResponse:
    """Return the outcome of one request of a stream that failed."""
    return pb.ClassifyStreamResponse(
        id=request_id,
        error=encode_error(error),
        retry_pushback_ms=None if error.retry_after is None else pushback_ms(error.retry_after),
    )


def pushback_ms(retry_after: float) -> int:
    """Return seconds as whole milliseconds, at least 1, for `grpc-retry-pushback-ms` (gRPC proposal A6)."""
    return max(1, math.ceil(retry_after * 1000))
