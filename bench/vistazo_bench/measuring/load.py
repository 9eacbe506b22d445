"""The load generators, on grpc.aio: as little of their own work per request as Python allows.

Requests are bytes made beforehand, responses stay bytes; a few are kept to be checked afterwards.
"""

import asyncio
import gc
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc
import grpc.aio
import numpy as np

from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.records import NO_PUSHBACK, OK, FloatArray, Recording
from vistazo_client._channel import MAX_MESSAGE_BYTES, channel_options
from vistazo_client.errors import PUSHBACK_TRAILER

CLASSIFY_METHOD: Final = "/vistazo.v1.ClassificationService/Classify"

# Some 25 bytes each: what a segment can record without growing into the machine's memory.
MAX_REQUESTS_PER_SEGMENT: Final = 2_000_000

# Responses kept for the check: one of every SAMPLE_STRIDE, until there are MAX_SAMPLES.
SAMPLE_STRIDE: Final = 16
MAX_SAMPLES: Final = 64

CONNECT_SECONDS: Final = 20.0

# A caller that failed waits this long when the server gave no pushback, and never longer than the other.
RETRY_SECONDS: Final = 0.01
MAX_RETRY_SECONDS: Final = 1.0

# Arrivals that are late go out in groups of this size, and then answers get their turn.
LATE_GROUP: Final = 16

