"""What a server's process takes of the machine, read from Linux, and whether that grows."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# What may come and go: a burst of connections, an arena of the allocator, a thread of grpc's pool.
ALLOWED_MEMORY_MB = 12.0
# And what stays: of a batch of grpc's operations that fails, or whose caller goes away meanwhile, grpcio
# keeps the array and what it points to (1.85.1; grpc/grpc#43360, open). heaptrack found 39 bytes for each of
# the calls that this soak's cancelled callers make, all of them grpcio's.
KEPT_BYTES_PER_CALL = 64
ALLOWED_FILES = 16
ALLOWED_THREADS = 6


@dataclass(frozen=True)
class Vitals:
    """One look at the process."""

    seconds: float
    """Since the start of the soak."""
    memory_mb: float
    """Resident."""
    files: int
    """Open file descriptors, connections included."""
    threads: int
    others: int
    """Calls so far that were not good ones; of some of them, grpcio keeps a little."""


def look(pid: int, began: float, others: int = 0) -> Vitals:
    """Return what process `pid` takes now. Raises OSError when it has ended."""
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    return Vitals(
        seconds=round(time.monotonic() - began, 1),
        memory_mb=round(int(status["VmRSS"].split()[0]) / 1024, 1),
        files=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
        others=others,
    )


def middle(looks: Sequence[Vitals]) -> Vitals:
    """Return the median of each figure."""
    return Vitals(
        *(
            round(statistics.median(values), 1)
            for values in zip(*(asdict(one).values() for one in looks), strict=True)
        )
    )


def growth(looks: Sequence[Vitals]) -> list[str]:
    """Return what grew from the second third of `looks`, its beginning cut off as a warm-up, to the last."""
    third = len(looks) // 3
    before, after = middle(looks[third : 2 * third]), middle(looks[2 * third :])
    allowed_memory = ALLOWED_MEMORY_MB + (after.others - before.others) * KEPT_BYTES_PER_CALL / 1e6
    # The lowest look of each: what is kept is in it, what one large image takes while it is decoded is not.
    kept_before = min(one.memory_mb for one in looks[third : 2 * third])
    kept_after = min(one.memory_mb for one in looks[2 * third :])
    findings = []
    if kept_after - kept_before > allowed_memory:
        findings.append(
            f"resident memory grew from {kept_before} to {kept_after} MB, by more than {allowed_memory:.0f}"
        )
    if after.files - before.files > ALLOWED_FILES:
        findings.append(f"open files grew from {before.files} to {after.files}")
    if after.threads - before.threads > ALLOWED_THREADS:
        findings.append(f"threads grew from {before.threads} to {after.threads}")
    return findings
