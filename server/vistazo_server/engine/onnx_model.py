"""OnnxModel: one ONNX Runtime session for each instance of the device, and where its runs are made."""

import asyncio
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, cast

import onnxruntime as ort
import structlog

from vistazo_server.artifact.manifest import ModelSpec
from vistazo_server.batching.batch import Ran
from vistazo_server.batching.latency import LatencyModel
from vistazo_server.engine.batch_limit import BatchLimit, batch_buckets
from vistazo_server.engine.bound_runner import BoundRunner
from vistazo_server.engine.engine import Engine
from vistazo_server.engine.graph import Sample, read_signature, with_sample_shape, zeros
from vistazo_server.engine.onnx_file import has_half_weights
from vistazo_server.engine.outputs import Row
from vistazo_server.engine.probe import Settled, batch_mates, settle, settle_images
from vistazo_server.engine.runner import GraphRunner, Runner, StackingRunner, has_one_fixed_input
from vistazo_server.engine.session import PROVIDER, Device, create_session
from vistazo_server.engine.tensors import FREE, Signature, TensorSpec, describe
from vistazo_server.errors import ModelLoadError, one_line
from vistazo_server.telemetry.statistics import RunStatistics

log = structlog.get_logger(__name__)

# Timed runs of each batch size at warm-up; the shortest counts.
_WARM_UP_ROUNDS: Final = 3

_LONGEST_CPU_RUN_SECONDS: Final = 0.5

# A model that is faster than this for one sample runs on one thread: to wake the others for each operator
# takes longer than they save, and costs everybody else on the machine.
SMALL_RUN_SECONDS: Final = 0.001

# A run on the CPU that is predicted to be shorter than this is made on the event loop itself. Handing it to a
# thread and back costs two switches of the interpreter's lock, which a busy loop is slow to give: LeNet with
# 64 callers did 1.08 times as many requests with its runs of up to 1 ms on the loop, 1.11 times with all.
INLINE_SECONDS: Final = 0.002

# Datatypes of an image model's input, and of the output that scores its classes.
_DATATYPES: Final = {"uint8": "UINT8", "float32": "FP32", "float16": "FP16"}
_SCORES: Final = ("FP32", "FP16", "FP64")


