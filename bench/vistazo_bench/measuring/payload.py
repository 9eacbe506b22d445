"""The requests of a load, made beforehand, and whether the answers to them are right."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.load import CLASSIFY_METHOD, Target
from vistazo_bench.measuring.pictures import (
    DIFFERENT_PICTURES,
    JPEG_SIZE,
    jpeg_files,
    own_files,
    photograph,
)
from vistazo_client._channel import MAX_MESSAGE_BYTES, open_channel
from vistazo_client._images import encode_image
from vistazo_client.errors import error_from_rpc
from vistazo_client.results import ModelInfo
from vistazo_proto import classification_pb2 as pb

if TYPE_CHECKING:
    from vistazo_bench.measuring.preparation import Preparing

# Batches of different sizes sum in different orders; int8 rounds what lies on an edge either way.
PROBABILITY_TOLERANCE: Final = 0.02

# The first answer may wait for a model that is still being warmed up.
REFERENCE_TIMEOUT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Payload:
    """Requests for one model, and what is needed to judge the answers."""

    requests: tuple[bytes, ...]
    """Serialised ClassifyRequests."""
    images_per_request: int
    tensors: NDArray[np.uint8]
    """The same images as model input, N×H×W×C; for the raw engine."""
    encoded: tuple[bytes, ...]
    """The files; empty where pixels are sent."""
    source: str
    """Where the image came from, in words."""
    references: tuple[bytes, ...] = ()
    """One response for each request, of a server at rest."""

    @property
    def images_hint(self) -> str:
        """Sizes in words."""
        return f"{len(self.requests[0]):,} bytes a request, {self.source}"

    def target(self, address: str, *, channels: int = 1) -> Target:
        """Return the load's target on a Vistazo server."""
        return Target(address, self.requests, CLASSIFY_METHOD, channels)


def make_payload(
    model: ModelInfo,
    *,
    kind: str,
    images_per_request: int = 1,
    image: Path | None = None,
    size: tuple[int, int] | None = None,
    preparing: "Preparing | None" = None,
) -> Payload:
    """Return requests for `model`.

    The `kind`:

    - tensor: pixels of the model's own size, sampled from the picture
    - file: `image` as it is
    - jpeg: JPEG files of `size` made of the picture
    - local: pixels that were prepared beforehand, by `preparing`, as a client on another machine would: of
      `image` as it is, or, with a `size` or without an `image`, of the files of jpeg

    All but tensor need Pillow. The picture is `image`, a photograph that an installed package ships, or
    noise, and `source` says which.
    """
    if kind == "tensor":
        pixels, source = photograph(image, must=False)
        tensors = _tensors(model, pixels)
        messages = [encode_image(tensor, max_bytes=MAX_MESSAGE_BYTES) for tensor in tensors]
        source = f"raw {_input_size(model)} of {source}"
        requests = _requests(model, messages, images_per_request)
        return Payload(requests, images_per_request, tensors, (), source)
    if kind == "file" or (kind == "local" and image is not None and size is None):
        if image is None:
            raise BenchError("to send a file as it is takes --image FILE")
        pictures = own_files(image)
    else:
        pictures = jpeg_files(image, size or JPEG_SIZE)
    if kind == "local":
        if preparing is None:
            raise BenchError(f"it is not known how images are prepared for {model.name}")
        from vistazo_bench.measuring.preparation import prepare  # noqa: PLC0415  it needs Pillow

        tensors = prepare(pictures.files, preparing)
        messages = [encode_image(tensor, max_bytes=MAX_MESSAGE_BYTES) for tensor in tensors]
        requests = _requests(model, messages, images_per_request, prepared_as=preparing.id)
        source = f"raw {_input_size(model)}, prepared beforehand from {pictures.source}"
        return Payload(requests, images_per_request, tensors, (), source)
    messages = [pb.Image(encoded=file) for file in pictures.files]
    # For the raw engine, to which one picture is as good as another.
    tensors = _tensors(model, photograph(image, must=True)[0])
    requests = _requests(model, messages, images_per_request)
    return Payload(requests, images_per_request, tensors, pictures.files, pictures.source)


