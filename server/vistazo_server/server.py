"""The composition root: build, start, wait for the stop, drain, close in reverse."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import onnxruntime
import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from vistazo_preprocessing.spec import JpegDecoding
from vistazo_server.batching.device import DeviceScheduler
from vistazo_server.engine.cpu import cpu_budget
from vistazo_server.engine.engine import Engine
from vistazo_server.engine.memory import memory_limit
from vistazo_server.engine.session import choose_device
from vistazo_server.errors import StartupError
from vistazo_server.inference.preprocess_pool import PreprocessPool
from vistazo_server.inference.side_thread import SideThread
from vistazo_server.repository.folder import RepositoryFolder
from vistazo_server.repository.loader import ModelLoader, ModelOptions
from vistazo_server.repository.model_repository import ModelRepository
from vistazo_server.repository.poller import RepositoryPoller
from vistazo_server.rpc.door import GrpcDoor
from vistazo_server.rpc.health import ServingStatus
from vistazo_server.rpc.listener import Limits
from vistazo_server.rpc.tls import Certificates
from vistazo_server.rpc.tokens import Tokens
from vistazo_server.settings import Settings
from vistazo_server.telemetry.endpoint import metrics_endpoint
from vistazo_server.telemetry.loop_watch import watch_loop
from vistazo_server.telemetry.metrics import Metrics
from vistazo_server.telemetry.tracing import Tracing

# Of the memory that there is, this much is for large images while they are decoded. Of 1 GiB it is enough for
# a photograph of 50 megapixels that has to be turned, and leaves 590 MiB for a model and what waits.
DECODE_SHARE: Final = 0.42

log = structlog.get_logger(__name__)


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
        metrics_port = (
            stack.enter_context(metrics_endpoint(settings.metrics_listen, metrics.registry))
            if settings.metrics_listen
            else None
        )
        watching = asyncio.create_task(watch_loop(metrics.loop_delay.observe), name="watch-loop")
        stack.push_async_callback(_cancelled, watching)
        device = choose_device(settings.device, allow_cpu_fallback=settings.allow_cpu_fallback)
        metrics.set_build_info(onnxruntime=onnxruntime.__version__, device=device)
        threads = settings.threads or max(cpu_budget() // settings.instances, 1)
        decode_memory = settings.decode_memory_mb << 20 or int(memory_limit() * DECODE_SHARE)
        pool = PreprocessPool(
            threads=settings.preprocess_threads or cpu_budget(),
            limit=settings.queue_limit,
            memory=decode_memory,
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
            options_for=lambda name: _model_options(settings.for_model(name), decode_memory),
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
                jpeg_decoding_for=lambda name: JpegDecoding(settings.for_model(name).jpeg_decoding),
                observer=status,
                explicit=settings.model_control == "explicit",
            )
        )
        _warn_of_exposure(settings)
        if tracing is None and settings.otlp_endpoint:
            tracing = Tracing.to_collector(settings.otlp_endpoint)
        if tracing is not None:
            stack.push_async_callback(tracing.close)
        certificates = _certificates(settings)
        if certificates is not None:
            metrics.watch_certificate(lambda: certificates.expires_at)
        door = GrpcDoor(
            repository,
            status,
            metrics,
            address=settings.listen,
            limits=_limits(settings),
            certificates=certificates,
            tokens=None if settings.tokens is None else Tokens(settings.tokens),
            tracing=tracing,
            max_samples=settings.max_images_per_request,
            answers_reflection=settings.answers_reflection,
            tells_every_id=settings.log_level == "debug",
        )

        _find_models(settings, repository)
        await door.start()
        log.info(
            "listening",
            address=settings.listen,
            port=door.port,
            tls=settings.tls_mode,
            tokens=settings.tokens is not None,
            metrics_port=metrics_port,
            device=device,
            threads=threads,
            decode_memory_mb=decode_memory >> 20,
        )

        loading = asyncio.create_task(_load(settings, repository, status), name="load-models")
        if settings.model_control == "poll":
            polling = asyncio.create_task(
                _poll(settings, repository, metrics, loading), name="poll-repository"
            )
            stack.push_async_callback(_cancelled, polling)
        stack.push_async_callback(_drain, settings, door, status, repository, loading)
        yield RunningServer(
            port=door.port,
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


def _model_options(settings: Settings, decode_memory: int) -> ModelOptions:
    """Return what the loader needs of a model's settings."""
    return ModelOptions(
        allow_cpu_fallback=settings.allow_cpu_fallback or settings.device == "auto",
        gpu_memory_bytes=settings.gpu_memory_mb << 20,
        max_batch_size=settings.max_batch_size,
        slo_seconds=settings.slo_ms / 1000,
        queue_limit=settings.queue_limit,
        queue_delay_seconds=settings.queue_delay_ms / 1000,
        default_deadline_seconds=settings.default_deadline_ms / 1000,
        max_pixels=int(settings.max_image_megapixels * 1e6),
        decode_memory=decode_memory,
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
    door: GrpcDoor,
    status: ServingStatus,
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
    await door.close(says_so=settings.drain_delay_seconds > 0, grace_seconds=settings.grace_seconds)
