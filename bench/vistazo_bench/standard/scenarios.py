"""One kind of load against one model, with the limits of the same machine in the same rounds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vistazo_bench.measuring.figures import Figure, ratio_figure, rounds
from vistazo_bench.measuring.payload import Payload
from vistazo_bench.measuring.records import LoadSummary
from vistazo_bench.measuring.rig import Rig
from vistazo_bench.standard.costs import MS, Costs, RawLimit, measuring_costs

if TYPE_CHECKING:
    from vistazo_bench.measuring.preparation import Preparing

# Decoding is steady; this is enough of it.
DECODE_SECONDS = 0.5

# Of the raw engine, where only the cost of an image is wanted of it.
COST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a model on a server, and the requests for it."""

    model: str
    address: str
    payload: Payload
    folder: Path | None
    """The model's files, for the raw engine; None: not at hand."""
    local: bool
    """Whether the server is on this machine, so that its limits can be measured here."""
    preparing: "Preparing | None" = None
    """How the server prepares images; None: not known."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take."""

    rounds: int
    seconds: float
    """Of each segment's part that counts."""
    settle: float
    """Of load before it."""
    budget_seconds: float
    """No further round is begun when it would end after this."""
    largest_batch: int = 32
    """Of the search for the raw engine's best."""


@contextmanager
def raw_limit(rig: Rig, subject: Subject, pace: Pace) -> Iterator[RawLimit | None]:
    """Hold the raw engine at its best batch; None where the model's files are not at hand."""
    if subject.folder is None:
        yield None
        return
    with rig.raw_engine(subject.folder, subject.payload) as engine:
        seconds = min(pace.seconds, 0.7)
        best, rate = rig.best_batch(subject.model, engine, seconds=seconds, largest=pace.largest_batch)
        yield engine, best, rate


@contextmanager
def subject_costs(rig: Rig, subject: Subject, pace: Pace) -> Iterator[Costs]:
    """Hold what measures the costs of a subject's images, as far as they can be measured here."""
    # A server elsewhere prepares images on another CPU.
    preparing = subject.preparing if subject.local else None
    with (
        raw_limit(rig, subject, pace) as raw,
        measuring_costs(rig, subject.model, subject.payload, raw, preparing) as costs,
    ):
        yield costs


@contextmanager
def encoded_costs(rig: Rig, subject: Subject, pace: Pace) -> Iterator[Costs]:
    """Hold what measures the costs where images are sent encoded; else what measures nothing."""
    if not subject.payload.encoded:
        yield Costs(rig, subject.model, ())
        return
    with subject_costs(rig, subject, pace) as costs:
        yield costs


def closed_loop(rig: Rig, subject: Subject, pace: Pace, *, concurrency: int) -> list[Figure]:
    """Return throughput and latency, the throughput as a share of each limit, and what an image costs."""
    served: list[LoadSummary] = []
    shares: dict[str, list[float]] = {"raw": [], "bound": [], "echo": []}
    payload = subject.payload
    with subject_costs(rig, subject, pace) as costs:
        for number in rounds(pace.rounds, pace.budget_seconds):
            rig.say(f"{subject.model}: round {number + 1} of at most {pace.rounds}")
            timing = {"concurrency": concurrency, "seconds": pace.seconds, "settle": pace.settle}
            result = rig.closed(f"{subject.model}: served", subject.address, payload, **timing)  # type: ignore[arg-type]
            served.append(result)
            costs.measure(pace.seconds)
            if costs.rates:
                shares["raw"].append(result.throughput / costs.rates[-1])
            if costs.bounds:
                shares["bound"].append(result.throughput / costs.bounds[-1])
            if subject.local:
                echo = rig.echo(f"{subject.model}: echo", payload, **timing)  # type: ignore[arg-type]
                shares["echo"].append(result.throughput / echo.throughput)
        batch = costs.raw[1] if costs.raw is not None else 0
        name = f"{subject.model}, {concurrency} callers"
        figures = [
            ratio_figure(f"{name}: throughput", [one.throughput for one in served], unit="images/s"),
            *latency_figures(name, served),
        ]
        what = {
            "raw": f"of ONNX Runtime alone (batch {batch})",
            "bound": "of what raw throughput and decode time allow",
            "echo": "of a bare grpc.aio echo",
        }
        figures += [
            ratio_figure(f"{name}: {what[limit]}", values) for limit, values in shares.items() if values
        ]
        return figures + costs.figures(subject.model)


def latency_figures(name: str, summaries: list[LoadSummary]) -> list[Figure]:
    """Return p50, p90 and p99 of the answered, in ms."""
    return [
        ratio_figure(f"{name}: p50", [s.p50_seconds for s in summaries], unit="ms", scale=MS, better="lower"),
        ratio_figure(f"{name}: p90", [s.p90_seconds for s in summaries], unit="ms", scale=MS, better="lower"),
        ratio_figure(f"{name}: p99", [s.p99_seconds for s in summaries], unit="ms", scale=MS, better="lower"),
    ]


def open_loop(
    rig: Rig, subject: Subject, pace: Pace, *, rate: float, deadline: float | None, seed: int
) -> list[Figure]:
    """Return what came of Poisson arrivals: goodput, share in time, latency, refusals."""
    results = []
    with encoded_costs(rig, subject, pace) as costs:
        for number in rounds(pace.rounds, pace.budget_seconds):
            rig.say(f"{subject.model}: {rate:g} requests/s, round {number + 1} of at most {pace.rounds}")
            results.append(
                rig.open(
                    f"{subject.model}: {rate:g} requests/s",
                    subject.address,
                    subject.payload,
                    rate=rate,
                    seconds=pace.seconds,
                    settle=pace.settle,
                    deadline=deadline,
                    seed=seed + number,
                )
            )
            costs.measure(min(pace.seconds, COST_SECONDS))
    name = f"{subject.model}, {rate:g} requests/s"
    note = generator_note(results)
    return [
        ratio_figure(f"{name}: throughput", [r.throughput for r in results], unit="images/s", note=note),
        ratio_figure(f"{name}: goodput", [r.goodput for r in results], unit="images/s"),
        ratio_figure(f"{name}: answered in time", [r.in_time_share for r in results], unit="%", scale=100),
        *latency_figures(name, results),
        *refusal_figures(name, results),
        *costs.figures(subject.model),
    ]


def refusal_figures(name: str, results: list[LoadSummary]) -> list[Figure]:
    """Return how fast the refused were told, and how many of them when to come back."""
    return [
        ratio_figure(
            f"{name}: refused, median time to be told",
            [r.refusal_p50_seconds for r in results],
            unit="ms",
            scale=MS,
            better="lower",
            note="" if any(r.refused for r in results) else "none was refused",
        ),
        ratio_figure(
            f"{name}: refused with a pushback", [r.pushback_share for r in results], unit="%", scale=100
        ),
    ]


def generator_note(results: list[LoadSummary]) -> str:
    """Return a warning where the load generator itself was late; empty where it kept its schedule."""
    behind = max((result.behind_share for result in results), default=0.0)
    if behind <= 0.01:
        return ""
    lag = max(result.lag_p99_seconds for result in results)
    return f"the generator fell behind: {behind:.1%} of the arrivals late (p99 {lag * MS:.0f} ms)"
