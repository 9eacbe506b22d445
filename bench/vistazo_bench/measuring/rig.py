"""Rig: the processes of one benchmark, and what they recorded."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.limits import ECHO_METHOD, EchoServer, RawEngine, RawRuns
from vistazo_bench.measuring.load import ClosedLoop, LoadGenerator, OpenLoop, Target
from vistazo_bench.measuring.machine import CpuWatch, cpu_budget
from vistazo_bench.measuring.payload import Payload, wrong_answers
from vistazo_bench.measuring.records import (
    OK,
    FloatArray,
    LoadSummary,
    Recording,
    summarize_closed,
    summarize_open,
)
from vistazo_client.cli.worker import Worker

# Of each segment's latencies, for the plot.
SERIES_VALUES: Final = 4000

# Longest that a counted load may take; it ends by its count.
COUNT_SECONDS: Final = 120.0

Say = Callable[[str], None]
"""Tells the user what is going on, in one line."""


class Rig:
    """A load generator, and an echo server once one is asked for. Use as `with`; leaving ends them."""

    def __init__(self, say: Say, *, channels: int = 1) -> None:
        self.say = say
        self.cores = cpu_budget()
        self.segments: list[dict[str, object]] = []
        """Every segment that was run, for the JSON."""
        self.series: dict[str, FloatArray] = {}
        """Latencies in seconds by name, for the plot."""
        self.wrong: list[str] = []
        """What was wrong with answers that were checked."""
        self.checked = 0
        self._channels = channels
        self._stack = ExitStack()
        self._generator: Worker[LoadGenerator] | None = None
        self._echo: Worker[EchoServer] | None = None

    def __enter__(self) -> Self:
        self._generator = self._stack.enter_context(Worker(LoadGenerator))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def closed(
        self,
        name: str,
        address: str,
        payload: Payload,
        *,
        concurrency: int,
        seconds: float,
        settle: float,
    ) -> LoadSummary:
        """Run a closed loop against a Vistazo server; its answers are checked, its latencies kept."""
        target = payload.target(address, channels=self._channels)
        load = ClosedLoop(target, concurrency, seconds, settle, timeout_seconds=60 + 4 * settle)
        watch = CpuWatch()
        recording = self._generating().call(LoadGenerator.closed_loop, load)
        elsewhere = watch.elsewhere_share()
        summary = summarize_closed(recording, images_per_request=payload.images_per_request)
        self._keep(name, recording, summary, payload, elsewhere)
        if summary.answered == 0:
            raise BenchError(f"{name}: no request was answered; statuses: {summary.errors or 'none'}")
        return summary

    def open(
        self,
        name: str,
        address: str,
        payload: Payload,
        *,
        rate: float,
        seconds: float,
        settle: float,
        deadline: float | None,
        seed: int,
    ) -> LoadSummary:
        """Run an open loop of `rate` requests a second against a Vistazo server."""
        target = payload.target(address, channels=self._channels)
        load = OpenLoop(target, rate, seconds, settle, deadline, seed)
        watch = CpuWatch()
        recording = self._generating().call(LoadGenerator.open_loop, load)
        elsewhere = watch.elsewhere_share()
        summary = summarize_open(recording, images_per_request=payload.images_per_request, deadline=deadline)
        self._keep(name, recording, summary, payload, elsewhere)
        return summary

    def echo(
        self, name: str, payload: Payload, *, concurrency: int, seconds: float, settle: float
    ) -> LoadSummary:
        """Run a closed loop of the same requests against a bare echo that sends the same responses."""
        if self._echo is None:
            self._echo = self._stack.enter_context(Worker(EchoServer))
        address = self._echo.call(EchoServer.answer_with, payload.references[0])
        target = Target(address, payload.requests, ECHO_METHOD, self._channels)
        load = ClosedLoop(target, concurrency, seconds, settle)
        watch = CpuWatch()
        recording = self._generating().call(LoadGenerator.closed_loop, load)
        elsewhere = watch.elsewhere_share()
        summary = summarize_closed(recording, images_per_request=payload.images_per_request)
        self._keep(name, recording, summary, None, elsewhere)
        return summary

    def count(self, target: Target, *, concurrency: int, requests: int) -> dict[str, int]:
        """Send so many requests in a closed loop and return how many ended in which status but OK."""
        load = ClosedLoop(
            target, concurrency, seconds=COUNT_SECONDS, max_requests=requests, timeout_seconds=COUNT_SECONDS
        )
        recording = self._generating().call(LoadGenerator.closed_loop, load)
        return summarize_closed(recording, images_per_request=1).errors

    def raw_engine(self, folder: Path, payload: Payload) -> Worker[RawEngine]:
        """Return ONNX Runtime alone on the model in `folder`; to be used in a `with`."""
        return Worker(RawEngine, folder / "model.onnx", payload.tensors, self.cores)

    def raw(self, name: str, engine: Worker[RawEngine], batch_size: int, seconds: float) -> RawRuns:
        """Run ONNX Runtime alone."""
        watch = CpuWatch()
        runs = engine.call(RawEngine.run, batch_size, seconds)
        self.segments.append(
            {
                "name": name,
                "cpu_elsewhere_share": watch.elsewhere_share(),
                "batch_size": batch_size,
                "runs": len(runs.run_seconds),
                "images_per_second": runs.images_per_second,
                "p50_seconds": float(np.median(runs.run_seconds)),
            }
        )
        return runs

    def best_batch(
        self, model: str, engine: Worker[RawEngine], *, seconds: float, largest: int
    ) -> tuple[int, float]:
        """Return the batch size at which ONNX Runtime alone is fastest, and its images per second."""
        self.say(f"{model}: looking for ONNX Runtime's best batch")
        runs = engine.call(RawEngine.search, seconds, largest)
        self.segments.append(
            {
                "name": f"{model}: raw, by batch size",
                "images_per_second": {one.batch_size: one.images_per_second for one in runs},
            }
        )
        best = max(runs, key=lambda one: one.images_per_second)
        return best.batch_size, best.images_per_second

    def _generating(self) -> Worker[LoadGenerator]:
        if self._generator is None:
            raise RuntimeError("the rig is used outside its with block")
        return self._generator

    def elsewhere(self) -> float | None:
        """Return the greatest share of the machine's CPU that others took during a segment."""
        shares = [segment.get("cpu_elsewhere_share") for segment in self.segments]
        return max((share for share in shares if isinstance(share, float)), default=None)

    def _keep(
        self,
        name: str,
        recording: Recording,
        summary: LoadSummary,
        payload: Payload | None,
        elsewhere: float | None,
    ) -> None:
        segment = {"name": name, "cpu_elsewhere_share": elsewhere, **dataclasses.asdict(summary)}
        self.segments.append(segment)
        if payload is not None:
            self.checked += len(recording.samples)
            self.wrong += wrong_answers(payload, recording.samples)
        latency = np.sort(recording.latency[recording.status == OK])
        if len(latency) > SERIES_VALUES:
            # Evenly over its ranks: the shape is what is plotted.
            latency = latency[np.linspace(0, len(latency) - 1, SERIES_VALUES).astype(int)]
        self.series[name] = np.concatenate([self.series.get(name, np.empty(0)), latency])
