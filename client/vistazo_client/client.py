"""The blocking client."""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar, cast, overload

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from vistazo_client._channel import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    MAX_MESSAGE_BYTES,
    SERVING,
    check_address,
    health_call,
    open_channel,
)
from vistazo_client._codec import Chunk, Query, chunk_images, decode_chunk, decode_model, unanswered_chunk
from vistazo_client._images import ImageInput, is_one_image
from vistazo_client.errors import (
    DeadlineExceededError,
    ModelNotFoundError,
    UnavailableError,
    VistazoError,
    error_from_rpc,
)
from vistazo_client.results import Classification, ModelInfo
from vistazo_proto import classification_pb2 as pb
from vistazo_proto.classification_pb2_grpc import ClassificationServiceStub

# While one request runs, the next is already in the server's queue: enough to keep the engine busy.
# More would only fill a queue that others share, and wait there against their own deadline.
MAX_REQUESTS_IN_FLIGHT = 2

# Between two looks at a server that is starting: short enough not to be felt.
READY_POLL_SECONDS = 0.1

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class _Pending:
    """A chunk whose request was sent; no future where none of its images could be."""

    chunk: Chunk
    future: "grpc._CallFuture[pb.ClassifyResponse] | None"


class Client:
    """A connection to a Vistazo server, to be made once and used for every call.

        with Client("127.0.0.1:8001") as client:
            print(client.classify("cat.jpg").top.label)

    It may be shared between threads. It connects at its first call, and again by itself after the
    server restarts. Calls raise the subclasses of `VistazoError`, and RuntimeError once it is closed.

    address: HOST:PORT, or anything that grpc takes as a target.
    timeout: seconds that any one request may take, unless a call says otherwise.
    max_message_bytes: largest request and response. Keep it at most the server's `--max-message-mb`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._address = check_address(address)
        self._timeout = _check_timeout(timeout)
        self._max_message_bytes = max_message_bytes
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._closed = False

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._address

    def __repr__(self) -> str:
        return f"<Client {self._address}{' closed' if self._closed else ''}>"

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls that other threads are in raise RequestCancelledError."""
        with self._lock:
            self._closed = True
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    # A str is one image and also an iterable of str. The first overload that fits decides: one image.
    @overload
    def classify(  # type: ignore[overload-overlap]  # for that reason
        self,
        image: ImageInput,
        *,
        model: str = ...,
        version: str = ...,
        top_k: int | None = ...,
        timeout: float | None = ...,
    ) -> Classification: ...
    @overload
    def classify(
        self,
        image: Iterable[ImageInput],
        *,
        model: str = ...,
        version: str = ...,
        top_k: int | None = ...,
        timeout: float | None = ...,
    ) -> list[Classification]: ...
    def classify(
        self,
        image: ImageInput | Iterable[ImageInput],
        *,
        model: str = "",
        version: str = "",
        top_k: int | None = None,
        timeout: float | None = None,
    ) -> Classification | list[Classification]:
        """Classify one image, or each image of an iterable.

        An image is a path, the bytes of a JPEG, PNG, WebP or BMP file, a PIL image, or a uint8 array of
        shape (height, width) or (height, width, channels) with 1 or 3 channels. Files are sent as they
        are and turned upright by the server as their EXIF orientation says; PIL images and arrays are
        taken as they stand in memory.

        One image gives one `Classification`, and raises InvalidRequestError if it is bad: its subclass
        InvalidImageError when that was found before sending. An iterable gives a list in its order, in
        which a bad image has its `error` set and the others are not affected; it is sent as several
        requests, and one that fails as a whole fails the call. An iterator of any length is fine: only
        the few requests in flight are held in memory.

        model: default, the only model served. version: default, the highest that is ready.
        top_k: how many predictions; default, the server's (5).
        timeout: seconds for each request; default, the client's.
        """
        if not is_one_image(image):
            images = cast("Iterable[ImageInput]", image)
            return list(
                self.classify_iter(images, model=model, version=version, top_k=top_k, timeout=timeout)
            )
        (result,) = self.classify_iter([image], model=model, version=version, top_k=top_k, timeout=timeout)
        result.raise_for_error()
        return result

    def classify_iter(
        self,
        images: Iterable[ImageInput],
        *,
        model: str = "",
        version: str = "",
        top_k: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[Classification]:
        """Yield what `classify` would put in its list, each result as soon as its turn comes."""
        self._check_open()
        if is_one_image(images):
            raise TypeError(
                f"expected an iterable of images, got one {type(images).__name__}; use classify()"
            )
        query = Query(model, version, top_k)
        chunks = chunk_images(images, query, max_message_bytes=self._max_message_bytes)
        return self._classify_chunks(chunks, self._deadline(timeout))

    def _classify_chunks(self, chunks: Iterator[Chunk], timeout: float) -> Iterator[Classification]:
        """Yield the results of `chunks` in order, keeping a few requests in flight."""
        pending: deque[_Pending] = deque()
        try:
            for chunk in chunks:
                if len(pending) == MAX_REQUESTS_IN_FLIGHT:
                    yield from self._results(pending.popleft(), timeout)
                pending.append(self._send(chunk, timeout))
            while pending:
                yield from self._results(pending.popleft(), timeout)
        finally:
            # Reached with requests in flight when one failed, or when the caller stopped listening.
            for each in pending:
                if each.future is not None:
                    each.future.cancel()

    def _send(self, chunk: Chunk, timeout: float) -> _Pending:
        if not chunk.sent:
            return _Pending(chunk, None)
        stub = ClassificationServiceStub(self._open_channel())
        return _Pending(chunk, self._start(stub.Classify, chunk.request, timeout))

    def _results(self, pending: _Pending, timeout: float) -> Iterator[Classification]:
        if pending.future is None:
            return decode_chunk(pending.chunk, pb.ClassifyResponse())
        try:
            response = self._wait(pending.future, timeout)
        except VistazoError as error:
            return unanswered_chunk(pending.chunk, error)
        return decode_chunk(pending.chunk, response)

    def models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """Return every model of the server, those that are not ready included, by name and version."""
        stub = ClassificationServiceStub(self._open_channel())
        response = self._call(stub.ListModels, pb.ListModelsRequest(), self._deadline(timeout))
        return tuple(decode_model(model) for model in response.models)

    def model(self, name: str, version: str = "", *, timeout: float | None = None) -> ModelInfo:
        """Return one model. version: default, the highest that is ready, else the highest."""
        stub = ClassificationServiceStub(self._open_channel())
        request = pb.GetModelRequest(name=name, version=version)
        return decode_model(self._call(stub.GetModel, request, self._deadline(timeout)))

    def health(self, model: str = "", *, timeout: float | None = None) -> bool:
        """Return whether the server, or one of its models, is serving now.

        Raises ModelNotFoundError for a model it does not have, UnavailableError where no server is.
        """
        check = health_call(self._open_channel())
        try:
            response = self._call(check, StringValue(value=model), self._deadline(timeout))
        except ModelNotFoundError as error:
            # The health protocol sends this status without a word.
            raise ModelNotFoundError(f"the server at {self._address} has no model {model!r}") from error
        return response.value == SERVING

    def wait_until_ready(self, model: str = "", *, timeout: float = 60.0) -> None:
        """Return once the server, or one of its models, is serving.

        Raises DeadlineExceededError, saying what was missing, after `timeout` seconds. A server that is
        not there yet and a model that it does not know yet are waited for.
        """
        deadline = time.monotonic() + _check_timeout(timeout)
        while True:
            missing = f"{model or 'the server at ' + self._address} is not serving"
            left = max(deadline - time.monotonic(), READY_POLL_SECONDS)
            try:
                if self.health(model, timeout=min(left, self._timeout)):
                    return
            except (UnavailableError, ModelNotFoundError, DeadlineExceededError) as error:
                missing = str(error)
            if time.monotonic() + READY_POLL_SECONDS > deadline:
                raise DeadlineExceededError(f"not ready after {timeout:g} s: {missing}")
            time.sleep(READY_POLL_SECONDS)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this Client is closed; make another")

    def _open_channel(self) -> grpc.Channel:
        with self._lock:
            self._check_open()
            if self._channel is None:
                self._channel = open_channel(self._address, self._max_message_bytes)
            return self._channel

    def _deadline(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else _check_timeout(timeout)

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        timeout: float,
    ) -> _Response:
        return self._wait(self._start(method, request, timeout), timeout)

    def _start(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        timeout: float,
    ) -> "grpc._CallFuture[_Response]":
        try:
            return method.future(request, timeout=timeout)
        except ValueError:
            # What grpc raises when another thread closed the channel since it was looked up.
            self._check_open()
            raise

    def _wait(self, future: "grpc._CallFuture[_Response]", timeout: float) -> _Response:
        """Return the answer, or raise the exception that its status stands for: the only place that does."""
        try:
            return future.result()
        except grpc.RpcError as error:
            raise error_from_rpc(error, address=self._address, timeout=timeout) from error
        except BaseException:
            # Ctrl-C: the server should not go on for no one.
            future.cancel()
            raise


def _check_timeout(timeout: float) -> float:
    if not timeout > 0:
        raise ValueError(f"expected a timeout above 0 seconds, got {timeout}")
    return timeout
