"""BatchLimit: how large a batch is worth it, by what warm-up measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# A run longer than this keeps everybody else on the device waiting.
LONG_RUN_SECONDS: Final = 0.25

# What is gained by less than this share is not worth the wait.
KNEE_SHARE: Final = 0.02

# What a run costs beyond its own time when others follow it: threads that wake up, the change between the
# engine's thread and the event loop's. ResNet18 alone is as fast at any batch size; served in batches of at
# most 1, 2, 4, 8 and 16 it gave 48.9, 50.0, 54.0, 54.3 and 54.6 images/s on two cores.
RUN_OVERHEAD_SECONDS: Final = 0.0025


@dataclass(frozen=True, slots=True)
class BatchLimit:
    """How large a batch may be, in samples."""

    ceiling: int
    is_fixed: bool
    """True: batches up to the ceiling. False: as large as the latency table says is worth it."""
    slo: float = 0.0
    """Seconds in which a request should be answered: a batch may take half, as a request may have to wait for
    one before it rides in the next. 0: no objective."""

    def choose(self, table: Mapping[int, float]) -> int:
        """Return the largest batch size to run, from a latency table."""
        if self.is_fixed:
            return self.ceiling
        if self.slo:
            return max((size for size, seconds in table.items() if seconds <= self.slo / 2), default=1)
        return knee(table)


def batch_buckets(max_batch_size: int) -> list[int]:
    """Return the batch sizes that are warmed up: the powers of two below the maximum, and the maximum."""
    sizes = [1]
    while sizes[-1] * 2 < max_batch_size:
        sizes.append(sizes[-1] * 2)
    return sizes if max_batch_size == 1 else [*sizes, max_batch_size]


def knee(table: Mapping[int, float]) -> int:
    """Return the batch size to serve by a latency table: the smallest that is nearly as fast as any.

    Beyond it, callers wait longer and nobody is served more. Of those with long runs, each has to be clearly
    faster than all smaller ones: the noise of a measurement must not choose it.
    """
    throughput = {size: size / (table[size] + RUN_OVERHEAD_SECONDS) for size in sorted(table)}
    smallest, *others = throughput
    short = [smallest, *(size for size in others if table[size] <= LONG_RUN_SECONDS)]
    best = max(throughput[size] for size in short)
    chosen = min(size for size in short if throughput[size] >= best * (1 - KNEE_SHARE))
    for size in sorted(throughput.keys() - short):
        if throughput[size] * (1 - KNEE_SHARE) > best:
            chosen, best = size, throughput[size]
    return chosen
