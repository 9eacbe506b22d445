"""OpenInferenceServicer: decode → call → encode, for each RPC of inference.GRPCInferenceService."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from importlib.metadata import version as package_version
from typing import Any, Final, NoReturn

from vistazo_proto import open_inference_pb2 as pb
from vistazo_proto import open_inference_pb2_grpc as pb_grpc
from vistazo_server.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    ModelNotReadyError,
    ServingError,
    UnimplementedError,
    without_frames,
)
from vistazo_server.repository.catalog import ModelState
from vistazo_server.repository.model_repository import ModelRepository
from vistazo_server.rpc import stream
from vistazo_server.rpc.deadline import Context, call_deadline, sooner
from vistazo_server.rpc.open_inference import catalog
from vistazo_server.rpc.open_inference.codec import (
    decode_infer_request,
    encode_infer_response,
    encode_seconds,
)

EXTENSIONS: Final = ("classification", "model_configuration", "model_repository", "parameters", "statistics")
"""Triton's names of those of its extensions that this server has."""


def _unimplemented(name: str) -> Any:  # noqa: ANN401  a method of any of them
    async def answer(servicer: object, request: object, context: Context) -> NoReturn:
        del servicer, request, context
        raise UnimplementedError(f"{name} is not implemented by this server")

    return answer


class OpenInferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    """The API for the ecosystem: the graph's own tensors, by the published protocol.

    `is_live` and `is_ready` say whether the server as a whole is.
    """

    def __init__(
        self,
        repository: ModelRepository,
        *,
        is_live: Callable[[], bool],
        is_ready: Callable[[], bool],
        max_samples: int,
    ) -> None:
        self._repository = repository
        self._is_live = is_live
        self._is_ready = is_ready
        self._max_samples = max_samples

    async def ServerLive(  # noqa: N802, D102  the .proto names and documents it
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        del request, context
        return pb.ServerLiveResponse(live=self._is_live())

    async def ServerReady(  # noqa: N802, D102
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        del request, context
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def ServerMetadata(  # noqa: N802, D102
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        del request, context
        return pb.ServerMetadataResponse(
            name="vistazo", version=package_version("vistazo"), extensions=EXTENSIONS
        )

    async def ModelReady(  # noqa: N802, D102
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        del context
        try:
            entry = self._repository.entry(_named(request.name), request.version)
        except (ModelNotFoundError, ModelNotReadyError):
            # Triton's answer: tools ask this of models that they have just unloaded.
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=entry.state is ModelState.READY)

    async def ModelMetadata(  # noqa: N802, D102
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        del context
        with self._repository.lease(_named(request.name), request.version) as classifier:
            return catalog.encode_metadata(
                request.name, self._versions(request.name), classifier.predictor.signature
            )

    async def ModelConfig(  # noqa: N802, D102
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        del context
        with self._repository.lease(_named(request.name), request.version) as classifier:
            entry = self._repository.entry(request.name, classifier.version)
            return catalog.encode_config(
                request.name,
                classifier.version,
                classifier.predictor.signature,
                max_batch_size=entry.max_batch_size,
                device=entry.device,
                model_file=classifier.spec.model_file,
            )

    async def ModelStatistics(  # noqa: N802, D102
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        del context
        if request.name:
            wanted = [(request.name, request.version)]
        else:
            wanted = [
                (entry.name, entry.version)
                for entry in self._repository.entries()
                if entry.state is ModelState.READY
            ]
        response = pb.ModelStatisticsResponse()
        for name, version in wanted:
            with self._repository.lease(name, version) as classifier:
                response.model_stats.append(
                    catalog.encode_statistics(
                        name, classifier.version, classifier.metrics.totals(), classifier.runs
                    )
                )
        return response

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> bytes:  # type: ignore[override]  # noqa: N802, D102  a serialised ModelInferResponse
        return await self._infer(request, call_deadline(context))

    async def ModelStreamInfer(  # type: ignore[override]  # noqa: N802, D102
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[bytes | pb.ModelStreamInferResponse]:
        deadline = call_deadline(context)
        # In the order they came in, as Triton does: its clients may send no ids.
        answered = stream.answers(
            request_iterator, lambda request: self._stream_answer(request, deadline), in_order=True
        )
        async with aclosing(answered):
            async for response in answered:
                yield response

    async def RepositoryIndex(  # noqa: N802, D102
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        del context
        _check_repository(request.repository_name)
        return catalog.encode_index(await self._repository.index(), only_ready=request.ready)

    async def RepositoryModelLoad(  # noqa: N802, D102
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        del context
        _check_repository(request.repository_name)
        for name in request.parameters:
            raise InvalidRequestError(
                f"parameters[{name[:100]!r}]: expected none, a model is loaded as its folder has it"
            )
        await self._repository.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802, D102
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        del context
        _check_repository(request.repository_name)
        # The parameter unload_dependents may come: no model here depends on another.
        await self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    # Declared in the protocol, and not had here.
    SystemSharedMemoryStatus = _unimplemented("SystemSharedMemoryStatus")
    SystemSharedMemoryRegister = _unimplemented("SystemSharedMemoryRegister")
    SystemSharedMemoryUnregister = _unimplemented("SystemSharedMemoryUnregister")
    CudaSharedMemoryStatus = _unimplemented("CudaSharedMemoryStatus")
    CudaSharedMemoryRegister = _unimplemented("CudaSharedMemoryRegister")
    CudaSharedMemoryUnregister = _unimplemented("CudaSharedMemoryUnregister")
    TraceSetting = _unimplemented("TraceSetting")
    LogSettings = _unimplemented("LogSettings")

    def _versions(self, name: str) -> list[str]:
        """Return the versions of a model that answer."""
        return [
            entry.version
            for entry in self._repository.entries()
            if entry.name == name and entry.state is ModelState.READY
        ]

    async def _infer(
        self, request: pb.ModelInferRequest, deadline: float | None, *, in_stream: bool = False
    ) -> bytes:
        """Return the serialised answer: a ModelInferResponse, or `in_stream` the message around it."""
        with self._repository.lease(_named(request.model_name), request.model_version) as classifier:
            predictor = classifier.predictor
            try:
                command = decode_infer_request(
                    request,
                    predictor.signature,
                    takes_images=predictor.takes_images,
                    max_samples=self._max_samples,
                )
            except InvalidRequestError as error:
                predictor.refused(error)
                raise
            if command.timeout is not None:
                deadline = sooner(deadline, command.timeout)
            tensors = await predictor.predict(command.inputs, outputs=command.outputs, deadline=deadline)
        steps = encode_infer_response(
            request,
            model=classifier.spec.name,
            version=classifier.version,
            tensors=tensors,
            in_stream=in_stream,
        )
        return await classifier.side.run(steps, seconds=encode_seconds(tensors), deadline=deadline)

    async def _stream_answer(
        self, request: pb.ModelInferRequest, deadline: float | None
    ) -> bytes | pb.ModelStreamInferResponse:
        """Return the answer to one request of a stream, its error included."""
        try:
            return await self._infer(request, deadline, in_stream=True)
        except ServingError as error:
            return pb.ModelStreamInferResponse(
                error_message=str(without_frames(error)), infer_response=pb.ModelInferResponse(id=request.id)
            )


def _named(name: str) -> str:
    """Return the name of a model, which must be given even when there is only one."""
    if not name:
        raise InvalidRequestError("name: expected the name of a model, got none")
    return name


def _check_repository(name: str) -> None:
    if name:
        raise InvalidRequestError(
            f"repository_name: expected none, there is one repository, got {name[:100]!r}"
        )
