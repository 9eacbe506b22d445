"""OnnxModel: one ONNX Runtime session, run on its device's engine thread."""

import asyncio
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import structlog
from numpy.typing import NDArray

from vistazo_server.batcher import Ran
from vistazo_server.engine import Engine
from vistazo_server.errors import ModelLoadError, one_line
from vistazo_server.latency import LatencyModel
from vistazo_server.manifest import ModelSpec
from vistazo_server.outputs import BatchOutputs, Row
from vistazo_server.session import PROVIDER, Device, create_session

log = structlog.get_logger(__name__)

# Timed runs of each batch size at warm-up; the shortest counts.
_WARM_UP_ROUNDS: Final = 3

_LONGEST_CPU_RUN_SECONDS: Final = 0.25

# A model that is faster than this for one sample runs on one thread: to wake the others for each operator
# takes longer than they save, and costs everybody else on the machine.
SMALL_RUN_SECONDS: Final = 0.001

# What is gained by less than this share is not worth the wait. Not more: each run also costs the wake-up of
# threads that do not spin, and with 5 % ResNet18 was served at 0.89 of its best throughput instead of 0.94.
KNEE_SHARE: Final = 0.02


@dataclass(frozen=True, slots=True)
class BatchLimit:
    """How large a batch may be, in samples."""

    ceiling: int
    is_fixed: bool
    """True: batches up to the ceiling. False: as large as the latency table says is worth it."""
    slo: float = 0.0
    """Seconds in which a request should be answered: a batch may take half, as a request may have to wait for
    one before it rides in the next. 0: no objective."""

    def choose(self, table: Mapping[int, float]) -> int:
        """Return the largest batch size to run, from a latency table."""
        if self.is_fixed:
            return self.ceiling
        if self.slo:
            return max((size for size, seconds in table.items() if seconds <= self.slo / 2), default=1)
        return knee(table)


