"""Call arguments ⇄ protobuf, in pure functions that a blocking and an asyncio client can share.

Nothing here is public.
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import grpc

from vistazo_client._images import MESSAGE_OVERHEAD_BYTES, encode_image, held_bytes, image_name
from vistazo_client.errors import (
    INVALID_IMAGE_REASON,
    InvalidImageError,
    InvalidRequestError,
    ServerError,
    VistazoError,
    error_from_code,
)
from vistazo_client.results import (
    BatchLatency,
    Classification,
    ModelInfo,
    ModelState,
    Prediction,
    ScoreKind,
    Timing,
)
from vistazo_proto import classification_pb2 as pb

# Several batches of any server on a CPU, and half a batch of a large GPU's; small enough that a refused
# or late request costs little. The server's own limit is 256 by default.
IMAGES_PER_REQUEST = 32

# The images of one request are held in memory on both sides. A larger image goes alone.
REQUEST_BYTES = 16 * 1024 * 1024

# So long a request waits for the source to give more images.
GATHER_SECONDS = 0.25

# The server says "images[3]: …" and counts within one request. The caller's list is longer, and holds
# images that were never sent.
_WIRE_NUMBER = re.compile(r"^images\[\d+\]: ")

_JPEG_DECODINGS = {pb.Preprocessing.EXACT: "exact", pb.Preprocessing.REDUCED: "reduced"}

# What an uint32 holds.
_MAX_TOP_K = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of every image of a call."""

    model: str = ""
    version: str = ""
    top_k: int | None = None
    min_probability: float | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and not 1 <= self.top_k <= _MAX_TOP_K:
            raise InvalidRequestError(f"top_k: expected at least 1, got {self.top_k}")
        least = self.min_probability
        if least is not None and not 0 <= least <= 1:
            raise InvalidRequestError(f"min_probability: expected 0 to 1, got {least:g}")

    def request(self, images: Iterable[pb.Image] = (), *, prepared_as: str = "") -> pb.ClassifyRequest:
        """Return the request that asks it of `images`."""
        return pb.ClassifyRequest(
            model=self.model,
            version=self.version,
            top_k=self.top_k,
            min_probability=self.min_probability,
            images=images,
            prepared_as=prepared_as,
        )


@dataclass(slots=True)
class Entry:
    """One image of a caller's list, ready to be sent; or why it is not."""

    name: str
    """What messages call it; empty: nothing."""
    message: pb.Image | InvalidImageError
    source: object = None
    """Of an image that was prepared here: what it was before, to prepare or send it again."""
    prepared_as: str = ""
    """What it was prepared for; empty: it goes as it is."""
    waited: float = 0.0
    """Seconds until it was prepared."""


@dataclass(slots=True)
class Chunk:
    """Consecutive images of a caller's list, and the one request that carries those that can be sent."""

    request: pb.ClassifyRequest
    entries: list[str | InvalidImageError] = field(default_factory=list)
    """For each image the name that messages call it, or why it is not in the request."""
    sources: list[object] = field(default_factory=list)
    """Of images that were prepared here: what they were before, or why they cannot be sent."""
    size: int = 0
    """Bytes of the images in the request, and of their sources."""
    waited: float = 0.0
    """Seconds that the image took which took longest to prepare."""

    @property
    def sent(self) -> int:
        """How many images the request carries."""
        return len(self.request.images)


def chunk_images(images: Iterable[object], query: Query, *, max_message_bytes: int) -> Iterator[Chunk]:
    """Yield requests that carry `images` in order, each within the limits on count and bytes.

    Takes from `images` no more than the next chunk needs, and one image beyond.
    """
    entries = (encode_entry(value, max_message_bytes=max_message_bytes) for value in images)
    return chunk_entries(entries, query, max_message_bytes=max_message_bytes)


def encode_entry(value: object, *, max_message_bytes: int) -> Entry:
    """Return an image of the caller's as it goes into a request. What is an error already stays one."""
    if isinstance(value, InvalidImageError):
        return Entry("", value)
    name = image_name(value)
    try:
        return Entry(name, encode_image(value, max_bytes=max_message_bytes - MESSAGE_OVERHEAD_BYTES))
    except InvalidImageError as error:
        return Entry(name, error)


def chunk_entries(entries: Iterable[Entry], query: Query, *, max_message_bytes: int) -> Iterator[Chunk]:
    """Yield requests that carry the entries in order, each within the limits on count and bytes."""
    chunker = Chunker(query, max_message_bytes=max_message_bytes)
    for entry in entries:
        if (chunk := chunker.add(entry)) is not None:
            yield chunk
    if (chunk := chunker.rest()) is not None:
        yield chunk


