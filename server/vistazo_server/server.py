"""The composition root: build, start, wait for the stop, drain, close in reverse."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast
from wsgiref.simple_server import WSGIServer

import grpc.aio
import onnxruntime
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from vistazo_proto import classification_pb2_grpc, open_inference_pb2_grpc
from vistazo_server.access import Tokens
from vistazo_server.classification import ClassificationServicer
from vistazo_server.cpu import cpu_budget
from vistazo_server.device import DeviceScheduler
from vistazo_server.engine import Engine
from vistazo_server.errors import StartupError
from vistazo_server.folder import RepositoryFolder
from vistazo_server.health import LIVENESS, OPEN_INFERENCE_SERVICE, SERVER_WIDE, ServingStatus
from vistazo_server.interceptors import RpcInterceptor
from vistazo_server.listener import Limits, bind, server_options
from vistazo_server.loader import ModelLoader
from vistazo_server.loop_watch import watch_loop
from vistazo_server.metrics import Metrics
from vistazo_server.open_inference import OpenInferenceServicer
from vistazo_server.poller import RepositoryPoller
from vistazo_server.preprocess_pool import PreprocessPool
from vistazo_server.repository import ModelRepository
from vistazo_server.session import choose_device
from vistazo_server.settings import Settings
from vistazo_server.side_thread import SideThread
from vistazo_server.tls import Certificates
from vistazo_server.tracing import Tracing

log = structlog.get_logger(__name__)

# After the last answer was handed to grpc: time for it to leave before connections are cut.
LINGER_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A started server, and what tests want to look at."""

    port: int
    """Of the gRPC server."""
    metrics_port: int | None
    metrics: Metrics
    repository: ModelRepository
    loading: asyncio.Task[None]
    """Done when every model is READY or FAILED; raises StartupError when all failed and none can come."""
    is_ready: asyncio.Event
    """Set when the server's own health became SERVING."""


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then finish the requests in flight and return.

    Raises StartupError when an address is taken, or there is no model to serve.
    """
    async with running(settings) as server:
        stopped = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({stopped, server.loading}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await server.loading  # raises StartupError when no model could be loaded
            ready = asyncio.create_task(server.is_ready.wait(), name="ready")
            await asyncio.wait({stopped, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                log.info("ready", address=settings.listen, port=server.port)
            ready.cancel()
        await stopped
        log.info("draining")
    log.info("stopped")


@asynccontextmanager
async def running(settings: Settings, *, tracing: Tracing | None = None) -> AsyncIterator[RunningServer]:
    """Hold a started server: it answers health at once and each model as soon as it is loaded.

    Spans go to `tracing`, or else where the settings say.
    """
    metrics = Metrics(CollectorRegistry())
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=metrics.registry)
    status = ServingStatus(metrics)

    async with AsyncExitStack() as stack:
        metrics_port = _start_metrics(settings.metrics_listen, metrics.registry, stack)
        watching = asyncio.create_task(watch_loop(metrics.loop_delay.observe), name="watch-loop")
        stack.push_async_callback(_cancelled, watching)
        device = choose_device(settings.device, allow_cpu_fallback=settings.allow_cpu_fallback)
        metrics.set_build_info(onnxruntime=onnxruntime.__version__, device=device)
        threads = settings.threads or max(cpu_budget() // settings.instances, 1)
        pool = PreprocessPool(
            threads=settings.preprocess_threads or cpu_budget(),
            limit=settings.queue_limit,
            # The largest that is allowed: who may send one may fill the memory that it takes.
            pixels_at_once=int(settings.max_image_megapixels * 1e6),
        )
        stack.callback(pool.close)
        metrics.preprocess_pending.set_function(lambda: pool.pending)
        engine = Engine(instances=settings.instances)
        stack.callback(engine.close)
        side = SideThread()
        stack.callback(side.close)
        scheduler = await stack.enter_async_context(
            DeviceScheduler(instances=settings.instances, on_failure=status.broken)
        )
        loader = ModelLoader(
            settings=settings,
            device=device,
            threads=threads,
            metrics=metrics,
            pool=pool,
            engine=engine,
            scheduler=scheduler,
            side=side,
        )
        repository = await stack.enter_async_context(
            ModelRepository(
                settings.models,
                load_model=loader.open,
                policy_for=settings.policy_for,
                observer=status,
                explicit=settings.model_control == "explicit",
            )
        )
        _warn_of_exposure(settings)
        grpc_server = grpc.aio.server(options=server_options(_limits(settings)))
        tokens = None if settings.tokens is None else Tokens(settings.tokens)
        if tracing is None and settings.otlp_endpoint:
            tracing = Tracing.to_collector(settings.otlp_endpoint)
        if tracing is not None:
            stack.push_async_callback(tracing.close)
        interceptor = RpcInterceptor(
            metrics,
            grpc_server,
            tokens=tokens,
            tracing=tracing,
            tells_every_id=settings.log_level == "debug",
        )
        # Has what the generated functions use of a server.
        registrar = cast("grpc.aio.Server", interceptor)
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(
            ClassificationServicer(repository, max_images=settings.max_images_per_request),
            registrar,
        )
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            OpenInferenceServicer(
                repository,
                is_live=lambda: status.servicer.is_serving(LIVENESS),
                is_ready=lambda: status.servicer.is_serving(OPEN_INFERENCE_SERVICE),
                max_samples=settings.max_images_per_request,
            ),
            registrar,
        )
        health_pb2_grpc.add_HealthServicer_to_server(status.servicer, registrar)
        if settings.answers_reflection:
            names = (*SERVER_WIDE[1:], health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
                reflection.aio.ReflectionServicer(names), registrar
            )
        certificates = _certificates(settings)
        if certificates is not None:
            metrics.watch_certificate(lambda: certificates.expires_at)
        port = bind(grpc_server, settings.listen, certificates)

        _find_models(settings, repository)
        await grpc_server.start()
        log.info(
            "listening",
            address=settings.listen,
            port=port,
            tls=settings.tls_mode,
            tokens=settings.tokens is not None,
            metrics_port=metrics_port,
            device=device,
            threads=threads,
        )

        loading = asyncio.create_task(_load(settings, repository, status), name="load-models")
        if settings.model_control == "poll":
            polling = asyncio.create_task(
                _poll(settings, repository, metrics, loading), name="poll-repository"
            )
            stack.push_async_callback(_cancelled, polling)
        stack.push_async_callback(_drain, settings, grpc_server, status, interceptor, repository, loading)
        yield RunningServer(
            port=port,
            metrics_port=metrics_port,
            metrics=metrics,
            repository=repository,
            loading=loading,
            is_ready=status.is_ready,
        )


def _limits(settings: Settings) -> Limits:
    return Limits(
        message_bytes=settings.max_message_mb << 20,
        connections=settings.max_connections,
        streams=settings.max_streams_per_connection,
        age_seconds=settings.max_connection_age_seconds,
        age_grace_seconds=settings.max_connection_age_grace_seconds,
    )


def _certificates(settings: Settings) -> Certificates | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def _warn_of_exposure(settings: Settings) -> None:
    """Say what an operator might not have meant."""
    identifies = settings.tokens is not None or settings.tls_client_ca is not None
    if settings.model_control == "explicit" and settings.is_reachable and not identifies:
        log.warning("model_control_open", meaning="whoever reaches this address can load and unload models")
    if not settings.is_exposed:
        return
    if settings.tokens is not None:
        log.warning("tokens_in_clear", meaning="without TLS, whoever can listen in can use them")
    if settings.reflection is None:
        log.info(
            "reflection_off",
            reason="plaintext on an address that others can reach",
            to_have_it="--reflection",
        )


def _find_models(settings: Settings, repository: ModelRepository) -> None:
    """Find what is to be loaded at the start. Raises StartupError."""
    # With the others, models may come later.
    repository.find(settings.models_to_load, may_be_empty=settings.model_control != "none")
    try:
        settings.check_models(RepositoryFolder(settings.models).scan())
    except StartupError as error:
        if settings.model_control == "none":
            raise
        log.warning("model_settings_unused", reason=str(error))


async def _load(settings: Settings, repository: ModelRepository, status: ServingStatus) -> None:
    """Load the models of the start, then say that the server is ready, or will be with its first model."""
    waits = settings.model_control == "poll"
    try:
        await repository.start()
    except StartupError as error:
        if settings.model_control == "none":
            raise
        # With the others a model can still come: that is what the server stays up for.
        log.error("nothing_loaded", reason=str(error), meaning="not ready until a model serves")  # noqa: TRY400
        waits = True
    status.ready(once_a_model_serves=waits)


async def _poll(
    settings: Settings, repository: ModelRepository, metrics: Metrics, loading: asyncio.Task[None]
) -> None:
    """Let the models follow the repository, once those of the start are loaded."""
    await asyncio.wait({loading})
    poller = RepositoryPoller(
        RepositoryFolder(settings.models), repository, on_readable=metrics.repository_readable.set
    )
    await poller.run(settings.poll_seconds)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _drain(
    settings: Settings,
    grpc_server: grpc.aio.Server,
    status: ServingStatus,
    interceptor: RpcInterceptor,
    repository: ModelRepository,
    loading: asyncio.Task[None],
) -> None:
    """Stop taking requests, in an order that loses none that was accepted."""
    loading.cancel()
    await repository.stop_changes()
    await asyncio.gather(loading, return_exceptions=True)
    # From here on every service says NOT_SERVING, whatever is set later.
    status.servicer.drain()
    await asyncio.sleep(settings.drain_delay_seconds)
    interceptor.end_streams()
    if settings.drain_delay_seconds:
        await interceptor.refuse_new()
    stopping = asyncio.create_task(grpc_server.stop(settings.grace_seconds))
    idle = asyncio.create_task(interceptor.wait_until_idle())
    await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    # Who watches the health would otherwise hold the server for the whole grace. A second stop only ever
    # shortens the first; the last answers are on their way by now and need a moment to leave.
    await grpc_server.stop(min(settings.grace_seconds, LINGER_SECONDS))
    await stopping


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
