"""RequestQueue: one model's requests that wait, in order of arrival, and the batches that they would make."""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice

from vistazo_server.batching.batch import PendingRequest
from vistazo_server.batching.device import PlannedRun
from vistazo_server.batching.latency import LatencyModel


class RequestQueue:
    """Requests that wait for a batch; one leaves from the middle in O(1).

    `max_batch_size` and `samples` are in samples: a request larger than a batch is planned over several.
    """

    def __init__(self, latency: LatencyModel, *, max_batch_size: int) -> None:
        self.samples = 0
        """That wait."""
        self._latency = latency
        self._max_batch_size = max_batch_size
        self._requests: OrderedDict[PendingRequest, None] = OrderedDict()
        # Of the queue as it stands; None: to be worked out when somebody asks.
        self._earliest: float | None = None
        self._plan: list[PlannedRun] | None = None

    def __len__(self) -> int:
        return len(self._requests)

    def head(self, count: int) -> list[PendingRequest]:
        """Return the `count` requests that came first, or all."""
        return list(islice(self._requests, count))

    def oldest(self) -> PendingRequest | None:
        """Return the request that came first; None: none waits."""
        return next(iter(self._requests), None)

    def put(self, request: PendingRequest) -> bool:
        """Let a request wait; return whether its deadline is known to be the earliest."""
        self._requests[request] = None
        self.samples += len(request.samples)
        self._plan = None
        if self._earliest is None or request.deadline >= self._earliest:
            return False
        self._earliest = request.deadline
        return True

    def take(self, request: PendingRequest, count: int) -> None:
        """Hand out so many samples of a request; it leaves with its last."""
        request.dispatched += count
        self.samples -= count
        self._plan = None
        if request.waiting == 0:
            self._remove(request)

    def drop(self, request: PendingRequest) -> None:
        """Forget a request, if it waits."""
        if request in self._requests:
            self.samples -= request.waiting
            self._remove(request)

    def earliest_deadline(self) -> float:
        """Return the earliest deadline of those who wait; infinity when nobody does."""
        if self._earliest is None:
            self._earliest = min((request.deadline for request in self._requests), default=math.inf)
        return self._earliest

    def plan(self) -> Sequence[PlannedRun]:
        """Return the batches that those who wait would make, in order."""
        if self._plan is None:
            self._plan = self._planned((request.waiting, request.deadline) for request in self._requests)
        return self._plan

    def plan_with(self, samples: int, deadline: float) -> list[PlannedRun]:
        """Return the batches that they and one more request would make."""
        return self._planned([(samples, deadline)], self.plan())

    def forget_plan(self) -> None:
        """Plan anew when somebody asks: runs are thought to take another time than before."""
        self._plan = None

    def _planned(
        self, requests: Iterable[tuple[int, float]], after: Sequence[PlannedRun] = ()
    ) -> list[PlannedRun]:
        """Return the batches of requests, each so many samples and a deadline, behind those of `after`."""
        runs, full = list(after), self._max_batch_size
        size, due = 0, math.inf
        if runs and runs[-1].samples < full:
            last = runs.pop()
            size, due = last.samples, last.due
        for samples, deadline in requests:
            due = min(due, deadline)
            size += samples
            while size >= full:
                runs.append(PlannedRun(full, self._latency.seconds(full), due))
                size -= full
                due = deadline if size else math.inf
        if size:
            runs.append(PlannedRun(size, self._latency.seconds(size), due))
        return runs

    def _remove(self, request: PendingRequest) -> None:
        del self._requests[request]
        self._plan = None
        if self._earliest is not None and request.deadline <= self._earliest:
            self._earliest = None
