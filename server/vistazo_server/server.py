"""The composition root: build, start, wait for the stop, drain, close in reverse."""

import asyncio
import functools
import socket
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

import grpc
import grpc.aio
import onnxruntime
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from vistazo_proto import classification_pb2, classification_pb2_grpc
from vistazo_server.batcher import DynamicBatcher
from vistazo_server.catalog import CatalogEntry, ModelState
from vistazo_server.classification import ClassificationServicer
from vistazo_server.classifier import Classifier, PreprocessPool
from vistazo_server.cpu import cpu_budget
from vistazo_server.device import DeviceScheduler
from vistazo_server.errors import StartupError
from vistazo_server.interceptors import RpcInterceptor
from vistazo_server.manifest import ModelSpec
from vistazo_server.metrics import Metrics, ModelMetrics
from vistazo_server.model import BatchCeiling, OnnxModel
from vistazo_server.preprocess import Preprocessor
from vistazo_server.repository import LoadedModel, ModelRepository
from vistazo_server.session import Device, choose_device
from vistazo_server.settings import Settings

log = structlog.get_logger(__name__)

CLASSIFICATION_SERVICE: Final = classification_pb2.DESCRIPTOR.services_by_name[
    "ClassificationService"
].full_name

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A started server, and what tests want to look at."""

    port: int
    """Of the gRPC server."""
    metrics_port: int | None
    metrics: Metrics
    repository: ModelRepository
    loading: asyncio.Task[None]
    """Done when every model is READY or FAILED; raises StartupError when all failed."""


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then finish the requests in flight and return.

    Raises StartupError when an address is taken, or there is no model to serve.
    """
    async with running(settings) as server:
        stopped = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({stopped, server.loading}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await server.loading  # raises StartupError when no model could be loaded
            log.info("ready", address=settings.listen, port=server.port)
        await stopped
        log.info("draining")
    log.info("stopped")


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[RunningServer]:
    """Hold a started server: it answers health at once and each model as soon as it is loaded."""
    metrics = Metrics(CollectorRegistry())
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=metrics.registry)
    health_servicer = health.aio.HealthServicer()
    health_updates: set[asyncio.Task[None]] = set()

    def set_health(service: str, *, serving: bool) -> None:
        task = asyncio.create_task(health_servicer.set(service, _SERVING if serving else _NOT_SERVING))
        health_updates.add(task)
        task.add_done_callback(health_updates.discard)

    def on_state(entry: CatalogEntry) -> None:
        serving = entry.state is ModelState.READY
        metrics.model_ready.labels(entry.name, entry.version).set(serving)
        set_health(entry.name, serving=serving)

    async with AsyncExitStack() as stack:
        metrics_port = _start_metrics(settings.metrics_listen, metrics.registry, stack)
        device = choose_device(settings.device, allow_cpu_fallback=settings.allow_cpu_fallback)
        metrics.set_build_info(onnxruntime=onnxruntime.__version__, device=device)
        budget = cpu_budget()
        pool = PreprocessPool(threads=settings.preprocess_threads or budget, limit=settings.queue_limit)
        stack.callback(pool.close)
        engine = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        stack.callback(engine.shutdown)
        scheduler = await stack.enter_async_context(DeviceScheduler())
        repository = await stack.enter_async_context(
            ModelRepository(
                settings.models,
                load_model=functools.partial(
                    _open_model,
                    settings,
                    device,
                    settings.threads or budget,
                    metrics,
                    pool,
                    engine,
                    scheduler,
                ),
                on_state=on_state,
            )
        )
        grpc_server = grpc.aio.server(
            interceptors=[RpcInterceptor(metrics)], options=_channel_options(settings.max_message_mb << 20)
        )
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(
            ClassificationServicer(
                repository,
                max_images=settings.max_images_per_request,
                default_deadline=settings.default_deadline_ms / 1000,
            ),
            grpc_server,
        )
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, grpc_server)
        if settings.reflection:
            names = (CLASSIFICATION_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, grpc_server)
        port = _bind(grpc_server, settings.listen)

        repository.find()
        set_health("", serving=False)
        set_health(CLASSIFICATION_SERVICE, serving=False)
        await grpc_server.start()
        log.info(
            "listening",
            address=settings.listen,
            port=port,
            metrics_port=metrics_port,
            device=device,
            threads=settings.threads or budget,
        )

        async def load() -> None:
            await repository.load()
            set_health("", serving=True)
            set_health(CLASSIFICATION_SERVICE, serving=True)

        loading = asyncio.create_task(load(), name="load-models")
        stack.push_async_callback(_drain, settings, grpc_server, health_servicer, loading)
        yield RunningServer(
            port=port, metrics_port=metrics_port, metrics=metrics, repository=repository, loading=loading
        )


