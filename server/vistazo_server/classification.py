"""ClassificationServicer: decode → call → encode, for each RPC of vistazo.v1.ClassificationService."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import grpc.aio

from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_server import codec
from vistazo_server.classifier import Classifier
from vistazo_server.errors import InvalidRequestError, ServingError, let_go
from vistazo_server.repository import ModelRepository

Context = grpc.aio.ServicerContext[Any, Any]

# Requests of one stream that are worked on at once; more are not read, which slows their sender down.
STREAM_REQUESTS_IN_FLIGHT: Final = 64


class ClassificationServicer(pb_grpc.ClassificationServiceServicer):
    """The API for people: images in, labelled predictions out."""

    def __init__(self, repository: ModelRepository, *, max_images: int) -> None:
        self._repository = repository
        self._max_images = max_images
        # A version that is no longer served takes its encoder along.
        self._encoders: WeakKeyDictionary[Classifier, codec.ResponseEncoder] = WeakKeyDictionary()

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> bytes:  # type: ignore[override]  # noqa: N802, D102  the .proto names and documents it; a serialised ClassifyResponse
        return await self._classify(request, call_deadline(context))

    async def ClassifyStream(  # noqa: N802, D102
        self, request_iterator: AsyncIterator[pb.ClassifyStreamRequest], context: Context
    ) -> AsyncIterator[pb.ClassifyStreamResponse]:
        deadline = call_deadline(context)
        answers: asyncio.Queue[pb.ClassifyStreamResponse | Exception | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_REQUESTS_IN_FLIGHT)
        tasks: set[asyncio.Task[None]] = set()

        async def answer(request: pb.ClassifyStreamRequest) -> None:
            try:
                answers.put_nowait(await self._stream_answer(request, deadline))
            except asyncio.CancelledError as error:
                let_go(error)
                del request
                raise
            except Exception as error:  # noqa: BLE001  raised where the stream ends
                answers.put_nowait(error)

        async def read() -> None:
            try:
                async for request in request_iterator:
                    # Given back when the answer is sent: a caller that does not read is not read from.
                    await room.acquire()
                    task = asyncio.create_task(answer(request))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    del request  # while the next is waited for, and when the stream is cut
            finally:
                if tasks:
                    await asyncio.wait(tasks)
                answers.put_nowait(None)

        # No task group: one around a `yield` that is left by a caller who went would raise a group of errors.
        reader = asyncio.create_task(read())
        try:
            while (response := await answers.get()) is not None:
                if isinstance(response, Exception):
                    raise response
                yield response
                room.release()
            await reader  # raises what ended the reading
        finally:
            await all_cancelled(reader, *tasks)

    async def ListModels(  # noqa: N802, D102
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        del request, context
        return pb.ListModelsResponse(
            models=[codec.encode_model(entry) for entry in self._repository.entries()]
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:  # noqa: N802, D102
        del context
        if not request.name:
            raise InvalidRequestError("name: expected the name of a model, got none")
        return codec.encode_model(self._repository.entry(request.name, request.version))

    async def _classify(self, request: pb.ClassifyRequest, deadline: float | None) -> bytes:
        command = codec.decode_request(request, max_images=self._max_images)
        with self._repository.lease(command.model, command.version) as classifier:
            classified = await classifier.classify(command.images, top_k=command.top_k, deadline=deadline)
        encoder = self._encoders.get(classifier)
        if encoder is None:
            spec = classifier.spec
            encoder = codec.ResponseEncoder(spec.name, classifier.version, spec.labels)
            self._encoders[classifier] = encoder
        return encoder.encode(classified)

    async def _stream_answer(
        self, request: pb.ClassifyStreamRequest, deadline: float | None
    ) -> pb.ClassifyStreamResponse:
        """Return the answer to one request of a stream, its error included."""
        if request.HasField("timeout_ms"):
            deadline = sooner(deadline, request.timeout_ms / 1000)
        try:
            response = await self._classify(request.request, deadline)
        except ServingError as error:
            let_go(error)
            return codec.encode_stream_error(request.id, error)
        return pb.ClassifyStreamResponse(id=request.id, response=pb.ClassifyResponse.FromString(response))


async def all_cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Return when the tasks have ended, which they are asked to do now."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def call_deadline(context: Context) -> float | None:
    """Return the caller's deadline in time.monotonic's seconds; None when it sent none."""
    # grpc gives None without a deadline; its stubs forget that.
    remaining = cast("float | None", context.time_remaining())
    return None if remaining is None else time.monotonic() + remaining


def sooner(deadline: float | None, timeout: float) -> float:
    """Return the earlier of a call's deadline and the end of `timeout` seconds, a request's own, from now."""
    own = time.monotonic() + timeout
    return own if deadline is None else min(own, deadline)
