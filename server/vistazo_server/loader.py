"""ModelLoader: puts one model version together, from its file to the classifier that answers."""

import functools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vistazo_server.batcher import DynamicBatcher
from vistazo_server.classifier import Classifier
from vistazo_server.device import DeviceScheduler
from vistazo_server.engine import Engine
from vistazo_server.image_inputs import ImageInputs
from vistazo_server.manifest import ModelSpec
from vistazo_server.metrics import Metrics, ModelMetrics
from vistazo_server.model import BatchLimit, OnnxModel
from vistazo_server.preprocess import Preprocessor
from vistazo_server.preprocess_pool import PreprocessPool
from vistazo_server.rollout import LoadedModel
from vistazo_server.session import Device
from vistazo_server.settings import Settings
from vistazo_server.side_thread import SideThread

# Largest batch that is tried of a model without a manifest.
MAX_BATCH_SIZE_UNCHECKED: Final = 32


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """What all models of one device share, and how a model is built on it."""

    settings: Settings
    device: Device
    threads: int
    """Of one inference on the CPU."""
    metrics: Metrics
    pool: PreprocessPool
    engine: Engine
    scheduler: DeviceScheduler
    side: SideThread

    @asynccontextmanager
    async def open(self, path: Path, spec: ModelSpec, version: str) -> AsyncIterator[LoadedModel]:
        """Hold one model version, ready to answer; leaving finishes its requests and frees it.

        Raises ModelLoadError.
        """
        started = time.perf_counter()
        settings = self.settings.for_model(spec.name)
        metrics = ModelMetrics(self.metrics, spec.name, version)
        async with AsyncExitStack() as stack:
            model = self._model(path, spec, settings)
            stack.push_async_callback(model.close)
            await model.load()
            batcher = await stack.enter_async_context(
                DynamicBatcher(
                    model.run,
                    device=self.scheduler,
                    max_batch_size=model.max_batch_size,
                    queue_limit=settings.queue_limit,
                    queue_delay=settings.queue_delay_ms / 1000,
                    latency=model.latency,
                    observer=metrics,
                )
            )
            metrics.loaded(seconds=time.perf_counter() - started)
            metrics.watch_queue(
                limit=batcher.queue_limit,
                samples=lambda: batcher.queued_samples,
                in_flight=lambda: batcher.in_flight,
                predicted_wait=lambda: batcher.predicted_seconds(1),
            )
            metrics.watch_latency(
                {size: functools.partial(model.latency.seconds, size) for size in model.latency.table()}
            )
            yield LoadedModel(
                classifier=Classifier(
                    spec,
                    version,
                    signature=model.signature,
                    images=self._image_inputs(spec, settings, batcher, metrics),
                    batcher=batcher,
                    metrics=metrics,
                    runs=model.runs,
                    side=self.side,
                    default_deadline=settings.default_deadline_ms / 1000,
                ),
                max_batch_size=model.max_batch_size,
                device=model.device,
                latencies=model.latency.table,
            )

    def _image_inputs(
        self, spec: ModelSpec, settings: Settings, batcher: DynamicBatcher, metrics: ModelMetrics
    ) -> ImageInputs | None:
        if spec.image is None:
            return None
        return ImageInputs(
            Preprocessor(spec.image.preprocess, max_pixels=int(settings.max_image_megapixels * 1e6)),
            pool=self.pool,
            check_admission=batcher.check_admission,
            on_failure=metrics.decode_failed,
        )

    def _model(self, path: Path, spec: ModelSpec, settings: Settings) -> OnnxModel:
        # Without a manifest nobody has checked any; warm-up finds out what is worth it.
        most = spec.max_batch_size or settings.max_batch_size or MAX_BATCH_SIZE_UNCHECKED
        return OnnxModel(
            path,
            spec,
            engine=self.engine,
            device=self.device,
            allow_cpu_fallback=settings.allow_cpu_fallback or settings.device == "auto",
            threads=self.threads,
            gpu_memory=settings.gpu_memory_mb << 20,
            batch_limit=BatchLimit(
                ceiling=min(settings.max_batch_size or most, most),
                is_fixed=settings.max_batch_size > 0,
                slo=settings.slo_ms / 1000,
            ),
        )
