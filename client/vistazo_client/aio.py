"""The asyncio client."""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, overload

import grpc
import grpc.aio
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
from vistazo_client._streams.tasks import StreamTasks
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
    from vistazo_client._local.tasks import PreparedImages

_Id = TypeVar("_Id")


@dataclass(slots=True)
class _Call:
    """A request under way."""

    task: "asyncio.Task[Any]"
    timeout: float
    attempts: Attempts


class AsyncClient(ClientCore[grpc.aio.Channel]):
    """`Client` for asyncio: the same arguments, calls, results and exceptions, awaited.

        async with AsyncClient("127.0.0.1:8001") as client:
            print((await client.classify("cat.jpg")).top.label)

    It belongs to the event loop of its first call, where any number of tasks may share it. Cancelling a
    task cancels its request. Image files and PIL images are read in a thread, so that the loop goes on.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _process = 0

    def _opener(self, factory: ChannelFactory) -> Callable[[Target], grpc.aio.Channel]:
        return factory.open_aio

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that other tasks are in raise RequestCancelledError."""
        self._closed = True
        if self._preparation is not None:
            self._preparation.pool.close()
        for channel in self._connection.take_channels():
            await channel.close()

    # A str is one image and also an iterable of str. The first overload that fits decides: one image.
    @overload
    async def classify(  # type: ignore[overload-overlap]  # for that reason
        self,
        image: ImageInput,
        *,
        model: str = ...,
        version: str = ...,
        top_k: int | None = ...,
        min_probability: float | None = ...,
        timeout: float | None = ...,  # noqa: ASYNC109
    ) -> Classification: ...
    @overload
    async def classify(
        self,
        image: Iterable[ImageInput],
        *,
        model: str = ...,
        version: str = ...,
        top_k: int | None = ...,
        min_probability: float | None = ...,
        timeout: float | None = ...,  # noqa: ASYNC109
    ) -> list[Classification]: ...
    async def classify(
        self,
        image: ImageInput | Iterable[ImageInput],
        *,
        model: str = "",
        version: str = "",
        top_k: int | None = None,
        min_probability: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  it goes to the server, too
    ) -> Classification | list[Classification]:
        """Classify one image, or each image of an iterable, as `Client.classify` does."""
        one = is_one_image(image)
        images = [image] if one else cast("Iterable[ImageInput]", image)
        results = [
            result
            async for result in self.classify_iter(
                cast("Iterable[ImageInput]", images),
                model=model,
                version=version,
                top_k=top_k,
                min_probability=min_probability,
                timeout=timeout,
            )
        ]
        if not one:
            return results
        results[0].raise_for_error()
        return results[0]

    def classify_iter(
        self,
        images: Iterable[ImageInput],
        *,
        model: str = "",
        version: str = "",
        top_k: int | None = None,
        min_probability: float | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Classification]:
        """Yield what `classify` would put in its list, each result as soon as its turn comes.

        `images` is iterated in a thread, one image at a time.
        """
        self._check_images(images, "classify()")
        query, seconds = Query(model, version, top_k, min_probability), self._deadline(timeout)
        return self._classify_chunks(self._chunks(images, query, seconds), query, seconds)

    def classify_stream(
        self,
        images: Iterable[tuple[_Id, ImageInput]] | AsyncIterable[tuple[_Id, ImageInput]],
        *,
        model: str = "",
        version: str = "",
        top_k: int | None = None,
        min_probability: float | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[tuple[_Id, Classification]]:
        """Classify (id, image) pairs over one stream, as `Client.classify_stream` does.

            async for number, result in client.classify_stream(enumerate(frames)):
                print(number, result.error or result.top.label)

        `images` may be an asynchronous iterable; any other is iterated in a thread. A loop that is left
        early cancels what is in flight when the iterator is closed: at once with contextlib.aclosing,
        else when Python collects it.
        """
        self._check_open()
        if not isinstance(images, AsyncIterable):
            self._check_images(images, "classify()")
        query = Query(model, version, top_k, min_probability)
        session = self._stream_session(query, timeout)
        encoded = self._encode(images)
        if self._preparation is not None:
            prepared = self._prepared_images(self._preparation, query, self._deadline(timeout))
            encoded = prepared.stream_images(images)
        again = partial(self._encode_again, query)
        tasks = StreamTasks(session, encoded, self._open_stream, again)
        return cast("AsyncIterator[tuple[_Id, Classification]]", tasks.results())

    async def _encode(
        self, images: Iterable[object] | AsyncIterable[object]
    ) -> AsyncGenerator[StreamImage | UnpreparedImage, None]:
        encode = partial(encode_stream_image, max_message_bytes=self._max_message_bytes)
        if isinstance(images, AsyncIterable):
            async for item in images:
                yield await asyncio.to_thread(encode, item)
            return
        encoded = map(encode, images)
        while (image := await asyncio.to_thread(next, encoded, None)) is not None:
            yield image

    async def _chunks(
        self,
        images: Iterable[object],
        query: Query,
        timeout: float,  # noqa: ASYNC109
        *,
        as_they_are: bool = False,
    ) -> AsyncGenerator[Chunk, None]:
        """Yield requests that carry the images, prepared where that is wanted."""
        if self._preparation is None or as_they_are:
            chunks = chunk_images(images, query, max_message_bytes=self._max_message_bytes)
            # Nothing to read: not worth a thread.
            at_once = isinstance(images, list) and len(images) == 1 and isinstance(images[0], bytes)
            while True:
                chunk = next(chunks, None) if at_once else await asyncio.to_thread(next, chunks, None)
                if chunk is None:
                    return
                yield chunk
        prepared = self._prepared_images(self._preparation, query, timeout)
        async with aclosing(prepared.chunks(images)) as prepared_chunks:
            async for prepared_chunk in prepared_chunks:
                yield prepared_chunk

    def _prepared_images(self, preparation: "Preparation", query: Query, timeout: float) -> "PreparedImages":
        from vistazo_client._local.tasks import PreparedImages  # noqa: PLC0415  needs Pillow

        return PreparedImages(preparation, self._call, query, timeout=timeout)

    async def _classify_chunks(
        self,
        chunks: AsyncGenerator[Chunk, None],
        query: Query,
        timeout: float,  # noqa: ASYNC109
        *,
        spent: float = 0.0,
    ) -> AsyncGenerator[Classification, None]:
        """Yield the results of `chunks` in order, as the blocking client does."""
        pending: deque[tuple[Chunk, _Call | None]] = deque()
        try:
            async for chunk in chunks:
                while pending and (len(pending) == MAX_REQUESTS_IN_FLIGHT or _is_done(pending[0][1])):
                    async for result in self._results(*pending.popleft(), query, spent):
                        yield result
                call = None
                if chunk.sent:
                    call = self._start(chunk, timeout, self._check_waited(chunk, spent, timeout))
                pending.append((chunk, call))
            while pending:
                async for result in self._results(*pending.popleft(), query, spent):
                    yield result
        finally:
            # Reached with requests in flight when one failed, or when the caller stopped listening.
            tasks = [call.task for _, call in pending if call is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await chunks.aclose()

    def _start(self, chunk: Chunk, timeout: float, waited: float) -> "_Call":
        attempts = self._attempts(timeout - waited)
        task = asyncio.create_task(self._finish(_classify, chunk.request, timeout, attempts))
        return _Call(task, timeout, attempts)

    async def _results(
        self, chunk: Chunk, call: "_Call | None", query: Query, spent: float
    ) -> AsyncGenerator[Classification, None]:
        results: Iterator[Classification]
        try:
            response = pb.ClassifyResponse() if call is None else await call.task
        except VistazoError as error:
            if call is None or not is_prepared_otherwise(chunk.request, error):
                results = unanswered_chunk(chunk, error)
            else:
                again = self._again(chunk, call, query, is_first=not spent)
                async with aclosing(again):
                    async for result in again:
                        yield result
                return
        else:
            results = decode_chunk(chunk, response)
        for result in results:
            yield result

    def _again(
        self, chunk: Chunk, call: "_Call", query: Query, *, is_first: bool
    ) -> AsyncGenerator[Classification, None]:
        """Return the results of images that were prepared for something else."""
        assert self._preparation is not None  # noqa: S101  for mypy: it has prepared them
        self._preparation.forget(query, chunk.request.prepared_as)
        # Where replicas prepare in different ways, the second time is of use to any of them.
        chunks = self._chunks(chunk.sources, query, call.timeout, as_they_are=not is_first)
        spent = call.timeout - call.attempts.seconds_left
        return self._classify_chunks(chunks, query, call.timeout, spent=spent)

    async def models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:  # noqa: ASYNC109
        """Return every model of the server, those that are not ready included, by name and version."""
        response = await self._call(lambda link: link.service.ListModels, pb.ListModelsRequest(), timeout)
        return tuple(decode_model(model) for model in response.models)

    async def model(self, name: str, version: str = "", *, timeout: float | None = None) -> ModelInfo:  # noqa: ASYNC109
        """Return one model. version: default, the highest that is ready, else the highest."""
        request = pb.GetModelRequest(name=name, version=version)
        return decode_model(await self._call(lambda link: link.service.GetModel, request, timeout))

    async def health(self, model: str = "", *, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Return whether the server, or one of its models, is serving now, as `Client.health` does."""
        try:
            return self._serving(
                await self._call(lambda link: link.health, StringValue(value=model), timeout)
            )
        except ModelNotFoundError as error:
            raise self._no_such_model(model) from error

    async def wait_until_ready(self, model: str = "", *, timeout: float = 60.0) -> None:  # noqa: ASYNC109
        """Return once the server, or one of its models, is serving, as `Client.wait_until_ready` does."""
        wait = self._ready_wait(model, timeout)
        while True:
            failure: VistazoError | None = None
            try:
                if await self.health(model, timeout=wait.look_timeout()):
                    return
            except (UnavailableError, ModelNotFoundError, DeadlineExceededError) as error:
                failure = error
            wait.check(failure)
            await asyncio.sleep(READY_POLL_SECONDS)

    async def _call(
        self,
        pick: Callable[[Link[grpc.aio.Channel]], Any],
        request: object,
        timeout: float | None,  # noqa: ASYNC109
    ) -> Any:  # noqa: ANN401  as the stubs of the generated code
        """Return the answer, or raise the exception that its status stands for, after the last attempt."""
        seconds = self._deadline(timeout)
        return await self._finish(pick, request, seconds, self._attempts(seconds))

    async def _finish(
        self,
        pick: Callable[[Link[grpc.aio.Channel]], Any],
        request: object,
        timeout: float,  # noqa: ASYNC109
        attempts: Attempts,
    ) -> Any:  # noqa: ANN401
        while True:
            link = self._link()
            metadata, sent = self._metadata(), time.monotonic()
            try:
                response = await pick(link)(request, timeout=attempts.seconds_left, metadata=metadata)
            except grpc.RpcError as error:
                failure = error_from_rpc(error, address=self._address, timeout=timeout)
                failure.__cause__ = error
            except asyncio.CancelledError:
                self._check_cancelled()
                raise
            else:
                link.answered()
                return response
            await asyncio.sleep(self._delay_after(attempts, link, failure, sent=sent))
            self._check_still_open()

    def _check_cancelled(self) -> None:
        """Raise RequestCancelledError when it is not the task that was cancelled, but its request."""
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            self._check_still_open()

    def _open_stream(
        self, requests: AsyncIterator[pb.ClassifyStreamRequest]
    ) -> tuple[Any, Callable[[grpc.RpcError], VistazoError], Callable[[], VistazoError]]:
        """Return an open ClassifyStream, and what makes an exception of its failure, or of its silence."""
        self._check_still_open()
        link = self._link()
        call = link.service.ClassifyStream(requests, metadata=self._metadata())
        return call, partial(self._stream_error, link), partial(self._stream_hangs, link)

    def _link(self) -> Link[grpc.aio.Channel]:
        """Return the link for the next attempt. Raises RuntimeError in another event loop than before."""
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop, self._process = loop, os.getpid()
        if self._loop is not loop or self._process != os.getpid():
            raise RuntimeError(
                "this AsyncClient belongs to another event loop, that of its first call; make another"
            )
        return self._connection.link()


def _is_done(call: "_Call | None") -> bool:
    return call is None or call.task.done()


def _classify(link: Link[grpc.aio.Channel]) -> Any:  # noqa: ANN401
    return link.service.Classify
