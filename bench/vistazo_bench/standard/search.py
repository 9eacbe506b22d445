"""The highest Poisson rate whose p99 keeps a bound: the metric of MLPerf Inference's Server scenario.

MLPerf asks for at least 600 s and 270,336 queries; this takes seconds a probe, so its p99 is a coarser one.
Each probe's result is kept. With tensor input, decoding is not in the time, as MLPerf has it.
"""

from dataclasses import asdict
from time import monotonic
from typing import Final

from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.figures import Figure
from vistazo_bench.measuring.records import LoadSummary
from vistazo_bench.measuring.rig import Rig
from vistazo_bench.standard.costs import MS, Costs
from vistazo_bench.standard.scenarios import (
    COST_SECONDS,
    Pace,
    Subject,
    encoded_costs,
    generator_note,
)

# A p99 of fewer requests is the maximum of a handful.
LEAST_REQUESTS: Final = 300

# A probe is stretched to reach LEAST_REQUESTS, but not beyond this many times its length.
STRETCH: Final = 4

# The search ends when what is left to search is this share of the rate.
RESOLUTION: Final = 0.04
MOST_PROBES: Final = 10

# Poisson arrivals never reach the closed loop's throughput; this is above any answer.
START_SHARE: Final = 1.1
CAPACITY_CONCURRENCY: Final = 16


def search_rate(rig: Rig, subject: Subject, pace: Pace, *, p99_seconds: float, seed: int) -> list[Figure]:
    """Return the highest rate found whose p99, failures counted as infinitely late, is within the bound.

    Binary search between nothing and what a closed loop reaches; every probe draws other arrivals.
    """
    with encoded_costs(rig, subject, pace) as costs:
        figures = _search(rig, subject, pace, costs, p99_seconds=p99_seconds, seed=seed)
        return figures + costs.figures(subject.model)


def _search(
    rig: Rig, subject: Subject, pace: Pace, costs: Costs, *, p99_seconds: float, seed: int
) -> list[Figure]:
    rig.say(f"{subject.model}: measuring the capacity")
    capacity = rig.closed(
        f"{subject.model}: capacity",
        subject.address,
        subject.payload,
        concurrency=CAPACITY_CONCURRENCY,
        seconds=pace.seconds,
        settle=pace.settle,
    )
    requests_per_second = capacity.throughput / subject.payload.images_per_request
    low, high = 0.0, requests_per_second * START_SHARE
    best: LoadSummary | None = None
    probes: list[dict[str, object]] = []
    started = monotonic()
    while len(probes) < MOST_PROBES and high - low > RESOLUTION * high:
        rate = (low + high) / 2
        seconds = min(max(pace.seconds, LEAST_REQUESTS / rate), STRETCH * pace.seconds)
        if probes and monotonic() - started + seconds > pace.budget_seconds:
            break
        rig.say(f"{subject.model}: {rate:.1f} requests/s?")
        result = rig.open(
            f"{subject.model}: probe at {rate:.1f} requests/s",
            subject.address,
            subject.payload,
            rate=rate,
            seconds=seconds,
            settle=pace.settle,
            deadline=None,
            seed=seed + len(probes),
        )
        costs.measure(min(pace.seconds, COST_SECONDS))
        kept = result.requests > 0 and result.p99_of_all_seconds <= p99_seconds
        probes.append({"rate": rate, "kept": kept, "seconds": seconds, **asdict(result)})
        if kept:
            low, best = rate, result
        else:
            high = rate
    name = f"{subject.model}: highest Poisson rate with p99 ≤ {p99_seconds * MS:g} ms"
    detail: dict[str, object] = {"probes": probes, "capacity_requests_per_second": requests_per_second}
    if best is None:
        return [Figure(name, None, "requests/s", note=_why_none(probes, p99_seconds), detail=detail)]
    note = f"{len(probes)} probes; p99 there {best.p99_seconds * MS:.1f} ms; {generator_note([best])}".rstrip(
        "; "
    )
    return [
        Figure(name, low, "requests/s", low=low, high=high, note=note, detail=detail),
        Figure(f"{name}, of the closed loop's throughput", low / requests_per_second, "×", detail=detail),
    ]


def _why_none(probes: list[dict[str, object]], bound: float) -> str:
    if not probes:
        raise BenchError("the search had no time for a single probe")
    return f"no probed rate kept {bound * MS:g} ms; the lowest was {probes[-1]['rate']:.2f} requests/s"