class OnnxModel:
    """A loaded model.onnx. Open it with `load`, end it with `close`; neither is done by constructing.

    `engine` has one thread unless several instances are wanted, and all models of the device share it: their
    runs never overlap, and what is handed in follows without a gap. Two sessions that run at once on the same
    cores are slower than one after the other (microsoft/onnxruntime#17011). With several instances, each has
    a session of its own: runs of one session share one CUDA stream (microsoft/onnxruntime#27089).

    Samples and rows are as `signature` says, which is known once it is loaded: of an image model's exports,
    uint8 H×W×C in, and float32 with one value a class out.
    """

    signature: Signature
    one_by_one: str
    """Why each sample runs alone; empty: batches are fine."""

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
        gpu_memory: int = 0,
    ) -> None:
        self._path = path
        self._spec = spec
        self._threads = threads
        self._allow_cpu_fallback = allow_cpu_fallback
        self._gpu_memory = gpu_memory
        # Those that nothing runs on at the moment: as many as the engine has threads, once it is loaded.
        self._runners: SimpleQueue[Runner[Any]] = SimpleQueue()
        self._is_loaded = self._is_closed = False
        # A sample to warm up with; none when nobody knows what the graph takes.
        self._zero: Sample | None = None
        self._engine = engine
        self._batch_limit = batch_limit
        self.max_batch_size = batch_limit.ceiling
        self.one_by_one = spec.one_by_one or ""
        self.device: Device = device
        self.latency = LatencyModel()
        self.runs = RunStatistics()

    async def load(self) -> None:
        """Start the session, check it against the spec, and warm up every batch bucket.

        Raises ModelLoadError when the file is no valid model, does not match, fails to run, or the device
        does not start.
        """
        # Not on the engine's thread: models that serve already go on serving.
        await asyncio.to_thread(self._load)

    async def run(self, take: Callable[[], Sequence[Sample]]) -> Ran:
        """Run a batch, a short one on the event loop; `take()` gives its samples, 0 to max_batch_size."""
        if self._may_run_inline and self._engine.is_idle:
            # It begins now, so who rides is settled now, and with that how long it takes.
            samples = take()
            if self.latency.seconds(len(samples)) < INLINE_SECONDS:
                return self._run_samples(samples)
            return await self._engine.run(functools.partial(self._run_samples, samples))
        return await self._engine.run(lambda: self._run_samples(take()))

    @property
    def _may_run_inline(self) -> bool:
        # While CUDA computes, the loop has better things to do; several instances run at once; and where a
        # request chooses the size of its samples, their number says nothing about the time of the run.
        return self.device == "cpu" and self._engine.instances == 1 and has_one_fixed_input(self.signature)

    async def close(self) -> None:
        """Wait for the runs that were handed in, then free the sessions.

        A load that is under way, whose caller was cancelled, ends at its next run.
        """
        self._is_closed = True
        # One of these waits for each runner: it gets none before the last run gave it back.
        for _ in range(self._engine.instances if self._is_loaded else 0):
            await self._engine.run(self._runners.get)
        self._is_loaded = False

    def _load(self) -> None:
        session = self._start_session()
        self.signature, self._zero, no_batch = self._settle(session)
        ceiling = _ceiling(self.signature, self._batch_limit.ceiling)
        self.one_by_one = self._spec.one_by_one or no_batch
        if not self.one_by_one and self._is_imported:
            # A manifest that says that batches are fine was written after a longer trial than this one.
            most = 1 if self._spec.one_by_one is not None else ceiling
            self.one_by_one = batch_mates(session, self.signature, self._zero, self._path, largest=most)
        if self.one_by_one:
            # Where nobody promised batches, as a batch of 1 is declared, it is no more than a note.
            say = log.warning if ceiling > 1 or no_batch else log.info
            say("samples_run_one_by_one", path=str(self._path), reason=self.one_by_one)
            ceiling = 1
        self._batch_limit = replace(self._batch_limit, ceiling=ceiling)
        runner = self._runner(session, self._batch_limit.ceiling)
        if self.device == "cpu" and self._threads > 1 and self._is_small(runner):
            self._threads = 1
            session = self._start_session()
            runner = self._runner(session, self._batch_limit.ceiling)
        self._warm_up(runner)
        # With buffers of the size of what will be run.
        runners = [self._runner(session, self.max_batch_size)]
        for _ in range(1, self._engine.instances):
            another = self._runner(self._start_session(), self.max_batch_size)
            if self._zero is not None:
                for size in reversed(batch_buckets(self.max_batch_size)):
                    self._run_zeros(another, self._zero, size)
            runners.append(another)
        for runner in runners:
            self._runners.put(runner)
        self._is_loaded = True

    @property
    def _is_imported(self) -> bool:
        # What we exported was tried in batches when it was; of what came from elsewhere nobody knows it.
        return self._spec.weights == "imported"

    def _settle(self, session: ort.InferenceSession) -> Settled:
        signature = self._checked_signature(session)
        if self._spec.image is None:
            return settle(session, signature, self._path)
        if self._is_imported and self._batch_limit.ceiling > 1:
            return settle_images(session, signature)
        return Settled(signature, zeros(signature)[0])

    def _runner(self, session: ort.InferenceSession, max_batch_size: int) -> Runner[Any]:
        return runner_for(session, self.signature, max_batch_size=max_batch_size, device=self.device)

    def _start_session(self) -> ort.InferenceSession:
        # It ends the process at some transformers in FP16 (ONNX Runtime 1.32).
        precision = self._spec.precision
        skip_layout_pass = precision == "fp16" or (not precision and has_half_weights(self._path))
        start = functools.partial(
            create_session,
            self._path,
            threads=self._threads,
            skip_layout_pass=skip_layout_pass,
            gpu_memory=self._gpu_memory,
        )
        session = start(device=self.device)
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
        return start(device=self.device)

    def _checked_signature(self, session: ort.InferenceSession) -> Signature:
        """Return what the graph takes and gives, once it is what the manifest says."""
        image, scores = self._spec.image, self._spec.scores
        if image is None or scores is None:
            return read_signature(session, self._path, image_input=None)
        signature = read_signature(session, self._path, image_input=image.input_tensor)
        shape = image.preprocess.input_shape
        values = self._scores_a_sample
        datatype = _DATATYPES[image.preprocess.dtype]
        takes = [spec for spec in signature.inputs if spec.name == image.input_tensor]
        gives = [spec for spec in signature.outputs if spec.name == scores.tensor]
        if (
            not signature.is_batched
            or len(signature.inputs) != 1
            or not takes
            or takes[0].datatype != datatype
            or not takes[0].fits(shape)
            or not gives
            or gives[0].datatype not in _SCORES
            or (gives[0].dims and gives[0].is_fixed and math.prod(gives[0].dims) != values)
        ):
            raise ModelLoadError(
                f"{self._path} does not match its manifest: expected the input {image.input_tensor!r}, "
                f"{datatype} {describe((FREE, *shape))}, and the output {scores.tensor!r}, FP32 "
                f"{describe((FREE, values))}; got {_listed(signature, signature.inputs)} and "
                f"{_listed(signature, signature.outputs)}"
            )
        return with_sample_shape(signature, image.input_tensor, shape)

    def _warm_up(self, runner: Runner[Any]) -> None:
        """Measure batch sizes, and choose the largest that will be run where that was left open."""
        self.max_batch_size = self._batch_limit.ceiling
        if self._zero is None:
            return
        sizes = self._sizes_to_measure(runner, self._zero)
        for _ in range(_WARM_UP_ROUNDS):
            # Round by round, not size by size: a neighbour's busy second then spoils no size's figure.
            for size in sizes:
                seconds = self._run_zeros(runner, self._zero, size)
                self.latency.set(size, min(seconds, self.latency.seconds(size)))
        self.max_batch_size = self._batch_limit.choose(self.latency.table())
        if self.device == "cpu":
            runner.give_memory_back(self._zero)
            self._run_zeros(runner, self._zero, self.max_batch_size)

    def _is_small(self, runner: Runner[Any]) -> bool:
        zero = self._zero
        # Where sizes are free, what is measured is only a guess at what will come.
        if zero is None or not all(spec.is_fixed for spec in self.signature.inputs):
            return False
        return min(self._run_zeros(runner, zero, 1) for _ in range(1 + _WARM_UP_ROUNDS)) < SMALL_RUN_SECONDS

    def _sizes_to_measure(self, runner: Runner[Any], zero: Sample) -> list[int]:
        """Run each batch size that may be served a first time, which is not timed well, and return them."""
        buckets = batch_buckets(self._batch_limit.ceiling)
        if self._batch_limit.is_fixed or self.device == "cuda":
            for size in reversed(buckets):  # the largest first: the arena is sized once
                self.latency.set(size, self._run_zeros(runner, zero, size))
            return buckets
        # On the CPU a batch is hardly faster than its samples one by one, and the large ones cost seconds
        # of start-up and hundreds of megabytes of arena. What runs this long would only keep others waiting.
        for at, size in enumerate(buckets):
            seconds = self._run_zeros(runner, zero, size)
            self.latency.set(size, seconds)
            if seconds > _LONGEST_CPU_RUN_SECONDS:
                return buckets[: at + 1]
        return buckets

    def _run_zeros(self, runner: Runner[Any], zero: Sample, size: int) -> float:
        """Return the seconds of one run of `size` samples of zeros. Raises ModelLoadError."""
        started = time.monotonic()
        try:
            if self._is_closed:
                raise RuntimeError("the model is not loaded")  # noqa: TRY301  nobody waits for it any more
            rows = runner.run([zero] * size)
        except Exception as error:
            raise ModelLoadError(
                f"{self._path} fails at batch {size}: {one_line(error, characters=300)}"
            ) from error
        seconds = time.monotonic() - started
        self._check_scores(cast("Row", rows[0]))  # samples of one shape fail together, by raising
        return seconds

    def _check_scores(self, row: Row) -> None:
        scores = self._spec.scores
        if self._spec.image is None or scores is None:
            return
        for spec, array in zip(self.signature.outputs, row.outputs.arrays, strict=True):
            if spec.name == scores.tensor and array[row.at].size != self._scores_a_sample:
                raise ModelLoadError(
                    f"{self._path} gives {array[row.at].size} values for each sample in {spec.name!r}, its "
                    f"manifest has {len(self._spec.labels)} labels"
                    + (" and says that it is binary" if scores.is_binary else "")
                )

    @property
    def _scores_a_sample(self) -> int:
        scores = self._spec.scores
        return 1 if scores is not None and scores.is_binary else len(self._spec.labels)

    def _run_samples(self, samples: Sequence[Sample]) -> Ran:
        began = time.monotonic()
        if not samples:
            return Ran(rows=(), began=began, seconds=0.0)
        # There is one for each thread of the engine.
        runner = self._runners.get_nowait()
        try:
            rows = runner.run(samples, self.runs)
        finally:
            self._runners.put(runner)
        return Ran(
            rows=rows,
            began=began,
            seconds=time.monotonic() - began,
            has_failures=runner.fails_in_parts and any(isinstance(row, Exception) for row in rows),
        )


def runner_for(
    session: ort.InferenceSession, signature: Signature, *, max_batch_size: int, device: Device
) -> Runner[Any]:
    """Return the fastest runner that the signature allows on `device`."""
    if not has_one_fixed_input(signature):
        return GraphRunner(session, signature)
    if device == "cpu":
        return StackingRunner(session, signature, max_batch_size=max_batch_size)
    return BoundRunner(session, signature, max_batch_size=max_batch_size, device=device)


def _ceiling(signature: Signature, ceiling: int) -> int:
    """Return the most samples of one batch, as far as the graph allows."""
    if not signature.is_batched:
        return 1
    return min(ceiling, signature.fixed_batch or ceiling)


def _listed(signature: Signature, specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name!r} {spec.datatype} {describe(signature.shape(spec))}" for spec in specs)