Call = Callable[..., Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes."""

    address: str
    requests: tuple[bytes, ...]
    """Serialised; sent in turn."""
    method: str = CLASSIFY_METHOD
    channels: int = 1
    """Connections that the load is spread over."""


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A number of callers, each sending its next request when it has the answer to the last."""

    target: Target
    concurrency: int
    seconds: float
    """How long the part that counts lasts."""
    settle_seconds: float = 0.0
    """Load before that, which does not count."""
    max_requests: int = MAX_REQUESTS_PER_SEGMENT
    """Ends it earlier."""
    timeout_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Poisson arrivals at a rate, whatever the server does; MLPerf's Server scenario."""

    target: Target
    rate: float
    """Requests per second."""
    seconds: float
    settle_seconds: float = 0.0
    deadline_seconds: float | None = None
    """From when a request is due to when its answer is worthless; sent along as its gRPC deadline."""
    seed: int = 0
    max_outstanding: int = 4096
    """Arrivals beyond so many unanswered requests are dropped, and counted."""
    timeout_seconds: float = 60.0
    """Without a deadline."""


def poisson_arrivals(rate: float, seconds: float, seed: int) -> FloatArray:
    """Return the times, in seconds and ascending, of Poisson arrivals during `seconds`.

    Raises BenchError when there would be more than a segment can record.
    """
    expected = rate * seconds
    if expected > MAX_REQUESTS_PER_SEGMENT:
        raise BenchError(
            f"{rate:g} requests/s for {seconds:g} s are more than {MAX_REQUESTS_PER_SEGMENT:,} in one segment"
        )
    generator = np.random.default_rng(seed)
    # Six standard deviations more than expected, so that one draw reaches the end; a second if not.
    count = int(expected + 6 * expected**0.5) + 16
    times = np.cumsum(generator.exponential(1 / rate, count))
    while times[-1] < seconds:
        times = np.append(times, times[-1] + np.cumsum(generator.exponential(1 / rate, count)))
    return times[times < seconds]


class LoadGenerator:
    """Runs segments of load. Made for a Worker; holds one event loop for all of them."""

    def __init__(self) -> None:
        import uvloop  # noqa: PLC0415  not needed to import the command

        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    def closed_loop(self, load: ClosedLoop) -> Recording:
        """Return what the segment recorded. Raises BenchError when the server cannot be reached."""
        return self._run(closed_loop(load))

    def open_loop(self, load: OpenLoop) -> Recording:
        """Return what the segment recorded. Raises BenchError when the server cannot be reached."""
        return self._run(open_loop(load))

    def close(self) -> None:
        """Free the event loop."""
        self._runner.close()

    def _run(self, segment: Coroutine[Any, Any, Recording]) -> Recording:
        # A collection stops everything for milliseconds; a segment is short enough to do without.
        gc.collect()
        gc.disable()
        try:
            return self._runner.run(segment)
        finally:
            gc.enable()


class _Recorder:
    """Growing columns of numbers: appending costs no object that stays."""

    def __init__(self) -> None:
        self.arrived = array("d")
        self.latency = array("d")
        self.status = array("i")
        self.pushback_ms = array("i")
        self.lag = array("d")
        self.dropped = 0
        self.samples: list[tuple[int, bytes]] = []

    def add(self, arrived: float, latency: float, lag: float, status: int, pushback_ms: int) -> None:
        self.arrived.append(arrived)
        self.latency.append(latency)
        self.lag.append(lag)
        self.status.append(status)
        self.pushback_ms.append(pushback_ms)

    def keep(self, request: int, response: bytes) -> None:
        if len(self.latency) % SAMPLE_STRIDE == 0 and len(self.samples) < MAX_SAMPLES:
            self.samples.append((request, response))

    def recording(self, window: tuple[float, float]) -> Recording:
        return Recording(
            arrived=np.array(self.arrived, dtype=np.float64),
            latency=np.array(self.latency, dtype=np.float64),
            status=np.array(self.status, dtype=np.int32),
            pushback_ms=np.array(self.pushback_ms, dtype=np.int32),
            lag=np.array(self.lag, dtype=np.float64),
            window=window,
            dropped=self.dropped,
            samples=tuple(self.samples),
        )


async def closed_loop(load: ClosedLoop) -> Recording:
    """Keep `concurrency` requests in flight, no more, and return what was recorded.

    A caller that is refused or fails waits before its next request: as long as the pushback says, at most
    MAX_RETRY_SECONDS. All requests have ended when it returns.
    """
    requests, timeout = load.target.requests, load.timeout_seconds
    recorder = _Recorder()
    clock = time.perf_counter
    sent = 0
    async with _calls(load.target) as calls:
        origin = clock()
        until = origin + load.settle_seconds + load.seconds

        async def caller(call: Call) -> None:
            nonlocal sent
            while sent < load.max_requests and (begun := clock()) < until:
                request = sent % len(requests)
                sent += 1
                try:
                    response = await call(requests[request], timeout=timeout)
                except grpc.aio.AioRpcError as error:
                    status, pushback_ms = _outcome(error)
                    recorder.add(begun - origin, clock() - begun, 0.0, status, pushback_ms)
                    wait = RETRY_SECONDS if pushback_ms == NO_PUSHBACK else pushback_ms / 1000
                    await asyncio.sleep(min(wait, MAX_RETRY_SECONDS))
                else:
                    recorder.add(begun - origin, clock() - begun, 0.0, OK, NO_PUSHBACK)
                    recorder.keep(request, response)

        async with asyncio.TaskGroup() as callers:
            for index in range(load.concurrency):
                callers.create_task(caller(calls[index % len(calls)]))
        ended = min(clock(), until) - origin
    return recorder.recording((min(load.settle_seconds, ended), max(ended, 1e-9)))


async def open_loop(load: OpenLoop) -> Recording:
    """Send Poisson arrivals, each at its own absolute time, and return what was recorded.

    Latency counts from when a request was due, so that a generator that falls behind cannot flatter the
    server. It returns when all requests have ended, at most the deadline after the last arrival.
    """
    requests, deadline = load.target.requests, load.deadline_seconds
    seconds = load.settle_seconds + load.seconds
    arrivals = poisson_arrivals(load.rate, seconds, load.seed)
    recorder = _Recorder()
    clock = time.perf_counter
    outstanding: set[asyncio.Task[None]] = set()
    async with _calls(load.target) as calls:
        origin = clock()

        async def send(call: Call, request: int, due: float) -> None:
            begun = clock()
            # The caller began to wait when the request was due.
            left = load.timeout_seconds if deadline is None else max(deadline - (begun - due), 0.001)
            try:
                response = await call(requests[request], timeout=left)
            except grpc.aio.AioRpcError as error:
                recorder.add(due - origin, clock() - due, begun - due, *_outcome(error))
            else:
                recorder.add(due - origin, clock() - due, begun - due, OK, NO_PUSHBACK)
                recorder.keep(request, response)

        for index, offset in enumerate(arrivals.tolist()):
            due = origin + offset
            if clock() >= due and index % LATE_GROUP == 0:
                await asyncio.sleep(0)
            while (wait := due - clock()) > 0:  # noqa: ASYNC110  a time is waited for; timers may be early
                await asyncio.sleep(wait)
            if len(outstanding) >= load.max_outstanding:
                recorder.dropped += 1
                continue
            task = asyncio.create_task(send(calls[index % len(calls)], index % len(requests), due))
            outstanding.add(task)
            task.add_done_callback(outstanding.discard)
        await asyncio.gather(*outstanding)
    return recorder.recording((load.settle_seconds, seconds))


@asynccontextmanager
async def _calls(target: Target) -> AsyncIterator[Sequence[Call]]:
    """Hold the target's connections, made before the clock starts: one bytes-to-bytes call for each."""
    options = [
        *channel_options(target.address, MAX_MESSAGE_BYTES),
        # Without it, channels of one process to one address share one connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    channels = [
        grpc.aio.insecure_channel(target.address, options=options) for _ in range(max(target.channels, 1))
    ]
    try:
        await _connect(target.address, channels)
        # No serializers: grpc passes the bytes through. Its stubs want one for the response.
        yield [cast("Call", cast("Any", channel).unary_unary(target.method)) for channel in channels]
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _connect(address: str, channels: Iterable[grpc.aio.Channel]) -> None:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.gather(*(channel.channel_ready() for channel in channels))
    except TimeoutError:
        raise BenchError(f"no server at {address} within {CONNECT_SECONDS:g} s") from None


def _outcome(error: grpc.aio.AioRpcError) -> tuple[int, int]:
    """Return the status as its number, and the pushback in milliseconds."""
    status: int = error.code().value[0]
    for key, value in cast("Iterable[tuple[str, str]]", error.trailing_metadata() or ()):
        if key == PUSHBACK_TRAILER and value.isdecimal():
            return status, int(value)
    return status, NO_PUSHBACK
