"""GrpcDoor: the gRPC port with all its services, opened and closed."""

import asyncio
from typing import Final, cast

import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from vistazo_proto import classification_pb2_grpc, open_inference_pb2_grpc
from vistazo_server.repository.model_repository import ModelRepository
from vistazo_server.rpc.classification.service import ClassificationServicer
from vistazo_server.rpc.health import LIVENESS, OPEN_INFERENCE_SERVICE, SERVER_WIDE, ServingStatus
from vistazo_server.rpc.interceptors import RpcInterceptor
from vistazo_server.rpc.listener import Limits, bind, server_options
from vistazo_server.rpc.open_inference.service import OpenInferenceServicer
from vistazo_server.rpc.tls import Certificates
from vistazo_server.rpc.tokens import Tokens
from vistazo_server.telemetry.metrics import Metrics
from vistazo_server.telemetry.tracing import Tracing

# After the last answer was handed to grpc: time for it to leave before connections are cut.
LINGER_SECONDS: Final = 1.0


class GrpcDoor:
    """The services of one gRPC port. Build it in a running event loop; it answers after `start`.

    `max_samples`: most images or samples in one request. `certificates`: None is plaintext. Raises
    StartupError when the address cannot be had.
    """

    def __init__(
        self,
        repository: ModelRepository,
        status: ServingStatus,
        metrics: Metrics,
        *,
        address: str,
        limits: Limits,
        certificates: Certificates | None,
        tokens: Tokens | None,
        tracing: Tracing | None,
        max_samples: int,
        answers_reflection: bool,
        tells_every_id: bool,
    ) -> None:
        self._server = grpc.aio.server(options=server_options(limits))
        self._interceptor = RpcInterceptor(
            metrics, self._server, tokens=tokens, tracing=tracing, tells_every_id=tells_every_id
        )
        # Has what the generated functions use of a server.
        registrar = cast("grpc.aio.Server", self._interceptor)
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(
            ClassificationServicer(repository, max_images=max_samples), registrar
        )
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            OpenInferenceServicer(
                repository,
                is_live=lambda: status.servicer.is_serving(LIVENESS),
                is_ready=lambda: status.servicer.is_serving(OPEN_INFERENCE_SERVICE),
                max_samples=max_samples,
            ),
            registrar,
        )
        health_pb2_grpc.add_HealthServicer_to_server(status.servicer, registrar)
        if answers_reflection:
            names = (*SERVER_WIDE[1:], health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
                reflection.aio.ReflectionServicer(names), registrar
            )
        self.port: Final = bind(self._server, address, certificates)

    async def start(self) -> None:
        """Answer from now on."""
        await self._server.start()

    async def close(self, *, says_so: bool, grace_seconds: float) -> None:
        """Take no more requests, and finish those that were accepted within `grace_seconds`.

        `says_so`: what comes meanwhile is answered with UNAVAILABLE, until callers have noticed.
        """
        self._interceptor.end_streams()
        if says_so:
            await self._interceptor.refuse_new()
        stopping = asyncio.create_task(self._server.stop(grace_seconds))
        idle = asyncio.create_task(self._interceptor.wait_until_idle())
        await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        # Who watches the health would otherwise hold the server for the whole grace. A second stop only ever
        # shortens the first; the last answers are on their way by now and need a moment to leave.
        await self._server.stop(min(grace_seconds, LINGER_SECONDS))
        await stopping
