"""The requests of a load, made beforehand, and whether the answers to them are right."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.load import CLASSIFY_METHOD, Target
from vistazo_client._channel import MAX_MESSAGE_BYTES, open_channel
from vistazo_client._images import encode_image
from vistazo_client.errors import error_from_rpc
from vistazo_client.results import ModelInfo
from vistazo_proto import classification_pb2 as pb

# The size and about the file size of an ImageNet photograph.
JPEG_WIDTH, JPEG_HEIGHT, JPEG_QUALITY = 500, 375, 90

# Different requests, sent in turn, so that nothing between here and the engine can live off one image.
DIFFERENT_REQUESTS: Final = 4

# Photographs that other packages ship.
PHOTOGRAPHS: Final = (("sklearn", "datasets/images/china.jpg"), ("skimage", "data/coffee.png"))

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
    """The JPEG files; empty for tensor input."""
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
    model: ModelInfo, *, kind: str, images_per_request: int = 1, image: Path | None = None
) -> Payload:
    """Return requests for `model`: `kind` is tensor (pixels of the model's own size) or jpeg.

    The picture is `image`, a photograph that an installed package ships, or noise, and `source` says which.
    """
    photograph, source = _photograph(image, must=kind == "jpeg")
    tensors = _tensors(model, photograph)
    encoded: tuple[bytes, ...] = ()
    messages: list[pb.Image]
    if kind == "jpeg":
        encoded = tuple(_jpeg(photograph, turn) for turn in range(DIFFERENT_REQUESTS))
        messages = [pb.Image(encoded=file) for file in encoded]
        source = f"JPEG {JPEG_WIDTH}×{JPEG_HEIGHT} of {source}"
    else:
        messages = [encode_image(tensor, max_bytes=MAX_MESSAGE_BYTES) for tensor in tensors]
        source = f"raw {model.input_height}×{model.input_width}×{model.input_channels} of {source}"
    requests = tuple(
        pb.ClassifyRequest(
            model=model.name,
            version=model.version,
            images=[messages[(turn + at) % len(messages)] for at in range(images_per_request)],
        ).SerializeToString()
        for turn in range(DIFFERENT_REQUESTS)
    )
    return Payload(requests, images_per_request, tensors, encoded, source)


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
    """Return the model's input for DIFFERENT_REQUESTS pictures: the photograph, sampled down and rolled."""
    height, width, channels = model.input_height, model.input_width, model.input_channels
    if not (height and width and channels):
        raise BenchError(f"the server does not say what {model.name} takes; is it ready?")
    rows = np.linspace(0, photograph.shape[0] - 1, height).astype(int)
    columns = np.linspace(0, photograph.shape[1] - 1, width).astype(int)
    picture = photograph[rows][:, columns, :channels]
    shifts = [turn * width // DIFFERENT_REQUESTS for turn in range(DIFFERENT_REQUESTS)]
    return np.ascontiguousarray(np.stack([np.roll(picture, shift, axis=1) for shift in shifts]))


def _jpeg(photograph: NDArray[np.uint8], turn: int) -> bytes:
    """Return the photograph as a JPEG file of JPEG_WIDTH × JPEG_HEIGHT, rolled by some quarters."""
    from PIL import Image  # noqa: PLC0415  not needed to import the command

    image = Image.fromarray(photograph)
    # The largest part of 4:3, from the middle.
    width = min(image.width, image.height * JPEG_WIDTH // JPEG_HEIGHT)
    height = min(image.height, image.width * JPEG_HEIGHT // JPEG_WIDTH)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    image = image.resize((JPEG_WIDTH, JPEG_HEIGHT), box=(left, top, left + width, top + height))
    rolled = np.roll(np.asarray(image), turn * JPEG_WIDTH // DIFFERENT_REQUESTS, axis=1)
    file = io.BytesIO()
    Image.fromarray(rolled).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _photograph(image: Path | None, *, must: bool) -> tuple[NDArray[np.uint8], str]:
    """Return RGB pixels and their source. Without Pillow: noise, unless `must`."""
    try:
        from PIL import Image  # noqa: PLC0415
    except ModuleNotFoundError:
        if must or image is not None:
            raise
        return _noise(), "noise (Pillow is not installed)"
    candidates = [(image, str(image.name))] if image is not None else _shipped()
    for path, name in candidates:
        try:
            with Image.open(path) as opened:
                return np.asarray(opened.convert("RGB")), name
        except OSError as error:
            if image is not None:
                raise BenchError(f"cannot read the image {image}: {error}") from error
    return _noise(), "noise (no photograph at hand; give one with --image)"


def _shipped() -> Sequence[tuple[Path, str]]:
    found = []
    for package, path in PHOTOGRAPHS:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            found.append((Path(spec.origin).parent / path, f"{package}'s {Path(path).name}"))
    return found


def _noise() -> NDArray[np.uint8]:
    # Coarse, so that a JPEG of it has about the size of a photograph's.
    coarse = np.random.default_rng(0).integers(0, 256, (JPEG_HEIGHT // 5, JPEG_WIDTH // 5, 3), dtype=np.uint8)
    return coarse.repeat(5, axis=0).repeat(5, axis=1)