async def _drain(
    settings: Settings,
    grpc_server: grpc.aio.Server,
    health_servicer: health.aio.HealthServicer,
    loading: asyncio.Task[None],
) -> None:
    """Stop taking requests, in an order that loses none that was accepted."""
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    # From here on every service says NOT_SERVING, whatever is set later.
    await health_servicer.enter_graceful_shutdown()
    await asyncio.sleep(settings.drain_delay_seconds)
    await grpc_server.stop(settings.grace_seconds)


@asynccontextmanager
async def _open_model(
    settings: Settings,
    device: Device,
    threads: int,
    metrics: Metrics,
    pool: PreprocessPool,
    engine: ThreadPoolExecutor,
    scheduler: DeviceScheduler,
    path: Path,
    spec: ModelSpec,
    version: str,
) -> AsyncIterator[LoadedModel]:
    """Hold one model version, ready to answer; leaving finishes its requests and frees it."""
    started = time.perf_counter()
    wanted = settings.max_batch_size or spec.max_batch_size
    model = OnnxModel(
        path,
        spec,
        engine=engine,
        device=device,
        allow_cpu_fallback=settings.allow_cpu_fallback or settings.device == "auto",
        threads=threads,
        batch_ceiling=BatchCeiling(min(wanted, spec.max_batch_size), is_fixed=settings.max_batch_size > 0),
    )
    model_metrics = ModelMetrics(metrics, spec.name, version)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(model.close)
        await model.load()
        batcher = await stack.enter_async_context(
            DynamicBatcher(
                model.run,
                device=scheduler,
                max_batch_size=model.max_batch_size,
                queue_limit=settings.queue_limit,
                queue_delay=settings.queue_delay_ms / 1000,
                latency=model.latency,
                observer=model_metrics,
            )
        )
        metrics.model_load_seconds.labels(spec.name, version).set(time.perf_counter() - started)
        model_metrics.watch_queue(
            limit=batcher.queue_limit,
            samples=lambda: batcher.queued_samples,
            in_flight=lambda: batcher.in_flight,
            predicted_wait=lambda: batcher.predicted_seconds(1),
        )
        model_metrics.watch_latency(
            {size: functools.partial(model.latency.seconds, size) for size in model.latency.table()}
        )
        yield LoadedModel(
            classifier=Classifier(
                spec,
                version,
                preprocessor=Preprocessor(
                    spec.preprocess, max_pixels=int(settings.max_image_megapixels * 1e6)
                ),
                pool=pool,
                batcher=batcher,
                metrics=model_metrics,
            ),
            max_batch_size=model.max_batch_size,
            device=model.device,
            latencies=model.latency.table,
        )


def _channel_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # A second server on the same port is a mistake to be told of, not to share requests with.
        ("grpc.so_reuseport", 0),
        # Clients that keep idle connections alive ping every 30 s; stricter, they are sent away with
        # too_many_pings.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


def _bind(grpc_server: grpc.aio.Server, address: str) -> int:
    """Return the port that the server was bound to. Raises StartupError."""
    host, _, port = address.rpartition(":")
    try:
        # grpc's core would write its own account of a failure to stderr; asked first, it never comes to that.
        for family, kind, protocol, _, target in socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
        return grpc_server.add_insecure_port(address)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "grpc could not bind it"
        raise StartupError(f"cannot listen on {address}: {reason}; choose another with --listen") from error


def _start_metrics(address: str, registry: CollectorRegistry, stack: AsyncExitStack) -> int | None:
    """Serve the registry from its own thread until the stack closes; return the port, None without one."""
    if not address:
        return None
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise StartupError(
            f"cannot serve metrics on {address}: {error.strerror or error}; "
            "choose another with --metrics-listen"
        ) from error
    stack.callback(_stop_metrics, server, thread)
    return int(server.server_port)


def _stop_metrics(server: WSGIServer, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()
