"""What a server's process takes of the machine, read from Linux, and whether that grows."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# What may come and go: a burst of connections, an arena of the allocator, a thread of grpc's pool. And what
# stays: of each RPC that its caller cancels, grpcio keeps some tens of bytes (1.85, and also without any of
# our code), which in ten minutes of 400 a second is 10 to 20 MB.
ALLOWED_MEMORY_SHARE = 0.06
ALLOWED_MEMORY_MB = 24.0
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


def look(pid: int, began: float) -> Vitals:
    """Return what process `pid` takes now. Raises OSError when it has ended."""
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    return Vitals(
        seconds=round(time.monotonic() - began, 1),
        memory_mb=round(int(status["VmRSS"].split()[0]) / 1024, 1),
        files=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
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
    allowed_memory = max(ALLOWED_MEMORY_MB, before.memory_mb * ALLOWED_MEMORY_SHARE)
    findings = []
    if after.memory_mb - before.memory_mb > allowed_memory:
        findings.append(f"resident memory grew from {before.memory_mb} to {after.memory_mb} MB")
    if after.files - before.files > ALLOWED_FILES:
        findings.append(f"open files grew from {before.files} to {after.files}")
    if after.threads - before.threads > ALLOWED_THREADS:
        findings.append(f"threads grew from {before.threads} to {after.threads}")
    return findings
