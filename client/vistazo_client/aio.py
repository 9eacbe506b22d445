"""The asyncio client."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast, overload

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import StringValue

from vistazo_client._channel import ChannelFactory, Link
from vistazo_client._codec import Chunk, Query, chunk_images, decode_chunk, decode_model, unanswered_chunk
from vistazo_client._core import MAX_REQUESTS_IN_FLIGHT, READY_POLL_SECONDS, ClientCore
from vistazo_client._images import ImageInput, is_one_image
from vistazo_client._streams.session import StreamImage, encode_stream_image
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

_Id = TypeVar("_Id")


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
        query = Query(model, version, top_k, min_probability)
        chunks = chunk_images(images, query, max_message_bytes=self._max_message_bytes)
        # Nothing to read: not worth a thread.
        at_once = isinstance(images, list) and len(images) == 1 and isinstance(images[0], bytes)
        return self._classify_chunks(chunks, self._deadline(timeout), at_once=at_once)

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
        session = self._stream_session(Query(model, version, top_k, min_probability), timeout)
        tasks = StreamTasks(session, self._encode(images), self._open_stream)
        return cast("AsyncIterator[tuple[_Id, Classification]]", tasks.results())

    async def _encode(
        self, images: Iterable[object] | AsyncIterable[object]
    ) -> AsyncGenerator[StreamImage, None]:
        encode = partial(encode_stream_image, max_message_bytes=self._max_message_bytes)
        if isinstance(images, AsyncIterable):
            async for item in images:
                yield await asyncio.to_thread(encode, item)
            return
        encoded = map(encode, images)
        while (image := await asyncio.to_thread(next, encoded, None)) is not None:
            yield image

    async def _classify_chunks(
        self,
        chunks: Iterator[Chunk],
        timeout: float,  # noqa: ASYNC109
        *,
        at_once: bool,
    ) -> AsyncIterator[Classification]:
        """Yield the results of `chunks` in order, keeping a few requests in flight."""
        pending: deque[tuple[Chunk, asyncio.Task[Any] | None]] = deque()
        try:
            while (chunk := await self._next_chunk(chunks, at_once=at_once)) is not None:
                if len(pending) == MAX_REQUESTS_IN_FLIGHT:
                    for result in await self._results(*pending.popleft()):
                        yield result
                pending.append((chunk, self._start(chunk, timeout) if chunk.sent else None))
            while pending:
                for result in await self._results(*pending.popleft()):
                    yield result
        finally:
            # Reached with requests in flight when one failed, or when the caller stopped listening.
            tasks = [task for _, task in pending if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, chunk: Chunk, timeout: float) -> "asyncio.Task[Any]":
        return asyncio.create_task(self._call(lambda link: link.service.Classify, chunk.request, timeout))

    async def _next_chunk(self, chunks: Iterator[Chunk], *, at_once: bool) -> Chunk | None:
        return next(chunks, None) if at_once else await asyncio.to_thread(next, chunks, None)

    async def _results(self, chunk: Chunk, task: "asyncio.Task[Any] | None") -> Iterator[Classification]:
        if task is None:
            return decode_chunk(chunk, pb.ClassifyResponse())
        try:
            response = await task
        except VistazoError as error:
            return unanswered_chunk(chunk, error)
        return decode_chunk(chunk, response)

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
        attempts = self._attempts(seconds)
        while True:
            link = self._link()
            metadata = self._metadata()
            try:
                return await pick(link)(request, timeout=attempts.seconds_left, metadata=metadata)
            except grpc.RpcError as error:
                failure = error_from_rpc(error, address=self._address, timeout=seconds)
                failure.__cause__ = error
            except asyncio.CancelledError:
                self._check_cancelled()
                raise
            await asyncio.sleep(self._delay_after(attempts, link, failure))
            self._check_still_open()

    def _check_cancelled(self) -> None:
        """Raise RequestCancelledError when it is not the task that was cancelled, but its request."""
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            self._check_still_open()

    def _open_stream(
        self, requests: AsyncIterator[pb.ClassifyStreamRequest]
    ) -> tuple[Any, Callable[[grpc.RpcError], VistazoError]]:
        """Return an open ClassifyStream, and what makes an exception of its failure."""
        self._check_still_open()
        link = self._link()
        call = link.service.ClassifyStream(requests, metadata=self._metadata())
        return call, partial(self._stream_error, link)

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
