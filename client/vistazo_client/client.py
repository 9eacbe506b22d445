"""The blocking client."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, overload

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from vistazo_client._channel import ChannelFactory, Link
from vistazo_client._codec import (
    Chunk,
    Query,
    chunk_images,
    decode_chunk,
    decode_model,
    is_prepared_otherwise,
    unanswered_chunk,
)
from vistazo_client._core import MAX_REQUESTS_IN_FLIGHT, READY_POLL_SECONDS, ClientCore
from vistazo_client._images import ImageInput, is_one_image
from vistazo_client._retry import Attempts
from vistazo_client._streams.session import StreamImage, UnpreparedImage, encode_stream_image
from vistazo_client._streams.threads import StreamThreads
from vistazo_client._target import Target
from vistazo_client.errors import (
    DeadlineExceededError,
    ModelNotFoundError,
    UnavailableError,
    VistazoError,
    error_from_rpc,
)
from vistazo_client.results import Classification, ModelInfo
from vistazo_proto import classification_pb2 as pb

if TYPE_CHECKING:
    from vistazo_client._local.preparation import Preparation
    from vistazo_client._local.threads import PreparedImages

_Id = TypeVar("_Id")


@dataclass(slots=True)
class _Call:
    """A request under way, and what it takes to send it again."""

    pick: Callable[[Link[grpc.Channel]], Any]
    """The method to call."""
    request: object
    timeout: float
    attempts: Attempts
    link: Link[grpc.Channel]
    future: Any
    sent: float
    """When the last attempt was made, in the time of time.monotonic."""
    ended: float | None = None
    """When the attempt was over, in the time of time.monotonic: the caller may ask much later."""

    def end(self, future: object) -> None:
        """Take note of the end of an attempt; grpc calls it."""
        if future is self.future:
            self.ended = time.monotonic()


class Client(ClientCore[grpc.Channel]):
    """A connection to a Vistazo server, or to several that serve the same; made once, used for every call.

        with Client("127.0.0.1:8001") as client:
            print(client.classify("cat.jpg").top.label)

    It may be shared between threads, and used in both processes after a fork. It connects at its first
    call, and again by itself after a server restarts. Calls raise the subclasses of `VistazoError`, and
    RuntimeError once it is closed.

    address: HOST:PORT; several with commas between them, or as a list; or anything that grpc takes as a
        target, such as dns:///HOST:PORT. Requests go in turn to every address that is up, and to every one
        that a name stands for.
    timeout: seconds that any one request may take, retries included, unless a call says otherwise. There
        is always one.
    retries: how often a request that was refused for load, or that no server answered, is sent again: to
        another server where there is one, not before the time that the server named, and never past the
        timeout. Every call of this client can be repeated without harm. 0: never.
    tls: `TLS`, or True for TLS with the public authorities. Default: none.
    token: sent with every call as "authorization: Bearer …". Only over TLS or to this machine, unless
        `allow_insecure_token`.
    token_file: a file with the token in it, read again when it changes.
    max_message_bytes: largest request and response. Keep it at most the server's `--max-message-mb`.
    preprocess: "server", or "local": threads of this client prepare each image exactly as the server would,
        and it sends the pixels alone, which for most networks are 150 KB. The answers are the same to the
        bit. How a model prepares images is asked of the server; where it does not say, images go as they are,
        with a LocalPreprocessingWarning. The time that an image takes counts against the timeout. Takes the
        extra `local`.

    Raises ValueError for settings that make no sense, and ImportError for a missing extra.
    """

    _closing: threading.Event

    def _opener(self, factory: ChannelFactory) -> Callable[[Target], grpc.Channel]:
        self._closing = threading.Event()
        return factory.open

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
        self._closed = True
        self._closing.set()
        if self._preparation is not None:
            self._preparation.pool.close()
        for channel in self._connection.take_channels():
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
        min_probability: float | None = ...,
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
        min_probability: float | None = ...,
        timeout: float | None = ...,
    ) -> list[Classification]: ...
    def classify(
        self,
        image: ImageInput | Iterable[ImageInput],
        *,
        model: str = "",
        version: str = "",
        top_k: int | None = None,
        min_probability: float | None = None,
        timeout: float | None = None,
    ) -> Classification | list[Classification]:
        """Classify one image, or each image of an iterable.

        An image is a path, the bytes of a JPEG, PNG, WebP or BMP file, a PIL image, or a uint8 array of
        shape (height, width) or (height, width, channels) with 1 or 3 channels. Files are sent as they
        are, unless this client prepares them, and turned upright as their EXIF orientation says; PIL
        images and arrays are taken as they stand in memory.

        One image gives one `Classification`, and raises InvalidImageError if it is bad. An iterable gives a
        list in its order, in which a bad image has its `error` set and the others are not affected; it is
        sent as several requests, and one that fails as a whole fails the call. An iterator of any length
        is fine: only the few requests in flight are held in memory.

        model: default, the only model served. version: default, the highest that is ready.
        top_k: how many predictions; default, the server's (5).
        min_probability: leave out predictions below it, 0 to 1; an image may then have none. Default: 0.
        timeout: seconds for each request; default, the client's.
        """
        if not is_one_image(image):
            images = cast("Iterable[ImageInput]", image)
            return list(
                self.classify_iter(
                    images,
                    model=model,
                    version=version,
                    top_k=top_k,
                    min_probability=min_probability,
                    timeout=timeout,
                )
            )
        (result,) = self.classify_iter(
            [image],
            model=model,
            version=version,
            top_k=top_k,
            min_probability=min_probability,
            timeout=timeout,
        )
        result.raise_for_error()
        return result

    def classify_iter(
        self,
        images: Iterable[ImageInput],
        *,
        model: str = "",
        version: str = "",
        top_k: int | None = None,
        min_probability: float | None = None,
        timeout: float | None = None,
    ) -> Iterator[Classification]:
        """Yield what `classify` would put in its list, each result as soon as its turn comes."""
        self._check_images(images, "classify()")
        query, seconds = Query(model, version, top_k, min_probability), self._deadline(timeout)
        return self._classify_chunks(self._chunks(images, query, seconds), query, seconds)

    def classify_stream(
        self,
        images: Iterable[tuple[_Id, ImageInput]],
        *,
        model: str = "",
        version: str = "",
        top_k: int | None = None,
        min_probability: float | None = None,
        timeout: float | None = None,
    ) -> Iterator[tuple[_Id, Classification]]:
        """Classify (id, image) pairs over one stream; yield (id, result) pairs, each as soon as it is ready.

            for number, result in client.classify_stream(enumerate(frames)):
                print(number, result.error or result.top.label)

        The ids are yours: anything, even several times the same. Results come in the order in which they
        are ready, and errors, also of a timeout, in their `error`: one image's never ends the stream. A
        failure of all ends it with its exception: no server, no such call, no permission.

        For sources without end, and where the first answer matters more than the order; `classify_iter`
        sends many images in one request, which costs the server less. A few images are with the server at
        once, and no more are taken from `images` than were answered and fetched. `images` is iterated in
        a thread of its own; what it raises is raised here, after the results of what came before.
        Leaving the loop cancels what is in flight.

        timeout: seconds for each image, counted from when it was taken; default, the client's.
        """
        self._check_images(images, "classify()")
        query = Query(model, version, top_k, min_probability)
        session = self._stream_session(query, timeout)
        encode: Callable[[object], StreamImage | UnpreparedImage]
        encode = partial(encode_stream_image, max_message_bytes=self._max_message_bytes)
        if self._preparation is not None:
            encode = self._prepared_images(self._preparation, query, self._deadline(timeout)).stream_image
        again = partial(self._encode_again, query)
        threads = StreamThreads(session, map(encode, images), self._open_stream, again)
        return cast("Iterator[tuple[_Id, Classification]]", threads.results())

    def _chunks(self, images: Iterable[object], query: Query, timeout: float) -> Iterator[Chunk]:
        """Yield requests that carry the images, prepared where that is wanted."""
        if self._preparation is None:
            return chunk_images(images, query, max_message_bytes=self._max_message_bytes)
        return self._prepared_images(self._preparation, query, timeout).chunks(images)

    def _prepared_images(self, preparation: "Preparation", query: Query, timeout: float) -> "PreparedImages":
        from vistazo_client._local.threads import PreparedImages  # noqa: PLC0415  needs Pillow

        return PreparedImages(preparation, self._call, query, timeout=timeout)

    def _classify_chunks(
        self, chunks: Iterator[Chunk], query: Query, timeout: float, *, spent: float = 0.0
    ) -> Iterator[Classification]:
        """Yield the results of `chunks` in order, keeping a few requests in flight.

        spent: of the timeout, on what the server refused because it was prepared for something else.
        """
        pending: deque[tuple[Chunk, _Call | None]] = deque()
        try:
            for chunk in chunks:
                while pending and (len(pending) == MAX_REQUESTS_IN_FLIGHT or _is_done(pending[0][1])):
                    yield from self._results(*pending.popleft(), query, spent)
                call = None
                if chunk.sent:
                    waited = self._check_waited(chunk, spent, timeout)
                    call = self._start(_classify, chunk.request, timeout, waited=waited)
                pending.append((chunk, call))
            while pending:
                yield from self._results(*pending.popleft(), query, spent)
        finally:
            # Reached with requests in flight when one failed, or when the caller stopped listening.
            for _, call in pending:
                if call is not None:
                    call.future.cancel()

    def _results(
        self, chunk: Chunk, call: _Call | None, query: Query, spent: float
    ) -> Iterator[Classification]:
        if call is None:
            return decode_chunk(chunk, pb.ClassifyResponse())
        try:
            response = self._finish(call)
        except VistazoError as error:
            if is_prepared_otherwise(chunk.request, error):
                return self._again(chunk, call, query, is_first=not spent)
            return unanswered_chunk(chunk, error)
        return decode_chunk(chunk, response)

    def _again(self, chunk: Chunk, call: _Call, query: Query, *, is_first: bool) -> Iterator[Classification]:
        """Return the results of images that were prepared for something else."""
        assert self._preparation is not None  # noqa: S101  for mypy: it has prepared them
        self._preparation.forget(query, chunk.request.prepared_as)
        if is_first:
            chunks = self._chunks(chunk.sources, query, call.timeout)
        else:
            # Replicas that prepare in different ways: as they are, any of them takes them.
            chunks = chunk_images(chunk.sources, query, max_message_bytes=self._max_message_bytes)
        spent = call.timeout - call.attempts.seconds_left
        return self._classify_chunks(chunks, query, call.timeout, spent=spent)

    def models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """Return every model of the server, those that are not ready included, by name and version."""
        response = self._call(lambda link: link.service.ListModels, pb.ListModelsRequest(), timeout)
        return tuple(decode_model(model) for model in response.models)

    def model(self, name: str, version: str = "", *, timeout: float | None = None) -> ModelInfo:
        """Return one model. version: default, the highest that is ready, else the highest."""
        request = pb.GetModelRequest(name=name, version=version)
        return decode_model(self._call(lambda link: link.service.GetModel, request, timeout))

    def health(self, model: str = "", *, timeout: float | None = None) -> bool:
        """Return whether the server, or one of its models, is serving now.

        Raises ModelNotFoundError for a model it does not have, UnavailableError where no server is.
        """
        try:
            return self._serving(self._call(lambda link: link.health, StringValue(value=model), timeout))
        except ModelNotFoundError as error:
            raise self._no_such_model(model) from error

    def wait_until_ready(self, model: str = "", *, timeout: float = 60.0) -> None:
        """Return once the server, or one of its models, is serving.

        Raises DeadlineExceededError, saying what was missing, after `timeout` seconds. A server that is
        not there yet and a model that it does not know yet are waited for.
        """
        wait = self._ready_wait(model, timeout)
        while True:
            failure: VistazoError | None = None
            try:
                if self.health(model, timeout=wait.look_timeout()):
                    return
            except (UnavailableError, ModelNotFoundError, DeadlineExceededError) as error:
                failure = error
            wait.check(failure)
            self._pause(READY_POLL_SECONDS)

    def _call(self, pick: Callable[[Link[grpc.Channel]], Any], request: object, timeout: float | None) -> Any:  # noqa: ANN401  as the stubs of the generated code
        return self._finish(self._start(pick, request, self._deadline(timeout)))

    def _start(
        self,
        pick: Callable[[Link[grpc.Channel]], Any],
        request: object,
        timeout: float,
        *,
        waited: float = 0.0,
    ) -> _Call:
        attempts = self._attempts(timeout - waited)
        sent = time.monotonic()
        call = _Call(pick, request, timeout, attempts, *self._send(pick, request, attempts), sent)
        call.future.add_done_callback(call.end)
        return call

    def _send(
        self, pick: Callable[[Link[grpc.Channel]], Any], request: object, attempts: Attempts
    ) -> tuple[Link[grpc.Channel], Any]:
        self._check_open()
        metadata = self._metadata()
        link = self._connection.link()
        try:
            future = pick(link).future(request, timeout=attempts.seconds_left, metadata=metadata)
        except ValueError:
            # What grpc raises when another thread closed the channel since it was looked up.
            self._check_open()
            raise
        return link, future

    def _finish(self, call: _Call) -> Any:  # noqa: ANN401
        """Return the answer, or raise the exception that its status stands for, after the last attempt."""
        while True:
            try:
                response = call.future.result()
            except grpc.RpcError as error:
                failure = error_from_rpc(error, address=self._address, timeout=call.timeout)
                failure.__cause__ = error
                if call.ended is not None:
                    call.attempts.extend(time.monotonic() - call.ended)
                    call.ended = None
            except BaseException:
                # Ctrl-C: the server should not go on for no one.
                call.future.cancel()
                raise
            else:
                call.link.answered()
                return response
            self._pause(self._delay_after(call.attempts, call.link, failure, sent=call.sent))
            call.sent = time.monotonic()
            # This one is waited for from now on.
            call.link, call.future = self._send(call.pick, call.request, call.attempts)

    def _open_stream(
        self, requests: Iterator[pb.ClassifyStreamRequest]
    ) -> tuple[Any, Callable[[grpc.RpcError], VistazoError], Callable[[], VistazoError]]:
        """Return an open ClassifyStream, and what makes an exception of its failure, or of its silence."""
        self._check_still_open()
        metadata = self._metadata()
        link = self._connection.link()
        call = link.service.ClassifyStream(requests, metadata=metadata)
        return call, partial(self._stream_error, link), partial(self._stream_hangs, link)

    def _pause(self, seconds: float) -> None:
        self._closing.wait(seconds)
        self._check_still_open()


def _is_done(call: _Call | None) -> bool:
    return call is None or call.future.done()


def _classify(link: Link[grpc.Channel]) -> Any:  # noqa: ANN401
    return link.service.Classify
