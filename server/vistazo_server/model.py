"""OnnxModel: one ONNX Runtime session, run on its device's engine thread."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnxruntime as ort
import structlog
from numpy.typing import NDArray

from vistazo_server.batcher import Ran
from vistazo_server.errors import ModelLoadError, StartupError
from vistazo_server.latency import LatencyModel
from vistazo_server.manifest import ModelSpec

log = structlog.get_logger(__name__)

Device = Literal["cpu", "cuda"]

_PROVIDER: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# cuDNN's exhaustive search times every algorithm for each new shape, 0.3 to 1.3 s a time, and a dynamic
# batcher makes new shapes all day; the heuristic picks nearly as well at once (PaddleOCR#5057).
_CUDA_OPTIONS: Final = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}

# Runs of one batch size at warm-up: enough for a stable minimum, but a slow network must not hold up the
# start.
_WARM_UP_RUNS: Final = 5
_WARM_UP_SECONDS: Final = 0.5


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
        engine: Executor,
        device: Device,
        allow_cpu_fallback: bool,
        threads: int,
        max_batch_size: int,
    ) -> None:
        self._path = path
        self._spec = spec
        self._threads = threads
        self._allow_cpu_fallback = allow_cpu_fallback
        self.max_batch_size = max_batch_size
        self._session: ort.InferenceSession | None = None
        self._engine = engine
        shape = (max_batch_size, spec.preprocess.height, spec.preprocess.width, spec.preprocess.channels)
        # Every batch is put together here: no allocation on the hot path.
        self._buffer: NDArray[np.uint8] = np.zeros(shape, dtype=np.uint8)
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
        return await asyncio.get_running_loop().run_in_executor(self._engine, self._run_taken, take)

    async def close(self) -> None:
        """Wait for the runs that were handed in, then free the session."""
        await asyncio.get_running_loop().run_in_executor(self._engine, self._free)

    def _free(self) -> None:
        self._session = None

    def _load(self) -> None:
        self._session = self._start_session()
        self._check_signature(self._session)
        self._warm_up()

    def _start_session(self) -> ort.InferenceSession:
        session = self._create_session()
        # ONNX Runtime falls back to the CPU without a word (microsoft/onnxruntime#23372).
        provider = session.get_providers()[0]
        if provider == _PROVIDER[self.device]:
            return session
        if not self._allow_cpu_fallback:
            raise ModelLoadError(
                f"the device {self.device} did not start, ONNX Runtime took {provider}: look for missing "
                "CUDA or cuDNN libraries, or allow the CPU with --allow-cpu-fallback"
            )
        log.warning("device_fallback", model=self._spec.name, wanted=self.device, got="cpu")
        self.device = "cpu"
        return self._create_session()

    def _create_session(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads if self.device == "cpu" else 1
        options.inter_op_num_threads = 1
        # Threads that spin while they wait for work take the CPU from decoding and from gRPC.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        providers: list[Any] = [_PROVIDER["cpu"]]
        if self.device == "cuda":
            providers.insert(0, (_PROVIDER["cuda"], _CUDA_OPTIONS))
        try:
            return ort.InferenceSession(str(self._path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ModelLoadError(
                f"{self._path} is not a model that ONNX Runtime can run: {_one_line(error)}"
            ) from error

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
        """Run and time every batch bucket, the largest first so that the arena is sized once."""
        sample = np.zeros(self._buffer.shape[1:], dtype=np.uint8)
        for size in reversed(batch_buckets(self.max_batch_size)):
            best, spent = float("inf"), 0.0
            for _ in range(1 + _WARM_UP_RUNS):
                started = time.perf_counter()
                try:
                    rows = self._run([sample] * size)
                except Exception as error:
                    raise ModelLoadError(f"{self._path} fails at batch {size}: {_one_line(error)}") from error
                seconds = time.perf_counter() - started
                best, spent = min(best, seconds), spent + seconds
                if spent > _WARM_UP_SECONDS:
                    break
            if np.shape(rows) != (size, len(self._spec.labels)):
                raise ModelLoadError(f"{self._path} answers batch {size} with shape {np.shape(rows)}")
            self.latency.set(size, best)

    def _run_taken(self, take: Callable[[], Sequence[NDArray[Any]]]) -> Ran:
        began = time.monotonic()
        samples = take()
        rows = self._run(samples) if samples else ()
        return Ran(rows=rows, began=began, seconds=time.monotonic() - began)

    def _run(self, samples: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        if self._session is None:
            raise RuntimeError("the model is not loaded")
        batch = self._buffer[: len(samples)]
        np.stack(samples, out=batch)
        rows: NDArray[np.float32] = self._session.run(
            [self._spec.output_tensor], {self._spec.input_tensor: batch}
        )[0]
        return list(rows)


def choose_device(wanted: Literal["auto", "cpu", "cuda"], *, allow_cpu_fallback: bool) -> Device:
    """Return the device to load models on. Raises StartupError when CUDA is wanted and not offered."""
    if wanted == "cpu":
        return "cpu"
    if _PROVIDER["cuda"] in ort.get_available_providers():
        # Finds the CUDA and cuDNN libraries of the nvidia-* wheels, or those that torch brought.
        ort.preload_dlls()
        return "cuda"
    if wanted == "auto" or allow_cpu_fallback:
        return "cpu"
    raise StartupError(
        "--device cuda: this ONNX Runtime has no CUDA; pip install 'vistazo[server-gpu]' in an environment "
        "without the package onnxruntime, or allow the CPU with --allow-cpu-fallback"
    )


def batch_buckets(max_batch_size: int) -> list[int]:
    """Return the batch sizes that are warmed up: the powers of two below the maximum, and the maximum."""
    sizes = [1]
    while sizes[-1] * 2 < max_batch_size:
        sizes.append(sizes[-1] * 2)
    return sizes if max_batch_size == 1 else [*sizes, max_batch_size]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
