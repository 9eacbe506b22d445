"""What the machine can do, to hold the server against: each made for a Worker of its own.

RawEngine   ONNX Runtime's `session.run`, nothing around it
EchoServer  grpc.aio answering at once with bytes that are ready
Decoder     Pillow, from JPEG bytes to model input, as the server does it
"""

import asyncio
import io
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.records import FloatArray
from vistazo_client._channel import MAX_MESSAGE_BYTES

ECHO_METHOD: Final = "/vistazo.bench.Echo/Echo"

BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32)

# Fewer runs than this are no measurement, however long each takes.
LEAST_RUNS: Final = 3

# A batch whose one run takes longer is not tried in twice its size: nobody serves it.
LONGEST_RUN_SECONDS: Final = 4.0

START_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class RawRuns:
    """Runs of one batch size, back to back."""

    batch_size: int
    run_seconds: FloatArray
    """Of each run."""
    cpu_seconds: float
    """That all threads took together, of all runs."""

    @property
    def images_per_second(self) -> float:
        """Images over the time that all runs took."""
        return self.batch_size * len(self.run_seconds) / float(self.run_seconds.sum())

    @property
    def cpu_seconds_per_image(self) -> float:
        """CPU time of all threads together, also while they wait for one another by turning."""
        return self.cpu_seconds / (self.batch_size * len(self.run_seconds))


class RawEngine:
    """One ONNX Runtime CPU session with default options and `threads` intra-op threads.

    `images` are samples of the model's input shape, uint8 N×H×W×C; a batch takes them in turn.
    """

    def __init__(self, model: Path, images: NDArray[np.uint8], threads: int) -> None:
        import onnxruntime  # noqa: PLC0415  not needed to import the command

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self._input: str = self._session.get_inputs()[0].name
        self._images = images

    def run(self, batch_size: int, seconds: float) -> RawRuns:
        """Return the times of at least LEAST_RUNS runs over at least `seconds`; the first does not count."""
        feed = {self._input: self._images[np.arange(batch_size) % len(self._images)]}
        clock = time.perf_counter
        self._session.run(None, feed)
        times: list[float] = []
        spent, cpu = 0.0, time.process_time()
        while spent < seconds or len(times) < LEAST_RUNS:
            begun = clock()
            self._session.run(None, feed)
            times.append(clock() - begun)
            spent += times[-1]
        return RawRuns(batch_size, np.array(times), time.process_time() - cpu)

    def search(self, seconds: float, largest: int) -> list[RawRuns]:
        """Return runs of every batch bucket up to `largest`, `seconds` for each, until they take too long."""
        results: list[RawRuns] = []
        for size in BATCH_BUCKETS:
            if size > largest:
                break
            results.append(self.run(size, seconds))
            if float(results[-1].run_seconds.min()) > LONGEST_RUN_SECONDS / 2:
                break
        return results

    def close(self) -> None:
        """Free the session."""
        self._session = None


class EchoServer:
    """A bare grpc.aio server on loopback: uvloop, a generic handler of bytes, no interceptor.

    What a request of these sizes costs when nothing is done with it, in this Python and this grpc.
    """

    def __init__(self) -> None:
        self._response = b""
        self._port = 0
        self._failure: Exception | None = None
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Its own thread: this one waits for the worker's next call, and holds no lock while it does.
        self._thread = threading.Thread(target=self._run, name="echo", daemon=True)
        self._thread.start()
        if not self._ready.wait(START_SECONDS):
            raise BenchError(f"the echo server did not start within {START_SECONDS:g} s")
        if self._failure is not None:
            raise self._failure

    def answer_with(self, response: bytes) -> str:
        """Return the server's address; from now on every request is answered with `response`."""
        self._response = response
        return f"127.0.0.1:{self._port}"

    def close(self) -> None:
        """Stop the server."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_SECONDS)

    def _run(self) -> None:
        try:
            import uvloop  # noqa: PLC0415

            uvloop.run(self._serve())
        except Exception as error:  # noqa: BLE001  the thread that waits raises it
            self._failure = error
            self._ready.set()

    async def _serve(self) -> None:
        import grpc.aio  # noqa: PLC0415

        async def echo(request: bytes, context: Any) -> bytes:  # noqa: ANN401  grpc's context
            del request, context
            return self._response

        service, name = ECHO_METHOD.strip("/").split("/")
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        server = grpc.aio.server(options=options)
        handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(echo)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self._port = server.add_insecure_port("127.0.0.1:0")
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await server.start()
        self._ready.set()
        await self._stop.wait()
        await server.stop(None)


@dataclass(frozen=True, slots=True)
class DecodeSpec:
    """How an encoded image becomes model input, from the model's manifest. Pixels."""

    height: int
    width: int
    channels: int
    resize_size: int
    """Of the shorter edge; 0: the image is stretched to height and width."""
    interpolation: str
    """bilinear, bicubic or nearest."""


class Decoder:
    """Decodes, resizes and crops encoded images in one thread."""

    def __init__(self, spec: DecodeSpec) -> None:
        import PIL.Image  # noqa: PLC0415,F401  fail here rather than at the first call

        self._spec = spec

    def cpu_seconds_per_image(self, images: Sequence[bytes], seconds: float) -> float:
        """Return the CPU time that one image takes, over at least `seconds` and each image once."""
        self._decode(images[0])
        count = 0
        started, cpu_started = time.perf_counter(), time.thread_time()
        while count < len(images) or time.perf_counter() - started < seconds:
            self._decode(images[count % len(images)])
            count += 1
        return (time.thread_time() - cpu_started) / count

    def close(self) -> None:
        """Do nothing; there is nothing to free."""

    def _decode(self, encoded: bytes) -> NDArray[np.uint8]:
        from PIL import Image  # noqa: PLC0415

        spec = self._spec
        with Image.open(io.BytesIO(encoded)) as opened:
            image = opened.convert("RGB" if spec.channels == 3 else "L")
        if spec.resize_size:
            short = min(image.size)
            size = (image.width * spec.resize_size // short, image.height * spec.resize_size // short)
        else:
            size = (spec.width, spec.height)
        image = image.resize(size, Image.Resampling[spec.interpolation.upper()])
        left, top = (image.width - spec.width) // 2, (image.height - spec.height) // 2
        cropped = image.crop((left, top, left + spec.width, top + spec.height))
        return np.array(cropped, dtype=np.uint8)


def jpeg_bound(raw_images_per_second: float, decode_cpu_seconds: float, cores: int) -> float:
    """Return the images per second that these cores could decode and classify, were nothing else to do.

    At the raw rate the engine keeps all cores busy: an image costs it cores ÷ rate CPU-seconds. Decoding
    adds its own. All cores together do `cores` CPU-seconds a second:

        bound = cores ÷ (decode + cores ÷ raw)
    """
    return cores / (decode_cpu_seconds + cores / raw_images_per_second)
