"""ModelLoader: puts one model version together, from its file to the classifier that answers."""

import functools
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from vistazo_preprocessing.preprocessor import Preprocessor
from vistazo_server.artifact.manifest import ModelSpec
from vistazo_server.batching.batcher import DynamicBatcher
from vistazo_server.batching.device import DeviceScheduler
from vistazo_server.engine.batch_limit import BatchLimit
from vistazo_server.engine.engine import Engine
from vistazo_server.engine.onnx_model import OnnxModel
from vistazo_server.engine.session import Device
from vistazo_server.engine.tensors import Signature
from vistazo_server.inference.classifier import Classifier
from vistazo_server.inference.image_inputs import ImageInputs
from vistazo_server.inference.preprocess_pool import PreprocessPool
from vistazo_server.inference.side_thread import SideThread
from vistazo_server.repository.rollout import LoadedModel
from vistazo_server.telemetry.metrics import Metrics, ModelMetrics

log = structlog.get_logger(__name__)

# Largest batch that is tried of a model without a manifest.
MAX_BATCH_SIZE_UNCHECKED: Final = 32


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How one model is to be served."""

    allow_cpu_fallback: bool
    gpu_memory_bytes: int
    """Most memory of each session's arena; 0: no limit."""
    max_batch_size: int
    """0: what warm-up finds best."""
    slo_seconds: float
    """In which requests should be answered; 0: none."""
    queue_limit: int
    """Most samples that may wait."""
    queue_delay_seconds: float
    """Longest that an idle engine waits for a fuller batch."""
    default_deadline_seconds: float
    """Of a request whose caller sent none."""
    max_pixels: int
    """Of the largest image that is decoded."""
    decode_memory: int
    """Bytes that decoding an image may take."""


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """What all models of one device share, and how a model is built on it."""

    options_for: Callable[[str], ModelOptions]
    """Returns the options of a model by its name."""
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
        options = self.options_for(spec.name)
        metrics = ModelMetrics(self.metrics, spec.name, version)
        async with AsyncExitStack() as stack:
            model = self._model(path, spec, options)
            stack.push_async_callback(model.close)
            await model.load()
            batcher = await stack.enter_async_context(
                DynamicBatcher(
                    model.run,
                    device=self.scheduler,
                    max_batch_size=model.max_batch_size,
                    queue_limit=options.queue_limit,
                    queue_delay=options.queue_delay_seconds,
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
                    images=self._image_inputs(spec, options, batcher, metrics),
                    batcher=batcher,
                    metrics=metrics,
                    runs=model.runs,
                    side=self.side,
                    default_deadline=options.default_deadline_seconds,
                    output_labels=fitting_labels(spec, model.signature),
                ),
                max_batch_size=model.max_batch_size,
                one_by_one=model.one_by_one,
                device=model.device,
                latencies=model.latency.table,
            )

    def _image_inputs(
        self, spec: ModelSpec, options: ModelOptions, batcher: DynamicBatcher, metrics: ModelMetrics
    ) -> ImageInputs | None:
        if spec.image is None:
            return None
        return ImageInputs(
            Preprocessor(
                spec.image.preprocess, max_pixels=options.max_pixels, max_bytes=options.decode_memory
            ),
            pool=self.pool,
            check_admission=batcher.check_admission,
            on_failure=metrics.decode_failed,
        )

    def _model(self, path: Path, spec: ModelSpec, options: ModelOptions) -> OnnxModel:
        # Without a manifest nobody has checked any; warm-up finds out what is worth it.
        most = spec.max_batch_size or options.max_batch_size or MAX_BATCH_SIZE_UNCHECKED
        return OnnxModel(
            path,
            spec,
            engine=self.engine,
            device=self.device,
            allow_cpu_fallback=options.allow_cpu_fallback,
            threads=self.threads,
            gpu_memory=options.gpu_memory_bytes,
            batch_limit=BatchLimit(
                ceiling=min(options.max_batch_size or most, most),
                is_fixed=options.max_batch_size > 0,
                slo=options.slo_seconds,
            ),
        )


def fitting_labels(spec: ModelSpec, signature: Signature) -> dict[str, tuple[str, ...]]:
    """Return the labels of each output that has one for each of its classes; the others are told.

    A list that is too long or too short may be of other classes, and no label is better than a wrong one.
    """
    fitting = {}
    outputs = {output.name: output for output in signature.outputs}
    for name, labels in spec.output_labels:
        output = outputs.get(name)
        classes = math.prod(output.dims) if output is not None and output.is_fixed else None
        if output is None:
            reason = f"the graph has no output {name[:100]!r}; it has {', '.join(outputs)}"
        elif classes not in {None, len(labels)}:
            reason = f"{name!r} has {classes} classes, its label_filename has {len(labels)} labels"
        else:
            fitting[name] = labels
            continue
        log.warning("labels_unused", model=spec.name, reason=reason, meaning="its classes have no labels")
    return fitting
