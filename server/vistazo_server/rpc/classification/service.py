"""ClassificationServicer: decode → call → encode, for each RPC of vistazo.v1.ClassificationService."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_server.errors import InvalidRequestError, ServingError, without_frames
from vistazo_server.repository.model_repository import ModelRepository
from vistazo_server.rpc import stream
from vistazo_server.rpc.classification import codec
from vistazo_server.rpc.deadline import Context, call_deadline, sooner


class ClassificationServicer(pb_grpc.ClassificationServiceServicer):
    """The API for people: images in, labelled predictions out."""

    def __init__(self, repository: ModelRepository, *, max_images: int) -> None:
        self._repository = repository
        self._max_images = max_images

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> bytes:  # type: ignore[override]  # noqa: N802, D102  the .proto names and documents it; a serialised ClassifyResponse
        command = self._command(request)
        del request  # its images are in memory once already
        return await self._classify(command, call_deadline(context))

    async def ClassifyStream(  # type: ignore[override]  # noqa: N802, D102  serialised where answered
        self, request_iterator: AsyncIterator[pb.ClassifyStreamRequest], context: Context
    ) -> AsyncIterator[bytes | pb.ClassifyStreamResponse]:
        deadline = call_deadline(context)
        answered = stream.answers(
            request_iterator, lambda request: self._stream_answer(request, deadline), in_order=False
        )
        async with aclosing(answered):
            async for response in answered:
                yield response

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

    def _command(self, request: pb.ClassifyRequest) -> codec.ClassifyCommand:
        return codec.decode_request(request, max_images=self._max_images)

    async def _classify(self, command: codec.ClassifyCommand, deadline: float | None) -> bytes:
        with self._repository.lease(command.model, command.version) as classifier:
            if command.prepared_as:
                codec.check_prepared(command.prepared_as, classifier.spec.image)
            classified = await classifier.classify(
                command.images,
                top_k=command.top_k,
                min_probability=command.min_probability,
                deadline=deadline,
            )
        spec = classifier.spec
        return await classifier.side.run(
            codec.encode_response(spec.name, classifier.version, spec.labels, classified),
            seconds=codec.encode_seconds(classified),
            deadline=deadline,
        )

    async def _stream_answer(
        self, request: pb.ClassifyStreamRequest, deadline: float | None
    ) -> bytes | pb.ClassifyStreamResponse:
        """Return the answer to one request of a stream, its error included."""
        if request.HasField("timeout_ms"):
            deadline = sooner(deadline, request.timeout_ms / 1000)
        try:
            response = await self._classify(self._command(request.request), deadline)
        except ServingError as error:
            return codec.encode_stream_error(request.id, without_frames(error))
        return codec.encode_stream_response(request.id, response)