class OnnxModel:
    """A loaded model.onnx. Open it with `load`, end it with `close`; neither is done by constructing.

    `engine` has one thread, which all models of the device share: their runs never overlap, and what is
    handed in follows without a gap. Two sessions that run at once on the same cores are slower than one
    after the other (microsoft/onnxruntime#17011).

    Input samples are uint8 H×W×C as the spec says; output rows are float32, one value a class.
    """

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        *,
        engine: Engine,
        device: Device,
        allow_cpu_fallback: bool,
        threads: int,
        batch_limit: BatchLimit,
    ) -> None:
        self._path = path
        self._spec = spec
        self._threads = threads
        self._allow_cpu_fallback = allow_cpu_fallback
        self._session: ort.InferenceSession | None = None
        self._engine = engine
        self._batch_limit = batch_limit
        self._sample_shape = (spec.preprocess.height, spec.preprocess.width, spec.preprocess.channels)
        self._buffer: NDArray[np.uint8] = np.zeros((0, *self._sample_shape), dtype=np.uint8)
        self.max_batch_size = batch_limit.ceiling
        self.device: Device = device
        self.latency = LatencyModel()

    async def load(self) -> None:
        """Start the session, check it against the spec, and warm up every batch bucket.

        Raises ModelLoadError when the file is no valid model, does not match, fails to run, or the device
        does not start.
        """
        # Not on the engine's thread: models that serve already go on serving.
        await asyncio.to_thread(self._load)

    async def run(self, take: Callable[[], Sequence[NDArray[Any]]]) -> Ran:
        """Run a batch on the engine's thread; `take()` gives its samples, 0 to max_batch_size."""
        # How many samples there will be is settled as the run begins; the largest batch is the safe guess.
        return await self._engine.run(
            functools.partial(self._run_taken, take),
            expected_seconds=self.latency.seconds(self.max_batch_size),
        )

    async def close(self) -> None:
        """Wait for the runs that were handed in, then free the session."""
        await self._engine.run(self._free, expected_seconds=0.0)

    def _free(self) -> None:
        self._session = None

    def _load(self) -> None:
        self._session = self._start_session()
        self._check_signature(self._session)
        if self.device == "cpu" and self._threads > 1 and self._is_small():
            self._threads = 1
            self._session = self._start_session()
        self._warm_up()

    def _start_session(self) -> ort.InferenceSession:
        session = create_session(self._path, device=self.device, threads=self._threads)
        # ONNX Runtime falls back to the CPU without a word (microsoft/onnxruntime#23372).
        provider = session.get_providers()[0]
        if provider == PROVIDER[self.device]:
            return session
        if not self._allow_cpu_fallback:
            raise ModelLoadError(
                f"the device {self.device} did not start, ONNX Runtime took {provider}: look for missing "
                "CUDA or cuDNN libraries, or allow the CPU with --allow-cpu-fallback"
            )
        log.warning("device_fallback", model=self._spec.name, wanted=self.device, got="cpu")
        self.device = "cpu"
        return create_session(self._path, device=self.device, threads=self._threads)

    def _check_signature(self, session: ort.InferenceSession) -> None:
        spec = self._spec
        height, width, channels = spec.preprocess.height, spec.preprocess.width, spec.preprocess.channels
        inputs = [(node.name, node.type, list(node.shape[1:])) for node in session.get_inputs()]
        outputs = [(node.name, node.type, list(node.shape[1:])) for node in session.get_outputs()]
        expected_inputs = [(spec.input_tensor, "tensor(uint8)", [height, width, channels])]
        expected_outputs = [(spec.output_tensor, "tensor(float)", [len(spec.labels)])]
        if (inputs, outputs) != (expected_inputs, expected_outputs):
            raise ModelLoadError(
                f"{self._path} does not match its manifest: expected {expected_inputs} → {expected_outputs}, "
                f"got {inputs} → {outputs}"
            )

    def _warm_up(self) -> None:
        """Measure batch sizes, and choose the largest that will be run where that was left open."""
        sizes = self._sizes_to_measure()
        for _ in range(_WARM_UP_ROUNDS):
            # Round by round, not size by size: a neighbour's busy second then spoils no size's figure.
            for size in sizes:
                self.latency.set(size, min(self._run_zeros(size), self.latency.seconds(size)))
        self.max_batch_size = self._batch_limit.choose(self.latency.table())
        # Every batch is put together here: no allocation on the hot path.
        self._buffer = np.zeros((self.max_batch_size, *self._sample_shape), dtype=np.uint8)

    def _is_small(self) -> bool:
        return min(self._run_zeros(1) for _ in range(1 + _WARM_UP_ROUNDS)) < SMALL_RUN_SECONDS

    def _sizes_to_measure(self) -> list[int]:
        """Run each batch size that may be served a first time, which is not timed well, and return them."""
        buckets = batch_buckets(self._batch_limit.ceiling)
        if self._batch_limit.is_fixed or self.device == "cuda":
            for size in reversed(buckets):  # the largest first: the arena is sized once
                self.latency.set(size, self._run_zeros(size))
            return buckets
        # On the CPU a batch is hardly faster than its samples one by one, and the large ones cost seconds
        # of start-up and hundreds of megabytes of arena. What runs this long would only keep others waiting.
        for at, size in enumerate(buckets):
            seconds = self._run_zeros(size)
            self.latency.set(size, seconds)
            if seconds > _LONGEST_CPU_RUN_SECONDS:
                return buckets[: at + 1]
        return buckets

    def _run_zeros(self, size: int) -> float:
        """Return the seconds of one run of `size` black images. Raises ModelLoadError."""
        batch = np.zeros((size, *self._sample_shape), dtype=np.uint8)
        started = time.monotonic()
        try:
            rows = self._run(batch)
        except Exception as error:
            raise ModelLoadError(
                f"{self._path} fails at batch {size}: {one_line(error, characters=300)}"
            ) from error
        if rows.shape != (size, len(self._spec.labels)):
            raise ModelLoadError(f"{self._path} answers batch {size} with shape {rows.shape}")
        return time.monotonic() - started

    def _run_taken(self, take: Callable[[], Sequence[NDArray[Any]]]) -> Ran:
        began = time.monotonic()
        samples = take()
        if not samples:
            return Ran(rows=(), began=began, seconds=0.0)
        batch = self._buffer[: len(samples)]
        for into, sample in enumerate(samples):  # np.stack looks at each of them first
            batch[into] = sample
        outputs = BatchOutputs((self._run(batch),))
        seconds = time.monotonic() - began
        return Ran([Row(outputs, index) for index in range(len(samples))], began, seconds)

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self._session is None:
            raise RuntimeError("the model is not loaded")
        rows: NDArray[np.float32] = self._session.run(
            [self._spec.output_tensor], {self._spec.input_tensor: batch}
        )[0]
        return rows


def batch_buckets(max_batch_size: int) -> list[int]:
    """Return the batch sizes that are warmed up: the powers of two below the maximum, and the maximum."""
    sizes = [1]
    while sizes[-1] * 2 < max_batch_size:
        sizes.append(sizes[-1] * 2)
    return sizes if max_batch_size == 1 else [*sizes, max_batch_size]


def knee(table: Mapping[int, float]) -> int:
    """Return the smallest batch size that reaches 98 % of the best throughput in a latency table.

    Beyond it, callers wait longer and nobody is served more.
    """
    best = max(size / seconds for size, seconds in table.items())
    return min(size for size, seconds in table.items() if size / seconds >= best * (1 - KNEE_SHARE))
