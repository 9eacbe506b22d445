"""Requests on their way through the batcher: each waits, rides in one or several batches, and is answered."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Sample = Any
"""What the engine takes one of: nothing here looks inside."""


@dataclass(slots=True)
class Ran:
    """What the engine did with a batch."""

    rows: Sequence[Any]
    """One for each sample, in their order; what they are is between the engine and who asks. An exception
    stands for the row of a sample whose run failed while others of the batch were answered."""
    began: float
    """In the clock's time."""
    seconds: float
    has_failures: bool = False
    """Whether any row is an exception."""

    @property
    def succeeded(self) -> int:
        """Samples that have a row."""
        if not self.has_failures:
            return len(self.rows)
        return sum(not isinstance(row, Exception) for row in self.rows)

    def raise_failure(self) -> None:
        """Raise what stands for a row, if anything does."""
        for row in self.rows if self.has_failures else ():
            if isinstance(row, Exception):
                raise row


# Not frozen: one is made for each request, and a frozen one takes three times as long.
@dataclass(slots=True)
class Answer:
    """The rows of one request and where its time went."""

    rows: Sequence[Any]
    """One output row for each sample, in the request's order."""
    batch_size: int
    """Samples in the largest batch that its samples rode in."""
    queue_seconds: float
    """From admission to the start of its first batch."""
    compute_seconds: float
    """Summed over its batches."""


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One admitted request, from the door to its answer."""

    samples: Sequence[Sample]
    deadline: float
    """In the clock's time; infinity: none."""
    enqueued_at: float
    answer: asyncio.Future[Answer]
    rows: list[Any]
    request_id: str = ""
    """For the log."""
    is_trial: bool = False
    """Admitted to find out whether a prediction that speaks against it still holds."""
    dispatched: int = 0
    """Samples that left the queue for a batch."""
    answered: int = 0
    """Samples whose row has come."""
    started_at: float | None = None
    batch_size: int = 0
    compute_seconds: float = 0.0

    @property
    def waiting(self) -> int:
        """Samples still in the queue."""
        return len(self.samples) - self.dispatched


@dataclass(slots=True)
class Part:
    """Consecutive samples of one request that ride in one batch."""

    request: PendingRequest
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Samples."""
        return self.stop - self.start

    @property
    def samples(self) -> Sequence[Sample]:
        """The samples."""
        return self.request.samples[self.start : self.stop]

    def deliver(self, rows: Sequence[Any], *, batch_size: int, seconds: float) -> None:
        """Give the request its rows; with the last of them, its answer."""
        request = self.request
        request.rows[self.start : self.stop] = rows
        request.answered += len(rows)
        request.batch_size = max(request.batch_size, batch_size)
        request.compute_seconds += seconds
        # The caller may have gone, or its deadline may have passed, while the batch ran.
        if request.answered < len(request.samples) or request.answer.done():
            return
        request.answer.set_result(
            Answer(
                rows=request.rows,
                batch_size=request.batch_size,
                queue_seconds=max((request.started_at or 0.0) - request.enqueued_at, 0.0),
                compute_seconds=request.compute_seconds,
            )
        )


@dataclass(slots=True)
class Batch:
    """What one run is made of."""

    parts: list[Part] = field(default_factory=list)
    size: int = 0
    """Samples."""

    def add(self, part: Part) -> None:
        """Let a part ride along."""
        self.parts.append(part)
        self.size += part.size

    def settle(self, now: float) -> Sequence[Sample]:
        """Return the samples that are still wanted; called by the engine as it begins.

        A batch may wait behind another; nobody who was cancelled or expired meanwhile costs a run.
        """
        self.parts = [
            part for part in self.parts if not part.request.answer.done() and part.request.deadline > now
        ]
        self.size = sum(part.size for part in self.parts)
        for part in self.parts:
            if part.request.started_at is None:
                part.request.started_at = now
        return [sample for part in self.parts for sample in part.samples]

    def deliver(self, ran: Ran) -> None:
        """Give each member its rows, but for those whose run failed."""
        at = 0
        for part in self.parts:
            rows = ran.rows[at : at + part.size]
            at += part.size
            if not (ran.has_failures and any(isinstance(row, Exception) for row in rows)):
                part.deliver(rows, batch_size=self.size, seconds=ran.seconds)

    def failed(self, ran: Ran) -> list[Part]:
        """Return the members whose run failed."""
        if not ran.has_failures:
            return []
        failed, at = [], 0
        for part in self.parts:
            if any(isinstance(row, Exception) for row in ran.rows[at : at + part.size]):
                failed.append(part)
            at += part.size
        return failed
