"""Protobuf ⇄ plain values for ClassificationService: every check of a request, and nothing else."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vistazo_preprocessing.spec import PreprocessSpec, ResizeMode
from vistazo_proto import classification_pb2 as pb
from vistazo_server.artifact.manifest import ImageSpec, ScoreKind
from vistazo_server.errors import (
    InvalidImageError,
    InvalidRequestError,
    PreparedOtherwiseError,
    ServingError,
)
from vistazo_server.inference.classifier import Classified, Ranking
from vistazo_server.inference.image_inputs import ImageInput
from vistazo_server.inference.side_thread import Steps
from vistazo_server.repository.catalog import CatalogEntry, ModelState
from vistazo_server.rpc.wire import field_head, pushback_ms, status_number

_STATES = {
    ModelState.LOADING: pb.LOADING,
    ModelState.READY: pb.READY,
    ModelState.FAILED: pb.FAILED,
    ModelState.UNLOADING: pb.UNLOADING,
    # In no catalog, so in no answer; an entry that leaves it meanwhile was unloading.
    ModelState.UNAVAILABLE: pb.UNLOADING,
}

_SCORE_KINDS = {
    ScoreKind.LOGITS: pb.LOGITS,
    ScoreKind.PROBABILITIES: pb.PROBABILITIES,
    ScoreKind.INDEPENDENT: pb.INDEPENDENT,
    ScoreKind.INDEPENDENT_LOGITS: pb.INDEPENDENT_LOGITS,
}


# Of an id: 64 bits tell apart what one caller could ever meet.
_ID_DIGITS: Final = 16


@dataclass(slots=True)  # not frozen: one is made for each request, and a frozen one takes three times as long
class ClassifyCommand:
    """A ClassifyRequest in plain values."""

    model: str
    """Empty: the only one served."""
    version: str
    """Empty: the highest that is ready."""
    images: list[ImageInput]
    top_k: int | None
    min_probability: float
    """Classes below it are left out."""
    prepared_as: str = ""
    """Id of the preprocessing that the caller has done; empty: none."""


def decode_request(request: pb.ClassifyRequest, *, max_images: int) -> ClassifyCommand:
    """Return what `request` asks for. An image that cannot be used becomes its own error.

    Raises InvalidRequestError when the request as a whole is wrong.
    """
    images = request.images
    if not images:
        raise InvalidRequestError("images: expected at least 1, got none")
    if len(images) > max_images:
        raise InvalidRequestError(f"images: expected at most {max_images}, got {len(images)}")
    return ClassifyCommand(
        request.model,
        request.version,
        [_decode_image(image) for image in images],
        request.top_k if request.HasField("top_k") else None,
        request.min_probability,
        request.prepared_as,
    )


def _decode_image(image: pb.Image) -> ImageInput:
    source = image.WhichOneof("source")
    if source == "encoded":
        return image.encoded
    if source == "raw":
        return _decode_pixels(image.raw)
    return InvalidImageError("expected encoded bytes or raw pixels, got neither")


def _decode_pixels(raw: pb.RawPixels) -> NDArray[np.uint8] | InvalidImageError:
    height, width, channels, data = raw.height, raw.width, raw.channels, raw.data
    if height == 0 or width == 0:
        return InvalidImageError(f"raw: expected a height and width of at least 1, got {height}×{width}")
    if channels not in (1, 2, 3, 4):
        return InvalidImageError(
            f"raw.channels: expected 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha), got {channels}"
        )
    expected = height * width * channels
    if len(data) != expected:
        return InvalidImageError(
            f"raw.data: expected {expected} bytes for {height}×{width}×{channels}, got {len(data)}"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(height, width, channels)


# What it takes to write one prediction, and how many of them are serialised at once: in about 0.2 ms.
_PREDICTION_SECONDS: Final = 0.5e-6
_PREDICTIONS_A_STEP: Final = 512


def encode_seconds(classified: Classified) -> float:
    """Return how long `encode_response` is predicted to take."""
    return _PREDICTION_SECONDS * sum(
        len(result.indexes) for result in classified.results if isinstance(result, Ranking)
    )


def encode_response(model: str, version: str, labels: Sequence[str], classified: Classified) -> Steps[bytes]:
    """Return the answer to a request, a serialised ClassifyResponse, as steps."""
    # A large one is serialised in parts: messages put one behind the other are one, with the results of all.
    parts: list[bytes] = []
    part = pb.ClassifyResponse(model=model, version=version, batch_size=classified.batch_size)
    timing = part.timing
    timing.queue_seconds = classified.queue_seconds
    timing.preprocess_seconds = classified.preprocess_seconds
    timing.compute_seconds = classified.compute_seconds
    size = 0
    for result in classified.results:
        if size > _PREDICTIONS_A_STEP:
            parts.append(part.SerializeToString())
            part, size = pb.ClassifyResponse(), 0
            yield
        if isinstance(result, InvalidImageError):
            part.results.add(error=encode_error(result))
            continue
        predictions = part.results.add().predictions
        predictions.SetInParent()
        add = predictions.predictions.add
        for index, probability in zip(result.indexes.tolist(), result.probabilities.tolist(), strict=True):
            add(index=index, label=labels[index], probability=probability)
        size += len(result.indexes)
    parts.append(part.SerializeToString())
    return b"".join(parts)


def encode_error(error: ServingError) -> pb.ImageError:
    """Return the error of one image, or of one request of a stream."""
    return pb.ImageError(code=status_number(error.code), message=str(error), reason=error.reason)


def encode_model(entry: CatalogEntry) -> pb.Model:
    """Return one model of the repository as a message."""
    message = pb.Model(
        name=entry.name,
        version=entry.version,
        state=_STATES[entry.state],
        reason=entry.reason,
        device=entry.device,
        one_by_one=entry.one_by_one,
    )
    if entry.spec is not None:
        spec = entry.spec
        if spec.image is not None:
            message.input_height = spec.image.preprocess.height
            message.input_width = spec.image.preprocess.width
            message.input_channels = spec.image.preprocess.channels
            message.preprocessing.CopyFrom(encode_preprocessing(spec.image.preprocess))
        message.labels.extend(spec.labels)
        if spec.scores is not None:
            message.scores = _SCORE_KINDS[spec.scores.kind]
        message.weights = spec.weights
        message.precision = spec.precision
        message.max_batch_size = entry.max_batch_size
    for size, seconds in entry.latencies().items():
        message.latencies.add(batch_size=size, seconds=seconds)
    return message


@lru_cache(maxsize=1024)
def encode_preprocessing(spec: PreprocessSpec) -> pb.Preprocessing:
    """Return how images become a model's pixels, with every size resolved. It is shared: do not change it."""
    mode = spec.resize_mode
    height, width = spec.resize_height, spec.resize_width
    if mode is ResizeMode.STRETCH:
        height, width = height or spec.height, width or spec.width
    elif mode not in (ResizeMode.COVER, ResizeMode.FIT):
        height = width = 0
    message = pb.Preprocessing(
        resize_mode=mode.name,
        resize_size=spec.resize_size if mode is ResizeMode.SHORTEST_EDGE else 0,
        resize_height=height,
        resize_width=width,
        interpolation=spec.interpolation.name.lower(),
        pad_color=spec.pad_color,
        background=spec.background,
        crop_rounding=pb.Preprocessing.DOWN if spec.crop_rounds_down else pb.Preprocessing.HALF_TO_EVEN,
        jpeg_decoding=spec.jpeg_decoding.name,
    )
    # Of what decides about pixels and nothing else: replicas have the same, and versions that prepare alike.
    digest = hashlib.sha256(f"{spec.height}x{spec.width}x{spec.channels}:".encode())
    digest.update(message.SerializeToString(deterministic=True))
    message.id = digest.hexdigest()[:_ID_DIGITS]
    return message


def check_prepared(prepared_as: str, image: ImageSpec | None) -> None:
    """Raise PreparedOtherwiseError when images that a caller prepared so are not what the model wants."""
    if prepared_as and (image is None or prepared_as != encode_preprocessing(image.preprocess).id):
        raise PreparedOtherwiseError(
            "prepared_as: the images were prepared in another way than this version of the model does; ask "
            "for its preprocessing again, or send them as they are"
        )


def encode_stream_response(request_id: str, response: bytes) -> bytes:
    """Return the serialised outcome of one request of a stream that was answered by `response`."""
    head = pb.ClassifyStreamResponse(id=request_id).SerializeToString()
    return b"".join((head, field_head(pb.ClassifyStreamResponse, "response", len(response)), response))


def encode_stream_error(request_id: str, error: ServingError) -> pb.ClassifyStreamResponse:
    """Return the outcome of one request of a stream that failed."""
    return pb.ClassifyStreamResponse(
        id=request_id,
        error=encode_error(error),
        retry_pushback_ms=None if error.retry_after is None else pushback_ms(error.retry_after),
    )
