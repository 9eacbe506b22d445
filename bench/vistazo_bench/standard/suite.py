"""The standard set: what `make bench` shows, as ratios inside one run, client on the same machine.

1. 16 callers against ONNX Runtime alone at its best batch     2. one caller's p50 over a raw run of one
3. LeNet, 64 callers, against a bare echo                      4. open loop at 2 × and 0.8 × capacity
5. JPEG input against raw throughput and decode time           6. int8 against fp32 (int8.py)
7. resident memory over many mixed requests (memory.py)

Each line has a share of the time; its rounds end when that is used up, after at least one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.figures import Figure, ratio_figure, rounds
from vistazo_bench.measuring.limits import Decoder, jpeg_bound
from vistazo_bench.measuring.machine import cpu_seconds
from vistazo_bench.measuring.model_files import decode_spec, model_folder
from vistazo_bench.measuring.payload import make_payload, with_references
from vistazo_bench.measuring.records import LoadSummary
from vistazo_bench.measuring.rig import Rig
from vistazo_bench.standard.costs import MS
from vistazo_bench.standard.int8 import int8_figures
from vistazo_bench.standard.memory import memory_figures
from vistazo_bench.standard.plan import ALEXNET, BUDGET_SHARE, LENET, NETWORKS, RESNET, VGG, Plan
from vistazo_bench.standard.scenarios import (
    DECODE_SECONDS,
    Pace,
    Subject,
    generator_note,
    raw_limit,
)
from vistazo_client.cli.serving import RunningServer, serving
from vistazo_client.cli.worker import Worker
from vistazo_client.errors import VistazoError
from vistazo_client.results import ModelInfo

SHARE_TARGET: Final = {RESNET: 0.95, VGG: 0.95, ALEXNET: 0.92}
ONE_CALLER_TARGET_MS: Final = 2.0
ECHO_TARGET: Final = 0.80
JPEG_TARGET: Final = 0.90
GOODPUT_TARGET: Final = 0.90
IN_TIME_TARGET_PERCENT: Final = 99.0
REFUSAL_TARGET_MS: Final = 20.0

CALLERS: Final = 16
LENET_CALLERS: Final = 64
DEADLINE_SECONDS: Final = 0.5


class StandardSet:
    """Runs the lines one after the other, on servers that it starts."""

    def __init__(self, rig: Rig, repository: Path, *, plan: Plan, options: Sequence[str], seed: int) -> None:
        self._rig = rig
        self._repository = repository
        self._plan = plan
        self._options = tuple(options)
        self._seed = seed
        self.commands: list[str] = []
        """The servers that were started."""

    def run(self) -> Iterator[Figure]:
        """Yield the figures as they come. A line that fails yields one without a value, and why."""
        wanted = (*NETWORKS, LENET, *(f"{name}-int8" for name in (*NETWORKS, LENET)))
        present = [name for name in wanted if (self._repository / name).is_dir()]
        if not present:
            raise BenchError(f"{self._repository} has none of {', '.join(wanted)}; export them first")
        self._rig.say("starting a server")
        with serving(self._repository, self._options, only=present) as server:
            self.commands.append(server.command)
            models = server.models()
            for network in self._plan.networks:
                yield from self._line(
                    1, network, models, lambda name: self._share_of_raw(server, models[name])
                )
            if self._plan.quick:
                yield Figure(f"{VGG} in lines 1 and 2", None, line=1, note="left out of the quick set")
            for network in self._plan.networks:
                yield from self._line(2, network, models, lambda name: self._one_caller(server, models[name]))
            yield from self._line(3, LENET, models, lambda name: self._share_of_echo(server, models[name]))
            yield from self._line(4, RESNET, models, lambda name: self._overload(server, models[name]))
            yield from self._line(5, RESNET, models, lambda name: self._jpeg(server, models[name]))
            for name in (*NETWORKS, LENET):
                yield from self._line(
                    6, f"{name}-int8", models, lambda int8: self._int8(server, models, int8)
                )
        yield from self._memory()

    def _line(
        self, line: int, name: str, models: dict[str, ModelInfo], measure: Callable[[str], list[Figure]]
    ) -> list[Figure]:
        if name not in models:
            return [Figure(name, None, line=line, note="not in the repository")]
        try:
            return measure(name)
        except VistazoError as error:
            # One line that cannot be measured must not cost the others.
            return [Figure(name, None, line=line, note=str(error))]

    def _subject(self, server: RunningServer, model: ModelInfo, *, kind: str = "tensor") -> Subject:
        payload = with_references(make_payload(model, kind=kind), server.address)
        folder = model_folder(self._repository, model.name)
        return Subject(model.name, server.address, payload, folder, local=True)

    def _pace(self, share: str) -> Pace:
        plan = self._plan
        budget = BUDGET_SHARE[share] * plan.budget_seconds
        return Pace(plan.rounds, plan.seconds, 0.5, budget, plan.largest_batch)

    def _share_of_raw(self, server: RunningServer, model: ModelInfo) -> list[Figure]:
        subject, pace = self._subject(server, model), self._pace(f"1 {model.name}")
        values, rates = [], []
        with ExitStack() as stack:
            raw = stack.enter_context(raw_limit(self._rig, subject, pace))
            if raw is None:
                raise BenchError(f"{model.name}: no model.onnx")
            engine, batch, rate = raw
            latency = CALLERS / rate
            seconds = max(pace.seconds, self._plan.latencies * latency)
            for number in rounds(pace.rounds, pace.budget_seconds):
                self._rig.say(f"{model.name}: {CALLERS} callers, round {number + 1} of at most {pace.rounds}")
                alone = self._rig.raw(f"{model.name}: raw", engine, batch, pace.seconds)
                served = self._rig.closed(
                    f"{model.name}, {CALLERS} callers",
                    server.address,
                    subject.payload,
                    concurrency=CALLERS,
                    seconds=seconds,
                    settle=max(pace.settle, 1.5 * latency),
                )
                values.append(served.throughput / alone.images_per_second)
                rates.append({"served": served.throughput, "raw": alone.images_per_second})
        return [
            ratio_figure(
                f"{model.name} fp32, {CALLERS} callers: served ÷ raw at its best batch",
                values,
                line=1,
                target=SHARE_TARGET[model.name],
                note=f"raw batch {batch}; {_rate(rates, 'served')} of {_rate(rates, 'raw')} images/s",
                detail={"best_batch": batch, "images_per_second": rates},
            )
        ]

    def _one_caller(self, server: RunningServer, model: ModelInfo) -> list[Figure]:
        subject, pace = self._subject(server, model), self._pace("2")
        values, times = [], []
        with self._rig.raw_engine(subject.folder or self._repository, subject.payload) as engine:
            for number in rounds(pace.rounds, pace.budget_seconds):
                self._rig.say(f"{model.name}: one caller, round {number + 1} of at most {pace.rounds}")
                alone = self._rig.raw(f"{model.name}: raw, batch 1", engine, 1, pace.seconds / 2)
                raw_p50 = sorted(alone.run_seconds.tolist())[len(alone.run_seconds) // 2]
                served = self._rig.closed(
                    f"{model.name}, one caller",
                    server.address,
                    subject.payload,
                    concurrency=1,
                    seconds=max(pace.seconds / 2, 5 * raw_p50),
                    settle=max(pace.settle, raw_p50),
                )
                values.append(served.p50_seconds - raw_p50)
                times.append({"served": served.p50_seconds * MS, "raw": raw_p50 * MS})
        return [
            ratio_figure(
                f"{model.name}, one caller: p50 − raw batch-1 p50",
                values,
                unit="ms",
                scale=MS,
                line=2,
                target=ONE_CALLER_TARGET_MS,
                better="lower",
                note=f"{_rate(times, 'served')} over {_rate(times, 'raw')} ms",
                detail={"p50_ms": times},
            )
        ]

    def _share_of_echo(self, server: RunningServer, model: ModelInfo) -> list[Figure]:
        subject, pace = self._subject(server, model), self._pace("3")
        values, rates = [], []
        for number in rounds(pace.rounds, pace.budget_seconds):
            self._rig.say(
                f"{model.name}: {LENET_CALLERS} callers, round {number + 1} of at most {pace.rounds}"
            )
            name = f"{model.name}, {LENET_CALLERS} callers"
            echo = self._rig.echo(
                f"echo, {LENET_CALLERS} callers",
                subject.payload,
                concurrency=LENET_CALLERS,
                seconds=pace.seconds,
                settle=pace.settle,
            )
            busy = cpu_seconds(server.pid) if server.pid else 0.0
            served = self._rig.closed(
                name,
                server.address,
                subject.payload,
                concurrency=LENET_CALLERS,
                seconds=pace.seconds,
                settle=pace.settle,
            )
            busy = cpu_seconds(server.pid) - busy if server.pid else 0.0
            requests = served.throughput * (pace.seconds + pace.settle)
            values.append(served.throughput / echo.throughput)
            rates.append(
                {
                    "served": served.throughput,
                    "echo": echo.throughput,
                    "server_cpu_us_per_request": busy / requests * 1e6,
                }
            )
        note = f"{_rate(rates, 'served')} of {_rate(rates, 'echo')} requests/s"
        cpu = _rate(rates, "server_cpu_us_per_request")
        return [
            ratio_figure(
                f"{model.name}, {LENET_CALLERS} callers: served ÷ bare grpc.aio echo",
                values,
                line=3,
                target=ECHO_TARGET,
                note=f"{note}; about {cpu} µs of the server's CPU a request",
                detail={"requests_per_second": rates},
            )
        ]

    def _overload(self, server: RunningServer, model: ModelInfo) -> list[Figure]:
        subject, pace = self._subject(server, model), self._pace("4")
        capacities: list[float] = []
        over: list[LoadSummary] = []
        under: list[LoadSummary] = []
        for number in rounds(min(pace.rounds, 3), pace.budget_seconds):
            self._rig.say(f"{model.name}: open loop, round {number + 1} of at most {min(pace.rounds, 3)}")
            capacity = self._rig.closed(
                f"{model.name}: capacity",
                server.address,
                subject.payload,
                concurrency=CALLERS,
                seconds=max(pace.seconds, self._plan.open_seconds / 3),
                settle=max(pace.settle, 1.0),
            ).throughput
            capacities.append(capacity)
            for factor, results in ((2.0, over), (0.8, under)):
                results.append(
                    self._rig.open(
                        f"{model.name}, {factor:g} × capacity",
                        server.address,
                        subject.payload,
                        rate=factor * capacity,
                        seconds=self._plan.open_seconds,
                        settle=1.0,
                        deadline=DEADLINE_SECONDS,
                        seed=self._seed + number,
                    )
                )
        name = f"{model.name}, {DEADLINE_SECONDS * MS:g} ms deadlines"
        return [
            ratio_figure(
                f"{name}, 2 × capacity: goodput ÷ capacity",
                [result.goodput / capacity for result, capacity in zip(over, capacities, strict=True)],
                line=4,
                target=GOODPUT_TARGET,
                note=f"capacity {max(capacities):.1f} images/s; {generator_note(over)}".rstrip("; "),
                detail={
                    "capacity_images_per_second": capacities,
                    "errors": [result.errors for result in over],
                },
            ),
            ratio_figure(
                f"{name}, 2 × capacity: refused, median time to be told",
                [result.refusal_p50_seconds for result in over],
                unit="ms",
                scale=MS,
                line=4,
                target=REFUSAL_TARGET_MS,
                better="lower",
                note=f"{sum(result.refused for result in over)} refused",
            ),
            ratio_figure(
                f"{name}, 2 × capacity: refused with a pushback",
                [result.pushback_share for result in over],
                unit="%",
                scale=100,
                line=4,
                target=100.0,
            ),
            ratio_figure(
                f"{name}, 0.8 × capacity: answered in time",
                [result.in_time_share for result in under],
                unit="%",
                scale=100,
                line=4,
                target=IN_TIME_TARGET_PERCENT,
                note=generator_note(under),
                detail={"errors": [result.errors for result in under]},
            ),
        ]

    def _jpeg(self, server: RunningServer, model: ModelInfo) -> list[Figure]:
        subject, pace = self._subject(server, model, kind="jpeg"), self._pace("5")
        values, rates = [], []
        spec = decode_spec(model_folder(self._repository, model.name))
        with ExitStack() as stack:
            raw = stack.enter_context(raw_limit(self._rig, subject, pace))
            decoder = stack.enter_context(Worker(Decoder, spec))
            if raw is None:
                raise BenchError(f"{model.name}: no model.onnx")
            engine, batch, expected = raw
            for number in rounds(pace.rounds, pace.budget_seconds):
                self._rig.say(f"{model.name}: JPEG, round {number + 1} of at most {pace.rounds}")
                rate = self._rig.raw(f"{model.name}: raw", engine, batch, pace.seconds).images_per_second
                decode = decoder.call(Decoder.cpu_seconds_per_image, subject.payload.encoded, DECODE_SECONDS)
                served = self._rig.closed(
                    f"{model.name}, JPEG, {CALLERS} callers",
                    server.address,
                    subject.payload,
                    concurrency=CALLERS,
                    seconds=max(pace.seconds, self._plan.latencies * CALLERS / expected),
                    settle=max(pace.settle, 1.5 * CALLERS / expected),
                )
                bound = jpeg_bound(rate, decode, self._rig.cores)
                values.append(served.throughput / bound)
                rates.append(
                    {"served": served.throughput, "bound": bound, "raw": rate, "decode_ms": decode * MS}
                )
        return [
            ratio_figure(
                f"{model.name}, JPEG, {CALLERS} callers: served ÷ what raw and decode time allow",
                values,
                line=5,
                target=JPEG_TARGET,
                note=f"{_rate(rates, 'served')} of {_rate(rates, 'bound')} images/s; decode "
                f"{_rate(rates, 'decode_ms')} CPU-ms; {subject.payload.source}",
                detail={"images_per_second": rates, "formula": "cores / (decode + cores / raw)"},
            )
        ]

    def _int8(self, server: RunningServer, models: dict[str, ModelInfo], name: str) -> list[Figure]:
        fp32 = name.removesuffix("-int8")
        if fp32 not in models:
            return [Figure(name, None, line=6, note=f"{fp32} is not in the repository")]
        kind = self._subject
        subjects = kind(server, models[fp32]), kind(server, models[name])
        return int8_figures(self._rig, *subjects, self._pace("6"), latencies=self._plan.latencies)

    def _memory(self) -> list[Figure]:
        missing = [name for name in NETWORKS if not (self._repository / name).is_dir()]
        if missing:
            return [
                Figure("resident memory", None, line=7, note=f"{', '.join(missing)}: not in the repository")
            ]
        self._rig.say("starting a server with the three networks")
        try:
            with serving(self._repository, self._options, only=NETWORKS) as server:
                self.commands.append(server.command)
                return memory_figures(
                    self._rig,
                    server,
                    server.models(),
                    requests=self._plan.memory_requests,
                    budget_seconds=BUDGET_SHARE["7"] * self._plan.budget_seconds,
                    weights_bytes=sum(
                        (model_folder(self._repository, name) / "model.onnx").stat().st_size
                        for name in NETWORKS
                    ),
                    seed=self._seed,
                )
        except VistazoError as error:
            return [Figure("resident memory", None, line=7, note=str(error))]


def _rate(rounds_of: Sequence[dict[str, float]], key: str) -> str:
    """Return the median over the rounds, as text."""
    values = sorted(one[key] for one in rounds_of)
    middle = values[len(values) // 2]
    return f"{middle:,.0f}" if middle >= 100 else f"{middle:.1f}"