def _requests(
    model: ModelInfo, images: Sequence[pb.Image], images_per_request: int, *, prepared_as: str = ""
) -> tuple[bytes, ...]:
    """Return as many requests as there are images, each of which begins with another."""
    return tuple(
        pb.ClassifyRequest(
            model=model.name,
            version=model.version,
            images=[images[(turn + at) % len(images)] for at in range(images_per_request)],
            prepared_as=prepared_as,
        ).SerializeToString()
        for turn in range(len(images))
    )


def _input_size(model: ModelInfo) -> str:
    return f"{model.input_height}×{model.input_width}×{model.input_channels}"


def with_references(payload: Payload, address: str) -> Payload:
    """Return the payload with the answers of a server at rest, asked one after the other.

    Raises VistazoError when it does not answer all of them.
    """
    with open_channel(address, MAX_MESSAGE_BYTES) as channel:
        untyped: Any = channel  # its stubs want serializers
        call = untyped.unary_unary(CLASSIFY_METHOD)
        try:
            references = tuple(
                call(request, timeout=REFERENCE_TIMEOUT_SECONDS) for request in payload.requests
            )
        except grpc.RpcError as error:
            raise error_from_rpc(error, address=address, timeout=REFERENCE_TIMEOUT_SECONDS) from error
    payload = replace(payload, references=references)
    if wrong := wrong_answers(payload, enumerate(references)):
        raise BenchError(f"the server's answers cannot be used: {wrong[0]}")
    return payload


def wrong_answers(payload: Payload, samples: Iterable[tuple[int, bytes]]) -> list[str]:
    """Return what is wrong with each of the sampled responses that is: not whole, or not the reference's."""
    wrong = []
    for request, response in samples:
        problem = _problem(response, payload.references[request], payload.images_per_request)
        if problem:
            wrong.append(f"request {request}: {problem}")
    return wrong


def _problem(response: bytes, reference: bytes, images: int) -> str:
    try:
        answers = pb.ClassifyResponse.FromString(response).results
    except DecodeError:
        return f"{len(response)} bytes that are no ClassifyResponse"
    expected = pb.ClassifyResponse.FromString(reference).results
    if len(answers) != images:
        return f"{len(answers)} results for {images} images"
    for answer, wanted in zip(answers, expected, strict=True):
        if answer.WhichOneof("outcome") != "predictions" or not answer.predictions.predictions:
            return f"no predictions ({answer.error.message})"
        got, want = _probabilities(answer), _probabilities(wanted)
        # By rank, not by class: two classes that are all but equal may change places.
        if len(got) != len(want) or np.abs(got - want).max() > PROBABILITY_TOLERANCE:
            return f"expected probabilities near {want}, got {got}"
    return ""


def _probabilities(result: pb.ImageResult) -> NDArray[np.float64]:
    return np.array([one.probability for one in result.predictions.predictions], dtype=np.float64)


def _tensors(model: ModelInfo, photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the model's input for DIFFERENT_PICTURES pictures: the photograph, sampled down and rolled."""
    height, width, channels = model.input_height, model.input_width, model.input_channels
    if not (height and width and channels):
        raise BenchError(f"the server does not say what {model.name} takes; is it ready?")
    rows = np.linspace(0, photograph.shape[0] - 1, height).astype(int)
    columns = np.linspace(0, photograph.shape[1] - 1, width).astype(int)
    picture = photograph[rows][:, columns, :channels]
    shifts = [turn * width // DIFFERENT_PICTURES for turn in range(DIFFERENT_PICTURES)]
    return np.ascontiguousarray(np.stack([np.roll(picture, shift, axis=1) for shift in shifts]))
