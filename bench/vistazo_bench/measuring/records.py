"""What a segment of load recorded, and the arithmetic on it. Seconds and requests; nothing of grpc's I/O."""

from collections import Counter
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int32]

OK = grpc.StatusCode.OK.value[0]
REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
NO_PUSHBACK = -1

_STATUS_NAME: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}

# An arrival sent later than this after its time is behind schedule: uvloop's timers have 1 ms, the rest is
# a generator that gets too little CPU.
BEHIND_SECONDS = 0.010


@dataclass(frozen=True, slots=True)
class Recording:
    """One segment: an entry in each array for every request that was sent, in no particular order."""

    arrived: FloatArray
    """Seconds from the segment's start: when it was sent (closed loop) or was due (open loop)."""
    latency: FloatArray
    """Seconds from `arrived` to the answer or the error."""
    status: IntArray
    """The gRPC status as its number."""
    pushback_ms: IntArray
    """The pushback trailer of an error; NO_PUSHBACK: none."""
    lag: FloatArray
    """Seconds from `arrived` to when it was really sent; all 0 in a closed loop."""
    window: tuple[float, float]
    """Start and end of the part that counts, in `arrived`'s seconds."""
    dropped: int
    """Arrivals that were never sent because too many were outstanding."""
    samples: tuple[tuple[int, bytes], ...]
    """Some of the answers, to be checked: index of the request, bytes of the response."""


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """A segment in a few numbers."""

    requests: int
    answered: int
    throughput: float
    """Images answered per second."""
    goodput: float
    """Images answered per second within the deadline; the throughput where there was none."""
    in_time_share: float
    """Share, 0 to 1, of the requests that were answered within the deadline."""
    p50_seconds: float
    """Percentiles of the latency of the answered; NaN when there are none."""
    p90_seconds: float
    p99_seconds: float
    p99_of_all_seconds: float
    """p99 in which a request that was not answered took for ever."""
    refused: int
    refusal_p50_seconds: float
    """NaN when none was refused."""
    pushback_share: float
    """Share of the refused that were told when to come back; NaN when none was refused."""
    errors: dict[str, int]
    """Requests by status, OK left out."""
    lag_p99_seconds: float
    """The generator's own delay, p99."""
    behind_share: float
    """Share of the arrivals that the generator sent late, by more than BEHIND_SECONDS, or not at all."""


def percentile(values: FloatArray, q: float) -> float:
    """Return the nearest-rank percentile, `q` in 0 to 100: a value that was measured; NaN without values."""
    if len(values) == 0:
        return float("nan")
    return float(np.percentile(values, q, method="inverted_cdf"))


def summarize_closed(recording: Recording, *, images_per_request: int) -> LoadSummary:
    """Sum up a closed loop: the requests that ended within the window."""
    ended = recording.arrived + recording.latency
    start, end = recording.window
    inside = (ended >= start) & (ended <= end)
    answered = recording.status == OK
    latency = percentile(recording.latency[inside & answered], 50)
    pause = latency if np.isfinite(latency) else 0.0
    rate = steady_rate(np.sort(ended[answered]), start, end, pause_within=pause)
    return _summary(recording, inside, rate * images_per_request, deadline=None)


def summarize_open(recording: Recording, *, images_per_request: int, deadline: float | None) -> LoadSummary:
    """Sum up an open loop: the requests that arrived within the window, whenever they ended."""
    start, end = recording.window
    inside = (recording.arrived >= start) & (recording.arrived < end)
    answered = inside & (recording.status == OK)
    rate = float(np.count_nonzero(answered)) / (end - start)
    return _summary(
        recording, inside, rate * images_per_request, deadline=deadline, images_per_request=images_per_request
    )


def steady_rate(ended: FloatArray, start: float, end: float, *, pause_within: float) -> float:
    """Return how many of `ended` (sorted) there are per second between `start` and `end`.

    Answers of one batch come together, and a window that cuts a batch in two would be wrong by up to a
    batch at either end: a third of the figure for a slow network and a short segment. So it is counted
    from pause to pause: the outermost long ones within `pause_within` seconds of either end.
    """
    plain = float(np.count_nonzero((ended >= start) & (ended <= end))) / (end - start)
    within = min(pause_within, (end - start) / 2)
    gaps = np.append(np.diff(ended), np.inf)
    first = np.flatnonzero((ended >= start) & (ended <= start + within))
    last = np.flatnonzero((ended >= end - within) & (ended <= end))
    if len(first) == 0 or len(last) == 0:
        return plain
    begin = first[gaps[first] >= gaps[first].max() / 2][0]
    finish = last[gaps[last] >= gaps[last].max() / 2][-1]
    seconds = float(ended[finish] - ended[begin])
    return float(finish - begin) / seconds if seconds > 0 else plain


def _summary(
    recording: Recording,
    inside: NDArray[np.bool_],
    throughput: float,
    *,
    deadline: float | None,
    images_per_request: int = 1,
) -> LoadSummary:
    latency, status = recording.latency[inside], recording.status[inside]
    answered = status == OK
    refused = status == REFUSED
    in_time = answered if deadline is None else answered & (latency <= deadline)
    lag = recording.lag[inside]
    requests = len(latency)
    start, end = recording.window
    due = requests + recording.dropped
    times = latency[answered]
    return LoadSummary(
        requests=requests,
        answered=int(np.count_nonzero(answered)),
        throughput=throughput,
        goodput=throughput
        if deadline is None
        else float(np.count_nonzero(in_time)) * images_per_request / (end - start),
        in_time_share=_share(np.count_nonzero(in_time), due),
        p50_seconds=percentile(times, 50),
        p90_seconds=percentile(times, 90),
        p99_seconds=percentile(times, 99),
        p99_of_all_seconds=percentile(np.where(answered, latency, np.inf), 99),
        refused=int(np.count_nonzero(refused)),
        refusal_p50_seconds=percentile(latency[refused], 50),
        pushback_share=_share(
            np.count_nonzero(recording.pushback_ms[inside][refused] != NO_PUSHBACK), np.count_nonzero(refused)
        ),
        errors=dict(Counter(_STATUS_NAME[int(number)] for number in status[~answered])),
        lag_p99_seconds=percentile(lag, 99),
        behind_share=_share(np.count_nonzero(lag > BEHIND_SECONDS) + recording.dropped, due),
    )


def _share(part: int | np.intp, whole: int | np.intp) -> float:
    return float(part) / float(whole) if whole else float("nan")
