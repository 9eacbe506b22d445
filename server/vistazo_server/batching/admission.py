"""Admission: who is let in, by when an answer is predicted (rules 2 and 3 of `batcher`)."""

import math
from collections.abc import Callable
from typing import Final

from vistazo_server.batching.device import DeviceQueue, DeviceScheduler
from vistazo_server.batching.latency import LatencyModel
from vistazo_server.batching.request_queue import RequestQueue
from vistazo_server.errors import DeadlineExceededError, DeadlineUnreachableError, QueueFullError

# Over how long arrivals are averaged: some batches of the larger networks on a CPU.
RATE_SECONDS: Final = 1.0

# After a run the prediction counts as confirmed for so long, and for so many times the run's own seconds:
# what is tried in vain takes a sixth of the device at most, and what has become possible is found within a
# second.
CONFIRMED_SECONDS: Final = 0.5
CONFIRMED_RUNS: Final = 5
# What is said to take more than so many times the time that is left is not worth a trial: a warm-up beside a
# busy server measures a few times too much, not more.
TRIAL_FACTOR: Final = 10


class ArrivalRate:
    """Samples per second, those that were refused included, over the last second or so."""

    __slots__ = ("_counted_at", "_rate")

    def __init__(self) -> None:
        self._rate = 0.0
        self._counted_at = -math.inf

    def count(self, samples: int, now: float) -> None:
        """Take note of an arrival."""
        self._rate = self.per_second(now) + samples / RATE_SECONDS
        self._counted_at = now

    def per_second(self, now: float) -> float:
        """Return the rate: each arrival counts less the longer ago it was, by an exponential kernel."""
        return self._rate * math.exp((self._counted_at - now) / RATE_SECONDS) if self._rate else 0.0


class Admission:
    """Decides for one model whether a request could be answered in time, beside those who were promised.

    `queue` is what waits for it. `max_batch_size` and `queue_limit` are in samples, deadlines in the clock's
    time. Who asks says as what the `device` knows the model's queue.
    """

    def __init__(
        self,
        *,
        device: DeviceScheduler,
        queue: RequestQueue,
        latency: LatencyModel,
        max_batch_size: int,
        queue_limit: int,
        clock: Callable[[], float],
    ) -> None:
        self._device = device
        self._queue = queue
        self._latency = latency
        self._max_batch_size = max_batch_size
        self._queue_limit = queue_limit
        self._clock = clock
        self._arrivals = ArrivalRate()
        self._confirmed_until = -math.inf

    def arrived(self, samples: int, now: float) -> None:
        """Take note of an arrival, whether it is let in or not."""
        self._arrivals.count(samples, now)

    def predicted_seconds(self, model: DeviceQueue, samples: int) -> float:
        """Return the predicted seconds to the answer of `samples` samples that are due after all others."""
        return self._predicted(samples, self._wait(model))

    def check(self, model: DeviceQueue, samples: int, deadline: float, *, ready_in: float = 0.0) -> bool:
        """Return whether a request that is let in is a trial; its samples are prepared in `ready_in` seconds.

        Raises QueueFullError, DeadlineUnreachableError or DeadlineExceededError when it is not let in.
        """
        left = deadline - self._clock()
        if left <= 0:
            raise DeadlineExceededError("the deadline passed before the request was queued")
        excess = self._queue.samples + samples - self._queue_limit
        # A request that alone is larger than the limit may enter an empty queue, or it never could.
        if excess > 0 and self._queue.samples:
            raise QueueFullError(
                f"{self._queue.samples} samples wait, {samples} more would pass the limit of "
                f"{self._queue_limit}",
                retry_after=self._device.seconds_ahead(model) + self._seconds(excess),
            )
        if self._device.serves_others(model):
            planned = self._queue.plan_with(samples, deadline)
            forecast = self._device.forecast(model, planned)
            if forecast.breaks:
                raise DeadlineUnreachableError(
                    f"an answer would make others, who were promised theirs, late by {forecast.breaks:.3f} s",
                    retry_after=forecast.breaks,
                )
            wait = forecast.wait
            predicted = self._predicted(planned[-1].samples, wait, joins=0)
        else:
            wait = self._wait(model)
            predicted = self._predicted(samples, wait)
        own = self._seconds(samples)
        predicted = max(predicted, ready_in + own)
        if predicted <= left:
            return False
        if self._is_worth_a_trial(samples, left, wait=max(wait, ready_in), own=own):
            return True
        raise DeadlineUnreachableError(
            f"the answer is predicted in {predicted:.3f} s, the deadline is in {left:.3f} s",
            retry_after=predicted - left,
        )

    def confirmed(self, seconds: float) -> None:
        """Take note that a run, which took or will take so long, says whether the prediction holds."""
        self._confirmed_until = self._clock() + max(CONFIRMED_SECONDS, CONFIRMED_RUNS * seconds)

    def _wait(self, model: DeviceQueue) -> float:
        """Return the predicted seconds until all that is known of has run."""
        return self._device.seconds_ahead(model) + self._seconds(self._queue.samples)

    def _predicted(self, samples: int, wait: float, *, joins: int | None = None) -> float:
        """Return the predicted time to an answer whose samples wait for `wait` seconds of others' runs.

        `joins`: the samples of its own queue that its batches are shared with and that `wait` counts, too;
        None: all that wait. Its batch will fill up with those who arrive meanwhile, and then take longer.
        Were that left out, under overload everybody in the queue would be promised the time of a small batch,
        and small batches would have to be run to keep it (simulated at twice the capacity: 3 samples instead
        of 8).

        The wait is stretched by the latency model's margin. Without it, those at the head of a long queue
        have no slack left: a run that takes a little longer makes them late, and what was spent on them is
        lost. A shorter queue costs nothing while it is never empty.
        """
        if wait == 0.0:
            return self._seconds(samples)
        shared = self._queue.samples if joins is None else joins
        together = shared + samples
        to_fill = -together % self._max_batch_size
        company = min(to_fill, int(self._arrivals.per_second(self._clock()) * wait))
        before = wait - self._seconds(shared)
        return before + self._seconds(together + company) + wait * self._latency.margin

    def _is_worth_a_trial(self, samples: int, left: float, *, wait: float, own: float) -> bool:
        """Return whether a request is let in although by the prediction it would be late."""
        # By the estimate, an hour of slow runs could make a free engine refuse everybody for ever: without a
        # run, the estimate never recovers. So it is the best pace that there is reason to hope for.
        if wait == 0.0 and self._latency.least_in_batches(samples, self._max_batch_size) <= left:
            return True
        # Its own runs must be what speaks against it: how long others take, their runs are just about to
        # show.
        speaks_against = left - wait < own <= TRIAL_FACTOR * (left - wait)
        return speaks_against and self._clock() >= self._confirmed_until

    def _seconds(self, samples: int) -> float:
        return self._latency.seconds_in_batches(samples, self._max_batch_size)
