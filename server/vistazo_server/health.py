"""Health (grpc.health.v1) and the models' metrics, kept in step with the repository."""

import asyncio
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vistazo_server.catalog import CatalogEntry, ModelState
from vistazo_server.metrics import Metrics

LIVENESS: Final = "liveness"
"""Service that is SERVING as long as the process answers at all, also while it loads and drains: a supervisor
that restarts what is not alive asks for it. The empty service says whether the server is ready."""

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
        self._draining = False

    def set(self, service: str, *, serving: bool) -> None:
        """Set a service's health; while the server drains it stays NOT_SERVING."""
        self._statuses[service] = _SERVING if serving and not self._draining else _NOT_SERVING
        self._changed.set()
        self._changed = asyncio.Event()

    def is_serving(self, service: str) -> bool:
        """Return whether a service is SERVING now."""
        return bool(self._statuses.get(service) == _SERVING)

    def drain(self) -> None:
        """Set every service to NOT_SERVING for good, but for liveness."""
        self._draining = True
        for service in self._statuses:
            if service != LIVENESS:
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

    A model is SERVING while any version of it answers; which ones do is in the catalog.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.servicer = HealthServicer()
        self._metrics = metrics

    def set(self, service: str, *, serving: bool) -> None:
        """Set a service's health."""
        self.servicer.set(service, serving=serving)

    def state_changed(self, entry: CatalogEntry, *, serving: bool) -> None:
        """Take note of an entry's new state; `serving`: whether any version of its model answers."""
        if entry.state is ModelState.UNAVAILABLE:
            self._metrics.forget_version(entry.name, entry.version)
        else:
            ready = entry.state is ModelState.READY
            self._metrics.model_ready.labels(entry.name, entry.version).set(ready)
        self.set(entry.name, serving=serving)

    def load_ended(self, model: str, *, ok: bool) -> None:
        """Count an attempt to load a version of `model`."""
        self._metrics.load_ended(model, ok=ok)

    def forgotten(self, model: str) -> None:
        """Drop what was counted of a model that is gone from the repository."""
        self._metrics.forget_model(model)
