"""Health (grpc.health.v1) and the models' metrics, kept in step with the repository."""

import asyncio
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vistazo_proto import classification_pb2, open_inference_pb2
from vistazo_server.repository.catalog import CatalogEntry, ModelState
from vistazo_server.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

LIVENESS: Final = "liveness"
"""Service that is SERVING as long as the process answers at all, also while it loads and drains: a supervisor
that restarts what is not alive asks for it. The empty service says whether the server is ready."""

CLASSIFICATION_SERVICE: Final = classification_pb2.DESCRIPTOR.services_by_name[
    "ClassificationService"
].full_name
OPEN_INFERENCE_SERVICE: Final = open_inference_pb2.DESCRIPTOR.services_by_name[
    "GRPCInferenceService"
].full_name
SERVER_WIDE: Final = ("", CLASSIFICATION_SERVICE, OPEN_INFERENCE_SERVICE)
"""The services whose health is that of the server: SERVING once every model is loaded or failed."""

RESERVED: Final = frozenset({LIVENESS, *SERVER_WIDE, health.SERVICE_NAME, reflection.SERVICE_NAME})
"""Names that mean the server or a service of it: a model that is called so has no health of its own."""

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Context = grpc.aio.ServicerContext[Any, Any]


class HealthServicer(health_pb2_grpc.HealthServicer):
    """The standard health service.

    Not grpc_health's own: there, when one of two watchers of a service leaves, the other is told of nothing
    any more (grpcio-health-checking 1.81).
    """

    def __init__(self) -> None:
        self._statuses: dict[str, Any] = {LIVENESS: _SERVING}
        self._changed = asyncio.Event()
        self._ends = False

    def set(self, service: str, *, serving: bool) -> None:
        """Set a service's health; while the server drains, or when it is broken, it stays NOT_SERVING."""
        self._statuses[service] = _SERVING if serving and not self._ends else _NOT_SERVING
        self._changed.set()
        self._changed = asyncio.Event()

    def is_serving(self, service: str) -> bool:
        """Return whether a service is SERVING now."""
        return bool(self._statuses.get(service) == _SERVING)

    def drain(self) -> None:
        """Set every service to NOT_SERVING for good, but for liveness."""
        self._ends = True
        for service in self._statuses:
            if service != LIVENESS:
                self.set(service, serving=False)

    def broken(self) -> None:
        """Set every service to NOT_SERVING for good, liveness too: only a new process can serve again."""
        self._ends = True
        for service in self._statuses:
            self.set(service, serving=False)

    async def Check(  # noqa: N802, D102  the .proto names and documents it
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no service of this name")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802, D102
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        last = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _UNKNOWN)
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            await changed.wait()


class ServingStatus:
    """What the server tells of itself and its models: a service of the health protocol for each model's name.

    A model is SERVING while any version of it answers; which ones do is in the catalog. The server itself is
    NOT_SERVING until `ready`. The names in RESERVED are the server's, whatever models are called.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.servicer = HealthServicer()
        self.is_ready = asyncio.Event()
        """Set when the server itself became SERVING for the first time."""
        self._metrics = metrics
        self._answering: set[str] = set()
        self._nameless: set[str] = set()
        """Models whose names mean something else to the health protocol."""
        self._awaits_a_model = False
        for service in SERVER_WIDE:
            self.set(service, serving=False)

    def set(self, service: str, *, serving: bool) -> None:
        """Set a service's health."""
        self.servicer.set(service, serving=serving)

    def ready(self, *, once_a_model_serves: bool) -> None:
        """Set the server's own services to SERVING: now, or as soon as any model serves."""
        self._awaits_a_model = once_a_model_serves and not self._answering
        if self._awaits_a_model:
            return
        for service in SERVER_WIDE:
            self.set(service, serving=True)
        self.is_ready.set()

    def broken(self) -> None:
        """Say for good that nothing will be answered any more, so that the process is replaced."""
        self.servicer.broken()

    def state_changed(self, entry: CatalogEntry, *, serving: bool) -> None:
        """Take note of an entry's new state; `serving`: whether any version of its model answers."""
        name = entry.name
        if entry.state is ModelState.UNAVAILABLE:
            self._metrics.forget_version(name, entry.version)
        else:
            ready = entry.state is ModelState.READY
            self._metrics.model_ready.labels(name, entry.version).set(ready)
        if name not in RESERVED:
            self.set(name, serving=serving)
        elif name not in self._nameless:
            self._nameless.add(name)
            log.warning("model_without_health", model=name, meaning="the server's own health has this name")
        if not serving:
            self._answering.discard(name)
            return
        self._answering.add(name)
        if self._awaits_a_model:
            self.ready(once_a_model_serves=True)

    def load_ended(self, model: str, *, ok: bool) -> None:
        """Count an attempt to load a version of `model`."""
        self._metrics.load_ended(model, ok=ok)

    def forgotten(self, model: str) -> None:
        """Drop what was counted of a model that is gone from the repository."""
        self._nameless.discard(model)
        self._metrics.forget_model(model)