class Chunker:
    """Puts images into requests, each within the limits on count and bytes."""

    def __init__(self, query: Query, *, max_message_bytes: int) -> None:
        self._query = query
        self._most_bytes = min(REQUEST_BYTES, (max_message_bytes - MESSAGE_OVERHEAD_BYTES) // 2)
        self._chunk = Chunk(query.request())
        self._began = 0.0
        """When the chunk got its first image, in the time of time.monotonic."""

    def add(self, entry: Entry) -> Chunk | None:
        """Take in the next image; return a chunk that is complete without it."""
        message, complete, chunk = entry.message, None, self._chunk
        size, prepared = held_bytes(entry.source), isinstance(message, pb.Image)
        if isinstance(message, pb.Image):
            size += message.ByteSize()
        full = len(chunk.entries) == IMAGES_PER_REQUEST
        # Those that are there need not wait for a slow source to fill the request.
        late = bool(chunk.entries) and time.monotonic() - self._began > GATHER_SECONDS
        too_large = chunk.size > 0 and chunk.size + size > self._most_bytes
        # What was prepared in two ways, or not at all, cannot be asked in one request.
        otherwise = prepared and chunk.sent > 0 and entry.prepared_as != chunk.request.prepared_as
        if full or late or too_large or otherwise:
            complete, chunk = chunk, Chunk(self._query.request())
            self._chunk = chunk
        if not chunk.entries:
            self._began = time.monotonic()
        chunk.entries.append(entry.name if isinstance(message, pb.Image) else message)
        chunk.sources.append(entry.source if isinstance(message, pb.Image) else message)
        chunk.waited = max(chunk.waited, entry.waited)
        if isinstance(message, pb.Image):
            chunk.request.images.append(message)
            chunk.request.prepared_as = entry.prepared_as
            chunk.size += size
        return complete

    def rest(self) -> Chunk | None:
        """Return the last chunk; None: there is no other."""
        return self._chunk if self._chunk.entries else None


def decode_chunk(chunk: Chunk, response: pb.ClassifyResponse) -> Iterator[Classification]:
    """Yield one result for each image of `chunk`, in its order.

    Raises ServerError when the server did not answer every image that it was sent.
    """
    if len(response.results) != chunk.sent:
        raise ServerError(f"expected {chunk.sent} results from the server, got {len(response.results)}")
    timing = Timing(
        response.timing.queue_seconds, response.timing.preprocess_seconds, response.timing.compute_seconds
    )
    results = iter(response.results)
    for entry in chunk.entries:
        if isinstance(entry, InvalidImageError):
            yield Classification(error=entry)
            continue
        result = next(results)
        yield Classification(
            predictions=_decode_predictions(result.predictions.predictions),
            model=response.model,
            version=response.version,
            batch_size=response.batch_size,
            timing=timing,
            error=_decode_error(result, entry),
        )


def unanswered_chunk(chunk: Chunk, error: VistazoError) -> Iterator[Classification]:
    """Yield the results of a chunk whose request failed because its one image is bad.

    A request of one image fails as a whole when its image is bad; in a list it is still only that
    image's failure. Raises `error` when it says anything else.
    """
    if not isinstance(error, InvalidImageError):
        raise error
    for entry in chunk.entries:
        if isinstance(entry, InvalidImageError):
            yield Classification(error=entry)
        else:
            yield Classification(error=name_error(error, entry))


def is_prepared_otherwise(request: pb.ClassifyRequest, error: VistazoError) -> bool:
    """Return whether the images were prepared in another way than the version does that would answer.

    With prepared images, the server has no other reason for this status.
    """
    return bool(request.prepared_as) and error.code is grpc.StatusCode.FAILED_PRECONDITION


def _decode_predictions(predictions: Sequence[pb.Prediction]) -> tuple[Prediction, ...]:
    return tuple(Prediction(each.index, each.label, each.probability) for each in predictions)


def _decode_error(result: pb.ImageResult, name: str) -> VistazoError | None:
    outcome = result.WhichOneof("outcome")
    if outcome == "error":
        # Here the server speaks of an image, also one that is too old to say so.
        reason = result.error.reason or INVALID_IMAGE_REASON
        return name_error(error_from_code(result.error.code, result.error.message, reason), name)
    if outcome is None:
        return name_error(ServerError("the server sent neither predictions nor an error"), name)
    return None


def name_error(error: VistazoError, name: str) -> VistazoError:
    """Return `error` with the image's name, where it has one, in place of its number on the wire."""
    message = _WIRE_NUMBER.sub("", str(error))
    named = type(error)(
        f"{name}: {message}" if name else message, code=error.code, retry_after=error.retry_after
    )
    named.__cause__ = error.__cause__
    return named


def decode_model(model: pb.Model) -> ModelInfo:
    """Return what the server says of one model."""
    return ModelInfo(
        name=model.name,
        version=model.version,
        state=_decode_state(model.state),
        reason=model.reason,
        input_height=model.input_height,
        input_width=model.input_width,
        input_channels=model.input_channels,
        labels=tuple(model.labels),
        weights=model.weights,
        precision=model.precision,
        max_batch_size=model.max_batch_size,
        device=model.device,
        latencies=tuple(BatchLatency(each.batch_size, each.seconds) for each in model.latencies),
        scores=_decode_scores(model.scores),
        one_by_one=model.one_by_one,
        jpeg_decoding=_JPEG_DECODINGS.get(model.preprocessing.jpeg_decoding, ""),
    )


def _decode_state(number: int) -> ModelState:
    # A newer server may know states that this client does not.
    name = pb.State.Name(number) if number in pb.State.values() else ""
    return ModelState(name) if name in ModelState.__members__ else ModelState.UNKNOWN


def _decode_scores(number: int) -> ScoreKind:
    name = pb.ScoreKind.Name(number) if number in pb.ScoreKind.values() else ""
    return ScoreKind(name) if name in ScoreKind.__members__ else ScoreKind.UNKNOWN
