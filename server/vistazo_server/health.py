"""ServingStatus: grpc.health.v1 and the models' metrics, kept in step with the repository."""

import asyncio
from typing import Final

from grpc_health.v1 import health, health_pb2

from vistazo_server.catalog import CatalogEntry, ModelState
from vistazo_server.metrics import Metrics

_STATUS: Final = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}


class ServingStatus:
    """What the server tells of itself and its models: a service of the health protocol for each model's name.

    A model is SERVING while any version of it answers; which ones do is in the catalog.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.servicer = health.aio.HealthServicer()
        self._metrics = metrics
        self._updates: set[asyncio.Task[None]] = set()

    def set(self, service: str, *, serving: bool) -> None:
        """Set a service's health."""
        task = asyncio.create_task(self.servicer.set(service, _STATUS[serving]))
        self._updates.add(task)
        task.add_done_callback(self._updates.discard)

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
